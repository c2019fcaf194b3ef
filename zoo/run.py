"""The folder in which a recipe is carried out, and what is known of its stages."""

import copy
import dataclasses
import fcntl
import os
import shutil
import weakref
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from zoo.artifact import DTYPES
from zoo.config import Config, digest, read_json, write_json
from zoo.data.labels import read_plan
from zoo.distill.label import take_over_step
from zoo.distill.workers import ALONE, Workers
from zoo.errors import ConfigError, LabelError
from zoo.files import atomic_write
from zoo.recipe import Recipe, to_yaml
from zoo.teachers import Teacher, is_own, load_teacher, own_teacher

Stage = Literal["structures", "labels", "train", "twin", "evaluation", "model"]
STAGES: tuple[Stage, ...] = get_args(Stage)
_SHARED: tuple[Stage, ...] = ("labels", "train", "twin")  # all workers do them together, the main one the others

# What a stage writes last: where it is missing, the stage is not done, whatever its record says.
_LAST = {
    "structures": ("manifest.json",),
    "train": ("model.safetensors",),
    "twin": ("model.safetensors",),
    "evaluation": ("report.json",),
    "model": ("manifest.json",),
}
_FORMATS = {"structures": 1, "labels": 1, "train": 1, "twin": 1, "evaluation": 2, "model": 2}


class StageRecord(Config):
    """``stages/<stage>.json``: what a stage was made from, and whether it came to its end."""

    inputs: str
    done: bool


