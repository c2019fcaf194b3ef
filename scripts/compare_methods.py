"""Ways to learn from a teacher, compared at equal cost: variants of one recipe, over several seeds.

A plan (a YAML file, see benchmarks/methods/) names a recipe and its variants, each a few changes to it. All are trained
for equally many seconds, their steps being those seconds over the CPU time of a step on one thread, which is measured
first and in turns and hardly feels what else the machine does; or for equally many steps; or both. A variant with
``frames_for`` has as many more training structures, of the plan's extra groups, as make its labels cost the teacher
what those of another variant do; it has no Hessian products unless its own labels ask for some. Errors are against the
teacher, on the test split of the recipe, with one set of probes for all. Writes benchmarks/<plan>-methods.md, .json and
.png. Can be stopped and started again.

    .venv/bin/python scripts/compare_methods.py benchmarks/methods/ethanol.yaml
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ase import Atoms
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydantic import Field, PositiveInt, model_validator
from scipy import stats

from zoo.artifact import DTYPES, count_parameters
from zoo.calculator import ZooCalculator
from zoo.config import Config, canonical_json, digest, parse, read_yaml
from zoo.data.labels import Labels, draw_probes
from zoo.data.structures import read_split, structure_digest
from zoo.distill.batches import Batches
from zoo.distill.examples import make_examples
from zoo.distill.label import check_teacher, label_plan, label_structures
from zoo.distill.loss import Example
from zoo.distill.task import Task, needs_teacher
from zoo.distill.train import averaged, start, train, train_step
from zoo.errors import ConfigError, ZooError
from zoo.evaluate.accuracy import accuracy
from zoo.evaluate.dynamics import nve
from zoo.evaluate.environment import hardware, versions
from zoo.evaluate.speed import time_calls
from zoo.files import atomic_write
from zoo.neighbors import build_graph
from zoo.pipeline import make_structures
from zoo.recipe import FramesGroup, Recipe, Split, read_recipe
from zoo.run import Run
from zoo.students import Student
from zoo.teachers import Teacher, load_teacher

Result = dict[str, Any]
Equal = Literal["time", "steps"]

ERRORS = {
    "force_mae_meV_A": "force (meV/Å)",
    "hessian_mae_eV_A2": "Hessian·v (eV/Å²)",
    "energy_mae_meV_atom": "energy (meV/atom)",
}


class Variant(Config):
    """One way to learn: changes to sections of the recipe, merged into them key by key."""

    labels: dict[str, Any] = Field(default_factory=dict)
    loss: dict[str, Any] = Field(default_factory=dict)
    student: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    frames_for: str | None = None  # so many training structures that labels cost what that variant's do
    against: str | None = None  # what it is compared with; the plan's baseline without
    seeds: PositiveInt | None = None  # the plan's without

    @property
    def compared_with(self) -> str | None:
        """What changes are told against; None is the plan's baseline."""
        return self.against or self.frames_for


class Plan(Config):
    """What is compared."""

    recipe: str
    baseline: str
    equal: tuple[Equal, ...] = ("time",)
    seconds: PositiveInt = 120  # of training, on one thread
    steps: PositiveInt = 1000  # where steps are equal
    seeds: PositiveInt = 3
    dynamics_starts: int = Field(2, ge=0)  # test structures from which NVE dynamics starts
    dynamics_steps: PositiveInt = 2000
    notes: str = ""
    conclusions: str = ""  # what a person read in the tables
    missing: dict[str, str] = Field(default_factory=dict)  # ways that cannot be had here -> why
    extra: tuple[FramesGroup, ...] = ()  # training structures for those variants that have more of them
    variants: dict[str, Variant]

    @model_validator(mode="after")
    def _names_exist(self) -> "Plan":
        named = [
            self.baseline,
            *(v.frames_for for v in self.variants.values()),
            *(v.against for v in self.variants.values()),
        ]
        unknown = {name for name in named if name is not None} - set(self.variants)
        if unknown:
            raise ValueError(f"no variant is called {', '.join(sorted(unknown))}")
        return self


