"""Time and memory of GemNet-OC in the sizes of JMP: zoo's own, and fairchem-core 1.10.0 where it is installed.

Random weights, the same in both, float32; ethanol, C60 and clouds of C, H, N, O with atoms at least 0.95 Å apart. Each
case is a process of its own with a limit of memory and one of time, and begins with positions: the search for
neighbours is in the time. The least of up to three calls is told, or of one where that takes over a minute. Also how
much the order of atoms changes. Writes benchmarks/gemnet-oc.json and .md.

    .venv/bin/python scripts/bench_gemnet_oc.py
"""

import argparse
import importlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from torch import Tensor

from zoo.evaluate.environment import hardware, versions
from zoo.files import atomic_write
from zoo.gemnet_oc.config import JMP_L, JMP_S
from zoo.gemnet_oc.network import GemNetOC
from zoo.neighbors import build_graph

SIZES = {"S": JMP_S, "L": JMP_L}
ATOMS = (9, 30, 60, 148, 370)
QUANTITIES = {  # where forces come from, and what is asked besides them, or instead of them
    "energy, direct forces": ("direct", None),
    "energy, direct forces, a row": ("direct", "row"),
    "a column of direct forces": ("direct", "column"),
    "energy, gradient forces": ("gradient", None),
    "energy, gradient forces, a Hessian product": ("gradient", "row"),
}
VOLUME = 11.7  # Å³ of a cloud for each of its atoms, as 148 in a cube of 12 Å
APART = 0.95  # Å, at least
ENOUGH = 60.0  # seconds of a call after which no other is made
ORDERS = 5  # random ones
_GIB = 1 << 30
_NO_MEMORY = (  # what PyTorch, Python, the loader of libraries and OpenMP say then
    "allocate memory",
    "MemoryError",
    "not enough memory",
    "bad_alloc",
    "failed to map segment",
    "Thread creation failed",
)

