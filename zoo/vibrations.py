"""Normal modes, and the thermochemistry of a harmonic oscillator and of an ideal gas, from a Hessian."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.thermochemistry import HarmonicThermo, IdealGasThermo

from zoo.errors import ConfigError, DivergedError, StructureError
from zoo.units import EV_PER_THZ, MEV_PER_EV, THZ_PER_ROOT, WAVENUMBER_PER_THZ

Geometry = Literal["monatomic", "linear", "nonlinear"]
_FREE_MOTIONS: dict[Geometry, int] = {"monatomic": 3, "linear": 5, "nonlinear": 6}  # translations and rotations
_ON_A_LINE = 1e-3  # of the largest moment of inertia; a molecule whose smallest is less is linear
_BAR = 1e5  # Pa
FREE_MOTION_THZ = 0.05  # slower modes are translations, and rotations of a molecule, blurred by rounding


@dataclass(frozen=True)
class Vibrations:
    """Normal modes of a molecule, or of a crystal at the gamma point, slowest first.

    An imaginary frequency, of a motion that lowers the energy, is negative.
    """

    frequencies_THz: np.ndarray  # (3 * atoms,) ascending
    modes: np.ndarray  # (3 * atoms, atoms, 3) of unit length in mass-weighted coordinates
    rigid: int = 0  # motions of a free molecule as a whole: those modes that are nearest to standing still

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
        return self._inner & (self.frequencies_THz > FREE_MOTION_THZ)

    @property
    def zero_point_energy(self) -> float:
        """eV, ``Σ h·ν / 2`` over the vibrational modes; imaginary ones have none."""
        return float(self.energies[self.vibrational].sum() / 2)

    def summary(self) -> str:
        """A table of all modes but those of a free molecule as a whole, and the zero-point energy."""
        rows = zip(self._inner, self.frequencies_THz, self.wavenumbers_cm1, self.energies * MEV_PER_EV, strict=True)
        lines = [" mode       THz      cm⁻¹       meV"]
        lines += [f"{k:5d} {thz:9.3f} {cm:9.1f} {mev:9.2f}" for k, (inner, thz, cm, mev) in enumerate(rows) if inner]
        imaginary = int((self._inner & (self.frequencies_THz < -FREE_MOTION_THZ)).sum())
        lines.append(f"zero-point energy {self.zero_point_energy:.4f} eV")
        lines.append(f"imaginary modes {imaginary} (shown as negative)")
        if self.rigid:
            fastest = np.abs(self.frequencies_THz[~self._inner]).max()
            lines.append(f"left out {self.rigid} translations and rotations of the whole (up to {fastest:.3f} THz)")
        return "\n".join(lines)

    @property
    def _inner(self) -> np.ndarray:
        """(3 * atoms,) bool: not of the whole."""
        inner = np.ones(len(self.frequencies_THz), dtype=bool)
        inner[_nearest_to_rest(self.frequencies_THz)[: self.rigid]] = False
        return inner


@dataclass(frozen=True)
class Thermochemistry:
    """Harmonic thermodynamics at one temperature."""

    temperature_K: float
    internal_energy_eV: float
    entropy_eV_K: float
    helmholtz_energy_eV: float


@dataclass(frozen=True)
class IdealGas:
    """Thermodynamics of a molecule in an ideal gas at one temperature and pressure."""

    temperature_K: float
    pressure_Pa: float
    internal_energy_eV: float
    enthalpy_eV: float
    entropy_eV_K: float
    gibbs_energy_eV: float


def moving_atoms(atoms: Atoms) -> list[int] | None:
    """Those that no FixAtoms holds; None for all. Raises ConfigError where there are none."""
    moves = np.ones(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            moves[constraint.index] = False
    if not moves.any():
        raise ConfigError(f"all {len(atoms)} atoms are held by FixAtoms; say by indices= which ones vibrate")
    return None if moves.all() else np.flatnonzero(moves).tolist()


def rigid_motions(atoms: Atoms) -> int:
    """Of a free molecule as a whole: 6, or 5 of a linear one, or 3 of an atom; 0 of what is periodic."""
    return 0 if any(atoms.pbc) else _FREE_MOTIONS[_shape(atoms)]


def normal_modes(hessian: np.ndarray, masses: np.ndarray, rigid: int = 0) -> Vibrations:
    """Solves ``M^(−1/2) H M^(−1/2) e = ω² e`` with H made symmetric.

    hessian (3 * atoms, 3 * atoms) eV/Å², masses (atoms,) amu, ``rigid`` as of ``rigid_motions``. Raises StructureError
    where shapes or masses do not fit, DivergedError where the Hessian is not finite.
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
    return Vibrations(frequencies, np.ascontiguousarray(vectors.T).reshape(size, len(masses), 3), rigid)


