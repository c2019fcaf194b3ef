"""From labels to examples: types, constants of the elements, and what is missing."""

from dataclasses import replace

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from rich_teacher import Rich, labelled_cells, teacher_of

from zoo.data.structures import dataset_prediction
from zoo.distill.examples import (
    check_targets,
    element_means,
    fit_references,
    make_examples,
    relative_energies,
    zeros_of_elements,
)
from zoo.distill.label import label_plan, label_structures
from zoo.distill.loss import Example
from zoo.errors import LabelError
from zoo.neighbors import build_graph
from zoo.potential import Prediction
from zoo.recipe import LabelsSection, LossSection
from zoo.students import PaiNNConfig, build_student


def make_labels(folder, structures, potential=None, **section):
    teacher = teacher_of(potential or Rich())
    plan = label_plan(structures, teacher, LabelsSection(**section), 0, "float64")
    return label_structures(folder, structures, teacher, plan)


def examples_of(folder, structures, dtype=torch.float64, **section):
    return make_examples(structures, make_labels(folder, structures, **section), 4.0, dtype)


def student_of(*elements):
    config = PaiNNConfig(elements=elements, channels=4, layers=1, radials=3, cutoff=4.0)
    return build_student(config, torch.Generator().manual_seed(0))


def alloys(constants):
    """Crystals of silicon and germanium whose atoms have the energy of their element and a part of their own."""
    random = torch.Generator().manual_seed(2)
    made = []
    for formula in (["Si", "Si"], ["Si", "Ge"], ["Ge", "Ge", "Ge"], ["Si", "Ge", "Si"]):
        atoms = Atoms(formula, positions=[[2.4 * place, 0, 0] for place in range(len(formula))])
        own = 0.1 * torch.randn(len(atoms), generator=random, dtype=torch.float64)
        energies = own + torch.tensor([constants[symbol] for symbol in formula], dtype=torch.float64)
        forces = torch.randn(len(atoms), 3, generator=random, dtype=torch.float64)
        teacher = Prediction(
            energy=energies.sum().reshape(1),
            forces=forces,
            stress=torch.full((1, 3, 3), torch.nan),
            hessian_products=torch.zeros(1, len(atoms), 3),
            atomic_energies=energies,
        )
        dataset = Prediction(energy=2 * energies.sum().reshape(1), forces=3 * forces)
        made.append(Example(build_graph(atoms, 4.0), atoms, teacher, torch.zeros(1, len(atoms), 3), dataset))
    return made


def test_numbers_have_the_type_of_training_but_for_total_energies(tmp_path):
    (example,) = examples_of(tmp_path, labelled_cells(1), torch.float32, extras=("atomic_energies", "features"))
    for prediction in (example.teacher, example.dataset):
        for name, part in vars(prediction).items():
            if part is not None:
                assert part.dtype == (torch.float64 if name == "energy" else torch.float32), name
    assert example.probes.dtype == torch.float32
    assert example.graph.positions.dtype == torch.float32


def test_an_example_holds_what_teacher_and_data_set_say(tmp_path):
    cells = labelled_cells(2)
    labels = make_labels(tmp_path, cells, extras=("atomic_energies", "features"))
    for atoms, label, example in zip(cells, labels, make_examples(cells, labels, 4.0, torch.float64), strict=True):
        assert example.atoms is atoms
        for name, part in vars(label.prediction()).items():
            assert torch.equal(getattr(example.teacher, name), part) if part is not None else True
        assert example.teacher.features.shape == (8, 5)
        expected = dataset_prediction(atoms)
        assert torch.equal(example.dataset.forces, expected.forces)
        assert example.dataset.energy.item() == pytest.approx(label.energy.item() - 24)
        assert torch.equal(example.probes, label.probes.double())


