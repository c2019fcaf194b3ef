"""Adapters of foundation models, one a family, each imported only when it is asked for.

A teacher is loaded in this process where its family's package is found, else by a worker process in the environment
that ``zoo teachers install`` has made for the family.
"""

import importlib
import shlex
import warnings
from contextlib import suppress
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch

from zoo.errors import IntegrityError, MissingPackageError, UnknownNameError, ZooWarning
from zoo.potential import Traits
from zoo.teachers.base import Teacher
from zoo.teachers.environments import python_of
from zoo.teachers.families import FAMILIES, FINE_TUNED, Family, family_of, table_names
from zoo.teachers.remote import load_remote
from zoo.teachers.weights import (
    OwnTeacher,
    Weights,
    accepting,
    copies,
    find_own,
    is_own,
    own_teacher,
    own_teachers,
    weights_due,
    weights_folder,
)

Step = Literal["install", "fetch", "add", "convert", "distill"]  # the command of this name


def teacher_names() -> tuple[str, ...]:
    """All teachers of the table, which a recipe may name beside those of one's own; ``absent`` says what they lack."""
    return table_names()


def is_teacher_name(name: str) -> bool:
    """Whether a recipe may name this teacher: one of the table, or one of one's own, known here or not."""
    return family_of(name) is not None or is_own(name)


