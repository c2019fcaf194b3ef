"""Time of energy, forces and virial of a PaiNN on silicon: eager PyTorch, and the compiled kernel.

Both take turns in one run; a time is the least of many calls, for machines are shared. Operations are counted from the
shapes, so their rate can be set beside that of a matrix product on the same machine. Prints a table.

    .venv/bin/python scripts/bench_kernel.py
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from ase import Atoms
from ase.build import bulk

from zoo.evaluate.environment import hardware, versions
from zoo.graph import Graph
from zoo.kernels import PaiNNKernel
from zoo.neighbors import build_graph
from zoo.students import PaiNN, PaiNNConfig

CUTOFF = 5.0  # Å
LATTICE = 5.431  # Å
SHAPES = ((64, 2, 16), (128, 3, 20))  # channels, layers, radials
CRYSTALS = {64: (2, 2, 2), 1000: (5, 5, 5), 10_000: (5, 10, 25)}  # atoms -> cubic cells along each axis
SPLINE = 6  # rows of a table of filters that one distance uses


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    shape: tuple[int, int, int]
    atoms: int
    edges: int
    threads: int
    eager: float  # seconds
    kernel: float  # seconds
    operations: float

    @property
    def text(self) -> str:
        channels, layers, radials = self.shape
        return (
            f"| {channels} / {layers} / {radials} | {self.atoms:,} | {self.edges:,} | {self.threads} | "
            f"{self.eager * 1e3:.2f} | {self.kernel * 1e3:.3f} | {self.eager / self.kernel:.1f} | "
            f"{self.operations / self.kernel * 1e-9:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--atoms", type=int, nargs="+", default=[10, 64, 100, 1000, 10_000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each entry of the table")
    asked = parser.parse_args()
    machine, packages = hardware(), versions()
    print(f"{machine['cpu']}, {machine['cores']} cores, torch {packages['torch']}")
    for threads in asked.threads:
        print(f"matrix product, {threads} threads, float32: {matrix_product(threads):.0f} GFLOP/s")
    print("\n| channels / layers / radials | atoms | edges | threads | eager, ms | kernel, ms | times | GFLOP/s |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        model = _model(shape)
        for atoms in asked.atoms:
            graph = build_graph(silicon(atoms), CUTOFF, dtype=torch.float32)
            for threads in asked.threads:
                print(measure(model, graph, shape, threads, asked.seconds).text, flush=True)


def silicon(atoms: int) -> Atoms:
    """A distorted crystal; 10 atoms are a cluster cut from it."""
    if atoms in CRYSTALS:
        found = bulk("Si", cubic=True, a=LATTICE) * CRYSTALS[atoms]
    elif atoms == 100:
        found = bulk("Si", a=LATTICE) * (2, 5, 5)
    else:
        found = (bulk("Si", cubic=True, a=LATTICE) * (2, 2, 2))[:atoms]
        found.pbc = False
    found.rattle(0.05, seed=1)
    return found


def measure(model: PaiNN, graph: Graph, shape: tuple[int, int, int], threads: int, seconds: float) -> Row:
    torch.set_num_threads(threads)
    kernel = PaiNNKernel(model)
    eager, compiled = least_times([lambda: model.predict(graph, stress=True), lambda: kernel(graph)], seconds)
    operations = count_operations(shape, graph.num_atoms, graph.num_edges)
    return Row(shape, graph.num_atoms, graph.num_edges, threads, eager, compiled, operations)


def least_times(calls: list[Callable[[], object]], seconds: float) -> list[float]:
    """The least time of each call; they take turns, and one that is faster has more turns."""
    least = [float("inf")] * len(calls)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or max(least) == float("inf"):
        for number, call in enumerate(calls):
            share = time.perf_counter() + seconds / 20
            while True:
                start = time.perf_counter()
                call()
                least[number] = min(least[number], time.perf_counter() - start)
                if time.perf_counter() > share:
                    break
    return least


def count_operations(shape: tuple[int, int, int], atoms: int, edges: int) -> float:
    """Multiplications and additions that the kernel makes: its layers there and back, its filters, its messages."""
    channels, layers, radials = shape
    parts = 3 * layers - 1  # of filters; the first layer has two
    dense = 15 * layers - 4 - 1 + 0.5  # squares of channels; φ of the first layer and the last gate fall away
    filters = 3 * parts * min(radials, SPLINE)  # values there; values and slopes back
    messages = (9 + 16 * (layers - 1)) + (20 + 37 * (layers - 1))  # on each channel of an edge, there and back
    return 4 * atoms * dense * channels**2 + edges * channels * (2 * filters + messages)


def matrix_product(threads: int) -> float:
    """GFLOP/s of PyTorch's product of two square matrices."""
    torch.set_num_threads(threads)
    size = 1024
    matrix = torch.randn(size, size)
    return 2e-9 * size**3 / least_times([lambda: matrix @ matrix], 1.0)[0]


def _model(shape: tuple[int, int, int]) -> PaiNN:
    channels, layers, radials = shape
    config = PaiNNConfig(elements=("Si",), channels=channels, layers=layers, radials=radials, cutoff=CUTOFF)
    model = PaiNN(config, torch.Generator().manual_seed(0)).float()
    model.average_neighbors.fill_(28.0)
    return model.eval().requires_grad_(False)


if __name__ == "__main__":
    main()
