"""All that is to be known of a GPU, in one go of a few minutes: steps a second, batches, teachers, agreement, limits.

PaiNNs with random weights, which change no time, of two sizes, in four ways: by PyTorch's operations one after another,
by compiled code, and each recorded and replayed as a CUDA graph. Steps are of an ASE calculator whose atoms move a
little each time, so that all is in them but the integrator; calls are of the model alone, on edges that are there.
What does not run, for want of memory, of a package or of time, is a row that says so. Writes benchmarks/gpu.json and
gpu.md.

    .venv/bin/python scripts/bench_gpu.py

``--device cpu --quick`` shows that all of it works where there is no GPU.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor

from zoo.bench.peers import Wanted, peer_runner
from zoo.bench.roofline import measure_limits, roofline_of
from zoo.bench.runners import Absent
from zoo.calculator import ZooCalculator
from zoo.captured import StudentCode, compiled_student, uncompiled
from zoo.config import canonical_json
from zoo.cuda_graphs import Replay
from zoo.errors import ZooError
from zoo.evaluate.environment import hardware, versions
from zoo.evaluate.speed import time_once
from zoo.execution import Compiled
from zoo.files import atomic_write
from zoo.gemnet_oc.config import JMP_L, GemNetOCConfig
from zoo.gemnet_oc.network import GemNetOC
from zoo.graph import Graph, collate
from zoo.neighbors import build_graph
from zoo.potential import Potential, Prediction, given
from zoo.students import PaiNN, PaiNNConfig, build_student
from zoo.units import MEV_PER_EV

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
ELEMENTS = ("H", "C", "N", "O", "Si")
CUTOFF = 5.0  # Å
SHAPES = ((64, 2, 16), (128, 3, 20))  # channels, layers, radials
ATOMS = (20, 148, 1_000, 10_000, 100_000)
CUBES = {64: (2, 2, 2), 1_000: (5, 5, 5), 10_000: (5, 10, 25), 100_000: (25, 20, 25)}  # of 8 atoms of silicon
BATCHES = (1, 4, 16, 64, 256, 1_024, 4_096)
IN_BATCHES = 32  # atoms of a structure
PEERS = ("7net-0", "7net-l3i5", "mace-off-large")
PEERS_ATOMS = (148, 1_000)
MOVE = 0.01  # Å
VOLUME, APART = 11.7, 0.95  # Å³ of a cloud for each of its atoms; Å between two, at least
WAYS = ("PyTorch", "recorded", "compiled", "compiled and recorded")


@dataclass
class Bench:
    """What is asked for, until when, and what was found."""

    device: torch.device
    quick: bool
    end: float
    seconds: float  # of each measurement
    found: dict[str, Any] = field(default_factory=dict)

    def timed(self, make: Callable[..., Callable[[], object]], *arguments: Any) -> float | str:
        """Milliseconds of a call, the median of many after the first few; in a sentence why there are none."""
        if time.perf_counter() > self.end:
            return "no time left"
        try:
            call = make(*arguments)
            for _ in range(3):
                call()
            taken: list[float] = []
            stop = time.perf_counter() + self.seconds
            while len(taken) < 5 or time.perf_counter() < stop:
                taken.append(time_once(call))
            return float(np.median(taken))
        except (torch.OutOfMemoryError, MemoryError):
            return "out of memory"
        except Exception as error:  # whatever a driver or another package raises
            return _line(error)
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="few and small cases, one size of PaiNN")
    parser.add_argument("--minutes", type=float, default=8.0, help="what is not begun by then is left out")
    parser.add_argument("--output", type=Path, default=FOLDER, help="the folder of gpu.json and gpu.md")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    end = time.perf_counter() + 60 * asked.minutes
    bench = Bench(torch.device(asked.device), asked.quick, end, seconds=0.2 if asked.quick else 0.7)
    bench.found = {"hardware": hardware(), "versions": versions(), "device": bench.device.type, "quick": asked.quick}
    for part in (agreement, steps, batches, teachers):
        start = time.perf_counter()
        bench.found[part.__name__] = part(bench)
        bench.found[f"{part.__name__}_s"] = round(time.perf_counter() - start, 1)
        atomic_write(asked.output / "gpu.json", canonical_json(bench.found))
        print(f"{part.__name__}: {bench.found[f'{part.__name__}_s']} s", flush=True)
    atomic_write(asked.output / "gpu.md", text(bench.found))
    print(f"written to {asked.output / 'gpu.md'}")


# --- models and structures ------------------------------------------------------------------------


def student(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> PaiNN:
    channels, layers, radials = shape
    config = PaiNNConfig(elements=ELEMENTS, channels=channels, layers=layers, radials=radials, cutoff=CUTOFF)
    made = build_student(config, torch.Generator().manual_seed(0))
    assert isinstance(made, PaiNN)
    made.average_neighbors.fill_(28.0)
    return made.to(device, dtype).eval().requires_grad_(False)


def silicon(atoms: int) -> Atoms:
    """A distorted crystal."""
    found = bulk("Si", cubic=True, a=5.431) * CUBES[atoms]
    found.rattle(0.05, seed=1)
    return found


def cloud(count: int, seed: int = 0) -> Atoms:
    """C, H, N and O as dense as in an organic molecule."""
    random = np.random.default_rng([count, seed])
    side = (VOLUME * count) ** (1 / 3)
    places = random.uniform(0, side, (1, 3))
    while len(places) < count:
        place = random.uniform(0, side, 3)
        if np.linalg.norm(places - place, axis=1).min() > APART:
            places = np.vstack([places, place])
    return Atoms(numbers=random.choice([1, 6, 7, 8], count), positions=places)


def structure(count: int) -> Atoms:
    return silicon(count) if count in CUBES else cloud(count)


@dataclass(frozen=True)
class Way:
    """One way to ask a potential: for a graph, and for a function of positions while edges stay."""

    predict: Callable[..., Prediction]
    follow: Callable[[Graph], Any] | None = None


def ways_of(potential: PaiNN, *, build: bool = True) -> dict[str, Way | str]:
    """Each way, or in a sentence why there is none."""
    found: dict[str, Way | str] = {"PyTorch": Way(potential.predict)}
    found["recorded"] = _recorded(uncompiled(potential), potential)
    if not build:
        return found
    try:
        code = compiled_student(potential, build=True)
        assert code is not None
        found["compiled"] = Way(Compiled(code, potential).predict)
        found["compiled and recorded"] = _recorded(code, potential)
    except ZooError as error:
        found["compiled"] = found["compiled and recorded"] = _line(error)
    return found


def _recorded(code: StudentCode, potential: PaiNN) -> Way:
    record = None if code.device.type == "cuda" else _again
    made = Compiled(Replay(code, record), potential)
    return Way(made.predict, made.follow)


def _again(function: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """Where there is no GPU: the function itself."""
    answer = function()
    return lambda: answer.copy_(function()), answer


# --- what is measured -----------------------------------------------------------------------------


def agreement(bench: Bench) -> list[dict[str, Any]]:
    """How far each way is, in each type, from PyTorch in float64 on the CPU: atoms' energies and forces."""
    rows = []
    structures = [cloud(20), cloud(148), silicon(64)]
    for shape in _shapes(bench):
        exact = student(shape, torch.float64, torch.device("cpu"))
        graph = build_graph(structures, CUTOFF)
        expected = exact.predict(graph, stress=True)
        for dtype in (torch.float32,) if bench.quick else (torch.float32, torch.float64):
            potential = student(shape, dtype, bench.device)
            for name, way in ways_of(potential, build=dtype == torch.float32).items():
                row = {"shape": shape, "dtype": str(dtype).removeprefix("torch."), "way": name}
                rows.append(row | _differences(way, graph, potential, expected))
    return rows


