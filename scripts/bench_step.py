"""Time and memory of a training step, by the way in which its Hessian products are taken.

A step is the loss over energies, forces and, if any, products, its gradient by the parameters, and the optimizer. Ways
take turns in one run on the same batches; memory is the peak over what a fresh process holds before the step. Writes
benchmarks/step-time.md and .json.

    .venv/bin/python scripts/bench_step.py
"""

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor, nn
from torch.autograd import forward_ad

from zoo.config import canonical_json
from zoo.distill.compiled import Answer, CompiledGradient, Terms, eager_gradient
from zoo.distill.loss import energy_term, norm_term
from zoo.evaluate.environment import hardware, versions
from zoo.files import atomic_write
from zoo.graph import Graph, collate
from zoo.neighbors import build_graph
from zoo.students import PaiNN, PaiNNConfig

CUTOFF = 5.0  # Å
STEP = 0.01  # Å, of central differences
BLOCK = 3  # timed steps of one way in a row
BATCHES = 4  # that each way goes round: their numbers of edges differ
COEFFICIENTS = {"energy": 1.0, "force": 1.0, "hessian": 1.0}
EXACT = 1e-8  # agreement of the exact ways in float64
FOLDER = Path("benchmarks")
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Batch:
    """Structures with targets drawn at random: what a step costs does not depend on them."""

    graph: Graph
    energy: Tensor  # (structures,)
    forces: Tensor  # (atoms, 3)
    probes: Tensor  # (probes, atoms, 3)
    products: Tensor  # (probes, atoms, 3)


@dataclass(frozen=True)
class Pieces:
    """What a loss is made from."""

    energy: Tensor  # (structures,)
    forces: Tensor  # (atoms, 3)
    products: Tensor  # (probes, atoms, 3)


Products = Callable[[PaiNN, Batch], Pieces]


