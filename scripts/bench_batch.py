"""Structures per second through engine.predict, and times of Hessians, by the size of a pass.

Structures are rattled silicon; each way is asked in turns within one run, and its median counts. The size of a pass is
the sum of its atoms and edges; zoo's own are in zoo/packing.py. Writes benchmarks/batches.md.

    .venv/bin/python scripts/bench_batch.py runs/sevennet-0/silicon-student/model
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from zoo import packing
from zoo.engine import Engine
from zoo.evaluate.environment import hardware, versions
from zoo.files import atomic_write
from zoo.packing import Task

LATTICE = 5.431  # Å
CRYSTALS = {8: (1, 1, 1), 32: (2, 2, 1), 128: (4, 2, 2)}  # atoms -> cubic cells along each axis
COUNTS = {8: 1200, 32: 400, 128: 100}  # structures that are asked for at once
PASSES = (1, 1_000, 3_000, 10_000, 30_000, 100_000)  # 1: each structure alone
PRODUCTS = (1, 500, 1_000, 2_000, 4_000, 8_000)  # 1: without copies
CLUSTER = 30  # atoms of a molecule
MANY = 16  # Hessians that are asked for at once
Ways = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    turns: int
    share: float  # of the structures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder of silicon")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="few structures, to see that it runs; writes nothing")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    plan = Plan(2, 0.05) if asked.quick else Plan(asked.turns, 1.0)
    engines = {
        code: Engine.read(asked.model, device=asked.device, dtype="float32", compile=compile, check_domain=False)
        for code, compile in (("compiled", True), ("PyTorch", False))
    }
    lines = [*heading(engines["compiled"], asked), *energies(engines, plan), *hessians(engines["PyTorch"], plan)]
    text = "\n".join([*lines, "", "To repeat it:", "", "```bash", f"{_command(asked)}", "```", ""])
    print(text)
    if not asked.quick:
        atomic_write(Path("benchmarks") / "batches.md", text)


def heading(engine: Engine, asked: argparse.Namespace) -> list[str]:
    machine = hardware()
    return [
        f"# Batches: {engine.name}",
        "",
        f"float32, {machine['gpu'] if asked.device != 'cpu' else machine['cpu']}, {asked.threads} threads; torch "
        f"{versions()['torch']}. Medians; the ways take turns in one run. A pass holds that many atoms and edges.",
        "",
    ]


def energies(engines: dict[str, Engine], plan: Plan) -> list[str]:
    """Structures per second."""
    lines = [
        "## Structures per second: energy, forces and stress",
        "",
        "Neighbours and checks are included, but for the last column, where graphs are ready; its passes are of the "
        f"default size, {packing.fastest('forces', engines['compiled'].potential.device):,}.",
        "",
        f"| code | atoms | {' | '.join(_named(size) for size in PASSES)} | graphs ready |",
        f"|---|--:|{'--:|' * (len(PASSES) + 1)}",
    ]
    for code, engine in engines.items():
        for atoms in CRYSTALS:
            many = crystals(atoms, max(int(COUNTS[atoms] * plan.share), 8))
            ways, ready = passes(engine, many)
            seconds = medians(ways, plan.turns)
            rates = [len(many) / seconds[_named(size)] for size in PASSES]
            cells = " | ".join(f"{rate:,.0f}" for rate in (*rates, ready / seconds["ready"]))
            lines.append(f"| {code} | {atoms} | {cells} |")
    return [*lines, ""]


def passes(engine: Engine, many: list[Atoms]) -> tuple[Ways, int]:
    """Ways to ask for all of them, and a pass over those whose graphs are ready, and how many these are."""
    items = list(packing.numbered(many, engine._graph))
    size = items[0].graph.num_atoms + items[0].graph.num_edges
    batch = items[: max(packing.fastest("forces", engine.potential.device) // size, 1)]
    engine.predict(many[:64])  # measures what a pass takes
    ways: Ways = {_named(size): limited("forces", engine, size, lambda: engine.predict(many)) for size in PASSES}
    ways["ready"] = lambda: engine._predict_batch(batch)
    return ways, len(batch)


def hessians(engine: Engine, plan: Plan) -> list[str]:
    """Milliseconds of one, and of each of many."""
    lines = [
        "## Hessians: milliseconds",
        "",
        f"PyTorch's, all rows; in passes over copies of the structure, and in the last column each of {MANY} at once.",
        "",
        f"| structure | row by row | {' | '.join(_named(size) for size in PRODUCTS[1:])} | of many | difference |",
        f"|---|--:|{'--:|' * (len(PRODUCTS) + 1)}",
    ]
    scenes = {"crystal of 8": crystals(8, MANY), f"molecule of {CLUSTER}": clusters(MANY)}
    if plan.share == 1:
        scenes["crystal of 32"] = crystals(32, MANY)
    for title, many in scenes.items():
        ways = ways_to_hessians(engine, many)
        seconds = medians(ways, plan.turns)
        cells = [seconds["rows"], *(seconds[_named(size)] for size in PRODUCTS[1:]), seconds["many"] / len(many)]
        error = difference(engine, many[0])
        lines.append(f"| {title} | {' | '.join(f'{1000 * value:,.1f}' for value in cells)} | {error:.0e} |")
    lines += ["", "The difference is that of the default from rows one by one, over the largest entry."]
    return lines


def ways_to_hessians(engine: Engine, many: list[Atoms]) -> Ways:
    one = many[0]
    graph = engine._graph(one).to(engine.potential.device, engine.potential.dtype)
    engine.hessians(many[:3])  # measures what a pass takes
    ways: Ways = {
        _named(size): limited("Hessian products", engine, size, lambda: engine.hessian(one)) for size in PRODUCTS[1:]
    }
    return {"rows": lambda: engine.potential.hessian(graph), **ways, "many": lambda: engine.hessians(many)}


def limited(task: Task, engine: Engine, size: int, call: Callable[[], object]) -> Callable[[], object]:
    """The call with passes of another size."""
    key = (task, engine.potential.device.type)

    def limited_call() -> object:
        before = packing.FASTEST[key]
        packing.FASTEST[key] = size
        try:
            return call()
        finally:
            packing.FASTEST[key] = before

    return limited_call


def difference(engine: Engine, atoms: Atoms) -> float:
    graph = engine._graph(atoms).to(engine.potential.device, engine.potential.dtype)
    rows = engine.potential.hessian(graph).double().cpu().numpy()
    return float(np.abs(engine.hessian(atoms) - rows).max() / np.abs(rows).max())


def medians(ways: Ways, turns: int) -> dict[str, float]:
    """Seconds of each way; they take turns, after one that is not timed."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, call in ways.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def crystals(atoms: int, count: int) -> list[Atoms]:
    return _rattled(bulk("Si", "diamond", a=LATTICE, cubic=True) * CRYSTALS[atoms], count)


def clusters(count: int) -> list[Atoms]:
    """Molecules: the atoms nearest to the middle of a crystal."""
    crystal = bulk("Si", "diamond", a=LATTICE, cubic=True) * (3, 3, 3)
    from_middle = np.linalg.norm(crystal.positions - crystal.positions.mean(axis=0), axis=1)
    cluster = crystal[np.argsort(from_middle)[:CLUSTER]]
    cluster.pbc, cluster.cell = False, None
    return _rattled(cluster, count)


def _rattled(atoms: Atoms, count: int) -> list[Atoms]:
    many = [atoms.copy() for _ in range(count)]
    for seed, one in enumerate(many):
        one.rattle(0.03, seed=seed)
    return many


def _named(size: int) -> str:
    return "one by one" if size == 1 else f"{size:,}"


def _command(asked: argparse.Namespace) -> str:
    return f".venv/bin/python scripts/bench_batch.py {asked.model} --device {asked.device} --threads {asked.threads}"


if __name__ == "__main__":
    main()
