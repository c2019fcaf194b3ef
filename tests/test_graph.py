"""Graphs, and batches of them."""

from dataclasses import fields, replace

import pytest
import structures as scenes
import torch

from zoo.graph import Graph, collate
from zoo.neighbors import build_graph

CUTOFF = 4.0
PARTS = (scenes.crystal((14, 8)), scenes.molecule((14,)), scenes.isolated((8,)))


def _graphs() -> list[Graph]:
    return [build_graph(atoms, CUTOFF) for atoms in PARTS]


def _same(one: Graph, other: Graph) -> None:
    for field in fields(Graph):
        torch.testing.assert_close(getattr(one, field.name), getattr(other, field.name), rtol=0, atol=0)


def test_batch_counts_its_parts() -> None:
    batch = collate(_graphs())
    assert (batch.num_structures, batch.num_atoms) == (3, 7)
    assert batch.num_edges == sum(graph.num_edges for graph in _graphs())
    assert batch.atom_counts.tolist() == [2, 4, 1]
    assert batch.structure.tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert batch.periodic.tolist() == [[True] * 3, [False] * 3, [False] * 3]


def test_edges_of_a_batch_stay_within_their_structures() -> None:
    batch = collate(_graphs())
    assert torch.equal(batch.structure[batch.centers], batch.structure[batch.neighbors])
    expected = torch.cat([graph.edge_vectors() for graph in _graphs()])
    torch.testing.assert_close(batch.edge_vectors(), expected)


def test_a_structure_without_edges_keeps_its_place_in_counts() -> None:
    batch = collate([*_graphs()[2:], *_graphs()[:1]])
    assert batch.atom_counts.tolist() == [1, 2]


def test_batches_of_batches_are_batches() -> None:
    graphs = _graphs()
    _same(collate([collate(graphs[:2]), graphs[2]]), collate(graphs))
    _same(build_graph(list(PARTS), CUTOFF), collate(graphs))


def test_batch_of_one_is_the_graph() -> None:
    graph = _graphs()[0]
    _same(collate([graph]), graph)


@pytest.mark.parametrize("atoms", PARTS[:2], ids=["crystal", "molecule"])
def test_shortcut_for_one_structure_gives_what_a_batch_gives(atoms: object) -> None:
    graph = build_graph(atoms, CUTOFF)
    twice = collate([graph, graph]).edge_vectors()
    torch.testing.assert_close(graph.edge_vectors(), twice[: graph.num_edges])
    torch.testing.assert_close(graph.edge_vectors(), twice[graph.num_edges :])


def test_both_directions_of_a_pair_are_present() -> None:
    graph = build_graph(PARTS[0], CUTOFF)
    forth = torch.column_stack([graph.centers, graph.neighbors, graph.shifts]).tolist()
    back = torch.column_stack([graph.neighbors, graph.centers, -graph.shifts]).tolist()
    assert sorted(forth) == sorted(back)


def test_edge_vectors_differentiate_by_positions_and_cell() -> None:
    graph = build_graph(PARTS[0], CUTOFF)

    def vectors(positions: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        return graph.with_geometry(positions, cells).edge_vectors().square()

    inputs = (graph.positions.clone().requires_grad_(), graph.cells.clone().requires_grad_())
    assert torch.autograd.gradcheck(vectors, inputs)


def test_to_changes_the_type_of_real_numbers_only() -> None:
    moved = collate(_graphs()).to("cpu", torch.float32)
    for field in fields(Graph):
        before, after = getattr(collate(_graphs()), field.name), getattr(moved, field.name)
        assert after.dtype == (torch.float32 if before.is_floating_point() else before.dtype), field.name


def test_with_geometry_keeps_edges() -> None:
    graph = _graphs()[0]
    moved = graph.with_geometry(graph.positions + 1, 2 * graph.cells)
    _same(replace(moved, positions=graph.positions, cells=graph.cells), graph)
    torch.testing.assert_close(moved.cells, 2 * graph.cells)


def test_graph_is_frozen() -> None:
    with pytest.raises(AttributeError):
        _graphs()[0].numbers = torch.zeros(1)
