"""A recipe from structures to a model folder, in stages that each leave files for the next one.

A stage is done once: it is done again when the hash of its inputs, its section of the recipe or its format changed.
Files of other inputs are refused rather than overwritten, for labels may have cost days; ``replace`` says otherwise.
"""

import fcntl
import os
import shutil
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from ase import Atoms

from zoo.artifact import DTYPES
from zoo.calculator import ZooCalculator
from zoo.config import Config, digest, read_json, write_json
from zoo.data.labels import Labels
from zoo.data.structures import FORMAT as STRUCTURES_FORMAT
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
from zoo.distill.train import make_examples, read_weights, train
from zoo.errors import ConfigError, LabelError
from zoo.evaluate.compare import Contest, compare
from zoo.evaluate.report import Report
from zoo.files import atomic_write, sha256_file
from zoo.package import package
from zoo.recipe import Lock, LossSection, Recipe, Split, to_yaml
from zoo.students import Student, build_student
from zoo.teachers import Teacher, load_teacher
from zoo.version import __version__

Stage = Literal["structures", "labels", "train", "twin", "evaluation", "model"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class StageRecord(Config):
    """``stages/<stage>.json``: what a stage was given, and whether it came to its end."""

    inputs: str
    done: bool


@dataclass(eq=False)
class Run:
    """A folder in which a recipe is carried out."""

    recipe: Recipe
    folder: Path
    replace: bool = False
    _teacher: list[Teacher] = field(default_factory=list)
    _lock: list[object] = field(default_factory=list)

    @classmethod
    def of(cls, recipe: Recipe, folder: Path | None = None, *, replace: bool = False) -> "Run":
        """The run of a recipe, in ``runs/<family>/<engine>`` by default."""
        return cls(recipe, folder or Path("runs") / recipe.name, replace)

    @property
    def teacher(self) -> Teacher:
        """The teacher, loaded when first asked for: a run that is done needs none."""
        if not self._teacher:
            section = self.recipe.teacher
            teacher = load_teacher(section.name, dtype=DTYPES[section.dtype])
            lock = self.recipe.lock
            if lock is not None and lock.teacher_weights_sha256 != teacher.weights_sha256:
                raise LabelError(
                    f"the recipe is locked to weights {lock.teacher_weights_sha256[:12]}… of {section.name}, installed "
                    f"are {teacher.weights_sha256[:12]}…; install {lock.teacher_package}, or remove the lock"
                )
            self._teacher.append(teacher)
        return self._teacher[0]

    def begin(self, stage: Stage, inputs: object) -> bool:
        """Whether a stage has work to do. Raises ConfigError where its folder was made from other inputs."""
        record = self.folder / "stages" / f"{stage}.json"
        wanted = digest(inputs)
        if record.exists():
            found = read_json(StageRecord, record)
            if found.inputs == wanted:
                if not found.done:
                    self._claim()
                return not found.done
            if not self.replace:
                raise ConfigError(
                    f"{self.folder / stage} was made from another recipe or other inputs; pass --replace to make it "
                    "anew, or --run DIR to keep it and work elsewhere"
                )
            self._claim()
            shutil.rmtree(self.folder / stage, ignore_errors=True)
        self._claim()
        self._write_recipe()
        write_json(record, StageRecord(inputs=wanted, done=False))
        return True

    def end(self, stage: Stage) -> None:
        """Notes that a stage came to its end."""
        record = self.folder / "stages" / f"{stage}.json"
        write_json(record, read_json(StageRecord, record).model_copy(update={"done": True}))

    def _claim(self) -> None:
        """Keeps other processes out of the folder until this one ends, and sweeps what a killed one left half."""
        if self._lock:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / ".lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise ConfigError(
                f"another process works in {self.folder}; wait for it, or choose another --run"
            ) from error
        except OSError:  # a file system without locks
            pass
        self._lock.append(weakref.finalize(self, os.close, lock))
        for path in self.folder.rglob(".*.tmp"):
            path.unlink(missing_ok=True)

    def _write_recipe(self) -> None:
        atomic_write(self.folder / "recipe.yaml", to_yaml(self.recipe))


