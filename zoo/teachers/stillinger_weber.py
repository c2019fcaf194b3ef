"""Silicon after Stillinger and Weber: closed-form teachers that need no package and no weights.

``E = Σ_pairs ε A (B (σ/r)⁴ − 1) exp(1/(r/σ − a)) + Σ_triplets ε λ (cos θ + 1/3)² exp(γ/(r₁/σ − a) + γ/(r₂/σ − a))``
(Phys. Rev. B 31, 5262 (1985), eqs. 2.3 to 2.7, with q = 0), ε scaled to the cohesive energy of 4.3366 eV as
Balamane, Halicioglu and Tiller do (Phys. Rev. B 46, 2250 (1992)). All derivatives vanish at the cutoff.

The direct teacher stands for models that predict forces and have no energy. To the forces of the above it adds what no
energy is behind, ``ΔF_i = (κ ε/σ) (ρ_i − ρ₀) Σ_j f(r_ij) r_ij/σ`` with ``ρ_i = Σ_j f(r_ij)`` and f of the three-body
term: an atom is drawn by its neighbours where it has more than four, and they are not drawn back alike.
"""

import hashlib
import json

import torch
from torch import Tensor, nn

from zoo.graph import Graph
from zoo.ops import scatter_sum
from zoo.potential import AtomOutputs, Potential, Traits
from zoo.teachers.base import Teacher
from zoo.teachers.inputs import check_elements

_CONSTANTS = {
    "epsilon_eV": 2.1683,
    "sigma_A": 2.0951,
    "a": 1.80,
    "A": 7.049556277,
    "B": 0.6022245584,
    "lambda": 21.0,
    "gamma": 1.20,
}
_DIRECT = {"kappa": 30.0, "rho_0": 0.68}  # of the direct teacher; ρ₀ is what four bonds of silicon make
_NEAREST = 1e-3  # of σ: where exp(1/(r/σ − a)) has long vanished in any precision


class StillingerWeber(Potential):
    """The potential of Stillinger and Weber for silicon, on a graph."""

    traits = Traits(smoothness=100)
    elements = (14,)
    cutoff = _CONSTANTS["a"] * _CONSTANTS["sigma_A"]  # 3.77118 Å

    def __init__(self) -> None:
        super().__init__()
        self.epsilon = nn.Parameter(torch.tensor(_CONSTANTS["epsilon_eV"], dtype=torch.float64), requires_grad=False)

    def atomic_energies(self, graph: Graph) -> Tensor:
        """Raises DomainError for another element than silicon."""
        check_elements(graph, self.elements, "Stillinger-Weber's silicon")
        vectors, distance = _edges(graph)
        inside, decay = _decay(distance)
        pairs = _CONSTANTS["A"] * (_CONSTANTS["B"] * distance.pow(-4) - 1) * decay.exp()
        pairs = torch.where(inside, pairs, torch.zeros_like(pairs)) / 2  # each pair is two edges
        fade = _fade(inside, decay)
        first, second = _triplets(graph)
        cosine = (vectors[first] * vectors[second]).sum(dim=-1) / (distance[first] * distance[second])
        triplets = _CONSTANTS["lambda"] * (cosine + 1 / 3).square() * fade[first] * fade[second]  # (triplets,)
        per_edge = pairs.index_add(0, first, triplets)
        return self.epsilon * scatter_sum(per_edge, graph.centers, graph.num_atoms)


class DirectStillingerWeber(StillingerWeber):
    """The same forces in closed form, and a small part beside them that is not a gradient; it has no energy."""

    traits = Traits(conservative=False, smoothness=100, energies=False, stress=False, atomic_energies=False)

    def atomic_energies(self, graph: Graph) -> Tensor:
        return self.atomic_outputs(graph).energies

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        """Raises DomainError for another element than silicon."""
        check_elements(graph, self.elements, "Stillinger-Weber's silicon")
        vectors, distance = _edges(graph)
        inside, decay = _decay(distance)
        slopes = _pair_slopes(vectors, distance, inside, decay) + _triplet_slopes(
            graph, vectors, distance, inside, decay
        )  # (edges, 3) of the energy by each edge's vector
        size = graph.num_atoms
        forces = scatter_sum(slopes, graph.centers, size) - scatter_sum(slopes, graph.neighbors, size)
        fade = _fade(inside, decay)
        density = scatter_sum(fade, graph.centers, size)  # (atoms,)
        pull = (density - _DIRECT["rho_0"])[:, None] * scatter_sum(
            fade[:, None] * vectors, graph.centers, size
        )  # (atoms, 3)
        energies = torch.full_like(density, torch.nan)
        return AtomOutputs(energies, forces=(forces + _DIRECT["kappa"] * pull) * (self.epsilon / _CONSTANTS["sigma_A"]))


