"""Small structures, and a tiny student, that the tests share. Lengths in Å; elements take turns."""

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from zoo.potential import Potential
from zoo.students import PaiNN, PaiNNConfig, build_student

BOND = 2.35  # Å, of silicon
LATTICE = 5.431  # Å, of silicon
REFERENCES = {
    "Si": -7873.1237,
    "O": -2041.7361,
    "H": -13.587,
    "C": -1029.8613,
}  # eV, of the size of all-electron ones


def tiny_painn(*symbols: str, cutoff: float = 4.0, channels: int = 5, layers: int = 2, seed: int = 7) -> PaiNN:
    """A float64 PaiNN in which nothing is zero or one by chance, biases, references and scale included."""
    config = PaiNNConfig(elements=symbols, channels=channels, layers=layers, radials=4, cutoff=cutoff)
    generator = torch.Generator().manual_seed(seed)
    model = build_student(config, generator).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    model.average_neighbors.fill_(7.0)
    model.scale.fill_(1.3)
    model.references.copy_(torch.tensor([REFERENCES[symbol] for symbol in symbols], dtype=torch.float64))
    return model.eval()


def species(potential: Potential) -> tuple[int, ...]:
    """One or two elements that the potential knows: silicon and oxygen if it may be."""
    favourites = tuple(number for number in (14, 8) if number in potential.elements)
    return favourites or potential.elements[:2]


def crystal(elements: tuple[int, ...], seed: int = 4) -> Atoms:
    """Two atoms, distorted diamond, in a skewed cell smaller than the cutoff: atoms see their own images."""
    atoms = perfect_crystal(elements)
    shear = np.array([[1.03, 0.05, -0.02], [0.0, 0.98, 0.07], [0.04, 0.0, 1.01]])
    atoms.set_cell(atoms.cell @ shear, scale_atoms=True)
    atoms.positions += np.random.default_rng(seed).normal(scale=0.08, size=(2, 3))
    return atoms


def perfect_crystal(elements: tuple[int, ...]) -> Atoms:
    """Diamond (or zincblende) on its lattice, two atoms."""
    atoms = bulk("Si", "diamond", a=LATTICE)
    atoms.numbers = _cycle(elements, 2)
    return atoms


def simple_cubic(elements: tuple[int, ...]) -> Atoms:
    """One atom in a cube, every neighbour an image of itself."""
    return Atoms(numbers=_cycle(elements, 1), cell=[2.6, 2.6, 2.6], pbc=True)


def molecule(elements: tuple[int, ...], seed: int = 2) -> Atoms:
    """Four atoms, no plane, no axis: it differs from its mirror image."""
    places = np.array([[0.0, 0.0, 0.0], [BOND, 0.1, 0.0], [0.4, 2.5, 0.2], [0.9, 0.8, 2.3]])
    places += np.random.default_rng(seed).normal(scale=0.05, size=(4, 3))
    return Atoms(numbers=_cycle(elements, 4), positions=places)


def isolated(elements: tuple[int, ...]) -> Atoms:
    return Atoms(numbers=_cycle(elements, 1), positions=[[0.3, -0.2, 5.0]])


def dimer(elements: tuple[int, ...], distance: float = BOND) -> Atoms:
    """Along x, so that two components of its edges are exactly zero."""
    return Atoms(numbers=_cycle(elements, 2), positions=[[0, 0, 0], [distance, 0, 0]])


def linear_trimer(elements: tuple[int, ...]) -> Atoms:
    return Atoms(numbers=[elements[0], elements[-1], elements[0]], positions=[[-BOND, 0, 0], [0, 0, 0], [BOND, 0, 0]])


def planar_molecule(elements: tuple[int, ...]) -> Atoms:
    """An atom amid an equilateral triangle of others, all in one plane."""
    angles = np.radians([90, 210, 330])
    ring = BOND * np.stack([np.cos(angles), np.sin(angles), np.zeros(3)], axis=1)
    return Atoms(numbers=[elements[-1], *[elements[0]] * 3], positions=np.vstack([np.zeros(3), ring]))


def crossing(elements: tuple[int, ...], cutoff: float, gap: float) -> Atoms:
    """Three atoms; the last is ``cutoff + gap`` from the first, and the other is near both of them."""
    direction = np.array([1.0, 0.3, -0.2]) / np.linalg.norm([1.0, 0.3, -0.2])
    aside = np.cross(direction, [0.0, 0.0, 1.0])
    middle = 0.45 * cutoff * direction + 1.2 * aside
    return Atoms(numbers=_cycle(elements, 3), positions=[np.zeros(3), middle, (cutoff + gap) * direction])


def symmetric_scenes(elements: tuple[int, ...]) -> dict[str, Atoms]:
    """Geometries in which lengths, angles or sums of vectors are exactly zero."""
    return {
        "perfect crystal": perfect_crystal(elements),
        "simple cubic crystal": simple_cubic(elements),
        "planar molecule": planar_molecule(elements),
        "linear trimer": linear_trimer(elements),
        "dimer along x": dimer(elements),
    }


def _cycle(elements: tuple[int, ...], count: int) -> list[int]:
    return [elements[index % len(elements)] for index in range(count)]