class ProductSiLU(nn.Module):
    """SiLU of operations that all have a rule of forward mode; that of ``silu`` itself ends at its first derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8, help=f"turns of each way, of {BLOCK} steps")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="processor, where the machine is busy")
    parser.add_argument("--eager", action="store_true", help="leave out what must be compiled")
    parser.add_argument("--memory", nargs=2, metavar=("SYSTEM", "WAY"), help="print the memory of one way and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
    if arguments.memory:
        print(memory(*arguments.memory))
        return
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # what is compiled, is compiled from scratch
        run_all(arguments)


def run_all(arguments: argparse.Namespace) -> None:
    """Measures all ways on all systems and writes what was found."""
    found: dict[str, Any] = {"hardware": hardware(), "versions": versions(), "rounds": arguments.rounds}
    found |= {"clock": arguments.clock, "empty_cache": True, "systems": {}}
    found["agreement"] = agreement()
    for system in SYSTEMS:
        found["systems"][system] = measure(system, arguments)
        atomic_write(FOLDER / "step-time.json", canonical_json(found))
    atomic_write(FOLDER / "step-time.md", text(found))
    print(f"written to {FOLDER / 'step-time.md'}")


def silicon(random: np.random.Generator) -> Atoms:
    atoms = bulk("Si", "diamond", a=5.43 * (1 + 0.02 * random.standard_normal()), cubic=True)
    atoms.positions += 0.1 * random.standard_normal((len(atoms), 3))
    return atoms


def ethanol(random: np.random.Generator) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.positions += 0.05 * random.standard_normal((len(atoms), 3))
    return atoms


SYSTEMS: dict[str, tuple[Callable[[np.random.Generator], Atoms], int, tuple[str, ...]]] = {
    "8 silicon cells of 8 atoms": (silicon, 8, ("Si",)),
    "32 ethanol molecules": (ethanol, 32, ("H", "C", "O")),
}


def make_student(system: str, dtype: torch.dtype = torch.float32, channels: int = 64) -> PaiNN:
    config = PaiNNConfig(elements=SYSTEMS[system][2], channels=channels, layers=2, radials=16, cutoff=CUTOFF)
    return PaiNN(config, torch.Generator().manual_seed(0)).to(dtype)


def make_batch(system: str, probes: int, seed: int, dtype: torch.dtype = torch.float32) -> Batch:
    """Structures of a system, moved at random, with random signs for probes."""
    build, structures, _ = SYSTEMS[system]
    random = np.random.default_rng(seed)
    graph = build_graph([build(random) for _ in range(structures)], CUTOFF, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    shape = (probes, graph.num_atoms, 3)
    return Batch(
        graph=graph,
        energy=torch.randn(structures, generator=generator, dtype=torch.float64),
        forces=torch.randn(shape[1:], generator=generator, dtype=dtype),
        probes=2.0 * torch.randint(0, 2, shape, generator=generator).to(dtype) - 1.0,
        products=torch.randn(shape, generator=generator, dtype=dtype),
    )


def replicas(batch: Batch) -> Batch:
    """A copy of the structures for each probe, with that probe alone: the same loss from one product, of fewer and
    larger operations."""
    copies = len(batch.probes)
    return Batch(
        graph=collate([batch.graph] * copies),
        energy=batch.energy.repeat(copies),
        forces=batch.forces.repeat(copies, 1),
        probes=batch.probes.reshape(1, -1, 3),
        products=batch.products.reshape(1, -1, 3),
    )


def reverse_over_reverse(student: PaiNN, batch: Batch) -> Pieces:
    """What zoo does: the gradient of ⟨forces, v⟩, probe by probe."""
    answer = student.predict(batch.graph, probes=batch.probes, create_graph=True)
    assert answer.forces is not None
    assert answer.hessian_products is not None
    return Pieces(answer.energy, answer.forces, answer.hessian_products)


def mapped(student: PaiNN, batch: Batch) -> Pieces:
    """The same, all probes at once by vmap over the second backward pass."""
    positions = batch.graph.positions.detach().requires_grad_()
    energy = energies(student, batch.graph, positions)
    gradient = torch.autograd.grad(energy.sum(), positions, create_graph=True)[0]

    def product(probe: Tensor) -> Tensor:
        return torch.autograd.grad(gradient, positions, probe, create_graph=True)[0]

    return Pieces(energy, -gradient, torch.vmap(product)(batch.probes))


def forward_over_reverse(student: PaiNN, batch: Batch) -> Pieces:
    """The directional derivative of the gradient, in forward mode; one probe."""

    def total(positions: Tensor) -> tuple[Tensor, Tensor]:
        energy = energies(student, batch.graph, positions)
        return energy.sum(), energy

    function = torch.func.grad(total, has_aux=True)
    found: tuple[Tensor, ...] = torch.func.jvp(function, (batch.graph.positions,), (batch.probes[0],), has_aux=True)
    gradient, product, energy = found
    return Pieces(energy, -gradient, product[None])


def reverse_over_forward(student: PaiNN, batch: Batch) -> Pieces:
    """The gradient of the energy's directional derivative; one probe."""
    positions = batch.graph.positions.detach().requires_grad_()
    with forward_ad.dual_level():
        dual = energies(student, batch.graph, forward_ad.make_dual(positions, batch.probes[0]))
        energy, slope = forward_ad.unpack_dual(dual)
    assert slope is not None
    gradient = torch.autograd.grad(energy.sum(), positions, create_graph=True)[0]
    product = torch.autograd.grad(slope.sum(), positions, create_graph=True)[0]
    return Pieces(energy, -gradient, product[None])


def central_differences(student: PaiNN, batch: Batch) -> Pieces:
    """Differences of forces; not exact; one probe."""
    answer = student.predict(batch.graph, create_graph=True)
    moved = []
    for step in (STEP, -STEP):
        graph = batch.graph.with_geometry(batch.graph.positions + step * batch.probes[0], batch.graph.cells)
        moved.append(student.predict(graph, create_graph=True).forces)
    ahead, behind = moved
    assert answer.forces is not None
    assert ahead is not None
    assert behind is not None
    return Pieces(answer.energy, answer.forces, (behind - ahead)[None] / (2 * STEP))


