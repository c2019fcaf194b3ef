"""Hessians and products with them, of many structures at once.

PyTorch needs a pass backwards for each product, which for a small structure is the time of its calls. So a pass serves
many structures, or many copies of one, with a product of each; their Hessians do not mix.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from zoo.errors import ConfigError, DivergedError, OutOfMemoryError
from zoo.graph import Graph, collate
from zoo.inputs import check_atoms, told
from zoo.memory import free_memory
from zoo.packing import Item, Need, Packer, Task, fastest, item, said_of
from zoo.potential import Potential, given

Build = Callable[[Atoms], Graph]
Numbers = Sequence[int] | np.ndarray | slice  # of atoms, or of rows
_TASK: Task = "Hessian products"
_GIB = 1 << 30
# Bytes of each number of a product while it is made: the probe and the product in the potential's type, twice for the
# moment in which they are put together, and the float64 that is returned.
_OF_A_NUMBER = 40
_SHARE = 0.25  # of the free memory that these may take


@dataclass(frozen=True)
class Asked(Item):
    """Products with one structure's Hessian."""

    number: int  # of the structure among the others
    probes: Tensor  # (probes, atoms, 3)


@dataclass
class SecondOrder:
    """Asks a potential for Hessian products; ``build`` makes graphs, and ``needs`` is what a Packer learns."""

    potential: Potential
    build: Build
    needs: dict[Task, Need]

    def products(self, structures: Sequence[Atoms], vectors: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float64 eV/Å², of each structure's Hessian with vectors ([vectors,] atoms, 3), of the same shape."""

        def asked() -> Iterator[Asked]:
            for number, (atoms, many) in enumerate(zip(structures, vectors, strict=True)):
                one = item(atoms, self.build, _where(number, structures))
                yield Asked(one.where, atoms, one.graph, number, torch.from_numpy(many.reshape(-1, len(atoms), 3)))

        found = self._packer().answers(asked())
        return [products.reshape(many.shape) for (_, products), many in zip(found, vectors, strict=True)]

    def hessian(self, atoms: Atoms, indices: Numbers | None = None, rows: Numbers | None = None) -> np.ndarray:
        """float64 eV/Å², the whole, the block of some atoms, or some rows. Raises ConfigError for both of these."""
        if indices is not None and rows is not None:
            raise ConfigError("indices and rows of a Hessian at once; give one of them")
        moving = None if indices is None else coordinates(known(indices, len(atoms), "atom"))
        chosen = moving if rows is None else known(rows, 3 * len(atoms), "row")
        (found,) = self.hessians([atoms], chosen)
        return found if moving is None else found[:, moving]

    def hessians(self, structures: Sequence[Atoms], rows: np.ndarray | None = None) -> list[np.ndarray]:
        """float64 eV/Å², (rows, 3 * atoms) of each structure, all rows by default.

        Raises OutOfMemoryError where there is no room for the result.
        """
        _check_each(structures)
        counts = [3 * len(atoms) if rows is None else len(rows) for atoms in structures]
        self._check_room(structures, counts)
        order = sorted(range(len(structures)), key=lambda number: len(structures[number]))  # alike in a batch
        found: dict[int, list[np.ndarray]] = defaultdict(list)

        def asked() -> Iterator[Asked]:
            for number in order:
                one = item(structures[number], self.build, _where(number, structures))
                wanted = torch.arange(counts[number]) if rows is None else torch.from_numpy(rows)
                if self._has_its_own_way(one.graph):
                    found[number].append(self._own_hessian(one, rows))
                else:
                    yield from self._blocks(one, number, wanted, len(structures))

        for number, products in self._packer().answers(asked()):
            found[number].append(products)
        return [_joined(found[number]).reshape(-1, 3 * len(atoms)) for number, atoms in enumerate(structures)]

    def _packer(self) -> Packer[Asked, tuple[int, np.ndarray]]:
        return Packer(self.potential, _TASK, self._run, self.needs)

    def _run(self, batch: list[Asked]) -> list[tuple[int, np.ndarray]]:
        """Products of each, in one pass; where one has fewer probes than another, zeros fill up."""
        most = max(len(one.probes) for one in batch)
        if most == 0:
            return [(one.number, one.probes.double().numpy()) for one in batch]
        graph = collate([one.graph for one in batch]).to(self.potential.device, self.potential.dtype)
        counts = [one.graph.num_atoms for one in batch]
        probes = graph.positions.new_zeros(most, graph.num_atoms, 3)
        for part, one in zip(torch.split(probes, counts, dim=1), batch, strict=True):
            part[: len(one.probes)] = one.probes.to(probes)
        found = given(self.potential.predict(graph, forces=False, probes=probes).hessian_products)
        parts = torch.split(found.double().cpu(), counts, dim=1)  # (most, atoms, 3) each
        for part, one in zip(parts, batch, strict=True):
            _check_finite(part, one)
        return [(one.number, part[: len(one.probes)].numpy()) for part, one in zip(parts, batch, strict=True)]

    def _blocks(self, one: Item, number: int, rows: Tensor, structures: int) -> Iterator[Asked]:
        """The rows in blocks, each of a copy of the structure: so many copies that one pass is worth its calls."""
        size = one.graph.num_atoms + one.graph.num_edges
        copies = max(fastest(_TASK, self.potential.device) // (size * structures), 1)
        room = int(_SHARE * free_memory(self.potential.device) / (_OF_A_NUMBER * 3 * one.graph.num_atoms))
        together = min(-(-len(rows) // copies), room)
        for some in torch.split(rows, max(together, 1)):
            probes = torch.zeros(len(some), 3 * one.graph.num_atoms)
            probes[torch.arange(len(some)), some] = 1.0
            yield Asked(one.where, one.atoms, one.graph, number, probes.reshape(len(some), one.graph.num_atoms, 3))

    def _has_its_own_way(self, graph: Graph) -> bool:
        """Where copies do not help: differences of forces, and forward mode, which is a pass a row anyway."""
        return type(self.potential).hessian is not Potential.hessian or self.potential.products_in_forward_mode(graph)

    def _own_hessian(self, one: Item, rows: np.ndarray | None) -> np.ndarray:
        wanted = None if rows is None else torch.from_numpy(rows).to(self.potential.device)
        found = self.potential.hessian(one.graph.to(self.potential.device, self.potential.dtype), wanted)
        _check_finite(found, one)
        return found.double().cpu().numpy()

    def _check_room(self, structures: Sequence[Atoms], counts: Sequence[int]) -> None:
        """Raises OutOfMemoryError where the answer alone does not fit into main memory."""
        size = 8 * sum(3 * len(atoms) * count for atoms, count in zip(structures, counts, strict=True))
        free = free_memory(torch.device("cpu"))
        if size > free:
            raise OutOfMemoryError(
                f"Hessians of {size / _GIB:.1f} GiB, and {free / _GIB:.1f} GiB are free; "
                "ask for some rows= at a time, for indices= of the atoms that matter, or for products by hvp"
            )


def _check_finite(products: Tensor, one: Item) -> None:
    if not bool(products.isfinite().all()):
        raise DivergedError(
            f"{one.where}second derivatives of {one.atoms.symbols} are not finite; start from a relaxed structure, or "
            "use dtype='float64'"
        )


def one_each(structures: Sequence[Atoms], vectors: object) -> list[np.ndarray]:
    """An array of vectors of each structure as float64, (atoms, 3) or (vectors, atoms, 3).

    Raises ConfigError for another shape, numbers that are not finite, or another number of arrays than structures.
    """
    _check_each(structures)
    asked = list(vectors) if isinstance(vectors, Iterable) else [vectors]
    if len(structures) != len(asked):
        raise ConfigError(f"{len(asked)} arrays of vectors for {len(structures)} structures; give one a structure")
    return [_vectors(atoms, values) for atoms, values in zip(structures, asked, strict=True)]


def _check_each(structures: Sequence[Atoms]) -> None:
    for number, atoms in enumerate(structures):
        with said_of(f"structures[{number}] of {len(structures)}: "):
            check_atoms(atoms)


def _vectors(atoms: Atoms, values: object) -> np.ndarray:
    expected = (len(atoms), 3)
    try:
        many = np.array(values, dtype=np.float64)  # a copy, whose memory is in order
    except (TypeError, ValueError):
        raise ConfigError(f"vectors of {told(values)}; expected numbers of shape {expected}, or many such") from None
    if many.shape[-2:] != expected or many.ndim not in (2, 3):
        raise ConfigError(f"vectors of shape {many.shape} for {len(atoms)} atoms; expected {expected}, or many such")
    if not np.isfinite(many).all():
        raise ConfigError(f"vectors of {atoms.symbols} with numbers that are not finite; expected finite ones")
    return many


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """One after another, without a copy of one alone."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def known(numbers: Numbers, count: int, what: str) -> np.ndarray:
    """As an array. Raises ConfigError where one is not among the first ``count`` whole numbers, or stands twice."""
    found = np.arange(count)[numbers] if isinstance(numbers, slice) else np.asarray(numbers)
    whole = found.ndim == 1 and (found.size == 0 or np.issubdtype(found.dtype, np.integer))
    if not whole or ((found < 0) | (found >= count)).any() or len(set(found.tolist())) != len(found):
        raise ConfigError(f"{what}s {found.tolist()}; expected whole numbers from 0 to {count - 1}, each once")
    return found.astype(np.int64)


def coordinates(atoms: np.ndarray) -> np.ndarray:
    """(3 * atoms,) The places of their x, y and z among all coordinates."""
    return (3 * atoms[:, None] + np.arange(3)).ravel()


def _where(number: int, structures: Sequence[Atoms]) -> str:
    """How errors about a structure begin; one alone needs no number."""
    return "" if len(structures) == 1 else f"structures[{number}] of {len(structures)}: "
