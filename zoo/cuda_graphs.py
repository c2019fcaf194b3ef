"""A student on a GPU, recorded and replayed: energies, forces and virial as a CUDA graph over padded buffers.

A small structure is computed faster than Python can ask for the next operation. A CUDA graph asks for all at once; it
works on the memory that it was recorded with, so graphs are written into buffers of a few sizes (``zoo/padding.py``),
one recording each. While the neighbours of atoms stay, their positions alone are copied there, and the answer back.
"""

import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.captured import StudentCode
from zoo.errors import ZooWarning
from zoo.graph import Graph
from zoo.padding import Capacity, PaddedGraph

Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]

MOST_EDGES = 200_000  # beyond, a GPU has enough to do, and what fills the buffers would cost more than it saves
MOST_RECORDINGS = 8  # of other sizes; the one that was used longest ago goes
_WARM_UPS = 3  # calls after which PyTorch and its libraries have made what they need
_ALIKE = {torch.float32: 1e-4, torch.float64: 1e-10}  # relative to the largest number


@dataclass(frozen=True)
class Followed:
    """What a student says of atoms on their way, in main memory; see ``StudentCode``."""

    energies: Tensor  # (atoms,) eV
    forces: Tensor  # (atoms, 3) eV/Å
    virial: Tensor  # (structures, 3, 3) eV
    shortest: float  # Å, of all edges


@dataclass
class _Recording:
    padded: PaddedGraph
    replay: Callable[[], object]
    answer: Tensor  # all parts in a row, overwritten by each replay
    written: Graph | None = None  # whose edges are in the buffers


class Replay:
    """A student's code, each size of buffers recorded when it is first needed.

    A recording that fails, or does not repeat what it recorded, is announced by one ZooWarning; from then on the code
    runs as it is.
    """

    def __init__(self, code: StudentCode, record: Record | None = None) -> None:
        """``record`` gives of a function what repeats it, and where its answer then is; by default a CUDA graph."""
        self.code = code
        self.dtype, self.device = code.dtype, code.device
        self.eager = False  # whether it was given up
        self._record = record or CudaRecorder(code.device)
        self._recordings: OrderedDict[Capacity, _Recording] = OrderedDict()
        self._turn = threading.Lock()

    def __call__(self, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
        """As ``StudentCode``."""
        graph = graph.to(self.device, torch.float64)
        with self._turn:
            recording = self._recording_for(graph)
            if recording is None:
                return self.code(graph)
            recording.padded.write(graph)
            recording.written = None
            recording.replay()
            energies, forces, virial, _ = _parts(recording.answer.clone(), recording.padded.capacity, graph)
        return energies, forces, virial

    def follow(self, graph: Graph) -> Callable[[Tensor], Followed]:
        """The same, again and again while atoms move: a function of their positions (atoms, 3) Å in main memory.

        All else stays as it is now; edges beyond the cutoff do not count, for a student whose energy is continuous.
        """
        edges = graph.to(self.device, torch.float64)
        sizes = Capacity(graph.num_atoms, graph.num_edges, graph.num_structures)

        def answer(positions: Tensor) -> Followed:
            with self._turn:
                recording = self._recording_for(edges)
                if recording is None:
                    moved = edges.with_geometry(positions.to(edges.positions), edges.cells)
                    parts = _parts(_in_a_row(self.code, moved).cpu(), sizes, graph)
                else:
                    parts = _parts(_replayed(recording, edges, positions), recording.padded.capacity, graph)
            return Followed(*parts[:3], shortest=float(parts[3]))

        return answer

    def _recording_for(self, graph: Graph) -> _Recording | None:
        """None where the code is to run as it is."""
        if self.eager or not 0 < graph.num_edges <= MOST_EDGES:
            return None
        capacity = Capacity.of(graph)
        if capacity not in self._recordings:
            recording = self._record_one(graph, capacity)
            if recording is None:
                return None
            self._recordings[capacity] = recording
            if len(self._recordings) > MOST_RECORDINGS:
                self._recordings.popitem(last=False)
        self._recordings.move_to_end(capacity)
        return self._recordings[capacity]

    def _record_one(self, graph: Graph, capacity: Capacity) -> _Recording | None:
        padded = PaddedGraph(graph, capacity, self.code.student.cutoff)
        padded.write(graph)
        try:
            expected = _in_a_row(self.code, padded.graph).clone()
            replay, answer = self._record(lambda: _in_a_row(self.code, padded.graph))
            replay()
            off = _difference(answer, expected)
        except (torch.OutOfMemoryError, MemoryError):
            self._recordings.clear()
            raise
        except Exception as error:  # whatever a driver, a library or a compiler raises
            lines = str(error).strip().splitlines() or [""]
            self._give_up(f"{type(error).__name__}: {lines[0][:200]}")
            return None
        if not off <= _ALIKE[self.dtype]:
            self._give_up(f"a replay is off by {off:.1e}")
            return None
        return _Recording(padded, replay, answer)

    def _give_up(self, reason: str) -> None:
        self.eager = True
        self._recordings.clear()
        warnings.warn(
            f"{type(self.code.student).__name__} could not be recorded as a CUDA graph ({reason}); each operation is "
            "started by itself, slower but the same (compile=False asks no more)",
            ZooWarning,
            stacklevel=5,
        )


class CudaRecorder:
    """Records on one device; recordings share memory, for no two of them run at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._alive: weakref.WeakSet[Any] = weakref.WeakSet()  # recordings, whose memory goes with the last of them

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        with torch.cuda.device(self.device):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UPS):
                    function()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            shared = next((other.pool() for other in self._alive), None)
            with torch.cuda.graph(graph, pool=shared):
                answer = function()
            self._alive.add(graph)
        return graph.replay, answer


def _in_a_row(code: StudentCode, graph: Graph) -> Tensor:
    """Energies, forces and virial, and the length of the shortest edge, one after another."""
    energies, forces, virial = code(graph)
    lengths = graph.edge_vectors().square().sum(dim=1).sqrt()  # (edges,) Å
    shortest = lengths.amin(dim=0, keepdim=True) if graph.num_edges else lengths.new_full((1,), torch.inf)
    return torch.cat([energies, forces.reshape(-1), virial.reshape(-1), shortest.to(energies)])


def _difference(answer: Tensor, expected: Tensor) -> float:
    """The largest, relative to the largest number; infinite where one alone is undefined."""
    if not torch.equal(answer.isnan(), expected.isnan()):
        return float("inf")
    return float((answer - expected).nan_to_num().abs().max() / expected.nan_to_num().abs().max().clamp(min=1))


def _parts(answer: Tensor, sizes: Capacity, graph: Graph) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of a graph's own atoms and structures, of an answer for so many."""
    sections = [sizes.atoms, 3 * sizes.atoms, 9 * sizes.structures, 1]
    energies, forces, virial, shortest = torch.split(answer, sections)
    atoms, structures = graph.num_atoms, graph.num_structures
    return energies[:atoms], forces.reshape(-1, 3)[:atoms], virial.reshape(-1, 3, 3)[:structures], shortest


def _replayed(recording: _Recording, edges: Graph, positions: Tensor) -> Tensor:
    """The answer in main memory, for edges whose atoms are at ``positions``."""
    if recording.written is not edges:
        recording.padded.write(edges)
        recording.written = edges
    recording.padded.graph.positions[: len(positions)].copy_(positions)
    recording.replay()
    return recording.answer.to("cpu", copy=True)
