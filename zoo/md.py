"""Molecular dynamics with an engine, for the command line: ASE's integrators, a trajectory, a line now and then."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.io.trajectory import Trajectory
from ase.md.md import MolecularDynamics
from ase.md.verlet import VelocityVerlet

from zoo.errors import ConfigError, DivergedError, StructureError
from zoo.evaluate.dynamics import drift_of
from zoo.thermal import degrees_of_freedom, langevin, thermal_velocities
from zoo.units import ASE_TIME_PER_FS, EV_PER_KELVIN

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
    """What decides a run beside its atoms. Raises ConfigError for what makes no sense."""

    ensemble: Ensemble = "nve"
    temperature_K: float = 300.0  # of the thermostat; for NVE of the first velocities, where the atoms have none
    timestep_fs: float = 1.0
    steps: int = 1000
    every: int = 100  # steps between samples and frames
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("timestep_fs", "steps", "every"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} is {value}; give a positive number")
        for name in ("temperature_K", "seed"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"{name} is {value}; give 0 or more")


def run_dynamics(
    atoms: Atoms,
    calculator: Calculator,
    settings: Settings,
    *,
    trajectory: Path | None = None,
    overwrite: bool = False,
    on_sample: Callable[[Sample], None] | None = None,
    on_step: Callable[[int], object] | None = None,
) -> list[Sample]:
    """Moves ``atoms`` on, in place, and samples the run; ``trajectory`` is a file in ASE's format, flushed as it goes.

    Samples and frames are of the first step, each ``every``-th and the last. Velocities that the atoms have are kept,
    others are drawn. Raises ConfigError where the file may not be written, StructureError, DomainError or DivergedError
    where the engine cannot go on: at the start no file is made or touched, later the trajectory up to there stays, and
    the message says how far that was.
    """
    if trajectory is not None:
        check_output(trajectory, overwrite=overwrite)
    integrator = _begin(atoms, calculator, settings)
    samples: list[Sample] = []
    with ExitStack() as files:
        frames = None if trajectory is None else files.enter_context(Trajectory(str(trajectory), "w", atoms))

        def look() -> None:
            samples.append(_sample(atoms, integrator.nsteps, settings))
            if on_sample is not None:
                on_sample(samples[-1])
            if frames is not None:
                frames.write()

        integrator.attach(look, interval=settings.every)
        if on_step is not None:
            integrator.attach(lambda: on_step(integrator.nsteps), interval=1)
        _run(integrator, settings)
        if settings.steps % settings.every:
            look()
    return samples


def _run(integrator: MolecularDynamics, settings: Settings) -> None:
    """Raises what ended it, with how far it came."""
    try:
        integrator.run(settings.steps)
    except (StructureError, DivergedError) as error:
        done = integrator.nsteps
        raise type(error)(f"after {done} steps ({done * settings.timestep_fs / 1000:g} ps): {error}") from error


def check_output(
    path: Path, *, overwrite: bool = False, option: str = "--output", suffixes: tuple[str, ...] = (".traj",)
) -> None:
    """Raises ConfigError where structures may not be written to a file."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give {option} a file, such as {path / f'si{suffixes[0]}'}")
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent}; make it, or choose another {option}")
    if path.suffix not in suffixes:
        names = " or ".join(path.with_suffix(suffix).name for suffix in suffixes)
        raise ConfigError(f"{path} is no name for what {option} writes; name it {names}")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; choose another {option}, or pass --overwrite")


def energy_drift(samples: list[Sample], atoms: int) -> float | None:
    """Slope of the total energy, as an evaluation takes it; None where the run is too short for one."""
    times = np.array([sample.time_ps for sample in samples])
    return drift_of(times, np.array([sample.total_eV for sample in samples]) / atoms)


def _begin(atoms: Atoms, calculator: Calculator, settings: Settings) -> MolecularDynamics:
    """Asks for energy and forces, so that atoms that are refused are refused here, and sets velocities."""
    random = np.random.default_rng(settings.seed)
    atoms.calc = calculator
    atoms.get_potential_energy()
    atoms.get_forces()
    if not atoms.has("momenta"):
        atoms.set_velocities(thermal_velocities(atoms.get_masses(), settings.temperature_K, random))
    if not np.isfinite(atoms.get_momenta()).all():
        raise StructureError(f"a velocity of {atoms.symbols} is not a finite number; repair the structure")
    return _integrator(atoms, settings, random)


def _integrator(atoms: Atoms, settings: Settings, random: np.random.Generator) -> MolecularDynamics:
    if settings.ensemble == "nve":
        return VelocityVerlet(atoms, settings.timestep_fs * ASE_TIME_PER_FS)
    return langevin(atoms, settings.timestep_fs, settings.temperature_K, FRICTION, random)


def _sample(atoms: Atoms, step: int, settings: Settings) -> Sample:
    potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
    time = step * settings.timestep_fs / 1000
    return Sample(step, time, _temperature(atoms, settings.ensemble), float(potential), float(potential + kinetic))


def _temperature(atoms: Atoms, ensemble: Ensemble) -> float:
    """K. A thermostat heats the motion of the whole as well; without one, that never becomes heat, and is left out."""
    kinetic, freedom = atoms.get_kinetic_energy(), atoms.get_number_of_degrees_of_freedom()
    if ensemble == "nve" and len(atoms) > 1 and not atoms.constraints:
        kinetic -= (atoms.get_momenta().sum(axis=0) ** 2).sum() / (2 * atoms.get_masses().sum())
        freedom = degrees_of_freedom(len(atoms))
    return max(float(2 * kinetic / (max(freedom, 1) * EV_PER_KELVIN)), 0.0)
