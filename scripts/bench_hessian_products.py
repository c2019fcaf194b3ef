"""What a product of the Hessian costs by each way that a teacher's code allows, beside what its forces cost.

By two passes backwards, forward over reverse, and central differences of two and four points of the forces: in float32,
one thread. Families are run, and weights taken, as by ``check_teachers.py``; the networks of MACE and Orb are of a size
at which people use them. Writes benchmarks/hessian-products.md.

    .venv/bin/python scripts/bench_hessian_products.py
"""

import argparse
import importlib
import importlib.metadata
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import chemical_symbols
from check_teachers import ROOT, answers, its_weights, python_for, small_teachers
from check_teachers import Row as Checked
from torch import Tensor

from zoo.errors import CapabilityError
from zoo.evaluate.environment import hardware, versions
from zoo.files import atomic_write
from zoo.graph import Graph
from zoo.hub.catalogue import entries
from zoo.neighbors import build_graph
from zoo.potential import Potential, given
from zoo.teachers import FAMILIES, absent, family_of, load_here
from zoo.teachers.differences import DifferencesPotential

TEACHERS = (
    "sevennet-0/teacher",
    "sevennet-l3i5/teacher",
    "stillinger-weber/teacher",
    "gfn2-xtb/teacher",
    "mace-off23-medium/teacher",
    "mace-mpa-0-medium/teacher",
    "uma-s-1p1/omat-teacher",
    "esen-sm-conserving-all-omol/teacher",
    "orb-v3-conservative-20-omat/teacher",
    "orb-v3-direct-20-omat/teacher",
    "aimnet2/teacher",
)
MACE = {"hidden_irreps": "128x0e + 128x1o", "r_max": 5.0, "num_bessel": 8, "max_ell": 3, "correlation": 3}
MACE |= {"radial_MLP": [64, 64, 64], "MLP_irreps": "16x0e"}
STEPS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # Å, of which differences have the best
BACKWARDS, FORWARDS, TWO, FOUR = WAYS = ("twice backwards", "forward over reverse", "2 forces", "4 forces")
ROUNDS = 4  # and one before

Way = Callable[[Tensor], Tensor]  # of probes (probes, atoms, 3): products (probes, atoms, 3) eV/Å²


@dataclass
class Row:
    """Of one teacher: what was measured, or why nothing was."""

    name: str
    package: str = ""
    weights: str = ""
    structure: str = ""
    taken: str = ""  # the way of its adapter
    forces: float = 0.0  # ms, with the energy
    first: dict[str, float] = field(default_factory=dict)  # ms, of energy, forces and one product, by each way
    more: dict[str, float] = field(default_factory=dict)  # ms, of each further product
    error: dict[str, float] = field(default_factory=dict)  # of a product, relative, root mean square
    without: dict[str, str] = field(default_factory=dict)  # ways that it does not have, and why
    missing: str = ""  # what to run for it
    failure: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=TEACHERS)
    parser.add_argument("--python", action="append", default=[], metavar="FAMILY=PATH", help="that has its package")
    parser.add_argument("--quick", action="store_true", help="one round; writes nothing")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # where the Python of a family puts its rows
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if asked.into is not None:
        measure_all(asked.names, asked.into, rounds=1 if asked.quick else ROUNDS)
        return 0
    rows = [row for key in FAMILIES for row in rows_of(key, asked)]
    text = page(rows)
    print(text)
    if not asked.quick:
        atomic_write(ROOT / "benchmarks" / "hessian-products.md", text)
    return 1 if any(row.failure for row in rows) else 0


def rows_of(key: str, asked: argparse.Namespace) -> list[Row]:
    """The rows of a family, from a process of its own; without its package, one row that says what to run."""
    names = [name for name in asked.names if name in FAMILIES[key].names]
    python = python_for(FAMILIES[key], asked.python)
    if not names:
        return []
    if python is None:
        return [Row(key, missing=f"not run: {absent(names[0])}")]
    print(f"{key}: {len(names)} teachers", flush=True)
    told, failure = answers(python, Path(__file__), names, ["--quick"] if asked.quick else [])
    return [*(Row(**one) for one in told), *([Row(key, failure=failure)] if failure else [])]


# --- the process of a family ----------------------------------------------------------------------------


def measure_all(names: Sequence[str], into: Path, *, rounds: int) -> None:
    rows: list[Row] = []
    for name in names:
        row = Row(name)
        try:
            measure(row, rounds)
        except Exception as error:  # a package raises anything, and the others are to be seen all the same
            row.failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        rows.append(row)
        atomic_write(into, json.dumps([asdict(one) for one in rows]))


