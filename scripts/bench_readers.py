"""Reads a file of the shape of MPtrj's JSON as a subset does: how much memory that takes, and how fast it is.

The file is made anew, streamed, and deleted: materials of a few tasks, tasks of some ionic steps, as many atoms and
digits as MPtrj has on average. It is read in a process of its own through ``read_frames``, in turns with the bare
parser, which makes nothing of what it reads. Writes benchmarks/readers.md.

    .venv/bin/python scripts/bench_readers.py
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from zoo.data.readers import read_frames
from zoo.evaluate.environment import hardware, versions
from zoo.files import atomic_write

LIMIT_GIB = 1.0  # of memory, which reading must stay under
STEPS = 11  # frames of a material, on average, as MPtrj has 1,580,395 of 145,923
ATOMS = 31  # of a frame, on average, as MPtrj has
MPTRJ = 12_188_168_685  # bytes
BLOCK = 1 << 20
_GIB = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the file (10⁹ bytes)")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the file is made for the while; a temporary folder without")
    parser.add_argument("--only", choices=("frames", "events", "objects", "disk"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measured(arguments.only, arguments.file)))
        return
    with tempfile.TemporaryDirectory(prefix="zoo-bench-", dir=arguments.folder) as temporary:
        path = Path(temporary) / "mptrj.json"
        frames = write(path, int(arguments.gigabytes * 1e9))
        ways = ("disk", "events", "objects", "frames")
        runs = [{way: in_process(way, path) for way in ways} for _ in range(arguments.repeats)]
        size = path.stat().st_size
    if any(run["frames"]["count"] != frames for run in runs):
        sys.exit(f"{frames} frames were written, and {[run['frames']['count'] for run in runs]} read")
    table = Path("benchmarks") / "readers.md"
    atomic_write(table, text(size, frames, runs))
    print(table.read_text(encoding="utf-8"))
    if (peak := max(run["frames"]["peak"] for run in runs)) >= LIMIT_GIB * _GIB:
        sys.exit(f"reading took {peak / _GIB:.2f} GiB, {LIMIT_GIB:g} GiB or more")


def write(path: Path, size: int) -> int:
    """A file of about so many bytes, a material at a time; the number of its frames."""
    random = np.random.default_rng(1)
    frames = 0
    with path.open("w", encoding="utf-8") as file:
        file.write("{")
        number = 0
        while file.tell() < size:
            number += 1
            material = dict(trajectory(f"mp-{number}", random))
            file.write(f'{", " if number > 1 else ""}"mp-{number}": {json.dumps(material)}')
            frames += len(material)
        file.write("}")
    return frames


def trajectory(material: str, random: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    """The frames of a material by their names."""
    atoms = max(1, int(random.gamma(1.5, ATOMS / 1.5)))
    elements = [chemical_symbols[number] for number in random.integers(1, 84, atoms)]
    cell = np.eye(3) * (18.0 * atoms) ** (1 / 3) + random.normal(0, 0.3, (3, 3))
    for step in range(1 + random.poisson(STEPS - 1)):
        yield f"{material}-0-{step}", record(material, elements, cell, random)


def record(material: str, elements: list[str], cell: np.ndarray, random: np.random.Generator) -> dict[str, Any]:
    """A frame with all that MPtrj says of one."""
    atoms = len(elements)
    fractions = random.random((atoms, 3)).round(8)
    magmoms = random.normal(0, 1, atoms).round(3).tolist()
    lengths = np.linalg.norm(cell, axis=1)
    lattice = dict(zip("abc", lengths.tolist(), strict=True)) | {"alpha": 90.0, "beta": 90.0, "gamma": 90.0}
    sites = [
        {
            "species": [{"element": element, "occu": 1}],
            "abc": fraction,
            "xyz": place,
            "label": element,
            "properties": {"magmom": magmom},
        }
        for element, fraction, place, magmom in zip(
            elements, fractions.tolist(), (fractions @ cell).tolist(), magmoms, strict=True
        )
    ]
    return {
        "structure": {
            "@module": "pymatgen.core.structure",
            "@class": "Structure",
            "charge": None,
            "lattice": {"matrix": cell.tolist(), **lattice, "volume": float(np.linalg.det(cell))},
            "sites": sites,
        },
        "uncorrected_total_energy": -5.1 * atoms,
        "corrected_total_energy": -5.2 * atoms,
        "energy_per_atom": -5.2,
        "ef_per_atom": -0.4,
        "e_per_atom_relaxed": -5.2,
        "ef_per_atom_relaxed": -0.4,
        "force": random.normal(0, 0.1, (atoms, 3)).round(8).tolist(),
        "stress": random.normal(0, 3, (3, 3)).round(8).tolist(),
        "magmom": magmoms,
        "bandgap": 0.5,
        "mp_id": material,
    }


def in_process(way: str, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--only", way, "--file", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"reading as {way} failed: {done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measured(way: str, path: Path) -> dict[str, float]:
    """Seconds by the clock and of the processor, the count of what was read, the peak of memory in bytes."""
    before, cpu_before = time.perf_counter(), time.process_time()
    count = {"frames": count_frames, "events": count_events, "objects": count_objects, "disk": count_blocks}[way](path)
    seconds, cpu = time.perf_counter() - before, time.process_time() - cpu_before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": seconds, "cpu": cpu, "count": count, "peak": peak}


def count_frames(path: Path) -> int:
    return sum(1 for _ in read_frames(path, "mptrj-json"))


def count_events(path: Path) -> int:
    import ijson

    with path.open("rb") as file:
        return sum(1 for _ in ijson.parse(file, use_float=True))


def count_objects(path: Path) -> int:
    import ijson

    with path.open("rb") as file:
        return sum(len(frames) for _, frames in ijson.kvitems(file, "", use_float=True))


def count_blocks(path: Path) -> int:
    with path.open("rb", buffering=0) as file:
        return sum(1 for _ in iter(lambda: file.read(BLOCK), b""))


def text(size: int, frames: int, runs: list[dict[str, dict[str, float]]]) -> str:
    import ijson

    titles = {
        "disk": "the file alone, from the disk or its cache",
        "events": "`ijson.parse` alone, which makes events",
        "objects": "`ijson.kvitems` alone, which makes dictionaries",
        "frames": "`read_frames`, checked frames with labels",
    }
    rows, rates = [], {}
    for way, title in titles.items():
        clock, rates[way] = (
            statistics.median(size / 1e6 / run[way][time] for run in runs) for time in ("seconds", "cpu")
        )
        peak = max(run[way]["peak"] for run in runs) / _GIB
        rows.append(f"| {title} | {clock:.1f} | {rates[way]:.1f} | {peak:.2f} |")
    machine, packages = hardware(), versions()
    return "\n".join(
        [
            "# Reading MPtrj",
            "",
            f"A synthetic JSON file of MPtrj's shape, {size / 1e9:.2f} GB with {frames:,} frames; each way in a "
            f"process of its own, {len(runs)} time{'s' if len(runs) > 1 else ''} in turns. The peak of memory includes "
            f"what Python, torch and zoo take when they are imported. {machine['cpu']}, {machine['cores']} cores, "
            f"Python {packages['python']}, ijson {version('ijson')} ({ijson.backend}), load "
            f"{os.getloadavg()[0]:.1f} at the end.",
            "",
            "| | MB/s by the clock | MB a second of processor | peak, GiB |",
            "|---|--:|--:|--:|",
            *rows,
            "",
            f"By the processor's time, frames come at {rates['frames'] / rates['events']:.2f} times the rate of the "
            f"parser's events and at {rates['frames'] / rates['objects']:.2f} times that of its dictionaries; the "
            "12.2 GB of MPtrj take "
            f"{MPTRJ / 1e6 / rates['frames'] / 60:.0f} minutes of it.",
            "",
            "To repeat it:",
            "",
            "```bash",
            ".venv/bin/python scripts/bench_readers.py" + (f" --repeats {len(runs)}" if len(runs) > 1 else ""),
            "```",
            "",
        ]
    )


if __name__ == "__main__":
    main()
