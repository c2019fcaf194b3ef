"""Training in rounds: a student is trained, finds structures that its data set lacks, and is trained again with them.

``exploration/round-1/`` holds ``structures.extxyz``, ``rejected.extxyz`` (what the teacher left out, with its reason),
``round.json`` and ``labels/``. ``train/round-0/`` is the training on the data set alone, ``train/round-1/`` and so on
are those after a round of exploration, each of which starts from the averaged weights of the one before and takes all
steps of the recipe, or all its epochs, which are longer once structures were added. The last weights, and the metrics
of all rounds, then stand in ``train/`` itself, where a training without rounds has its own.
"""

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import ase.io
from ase import Atoms

from zoo.artifact import DTYPES
from zoo.config import Config, digest, read_json, write_json
from zoo.data.labels import Labels
from zoo.data.structures import structure_digest
from zoo.distill.batches import counted
from zoo.distill.examples import make_examples
from zoo.distill.explore import judge, propose
from zoo.distill.label import label_plan, label_structures
from zoo.distill.loss import Example
from zoo.distill.task import Task
from zoo.distill.train import WEIGHTS, train
from zoo.distill.workers import ALONE, Workers
from zoo.errors import ConfigError, IntegrityError
from zoo.files import atomic_write, sha256_file
from zoo.recipe import ExplorationSection, Recipe
from zoo.students import Student
from zoo.teachers import Teacher


class RoundRecord(Config):
    """``round.json``: what a round of exploration was made from, and how its structures were chosen."""

    format: Literal[1] = 1
    inputs: str
    tried: int
    left_out: dict[str, int]  # reason -> structures that the student's own forces spoke against
    rejected: dict[str, int]  # reason -> structures that the teacher's forces spoke against
    files: dict[str, str]  # file -> digest


@dataclass(frozen=True)
class Found:
    """The structures of a round and what the teacher says of them."""

    structures: list[Atoms]
    labels: Labels

    @property
    def digest(self) -> str:
        """Hex SHA-256 over labels, which name their structures."""
        return sha256_file(self.labels.folder / "manifest.json")


@dataclass(frozen=True)
class Exploration:
    """Finds structures and has them labelled: all that a round needs beside the student."""

    folder: Path  # exploration/
    recipe: Recipe
    pool: Sequence[Atoms]  # of the data set alone, so that limits do not creep from round to round
    ask: Callable[[], Teacher]  # loads the teacher, when it is first needed
    replace: bool = False  # structures and labels of other inputs are deleted
    workers: Workers = ALONE  # the main one finds and judges, all label

    @property
    def section(self) -> ExplorationSection:
        assert self.recipe.exploration is not None
        return self.recipe.exploration

    @property
    def count(self) -> int:
        """Of rounds."""
        return self.section.rounds

    @property
    def inputs(self) -> list[object]:
        """What decides the rounds beside the task of the first."""
        return [self.section.model_dump(mode="json")]

    def __call__(self, number: int, student: Student, weights: Path) -> Found:
        """Structures of a round, chosen once, and their labels, made as far as they are missing.

        Raises ConfigError where the folder holds a round of other inputs, DivergedError where nothing was found.
        """
        folder = round_folder(self.folder, number)
        self.workers.by_main(lambda: self._choose(folder, number, student, weights))
        structures = read_structures(folder)
        recipe = self.recipe
        teacher = self.ask()
        plan = label_plan(structures, teacher, recipe.labels, recipe.seed, recipe.teacher.dtype)
        labels = label_structures(
            folder / "labels",
            structures,
            teacher,
            plan,
            forward_mode=recipe.labels.forward_mode,
            workers=self.workers,
        )
        return Found(structures, labels)

    def _inputs(self, number: int, weights: Path) -> str:
        section = self.section.model_dump(mode="json", exclude={"rounds"})
        pool = [structure_digest(atoms) for atoms in self.pool]
        parts = [part.model_dump(mode="json") for part in (self.recipe.teacher, self.recipe.labels)]
        student, teacher = sha256_file(weights), self.ask().weights_sha256
        return digest([section, self.recipe.seed, number, pool, student, teacher, *parts])

    def _is_chosen(self, folder: Path, inputs: str) -> bool:
        record = folder / "round.json"
        if record.exists():
            if read_json(RoundRecord, record).inputs == inputs:
                return True
            if not self.replace:
                raise ConfigError(
                    f"{folder} was made from another recipe or by a student of other weights; pass --replace to delete "
                    "it and make it anew, or --run DIR to keep it and work elsewhere"
                )
        if self.replace and folder.exists():
            old = folder.with_name(f".{folder.name}.tmp")  # a run sweeps it, if this is killed here
            folder.replace(old)
            shutil.rmtree(old)
        return False

    def _choose(self, folder: Path, number: int, student: Student, weights: Path) -> None:
        """``structures.extxyz``, ``rejected.extxyz`` and, last, ``round.json``, unless they are there."""
        inputs = self._inputs(number, weights)
        if self._is_chosen(folder, inputs):
            return
        proposals = propose(student, self.pool, self.section, self.recipe.seed, number)
        kept, rejected = judge(self.ask(), proposals.structures, self.section, number)
        files = {"structures.extxyz": kept} | ({"rejected.extxyz": rejected} if rejected else {})
        for name, structures in files.items():
            _write(folder / name, structures)
        record = RoundRecord(
            inputs=inputs,
            tried=proposals.tried,
            left_out={str(reason): count for reason, count in proposals.left_out.items()},
            rejected=dict(Counter(str(atoms.info["reason"]) for atoms in rejected)),
            files={name: sha256_file(folder / name) for name in files},
        )
        write_json(folder / "round.json", record)


