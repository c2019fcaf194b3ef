"""Time of energy and forces of a student, of its teacher, and of the teacher's own ASE calculator, in one run.

All go through ASE with the neighbour list, in turns, on silicon of several sizes. Writes benchmarks/<subset>-speed.md.

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

SIZES = (1, 2, 3, 4)  # conventional cells along each axis


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder of a student of sevennet-0/teacher")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=12)
    arguments = parser.parse_args()
    student = zoo.load(arguments.model)
    calculators = {
        "student": student.calculator(),
        "teacher": zoo.load("sevennet-0/teacher").calculator(),
        "SevenNet's own": sevennet_calculator(),
    }
    rows = []
    for size in SIZES:
        atoms = bulk("Si", "diamond", a=5.46, cubic=True).repeat(size)
        random = np.random.default_rng(size)
        times = time_calls(calculators, atoms, repeats=arguments.repeats, generator=random, threads=arguments.threads)
        rows.append(row(len(atoms), times))
        print(rows[-1], flush=True)
    path = Path("benchmarks") / "silicon-speed.md"
    atomic_write(path, text(student, rows, arguments))
    print(f"written to {path}")


def sevennet_calculator() -> Calculator:
    """The calculator that the package sevenn ships."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sevenn.calculator import SevenNetCalculator  # lazy: an optional package

        return SevenNetCalculator("7net-0", device="cpu")


def row(atoms: int, times: dict[str, Timing]) -> str:
    student, teacher, own = (times[name].median_ms for name in ("student", "teacher", "SevenNet's own"))
    best = min(teacher, own)
    return f"| {atoms} | {student:.2f} | {teacher:.0f} | {own:.0f} | {best / student:.1f} |"


def text(student: zoo.Engine, rows: list[str], arguments: argparse.Namespace) -> str:
    machine, found = hardware(), versions()
    lines = [
        f"# Speed: {student.name}",
        "",
        "Energy and forces through ASE, neighbour list included, eager, float32, milliseconds, median of "
        f"{arguments.repeats} calls.",
        f"{machine['cpu']}, {arguments.threads} threads; torch {found['torch']}, sevenn {found['sevenn']}.",
        "The ratio is to the faster of the two ways to ask the teacher.",
        "",
        "| atoms | student | teacher, in zoo | teacher, SevenNet's own calculator | ratio |",
        "|--:|--:|--:|--:|--:|",
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
