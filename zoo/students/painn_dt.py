"""PaiNN with a head for forces, as the distillation paper configures it (Schütt, Unke, Gastegger, arXiv 2102.03150).

Scalars and vectors of atoms, messages and updates are those of PaiNN; forces come from the vectors, by two gated
equivariant blocks (the paper's fig. 3), and not from the energy. Beyond the paper, as in the Open Catalyst models:
distances are seen through Gaussians, scalars are normalised before they are sent, SiLU is scaled, and a fitted factor
after each layer keeps scalars near one.

In those models something jumps and something is sharp: the bias of a filter stays where the envelope is zero, so an
atom that crosses the cutoff leaves a step in energy and forces, and lengths of vectors have a cusp at zero, where a
symmetric site has them. By default both are mended here, at the same number of parameters; ``smooth: false`` computes
as the models do.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from zoo.graph import Graph, collate
from zoo.ops import polynomial_envelope, safe_norm, scatter_sum
from zoo.potential import AtomOutputs, Traits
from zoo.students.base import Architecture, ElementEmbedding, Student
from zoo.students.gemnet_edges import find_edges

_POWER = 5  # of the envelope
_SOFTNESS = 1.0  # ε of the length of a vector, in the square of its own units, where all is smooth
_OFFSET = 1e-8  # the same in updates as published, with the length sqrt(ε) left at zero
_LEAST_VARIANCE = 1e-5  # of scalars that are normalised
_SILU_GAIN = 1 / 0.6  # keeps the variance of what goes through SiLU
_CALIBRATION_EDGES = 200_000  # about as many, of structures spread evenly over the training set


class PaiNNDTConfig(Architecture):
    """Everything that decides the shape of a direct-force PaiNN; by default that of the paper's small one.

    ``max_neighbors`` (the paper: 50) keeps the nearest only, and of those one direction of each pair, by the order of
    atoms: then neither smoothness nor the invariance under permutations is promised in dense systems.
    """

    architecture: Literal["painn-dt"] = "painn-dt"
    channels: int = Field(128, ge=2, le=2048)
    layers: int = Field(4, ge=1, le=32)
    radials: int = Field(128, ge=2, le=512)
    cutoff: float = Field(12.0, gt=0, le=20)  # Å
    max_neighbors: int | None = Field(None, ge=1)
    smooth: bool = True  # false: with the steps and cusps of the published models

    @property
    def direct(self) -> bool:
        return True


class PaiNNDT(Student):
    """A direct-force potential; its features are the scalars after the last layer."""

    config: PaiNNDTConfig
    gaussians: Tensor  # (radials,) their centres, in units of the cutoff

    def __init__(self, config: PaiNNDTConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config, generator)
        channels, half = config.channels, config.channels // 2
        whole = config.max_neighbors is None
        self.traits = Traits(
            conservative=False,
            stress=False,
            permutation_invariant=whole,
            smoothness=2 if whole and config.smooth else -1,
            features=channels,
        )
        self.embedding = ElementEmbedding(len(self.elements), channels, config.teacher_channels)
        self.messages = nn.ModuleList(Message(channels, config.radials) for _ in range(config.layers))
        self.updates = nn.ModuleList(Update(channels, smooth=config.smooth) for _ in range(config.layers))
        # parameters without a gradient, because the published counts of parameters count them
        self.factors = nn.Parameter(torch.ones(config.layers), requires_grad=False)
        self.energy_readout = nn.Sequential(nn.Linear(channels, half), ScaledSiLU(), nn.Linear(half, 1))
        self.force_readout = nn.ModuleList(
            [Gate(channels, half, smooth=config.smooth), Gate(half, 1, smooth=config.smooth)]
        )
        self.register_buffer("gaussians", torch.linspace(0, 1, config.radials, dtype=torch.float64), persistent=False)
        self._initialise(generator)

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        scalars, vectors = self._layers(graph)
        energies = self.energy_readout(scalars)[:, 0]  # (atoms,)
        gates = scalars
        for block in self.force_readout:
            gates, vectors = block(gates, vectors)
        forces = vectors[:, :, 0].t()  # (atoms, 3)
        return AtomOutputs(energies * self.scale, scalars, forces * self.scale)

    def _layers(self, graph: Graph, *, fit: bool = False) -> tuple[Tensor, Tensor]:
        """Scalars (atoms, channels) and vectors (3, atoms, channels) after the last layer."""
        graph = _nearest(graph, self.config.max_neighbors)
        radial, fade, direction = self._basis(graph)
        scalars = self.embed(graph.numbers)  # (atoms, channels)
        vectors = scalars.new_zeros(3, graph.num_atoms, self.config.channels)
        for layer, (message, update) in enumerate(zip(self.messages, self.updates, strict=True)):
            scalars, vectors = message(scalars, vectors, radial, fade, direction, graph)
            scalars, vectors = update(scalars / math.sqrt(2), vectors)
            if fit:
                self.factors[layer] = scalars.square().mean().rsqrt()
            scalars = scalars * self.factors[layer]
        return scalars, vectors

    def _basis(self, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
        """Gaussians (edges, radials) under the envelope, what fades the filters' bias (edges, 1), and directions."""
        edges = graph.edge_vectors()  # (edges, 3)
        distance = edges.square().sum(dim=-1, keepdim=True).sqrt()  # (edges, 1); edges have length
        fraction = distance / self.cutoff
        envelope = polynomial_envelope(fraction, _POWER)
        width = self.config.radials - 1  # as wide as they are apart
        radial = envelope * torch.exp(-0.5 * ((fraction - self.gaussians) * width).square())
        fade = envelope if self.config.smooth else torch.ones_like(envelope)
        return radial, fade, (edges / distance).t().unsqueeze(2)  # (3, edges, 1)

    def _calibrate(self, graphs: Sequence[Graph]) -> None:
        """Fits the factors, layer after layer: they bring the mean square of the scalars to one.

        The Open Catalyst code fits the variance over atoms, which is nothing where all atoms are alike.
        """
        stride = math.ceil(sum(graph.num_edges for graph in graphs) / _CALIBRATION_EDGES) or 1
        with torch.no_grad():
            self._layers(collate(graphs[::stride]).to(self.device, self.dtype), fit=True)

    def _initialise(self, generator: torch.Generator | None) -> None:
        """Weights by Glorot and Bengio (AISTATS 2010), biases zero, embeddings uniform with variance one."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if not self.embedding.frozen:
            nn.init.uniform_(self.embedding.weight, -math.sqrt(3), math.sqrt(3), generator=generator)


class ScaledSiLU(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.silu(values) * _SILU_GAIN


class Norm(nn.Module):
    """Layer normalisation, ``(s − mean) / sqrt(variance + ε)`` over channels, in operations of its own.

    The gradient of the second backward of torch's is wrong (2.13, found by the contract), and columns of a Jacobian in
    a loss need it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, values: Tensor) -> Tensor:
        centred = values - values.mean(dim=-1, keepdim=True)
        deviation = (centred.square().mean(dim=-1, keepdim=True) + _LEAST_VARIANCE).sqrt()
        return centred / deviation * self.weight + self.bias


