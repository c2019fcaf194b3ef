"""How fast engines are: beside SevenNet, beside other packages' PaiNN, beside the machine's limits, large, in dynamics,
and from a cold start. Writes benchmarks/engines.json, engines.md and engines.png, by parts that can run alone.

    .venv/bin/python scripts/bench_engines.py runs/sevennet-0/silicon-student/model
    .venv/bin/python scripts/bench_engines.py runs/sevennet-0/silicon-student/model --only peers
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.md.verlet import VelocityVerlet

import zoo
from zoo.bench import Settings, bench
from zoo.bench.cases import Case, Row, measure_all
from zoo.bench.peers import Wanted, peer_names, peer_runner, peer_versions
from zoo.bench.report import NEW_LIST_TOLD, TITLES, as_lines, markdown, notes
from zoo.bench.roofline import Limits, measure_limits, roofline_of
from zoo.bench.runners import Absent, Runner, engine_runner, new_list_runner
from zoo.engine import Engine, Provenance
from zoo.evaluate.environment import hardware, versions
from zoo.evaluate.figures import scaling
from zoo.evaluate.speed import calculator_turn, time_in_turns
from zoo.execution import compiled
from zoo.files import atomic_write, cache_root
from zoo.neighbors import build_graph
from zoo.students import PaiNN, PaiNNConfig
from zoo.thermal import thermal_velocities
from zoo.units import ASE_TIME_PER_FS

CUTOFF = 5.0  # Å
LATTICE = 5.431  # Å
SHAPES = ((64, 2, 16), (128, 3, 20))  # channels, layers, radials
CUBES = {64: (2, 2, 2), 1000: (5, 5, 5), 3000: (5, 5, 15), 10_000: (5, 10, 25)}  # atoms -> cubic cells along each axis
CUBES |= {30_000: (15, 10, 25), 100_000: (25, 20, 25)}


@dataclass(frozen=True)
class Sizes:
    """How much of each part is measured."""

    silicon: tuple[int, ...] = (8, 64, 216)
    peers: tuple[int, ...] = (10, 100, 1000, 10_000)
    roofline: tuple[int, ...] = (64, 1000)
    large: tuple[int, ...] = (1000, 3000, 10_000, 30_000, 100_000)
    steps: int = 10_000
    repeats: int = 8
    starts: int = 5


QUICK = Sizes((8,), (10, 100), (64,), (1000, 3000), 300, 2, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder of a student of silicon")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure; others stay as they are"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="see that all of it works; the numbers are worth nothing")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks"))
    parser.add_argument("--atoms", type=int, help=argparse.SUPPRESS)  # one size of the part large, by itself
    asked = parser.parse_args()
    if asked.atoms is not None:
        print(json.dumps(large_here(asked.atoms, asked.threads)))
        return
    path = asked.folder / "engines.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    for part in asked.only:
        start = time.perf_counter()
        torch.set_num_threads(asked.threads)
        measured = PARTS[part][0](asked.model, QUICK if asked.quick else Sizes(), asked.threads)
        about = {"hardware": hardware(), "versions": versions() | peer_versions(), "quick": asked.quick}
        found[part] = measured | about
        atomic_write(path, json.dumps({name: found[name] for name in PARTS if name in found}, indent=1) + "\n")
        print(f"{part}: {time.perf_counter() - start:.0f} s", flush=True)
    write_page(found, asked.folder)


# --- what is measured ----------------------------------------------------------------------------------


def silicon_beside_sevennet(model: Path, sizes: Sizes, threads: int) -> dict[str, Any]:
    """The trained engine beside its teacher, in zoo and by its own calculator, and SevenNet-l3i5."""
    settings = Settings(sizes.silicon, (), repeats=sizes.repeats, patience_s=30.0, threads=threads)
    report = bench(model, against=["7net-0", "7net-l3i5"], settings=settings)
    told = report.as_dict()
    return {key: told[key] for key in ("name", "potential", "rows", "absent")}


def painn_beside_peers(_: Path, sizes: Sizes, threads: int) -> dict[str, Any]:
    return {"shapes": [_beside_peers(shape, sizes, threads) for shape in SHAPES]}


def _beside_peers(shape: tuple[int, int, int], sizes: Sizes, threads: int) -> dict[str, Any]:
    """PaiNN with random weights beside other packages' of the same size."""
    fast, plain, exact = (random_engine(shape, *how) for how in ((True,), (False,), (False, torch.float64)))
    wanted = Wanted(painn_config(shape), ("Si",), "float32", "cpu")
    found = [
        engine_runner(fast, "compiled", "own"),
        new_list_runner(fast),
        engine_runner(plain, "PyTorch", "own"),
        *(peer_runner(name, wanted) for name in peer_names() if name.endswith("-painn")),
    ]
    runners = [one for one in found if isinstance(one, Runner)]
    rows: list[Row] = []
    for atoms in sizes.peers:
        structure = silicon(atoms)
        edges = build_graph(structure, CUTOFF).num_edges
        cases = [Case("ase", (structure,), edges), Case("potential", (structure,), edges)]
        chosen = {"repeats": sizes.repeats, "exact": exact} if atoms <= 1000 else {"repeats": 2, "exact": None}
        rows += measure_all(cases[: 1 if atoms > 1000 else 2], runners, patience_s=60.0, threads=threads, **chosen)
    absent = [asdict(one) for one in found if isinstance(one, Absent)]
    return {"shape": shape, "rows": as_lines(rows), "absent": absent}


