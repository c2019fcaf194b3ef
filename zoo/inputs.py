"""What people give to an engine, looked at before it is asked; errors say what was got, and what was expected."""

import os
import warnings
from collections.abc import Iterable

import torch
from ase import Atoms

from zoo.errors import ConfigError, StructureError, ZooWarning

_ASE = "read or build it with ASE"


def check_atoms(given: object, expected: str = "expected ase.Atoms", remedy: str = _ASE) -> None:
    """Raises StructureError for anything but one ``ase.Atoms``; ``remedy`` is for what is no file."""
    if not isinstance(given, Atoms):
        raise _refusal(given, expected, remedy, "")


def as_many(given: Atoms | Iterable[Atoms], method: str) -> Iterable[Atoms]:
    """Structures as they are, one as a list. Raises StructureError for what holds none; none of them is looked at."""
    if isinstance(given, Atoms):
        return [given]
    if isinstance(given, str | os.PathLike) or not isinstance(given, Iterable):
        raise _refusal(given, f"{method} takes ase.Atoms, one or many", _ASE, ", ':'")
    return given


def told(value: object) -> str:
    """What somebody gave, in a word: a text, a number or None as it is, else its type."""
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    return f"{value!r:.100}" if value is None or isinstance(value, str | int | float) else type(value).__name__


def warn_of_constraints(atoms: Atoms, what: str, remedy: str, *, honoured: tuple[type, ...] = ()) -> None:
    """A ZooWarning, of the caller's caller, where atoms have constraints of other types, which count for nothing."""
    names = sorted({type(one).__name__ for one in atoms.constraints if not isinstance(one, honoured)})
    if names:
        message = f"constraints of {atoms.symbols} that do not count in {what}: {', '.join(names)}; {remedy}"
        warnings.warn(message, ZooWarning, stacklevel=3)


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` is CUDA where there is one. Raises ConfigError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        place = None
    if place is None or place.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {told(device)}; expected auto, cpu, cuda or cuda:0")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {str(device)!r}, but PyTorch finds no CUDA here; use device='cpu'")
    return place


def _refusal(given: object, expected: str, remedy: str, index: str) -> StructureError:
    if isinstance(given, str | os.PathLike):
        remedy = f"read it: ase.io.read({told(given)}{index})"
    elif isinstance(given, list | tuple) and remedy == _ASE:
        remedy = "give them in one flat list"
    return StructureError(f"{expected}, got {told(given)}; {remedy}")
