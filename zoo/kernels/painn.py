"""PaiNN with frozen weights in one call of compiled code: energies of atoms, forces and virial."""

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.errors import CapabilityError, DomainError, StructureError
from zoo.graph import Graph
from zoo.kernels.build import compile_kernels
from zoo.students.painn import Message, PaiNN, Update

# Knots of the table of filters for each function of the radial basis: in float32 its error is that of rounding.
KNOTS = 16
_SHORTEST = 7  # functions of the basis from which on a table is shorter
_SUFFIX = {torch.float32: "float", torch.float64: "double"}
_BAD_INDEX, _UNKNOWN_ELEMENT, _TOO_LARGE, _NO_MEMORY = 1, 2, 3, 4


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("atoms", "edges", "structures")),
        *((name, ctypes.c_void_p) for name in ("numbers", "slots", "structure", "centers", "neighbors")),
        *((name, ctypes.c_void_p) for name in ("positions", "cells", "shifts", "energies", "forces", "virial")),
        ("shortest", ctypes.c_void_p),
        ("threads", ctypes.c_int),
    )


@dataclass(frozen=True)
class Answer:
    """Of one call; energies without the references of the elements.

    The virial is the gradient of the energy by a symmetric strain, ``Σ r ⊗ ∂E/∂r`` over edges; over the volume of a
    crystal it is its stress.
    """

    energies: Tensor  # (atoms,) eV
    forces: Tensor  # (atoms, 3) eV/Å
    virial: Tensor  # (structures, 3, 3) eV
    shortest: float  # Å, of all edges; infinite without any


