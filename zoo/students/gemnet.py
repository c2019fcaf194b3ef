"""GemNet-T and GemNet-dT (Gasteiger, Becker, Günnemann, NeurIPS 2021, arXiv 2106.08903), the paper's students.

Messages live on edges and hear of each other by triplets: two edges of an atom and the angle between them. GemNet-T
differentiates its energy, GemNet-dT predicts a force along each edge beside it. Distances are seen through Gaussians
under a polynomial envelope, angles through Legendre polynomials, as in the models for the Open Catalyst data sets.
Every message is weighed by the envelope where it is used and layers have no bias, so that with all neighbours energies,
and direct forces too, have two continuous derivatives where an atom crosses the cutoff.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, sqrt
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from zoo.graph import Graph, collate
from zoo.ops import polynomial_envelope, scatter_sum
from zoo.potential import AtomOutputs, Traits
from zoo.students.base import Architecture, ElementEmbedding, Student
from zoo.students.gemnet_edges import Edges, find_edges
from zoo.students.gemnet_layers import (
    AtomUpdate,
    Basis,
    Dense,
    EdgeEmbedding,
    EnergyReadout,
    ForceReadout,
    Interaction,
    TripletInteraction,
    circular_harmonics,
    fit_scale_factors,
    initialise,
)

_POWER = 5  # of the envelope
_CALIBRATION_EDGES = 50_000  # about as many, of structures spread evenly over the training set


class GemNetConfig(Architecture):
    """Everything that decides the shape of a GemNet; by default that of the distillation paper's small one.

    ``max_neighbors`` (the paper: 50) keeps the nearest only, and of those one direction of each pair, by the order of
    atoms: where more are within the cutoff, energies jump when the nearest change and depend on the order of atoms, so
    that neither smoothness nor invariance under permutations is promised.
    """

    blocks: int = Field(4, ge=1, le=16)
    atom_channels: int = Field(64, ge=2, le=1024)
    edge_channels: int = Field(64, ge=2, le=1024)
    triplet_channels: int = Field(32, ge=2, le=256)
    bilinear_channels: int = Field(64, ge=2, le=1024)
    radial_channels: int = Field(16, ge=2, le=256)
    circular_channels: int = Field(16, ge=2, le=256)
    radials: int = Field(6, ge=2, le=512)
    sphericals: int = Field(7, ge=2, le=16)
    atom_residuals: int = Field(2, ge=0, le=4)  # after a sum over edges
    before_residuals: int = Field(1, ge=0, le=4)  # of messages, before the skip connection
    after_residuals: int = Field(1, ge=0, le=4)  # after it
    last_residuals: int = Field(1, ge=0, le=4)  # after messages heard of atoms
    max_neighbors: int | None = Field(None, ge=1)


class GemNetTConfig(GemNetConfig):
    """GemNet-T: forces are the gradient of the energy."""

    architecture: Literal["gemnet-t"] = "gemnet-t"


class GemNetDTConfig(GemNetConfig):
    """GemNet-dT: forces are predicted."""

    architecture: Literal["gemnet-dt"] = "gemnet-dt"

    @property
    def direct(self) -> bool:
        return True


class GemNetT(Student):
    """A conservative potential; its features are the embeddings of atoms after the last block."""

    config: GemNetConfig
    places: Tensor  # (radials,) 0, 1, 2, ... of the Gaussians, from no distance to the cutoff

    def __init__(self, config: GemNetConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config, generator)
        radial = config.radial_channels
        whole = config.max_neighbors is None
        self.traits = Traits(
            conservative=not config.direct,
            stress=not config.direct,
            permutation_invariant=whole,
            smoothness=2 if whole else -1,
            features=config.atom_channels,
        )
        self.embedding = ElementEmbedding(len(self.elements), config.atom_channels, config.teacher_channels)
        self.edge_embedding = EdgeEmbedding(config.atom_channels, config.radials, config.edge_channels)
        self.triplet_radial = Dense(config.radials, radial, active=False)
        self.triplet_circular = Dense(config.radials, config.circular_channels * config.sphericals, active=False)
        self.atom_radial = Dense(config.radials, radial, active=False)
        self.output_radial = Dense(config.radials, radial, active=False)
        self.blocks = nn.ModuleList(_interaction(config) for _ in range(config.blocks))
        self.readouts = nn.ModuleList(
            EnergyReadout(_atom_update(config), config.atom_channels) for _ in range(config.blocks + 1)
        )
        self.register_buffer("places", torch.arange(config.radials, dtype=torch.float64), persistent=False)
        self._initialise(generator)

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        edges = find_edges(graph, self.config.max_neighbors)
        directions, distances = _unit_vectors(graph, edges)
        radial = self._radial_basis(distances)  # (edges, radials)
        basis = self._project(radial, directions, edges)
        atoms = self.embed(graph.numbers)  # (atoms, atom_channels)
        messages = self.edge_embedding(atoms, radial, edges)  # (edges, edge_channels)
        history = [messages]
        for block in self.blocks:
            atoms, messages = block(atoms, messages, basis)
            history.append(messages)
        outputs = self._read_out(history, self.output_radial(radial), directions, edges)
        return AtomOutputs(outputs.energies * self.scale, atoms, _scaled(outputs.forces, self.scale))

    def _read_out(self, history: list[Tensor], radial: Tensor, directions: Tensor, edges: Edges) -> AtomOutputs:
        """Sums over what each block, and the first embedding, has to say."""
        parts = [read(messages, radial, edges) for read, messages in zip(self.readouts, history, strict=True)]
        return AtomOutputs(torch.stack(parts).sum(dim=0))  # (atoms,)

    def _radial_basis(self, distances: Tensor) -> Tensor:
        """(edges, radials) Gaussians as wide as they are apart, under the envelope."""
        fraction = distances / self.cutoff  # (edges, 1)
        offset = fraction * (self.config.radials - 1) - self.places  # (edges, radials)
        return polynomial_envelope(fraction, _POWER) * torch.exp(-0.5 * offset.square())

    def _project(self, radial: Tensor, directions: Tensor, edges: Edges) -> Basis:
        """The bases, once for all blocks."""
        sphericals = self.config.sphericals
        return Basis(
            edges,
            harmonics=circular_harmonics(edges.to_table(directions), sphericals),
            triplets=self.triplet_circular(radial).reshape(-1, self.config.circular_channels, sphericals),
            triplet=self.triplet_radial(radial),
            atom=self.atom_radial(radial),
        )

    def _calibrate(self, graphs: Sequence[Graph]) -> None:
        """Fits the scale factors, block after block, in one pass over a sample of the graphs."""
        stride = ceil(sum(graph.num_edges for graph in graphs) / _CALIBRATION_EDGES) or 1
        batch = collate(graphs[::stride]).to(self.device, self.dtype)
        fit_scale_factors(self, lambda: self.atomic_outputs(batch))

    def _initialise(self, generator: torch.Generator | None) -> None:
        initialise(self, generator)
        if not self.embedding.frozen:
            nn.init.uniform_(self.embedding.weight, -sqrt(3), sqrt(3), generator=generator)


class GemNetDT(GemNetT):
    """GemNet-T with a force along each edge; a force on an atom is their sum over its edges."""

    def __init__(self, config: GemNetConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config, generator)
        self.force_readouts = nn.ModuleList(
            ForceReadout(config.edge_channels, config.radial_channels, config.atom_residuals)
            for _ in range(config.blocks + 1)
        )
        initialise(self.force_readouts, generator)

    def _read_out(self, history: list[Tensor], radial: Tensor, directions: Tensor, edges: Edges) -> AtomOutputs:
        outputs = super()._read_out(history, radial, directions, edges)
        parts = [read(messages, radial) for read, messages in zip(self.force_readouts, history, strict=True)]
        along = torch.stack(parts).sum(dim=0)  # (edges, 1) eV/Å, positive away from the neighbour
        return AtomOutputs(outputs.energies, forces=scatter_sum(-along * directions, edges.centers, edges.atoms))


def _unit_vectors(graph: Graph, edges: Edges) -> tuple[Tensor, Tensor]:
    """Directions (edges, 3) and lengths (edges, 1) Å."""
    chosen = replace(graph, centers=edges.centers, neighbors=edges.neighbors, shifts=edges.shifts)
    vectors = chosen.edge_vectors()  # (edges, 3)
    distances = vectors.square().sum(dim=1, keepdim=True).sqrt()  # (edges, 1); edges have length
    return vectors / distances, distances


def _scaled(forces: Tensor | None, scale: Tensor) -> Tensor | None:
    return None if forces is None else forces * scale


def _atom_update(config: GemNetConfig) -> AtomUpdate:
    return AtomUpdate(config.edge_channels, config.atom_channels, config.radial_channels, config.atom_residuals)


def _interaction(config: GemNetConfig) -> Interaction:
    return Interaction(
        TripletInteraction(
            config.edge_channels,
            config.triplet_channels,
            config.radial_channels,
            config.circular_channels,
            config.bilinear_channels,
        ),
        _atom_update(config),
        EdgeEmbedding(config.atom_channels, config.edge_channels, config.edge_channels),
        config.edge_channels,
        (config.before_residuals, config.after_residuals, config.last_residuals),
    )
