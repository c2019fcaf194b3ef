"""Molecular dynamics at constant energy, and how constant it stays."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import covalent_radii
from ase.md.verlet import VelocityVerlet

from zoo.errors import ZooError
from zoo.thermal import degrees_of_freedom, thermal_velocities
from zoo.units import ASE_TIME_PER_FS, EV_PER_KELVIN, MEV_PER_EV

HOTTEST = 20.0  # times the initial temperature, plus 5000 K: beyond it a run has exploded
BOND = 1.3  # times the sum of the covalent radii: a pair of a molecule that is nearer at the start is bonded
BROKEN = 2.0  # times its length at the start: a bond that is longer is none
SHORTEST = 0.4  # ps; in less, a slope is that of the oscillation of the energy, a hundred times the drift
_SETTLING = 0.1  # of a run: its start from rest positions is no part of the drift
_FEWEST = 10  # points that a slope needs
_NO_AXIS = 1e-6  # of the largest moment of inertia: an axis with less is that of a straight molecule

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Dynamics:
    """One NVE run, a point for each step from the initial state on."""

    times_ps: np.ndarray  # (points,)
    energies_eV_atom: np.ndarray  # (points,) total: potential and kinetic
    temperatures_K: np.ndarray  # (points,)
    drift_meV_atom_ps: float | None  # slope of the total energy; None where the run ended early or is too short
    fluctuation_meV_atom: float | None  # root mean square about that slope
    completed: bool
    reason: str | None  # why it ended early, or has no drift


def nve(
    atoms: Atoms,
    calculator: Calculator,
    *,
    temperature_K: float,
    timestep_fs: float,
    steps: int,
    generator: np.random.Generator,
    on_step: OnStep | None = None,
) -> Dynamics:
    """Velocity Verlet from ``atoms``, which stay as they are, with velocities drawn at ``temperature_K``.

    A crystal that starts on its perfect sites soon has half of that temperature; a molecule does not rotate as a
    whole. The drift is a linear fit to all but the first tenth of the run. A run that explodes, in which a bond of a
    molecule breaks, or that the calculator refuses to go on with (any ZooError, such as leaving the engine's domain),
    ends there and says why. ``on_step(done, steps)`` may show progress.
    """
    moving = atoms.copy()
    moving.calc = calculator
    freedom = _start(moving, temperature_K, generator)
    bonds = _bonds(moving)
    points: list[tuple[float, float, float]] = []
    reason = None
    try:
        for step, point in enumerate(_states(moving, timestep_fs, steps, freedom)):
            points.append(point)
            reason = _explosion(point, temperature_K) or _broken(moving, bonds, point[0])
            if reason is not None:
                break
            if on_step is not None and step > 0:
                on_step(step, steps)
    except ZooError as error:
        reason = f"stopped at {len(points) * timestep_fs / 1000:.3f} ps: {error}"
    return _dynamics(np.array(points).reshape(-1, 3), reason)


def _start(moving: Atoms, temperature_K: float, generator: np.random.Generator) -> int:
    """Sets the velocities and gives the degrees of freedom among which their energy is shared.

    A molecule loses the rotation of the whole, ``ω`` of ``L = I ω``, and gets its energy back in the rest.
    """
    masses, freedom = moving.get_masses(), degrees_of_freedom(len(moving))
    velocities = thermal_velocities(masses, temperature_K, generator)
    moving.set_velocities(velocities)
    if (
        any(moving.pbc) or len(moving) < 3
    ):  # a pair that does not rotate has one degree of freedom, which may be at rest
        return freedom
    places = moving.positions - moving.get_center_of_mass()  # (atoms, 3)
    inertia = np.einsum("a,ab,ab,ij->ij", masses, places, places, np.eye(3)) - np.einsum(
        "a,ai,aj->ij", masses, places, places
    )
    momentum = masses @ np.cross(places, velocities)  # (3,)
    turning = np.linalg.pinv(inertia, rcond=_NO_AXIS, hermitian=True) @ momentum  # (3,)
    velocities -= np.cross(turning, places)
    left = freedom - int(np.linalg.matrix_rank(inertia, tol=_NO_AXIS * np.abs(inertia).max(), hermitian=True))
    kinetic = float(masses @ np.square(velocities).sum(axis=1)) / 2
    moving.set_velocities(velocities * np.sqrt(EV_PER_KELVIN * temperature_K * left / 2 / kinetic))
    return left


def _bonds(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Bonded pairs (bonds, 2) of a molecule and their lengths (bonds,) Å; of a crystal none."""
    if any(atoms.pbc):
        return np.zeros((0, 2), dtype=int), np.zeros(0)
    radii, distances = covalent_radii[atoms.numbers], atoms.get_all_distances()
    pairs = np.argwhere(np.triu(distances < BOND * (radii[:, None] + radii), k=1))
    return pairs, distances[pairs[:, 0], pairs[:, 1]]


def _broken(atoms: Atoms, bonds: tuple[np.ndarray, np.ndarray], time: float) -> str | None:
    pairs, before = bonds
    lengths = np.linalg.norm(atoms.positions[pairs[:, 0]] - atoms.positions[pairs[:, 1]], axis=1)
    if not (lengths > BROKEN * before).any():
        return None
    worst = int(np.argmax(lengths / before))
    one, two = (f"{atoms.symbols[index]}{index}" for index in pairs[worst])
    return f"it came apart: {one} and {two} were {lengths[worst]:.1f} Å from each other at {time:.3f} ps"


def _states(moving: Atoms, timestep_fs: float, steps: int, freedom: int) -> Iterator[tuple[float, float, float]]:
    """Time (ps), total energy (eV/atom) and temperature (K) of each step, the initial state first."""
    integrator = VelocityVerlet(moving, timestep_fs * ASE_TIME_PER_FS)
    for step in range(steps + 1):
        if step > 0:
            integrator.run(1)
        kinetic = moving.get_kinetic_energy()
        temperature = 2 * kinetic / (freedom * EV_PER_KELVIN)
        yield step * timestep_fs / 1000, (moving.get_potential_energy() + kinetic) / len(moving), temperature


def _explosion(point: tuple[float, float, float], temperature: float) -> str | None:
    time, energy, hot = point
    if not (np.isfinite(energy) and np.isfinite(hot)):
        return f"the energy was no longer finite at {time:.3f} ps"
    if hot > HOTTEST * temperature + 5000:
        return f"it exploded: {hot:.0f} K at {time:.3f} ps"
    return None


def drift_of(times_ps: np.ndarray, energies_eV_atom: np.ndarray) -> float | None:
    """Slope (meV/atom/ps) of a linear fit to all but the first tenth of a run.

    None where the run is shorter than ``SHORTEST`` or has too few points: a slope would tell of fluctuations.
    """
    line = _line(times_ps, energies_eV_atom)
    if line is None or times_ps[-1] - times_ps[0] < SHORTEST - 1e-9:
        return None
    return line[0] * MEV_PER_EV


def _line(times: np.ndarray, energies: np.ndarray) -> tuple[float, float] | None:
    """Slope and root mean square residual of the fit, in the units given; None for too few points."""
    start = round(_SETTLING * len(times))
    if len(times) - start < _FEWEST:
        return None
    slope, offset = np.polyfit(times[start:], energies[start:], 1)
    residual = energies[start:] - (slope * times[start:] + offset)
    return float(slope), float(np.sqrt(np.mean(residual**2)))


def _dynamics(points: np.ndarray, reason: str | None) -> Dynamics:
    times, energies, temperatures = points.T
    completed = reason is None
    drift = drift_of(times, energies) if completed else None
    line = _line(times, energies) if completed else None
    if completed and drift is None:
        reason = f"a run of {times[-1]:.3g} ps is too short for a drift, which takes {SHORTEST} ps"
    fluctuation = None if line is None else line[1] * MEV_PER_EV
    return Dynamics(times, energies, temperatures, drift, fluctuation, completed, reason)