def share_of_the_roofline(_: Path, sizes: Sizes, threads: int) -> dict[str, Any]:
    """Compiled PaiNN beside the matrix product and the copy of this machine."""
    limits = measure_limits(torch.float32, torch.device("cpu"))
    rows = [_beside_limits(shape, atoms, limits) for shape in SHAPES for atoms in sizes.roofline]
    return {"limits": asdict(limits), "rows": rows}


def _beside_limits(shape: tuple[int, int, int], atoms: int, limits: Limits) -> dict[str, Any]:
    engine, structure = random_engine(shape, True), silicon(atoms)
    call = engine_runner(engine, "", "own").ways["potential"]([structure])
    timing = time_in_turns({"": lambda: call}, repeats=8, turn_s=0.5)[""]
    graph = build_graph(structure, CUTOFF, dtype=torch.float32)
    name = "{} / {} / {}".format(*shape)
    return asdict(roofline_of(name, engine.potential, graph, timing.median_ms / 1000, limits))


def large(model: Path, sizes: Sizes, threads: int) -> dict[str, Any]:
    """Time an atom and memory of large structures, a process each."""
    rows = []
    for atoms in sizes.large:
        command = [sys.executable, __file__, str(model), "--threads", str(threads), "--atoms", str(atoms)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return {"shape": SHAPES[0], "rows": rows}


def large_here(atoms: int, threads: int) -> dict[str, Any]:
    """Of one size, in this process: MiB at its peak over what it held with the engine loaded."""
    torch.set_num_threads(threads)
    engine, structure = random_engine(SHAPES[0], True), silicon(atoms)
    engine.predict(silicon(64))
    before = peak_MiB()
    calculator = engine.calculator()
    calculator.calculate(structure, ["energy", "forces"])
    turn = calculator_turn(calculator, structure, np.random.default_rng(0))
    timing = time_in_turns({"": turn}, repeats=6, turn_s=0.5)[""]
    del calculator, turn
    peak, ask = peak_MiB(), new_list_runner(engine).ways["ase"]
    sought = time_in_turns({"": lambda: ask([structure])}, repeats=6, turn_s=0.5)[""]
    return {
        "atoms": atoms,
        "edges": build_graph(structure, CUTOFF).num_edges,
        **asdict(timing),
        "us_atom": 1000 * timing.median_ms / atoms,
        "new_list_ms": sought.median_ms,
        "peak_MiB": peak,
        "over_start_MiB": peak - before,
    }


def peak_MiB() -> float:  # noqa: N802
    """The most that this process held; the rusage of a child begins with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


def dynamics(model: Path, sizes: Sizes, threads: int) -> dict[str, Any]:
    """NVE of 64 atoms: steps a second, and what of a step is not the potential's."""
    engine = zoo.load(model)
    atoms = bulk("Si", "diamond", a=5.46, cubic=True).repeat(2)
    atoms.set_velocities(thermal_velocities(atoms.get_masses(), 600.0, np.random.default_rng(0)))
    calculator = engine.calculator()
    atoms.calc = calculator
    spent: list[float] = []  # s, of each call of the potential
    if calculator.follow is None:
        calculator.predict = watched(calculator.predict or engine.potential.predict, spent)
    else:
        follow = calculator.follow
        calculator.follow = lambda edges: (found := follow(edges)) and watched(found, spent)
    integrator = VelocityVerlet(atoms, timestep=ASE_TIME_PER_FS)
    integrator.run(sizes.steps // 20)
    code, searches = compiled_files(), calculator.neighbors.searches
    spent.clear()
    tenths = []
    for _ in range(10):
        start = time.perf_counter()
        integrator.run(sizes.steps // 10)
        tenths.append(time.perf_counter() - start)
    taken, potential = sum(tenths), sum(spent)
    return {
        "atoms": len(atoms),
        "steps": sizes.steps,
        "steps_s": sizes.steps / taken,
        "slowest_tenth_steps_s": sizes.steps / 10 / max(tenths),
        "fastest_tenth_steps_s": sizes.steps / 10 / min(tenths),
        "potential_ms": 1000 * potential / sizes.steps,
        "step_ms": 1000 * taken / sizes.steps,
        "overhead_of_potential": taken / potential - 1,
        "neighbor_searches": calculator.neighbors.searches - searches,
        "compiled_anew": len(compiled_files() - code),
    }


def watched(call: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The call, which adds its seconds to ``spent``."""

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        answer = call(*arguments, **options)
        spent.append(time.perf_counter() - start)
        return answer

    return timed


def compiled_files() -> set[Path]:
    """All that zoo's cache holds of compiled code."""
    return {path for folder in ("kernels", "captured") for path in (cache_root() / folder).rglob("*") if path.is_file()}


START = """
import sys, time
import torch, ase, ase.io, ase.build, ase.calculators.calculator
torch.set_num_threads(int(sys.argv[2]))
before = time.perf_counter()
import zoo
engine = zoo.load(sys.argv[1], device="cpu")
loaded = time.perf_counter()
atoms = ase.build.bulk("Si", "diamond", a=5.46, cubic=True)
atoms.calc = engine.calculator()
atoms.get_forces()
first = time.perf_counter()
print(loaded - before, first - loaded, engine.compiled)
"""


def start(model: Path, sizes: Sizes, threads: int) -> dict[str, Any]:
    """Seconds to a loaded engine and to its first forces, each in a process of its own: with and without its cache."""
    with tempfile.TemporaryDirectory() as empty:
        cold = [started(model, threads, Path(empty) / str(number)) for number in range(min(sizes.starts, 3))]
    warm = [started(model, threads, cache_root()) for _ in range(sizes.starts)]
    return {
        cache: {
            "load_s": statistics.median(one[0] for one in many),
            "first_forces_s": statistics.median(one[1] for one in many),
        }
        for cache, many in (("warm", warm), ("empty", cold))
    }


def started(model: Path, threads: int, cache: Path) -> tuple[float, float]:
    command = [sys.executable, "-c", START, str(model.resolve()), str(threads)]
    environment = os.environ | {"ZOO_CACHE": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    loaded, first, is_compiled = done.stdout.split()
    if is_compiled != "True":
        sys.exit(f"the engine has no compiled code here: {done.stderr}")
    return float(loaded), float(first)


# --- engines and structures ----------------------------------------------------------------------------


def silicon(atoms: int) -> Atoms:
    """A distorted crystal; 10 atoms are a cluster cut from it."""
    cube = bulk("Si", cubic=True, a=LATTICE)
    if atoms in CUBES:
        found = cube * CUBES[atoms]
    elif atoms == 100:
        found = bulk("Si", a=LATTICE) * (2, 5, 5)
    else:
        found = (cube * (2, 2, 2))[:atoms]
        found.pbc = False
    found.rattle(0.05, seed=1)
    return found


def painn_config(shape: tuple[int, int, int]) -> PaiNNConfig:
    channels, layers, radials = shape
    return PaiNNConfig(elements=("Si",), channels=channels, layers=layers, radials=radials, cutoff=CUTOFF)


def random_engine(shape: tuple[int, int, int], compile: bool, dtype: torch.dtype = torch.float32) -> Engine:
    """A PaiNN with random weights: its speed does not depend on them."""
    model = PaiNN(painn_config(shape), torch.Generator().manual_seed(0))
    model.average_neighbors.fill_(28.0)
    model = model.to(dtype).eval().requires_grad_(False)
    code = compiled(model, True, [silicon(64)]) if compile else None
    if compile and code is None:
        sys.exit("there is no compiled code here; install a C++ compiler")
    return Engine(model, Provenance("random/painn", "none", "MIT", "none"), compiled=code)


# --- the page ------------------------------------------------------------------------------------------


def write_page(found: dict[str, Any], folder: Path) -> None:
    """Markdown and figure of all parts that were measured, now or before."""
    parts = {name: PARTS[name][1](found[name]) for name in PARTS if name in found}
    lines = [
        "# Engines",
        "",
        f"Energy and forces, float32, medians; ratios are between times of one run, taken in turns. {NEW_LIST_TOLD}",
    ]
    if any(part["quick"] for part in found.values()):
        lines += ["", "**Parts of this page are of a quick trial, whose numbers are worth nothing.**"]
    for name, part in parts.items():
        machine, packages = found[name]["hardware"], found[name]["versions"]
        known = ", ".join(f"{package} {number}" for package, number in packages.items() if package != "python")
        lines += ["", *part, "", f"{machine['cpu']}, threads of PyTorch: {machine['threads']}; {known}."]
    options = ".venv/bin/python scripts/bench_engines.py runs/sevennet-0/silicon-student/model"
    lines += ["", "To repeat it, or with `--only` a part of it:", "", "```bash", options, "```", ""]
    atomic_write(folder / "engines.md", "\n".join(lines))
    draw(found, folder / "engines.png")
    print(f"written to {folder / 'engines.md'}")


def draw(found: dict[str, Any], path: Path) -> None:
    """Time an atom against atoms, of the parts with several sizes."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for one in found.get("peers", {}).get("shapes", []):
        shape = "{}/{}".format(*one["shape"])
        for line in one["rows"]:
            if line["way"] == "ase" and line["us_atom"] is not None:
                x, y = series.setdefault(f"{line['name']}, {shape}", ([], []))
                x.append(line["atoms"])
                y.append(line["us_atom"])
    if series:
        title = "PaiNN of equal size: energy and forces through ASE"
        scaling(path, title, series, x_label="atoms", y_label="time an atom (µs)")


def page_of_rows(part: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for way, title in TITLES.items():
        rows = [row for row in part["rows"] if row["way"] == way]
        if rows:
            lines += [f"{title}:", "", *markdown(way, rows), ""]
    absent = [f"{one['name']} is not measured: {one['reason']}" for one in part["absent"]]
    return lines + [f"- {sentence}." for sentence in (*notes(part["rows"]), *absent)]


def page_of_silicon(part: dict[str, Any]) -> list[str]:
    about = f"{part['name']} ({part['potential']}); times: as long as its compiled code."
    about += " SevenNet's calculators seek all neighbours at each call, as the engine does for times (new list)."
    return ["## Beside SevenNet", "", about, "", *page_of_rows(part)]


def page_of_peers(part: dict[str, Any]) -> list[str]:
    lines = ["## Beside other packages' PaiNN", "", "Silicon, cutoff 5 Å, random weights, equal sizes."]
    for one in part["shapes"]:
        lines += ["", "### {} channels, {} layers, {} radial functions".format(*one["shape"]), "", *page_of_rows(one)]
    return lines


def page_of_roofline(part: dict[str, Any]) -> list[str]:
    limits = part["limits"]
    return [
        "## Beside the machine's limits",
        "",
        f"Matrix product {limits['product_GFLOP_s']:.0f} GFLOP/s (1,024 x 1,024), copy {limits['copy_GB_s']:.0f} GB/s, "
        "measured in the same run. `zoo/bench/roofline.py` says how operations and bytes are counted; a share of the "
        "copy over 100 % is a cache's. The last but one column is the time that PyTorch takes for these very products.",
        "",
        "| channels / layers / radials | atoms | edges | ms | GFLOP | of the product | of PyTorch's | of the copy |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {one['name']} | {one['atoms']:,} | {one['edges']:,} | {one['ms']:.3g} | {one['GFLOP']:.3g} | "
            f"{one['share_of_product']:.0%} | {one['share_of_these_products']:.0%} | {one['share_of_copy']:.0%} |"
            for one in part["rows"]
        ),
    ]


def page_of_large(part: dict[str, Any]) -> list[str]:
    return [
        "## Large structures",
        "",
        "{} channels, {} layers, compiled, through ASE, atoms moving; a process each.".format(*part["shape"]),
        "",
        "| atoms | edges | ms | µs/atom | ms (new list) | peak memory, MiB | of it for these atoms |",
        "|--:|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {one['atoms']:,} | {one['edges']:,} | {one['median_ms']:.3g} | {one['us_atom']:.2f} | "
            f"{one['new_list_ms']:.3g} | {one['peak_MiB']:,.0f} | {one['over_start_MiB']:,.0f} |"
            for one in part["rows"]
        ),
    ]


def page_of_dynamics(part: dict[str, Any]) -> list[str]:
    return [
        "## Dynamics",
        "",
        f"{part['atoms']} atoms, {part['steps']:,} steps of 1 fs with ASE's velocity Verlet: {part['steps_s']:,.0f} "
        f"steps/s (slowest tenth {part['slowest_tenth_steps_s']:,.0f}, fastest {part['fastest_tenth_steps_s']:,.0f}). "
        f"A step takes {part['step_ms']:.3f} ms, of which the potential {part['potential_ms']:.3f}: ASE, neighbours "
        f"and the guard of the domain add {part['overhead_of_potential']:.0%} to it. Neighbours were sought "
        f"{part['neighbor_searches']} times; compiled anew: {part['compiled_anew']}.",
    ]


def page_of_start(part: dict[str, Any]) -> list[str]:
    return [
        "## From a cold start",
        "",
        "Seconds beyond the import of torch and ASE, each in a process of its own.",
        "",
        "| cache of compiled code | `import zoo` and `zoo.load` | first forces |",
        "|:--|--:|--:|",
        *(
            f"| {name} | {part[name]['load_s']:.2f} | {part[name]['first_forces_s']:.3f} |"
            for name in ("warm", "empty")
        ),
    ]


PARTS: dict[str, tuple[Callable[[Path, Sizes, int], dict[str, Any]], Callable[[dict[str, Any]], list[str]]]] = {
    "silicon": (silicon_beside_sevennet, page_of_silicon),
    "peers": (painn_beside_peers, page_of_peers),
    "roofline": (share_of_the_roofline, page_of_roofline),
    "large": (large, page_of_large),
    "dynamics": (dynamics, page_of_dynamics),
    "start": (start, page_of_start),
}


if __name__ == "__main__":
    main()
