"""The loss of Hessian distillation (Amin, Raja, Krishnapriyan, ICLR 2025, arXiv 2501.09009).

::

    L =   λ_E  mean over structures       |E − E*| / atoms
        + λ_F  mean over atoms            ‖F − F*‖₂
        + λ_S  mean over structures       ‖σ − σ*‖_F
        + λ_H  mean over (probe, atom)    ‖(H v − H* v)‖₂

A star is the teacher. With one-hot v a product is a row of the Hessian and the last term is the paper's; with random
signs the mean of its square is the squared Frobenius norm of ΔH, so one product feels the whole matrix (arXiv
2603.04523). The term of the stress is ours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.graph import Graph, collate
from zoo.potential import Potential
from zoo.recipe import LossSection


@dataclass(frozen=True)
class Example:
    """One structure with what the teacher says of it."""

    graph: Graph
    energy: Tensor  # () eV, float64
    forces: Tensor  # (atoms, 3) eV/Å
    stress: Tensor  # (3, 3) eV/Å³
    probes: Tensor  # (probes, atoms, 3)
    hessian_products: Tensor  # (probes, atoms, 3) eV/Å²


@dataclass(frozen=True)
class Batch:
    """Examples side by side; probes are joined along the atoms."""

    graph: Graph
    energy: Tensor  # (structures,)
    forces: Tensor  # (atoms, 3)
    stress: Tensor  # (structures, 3, 3)
    probes: Tensor  # (probes, atoms, 3)
    hessian_products: Tensor  # (probes, atoms, 3)


def make_batch(examples: list[Example], choices: list[Tensor]) -> Batch:
    """The examples as one batch, each with the stored probes that its choice (probes,) names."""
    pairs = list(zip(examples, choices, strict=True))
    return Batch(
        graph=collate([example.graph for example in examples]),
        energy=torch.stack([example.energy for example in examples]),
        forces=torch.cat([example.forces for example in examples]),
        stress=torch.stack([example.stress for example in examples]),
        probes=torch.cat([example.probes[choice] for example, choice in pairs], dim=1),
        hessian_products=torch.cat([example.hessian_products[choice] for example, choice in pairs], dim=1),
    )


def loss_terms(
    potential: Potential, batch: Batch, weights: LossSection, *, create_graph: bool = True
) -> dict[str, Tensor]:
    """The unweighted terms whose weight is not zero; differentiable by the parameters with ``create_graph``."""
    answer = potential.predict(
        batch.graph,
        stress=weights.stress > 0,
        probes=batch.probes if weights.hessian > 0 else None,
        create_graph=create_graph,
    )
    terms = {}
    if weights.energy > 0:
        terms["energy"] = energy_term(answer.energy, batch.energy, batch.graph)
    if weights.force > 0 and answer.forces is not None:
        terms["force"] = norm_term(answer.forces, batch.forces)
    if weights.stress > 0 and answer.stress is not None:
        terms["stress"] = norm_term(answer.stress.flatten(1), batch.stress.flatten(1))
    if weights.hessian > 0 and answer.hessian_products is not None:
        terms["hessian"] = norm_term(answer.hessian_products, batch.hessian_products)
    return terms


def weighted_sum(terms: dict[str, Tensor], weights: LossSection) -> Tensor:
    """The loss."""
    return torch.stack([getattr(weights, name) * term.double() for name, term in terms.items()]).sum()


def energy_term(energy: Tensor, target: Tensor, graph: Graph) -> Tensor:
    """Mean over structures of |ΔE| per atom, eV."""
    return ((energy - target).abs() / graph.atom_counts).mean()


def norm_term(values: Tensor, target: Tensor) -> Tensor:
    """Mean of the Euclidean length of the difference over the last axis; its gradient at zero is zero."""
    lengths: Tensor = torch.linalg.vector_norm(values - target, dim=-1)
    return lengths.mean()
