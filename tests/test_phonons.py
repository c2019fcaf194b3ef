import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from torch import Tensor

from zoo.errors import ConfigError, LabelError, StructureError
from zoo.graph import Graph
from zoo.neighbors import build_graph
from zoo.phonons import Phonons, phonon_mae, phonons
from zoo.teachers.stillinger_weber import StillingerWeber
from zoo.vibrations import normal_modes

pytest.importorskip("phonopy", reason="phonopy is not installed: pip install phonopy matplotlib")

MESH = (4, 4, 4)


class Field(StillingerWeber):
    """With a force of 0.01 eV/Å on every atom, which crystal symmetry knows nothing of."""

    def atomic_energies(self, graph: Graph) -> Tensor:
        return super().atomic_energies(graph) - 0.01 * graph.positions.sum(dim=1) / 3**0.5


def silicon(*, cubic: bool) -> Atoms:
    return bulk("Si", a=5.431, cubic=cubic)


def scaled_phonons(factor: float) -> Phonons:
    potential = StillingerWeber()
    potential.epsilon.data *= factor
    return phonons(potential, silicon(cubic=True), (2, 2, 2), mesh=MESH)


def test_primitive_and_conventional_cell_agree() -> None:
    conventional = scaled_phonons(1.0)
    primitive = phonons(
        StillingerWeber(), silicon(cubic=False), np.array([[-2, 2, 2], [2, -2, 2], [2, 2, -2]]), mesh=MESH
    )
    assert conventional.supercell_atoms == primitive.supercell_atoms == 64
    assert conventional.frequencies_THz.shape == (64, 6)
    assert np.abs(conventional.frequencies_THz - primitive.frequencies_THz).max() < 1e-3


def test_frequencies_are_those_of_the_exact_hessian() -> None:
    """A 2x2x2 supercell holds the waves of a 2x2x2 mesh of its conventional cell, Γ and X among them."""
    potential = StillingerWeber()
    supercell = silicon(cubic=True) * (2, 2, 2)
    hessian = potential.hessian(build_graph(supercell, potential.cutoff)).numpy()
    exact = normal_modes(hessian, supercell.get_masses()).frequencies_THz
    found = scaled_phonons(1.0)
    assert found.max_frequency_THz == pytest.approx(exact.max(), rel=1e-4)
    at_gamma = found.frequencies_THz[0]
    assert np.abs(at_gamma[:3]).max() < 1e-3
    assert at_gamma[3:] == pytest.approx(exact[-3:], rel=1e-4)


def test_frequencies_go_with_the_root_of_the_energy_scale() -> None:
    one, four = scaled_phonons(1.0), scaled_phonons(4.0)
    assert four.max_frequency_THz == pytest.approx(2 * one.max_frequency_THz, rel=1e-6)
    assert phonon_mae(one, four) == pytest.approx(one.frequencies_THz.mean(), rel=1e-3)
    assert phonon_mae(one, one) == 0


def test_left_over_forces_are_subtracted() -> None:
    """A uniform field pulls at every atom and changes no force constant."""
    found = phonons(Field(), silicon(cubic=True), (2, 2, 2), mesh=MESH)
    assert np.abs(found.frequencies_THz - scaled_phonons(1.0).frequencies_THz).max() < 1e-6


def test_bands_go_along_the_special_points() -> None:
    bands = scaled_phonons(1.0).bands
    assert bands.labels[:6] == ("Γ", "X", "W", "K", "Γ", "L")
    assert bands.frequencies_THz.shape == (len(bands.distances), 6)
    assert len(bands.segments()) == 2  # it jumps from K to U
    assert np.abs(bands.frequencies_THz[0, :3]).max() < 1e-3


def test_an_instability_is_a_negative_frequency() -> None:
    assert scaled_phonons(-1.0).frequencies_THz.min() < -10


def test_what_is_no_crystal_is_refused() -> None:
    with pytest.raises(StructureError, match="give a crystal"):
        phonons(StillingerWeber(), Atoms("Si2", positions=[[0, 0, 0], [2.3, 0, 0]]), (1, 1, 1))


@pytest.mark.parametrize(
    "supercell", [2, (0, 1, 1), (2, 2), (1.5, 1, 1), "x", ((1, 1), 1), np.zeros((3, 3)), -np.eye(3)]
)
def test_supercells_that_are_none_are_refused(supercell: object) -> None:
    words = r"three counts, such as \(2, 2, 2\), or a \(3, 3\) matrix with a determinant above zero"
    with pytest.raises(ConfigError, match=f"^supercell .*; expected {words}$"):
        phonons(StillingerWeber(), silicon(cubic=False), supercell)


@pytest.mark.parametrize("mesh", [5, (0, 1, 1), (2.5, 2, 2), np.eye(3), None])
def test_meshes_that_are_none_are_refused(mesh: object) -> None:
    with pytest.raises(ConfigError, match=r"^mesh .*; expected three counts, such as \(10, 10, 10\)$"):
        phonons(StillingerWeber(), silicon(cubic=False), (1, 1, 1), mesh=mesh)


@pytest.mark.parametrize("displacement", [0, -0.01, np.nan, np.inf])
def test_displacements_that_move_nothing_are_refused(displacement: float) -> None:
    with pytest.raises(ConfigError, match=r"^displacement \S+ Å; expected one above zero, such as 0\.01$"):
        phonons(StillingerWeber(), silicon(cubic=False), (1, 1, 1), displacement=displacement)


def test_a_matrix_of_whole_numbers_is_a_supercell() -> None:
    matrix = np.array([[-1.0, 1, 1], [1, -1, 1], [1, 1, -1]])
    cubic = phonons(StillingerWeber(), silicon(cubic=False), matrix, mesh=MESH)
    assert cubic.supercell_atoms == 8


def test_other_meshes_are_not_compared() -> None:
    other = phonons(StillingerWeber(), silicon(cubic=True), (1, 1, 1), mesh=(4, 4, 2))
    with pytest.raises(LabelError, match="same cell and mesh"):
        phonon_mae(scaled_phonons(1.0), other)
