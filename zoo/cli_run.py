"""``zoo relax``, ``zoo md``, ``zoo check`` and ``zoo warm``: engines at work."""

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, get_args

import ase.io
import click
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian
from ase.io.trajectory import TrajectoryWriter
from tqdm import tqdm

from zoo.cli_options import device_options, engine_options, hub_options, json_option, read_structures
from zoo.engine import Engine
from zoo.errors import CapabilityError, ConfigError, ZooError, ZooWarning
from zoo.execution import warm
from zoo.load import load
from zoo.md import Sample, Settings, check_output, energy_drift, run_dynamics
from zoo.novelty import Novelty
from zoo.relax import OPTIMIZERS, Cell, Relaxation, relax
from zoo.relax import Settings as RelaxSettings

Row = dict[str, Any]
_FORMATS = (".xyz", ".extxyz", ".traj")  # that hold energies and forces beside a structure
_HEAD = f"{'structure':>9} {'atoms':>6} {'steps':>6} {'energy (eV)':>15} {'fmax (eV/Å)':>12} {'stress (GPa)':>13}"
_no_check_option = click.option(
    "--no-check-domain", is_flag=True, help="Ask the engine outside its domain too (check_domain=False)."
)


@click.command("check")
@click.argument("name")
@engine_options
@json_option
def check_command(name: str, as_json: bool, **options: Any) -> None:
    """Recompute the published probe of engine NAME on this machine.

    A probe is a few structures, kept with the engine, and what it said of them where it was made. NAME is
    FAMILY/ENGINE or a model folder (./folder), whose files are verified too. Exits with 1 where a difference is over
    its tolerance.
    """
    result = load(name, **options).check()
    click.echo(json.dumps(result.as_dict(), indent=1) if as_json else str(result))
    if not result.passed:
        sys.exit(1)


@click.command("warm")
@click.argument("names", nargs=-1, required=True)
@device_options
@hub_options
def warm_command(names: tuple[str, ...], **options: Any) -> None:
    """Fetch engines NAMES, and compile what can be compiled of them.

    It is kept, so that what runs them later begins at once; a line for each says what is ready. A name that fails is
    told, the others go on, and the exit code is 1.

    \b
    zoo warm sevennet-0/silicon-student --dtype float64
    """
    failed = False
    for name in names:
        try:
            engine = load(name, compile=False, **options)
            ready = warm(engine.potential, [] if engine.probe is None else engine.probe.structures)
        except (ZooError, OSError) as error:
            click.echo(f"zoo: {name}: {error}", err=True)
            failed = True
        else:
            click.echo(f"{engine.provenance.title}: {ready}")
    if failed:
        sys.exit(1)


# --- dynamics ------------------------------------------------------------------------------------------


@click.command("md")
@click.argument("name")
@click.argument("structure", type=click.Path(path_type=Path))
@click.option(
    "--ensemble",
    default="nve",
    show_default=True,
    type=click.Choice(["nve", "nvt"]),
    help="nve keeps the energy, nvt the temperature (Langevin thermostat).",
)
@click.option(
    "--temperature",
    "temperature_K",
    default=300.0,
    show_default=True,
    help="In K: of the thermostat, and of the first velocities where STRUCTURE has none (nve: half of it remains where "
    "atoms start on perfect sites).",
)
@click.option("--timestep", "timestep_fs", default=1.0, show_default=True, help="In fs.")
@click.option("--steps", default=1000, show_default=True, help="How many time steps.")
@click.option("--every", default=100, show_default=True, help="Steps between printed lines, and between frames.")
@click.option("--seed", default=0, show_default=True, help="Of velocities and thermostat.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Trajectory to write, in ASE's format, such as si.traj.  [default: none]",
)
@click.option("--overwrite", is_flag=True, help="Replace the trajectory where it exists.")
@engine_options
@_no_check_option
def md_command(
    name: str, structure: Path, output: Path | None, overwrite: bool, no_check_domain: bool, **options: Any
) -> None:
    """Run molecular dynamics with engine NAME.

    The last line says how new the newest atom of the printed steps was to the engine, and at which step, where its
    folder tells that, also of a run that cannot go on.
    NAME is FAMILY/ENGINE or a model folder (./folder). STRUCTURE is a file in any format that ASE reads; of many
    structures in it the last is taken, with its velocities where it has some, so that the trajectory of a run can be
    gone on with.

    \b
    zoo md sevennet-0/silicon-student si.xyz --hub ./hub --output si.traj
    """
    settings = Settings(**{key: options.pop(key) for key in _names(Settings)})
    if output is not None:
        _check_apart(output, structure, "--output")
        check_output(output, overwrite=overwrite)
    engine = load(name, check_domain=not no_check_domain, **options)
    if not engine.potential.traits.energies:
        raise CapabilityError(f"{name} gives forces alone, and zoo md prints energies; drive it with ASE from Python")
    (atoms,) = read_structures(structure, "-1:")
    newest = _Newest()

    def say(sample: Sample) -> None:
        tqdm.write(_line(sample, engine))
        if engine.tells_novelty:
            newest.see(sample.step, *engine.novelty(atoms))

    try:
        with tqdm(total=settings.steps, desc="dynamics", unit="step", delay=2, disable=None) as bar:
            samples = run_dynamics(
                atoms,
                engine.calculator(),
                settings,
                trajectory=output,
                overwrite=overwrite,
                on_sample=say,
                on_step=lambda step: bar.update(step - bar.n),
            )
        drift = energy_drift(samples, len(atoms))
        if drift is not None and settings.ensemble == "nve":
            click.echo(f"\ndrift of the total energy: {drift:.4f} meV/atom/ps")
    finally:
        if newest.found is not None:
            step, novelty = newest.found
            click.echo(f"\nof all that was printed, at step {step} {novelty}")