def energies(student: PaiNN, graph: Graph, positions: Tensor) -> Tensor:
    """(structures,) Energies as a function of the positions."""
    atomic = student.atomic_outputs(graph.with_geometry(positions, graph.cells)).energies.double()
    return atomic.new_zeros(graph.num_structures).index_add(0, graph.structure, atomic)


def terms_of(student: PaiNN, batch: Batch, products: Products | None) -> Terms:
    """The terms of a loss with those products, or without any."""
    if products is None:
        answer = student.predict(batch.graph, create_graph=True)
        assert answer.forces is not None
        pieces = Pieces(answer.energy, answer.forces, batch.products)
    else:
        pieces = products(student, batch)
    terms = {
        "energy": energy_term(pieces.energy, batch.energy, batch.graph),
        "force": norm_term(pieces.forces, batch.forces),
    }
    return terms if products is None else terms | {"hessian": norm_term(pieces.products, batch.products)}


@dataclass(frozen=True)
class Way:
    """One way to take a step."""

    products: Products | None
    probes: int = 1
    forward: bool = False  # whether it needs another SiLU
    replicas: bool = False
    rows: bool = False  # one-hot probes
    compiled: bool = False
    plain: str = "none"  # what it is compared with


WAYS = {
    "none": Way(None),
    "1 product, reverse over reverse": Way(reverse_over_reverse),
    "1 product, forward over reverse": Way(forward_over_reverse, forward=True),
    "1 product, reverse over forward": Way(reverse_over_forward, forward=True),
    "1 product, central differences": Way(central_differences),
    "4 rows, loop (the paper's)": Way(reverse_over_reverse, probes=4, rows=True),
    "4 rows, vmap (the paper's)": Way(mapped, probes=4, rows=True),
    "4 probes, loop": Way(reverse_over_reverse, probes=4),
    "4 probes, replicas": Way(reverse_over_reverse, probes=4, replicas=True),
    "none, compiled": Way(None, compiled=True),
    "1 product, compiled": Way(reverse_over_reverse, compiled=True),
    "4 probes, replicas, compiled": Way(reverse_over_reverse, probes=4, replicas=True, compiled=True),
}


@dataclass
class Runner:
    """A way with its student, its batches and its optimizer."""

    way: Way
    batches: list[Batch]
    student: PaiNN
    turns: Iterator[int]
    gradient: CompiledGradient[Batch] | None = None  # of the student that it was captured with

    def __post_init__(self) -> None:
        trained = self.student if self.gradient is None else self.gradient.module
        self.parameters = tuple(trained.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-7)

    def __call__(self) -> None:
        _, gradients = self.answer(self.batches[next(self.turns) % len(self.batches)])
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    def answer(self, batch: Batch) -> Answer:
        """The loss of a batch and its gradients."""
        if self.gradient is not None:
            return self.gradient(batch, COEFFICIENTS)
        return eager_gradient(self.student, terms_of(self.student, batch, self.way.products), COEFFICIENTS)


def runner(system: str, way: Way, shared: dict[str, CompiledGradient[Batch]]) -> Runner:
    """A way made ready; what is compiled once for a loss serves all ways that have it."""
    student = make_student(system)
    if way.forward:
        swap_silu(student)
    batches = [batch_for(way, make_batch(system, way.probes, seed)) for seed in range(BATCHES)]
    gradient = None
    if way.compiled:
        key = "none" if way.products is None else "products"
        if key not in shared:
            shared[key] = CompiledGradient(student, lambda batch: terms_of(student, batch, way.products))
        gradient = shared[key]
    return Runner(way, batches, student, count(), gradient)


