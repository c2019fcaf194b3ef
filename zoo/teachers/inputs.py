"""What networks of several families are given beside a graph, or not given: neighbours, spins, unknown elements."""

import warnings
from collections.abc import Collection, Iterable
from dataclasses import replace

import torch
from ase.data import chemical_symbols
from torch import Tensor

from zoo.errors import DomainError, ZooWarning
from zoo.graph import Graph
from zoo.ops import scatter_sum
from zoo.rows import rank_within


def nearest(graph: Graph, count: int, beyond: float | None = None) -> Graph:
    """The graph with the edges to the nearest ``count`` neighbours of each atom, in their order.

    ``beyond`` (Å²) keeps all edges whose square is at most that of the next neighbour after these and so much more.
    Between neighbours at the same distance the order of the graph decides.
    """
    if graph.num_edges == 0 or int(torch.bincount(graph.centers).max()) <= count:
        return graph
    squares = graph.edge_vectors().detach().square().sum(dim=1)  # (edges,) Å²
    nearest_first = squares.argsort(stable=True)
    ranks = torch.empty_like(graph.centers)
    ranks[nearest_first] = rank_within(graph.centers[nearest_first], graph.num_atoms)
    kept = ranks < count
    if beyond is not None:
        reach = squares.new_full((graph.num_atoms,), torch.inf)  # (atoms,)
        after = ranks == count
        reach[graph.centers[after]] = squares[after] + beyond
        kept = squares <= reach[graph.centers]
    index = kept.nonzero()[:, 0]
    return replace(graph, centers=graph.centers[index], neighbors=graph.neighbors[index], shifts=graph.shifts[index])


def warn_of_hidden(graph: Graph, near: Graph, count: int, name: str) -> None:
    """Warns where ``near`` lacks edges of the graph, of a teacher of which energy and forces are said to be smooth."""
    if near.num_edges < graph.num_edges:
        warnings.warn(
            f"a structure is so dense that atoms have more than {count} neighbours, of which {name} sees the nearest "
            f"{count}: its energy and forces jump where neighbours change places, and Hessian products know nothing of "
            "that; choose a teacher that sees all",
            ZooWarning,
            stacklevel=3,
        )


def lowest_multiplicities(graph: Graph) -> Tensor:
    """(structures,) int64: 1 for an even number of electrons of the neutral structure, 2 for an odd one."""
    return 1 + scatter_sum(graph.numbers, graph.structure, graph.num_structures) % 2


def check_elements(graph: Graph, elements: tuple[int, ...], name: str) -> None:
    """Raises DomainError for an element that a teacher lacks."""
    if unknown := unknown_symbols(graph.numbers.tolist(), elements):
        raise DomainError(f"{name} was not trained on {unknown}; choose a teacher that was, or leave the structure out")


def unknown_symbols(numbers: Iterable[int], elements: Collection[int]) -> str:
    """Symbols of the atomic numbers that are not among a teacher's ``elements``, in their order; none is empty."""
    return ", ".join(chemical_symbols[number] for number in sorted(set(numbers) - set(elements)))
