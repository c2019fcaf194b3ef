"""Edges side by side in the row of their atom.

Two edges of an atom make a triplet, so that a table of all pairs within the rows is a table of all triplets; no list of
triplets is made.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Where each edge stands in a table with a row an atom; rows are as long as the longest."""

    places: Tensor  # (edges,) int64, in the table of atoms * width
    atoms: int
    width: int  # edges of the atom that has most

    @classmethod
    def of(cls, owners: Tensor, atoms: int) -> "Rows":
        """Edges in their order in the rows of the atoms that they belong to, owners (edges,) int64."""
        ranks = rank_within(owners, atoms)
        width = int(ranks.max()) + 1 if len(ranks) else 0
        return cls(owners * width + ranks, atoms, width)

    def to_table(self, values: Tensor) -> Tensor:
        """(edges, channels) -> (atoms, width, channels), zero beyond an atom's own edges."""
        table = values.new_zeros(self.atoms * self.width, values.shape[1]).index_copy(0, self.places, values)
        return table.reshape(self.atoms, self.width, values.shape[1])

    def from_table(self, table: Tensor) -> Tensor:
        """(atoms * width, channels) -> (edges, channels)"""
        return table.index_select(0, self.places)


def rank_within(groups: Tensor, count: int) -> Tensor:
    """(edges,) How many of the same group come before in the order given: 0, 1, 2, ... in each of ``count`` groups."""
    order = groups.argsort(stable=True)
    sizes = torch.bincount(groups, minlength=count)
    starts = sizes.cumsum(0) - sizes  # (groups,)
    ranks = torch.empty_like(groups)
    ranks[order] = torch.arange(len(groups), device=groups.device) - starts[groups[order]]
    return ranks
