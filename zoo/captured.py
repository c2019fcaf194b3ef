"""Students in code that PyTorch compiles of them: energies, forces and virial in one call, weights frozen into it.

What a student makes of the vectors of its edges, and the gradient of its energy by them, is captured as one graph in
which the numbers of atoms and edges are open, compiled ahead of time (AOTInductor) and kept as one file in the cache,
one for each potential, type and kind of device. What depends on sizes or is found by comparing numbers, such as the
edges that share an atom, is found before it by the student itself.
"""

import hashlib
import os
import shlex
import shutil
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from zoo.capture import ONE_THREAD, capture
from zoo.errors import CapabilityError, ZooWarning
from zoo.files import alone_in, cache_root
from zoo.graph import Graph
from zoo.memory import is_out_of_memory
from zoo.native import discard, find_compiler, keep, make_folder, processor, read_sources, whole_files
from zoo.ops import scatter_sum
from zoo.potential import Potential
from zoo.students import GemNetT, PaiNN, PaiNNDT, Student
from zoo.students.gemnet_edges import Edges, FoundGraph, find_edges

Run = Callable[[list[Tensor]], list[Tensor]]

_KINDS = (PaiNN, PaiNNDT, GemNetT)
_SUFFIX = ".pt2"
_FEWEST = 2  # atoms, edges, and edges of an atom: fewer would be another graph
# Sizes that a graph is captured at. They decide nothing but how loops are cut, and differ from each other, for sizes
# that are equal there are taken to be equal always.
_ATOMS, _EDGES, _WIDTH = 211, 5904, 43
_SOURCES = ("capture.py", "captured.py", "graph.py", "ops.py", "rows.py", "students/*.py", "version.py")
_turn = threading.Lock()


@dataclass(frozen=True, eq=False)
class _Package:
    """A file of compiled code that was opened; with the last that holds it, it goes from memory."""

    run: Run
    path: Path

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        return self.run(inputs)


_opened: weakref.WeakValueDictionary[tuple[Path, torch.device], _Package] = weakref.WeakValueDictionary()


