"""Derivatives of an energy, written once: for labels, for losses, for engines and for tests.

All are exact (automatic differentiation). A Hessian-vector product is taken in one of two orders, of the same numbers:

- reverse over reverse, the gradient of ⟨forces, v⟩: each further product costs least, and what is made can be
  differentiated again, for a loss; but all that the gradient of the energy is made of is kept. The default.
- forward over reverse, the derivative of the gradient of the energy along v: each product is a pass of its own, of
  which the potential may keep as little as of forces. For large potentials (``Potential.products_in_forward_mode``).

One product of a batch serves all its structures, for their Hessians do not mix. Where forces are predicted directly,
minus their Jacobian stands in the place of the Hessian; its rows, in reverse mode, and columns, in forward mode or in
reverse mode twice, differ.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from zoo.graph import Graph
from zoo.ops import scatter_sum
from zoo.recompute import leaf_of

Side = Literal["rows", "columns", "symmetric"]


def differentiable(graph: Graph, *, strain: bool) -> tuple[Graph, Tensor, Tensor | None]:
    """The graph as a function of its positions and, if asked, of a symmetric strain of each structure.

    Returns the graph, the positions (atoms, 3) and the strain (structures, 3, 3) or None, to differentiate by. Where
    positions have a tangent, so has the graph.
    """
    positions, moved = leaf_of(graph.positions)
    if not strain:
        return graph.with_geometry(moved, graph.cells), positions, None
    epsilon = torch.zeros_like(graph.cells).requires_grad_()
    symmetric = (epsilon + epsilon.transpose(1, 2)) / 2  # (structures, 3, 3)
    by_atom = symmetric.index_select(0, graph.structure)  # (atoms, 3, 3)
    strained = moved + (moved.unsqueeze(1) @ by_atom)[:, 0, :]
    return graph.with_geometry(strained, graph.cells + graph.cells @ symmetric), positions, epsilon


def forces_and_stress(
    energy: Tensor, graph: Graph, positions: Tensor, strain: Tensor | None, *, create_graph: bool
) -> tuple[Tensor, Tensor | None]:
    """``F = −∂E/∂r`` (atoms, 3) eV/Å and ``σ = ∂E/∂ε / V`` (structures, 3, 3) eV/Å³, ASE's sign."""
    inputs = [positions] if strain is None else [positions, strain]
    gradients = torch.autograd.grad(
        energy.sum(), inputs, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return -gradients[0], None if strain is None else stress_of(gradients[1], graph)


def stress_of(virial: Tensor, graph: Graph) -> Tensor:
    """``σ = ∂E/∂ε / V`` (structures, 3, 3) eV/Å³ from the gradient of the energy by the strain, (structures, 3, 3) eV.

    A structure that is not periodic in all three directions has no volume; its stress is NaN.
    """
    solid = graph.periodic.all(dim=1)  # (structures,)
    volume = torch.linalg.det(graph.cells).abs()  # (structures,)
    stress = virial / torch.where(solid, volume, torch.ones_like(volume))[:, None, None]
    return torch.where(solid[:, None, None], stress, torch.full_like(stress, torch.nan))


def energy_gradient(energy: Tensor, positions: Tensor, *, create_graph: bool) -> Tensor:
    """``+∂E/∂r`` (atoms, 3) eV/Å; the energy keeps its graph."""
    return torch.autograd.grad(
        energy.sum(), positions, create_graph=create_graph, retain_graph=True, materialize_grads=True
    )[0]


def hessian_products(
    forces: Tensor, positions: Tensor, probes: Tensor, side: Side = "rows", *, create_graph: bool
) -> Tensor:
    """Products of ``−∂F/∂r`` with each probe; where forces are a gradient, that is ``+H v``, H = ∂²E/∂r² (eV/Å²).

    ``rows`` is ``−vᵀ J``, which for a one-hot v is a row; ``columns`` is ``−J v``; ``symmetric`` is their mean, the
    product with the symmetric part. They differ for forces that are not a gradient. probes (probes, atoms, 3)
    dimensionless; forces must carry their graph; returns (probes, atoms, 3).
    """
    if side == "rows":
        return _rows(forces, positions, probes, create_graph)
    columns = _columns(forces, positions, probes, create_graph)
    return columns if side == "columns" else (_rows(forces, positions, probes, create_graph) + columns) / 2


def _rows(forces: Tensor, positions: Tensor, probes: Tensor, create_graph: bool) -> Tensor:
    products = [
        torch.autograd.grad(
            forces, positions, -probe, create_graph=create_graph, retain_graph=True, materialize_grads=True
        )[0]
        for probe in probes
    ]
    return torch.stack(products) if products else torch.zeros_like(probes)


def _columns(forces: Tensor, positions: Tensor, probes: Tensor, create_graph: bool) -> Tensor:
    """By reverse mode twice: ``uᵀ J`` is linear in u, and its derivative by u, times v, is ``J v``."""
    any_vector = torch.zeros_like(forces, requires_grad=True)
    turned = torch.autograd.grad(forces, positions, any_vector, create_graph=True, materialize_grads=True)[0]
    if not turned.requires_grad or len(probes) == 0:  # forces that do not depend on positions at all
        return torch.zeros_like(probes)
    products = [
        torch.autograd.grad(
            turned, any_vector, -probe, create_graph=create_graph, retain_graph=True, materialize_grads=True
        )[0]
        for probe in probes
    ]
    return torch.stack(products)


def forward_columns(forces: Callable[[Tensor], Tensor], positions: Tensor, probes: Tensor) -> Tensor:
    """``−J v`` of each probe in forward mode, one pass a probe, which keeps no more than ``forces`` does.

    ``forces`` gives (atoms, 3) as a function of positions (atoms, 3). Where it takes them from the gradient of an
    energy, the mode is forward over reverse and ``−J v`` is ``+H v``. probes and result (probes, atoms, 3).
    """
    columns = torch.zeros_like(probes)
    with torch.no_grad():
        for column, probe in zip(columns, probes, strict=True):
            with forward_ad.dual_level():
                answer = forces(forward_ad.make_dual(positions.detach(), probe))
                tangent = forward_ad.unpack_dual(answer).tangent
                if tangent is not None:  # None: forces that do not depend on positions at all
                    column.copy_(-tangent)
    return columns


def asymmetry(matrix: Tensor) -> float:
    """Mean |A − Aᵀ| over mean |A| of a square matrix: 0 for the Hessian of an energy."""
    scale = matrix.abs().mean()
    return float((matrix - matrix.t()).abs().mean() / scale) if scale > 0 else 0.0


def one_hot_probes(rows: Tensor, graph: Graph) -> Tensor:
    """Probes whose products are rows of the Hessian.

    rows (structures, s) int64, each 3·atom + axis within its structure; returns (s, atoms, 3).
    """
    starts = graph.atom_counts.cumsum(0) - graph.atom_counts  # (structures,)
    probes = graph.positions.new_zeros(rows.shape[1], graph.num_atoms * 3)
    probes.scatter_(1, (rows + 3 * starts[:, None]).t(), 1.0)
    return probes.reshape(rows.shape[1], graph.num_atoms, 3)


def sum_over_structures(per_atom: Tensor, graph: Graph) -> Tensor:
    """(structures,) Sums of a per-atom quantity."""
    return scatter_sum(per_atom, graph.structure, graph.num_structures)
