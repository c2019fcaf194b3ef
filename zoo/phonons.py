"""Phonons of a crystal by finite displacements; phonopy does the crystal symmetry and the lattice sums."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.cell import Cell
from tqdm import tqdm

from zoo.errors import ConfigError, LabelError, MissingPackageError, StructureError
from zoo.neighbors import build_graph
from zoo.potential import Potential, given

if TYPE_CHECKING:
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

DISPLACEMENT = 0.01  # Å, phonopy's own
MESH = (10, 10, 10)
BAND_POINTS = 200

Supercell = tuple[int, int, int] | np.ndarray
Forces = Callable[[Iterable[Atoms]], list[np.ndarray]]  # (atoms, 3) eV/Å of each structure, in order


@dataclass(frozen=True)
class Bands:
    """Frequencies along the special points that ASE proposes for the cell."""

    distances: np.ndarray  # (points,) 1/Å, along the path
    frequencies_THz: np.ndarray  # (points, branches)
    ticks: np.ndarray  # (labels,) distances of the special points
    labels: tuple[str, ...]

    def segments(self) -> list[slice]:
        """The pieces of the path: where it jumps, two points share a distance."""
        breaks = np.flatnonzero(np.diff(self.distances) < 1e-9) + 1
        edges = [0, *breaks.tolist(), len(self.distances)]
        return [slice(start, stop) for start, stop in pairwise(edges)]


@dataclass(frozen=True)
class Phonons:
    """Frequencies of one potential in one cell; imaginary ones are negative."""

    q_points: np.ndarray  # (points, 3) in units of the primitive reciprocal cell, an even mesh with Γ
    frequencies_THz: np.ndarray  # (points, branches)
    bands: Bands
    max_frequency_THz: float  # of the mesh
    supercell_atoms: int


def phonons(
    potential: Potential,
    unitcell: Atoms,
    supercell: Supercell,
    *,
    displacement: float = DISPLACEMENT,
    mesh: tuple[int, int, int] = MESH,
) -> Phonons:
    """Phonons of a potential, which is asked for one supercell after another. The rest as in ``phonons_of_forces``."""

    def forces(structures: Iterable[Atoms]) -> list[np.ndarray]:
        return [_forces(potential, atoms) for atoms in structures]

    return phonons_of_forces(forces, unitcell, supercell, displacement=displacement, mesh=mesh)


def phonons_of_forces(
    forces: Forces,
    unitcell: Atoms,
    supercell: Supercell,
    *,
    displacement: float = DISPLACEMENT,
    mesh: tuple[int, int, int] = MESH,
) -> Phonons:
    """Phonons of a primitive or conventional cell, which is taken as it is and not relaxed.

    ``supercell`` is three counts or a (3, 3) matrix in units of ``unitcell``; ``displacement`` is in Å. What
    forces the undisplaced supercell has are subtracted. Two potentials asked with the same cell and mesh give
    frequencies that can be compared point by point, see ``phonon_mae``. Noise of forces in float32 is divided
    by the displacement; ask a potential in float64 where that matters.
    Raises MissingPackageError without phonopy, StructureError for a structure that is not a crystal, ConfigError for
    numbers that make no sense.
    """
    if not all(unitcell.pbc):
        raise StructureError(f"phonons of {unitcell.symbols}, which is not periodic in all directions; give a crystal")
    if not (displacement > 0 and isfinite(displacement)):
        raise ConfigError(f"displacement {displacement} Å; expected one above zero, such as {DISPLACEMENT}")
    counts = _whole("mesh", mesh, ((3,),), "three counts, such as (10, 10, 10)")
    wanted = "three counts, such as (2, 2, 2), or a (3, 3) matrix with a determinant above zero"
    matrix = _whole("supercell", supercell, ((3,), (3, 3)), wanted)
    phonopy = _phonopy(unitcell, matrix)
    phonopy.generate_displacements(distance=displacement)
    residual, *displaced = forces(_supercells(phonopy))
    phonopy.forces = np.array(displaced) - residual  # (displacements, atoms, 3)
    phonopy.produce_force_constants()
    q_points = _mesh(counts)
    frequencies = _frequencies(phonopy, q_points)
    return Phonons(
        q_points=q_points,
        frequencies_THz=frequencies,
        bands=_bands(phonopy),
        max_frequency_THz=float(frequencies.max()),
        supercell_atoms=len(phonopy.supercell),
    )


def phonon_mae(one: Phonons, other: Phonons) -> float:
    """Mean absolute difference of frequencies (THz) over the mesh and the branches, both in ascending order.

    Raises LabelError where the meshes or the numbers of branches differ.
    """
    if one.frequencies_THz.shape != other.frequencies_THz.shape or not np.allclose(one.q_points, other.q_points):
        raise LabelError(
            f"phonons of {one.frequencies_THz.shape} and {other.frequencies_THz.shape} points and branches; "
            "ask both potentials with the same cell and mesh"
        )
    return float(np.abs(one.frequencies_THz - other.frequencies_THz).mean())


def _whole(name: str, given: object, shapes: tuple[tuple[int, ...], ...], expected: str) -> np.ndarray:
    """Counts, or a matrix that makes a cell larger, of whole numbers. Raises ConfigError."""
    try:
        found = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.empty(0)
    whole = found.shape in shapes and bool((found == np.rint(found)).all())
    if not whole or (found.min() < 1 if found.ndim == 1 else np.linalg.det(found) < 0.5):
        got = given.tolist() if isinstance(given, np.ndarray) else given
        raise ConfigError(f"{name} {got!s:.80}; expected {expected}")
    return found.astype(np.int64)


def _phonopy(unitcell: Atoms, supercell: np.ndarray) -> "Phonopy":
    try:  # an optional package
        from phonopy import Phonopy
        from phonopy.structure.atoms import PhonopyAtoms
        from phonopy.structure.cells import guess_primitive_matrix
    except ImportError as error:
        raise MissingPackageError("phonons need phonopy; run: pip install phonopy") from error
    cell = PhonopyAtoms(
        symbols=unitcell.get_chemical_symbols(),
        masses=unitcell.get_masses(),
        cell=np.asarray(unitcell.cell),
        scaled_positions=unitcell.get_scaled_positions(),
    )
    matrix = np.diag(supercell) if supercell.ndim == 1 else supercell  # (3, 3)
    return Phonopy(cell, supercell_matrix=matrix, primitive_matrix=guess_primitive_matrix(cell))


def _supercells(phonopy: "Phonopy") -> Iterator[Atoms]:
    """The one at rest, then those with an atom displaced."""
    yield _atoms(phonopy.supercell)
    for cell in tqdm(phonopy.supercells_with_displacements, desc="phonons", unit="displacement", delay=2):
        yield _atoms(cell)


def _atoms(cell: "PhonopyAtoms") -> Atoms:
    return Atoms(cell.symbols, cell=cell.cell, scaled_positions=cell.scaled_positions, pbc=True)


def _forces(potential: Potential, atoms: Atoms) -> np.ndarray:
    graph = build_graph(atoms, potential.cutoff, dtype=potential.dtype, device=potential.device)
    return given(potential.predict(graph).cpu().forces).double().numpy()


def _mesh(mesh: np.ndarray) -> np.ndarray:
    """(points, 3) An even mesh with Γ, without symmetry, so that it is one mesh for all potentials."""
    axes = [np.arange(count) / count for count in mesh]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)  # (*mesh, 3)
    return points.reshape(-1, 3)


def _frequencies(phonopy: "Phonopy", q_points: np.ndarray) -> np.ndarray:
    """(points, branches) THz, ascending"""
    phonopy.run_qpoints(q_points)
    return np.sort(np.asarray(phonopy.qpoints.frequencies, dtype=np.float64), axis=1)


def _bands(phonopy: "Phonopy") -> Bands:
    path = Cell(phonopy.primitive.cell).bandpath(npoints=BAND_POINTS)
    distances, ticks, labels = path.get_linear_kpoint_axis()
    return Bands(
        distances=np.asarray(distances),
        frequencies_THz=_frequencies(phonopy, path.kpts),
        ticks=np.asarray(ticks),
        labels=tuple(label.replace("G", "Γ") for label in labels),
    )
