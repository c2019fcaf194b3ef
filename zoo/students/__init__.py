"""Architectures of students: a closed table, so that no recipe or config can name code."""

from typing import Annotated

import torch
from pydantic import Field

from zoo.students.base import Architecture, Student
from zoo.students.gemnet import GemNetDT, GemNetDTConfig, GemNetT, GemNetTConfig
from zoo.students.gemnet_oc import GemNetOCStudent, GemNetOCStudentConfig
from zoo.students.painn import PaiNN, PaiNNConfig
from zoo.students.painn_dt import PaiNNDT, PaiNNDTConfig

StudentConfig = Annotated[
    PaiNNConfig | PaiNNDTConfig | GemNetTConfig | GemNetDTConfig | GemNetOCStudentConfig,
    Field(discriminator="architecture"),
]
_ARCHITECTURES: dict[str, type[Student]] = {
    "painn": PaiNN,
    "painn-dt": PaiNNDT,
    "gemnet-t": GemNetT,
    "gemnet-dt": GemNetDT,
    "gemnet-oc": GemNetOCStudent,
}
HEAVY = ("gemnet-oc",)  # of hundreds of millions of parameters: no step or Hessian of them is taken by the way


def build_student(config: Architecture, generator: torch.Generator | None = None) -> Student:
    """A student in float32 with fresh weights drawn from ``generator``; nobody else's random state is touched."""
    with torch.random.fork_rng(devices=[]):
        return _ARCHITECTURES[config.architecture](config, generator).float()


__all__ = [
    "HEAVY",
    "GemNetDT",
    "GemNetDTConfig",
    "GemNetOCStudent",
    "GemNetOCStudentConfig",
    "GemNetT",
    "GemNetTConfig",
    "PaiNN",
    "PaiNNConfig",
    "PaiNNDT",
    "PaiNNDTConfig",
    "Student",
    "StudentConfig",
    "build_student",
]
