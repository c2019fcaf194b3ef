"""The command ``zoo``: a thin layer over what Python can do as well.

Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ase.io
import click
from ase import Atoms
from tqdm import tqdm

from zoo.errors import StructureError, UnknownNameError, ZooError
from zoo.evaluate.report import table
from zoo.hub.catalogue import entries
from zoo.load import load, names
from zoo.md import Sample, Settings, energy_drift, run_dynamics
from zoo.pipeline import Run, distill, evaluate, make_labels, outline, train_student, train_twin
from zoo.publish import publish
from zoo.recipe import read_recipe
from zoo.version import __version__

F = TypeVar("F", bound=Callable[..., Any])


class Commands(click.Group):
    """Turns errors of zoo into one line and the exit code 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ZooError as error:
            click.echo(f"zoo: {error}", err=True)
            sys.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="zoo")
def main() -> None:
    """Fast, specialised force-field engines, distilled from foundation models of atoms.

    \b
    Use one:     zoo list, zoo check NAME, zoo md NAME FILE
    Make one:    zoo distill RECIPE   (label, train, evaluate are its parts)
    Share one:   zoo publish FOLDER

    An engine is named FAMILY/ENGINE, for instance sevennet-0/silicon-student, or given as a model folder (./folder).
    """


def recipe_options(command: F) -> F:
    """The argument and options that all stages of a recipe share."""
    for decorate in (
        click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
        click.option("--replace", is_flag=True, help="Make anew what was made from another recipe. Deletes it first."),
        click.option(
            "--run",
            "folder",
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder of the run. Default: runs/FAMILY/ENGINE.",
        ),
        click.argument("recipe"),
    ):
        command = decorate(command)
    return command


def hub_option(command: F) -> F:
    """Where engines are fetched from or published to."""
    return click.option(
        "--hub", envvar="ZOO_HUB", metavar="HUB", help="Folder of a hub. Default: the variable ZOO_HUB."
    )(command)


def _run(recipe: str, folder: Path | None, replace: bool, dry_run: bool) -> Run | None:
    run = Run.of(read_recipe(recipe), folder, replace=replace)
    if dry_run:
        click.echo(outline(run))
        return None
    return run


@main.command("distill")
@recipe_options
def distill_command(recipe: str, folder: Path | None, replace: bool, dry_run: bool) -> None:
    """Carry out RECIPE, from structures to a model folder.

    RECIPE is a name (sevennet-0/silicon-student) or the path of a .yaml file. What is done already is reused, and a
    run that was interrupted goes on where it stopped: run the same command again.
    """
    run = _run(recipe, folder, replace, dry_run)
    if run is not None:
        model = distill(run)
        click.echo(table(evaluate(run)))
        click.echo(f"{model} is ready. Publish it with: zoo publish {model} --hub ./hub")


@main.command("label")
@recipe_options
def label_command(recipe: str, folder: Path | None, replace: bool, dry_run: bool) -> None:
    """Make the structures of RECIPE and let its teacher label them."""
    run = _run(recipe, folder, replace, dry_run)
    if run is not None:
        click.echo(f"labels are in {make_labels(run)}")


@main.command("train")
@recipe_options
def train_command(recipe: str, folder: Path | None, replace: bool, dry_run: bool) -> None:
    """Train the student of RECIPE and its undistilled twin.

    Progress can be watched in train/metrics.jsonl, one record a line.
    """
    run = _run(recipe, folder, replace, dry_run)
    if run is not None:
        train_student(run)
        train_twin(run)
        click.echo(f"weights are in {run.folder / 'train'} and {run.folder / 'twin'}")


@main.command("evaluate")
@recipe_options
def evaluate_command(recipe: str, folder: Path | None, replace: bool, dry_run: bool) -> None:
    """Measure the student of RECIPE against its teacher and its undistilled twin."""
    run = _run(recipe, folder, replace, dry_run)
    if run is not None:
        click.echo(table(evaluate(run)))


@main.command("publish")
@click.argument("folder", type=click.Path(path_type=Path))
@hub_option
@click.option("--namespace", envvar="ZOO_NAMESPACE", default="mlff-zoo", show_default=True, help="Who publishes.")
@click.option("--dry-run", is_flag=True, help="Check everything and list the files, but publish nothing.")
@click.option("--public", is_flag=True, help="Open to everybody, on hubs that know private repositories.")
def publish_command(folder: Path, hub: str | None, namespace: str, dry_run: bool, public: bool) -> None:
    """Publish the model folder FOLDER to a hub, as the next version of its name.

    The folder is verified, its probe recomputed and its licence checked before anything is released. Publishing the
    same content twice changes nothing.
    """
    click.echo(publish(folder, hub=hub, namespace=namespace, dry_run=dry_run, public=public))


