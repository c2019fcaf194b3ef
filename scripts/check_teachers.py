"""Each teacher against its family's own calculator, and its Hessian products against differences of its own forces.

A family is run where its package is found: in this Python, in the environment that ``zoo teachers install`` has made
for it, or in one named by hand (``--python mace=/path/to/python``). Real weights are taken where they are here, else
the family's own code makes a small model with random ones. Writes benchmarks/teachers.md; the exit code is 1 where a
deviation is beyond its bound, or where a teacher failed.

    .venv/bin/python scripts/check_teachers.py
"""

import argparse
import importlib
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import chemical_symbols

from zoo.evaluate.environment import hardware, versions
from zoo.files import atomic_write
from zoo.hub.catalogue import entries
from zoo.neighbors import build_graph
from zoo.potential import Potential, Prediction, given
from zoo.teachers import FAMILIES, Family, absent, family_of, load_here, teacher_names, weights_of
from zoo.teachers.environments import BOOT, code_folder, python_of
from zoo.teachers.weights import copies

ROOT = Path(__file__).resolve().parents[1]
TYPES = {"float64": torch.float64, "float32": torch.float32}
CRYSTALS = (("MgO", "rocksalt", 4.3), ("SiC", "zincblende", 4.4), ("Si", "diamond", 5.39))  # Å
MOLECULES = ("CH3CH2OH", "H2O", "CH3NO2", "C6H6")
STRAIN = np.array([[1.03, 0.02, -0.01], [0.0, 0.98, 0.03], [0.02, 0.0, 1.01]])
MOST = 2  # crystals, and molecules, of one teacher
STEP = 1e-4  # Å, of a difference of four points: short, as few atoms may cross a cutoff that has one derivative
STEPS = {"xtb": 1e-3}  # of forces that are self-consistent to a threshold

