"""Time of sums over neighbours and of their derivatives, by each way that there is to take them, and which are right.

Rows of edges, sorted by their centre and of as many edges each, are summed over atoms: forward, backward as for forces,
and backward again as for Hessian products. Ways take turns in one run; a time is the median of the rounds. Whether a
way is right is asked in float64 up to the third derivative, against a product with a matrix of zeros and ones. Then a
PaiNN is asked for forces, and for a Hessian product, with each that needs no order of edges. Writes benchmarks/ops.md
and .json.

    .venv/bin/python scripts/bench_ops.py
"""

import argparse
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from ase.build import bulk
from torch import Tensor

import zoo.derivatives
import zoo.ops
import zoo.students.painn
from zoo.config import canonical_json
from zoo.evaluate.environment import hardware, versions
from zoo.files import atomic_write
from zoo.graph import Graph
from zoo.neighbors import build_graph
from zoo.students import PaiNN, PaiNNConfig

NEIGHBOURS = 28  # of an atom of silicon within 5 Å
ATOMS = (8, 64, 1000)
CHANNELS = (64, 128, 384)
EXACT = 1e-12  # of float64
ORDERS = ("sum", "gradient", "second derivative", "third derivative")
STEPS = ("forward", "backward", "backward again")
FOLDER = Path("benchmarks")


@dataclass(frozen=True)
class Edges:
    """Where rows belong: centres in order, each as often."""

    centers: Tensor  # (edges,) int64
    starts: Tensor  # (atoms + 1,) int64, where the edges of an atom begin
    atoms: int

    @classmethod
    def of(cls, atoms: int, device: str) -> "Edges":
        every = torch.arange(atoms + 1, device=device)
        return cls(every[:-1].repeat_interleave(NEIGHBOURS), every * NEIGHBOURS, atoms)


Way = Callable[[Tensor, Edges], Tensor]


def scatter_add(values: Tensor, edges: Edges) -> Tensor:
    """PyTorch's scatter_add with the index spread over all channels."""
    index = edges.centers.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)
    return values.new_zeros(edges.atoms, *values.shape[1:]).scatter_add(0, index, values)


def index_add(values: Tensor, edges: Edges) -> Tensor:
    """PyTorch's index_add."""
    return values.new_zeros(edges.atoms, *values.shape[1:]).index_add(0, edges.centers, values)


def segment_reduce(values: Tensor, edges: Edges) -> Tensor:
    """PyTorch's segment_reduce, of sorted centres."""
    return torch.segment_reduce(values, "sum", offsets=edges.starts, axis=0)


def dense(values: Tensor, edges: Edges) -> Tensor:
    """A sum over an axis, of sorted centres with as many edges each: no graph of moving atoms is such."""
    return values.reshape(edges.atoms, NEIGHBOURS, *values.shape[1:]).sum(dim=1)


def package_scatter(values: Tensor, edges: Edges) -> Tensor:
    """torch-scatter's scatter."""
    summed: Tensor = _package().scatter(values, edges.centers, dim=0, dim_size=edges.atoms, reduce="sum")
    return summed


def package_segment(values: Tensor, edges: Edges) -> Tensor:
    """torch-scatter's segment_csr, of sorted centres."""
    summed: Tensor = _package().segment_csr(values, edges.starts, reduce="sum")
    return summed


