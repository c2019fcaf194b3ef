"""What is trained."""

from dataclasses import dataclass, field
from pathlib import Path

from zoo.config import digest
from zoo.files import sha256_file
from zoo.recipe import LabelsSection, LossSection, TrainingSection
from zoo.students import StudentConfig

# keys that recipes once did not have; at these values a training is what it was, and so is its digest
_AS_EVER = {
    "start": "fresh",
    "epochs": None,
    "schedule": "cosine",
    "plateau_factor": 0.8,
    "plateau_patience": 10,
    "amsgrad": False,
    "epsilon": 1e-8,
}


@dataclass(frozen=True)
class Task:
    """Everything that decides the weights of a student."""

    config: StudentConfig
    training: TrainingSection
    weights: LossSection
    seed: int
    data: str  # the digest of what is learned from
    labels: LabelsSection = field(default_factory=LabelsSection)  # the kind of probes, and the side of a Jacobian
    initial: Path | None = None  # weights to begin with, of an earlier round; fresh ones without

    @property
    def steps(self) -> int:
        """How many; epochs are counted before they begin."""
        return self.training.total

    @property
    def inputs(self) -> str:
        """Hex SHA-256 of all of it."""
        sections = [part.model_dump(mode="json") for part in (self.config, self.training, self.weights, self.labels)]
        for key, value in _AS_EVER.items():
            if sections[1][key] == value:
                del sections[1][key]
        before = None if self.initial is None else sha256_file(self.initial)
        return digest([*sections, self.seed, self.data, before])


def needs_teacher(task: Task) -> bool:
    """Whether the teacher itself is wanted while a student is trained, not its labels alone."""
    asked = task.weights.hessian > 0 and task.weights.hessian_from == "teacher"
    return asked or task.config.teacher_channels > 0 or task.training.start == "teacher"
