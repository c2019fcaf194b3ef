"""Normal modes and harmonic thermochemistry from a Hessian."""

from dataclasses import dataclass

import numpy as np
from ase.thermochemistry import HarmonicThermo

from zoo.errors import ConfigError, DivergedError, StructureError
from zoo.units import EV_PER_THZ, MEV_PER_EV, THZ_PER_ROOT, WAVENUMBER_PER_THZ

FREE_MOTION_THZ = 0.05  # slower modes are translations, and rotations of a molecule, blurred by rounding


@dataclass(frozen=True)
class Vibrations:
    """Normal modes of a molecule, or of a crystal at the gamma point, slowest first.

    An imaginary frequency, of a motion that lowers the energy, is negative.
    """

    frequencies_THz: np.ndarray  # (3 * atoms,) ascending
    modes: np.ndarray  # (3 * atoms, atoms, 3) of unit length in mass-weighted coordinates

    @property
    def energies(self) -> np.ndarray:
        """(3 * atoms,) eV, h·ν"""
        return self.frequencies_THz * EV_PER_THZ

    @property
    def wavenumbers_cm1(self) -> np.ndarray:
        """(3 * atoms,) cm⁻¹, ν/c"""
        return self.frequencies_THz * WAVENUMBER_PER_THZ

    @property
    def vibrational(self) -> np.ndarray:
        """(3 * atoms,) bool: the real modes that are neither translation nor rotation."""
        return self.frequencies_THz > FREE_MOTION_THZ

    @property
    def zero_point_energy(self) -> float:
        """eV, ``Σ h·ν / 2`` over the vibrational modes; imaginary ones have none."""
        return float(self.energies[self.vibrational].sum() / 2)

    def summary(self) -> str:
        """A table of all modes and the zero-point energy."""
        rows = zip(self.frequencies_THz, self.wavenumbers_cm1, self.energies * MEV_PER_EV, strict=True)
        lines = [" mode       THz      cm⁻¹       meV"]
        lines += [f"{k:5d} {thz:9.3f} {cm:9.1f} {mev:9.2f}" for k, (thz, cm, mev) in enumerate(rows)]
        imaginary = int((self.frequencies_THz < -FREE_MOTION_THZ).sum())
        lines.append(f"zero-point energy {self.zero_point_energy:.4f} eV")
        lines.append(f"imaginary modes {imaginary} (shown as negative)")
        return "\n".join(lines)


@dataclass(frozen=True)
class Thermochemistry:
    """Harmonic thermodynamics at one temperature."""

    temperature_K: float
    internal_energy_eV: float
    entropy_eV_K: float
    helmholtz_energy_eV: float


def normal_modes(hessian: np.ndarray, masses: np.ndarray) -> Vibrations:
    """Solves ``M^(−1/2) H M^(−1/2) e = ω² e`` with H made symmetric.

    hessian (3 * atoms, 3 * atoms) eV/Å², masses (atoms,) amu. Raises StructureError where shapes or masses do
    not fit, DivergedError where the Hessian is not finite.
    """
    size = 3 * len(masses)
    if hessian.shape != (size, size):
        raise StructureError(f"a Hessian of shape {hessian.shape}, {len(masses)} atoms; expected {(size, size)}")
    if not np.all(np.asarray(masses) > 0):
        raise StructureError("an atom has no mass; set positive masses with atoms.set_masses")
    if not np.isfinite(hessian).all():
        raise DivergedError("the Hessian is not finite; relax the structure first")
    roots = np.sqrt(np.repeat(np.asarray(masses, dtype=np.float64), 3))  # (3 * atoms,)
    weighted = (hessian + hessian.T) / 2 / np.outer(roots, roots)  # eV/(Å² amu)
    squares, vectors = np.linalg.eigh(weighted)
    frequencies = np.sign(squares) * np.sqrt(np.abs(squares)) * THZ_PER_ROOT
    return Vibrations(frequencies, np.ascontiguousarray(vectors.T).reshape(size, len(masses), 3))


def harmonic_thermochemistry(vibrations: Vibrations, temperature: float, energy: float = 0.0) -> Thermochemistry:
    """The harmonic limit at a temperature (K), above a potential energy (eV), by ase.thermochemistry.

    Counts the vibrational modes alone: translations, rotations and imaginary modes are left out. Raises
    ConfigError for a temperature that is not above zero.
    """
    if not temperature > 0:
        raise ConfigError(f"a temperature of {temperature} K; expected one above zero")
    thermo = HarmonicThermo(vibrations.energies[vibrations.vibrational], potentialenergy=energy)
    return Thermochemistry(
        temperature_K=float(temperature),
        internal_energy_eV=float(thermo.get_internal_energy(temperature, verbose=False)),
        entropy_eV_K=float(thermo.get_entropy(temperature, verbose=False)),
        helmholtz_energy_eV=float(thermo.get_helmholtz_energy(temperature, verbose=False)),
    )