@dataclass(frozen=True)
class Bench:
    """A plan and where it is carried out."""

    plan: Plan
    recipe: Recipe
    folder: Path
    threads: int

    def measured(self, name: str, measure: Callable[[], Any], *depends: Any) -> Any:
        """What was measured under a name, now or in an earlier start with the same versions, threads and so on."""
        path = self.folder / f"{name}-{digest([versions(), self.threads, *depends])[:10]}.json"
        if not path.exists():
            atomic_write(path, canonical_json(measure()))
        return json.loads(path.read_text())


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    bench = open_bench(arguments.plan, arguments.threads)
    path = Path("benchmarks") / f"{arguments.plan.stem}-methods"
    if arguments.render:
        write(bench, json.loads(path.with_suffix(".json").read_text()), path)
        return
    for name in bench.plan.variants:
        prepare(bench, name)
    label_test(bench)
    times = bench.measured("step-times", lambda: step_times(bench), _variants(bench))
    jobs = [
        (name, equal, seed)
        for equal, (name, variant) in product(bench.plan.equal, bench.plan.variants.items())
        for seed in range(variant.seeds or bench.plan.seeds)
    ]
    jobs.sort(key=lambda job: job[2])
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, mp_context=context) as pool:
        pending = [pool.submit(measure, arguments.plan, arguments.threads, job, times[job[0]]) for job in jobs]
        results = [future.result() for future in pending]
    write(bench, collect(bench, results, times), path)


def open_bench(path: Path, threads: int) -> Bench:
    plan = read_yaml(Plan, path)
    recipe = read_recipe(plan.recipe)
    folder = Path("runs") / f"{recipe.name}-methods-{recipe.digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    return Bench(plan, recipe, folder, threads)


def _variants(bench: Bench) -> dict[str, Any]:
    return {name: variant.model_dump(mode="json") for name, variant in bench.plan.variants.items()}


def recipe_of(bench: Bench, name: str) -> Recipe:
    """The recipe of a variant. Raises ConfigError where its changes do not fit."""
    recipe = changed_recipe(bench, name)
    if bench.plan.variants[name].frames_for is None:
        return recipe
    data = recipe.model_dump(mode="json", exclude_none=True)
    data["structures"]["groups"] += extra_groups(bench, name)
    return parse(Recipe, data, f"variant {name}")


def changed_recipe(bench: Bench, name: str) -> Recipe:
    """The recipe of a variant but for the structures that it has more of."""
    variant = bench.plan.variants[name]
    data = bench.recipe.model_dump(mode="json", exclude_none=True)
    for section in ("labels", "loss", "student", "training"):
        data[section] |= getattr(variant, section)
    if variant.frames_for is not None and not variant.labels:
        data["labels"]["probes"] = "none"
    return parse(Recipe, data, f"variant {name}")


def extra_groups(bench: Bench, name: str) -> list[dict[str, Any]]:
    """As much of the plan's extra groups as makes labels cost what those of another do. Raises ConfigError."""
    other = bench.plan.variants[name].frames_for
    assert other is not None
    own = len(training_structures(bench, bench.recipe))
    wanted = (structure_cost(bench, other) / structure_cost(bench, name) - 1) * own
    there = sum(group.count * group.copies for group in bench.plan.extra)
    if not 0 < wanted <= there:
        raise ConfigError(
            f"{name!r} would need {wanted:.0f} structures more to cost what {other!r} does, the plan's extra groups "
            f"hold {there}; give the plan more of them, or {name!r} fewer products"
        )
    return [
        _part(group, wanted / there).model_dump(mode="json", exclude_none=True)
        for group in bench.plan.extra
        if round(group.count * group.copies * wanted / there) > 0
    ]