def batch_for(way: Way, batch: Batch) -> Batch:
    """The batch as a way wants it."""
    if way.products is None:
        batch = replace(batch, probes=batch.probes[:0], products=batch.products[:0])
    if way.rows:
        probes = torch.zeros_like(batch.probes)  # row k: the first axis of the k-th atom of each structure
        starts = batch.graph.atom_counts.cumsum(0) - batch.graph.atom_counts
        for row in range(len(probes)):
            probes[row, starts + row, 0] = 1.0
        batch = replace(batch, probes=probes)
    return replicas(batch) if way.replicas else batch


def swap_silu(module: nn.Module) -> None:
    """Puts ProductSiLU in the place of every SiLU."""
    for name, child in module.named_children():
        if isinstance(child, nn.SiLU):
            setattr(module, name, ProductSiLU())
        else:
            swap_silu(child)


def agreement() -> dict[str, float]:
    """Largest difference of the gradient of the loss from that of reverse over reverse, over its largest entry, in
    float64. Raises where a way that is exact is off."""
    system = next(iter(SYSTEMS))
    found = {}
    for name, way in WAYS.items():
        if way.products is None or way.compiled:
            continue
        student = make_student(system, torch.float64)
        batch = batch_for(replace(way, replicas=False), make_batch(system, way.probes, 0, torch.float64))
        expected = flat(eager_gradient(student, terms_of(student, batch, reverse_over_reverse), COEFFICIENTS))
        if way.forward:
            swap_silu(student)
        batch = replicas(batch) if way.replicas else batch
        got = flat(eager_gradient(student, terms_of(student, batch, way.products), COEFFICIENTS))
        found[name] = float((got - expected).abs().max() / expected.abs().max())
        if way.products is not central_differences and found[name] > EXACT:
            raise RuntimeError(f"{name} is off by {found[name]:.1e}, expected at most {EXACT:g}")
    return found


def flat(answer: Answer) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in answer[1] if gradient is not None])


def measure(system: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times and memory of all ways on one system."""
    names = [name for name, way in WAYS.items() if not (arguments.eager and way.compiled)]
    shared: dict[str, CompiledGradient[Batch]] = {}
    runners = {name: runner(system, WAYS[name], shared) for name in names}
    first = {name: timed(run) for name, run in runners.items()}  # s, what must be compiled is compiled here
    for name, run in runners.items():
        if run.gradient is not None and run.gradient.eager:
            raise RuntimeError(f"{name} could not be compiled; pass --eager")
    print(f"{system}: first steps {first}", flush=True)
    times = interleaved(runners, arguments.rounds, CLOCKS[arguments.clock])
    edges = [batch.graph.num_edges for batch in runners["none"].batches]
    rows = {
        name: {
            "ms": float(np.median(times[name])),
            "quartiles_ms": [float(value) for value in np.percentile(times[name], [25, 75])],
            "memory_MiB": in_fresh_process(system, name, arguments.threads),
            "first_s": first[name],
        }
        for name in names
    }
    return {"edges": edges, "ways": rows}


def interleaved(runners: dict[str, Runner], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Milliseconds of each step; the ways take turns, so that what else the machine does falls on all alike."""
    taken: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            run()  # not timed: it brings what this way needs into the caches
            taken[name] += [timed(run, clock) * 1000 for _ in range(BLOCK)]
    return taken


def timed(run: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


def memory(system: str, name: str) -> float:
    """MiB that a step takes at its peak over what there was before it, in this process; Linux only."""
    run = runner(system, WAYS[name], {})
    for _ in range(BATCHES):
        run()
    run.optimizer.zero_grad(set_to_none=True)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status_kib("VmRSS")
    run()
    return (status_kib("VmHWM") - before) / 1024


def status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key + ":")).split()[1])