def _differences(way: Way | str, graph: Graph, potential: Potential, expected: Prediction) -> dict[str, Any]:
    if isinstance(way, str):
        return {"failed": way}
    try:
        found = way.predict(graph.to(potential.device, potential.dtype), stress=True).cpu()
    except Exception as error:  # as above
        return {"failed": _line(error)}
    largest = float(given(expected.forces).abs().max())
    energy = given(found.atomic_energies) - given(expected.atomic_energies)
    force = given(found.forces).double() - given(expected.forces)
    return {
        "energy_meV": float(energy.abs().max()) * MEV_PER_EV,
        "force_meV_A": float(force.abs().max()) * MEV_PER_EV,
        "force_of_largest": float(force.abs().max()) / largest,
    }


def steps(bench: Bench) -> dict[str, Any]:
    """Milliseconds of a step and of a call over sizes, and the shares of the limits of the fastest way."""
    limits = measure_limits(torch.float32, bench.device)
    found: dict[str, Any] = {"limits": asdict(limits), "rows": [], "roofline": []}
    for shape in _shapes(bench):
        potential = student(shape, torch.float32, bench.device)
        ways = ways_of(potential)
        for count in ATOMS[:2] if bench.quick else ATOMS:
            atoms = structure(count)
            graph = build_graph(atoms, CUTOFF, dtype=torch.float32, device=bench.device)
            calls: list[float] = []
            for name, way in ways.items():
                row: dict[str, Any] = {"shape": shape, "atoms": count, "edges": graph.num_edges, "way": name}
                row["step_ms"] = way if isinstance(way, str) else bench.timed(_stepping, potential, way, atoms)
                row["call_ms"] = way if isinstance(way, str) else bench.timed(_calling, way.predict, graph)
                calls += [row["call_ms"]] if isinstance(row["call_ms"], float) else []
                found["rows"].append(row)
                print(row, flush=True)
            if calls and time.perf_counter() < bench.end:
                told = roofline_of("/".join(map(str, shape)), potential, graph, min(calls) / 1000, limits)
                found["roofline"].append(asdict(told))
    return found


