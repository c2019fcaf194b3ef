"""From structures and labels to what a student learns from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from ase import Atoms
from torch import Tensor

from zoo.data.labels import Label, Labels
from zoo.data.structures import dataset_prediction, dataset_predictions
from zoo.distill.loss import Example
from zoo.errors import LabelError
from zoo.neighbors import build_graph
from zoo.potential import Prediction, given
from zoo.recipe import LabelsSection, LossSection, Source, Term
from zoo.students import Student


def make_examples(
    structures: Sequence[Atoms], labels: Labels | None, cutoff: float, dtype: torch.dtype
) -> list[Example]:
    """Structures with their labels, their neighbours found once; without the teacher's where none is learned from."""
    each = [None] * len(structures) if labels is None else labels
    return [_example(atoms, label, cutoff, dtype) for atoms, label in zip(structures, each, strict=True)]


def _example(atoms: Atoms, label: Label | None, cutoff: float, dtype: torch.dtype) -> Example:
    none = torch.zeros(0, len(atoms), 3)
    unlabelled = Prediction(torch.full((1,), torch.nan, dtype=torch.float64), hessian_products=none)
    dataset = _dataset(atoms)
    return Example(
        graph=build_graph(atoms, cutoff, dtype=dtype),
        atoms=atoms,
        teacher=_in_type(unlabelled if label is None else label.prediction(), dtype),
        probes=(none if label is None else label.probes).to(dtype),
        dataset=None if dataset is None else _in_type(dataset, dtype),
    )


def _dataset(atoms: Atoms) -> Prediction | None:
    """The labels of the structure's data set; incomplete ones are missed where they are wanted, and only there."""
    try:
        return dataset_prediction(atoms)
    except LabelError:
        return None


def _in_type(prediction: Prediction, dtype: torch.dtype) -> Prediction:
    """Its numbers in another type, but for the energy, which loses its digits in less than float64."""
    parts = {key: part.to(dtype) for key, part in vars(prediction).items() if part is not None}
    return replace(prediction, **parts | {"energy": prediction.energy.double()})


def check_targets(name: str, examples: Sequence[Example], weights: LossSection, labels: LabelsSection) -> None:
    """Raises LabelError where a term has a weight, and a structure no label of it or too few Hessian products."""
    needs = _needs(weights)
    for number, example in enumerate(examples):
        where = f"{name} structure {number} ({example.atoms.symbols})"
        for need in needs:
            _check_need(need, example, where)
        if weights.hessian > 0:
            _check_probes(example, where, weights, labels)


@dataclass(frozen=True)
class _Need:
    """A line of the recipe, and the part of a Prediction, by teacher or data set, that it needs."""

    line: str
    part: str
    source: Source
    remedy: str = "set it to 0, or leave the structure out"


def _needs(weights: LossSection) -> list[_Need]:
    remedy = "add it to labels.extras, or set the weight to 0"
    needs: dict[Term, _Need] = {
        "energy": _Need("energy", "energy", weights.energy_from),
        "force": _Need("force", "forces", weights.force_from),
        "stress": _Need("stress", "stress", weights.stress_from),
        "teacher_force": _Need("teacher_force", "forces", "teacher"),
        "gradient": _Need("gradient", "forces", weights.force_from),
        "atomic_energy": _Need("atomic_energy", "atomic_energies", "teacher", remedy),
        "feature": _Need("feature", "features", "teacher", remedy),
    }
    wanted = [need for term, need in needs.items() if term in weights.weights]
    if weights.hessian_switch is not None:
        wanted.append(_Need("hessian_switch", "forces", "dataset", "remove it, or leave the structure out"))
    return wanted


def _check_need(need: _Need, example: Example, where: str) -> None:
    found = labels_of(example, need.source)
    if found is None:
        dataset_predictions([example.atoms])  # incomplete labels say themselves what they lack
    target = None if found is None else getattr(found, need.part)
    if target is None or not bool(target.isfinite().all()):
        why = " (only a crystal periodic along three axes has a stress)" if need.part == "stress" else ""
        raise LabelError(
            f"loss.{need.line} cannot be had: {where} has no {need.part} of the {need.source}{why}; {need.remedy}"
        )


