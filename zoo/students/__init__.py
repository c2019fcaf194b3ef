"""Architectures of students: a closed table, so that no recipe or config can name code."""

import torch

from zoo.students.painn import PaiNN, PaiNNConfig

StudentConfig = PaiNNConfig  # with a second architecture: a union, discriminated by ``architecture``
Student = PaiNN
_ARCHITECTURES: dict[str, type[Student]] = {"painn": PaiNN}


def build_student(config: StudentConfig, generator: torch.Generator | None = None) -> Student:
    """A student in float32 with fresh weights drawn from ``generator``; nobody else's random state is touched."""
    with torch.random.fork_rng(devices=[]):
        return _ARCHITECTURES[config.architecture](config, generator).float()


__all__ = ["PaiNN", "PaiNNConfig", "Student", "StudentConfig", "build_student"]
