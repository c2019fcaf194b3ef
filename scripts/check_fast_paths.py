"""Every fast path against PyTorch in float64, on random structures; and the energy that dynamics keeps.

Energies, forces and stress of molecules, clusters, slabs, wires, and crystals in cells that are skewed, left-handed and
small beside the cutoff; products of the Hessian beside differences of compiled forces; dynamics of 8 atoms of silicon.
Writes benchmarks/fast-paths.md, and exits 1 where a path is beyond its bound.

    .venv/bin/python scripts/check_fast_paths.py runs/sevennet-0/silicon-student/model
"""

import argparse
import copy
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.stress import voigt_6_to_full_3x3_stress

import zoo
from zoo.engine import Engine, Provenance
from zoo.errors import ZooWarning
from zoo.evaluate.dynamics import nve
from zoo.evaluate.environment import hardware, versions
from zoo.execution import Compiled, compiled
from zoo.files import atomic_write
from zoo.kernels import PaiNNKernel
from zoo.neighbors import build_graph
from zoo.padding import Capacity, cut, pad
from zoo.potential import Potential, Prediction, given
from zoo.students import GemNetDTConfig, GemNetTConfig, PaiNN, PaiNNConfig, PaiNNDTConfig, build_student
from zoo.students.base import Architecture
from zoo.units import MEV_PER_EV

FLOOR = 1.0  # eV/Å, of forces, and eV/Å², of products: where the largest is smaller, errors are over this
SHORTEST = 1.3  # Å, between atoms of a random structure
KINDS = ("molecule", "cluster", "crystal", "left-handed crystal", "slab", "wire")
PBC = {"molecule": (0, 0, 0), "cluster": (0, 0, 0), "slab": (1, 1, 0), "wire": (0, 0, 1)}  # others in all directions
SMALL: dict[str, Any] = {
    "blocks": 2,
    "atom_channels": 16,
    "edge_channels": 16,
    "triplet_channels": 8,
    "bilinear_channels": 16,
}
PROVENANCE = Provenance(name="random weights", source="-", licence="MIT", level_of_theory="none")
EXACT, SINGLE, TABLES = 1e-12, 5e-5, 1e-6  # bounds: of float64, of float32, of tables of filters in float64
WALK = 10  # frames of a walk
FAR = (1000.0, -700.0, 600.0)  # Å
TRAINED = "silicon engine"
STEPS = {"float64": 2e-4, "float32": 0.005}  # Å, of differences
FEW = 8  # atoms of a structure whose whole Hessian is asked for
SIGMAS = 4.0  # by how many standard errors dynamics may differ
SQUARE = (3.2, 4.8)  # how much more the energy may swing at twice the time step

Answers = list[Prediction]
Ask = Callable[[list[Atoms]], Answers]
Errors = dict[str, dict[str, list[float]]]  # way -> quantity -> one a structure

CONFIGS: dict[str, Architecture] = {
    "PaiNN 64/2/16": PaiNNConfig(elements=("Si", "O"), channels=64, layers=2, radials=16),
    "PaiNN 32/1/8": PaiNNConfig(elements=("Si", "O"), channels=32, layers=1, radials=8, cutoff=4.1),
    "PaiNN 33/3/7": PaiNNConfig(elements=("H", "C", "N", "O", "Si"), channels=33, layers=3, radials=7, cutoff=4.3),
    "PaiNN 7/2/3": PaiNNConfig(elements=("C", "O"), channels=7, layers=2, radials=3, cutoff=3.7),
    "PaiNN 16/2/40": PaiNNConfig(elements=("Si",), channels=16, layers=2, radials=40, cutoff=6.0),
    "PaiNN 24/2/12": PaiNNConfig(elements=("Si", "O", "H"), channels=24, layers=2, radials=12, teacher_channels=9),
    "PaiNN-dT": PaiNNDTConfig(elements=("Si", "O"), channels=16, layers=2, radials=12, cutoff=4.5),
    "GemNet-T": GemNetTConfig(elements=("Si", "O"), cutoff=4.0, **SMALL),
    "GemNet-dT": GemNetDTConfig(elements=("Si", "O"), cutoff=4.0, **SMALL),
}