def _edges(graph: Graph) -> tuple[Tensor, Tensor]:
    """Vectors (edges, 3) and lengths (edges,) in units of σ."""
    vectors = graph.edge_vectors() / _CONSTANTS["sigma_A"]
    return vectors, vectors.square().sum(dim=-1).sqrt()


def _decay(distance: Tensor) -> tuple[Tensor, Tensor]:
    """(edges,) Which edges count, and ``1/(r/σ − a)`` of those."""
    gap = distance - _CONSTANTS["a"]
    inside = gap < -_NEAREST
    return inside, 1 / torch.where(inside, gap, torch.full_like(gap, -_NEAREST))


def _fade(inside: Tensor, decay: Tensor) -> Tensor:
    """(edges,) ``exp(γ/(r/σ − a))``"""
    return torch.where(inside, (_CONSTANTS["gamma"] * decay).exp(), torch.zeros_like(decay))


def _pair_slopes(vectors: Tensor, distance: Tensor, inside: Tensor, decay: Tensor) -> Tensor:
    """(edges, 3) Derivatives of half a pair's energy, over ε, by its vector."""
    strength = _CONSTANTS["B"] * distance.pow(-4) - 1
    slope = -4 * _CONSTANTS["B"] * distance.pow(-5) - strength * decay.square()
    slope = _CONSTANTS["A"] / 2 * torch.where(inside, slope * decay.exp(), torch.zeros_like(decay))
    return (slope / distance)[:, None] * vectors


def _triplet_slopes(graph: Graph, vectors: Tensor, distance: Tensor, inside: Tensor, decay: Tensor) -> Tensor:
    """(edges, 3) Derivatives of the energies of an edge's triplets, over ε, by its vector."""
    fade = _fade(inside, decay)
    unit = vectors / distance[:, None]
    first, second = _triplets(graph)
    cosine = (unit[first] * unit[second]).sum(dim=-1, keepdim=True)  # (triplets, 1)
    bend = cosine + 1 / 3
    weight = _CONSTANTS["lambda"] * (fade[first] * fade[second])[:, None]  # (triplets, 1)
    slopes = torch.zeros_like(vectors)
    for one, other in ((first, second), (second, first)):
        turning = 2 * bend * (unit[other] - cosine * unit[one]) / distance[one, None]
        fading = bend.square() * _CONSTANTS["gamma"] * decay[one, None].square() * unit[one]
        slopes = slopes.index_add(0, one, weight * (turning - fading))
    return slopes


def _triplets(graph: Graph) -> tuple[Tensor, Tensor]:
    """Pairs of edges that share a centre, each pair once: two (triplets,) tensors of edges."""
    counts = torch.bincount(graph.centers, minlength=graph.num_atoms)
    order = graph.centers.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    per_edge = counts[graph.centers[order]]  # (edges,) edges at the same centre
    first = torch.arange(graph.num_edges, device=order.device).repeat_interleave(per_edge)
    offset = torch.arange(first.shape[0], device=order.device) - (per_edge.cumsum(0) - per_edge)[first]
    second = starts[graph.centers[order]][first] + offset
    once = second > first
    return order[first[once]], order[second[once]]


def names() -> tuple[str, ...]:
    """The teachers of this file."""
    return ("stillinger-weber/teacher", "stillinger-weber/direct-teacher")


def traits(name: str) -> Traits:
    """What a teacher gives."""
    return DirectStillingerWeber.traits if name == "stillinger-weber/direct-teacher" else StillingerWeber.traits


def weights(name: str) -> None:
    """No file: all its numbers are here."""


def load(name: str, dtype: torch.dtype, device: torch.device | str) -> Teacher:
    """The teachers ``stillinger-weber/teacher`` and ``stillinger-weber/direct-teacher``."""
    direct = name == "stillinger-weber/direct-teacher"
    constants = _CONSTANTS | _DIRECT if direct else _CONSTANTS
    potential = DirectStillingerWeber() if direct else StillingerWeber()
    return Teacher(
        name=name,
        potential=potential.to(device, dtype).eval(),
        weights_sha256=hashlib.sha256(json.dumps(constants, sort_keys=True).encode()).hexdigest(),
        package="zoo",
        level_of_theory="Stillinger-Weber 1985, empirical" + (", with forces beyond its energy" if direct else ""),
        licence_code="MIT",
        licence_weights="CC0-1.0",
        citation="F. H. Stillinger, T. A. Weber, Phys. Rev. B 31, 5262 (1985), doi:10.1103/PhysRevB.31.5262",
    )
