"""Molecular dynamics with an engine, for the command line: ASE's integrators, a trajectory, a line now and then."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.io.trajectory import Trajectory
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.verlet import VelocityVerlet

from zoo.errors import ConfigError
from zoo.evaluate.dynamics import drift_of
from zoo.thermal import thermal_velocities
from zoo.units import ASE_TIME_PER_FS

Ensemble = Literal["nve", "nvt"]
FRICTION = 0.01  # 1/fs, of Langevin dynamics


@dataclass(frozen=True)
class Sample:
    """One line of a run."""

    step: int
    time_ps: float
    temperature_K: float
    potential_eV: float
    total_eV: float


@dataclass(frozen=True)
class Settings:
    """What decides a run beside its atoms."""

    ensemble: Ensemble = "nve"
    temperature_K: float = 300.0  # of the thermostat; for NVE of the first velocities, where the atoms have none
    timestep_fs: float = 1.0
    steps: int = 1000
    every: int = 100  # steps between samples and frames
    seed: int = 0


def run_dynamics(
    atoms: Atoms,
    calculator: Calculator,
    settings: Settings,
    *,
    trajectory: Path | None = None,
    on_sample: Callable[[Sample], None] | None = None,
) -> list[Sample]:
    """Moves ``atoms`` on, in place, and samples the run; ``trajectory`` is a file in ASE's format, flushed as it goes.

    Velocities that the atoms have are kept, others are drawn. Raises ConfigError for settings that make no sense,
    DomainError or DivergedError where the engine cannot go on; the trajectory up to there stays.
    """
    _check(settings)
    random = np.random.default_rng(settings.seed)
    atoms.calc = calculator
    if not atoms.has("momenta"):
        atoms.set_velocities(thermal_velocities(atoms.get_masses(), settings.temperature_K, random))
    integrator = _integrator(atoms, settings, random)
    samples: list[Sample] = []

    def sample() -> None:
        samples.append(_sample(atoms, integrator.nsteps, settings))
        if on_sample is not None:
            on_sample(samples[-1])

    integrator.attach(sample, interval=settings.every)
    if trajectory is None:
        integrator.run(settings.steps)
        return samples
    with Trajectory(str(trajectory), "w", atoms) as frames:
        integrator.attach(frames.write, interval=settings.every)
        integrator.run(settings.steps)
    return samples


def energy_drift(samples: list[Sample], atoms: int) -> float | None:
    """Slope of the total energy, as an evaluation takes it; None where the run is too short for one."""
    times = np.array([sample.time_ps for sample in samples])
    return drift_of(times, np.array([sample.total_eV for sample in samples]) / atoms)


def _integrator(atoms: Atoms, settings: Settings, random: np.random.Generator) -> MolecularDynamics:
    timestep = settings.timestep_fs * ASE_TIME_PER_FS
    if settings.ensemble == "nve":
        return VelocityVerlet(atoms, timestep)
    friction = FRICTION / ASE_TIME_PER_FS
    return Langevin(atoms, timestep, temperature_K=settings.temperature_K, friction=friction, rng=random, fixcm=False)


def _sample(atoms: Atoms, step: int, settings: Settings) -> Sample:
    potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
    time = step * settings.timestep_fs / 1000
    return Sample(step, time, atoms.get_temperature(), float(potential), float(potential + kinetic))


def _check(settings: Settings) -> None:
    for name in ("timestep_fs", "steps", "every"):
        if getattr(settings, name) <= 0:
            raise ConfigError(f"{name} is {getattr(settings, name)}; give a positive number")
    if settings.temperature_K < 0:
        raise ConfigError(f"temperature_K is {settings.temperature_K}; give 0 or more")