def test_labels_that_are_incomplete_are_missed_only_where_they_are_wanted(tmp_path):
    (atoms,) = labelled_cells(1)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    examples = examples_of(tmp_path, [atoms])
    assert examples[0].dataset is None
    check_targets("training", examples, LossSection(force=1.0), LabelsSection())
    with pytest.raises(LabelError, match=r"has labels without forces; give a file .* or set loss\.\*_from to teacher"):
        check_targets("training", examples, LossSection(force=1.0, force_from="dataset"), LabelsSection())


def test_references_are_a_fit_to_the_energies_of_whom_the_student_learns():
    examples = alloys({"Si": -5.0, "Ge": -7.0})
    composition = torch.tensor([[2.0, 0], [1, 1], [0, 3], [2, 1]], dtype=torch.float64)
    for source, factor in (("teacher", 1), ("dataset", 2)):
        student = student_of("Si", "Ge")
        fit_references(student, examples, LossSection(energy=1.0, force=1.0, energy_from=source))
        energies = torch.stack([factor * example.teacher.energy[0] for example in examples])
        expected = torch.linalg.lstsq(composition, energies[:, None]).solution[:, 0]
        torch.testing.assert_close(student.references, expected)
        assert student.references.dtype == torch.float64
        assert student.double().float().references.dtype == torch.float64


def test_the_scale_is_that_of_the_forces_of_whom_the_student_learns():
    examples = alloys({"Si": -5.0, "Ge": -7.0})
    size = torch.cat([example.teacher.forces for example in examples]).square().mean().sqrt().item()
    for weights, factor in (
        (LossSection(force=1.0), 1),
        (LossSection(force=1.0, force_from="dataset"), 3),
        (LossSection(teacher_force=1.0, force_from="dataset"), 1),
    ):
        student = student_of("Si", "Ge")
        fit_references(student, examples, weights)
        assert student.scale.item() == pytest.approx(factor * size, rel=1e-6)


def test_energies_that_are_not_there_leave_the_references_at_zero():
    examples = alloys({"Si": -5.0, "Ge": -7.0})
    bare = [replace(e, dataset=None, teacher=replace(e.teacher, energy=e.teacher.energy * torch.nan)) for e in examples]
    for source in ("teacher", "dataset"):
        student = student_of("Si", "Ge")
        fit_references(student, bare, LossSection(force=1.0, energy_from=source))
        assert student.references.tolist() == [0.0, 0.0]


def test_energies_of_atoms_are_told_from_the_mean_of_their_element():
    examples = alloys({"Si": -5.0, "Ge": -7.0})
    student = student_of("Ge", "C", "Si")  # not in the order of numbers, and one that is not there
    numbers = torch.cat([example.graph.numbers for example in examples])
    energies = torch.cat([example.teacher.atomic_energies for example in examples])
    means = [energies[numbers == 32].mean().item(), 0.0, energies[numbers == 14].mean().item()]
    assert element_means(student, examples).tolist() == pytest.approx(means)
    relative = relative_energies(student, examples, element_means(student, examples))
    found = torch.cat([example.teacher.atomic_energies for example in relative])
    for number, mean in ((32, means[0]), (14, means[2])):
        torch.testing.assert_close(found[numbers == number], energies[numbers == number] - mean)
        assert abs(found[numbers == number].mean().item()) < 1e-12


def test_energies_and_energies_of_atoms_can_both_be_right():
    """Where both are the teacher's, the student's constants are the means, so the atoms' energies sum to the energy."""
    examples = alloys({"Si": -5.0, "Ge": -7.0})
    weights = LossSection(energy=1.0, force=1.0, atomic_energy=1.0)
    student = student_of("Si", "Ge")
    fit_references(student, examples, weights)
    assert torch.equal(student.references, element_means(student, examples))
    zeros = zeros_of_elements(student, examples, weights)
    for example in relative_energies(student, examples, zeros):
        whole = example.teacher.atomic_energies.sum() + student.reference_energies(example.graph.numbers).sum()
        assert whole.item() == pytest.approx(example.teacher.energy.item())
    later = zeros_of_elements(student, examples[:2], weights)  # a later round, of other structures
    assert torch.equal(later, student.references)
    other = LossSection(energy=1.0, force=1.0, atomic_energy=1.0, energy_from="dataset")
    assert torch.equal(zeros_of_elements(student, examples[:2], other), element_means(student, examples[:2]))