def _part(group: FramesGroup, fraction: float) -> FramesGroup:
    """So much of a group: fewer copies of each frame, where there are copies, else frames further apart."""
    structures = max(round(group.count * group.copies * fraction), 1)
    copies = math.ceil(structures / group.count)
    count = min(group.count, round(structures / copies))
    stride = group.stride * (group.count // count)
    return group.model_copy(update={"copies": copies, "count": count, "stride": stride})


def structure_cost(bench: Bench, name: str) -> float:
    """What one training structure of a variant costs the teacher, in calls for energy and forces alone."""
    cost = bench.measured("label-costs", lambda: label_costs(bench))
    products = changed_recipe(bench, name).labels.stored_probes
    if products is None:
        products = 3 * len(training_structures(bench, bench.recipe)[0])
    return 1 + products * float(cost["product_seconds"]) / float(cost["energy_and_forces_seconds"])


def training_structures(bench: Bench, recipe: Recipe) -> list[Atoms]:
    return read_split(make_structures(run_of(bench, recipe)), recipe.structures.groups, "train")


def label_costs(bench: Bench, turns: int = 20) -> dict[str, float]:
    """Median CPU seconds of the teacher for energy and forces of a training structure, and for one product more."""
    teacher = teacher_of(bench.recipe)
    potential = teacher.potential
    plain: list[float] = []
    whole: list[float] = []
    structures = training_structures(bench, bench.recipe)
    for atoms in structures[:1] + structures[:: max(len(structures) // turns, 1)]:
        graph = build_graph(atoms, potential.cutoff, dtype=potential.dtype)
        probes = draw_probes("rademacher", 1, len(atoms), torch.Generator().manual_seed(0)).to(potential.dtype)
        for times, asked in ((plain, None), (whole, probes)):
            began = time.process_time()
            potential.predict(graph, stress=True, probes=asked, side=bench.recipe.labels.side)
            times.append(time.process_time() - began)
    energy = statistics.median(plain[1:])
    return {"energy_and_forces_seconds": energy, "product_seconds": statistics.median(whole[1:]) - energy}


def run_of(bench: Bench, recipe: Recipe) -> Run:
    """The folder of the structures of a variant, which variants with the same structures share."""
    return Run.of(recipe, bench.folder / f"data-{digest(recipe.structures)[:12]}")


def teacher_of(recipe: Recipe) -> Teacher:
    return load_teacher(recipe.teacher.name, dtype=DTYPES[recipe.teacher.dtype])


def prepare(bench: Bench, name: str) -> None:
    """Structures and labels of a variant."""
    recipe = recipe_of(bench, name)
    for split in ("train", "validation"):
        labels_of(bench, recipe, split)


def label_test(bench: Bench) -> tuple[list[Atoms], Labels]:
    """The test split, with the labels of the recipe as it is."""
    return labels_of(bench, bench.recipe, "test")


def labels_of(bench: Bench, recipe: Recipe, split: Split) -> tuple[list[Atoms], Labels]:
    run = run_of(bench, recipe)
    structures = read_split(make_structures(run), recipe.structures.groups, split)
    folder = run.folder / f"labels-{digest(recipe.labels)[:12]}" / split
    if (folder / "manifest.json").exists():
        return structures, Labels.open(folder, [structure_digest(atoms) for atoms in structures])
    check_teacher(recipe, run.teacher)
    plan = label_plan(structures, run.teacher, recipe.labels, recipe.seed, recipe.teacher.dtype)
    return structures, label_structures(folder, structures, run.teacher, plan, forward_mode=recipe.labels.forward_mode)


def examples_of(bench: Bench, recipe: Recipe, split: Split) -> list[Example]:
    return make_examples(*labels_of(bench, recipe, split), recipe.student.cutoff, DTYPES[recipe.training.dtype])


def task_of(recipe: Recipe, steps: int, seed: int) -> Task:
    """What is trained: the recipe's schedule, over so many steps."""
    changes: dict[str, Any] = {"steps": steps, "epochs": None}
    changes |= {"warmup_steps": min(recipe.training.warmup_steps, steps // 10)}
    changes |= {"validate_every": max(steps // 4, 1), "checkpoint_every": max(steps // 10, 1), "log_every": 50}
    training = recipe.training.model_copy(update=changes)
    data = digest([recipe.structures.model_dump(mode="json"), recipe.labels.model_dump(mode="json"), recipe.seed])
    return Task(recipe.student, training, recipe.loss, seed, data, recipe.labels)


def step_times(bench: Bench, turns: int = 25) -> dict[str, float]:
    """Median CPU seconds of a training step of each variant, batch included, taken in turns."""
    ready = {}
    for name in bench.plan.variants:
        recipe = recipe_of(bench, name)
        task, examples = task_of(recipe, 1000, 0), examples_of(bench, recipe, "train")
        teacher = teacher_of(recipe) if needs_teacher(task) else None
        state = start(Path(os.devnull), task, examples, teacher)
        asked = teacher.potential if teacher is not None and recipe.loss.hessian_from == "teacher" else None
        ready[name] = (task, state, Batches(examples, task, asked))
    times: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(turns + 3):
        for name, (task, state, batches) in ready.items():
            began = time.process_time()
            train_step(state, batches.at(state.step), task.weights, task.training)
            if turn >= 3:
                times[name].append(time.process_time() - began)
    return {name: statistics.median(found) for name, found in times.items()}


def measure(path: Path, threads: int, job: tuple[str, Equal, int], step_time: float) -> Result:
    """One training and what is measured of its student; read from disk where it was done before."""
    torch.set_num_threads(threads)
    name, equal, seed = job
    bench = open_bench(path, threads)
    recipe = recipe_of(bench, name)
    steps = bench.plan.steps if equal == "steps" else max(round(bench.plan.seconds / step_time), 20)
    task = task_of(recipe, steps, seed)
    folder = (
        bench.folder
        / "trained"
        / f"{name.replace(' ', '-').replace('=', '')}-{task.inputs[:10]}-{_dynamics(bench)}-{seed}"
    )
    if (folder / "result.json").exists():
        found: Result = json.loads((folder / "result.json").read_text())
        return found | {"equal": equal}
    teacher = teacher_of(recipe) if needs_teacher(task) else None
    examples, validation = (examples_of(bench, recipe, split) for split in ("train", "validation"))
    student = train(folder, task, examples, validation, teacher)
    timing = json.loads((folder / "timing.json").read_text())
    result: Result = {"variant": name, "equal": equal, "seed": seed, "steps": steps, "structures": len(examples)}
    result |= {"seconds": timing["seconds"], "parameters": count_parameters(student)}
    result |= errors(bench, student) | stability(bench, student, seed)
    atomic_write(folder / "result.json", canonical_json(result))
    print(json.dumps(result, ensure_ascii=False), flush=True)
    return result


def _dynamics(bench: Bench) -> str:
    return f"{bench.plan.dynamics_starts}x{bench.plan.dynamics_steps}"


def errors(bench: Bench, student: Student) -> Result:
    """Errors against the teacher on the test split, and of forces against the data set where it has labels."""
    structures, labels = label_test(bench)
    many = list(labels)
    probes = [label.probes for label in many]
    side = bench.recipe.labels.side
    found = accuracy(student, structures, [label.prediction() for label in many], probes, side=side)
    result = {key: getattr(found, key) for key in (*ERRORS, "stress_mae_GPa")}
    if all(atoms.calc is not None for atoms in structures):
        dataset = np.concatenate([atoms.get_forces() for atoms in structures])
        result["dataset_force_mae_meV_A"] = 1000 * float(np.abs(found.forces - dataset).mean())
        result["teacher_dataset_force_mae_meV_A"] = 1000 * float(np.abs(found.labelled_forces - dataset).mean())
    return result


def stability(bench: Bench, student: Student, seed: int) -> Result:
    """How long NVE dynamics keeps together, as a part of the time asked for, and the drift of those that do."""
    structures, _ = label_test(bench)
    section = bench.recipe.evaluation
    lasted, drifts = [], []
    for number in range(bench.plan.dynamics_starts):
        run = nve(
            structures[number],
            ZooCalculator(student),
            temperature_K=section.initial_temperature,
            timestep_fs=section.dynamics_timestep,
            steps=bench.plan.dynamics_steps,
            generator=np.random.default_rng([seed, number]),
        )
        lasted.append((len(run.times_ps) - 1) / bench.plan.dynamics_steps)
        if run.drift_meV_atom_ps is not None:
            drifts.append(abs(run.drift_meV_atom_ps))
    return {
        "stable_part": statistics.mean(lasted) if lasted else None,
        "drift_meV_atom_ps": statistics.median(drifts) if drifts else None,
    }


def speeds_of(bench: Bench) -> dict[str, float]:
    """Milliseconds for energy and forces of the first test structure, of each student that differs, and the teacher."""
    structures, _ = label_test(bench)
    engines = {"teacher": ZooCalculator(teacher_of(bench.recipe).potential)}
    for name in bench.plan.variants:
        recipe = recipe_of(bench, name)
        key = json.dumps(recipe.student.model_dump(mode="json", exclude={"elements"}))
        if key not in engines:
            task, examples = task_of(recipe, 1000, 0), examples_of(bench, recipe, "train")[:8]
            teacher = teacher_of(recipe) if needs_teacher(task) else None
            engines[key] = ZooCalculator(averaged(start(Path(os.devnull), task, examples, teacher)))
    random = np.random.default_rng(0)
    found = time_calls(engines, structures[0], repeats=20, generator=random, threads=bench.threads)
    return {name: timing.median_ms for name, timing in found.items()}


def collect(bench: Bench, results: list[Result], times: dict[str, float]) -> Result:
    """All numbers of a plan that is done."""
    structures, _ = label_test(bench)
    sizes = [len(atoms) for atoms in training_structures(bench, bench.recipe)]
    return {
        "plan": bench.plan.model_dump(mode="json"),
        "recipe_sha256": bench.recipe.digest,
        "step_seconds": times,
        "ms_per_call": bench.measured("speeds", lambda: speeds_of(bench), _variants(bench)),
        "label_costs": bench.measured("label-costs", lambda: label_costs(bench)),
        "test_structures": len(structures),
        "training_atoms": statistics.mean(sizes),
        "hardware": hardware(),
        "versions": versions(),
        "results": results,
    }


def write(bench: Bench, whole: Result, path: Path) -> None:
    """The tables, the figure and the numbers."""
    page = text(bench, path.name.removesuffix("-methods"), whole)
    atomic_write(path.with_suffix(".json"), canonical_json(whole))
    atomic_write(path.with_suffix(".md"), page)
    draw(bench, whole["results"], path.with_suffix(".png"))
    print(f"\n{page}\nwritten to {path}.md, .json and .png")


def text(bench: Bench, name: str, whole: Result) -> str:
    plan, machine, costs, results = bench.plan, whole["hardware"], whole["label_costs"], whole["results"]
    lines = [
        f"# Ways to learn from a teacher: {bench.recipe.name}",
        "",
        f"Errors against the teacher on {whole['test_structures']} test structures: mean over seeds, with half the",
        f"width of the 95 % confidence interval (Student's t). Changes are against {plan.baseline}, or what is named,",
        "paired by seed.",
        "Seeds decide first weights, order and the choice of probes; labels and structures are one draw.",
        f"{machine['cpu']}, one process of {bench.threads} thread a training, torch {whole['versions']['torch']}.",
        *(["", *plan.notes.strip().splitlines()] if plan.notes else []),
        *(["", "## What follows", "", *plan.conclusions.strip().splitlines()] if plan.conclusions else []),
    ]
    for equal in plan.equal:
        seconds = f"{plan.seconds} s of processor time in training steps"
        lines += ["", f"## Equal {equal}: {seconds if equal == 'time' else f'{plan.steps} steps'}", ""]
        lines += _table(bench, [result for result in results if result["equal"] == equal], whole)
    lines += [
        "",
        f"The teacher takes {_digits(1e3 * float(costs['energy_and_forces_seconds']))} ms for energy and forces of a",
        f"training structure and {_digits(1e3 * float(costs['product_seconds']))} ms for one Hessian product more.",
        *_against_dataset(bench, results),
        *_sizes(bench, results, whole["ms_per_call"]),
    ]
    lines += [
        "",
        f"![errors]({name}-methods.png)",
        "",
        "To repeat it (`ZOO_DATA` names the folder of the data sets):",
        "",
    ]
    command = f".venv/bin/python scripts/compare_methods.py benchmarks/methods/{name}.yaml"
    return "\n".join([*lines, "```bash", command, "```", ""])


def _table(bench: Bench, results: list[Result], whole: Result) -> list[str]:
    heads = ["", "step", "steps", "frames", "labels", "seeds", *ERRORS.values(), "force, change", "Hessian, change"]
    heads += ["NVE kept", "drift"]
    lines = [f"| {' | '.join(heads)} |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    for name in bench.plan.variants:
        own = [result for result in results if result["variant"] == name]
        if not own or _of_dataset(bench, name):
            continue
        steps, frames = int(own[0]["steps"]), int(own[0]["structures"])
        cells = [
            name,
            f"{1e3 * whole['step_seconds'][name]:.0f} ms",
            str(steps),
            str(frames),
            _label_cost(bench, name, frames, whole),
        ]
        cells += [str(len(own))]
        cells += [interval(values(own, key)) if key in _comparable(bench, name) else "n/a" for key in ERRORS]
        cells += [_change(bench, results, name, key) for key in ("force_mae_meV_A", "hessian_mae_eV_A2")]
        kept, drift = values(own, "stable_part"), values(own, "drift_meV_atom_ps")
        cells += [f"{100 * statistics.mean(kept):.0f} %" if kept else "-"]
        cells += [f"{statistics.median(drift):.2g}" if drift else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {name} | n/a: {reason} |" + " |" * (len(heads) - 2) for name, reason in bench.plan.missing.items()]
    picoseconds = bench.plan.dynamics_steps * bench.recipe.evaluation.dynamics_timestep / 1000
    return [
        *lines,
        "",
        "Step: processor time of a training step. Labels: the teacher's processor time for the training set. NVE kept:",
        f"the part of the runs ({bench.plan.dynamics_starts} a seed, {picoseconds:.2g} ps each) in which nothing came",
        "apart; drift in meV/atom/ps.",
    ]


def _label_cost(bench: Bench, name: str, frames: int, whole: Result) -> str:
    """Seconds of the teacher for the training set of a variant, by what one structure costs."""
    cost = whole["label_costs"]
    products = changed_recipe(bench, name).labels.stored_probes
    many = 3 * float(whole["training_atoms"]) if products is None else products
    each = float(cost["energy_and_forces_seconds"]) + many * float(cost["product_seconds"])
    return f"{_digits(frames * each)} s"


def _of_dataset(bench: Bench, name: str) -> bool:
    """Whether forces are learned from the data set."""
    loss = changed_recipe(bench, name).loss
    return loss.force > 0 and loss.force_from == "dataset"


def _comparable(bench: Bench, name: str) -> tuple[str, ...]:
    """The errors that tell something: energies that are not learned do not."""
    return tuple(key for key in ERRORS if changed_recipe(bench, name).loss.energy > 0 or key != "energy_mae_meV_atom")


def _sizes(bench: Bench, results: list[Result], speeds: dict[str, float]) -> list[str]:
    """The time of a call of each student that differs from the others, on a test structure."""
    rows: dict[str, tuple[str, int, float]] = {}
    for name in bench.plan.variants:
        own = [r for r in results if r["variant"] == name and r["equal"] == bench.plan.equal[0]]
        key = json.dumps(changed_recipe(bench, name).student.model_dump(mode="json", exclude={"elements"}))
        if own and key in speeds:
            rows.setdefault(key, (name, own[0]["parameters"], speeds[key]))
    lines = [
        "",
        "## Size and speed",
        "",
        "| | parameters | ms a call | times the teacher's speed |",
        "|---|--:|--:|--:|",
    ]
    lines += [f"| teacher | | {speeds['teacher']:.2f} | 1 |"]
    return lines + [
        f"| student of: {name} | {parameters:,} | {ms:.2f} | {speeds['teacher'] / ms:.2g} |"
        for name, parameters, ms in rows.values()
    ]


def _against_dataset(bench: Bench, results: list[Result]) -> list[str]:
    """Students of the data set's energies and forces, with and without the teacher's Hessians: the paper's setting."""
    key = "dataset_force_mae_meV_A"
    results = [result for result in results if result["equal"] == bench.plan.equal[0]]
    measured = [result for result in results if result.get(key) is not None and _of_dataset(bench, result["variant"])]
    if not measured:
        return []
    heads = ["", "steps", "seeds", "force, data set (meV/Å)", "change", "Hessian·v, teacher (eV/Å²)"]
    lines = ["", "## Energies and forces of the data set, Hessians of the teacher", "", f"| {' | '.join(heads)} |"]
    lines += ["|---" + "|--:" * (len(heads) - 1) + "|"]
    lines += [f"| teacher | | | {_digits(float(measured[0]['teacher_' + key]))} | | |"]
    for name in dict.fromkeys(result["variant"] for result in measured):
        own = [result for result in measured if result["variant"] == name]
        change = _change(bench, measured, name, key) if bench.plan.variants[name].compared_with else ""
        cells = [name, str(own[0]["steps"]), str(len(own)), interval(values(own, key)), change]
        lines += [f"| {' | '.join([*cells, interval(values(own, 'hessian_mae_eV_A2'))])} |"]
    return lines


def _change(bench: Bench, results: list[Result], name: str, key: str) -> str:
    """The change in per cent against the baseline, paired by seed."""
    other = bench.plan.variants[name].compared_with or bench.plan.baseline
    if name == other:
        return ""
    mine, theirs = ({r["seed"]: r for r in results if r["variant"] == each} for each in (name, other))
    shared = sorted(set(mine) & set(theirs))
    changes = [100 * (float(mine[seed][key]) / float(theirs[seed][key]) - 1) for seed in shared]
    suffix = "" if other == bench.plan.baseline else f" ({other})"
    return f"{interval(changes, sign=True)} %{suffix}" if changes else "-"


def values(results: Sequence[Result], key: str) -> list[float]:
    return [float(result[key]) for result in results if result.get(key) is not None]


def interval(found: Sequence[float], *, sign: bool = False) -> str:
    """Mean and half of the 95 % confidence interval; the mean alone where there is one."""
    if not found:
        return "-"
    mean = statistics.mean(found)
    shown = f"{mean:+.0f}" if sign else _digits(mean)
    return shown if len(found) == 1 else f"{shown} ± {_digits(half_width(found))}"


def half_width(found: Sequence[float]) -> float:
    count = len(found)
    return float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(found) / math.sqrt(count)


def _digits(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def draw(bench: Bench, results: list[Result], path: Path) -> None:
    """Errors of force and Hessian by variant, with each seed as a mark, of those compared with the plan's baseline."""
    equal = bench.plan.equal[0]
    others = {variant.against for variant in bench.plan.variants.values()}
    names = [name for name, variant in bench.plan.variants.items() if variant.against is None and name not in others]
    figure = Figure(figsize=(10, 0.9 + 0.34 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{bench.recipe.name}: errors on the test split at equal {equal}", fontsize=11)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (key, label) in zip(panels, list(ERRORS.items())[:2], strict=True):
        for place, name in enumerate(names):
            found = values([r for r in results if r["variant"] == name and r["equal"] == equal], key)
            if not found:
                continue
            bar = half_width(found) if len(found) > 1 else 0.0
            color = "#555555" if name == bench.plan.baseline else "#0072B2"
            panel.errorbar(statistics.mean(found), place, xerr=bar, fmt="o", color=color, capsize=3)
            panel.plot(found, [place] * len(found), "|", color="#D55E00", markersize=8)
        panel.set(xlabel=f"error of {label}", xlim=(0, None))
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=130)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="of each training")
    parser.add_argument("--processes", type=int, default=2, help="trainings at a time")
    parser.add_argument("--render", action="store_true", help="write page and figure again from the numbers there are")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except ZooError as error:
        raise SystemExit(f"error: {error}") from error
