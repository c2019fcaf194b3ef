"""What an energy can be asked, once an architecture has said what each atom contributes to it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from zoo.derivatives import (
    differentiable,
    forces_and_stress,
    hessian_products,
    one_hot_probes,
    sum_over_structures,
)
from zoo.errors import CapabilityError
from zoo.graph import Graph


@dataclass(frozen=True)
class Prediction:
    """What a potential says of a batch; a teacher's Prediction is a label. None is what was not asked for."""

    energy: Tensor  # (structures,) eV, float64: a total energy loses its digits in less
    atomic_energies: Tensor | None = None  # (atoms,) eV
    forces: Tensor | None = None  # (atoms, 3) eV/Å
    stress: Tensor | None = None  # (structures, 3, 3) eV/Å³, ASE's sign
    hessian_products: Tensor | None = None  # (probes, atoms, 3) eV/Å², +H·v

    def split(self, atom_counts: list[int]) -> "list[Prediction]":
        """One Prediction a structure, in order."""
        count = len(atom_counts)
        columns: list[list[Tensor | None]] = [
            list(torch.split(self.energy, 1)),
            _split(self.atomic_energies, atom_counts, 0),
            _split(self.forces, atom_counts, 0),
            _split(self.stress, [1] * count, 0),
            _split(self.hessian_products, atom_counts, 1),
        ]
        return [Prediction(cast(Tensor, energy), *rest) for energy, *rest in zip(*columns, strict=True)]

    def cpu(self) -> "Prediction":
        """The same numbers without their history, in main memory."""
        return _each(self, lambda tensor: tensor.detach().cpu())

    def detach(self) -> "Prediction":
        """The same numbers without their history."""
        return _each(self, Tensor.detach)


@dataclass(frozen=True)
class Traits:
    """What a potential declares of itself; the contract tests follow from it."""

    conservative: bool = True  # forces are the gradient of the energy
    reflection_invariant: bool = True  # a mirror image has the same energy
    permutation_invariant: bool = True  # the order of atoms does not matter
    smoothness: int = 2  # derivatives of the energy that are continuous where an atom crosses the cutoff


class Potential(nn.Module):
    """An energy that can be differentiated. A subclass sets three attributes and writes ``atomic_energies``."""

    cutoff: float  # Å
    elements: tuple[int, ...]  # atomic numbers it knows
    traits: Traits = Traits()

    def atomic_energies(self, graph: Graph) -> Tensor:
        """(atoms,) eV, without the references of the elements."""
        raise NotImplementedError(f"{type(self).__name__} must say what each atom contributes to the energy")

    def reference_energies(self, numbers: Tensor) -> Tensor:
        """(atoms,) eV, float64: a constant of each element."""
        return torch.zeros(numbers.shape, dtype=torch.float64, device=numbers.device)

    @property
    def dtype(self) -> torch.dtype:
        return next(tensor.dtype for tensor in self.parameters() if tensor.is_floating_point())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def predict(
        self,
        graph: Graph,
        *,
        forces: bool = True,
        stress: bool = False,
        probes: Tensor | None = None,
        create_graph: bool = False,
    ) -> Prediction:
        """Energy, and what is asked of its derivatives, from one pass.

        ``probes`` (probes, atoms, 3) asks for Hessian products; ``create_graph`` keeps all differentiable by the
        parameters, for a loss.
        """
        derivatives = forces or stress or probes is not None
        with torch.set_grad_enabled(derivatives or create_graph):
            tracked, positions, strain = differentiable(graph, strain=stress)
            atomic = self.atomic_energies(tracked).double() + self.reference_energies(graph.numbers)
            energy = sum_over_structures(atomic, graph)
            if not derivatives:
                return Prediction(energy, atomic)
            keep = create_graph or probes is not None
            force, tensor = forces_and_stress(energy, graph, positions, strain, create_graph=keep)
            products = None
            if probes is not None:
                products = hessian_products(force, positions, probes, create_graph=create_graph)
        result = Prediction(energy, atomic, force if forces else None, tensor, products)
        return result if create_graph else result.detach()

    def hessian(self, graph: Graph, rows: Tensor | None = None) -> Tensor:
        """(rows, 3·atoms) eV/Å²: rows of the Hessian of one structure, all of them by default.

        A row is 3·atom + axis. Raises CapabilityError for more than one structure.
        """
        if graph.num_structures != 1:
            raise CapabilityError(f"a Hessian of {graph.num_structures} structures at once; ask for one at a time")
        wanted = torch.arange(3 * graph.num_atoms, device=graph.positions.device) if rows is None else rows
        with torch.enable_grad():
            tracked, positions, _ = differentiable(graph, strain=False)
            force, _ = forces_and_stress(self.atomic_energies(tracked), graph, positions, None, create_graph=True)
            products = [
                hessian_products(force, positions, one_hot_probes(row.reshape(1, 1), graph), create_graph=False)
                for row in wanted
            ]
        return torch.cat(products).reshape(len(wanted), 3 * graph.num_atoms)


def _each(prediction: Prediction, change: Callable[[Tensor], Tensor]) -> Prediction:
    changed = {key: change(tensor) for key, tensor in vars(prediction).items() if tensor is not None}
    return replace(prediction, **changed)


def _split(tensor: Tensor | None, counts: list[int], dim: int) -> list[Tensor | None]:
    if tensor is None:
        return [None] * len(counts)
    return list(torch.split(tensor, counts, dim=dim))
