"""A recipe from structures to a model folder, in stages that each leave files for the next one.

A stage is done once: it is done again when the hash of its inputs, its section of the recipe or its format changed.
Files of other inputs are refused rather than overwritten, for labels may have cost days; ``replace`` says otherwise.
"""

from pathlib import Path
from typing import Literal

import torch
from ase import Atoms

from zoo.artifact import DTYPES
from zoo.calculator import ZooCalculator
from zoo.config import digest, read_json, read_yaml
from zoo.data.labels import Labels
from zoo.data.structures import (
    perfect_crystal,
    rattled,
    read_split,
    structure_digest,
    trajectory,
    write_group,
    write_manifest,
)
from zoo.distill.label import label_plan, label_structures
from zoo.distill.loss import Example
from zoo.distill.train import Task, make_examples, read_weights, train
from zoo.errors import LabelError
from zoo.evaluate.compare import Contest, compare, require_packages
from zoo.evaluate.report import Report
from zoo.files import atomic_write, sha256_file
from zoo.hub.catalogue import entries
from zoo.licences import Source, check_terms
from zoo.package import package
from zoo.recipe import Lock, Recipe, Split, to_yaml
from zoo.run import STAGES, Run, Stage
from zoo.students import Student, build_student
from zoo.version import __version__

# The parts of a recipe that a stage depends on beside those of the stages before it.
_SECTIONS: dict[Stage, tuple[str, ...]] = {
    "structures": ("structures", "seed", "teacher"),
    "labels": ("labels",),
    "train": ("student", "training", "loss"),
    "twin": ("student", "training", "loss"),
    "evaluation": ("evaluation",),
    "model": ("name", "purpose", "subset", "licence"),
}
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def make_structures(run: Run) -> Path:
    """``structures/``: a file a group, each written whole; a trajectory that was cut off starts again."""
    recipe, folder = run.recipe, run.folder / "structures"
    section = recipe.structures
    moving = [group for group in section.groups if group.kind == "dynamics"]
    if moving and run.state("structures") == "to do":
        _ = run.teacher  # fails here, before anything is written, where it is not installed
    if not run.begin("structures", [section.model_dump(), recipe.seed, recipe.teacher.model_dump()]):
        return folder
    for group in section.groups:
        if (folder / f"{group.name}.extxyz").exists():
            continue
        if group.kind == "rattled":
            frames = rattled(section.crystal, group, recipe.seed)
        else:
            frames = trajectory(section.crystal, group, recipe.seed, ZooCalculator(run.teacher.potential))
        write_group(folder, group, frames)
    write_manifest(folder, section.groups)
    _hold_to_lock(run, "structures_sha256", sha256_file(folder / "manifest.json"))
    run.end("structures")
    return folder


def make_labels(run: Run) -> Path:
    """``labels/train``, ``labels/validation``, ``labels/test``: what the teacher says."""
    recipe, folder = run.recipe, run.folder / "labels"
    teacher = Source("teacher", recipe.teacher.name, entries()[recipe.teacher.name].licence_weights)
    check_terms(recipe.name, recipe.licence, [teacher])
    structures = make_structures(run)
    source = sha256_file(structures / "manifest.json")
    if not run.begin("labels", [source, recipe.labels.model_dump(), recipe.teacher.model_dump(), recipe.seed]):
        return folder
    for split in SPLITS:
        frames = read_split(structures, recipe.structures.groups, split)
        plan = label_plan(frames, run.teacher, recipe.labels, recipe.seed, recipe.teacher.dtype)
        label_structures(folder / split, frames, run.teacher, plan)
    _hold_to_lock(run, "labels_sha256", labels_digest(folder))
    run.end("labels")
    return folder


def train_student(run: Run) -> Student:
    """``train/``: the student."""
    return _train(run, "train")


def train_twin(run: Run) -> Student:
    """``twin/``: the same student from the same labels for the same number of steps, without Hessians."""
    return _train(run, "twin")


def _train(run: Run, stage: Literal["train", "twin"]) -> Student:
    recipe, folder = run.recipe, run.folder / stage
    data = labels_digest(make_labels(run))
    weights = recipe.loss if stage == "train" else recipe.loss.model_copy(update={"hessian": 0.0})
    task = Task(recipe.student, recipe.training, weights, recipe.seed, data)
    if not run.begin(stage, task.inputs):
        return read_weights(folder, build_student(recipe.student).to(DTYPES[recipe.training.dtype]))
    examples, validation = (_examples(run, split) for split in ("train", "validation"))
    student = train(folder, task, examples, validation)
    run.end(stage)
    return student