@dataclass(frozen=True)
class Explored:
    """Rounds that another student has been through."""

    rounds: Sequence[Found]

    @property
    def count(self) -> int:
        """Of rounds."""
        return len(self.rounds)

    @property
    def inputs(self) -> list[object]:
        """What decides the rounds beside the task of the first."""
        return [found.digest for found in self.rounds]

    def __call__(self, number: int, student: Student, weights: Path) -> Found:
        """What was found in that round, whatever the student."""
        return self.rounds[number - 1]


Finder = Exploration | Explored


def train_in_rounds(
    folder: Path,
    task: Task,
    examples: Sequence[Example],
    validation: Sequence[Example],
    find: Finder,
    teacher: Teacher | None = None,
    workers: Workers = ALONE,
) -> Student:
    """Trains on the data set, then once more after each round with all that was found up to there.

    ``task`` is that of the data set. Goes on where it was cut off: what is finished is only read again.
    """
    student = train(folder / "round-0", task, examples, validation, teacher, workers)
    dtype, steps = DTYPES[task.training.dtype], [counted(task, examples).steps]
    for number in range(1, find.count + 1):
        weights = round_folder(folder, number - 1) / WEIGHTS
        found = find(number, student, weights)
        examples = [*examples, *make_examples(found.structures, found.labels, task.config.cutoff, dtype)]
        task = replace(task, data=digest([task.data, found.digest]), initial=weights)
        steps.append(counted(task, examples).steps)
        student = train(round_folder(folder, number), task, examples, validation, teacher, workers)
    workers.by_main(lambda: _gather(folder, steps))
    return student


def read_found(folder: Path, rounds: int) -> list[Found]:
    """All rounds of a finished exploration. Raises IntegrityError, LabelError where one is missing or was altered."""
    found = []
    for number in range(1, rounds + 1):
        place = round_folder(folder, number)
        structures = read_structures(place)
        found.append(
            Found(structures, Labels.open(place / "labels", [structure_digest(atoms) for atoms in structures]))
        )
    return found


def is_whole(folder: Path, rounds: int) -> bool:
    """Whether nothing is missing of an exploration of so many rounds."""
    names = ("round.json", "structures.extxyz", "labels/manifest.json")
    return all((round_folder(folder, number) / name).exists() for number in range(1, rounds + 1) for name in names)


def read_structures(folder: Path) -> list[Atoms]:
    """The structures of a round. Raises IntegrityError where they are missing or altered."""
    path, record = folder / "structures.extxyz", folder / "round.json"
    known = read_json(RoundRecord, record).files if record.exists() else {}
    if not path.is_file() or sha256_file(path) != known.get(path.name):
        raise IntegrityError(
            f"{path} is missing or was changed since it was made; delete the folder {folder} and run the same again"
        )
    structures: list[Atoms] = ase.io.read(path, index=":", format="extxyz")
    return structures


def round_folder(folder: Path, number: int) -> Path:
    """The place of a round within the folder of its stage."""
    return folder / f"round-{number}"


def _write(path: Path, structures: Sequence[Atoms]) -> None:
    text = io.StringIO()
    for atoms in structures:
        ase.io.write(text, atoms, format="extxyz")
    atomic_write(path, text.getvalue())


def _gather(folder: Path, steps: Sequence[int]) -> None:
    """The metrics of all rounds one after the other, their times added up, and, last, the weights of the last.

    ``steps`` are those of each round.
    """
    lines, timings = [], []
    for number in range(len(steps)):
        place = round_folder(folder, number)
        timings.append(json.loads((place / "timing.json").read_text()))
        for line in (place / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            step = record["step"] + sum(steps[:number])
            lines.append(json.dumps(record | {"step": step, "round": number}) + "\n")
    atomic_write(folder / "metrics.jsonl", "".join(lines))
    total = {
        "seconds": round(sum(timing["seconds"] for timing in timings), 3),
        "peak_memory_GiB": max(timing["peak_memory_GiB"] for timing in timings),
    }
    write_json(folder / "timing.json", total)
    atomic_write(folder / WEIGHTS, (round_folder(folder, len(steps) - 1) / WEIGHTS).read_bytes())
