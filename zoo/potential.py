"""What an energy can be asked, once an architecture has said what each atom contributes to it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from zoo.derivatives import (
    Side,
    differentiable,
    energy_gradient,
    forces_and_stress,
    forward_columns,
    hessian_products,
    one_hot_probes,
    sum_over_structures,
)
from zoo.errors import CapabilityError
from zoo.graph import Graph
from zoo.memory import Kept, free_memory


@dataclass(frozen=True)
class Prediction:
    """What a potential says of a batch; a teacher's Prediction is a label. None is what was not asked for."""

    energy: Tensor  # (structures,) eV, float64: a total energy loses its digits in less
    atomic_energies: Tensor | None = None  # (atoms,) eV
    forces: Tensor | None = None  # (atoms, 3) eV/Å
    stress: Tensor | None = None  # (structures, 3, 3) eV/Å³, ASE's sign
    hessian_products: Tensor | None = None  # (probes, atoms, 3) eV/Å², +H·v
    features: Tensor | None = None  # (atoms, features) the last node features, the same after a rotation
    energy_gradient: Tensor | None = None  # (atoms, 3) eV/Å, +∂E/∂r of an energy that is not what forces come from

    def split(self, atom_counts: list[int]) -> "list[Prediction]":
        """One Prediction a structure, in order."""
        count = len(atom_counts)
        columns: list[list[Tensor | None]] = [
            list(torch.split(self.energy, 1)),
            _split(self.atomic_energies, atom_counts, 0),
            _split(self.forces, atom_counts, 0),
            _split(self.stress, [1] * count, 0),
            _split(self.hessian_products, atom_counts, 1),
            _split(self.features, atom_counts, 0),
            _split(self.energy_gradient, atom_counts, 0),
        ]
        return [Prediction(cast(Tensor, energy), *rest) for energy, *rest in zip(*columns, strict=True)]

    @classmethod
    def join(cls, predictions: "Sequence[Prediction]") -> "Prediction":
        """Predictions side by side, as of one batch, in order; what one of them lacks, all lack."""
        joined: dict[str, Tensor | None] = {}
        for field in fields(cls):
            parts = [getattr(one, field.name) for one in predictions]
            whole = all(part is not None for part in parts)
            joined[field.name] = torch.cat(parts, dim=1 if field.name == "hessian_products" else 0) if whole else None
        return cls(**cast(dict[str, Any], joined))

    def cpu(self) -> "Prediction":
        """The same numbers without their history, in main memory."""
        return _each(self, lambda tensor: tensor.detach().cpu())

    def detach(self) -> "Prediction":
        """The same numbers without their history."""
        return _each(self, Tensor.detach)


@dataclass(frozen=True)
class Traits:
    """What a potential declares of itself; the contract tests follow from it, and so does what it can be asked."""

    conservative: bool = True  # forces are the gradient of the energy
    rotation_invariant: bool = True  # a turned structure has the same energy, and the same features
    reflection_invariant: bool = True  # a mirror image has the same energy
    permutation_invariant: bool = True  # the order of atoms does not matter
    size_consistent: bool = True  # two molecules far apart have the sum of their energies
    smoothness: int = 2  # derivatives of the energy that are continuous as an atom crosses the cutoff; −1: not even it
    energies: bool = True  # it gives energies; without, they are NaN
    stress: bool = True  # it gives the stress of a crystal; without, it is NaN
    atomic_energies: bool = True  # the energies of its atoms are its own, not a share of the whole
    features: int = 0  # channels of the node features that it gives
    open_shells: bool = False  # of an odd number of electrons it is told that one is unpaired


@dataclass(frozen=True)
class AtomOutputs:
    """What an architecture says of each atom, in one pass."""

    energies: Tensor  # (atoms,) eV, without the references of the elements
    features: Tensor | None = None  # (atoms, features) the last node features, the same after a rotation
    forces: Tensor | None = None  # (atoms, 3) eV/Å, of an architecture that predicts them directly
    stress: Tensor | None = None  # (structures, 3, 3) eV/Å³, ASE's sign, of one that predicts it beside its forces


@dataclass(frozen=True)
class _Asked:
    """What ``predict`` was asked for."""

    forces: bool = True
    stress: bool = False
    probes: Tensor | None = None
    side: Side = "rows"
    features: bool = False
    gradient: bool = False
    create_graph: bool = False

    @property
    def twice(self) -> bool:
        """Whether forces are differentiated."""
        return self.probes is not None and len(self.probes) > 0