@dataclass(frozen=True)
class Way:
    """A path: how it answers, and how far it may be from PyTorch in float64, or from another path."""

    ask: Ask
    bound: float
    beside: Ask | None = None
    walks: bool = False  # asked along walks in the place of structures on their own


@dataclass(frozen=True)
class Row:
    """What one path of a family of networks was off by."""

    network: str
    way: str
    bound: float
    most: dict[str, float]
    mostly: float  # the 99.9th percentile, of forces or products
    count: int

    @property
    def good(self) -> bool:
        return all(value <= self.bound for value in self.most.values())  # not so for a NaN


# --- structures -----------------------------------------------------------------------------------


def random_structures(elements: tuple[int, ...], count: int, seed: int = 0) -> list[Atoms]:
    """Kinds in turns, none with atoms nearer than ``SHORTEST``."""
    draw = np.random.default_rng(seed)
    found: list[Atoms] = []
    while len(found) < count:
        atoms = random_structure(elements, KINDS[len(found) % len(KINDS)], draw)
        if build_graph(atoms, SHORTEST).num_edges == 0:
            found.append(atoms)
    return found


def random_structure(elements: tuple[int, ...], kind: str, draw: np.random.Generator) -> Atoms:
    """Some sites of a grid in a skewed box, each atom off its site, turned as a whole."""
    shape = draw.integers(1, 5 if draw.random() < 0.2 else 4, 3)
    spacing = draw.uniform(1.9, 3.0) * (2 if kind == "cluster" else 1)
    cell = np.diag(shape * spacing) @ (np.eye(3) + draw.uniform(-0.25, 0.25, (3, 3)))
    sites = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3)
    chosen = sites[draw.permutation(len(sites))[: max(1, round(len(sites) * draw.uniform(0.5, 1)))]]
    places = (chosen + draw.normal(scale=0.12, size=chosen.shape)) / shape
    order = [1, 0, 2] if kind == "left-handed crystal" else [0, 1, 2]
    turn = np.linalg.qr(draw.normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    atoms = Atoms(numbers=draw.choice(elements, len(places)), cell=(cell @ turn)[order], pbc=PBC.get(kind, True))
    atoms.set_scaled_positions(places[:, order])
    return atoms


def silicon(count: int, seed: int = 0) -> list[Atoms]:
    """Rattled, strained cells of 2, 8 and 16 atoms, as the trained engine was made for."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        atoms = bulk("Si", a=5.46) if number % 3 == 0 else bulk("Si", a=5.46, cubic=True).repeat((number % 3, 1, 1))
        atoms.set_cell(atoms.cell @ (np.eye(3) + draw.uniform(-0.03, 0.03, (3, 3))), scale_atoms=True)
        atoms.positions += draw.normal(scale=draw.uniform(0.01, 0.2), size=(len(atoms), 3))
        found.append(atoms)
    return found


def walks(structures: list[Atoms], elements: tuple[int, ...], seed: int = 0) -> list[Atoms]:
    """As many frames: atoms of some structures wander about their places.

    In between a cell is strained, an element exchanged, an atom moved into the next cell, or taken away.
    """
    draw = np.random.default_rng(seed)
    frames: list[Atoms] = []
    for start in structures[::WALK]:
        atoms, places = start.copy(), start.positions.copy()
        for step in range(WALK):
            atoms.positions += 0.1 * (places - atoms.positions) + draw.normal(scale=0.04, size=places.shape)
            if step == 3:
                atoms.set_cell(atoms.cell @ (np.eye(3) + draw.uniform(-0.02, 0.02, (3, 3))), scale_atoms=True)
            if step == 5:
                atoms.numbers[draw.integers(len(atoms))] = draw.choice(elements)
            if step == 7 and all(atoms.pbc):
                jump = atoms.cell[draw.integers(3)]
                atoms.positions[0] += jump
                places[0] += jump
            if step == 8 and len(atoms) > 1:
                del atoms[0]
                places = places[1:]
            frames.append(atoms.copy())
    return frames


# --- networks -------------------------------------------------------------------------------------


def fresh(config: Architecture, seed: int = 0) -> Potential:
    """Float32, nothing in it zero or one by chance; scaled until the largest force of a structure is about 1 eV/Å."""
    generator = torch.Generator().manual_seed(seed)
    model = build_student(config, generator)
    if config.teacher_channels:
        model.set_teacher_embedding(torch.randn(len(config.elements), config.teacher_channels, generator=generator))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        elif name.endswith("factor"):
            parameter.data.copy_(0.5 + torch.rand((), generator=generator))
    if isinstance(model, PaiNN):
        model.average_neighbors.fill_(20.0)
    model.eval().requires_grad_(False)
    graphs = [
        build_graph(one, model.cutoff, dtype=model.dtype) for one in random_structures(model.elements, 12, seed=1)
    ]
    largest = [float(given(model.predict(graph).forces).abs().max()) for graph in graphs if graph.num_edges]
    model.scale.div_(float(np.median(largest)))
    return model


def networks(name: str, model: Path | None) -> tuple[Potential, Potential]:
    """The same weights in float32 and in float64."""
    if name == TRAINED:
        assert model is not None
        single = zoo.load(model, device="cpu", compile=False).potential
    else:
        single = fresh(CONFIGS[name])
    return single, copy.deepcopy(single).double()


def engine(potential: Potential, code: Compiled | None = None) -> Engine:
    return Engine(potential, PROVENANCE, check_domain=False, compiled=code)


def compiled_code(potential: Potential, structures: list[Atoms]) -> Compiled:
    """What ``zoo.load(compile=True)`` takes: all networks have some."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ZooWarning)  # which says why there is none
        code = compiled(potential, True, structures)
    assert code is not None
    return code


def with_knots(potential: PaiNN, knots: int) -> Engine:
    """Compiled, with tables of filters of so many knots."""
    return engine(potential, Compiled(PaiNNKernel(potential, knots=knots), potential))


# --- energies, forces and stress ------------------------------------------------------------------


def one_by_one(asked: Engine) -> Ask:
    return lambda structures: [asked.predict(atoms)[0] for atoms in structures]


def with_threads(count: int, ask: Ask) -> Ask:
    def answer(structures: list[Atoms]) -> Answers:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            return ask(structures)
        finally:
            torch.set_num_threads(before)

    return answer


def far_away(ask: Ask) -> Ask:
    """Of the same structures, far from the origin."""

    def answer(structures: list[Atoms]) -> Answers:
        moved = [atoms.copy() for atoms in structures]
        for atoms in moved:
            atoms.positions += FAR
        return ask(moved)

    return answer


def by_calculator(asked: Engine) -> Ask:
    """By one calculator for ASE, which keeps neighbours from frame to frame where it may."""

    def answer(frames: list[Atoms]) -> Answers:
        calculator = asked.calculator()
        return [_by_calculator(atoms.copy(), calculator) for atoms in frames]

    return answer


def padded(asked: Engine, code: Compiled | None = None) -> Ask:
    """In buffers that are larger than the graph."""

    def answer(structures: list[Atoms]) -> Answers:
        return [_padded(atoms, asked.potential, code or asked.potential) for atoms in structures]

    return answer


def _padded(atoms: Atoms, potential: Potential, code: Compiled | Potential) -> Prediction:
    takes = code.takes if isinstance(code, Compiled) else potential.dtype
    graph = build_graph(atoms, potential.cutoff, dtype=takes)
    larger = pad(graph, Capacity.of(graph), potential.cutoff)
    found = cut(code.predict(larger, stress=True), graph)
    stress = given(found.stress)[0] if all(atoms.pbc) else None
    return Prediction(found.energy[0], forces=found.forces, stress=stress)


def _by_calculator(atoms: Atoms, calculator: Any) -> Prediction:
    atoms.calc = calculator
    stress = None
    if all(atoms.pbc) and calculator.potential.traits.stress:
        stress = torch.from_numpy(voigt_6_to_full_3x3_stress(atoms.get_stress()))
    energy = torch.tensor(atoms.get_potential_energy(), dtype=torch.float64)
    return Prediction(energy, forces=torch.from_numpy(atoms.get_forces()), stress=stress)


def ways_of(single: Potential, double: Potential, structures: list[Atoms]) -> dict[str, Way]:
    """All paths that there are to ask this network."""
    ways = {
        "PyTorch, float32": Way(one_by_one(engine(single)), SINGLE),
        "PyTorch, float64, in batches": Way(engine(double).predict, EXACT),
        "PyTorch, float64, padded": Way(padded(engine(double)), EXACT),
    }
    for kind, potential, bound in (("float64", double, EXACT), ("float32", single, SINGLE)):
        code = compiled_code(potential, structures[:4])
        fast = engine(potential, code)
        alone, same = one_by_one(fast), 0.0 if isinstance(potential, PaiNN) else bound
        ways |= {
            f"compiled, {kind}": Way(alone, bound),
            f"compiled, {kind}: in batches, beside one by one": Way(fast.predict, same, alone),
            f"compiled, {kind}: padded, beside not": Way(padded(fast, code), same, alone),
            f"compiled, {kind}: two threads, beside one": Way(with_threads(2, fast.predict), same, fast.predict),
            f"compiled, {kind}: walks, neighbours in a skin": Way(by_calculator(fast), bound, walks=True),
        }
    if isinstance(single, PaiNN) and isinstance(double, PaiNN):
        ways |= {
            "compiled, float32: a thousand Å from the origin": Way(
                far_away(engine(single, compiled_code(single, structures[:4])).predict), SINGLE
            ),
            "compiled, float32: no tables": Way(one_by_one(with_knots(single, 0)), SINGLE),
            "compiled, float64: tables": Way(one_by_one(with_knots(double, 16 * single.config.radials)), TABLES),
        }
    return ways


def errors(found: Answers, wanted: Answers, structures: list[Atoms]) -> dict[str, list[float]]:
    """Of energies an atom (eV), forces (eV/Å) and stress times the volume an atom (eV), over the largest force."""
    off: dict[str, list[float]] = {"energy": [], "forces": [], "stress": []}
    for ours, theirs, atoms in zip(found, wanted, structures, strict=True):
        scale = max(float(given(theirs.forces).abs().max()), FLOOR)
        off["energy"].append(abs(float(ours.energy) - float(theirs.energy)) / len(atoms) / scale)
        off["forces"].append(_apart(ours.forces, theirs.forces) / scale)
        if theirs.stress is not None and not theirs.stress.isnan().all():
            off["stress"].append(_apart(ours.stress, theirs.stress) * atoms.get_volume() / len(atoms) / scale)
    return {quantity: values for quantity, values in off.items() if values}


def _apart(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> float:
    return float((given(ours).double() - given(theirs).double()).abs().max())


def check_network(name: str, count: int, model: Path | None) -> tuple[str, Errors, dict[str, float]]:
    """The errors of all its paths, and their bounds."""
    torch.set_num_threads(1)
    single, double = networks(name, model)
    elements = double.elements
    structures = random_structures(elements, count)
    if name == TRAINED:
        structures[::2] = silicon(len(structures[::2]))
    asked = {False: structures, True: walks(structures, elements)}
    exact = {walk: one_by_one(engine(double))(frames) for walk, frames in asked.items()}
    ways, off = ways_of(single, double, structures), {}
    for way, path in ways.items():
        wanted = exact[path.walks] if path.beside is None else path.beside(asked[path.walks])
        off[way] = errors(path.ask(asked[path.walks]), wanted, asked[path.walks])
    bounds = {way: path.bound for way, path in ways.items()}
    return name, off, bounds


# --- products of the Hessian ----------------------------------------------------------------------


def check_products(name: str, count: int, model: Path | None) -> tuple[str, Errors, dict[str, float]]:
    """Those of engines, and differences of compiled forces, beside products by PyTorch in float64 in one pass."""
    torch.set_num_threads(1)
    single, double = networks(name, model)
    structures = [atoms for atoms in random_structures(double.elements, 3 * count, seed=2) if len(atoms) <= 3 * FEW]
    ways, bounds = product_ways(single, double, structures)
    off: Errors = {way: {"products": []} for way in ways}
    draw = np.random.default_rng(3)
    for atoms in structures[:count]:
        direction = draw.normal(size=(len(atoms), 3))
        probe = torch.from_numpy(direction)[None]
        answer = double.predict(build_graph(atoms, double.cutoff), forces=False, probes=probe)
        exact = given(answer.hessian_products)[0].numpy()
        scale = max(float(np.abs(exact).max()), FLOOR)
        for way, ask in ways.items():
            found = ask(atoms, direction)
            if found is not None:
                off[way]["products"].append(float(np.abs(found - exact).max()) / scale)
    return name, off, bounds


Product = Callable[[Atoms, np.ndarray], np.ndarray | None]  # (atoms, 3), or None where it does not apply


def product_ways(
    single: Potential, double: Potential, structures: list[Atoms]
) -> tuple[dict[str, Product], dict[str, float]]:
    """Ways to a product, and their bounds."""
    ways: dict[str, tuple[Product, float]] = {
        "engine.hvp, float64": (engine(double).hvp, EXACT),
        "engine.hvp, float32": (engine(single).hvp, 10 * SINGLE),
        "engine.hessian, float64": (partial(by_hessian, engine(double)), EXACT),
    }
    for kind, potential, bound in (("float64", double, 1e-6), ("float32", single, 1e-2)):
        asked = engine(potential, compiled_code(potential, structures[:4]))
        ways[f"differences of compiled forces, {kind}"] = (partial(differences, asked, STEPS[kind]), bound)
    if isinstance(double, PaiNN):
        tables = with_knots(double, 16 * double.config.radials)
        ways["differences of compiled forces, float64, tables"] = (partial(differences, tables, STEPS["float64"]), 1e-4)
    return {way: ask for way, (ask, _) in ways.items()}, {way: bound for way, (_, bound) in ways.items()}


def by_hessian(asked: Engine, atoms: Atoms, direction: np.ndarray) -> np.ndarray | None:
    """With the whole Hessian, of few atoms."""
    if len(atoms) > FEW:
        return None
    product: np.ndarray = (asked.hessian(atoms) @ direction.ravel()).reshape(-1, 3)
    return product


def differences(asked: Engine, step: float, atoms: Atoms, direction: np.ndarray) -> np.ndarray | None:
    """``−ΔF`` by central differences of the fourth order, where no pair passes the cutoff in short steps.

    There the third derivative of the energy jumps, which no difference sees sharply.
    """
    reach = 4 * step * float(np.linalg.norm(direction, axis=1).max())
    cutoff = asked.potential.cutoff
    if step < STEPS["float32"]:
        lengths = build_graph(atoms, cutoff + reach).edge_vectors().norm(dim=1)
        if (lengths > cutoff - reach).any():
            return None
    ends = [atoms.copy() for _ in range(4)]
    for end, times in zip(ends, (1, -1, 2, -2), strict=True):
        end.positions += times * step * direction
    one, back, two, far_back = (given(answer.forces).double().numpy() for answer in asked.predict(ends))
    slope: np.ndarray = (8 * (one - back) - (two - far_back)) / (12 * step)
    return -slope


# --- dynamics -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """How constant the energy of one run stayed, with standard errors from blocks of it."""

    way: str
    picoseconds: float
    timestep: float  # fs
    drift: tuple[float, float]  # meV/atom/ps
    swing: tuple[float, float]  # meV/atom, root mean square about the drift
    kelvin: float

    @property
    def text(self) -> str:
        drift, swing = ("{:.2g} ± {:.1g}".format(*pair) for pair in (self.drift, self.swing))
        return f"| {self.way} | {self.timestep:g} | {self.picoseconds:g} | {drift} | {swing} | {self.kelvin:.0f} |"


DYNAMICS = {
    "compiled, float32": ("float32", True),
    "compiled, float64": ("float64", True),
    "PyTorch, float64": ("float64", False),
}


def conserve(way: str, model: Path, picoseconds: float, timestep: float) -> Kept:
    """Eight atoms of silicon at 300 K and constant energy."""
    torch.set_num_threads(1)
    dtype, code = DYNAMICS[way]
    asked = zoo.load(model, device="cpu", dtype=dtype, compile=code)
    if asked.compiled != code:
        raise SystemExit("the engine has no compiled code here; install a C++ compiler")
    run = nve(
        bulk("Si", a=5.46, cubic=True),
        asked.calculator(),
        temperature_K=600,  # half of it goes into the springs
        timestep_fs=timestep,
        steps=round(1000 * picoseconds / timestep),
        generator=np.random.default_rng(0),
    )
    if not run.completed:
        raise SystemExit(f"dynamics, {way}: {run.reason}")
    drift, swing = slopes(run.times_ps, MEV_PER_EV * run.energies_eV_atom)
    settled = run.temperatures_K[len(run.temperatures_K) // 10 :]
    return Kept(way, picoseconds, timestep, drift, swing, float(settled.mean()))


def slopes(
    times: np.ndarray, energies: np.ndarray, blocks: int = 18
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Slope of the energies, and root mean square about it, of all but the first tenth; each with its standard error.

    A block counts as one independent measurement.
    """
    start = len(times) // 10
    length = (len(times) - start) // blocks
    x, y = (part[len(times) - blocks * length :].reshape(blocks, length) for part in (times, energies))
    middles, means = x.mean(axis=1), y.mean(axis=1)
    slope, offset = np.polyfit(middles, means, 1)
    left = means - (slope * middles + offset)
    error = np.sqrt(np.square(left).sum() / (blocks - 2) / np.square(middles - middles.mean()).sum())
    swings = np.sqrt(np.square(y - (slope * x + offset)).mean(axis=1))
    return (float(slope), float(error)), (float(swings.mean()), float(swings.std(ddof=1) / np.sqrt(blocks)))


def same(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Within the statistical error."""
    return abs(one[0] - other[0]) <= SIGMAS * float(np.hypot(one[1], other[1]))


def dynamics_faults(runs: list[Kept], shorter: list[Kept]) -> list[str]:
    """Where two runs differ that should not, and where the energy does not settle as the square of the time step."""
    (exact,) = (run for run in runs if run.way == "PyTorch, float64")
    said = [
        f"the energy of {run.way} is not kept as PyTorch in float64 keeps it"
        for run in runs
        if not (same(run.drift, exact.drift) and same(run.swing, exact.swing))
    ]
    for way in dict.fromkeys(run.way for run in shorter):
        swings = [run.swing[0] for run in sorted(shorter, key=lambda run: run.timestep) if run.way == way]
        if not all(SQUARE[0] < after / before < SQUARE[1] for before, after in pairwise(swings)):
            said.append(f"the energy of {way} does not swing with the square of the time step")
    return said


# --- all of it ------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder of a student of silicon")
    parser.add_argument("--structures", type=int, default=1000, help="for each network")
    parser.add_argument("--products", type=int, default=60, help="structures of each network")
    parser.add_argument("--picoseconds", type=float, default=100)
    parser.add_argument("--quick", action="store_true", help="30 structures, 10 of products, and 1 ps")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("benchmarks") / "fast-paths.md")
    asked = parser.parse_args()
    if asked.quick:
        asked.structures, asked.products, asked.picoseconds = 30, 10, 1.0
    start = time.perf_counter()
    found = run_jobs(jobs_of(asked), asked.processes)
    energies = rows_of([result for kind, result in found if kind == "energies"])
    products = rows_of([result for kind, result in found if kind == "products"])
    runs, shorter = (
        sorted((result for kind, result in found if kind == wanted), key=lambda run: (run.way, run.timestep))
        for wanted in ("dynamics", "time steps")
    )
    faults = [f"{row.network}, {row.way}: beyond {row.bound:g}" for row in energies + products if not row.good]
    faults += dynamics_faults(runs, shorter)
    atomic_write(asked.output, page(energies, products, runs + shorter, faults, asked))
    print(f"written to {asked.output}, after {time.perf_counter() - start:.0f} s")
    for fault in faults:
        print(f"FAULT {fault}")
    return 1 if faults else 0


def jobs_of(asked: argparse.Namespace) -> list[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """The longest first."""
    jobs: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = []
    for way in reversed(DYNAMICS):
        jobs.append(("dynamics", conserve, (way, asked.model, asked.picoseconds, 1.0)))
    for name in (*CONFIGS, TRAINED):
        jobs.append(("energies", check_network, (name, asked.structures, asked.model)))
        if not (name in CONFIGS and CONFIGS[name].direct):
            jobs.append(("products", check_products, (name, asked.products, asked.model)))
    for way in list(DYNAMICS)[:2]:
        jobs += [
            ("time steps", conserve, (way, asked.model, max(asked.picoseconds / 10, 2.0), step))
            for step in (0.5, 1.0, 2.0)
        ]
    return jobs


def run_jobs(jobs: list[tuple[str, Callable[..., Any], tuple[Any, ...]]], processes: int) -> list[tuple[str, Any]]:
    """Kind and result of each, as they end."""
    found = []
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(work, *what): (kind, what[0]) for kind, work, what in jobs}
        for done in as_completed(waiting):
            kind, name = waiting[done]
            found.append((kind, done.result()))
            print(f"{kind}, {name}: done", flush=True)
    return found


def rows_of(results: list[tuple[str, Errors, dict[str, float]]]) -> list[Row]:
    """One for each path of a family of networks, in order."""
    order = {name: place for place, name in enumerate((*CONFIGS, TRAINED))}
    merged: dict[tuple[str, str], dict[str, list[float]]] = {}
    bounds: dict[tuple[str, str], float] = {}
    for name, off, bound in sorted(results, key=lambda result: order[result[0]]):
        family = "PaiNN" if name.startswith("PaiNN ") else name
        for way, quantities in off.items():
            into = merged.setdefault((family, way), {})
            bounds[family, way] = max(bound[way], bounds.get((family, way), 0.0))
            for quantity, values in quantities.items():
                into.setdefault(quantity, []).extend(values)
    return [_row(*key, bounds[key], quantities) for key, quantities in merged.items()]


def _row(network: str, way: str, bound: float, quantities: dict[str, list[float]]) -> Row:
    most = {quantity: float(np.max(values)) for quantity, values in quantities.items() if values}
    main_part = quantities.get("forces", quantities.get("products", []))
    mostly = float(np.percentile(main_part, 99.9)) if main_part else 0.0
    return Row(network, way, bound, most, mostly, len(main_part))


def page(
    energies: list[Row], products: list[Row], runs: list[Kept], faults: list[str], asked: argparse.Namespace
) -> str:
    machine, packages = hardware(), versions()
    shapes = sum(name.startswith("PaiNN ") for name in CONFIGS)
    lines = [
        "# Fast paths beside PyTorch in float64",
        "",
        f"{asked.structures:,} random structures for each network ({', '.join(KINDS)}); PaiNN in {shapes} shapes, all "
        f"with random weights but {TRAINED}, of whose structures half are rattled silicon. Errors are relative to the "
        f"largest force of the structure, or to {FLOOR:g} eV/Å where that is less; energies are eV an atom, stress is "
        "times the volume an atom. A bound of 0 is: the same bits.",
        f"{machine['cpu']}, torch {packages['torch']}.",
        "",
        "| network | path | structures | forces, largest | 99.9 % | energies, largest | stress, largest | bound | |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
        *(_energies_text(row) for row in energies),
        "",
        "## Products of the Hessian",
        "",
        f"Relative to the largest entry of the product, or to {FLOOR:g} eV/Å²; along a random direction.",
        "",
        "| network | way | structures | largest | 99.9 % | bound | |",
        "|---|---|--:|--:|--:|--:|---|",
        *(_products_text(row) for row in products),
        "",
        "## Energy of dynamics",
        "",
        f"Eight atoms of silicon at constant energy. Errors are from blocks of a run; runs may differ by {SIGMAS:g} of "
        "them. Shorter runs: the energy swings by a quarter at half the time step.",
        "",
        "| path | time step, fs | ps | drift, meV/atom/ps | swing, meV/atom | K |",
        "|---|--:|--:|--:|--:|--:|",
        *(run.text for run in runs),
        "",
        *([f"Beyond its bound: {fault}." for fault in faults] or ["All within their bounds."]),
        "",
        "To repeat it:",
        "",
        "```bash",
        f".venv/bin/python scripts/check_fast_paths.py {asked.model}",
        "```",
        "",
    ]
    return "\n".join(lines)


def _energies_text(row: Row) -> str:
    parts = [f"{row.most[part]:.1e}" if part in row.most else "-" for part in ("forces", "energy", "stress")]
    numbers = f"{parts[0]} | {row.mostly:.1e} | {parts[1]} | {parts[2]} | {row.bound:g}"
    return f"| {row.network} | {row.way} | {row.count:,} | {numbers} | {'ok' if row.good else 'BEYOND'} |"


def _products_text(row: Row) -> str:
    largest = row.most.get("products", 0.0)
    numbers = f"{largest:.1e} | {row.mostly:.1e} | {row.bound:g}"
    return f"| {row.network} | {row.way} | {row.count} | {numbers} | {'ok' if row.good else 'BEYOND'} |"


if __name__ == "__main__":
    sys.exit(main())
