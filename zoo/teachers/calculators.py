"""Any calculator of ASE as a teacher, handed over in Python."""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers

from zoo.errors import CapabilityError, ConfigError, DivergedError, ZooError
from zoo.licences import LICENCES
from zoo.memory import is_out_of_memory
from zoo.potential import Traits
from zoo.teachers.base import Teacher
from zoo.teachers.differences import Answer, Ask, MeasuredDifferences
from zoo.teachers.weights import is_own

_LONGEST = 300  # characters of a calculator's own words in a message
_HOW = "as hashlib.sha256(Path(FILE).read_bytes()).hexdigest() gives of its file of weights or settings"


def teacher_from(
    calculator: Any,
    *,
    name: str,
    elements: Sequence[str],
    level_of_theory: str,
    licence: str,
    citation: str = "",
    digest: str | None = None,
    step: float | None = None,
) -> Teacher:
    """A calculator of ASE as a teacher, for ``zoo.run_recipe(recipe, teacher=...)``; its name begins with ``own/``.

    Its forces must be the gradient of its energy, and an answer must not depend on what was asked before: where last
    digits do, as with neighbours kept in a skin, so do those of labels that were stopped and went on. Hessian
    products are central differences of forces, by a step that is measured unless ``step``, in Å, says it; it and the
    error of the products are kept with the labels. ``elements`` are symbols of what it can compute, ``licence`` is the
    SPDX identifier of the terms of what it computes with, which a student's must follow.

    ``digest`` tells this teacher from others of its name, in labels and locks: hex SHA-256 of its file of weights, for
    instance. By default it is of the calculator's class, its ``parameters``, the version of its package and ``step``:
    what else decides its answers, such as environment variables, that does not see. A calculator without parameters,
    or with such as are no plain values, needs a ``digest``. Raises ConfigError, and CapabilityError where it gives no
    energy or no forces.
    """
    if not is_own(name):
        raise ConfigError(f"name {name!r} is no name for a teacher of one's own; expected own/engine, as in own/my-dft")
    if licence not in LICENCES:
        raise ConfigError(f"licence {licence!r} of {name} is unknown; known are {', '.join(LICENCES)}")
    if step is not None and not 0 < step < 1:
        raise ConfigError(f"step {step} of {name} is no displacement in Å; expected 0 < step < 1, such as 0.01")
    if digest is not None and not re.fullmatch("[0-9a-f]{64}", digest):
        raise ConfigError(f"digest {digest!r} of {name} is no SHA-256; expected 64 of 0 to 9 and a to f, {_HOW}")
    given = _properties(calculator, name)
    traits = Traits(stress="stress" in given, atomic_energies="energies" in given)
    ask = from_calculator(calculator, name)
    potential = MeasuredDifferences(ask, _numbers(elements, name), name=name, traits=traits, step=step)
    package = _package(calculator)
    return Teacher(
        name=name,
        potential=potential.to(torch.float64).eval(),
        weights_sha256=digest or _digest(calculator, name, package, step),
        package=package,
        level_of_theory=level_of_theory,
        licence_code=licence,
        licence_weights=licence,
        citation=citation,
        batched=False,
    )


def from_calculator(calculator: Any, name: str = "the calculator") -> Ask:
    """The function that a calculator of ASE is; where the calculator fails, it raises DivergedError.

    The calculator must give the same answer whatever it was asked before: one that starts from its last wave function
    makes noise of which differences make more. Where it has a free energy, forces are the gradient of that, and it is
    the energy here.
    """
    has = calculator.implemented_properties

    def ask(
        numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, more: Collection[str]
    ) -> Answer:
        wanted = set(more) & set(has)
        atoms = Atoms(numbers, positions, cell=cell, pbc=pbc)
        atoms.calc = calculator
        try:
            return Answer(
                energy=float(atoms.get_potential_energy(force_consistent="free_energy" in has)),
                forces=np.array(atoms.get_forces(), dtype=np.float64),
                stress=np.array(atoms.get_stress(voigt=False)) if "stress" in wanted and pbc.all() else None,
                energies=np.array(atoms.get_potential_energies()) if "energies" in wanted else None,
            )
        except ZooError:
            raise
        except Exception as error:  # whatever a calculator raises: ASE's errors, a program's, a file's
            if is_out_of_memory(error):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]
            raise DivergedError(
                f"{name} fails for {atoms.symbols} ({reason}); leave the structure out, or mend the calculator"
            ) from error

    return ask


def _properties(calculator: Any, name: str) -> Sequence[str]:
    if isinstance(calculator, type):
        kind = calculator.__name__
        raise CapabilityError(f"{name} is the class {kind}, expected a calculator; give an instance of it: {kind}()")
    given = getattr(calculator, "implemented_properties", None)
    if given is None or not hasattr(calculator, "get_property"):
        raise CapabilityError(
            f"{name} is {type(calculator).__name__}, no calculator of ASE; expected one, as in atoms.calc = calculator"
        )
    lacking = [what for what in ("energy", "forces") if what not in given]
    if lacking:
        raise CapabilityError(
            f"{name} is {type(calculator).__name__}, which gives no {' and no '.join(lacking)}; "
            "expected a calculator with energy and forces in implemented_properties"
        )
    return tuple(given)


def _numbers(elements: Sequence[str], name: str) -> tuple[int, ...]:
    """Atomic numbers, in order."""
    given = (elements,) if isinstance(elements, str) else tuple(elements)
    unknown = [str(symbol) for symbol in given if atomic_numbers.get(symbol, 0) == 0]
    if unknown or not given:
        told = f"{unknown[0]!r} among its elements, which is none" if unknown else "no elements"
        raise ConfigError(f"{name} has {told}; expected symbols of what it can compute, as in elements=('H', 'O')")
    return tuple(sorted({atomic_numbers[symbol] for symbol in given}))


def _package(calculator: Any) -> str:
    """The package that the calculator's class is of, with its version where it is installed."""
    module = type(calculator).__module__.partition(".")[0]
    for package in importlib.metadata.packages_distributions().get(module, ()):
        return f"{package} {importlib.metadata.version(package)}"
    return module


def _digest(calculator: Any, name: str, package: str, step: float | None) -> str:
    kind, parameters = type(calculator), dict(getattr(calculator, "parameters", None) or {})
    try:
        plain = _plain(parameters)
    except TypeError as error:
        raise ConfigError(_unseen(kind, name, f"has {error} among its parameters, of which no text is known")) from None
    if not parameters:
        raise ConfigError(_unseen(kind, name, "has no parameters"))
    what = {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "package": package,
        "parameters": plain,
        "step": step,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _unseen(kind: type, name: str, why: str) -> str:
    return f"{name} is {kind.__name__}, which {why}: one cannot be told from another; give digest=, {_HOW}"


def _plain(value: Any) -> Any:
    """As JSON. Raises TypeError, with its type, for what is no plain value: its text may hold an address."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__}")
