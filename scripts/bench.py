"""Time of energy and forces of a student, compiled and by PyTorch, and of SevenNet, in one run.

All go through ASE, in turns, on silicon of several sizes. Writes benchmarks/silicon-speed.md.

    .venv/bin/python scripts/bench.py runs/sevennet-0/silicon-student/model
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.calculators.calculator import Calculator

import zoo
from zoo.evaluate.environment import hardware, versions
from zoo.evaluate.speed import Timing, time_calls
from zoo.files import atomic_write

SIZES = (1, 2, 3)  # conventional cells along each axis; with 4 SevenNet takes many minutes
OWN = {"SevenNet-0": "7net-0", "SevenNet-l3i5": "7net-l3i5"}  # as the package sevenn calls them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder of a student of silicon")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="cells along each axis")
    arguments = parser.parse_args()
    student = zoo.load(arguments.model)
    if not student.compiled:
        raise SystemExit("the student has no compiled code here; install a C++ compiler")
    calculators = {
        "compiled": student.calculator(),
        "PyTorch": zoo.load(arguments.model, compile=False).calculator(),
        "teacher": zoo.load("sevennet-0/teacher").calculator(),
        **{name: sevennet_calculator(model) for name, model in OWN.items()},
    }
    rows = []
    for size in arguments.sizes:
        atoms = bulk("Si", "diamond", a=5.46, cubic=True).repeat(size)
        random = np.random.default_rng(size)
        times = time_calls(calculators, atoms, repeats=arguments.repeats, generator=random, threads=arguments.threads)
        rows.append(row(len(atoms), times))
        print(rows[-1], flush=True)
    path = Path("benchmarks") / "silicon-speed.md"
    atomic_write(path, text(student, rows, arguments))
    print(f"written to {path}")


def sevennet_calculator(model: str) -> Calculator:
    """The calculator that the package sevenn ships."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sevenn.calculator import SevenNetCalculator  # lazy: an optional package

        return SevenNetCalculator(model, device="cpu")


def row(atoms: int, times: dict[str, Timing]) -> str:
    ours, plain, *others = (times[name].median_ms for name in ("compiled", "PyTorch", "teacher", *OWN))
    low, high = times["compiled"].low_ms, times["compiled"].high_ms
    cells = [f"{ours:.2f} ({low:.2f} to {high:.2f})", f"{plain:.2f}", *(f"{other:.0f}" for other in others)]
    ratios = [plain, min(others[:2]), others[2]]
    return f"| {atoms} | {' | '.join(cells)} | {' | '.join(f'{ratio / ours:.1f}' for ratio in ratios)} |"


def text(student: zoo.Engine, rows: list[str], arguments: argparse.Namespace) -> str:
    machine, found = hardware(), versions()
    lines = [
        f"# Speed: {student.name}",
        "",
        f"Milliseconds of energy and forces through ASE, float32, median of {arguments.repeats} calls, of the compiled "
        "engine with its quartiles.",
        "Atoms move by 0.01 Å between calls; zoo keeps neighbours in a skin meanwhile, SevenNet's own seek them.",
        f"{machine['cpu']}, {arguments.threads} threads; torch {found['torch']}, sevenn {found['sevenn']}.",
        "The last three columns are ratios to the compiled engine: of PyTorch with the same weights, the faster way "
        "to ask SevenNet-0, and of SevenNet-l3i5.",
        "",
        "| atoms | compiled | PyTorch | SevenNet-0 in zoo | SevenNet-0's own calculator | SevenNet-l3i5's own | "
        "PyTorch | SevenNet-0 | SevenNet-l3i5 |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        *rows,
        "",
        "To repeat it:",
        "",
        "```bash",
        f".venv/bin/python scripts/bench.py {arguments.model}",
        "```",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
