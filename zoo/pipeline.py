"""A recipe from structures to a model folder, in stages that each leave files for the next one.

A stage is done once: it is done again when the hash of its inputs, its section of the recipe or its format changed.
Files of other inputs are refused rather than overwritten, for labels may have cost days; ``replace`` says otherwise.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from ase import Atoms

from zoo.artifact import DTYPES
from zoo.calculator import ZooCalculator
from zoo.config import digest, read_json, read_yaml
from zoo.data.labels import Labels
from zoo.data.structures import (
    check_elements,
    check_splits,
    find_data,
    frames,
    perfect_crystal,
    rattled,
    read_split,
    structure_digest,
    trajectory,
    write_group,
    write_manifest,
)
from zoo.distill.examples import make_examples
from zoo.distill.label import check_teacher, label_plan, label_structures
from zoo.distill.loss import Example
from zoo.distill.rounds import Exploration, Explored, Finder, Found, is_whole, read_found, train_in_rounds
from zoo.distill.task import Task, needs_teacher
from zoo.distill.train import read_weights, train
from zoo.errors import LabelError, ZooError
from zoo.evaluate.compare import Contest, compare, require_packages
from zoo.evaluate.report import Report
from zoo.files import atomic_write, sha256_file
from zoo.hub.catalogue import entries
from zoo.licences import Source, check_terms
from zoo.package import package
from zoo.recipe import Group, Lock, Recipe, Split, to_yaml
from zoo.run import STAGES, Run, Stage
from zoo.students import Student, build_student
from zoo.version import __version__

# The parts of a recipe that a stage depends on beside those of the stages before it.
_SECTIONS: dict[Stage, tuple[str, ...]] = {
    "structures": ("structures", "seed", "teacher"),
    "labels": ("labels",),
    "train": ("student", "training", "loss", "exploration"),
    "twin": ("student", "training", "loss", "exploration"),
    "evaluation": ("evaluation",),
    "model": ("name", "purpose", "subset", "licence"),
}
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def make_structures(run: Run) -> Path:
    """``structures/``: a file a group, each written whole; a trajectory that was cut off starts again."""
    recipe, folder = run.recipe, run.folder / "structures"
    section = recipe.structures
    if run.state("structures") == "to do":
        _require_sources(run)
    if not run.begin("structures", [section.model_dump(), recipe.seed, recipe.teacher.model_dump()]):
        return folder
    for group in section.groups:
        if not (folder / f"{group.name}.extxyz").exists():
            structures = _structures_of(run, group)
            check_elements(group, structures, recipe.student.elements)
            write_group(folder, group, structures)
    write_manifest(folder, section.groups)
    check_splits(folder, section.groups)
    _hold_to_lock(run, "structures_sha256", sha256_file(folder / "manifest.json"))
    run.end("structures")
    return folder


def _require_sources(run: Run) -> None:
    """Fails before anything is written, where a file is missing or a teacher that has to move is not installed."""
    for group in run.recipe.structures.groups:
        if group.kind == "frames":
            find_data(group)
        elif group.kind == "dynamics":
            _ = run.teacher


def _structures_of(run: Run, group: Group) -> list[Atoms]:
    crystal, seed = run.recipe.structures.crystal, run.recipe.seed
    if group.kind == "frames":
        return frames(group, seed)
    assert crystal is not None  # the schema sees to it
    if group.kind == "rattled":
        return rattled(crystal, group, seed)
    return trajectory(crystal, group, seed, ZooCalculator(run.teacher.potential))


def make_labels(run: Run) -> Path:
    """``labels/train``, ``labels/validation``, ``labels/test``: what the teacher says."""
    recipe, folder = run.recipe, run.folder / "labels"
    teacher = Source("teacher", recipe.teacher.name, entries()[recipe.teacher.name].licence_weights)
    data = [Source("data", one.name, one.licence) for one in recipe.structures.data]
    check_terms(recipe.name, recipe.licence, [teacher, *data])
    structures = make_structures(run)
    source = sha256_file(structures / "manifest.json")
    if not run.begin("labels", [source, recipe.labels.model_dump(), recipe.teacher.model_dump(), recipe.seed]):
        return folder
    check_teacher(recipe, run.teacher)
    for split in SPLITS:
        frames = read_split(structures, recipe.structures.groups, split)
        plan = label_plan(frames, run.teacher, recipe.labels, recipe.seed, recipe.teacher.dtype)
        label_structures(
            folder / split,
            frames,
            run.teacher,
            plan,
            forward_mode=recipe.labels.forward_mode,
            workers=run.workers,
        )
    if recipe.exploration is None:  # else the lock is of all labels, which are complete after the last round
        _hold_to_lock(run, "labels_sha256", labels_digest(folder))
    run.end("labels")
    return folder


def train_student(run: Run) -> Student:
    """``train/``: the student."""
    return _train(run, "train")


def train_twin(run: Run) -> Student:
    """``twin/``: the same student for the same number of steps, from energies, forces and stresses alone."""
    return _train(run, "twin")


def _train(run: Run, stage: Literal["train", "twin"]) -> Student:
    recipe, folder = run.recipe, run.folder / stage
    data = labels_digest(make_labels(run))
    config, weights = recipe.student, recipe.loss
    if stage == "twin":
        config, weights = config.model_copy(update={"teacher_channels": 0}), weights.undistilled()
    task = Task(config, recipe.training, weights, recipe.seed, data, recipe.labels)
    find = _finder(run, stage)
    if not run.begin(stage, task.inputs if find is None else [task.inputs, *find.inputs]):
        return read_weights(folder, build_student(config).to(DTYPES[recipe.training.dtype]))
    examples, validation = (_examples(run, split) for split in ("train", "validation"))
    teacher = run.teacher if needs_teacher(task) else None
    if find is None:
        student = train(folder, task, examples, validation, teacher, run.workers)
    else:
        student = train_in_rounds(folder, task, examples, validation, find, teacher, run.workers)
        _hold_to_lock(run, "labels_sha256", all_labels_digest(run))
    run.end(stage)
    return student


def _finder(run: Run, stage: Literal["train", "twin"]) -> Finder | None:
    """What finds structures between rounds: the student does; its twin is given those that the student found."""
    section, folder = run.recipe.exploration, run.folder / "exploration"
    if section is None:
        return None
    if stage == "twin":
        train_student(run)
        return Explored(read_explored(run))
    if run.workers.main and not is_whole(folder, section.rounds):
        (run.folder / stage / "model.safetensors").unlink(missing_ok=True)  # so that training goes on and mends it
    pool = read_split(run.folder / "structures", run.recipe.structures.groups, "train")
    return Exploration(folder, run.recipe, pool, lambda: run.teacher, run.replace, run.workers)


def read_explored(run: Run) -> list[Found]:
    """What the student of a finished training found in its rounds; nothing without exploration."""
    section = run.recipe.exploration
    return [] if section is None else read_found(run.folder / "exploration", section.rounds)


def all_labels_digest(run: Run) -> str:
    """Hex SHA-256 over all labels of a finished training, those of explored structures too."""
    found = [labels_digest(run.folder / "labels"), *(one.digest for one in read_explored(run))]
    return digest(found) if len(found) > 1 else found[0]


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
    samples["train"][0].extend(atoms for found in read_explored(run) for atoms in found.structures)
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
        labels_sha256=all_labels_digest(run),
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
    atoms, missing = _count_atoms(run)
    for split in SPLITS:
        groups = [group for group in recipe.structures.groups if group.split == split]
        total = _total([atoms.get(group.name) for group in groups])
        lines.append(f"{split:<11} {sum(map(_size, groups)):>6} structures in {len(groups)} groups, {total} atoms")
    lines += missing
    stored = recipe.labels.stored_probes
    everything = _total([None if count is None else 3 * count for count in map(atoms.get, _names(recipe))])
    products = everything if stored is None else str(stored * sum(map(_size, recipe.structures.groups)))
    moving = [group for group in recipe.structures.groups if group.kind == "dynamics"]
    moves = sum(group.settle + group.count * group.interval for group in moving)
    training = recipe.training
    lines += [
        f"labels      {products:>6} Hessian products ({recipe.labels.probes}), {moves} steps of teacher dynamics",
        f"training    {training.steps:>6} steps of {training.batch_size} structures, student and twin",
        *_exploration_lines(recipe),
        "",
        *_standing(run),
    ]
    return "\n".join(lines)


def _size(group: Group) -> int:
    """How many structures a group has."""
    return group.count * group.copies if group.kind == "frames" else group.count


def _names(recipe: Recipe) -> list[str]:
    return [group.name for group in recipe.structures.groups]


def _total(counts: Sequence[int | None]) -> str:
    """Their sum; a question mark where one is not known."""
    known = [count for count in counts if count is not None]
    return str(sum(known)) if len(known) == len(counts) else f"{sum(known)} + ?" if known else "?"


def _count_atoms(run: Run) -> tuple[dict[str, int], list[str]]:
    """Atoms of each group by its name, and a line for each group that could not be made here."""
    recipe, atoms, missing = run.recipe, {}, []
    for group in recipe.structures.groups:
        if group.kind != "frames":
            assert recipe.structures.crystal is not None  # the schema sees to it
            atoms[group.name] = group.count * len(
                perfect_crystal(recipe.structures.crystal, group.supercell, group.cell)
            )
            continue
        try:
            structures = frames(group, recipe.seed)
            check_elements(group, structures, recipe.student.elements)
            atoms[group.name] = sum(map(len, structures))
        except ZooError as error:
            missing.append(f"missing     {error}")
    return atoms, missing


def _exploration_lines(recipe: Recipe) -> list[str]:
    section = recipe.exploration
    if section is None:
        return []
    return [
        f"exploration {section.rounds * section.budget:>6} structures at most, {section.budget} in each of "
        f"{section.rounds} rounds of {section.kind}, and as many trainings more"
    ]


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
