"""Graphs of fixed sizes: what fills them changes nothing of what they hold."""

from collections.abc import Callable

import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from direct_potentials import tiny_painn_dt
from gemnets import tiny_gemnet

from zoo.errors import StructureError
from zoo.graph import Graph
from zoo.neighbors import build_graph
from zoo.padding import GROWTH, Capacity, PaddedGraph, cut, pad
from zoo.potential import Potential, Prediction

POTENTIALS: dict[str, Callable[[], Potential]] = {
    "painn": lambda: scenes.tiny_painn("Si", "O"),
    "painn-dt": lambda: tiny_painn_dt("Si", "O"),
    "painn-dt as published": lambda: tiny_painn_dt("Si", "O", smooth=False),
    "painn-dt of few neighbours": lambda: tiny_painn_dt("Si", "O", max_neighbors=5),
    "gemnet-t": lambda: tiny_gemnet("Si", "O"),
    "gemnet-t of few neighbours": lambda: tiny_gemnet("Si", "O", max_neighbors=5),
    "gemnet-dt": lambda: tiny_gemnet("Si", "O", direct=True),
}


def random_structures(seed: int) -> list[Atoms]:
    """One to four crystals, molecules and single atoms, of random sizes and shapes."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(random.integers(1, 5)):
        kind, more = random.integers(4), int(random.integers(1, 4))
        if kind == 0:
            atoms = scenes.crystal((14, 8), seed=int(random.integers(100))).repeat((more, 1, 1))
        elif kind == 1:
            atoms = scenes.isolated((8,))
        else:
            atoms = scenes.molecule((14, 8), seed=int(random.integers(100)))
        atoms.rattle(0.05, seed=int(random.integers(100)))
        found.append(atoms)
    return found


def same(padded: Prediction, plain: Prediction) -> None:
    for part in ("energy", "atomic_energies", "forces", "stress", "features", "hessian_products"):
        ours, theirs = getattr(padded, part), getattr(plain, part)
        assert ours.shape == theirs.shape, part
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True), part


@pytest.mark.parametrize("name", POTENTIALS)
def test_padded_is_unpadded(name: str) -> None:
    potential = POTENTIALS[name]()
    for seed in range(8):
        graph = build_graph(random_structures(seed), potential.cutoff)
        capacity = Capacity.of(graph)
        padded = pad(graph, capacity, potential.cutoff)
        assert (padded.num_atoms, padded.num_edges, padded.num_structures) == (
            capacity.atoms,
            capacity.edges,
            capacity.structures,
        )
        probes = torch.randn(2, padded.num_atoms, 3, dtype=torch.float64)
        ours = potential.predict(padded, stress=True, features=True, probes=probes)
        theirs = potential.predict(graph, stress=True, features=True, probes=probes[:, : graph.num_atoms])
        same(cut(ours, graph), theirs)
        assert all(bool(part.isfinite().all()) for part in (ours.energy, ours.atomic_energies, ours.forces))


def test_no_atom_that_fills_hears_of_another() -> None:
    graph = build_graph(scenes.crystal((14, 8)), 4.0)
    padded = pad(graph, Capacity.of(graph), 4.0)
    lengths = padded.edge_vectors().norm(dim=1)
    assert bool((lengths[graph.num_edges :] > 4.0).all())
    assert bool((padded.centers[graph.num_edges :] >= graph.num_atoms).all())
    assert bool((padded.neighbors[graph.num_edges :] >= graph.num_atoms).all())
    assert not padded.periodic[graph.num_structures :].any()


@pytest.mark.parametrize("atoms", [1, 2, 7, 8, 100, 1000])
def test_atoms_that_fill_have_no_more_neighbours_than_the_others(atoms: int) -> None:
    """Or a table with a row for each atom would be as wide as all that is left over."""
    edges = 28 * atoms
    capacity = Capacity.of(graph_of(atoms, edges))
    assert (capacity.edges - edges) / (capacity.atoms - atoms) <= 28 + 2


def graph_of(atoms: int, edges: int) -> Graph:
    """Of these sizes, and nothing else."""
    real, whole = torch.zeros(edges, 3, dtype=torch.float64), torch.zeros(edges, dtype=torch.int64)
    numbers = torch.full((atoms,), 14)
    cells, periodic = torch.zeros(1, 3, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.bool)
    return Graph(numbers, torch.zeros(atoms, 3).double(), cells, periodic, 0 * numbers, whole, whole, real)


def test_capacities_are_few_and_not_much_larger_than_what_they_hold() -> None:
    found = [Capacity.of(graph_of(148, edges)) for edges in range(4000, 5000, 2)]
    assert len(set(found)) <= 6
    assert all(capacity.edges >= edges + 2 for capacity, edges in zip(found, range(4000, 5000, 2), strict=True))
    assert all(
        capacity.edges <= GROWTH * (edges + 2) + 8 for capacity, edges in zip(found, range(4000, 5000, 2), strict=True)
    )
    assert all(capacity.edges % 2 == 0 for capacity in found), "an edge and the one back"


def test_buffers_forget_what_was_in_them() -> None:
    """A large graph, then a smaller one of other elements: nothing of the first is left."""
    potential = scenes.tiny_painn("Si", "O")
    large, small = (
        build_graph(atoms, 4.0) for atoms in (scenes.crystal((14, 8)).repeat((2, 1, 1)), scenes.molecule((8,)))
    )
    buffers = PaddedGraph(large, Capacity.of(large), 4.0)
    places = {name: tensor.data_ptr() for name, tensor in vars(buffers.graph).items()}
    for graph in (large, small, large):
        buffers.write(graph)
        same(
            cut(
                potential.predict(
                    buffers.graph, stress=True, features=True, probes=torch.zeros(0, buffers.capacity.atoms, 3).double()
                ),
                graph,
            ),
            potential.predict(graph, stress=True, features=True, probes=torch.zeros(0, graph.num_atoms, 3).double()),
        )
    assert {name: tensor.data_ptr() for name, tensor in vars(buffers.graph).items()} == places, "the same memory"


@pytest.mark.parametrize("less", [{"atoms": 2}, {"edges": 32}, {"structures": 1}])
def test_what_does_not_fit_is_refused(less: dict[str, int]) -> None:
    graph = build_graph(scenes.crystal((14, 8)), 4.0)
    room = {"atoms": 8, "edges": 40, "structures": 2} | less
    with pytest.raises(
        StructureError, match=r"a graph of 2 atoms, 32 edges and 1 structures for buffers of .*Capacity.of"
    ):
        pad(graph, Capacity(**room), 4.0)


def test_a_graph_without_edges_is_padded_too() -> None:
    potential = scenes.tiny_painn("Si")
    graph = build_graph(scenes.isolated((14,)), 4.0)
    padded = potential.predict(pad(graph, Capacity.of(graph), 4.0), stress=True)
    plain = potential.predict(graph, stress=True)
    assert torch.equal(cut(padded, graph).energy, plain.energy)
    assert torch.equal(cut(padded, graph).forces, plain.forces)
