"""Adapters of foundation models, one a family, each imported only when it is asked for."""

import importlib
from difflib import get_close_matches

import torch

from zoo.errors import UnknownNameError
from zoo.teachers.announced import ANNOUNCED, Announced, refuse
from zoo.teachers.base import Teacher

_FAMILIES = {
    "gfn2-xtb/teacher": "xtb",
    "sevennet-0/teacher": "sevennet",
    "sevennet-l3i5/teacher": "sevennet",
    "stillinger-weber/teacher": "stillinger_weber",
    "stillinger-weber/direct-teacher": "stillinger_weber",
}


def teacher_names() -> tuple[str, ...]:
    """All teachers that a recipe may name; ``load_teacher`` refuses those of ``ANNOUNCED``."""
    return (*_FAMILIES, *ANNOUNCED)


def load_teacher(name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Teacher:
    """The teacher of that name.

    Raises UnknownNameError, MissingPackageError, IntegrityError; for one of ``ANNOUNCED`` CapabilityError, or
    NotReleasedError where nobody has its weights.
    """
    if name in ANNOUNCED:
        refuse(name)
    if name not in _FAMILIES:
        near = get_close_matches(name, teacher_names(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UnknownNameError(f"no teacher is called {name!r}; {hint}known are {', '.join(teacher_names())}")
    family = importlib.import_module(f"zoo.teachers.{_FAMILIES[name]}")
    teacher: Teacher = family.load(name, dtype, device)
    return teacher


__all__ = ["ANNOUNCED", "Announced", "Teacher", "load_teacher", "teacher_names"]