class Run:
    """A recipe and its folder. One process works in it at a time, or several that were launched together.

    Of these, all go through the same stages in the same order; what is decided, the main one decides.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        replace: bool = False,
        workers: Workers = ALONE,
        teacher: Teacher | None = None,
    ) -> None:
        if teacher is not None and teacher.name != recipe.teacher.name:
            raise ConfigError(
                f"the teacher that was handed over is {teacher.name}, the recipe names {recipe.teacher.name}; hand "
                "over that one, or change teacher: name in the recipe"
            )
        self.recipe = recipe
        self.folder = folder
        self.replace = replace
        self.handed = teacher
        self._workers = workers
        self._own: Stage | None = None  # the stage that the main worker does while the others wait
        self._claimed = False

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        folder: Path | None = None,
        *,
        replace: bool = False,
        workers: Workers = ALONE,
        teacher: Teacher | None = None,
    ) -> "Run":
        """The run of a recipe, in ``runs/<family>/<engine>`` by default.

        ``teacher`` is one made in Python (``zoo.teacher_from``). Raises ConfigError where the recipe names another.
        """
        return cls(recipe, folder or Path("runs") / recipe.name, replace=replace, workers=workers, teacher=teacher)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of this recipe, in order: where nothing is learned from the teacher, there is no twin."""
        return tuple(stage for stage in STAGES if stage != "twin" or self.recipe.distils)

    @property
    def workers(self) -> Workers:
        """Who works together now: nobody else while the main one does a stage of its own."""
        return self._workers if self._own is None else ALONE

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher, loaded when first asked for: a run that is done needs none. One handed over is copied."""
        section, lock = self.recipe.teacher, self.recipe.lock
        if self.handed is not None:
            potential = copy.deepcopy(self.handed.potential).to(DTYPES[section.dtype])
            teacher = dataclasses.replace(self.handed, potential=potential)
        else:
            teacher = load_teacher(section.name, dtype=DTYPES[section.dtype])
        if lock is not None and lock.teacher_weights_sha256 != teacher.weights_sha256:
            here = "installed are" if self.handed is None else "those handed over are"
            raise LabelError(
                f"the recipe is locked to weights {lock.teacher_weights_sha256[:12]}… of {section.name}, {here} "
                f"{teacher.weights_sha256[:12]}…; install {lock.teacher_package}, or remove the lock from the recipe"
            )
        take_over_step(teacher, self.label_folders)
        return teacher

    @property
    def label_folders(self) -> list[Path]:
        """Where the labels of each split are, or will be."""
        return [self.folder / "labels" / split for split in self.recipe.labelled]

    @property
    def own_digest(self) -> str | None:
        """Which teacher a name of one's own means, as the same name may mean another one day; None of other names.

        Of one that is not here, that of the labels it made. Raises UnknownNameError where there are none either.
        """
        name = self.recipe.teacher.name
        if not is_own(name):
            return None
        recorded = own_teacher(name) if self.handed is None else None
        if recorded is not None:
            return recorded.digest
        for folder in self.label_folders if self.handed is None else ():
            if (folder / "plan.json").is_file():
                return read_plan(folder).weights_sha256
        return self.teacher.weights_sha256

    def begin(self, stage: Stage, inputs: object) -> bool:
        """Whether a stage has work to do here. Raises ConfigError where its folder was made from other inputs.

        Where a stage is not shared, the main worker has work to do, and the others wait here until it is done.
        """
        workers = self.workers
        to_do = workers.by_main(lambda: self._begin(stage, inputs))
        if not to_do or stage in _SHARED or workers.size == 1:
            return to_do
        if workers.main:
            self._own = stage
            return True
        workers.wait()
        return False

    def _begin(self, stage: Stage, inputs: object) -> bool:
        wanted = digest([_FORMATS[stage], inputs])
        state = self.state(stage, wanted)
        if state == "done":
            return False
        if state == "other" and not self.replace:
            raise ConfigError(
                f"{self.folder / stage} was made from another recipe or other inputs; pass --replace (in Python "
                "replace=True) to delete it and make it anew, or --run DIR (folder=DIR) to keep it and work elsewhere"
            )
        self._claim()
        old = self.folder / f".{stage}.tmp"
        if state == "other" and stage != "model" and (self.folder / stage).exists():
            (self.folder / stage).replace(old)  # a model folder is replaced whole, when the new one is ready
        write_json(self._record(stage), StageRecord(inputs=wanted, done=False))
        shutil.rmtree(old, ignore_errors=True)
        atomic_write(self.folder / "recipe.yaml", to_yaml(self.recipe))
        return True

    def end(self, stage: Stage) -> None:
        """Notes that a stage came to its end, for all workers."""
        if self.workers.main:
            record = self._record(stage)
            write_json(record, read_json(StageRecord, record).model_copy(update={"done": True}))
        if self._own == stage:
            self._own = None
        self.workers.wait()

    def state(self, stage: Stage, wanted: str | None = None) -> Literal["to do", "begun", "done", "other"]:
        """Where a stage stands; ``other`` is made from other inputs than ``wanted``, if that is given.

        One that failed before it wrote anything is still to do.
        """
        record = self._record(stage)
        if not record.exists() or not any(path.is_file() for path in (self.folder / stage).rglob("*")):
            return "to do"
        found = read_json(StageRecord, record)
        if wanted is not None and found.inputs != wanted:
            return "other"
        whole = all((self.folder / stage / path).exists() for path in self._last(stage))
        return "done" if found.done and whole else "begun"

    def _last(self, stage: Stage) -> tuple[str, ...]:
        return tuple(f"{split}/manifest.json" for split in self.recipe.labelled) if stage == "labels" else _LAST[stage]

    def _record(self, stage: Stage) -> Path:
        return self.folder / "stages" / f"{stage}.json"

    def _claim(self) -> None:
        """Keeps other processes out of the folder until this one ends, and sweeps what a killed one left half."""
        if self._claimed:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / ".lock", os.O_CREAT | os.O_RDWR)
        weakref.finalize(self, os.close, lock)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ConfigError(
                f"another process works in {self.folder}; wait for it, or choose another --run"
            ) from error
        except OSError:  # a file system without locks
            pass
        self._claimed = True
        for path in list(self.folder.rglob(".*.tmp")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