def _check_probes(example: Example, where: str, weights: LossSection, labels: LabelsSection) -> None:
    stored, wanted, coordinates = len(example.probes), weights.probes_per_step, 3 * example.graph.num_atoms
    if stored == 0:  # of which validation is made, even where the teacher is asked at each step
        raise LabelError(
            f"loss.hessian cannot be had: {where} has no Hessian products; choose labels.probes, or set it to 0"
        )
    if weights.hessian_from == "stored" and wanted > stored:
        raise LabelError(
            f"loss.probes_per_step is {wanted}, but {where} has {stored} Hessian products; lower it, or raise "
            "labels.probes_per_structure"
        )
    if weights.hessian_from == "teacher" and labels.probes == "rows" and wanted > coordinates:
        raise LabelError(
            f"loss.probes_per_step is {wanted}, but the Hessian of {where} has {coordinates} rows; lower it"
        )


def labels_of(example: Example, source: Source) -> Prediction | None:
    """The labels of a structure by its teacher or of its data set."""
    return example.teacher if source == "teacher" else example.dataset


def fit_references(student: Student, examples: Sequence[Example], weights: LossSection) -> None:
    """Sets what the network need not learn: energies of the elements, the scale of energies, its own constants.

    The energies of the elements are a least-squares fit to the energies, or, where the student learns the teacher's
    energies of atoms beside its energies, their means.
    """
    found = [labels_of(example, weights.energy_from) for example in examples]
    energies = torch.tensor([float(labels.energy) for labels in found if labels is not None], dtype=torch.float64)
    if weights.atomic_energy > 0 and weights.energy_from == "teacher":
        student.references.copy_(element_means(student, examples))
    elif len(energies) == len(examples) and bool(energies.isfinite().all()):
        student.references.copy_(_least_squares(student, examples, energies))
    source: Source = weights.force_from if weights.force > 0 or weights.gradient > 0 else "teacher"
    forces = _known_forces(examples, source) or _known_forces(examples, "dataset")
    if forces:
        student.scale.fill_(float(torch.cat(forces).square().mean().sqrt()) or 1.0)  # eV, over one Å
    student.calibrate([example.graph for example in examples])


def _known_forces(examples: Sequence[Example], source: Source) -> list[Tensor]:
    """(atoms, 3) eV/Å of each structure that has some."""
    found = [labels_of(example, source) for example in examples]
    return [labels.forces for labels in found if labels is not None and labels.forces is not None]


def _least_squares(student: Student, examples: Sequence[Example], energies: Tensor) -> Tensor:
    composition = torch.zeros(len(examples), len(student.elements), dtype=torch.float64)
    for row, example in enumerate(examples):
        composition[row] = torch.bincount(student.slots[example.graph.numbers], minlength=len(student.elements))
    solution: Tensor = torch.linalg.lstsq(composition, energies[:, None], driver="gelsd").solution[:, 0]
    return solution


def element_means(student: Student, examples: Sequence[Example]) -> Tensor:
    """(elements,) eV: the mean of the teacher's energies of atoms, 0 for an element without atoms."""
    slots = torch.cat([student.slots[example.graph.numbers] for example in examples])
    energies = torch.cat([given(example.teacher.atomic_energies) for example in examples]).double()
    counts = torch.bincount(slots, minlength=len(student.elements))
    sums = torch.zeros(len(student.elements), dtype=torch.float64).index_add(0, slots, energies)
    return sums / counts.clamp(min=1)


def zeros_of_elements(student: Student, examples: Sequence[Example], weights: LossSection) -> Tensor:
    """(elements,) eV: what energies of atoms are told from, the student's constants or the teacher's means.

    The constants are those means too, of the structures that the student first saw, where its energies are the
    teacher's; the two may not drift apart between rounds.
    """
    return student.references if weights.energy_from == "teacher" else element_means(student, examples)


def relative_energies(student: Student, examples: Sequence[Example], zeros: Tensor) -> list[Example]:
    """The examples with the teacher's energies of atoms less what their element has of it."""
    changed = []
    for example in examples:
        energies = given(example.teacher.atomic_energies)
        relative = (energies.double() - zeros[student.slots[example.graph.numbers]]).to(example.graph.positions.dtype)
        changed.append(replace(example, teacher=replace(example.teacher, atomic_energies=relative)))
    return changed
