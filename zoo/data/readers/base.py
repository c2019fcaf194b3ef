"""What all readers share: where frames come from, atoms that are checked, and errors that say where."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers, chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress

from zoo.errors import IntegrityError, LabelError, MissingPackageError, ZooError

REPAIR = "fetch the file again, or repair it"
Problem = type[IntegrityError] | type[LabelError]


@dataclass(frozen=True)
class Origin:
    """A file or folder to read, and what to call it."""

    path: Path
    label: str  # in messages and places
    name: str | None = None  # of what is in it, where the file does not say
    members: str | None = None  # a glob: which members of an archive


@contextmanager
def broken(place: str, form: str, *kinds: type[Exception]) -> Iterator[None]:
    """Within it, errors of these kinds become an IntegrityError that names the place and what it should be."""
    try:
        yield
    except ZooError:
        raise
    except kinds as error:
        raise IntegrityError(
            f"{place} cannot be read as {form} ({problem(error)}); fetch it again, or give the format that it has"
        ) from error


def problem(error: Exception) -> str:
    """An error of somebody else in one short line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if "allow_pickle" in text:  # NumPy's advice, which nobody should follow
        return "it holds pickled objects, or is no NumPy file"
    if isinstance(error, BadZipFile):
        return f"{error}: it was cut short, or is of another kind"
    return text if len(text) <= 200 else f"{text[:199]}…"


def missing_package(package: str, what: str) -> MissingPackageError:
    return MissingPackageError(f"{what} need {package}; run: pip install {package}")


def bare_atoms(
    place: str,
    numbers: Any,
    positions: Any,
    *,
    cell: Any = None,
    pbc: Any = True,
    energy: Any = None,
    forces: Any = None,
    stress: Any = None,
) -> Atoms:
    """Atoms of these numbers and positions (Å), periodic where there is a cell, with the labels that are given.

    The stress is ASE's, in Voigt's order or as a matrix. Raises IntegrityError for wrong shapes, elements that are
    none and positions that are not finite numbers, LabelError for such labels.
    """
    elements = _elements(place, numbers)
    count = len(elements)
    places = numeric(place, "positions", positions, (count, 3))
    periodic = cell is not None and bool(np.any(pbc))
    vectors = numeric(place, "cell", cell, (3, 3)) if periodic else None
    atoms = Atoms(numbers=elements, positions=places, cell=vectors, pbc=pbc if periodic else False)
    labels: dict[str, Any] = {}
    if energy is not None:
        labels["energy"] = float(numeric(place, "energy", energy, (), LabelError))
    if forces is not None:
        labels["forces"] = numeric(place, "forces", forces, (count, 3), LabelError)
    if stress is not None:
        labels["stress"] = _voigt(place, stress)
    if labels:
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def numeric(place: str, what: str, values: Any, shape: tuple[int, ...], kind: Problem = IntegrityError) -> np.ndarray:
    """A copy of the values in float64. Raises ``kind`` where they are not finite numbers in this shape."""
    try:
        found = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise kind(f"{place}: its {what} are not an array of the shape {shape}; {REPAIR}") from error
    if found.shape != shape:
        raise kind(f"{place}: its {what} have the shape {found.shape}, expected {shape}; {REPAIR}")
    if found.dtype.kind not in "fiu":
        raise kind(f"{place}: its {what} are of the type {found.dtype}, expected real numbers; {REPAIR}")
    if not np.isfinite(found).all():
        raise kind(f"{place}: its {what} hold NaN or an infinite number; leave the frame out, or repair it")
    return found.astype(np.float64)


def atomic_number(place: str, symbol: Any) -> int:
    """Raises IntegrityError for what is not an element; deuterium and tritium are hydrogen."""
    number = 1 if symbol in ("D", "T") else atomic_numbers.get(symbol, 0) if isinstance(symbol, str) else 0
    if number == 0:
        raise IntegrityError(f"{place}: {str(symbol)[:40]!r} is not an element; {REPAIR}")
    return number


def whole_number(place: str, what: str, value: Any) -> int:
    """Raises IntegrityError for what is not one."""
    try:
        number = float(value)
        if number == int(number):
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise IntegrityError(f"{place}: its {what} is {str(value)[:40]!r}, expected a whole number; {REPAIR}")


def _elements(place: str, numbers: Any) -> np.ndarray:
    """(atoms,)"""
    found = np.asarray(numbers)
    if found.ndim != 1 or len(found) == 0:
        raise IntegrityError(f"{place}: its atomic numbers have the shape {found.shape}, expected (atoms,); {REPAIR}")
    if found.dtype.kind not in "iu" or found.min() < 1 or found.max() >= len(chemical_symbols):
        raise IntegrityError(f"{place}: its atomic numbers are not whole numbers from 1 to 118; {REPAIR}")
    return found.astype(int)


def _voigt(place: str, stress: Any) -> np.ndarray:
    """(6,) in ASE's order"""
    if np.shape(stress) == (3, 3):
        return np.asarray(full_3x3_to_voigt_6_stress(numeric(place, "stress", stress, (3, 3), LabelError)))
    return numeric(place, "stress", stress, (6,), LabelError)