WAYS: dict[str, Way] = {
    "scatter_add": scatter_add,
    "index_add": index_add,
    "segment_reduce": segment_reduce,
    "torch-scatter, scatter": package_scatter,
    "torch-scatter, segment_csr": package_segment,
    "axis of equal rows": dense,
}
IN_ANY_ORDER = ("scatter_add", "index_add", "torch-scatter, scatter")
CRYSTALS = {8: 1, 64: 2, 1000: 5}  # atoms -> cubic cells along each axis
OPTIONAL = {name for name in WAYS if name.startswith("torch-scatter")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atoms", type=int, nargs="+", default=ATOMS)
    parser.add_argument("--channels", type=int, nargs="+", default=CHANNELS)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--quick", action="store_true", help="two sizes and few rounds, to see that all runs")
    asked = parser.parse_args()
    if asked.quick:
        asked.atoms, asked.channels, asked.rounds = [8, 64], [64], 3
    found = measure(asked)
    asked.folder.mkdir(exist_ok=True)
    atomic_write(asked.folder / "ops.json", canonical_json(found))
    atomic_write(asked.folder / "ops.md", text(found))
    print(f"written to {asked.folder / 'ops.md'}")


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """All that the page says."""
    ways = [name for name in WAYS if name not in OPTIONAL or importlib.util.find_spec("torch_scatter")]
    faults = {name: fault(WAYS[name]) for name in ways}
    rows, models = [], []
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        for threads in asked.threads if device == "cpu" else [1]:
            torch.set_num_threads(threads)
            for atoms in sorted(set(asked.atoms) & set(CRYSTALS)):
                times = time_model([name for name in IN_ANY_ORDER if name in ways], atoms, device, asked.rounds)
                models.append({"device": device, "threads": threads, "atoms": atoms, "milliseconds": times})
                print(model_text(models[-1]), flush=True)
            for atoms in asked.atoms:
                for channels in asked.channels:
                    times = time_ways(ways, atoms, channels, device, asked.rounds)
                    rows.append({"device": device, "threads": threads, "atoms": atoms, "channels": channels} | times)
                    print(row_text(rows[-1], ways), flush=True)
    known = {"hardware": hardware(), "versions": versions(), "rounds": asked.rounds}
    return known | {"faults": faults, "rows": rows, "models": models}


def fault(way: Way) -> str | None:
    """What of the sum and its derivatives is wrong, or cannot be had; None where all are right."""
    edges = Edges.of(5, "cpu")
    values = torch.randn(len(edges.centers), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = derivatives(by_matrix, values, edges)
    for order in range(len(ORDERS)):
        try:
            found = derivatives(way, values, edges, order)[-1]
        except RuntimeError as error:
            return f"no {ORDERS[order]}: {str(error).splitlines()[0][:60]}"
        if not torch.allclose(found, wanted[order], rtol=EXACT, atol=EXACT):
            return f"a wrong {ORDERS[order]}"
    return None


def by_matrix(values: Tensor, edges: Edges) -> Tensor:
    """A product with a matrix of zeros and ones: slow, and right to every derivative."""
    chosen = edges.centers == torch.arange(edges.atoms)[:, None]  # (atoms, edges)
    return chosen.to(values.dtype) @ values


def derivatives(way: Way, values: Tensor, edges: Edges, order: int = 3) -> list[Tensor]:
    """Sum, gradient, Hessian product and its gradient, up to an order, of a function that is not linear."""
    values = values.clone().requires_grad_()
    direction = torch.linspace(-1, 1, values.numel(), dtype=values.dtype).reshape(values.shape)
    scalars: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda summed: summed.pow(3).sum(),
        lambda gradient: (gradient * direction).sum(),
        lambda product: product.square().sum(),
    )
    found = [way(values.sin() * values, edges)]
    for scalar in scalars[:order]:
        found.append(torch.autograd.grad(scalar(found[-1]), values, create_graph=True)[0])
    return [one.detach() for one in found]


def time_ways(ways: list[str], atoms: int, channels: int, device: str, rounds: int) -> dict[str, Any]:
    """By way, microseconds of each step; None where there is no such step."""
    edges = Edges.of(atoms, device)
    values = torch.randn(len(edges.centers), channels, device=device).requires_grad_()
    slope = torch.randn(atoms, channels, device=device).requires_grad_()
    turned = torch.randn(len(edges.centers), channels, device=device)
    taken: dict[str, list[list[float]]] = {name: [] for name in ways}
    calls = max(1, 20_000_000 // (values.numel() * 30))
    for _ in range(rounds + 1):
        for name in ways:
            taken[name].append(_time_steps(WAYS[name], edges, values, slope, turned, min(calls, 50)))
    medians = {
        name: [1e6 * statistics.median(step) for step in zip(*times[1:], strict=True)] for name, times in taken.items()
    }
    return {"microseconds": {name: [one if one == one else None for one in median] for name, median in medians.items()}}


def _time_steps(way: Way, edges: Edges, values: Tensor, slope: Tensor, turned: Tensor, calls: int) -> list[float]:
    """Seconds a call of each step; NaN where there is none."""
    taken = [0.0, 0.0, 0.0]
    for _ in range(calls):
        start = _now(values.device)
        summed = way(values, edges)
        after_sum = _now(values.device)
        (gradient,) = torch.autograd.grad(summed, values, slope, create_graph=True)
        after_gradient = _now(values.device)
        taken[0] += after_sum - start
        taken[1] += after_gradient - after_sum
        try:
            torch.autograd.grad(gradient, slope, turned)
        except RuntimeError:
            taken[2] = float("nan")
        taken[2] += _now(values.device) - after_gradient
    return [one / calls for one in taken]


def time_model(ways: list[str], atoms: int, device: str, rounds: int) -> dict[str, list[float]]:
    """By way, milliseconds of forces, and of forces with a Hessian product, of a PaiNN of 64 channels and 2 layers."""
    config = PaiNNConfig(elements=("Si",), channels=64, layers=2, radials=16)
    model = PaiNN(config, torch.Generator().manual_seed(0)).float().to(device).eval().requires_grad_(False)
    crystal = bulk("Si", cubic=True).repeat(CRYSTALS[atoms])
    crystal.rattle(0.05, seed=0)
    graph = build_graph(crystal, model.cutoff, dtype=torch.float32, device=device)
    taken: dict[str, list[list[float]]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name in ways:
            with summing(WAYS[name]):
                taken[name].append(_time_answers(model, graph))
    return {
        name: [1e3 * statistics.median(step) for step in zip(*times[1:], strict=True)] for name, times in taken.items()
    }


def _time_answers(model: PaiNN, graph: Graph) -> list[float]:
    probe = torch.ones_like(graph.positions)[None]
    times = [_now(graph.positions.device)]
    model.predict(graph)
    times.append(_now(graph.positions.device))
    model.predict(graph, probes=probe)
    times.append(_now(graph.positions.device))
    return [after - before for before, after in pairwise(times)]


@contextmanager
def summing(way: Way) -> Iterator[None]:
    """Students sum this way meanwhile."""
    modules = [vars(module) for module in (zoo.students.painn, zoo.derivatives)]
    before = zoo.ops.scatter_sum
    for module in modules:
        module["scatter_sum"] = lambda values, index, size: way(values, Edges(index, index, size))
    try:
        yield
    finally:
        for module in modules:
            module["scatter_sum"] = before


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _package() -> Any:
    return importlib.import_module("torch_scatter")  # lazy: optional, and it compiles for minutes


def row_text(row: dict[str, Any], ways: list[str]) -> str:
    """One line of the table."""
    times = row["microseconds"]
    cells = [" / ".join("-" if one is None else f"{one:.0f}" for one in times[name]) for name in ways]
    return f"| {row['device']} | {row['threads']} | {row['atoms']:,} | {row['channels']} | {' | '.join(cells)} |"


def model_text(row: dict[str, Any]) -> str:
    """One line of the table of models."""
    cells = [" / ".join(f"{one:.1f}" for one in times) for times in row["milliseconds"].values()]
    return f"| {row['device']} | {row['threads']} | {row['atoms']:,} | {' | '.join(cells)} |"


def totals(rows: list[dict[str, Any]], ways: list[str]) -> str:
    """How long each way takes in all three steps beside the first one: geometric means over the rows."""
    said = []
    for name in ways[1:]:
        ratios = [_total(row, name) / _total(row, ways[0]) for row in rows if None not in row["microseconds"][name]]
        if ratios:
            said.append(f"{name} {statistics.geometric_mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return "; ".join(said)


def _total(row: dict[str, Any], name: str) -> float:
    return float(sum(row["microseconds"][name]))


def text(found: dict[str, Any]) -> str:
    """The page."""
    rows, ways, machine = found["rows"], list(found["faults"]), found["hardware"]
    lines = [
        "# Sums over neighbours",
        "",
        f"Microseconds {', '.join(STEPS)} of a sum over {NEIGHBOURS} sorted edges of each atom, float32, median of "
        f"{found['rounds']} rounds in turns.",
        f"{machine['cpu']}, torch {found['versions']['torch']}.",
        "",
        f"| device | threads | atoms | channels | {' | '.join(ways)} |",
        f"|---|--:|--:|--:|{'--:|' * len(ways)}",
        *(row_text(row, ways) for row in rows),
        "",
        f"All three steps together, as a share of what {ways[0]} takes, geometric mean over rows (least to most): "
        f"{totals(rows, ways)}.",
        "",
        "Right to the third derivative, in float64:",
        "",
        *(f"- {name}: {found['faults'][name] or 'yes'}" for name in ways),
        "",
        "## In a model",
        "",
        "Milliseconds of energy and forces / of these with a Hessian product, of a PaiNN of 64 channels and 2 layers "
        "by PyTorch in float32, on a crystal of silicon.",
        "",
        f"| device | threads | atoms | {' | '.join(name for name in IN_ANY_ORDER if name in ways)} |",
        f"|---|--:|--:|{'--:|' * sum(name in ways for name in IN_ANY_ORDER)}",
        *(model_text(row) for row in found["models"]),
        "",
        "To repeat it:",
        "",
        "```bash",
        ".venv/bin/python scripts/bench_ops.py",
        "```",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
