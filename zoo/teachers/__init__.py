"""Adapters of foundation models, one a family, each imported only when it is asked for."""

import importlib
from difflib import get_close_matches
from types import ModuleType

import torch

from zoo.errors import UnknownNameError
from zoo.potential import Traits
from zoo.teachers.announced import ANNOUNCED, Announced, refuse, why_not
from zoo.teachers.base import Teacher

_FAMILIES = {
    "gfn2-xtb/teacher": "xtb",
    "sevennet-0/teacher": "sevennet",
    "sevennet-l3i5/teacher": "sevennet",
    "stillinger-weber/teacher": "stillinger_weber",
    "stillinger-weber/direct-teacher": "stillinger_weber",
    "jmp-l/teacher": "jmp",
    "jmp-s/teacher": "jmp",
}
FINE_TUNED = {  # that nobody has published: made here by the recipe of that name, or converted from one's own
    "jmp-l/md22-teacher": "jmp",
    "jmp-s/md22-teacher": "jmp",
}


def teacher_names() -> tuple[str, ...]:
    """All teachers that a recipe may name; of some ``absent`` says that they cannot be loaded here."""
    return (*_FAMILIES, *FINE_TUNED, *ANNOUNCED)


def load_teacher(name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Teacher:
    """The teacher of that name.

    Raises UnknownNameError, MissingPackageError, IntegrityError, ConfigError; for one of ``ANNOUNCED`` CapabilityError,
    for one of ``FINE_TUNED`` that is not here NotReleasedError.
    """
    if name in ANNOUNCED:
        refuse(name)
    family = _family(name)
    if family is None:
        near = get_close_matches(name, teacher_names(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UnknownNameError(f"no teacher is called {name!r}; {hint}known are {', '.join(teacher_names())}")
    teacher: Teacher = family.load(name, dtype, device)
    return teacher


def needs_weights(name: str) -> bool:
    """Whether a teacher comes with no package, so that its weights have to be brought here first."""
    return (_FAMILIES | FINE_TUNED).get(name) == "jmp"


def absent(name: str) -> str | None:
    """Why a teacher cannot be loaded here, and what helps; None where only its package might be missing."""
    if name in ANNOUNCED:
        return why_not(name)
    family = _family(name) if needs_weights(name) else None
    why: str | None = family.absent(name) if family else None
    return why


def stated_traits(name: str) -> Traits | None:
    """What a teacher that may be absent gives; None of the others, which can be asked."""
    if name in ANNOUNCED:
        return ANNOUNCED[name].traits
    family = _family(name) if needs_weights(name) else None
    known: Traits | None = family.traits(name) if family else None
    return known


def _family(name: str) -> ModuleType | None:
    file = (_FAMILIES | FINE_TUNED).get(name)
    return importlib.import_module(f"zoo.teachers.{file}") if file else None


__all__ = [
    "ANNOUNCED",
    "FINE_TUNED",
    "Announced",
    "Teacher",
    "absent",
    "load_teacher",
    "needs_weights",
    "stated_traits",
    "teacher_names",
]
