"""Adapters of foundation models, one a family, each imported only when it is asked for."""

import importlib
from difflib import get_close_matches

import torch

from zoo.errors import UnknownNameError
from zoo.teachers.base import Teacher

_FAMILIES = {
    "gfn2-xtb/teacher": "xtb",
    "sevennet-0/teacher": "sevennet",
    "sevennet-l3i5/teacher": "sevennet",
    "stillinger-weber/teacher": "stillinger_weber",
    "stillinger-weber/direct-teacher": "stillinger_weber",
}


def teacher_names() -> tuple[str, ...]:
    """All teachers that ``load_teacher`` knows."""
    return tuple(_FAMILIES)


def load_teacher(name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Teacher:
    """The teacher of that name. Raises UnknownNameError, MissingPackageError, IntegrityError."""
    if name not in _FAMILIES:
        near = get_close_matches(name, _FAMILIES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UnknownNameError(f"no teacher is called {name!r}; {hint}known are {', '.join(_FAMILIES)}")
    family = importlib.import_module(f"zoo.teachers.{_FAMILIES[name]}")
    teacher: Teacher = family.load(name, dtype, device)
    return teacher


__all__ = ["Teacher", "load_teacher", "teacher_names"]
