"""What Hessians pay: student against undistilled twin, by number of training structures, over several seeds.

Each size and seed trains three times from the same labels: the student; the twin for as many steps; the twin for as
long, its number of steps being the student's times the ratio of their step times, which is measured first, in turns.
Writes benchmarks/<name>.md, .json and .png. Can be stopped and started again.

    .venv/bin/python scripts/learning_curve.py sevennet-0/silicon-student --steps 1000
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from zoo.config import canonical_json
from zoo.distill.batches import Batches
from zoo.distill.checkpoint import TrainingState
from zoo.distill.examples import make_examples
from zoo.distill.loss import Example
from zoo.distill.task import Task
from zoo.distill.train import start, train, train_step
from zoo.evaluate.accuracy import accuracy
from zoo.evaluate.compare import phonons_of
from zoo.evaluate.environment import hardware, versions
from zoo.files import atomic_write
from zoo.phonons import Phonons, phonon_mae
from zoo.pipeline import labels_digest, make_labels, read_labels
from zoo.recipe import Recipe, read_recipe
from zoo.run import Run
from zoo.students import Student

Result = dict[str, Any]

WAYS = ("student", "twin, equal steps", "twin, equal time")
ERRORS = {
    "force_mae_meV_A": "force error (meV/Å)",
    "hessian_mae_eV_A2": "Hessian·v error (eV/Å²)",
    "phonon_mae_THz": "phonon error (THz)",
    "energy_mae_meV_atom": "energy error (meV/atom)",
}


@dataclass(frozen=True)
class Bench:
    """What all trainings share."""

    run: Run
    folder: Path
    steps: int
    ratio: float  # time of a step with Hessians over one without
    examples: list[Example]
    validation: list[Example]
    reference: Phonons

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    run = Run.of(read_recipe(arguments.recipe))
    make_labels(run)
    folder = run.folder.parent / f"{run.folder.name}-learning-curve-{run.recipe.digest[:12]}-{arguments.steps}"
    bench = prepare(run, folder, arguments.steps)
    print(f"a step with Hessians takes {bench.ratio:.2f} times as long as one without", flush=True)
    results = [
        measure(bench, way, size, seed) for seed in range(arguments.seeds) for size in arguments.sizes for way in WAYS
    ]
    write(bench, results, Path("benchmarks") / f"{run.recipe.subset}-learning-curve")


def prepare(run: Run, folder: Path, steps: int) -> Bench:
    """Labels in memory, the teacher's phonons, and the price of a Hessian, which is measured once for all starts."""
    splits = {
        split: make_examples(*read_labels(run, split), run.recipe.student.cutoff, torch.float32)
        for split in ("train", "validation")
    }
    price = folder / "step-time-ratio.json"
    if not price.exists():
        atomic_write(price, canonical_json(step_time_ratio(run.recipe, splits["train"])))
    return Bench(
        run=run,
        folder=folder,
        steps=steps,
        ratio=json.loads(price.read_text()),
        examples=splits["train"],
        validation=splits["validation"],
        reference=phonons_of(run.recipe, run.teacher.potential),
    )


def step_time_ratio(recipe: Recipe, examples: list[Example], turns: int = 30) -> float:
    """Median time of a whole training step with Hessians over that of one without, taken in turns."""
    steps = recipe.training.steps_of(len(examples))
    with tempfile.TemporaryDirectory() as scratch:
        states = {way: start(Path(scratch), task_of(recipe, way, steps, 0, ""), examples) for way in WAYS[:2]}
    times: dict[str, list[float]] = {way: [] for way in states}
    for turn in range(turns + 3):
        for way, state in states.items():
            taken = _step_time(state, task_of(recipe, way, steps, 0, ""), examples)
            if turn >= 3:
                times[way].append(taken)
    student, twin = (statistics.median(found) for found in times.values())
    return round(student / twin, 2)


def _step_time(state: TrainingState, task: Task, examples: list[Example]) -> float:
    batches = Batches(examples, task)
    began = time.perf_counter()
    train_step(state, batches.at(state.step), task.weights, task.training)
    return time.perf_counter() - began


def task_of(recipe: Recipe, way: str, steps: int, seed: int, data: str) -> Task:
    """What is trained; the twins are the student without Hessians."""
    weights = recipe.loss if way == "student" else recipe.loss.undistilled()
    training = recipe.training.model_copy(update={"steps": steps, "epochs": None})
    return Task(recipe.student, training, weights, seed, data, recipe.labels)