def measure(row: Row, rounds: int) -> None:
    """Fills a row by what the teacher does in this process."""
    family, checked = family_of(row.name), Checked(row.name)
    assert family is not None
    with of_size(family.key) as size, its_weights(checked), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        teacher = load_here(row.name, dtype=torch.float32)
        exact = load_here(row.name, dtype=torch.float64).potential
        row.package = f"{teacher.package}, torch {importlib.metadata.version('torch')}"
        row.weights = f"random, {size}" if size and checked.weights != "real" else checked.weights
        atoms = structure(row.name, exact)
        row.structure = f"{atoms.get_chemical_formula()}{', crystal' * bool(atoms.pbc.all())}"
        graph = build_graph(atoms, exact.cutoff)
        probes = 2.0 * torch.randint(0, 2, (3, len(atoms), 3), generator=torch.Generator().manual_seed(0)) - 1
        program = isinstance(exact, DifferencesPotential)
        step = exact.step if isinstance(exact, DifferencesPotential) else 0.0
        truth = ways_of(exact, graph, step)[FOUR if program else BACKWARDS](probes[:1].double())
        potential = exact if program else teacher.potential  # programs compute in float64 alone
        compare(row, potential, graph.to("cpu", potential.dtype), probes.to(potential.dtype), truth, rounds)


@contextmanager
def of_size(family: str) -> Iterator[str]:
    """Small models of this family are as large as people use them, meanwhile; how large, for the table."""
    small_teachers()
    modules = {"mace": ("mace_models", "_USUAL", MACE), "orb": ("orb_checkpoints", "SMALL", {})}
    if family not in modules:
        yield ""
        return
    module, name, sizes = modules[family]
    with mock.patch.dict(getattr(importlib.import_module(module), name), sizes, clear=not sizes):
        yield f"{MACE['hidden_irreps']}, {MACE['r_max']} Å" if sizes else "of the published size"


def structure(name: str, potential: Potential) -> Atoms:
    """A distorted crystal of 8 atoms where the teacher is made for crystals, else a molecule of 14."""
    known = {chemical_symbols[number] for number in potential.elements}
    atoms = molecule("isobutane")
    if entries()[name].periodic:
        atoms = bulk("MgO", "rocksalt", 4.3, cubic=True) if "Mg" in known else bulk("Si", "diamond", 5.43, cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def compare(row: Row, potential: Potential, graph: Graph, probes: Tensor, truth: Tensor, rounds: int) -> None:
    """Times and errors of all ways, in turns, so that a slow moment of the machine is every way's."""
    row.taken = TWO if isinstance(potential, DifferencesPotential) else BACKWARDS
    if potential.products_in_forward_mode(graph):
        row.taken = FORWARDS
    jobs: dict[tuple[str, int], Callable[[], object]] = {("", 0): lambda: potential.predict(graph)}
    for name in WAYS:
        try:
            way, row.error[name] = best_of_steps(name, potential, graph, probes, truth)
        except Exception as error:  # an operation without forward mode, a compiled part that knows none
            row.without[name] = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            continue
        jobs |= {(name, count): partial(way, probes[:count]) for count in (1, 3)}
    times = least_milliseconds(jobs, rounds)
    row.forces = times["", 0]
    for name in row.error:
        beside = row.forces if name in (TWO, FOUR) else 0.0  # of the others energy and forces come with a product
        row.first[name] = times[name, 1] + beside
        row.more[name] = (times[name, 3] - times[name, 1]) / 2


def best_of_steps(name: str, potential: Potential, graph: Graph, probes: Tensor, truth: Tensor) -> tuple[Way, float]:
    """A way and its error, by the best step where it is one of differences."""
    found: list[tuple[float, Way]] = []
    for step in STEPS if name in (TWO, FOUR) else STEPS[:1]:
        way = ways_of(potential, graph, step)[name]
        found.append((float((way(probes[:1]).double() - truth).norm() / truth.norm()), way))
    error, way = min(found, key=lambda one: one[0])
    return way, error


def least_milliseconds(jobs: dict[tuple[str, int], Callable[[], object]], rounds: int) -> dict[tuple[str, int], float]:
    times = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds + (rounds > 1)):
        for key, job in jobs.items():
            started = time.perf_counter()
            job()
            times[key] = min(times[key], 1e3 * (time.perf_counter() - started))
    return times


