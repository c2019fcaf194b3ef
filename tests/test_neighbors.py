"""Neighbour lists against ASE's, and structures that no potential could take."""

import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list

from zoo.errors import ConfigError, StructureError, ZooError
from zoo.graph import Graph
from zoo.neighbors import SkinList, build_graph, check_structure


def _edges_of_ase(atoms: Atoms, cutoff: float) -> np.ndarray:
    return _sorted(*neighbor_list("ijSD", atoms, cutoff))


def _edges_of_zoo(atoms: Atoms, cutoff: float) -> np.ndarray:
    graph = build_graph(atoms, cutoff)
    parts = (graph.centers, graph.neighbors, graph.shifts, graph.edge_vectors())
    return _sorted(*(part.numpy() for part in parts))


def _sorted(*columns: np.ndarray) -> np.ndarray:
    """(edges, 8): centre, neighbour, shift, vector; in an order of their own."""
    table = np.column_stack(columns)
    return table[np.lexsort(table[:, 4::-1].T)]


def _skewed() -> Atoms:
    cell = [[4.0, 0.3, 0.1], [3.1, 2.9, -0.4], [-2.7, 1.9, 5.1]]
    places = np.random.default_rng(0).uniform(size=(4, 3))
    return Atoms("Si4", scaled_positions=places, cell=cell, pbc=True)


def _partial(*pbc: bool) -> Atoms:
    atoms = scenes.crystal((14,)).repeat((2, 1, 1))
    atoms.pbc = pbc
    return atoms


def _outside() -> Atoms:
    """Atoms that dynamics has carried far from the cell they began in."""
    atoms = scenes.crystal((14,))
    atoms.positions += [[40.0, -7.0, 3.0], [-13.0, 5.0, 90.0]]
    return atoms


def _left_handed() -> Atoms:
    atoms = _skewed()
    atoms.set_cell(np.asarray(atoms.cell)[[1, 0, 2]], scale_atoms=False)
    return atoms


CASES = {
    "crystal": (bulk("Si"), 5.0),
    "skewed": (_skewed(), 4.5),
    "left-handed": (_left_handed(), 4.5),
    "one atom, many images": (Atoms("Si", cell=[1.9, 2.1, 2.3], pbc=True), 7.0),
    "flat box": (Atoms("Si", cell=[2.0, 30.0, 30.0], pbc=True), 5.0),
    "slab": (_partial(True, True, False), 5.0),
    "wire": (_partial(False, True, False), 5.0),
    "wire in a cell of one vector": (Atoms("Si", cell=[2.4, 0, 0], pbc=[True, False, False]), 5.0),
    "molecule": (scenes.molecule((14,)), 5.0),
    "molecule with a cell": (Atoms("Si2", positions=[[0, 0, 0], [2, 0, 0]], cell=[1, 1, 1]), 5.0),
    "lone atom": (scenes.isolated((14,)), 5.0),
    "atoms outside the cell": (_outside(), 5.0),
    "amorphous": (bulk("Si", cubic=True).repeat(2), 5.0),
}


@pytest.mark.parametrize("name", CASES)
def test_edges_are_those_of_ase(name: str) -> None:
    atoms, cutoff = CASES[name]
    atoms = atoms.copy()
    atoms.rattle(0.01, seed=3)  # no pair exactly at the cutoff
    expected, got = _edges_of_ase(atoms, cutoff), _edges_of_zoo(atoms, cutoff)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-10)


def test_graph_has_the_type_that_was_asked_for() -> None:
    atoms = scenes.crystal((14,))
    assert build_graph(atoms, 4.0).positions.dtype == torch.float64
    single = build_graph(atoms, 4.0, dtype=torch.float32)
    assert (single.positions.dtype, single.shifts.dtype) == (torch.float32, torch.float32)
    assert (single.numbers.dtype, single.centers.dtype) == (torch.int64, torch.int64)


def test_cells_of_directions_that_are_not_periodic_are_zero() -> None:
    cells = build_graph(_partial(True, False, True), 4.0).cells[0]
    assert cells[1].abs().max() == 0
    assert cells[0].abs().max() > 0


def test_graph_does_not_share_memory_with_the_atoms() -> None:
    atoms = scenes.crystal((14,))
    graph = build_graph(atoms, 4.0)
    before = graph.positions.clone()
    atoms.positions += 1.0
    torch.testing.assert_close(graph.positions, before)


def _at(positions: object, **given: object) -> Atoms:
    return Atoms("Si" * len(positions), positions=positions, **given)


