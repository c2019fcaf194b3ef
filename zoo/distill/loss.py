"""The loss of Hessian distillation (Amin, Raja, Krishnapriyan, ICLR 2025, arXiv 2501.09009), its baselines and kin.

::

    L =   λ_E  mean over structures       |E − E*| / atoms
        + λ_F  mean over atoms            ‖F − F*‖
        + λ_S  mean over structures       ‖σ − σ*‖
        + λ_H  mean over (probe, atom)    ‖(H v − Hᵀ v)‖        rows: v one-hot, the paper's term
        + λ_TF mean over atoms            ‖F − Fᵀ‖              the paper's baseline "teacherforces"
        + λ_∂E mean over atoms            ‖∂E/∂r + F*‖          ties a direct-force student's energy to forces
        + λ_e  mean over atoms            |e − eᵀ|              energies of atoms, less the mean of their element
        + λ_n  mean over (atom, channel)  (W h − hᵀ)²           node features, the baseline "n2n"

A T is the teacher, a star the teacher or the data set, as the recipe says. Norms are Euclidean, as in the paper, unless
the recipe says otherwise. With random signs for v, the mean of the square of the Hessian's term is the squared
Frobenius norm of ΔH, so one product feels the whole matrix (arXiv 2603.04523). Stress and energies of atoms are not the
paper's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from ase import Atoms
from torch import Tensor, nn

from zoo.derivatives import Side
from zoo.graph import Graph, collate
from zoo.potential import Potential, Prediction, given
from zoo.recipe import LossSection, Norm, Source, Term

Terms = dict[Term, Tensor]


@dataclass(frozen=True)
class Example:
    """One structure with what the teacher says of it and, where it has them, the labels of its data set.

    Both are predictions of a batch of one. The teacher's energies of atoms are less the mean of their element.
    """

    graph: Graph
    atoms: Atoms
    teacher: Prediction
    probes: Tensor  # (probes, atoms, 3) of the teacher's Hessian products
    dataset: Prediction | None = None


@dataclass(frozen=True)
class Batch:
    """Examples side by side; probes are joined along the atoms."""

    graph: Graph
    teacher: Prediction
    probes: Tensor  # (probes, atoms, 3)
    dataset: Prediction | None = None
    side: Side = "rows"  # of the teacher's Jacobian, if it is one


def make_batch(examples: Sequence[Example], choices: Sequence[Tensor], side: Side = "rows") -> Batch:
    """The examples as one batch, each with the stored probes that its choice (probes,) names."""
    pairs = list(zip(examples, choices, strict=True))
    chosen = [
        replace(example.teacher, hessian_products=given(example.teacher.hessian_products)[choice])
        for example, choice in pairs
    ]
    labelled = [example.dataset for example in examples if example.dataset is not None]
    return Batch(
        graph=collate([example.graph for example in examples]),
        teacher=Prediction.join(chosen),
        probes=torch.cat([example.probes[choice] for example, choice in pairs], dim=1),
        dataset=Prediction.join(labelled) if len(labelled) == len(examples) else None,
        side=side,
    )


def loss_terms(
    potential: Potential,
    batch: Batch,
    weights: LossSection,
    projection: nn.Module | None = None,
    *,
    create_graph: bool = True,
) -> Terms:
    """The unweighted terms whose weight is not zero; differentiable by the parameters with ``create_graph``.

    ``projection`` takes the student's node features to as many channels as the teacher's have.
    """
    wanted = weights.weights
    answer = potential.predict(
        batch.graph,
        stress="stress" in wanted,
        probes=batch.probes if "hessian" in wanted else None,
        side=batch.side,
        features="feature" in wanted,
        gradient="gradient" in wanted,
        create_graph=create_graph,
    )
    if projection is not None and answer.features is not None:
        answer = replace(answer, features=projection(answer.features))
    if "atomic_energy" in wanted:
        own = given(answer.atomic_energies) - potential.reference_energies(batch.graph.numbers)
        answer = replace(answer, atomic_energies=own)
    return {term: _TERMS[term](answer, batch, weights) for term in wanted}


def weighted_sum(terms: Terms, weights: LossSection) -> Tensor:
    """The loss."""
    return torch.stack([weights.weights[name] * term.double() for name, term in terms.items()]).sum()


def term_count(term: Term, batch: Batch) -> int:
    """Over how many things a term is a mean, so that means of several batches can be put together."""
    if term in ("energy", "stress"):
        return batch.graph.num_structures
    return batch.graph.num_atoms


def energy_term(energy: Tensor, target: Tensor, graph: Graph, norm: Norm = "l2", delta: float = 0.1) -> Tensor:
    """Mean over structures of ΔE per atom, eV."""
    per_atom = (energy - target) / graph.atom_counts
    return norm_term(per_atom[:, None], torch.zeros_like(per_atom)[:, None], norm, delta)


def norm_term(values: Tensor, target: Tensor, norm: Norm = "l2", delta: float = 0.1) -> Tensor:
    """Mean of the length of the difference over the last axis (l2), or of its components by themselves.

    ``l1`` |Δ|, ``squared`` Δ², ``huber`` Δ²/2 up to ``delta`` and linear beyond. The gradient of l2 at zero is zero.
    """
    difference = values - target
    if norm == "l2":
        lengths: Tensor = torch.linalg.vector_norm(difference, dim=-1)
        return lengths.mean()
    if norm == "huber":
        return nn.functional.huber_loss(difference, torch.zeros_like(difference), delta=delta)
    return difference.abs().mean() if norm == "l1" else difference.square().mean()


def _energy(answer: Prediction, batch: Batch, weights: LossSection) -> Tensor:
    target = _labels(batch, weights.energy_from).energy
    return energy_term(answer.energy, target, batch.graph, weights.norm("energy"), weights.huber_delta)


def _force(answer: Prediction, batch: Batch, weights: LossSection) -> Tensor:
    target = given(_labels(batch, weights.force_from).forces)
    return norm_term(given(answer.forces), target, weights.norm("force"), weights.huber_delta)


def _stress(answer: Prediction, batch: Batch, weights: LossSection) -> Tensor:
    target = given(_labels(batch, weights.stress_from).stress)
    own = given(answer.stress)
    return norm_term(own.flatten(1), target.flatten(1), weights.norm("stress"), weights.huber_delta)


def _teacher_force(answer: Prediction, batch: Batch, weights: LossSection) -> Tensor:
    target = given(batch.teacher.forces)
    return norm_term(given(answer.forces), target, weights.norm("teacher_force"), weights.huber_delta)


def _gradient(answer: Prediction, batch: Batch, weights: LossSection) -> Tensor:
    target = -given(_labels(batch, weights.force_from).forces)
    return norm_term(given(answer.energy_gradient), target, weights.norm("gradient"), weights.huber_delta)


def _hessian(answer: Prediction, batch: Batch, weights: LossSection) -> Tensor:
    target = given(batch.teacher.hessian_products)
    return norm_term(given(answer.hessian_products), target, weights.norm("hessian"), weights.huber_delta)


def _atomic_energy(answer: Prediction, batch: Batch, weights: LossSection) -> Tensor:
    own, target = given(answer.atomic_energies)[:, None], given(batch.teacher.atomic_energies)[:, None]
    return norm_term(own, target, weights.norm("atomic_energy"), weights.huber_delta)


def _feature(answer: Prediction, batch: Batch, weights: LossSection) -> Tensor:
    target = given(batch.teacher.features)
    return norm_term(given(answer.features), target, weights.norm("feature"), weights.huber_delta)


_TERMS: dict[Term, Callable[[Prediction, Batch, LossSection], Tensor]] = {
    "energy": _energy,
    "force": _force,
    "stress": _stress,
    "teacher_force": _teacher_force,
    "gradient": _gradient,
    "hessian": _hessian,
    "atomic_energy": _atomic_energy,
    "feature": _feature,
}


def _labels(batch: Batch, source: Source) -> Prediction:
    labels = batch.teacher if source == "teacher" else batch.dataset
    assert labels is not None
    return labels