class Potential(nn.Module):
    """What can be asked of atoms, written once for all architectures.

    A subclass sets three attributes and writes ``atomic_energies``, or, where it has more to say, ``atomic_outputs``
    and ``atomic_energies`` by way of it. Forces are the gradient of the energy, and products of the Hessian their
    derivative, unless the outputs hold forces of their own: then the energy has no say in them, and in the place of the
    Hessian stands minus the Jacobian of the forces, ``−∂Fᵢ/∂rⱼ``, which need not be symmetric.
    """

    cutoff: float  # Å
    elements: tuple[int, ...]  # atomic numbers it knows
    traits: Traits = Traits()

    def atomic_energies(self, graph: Graph) -> Tensor:
        """(atoms,) eV, without the references of the elements."""
        raise NotImplementedError(f"{type(self).__name__} must say what each atom contributes to the energy")

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        """Energies of the atoms, and what else an architecture has to say of them."""
        return AtomOutputs(self.atomic_energies(graph))

    def reference_energies(self, numbers: Tensor) -> Tensor:
        """(atoms,) eV, float64: a constant of each element."""
        return torch.zeros(numbers.shape, dtype=torch.float64, device=numbers.device)

    def element_embeddings(self) -> Tensor | None:
        """(elements, channels) The table that tells elements apart, in the order of ``elements``, if there is one."""
        return None

    @property
    def dtype(self) -> torch.dtype:
        return next(tensor.dtype for tensor in self.parameters() if tensor.is_floating_point())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def counting(self, kept: Kept) -> AbstractContextManager[None]:
        """Counts what is kept for gradients meanwhile, wherever that is."""
        return saved_tensors_hooks(kept.add, lambda tensor: tensor)

    def free_memory(self) -> int:
        """Bytes that it may still take."""
        return free_memory(self.device)

    def predict(
        self,
        graph: Graph,
        *,
        forces: bool = True,
        stress: bool = False,
        probes: Tensor | None = None,
        side: Side = "rows",
        features: bool = False,
        gradient: bool = False,
        create_graph: bool = False,
    ) -> Prediction:
        """Energy, and what is asked of its derivatives, from one pass.

        ``probes`` (probes, atoms, 3) asks for Hessian products, of a direct-force potential for products of its
        Jacobian from that ``side``; ``gradient`` for the gradient of the energy beside forces that are not made from
        it; ``create_graph`` keeps all differentiable by the parameters, for a loss. Raises CapabilityError.
        """
        asked = _Asked(forces, stress, probes, side, features, gradient, create_graph)
        if asked.twice and not create_graph and self.products_in_forward_mode(graph):
            return self._predict_in_forward_mode(graph, asked, given(probes))
        found = self._predict_in_one_pass(graph, asked)
        return found if create_graph else found.detach()

    def products_in_forward_mode(self, graph: Graph) -> bool:
        """Whether products of the Hessian are taken forward over reverse, for the memory (``zoo/derivatives.py``)."""
        return False

    def _predict_in_one_pass(self, graph: Graph, asked: "_Asked") -> Prediction:
        """With what history the answer needs itself, and no more."""
        slopes = asked.twice or asked.gradient or ((asked.forces or asked.stress) and self.traits.conservative)
        with torch.set_grad_enabled(slopes or asked.create_graph):
            tracked, positions, strain = differentiable(graph, strain=asked.stress)
            outputs = self.atomic_outputs(tracked)
            atomic = outputs.energies.double() + self.reference_energies(graph.numbers)
            energy = sum_over_structures(atomic, graph)
            found = Prediction(energy, atomic, features=self._features(outputs) if asked.features else None)
            if asked.forces or asked.stress or asked.gradient or asked.probes is not None:
                found = self._with_derivatives(found, asked, outputs, graph, positions, strain)
        if not self.traits.energies:
            found = replace(found, energy=torch.full_like(energy, torch.nan), atomic_energies=None)
        return found

    def _with_derivatives(
        self,
        found: Prediction,
        asked: "_Asked",
        outputs: AtomOutputs,
        graph: Graph,
        positions: Tensor,
        strain: Tensor | None,
    ) -> Prediction:
        create_graph = asked.create_graph
        keep = create_graph or asked.gradient or asked.twice
        force, stress = self._forces(outputs, found.energy, graph, positions, strain, create_graph=keep)
        slope, products = None, None
        if asked.gradient:
            slope = self._slope(outputs, found.energy, force, positions, create_graph=create_graph)
        if asked.probes is not None:
            side = "rows" if outputs.forces is None else asked.side
            products = hessian_products(force, positions, asked.probes, side, create_graph=create_graph)
        forces = force if asked.forces else None
        return replace(found, forces=forces, stress=stress, hessian_products=products, energy_gradient=slope)

    def _predict_in_forward_mode(self, graph: Graph, asked: "_Asked", probes: Tensor) -> Prediction:
        """Each product in a pass of its own, of which the first answers the rest."""
        found: list[Prediction] = []
        of_a_pass = replace(asked, probes=None, forces=True)

        def forces_at(positions: Tensor) -> Tensor:
            answer = self._predict_in_one_pass(graph.with_geometry(positions, graph.cells), of_a_pass)
            if not found:
                found.append(answer.detach())
            return given(answer.forces)

        products = forward_columns(forces_at, graph.positions, probes)
        return replace(found[0], hessian_products=products, forces=found[0].forces if asked.forces else None)

    def hessian(self, graph: Graph, rows: Tensor | None = None) -> Tensor:
        """(rows, 3·atoms) eV/Å²: rows of the Hessian of one structure, all of them by default.

        A row is 3·atom + axis. Of a direct-force potential, rows of minus the Jacobian of its forces. Raises
        CapabilityError for more than one structure.
        """
        if graph.num_structures != 1:
            raise CapabilityError(f"a Hessian of {graph.num_structures} structures at once; ask for one at a time")
        wanted = torch.arange(3 * graph.num_atoms, device=graph.positions.device) if rows is None else rows
        if self.products_in_forward_mode(graph):
            found = self.predict(graph, forces=False, probes=one_hot_probes(wanted.reshape(1, -1), graph))
            return given(found.hessian_products).reshape(len(wanted), 3 * graph.num_atoms)
        with torch.enable_grad():
            tracked, positions, _ = differentiable(graph, strain=False)
            outputs = self.atomic_outputs(tracked)
            force, _ = self._forces(outputs, outputs.energies, graph, positions, None, create_graph=True)
            products = [
                hessian_products(force, positions, one_hot_probes(row.reshape(1, 1), graph), create_graph=False)
                for row in wanted
            ]
        return torch.cat(products).reshape(len(wanted), 3 * graph.num_atoms)

    def force_columns(self, graph: Graph, probes: Tensor) -> Tensor:
        """(probes, atoms, 3) eV/Å²: ``−J v`` of forces that are predicted directly, one probe after another.

        In forward mode: the numbers of ``predict`` with ``side="columns"``, in less memory than a prediction of forces
        takes, and slower for many probes, as each is a pass of its own. Raises CapabilityError where forces are the
        gradient of an energy, and where an operation of the potential has no forward mode.
        """
        name = type(self).__name__
        if self.traits.conservative:
            raise CapabilityError(
                f"columns in forward mode of {name}, whose forces are the gradient of its energy; "
                "expected forces predicted directly: leave forward_mode out, its rows are its columns"
            )

        def forces_at(positions: Tensor) -> Tensor:
            return given(self.atomic_outputs(graph.with_geometry(positions, graph.cells)).forces)

        try:
            return forward_columns(forces_at, graph.positions, probes)
        except NotImplementedError as error:
            reason = str(error).partition("\n")[0]
            raise CapabilityError(f"{name} has no forward mode ({reason}); leave forward_mode out") from error

    def _forces(
        self,
        outputs: AtomOutputs,
        energy: Tensor,
        graph: Graph,
        positions: Tensor,
        strain: Tensor | None,
        *,
        create_graph: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Forces and stress, from the gradient of the energy or from the outputs."""
        if outputs.forces is None:
            return forces_and_stress(energy, graph, positions, strain, create_graph=create_graph)
        if strain is None:
            return outputs.forces, None
        nothing = torch.full_like(graph.cells, torch.nan)
        if outputs.stress is None:
            return outputs.forces, nothing
        solid = graph.periodic.all(dim=1)  # (structures,)
        return outputs.forces, torch.where(solid[:, None, None], outputs.stress, nothing)

    def _slope(
        self, outputs: AtomOutputs, energy: Tensor, force: Tensor, positions: Tensor, *, create_graph: bool
    ) -> Tensor:
        """The gradient of the energy; forces that are made from it are its opposite."""
        if not self.traits.energies:
            raise CapabilityError(f"{type(self).__name__} has no energy, and no gradient of it; ask it for forces")
        return -force if outputs.forces is None else energy_gradient(energy, positions, create_graph=create_graph)

    def _features(self, outputs: AtomOutputs) -> Tensor:
        if outputs.features is None:
            raise CapabilityError(f"{type(self).__name__} gives no node features; ask it for energies and forces")
        return outputs.features


def given(part: Tensor | None) -> Tensor:
    """A part of a Prediction that was asked for."""
    assert part is not None
    return part


def _each(prediction: Prediction, change: Callable[[Tensor], Tensor]) -> Prediction:
    changed = {key: change(tensor) for key, tensor in vars(prediction).items() if tensor is not None}
    return replace(prediction, **changed)


def _split(tensor: Tensor | None, counts: list[int], dim: int) -> list[Tensor | None]:
    if tensor is None:
        return [None] * len(counts)
    return list(torch.split(tensor, counts, dim=dim))
