"""Structures relaxed with an engine: ASE's optimisers, and its Fréchet filter where the cell may change, too."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS
from ase.optimize.optimize import Optimizer
from ase.stress import voigt_6_to_full_3x3_stress

from zoo.errors import CapabilityError, ConfigError, StructureError, ZooError
from zoo.units import GPA_PER_EV_A3

Cell = Literal["none", "volume", "full"]
OPTIMIZERS: dict[str, type[Optimizer]] = {"fire": FIRE, "lbfgs": LBFGS, "bfgs": BFGS}
_RESULTS = ("energy", "free_energy", "forces", "stress")


@dataclass(frozen=True)
class Settings:
    """What decides a relaxation beside its atoms. Raises ConfigError for what makes no sense."""

    fmax_eV_A: float = 0.01  # of an atom; where the cell may change, its gradient by the strain counts, in eV an atom
    steps: int = 500  # at most
    cell: Cell = "none"  # kept, scaled as a whole, or free
    pressure_GPa: float = 0.0  # from outside: positive is compression
    optimizer: str = "fire"

    def __post_init__(self) -> None:
        for name in ("fmax_eV_A", "steps"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} is {value}; give a positive number")
        for name, known in (("cell", get_args(Cell)), ("optimizer", tuple(OPTIMIZERS))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        if not math.isfinite(self.pressure_GPa):
            raise ConfigError(f"pressure_GPa is {self.pressure_GPa}; give a number")
        if self.pressure_GPa and self.cell == "none":
            raise ConfigError(
                f"a pressure of {self.pressure_GPa:g} GPa cannot act on a kept cell; choose --cell volume or full"
            )


@dataclass(frozen=True)
class Relaxation:
    """Where a relaxation ended: converged, out of steps, or at the last structure that there was an answer for."""

    atoms: Atoms  # a copy of what was given, moved, with its energy and forces, and stress where its cell could change
    steps: int
    fmax_eV_A: float  # largest force on an atom, less what constraints take
    stress_GPa: float | None  # largest component that the pressure from outside leaves; None where the cell was kept
    converged: bool = False
    stopped: str | None = None  # why it could not go on

    @property
    def energy_eV(self) -> float:  # noqa: N802
        """Without the pressure times the volume."""
        return float(self.atoms.get_potential_energy())


def relax(
    atoms: Atoms,
    calculator: Calculator,
    settings: Settings,
    *,
    on_step: Callable[[Atoms, int], object] | None = None,
) -> Relaxation:
    """Moves a copy of ``atoms`` to where its forces, and the stress of a cell that may change, are small.

    Constraints, info and arrays stay, but for earlier results. ``on_step`` sees the atoms with their results after each
    step, and before the first. Atoms that are refused, diverge or no longer fit into memory on their way end it: what
    they were one step before is returned, and says why. Raises StructureError, DomainError, DivergedError or
    OutOfMemoryError where that happens at the start, and CapabilityError for a calculator without energies, or without
    stress where the cell is to change.
    """
    moving = atoms.copy()
    moving.calc = calculator
    _begin(moving, settings)
    optimizer = OPTIMIZERS[settings.optimizer](_variables(moving, settings), logfile=None)
    found = _look(moving, 0, settings)

    def look() -> None:
        nonlocal found
        found = _look(moving, optimizer.nsteps, settings)
        if on_step is not None:
            on_step(found.atoms, optimizer.nsteps)

    optimizer.attach(look)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "logm result may be inaccurate", RuntimeWarning)  # in its last digits
        try:
            converged = bool(optimizer.run(fmax=settings.fmax_eV_A, steps=settings.steps))
        except ZooError as error:
            return replace(found, stopped=str(error))
    return replace(found, converged=converged)


def _begin(atoms: Atoms, settings: Settings) -> None:
    """Asks for all that will be needed, so that what is refused is refused here."""
    try:
        atoms.get_potential_energy()
        atoms.get_forces()
    except PropertyNotImplementedError as error:
        raise CapabilityError(f"{error}; relaxing takes both: choose an engine with energies") from error
    if settings.cell == "none":
        return
    if not all(atoms.pbc):
        raise StructureError(f"{atoms.symbols} is not periodic in all three directions; relax it with --cell none")
    try:
        atoms.get_stress()
    except PropertyNotImplementedError as error:
        raise CapabilityError(f"{error}; relax with --cell none") from error


def _variables(atoms: Atoms, settings: Settings) -> Atoms | FrechetCellFilter:
    if settings.cell == "none":
        return atoms
    pressure = settings.pressure_GPa / GPA_PER_EV_A3
    return FrechetCellFilter(atoms, hydrostatic_strain=settings.cell == "volume", scalar_pressure=pressure)


def _look(atoms: Atoms, step: int, settings: Settings) -> Relaxation:
    """The atoms as they are, with the results that their calculator holds."""
    seen = atoms.copy()
    results = {key: atoms.calc.results[key] for key in _RESULTS if key in atoms.calc.results}
    for key in _RESULTS:  # of an earlier structure, or by another method
        seen.info.pop(key, None)
        seen.arrays.pop(key, None)
    seen.calc = SinglePointCalculator(seen, **results)
    fmax = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    stress = None if settings.cell == "none" else _unbalanced(atoms, settings)
    return Relaxation(seen, step, fmax, stress)


def _unbalanced(atoms: Atoms, settings: Settings) -> float:
    """GPa: the largest component of the stress that the pressure from outside does not balance."""
    stress = voigt_6_to_full_3x3_stress(atoms.get_stress()) * GPA_PER_EV_A3 + settings.pressure_GPa * np.eye(3)
    return float(abs(np.trace(stress)) / 3 if settings.cell == "volume" else np.abs(stress).max())
