"""Structures with their edges, always batched: one structure is a batch of one."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Graph:
    """Atoms of one or many structures, and the pairs of them within a cutoff.

    An edge leads from a centre to an image of a neighbour; both directions of a pair are present.
    """

    numbers: Tensor  # (atoms,) int64, atomic numbers
    positions: Tensor  # (atoms, 3) Å
    cells: Tensor  # (structures, 3, 3) Å, rows are lattice vectors; zero rows where there is no cell
    periodic: Tensor  # (structures, 3) bool
    structure: Tensor  # (atoms,) int64, the structure an atom belongs to, ascending
    centers: Tensor  # (edges,) int64
    neighbors: Tensor  # (edges,) int64
    shifts: Tensor  # (edges, 3) whole lattice vectors from the neighbour to its image

    @property
    def num_structures(self) -> int:
        return self.cells.shape[0]

    @property
    def num_atoms(self) -> int:
        return self.numbers.shape[0]

    @property
    def num_edges(self) -> int:
        return self.centers.shape[0]

    @property
    def atom_counts(self) -> Tensor:
        """(structures,) int64"""
        return torch.bincount(self.structure, minlength=self.num_structures)

    def edge_vectors(self) -> Tensor:
        """(edges, 3) Å, from each centre to the image of its neighbour."""
        vectors = self.positions.index_select(0, self.neighbors) - self.positions.index_select(0, self.centers)
        if self.num_structures == 1:
            return vectors + self.shifts @ self.cells[0]
        cells = self.cells.index_select(0, self.structure.index_select(0, self.centers))  # (edges, 3, 3)
        return vectors + (self.shifts.unsqueeze(1) @ cells)[:, 0, :]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Graph":
        """The graph on another device, its real numbers in another type."""
        moved = {}
        for field in fields(self):
            tensor: Tensor = getattr(self, field.name)
            moved[field.name] = tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
        return Graph(**moved)

    def with_geometry(self, positions: Tensor, cells: Tensor) -> "Graph":
        """The same atoms and edges at other places."""
        return replace(self, positions=positions, cells=cells)


def collate(graphs: Sequence[Graph]) -> Graph:
    """Many graphs as one batch, in order."""
    if len(graphs) == 1:
        return graphs[0]
    atoms = _starts([graph.num_atoms for graph in graphs])
    structures = _starts([graph.num_structures for graph in graphs])
    return Graph(
        numbers=torch.cat([graph.numbers for graph in graphs]),
        positions=torch.cat([graph.positions for graph in graphs]),
        cells=torch.cat([graph.cells for graph in graphs]),
        periodic=torch.cat([graph.periodic for graph in graphs]),
        structure=torch.cat([graph.structure + start for graph, start in zip(graphs, structures, strict=True)]),
        centers=torch.cat([graph.centers + start for graph, start in zip(graphs, atoms, strict=True)]),
        neighbors=torch.cat([graph.neighbors + start for graph, start in zip(graphs, atoms, strict=True)]),
        shifts=torch.cat([graph.shifts for graph in graphs]),
    )


def _starts(counts: list[int]) -> list[int]:
    starts = [0]
    for count in counts[:-1]:
        starts.append(starts[-1] + count)
    return starts
