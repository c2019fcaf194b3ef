"""A recipe from structures to a model folder, in stages that each leave files for the next one.

A stage is done once: it is done again when the hash of its inputs, its section of the recipe or its format changed.
Files of other inputs are refused rather than overwritten, for labels may have cost days; ``replace`` says otherwise.
"""

import json
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from ase import Atoms
from tqdm import tqdm

from zoo.acceptance import text_to_repeat
from zoo.artifact import DTYPES
from zoo.calculator import ZooCalculator
from zoo.config import canonical_json, digest, read_json
from zoo.data.labels import LabelPlan, Labels
from zoo.data.structures import (
    check_elements,
    check_splits,
    find_data,
    frames,
    rattled,
    read_split,
    structure_digest,
    trajectory,
    write_group,
    write_manifest,
)
from zoo.data.subsets import check_subsets, choose, data_sha256, data_terms, known_digests, subset_frames
from zoo.distill.examples import make_examples
from zoo.distill.label import check_structures, check_teacher, label_plan, label_structures, take_over_step
from zoo.distill.loss import Example
from zoo.distill.rounds import Exploration, Explored, Finder, Found, is_whole, read_found, train_in_rounds
from zoo.distill.task import Task, needs_teacher
from zoo.distill.train import read_weights, train
from zoo.errors import LabelError, ZooWarning
from zoo.evaluate.compare import compare, require_packages
from zoo.evaluate.contest import Contest, Learned
from zoo.evaluate.report import Report
from zoo.files import atomic_write, sha256_file
from zoo.fine_tuned import is_teacher, keep_as_teacher
from zoo.licences import check_terms, unstated
from zoo.package import package
from zoo.recipe import DynamicsGroup, FramesGroup, Group, Lock, RattledGroup, Split, to_yaml
from zoo.run import Run
from zoo.students import Student, build_student
from zoo.teacher_facts import teacher_terms
from zoo.teachers.differences import MeasuredDifferences
from zoo.version import __version__, code_sha256

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_DATA_RECORD = "data.json"  # in the folder of structures: the digests of the data that they are of


def make_structures(run: Run) -> Path:
    """``structures/``: a file a group, each written whole; a trajectory that was cut off starts again."""
    recipe, folder = run.recipe, run.folder / "structures"
    section = recipe.structures
    if run.state("structures") == "to do":
        _require_sources(run)
    known = known_digests(section, read_data_record(run))
    inputs = [section.model_dump(), recipe.seed, recipe.teacher.model_dump(), known]
    if any(group.kind == "dynamics" for group in section.groups):
        inputs += _own_digest(run)
    if not run.begin("structures", inputs):
        return folder
    if not (folder / _DATA_RECORD).exists():
        data = data_sha256(section)
        _hold_data_to_lock(run, data)
        atomic_write(folder / _DATA_RECORD, canonical_json(data))
    for group in _missing(folder, section.groups):
        if group.kind != "subset":
            _write(run, group, _structures_of(run, group))
    for name in section.subsets:
        _make_subset(run, name)
    write_manifest(folder, section.groups)
    check_splits(folder, section.groups)
    _hold_to_lock(run, "structures_sha256", sha256_file(folder / "manifest.json"))
    run.end("structures")
    return folder


def read_data_record(run: Run) -> dict[str, str]:
    """Hex SHA-256 of each file of data that the structures of a run are of, by name; nothing before they are made."""
    path = run.folder / "structures" / _DATA_RECORD
    found: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _missing(folder: Path, groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if not (folder / f"{group.name}.extxyz").exists()]


def _write(run: Run, group: Group, structures: Sequence[Atoms]) -> None:
    check_elements(group, structures, run.recipe.student.elements)
    write_group(run.folder / "structures", group, structures)


def _make_subset(run: Run, name: str) -> None:
    """Writes those groups of a subset that are not there yet, from one pass over its data."""
    section = run.recipe.structures
    missing = _missing(run.folder / "structures", section.groups)
    groups = [group for group in missing if group.kind == "subset" and group.subset == name]
    if groups:
        frames = tqdm(subset_frames(section.subsets[name]), desc=f"subset {name}", unit="frame", delay=2)
        chosen = choose(section.subsets[name], groups, run.recipe.seed, frames, run.recipe.student.elements)
        for group in groups:
            _write(run, group, chosen[group.name])


def _require_sources(run: Run) -> None:
    """Fails before anything is written, where data are missing or a teacher that has to move is not installed."""
    check_subsets(run.recipe.structures)
    for group in run.recipe.structures.groups:
        if group.kind == "frames":
            find_data(group)
        elif group.kind == "dynamics":
            _ = run.teacher


