"""Who is compared, on what, and what was measured of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from zoo.calculator import ZooCalculator
from zoo.data.labels import Labels
from zoo.data.structures import dataset_prediction
from zoo.evaluate.accuracy import Accuracy, DatasetErrors
from zoo.evaluate.dynamics import Dynamics
from zoo.evaluate.elasticity import Elasticity
from zoo.evaluate.modes import LARGEST
from zoo.evaluate.report import EngineName, Trained
from zoo.evaluate.speed import Timing
from zoo.execution import compiled
from zoo.phonons import Phonons
from zoo.potential import Potential, given
from zoo.recipe import Recipe
from zoo.students import Student

_TRIED = 4  # structures on which compiled code has to agree


@dataclass(frozen=True)
class Learned:
    """What a student was trained and validated on."""

    train: list[Atoms]  # those that it found by itself among them
    validation: list[Atoms]
    labels: Labels | None  # of the validation split; None where the teacher labelled none


@dataclass(frozen=True)
class Contest:
    """Who is compared, on what."""

    recipe: Recipe
    teacher: Potential
    student: Student
    twin: Student | None  # None where nothing is learned from the teacher
    structures: list[Atoms]  # the test split
    labels: Labels  # of the test split
    run: Path  # where train/ and twin/ left their metrics
    learned: Learned

    @property
    def engines(self) -> dict[EngineName, Potential]:
        found: dict[EngineName, Potential] = {"teacher": self.teacher, "student": self.student}
        return found if self.twin is None else found | {"twin": self.twin}

    def calculator(self, name: EngineName) -> ZooCalculator:
        """As users run it: a student with compiled code, where there is some that agrees with it."""
        potential = self.engines[name]
        code = None if name == "teacher" else compiled(potential, "auto", self.structures[:_TRIED])
        if code is None:
            return ZooCalculator(potential)
        return ZooCalculator(potential, predict=code.predict, follow=code.follow if code.follows else None)

    @property
    def trained(self) -> dict[Trained, Path]:
        """The folders in which training left its metrics."""
        found: dict[Trained, Path] = {"student": self.run / "train"}
        return found if self.twin is None else found | {"twin": self.run / "twin"}

    @property
    def taught(self) -> bool:
        """Whether the student learned from its teacher, so that errors against the teacher say something."""
        return self.recipe.distils

    @property
    def vibrating(self) -> Atoms | None:
        """The test structure whose eigenfrequencies are compared."""
        return next((atoms for atoms in self.structures if 1 < len(atoms) <= LARGEST), None)

    @cached_property
    def teacher_forces(self) -> np.ndarray:
        """(atoms, 3) eV/Å, of all test structures."""
        return forces_of(self.structures, self.labels)

    @cached_property
    def dataset_forces(self) -> np.ndarray:
        """(atoms, 3) eV/Å, of all test structures; NaN where one brings no labels of its data set."""
        return forces_of(self.structures, None)


def forces_of(structures: Sequence[Atoms], labels: Labels | None) -> np.ndarray:
    """(atoms, 3) eV/Å of the teacher's labels, without these of the data set's, which are NaN where there are none."""
    if labels is not None:
        return torch.cat([label.forces for label in labels]).double().numpy()
    found = [dataset_prediction(atoms) for atoms in structures]
    parts = [
        np.full((len(atoms), 3), np.nan) if label is None else given(label.forces).numpy()
        for atoms, label in zip(structures, found, strict=True)
    ]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Measurements:
    """What was measured, by engine; what could not be is missing here and has its reason."""

    accuracy: dict[EngineName, Accuracy]  # of student and twin against the teacher, whose labels have its answers
    dataset: dict[EngineName, DatasetErrors]
    modes: dict[EngineName, np.ndarray]  # (modes,) THz
    phonons: dict[EngineName, Phonons]
    elasticity: dict[EngineName, Elasticity]
    dynamics: dict[EngineName, Dynamics]
    timing: dict[str, Timing]
    reasons: dict[EngineName, dict[str, str]]