class _Newest:
    """The newest of the structures that were seen, with its step."""

    def __init__(self) -> None:
        self.found: tuple[int, Novelty] | None = None

    def see(self, step: int, novelty: Novelty) -> None:
        if self.found is None or novelty.newer_than(self.found[1]):
            self.found = step, novelty


def _line(sample: Sample, engine: Engine) -> str:
    """A line of the table; the first comes with the engine and the head, when nothing was refused."""
    line = f"{sample.step:>8} {sample.time_ps:>10.3f} {sample.temperature_K:>8.1f}"
    line += f" {sample.potential_eV:>14.5f} {sample.total_eV:>14.5f}"
    head = f"{'step':>8} {'time (ps)':>10} {'T (K)':>8} {'E_pot (eV)':>14} {'E_total (eV)':>14}"
    return f"{engine!r}\n\n{head}\n{line}" if sample.step == 0 else line


# --- relaxation ----------------------------------------------------------------------------------------


@click.command("relax")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--fmax",
    "fmax_eV_A",
    default=0.01,
    show_default=True,
    help="Largest force on an atom to be content with, in eV/Å; for the cell, its gradient by the strain in eV/atom.",
)
@click.option("--steps", default=500, show_default=True, help="At most, for each structure.")
@click.option(
    "--cell",
    default="none",
    show_default=True,
    type=click.Choice(get_args(Cell)),
    help="What of the cell may change: nothing, its volume at the same shape, or all of it.",
)
@click.option(
    "--pressure",
    "pressure_GPa",
    default=0.0,
    show_default=True,
    help="From outside, in GPa; positive is compression.",
)
@click.option("--optimizer", default="fire", show_default=True, type=click.Choice(list(OPTIMIZERS)), help="Of ASE.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Relaxed structures to write, such as relaxed.xyz or relaxed.traj.  [default: none]",
)
@click.option(
    "--trajectory",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="All steps on the way to write, likewise.  [default: none]",
)
@click.option("--overwrite", is_flag=True, help="Replace these files where they exist.")
@engine_options
@_no_check_option
@json_option
def relax_command(
    name: str,
    file: Path,
    output: Path | None,
    trajectory: Path | None,
    overwrite: bool,
    no_check_domain: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Relax the structures in FILE with engine NAME.

    NAME is FAMILY/ENGINE or a model folder (./folder). FILE is in any format that ASE reads, and may hold many
    structures, which are relaxed one after the other. Constraints in it hold; what --output keeps has energies, forces
    and the rest of FILE, but for constraints that its format lacks, which are named. A structure that is refused is
    named and left out, one that leaves the domain ends as it last was inside; the others go on. Exits with 1 where one
    has not converged.

    \b
    zoo relax sevennet-0/silicon-student si.xyz --cell full --output relaxed.xyz
    """
    settings = RelaxSettings(**{key: options.pop(key) for key in _names(RelaxSettings)})
    _check_files({"--output": output, "--trajectory": trajectory}, file, overwrite)
    engine = load(name, check_domain=not no_check_domain, **options)
    if not engine.potential.traits.energies:
        raise CapabilityError(f"{name} gives forces alone, and relaxing takes energies; choose an engine with energies")
    structures = read_structures(file)
    _note_dropped(structures, [path for path in (output, trajectory) if path is not None])
    with ExitStack() as files:
        results, steps = (files.enter_context(_Frames(path)) for path in (output, trajectory))
        say = _quiet if as_json else _said(engine)
        rows = _relax_each(engine, structures, settings, results, steps, say)
    if as_json:
        told = {"engine": engine.provenance.title, **vars(settings), "structures": rows}
        click.echo(json.dumps(told, indent=1, ensure_ascii=False))
    if not all(row["converged"] for row in rows):
        sys.exit(1)


class _Frames:
    """A file of structures, begun when there is one to write; without a path, nothing is written."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: TextIO | TrajectoryWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, atoms: Atoms, _: int = 0) -> None:
        if self.path is None:
            return
        if self._file is None:
            binary = self.path.suffix == ".traj"
            self._file = TrajectoryWriter(str(self.path), "w") if binary else self.path.open("w", encoding="utf-8")
        if isinstance(self._file, TrajectoryWriter):
            self._file.write(atoms)
        else:
            ase.io.write(self._file, atoms, format="extxyz")
            self._file.flush()


def _relax_each(
    engine: Engine,
    structures: Sequence[Atoms],
    settings: RelaxSettings,
    results: _Frames,
    steps: _Frames,
    say: Callable[[Row], None],
) -> list[Row]:
    """A row a structure, in order; what is wrong with one is said at once, and the others go on."""
    rows: list[Row] = []
    for index, atoms in enumerate(tqdm(structures, desc="relaxation", unit="structure", delay=2, disable=None)):
        found: Relaxation | str
        newest = None
        try:
            found = relax(atoms, engine.calculator(), settings, on_step=steps.write)
            results.write(found.atoms)
            newest = engine.novelty(found.atoms)[0] if engine.tells_novelty else None
        except ZooError as error:
            found = str(error)
        rows.append(_row(index, atoms, found, newest))
        say(rows[-1])
        for wrong in filter(None, (_complaint(rows[-1]), _doubt(newest))):
            tqdm.write(f"zoo: structure {index} ({atoms.symbols}) {wrong}", file=sys.stderr)
    return rows


def _row(index: int, atoms: Atoms, found: Relaxation | str, newest: Novelty | None) -> Row:
    """For JSON; ``found`` is why a structure was refused, where it was."""
    row: Row = {"structure": index, "formula": str(atoms.symbols), "atoms": len(atoms)}
    if isinstance(found, str):
        row |= dict.fromkeys(("steps", "energy_eV", "fmax_eV_A", "stress_GPa", "novelty_meV_A"))
        return row | {"converged": False, "stopped": found}
    row |= {"steps": found.steps, "energy_eV": found.energy_eV, "fmax_eV_A": found.fmax_eV_A}
    row |= {"stress_GPa": found.stress_GPa, "novelty_meV_A": None if newest is None else newest.largest}
    return row | {"converged": found.converged, "stopped": found.stopped}


def _complaint(row: Row) -> str | None:
    """What is wrong with a relaxation, as the end of a sentence about its structure."""
    if row["steps"] is None:
        return f"was refused: {row['stopped']}"
    if row["stopped"] is not None:
        return f"is kept as it was after {row['steps']} steps, before it could not go on: {row['stopped']}"
    if not row["converged"]:
        return f"has not converged in {row['steps']} steps; pass more --steps, or another --optimizer"
    return None


def _doubt(newest: Novelty | None) -> str | None:
    """Why not to trust where a relaxation ended, likewise: that forces are small does not say that they are right."""
    return f"ended where its {newest}; do not trust it" if newest is not None and newest.beyond else None


def _end(row: Row) -> str:
    if row["steps"] is None:
        return "refused"
    if row["stopped"] is not None:
        return "stopped"
    return "converged" if row["converged"] else "not converged"


def _quiet(row: Row) -> None:
    """Says nothing."""


def _said(engine: Engine) -> Callable[[Row], None]:
    """Prints a row; the first comes with the engine and the head."""

    def say(row: Row) -> None:
        if row["structure"] == 0:
            tqdm.write(f"{engine!r}\n\n{_HEAD}")
        numbers = [f"{row['structure']:>9} {row['atoms']:>6}"]
        for key, form in (("steps", ">6"), ("energy_eV", ">15.5f"), ("fmax_eV_A", ">12.5f"), ("stress_GPa", ">13.4f")):
            numbers.append(format("-", form.partition(".")[0]) if row[key] is None else format(row[key], form))
        tqdm.write(f"{' '.join(numbers)}  {_end(row)}")

    return say


# --- files ---------------------------------------------------------------------------------------------


def _names(settings: type[Settings] | type[RelaxSettings]) -> list[str]:
    return [field.name for field in fields(settings)]


def _check_files(outputs: dict[str, Path | None], source: Path, overwrite: bool) -> None:
    """Before anything is loaded. Raises ConfigError."""
    given = {option: path for option, path in outputs.items() if path is not None}
    for option, path in given.items():
        _check_apart(path, source, option)
        check_output(path, overwrite=overwrite, option=option, suffixes=_FORMATS)
    if len({path.resolve() for path in given.values()}) < len(given):
        raise ConfigError(f"{' and '.join(given)} are the same file; give each a name of its own")


def _note_dropped(structures: Sequence[Atoms], outputs: Sequence[Path]) -> None:
    """Warns once of the constraints that files to write cannot hold: extended XYZ knows atoms that do not move."""
    files = [str(path) for path in outputs if path.suffix != ".traj"]
    constraints = [one for atoms in structures for one in atoms.constraints]
    dropped = {type(one).__name__ for one in constraints if not isinstance(one, FixAtoms | FixCartesian)}
    if files and dropped:
        told = f"{', '.join(sorted(dropped))} of the structures hold while they relax"
        warnings.warn(f"{told}, and {' and '.join(files)} cannot keep them; write .traj", ZooWarning, stacklevel=2)


def _check_apart(output: Path, source: Path, option: str) -> None:
    """Raises ConfigError: the structure itself is never overwritten."""
    if output.exists() and source.exists() and output.samefile(source):
        raise ConfigError(f"{output} is the structure to start from; choose another {option}")