def in_fresh_process(system: str, name: str, threads: int) -> float:
    command = [sys.executable, __file__, "--threads", str(threads), "--memory", system, name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def text(found: dict[str, Any]) -> str:
    machine, packages = found["hardware"], found["versions"]
    lines = [
        "# A training step and its Hessian products",
        "",
        "PaiNN, 64 channels, 2 layers, 16 radials, float32; loss over energies, forces and products, its gradient by "
        f"the parameters, AdamW. Medians of {found['rounds'] * BLOCK} steps in turns, one run.",
        f"{machine['cpu']}, PyTorch's threads: {machine['threads']}, {found['clock']} time; torch {packages['torch']}.",
        "Ratios are to the eager step without products, and of compiled steps also to the compiled one. Memory is the "
        "peak of a step over what the process held before it.",
        "",
    ]
    for system, results in found["systems"].items():
        lines += [
            f"## {system}, {min(results['edges'])} to {max(results['edges'])} edges",
            "",
            *table(results["ways"]),
            "",
        ]
    return "\n".join([*lines, *remarks(found), *repeat(found)])


def table(ways: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "| products | ms | ratio | ratio, compiled | memory, MiB |",
        "|:--|--:|--:|--:|--:|",
    ]
    for name, row in ways.items():
        compiled = f"{row['ms'] / ways['none, compiled']['ms']:.2f}" if WAYS[name].compiled else ""
        ratio = row["ms"] / ways["none"]["ms"]
        lines.append(f"| {name} | {row['ms']:.1f} | {ratio:.2f} | {compiled} | {row['memory_MiB']:.0f} |")
    return lines


def remarks(found: dict[str, Any]) -> list[str]:
    """What follows from the numbers."""
    exact = [name for name, way in WAYS.items() if way.probes == 1 and way.products and not way.compiled]
    exact.remove("1 product, central differences")
    error = max(value for name, value in found["agreement"].items() if "central" not in name)
    difference = found["agreement"]["1 product, central differences"]
    lines = [
        "## The three orders of differentiation",
        "",
        f"In float64 the gradients of the loss agree to {error:.0e} of their largest entry, central differences to "
        f"{difference:.0e}. `aten::silu_backward` has no rule of forward mode; those ways take "
        "SiLU as x·sigmoid(x).",
    ]
    for system, results in found["systems"].items():
        ways = results["ways"]
        fastest, leanest = (min(exact, key=lambda name: ways[name][what]) for what in ("ms", "memory_MiB"))
        lines.append(f"{system}: fastest is {fastest.split(', ')[1]}, leanest {leanest.split(', ')[1]}.")
    lines += [
        "zoo takes reverse over reverse: it asks no rule of forward mode of an architecture, and serves all probes.",
        "",
    ]
    return lines + compiled_remarks(found)


def compiled_remarks(found: dict[str, Any]) -> list[str]:
    cache = "was empty before" if found["empty_cache"] else "was not empty before, so from nothing it takes longer"
    lines = ["## Compiled", "", f"PyTorch's cache of compiled code {cache}; a system may use kernels of one above it."]
    for system, results in found["systems"].items():
        ways = results["ways"]
        if "1 product, compiled" not in ways:
            continue
        eager, compiled = ways["1 product, reverse over reverse"], ways["1 product, compiled"]
        pays = ""
        if found["clock"] == "wall" and found["empty_cache"] and eager["ms"] > compiled["ms"]:  # else not comparable
            pays = f"; it pays after {1000 * compiled['first_s'] / (eager['ms'] - compiled['ms']):.0f} steps"
        lines.append(
            f"{system}: the step with one product takes {compiled['first_s']:.0f} s on the clock to compile, and "
            f"is {eager['ms'] / compiled['ms']:.1f} times as fast{pays}."
        )
    return [*lines, ""]


def repeat(found: dict[str, Any]) -> list[str]:
    options = f"--threads {found['hardware']['threads']} --clock {found['clock']} --rounds {found['rounds']}"
    return ["To repeat it:", "", "```bash", f".venv/bin/python scripts/bench_step.py {options}", "```", ""]


if __name__ == "__main__":
    main()
