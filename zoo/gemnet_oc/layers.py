"""The layers of GemNet-OC that know no geometry, under the names of the published weights."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.gemnet_oc.activation import scaled_silu
from zoo.gemnet_oc.graphs import Edges
from zoo.ops import scatter_sum

HALF_ROOT = 1 / math.sqrt(2.0)  # keeps the variance of a sum of two
THIRD_ROOT = 1 / math.sqrt(3.0)  # and of three


class _Frozen(torch.autograd.Function):
    """``x Wᵀ`` of a constant W, of which nothing but W is kept.

    In forward mode PyTorch multiplies x by the tangent of W as well, though there is none: half as much time again.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight)
        ctx.save_for_forward(weight)
        return nn.functional.linear(values, weight)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, None]:
        return None if upstream[0] is None else _multiply_frozen(upstream[0], ctx.saved_tensors[0].t()), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        assert tangents[1] is None, "a frozen weight has a tangent"
        return None if tangents[0] is None else _multiply_frozen(tangents[0], ctx.saved_tensors[0])


_multiply_frozen: Callable[[Tensor, Tensor], Tensor] = _Frozen.apply


class Dense(nn.Module):
    """A linear layer without bias, so that zero stays zero, and a scaled SiLU after it if it is ``active``."""

    def __init__(self, inputs: int, outputs: int, *, active: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.active = active

    def forward(self, values: Tensor) -> Tensor:
        weight = self.linear.weight
        mixed = self.linear(values) if weight.requires_grad else _multiply_frozen(values, weight)
        return scaled_silu(mixed) if self.active else mixed


class Residual(nn.Module):
    """``(x + f(f(x))) / √2``"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense_mlp = nn.Sequential(Dense(channels, channels), Dense(channels, channels))

    def forward(self, values: Tensor) -> Tensor:
        change: Tensor = self.dense_mlp(values)
        return (values + change) * HALF_ROOT


def residuals(channels: int, count: int) -> list[nn.Module]:
    """As many residual layers."""
    return [Residual(channels) for _ in range(count)]


class ScaleFactor(nn.Module):
    """A number, fitted before training, that keeps the variance; 0 stands for one that was not, and changes nothing."""

    scale_factor: Tensor  # ()

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale_factor", torch.ones(()))

    def forward(self, values: Tensor) -> Tensor:
        return values * torch.where(self.scale_factor == 0, torch.ones_like(self.scale_factor), self.scale_factor)


class EdgeEmbedding(nn.Module):
    """A message from the two atoms of an edge and what is known of the edge."""

    def __init__(self, atom_channels: int, known: int, edge_channels: int) -> None:
        super().__init__()
        self.dense = Dense(2 * atom_channels + known, edge_channels)

    def forward(self, atoms: Tensor, known: Tensor, edges: Edges) -> Tensor:
        from_source = atoms.index_select(0, edges.sources)  # (edges, atom_channels)
        from_target = atoms.index_select(0, edges.targets)
        message: Tensor = self.dense(torch.cat([from_source, from_target, known], dim=1))
        return message  # (edges, edge_channels)


class AtomUpdate(nn.Module):
    """What an atom makes of the messages that end at it."""

    def __init__(self, edge_channels: int, atom_channels: int, radial: int, count: int) -> None:
        super().__init__()
        self.dense_rbf = Dense(radial, edge_channels, active=False)
        self.scale_sum = ScaleFactor()
        self.layers = nn.Sequential(Dense(edge_channels, atom_channels), *residuals(atom_channels, count))

    def update(self, messages: Tensor, radial: Tensor, edges: Edges) -> Tensor:
        """(atoms, atom_channels) from messages (edges, edge_channels) and radial (edges, emb_size_rbf)."""
        summed = scatter_sum(messages * self.dense_rbf(radial), edges.targets, edges.atoms)  # (atoms, edge_channels)
        updated: Tensor = self.layers(self.scale_sum(summed))
        return updated