def _stepping(potential: Potential, way: Way, atoms: Atoms) -> Callable[[], object]:
    """Forces and energy through ASE, of atoms that have moved since."""
    moving = atoms.copy()
    moving.calc = ZooCalculator(potential, predict=way.predict, follow=way.follow)
    random = np.random.default_rng(0)
    places = [atoms.positions + MOVE * random.standard_normal((len(atoms), 3)) for _ in range(8)]
    count = 0

    def step() -> None:
        nonlocal count
        moving.positions = places[count % len(places)]
        count += 1
        moving.get_forces()
        moving.get_potential_energy()

    return step


def _calling(predict: Callable[..., object], graph: Graph) -> Callable[[], object]:
    return partial(predict, graph)


def batches(bench: Bench) -> list[dict[str, Any]]:
    """Structures a second, their edges being there."""
    rows = []
    many = BATCHES[:3] if bench.quick else BATCHES
    one = [build_graph(cloud(IN_BATCHES, seed), CUTOFF) for seed in range(8)]
    for shape in _shapes(bench):
        potential = student(shape, torch.float32, bench.device)
        ways = ways_of(potential)
        for count in many:
            graph = _collated(one, count).to(bench.device, torch.float32)
            for name, way in ways.items():
                call = way if isinstance(way, str) else bench.timed(_calling, way.predict, graph)
                rate = count / call * 1000 if isinstance(call, float) else None
                row = {"shape": shape, "batch": count, "edges": graph.num_edges, "way": name, "call_ms": call}
                rows.append(row | {"structures_per_s": rate})
                print(rows[-1], flush=True)
    return rows


def _collated(graphs: list[Graph], count: int) -> Graph:
    return collate([graphs[number % len(graphs)] for number in range(count)])


def teachers(bench: Bench) -> list[dict[str, Any]]:
    """JMP-L's network with random weights, and other packages' models where they are installed."""
    rows: list[dict[str, Any]] = []
    for forces in ("gradient", "direct"):
        config = _jmp(forces, quick=bench.quick)
        network = GemNetOC(config).float().eval().requires_grad_(False).to(bench.device)
        for count in ATOMS[:1] if bench.quick else ATOMS[:2]:
            graph = build_graph(cloud(count), config.cutoff, dtype=torch.float32, device=bench.device)
            call = bench.timed(_calling, network.predict, graph)
            name = "a small GemNet-OC" if bench.quick else "JMP-L's network"
            rows.append({"name": f"{name}, {forces} forces", "atoms": count, "call_ms": call})
            print(rows[-1], flush=True)
        del network
    for name in () if bench.quick else PEERS:
        runner = peer_runner(name, Wanted(None, ELEMENTS, "float32", bench.device.type))
        for count in PEERS_ATOMS:
            call = runner.reason if isinstance(runner, Absent) else bench.timed(runner.ways["ase"], [structure(count)])
            rows.append({"name": name, "atoms": count, "step_ms": call})
            print(rows[-1], flush=True)
    return rows


def _jmp(forces: str, *, quick: bool) -> GemNetOCConfig:
    small = {"num_blocks": 1, "emb_size_atom": 16, "emb_size_edge": 16} if quick else {}
    return JMP_L.model_copy(update={"forces": forces, **small})


def _shapes(bench: Bench) -> Iterable[tuple[int, int, int]]:
    return SHAPES[:1] if bench.quick else SHAPES


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


# --- the page -------------------------------------------------------------------------------------