def ways_of(potential: Potential, graph: Graph, step: float) -> dict[str, Way]:
    """How products can be had, differences by a step in Å; a way that there is not raises."""

    def derived(forwards: bool, probes: Tensor) -> Tensor:
        if isinstance(potential, DifferencesPotential):
            raise CapabilityError("a program without derivatives")
        if forwards and not potential.traits.conservative:
            return potential.force_columns(graph, probes)
        with mock.patch.object(potential, "products_in_forward_mode", return_value=forwards):
            return given(potential.predict(graph, probes=probes, side="columns").hessian_products)

    def differences(points: Sequence[tuple[int, float]], probes: Tensor) -> Tensor:
        return torch.stack([_difference(potential, graph, probe, points, step) for probe in probes])

    return {
        BACKWARDS: partial(derived, False),
        FORWARDS: partial(derived, True),
        TWO: partial(differences, ((1, 1 / 2), (-1, -1 / 2))),
        FOUR: partial(differences, ((1, 2 / 3), (-1, -2 / 3), (2, -1 / 12), (-2, 1 / 12))),
    }


def _difference(
    potential: Potential, graph: Graph, probe: Tensor, points: Sequence[tuple[int, float]], step: float
) -> Tensor:
    """(atoms, 3) eV/Å², of forces at so many steps along a probe, each with its weight."""
    total = torch.zeros_like(probe)
    for steps, weight in points:
        moved = graph.with_geometry(graph.positions + steps * step * probe, graph.cells)
        total -= weight / step * given(potential.predict(moved).forces)
    return total


# --- the page -------------------------------------------------------------------------------------------


def page(rows: Sequence[Row]) -> str:
    titles = ["teacher", "package", "weights", "structure", "forces", *WAYS, *(f"error, {name}" for name in WAYS)]
    lines = [
        "# What a Hessian product costs",
        "",
        f"Milliseconds, the least of {ROUNDS + 1}. *forces*: energy and forces. Of each way: energy, forces and one "
        "product, and, after the plus, each further product of the same structure. The way that zoo's adapter takes is "
        "in bold. "
        "The error is that of a product with a ±1 probe, relative, root mean square, against two passes backwards in "
        "float64 (of xtb against four forces); differences have the best of the steps "
        f"{', '.join(f'{step:g}' for step in STEPS)} Å, which one who labels does not know.",
        "",
        "All in float32, but for xtb, which computes in float64. A dash is a way that a teacher does not have. Models "
        "with random weights cost what others of their size do; those called small are of a few channels.",
        "",
        f"{hardware()['cpu']}, 1 thread; Python {versions()['python']}, zoo {versions()['zoo']}.",
        "",
        f"| {' | '.join(titles)} |",
        f"|---|---|---|---|{'--:|' * (1 + 2 * len(WAYS))}",
    ]
    for row in rows:
        if row.first:
            times, errors = [_time(row, name) for name in WAYS], [_error(row, name) for name in WAYS]
            cells = [row.name, row.package, row.weights, row.structure, f"{row.forces:.1f}", *times, *errors]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *ratios([row for row in rows if row.first])]
    notes = [f"- {row.name}, {way}: {why}" for row in rows for way, why in row.without.items()]
    notes += [f"- {row.name}: {row.missing or row.failure}" for row in rows if row.missing or row.failure]
    if notes:
        lines += ["", "## What there is not", "", *notes]
    command = ".venv/bin/python scripts/bench_hessian_products.py"
    return "\n".join([*lines, "", "To repeat it:", "", "```bash", command, "```", ""])


def ratios(rows: Sequence[Row]) -> list[str]:
    """What a further product costs of energy and forces, by each way, the least and the most of all teachers."""
    lines = ["A further product costs, in times of energy and forces:", ""]
    for name in WAYS:
        found = sorted(row.more[name] / row.forces for row in rows if name in row.more)
        if found:
            lines.append(f"- {name}: {found[0]:.1f} to {found[-1]:.1f}, of {len(found)} teachers")
    return lines


def _time(row: Row, name: str) -> str:
    if name not in row.first:
        return "–"
    text = f"{row.first[name]:.1f} + {row.more[name]:.1f}"
    return f"**{text}**" if name == row.taken else text


def _error(row: Row, name: str) -> str:
    return f"{row.error[name]:.0e}" if name in row.error else "–"


if __name__ == "__main__":
    sys.exit(main())