def no_teacher(name: str) -> str:
    """For a message: that no teacher goes by this name, and what may have been meant."""
    near = get_close_matches(name, teacher_names(), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"no teacher is called {name!r}; {hint}zoo teachers lists them, and one of your own is called own/<engine>"


def load_teacher(name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Teacher:
    """The teacher of that name, in this process where its package is found, else through a worker.

    Raises UnknownNameError, MissingPackageError where its package or its weights are not here, IntegrityError,
    ConfigError, WorkerError; for one of ``FINE_TUNED`` that is not here NotReleasedError.
    """
    family = _serving(name)
    why = None if family.converted else absent(name)  # the adapter of those has classes of its own for that
    if why is not None:
        kind = IntegrityError if _gone(name) is not None else MissingPackageError
        raise kind(f"{name} cannot be run: {why}")
    python = python_of(family.key) if family.locked else None
    if python is None:
        return load_here(name, dtype=dtype, device=device)
    if family.is_importable:
        with suppress(MissingPackageError):  # of one that it imports in turn, or one of another version
            return load_here(name, dtype=dtype, device=device)
    return load_remote(name, dtype, device, python)


def load_here(name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Teacher:
    """The teacher in this very process, by its adapter; a worker calls this.

    Raises what ``load_teacher`` does but WorkerError.
    """
    family = _serving(name)
    adapter, facts = _adapter(family), own_teacher(name)
    if facts is not None:
        if not family.own_files:
            raise UnknownNameError(f"{name} is a file for {family.key}, {_no_files(family)}")
        own: Teacher = adapter.load_file(find_own(facts), name, facts, dtype, device)
        return own
    teacher: Teacher = adapter.load(name, dtype, device)
    _check_stated(teacher, adapter.traits(name))
    return teacher


def _check_stated(teacher: Teacher, stated: Traits) -> None:
    """Warns where the file of a teacher gives something else than was said before it was opened: what it gives counts.

    Raises IntegrityError where it is of another kind, and where nothing but its first download says that it is right.
    """
    found, expected = asdict(teacher.potential.traits), asdict(stated)
    differing = [trait for trait in found if found[trait] != expected[trait]]
    if not differing:
        return
    told = "; ".join(f"{trait} {found[trait]}, expected {expected[trait]}" for trait in differing)
    what = f"the weights of {teacher.name} are of another model than zoo knows by this name ({told})"
    if not {"conservative", "energies"}.isdisjoint(differing):
        raise IntegrityError(f"{what}, of another kind; take a newer zoo")
    if _is_pinned(teacher.name):
        raise IntegrityError(
            f"{what}, and only their first download says what they are; if you know them to be right, run: "
            f"{accepting(teacher.name, teacher.weights_sha256)}"
        )
    warnings.warn(f"{what}; their digest is right, and what they give counts", ZooWarning, stacklevel=4)


def _is_pinned(name: str) -> bool:
    """Whether the first download alone says what the weights of a teacher are."""
    weights = weights_of(name)
    path = None if weights is None else next(copies(name, weights), None)
    return weights is not None and path is not None and weights_due(path, name, weights).seen == "here"


def absent(name: str) -> str | None:
    """Why a teacher cannot be loaded here, with the command that helps first; None where all it needs is found.

    Nothing is imported, opened or asked over the network.
    """
    family, step = _family(name), next_step(name)
    if family is not None and family.converted:
        told: str | None = _adapter(family).absent(name)
        return told
    if family is not None and step == "install":
        return _without_package(family)
    if step == "add":
        gone = _gone(name)
        return _no_record(name) if gone is None else f"its file {gone} is gone; put it back, or {_adding(name)}"
    return None if step is None else f"its weights are not here; run: zoo teachers {step} {name}"


def next_step(name: str) -> Step | None:
    """What helps first where a teacher cannot be loaded here; None where all it needs is found."""
    family = _family(name)
    if family is None:
        return "add" if is_own(name) else None
    if family.converted:
        made: Step = "distill" if name in FINE_TUNED else "convert"
        return None if _adapter(family).absent(name) is None else made
    if not family.is_importable and not (family.locked and python_of(family.key)):
        return "install"
    if _gone(name) is not None:
        return "add"
    return None if _has_weights(name) else "fetch"


def bringing(name: str) -> list[str]:
    """The commands that bring a teacher here, in order; none where it is."""
    family = family_of(name)
    if family is None or absent(name) is None:
        return []
    if name in FINE_TUNED:
        return [*bringing(f"{name.partition('/')[0]}/teacher"), f"zoo distill {name}"]
    if family.converted:
        return [f"zoo convert {name.partition('/')[0]} --download"]
    missing = not family.is_importable and not (family.locked and python_of(family.key))
    return [_install(family)] * missing + [f"zoo teachers fetch {name}"] * (not _has_weights(name))


def needs_converting(name: str) -> bool:
    """Whether a teacher's weights are made here of what their authors publish, by ``zoo convert`` or a recipe."""
    family = family_of(name)
    return family is not None and family.converted


def weights_of(name: str) -> Weights | None:
    """The file of weights that is fetched for a teacher of the table; None where there is none to fetch."""
    family = family_of(name)
    if family is None or family.converted:
        return None
    found: Weights | None = _adapter(family).weights(name)
    return found


def stated_traits(name: str) -> Traits | None:
    """What a teacher gives, known before it is loaded; None of one's own, which is known when it is loaded."""
    family = family_of(name)
    known: Traits | None = _adapter(family).traits(name) if family else None
    return known


def _serving(name: str) -> Family:
    """The family that serves a teacher. Raises UnknownNameError."""
    family = _family(name)
    if family is None:
        raise UnknownNameError(f"{name} cannot be run: {_no_record(name)}" if is_own(name) else no_teacher(name))
    return family


def _family(name: str) -> Family | None:
    own = own_teacher(name)
    return FAMILIES.get(own.family) if own is not None else family_of(name)


def _adapter(family: Family) -> ModuleType:
    return importlib.import_module(family.module)


def _has_weights(name: str) -> bool:
    found = weights_of(name)
    return found is None or next(copies(name, found), None) is not None


def _gone(name: str) -> Path | None:
    """The file of a teacher of one's own, where it is not there."""
    facts = own_teacher(name)
    path = None if facts is None else weights_folder(name) / facts.file
    return None if path is None or path.is_file() else path


def _without_package(family: Family) -> str:
    own = f"{_install(family)} (in an environment of its own), or: " if family.locked else ""
    return f"the package {family.install.split()[0]} is not installed; run: {own}pip install {family.install}"


def _install(family: Family) -> str:
    return f"zoo teachers install {family.key}"


def _no_record(name: str) -> str:
    return (
        f"nobody has added it here; {_adding(name)}, or hand a calculator of ASE over in Python: "
        f"zoo.run_recipe(RECIPE, teacher=zoo.teacher_from(CALCULATOR, name={name!r}, ...))"
    )


def _adding(name: str) -> str:
    return f"run: zoo teachers add {shlex.quote(name)} FILE --family FAMILY --licence SPDX --level-of-theory TEXT"


def _no_files(family: Family) -> str:
    able = ", ".join(one.key for one in FAMILIES.values() if one.own_files)
    return f"whose adapter takes no files of one's own; expected a family of {able}"


__all__ = [
    "FAMILIES",
    "FINE_TUNED",
    "Family",
    "OwnTeacher",
    "Teacher",
    "Weights",
    "absent",
    "bringing",
    "family_of",
    "is_own",
    "is_teacher_name",
    "load_here",
    "load_teacher",
    "needs_converting",
    "next_step",
    "no_teacher",
    "own_teacher",
    "own_teachers",
    "stated_traits",
    "teacher_names",
    "weights_of",
]
