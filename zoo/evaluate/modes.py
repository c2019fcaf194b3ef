"""Harmonic frequencies of one structure, whatever it is: a molecule, or a crystal at its gamma point."""

import numpy as np
from ase import Atoms

from zoo.errors import DivergedError
from zoo.neighbors import build_graph
from zoo.potential import Potential
from zoo.units import THZ_PER_ROOT

LARGEST = 50  # atoms; the Hessian of more takes too long of a slow teacher
_NONE = 1e-8  # relative size of a singular value that stands for no motion


def mode_frequencies(potential: Potential, atoms: Atoms) -> np.ndarray:
    """(modes,) THz, ascending: eigenfrequencies of the mass-weighted Hessian at this geometry, imaginary ones negative.

    Only motions within the structure count, none of the whole: away from a minimum the rotation of a molecule has a
    curvature too, and would mix with its vibrations. Raises DivergedError.
    """
    graph = build_graph(atoms, potential.cutoff, dtype=potential.dtype, device=potential.device)
    hessian = potential.hessian(graph).double().cpu().numpy()
    if not np.isfinite(hessian).all():
        raise DivergedError(f"the Hessian of {atoms.symbols} is not finite; train the engine again")
    roots = np.sqrt(np.repeat(atoms.get_masses(), 3))  # (3 * atoms,)
    weighted = (hessian + hessian.T) / 2 / np.outer(roots, roots)  # eV/(Å² amu)
    inner = inner_motions(atoms)  # (3 * atoms, modes)
    squares = np.linalg.eigvalsh(inner.T @ weighted @ inner)
    frequencies: np.ndarray = np.sign(squares) * np.sqrt(np.abs(squares)) * THZ_PER_ROOT
    return frequencies


def mode_mae(reference: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference (THz) of two lists of frequencies of the same structure, each in ascending order."""
    return float(np.abs(np.sort(reference) - np.sort(other)).mean())


def inner_motions(atoms: Atoms) -> np.ndarray:
    """(3 * atoms, modes) An orthonormal basis, mass-weighted, of all motions but translations and, of a molecule,
    rotations."""
    centered = atoms.positions - atoms.get_center_of_mass()
    whole = [np.tile(axis, (len(atoms), 1)) for axis in np.eye(3)]
    if not any(atoms.pbc):
        whole += [np.cross(axis, centered) for axis in np.eye(3)]
    roots = np.sqrt(atoms.get_masses())[:, None]
    basis, sizes, _ = np.linalg.svd(np.stack([(roots * motion).ravel() for motion in whole], axis=1))
    inner: np.ndarray = basis[:, int((sizes > _NONE * sizes.max()).sum()) :]
    return inner