def _structures_of(run: Run, group: RattledGroup | DynamicsGroup | FramesGroup) -> list[Atoms]:
    crystal, seed = run.recipe.structures.crystal, run.recipe.seed
    if group.kind == "frames":
        return frames(group, seed)
    assert crystal is not None  # the schema sees to it
    if group.kind == "rattled":
        return rattled(crystal, group, seed)
    return trajectory(crystal, group, seed, ZooCalculator(run.teacher.potential))


def make_labels(run: Run) -> Path:
    """``labels/train``, ``labels/validation``, ``labels/test``: what the teacher says; the last alone where nothing is
    learned from it."""
    recipe, folder = run.recipe, run.folder / "labels"
    sources = [*teacher_terms(recipe.teacher.name, run.handed), *data_terms(recipe)]
    check_terms(recipe.name, recipe.licence, sources)
    text_to_repeat(sources)  # fails now, not when hours were spent
    for told in unstated(sources).values():
        warnings.warn(told, ZooWarning, stacklevel=2)
    own = _own_digest(run)
    structures = make_structures(run)
    source = sha256_file(structures / "manifest.json")
    if not run.begin("labels", [source, recipe.labels.model_dump(), recipe.teacher.model_dump(), recipe.seed, *own]):
        return folder
    check_teacher(recipe, run.teacher)
    take_over_step(run.teacher, run.label_folders)
    found = {split: read_structures(run, split) for split in recipe.labelled}
    for part in found.values():  # all, before hours are spent on the first
        check_structures(part, run.teacher, compared=not recipe.distils)
    for split, part in found.items():
        plan = run.workers.by_main(partial(_label_plan, run, part))
        labels = label_structures(
            folder / split,
            part,
            run.teacher,
            plan,
            forward_mode=recipe.labels.forward_mode,
            workers=run.workers,
            compared=not recipe.distils,
        )
        _tell_errors(run, split, labels)
    if recipe.exploration is None:  # else the lock is of all labels, which are complete after the last round
        _hold_to_lock(run, "labels_sha256", labels_digest(folder, recipe.labelled))
    run.end("labels")
    return folder


def _own_digest(run: Run) -> list[str]:
    return [] if run.own_digest is None else [run.own_digest]


def _label_plan(run: Run, frames: Sequence[Atoms]) -> LabelPlan:
    """Says, where a step is measured for it, which it is."""
    section, teacher = run.recipe.teacher, run.teacher
    known = isinstance(teacher.potential, MeasuredDifferences) and teacher.potential.differences is not None
    plan = label_plan(frames, teacher, run.recipe.labels, run.recipe.seed, section.dtype)
    if plan.differences is not None and not known:
        found = plan.differences
        tqdm.write(
            f"zoo: Hessian products of {teacher.name} are differences of forces over {found.step_A:g} Å, as these have "
            f"a noise of {found.noise_eV_A:.1e} eV/Å",
            file=sys.stderr,
        )
    return plan


def _tell_errors(run: Run, split: Split, labels: Labels) -> None:
    """How good products by differences are."""
    found = labels.products_and_errors()
    if found is not None and run.workers.main:
        size, error = found
        tqdm.write(
            f"zoo: Hessian products of labels/{split} have an error of about {error:.1e} eV/Å² (root mean square), "
            f"{100 * error / max(size, error):.2g} % of their size",
            file=sys.stderr,
        )


def train_student(run: Run) -> Student:
    """``train/``: the student."""
    return _train(run, "train")


def train_twin(run: Run) -> Student | None:
    """``twin/``: the same student for the same number of steps, from energies, forces and stresses alone.

    None where the recipe learns nothing from its teacher: its twin would be the student once more.
    """
    return _train(run, "twin") if "twin" in run.stages else None


def _train(run: Run, stage: Literal["train", "twin"]) -> Student:
    recipe, folder = run.recipe, run.folder / stage
    data = labels_digest(make_labels(run), recipe.labelled)
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
    pool = read_structures(run, "train")
    return Exploration(folder, run.recipe, pool, lambda: run.teacher, run.replace, run.workers)


def read_explored(run: Run) -> list[Found]:
    """What the student of a finished training found in its rounds; nothing without exploration."""
    section = run.recipe.exploration
    return [] if section is None else read_found(run.folder / "exploration", section.rounds)