class StudentCode:
    """What computes energies, forces and virial of a student as it is now; a later change of weights is not seen."""

    def __init__(self, student: Student, run: Run, path: Path | None = None) -> None:
        """``run`` answers ``inputs_of`` as ``respond`` does; ``path`` is the file that it came from, if any."""
        self.student = student
        self.run = run
        self.path = path
        self.dtype, self.device = student.dtype, student.device
        self._most = most_rows(student) or sys.maxsize

    def __call__(self, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
        """Energies (atoms,) eV, forces (atoms, 3) eV/Å and virial (structures, 3, 3) eV, in the type of the student.

        Energies are without the references of the elements. The virial is the gradient of the energy by a symmetric
        strain, ``Σ r ⊗ ∂E/∂r`` over edges; it is NaN where forces are predicted directly. The vectors of edges are
        taken in the type of the graph.
        """
        graph = graph.to(self.device, graph.positions.dtype)
        energies, forces, *virials = self._answer(inputs_of(self.student, graph))
        atoms, structures = graph.num_atoms, graph.num_structures  # and there may be one more atom
        if not virials:
            return energies[:atoms], forces[:atoms], energies.new_full((structures, 3, 3), torch.nan)
        virial = scatter_sum(virials[0][:atoms], graph.structure, structures)  # (structures, 3, 3)
        return energies[:atoms], forces[:atoms], (virial + virial.transpose(1, 2)) / 2

    def _answer(self, inputs: list[Tensor]) -> list[Tensor]:
        """PyTorch's where compiled code cannot answer: without edges, with too many, and from the first failure on.

        A failure that PyTorch has too, such as too little memory, is the caller's, with PyTorch's words for it.
        """
        if len(inputs[1]) < _FEWEST or max(len(part) for part in inputs) > self._most:
            return respond(self.student, inputs)
        try:
            return self.run(inputs)
        except RuntimeError as error:
            if self.path is None or is_out_of_memory(error):
                raise
            answer = respond(self.student, inputs)
            self._give_up(error)
            return answer

    def _give_up(self, error: Exception) -> None:
        self.run, self.path = partial(respond, self.student), None
        lines = str(error).strip().splitlines() or [""]
        warnings.warn(
            f"compiled code of {type(self.student).__name__} failed ({lines[0][:200]}); from now on PyTorch does the "
            "same, several times slower (compile=False, or ZOO_COMPILE=never, asks no more)",
            ZooWarning,
            stacklevel=5,
        )


def uncompiled(student: Student) -> StudentCode:
    """The same by PyTorch's own operations, one after another, with the weights as they are when it is asked."""
    return StudentCode(student, partial(respond, student))


def can_be_captured(potential: Potential) -> bool:
    """Whether it is of an architecture that is captured."""
    return isinstance(potential, _KINDS)


def seeks_edges(student: Student) -> bool:
    """Whether a student chooses among the edges of a graph, or has to know which of them meet."""
    return isinstance(student, GemNetT) or (isinstance(student, PaiNNDT) and student.config.max_neighbors is not None)


def most_rows(student: Student) -> int | None:
    """Atoms or edges up to which a GPU can count the numbers of its tensors in 32 bits, which is faster; on a CPU there
    is no such limit."""
    if student.device.type != "cuda":
        return None
    widest: int = max(size for tensor in student.parameters() for size in (1, *tensor.shape))
    return (2**31 - 1) // widest


def compiled_student(potential: Potential, *, build: bool) -> StudentCode | None:
    """The compiled code of a student, from the cache; where it is not there, None or, with ``build``, the compiler's.

    Processes and threads may ask at once. Code whose content is not what its name says is made anew. Raises
    CapabilityError where it cannot be made.
    """
    if not can_be_captured(potential):
        raise CapabilityError(
            f"there is no compiled code for a {type(potential).__name__} on {potential.device}; let PyTorch run it"
        )
    student = cast(Student, potential)
    folder = cache_root() / "captured" / _key(student)
    try:
        with _turn:
            opened = _opened.get((folder, student.device)) or _open_kept(student, folder)
            if opened is None and build:
                opened = _build(student, folder)
            if opened is None:
                return None
            _opened[folder, student.device] = opened
    except OSError as error:
        raise CapabilityError(
            f"compiled code cannot be kept in {folder} ({error.strerror}); let PyTorch run it"
        ) from error
    return StudentCode(student, opened, opened.path)


# --- what is captured -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _VectorGraph(FoundGraph):
    """A graph that is given the vectors of its edges."""

    vectors: Tensor  # (edges, 3) Å

    def edge_vectors(self) -> Tensor:
        return self.vectors


def inputs_of(student: Student, graph: Graph) -> list[Tensor]:
    """All that a student's answer depends on, besides its weights: what ``respond`` takes.

    Elements (atoms,), centres and neighbours (edges,) and vectors (edges, 3) Å. Of a student that ``seeks_edges``, also
    each edge's counter-edge and its place in a table (edges,), and a row of that table. One atom alone is given another
    beside it, without edges.
    """
    numbers = graph.numbers.repeat(_FEWEST) if graph.num_atoms == 1 else graph.numbers
    if not seeks_edges(student):
        vectors = graph.edge_vectors().to(student.dtype)
        return [_fresh(part) for part in (numbers, graph.centers, graph.neighbors, vectors)]
    edges = find_edges(graph, cast(Any, student.config).max_neighbors)
    chosen = replace(graph, centers=edges.centers, neighbors=edges.neighbors, shifts=edges.shifts)
    width = max(edges.width, _FEWEST)
    places = edges.places + edges.centers * (width - edges.width)
    vectors = chosen.edge_vectors().to(student.dtype)
    parts = (numbers, edges.centers, edges.neighbors, vectors, edges.counters, places)
    return [*(_fresh(part) for part in parts), numbers.new_zeros(width)]


def respond(student: Student, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Energies (atoms,) eV, forces (atoms, 3) eV/Å and, unless forces are predicted directly, ``Σ r ⊗ ∂E/∂r`` over the
    edges of each atom (atoms, 3, 3) eV.

    Both derivatives come from the slopes by the vectors of edges: ``Fᵢ = Σ_{edges of i} ∂E/∂r − Σ_{edges to i} ∂E/∂r``.
    """
    numbers, centers, neighbors, vectors, *_ = inputs
    conservative = student.traits.conservative
    with torch.set_grad_enabled(conservative):
        vectors = vectors.detach().requires_grad_(conservative)
        outputs = student.atomic_outputs(_graph_of(inputs, vectors))
        if outputs.forces is not None:
            return [outputs.energies, outputs.forces]
        slopes = torch.autograd.grad(outputs.energies.sum(), vectors, allow_unused=True, materialize_grads=True)[0]
    vectors, atoms = vectors.detach(), numbers.shape[0]
    forces = scatter_sum(slopes, centers, atoms) - scatter_sum(slopes, neighbors, atoms)
    virials = scatter_sum(vectors.unsqueeze(2) * slopes.unsqueeze(1), centers, atoms)  # (atoms, 3, 3)
    return [outputs.energies.detach(), forces, virials]


def _graph_of(inputs: Sequence[Tensor], vectors: Tensor) -> _VectorGraph:
    """What a student sees; a student that seeks no edges is told nothing of rows."""
    numbers, centers, neighbors, _, *more = inputs
    counters, places, row = more or (centers, centers, centers)
    atoms = numbers.shape[0]
    none = vectors.new_zeros(1, 3, 3)
    return _VectorGraph(
        numbers=numbers,
        positions=vectors.new_zeros(atoms, 3),
        cells=none,
        periodic=torch.zeros_like(none[:, 0], dtype=torch.bool),
        structure=torch.zeros_like(numbers),
        centers=centers,
        neighbors=neighbors,
        shifts=vectors,
        found=Edges(places, atoms, row.shape[0], centers, neighbors, vectors, counters),
        vectors=vectors,
    )


def _fresh(tensor: Tensor) -> Tensor:
    """As compiled code takes it: one that does not begin or lie within another."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.storage_offset() else tensor


# --- how it is compiled and kept ------------------------------------------------------------------


class _Responding(nn.Module):
    """A student whose forward is ``respond``."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return respond(self.student, inputs)


class _Frozen(nn.Module):
    """A captured graph with its weights."""

    def __init__(self, graph: nn.Module, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph = graph
        for number, weight in enumerate(weights):
            self.register_buffer(f"weight{number}", weight)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.graph(*self.buffers(recurse=False), *inputs))


def captured(student: Student, inputs: Sequence[Tensor]) -> nn.Module:
    """``respond`` as a graph of PyTorch's operations with frozen weights, made at inputs of at least two of each."""
    whole = _Responding(student)
    state = _state(whole)
    names, weights = list(state), [tensor.detach().clone() for tensor in state.values()]

    def answer(*flat: Tensor) -> list[Tensor]:
        changed = dict(zip(names, flat[: len(names)], strict=True))
        return cast(list[Tensor], torch.func.functional_call(whole, changed, flat[len(names) :]))

    closed = [[False] * weight.dim() for weight in weights]
    opened = [[True] + [False] * (part.dim() - 1) for part in inputs]
    return _Frozen(capture(answer, [*weights, *inputs], [*closed, *opened]).graph, weights)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _example(student: Student) -> list[Tensor]:
    """Inputs of which the sizes alone matter."""
    vectors = torch.ones(_EDGES, 3, dtype=student.dtype, device=student.device)
    numbers, ends, row = (
        torch.zeros(size, dtype=torch.int64, device=student.device) for size in (_ATOMS, _EDGES, _WIDTH)
    )
    inputs = [numbers, ends, ends.clone(), vectors]
    return [*inputs, ends.clone(), ends.clone(), row] if seeks_edges(student) else inputs


def _sizes(inputs: Sequence[Tensor], most: int | None) -> tuple[Any, ...]:
    """For ``torch.export``: which sizes are open, and equal."""
    names = {_ATOMS: "atoms", _EDGES: "edges", _WIDTH: "width"}
    open_sizes = {size: torch.export.Dim(name, min=_FEWEST, max=most) for size, name in names.items()}
    return (tuple({0: open_sizes[len(part)]} for part in inputs),)


def _compile(student: Student) -> bytes:
    """The content of a package of AOTInductor."""
    from torch._inductor import aoti_compile_and_package  # lazy: seconds to import

    inputs = _example(student)
    options: dict[str, Any] = dict(ONE_THREAD) if student.device.type == "cpu" else {}
    with tempfile.TemporaryDirectory() as place, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about itself
        if os.environ.get("CXX") or not shutil.which("g++"):  # which is what PyTorch knows best
            options["cpp.cxx"] = (None, _in_one_word(find_compiler(), Path(place)))
        program = torch.export.export(
            captured(student, inputs), tuple(inputs), dynamic_shapes=_sizes(inputs, most_rows(student)), strict=False
        )
        path = aoti_compile_and_package(program, package_path=f"{place}/student.pt2", inductor_configs=options)
        return Path(path).read_bytes()


def _in_one_word(compiler: list[str], folder: Path) -> str:
    """A compiler's command as PyTorch takes it, which also reads from the name of whose make it is."""
    if len(compiler) == 1:
        return compiler[0]
    kind = "clang++" if any("clang" in word for word in compiler) else "g++"
    path = folder / kind
    path.write_text(f'#!/bin/sh\nexec {shlex.join(compiler)} "$@"\n')
    path.chmod(0o700)
    return str(path)


def _build(student: Student, folder: Path) -> _Package:
    """Compiles, says what is waited for, and keeps it; or opens what another process made meanwhile."""
    title = f"{type(student).__name__} in {str(student.dtype).removeprefix('torch.')} on {student.device.type}"
    with _alone(folder):
        if found := _open_kept(student, folder):
            return found
        tqdm.write(f"zoo: compiling {title}, once for these weights; it takes a minute or more", file=sys.stderr)
        start = time.perf_counter()
        try:
            content = _compile(student)
        except CapabilityError:
            raise
        except Exception as error:  # whatever a compiler raises
            lines = str(error).strip().splitlines() or [""]
            raise CapabilityError(
                f"{title} could not be compiled ({type(error).__name__}: {lines[0][:200]}); let PyTorch run it"
            ) from error
        path = keep(content, folder, _SUFFIX, "compiled code")
        tqdm.write(f"zoo: compiled {title} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    try:
        return _Package(_open(student, path), path)
    except RuntimeError as error:
        raise CapabilityError(f"compiled code of {title} cannot be opened ({error}); let PyTorch run it") from error


def _open_kept(student: Student, folder: Path) -> _Package | None:
    """Code of the cache."""
    for path in whole_files(folder, _SUFFIX):
        try:
            return _Package(_open(student, path), path)
        except RuntimeError:
            discard(path)
    return None


def _open(student: Student, path: Path) -> Run:
    on_gpu = student.device.type == "cuda"
    place = (student.device.index or 0) if on_gpu else -1
    try:  # what torch._inductor.aoti_load_package ends in, without the second that its import takes
        # on a GPU without locks, which a CUDA graph would not take
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", on_gpu, 1, place)
    except (AttributeError, TypeError):  # of another PyTorch
        from torch._inductor import aoti_load_package  # lazy: a second to import

        loader = aoti_load_package(str(path)).loader
    return cast(Run, loader.run)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no other process compiles the same; where the cache cannot be written to, each does."""
    try:
        make_folder(folder)
    except OSError:
        yield
        return
    with alone_in(folder):
        yield


def _key(student: Student) -> str:
    """A digest of all that the code depends on; not of the compiler, so that what is there runs without one."""
    device = torch.cuda.get_device_name(student.device) if student.device.type == "cuda" else processor()
    told = f"{type(student).__name__} {student.config.model_dump_json()} {student.device.type} {device}"
    content = hashlib.sha256(f"{told} {torch.__version__} {ONE_THREAD}".encode())
    for source in read_sources(*_SOURCES):
        content.update(source)
    for name, tensor in sorted(_state(student).items()):
        content.update(f"{name} {tensor.dtype}".encode())
        content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:32]
