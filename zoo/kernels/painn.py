"""PaiNN with frozen weights in one call of compiled code: energies of atoms, forces and virial."""

import ctypes
import weakref
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
        ("threads", ctypes.c_int),
    )


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
        """Energies (atoms,) eV, forces (atoms, 3) eV/Å and virial (structures, 3, 3) eV, in the type of the student.

        Energies are without the references of the elements. The virial is the gradient of the energy by a symmetric
        strain, ``Σ r ⊗ ∂E/∂r`` over edges; over the volume of a crystal it is its stress. As many threads as PyTorch's
        take part, and the bits do not depend on their number. Raises DomainError for an element that the student does
        not know, StructureError for a graph whose indices are not those of its atoms or that is too large.
        """
        real = [
            value.detach().to("cpu", self.dtype).contiguous() for value in (graph.positions, graph.cells, graph.shifts)
        ]
        whole = [
            value.detach().to("cpu", torch.int64).contiguous()
            for value in (graph.numbers, self._slots, graph.structure, graph.centers, graph.neighbors)
        ]
        energies = real[0].new_empty(graph.num_atoms)
        forces = real[0].new_empty(graph.num_atoms, 3)
        virial = real[0].new_empty(graph.num_structures, 3, 3)
        call = _Call(
            graph.num_atoms,
            graph.num_edges,
            graph.num_structures,
            *(value.data_ptr() for value in (*whole, *real, energies, forces, virial)),
            torch.get_num_threads(),
        )
        if status := self._run(self._handle, ctypes.byref(call)):
            raise _error(status, graph)
        return energies, forces, virial


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