def measure(bench: Bench, way: str, size: int, seed: int) -> Result:
    """One training and its errors on the test split; read from disk where it was done before."""
    steps = round(bench.steps * bench.ratio) if way == "twin, equal time" else bench.steps
    place = bench.folder / f"{way.replace(', ', '-').replace(' ', '-')}-{size}-{seed}"
    if (place / "result.json").exists():
        found: Result = json.loads((place / "result.json").read_text())
        return found
    order = np.random.default_rng([seed, size]).permutation(len(bench.examples))
    chosen = [bench.examples[int(index)] for index in order[:size]]
    task = task_of(bench.recipe, way, steps, seed, f"{labels_digest(bench.run.folder / 'labels')} {size}")
    student = train(place, task, chosen, bench.validation)
    seconds = json.loads((place / "timing.json").read_text())["seconds"]
    result: Result = {"way": way, "size": size, "seed": seed, "steps": steps, "seconds": seconds}
    result |= errors(bench, student)
    atomic_write(place / "result.json", canonical_json(result))
    print(json.dumps(result, ensure_ascii=False), flush=True)
    return result


def errors(bench: Bench, student: Student) -> dict[str, float | None]:
    """Errors against the teacher on the test split, and of the phonons."""
    structures, labels = read_labels(bench.run, "test")
    many = list(labels)
    found = accuracy(student, structures, [label.prediction() for label in many], [label.probes for label in many])
    return {
        "energy_mae_meV_atom": found.energy_mae_meV_atom,
        "force_mae_meV_A": found.force_mae_meV_A,
        "stress_mae_GPa": found.stress_mae_GPa,
        "hessian_mae_eV_A2": found.hessian_mae_eV_A2,
        "phonon_mae_THz": phonon_mae(bench.reference, phonons_of(bench.recipe, student)),
    }


def write(bench: Bench, results: list[Result], path: Path) -> None:
    """The table, the figure and the numbers."""
    whole = {
        "recipe": bench.recipe.name,
        "recipe_sha256": bench.recipe.digest,
        "steps": bench.steps,
        "step_time_ratio": bench.ratio,
        "hardware": hardware(),
        "versions": versions(),
        "results": results,
    }
    atomic_write(path.with_suffix(".json"), canonical_json(whole))
    atomic_write(path.with_suffix(".md"), text(bench, results))
    draw(results, path.with_suffix(".png"), bench.recipe.name)
    print(f"\n{text(bench, results)}\nwritten to {path}.md, .json and .png")


def text(bench: Bench, results: list[Result]) -> str:
    sizes = sorted({int(str(result["size"])) for result in results})
    seeds = len({result["seed"] for result in results})
    machine = hardware()
    lines = [
        f"# What Hessians pay: {bench.recipe.name}",
        "",
        f"Mean and standard deviation over {seeds} seeds (training subset, order and first weights) of errors against",
        f"the teacher on the test split. {bench.steps} steps; a step with Hessians takes {bench.ratio:.2f} times",
        f"as long as one without, so at equal time the twin makes {round(bench.steps * bench.ratio)}.",
        f"Seconds of training, median: {', '.join(f'{way} {middle(results, way):.0f}' for way in WAYS)}.",
        f"{machine['cpu']}, {machine['threads']} threads, torch {versions()['torch']}.",
    ]
    for key, label in ERRORS.items():
        lines += [
            "",
            f"| {label}, training structures | {' | '.join(map(str, sizes))} |",
            "|---" * (len(sizes) + 1) + "|",
        ]
        for way in WAYS:
            cells = [spread(values(results, way, size, key)) for size in sizes]
            lines.append(f"| {way} | {' | '.join(cells)} |")
    name = f"{bench.recipe.subset}-learning-curve"
    lines += ["", f"![learning curve]({name}.png)", "", "To repeat it:", "", "```bash"]
    lines += [f".venv/bin/python scripts/learning_curve.py {bench.recipe.name} --steps {bench.steps}", "```", ""]
    return "\n".join(lines)


def values(results: list[Result], way: str, size: int, key: str) -> list[float]:
    return [float(str(result[key])) for result in results if result["way"] == way and result["size"] == size]


def middle(results: list[Result], way: str) -> float:
    return statistics.median(float(result["seconds"]) for result in results if result["way"] == way)


def spread(found: list[float]) -> str:
    deviation = statistics.stdev(found) if len(found) > 1 else 0.0
    return f"{statistics.mean(found):.3g} ± {deviation:.2g}"


def draw(results: list[Result], path: Path, name: str) -> None:
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{name}: errors on the test split by training structures", fontsize=11)
    sizes = sorted({int(str(result["size"])) for result in results})
    handles = []
    for panel, (key, label) in zip(figure.subplots(1, 3), list(ERRORS.items())[:3], strict=True):
        for way, color, line in zip(WAYS, ("#0072B2", "#D55E00", "#E69F00"), ("-", "--", ":"), strict=True):
            many = [values(results, way, size, key) for size in sizes]
            middle = [statistics.mean(found) for found in many]
            bars = [statistics.stdev(found) if len(found) > 1 else 0.0 for found in many]
            drawn = panel.errorbar(sizes, middle, bars, color=color, linestyle=line, marker="o", capsize=3)
            handles.append(drawn)
        panel.set(xlabel="training structures", ylabel=label, xscale="log", ylim=(0, None))
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.minorticks_off()
    figure.legend(handles[: len(WAYS)], WAYS, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
