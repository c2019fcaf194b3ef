"""Bugs as people make them, planted one at a time, and the laws of the contract that must catch each.

For each bug the named laws hold for the healthy potential and fail for the bugged one. ``BUGS`` is the list.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import structures as scenes
import torch
import vesin
from contracts import CONTRACT
from direct_potentials import tiny_painn_dt
from torch import Tensor, nn

from zoo import derivatives, graph, neighbors, potential
from zoo.graph import Graph
from zoo.ops import polynomial_envelope, safe_norm, scatter_sum
from zoo.potential import AtomOutputs, Potential, Prediction, Traits
from zoo.students import PaiNN, PaiNNDT, painn, painn_dt

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch, Any], Potential]


@dataclass(frozen=True)
class Bug:
    """A mistake, how it is planted in a healthy potential, and who must notice."""

    name: str
    laws: tuple[str, ...]
    plant: Plant
    healthy: Plant = lambda patch, model: model
    specimen: str = "painn"


# --- ways to plant --------------------------------------------------------------------------------


def _becomes(kind: type[Potential]) -> Plant:
    """The model becomes a subclass of its class, with the traits that this declares."""

    def plant(patch: Patch, model: Potential) -> Potential:
        model.__class__ = kind
        model.traits = vars(kind).get("traits", model.traits)
        return model

    return plant


def _patched(module: Any, name: str, replacement: Any) -> Plant:
    """A name in a module of zoo is replaced while the test lasts."""

    def plant(patch: Patch, model: Potential) -> Potential:
        patch.setattr(module, name, replacement)
        return model

    return plant


def _both(*plants: Plant) -> Plant:
    def plant(patch: Patch, model: Potential) -> Potential:
        return functools.reduce(lambda grown, one: one(patch, grown), plants, model)

    return plant


# --- derivatives ----------------------------------------------------------------------------------


class WrongSignOfForces(PaiNN):
    def predict(self, graph: Graph, **asked: Any) -> Prediction:
        got = super().predict(graph, **asked)
        return replace(got, forces=None if got.forces is None else -got.forces)


class WrongSignOfHessian(PaiNN):
    def hessian(self, graph: Graph, rows: Tensor | None = None) -> Tensor:
        return -super().hessian(graph, rows)

    def predict(self, graph: Graph, **asked: Any) -> Prediction:
        got = super().predict(graph, **asked)
        products = got.hessian_products
        return replace(got, hessian_products=None if products is None else -products)


class WrongSignOfProducts(WrongSignOfHessian):
    def hessian(self, graph: Graph, rows: Tensor | None = None) -> Tensor:
        return PaiNN.hessian(self, graph, rows)


class WeightedByRows(PaiNN):
    """The Hessian is weighted by the masses of its rows, and not by those of its columns."""

    def hessian(self, graph: Graph, rows: Tensor | None = None) -> Tensor:
        weights = graph.numbers.repeat_interleave(3).to(self.dtype).rsqrt()
        return super().hessian(graph, rows) * (weights if rows is None else weights[rows])[:, None]


class ForcesOfAnotherHead(PaiNN):
    """A term along the edges that no energy is behind, equal and opposite on both ends."""

    def predict(self, graph: Graph, **asked: Any) -> Prediction:
        got = super().predict(graph, **asked)
        if got.forces is None:
            return got
        vectors = graph.edge_vectors()
        pulls = vectors * polynomial_envelope(vectors.norm(dim=1, keepdim=True) / self.cutoff)
        return replace(got, forces=got.forces + 1e-3 * scatter_sum(pulls, graph.centers, graph.num_atoms))


def _rows_off_by_one(rows: Tensor, batch: Graph) -> Tensor:
    probes = derivatives.one_hot_probes(rows, batch)
    return probes.flatten(1).roll(1, dims=1).reshape(probes.shape)


def _rows_without_offset(rows: Tensor, batch: Graph) -> Tensor:
    probes = batch.positions.new_zeros(rows.shape[1], batch.num_atoms * 3)
    return probes.scatter_(1, rows.t(), 1.0).reshape(rows.shape[1], batch.num_atoms, 3)


def _rows_of_other_atoms(patch: Patch, model: PaiNN) -> Potential:
    """Rows without the offset of their structure, where the potential and the contract look for them."""
    return _both(
        _patched(potential, "one_hot_probes", _rows_without_offset),
        _patched(derivatives, "one_hot_probes", _rows_without_offset),
    )(patch, model)


class ProbesOfTheFirstStructure(PaiNN):
    """In a batch, probes are joined one atom off."""

    def predict(self, graph: Graph, *, probes: Tensor | None = None, **asked: Any) -> Prediction:
        if probes is not None and graph.num_structures > 1:
            probes = probes.roll(1, dims=1)
        return super().predict(graph, probes=probes, **asked)


def _products_without_graph(forces: Tensor, positions: Tensor, probes: Tensor, *_: str, create_graph: bool) -> Tensor:
    return derivatives.hessian_products(forces, positions, probes, create_graph=False).detach()


def _only_positions_strained(batch: Graph, *, strain: bool) -> tuple[Graph, Tensor, Tensor | None]:
    tracked, positions, epsilon = derivatives.differentiable(batch, strain=strain)
    return tracked.with_geometry(tracked.positions, batch.cells), positions, epsilon


def _strain_not_symmetric(batch: Graph, *, strain: bool) -> tuple[Graph, Tensor, Tensor | None]:
    """Strain of the positions alone, and not symmetrised: what is left is the virial within one cell."""
    if not strain:
        return derivatives.differentiable(batch, strain=False)
    positions = batch.positions.detach().requires_grad_()
    epsilon = torch.zeros_like(batch.cells).requires_grad_()
    strained = positions + (positions.unsqueeze(1) @ epsilon[batch.structure])[:, 0, :]
    return batch.with_geometry(strained, batch.cells), positions, epsilon


def _stress_times(factor: Callable[[Graph], Tensor]) -> Plant:
    def wrong(energy: Tensor, batch: Graph, *rest: Any, **asked: Any) -> tuple[Tensor, Tensor | None]:
        forces, stress = derivatives.forces_and_stress(energy, batch, *rest, **asked)
        return forces, None if stress is None else stress * factor(batch)

    return _patched(potential, "forces_and_stress", wrong)


def _volume(batch: Graph) -> Tensor:
    return torch.linalg.det(batch.cells).abs()[:, None, None]


def _signed_volume(batch: Graph) -> Tensor:
    return torch.linalg.det(batch.cells).sign()[:, None, None]


def _stress_of_anything(patch: Patch, model: PaiNN) -> Potential:
    """A structure without volume has a stress of zero."""

    def wrong(*given: Any, **asked: Any) -> tuple[Tensor, Tensor | None]:
        forces, stress = derivatives.forces_and_stress(*given, **asked)
        return forces, None if stress is None else stress.nan_to_num()

    return _patched(potential, "forces_and_stress", wrong)(patch, model)


# --- smoothness -----------------------------------------------------------------------------------


def _gaussians(distance: Tensor, frequencies: Tensor, cutoff: float) -> Tensor:
    """A radial basis that, unlike the sines of Bessel, does not vanish at the cutoff by itself."""
    centers = torch.linspace(1.0, cutoff, len(frequencies), dtype=distance.dtype)
    return torch.exp(-2 * (distance - centers).square())


def _hard(fraction: Tensor) -> Tensor:
    return (fraction < 1).to(fraction.dtype)


def _linear(fraction: Tensor) -> Tensor:
    return (1 - fraction).clamp(min=0)


def _cosine(fraction: Tensor) -> Tensor:
    return torch.where(fraction < 1, 0.5 * (1 + torch.cos(torch.pi * fraction)), torch.zeros_like(fraction))


_with_gaussians = _patched(painn, "bessel_basis", _gaussians)


def _cutoff(envelope: Callable[[Tensor], Tensor]) -> Plant:
    return _patched(painn, "polynomial_envelope", envelope)


def _plain_norm(vectors: Tensor, epsilon: float = 0.0) -> Tensor:
    return vectors.square().sum(dim=-1).sqrt()


def _masked_norm(vectors: Tensor, epsilon: float = 0.0) -> Tensor:
    """torch's own: its gradient at zero is set to zero."""
    return torch.linalg.vector_norm(vectors, dim=-1)