Call = Callable[[Atoms, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Case:
    """What a process measures; of ``order``, how much the order of atoms changes."""

    whose: str  # "zoo", "fairchem" or "order"
    size: str
    quantity: str
    atoms: int

    @property
    def title(self) -> str:
        return f"{self.whose} {self.size} {self.quantity} {self.atoms}"


# --- the process of a case ------------------------------------------------------------------------


def measured(case: Case, patience: int) -> dict[str, Any]:
    """What the process of a case finds."""
    torch.manual_seed(0)
    model = random_model(case.size, QUANTITIES[case.quantity][0])
    if case.whose == "order":
        return changes_by_order(model.double(), structure(case.atoms))
    asked = QUANTITIES[case.quantity][1]
    call = call_of_ours(model, asked) if case.whose == "zoo" else call_of_fairchem(model, asked)
    del model
    atoms = structure(case.atoms)
    probe = torch.nn.functional.one_hot(torch.tensor(10), 3 * len(atoms)).reshape(len(atoms), 3).float()
    forget_peak()
    seconds: list[float] = []
    while len(seconds) < 3 and sum(seconds) < ENOUGH:
        signal.alarm(patience)
        start = time.perf_counter()
        numbers = call(atoms, probe)
        seconds.append(time.perf_counter() - start)
        signal.alarm(0)
    return {
        "seconds": min(seconds),
        "peak_GiB": peak() / _GIB,
        "numbers": {name: tensor.flatten().tolist() for name, tensor in numbers.items()},
    }


def random_model(size: str, forces: str) -> GemNetOC:
    """Weights that are normal, and standardised over the inputs of each output, so that numbers stay of order one."""
    with torch.device("meta"):
        model = GemNetOC(SIZES[size].model_copy(update={"forces": forces}))
    model = model.to_empty(device="cpu").requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 0:  # scale factors
            tensor.fill_(1)
            continue
        tensor.normal_(generator=generator)
        if tensor.dim() > 1 and name != "embedding.weight":
            inputs = (1,) if tensor.dim() == 2 else (0, 1)
            tensor -= tensor.mean(dim=inputs, keepdim=True)
            tensor /= tensor.std(dim=inputs, keepdim=True) * math.sqrt(math.prod(tensor.shape[i] for i in inputs))
    return model


def structure(count: int) -> Atoms:
    """Ethanol, C60 or a cloud; of all, no two distances are the same."""
    random = np.random.default_rng(count)
    if count in (9, 60):
        atoms = molecule("CH3CH2OH" if count == 9 else "C60")
        atoms.positions += random.normal(scale=0.02, size=atoms.positions.shape)
        return atoms
    side = (VOLUME * count) ** (1 / 3)
    places = random.uniform(0, side, (1, 3))
    while len(places) < count:
        place = random.uniform(0, side, 3)
        if np.linalg.norm(places - place, axis=1).min() > APART:
            places = np.vstack([places, place])
    return Atoms(numbers=random.choice([1, 6, 7, 8], count), positions=places)


def call_of_ours(model: GemNetOC, asked: str | None) -> Call:
    def call(atoms: Atoms, probe: Tensor) -> dict[str, Tensor]:
        graph = build_graph(atoms, model.cutoff, dtype=model.dtype)
        if asked == "column":
            return {"column": model.force_columns(graph, probe[None])[0]}
        found = model.predict(graph, probes=probe[None] if asked == "row" else None)
        parts = {"energy": found.energy, "forces": found.forces, "row": found.hessian_products}
        return {name: tensor for name, tensor in parts.items() if tensor is not None}

    return call


def call_of_fairchem(model: GemNetOC, asked: str | None) -> Call:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    fairchem = importlib.import_module("fairchem_gemnet_oc")
    theirs = fairchem.reference(model)

    def call(atoms: Atoms, probe: Tensor) -> dict[str, Tensor]:
        if asked == "column":
            return {"column": -fairchem.tangent_of_forces(theirs, atoms, probe)}
        energy, forces, positions = fairchem.energy_and_forces(theirs, [atoms], differentiable=asked == "row")
        found = {"energy": energy, "forces": forces.detach()}
        return found | ({"row": torch.autograd.grad(forces, positions, -probe)[0]} if asked == "row" else {})

    return call


def changes_by_order(model: GemNetOC, atoms: Atoms) -> dict[str, Any]:
    """The largest change of the energy and of forces over random orders, relative to the size of each."""
    random = np.random.default_rng(0)
    before = model.predict(build_graph(atoms, model.cutoff))
    assert before.forces is not None
    changes: dict[str, list[float]] = {"energy": [], "forces": []}
    for _ in range(ORDERS):
        order = random.permutation(len(atoms))
        after = model.predict(build_graph(atoms[order], model.cutoff))
        assert after.forces is not None
        changes["energy"].append(relative(after.energy, before.energy))
        changes["forces"].append(relative(after.forces, before.forces[torch.from_numpy(order)]))
    return {name: max(values) for name, values in changes.items()}


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def forget_peak() -> None:
    """The peak of memory begins anew, where the system lets it: the making of weights is not counted."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Bytes that the process held at most."""
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --- all cases ------------------------------------------------------------------------------------


def in_process(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the process of a case finds, or how it failed."""
    limits = ["--patience", str(arguments.patience), "--memory", str(arguments.memory)]
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case)), *limits]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    if done.returncode == -signal.SIGALRM:
        return {"failed": f"over {arguments.patience} s"}
    if done.returncode == -signal.SIGKILL or any(words in done.stderr for words in _NO_MEMORY):
        return {"failed": "out of memory"}
    last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
    raise SystemExit(f"{case.title} failed ({done.returncode}): {last}")


def cases(arguments: argparse.Namespace, *, fairchem: bool) -> Iterator[Case]:
    sizes, atoms = (("S",), ATOMS[:2]) if arguments.quick else (tuple(SIZES), ATOMS)
    wanted = [
        Case(whose, size, quantity, count)
        for count in atoms
        for size in sizes
        for quantity in QUANTITIES
        for whose in ("zoo", *(("fairchem",) if fairchem else ()))
    ]
    wanted += [
        Case("order", "S", "energy, direct forces", count)
        for count in (30, 31, 60, *(() if arguments.quick else (148,)))
    ]
    yield from (case for case in wanted if arguments.only in case.title)


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a case; numbers are compared where both are there, and left out."""
    fairchem = find_spec("fairchem") is not None and find_spec("torch_geometric") is not None
    if not fairchem:
        print("fairchem-core 1.10.0 and torch-geometric are not installed: ours alone")
    rows: list[dict[str, Any]] = []
    numbers: dict[Case, dict[str, list[float]]] = {}
    for case in cases(arguments, fairchem=fairchem):
        before = kept(arguments.keep, case)
        found = before or in_process(case, arguments)
        numbers[case] = found.get("numbers", {})
        ours = numbers.get(Case("zoo", case.size, case.quantity, case.atoms), {})
        if case.whose == "fairchem" and ours and numbers[case]:
            found["deviation"] = deviation(ours, numbers[case])
        if arguments.keep is not None and before is None:
            with arguments.keep.open("a") as file:
                print(json.dumps(asdict(case) | found), file=file)
        rows.append(asdict(case) | {key: value for key, value in found.items() if key != "numbers"})
        print(f"{case.title}: {json.dumps(rows[-1])}", flush=True)
    if not rows:
        raise SystemExit(
            f"no case holds {arguments.only!r}; a title is like {Case('zoo', 'L', 'direct forces', 148).title!r}"
        )
    return rows


def kept(path: Path | None, case: Case) -> dict[str, Any] | None:
    """What a case gave in a run before, which was cut off."""
    lines = path.read_text().splitlines() if path is not None and path.exists() else []
    for found in map(json.loads, lines):
        if all(found[key] == value for key, value in asdict(case).items()):
            return {key: value for key, value in found.items() if key not in asdict(case)}
    return None


def everything_kept(path: Path | None) -> list[dict[str, Any]]:
    """The rows of all runs that kept theirs in one file."""
    found = [] if path is None else [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "numbers"} for row in found]


def deviation(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> float:
    """The largest of the arrays, each relative to its largest number."""
    return max(relative(torch.tensor(ours[name]), torch.tensor(theirs[name])) for name in theirs)


# --- the page -------------------------------------------------------------------------------------


def text(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    machine, packages = about["hardware"], about["versions"]
    deviations = [row["deviation"] for row in rows if "deviation" in row]
    lines = [
        "# GemNet-OC in the sizes of JMP",
        "",
        f"Seconds and peak of memory (GiB, with Python and the weights) on {machine['cpu']}, {about['threads']} "
        f"threads, float32, torch {packages['torch']}; a process a case, at most {about['memory_GiB']:g} GiB and "
        f"{about['patience_s']} s a call. Random weights: they change no time. The least of up to three calls, of one "
        "where that takes over a minute. 9 atoms are ethanol, 60 are C60, the others clouds of C, H, N and O.",
        "",
    ]
    if deviations:
        lines += [
            f"Beside it fairchem-core {about['fairchem']}, with the same weights, without torch-scatter and "
            f"torch-sparse, whose work PyTorch does here. The numbers of both differ by at most {max(deviations):.0e} "
            "of the largest, in energy, forces and products. The ratio is of its seconds to ours.",
            "",
        ]
    for quantity in QUANTITIES:
        lines += table(quantity, [row for row in rows if row["quantity"] == quantity and row["whose"] != "order"])
    lines += orders([row for row in rows if row["whose"] == "order"])
    command = ".venv/bin/python scripts/bench_gemnet_oc.py" + about["arguments"]
    return "\n".join([*lines, "To repeat it:", "", "```bash", command, "```", ""])


def table(quantity: str, rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    found = {(row["whose"], row["size"], row["atoms"]): row for row in rows}
    sizes = sorted({row["size"] for row in rows}, reverse=True)
    both = any(row["whose"] == "fairchem" for row in rows)
    names = ("zoo", "fairchem", "ratio") if both else ("zoo",)
    head = " | ".join(f"{size}, {name}" for size in sizes for name in names)
    lines = [
        f"## {quantity[0].upper()}{quantity[1:]}",
        "",
        f"| atoms | {head} |",
        "|--:|" + "--:|" * (len(names) * len(sizes)),
    ]
    for count in sorted({row["atoms"] for row in rows}):
        cells = []
        for size in sizes:
            ours, theirs = (found.get((whose, size, count)) for whose in ("zoo", "fairchem"))
            cells += [cell(ours), cell(theirs), ratio(ours, theirs)][: len(names)]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    return [*lines, ""]


def cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    return str(row["failed"]) if "failed" in row else f"{row['seconds']:.2f} s, {row['peak_GiB']:.1f}"


def ratio(ours: dict[str, Any] | None, theirs: dict[str, Any] | None) -> str:
    if ours is None or theirs is None or "failed" in ours or "failed" in theirs:
        return "–"
    return f"{theirs['seconds'] / ours['seconds']:.2f}"


def orders(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        "## The order of atoms",
        "",
        "An atom keeps a number of its nearest neighbours, and of a pair that only one of them keeps, the order of "
        f"atoms decides. The largest change over {ORDERS} random orders, of JMP-S in float64, of the energy relative "
        "to it and of a force relative to the largest one. Where all other atoms are kept, up to 31 atoms, it is "
        "nothing but rounding.",
        "",
        "| atoms | energy | forces |",
        "|--:|--:|--:|",
    ]
    return [*lines, *(f"| {row['atoms']} | {row['energy']:.1e} | {row['forces']:.1e} |" for row in rows), ""]


def fairchem_version() -> str:
    try:
        return version("fairchem-core")
    except PackageNotFoundError:
        return "1.10.0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=float, default=20.0, help="GiB that the process of a case may hold")
    parser.add_argument("--patience", type=int, default=240, help="seconds that a call may take")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="S with up to 30 atoms; prints and writes nothing")
    parser.add_argument(
        "--only", default="", help="cases whose title, as printed, holds this; nothing is written without --keep"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="keeps a line a case, does not run those again, and writes what it has",
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        # here, not before the imports: OpenBLAS, which comes with SciPy, turns in circles where it gets no memory
        resource.setrlimit(resource.RLIMIT_DATA, (int(arguments.memory * _GIB),) * 2)
        print(json.dumps(measured(Case(**json.loads(arguments.case)), arguments.patience)))
        return
    rows = run(arguments)
    limits = {"memory": 20.0, "patience": 240, "threads": 2}
    changed = {name: getattr(arguments, name) for name, usual in limits.items() if getattr(arguments, name) != usual}
    about = {
        "hardware": hardware(),
        "versions": versions(),
        "fairchem": fairchem_version(),
        "threads": arguments.threads,
        "memory_GiB": arguments.memory,
        "patience_s": arguments.patience,
        "arguments": "".join(f" --{name} {value:g}" for name, value in changed.items()),
    }
    rows = everything_kept(arguments.keep) or rows
    page = text(rows, about)
    print(page)
    if not (arguments.quick or (arguments.only and arguments.keep is None)):
        atomic_write(Path("benchmarks") / "gemnet-oc.json", json.dumps(about | {"rows": rows}, indent=1) + "\n")
        atomic_write(Path("benchmarks") / "gemnet-oc.md", page)


if __name__ == "__main__":
    main()
