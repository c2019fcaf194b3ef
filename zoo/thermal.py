"""Atoms that move at a temperature."""

import numpy as np
from ase import Atoms
from ase.md.langevin import Langevin

from zoo.units import ASE_TIME_PER_FS, EV_PER_KELVIN


def thermal_velocities(masses: np.ndarray, temperature: float, generator: np.random.Generator) -> np.ndarray:
    """(atoms, 3) Maxwell and Boltzmann's velocities in ASE's unit, at rest as a whole, at just this temperature (K).

    masses (atoms,) amu. One atom alone stays at rest.
    """
    velocities = generator.standard_normal((len(masses), 3)) / np.sqrt(masses)[:, None]
    velocities -= (masses @ velocities) / masses.sum()
    kinetic = float(masses @ np.square(velocities).sum(axis=1)) / 2
    if len(masses) == 1 or kinetic == 0:
        return np.zeros_like(velocities)
    target = EV_PER_KELVIN * temperature * degrees_of_freedom(len(masses)) / 2
    scaled: np.ndarray = velocities * np.sqrt(target / kinetic)
    return scaled


def langevin(
    atoms: Atoms, timestep: float, temperature: float, friction: float, generator: np.random.Generator
) -> Langevin:
    """Langevin dynamics of all 3N degrees of freedom. timestep in fs, temperature in K, friction in 1/fs."""
    return Langevin(
        atoms,
        timestep * ASE_TIME_PER_FS,
        temperature_K=temperature,
        friction=friction / ASE_TIME_PER_FS,
        rng=generator,
        fixcm=False,
    )


def degrees_of_freedom(atoms: int) -> int:
    """Of atoms that rest as a whole."""
    return max(3 * atoms - 3, 1)