class Message(nn.Module):
    """What an atom learns of its neighbours: ``φ(s_j) ∘ W(r_ij)``, its parts for s, for v and along the edge."""

    def __init__(self, channels: int, radials: int) -> None:
        super().__init__()
        self.channels = channels
        self.norm = Norm(channels)
        self.phi = nn.Sequential(nn.Linear(channels, channels), ScaledSiLU(), nn.Linear(channels, 3 * channels))
        self.filter = nn.Linear(radials, 3 * channels)

    def forward(
        self, scalars: Tensor, vectors: Tensor, radial: Tensor, fade: Tensor, direction: Tensor, graph: Graph
    ) -> tuple[Tensor, Tensor]:
        filters = nn.functional.linear(radial, self.filter.weight) + fade * self.filter.bias  # (edges, 3 * channels)
        sent = self.phi(self.norm(scalars)).index_select(0, graph.neighbors) * filters
        to_scalars, along_vectors, along_edge = sent.split(self.channels, dim=1)  # (edges, channels) each
        along_vectors = along_vectors / math.sqrt(3)
        size = graph.num_atoms
        summed = [
            scatter_sum(
                vectors[axis].index_select(0, graph.neighbors) * along_vectors + direction[axis] * along_edge,
                graph.centers,
                size,
            )
            for axis in range(3)
        ]
        to_vectors = torch.stack(summed) / math.sqrt(self.channels)  # (3, atoms, channels)
        return scalars + scatter_sum(to_scalars, graph.centers, size), vectors + to_vectors