def make_structures(run: Run) -> Path:
    """``structures/``: a file a group, each written whole; a trajectory that was cut off starts again."""
    recipe, folder = run.recipe, run.folder / "structures"
    section = recipe.structures
    if not run.begin("structures", [STRUCTURES_FORMAT, section.model_dump(), recipe.seed, recipe.teacher.model_dump()]):
        return folder
    for group in section.groups:
        if (folder / f"{group.name}.extxyz").exists():
            continue
        if group.kind == "rattled":
            frames = rattled(section.crystal, group, recipe.seed)
        else:
            frames = trajectory(section.crystal, group, recipe.seed, ZooCalculator(run.teacher.potential))
        write_group(folder, group, frames)
    write_manifest(folder, section.groups, digest(section))
    run.end("structures")
    return folder


def make_labels(run: Run) -> Path:
    """``labels/train``, ``labels/validation``, ``labels/test``: what the teacher says."""
    recipe, folder = run.recipe, run.folder / "labels"
    structures = make_structures(run)
    inputs = [
        sha256_file(structures / "manifest.json"),
        recipe.labels.model_dump(),
        recipe.teacher.model_dump(),
        recipe.seed,
    ]
    if not run.begin("labels", inputs):
        return folder
    for split in SPLITS:
        frames = read_split(structures, recipe.structures.groups, split)
        plan = label_plan(frames, run.teacher, recipe.labels, recipe.seed, recipe.teacher.dtype)
        label_structures(folder / split, frames, run.teacher, plan)
    run.end("labels")
    return folder


def train_student(run: Run) -> Student:
    """``train/``: the student."""
    return _train(run, "train", run.recipe.loss)


def train_twin(run: Run) -> Student:
    """``twin/``: the same student from the same labels for the same number of steps, without Hessians."""
    return _train(run, "twin", run.recipe.loss.model_copy(update={"hessian": 0.0}))


def _train(run: Run, stage: Literal["train", "twin"], weights: LossSection) -> Student:
    recipe, folder = run.recipe, run.folder / stage
    data = labels_digest(make_labels(run))
    inputs = [
        data,
        recipe.student.model_dump(),
        recipe.training.model_dump(),
        weights.model_dump(),
        recipe.seed,
    ]
    if not run.begin(stage, inputs):
        return read_weights(folder, build_student(recipe.student).to(DTYPES[recipe.training.dtype]))
    examples, validation = (_examples(run, split) for split in ("train", "validation"))
    student = train(folder, recipe.student, recipe.training, weights, examples, validation, recipe.seed, data)
    run.end(stage)
    return student


def evaluate(run: Run) -> Report:
    """``evaluation/report.json`` and its figures: student, twin and teacher compared."""
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
    recipe = run.recipe
    weights = run.folder / "train" / "model.safetensors"
    inputs = [
        sha256_file(weights),
        report.model_dump(mode="json"),
        recipe.model_dump(mode="json"),
        __version__,
    ]
    if not run.begin("model", inputs):
        return folder
    lock = _lock(run)
    student = train_student(run)
    samples = {split: read_labels(run, split) for split in SPLITS}
    locked = recipe.model_copy(update={"lock": lock})
    package(folder, locked, report, student, run.teacher, samples, run.folder)
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


def outline(run: Run) -> str:
    """What a run would do, in a few lines: counts, disk, and which stages are done. Touches nothing."""
    recipe = run.recipe
    lines = [
        f"{recipe.name}: {recipe.purpose}",
        f"teacher {recipe.teacher.name}, run folder {run.folder}",
        "",
    ]
    for split in SPLITS:
        groups = [group for group in recipe.structures.groups if group.split == split]
        frames = sum(group.count for group in groups)
        sizes = [len(perfect_crystal(recipe.structures.crystal, group.supercell, group.cell)) for group in groups]
        atoms = sum(group.count * size for group, size in zip(groups, sizes, strict=True))
        lines.append(f"{split:<11} {frames:>6} structures in {len(groups)} groups, {atoms} atoms")
    products = recipe.labels.probes_per_structure * sum(group.count for group in recipe.structures.groups)
    moves = sum(group.count * group.interval for group in recipe.structures.groups if group.kind == "dynamics")
    training = recipe.training
    lines += [
        f"labels      {products:>6} Hessian products ({recipe.labels.probes}), {moves} steps of teacher dynamics",
        f"training    {training.steps:>6} steps of {training.batch_size} structures, student and twin",
        "",
        *(f"{stage:<11} {_status(run, stage)}" for stage in get_args(Stage)),
    ]
    return "\n".join(lines)


def _status(run: Run, stage: Stage) -> str:
    record = run.folder / "stages" / f"{stage}.json"
    if not record.exists():
        return "to do"
    return "done" if read_json(StageRecord, record).done else "begun, will go on"
