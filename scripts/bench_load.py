"""What zoo adds to a program's start: importing it and loading a warm, pinned engine, beside what it needs anyway.

Each measurement is a process of its own, in turns; the engine is in the cache as if it had been fetched from
huggingface.co. The sockets that were opened are counted. Writes benchmarks/load.md.

    .venv/bin/python scripts/bench_load.py runs/sevennet-0/silicon-student/model
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import zoo
from zoo.evaluate.environment import hardware, versions
from zoo.files import atomic_write
from zoo.hub.cache import HUGGING_FACE, cache_folder

BASE = "import torch, ase, ase.io, ase.build, ase.calculators.calculator"
PROGRAMS = {
    "zoo, and `zoo.load(NAME@v1)`": "import zoo; zoo.load(sys.argv[1], device='cpu')",
    "zoo alone": "import zoo",
    "the Hub client alone": "import huggingface_hub.hf_api",
}
TIMED = """
import sys, time
{base}
sockets = []
sys.addaudithook(lambda event, _: sockets.append(event) if event.startswith("socket.") else None)
before = time.perf_counter()
{program}
print(time.perf_counter() - before, len(sockets), "huggingface_hub" in sys.modules)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zoo-bench-") as temporary:
        os.environ["ZOO_CACHE"] = temporary
        os.environ.pop("ZOO_HUB", None)
        hub = Path(temporary) / "hub"
        zoo.publish(arguments.model, hub)
        engine = zoo.load(arguments.model)
        zoo.pull([engine.name], cache_folder(HUGGING_FACE), hub=hub)
        times: dict[str, list[float]] = {title: [] for title in PROGRAMS}
        for _ in range(arguments.repeats):
            for title, program in PROGRAMS.items():
                times[title].append(measured(program, f"{engine.name}@v1"))
    path = Path("benchmarks") / "load.md"
    atomic_write(path, text(engine, times, arguments))
    print(path.read_text(encoding="utf-8"))


def measured(program: str, name: str) -> float:
    """Seconds of a program in a process of its own, which must open no socket."""
    command = [sys.executable, "-c", TIMED.format(base=BASE, program=program), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, sockets, client = done.stdout.split()
    if sockets != "0" or (client == "True") != ("huggingface_hub" in program):
        sys.exit(f"{program} opened {sockets} sockets; the Hub client was imported: {client}")
    return float(seconds)


def text(engine: zoo.Engine, times: dict[str, list[float]], arguments: argparse.Namespace) -> str:
    medians = {title: statistics.median(values) for title, values in times.items()}
    rows = [f"| {title} | {medians[title]:.3f} | {max(values):.3f} |" for title, values in times.items()]
    first = next(iter(medians.values()))
    packages = versions()
    return "\n".join(
        [
            "# Time to a loaded engine",
            "",
            "Seconds that are added to importing torch and ase, each in a process of its own, "
            f"{arguments.repeats} times in turns; the files are in the page cache. {engine.name}, {hardware()['cpu']}, "
            f"torch {packages['torch']}. No socket was opened, and loading did not import the Hub client.",
            "",
            "| added | median | highest |",
            "|---|--:|--:|",
            *rows,
            "",
            f"The import of the client alone takes {medians['the Hub client alone'] / first:.1f} times as long as all "
            "that zoo adds.",
            "",
            "To repeat it:",
            "",
            "```bash",
            f".venv/bin/python scripts/bench_load.py {arguments.model}",
            "```",
            "",
        ]
    )


if __name__ == "__main__":
    main()