PLANE = [[3.0, 0, 0], [0, 3.0, 0], [3.0, 3.0, 0]]
BROKEN = {
    "no atoms": (Atoms(), "give at least one"),
    "NaN": (_at([[0, 0, 0], [np.nan, 0, 0]]), "position 1 .* not a finite number; repair"),
    "infinite": (_at([[0, 0, np.inf]]), "position 0 .* not a finite number; repair"),
    "NaN in the cell": (
        _at([[0, 0, 0]], cell=[3, np.nan, 3], pbc=True),
        "cell .* not a finite number; repair",
    ),
    "no cell": (_at([[0, 0, 0]], pbc=True), "no cell.*set atoms.cell, or atoms.pbc = False"),
    "no cell along b": (_at([[0, 0, 0]], cell=[3, 0, 0], pbc=[True, True, False]), "no cell.*set atoms.cell"),
    "flat cell": (_at([[0, 0, 0]], cell=PLANE, pbc=True), "lie in a .*plane"),
    "two atoms on one spot": (_at([[0, 0, 0], [1, 1, 1], [1, 1, 1]]), "atoms [12] and [12] .* remove one"),
    "two atoms nearly on one spot": (_at([[0, 0, 0], [0, 0, 0.004]]), "0.0040 Å apart; remove one"),
    "an atom on the image of another": (
        _at([[0, 0, 0], [5, 0, 0]], cell=[5, 5, 5], pbc=True),
        "0.0000 Å apart; remove one",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_structure_is_named_with_its_remedy(name: str) -> None:
    atoms, message = BROKEN[name]
    with pytest.raises(StructureError, match=message) as caught:
        build_graph(atoms, 4.0)
    assert type(caught.value) is StructureError
    assert isinstance(caught.value, ZooError | ValueError)
    assert "\n" not in str(caught.value)


def test_broken_structure_in_a_batch_is_found() -> None:
    with pytest.raises(StructureError, match="not a finite number"):
        build_graph([scenes.crystal((14,)), BROKEN["NaN"][0]], 4.0)


def test_no_structures_are_an_error() -> None:
    with pytest.raises(StructureError, match="pass at least one"):
        build_graph([], 4.0)


# vesin divides by volumes and counts its bins in whole numbers: what follows kills it by a signal, and the
# interpreter with it. The check must refuse first, so these tests ask the check alone.

PARALLEL = {
    "parallel vectors, no third": [[3.0, 0, 0], [6.0, 0, 0], [0, 0, 0]],
    "parallel vectors": [[3.0, 0, 0], [6.0, 0, 0], [0, 0, 5.0]],
}


@pytest.mark.parametrize("name", PARALLEL)
def test_periodic_directions_that_are_parallel_are_refused(name: str) -> None:
    with pytest.raises(StructureError):
        check_structure(Atoms("Si", cell=PARALLEL[name], pbc=[True, True, False]))


@pytest.mark.parametrize("distance", [1e6, 1e9, 1e300])
def test_atoms_beyond_all_reason_are_refused(distance: float) -> None:
    for periodic in (False, True):
        atoms = _at([[0, 0, 0], [distance, 0, 0]])
        atoms.set_cell([5.0] * 3)
        atoms.pbc = periodic
        with pytest.raises(StructureError, match="Å apart"):
            check_structure(atoms)


@pytest.mark.parametrize("name", sorted(set(CASES)))
def test_sound_structure_passes_the_check(name: str) -> None:
    check_structure(CASES[name][0])


# --- atoms that move ------------------------------------------------------------------------------


def _same_edges(left: Graph, right: Graph) -> None:
    tables = [
        _sorted(*(part.numpy() for part in (one.centers, one.neighbors, one.shifts, one.edge_vectors())))
        for one in (left, right)
    ]
    assert tables[0].shape == tables[1].shape
    assert np.allclose(*tables, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_list_with_a_skin_gives_the_same_graph_wherever_atoms_go(name: str) -> None:
    atoms, cutoff = CASES[name][0].copy(), CASES[name][1]
    skinned, random = SkinList(cutoff), np.random.default_rng(3)
    for _ in range(30):
        atoms.positions += random.normal(0, 0.02, atoms.positions.shape)
        _same_edges(skinned.graph(atoms), build_graph(atoms, cutoff))
    assert 1 <= skinned.searches < 30


def test_neighbours_are_sought_again_when_an_atom_has_moved_half_the_skin_and_not_before() -> None:
    atoms = bulk("Si", cubic=True)
    skinned = SkinList(5.0, skin=0.6)
    skinned.graph(atoms)
    atoms.positions[3, 1] += 0.299
    skinned.graph(atoms)
    assert skinned.searches == 1
    atoms.positions[3, 1] += 0.002
    skinned.graph(atoms)
    assert skinned.searches == 2


@pytest.mark.parametrize("change", ["elements", "cell", "periodicity", "size"])
def test_other_atoms_have_other_neighbours(change: str) -> None:
    atoms = bulk("Si", cubic=True)
    skinned = SkinList(5.0)
    skinned.graph(atoms)
    if change == "elements":
        atoms.symbols[0] = "Ge"
    elif change == "cell":
        atoms.set_cell(atoms.cell * 1.001)
    elif change == "periodicity":
        atoms.pbc = (True, True, False)
    else:
        del atoms[0]
    found = skinned.graph(atoms)
    _same_edges(found, build_graph(atoms, 5.0))
    assert found.numbers.tolist() == atoms.numbers.tolist()
    assert found.periodic.tolist() == [atoms.pbc.tolist()]


def test_atoms_that_meet_or_get_lost_within_the_skin_are_errors() -> None:
    atoms = Atoms("Si2", [[0, 0, 0], [0, 0, 0.2]])
    skinned = SkinList(5.0, skin=1.0)
    skinned.graph(atoms)
    atoms.positions[1, 2] = 0.001
    with pytest.raises(StructureError, match=r"atoms . and . of Si2 are 0\.0010 Å apart"):
        skinned.graph(atoms)
    atoms.positions[1, 2] = np.nan
    with pytest.raises(StructureError, match="not a finite number"):
        skinned.graph(atoms)
    with pytest.raises(ConfigError, match="skin of 0"):
        SkinList(5.0, skin=0)