def evaluate(run: Run) -> Report:
    """``evaluation/report.json`` and its figures: student, twin and teacher compared."""
    require_packages()
    recipe, folder = run.recipe, run.folder / "evaluation"
    student, twin = train_student(run), train_twin(run)
    weights = [sha256_file(run.folder / stage / "model.safetensors") for stage in ("train", "twin")]
    if not run.begin("evaluation", [weights, recipe.evaluation.model_dump(), labels_digest(run.folder / "labels")]):
        return read_json(Report, folder / "report.json")
    structures, labels = read_labels(run, "test")
    contest = Contest(recipe, run.teacher.potential, student, twin, structures, labels, run.folder)
    report = compare(contest, folder)
    run.end("evaluation")
    return report


def distill(run: Run) -> Path:
    """``model/``: the model folder, ready to be published. Runs every stage that is not done."""
    report, folder = evaluate(run), run.folder / "model"
    weights = sha256_file(run.folder / "train" / "model.safetensors")
    if not run.begin("model", [weights, report.model_dump(mode="json"), run.recipe.digest]):
        return folder
    locked = run.recipe.model_copy(update={"lock": _lock(run)})
    samples = {split: read_labels(run, split) for split in SPLITS}
    package(folder, locked, report, train_student(run), run.teacher, samples, run.folder)
    atomic_write(run.folder / "recipe.yaml", to_yaml(locked))
    run.end("model")
    return folder


def read_labels(run: Run, split: Split) -> tuple[list[Atoms], Labels]:
    """The structures of a split and their labels."""
    structures = read_split(run.folder / "structures", run.recipe.structures.groups, split)
    return structures, Labels.open(run.folder / "labels" / split, [structure_digest(atoms) for atoms in structures])


def labels_digest(folder: Path) -> str:
    """Hex SHA-256 over the labels of all splits."""
    return digest([sha256_file(folder / split / "manifest.json") for split in SPLITS])


def _examples(run: Run, split: Split) -> list[Example]:
    structures, labels = read_labels(run, split)
    return make_examples(structures, labels, run.recipe.student.cutoff, DTYPES[run.recipe.training.dtype])


def _lock(run: Run) -> Lock:
    return Lock(
        teacher_weights_sha256=run.teacher.weights_sha256,
        teacher_package=run.teacher.package,
        structures_sha256=sha256_file(run.folder / "structures" / "manifest.json"),
        labels_sha256=labels_digest(run.folder / "labels"),
        zoo=__version__,
        torch=torch.__version__,
    )


def _hold_to_lock(run: Run, key: str, found: str) -> None:
    """Raises LabelError where a locked recipe gave something else than it is locked to."""
    lock = run.recipe.lock
    if lock is not None and getattr(lock, key) != found:
        raise LabelError(
            f"{key} is {found[:12]}…, the recipe is locked to {getattr(lock, key)[:12]}… (zoo {lock.zoo}, torch "
            f"{lock.torch}; dynamics differ between machines); remove the lock from the recipe to go on all the same"
        )


def outline(run: Run) -> str:
    """What a run would do, in a few lines: counts, and which stages are done. Touches nothing."""
    recipe = run.recipe
    lines = [f"{recipe.name}: {recipe.purpose}", f"teacher {recipe.teacher.name}, run folder {run.folder}", ""]
    for split in SPLITS:
        groups = [group for group in recipe.structures.groups if group.split == split]
        frames = sum(group.count for group in groups)
        sizes = [len(perfect_crystal(recipe.structures.crystal, group.supercell, group.cell)) for group in groups]
        atoms = sum(group.count * size for group, size in zip(groups, sizes, strict=True))
        lines.append(f"{split:<11} {frames:>6} structures in {len(groups)} groups, {atoms} atoms")
    products = recipe.labels.probes_per_structure * sum(group.count for group in recipe.structures.groups)
    moving = [group for group in recipe.structures.groups if group.kind == "dynamics"]
    moves = sum(group.settle + group.count * group.interval for group in moving)
    training = recipe.training
    lines += [
        f"labels      {products:>6} Hessian products ({recipe.labels.probes}), {moves} steps of teacher dynamics",
        f"training    {training.steps:>6} steps of {training.batch_size} structures, student and twin",
        "",
        *_standing(run),
    ]
    return "\n".join(lines)


def _standing(run: Run) -> list[str]:
    """A line a stage: whether it is done, and whether what is there was made from this recipe."""
    meaning = {"to do": "to do", "begun": "begun, will go on", "done": "done"}
    other = "made from another recipe: " + (
        "will be deleted and made anew" if run.replace else "refused, see --replace"
    )
    before = run.folder / "recipe.yaml"
    earlier = read_yaml(Recipe, before) if before.exists() else run.recipe
    lines, differs = [], False
    for stage in STAGES:
        here, there = (recipe.model_dump(include=set(_SECTIONS[stage])) for recipe in (run.recipe, earlier))
        differs = differs or here != there
        state = run.state(stage)
        lines.append(f"{stage:<11} {other if differs and state != 'to do' else meaning[state]}")
    return lines
