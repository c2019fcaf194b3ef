"""The layers of GemNet-T (Gasteiger, Becker, Günnemann, NeurIPS 2021, arXiv 2106.08903)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.ops import scatter_sum
from zoo.students.gemnet_edges import Edges

_HALF_ROOT = 1 / math.sqrt(2.0)  # keeps the variance of a sum of two
_SILU_GAIN = 1 / 0.6  # keeps the variance of what goes through SiLU
_NOISE = 1e-10  # a variance that is less of the mean square is rounding


class Dense(nn.Linear):
    """A linear layer without bias, so that zero stays zero, and a scaled SiLU after it if it is ``active``."""

    def __init__(self, inputs: int, outputs: int, *, active: bool = True) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.active = active

    def forward(self, values: Tensor) -> Tensor:
        mixed = super().forward(values)
        activated: Tensor = nn.functional.silu(mixed) * _SILU_GAIN if self.active else mixed
        return activated


class Residual(nn.Module):
    """``(x + f(f(x))) / √2``"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(Dense(channels, channels), Dense(channels, channels))

    def forward(self, values: Tensor) -> Tensor:
        change: Tensor = self.layers(values)
        return (values + change) * _HALF_ROOT


class ScaleFactor(nn.Module):
    """A number that gives ``values`` the variance of ``reference``; fitted before training, and fixed in it.

    It is a parameter without a gradient, because the published counts of parameters count it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, values: Tensor, reference: Tensor) -> Tensor:
        return values * self.factor


def fit_scale_factors(model: nn.Module, forward: Callable[[], object]) -> None:
    """Fits each factor where ``forward`` comes by it, to ``√(var(reference) / var(values))``.

    The factors before it are fitted by then. Where either does not vary, the factor is left as it is.
    """
    factors = [module for module in model.modules() if isinstance(module, ScaleFactor)]
    hooks = [factor.register_forward_pre_hook(_fit) for factor in factors]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()


def _fit(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    assert isinstance(module, ScaleFactor)
    values, reference = (_variance(tensor) for tensor in arguments)
    if values > 0 and reference > 0:
        module.factor.fill_(math.sqrt(reference / values))


def _variance(values: Tensor) -> float:
    """The mean over channels of their variances; 0 where that is nothing but rounding."""
    if not values.numel():
        return 0.0
    values = values.double()
    variance = float(values.var(dim=0, correction=0).mean())
    return variance if variance > _NOISE * float(values.square().mean()) else 0.0


class Basis:
    """What layers are told of the geometry, each in the channels that it has for it."""

    def __init__(self, edges: Edges, harmonics: Tensor, triplets: Tensor, triplet: Tensor, atom: Tensor) -> None:
        self.edges = edges
        self.harmonics = harmonics  # (atoms, width * sphericals, width) zero where both edges are the same
        self.triplets = triplets  # (edges, circular, sphericals) the radial part beside the harmonics
        self.triplet = triplet  # (edges, radial)
        self.atom = atom  # (edges, radial)


def circular_harmonics(directions: Tensor, count: int) -> Tensor:
    """``√((2l+1)/4π) P_l(cos φ)`` of the angle φ of each two edges of an atom, l < count.

    By the recurrence of Legendre polynomials in the product of two unit vectors: without an angle, all derivatives
    exist, collinear atoms included. directions (atoms, width, 3); returns (atoms, width * count, width).
    """
    atoms, width, _ = directions.shape
    cosine = directions @ directions.transpose(1, 2)  # (atoms, width, width)
    other = 1 - torch.eye(width, dtype=cosine.dtype, device=cosine.device)  # (width, width) an edge is no triplet
    legendre = [other.expand_as(cosine), cosine * other]
    for degree in range(1, count - 1):
        following = (2 * degree + 1) * cosine * legendre[degree] - degree * legendre[degree - 1]
        legendre.append(following / (degree + 1))
    scaled = [math.sqrt((2 * degree + 1) / (4 * math.pi)) * one for degree, one in enumerate(legendre[:count])]
    return torch.stack(scaled, dim=2).reshape(atoms, width * count, width)


class EdgeEmbedding(nn.Module):
    """A message from the two atoms of an edge and what is known of the edge."""

    def __init__(self, atom_channels: int, known: int, edge_channels: int) -> None:
        super().__init__()
        self.dense = Dense(2 * atom_channels + known, edge_channels)

    def forward(self, atoms: Tensor, known: Tensor, edges: Edges) -> Tensor:
        from_neighbor = atoms.index_select(0, edges.neighbors)  # (edges, atom_channels)
        from_center = atoms.index_select(0, edges.centers)
        message: Tensor = self.dense(torch.cat([from_neighbor, from_center, known], dim=1))
        return message  # (edges, edge_channels)


class TripletInteraction(nn.Module):
    """What an edge learns of the other edges of its centre, by distances and the angles between them."""

    def __init__(self, edge_channels: int, triplet_channels: int, radial: int, circular: int, bilinear: int) -> None:
        super().__init__()
        self.message = Dense(edge_channels, edge_channels)
        self.radial = Dense(radial, edge_channels, active=False)
        self.radial_scale = ScaleFactor()
        self.down = Dense(edge_channels, triplet_channels)
        self.bilinear = Dense(circular * triplet_channels, bilinear, active=False)
        self.sum_scale = ScaleFactor()
        self.up = Dense(bilinear, edge_channels)
        self.up_counter = Dense(bilinear, edge_channels)

    def forward(self, messages: Tensor, basis: Basis) -> Tensor:
        """(edges, edge_channels) from as many."""
        edges = basis.edges
        values = self.message(messages)  # (edges, edge_channels)
        values = self.down(self.radial_scale(values * self.radial(basis.triplet), values))  # (edges, triplet_channels)
        summed = basis.harmonics @ edges.to_table(values)  # (atoms, width * sphericals, triplet_channels)
        sphericals, channels = basis.triplets.shape[2], values.shape[1]
        summed = edges.from_table(summed.reshape(edges.atoms * edges.width, sphericals * channels))
        summed = basis.triplets @ summed.reshape(-1, sphericals, channels)  # (edges, circular, triplet_channels)
        heard = self.sum_scale(self.bilinear(summed.flatten(1)), values)  # (edges, bilinear)
        there: Tensor = self.up(heard)  # (edges, edge_channels)
        back: Tensor = self.up_counter(heard)  # (edges, edge_channels)
        return (there + back.index_select(0, edges.counters)) * _HALF_ROOT


class AtomUpdate(nn.Module):
    """What an atom makes of the messages along its edges."""

    def __init__(self, edge_channels: int, atom_channels: int, radial: int, residuals: int) -> None:
        super().__init__()
        self.radial = Dense(radial, edge_channels, active=False)
        self.scale = ScaleFactor()
        self.layers = nn.Sequential(
            Dense(edge_channels, atom_channels), *(Residual(atom_channels) for _ in range(residuals))
        )

    def forward(self, messages: Tensor, radial: Tensor, edges: Edges) -> Tensor:
        summed = scatter_sum(messages * self.radial(radial), edges.centers, edges.atoms)  # (atoms, edge_channels)
        updated: Tensor = self.layers(self.scale(summed, messages))
        return updated  # (atoms, atom_channels)


class Interaction(nn.Module):
    """One block: messages by triplets, atoms by messages, messages by atoms."""

    def __init__(
        self,
        triplets: TripletInteraction,
        update: AtomUpdate,
        embedding: EdgeEmbedding,
        edge_channels: int,
        residuals: tuple[int, int, int],
    ) -> None:
        super().__init__()
        before, after, last = residuals
        self.own = Dense(edge_channels, edge_channels)
        self.triplets = triplets
        self.before = nn.Sequential(*(Residual(edge_channels) for _ in range(before)))
        self.after = nn.Sequential(*(Residual(edge_channels) for _ in range(after)))
        self.update = update
        self.embedding = embedding
        self.last = nn.Sequential(*(Residual(edge_channels) for _ in range(last)))

    def forward(self, atoms: Tensor, messages: Tensor, basis: Basis) -> tuple[Tensor, Tensor]:
        heard = (self.own(messages) + self.triplets(messages, basis)) * _HALF_ROOT  # (edges, edge_channels)
        messages = self.after((messages + self.before(heard)) * _HALF_ROOT)
        atoms = (atoms + self.update(messages, basis.atom, basis.edges)) * _HALF_ROOT  # (atoms, atom_channels)
        told = self.last(self.embedding(atoms, messages, basis.edges))
        return atoms, (messages + told) * _HALF_ROOT


class EnergyReadout(nn.Module):
    """A part of the energy of each atom."""

    def __init__(self, update: AtomUpdate, atom_channels: int) -> None:
        super().__init__()
        self.update = update
        self.energy = Dense(atom_channels, 1, active=False)

    def forward(self, messages: Tensor, radial: Tensor, edges: Edges) -> Tensor:
        energies: Tensor = self.energy(self.update(messages, radial, edges))
        return energies[:, 0]  # (atoms,)


class ForceReadout(nn.Module):
    """A part of the force along each edge."""

    def __init__(self, edge_channels: int, radial: int, residuals: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Dense(edge_channels, edge_channels), *(Residual(edge_channels) for _ in range(residuals))
        )
        self.radial = Dense(radial, edge_channels, active=False)
        self.scale = ScaleFactor()
        self.force = Dense(edge_channels, 1, active=False)

    def forward(self, messages: Tensor, radial: Tensor) -> Tensor:
        values = self.layers(messages)  # (edges, edge_channels)
        forces: Tensor = self.force(self.scale(values * self.radial(radial), values))
        return forces  # (edges, 1)


def initialise(model: nn.Module, generator: torch.Generator | None) -> None:
    """Orthogonal weights whose rows have mean 0 and variance 1 / inputs, so that layers keep the variance."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.is_meta:
            with torch.no_grad():
                weight = nn.init.orthogonal_(module.weight, generator=generator)
                weight -= weight.mean(dim=1, keepdim=True)
                weight /= (weight.var(dim=1, keepdim=True, correction=0) * module.in_features + 1e-12).sqrt()
            if module.bias is not None:
                nn.init.zeros_(module.bias)