class PaiNNKernel:
    """A PaiNN as it is now; a later change of its weights is not seen.

    Raises CapabilityError where nothing can be compiled, and for a student in main memory of another type than float32
    or float64.
    """

    def __init__(self, student: PaiNN, *, knots: int | None = None) -> None:
        """``knots`` of the table of filters, 0 for none; by default a table in float32 and none in float64."""
        self.dtype = student.dtype
        if self.dtype not in _SUFFIX or student.device.type != "cpu":
            raise CapabilityError(
                f"a kernel for {self.dtype} on {student.device}; expected float32 or float64 on the CPU: "
                "move the student there, or let PyTorch run it"
            )
        compiled = compile_kernels()
        if compiled.library is None:
            raise CapabilityError(
                f"no kernel: {compiled.reason}; install a C++ compiler, or let PyTorch run the student"
            )
        self.compiled = compiled
        suffix, config = _SUFFIX[self.dtype], student.config
        if knots is None:
            tabulated = self.dtype == torch.float32 and config.radials >= _SHORTEST
            knots = KNOTS * config.radials if tabulated else 0
        self._slots = student.slots.clone()
        self._run = _function(compiled.library, f"painn_run_{suffix}", ctypes.c_int, 2)
        create = _function(compiled.library, f"painn_create_{suffix}", ctypes.c_void_p, 3)
        sizes = torch.tensor([len(student.elements), config.channels, config.layers, config.radials, knots])
        numbers, weights = _numbers(student), _weights(student)
        self._handle = create(sizes.data_ptr(), numbers.data_ptr(), weights.data_ptr())
        if not self._handle:
            raise CapabilityError("no memory for the kernel's weights; let PyTorch run the student")
        weakref.finalize(self, _function(compiled.library, f"painn_free_{suffix}", None, 1), self._handle)

    def __call__(self, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
        """Energies, forces and virial, as in an Answer, in the type of the student.

        The edges within the cutoff count; a graph may hold longer ones. They are measured in float64 whatever the type
        of the student. As many threads as PyTorch's take part, and the bits do not depend on their number. Raises
        DomainError for an element that the student does not know, StructureError for a graph whose parts do not fit
        together or that is too large.
        """
        found = self.follow(graph)(graph.positions)
        return found.energies, found.forces, found.virial

    def follow(self, graph: Graph) -> Callable[[Tensor], Answer]:
        """The same, again and again while atoms move: a function of their positions (atoms, 3) Å.

        All else stays as it is now: elements, cells, and edges, of which those within the cutoff count.
        """
        _check_shapes(graph)
        fixed = [_exact(graph.cells), _exact(graph.shifts)]
        whole = [
            value.detach().to("cpu", torch.int64).contiguous()
            for value in (graph.numbers, self._slots, graph.structure, graph.centers, graph.neighbors)
        ]
        counts = (graph.num_atoms, graph.num_edges, graph.num_structures)

        def answer(positions: Tensor) -> Answer:
            at = _exact(positions)
            if at.shape != (counts[0], 3):
                raise StructureError(f"positions {tuple(at.shape)} of {counts[0]} atoms; expected ({counts[0]}, 3)")
            energies, forces = torch.empty(len(at), dtype=self.dtype), torch.empty(len(at), 3, dtype=self.dtype)
            virial = torch.empty(counts[2], 3, 3, dtype=self.dtype)
            shortest = ctypes.c_double()
            tensors = (*whole, at, *fixed, energies, forces, virial)
            places = [one.data_ptr() for one in tensors]
            call = _Call(*counts, *places, ctypes.addressof(shortest), torch.get_num_threads())
            if status := self._run(self._handle, ctypes.byref(call)):
                raise _error(status, graph)
            return Answer(energies, forces, virial, shortest.value)

        return answer


def _exact(values: Tensor) -> Tensor:
    """In float64 in main memory."""
    return values.detach().to("cpu", torch.float64).contiguous()


def _check_shapes(graph: Graph) -> None:
    """Compiled code reads as much of each tensor as the counts of a graph say. Raises StructureError."""
    atoms, edges, structures = graph.num_atoms, graph.num_edges, graph.num_structures
    shapes = {
        "positions": (atoms, 3),
        "cells": (structures, 3, 3),
        "structure": (atoms,),
        "neighbors": (edges,),
        "shifts": (edges, 3),
    }
    for name, shape in shapes.items():
        if (found := tuple(getattr(graph, name).shape)) != shape:
            raise StructureError(
                f"{name} of a graph have the shape {found}, expected {shape}; make it with build_graph"
            )


def painn_kernel(student: PaiNN) -> tuple[PaiNNKernel | None, str]:
    """The kernel of a student, or None and in one sentence why there is none."""
    try:
        return PaiNNKernel(student), ""
    except CapabilityError as error:
        return None, str(error)


def _function(library: ctypes.CDLL, name: str, result: Any, arguments: int) -> Any:
    function = getattr(library, name)
    function.restype = result
    function.argtypes = [ctypes.c_void_p] * arguments
    return function


def _numbers(student: PaiNN) -> Tensor:
    """(3 + radials,) float64: cutoff, scale, average number of neighbours, and the frequencies of the radial basis."""
    cutoff = torch.tensor([student.cutoff], dtype=torch.float64)
    return torch.cat([cutoff, student.scale[None], student.average_neighbors[None], student.frequencies]).double()


def _weights(student: PaiNN) -> Tensor:
    """All weights in one row, in the order in which the compiled code reads them."""
    layers: list[Tensor] = []
    for message, update in zip(student.messages, student.updates, strict=True):
        filters = cast(Message, message).filters
        mix, gate = cast(Update, update).mix, cast(Update, update).gate
        layers += [
            *_linear(cast(Message, message).phi),
            *(cast(nn.Linear, one).weight for one in filters),
            mix.weight,
            *_linear(gate),
        ]
    rows = [student.element_embeddings(), *layers, *_linear(student.readout)]
    return torch.cat([row.detach().to(student.dtype).reshape(-1) for row in rows])


def _linear(sequence: nn.Sequential) -> list[Tensor]:
    """Weights and biases of its linear layers, in order."""
    return [tensor for layer in sequence if isinstance(layer, nn.Linear) for tensor in (layer.weight, layer.bias)]


def _error(status: int, graph: Graph) -> Exception:
    if status == _UNKNOWN_ELEMENT:
        return DomainError("atoms of an element that the student was not made for; leave them out")
    if status == _BAD_INDEX:
        return StructureError(
            f"a graph of {graph.num_atoms} atoms whose edges or structures lie beyond them; make it with build_graph"
        )
    size = f"{graph.num_atoms} atoms and {graph.num_edges} edges"
    if status == _TOO_LARGE:
        return StructureError(f"a graph of {size} at once; expected fewer than 2³¹ of each: divide it")
    return StructureError(f"no memory for a graph of {size}; divide it into smaller batches")