def harmonic_thermochemistry(vibrations: Vibrations, temperature: float, energy: float = 0.0) -> Thermochemistry:
    """The harmonic limit at a temperature (K), above a potential energy (eV), by ase.thermochemistry.

    Counts the vibrational modes alone: translations, rotations and imaginary modes are left out. Raises
    ConfigError for a temperature that is not above zero.
    """
    _check_positive(temperature, "temperature", "K")
    thermo = HarmonicThermo(vibrations.energies[vibrations.vibrational], potentialenergy=energy)
    with np.errstate(over="ignore"):  # of exp(h·ν / kT) at low temperatures, over which 1 is rightly 0
        return Thermochemistry(
            temperature_K=float(temperature),
            internal_energy_eV=float(thermo.get_internal_energy(temperature, verbose=False)),
            entropy_eV_K=float(thermo.get_entropy(temperature, verbose=False)),
            helmholtz_energy_eV=float(thermo.get_helmholtz_energy(temperature, verbose=False)),
        )


def ideal_gas_thermochemistry(
    vibrations: Vibrations,
    atoms: Atoms,
    temperature: float,
    *,
    geometry: Geometry,
    symmetry_number: int,
    spin: float,
    pressure: float = _BAR,
    energy: float = 0.0,
) -> IdealGas:
    """A relaxed molecule at a temperature (K) and pressure (Pa), above a potential energy (eV), by ase.thermochemistry.

    ``spin`` is the total S, 0 where all electrons are paired. Of all modes those are left out that are nearest to
    standing still: 6 of a molecule that is not linear, 5 of a linear one, 3 of an atom. Raises StructureError for a
    crystal, for some atoms' modes alone, and where another mode is imaginary; ConfigError for numbers that do not fit.
    """
    _check_positive(temperature, "temperature", "K")
    _check_positive(pressure, "pressure", "Pa")
    _check_molecule(vibrations, atoms, geometry)
    if symmetry_number < 1 or symmetry_number != int(symmetry_number) or spin < 0 or 2 * spin != int(2 * spin):
        raise ConfigError(
            f"symmetry number {symmetry_number} and spin {spin}; expected a whole number from 1 on, and 0, 0.5, 1, ..."
        )
    thermo = IdealGasThermo(
        vibrations.energies[_internal(vibrations, geometry)],
        geometry,
        potentialenergy=energy,
        atoms=atoms,
        symmetrynumber=int(symmetry_number),
        spin=spin,
    )
    with np.errstate(over="ignore"):  # of exp(h·ν / kT) at low temperatures, over which 1 is rightly 0
        return IdealGas(
            temperature_K=float(temperature),
            pressure_Pa=float(pressure),
            internal_energy_eV=float(thermo.get_internal_energy(temperature, verbose=False)),
            enthalpy_eV=float(thermo.get_enthalpy(temperature, verbose=False)),
            entropy_eV_K=float(thermo.get_entropy(temperature, pressure, verbose=False)),
            gibbs_energy_eV=float(thermo.get_gibbs_energy(temperature, pressure, verbose=False)),
        )


def _internal(vibrations: Vibrations, geometry: Geometry) -> np.ndarray:
    """(internal modes,) Places of the modes that change the shape. Raises StructureError for an imaginary one."""
    found = np.sort(_nearest_to_rest(vibrations.frequencies_THz)[_FREE_MOTIONS[geometry] :])
    imaginary = vibrations.wavenumbers_cm1[found][vibrations.frequencies_THz[found] <= 0]
    if len(imaginary):
        told = ", ".join(f"{-value:.0f}i" for value in imaginary)
        raise StructureError(f"imaginary modes of {told} cm⁻¹; relax the molecule to a minimum first")
    return found


def _nearest_to_rest(frequencies: np.ndarray) -> np.ndarray:
    """(modes,) Places, of the modes that are nearest to standing still first."""
    return np.argsort(np.abs(frequencies), kind="stable")


def _check_molecule(vibrations: Vibrations, atoms: Atoms, geometry: Geometry) -> None:
    """Raises StructureError for what is no free molecule, ConfigError for a geometry that is not its own."""
    if any(atoms.pbc):
        raise StructureError(
            f"{atoms.symbols} is periodic, and no ideal gas; set pbc=False, or ask for harmonic_thermochemistry"
        )
    if vibrations.modes.shape[:2] != (3 * len(atoms), len(atoms)):
        raise StructureError(
            f"modes of {vibrations.modes.shape[1]} atoms, and {len(atoms)} in {atoms.symbols}; an ideal gas needs the "
            "modes of all: give indices=range(len(atoms)) to vibrations"
        )
    shape = _shape(atoms)
    if geometry != shape:
        raise ConfigError(f"geometry {geometry!r} of {atoms.symbols}, which is {shape}; give geometry={shape!r}")


def _shape(atoms: Atoms) -> Geometry:
    if len(atoms) == 1:
        return "monatomic"
    moments = atoms.get_moments_of_inertia()  # amu Å², ascending
    return "linear" if moments[0] < _ON_A_LINE * moments[-1] else "nonlinear"


def _check_positive(value: float, what: str, unit: str) -> None:
    if not value > 0:
        raise ConfigError(f"a {what} of {value} {unit}; expected one above zero")
