"""The loss curve of several processes beside that of one, with the same global batch. Writes benchmarks/two-ranks.md.

Trains a recipe on closed-form silicon in float64, once with one process and once with as many as are asked for, started
by torchrun over gloo on this machine, and compares the records of both.

    .venv/bin/python scripts/compare_ranks.py
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from zoo.evaluate.environment import hardware, versions
from zoo.files import atomic_write
from zoo.recipe import Recipe, read_recipe, to_yaml

TERMS = ("energy", "force", "stress", "hessian", "atomic_energy")
GROUPS = "batches of 6 cells of 8 and 16 atoms"


def main() -> None:
    arguments = _arguments()
    recipe = small_recipe(arguments.steps)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "recipe.yaml"
        path.write_text(to_yaml(recipe))
        curves = {count: curve(path, Path(scratch) / str(count), count) for count in (1, arguments.ranks)}
    page = text(curves, arguments.ranks, arguments.steps)
    atomic_write(Path("benchmarks") / "two-ranks.md", page)
    print(page)


def small_recipe(steps: int) -> Recipe:
    """Silicon by Stillinger and Weber, cells of two sizes, with five terms in the loss."""
    recipe = read_recipe("sevennet-0/silicon-student").model_dump(mode="json", exclude_none=True)
    cells = {"kind": "rattled", "displacement": [0.02, 0.1], "strain": 0.03, "shear": 0.02}
    groups = [("small", "train", [1, 1, 1], 10), ("large", "train", [2, 1, 1], 8)]
    groups += [("held", "validation", [1, 2, 1], 3), ("tested", "test", [1, 1, 2], 3)]
    recipe |= {
        "name": "stillinger-weber/two-ranks",
        "teacher": {"name": "stillinger-weber/teacher", "dtype": "float64"},
        "structures": {
            "crystal": {"formula": "Si", "prototype": "diamond", "lattice_constant": 5.431},
            "groups": [
                cells | {"name": name, "split": split, "supercell": size, "count": count}
                for name, split, size, count in groups
            ],
        },
        "labels": {"probes_per_structure": 2, "extras": ["atomic_energies"]},
        "student": recipe["student"] | {"channels": 16},
        "loss": {"energy": 5, "force": 100, "stress": 500, "hessian": 20, "atomic_energy": 5},
        "training": {"steps": steps, "batch_size": 6, "warmup_steps": 10, "log_every": 10, "dtype": "float64"},
    }
    return Recipe.model_validate_json(json.dumps(recipe))


def curve(recipe: Path, folder: Path, ranks: int) -> list[dict[str, float]]:
    """The records of training by so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "--", "zoo", "train", str(recipe), "--run", str(folder)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    lines = (folder / "train" / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["split"] == "train"]


def text(curves: dict[int, list[dict[str, float]]], ranks: int, steps: int) -> str:
    one, many = curves[1], curves[ranks]
    largest = {
        term: max(abs(a[term] - b[term]) / abs(a[term]) for a, b in zip(one, many, strict=True))
        for term in (*TERMS, "loss", "gradient_norm")
    }
    lines = [
        "# One process and several",
        "",
        f"Training on closed-form silicon in float64, {GROUPS}; one process, and {ranks} over gloo",
        f"with the same global batch. {steps} steps, a record every ten. {hardware()['cpu']}, one thread a process,",
        f"torch {versions()['torch']}.",
        "",
        f"| step | loss, 1 process | loss, {ranks} processes | relative difference |",
        "|--:|--:|--:|--:|",
    ]
    for a, b in zip(one, many, strict=True):
        difference = abs(a["loss"] - b["loss"]) / a["loss"]
        lines.append(f"| {a['step']} | {a['loss']:.12f} | {b['loss']:.12f} | {difference:.1e} |")
    lines += ["", "Largest relative difference in any record:", "", "| | |", "|---|--:|"]
    lines += [f"| {term} | {value:.1e} |" for term, value in largest.items()]
    lines += ["", "To repeat it:", "", "```bash", ".venv/bin/python scripts/compare_ranks.py", "```", ""]
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    return parser.parse_args()


if __name__ == "__main__":
    main()