def text(found: dict[str, Any]) -> str:
    machine, packages = found["hardware"], found["versions"]
    place = machine["gpu"] if found["device"] == "cuda" else machine["cpu"]
    limits = found["steps"]["limits"]
    lines = [
        "# Engines on a GPU" if found["device"] == "cuda" else "# Engines, by the script for GPUs",
        "",
        f"{place}; {machine['cpu']}, {machine['cores']} cores; torch {packages['torch']}, float32 unless said. "
        "PaiNNs and GemNet-OC have random weights, which change no time. Medians.",
        "",
        "## Steps a second",
        "",
        "Energy and forces through ASE of atoms that move by 0.01 Å, all but the integrator; behind it milliseconds of "
        "the model alone. 20 and 148 atoms are clouds of C, H, N and O, the others silicon.",
        "",
        *_table(found["steps"]["rows"], "atoms", _of_step),
        "## Structures a second",
        "",
        f"Of {IN_BATCHES} atoms each, edges being there; behind it milliseconds of a batch.",
        "",
        *_table(found["batches"], "batch", _of_batch),
        "## Teachers and others",
        "",
        *_others(found),
        "## Agreement",
        "",
        "With PyTorch in float64 on the CPU: the largest difference of an atom's energy and of a force.",
        "",
        *_agreement(found["agreement"]),
        "## Limits",
        "",
        f"Measured in the same run: matrix product {limits['product_GFLOP_s']:,.0f} GFLOP/s, copy "
        f"{limits['copy_GB_s']:,.0f} GB/s. Of the fastest way to call the model:",
        "",
        *_roofline(found["steps"]["roofline"]),
        "To repeat it:",
        "",
        "```bash",
        f".venv/bin/python scripts/bench_gpu.py{'' if found['device'] == 'cuda' else ' --device cpu'}"
        f"{' --quick' if found['quick'] else ''}",
        "```",
        "",
    ]
    return "\n".join(lines)


def _of_step(row: dict[str, Any]) -> str:
    step, call = row["step_ms"], row["call_ms"]
    rate = f"{1000 / step:,.0f}" if isinstance(step, float) else step
    return f"{rate} ({call:.3g})" if isinstance(call, float) else str(rate)


def _of_batch(row: dict[str, Any]) -> str:
    call = row["call_ms"]
    return f"{row['structures_per_s']:,.0f} ({call:.3g})" if isinstance(call, float) else call


def _table(rows: list[dict[str, Any]], key: str, cell: Callable[[dict[str, Any]], str]) -> list[str]:
    """A row a shape and size, a column a way."""
    lines = [f"| PaiNN | {key} | edges | {' | '.join(WAYS)} |", "|---|--:|--:|" + "--:|" * len(WAYS)]
    places = {(tuple(row["shape"]), row[key]): row["edges"] for row in rows}
    for (shape, size), edges in places.items():
        cells = {row["way"]: cell(row) for row in rows if tuple(row["shape"]) == shape and row[key] == size}
        lines.append(
            f"| {'/'.join(map(str, shape))} | {size:,} | {edges:,} | {' | '.join(cells[way] for way in WAYS)} |"
        )
    return [*lines, ""]


def _others(found: dict[str, Any]) -> list[str]:
    """Beside each, how many times faster the fastest step, or call, of the first PaiNN is at as many atoms."""
    lines = ["| model | atoms | ms | times ours |", "|---|--:|--:|--:|"]
    for row in found["teachers"]:
        key = "step_ms" if "step_ms" in row else "call_ms"
        first = found["steps"]["rows"][0]["shape"]
        ours = [
            one[key]
            for one in found["steps"]["rows"]
            if one["atoms"] == row["atoms"] and one["shape"] == first and isinstance(one[key], float)
        ]
        taken = row[key]
        ratio = f"{taken / min(ours):,.0f}" if isinstance(taken, float) and ours else ""
        shown = f"{taken:.3g}" if isinstance(taken, float) else taken
        lines.append(f"| {row['name']} | {row['atoms']:,} | {shown} | {ratio} |")
    return [*lines, ""]


def _agreement(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| PaiNN | type | way | energy, meV | force, meV/Å | of the largest force |", "|---|---|---|--:|--:|--:|"]
    for row in rows:
        numbers = [row.get(name, math.nan) for name in ("energy_meV", "force_meV_A", "force_of_largest")]
        told = " | ".join(f"{number:.1e}" for number in numbers) if "failed" not in row else f"{row['failed']} | |"
        lines.append(f"| {'/'.join(map(str, row['shape']))} | {row['dtype']} | {row['way']} | {told} |")
    return [*lines, ""]


def _roofline(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| PaiNN | atoms | ms | GFLOP | GFLOP/s | of the product | of the same products alone | of the copy |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        shares = [row["share_of_product"], row["share_of_these_products"], row["share_of_copy"]]
        told = " | ".join("" if share is None else f"{100 * share:.1f} %" for share in shares)
        speed = f"{row['ms']:.3g} | {row['GFLOP']:.3g} | {row['GFLOP_s']:,.0f}"
        lines.append(f"| {row['name']} | {row['atoms']:,} | {speed} | {told} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