def all_labels_digest(run: Run) -> str:
    """Hex SHA-256 over all labels of a finished training, those of explored structures too."""
    found = [labels_digest(run.folder / "labels", run.recipe.labelled), *(one.digest for one in read_explored(run))]
    return digest(found) if len(found) > 1 else found[0]


def evaluate(run: Run) -> Report:
    """``evaluation/report.json`` and its figures: student, teacher and, where there is one, twin compared."""
    require_packages()
    recipe, folder = run.recipe, run.folder / "evaluation"
    student, twin = train_student(run), train_twin(run)
    trained = [stage for stage in ("train", "twin") if stage in run.stages]
    weights = [sha256_file(run.folder / stage / "model.safetensors") for stage in trained]
    data = labels_digest(run.folder / "labels", recipe.labelled)
    if not run.begin("evaluation", [weights, recipe.evaluation.model_dump(), data]):
        return read_json(Report, folder / "report.json")
    structures, labels = read_labels(run, "test")
    contest = Contest(recipe, run.teacher.potential, student, twin, structures, labels, run.folder, _learned(run))
    report = compare(contest, folder)
    run.end("evaluation")
    return report


def _learned(run: Run) -> Learned:
    train = [*read_structures(run, "train"), *(atoms for found in read_explored(run) for atoms in found.structures)]
    if "validation" in run.recipe.labelled:
        return Learned(train, *read_labels(run, "validation"))
    return Learned(train, read_structures(run, "validation"), None)


def distill(run: Run) -> Path:
    """``model/``: the model folder, ready to be published. Runs every stage that is not done.

    An engine that is to teach others is put where its students' recipes find it, too.
    """
    report, folder = evaluate(run), run.folder / "model"
    weights = sha256_file(run.folder / "train" / "model.safetensors")
    if run.begin("model", [weights, report.model_dump(mode="json"), run.recipe.digest]):
        _make_model(run, report, folder)
        run.end("model")
    if is_teacher(run.recipe.name) and run.workers.main:
        keep_as_teacher(folder)
    return folder


def _make_model(run: Run, report: Report, folder: Path) -> None:
    locked = run.recipe.model_copy(update={"lock": _lock(run)})
    samples: dict[Split, tuple[list[Atoms], Labels | None]]
    samples = {split: (read_structures(run, split), None) for split in SPLITS}
    samples |= {split: read_labels(run, split) for split in run.recipe.labelled}
    samples["train"][0].extend(atoms for found in read_explored(run) for atoms in found.structures)
    package(folder, locked, report, train_student(run), run.teacher, samples, run.folder)
    atomic_write(run.folder / "recipe.yaml", to_yaml(locked))


def read_labels(run: Run, split: Split) -> tuple[list[Atoms], Labels]:
    """The structures of a split that the teacher labelled, and their labels."""
    structures = read_structures(run, split)
    return structures, Labels.open(run.folder / "labels" / split, [structure_digest(atoms) for atoms in structures])


def read_structures(run: Run, split: Split) -> list[Atoms]:
    """The structures of a split."""
    return read_split(run.folder / "structures", run.recipe.structures.groups, split)


def labels_digest(folder: Path, splits: Sequence[Split] = SPLITS) -> str:
    """Hex SHA-256 over the labels of these splits."""
    return digest([sha256_file(folder / split / "manifest.json") for split in splits])


def _examples(run: Run, split: Split) -> list[Example]:
    labelled = split in run.recipe.labelled
    structures, labels = read_labels(run, split) if labelled else (read_structures(run, split), None)
    return make_examples(structures, labels, run.recipe.student.cutoff, DTYPES[run.recipe.training.dtype])


def _lock(run: Run) -> Lock:
    return Lock(
        teacher_weights_sha256=run.teacher.weights_sha256,
        teacher_package=run.teacher.package,
        structures_sha256=sha256_file(run.folder / "structures" / "manifest.json"),
        labels_sha256=all_labels_digest(run),
        data_sha256=read_data_record(run),
        code_sha256=code_sha256(),
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


def _hold_data_to_lock(run: Run, data: dict[str, str]) -> None:
    """Raises LabelError where a locked recipe finds other data than it is locked to."""
    lock = run.recipe.lock
    for name, found in data.items() if lock is not None else ():
        assert lock is not None
        locked = lock.data_sha256.get(name, found)
        if found != locked:
            raise LabelError(
                f"{name} has the digest {found[:12]}…, the recipe is locked to {locked[:12]}…; fetch that version of "
                "the data, or remove the lock from the recipe to go on all the same"
            )