BAD = {
    "energy": (
        {"energy": 1.0},
        {},
        r"loss\.energy cannot be had: training structure 1 \(Si8\) has no energy of the te",
    ),
    "features": (
        {"feature": 1.0},
        {},
        r"loss\.feature cannot be had: .* has no features of the teacher; add it to lab",
    ),
    "atoms": ({"atomic_energy": 1.0}, {}, r"loss\.atomic_energy cannot be had: .*; add it to labels\.extras, or set"),
    "dataset": ({"force_from": "dataset"}, {}, r"Si8 has no labels of its data set; .* set loss\.\*_from to teacher"),
    "gradient": ({"force": 0.0, "gradient": 1.0, "force_from": "dataset"}, {}, "Si8 has no labels of its data set"),
    "switch": (
        {"force": 1.0, "hessian": 1.0, "hessian_switch": {}, "force_from": "dataset"},
        {},
        "Si8 has no labels of its data set",
    ),
    "none": ({"hessian": 1.0}, {"probes": "none"}, r"loss\.hessian cannot be had: .* has no Hessian products; choose "),
    "few": (
        {"hessian": 1.0, "probes_per_step": 3},
        {},
        r"loss\.probes_per_step is 3, but training structure 0 \(Si8\) has 2 Hessian products; lower it, or raise",
    ),
    "few-rows": (
        {"hessian": 1.0, "probes_per_step": 25},
        {"probes": "dense"},
        r"loss\.probes_per_step is 25, but training structure 0 \(Si8\) has 24 Hessian products",
    ),
    "fresh-rows": (
        {"hessian": 1.0, "probes_per_step": 25, "hessian_from": "teacher"},
        {"probes": "rows"},
        r"loss\.probes_per_step is 25, but the Hessian of training structure 0 \(Si8\) has 24 rows; lower it",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_missing_is_named_before_training(case, tmp_path):
    loss, section, message = BAD[case]
    cells = labelled_cells(2)
    for atoms in cells:
        atoms.calc = None
    examples = examples_of(tmp_path, cells, **section)
    if case == "energy":  # of a teacher without
        examples[1] = replace(examples[1], teacher=replace(examples[1].teacher, energy=torch.tensor([torch.nan])))
    base = {} if "force" in loss else {"force": 1.0}
    if loss.get("force") == 0.0:
        base = {"teacher_force": 1.0}
    with pytest.raises(LabelError, match=message) as error:
        check_targets("training", examples, LossSection(**base | loss), LabelsSection(**section))
    assert "\n" not in str(error.value)


def test_a_molecule_has_no_stress(tmp_path):
    atoms = molecule("Si2H6")
    atoms.numbers[:] = 14
    examples = examples_of(tmp_path, [bulk("Si", "diamond", a=5.4), atoms])
    message = r"loss\.stress cannot be had: training structure 1 \(Si8\) has no stress of the teacher \(only a crystal"
    with pytest.raises(LabelError, match=message):
        check_targets("training", examples, LossSection(force=1.0, stress=1.0), LabelsSection())
    check_targets("training", examples, LossSection(force=1.0), LabelsSection())


def test_what_is_there_is_let_through(tmp_path):
    examples = examples_of(tmp_path, labelled_cells(2), extras=("atomic_energies", "features"), probes="dense")
    sources = {"energy_from": "dataset", "force_from": "dataset", "stress_from": "dataset"}
    terms = ("energy", "force", "stress", "teacher_force", "gradient", "hessian", "atomic_energy", "feature")
    weights = LossSection(**dict.fromkeys(terms, 1.0), **sources, hessian_switch={}, probes_per_step=24)
    check_targets("training", examples, weights, LabelsSection(probes="dense"))
