"""The edges of GemNet-OC: four kinds of them, each a choice among the nearest neighbours of an atom.

An edge leads from a source to a target. In ``zoo.graph`` the target is the centre and the source the image of a
neighbour. Of each kind, the edges that end at an atom stand side by side in its row (``zoo.rows``): no list of triplets
or quadruplets is made.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zoo.gemnet_oc.config import GemNetOCConfig
from zoo.graph import Graph
from zoo.rows import Rows, rank_within

_SAME_DISTANCE = 6  # decimals, Å; neighbours as near as this are taken in the order of atoms
_NOBODY = torch.iinfo(torch.int64).min  # in the place of an image where a row has no edge


@dataclass(frozen=True)
class Edges(Rows):
    """Edges of one kind, in the rows of their targets."""

    sources: Tensor  # (edges,) int64
    targets: Tensor  # (edges,) int64
    images: Tensor  # (edges,) int64, the number of the source's image, counted from the target's cell
    directions: Tensor  # (edges, 3) from source to target, of length one
    distances: Tensor  # (edges, 1) Å

    def image_table(self) -> Tensor:
        """(atoms, width) Numbers of images; a number that no image has beyond an atom's own edges."""
        table = self.images.new_full((self.atoms * self.width,), _NOBODY)
        return table.index_copy(0, self.places, self.images).reshape(self.atoms, self.width)


@dataclass(frozen=True)
class Graphs:
    """All that layers see of a batch of structures."""

    main: Edges  # with messages
    counters: Tensor  # (main edges,) the edge back
    to_edges: Edges  # from atoms to main edges and back (a2ee2a)
    middle: Edges  # b -> a of quadruplets d -> b -> a <- c (qint)
    to_atoms: Edges  # between atoms (a2a)
    cells: int  # images that an atom is given numbers for: image = atom * cells + number of its cell


def find_graphs(graph: Graph, config: GemNetOCConfig) -> Graphs:
    """Of each atom's neighbours, the nearest so many of each kind.

    Neighbours at the same distance are taken in the order of atoms. Of the main edges those stay whose source comes
    before their target, of an atom's own images those of a negative shift, and each gets its counter-edge: as the
    published weights expect it, and the reason why, where more neighbours are within the cutoff than are kept,
    energies depend on the order of atoms.
    """
    reach = 2 * int(graph.shifts.abs().max().round()) if graph.num_edges else 0
    base = 2 * reach + 1  # shifts of two edges in a row have their numbers
    cell = _cell_numbers(graph.shifts, base)  # (edges,)
    ranks = _ranks_by_distance(graph, graph.neighbors * base**3 + cell)
    earlier = (graph.neighbors < graph.centers) | ((graph.neighbors == graph.centers) & (cell < 0))
    main, counters = _with_counters(_choose(graph, earlier & (ranks < config.max_neighbors)))
    return Graphs(
        main=_edges(main, base),
        counters=counters,
        to_edges=_edges(_choose(graph, ranks < config.max_neighbors_aeaint), base),
        middle=_edges(_choose(graph, ranks < config.max_neighbors_qint), base),
        to_atoms=_edges(_choose(graph, ranks < config.max_neighbors_aint), base),
        cells=base**3,
    )


def _with_counters(half: Graph) -> tuple[Graph, Tensor]:
    """The graph with the edges back, and the number of each edge's counter-edge."""
    both = replace(
        half,
        centers=torch.cat([half.centers, half.neighbors]),
        neighbors=torch.cat([half.neighbors, half.centers]),
        shifts=torch.cat([half.shifts, -half.shifts]),
    )
    forth = torch.arange(half.num_edges, device=half.centers.device)
    return both, torch.cat([forth + half.num_edges, forth])


def _cell_numbers(shifts: Tensor, base: int) -> Tensor:
    """(edges,) A whole number for each shift; that of a sum is the sum, and zero's is zero."""
    x, y, z = shifts.round().to(torch.int64).unbind(dim=1)
    return (x * base + y) * base + z


def _ranks_by_distance(graph: Graph, images: Tensor) -> Tensor:
    """(edges,) How many neighbours of the same atom come before: 0, 1, 2, ..., the nearest first."""
    by_image = images.argsort()
    distances = graph.edge_vectors().detach().double().square().sum(dim=1).sqrt().round(decimals=_SAME_DISTANCE)
    nearest_first = by_image[distances[by_image].argsort(stable=True)]
    ranks = torch.empty_like(images)
    ranks[nearest_first] = rank_within(graph.centers[nearest_first], graph.num_atoms)
    return ranks


def _choose(graph: Graph, kept: Tensor) -> Graph:
    """The graph with those of its edges for which ``kept`` (edges,) holds."""
    index = kept.nonzero()[:, 0]
    return replace(graph, centers=graph.centers[index], neighbors=graph.neighbors[index], shifts=graph.shifts[index])


def _edges(graph: Graph, base: int) -> Edges:
    vectors = -graph.edge_vectors()  # (edges, 3)
    distances = vectors.square().sum(dim=1, keepdim=True).sqrt()  # (edges, 1); edges have length
    rows = Rows.of(graph.centers, graph.num_atoms)
    return Edges(
        places=rows.places,
        atoms=rows.atoms,
        width=rows.width,
        sources=graph.neighbors,
        targets=graph.centers,
        images=graph.neighbors * base**3 + _cell_numbers(graph.shifts, base),
        directions=vectors / distances,
        distances=distances,
    )
