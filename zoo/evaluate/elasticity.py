"""The equation of state of a cubic crystal: where its energy is least, and how stiff it is there."""

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.eos import EquationOfState
from tqdm import tqdm

from zoo.errors import CapabilityError, StructureError
from zoo.neighbors import build_graph
from zoo.potential import Potential
from zoo.units import GPA_PER_EV_A3

POINTS = 9
HALF_WIDTH = 0.02  # of the lattice constant, to both sides
SEARCHED = (0.75, 1.33)  # of the given lattice constant
_ROUNDS = 30
_SETTLED = 1e-4  # of the lattice constant
_CUBIC = ("CUB", "FCC", "BCC")


@dataclass(frozen=True)
class Elasticity:
    """The fit of Birch and Murnaghan (Phys. Rev. 71, 809 (1947)) and the points it went through."""

    lattice_constant_A: float  # of the conventional cubic cell
    bulk_modulus_GPa: float
    energy_eV_atom: float  # at the minimum
    lattice_constants_A: np.ndarray  # (points,)
    energies_eV_atom: np.ndarray  # (points,)


def equation_of_state(potential: Potential, unitcell: Atoms) -> Elasticity:
    """Scales a primitive or conventional cubic cell about its energy minimum, which is searched for.

    Atoms keep their fractional positions. Raises StructureError where the cell is not cubic, CapabilityError
    where the potential has no energy minimum between 0.75 and 1.33 of the given lattice constant.
    """
    conventional = _lattice_constant(unitcell)
    center = 1.0
    for _ in range(_ROUNDS):
        scales = center * np.linspace(1 - HALF_WIDTH, 1 + HALF_WIDTH, POINTS)
        energies = _energies(potential, unitcell, scales)
        lowest = int(energies.argmin())
        if lowest in (0, POINTS - 1):
            center = float(scales[lowest])
            _check_searched(center, conventional)
            continue
        minimum = _fit(unitcell, scales, energies)
        if abs(minimum[0] / center - 1) < _SETTLED:
            return _result(conventional, minimum, scales, energies, len(unitcell))
        center = minimum[0]
    raise CapabilityError(f"the energy of {unitcell.symbols} has no smooth minimum near {center * conventional:.3f} Å")


def _energies(potential: Potential, unitcell: Atoms, scales: np.ndarray) -> np.ndarray:
    """(points,) eV; one structure at a time, for a teacher may be large"""
    energies = []
    for scale in tqdm(scales, desc="equation of state", unit="volume", delay=2, leave=False):
        atoms = unitcell.copy()
        atoms.set_cell(atoms.cell * scale, scale_atoms=True)
        graph = build_graph(atoms, potential.cutoff, dtype=potential.dtype, device=potential.device)
        energies.append(potential.predict(graph, forces=False).energy.item())
    found = np.array(energies)
    if not np.isfinite(found).all():
        raise CapabilityError(f"the energy of {unitcell.symbols} is not finite; train the engine again")
    return found


def _fit(unitcell: Atoms, scales: np.ndarray, energies: np.ndarray) -> tuple[float, float, float]:
    """The scale at the minimum, the energy there (eV) and the bulk modulus (eV/Å³)."""
    volume = unitcell.get_volume()
    try:
        least, energy, modulus = EquationOfState(volume * scales**3, energies, eos="birchmurnaghan").fit(warn=False)
    except (RuntimeError, ValueError, TypeError) as error:
        raise CapabilityError(f"no equation of state fits the energies of {unitcell.symbols}: {error}") from error
    scale = float(np.cbrt(least / volume))
    if not scales[0] < scale < scales[-1]:
        raise CapabilityError(f"the energies of {unitcell.symbols} are too rough for an equation of state")
    return scale, float(energy), float(modulus)


def _result(
    conventional: float,
    minimum: tuple[float, float, float],
    scales: np.ndarray,
    energies: np.ndarray,
    atoms: int,
) -> Elasticity:
    scale, energy, modulus = minimum
    return Elasticity(
        lattice_constant_A=conventional * scale,
        bulk_modulus_GPa=modulus * GPA_PER_EV_A3,
        energy_eV_atom=energy / atoms,
        lattice_constants_A=conventional * scales,
        energies_eV_atom=energies / atoms,
    )


def _lattice_constant(unitcell: Atoms) -> float:
    """Of the conventional cubic cell (Å)."""
    if not all(unitcell.pbc):
        raise StructureError(f"{unitcell.symbols} is not periodic in all directions; give a cubic crystal")
    lattice = unitcell.cell.get_bravais_lattice()
    if lattice.name not in _CUBIC:
        raise StructureError(f"the cell of {unitcell.symbols} is {lattice.longname}, not cubic; give a cubic crystal")
    return float(lattice.a)


def _check_searched(scale: float, conventional: float) -> None:
    if not SEARCHED[0] < scale < SEARCHED[1]:
        raise CapabilityError(
            f"the energy has no minimum between lattice constants of {SEARCHED[0] * conventional:.2f} and "
            f"{SEARCHED[1] * conventional:.2f} Å; start nearer to it, or train on strained cells"
        )
