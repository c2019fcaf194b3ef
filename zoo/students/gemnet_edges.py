"""The edges of GemNet: each with its counter-edge, and those that meet at an atom side by side."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import StructureError
from zoo.graph import Graph
from zoo.rows import Rows, rank_within


@dataclass(frozen=True)
class Edges(Rows):
    """Edges from centres to images of neighbours, in the rows of their centres."""

    centers: Tensor  # (edges,) int64
    neighbors: Tensor  # (edges,) int64
    shifts: Tensor  # (edges, 3)
    counters: Tensor  # (edges,) int64, the edge back


@dataclass(frozen=True)
class FoundGraph(Graph):
    """A graph whose edges were found before: what finds them is not repeated."""

    found: Edges


def find_edges(graph: Graph, max_neighbors: int | None) -> Edges:
    """All edges of the graph, or those that the nearest ``max_neighbors`` of each atom leave."""
    if isinstance(graph, FoundGraph):
        return graph.found
    if max_neighbors is None:
        centers, neighbors, shifts = graph.centers, graph.neighbors, graph.shifts
        counters = _find_counters(graph)
    else:
        centers, neighbors, shifts, counters = _nearest(graph, max_neighbors)
    rows = Rows.of(centers, graph.num_atoms)
    return Edges(rows.places, rows.atoms, rows.width, centers, neighbors, shifts, counters)


def _find_counters(graph: Graph) -> Tensor:
    """(edges,) The edge from each edge's neighbour back to its centre, by the opposite shift."""
    if graph.num_edges == 0:
        return graph.centers
    shifts = graph.shifts.round().to(torch.int64)
    reach = int(shifts.abs().max())
    there = _number(graph.centers, graph.neighbors, shifts, graph.num_atoms, reach)
    back = _number(graph.neighbors, graph.centers, -shifts, graph.num_atoms, reach)
    ascending, order = there.sort()
    found = order[torch.searchsorted(ascending, back).clamp(max=graph.num_edges - 1)]
    if not torch.equal(there[found], back):
        raise StructureError("a graph has edges without their counter-edges; make it with build_graph")
    return found


def _number(centers: Tensor, neighbors: Tensor, shifts: Tensor, atoms: int, reach: int) -> Tensor:
    """(edges,) One whole number for each (centre, neighbour, shift)."""
    number = centers * atoms + neighbors
    for axis in range(3):
        number = number * (2 * reach + 1) + shifts[:, axis] + reach
    return number


def _nearest(graph: Graph, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Edges as the Open Catalyst code leaves them: centres, neighbours, shifts and counter-edges.

    Of the nearest ``count`` neighbours of each atom (of equally near ones those that the graph has first), those with a
    lower index stay, of its own images those of a negative shift; each gets its counter-edge.
    """
    squares = graph.edge_vectors().detach().square().sum(dim=1)  # (edges,) Å²
    nearest_first = squares.argsort(stable=True)
    ranks = torch.empty_like(graph.centers)
    ranks[nearest_first] = rank_within(graph.centers[nearest_first], graph.num_atoms)
    x, y, z = graph.shifts.unbind(dim=1)
    negative = (x < 0) | ((x == 0) & ((y < 0) | ((y == 0) & (z < 0))))
    lower = (graph.neighbors < graph.centers) | ((graph.neighbors == graph.centers) & negative)
    kept = (lower & (ranks < count)).nonzero()[:, 0]
    centers, neighbors, shifts = graph.centers[kept], graph.neighbors[kept], graph.shifts[kept]
    half = torch.arange(len(kept), device=kept.device)
    return (
        torch.cat([centers, neighbors]),
        torch.cat([neighbors, centers]),
        torch.cat([shifts, -shifts]),
        torch.cat([half + len(kept), half]),
    )
