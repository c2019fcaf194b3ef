"""Silicon after Stillinger and Weber: a closed-form teacher that needs no package and no weights.

``E = Σ_pairs ε A (B (σ/r)⁴ − 1) exp(1/(r/σ − a)) + Σ_triplets ε λ (cos θ + 1/3)² exp(γ/(r₁/σ − a) + γ/(r₂/σ − a))``
(Phys. Rev. B 31, 5262 (1985), eqs. 2.3 to 2.7, with q = 0), ε scaled to the cohesive energy of 4.3366 eV as
Balamane, Halicioglu and Tiller do (Phys. Rev. B 46, 2250 (1992)). All derivatives vanish at the cutoff.
"""

import hashlib
import json

import torch
from torch import Tensor, nn

from zoo.graph import Graph
from zoo.ops import scatter_sum
from zoo.potential import Potential, Traits
from zoo.teachers.base import Teacher

_CONSTANTS = {
    "epsilon_eV": 2.1683,
    "sigma_A": 2.0951,
    "a": 1.80,
    "A": 7.049556277,
    "B": 0.6022245584,
    "lambda": 21.0,
    "gamma": 1.20,
}
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
        vectors = graph.edge_vectors() / _CONSTANTS["sigma_A"]  # (edges, 3)
        distance = vectors.square().sum(dim=-1).sqrt()  # (edges,)
        gap = distance - _CONSTANTS["a"]
        inside = gap < -_NEAREST
        decay = 1 / torch.where(inside, gap, torch.full_like(gap, -_NEAREST))  # (edges,)
        pairs = _CONSTANTS["A"] * (_CONSTANTS["B"] * distance.pow(-4) - 1) * decay.exp()
        pairs = torch.where(inside, pairs, torch.zeros_like(pairs)) / 2  # each pair is two edges
        fade = torch.where(inside, (_CONSTANTS["gamma"] * decay).exp(), torch.zeros_like(decay))
        first, second = _triplets(graph)
        cosine = (vectors[first] * vectors[second]).sum(dim=-1) / (distance[first] * distance[second])
        triplets = _CONSTANTS["lambda"] * (cosine + 1 / 3).square() * fade[first] * fade[second]  # (triplets,)
        per_edge = pairs.index_add(0, first, triplets)
        return self.epsilon * scatter_sum(per_edge, graph.centers, graph.num_atoms)


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


def load(name: str, dtype: torch.dtype, device: torch.device | str) -> Teacher:
    """The teacher ``stillinger-weber/teacher``."""
    return Teacher(
        name=name,
        potential=StillingerWeber().to(device, dtype).eval(),
        weights_sha256=hashlib.sha256(json.dumps(_CONSTANTS, sort_keys=True).encode()).hexdigest(),
        package="zoo",
        level_of_theory="Stillinger-Weber 1985, empirical",
        licence_code="MIT",
        licence_weights="CC0-1.0",
        citation="F. H. Stillinger, T. A. Weber, Phys. Rev. B 31, 5262 (1985), doi:10.1103/PhysRevB.31.5262",
    )