class Update(nn.Module):
    """What an atom makes of itself: lengths and products of its vectors, gated by its scalars."""

    def __init__(self, channels: int, *, smooth: bool) -> None:
        super().__init__()
        self.channels, self.smooth = channels, smooth
        self.mix = nn.Linear(channels, 2 * channels, bias=False)
        self.gate = nn.Sequential(nn.Linear(2 * channels, channels), ScaledSiLU(), nn.Linear(channels, 3 * channels))

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        left, right = self.mix(vectors).split(self.channels, dim=2)  # (3, atoms, channels) each
        length = _soft_length(right) if self.smooth else (right.square().sum(dim=0) + _OFFSET).sqrt()
        gates = self.gate(torch.cat([scalars, length], dim=1))  # (atoms, 3 * channels)
        for_scalars, for_product, for_vectors = gates.split(self.channels, dim=1)
        product = (left * right).sum(dim=0) / math.sqrt(self.channels)  # (atoms, channels)
        return scalars + (for_scalars + for_product * product) / math.sqrt(2), vectors + left * for_vectors


class Gate(nn.Module):
    """A gated equivariant block: fewer scalars, and fewer vectors that scalars weigh."""

    def __init__(self, inputs: int, outputs: int, *, smooth: bool) -> None:
        super().__init__()
        self.outputs, self.smooth = outputs, smooth
        self.measured = nn.Linear(inputs, inputs, bias=False)
        self.passed = nn.Linear(inputs, outputs, bias=False)
        self.gate = nn.Sequential(nn.Linear(2 * inputs, inputs), ScaledSiLU(), nn.Linear(inputs, 2 * outputs))
        self.activation = ScaledSiLU()

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        measured = self.measured(vectors)  # (3, atoms, inputs)
        length = _soft_length(measured) if self.smooth else _sharp_length(measured)
        new, weights = self.gate(torch.cat([scalars, length], dim=1)).split(self.outputs, dim=1)
        return self.activation(new), weights * self.passed(vectors)


def _soft_length(vectors: Tensor) -> Tensor:
    """(3, atoms, channels) -> (atoms, channels)"""
    return safe_norm(vectors.permute(1, 2, 0), _SOFTNESS)


def _sharp_length(vectors: Tensor) -> Tensor:
    """(3, atoms, channels) -> (atoms, channels) The Euclidean length; where it is zero, so are its derivatives."""
    squares = vectors.square().sum(dim=0)
    safe = torch.where(squares > 0, squares, torch.ones_like(squares))
    return torch.where(squares > 0, safe.sqrt(), torch.zeros_like(squares))


def _nearest(graph: Graph, count: int | None) -> Graph:
    """The graph, or what the nearest ``count`` neighbours of each atom leave of its edges."""
    if count is None:
        return graph
    edges = find_edges(graph, count)
    return replace(graph, centers=edges.centers, neighbors=edges.neighbors, shifts=edges.shifts)