# A bound is a share of the largest number of what is compared, or of the floor where that is more.
FLOORS = {"energy": 10.0, "forces": 1.0, "stress": 0.1, "H·v, differences": 1.0, "own Hessian": 1.0}
LEAST = 0.1  # of the floor: where nothing that is compared is as large, the bound holds whatever a teacher says
UNITS = {"energy": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³", "H·v, differences": "eV/Å²", "own Hessian": "eV/Å²"}
SHARES = {
    "energy float64": 1e-10,
    "forces float64": 1e-8,
    "stress float64": 1e-8,
    "energy float32": 1e-6,
    "forces float32": 1e-4,
    "stress float32": 1e-4,
    "H·v, differences": 1e-6,
    "own Hessian": 1e-8,
}
LOOSER = {  # tblite's calculator takes other constants of nature, ASE's; its forces are self-consistent to a threshold
    ("xtb", "energy float64"): 1e-6,
    ("xtb", "forces float64"): 1e-6,
    ("xtb", "H·v, differences"): 1e-5,
}

# run by the Python of a family: this script, with zoo from where this one has it
START = BOOT + (
    "import os, runpy\nsys.argv = sys.argv[1:]\nsys.path.insert(0, os.path.dirname(sys.argv[0]))\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


@dataclass
class Row:
    """What was found of one teacher: (largest deviation, bound) of each quantity; or why nothing was."""

    name: str
    package: str = ""
    weights: str = ""
    structures: str = ""
    found: dict[str, tuple[float, float]] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)  # number that was compared, of all structures
    missing: str = ""  # what to run for it
    failure: str = ""

    @property
    def verdict(self) -> str:
        if self.missing:
            return "not run"
        within = all(error <= bound for error, bound in self.found.values())  # NaN is beyond
        if within and not self.failure and self.too_small:
            return f"**too small**: {', '.join(self.too_small)}"
        return "failed" if self.failure else "ok" if within else "**beyond**"

    @property
    def too_small(self) -> list[str]:
        """What was compared, of numbers so small that the comparison says nothing."""
        return [what for what, size in self.largest.items() if size < LEAST * FLOORS[quantity_of(what)]]

    @property
    def fine(self) -> bool:
        return self.verdict in ("ok", "not run")


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    torch.set_num_threads(asked.threads)
    if asked.into is not None:
        measure_all(asked.names, asked.into, quick=asked.quick)
        return 0
    chosen = chosen_names(asked.names)
    rows: list[Row] = []
    for family in FAMILIES.values():
        if names := [name for name in chosen if family_of(name) == family]:
            rows += rows_of(family, names, asked)
    text = page(rows, asked)
    print(text)
    if not asked.quick:
        atomic_write(ROOT / "benchmarks" / "teachers.md", text)
    return 0 if all(row.fine for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a teacher or a family; all kinds by default")
    parser.add_argument("--python", action="append", default=[], metavar="FAMILY=PATH", help="that has its package")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one structure of each sort; writes nothing")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # where the Python of a family puts its rows
    return parser


def chosen_names(asked: Sequence[str]) -> list[str]:
    """Those that were named; else those with weights here, and of others one of each kind of small model."""
    if strange := [name for name in asked if name not in FAMILIES and family_of(name) is None]:
        raise SystemExit(f"{strange[0]!r} is neither a teacher nor a family; zoo teachers lists both")
    kinds = {name for names in small_teachers().KINDS.values() for name in names}
    usual = [name for name in teacher_names() if name in kinds or _is_here(name)]
    if not asked:
        return usual
    of_families = [name for name in usual if any(name in FAMILIES[one].names for one in asked if one in FAMILIES)]
    return list(dict.fromkeys([*of_families, *(name for name in asked if name not in FAMILIES)]))


def _is_here(name: str) -> bool:
    """Whether its real weights are, or whether nothing is to be fetched for it."""
    family = family_of(name)
    if family is not None and family.converted:
        return name in family.names[:2] or absent(name) is None
    file = weights_of(name)
    return file is None or next(copies(name, file), None) is not None


def small_teachers() -> ModuleType:
    """The builders of small models, which the tests share."""
    if (tests := str(ROOT / "tests")) not in sys.path:
        sys.path.insert(0, tests)
    return importlib.import_module("small_teachers")


# --- the process that asks ------------------------------------------------------------------------------


def rows_of(family: Family, names: Sequence[str], asked: argparse.Namespace) -> list[Row]:
    """The rows of a family, from a process of its own; without its package, one row that says what to run."""
    found = python_for(family, asked.python)
    if found is None:
        return [Row(family.key, missing=absent(names[0]) or "")]
    gone = [Row(name, missing=why) for name in names if family.converted and (why := absent(name)) is not None]
    names = [name for name in names if name not in {row.name for row in gone}]
    return [*gone, *(_rows_from(found, family, names, asked) if names else [])]


def python_for(family: Family, by_hand: Sequence[str]) -> str | None:
    """The Python that has a family's package: one named as FAMILY=PATH, this one, or that of its environment."""
    named = dict(text.partition("=")[::2] for text in by_hand)
    if family.key in named:
        return named[family.key]
    found = sys.executable if family.is_importable else python_of(family.key)
    return None if found is None else str(found)


def _rows_from(python: str, family: Family, names: Sequence[str], asked: argparse.Namespace) -> list[Row]:
    print(f"{family.key}: {len(names)} teachers", flush=True)
    options = ["--threads", str(asked.threads), *(["--quick"] if asked.quick else [])]
    told, failure = answers(python, Path(__file__), names, options)
    rows = [row_of(one) for one in told]
    return [*rows, Row(family.key, failure=failure)] if failure else rows


def answers(python: str, script: Path, names: Sequence[str], options: Sequence[str]) -> tuple[list[Any], str]:
    """What a script that another Python runs says of each of these teachers, and how it failed, if it did."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "rows.json"
        isolated = "-P" if python == sys.executable else "-I"
        start = [python, isolated, "-W", "ignore", "-c", START, code_folder(), str(script), *names, "--into", str(into)]
        environment = os.environ | {"ZOO_COMPILE": "never"}
        done = subprocess.run([*start, *options], capture_output=True, text=True, check=False, env=environment)
        told = json.loads(into.read_text()) if into.is_file() else []
    if done.returncode == 0 and len(told) == len(names):
        return told, ""
    words = " ".join(done.stderr.split())[-200:]
    return told, f"its process ended with the exit code {done.returncode}: {words}"


def row_of(told: Mapping[str, Any]) -> Row:
    pairs = {key: (float(error), float(bound)) for key, (error, bound) in told["found"].items()}
    return Row(**{**told, "found": pairs})


# --- the process of a family ----------------------------------------------------------------------------


def measure_all(names: Sequence[str], into: Path, *, quick: bool) -> None:
    """Writes the rows of these teachers, after each of them; what one raises stands in its row."""
    rows: list[Row] = []
    for name in names:
        row = Row(name)
        try:
            measure(row, quick=quick)
        except Exception as error:  # a package raises anything, and the others are to be seen all the same
            row.failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        rows.append(row)
        atomic_write(into, json.dumps([asdict(one) for one in rows]))


def measure(row: Row, *, quick: bool) -> None:
    """Fills a row by what the teacher, and its family's calculator, say in this process."""
    name, family = row.name, family_of(row.name)
    assert family is not None
    adapter = importlib.import_module(family.module)
    with its_weights(row), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        teacher = load_here(name, dtype=torch.float64)
        row.package = f"{teacher.package}, torch {importlib.metadata.version('torch')}"
        structures = chosen_structures(name, teacher.potential, quick=quick)
        row.structures = ", ".join(str(atoms.symbols) + (" (crystal)" * all(atoms.pbc)) for atoms in structures)
        if hasattr(adapter, "calculator"):
            for dtype in TYPES:
                compare_with_calculator(row, family, structures, dtype)
        small = smallest_of_each_sort(structures, teacher.potential)
        step = STEPS.get(family.key, STEP)
        for atoms in small:
            enter(row, "H·v, differences", *product_and_difference(teacher.potential, atoms, step))
        compare_with_own_hessian(row, family, teacher.potential, small[-1])


@contextmanager
def its_weights(row: Row) -> Iterator[None]:
    """Real weights where they are here, else small random ones."""
    if _is_here(row.name):
        family = family_of(row.name)
        row.weights = "real" if family is not None and family.install else "its own formulas"
        yield
        return
    row.weights = "small, random"
    with small_teachers().small_weights(row.name):
        yield


def chosen_structures(name: str, potential: Potential, *, quick: bool) -> list[Atoms]:
    """Crystals where the teacher is made for them, and molecules, of elements that it knows, all a little distorted."""
    known = {chemical_symbols[number] for number in potential.elements}
    many = 1 if quick else MOST
    of_crystals = bool(entries()[name].periodic)
    crystals = [_crystal(*kind, seed=seed) for seed, kind in enumerate(CRYSTALS)] if of_crystals else []
    molecules = [_molecule(formula, seed) for seed, formula in enumerate(MOLECULES)]
    for one in [] if of_crystals else molecules:
        one.info.update(charge=0, spin=1)  # their calculators want to be told
    fitting = [[one for one in some if set(one.get_chemical_symbols()) <= known] for some in (crystals, molecules)]
    return [atoms for some in fitting for atoms in some[:many]]


def _crystal(formula: str, structure: str, lattice: float, seed: int) -> Atoms:
    atoms = bulk(formula, structure, a=lattice).repeat((2, 1, 1))
    atoms.set_cell(atoms.cell @ STRAIN, scale_atoms=True)
    atoms.rattle(0.08, seed=seed)
    return atoms


def _molecule(formula: str, seed: int) -> Atoms:
    atoms = molecule(formula)
    atoms.rattle(0.07, seed=seed)
    return atoms


def smallest_of_each_sort(structures: Sequence[Atoms], potential: Potential) -> list[Atoms]:
    """The smallest crystal and molecule; a crystal not where energies jump as neighbours change places."""
    sorts = [[one for one in structures if one.pbc.all() == periodic] for periodic in (True, False)]
    if potential.traits.smoothness < 0 and sorts[1]:
        sorts = sorts[1:]
    return [min(some, key=len) for some in sorts if some]


def compare_with_calculator(row: Row, family: Family, structures: Sequence[Atoms], dtype: str) -> None:
    adapter = importlib.import_module(family.module)
    potential = load_here(row.name, dtype=TYPES[dtype]).potential
    calculator = adapter.calculator(row.name, TYPES[dtype])
    for original in structures:
        atoms = original.copy()
        atoms.calc = calculator
        found = predicted(potential, atoms, stress=True)
        parts = {"forces": (given(found.forces), atoms.get_forces())}
        if potential.traits.energies:
            energy = np.ravel(atoms.get_potential_energy())
            parts["energy"] = (found.energy / len(atoms), energy / len(atoms))
        if potential.traits.stress and atoms.pbc.all():
            parts["stress"] = (given(found.stress)[0], atoms.get_stress(voigt=False))
        for what, (ours, theirs) in parts.items():
            enter(row, f"{what} {dtype}", ours.double().numpy(), np.asarray(theirs, dtype=np.float64))


def product_and_difference(potential: Potential, atoms: Atoms, step: float) -> tuple[np.ndarray, np.ndarray]:
    """``H v`` (atoms, 3) eV/Å² as the teacher says, and by a central difference of four points of its forces."""
    probe = np.random.default_rng(0).choice([-1.0, 1.0], size=(1, len(atoms), 3))  # (1, atoms, 3)
    found = predicted(potential, atoms, probes=torch.as_tensor(probe), side="columns")
    expected = np.zeros((len(atoms), 3))
    for steps, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
        moved = atoms.copy()
        moved.positions += steps * step * probe[0]
        expected -= weight * given(predicted(potential, moved).forces).numpy() / (12 * step)
    return given(found.hessian_products)[0].numpy(), expected


def compare_with_own_hessian(row: Row, family: Family, potential: Potential, atoms: Atoms) -> None:
    if not potential.traits.conservative or family.key not in ("mace", "aimnet2", "fairchem"):
        return
    found = potential.hessian(build_graph(atoms, potential.cutoff)).numpy()  # (3 · atoms, 3 · atoms)
    enter(row, "own Hessian", found, own_hessian(row.name, family, atoms.copy()).reshape(found.shape))


def own_hessian(name: str, family: Family, atoms: Atoms) -> np.ndarray:
    """What the family's own code gives, in float64."""
    adapter = importlib.import_module(family.module)
    if family.key == "fairchem":
        atoms.calc = adapter.calculator(name, torch.float64, hessian=True)
        atoms.get_potential_energy()
        return np.asarray(atoms.calc.results["hessian"])
    return np.asarray(adapter.calculator(name, torch.float64).get_hessian(atoms))


def predicted(potential: Potential, atoms: Atoms, **wanted: Any) -> Prediction:
    return potential.predict(build_graph(atoms, potential.cutoff, dtype=potential.dtype), **wanted)


def enter(row: Row, what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Keeps, of all structures, what comes nearest to its bound, or furthest beyond it, and the largest number."""
    family = family_of(row.name)
    assert family is not None
    error = float(np.abs(ours - theirs).max())
    share = LOOSER.get((family.key, what), SHARES[what])
    size = float(np.abs(theirs).max())
    bound = share * max(FLOORS[quantity_of(what)], size)
    row.largest[what] = max(size, row.largest.get(what, 0.0))
    before = row.found.get(what)
    if before is None or math.isnan(error) or error / bound > before[0] / before[1]:  # and NaN stays
        row.found[what] = (error, bound)


def quantity_of(what: str) -> str:
    return what.removesuffix(" float64").removesuffix(" float32")


# --- the page -------------------------------------------------------------------------------------------


def page(rows: Sequence[Row], asked: argparse.Namespace) -> str:
    run = [row for row in rows if row.found]
    lines = [*heading(asked), *table(run)]
    if failed := [row for row in rows if row.failure]:
        lines += ["", "## Failed", "", *(f"- {row.name}: {row.failure}" for row in failed)]
    missing = [f"- {row.name}: {row.missing}" for row in rows if row.missing]
    if missing := [*missing, *left_out(rows, asked)]:
        lines += ["", "## Not run", "", *missing]
    how = "To repeat it, after `zoo teachers install FAMILY` for each family whose package is not installed beside zoo:"
    command = " ".join([".venv/bin/python scripts/check_teachers.py", *asked.names])
    return "\n".join([*lines, "", *bounds(), "", how, "", "```bash", command, "```", ""])


def left_out(rows: Sequence[Row], asked: argparse.Namespace) -> Iterator[str]:
    """Of each family that was asked for, the teachers without a row: their code was run, and weights are not here."""
    told = {row.name for row in rows}
    for key, family in FAMILIES.items():
        names = [name for name in family.names if name not in told]
        if not names or key in told or (asked.names and key not in asked.names):
            continue
        same = [row.name for row in rows if row.found and row.name in family.names]
        code = f"the same code as {', '.join(same)}, and weights not here" if same else "weights not here"
        yield f"- {key}: {code}: {', '.join(names)}"


def heading(asked: argparse.Namespace) -> list[str]:
    return [
        "# Teachers beside their own calculators",
        "",
        "Each teacher as zoo asks it, against the calculator for ASE that its family's package has, of the same "
        "weights, in float64 and in float32. Products of the Hessian with a ±1 probe are in float64, against a central "
        f"difference of four points of the teacher's forces ({STEP} Å apart, {STEPS['xtb']} Å for xtb); its Hessian "
        "against that which the family's code gives, where it does. Each cell is the largest deviation and, in "
        "brackets, its bound, of the structure that comes nearest to it. A dash is what one of them does not give.",
        "",
        "Where the weights of a teacher are not here, the family's own code made a small model with random ones, with "
        "the elements, heads and tasks of the published: such a row says that zoo's adapter is right, and nothing of "
        "the published weights.",
        "",
        f"{hardware()['cpu']}, {asked.threads} thread{'s' * (asked.threads > 1)}; Python {versions()['python']}, ASE "
        f"{versions()['ase']}, zoo {versions()['zoo']}. The family's package, and its torch, stand in the table.",
        "",
    ]


def table(rows: Sequence[Row]) -> list[str]:
    titles = ["teacher", "package", "weights", "structures", *SHARES, ""]
    lines = [f"| {' | '.join(titles)} |", f"|---|---|---|---|{'--:|' * len(SHARES)}---|"]
    lines.append(f"| | | | | {' | '.join(UNITS[quantity_of(what)] for what in SHARES)} | |")
    for row in rows:
        cells = [row.name, row.package, row.weights, row.structures, *(_cell(row, what) for what in SHARES)]
        lines.append(f"| {' | '.join([*cells, row.verdict])} |")
    return lines


def bounds() -> list[str]:
    """How each bound follows from the numbers that are compared."""
    meaning = "A share of the largest number that is compared, or of the floor where that is more."
    small = f"A teacher whose numbers are all smaller than {LEAST:g} of the floor is not ok: that would test nothing."
    lines = ["## Bounds", "", f"{meaning} {small}", ""]
    lines += ["| | share | xtb | floor |", "|---|--:|--:|--:|"]
    for what, share in SHARES.items():
        quantity, looser = quantity_of(what), LOOSER.get(("xtb", what))
        of_xtb = "" if looser is None else f"{looser:.0e}"
        cells = [what, f"{share:.0e}", of_xtb, f"{FLOORS[quantity]} {UNITS[quantity]}"]
        lines.append(f"| {' | '.join(cells)} |")
    why = "tblite's calculator takes other constants of nature, ASE's; its forces are self-consistent to a threshold."
    return [*lines, "", why]


def _cell(row: Row, key: str) -> str:
    if key not in row.found:
        return "–"
    error, bound = row.found[key]
    return f"{error:.0e} ({bound:.0e})" if error <= bound else f"**{error:.0e}** ({bound:.0e})"


if __name__ == "__main__":
    sys.exit(main())
