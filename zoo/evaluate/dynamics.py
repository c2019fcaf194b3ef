"""Molecular dynamics at constant energy, and how constant it stays."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.md.verlet import VelocityVerlet

from zoo.errors import ZooError
from zoo.thermal import degrees_of_freedom, thermal_velocities
from zoo.units import ASE_TIME_PER_FS, EV_PER_KELVIN, MEV_PER_EV

HOTTEST = 20.0  # times the initial temperature, plus 5000 K: beyond it a run has exploded
SHORTEST = 0.4  # ps; in less, a slope is that of the oscillation of the energy, a hundred times the drift
_SETTLING = 0.1  # of a run: its start from rest positions is no part of the drift
_FEWEST = 10  # points that a slope needs

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

    A crystal that starts on its perfect sites soon has half of that temperature. The drift is a linear fit to
    all but the first tenth of the run. A run that explodes, or that the calculator refuses to go on with (any
    ZooError, such as leaving the engine's domain), ends there and says why. ``on_step(done, steps)`` may show
    progress.
    """
    moving = atoms.copy()
    moving.calc = calculator
    moving.set_velocities(thermal_velocities(moving.get_masses(), temperature_K, generator))
    points: list[tuple[float, float, float]] = []
    reason = None
    try:
        for step, point in enumerate(_states(moving, timestep_fs, steps)):
            points.append(point)
            reason = _explosion(point, temperature_K)
            if reason is not None:
                break
            if on_step is not None and step > 0:
                on_step(step, steps)
    except ZooError as error:
        reason = f"stopped at {len(points) * timestep_fs / 1000:.3f} ps: {error}"
    return _dynamics(np.array(points).reshape(-1, 3), reason)


def _states(moving: Atoms, timestep_fs: float, steps: int) -> Iterator[tuple[float, float, float]]:
    """Time (ps), total energy (eV/atom) and temperature (K) of each step, the initial state first."""
    integrator = VelocityVerlet(moving, timestep_fs * ASE_TIME_PER_FS)
    for step in range(steps + 1):
        if step > 0:
            integrator.run(1)
        kinetic = moving.get_kinetic_energy()
        temperature = 2 * kinetic / (degrees_of_freedom(len(moving)) * EV_PER_KELVIN)
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