@main.command("list")
@hub_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_command(hub: str | None, as_json: bool) -> None:
    """List the engines that zoo knows, and those on the hub."""
    rows = listing(hub)
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        click.echo(f"{row['name']:<{width}}  {row['status']:<9}  {row['licence_weights'] or '-':<14}  {row['purpose']}")
    click.echo("\npublished: on the hub. recipe: make it with zoo distill. package: comes with a Python package.")


def listing(hub: str | None) -> list[dict[str, Any]]:
    """One row an engine: those of the catalogue, and those found on the hub."""
    known = {name: entry.model_dump(mode="json") for name, entry in entries().items()}
    rows = []
    for name in names(hub=hub):
        found = {"status": "published", "licence_weights": None, "purpose": "found on the hub"} | known.get(name, {})
        if name not in known or name in set(names(hub=hub)) - set(names()):
            found["status"] = "published"
        rows.append({"name": name, **found})
    return rows


@main.command("check")
@click.argument("name")
@hub_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "float64"]))
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def check_command(name: str, hub: str | None, device: str, dtype: str, as_json: bool) -> None:
    """Recompute the published probe of engine NAME on this machine."""
    result = load(name, hub=hub, device=device, dtype=dtype).check()
    click.echo(json.dumps(result.as_dict(), indent=1) if as_json else str(result))
    if not result.passed:
        sys.exit(1)


@main.command("md")
@click.argument("name")
@click.argument("structure", type=click.Path(path_type=Path))
@hub_option
@click.option("--ensemble", default="nve", show_default=True, type=click.Choice(["nve", "nvt"]))
@click.option("--temperature", default=300.0, show_default=True, help="K, of the thermostat or the first velocities.")
@click.option("--timestep", default=1.0, show_default=True, help="fs")
@click.option("--steps", default=1000, show_default=True)
@click.option("--every", default=100, show_default=True, help="Steps between lines and frames.")
@click.option("--seed", default=0, show_default=True, help="Of velocities and thermostat.")
@click.option("--output", type=click.Path(path_type=Path), help="Trajectory, in ASE's format (.traj).")
@click.option("--device", default="auto", show_default=True)
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "float64"]))
@click.option("--no-check-domain", is_flag=True, help="Go on outside the engine's domain.")
def md_command(
    name: str,
    structure: Path,
    hub: str | None,
    device: str,
    dtype: str,
    no_check_domain: bool,
    output: Path | None,
    **settings: Any,
) -> None:
    """Run molecular dynamics of STRUCTURE (any file ASE reads) with engine NAME.

    \b
    zoo md sevennet-0/silicon-student si.xyz --temperature 600 --steps 2000 --output si.traj
    """
    engine = load(name, hub=hub, device=device, dtype=dtype, check_domain=not no_check_domain)
    atoms = read_structure(structure)
    settings = {_UNITS.get(key, key): value for key, value in settings.items()}
    click.echo(repr(engine))
    click.echo(f"\n{'step':>8} {'time (ps)':>10} {'T (K)':>8} {'E_pot (eV)':>14} {'E_total (eV)':>14}")
    with tqdm(total=settings["steps"], desc="dynamics", unit="step", delay=2) as bar:
        samples = run_dynamics(
            atoms,
            engine.calculator(),
            Settings(**settings),
            trajectory=output,
            on_sample=lambda it: _show(it, bar),
        )
    drift = energy_drift(samples, len(atoms))
    if drift is not None and settings["ensemble"] == "nve":
        click.echo(f"\ndrift of the total energy: {drift:.4f} meV/atom/ps")


_UNITS = {"temperature": "temperature_K", "timestep": "timestep_fs"}


def _show(sample: Sample, bar: "tqdm[Any]") -> None:
    line = f"{sample.step:>8} {sample.time_ps:>10.3f} {sample.temperature_K:>8.1f}"
    tqdm.write(f"{line} {sample.potential_eV:>14.5f} {sample.total_eV:>14.5f}")
    bar.update(sample.step - bar.n)


def read_structure(path: Path) -> Atoms:
    """The last structure in a file. Raises UnknownNameError for no such file, StructureError for an unreadable one."""
    if not path.is_file():
        raise UnknownNameError(f"no file {path}; give a structure in a format that ASE reads, such as .xyz or .cif")
    try:
        atoms = ase.io.read(path, index=-1)
    except Exception as error:  # ASE's readers raise anything
        raise StructureError(f"{path} cannot be read as a structure: {error}") from error
    if not isinstance(atoms, Atoms):
        raise StructureError(f"{path} holds no structure")
    return atoms


if __name__ == "__main__":
    main()
