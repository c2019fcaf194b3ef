"""Derivatives of an energy, written once: for labels, for losses, for engines and for tests.

All are exact (automatic differentiation). A Hessian-vector product is taken in reverse over reverse mode: the gradient
of ⟨forces, v⟩. One product of a batch serves all its structures, for their Hessians do not mix.
"""

import torch
from torch import Tensor

from zoo.graph import Graph
from zoo.ops import scatter_sum


def differentiable(graph: Graph, *, strain: bool) -> tuple[Graph, Tensor, Tensor | None]:
    """The graph as a function of its positions and, if asked, of a symmetric strain of each structure.

    Returns the graph, the positions (atoms, 3) and the strain (structures, 3, 3) or None, to differentiate by.
    """
    positions = graph.positions.detach().requires_grad_()
    if not strain:
        return graph.with_geometry(positions, graph.cells), positions, None
    epsilon = torch.zeros_like(graph.cells).requires_grad_()
    symmetric = (epsilon + epsilon.transpose(1, 2)) / 2  # (structures, 3, 3)
    by_atom = symmetric.index_select(0, graph.structure)  # (atoms, 3, 3)
    strained = positions + (positions.unsqueeze(1) @ by_atom)[:, 0, :]
    return graph.with_geometry(strained, graph.cells + graph.cells @ symmetric), positions, epsilon


def forces_and_stress(
    energy: Tensor, graph: Graph, positions: Tensor, strain: Tensor | None, *, create_graph: bool
) -> tuple[Tensor, Tensor | None]:
    """``F = −∂E/∂r`` (atoms, 3) eV/Å and ``σ = ∂E/∂ε / V`` (structures, 3, 3) eV/Å³, ASE's sign.

    A structure that is not periodic in all three directions has no volume; its stress is NaN.
    """
    inputs = [positions] if strain is None else [positions, strain]
    gradients = torch.autograd.grad(
        energy.sum(), inputs, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    if strain is None:
        return -gradients[0], None
    solid = graph.periodic.all(dim=1)  # (structures,)
    volume = torch.linalg.det(graph.cells).abs()  # (structures,)
    stress = gradients[1] / torch.where(solid, volume, torch.ones_like(volume))[:, None, None]
    return -gradients[0], torch.where(solid[:, None, None], stress, torch.full_like(stress, torch.nan))


def hessian_products(forces: Tensor, positions: Tensor, probes: Tensor, *, create_graph: bool) -> Tensor:
    """``+H v`` for each probe, H = ∂²E/∂r² (eV/Å²).

    probes (probes, atoms, 3) dimensionless; forces must carry their graph; returns (probes, atoms, 3).
    """
    products = [
        torch.autograd.grad(
            forces, positions, -probe, create_graph=create_graph, retain_graph=True, materialize_grads=True
        )[0]
        for probe in probes
    ]
    return torch.stack(products)


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
