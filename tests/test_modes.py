"""Eigenfrequencies of one structure: of its inner motions alone, whatever the geometry."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from zoo.errors import DivergedError
from zoo.evaluate.modes import inner_motions, mode_frequencies, mode_mae
from zoo.graph import Graph
from zoo.potential import Potential
from zoo.teachers.stillinger_weber import StillingerWeber
from zoo.units import THZ_PER_ROOT


class Springs(Potential):
    """Each pair of atoms within the cutoff on a spring of a rest length."""

    cutoff = 3.0
    elements = (1, 6, 8)

    def __init__(self, stiffness: float, length: float) -> None:
        super().__init__()
        self.stiffness = torch.nn.Parameter(torch.tensor(stiffness, dtype=torch.float64))
        self.length = length

    def atomic_energies(self, graph: Graph) -> torch.Tensor:
        stretch = graph.edge_vectors().norm(dim=1) - self.length
        energies = self.stiffness * stretch.square() / 4
        return torch.zeros(graph.num_atoms, dtype=energies.dtype).index_add(0, graph.centers, energies)


def test_two_atoms_on_a_spring_have_its_frequency() -> None:
    pair = Atoms("CO", [[0, 0, 0], [0, 0.6, 0.8]])
    reduced = np.prod(pair.get_masses()) / pair.get_masses().sum()
    assert mode_frequencies(Springs(20.0, 1.0), pair) == pytest.approx([THZ_PER_ROOT * np.sqrt(20.0 / reduced)])


def test_a_rotation_away_from_the_minimum_is_no_vibration() -> None:
    """A stretched bond resists turning, and a Hessian then has curvatures along rotations."""
    pair = Atoms("CO", [[0, 0, 0], [0, 0, 1.3]])
    assert mode_frequencies(Springs(20.0, 1.0), pair).shape == (1,)
    turned = pair.copy()
    turned.rotate(50, (1, 1, 0))
    assert mode_frequencies(Springs(20.0, 1.0), turned) == pytest.approx(mode_frequencies(Springs(20.0, 1.0), pair))


@pytest.mark.parametrize(
    ("atoms", "count"),
    [
        (Atoms("CO", [[0, 0, 0], [0, 0, 1.1]]), 1),
        (Atoms("OCO", [[0, 0, -1.16], [0, 0, 0], [0, 0, 1.16]]), 4),
        (Atoms("OH2", [[0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]]), 3),
        (bulk("Si", a=5.43, cubic=True), 21),
    ],
)
def test_the_motions_of_the_whole_are_left_out(atoms: Atoms, count: int) -> None:
    basis = inner_motions(atoms)
    assert basis.shape == (3 * len(atoms), count)
    np.testing.assert_allclose(basis.T @ basis, np.eye(count), atol=1e-12)
    whole = np.repeat(np.sqrt(atoms.get_masses()), 3) * np.tile([1.0, 2.0, 3.0], len(atoms))
    np.testing.assert_allclose(whole @ basis, np.zeros(count), atol=1e-10)


def test_imaginary_modes_are_negative_and_all_are_in_order() -> None:
    triangle = Atoms("Si3", [[0, 0, 0], [1.8, 0, 0], [0.9, 3.1, 0]])
    found = mode_frequencies(StillingerWeber(), triangle)
    assert found[0] < -1
    assert found[-1] > 1
    assert (np.diff(found) >= 0).all()


def test_the_error_of_modes_is_a_mean_over_them() -> None:
    assert mode_mae(np.array([1.0, 2.0, 6.0]), np.array([6.5, 1.5, 2.0])) == pytest.approx(1 / 3)


def test_a_hessian_that_is_not_finite_is_refused() -> None:
    with pytest.raises(DivergedError, match="the Hessian of CO is not finite"):
        mode_frequencies(Springs(float("nan"), 1.0), Atoms("CO", [[0, 0, 0], [0, 0, 1.1]]))
