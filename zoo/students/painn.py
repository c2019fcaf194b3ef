"""PaiNN, the polarizable atom interaction network (Schütt, Unke, Gastegger, ICML 2021, arXiv 2102.03150).

Scalars ``s`` and vectors ``v`` on each atom; layers of a message over neighbours (eqs. 7 and 8) and an update of each
atom (eqs. 9 and 10). Two things differ from the paper, both for the sake of second derivatives: the cutoff is a
polynomial that vanishes with two derivatives where the paper's cosine vanishes with one, and the length of a vector
is smooth where it is zero, as in a perfect crystal it is on every site.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from zoo.graph import Graph
from zoo.ops import bessel_basis, polynomial_envelope, safe_norm, scatter_sum
from zoo.potential import AtomOutputs, Traits
from zoo.students.base import Architecture, ElementEmbedding, Student

_SOFTNESS = 1.0  # ε of the length of a vector, in the square of its own units


class PaiNNConfig(Architecture):
    """Everything that decides the shape of a PaiNN."""

    architecture: Literal["painn"] = "painn"
    channels: int = Field(64, ge=1, le=2048)
    layers: int = Field(2, ge=1, le=32)
    radials: int = Field(16, ge=1, le=512)


class PaiNN(Student):
    """A conservative potential whose atomic energies come from PaiNN's scalars, which are its features too."""

    config: PaiNNConfig
    average_neighbors: Tensor  # () sums over neighbours are divided by its root
    frequencies: Tensor  # (radials,)

    def __init__(self, config: PaiNNConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config, generator)
        channels = config.channels
        self.traits = Traits(features=channels)
        self.embedding = ElementEmbedding(len(self.elements), channels, config.teacher_channels)
        self.messages = nn.ModuleList(
            Message(channels, config.radials, first=layer == 0) for layer in range(config.layers)
        )
        self.updates = nn.ModuleList(Update(channels) for _ in range(config.layers))
        self.readout = nn.Sequential(nn.Linear(channels, channels // 2 + 1), nn.SiLU(), nn.Linear(channels // 2 + 1, 1))
        self.register_buffer("average_neighbors", torch.tensor(1.0))
        self.register_buffer(
            "frequencies", torch.pi * torch.arange(1, config.radials + 1, dtype=torch.float64), persistent=False
        )
        _initialise(self, generator)

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        vectors = graph.edge_vectors()  # (edges, 3)
        distance = vectors.square().sum(dim=-1, keepdim=True).sqrt()  # (edges, 1); edges have length
        direction = (vectors / distance).t().unsqueeze(2)  # (3, edges, 1)
        radial = bessel_basis(distance, self.frequencies, self.cutoff)  # (edges, radials)
        envelope = polynomial_envelope(distance / self.cutoff) / self.average_neighbors.sqrt()
        radial = radial * envelope

        scalars = self.embed(graph.numbers)  # (atoms, channels)
        vector_features = scalars.new_zeros(3, graph.num_atoms, self.config.channels)
        for message, update in zip(self.messages, self.updates, strict=True):
            scalars, vector_features = message(scalars, vector_features, radial, direction, graph)
            scalars, vector_features = update(scalars, vector_features)
        return AtomOutputs(energies=self.readout(scalars)[:, 0] * self.scale, features=scalars)

    def _calibrate(self, graphs: Sequence[Graph]) -> None:
        edges = sum(graph.num_edges for graph in graphs)
        atoms = sum(graph.num_atoms for graph in graphs)
        self.average_neighbors.fill_(max(edges / atoms, 1.0))


class Message(nn.Module):
    """What an atom learns of its neighbours: ``φ(s_j) ∘ W(r_ij)``, its parts for s, along the edge and for v."""

    def __init__(self, channels: int, radials: int, *, first: bool) -> None:
        super().__init__()
        parts = 2 if first else 3  # in the first layer vectors are zero, and so is their part of the message
        self.phi = nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, parts * channels))
        self.filters = nn.ModuleList(nn.Linear(radials, channels, bias=False) for _ in range(parts))

    def forward(
        self, scalars: Tensor, vectors: Tensor, radial: Tensor, direction: Tensor, graph: Graph
    ) -> tuple[Tensor, Tensor]:
        by_atom = self.phi(scalars).chunk(len(self.filters), dim=1)  # parts of (atoms, channels)
        to_scalars, along_edge, *along_vectors = (
            part.index_select(0, graph.neighbors) * filter_(radial)  # (edges, channels)
            for part, filter_ in zip(by_atom, self.filters, strict=True)
        )
        size = graph.num_atoms
        summed = []
        for axis in range(3):
            to_vector = direction[axis] * along_edge  # (edges, channels)
            for weight in along_vectors:
                to_vector = to_vector + vectors[axis].index_select(0, graph.neighbors) * weight
            summed.append(scatter_sum(to_vector, graph.centers, size))
        return scalars + scatter_sum(to_scalars, graph.centers, size), vectors + torch.stack(summed)


class Update(nn.Module):
    """What an atom makes of itself: lengths and products of its vectors, gated by its scalars."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.mix = nn.Linear(channels, 2 * channels, bias=False)
        self.gate = nn.Sequential(nn.Linear(2 * channels, channels), nn.SiLU(), nn.Linear(channels, 3 * channels))

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        left, right = self.mix(vectors).split(self.channels, dim=2)  # (3, atoms, channels) each
        length = safe_norm(right.permute(1, 2, 0), _SOFTNESS)  # (atoms, channels)
        gates = self.gate(torch.cat([scalars, length], dim=1))  # (atoms, 3 * channels)
        for_scalars, for_product, for_vectors = gates.split(self.channels, dim=1)
        product = (left * right).sum(dim=0)  # (atoms, channels)
        return scalars + for_scalars + for_product * product, vectors + left * for_vectors


def _initialise(model: nn.Module, generator: torch.Generator | None) -> None:
    """Weights by Glorot and Bengio (AISTATS 2010), biases zero, embeddings normal."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ElementEmbedding) and not module.frozen:
            nn.init.normal_(module.weight, generator=generator)
