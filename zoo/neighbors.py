"""From ASE's atoms to a graph."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Never

import numpy as np
import torch
import vesin
from ase import Atoms

from zoo.errors import ConfigError, StructureError
from zoo.graph import Graph, collate

COINCIDENT = 0.01  # Å; two atoms nearer than this are a mistake, not a structure
_SHORTEST_VECTOR = 1e-3  # Å
_FLATTEST = 1e-4  # smallest singular value of the lattice vectors, each of length one
_WIDEST = 1e5  # Å; the neighbour list counts boxes in between, or rounds in a crystal


def check_structure(atoms: Atoms) -> None:
    """Raises StructureError for atoms that no potential could take."""
    if len(atoms) == 0:
        raise StructureError("a structure without atoms; give at least one")
    for name, values in (("position", atoms.positions), ("cell", np.asarray(atoms.cell))):
        if not np.isfinite(values).all():
            where = int(np.argwhere(~np.isfinite(values))[0][0])
            raise StructureError(f"{name} {where} of {atoms.symbols} is not a finite number; repair the structure")
    _check_cell(atoms)
    if np.ptp(atoms.positions, axis=0).max() > _WIDEST:
        raise StructureError(
            f"atoms of {atoms.symbols} are over {_WIDEST:g} Å apart; check the positions (they are in Å)"
        )


def _check_cell(atoms: Atoms) -> None:
    """The lattice vectors of the periodic directions must have a length each and not lie in one line or plane."""
    periodic = np.asarray(atoms.pbc)
    vectors = np.asarray(atoms.cell)[periodic]  # (periodic directions, 3)
    if not len(vectors):
        return
    lengths = np.linalg.norm(vectors, axis=1)
    if lengths.min() < _SHORTEST_VECTOR:
        raise StructureError(
            f"{atoms.symbols} is periodic along {_axes(periodic)} but has no cell there; "
            "set atoms.cell, or atoms.pbc = False for a molecule"
        )
    if np.linalg.svd(vectors / lengths[:, None], compute_uv=False).min() < _FLATTEST:
        raise StructureError(
            f"the lattice vectors of {atoms.symbols} lie in a line or in a plane; give atoms.cell independent vectors"
        )


def build_graph(
    structures: Atoms | Sequence[Atoms],
    cutoff: float,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Graph:
    """The graph of one structure, or of many in order, with all edges shorter than ``cutoff`` (Å).

    Raises StructureError where a structure is broken or two of its atoms share a place.
    """
    many = [structures] if isinstance(structures, Atoms) else list(structures)
    if not many:
        raise StructureError("no structures given; pass at least one")
    return collate([_graph_of_one(atoms, cutoff) for atoms in many]).to(device, dtype)


def _graph_of_one(atoms: Atoms, cutoff: float) -> Graph:
    check_structure(atoms)
    cell = complete_cell(atoms)
    finder = vesin.NeighborList(cutoff=cutoff, full_list=True)
    centers, neighbors, shifts, lengths = finder.compute(
        points=np.ascontiguousarray(atoms.positions),
        box=cell,
        periodic=np.asarray(atoms.pbc),
        quantities="ijSd",
    )
    graph = Graph(
        numbers=torch.from_numpy(np.asarray(atoms.numbers, dtype=np.int64)),
        positions=torch.from_numpy(np.array(atoms.positions, dtype=np.float64)),
        cells=torch.from_numpy(np.where(np.asarray(atoms.pbc)[:, None], cell, 0.0))[None],
        periodic=torch.from_numpy(np.array(atoms.pbc, dtype=bool))[None],
        structure=torch.zeros(len(atoms), dtype=torch.int64),
        centers=torch.from_numpy(centers.astype(np.int64)),
        neighbors=torch.from_numpy(neighbors.astype(np.int64)),
        shifts=torch.from_numpy(shifts.astype(np.float64)),
    )
    if lengths.size and lengths.min() < COINCIDENT:
        _refuse_coincident(graph, int(lengths.argmin()), float(lengths.min()), atoms)
    return graph


class SkinList:
    """The graph of atoms that move a little from call to call, as ``build_graph`` gives it.

    Pairs are sought up to ``skin`` beyond the cutoff, and again when an atom has moved by half of it, or elements, cell
    or periodicity have changed; in between those within the cutoff are taken from them.
    """

    def __init__(self, cutoff: float, skin: float = 0.5) -> None:
        """Both in Å. Raises ConfigError for a skin that is not positive."""
        if not skin > 0:
            raise ConfigError(f"a skin of {skin} Å; give a positive one, or call build_graph")
        self.cutoff, self.skin = cutoff, skin
        self.searches = 0  # how often neighbours were sought
        self._wide: Graph | None = None
        self._frame: tuple[bytes, ...] = ()  # elements, cell and periodicity of the wide graph

    def graph(self, atoms: Atoms) -> Graph:
        """In float64 in main memory. Raises StructureError where the structure is broken or two atoms share a place."""
        wide = self.wide(atoms)
        moved = wide.with_geometry(torch.from_numpy(np.array(atoms.positions, dtype=np.float64)), wide.cells)
        found, shortest = within(moved, self.cutoff)
        if shortest < COINCIDENT:
            _refuse_coincident(found, int(found.edge_vectors().square().sum(dim=1).argmin()), shortest, atoms)
        return found

    def wide(self, atoms: Atoms) -> Graph:
        """Edges up to the skin beyond the cutoff and, maybe, further, and positions as of the last search.

        The same object until there is another search. Raises StructureError as ``graph`` does, but sees atoms that
        share a place only when it seeks.
        """
        return self._wide if self._wide is not None and self._holds(self._wide, atoms) else self._search(atoms)

    def _holds(self, wide: Graph, atoms: Atoms) -> bool:
        if self._frame != frame_of(atoms):
            return False
        moves = atoms.positions - wide.positions.numpy()  # (atoms, 3) Å; NaN holds nothing
        return bool(np.einsum("ij,ij->i", moves, moves).max() < (self.skin / 2) ** 2)

    def _search(self, atoms: Atoms) -> Graph:
        self._wide, self._frame = _graph_of_one(atoms, self.cutoff + self.skin), frame_of(atoms)
        self.searches += 1
        return self._wide


def within(graph: Graph, cutoff: float) -> tuple[Graph, float]:
    """A graph without its edges of ``cutoff`` (Å) or more, and the length of the shortest; infinite without edges."""
    squares = graph.edge_vectors().square().sum(dim=1)  # (edges,) Å²
    shortest = float(squares.min()) ** 0.5 if len(squares) else float("inf")
    kept = (squares < cutoff**2).nonzero()[:, 0]
    ends = {name: getattr(graph, name).index_select(0, kept) for name in ("centers", "neighbors", "shifts")}
    return replace(graph, **ends), shortest


def frame_of(atoms: Atoms) -> tuple[bytes, ...]:
    """Elements, cell and periodicity, to be compared: as bytes faster than as arrays, at each step of dynamics."""
    return atoms.numbers.tobytes(), atoms.cell.array.tobytes(), atoms.pbc.tobytes()


def _refuse_coincident(graph: Graph, edge: int, length: float, atoms: Atoms) -> Never:
    raise StructureError(
        f"atoms {int(graph.centers[edge])} and {int(graph.neighbors[edge])} of {atoms.symbols} are {length:.4f} Å "
        "apart; remove one of them or move them apart"
    )


def complete_cell(atoms: Atoms) -> np.ndarray:
    """(3, 3) The cell, with vectors of its own choosing along axes that have none."""
    return np.ascontiguousarray(atoms.cell.complete(), dtype=np.float64)


def _axes(periodic: np.ndarray) -> str:
    return ", ".join(axis for axis, flag in zip("abc", periodic, strict=True) if flag)
