"""Graphs of fixed sizes: what is left over is filled so that it changes nothing of the rest.

A CUDA graph does the same operations on the same memory again and again, and so wants sizes that stay while atoms move
and edges come and go. Into what is left over go atoms of a structure of their own, without neighbours within the
cutoff: each edge among them leads to an image of the atom that it starts from, beyond the cutoff.
"""

from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from zoo.errors import StructureError
from zoo.graph import Graph
from zoo.potential import Prediction

GROWTH = 1.25  # from one size of buffers to the next
_STEP = 8
_AWAY = 1.5  # cutoffs to the image of an atom that fills


@dataclass(frozen=True)
class Capacity:
    """Room for so many, those that fill included: at least one atom, two edges and one structure."""

    atoms: int
    edges: int
    structures: int

    @classmethod
    def of(cls, graph: Graph) -> "Capacity":
        """Of a few sizes, so that graphs of about the same have the same.

        There are as many atoms that fill as their edges need, at the number of neighbours that the others have.
        """
        edges = _rung(graph.num_edges + 2)
        atoms = graph.num_atoms + 1
        if graph.num_edges:
            atoms = max(atoms, ceil(graph.num_atoms * edges / graph.num_edges))
        return cls(_rung(atoms), edges, _rung(graph.num_structures + 1))


def _rung(least: int) -> int:
    """The first of 8, 16, 24, 32, 40, 56, 72, 96, 120, ... that is not less."""
    size = _STEP
    while size < least:
        size = ceil(size * GROWTH / _STEP) * _STEP
    return size


class PaddedGraph:
    """Buffers of a capacity, into which graphs are written one after another."""

    def __init__(self, like: Graph, capacity: Capacity, cutoff: float) -> None:
        """On the device and of the type of ``like``, for graphs with edges up to ``cutoff`` (Å)."""
        real, whole = like.positions, like.numbers
        self.capacity = capacity
        self._away = _AWAY * cutoff * torch.eye(3, dtype=real.dtype, device=real.device)
        self._count = torch.arange(capacity.edges, device=whole.device)  # (edges,)
        self._there = torch.zeros(capacity.edges, 3, dtype=real.dtype, device=real.device)
        self._there[0::2, 0], self._there[1::2, 0] = 1, -1  # an edge and the one back
        self.graph = Graph(
            numbers=whole.new_zeros(capacity.atoms),
            positions=real.new_zeros(capacity.atoms, 3),
            cells=self._away.repeat(capacity.structures, 1, 1),
            periodic=torch.zeros(capacity.structures, 3, dtype=torch.bool, device=whole.device),
            structure=whole.new_zeros(capacity.atoms),
            centers=whole.new_zeros(capacity.edges),
            neighbors=whole.new_zeros(capacity.edges),
            shifts=torch.zeros_like(self._there),
        )

    def write(self, graph: Graph) -> None:
        """The graph, and what fills the rest. Raises StructureError where it does not fit."""
        atoms, edges, structures = graph.num_atoms, graph.num_edges, graph.num_structures
        room = self.capacity
        if atoms >= room.atoms or edges + 2 > room.edges or structures >= room.structures:
            raise StructureError(
                f"a graph of {atoms} atoms, {edges} edges and {structures} structures for buffers of {room.atoms}, "
                f"{room.edges} and {room.structures}; make them with Capacity.of(graph)"
            )
        ours = self.graph
        loops = atoms + torch.div(self._count, 2, rounding_mode="floor") % (room.atoms - atoms)  # (edges,)
        _fill(ours.numbers, graph.numbers, graph.numbers[:1])
        _fill(ours.positions, graph.positions, torch.zeros_like(ours.positions[:1]))
        _fill(ours.cells, graph.cells, self._away)
        _fill(ours.periodic, graph.periodic, torch.zeros_like(ours.periodic[:1]))
        _fill(ours.structure, graph.structure, torch.full_like(ours.structure[:1], room.structures - 1))
        _fill(ours.centers, graph.centers, loops[edges:])
        _fill(ours.neighbors, graph.neighbors, loops[edges:])
        _fill(ours.shifts, graph.shifts, self._there[edges:])


def _fill(buffer: Tensor, head: Tensor, rest: Tensor) -> None:
    buffer[: len(head)] = head
    buffer[len(head) :] = rest


def pad(graph: Graph, capacity: Capacity, cutoff: float) -> Graph:
    """The graph with what fills it up to a capacity. Raises StructureError where it does not fit."""
    padded = PaddedGraph(graph, capacity, cutoff)
    padded.write(graph)
    return padded.graph


def cut(prediction: Prediction, graph: Graph) -> Prediction:
    """What was said of a graph's own atoms and structures, of a prediction for the graph with more behind it."""
    atoms, structures = graph.num_atoms, graph.num_structures
    by_atom = {
        name: None if part is None else part[:atoms]
        for name, part in vars(prediction).items()
        if name in ("atomic_energies", "forces", "features", "energy_gradient")
    }
    products, stress = prediction.hessian_products, prediction.stress
    return replace(
        prediction,
        **by_atom,
        energy=prediction.energy[:structures],
        stress=None if stress is None else stress[:structures],
        hessian_products=None if products is None else products[:, :atoms],
    )