def _sharp_norm(vectors: Tensor, epsilon: float = 0.0) -> Tensor:
    """Finite everywhere, and a cusp for all who look from further away than a millionth of an ångström."""
    return safe_norm(vectors, 1e-16)


class PromisesTooMuch(PaiNN):
    """A cutoff with one continuous derivative, whose traits promise two."""

    traits = Traits(smoothness=2)


class PromisesOne(PaiNN):
    traits = Traits(smoothness=1)


# --- architecture ---------------------------------------------------------------------------------


class Detach(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.detach()


class DetachedLinear(nn.Linear):
    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.linear(values, self.weight.detach())


class OnceDifferentiable(torch.autograd.Function):
    """SiLU with a backward written by hand, through which no second derivative finds its way."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        gate = torch.sigmoid(values)
        ctx.slope = gate * (1 + values * (1 - gate))
        return values * gate

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream * ctx.slope


class HandWritten(nn.SiLU):
    def forward(self, values: Tensor) -> Tensor:
        return OnceDifferentiable.apply(values)


def _hand_written_backward(patch: Patch, model: PaiNN) -> Potential:
    model.readout[1].__class__ = HandWritten
    return model


def _detached_message(patch: Patch, model: PaiNN) -> Potential:
    model.messages[1].phi.append(Detach())
    return model


def _detached_weights(patch: Patch, model: PaiNN) -> Potential:
    """The filters are right, and their weights learn nothing."""
    model.messages[0].filters[1].__class__ = DetachedLinear
    return model


def _squeezed_length(patch: Patch, model: PaiNN) -> Potential:
    return _patched(painn, "safe_norm", lambda vectors, epsilon: safe_norm(vectors, epsilon).squeeze())(patch, model)


class SqueezedEnergies(PaiNN):
    def atomic_energies(self, graph: Graph) -> Tensor:
        return super().atomic_energies(graph)[:, None].squeeze()


def _plus(outputs: AtomOutputs, energies: Tensor) -> AtomOutputs:
    return replace(outputs, energies=outputs.energies + energies)


def _sums_of_vectors(model: Potential, batch: Graph) -> list[Tensor]:
    """Three sums over the neighbours of each atom, (atoms, 3) each, in three directions."""
    vectors = batch.edge_vectors()
    distance = vectors.square().sum(dim=1, keepdim=True).sqrt()
    faded = polynomial_envelope(distance / model.cutoff) * vectors
    return [scatter_sum(faded * distance**power, batch.centers, batch.num_atoms) for power in (-2, -1, 0)]


class TripleProduct(PaiNN):
    """Adds ``a · (b × c)`` of three sums over neighbours: it turns well, and changes sign in a mirror."""

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        a, b, c = _sums_of_vectors(self, graph)
        return _plus(super().atomic_outputs(graph), 0.1 * (a * torch.linalg.cross(b, c)).sum(dim=1))


class ComponentsAsFeatures(PaiNN):
    """One component of an edge is used as if it were a number."""

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        vectors = graph.edge_vectors()
        fade = polynomial_envelope(vectors.square().sum(dim=1).sqrt() / self.cutoff)
        heights = scatter_sum(fade * vectors[:, 2].square(), graph.centers, graph.num_atoms)
        return _plus(super().atomic_outputs(graph), 0.01 * heights)


class AbsolutePositions(PaiNN):
    """The energy feels where the atoms are, as a harmonic restraint to the origin does."""

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        return _plus(super().atomic_outputs(graph), 1e-4 * graph.positions.square().sum(dim=1))


class OrderMatters(PaiNN):
    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        outputs = super().atomic_outputs(graph)
        place = torch.arange(graph.num_atoms, dtype=self.dtype, device=self.device)
        return _plus(outputs, 1e-3 * place * outputs.energies)


class GlobalFeature(PaiNN):
    """Each atom learns something of the mean of all atoms of the batch."""

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        outputs = super().atomic_outputs(graph)
        return _plus(outputs, 0.1 * outputs.energies.mean().tanh())


class NoEnergyAlone(PaiNN):
    """An atom without neighbours is divided by their number."""

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        count = torch.bincount(graph.centers, minlength=graph.num_atoms)
        return _plus(super().atomic_outputs(graph), (count / count).log())


class ReferencesInSingle(PaiNN):
    """References follow the type of the model, and lose their digits before the sum."""

    def reference_energies(self, numbers: Tensor) -> Tensor:
        return super().reference_energies(numbers).to(self.dtype).double()


class ReferencesForgotten(PaiNN):
    """The total energy has the references of the elements, the atomic energies have not."""

    def predict(self, graph: Graph, **asked: Any) -> Prediction:
        got = super().predict(graph, **asked)
        return replace(got, atomic_energies=got.atomic_energies - self.reference_energies(graph.numbers))


class EnergyWithoutForces(PaiNN):
    """Another path, and other numbers, where only the energy is asked for."""

    def predict(self, graph: Graph, *, forces: bool = True, **asked: Any) -> Prediction:
        got = super().predict(graph, forces=forces, **asked)
        return got if forces else replace(got, energy=got.energy.float().double())


# --- forces that are predicted --------------------------------------------------------------------


def _with_side(change: dict[str, str]) -> type[Potential]:
    """Products of another side than was asked for."""

    class OtherSide(PaiNNDT):
        def predict(self, graph: Graph, *, side: str = "rows", **asked: Any) -> Prediction:
            return super().predict(graph, side=change.get(side, side), **asked)

    return OtherSide


class TransposedHessian(PaiNNDT):
    def hessian(self, graph: Graph, rows: Tensor | None = None) -> Tensor:
        dense = super().hessian(graph).t()
        return dense if rows is None else dense[rows]


class WrongSignInForwardMode(PaiNNDT):
    def force_columns(self, graph: Graph, probes: Tensor) -> Tensor:
        return -super().force_columns(graph, probes)


def _gradient_becomes(change: Callable[[Prediction], Tensor]) -> type[Potential]:
    class OtherGradient(PaiNNDT):
        def predict(self, graph: Graph, *, forces: bool = True, gradient: bool = False, **asked: Any) -> Prediction:
            got = super().predict(graph, gradient=gradient, **asked)
            got = replace(got, energy_gradient=change(got)) if gradient else got
            return got if forces else replace(got, forces=None)

    return OtherGradient


def _outputs_become(change: Callable[[PaiNNDT, Graph, AtomOutputs], AtomOutputs]) -> Plant:
    class OtherOutputs(PaiNNDT):
        def atomic_outputs(self, graph: Graph) -> AtomOutputs:
            return change(self, graph, super().atomic_outputs(graph))

    return _becomes(OtherOutputs)


def _detached(model: PaiNNDT, batch: Graph, outputs: AtomOutputs) -> AtomOutputs:
    return replace(outputs, forces=outputs.forces.detach())


def _pushed(push: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Plant:
    """Adds to the forces what is made of three sums of vectors over neighbours."""

    def change(model: PaiNNDT, batch: Graph, outputs: AtomOutputs) -> AtomOutputs:
        return replace(outputs, forces=outputs.forces + push(*_sums_of_vectors(model, batch)))

    return _outputs_become(change)


def _mean_of_all_removed(model: PaiNNDT, batch: Graph, outputs: AtomOutputs) -> AtomOutputs:
    """The total force is taken off, that of the whole batch from each structure."""
    return replace(outputs, forces=outputs.forces - outputs.forces.mean(dim=0))


def _squeezed_forces(model: PaiNNDT, batch: Graph, outputs: AtomOutputs) -> AtomOutputs:
    return replace(outputs, forces=outputs.forces.squeeze())


def _turning_features(model: PaiNNDT, batch: Graph, outputs: AtomOutputs) -> AtomOutputs:
    """A vector of each atom is handed out among its scalars."""
    return replace(outputs, features=torch.cat([outputs.features[:, :-3], outputs.forces], dim=1))


def _features_of_whole_batch(model: PaiNNDT, batch: Graph, outputs: AtomOutputs) -> AtomOutputs:
    return replace(outputs, features=outputs.features - outputs.features.mean(dim=0))


def _fewer_features(model: PaiNNDT, batch: Graph, outputs: AtomOutputs) -> AtomOutputs:
    return replace(outputs, features=outputs.features[:, :-1])


class EnergyOfNothing(PaiNNDT):
    """Declares that it has no energy, and gives that of a head that nothing trained."""

    traits = Traits(conservative=False, stress=False, energies=False, features=6)

    def predict(self, graph: Graph, **asked: Any) -> Prediction:
        got = super().predict(graph, **asked)
        return replace(got, energy=torch.zeros_like(got.energy))


class NoEnergy(PaiNNDT):
    traits = Traits(conservative=False, stress=False, energies=False, features=6)


class StressOfNothing(PaiNNDT):
    """The stress that is not there is said to be zero."""

    def predict(self, graph: Graph, **asked: Any) -> Prediction:
        got = super().predict(graph, **asked)
        return replace(got, stress=None if got.stress is None else got.stress.nan_to_num())


class PromisesAll(PaiNNDT):
    """As published, with steps, cusps or few neighbours, and the traits of the smooth one."""

    traits = Traits(conservative=False, stress=False, features=6)


def _configured(**fields: Any) -> Plant:
    """The same weights in another configuration, that promises all the same."""

    def plant(patch: Patch, model: PaiNNDT) -> Potential:
        other = PaiNNDT(model.config.model_copy(update=fields)).double()
        other.load_state_dict(model.state_dict())
        return _becomes(PromisesAll)(patch, other)

    return plant


def _columns_without_graph(forces: Tensor, positions: Tensor, probes: Tensor, *_: str, create_graph: bool) -> Tensor:
    """Rows learn, columns do not."""
    rows = derivatives.hessian_products(forces, positions, probes, "rows", create_graph=create_graph)
    return (rows + derivatives.hessian_products(forces, positions, probes, "columns", create_graph=False).detach()) / 2


def _still_directions(patch: Patch, model: PaiNNDT) -> Potential:
    """Forces are right; that an edge turns when its atoms move is forgotten where they are differentiated."""

    class StillDirections(PaiNNDT):
        def _basis(self, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
            radial, fade, direction = super()._basis(graph)
            return radial, fade, direction.detach()

    return _becomes(StillDirections)(patch, model)


def _norm_of_torch(patch: Patch, model: PaiNNDT) -> Potential:
    """Its first and second derivative are right, its third is not."""
    for message in model.messages:
        own, message.norm = message.norm, nn.LayerNorm(model.config.channels).double()
        message.norm.load_state_dict(own.state_dict())
    return model


# --- graphs ---------------------------------------------------------------------------------------


class _Edges:
    """vesin's neighbour list with its output spoilt."""

    def __init__(self, spoil: Callable[..., Any], **given: Any) -> None:
        self.finder, self.spoil = vesin.NeighborList(**given), spoil

    def compute(self, **given: Any) -> Any:
        return self.spoil(*self.finder.compute(**given))


def _edges(spoil: Callable[..., Any]) -> Plant:
    class Spoilt:
        NeighborList = staticmethod(functools.partial(_Edges, spoil))

    return _patched(neighbors, "vesin", Spoilt)


def _one_direction(centers: Any, others: Any, shifts: Any, lengths: Any) -> Any:
    ahead = np.array([tuple(shift) > (0, 0, 0) for shift in shifts], dtype=bool)
    keep = (centers < others) | ((centers == others) & ahead)
    return centers[keep], others[keep], shifts[keep], lengths[keep]


def _first_images(centers: Any, others: Any, shifts: Any, lengths: Any) -> Any:
    keep = abs(shifts).max(axis=1, initial=0) < 1
    return centers[keep], others[keep], shifts[keep], lengths[keep]


def _no_self_images(centers: Any, others: Any, shifts: Any, lengths: Any) -> Any:
    keep = centers != others
    return centers[keep], others[keep], shifts[keep], lengths[keep]


def _transposed_cell(self: Graph) -> Tensor:
    return _right_vectors(replace(self, cells=self.cells.transpose(1, 2)))


def _transposed_in_batches(self: Graph) -> Tensor:
    return _right_vectors(self) if self.num_structures == 1 else _transposed_cell(self)


def _cell_of_the_first(self: Graph) -> Tensor:
    return _right_vectors(replace(self, cells=self.cells[:1].expand_as(self.cells)))


_right_vectors = Graph.edge_vectors


def _collate_without_structures(graphs: list[Graph]) -> Graph:
    """The index of the structure is not moved on."""
    joined = graph.collate(graphs)
    return replace(joined, structure=torch.cat([one.structure for one in graphs]))


def _collate_without_atoms(graphs: list[Graph]) -> Graph:
    """Neighbours keep the numbers that they had in their own structure."""
    joined = graph.collate(graphs)
    return replace(joined, neighbors=torch.cat([one.neighbors for one in graphs]))


def _averaged(per_atom: Tensor, batch: Graph) -> Tensor:
    return derivatives.sum_over_structures(per_atom, batch) / batch.atom_counts


def _all_in_one(per_atom: Tensor, batch: Graph) -> Tensor:
    return per_atom.sum()[None].expand(batch.num_structures)


BUGS = (
    Bug("sign of forces", ("forces_are_gradient", "hessian_is_gradient"), _becomes(WrongSignOfForces)),
    Bug("sign of Hessian", ("hessian_is_gradient",), _becomes(WrongSignOfHessian)),
    Bug("sign of Hessian products only", ("hessian_products",), _becomes(WrongSignOfProducts)),
    Bug("forces that are not the gradient", ("forces_are_gradient",), _becomes(ForcesOfAnotherHead)),
    Bug(
        "one-hot row off by one",
        ("hessian_is_gradient",),
        _patched(potential, "one_hot_probes", _rows_off_by_one),
    ),
    Bug("Hessian weighted by rows only", ("hessian_symmetric",), _becomes(WeightedByRows)),
    Bug("rows of another structure's atoms", ("hessian_rows",), _rows_of_other_atoms),
    Bug("probe offset", ("batch",), _becomes(ProbesOfTheFirstStructure)),
    Bug(
        "products cut from the graph",
        ("parameter_gradient",),
        _patched(potential, "hessian_products", _products_without_graph),
    ),
    Bug(
        "strain of positions, not of the cell",
        ("stress_is_gradient",),
        _patched(potential, "differentiable", _only_positions_strained),
    ),
    Bug(
        "strain not symmetric",
        ("stress_symmetric",),
        _patched(potential, "differentiable", _strain_not_symmetric),
    ),
    Bug("stress without 1/V", ("stress_is_gradient", "supercell"), _stress_times(_volume)),
    Bug(
        "stress with the opposite sign",
        ("stress_is_gradient",),
        _stress_times(lambda batch: torch.tensor(-1.0)),
    ),
    Bug(
        "volume with the sign of the cell",
        ("stress_is_gradient", "reflection"),
        _stress_times(_signed_volume),
    ),
    Bug("stress of a molecule", ("stress_needs_volume",), _stress_of_anything),
    Bug("hard cutoff", ("smooth_cutoff",), _cutoff(_hard)),
    Bug(
        "hard cutoff, Gaussian basis",
        ("smooth_cutoff",),
        _both(_with_gaussians, _cutoff(_hard)),
        _with_gaussians,
    ),
    Bug(
        "linear cutoff: kink in the energy",
        ("smooth_cutoff",),
        _both(_with_gaussians, _cutoff(_linear)),
        _with_gaussians,
    ),
    Bug("linear cutoff of sines: kink in the forces", ("smooth_cutoff",), _cutoff(_linear)),
    Bug(
        "cosine cutoff: kink in the forces",
        ("smooth_cutoff",),
        _both(_with_gaussians, _cutoff(_cosine)),
        _with_gaussians,
    ),
    Bug(
        "traits that promise too much",
        ("smooth_cutoff",),
        _both(_with_gaussians, _cutoff(_cosine), _becomes(PromisesTooMuch)),
        _both(_with_gaussians, _cutoff(_cosine), _becomes(PromisesOne)),
    ),
    Bug("plain norm at zero", ("finite_to_third",), _patched(painn, "safe_norm", _plain_norm)),
    Bug("norm with its gradient masked at zero", ("no_cusp",), _patched(painn, "safe_norm", _masked_norm)),
    Bug("norm too sharp at zero", ("no_cusp",), _patched(painn, "safe_norm", _sharp_norm)),
    Bug("backward written by hand", ("hessian_is_gradient",), _hand_written_backward),
    Bug("detached message", ("forces_are_gradient", "parameter_gradient"), _detached_message),
    Bug("detached weights", ("parameter_gradient",), _detached_weights),
    Bug("bare squeeze inside", ("isolated_atom", "batch"), _squeezed_length),
    Bug("bare squeeze of the energies", ("atomic_energies",), _becomes(SqueezedEnergies)),
    Bug("missing reflection", ("reflection",), _becomes(TripleProduct)),
    Bug("component used as a scalar", ("rotation",), _becomes(ComponentsAsFeatures)),
    Bug("absolute positions", ("translation", "acoustic_sum"), _becomes(AbsolutePositions)),
    Bug("order of atoms matters", ("permutation",), _becomes(OrderMatters)),
    Bug("mean over the batch", ("batch", "size_consistency"), _becomes(GlobalFeature)),
    Bug("division by no neighbours", ("isolated_atom",), _becomes(NoEnergyAlone)),
    Bug("float32 references added before the sum", ("float32",), _becomes(ReferencesInSingle)),
    Bug("references forgotten in atomic energies", ("atomic_energies",), _becomes(ReferencesForgotten)),
    Bug("another path for the energy alone", ("asked",), _becomes(EnergyWithoutForces)),
    Bug("edges in one direction only", ("permutation",), _edges(_one_direction)),
    Bug("shifts with the wrong sign", ("images",), _edges(lambda i, j, shifts, d: (i, j, -shifts, d))),
    Bug("no edges to images", ("images", "supercell"), _edges(_first_images)),
    Bug("no edges to an atom's own images", ("supercell",), _edges(_no_self_images)),
    Bug("transposed cell", ("rotation", "images"), _patched(Graph, "edge_vectors", _transposed_cell)),
    Bug("transposed cell in batches", ("batch",), _patched(Graph, "edge_vectors", _transposed_in_batches)),
    Bug("cell of the first structure for all", ("batch",), _patched(Graph, "edge_vectors", _cell_of_the_first)),
    Bug("index of the structure lost", ("batch",), _patched(neighbors, "collate", _collate_without_structures)),
    Bug("neighbours of another structure", ("batch",), _patched(neighbors, "collate", _collate_without_atoms)),
    Bug("one sum for the whole batch", ("batch",), _patched(potential, "sum_over_structures", _all_in_one)),
    Bug(
        "energy averaged over atoms",
        ("supercell", "atomic_energies"),
        _patched(potential, "sum_over_structures", _averaged),
    ),
)

_SWAPPED = {"rows": "columns", "columns": "rows"}
DIRECT_BUGS = tuple(
    replace(bug, specimen="painn-dt")
    for bug in (
        Bug("columns for rows", ("sides", "hessian_products"), _becomes(_with_side(_SWAPPED))),
        Bug("symmetric products of rows alone", ("sides",), _becomes(_with_side({"symmetric": "rows"}))),
        Bug("columns never looked at", ("sides",), _becomes(_with_side({"columns": "rows"}))),
        Bug("Hessian transposed", ("hessian_is_gradient", "acoustic_sum"), _becomes(TransposedHessian)),
        Bug("sign in forward mode", ("sides",), _becomes(WrongSignInForwardMode)),
        Bug(
            "columns cut from the graph",
            ("parameter_gradient",),
            _patched(potential, "hessian_products", _columns_without_graph),
        ),
        Bug(
            "sign of the energy's gradient",
            ("energy_gradient",),
            _becomes(_gradient_becomes(lambda got: -got.energy_gradient)),
        ),
        Bug(
            "forces for the energy's gradient",
            ("energy_gradient",),
            _becomes(_gradient_becomes(lambda got: -got.forces)),
        ),
        Bug("forces detached", ("hessian_is_gradient",), _outputs_become(_detached)),
        Bug("directions detached", ("hessian_is_gradient", "sides"), _still_directions),
        Bug(
            "forces that turn and are not mirrored", ("reflection",), _pushed(lambda a, b, c: torch.linalg.cross(a, b))
        ),
        Bug("forces along an axis", ("rotation",), _pushed(lambda a, b, c: 0.1 * a * a)),
        Bug("total force of the batch removed", ("batch", "size_consistency"), _outputs_become(_mean_of_all_removed)),
        Bug("bare squeeze of the forces", ("isolated_atom",), _outputs_become(_squeezed_forces)),
        Bug("features that turn", ("features",), _outputs_become(_turning_features)),
        Bug("features less the mean of the batch", ("features",), _outputs_become(_features_of_whole_batch)),
        Bug("fewer features than declared", ("features",), _outputs_become(_fewer_features)),
        Bug("energy where none is declared", ("declared",), _becomes(EnergyOfNothing), _becomes(NoEnergy)),
        Bug("stress where none is declared", ("declared",), _becomes(StressOfNothing)),
        Bug("bias of filters outside the envelope", ("smooth_cutoff",), _configured(smooth=False)),
        Bug("few neighbours, chosen by index", ("permutation",), _configured(max_neighbors=2)),
        Bug("few neighbours, one of two images cut off", ("supercell",), _configured(max_neighbors=7)),
        Bug("lengths with a cusp", ("no_cusp",), _patched(painn_dt, "_soft_length", painn_dt._sharp_length)),
        Bug("torch's layer normalisation", ("parameter_gradient",), _norm_of_torch),
    )
)


ALL_BUGS = BUGS + DIRECT_BUGS


@pytest.fixture(scope="module")
def specimens() -> dict[str, Potential]:
    return {
        "painn": scenes.tiny_painn("O", "Si", seed=11),
        "painn-dt": tiny_painn_dt("O", "Si", seed=11),
    }


_CASES = [pytest.param(bug, law, id=f"{bug.name}: {law}") for bug in ALL_BUGS for law in bug.laws]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # forward mode
@pytest.mark.parametrize(("bug", "law"), _CASES)
def test_bug_is_caught(bug: Bug, law: str, specimens: dict[str, Potential], monkeypatch: Patch) -> None:
    specimen = specimens[bug.specimen]
    with monkeypatch.context() as patch:
        CONTRACT[law](bug.healthy(patch, copy.deepcopy(specimen)))
    bugged = bug.plant(monkeypatch, copy.deepcopy(specimen))
    with pytest.raises(AssertionError) as caught:
        CONTRACT[law](bugged)
    assert len(str(caught.value)) > 20, "the law should say what it found"


def test_every_law_catches_something() -> None:
    assert {law for bug in ALL_BUGS for law in bug.laws} >= set(CONTRACT)
