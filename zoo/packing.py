"""Passes over many structures that fit the memory there is, and are no larger than what is fastest.

What a pass takes follows from the bytes that PyTorch keeps for gradients, of each atom and each edge, counted on the
first structures of many. Where a batch is too large all the same, it is halved.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, Literal, TypeVar

import torch
from ase import Atoms

from zoo.calculator import check_finite
from zoo.errors import CapabilityError, DivergedError, OutOfMemoryError, StructureError
from zoo.graph import Graph, collate
from zoo.inputs import check_atoms
from zoo.memory import Kept, free_memory, is_out_of_memory, until_out_of_memory
from zoo.potential import Potential, Prediction, given

Task = Literal["forces", "Hessian products"]
# Atoms and edges of a pass beyond which it is no faster (benchmarks/batches.md). Those of CUDA are not measured yet.
FASTEST: dict[tuple[Task, str], int] = {
    ("forces", "cpu"): 10_000,
    ("Hessian products", "cpu"): 2_000,
    ("forces", "cuda"): 500_000,
    ("Hessian products", "cuda"): 200_000,
}
SHARE = 0.8  # of the free memory that a pass may take
_IN_ALL = 3.0  # what a pass takes over what it keeps: up to 2.5 with PaiNN, GemNet-T and SevenNet-0 on a CPU
_SMALL = 256  # atoms and edges that fit everywhere, and are enough to measure on
_TIGHT = 0.1  # of the free memory; how much of it is left is looked at again after passes that took more
_GIB = 1 << 30
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Item:
    """One structure of many."""

    where: str  # how an error about it begins: its number among the others, or nothing
    atoms: Atoms
    graph: Graph  # in float64 in main memory


@dataclass(frozen=True)
class Need:
    """Bytes that a pass takes of each atom and of each edge."""

    atom: float
    edge: float

    def of(self, atoms: int, edges: int) -> float:
        """Bytes of a pass over so many."""
        return self.atom * atoms + self.edge * edges


AnItem = TypeVar("AnItem", bound=Item)
Answer = TypeVar("Answer")


def numbered(structures: Iterable[Atoms], build: Callable[[Atoms], Graph]) -> Iterator[Item]:
    """Each structure with its graph, made when it is asked for; errors of ``build`` say which structure they are of."""
    count = f" of {len(structures)}" if isinstance(structures, Sized) else ""
    for number, atoms in enumerate(structures):
        yield item(atoms, build, f"structures[{number}]{count}: ")


def item(atoms: Atoms, build: Callable[[Atoms], Graph], where: str = "") -> Item:
    """A structure with its graph. Raises what ``build`` raises, and OutOfMemoryError where that has no memory."""
    try:
        with said_of(where):
            check_atoms(atoms)
            return Item(where, atoms, build(atoms))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    raise OutOfMemoryError(
        f"{where}no memory for the neighbours of {atoms.symbols} ({len(atoms):,} atoms), where {_told_free(_CPU)}; "
        "take a machine with more memory"
    )


@contextmanager
def said_of(where: str) -> Iterator[None]:
    """Errors about a structure begin with ``where``."""
    try:
        yield
    except (StructureError, DivergedError) as error:
        if not where:
            raise
        raise type(error)(f"{where}{error}") from error


@dataclass
class Packer(Generic[AnItem, Answer]):
    """Runs many items in batches. What is learned of the potential's needs is left in ``needs``."""

    potential: Potential
    task: Task
    run: Callable[[list[AnItem]], list[Answer]]  # one answer an item, in order
    needs: dict[Task, Need]
    compiled: bool = False  # whether ``run`` is other code than PyTorch's; it takes less

    def __post_init__(self) -> None:
        self._most = fastest(self.task, self.potential.device)
        self._free: int | None = None  # bytes, as of the last look

    def answers(self, items: Iterable[AnItem]) -> Iterator[Answer]:
        """In order. Raises OutOfMemoryError where there is no memory for an item alone."""
        batch: list[AnItem] = []
        atoms = edges = 0
        for one in items:
            atoms, edges = atoms + one.graph.num_atoms, edges + one.graph.num_edges
            if batch and not self._fits(atoms, edges):
                yield from self._run(batch) if self.task in self.needs else self._run_watched(batch)
                batch, atoms, edges = [], one.graph.num_atoms, one.graph.num_edges
            batch.append(one)
        if batch:
            yield from self._run(batch)

    def _fits(self, atoms: int, edges: int) -> bool:
        if self.task not in self.needs:
            return atoms + edges <= _SMALL
        if atoms + edges > self._most:
            return False
        need = self.needs[self.task].of(atoms, edges)
        if self._free is None or need > _TIGHT * self._free:
            self._free = self.potential.free_memory()
        return need <= SHARE * self._free

    def _run(self, batch: list[AnItem]) -> list[Answer]:
        """Halves what does not fit; from then on no batch is larger than that."""
        found: list[Answer] = []
        while len(found) < len(batch):
            part = self._first(batch[len(found) :])
            answers = self._try(part)
            if answers is None:
                self._most = sum(_size(part)) // 2
            else:
                found += answers
        return found

    def _first(self, batch: list[AnItem]) -> list[AnItem]:
        """As many as are not too large; one at least."""
        sizes = accumulate(sum(_size([one])) for one in batch)
        count = sum(size <= self._most for size in sizes)
        return batch[: max(count, 1)]

    def _try(self, batch: list[AnItem]) -> list[Answer] | None:
        """None where there is no memory for so many at once."""
        try:
            return self.run(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if self.potential.device.type == "cuda":  # here, where nothing holds what was computed any longer
            torch.cuda.empty_cache()
        if len(batch) == 1:
            raise self._refusal(batch[0])
        return None

    def _run_watched(self, batch: list[AnItem]) -> list[Answer]:
        """Measures what the batch takes, unless it is large, or has no edges."""
        atoms, edges = _size(batch)
        if edges == 0 or atoms + edges > self._most:
            return self._run(batch)
        kept = Kept(self.potential, atoms, edges)
        with self.potential.counting(kept):
            if self.task == "forces" and (self.compiled or not self.potential.traits.conservative):
                self._keep_all(batch)
            found = self._run(batch)
        of_atoms, of_edges = kept.sizes
        self.needs[self.task] = Need(_IN_ALL * of_atoms / atoms, _IN_ALL * of_edges / edges)
        return found

    def _keep_all(self, batch: list[AnItem]) -> None:
        """A pass that keeps what gradients are made of, where the one that is run does not, and takes less."""
        graph = collate([one.graph for one in batch]).to(self.potential.device, self.potential.dtype)
        with until_out_of_memory(), suppress(CapabilityError):
            self.potential.predict(graph, create_graph=not self.potential.traits.conservative)

    def _refusal(self, one: AnItem) -> OutOfMemoryError:
        size = f"{one.graph.num_atoms:,} atoms and {one.graph.num_edges:,} edges"
        dtype, place = str(self.potential.dtype).removeprefix("torch."), self.potential.device
        other = "" if self.potential.dtype == torch.float32 else "dtype='float32' or "
        return OutOfMemoryError(
            f"{one.where}no memory for {self.task} of {one.atoms.symbols} ({size}) in {dtype} on {place}, "
            f"where {_told_free(place)}; take {other}a machine with more memory"
        )


def divided(whole: Prediction, batch: Sequence[Item], *, energies: bool) -> list[Prediction]:
    """Of each item of a batch, without the axis of structures, and with a stress only where there is a volume.

    Raises DivergedError, with ``energies`` also for those.
    """
    counts = [one.graph.num_atoms for one in batch]
    nothing = [None] * len(batch)
    columns = (
        whole.energy.unbind(),
        nothing if whole.atomic_energies is None else torch.split(whole.atomic_energies, counts),
        torch.split(given(whole.forces), counts),
        nothing if whole.stress is None else whole.stress.unbind(),
        [bool(one.atoms.pbc.all()) for one in batch],
    )
    found = [
        Prediction(energy, atomic, forces, stress if has_volume else None)
        for energy, atomic, forces, stress, has_volume in zip(*columns, strict=True)
    ]
    numbers = [whole.energy, given(whole.forces)] if energies else [given(whole.forces)]
    numbers += [one.stress for one in found if one.stress is not None]
    if not all(bool(part.isfinite().all()) for part in numbers):  # of all at once, which is faster
        for one, prediction in zip(batch, found, strict=True):
            with said_of(one.where):
                check_finite(prediction, one.atoms, energies=energies)
    return found


def fastest(task: Task, device: torch.device) -> int:
    """Atoms and edges of a pass on a device; on one that is not known, those of a CPU."""
    return FASTEST.get((task, device.type), FASTEST[task, "cpu"])


def _size(batch: Sequence[Item]) -> tuple[int, int]:
    """Atoms and edges."""
    return sum(one.graph.num_atoms for one in batch), sum(one.graph.num_edges for one in batch)


def _told_free(device: torch.device) -> str:
    return f"{free_memory(device) / _GIB:.1f} GiB are free"
