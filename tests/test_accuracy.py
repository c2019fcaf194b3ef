import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from structures import tiny_painn
from torch import Tensor

from zoo.errors import DivergedError, LabelError
from zoo.evaluate.accuracy import accuracy, against_dataset
from zoo.neighbors import build_graph
from zoo.potential import Prediction
from zoo.teachers.stillinger_weber import StillingerWeber
from zoo.units import GPA_PER_EV_A3


def rattled(*repeats: tuple[int, int, int]) -> list[Atoms]:
    generator = np.random.default_rng(3)
    many = []
    for repeat in repeats:
        atoms = bulk("Si", a=5.4, cubic=True) * repeat
        atoms.positions += 0.1 * generator.standard_normal(atoms.positions.shape)
        many.append(atoms)
    return many


def random_signs(structures: list[Atoms], counts: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [
        torch.randint(0, 2, (count, len(atoms), 3), generator=generator).double() * 2 - 1
        for atoms, count in zip(structures, counts, strict=True)
    ]


def labelled(structures: list[Atoms], probes: list[Tensor]) -> list[Prediction]:
    """Each structure labelled alone."""
    teacher = StillingerWeber()
    return [
        teacher.predict(build_graph(atoms, teacher.cutoff), stress=True, probes=probe).cpu()
        for atoms, probe in zip(structures, probes, strict=True)
    ]


def test_a_teacher_has_no_error_against_its_own_labels() -> None:
    structures = rattled((1, 1, 1), (2, 1, 1), (1, 1, 1))
    probes = random_signs(structures, [2, 2, 2])
    found = accuracy(StillingerWeber(), structures, labelled(structures, probes), probes, atoms_at_once=20)
    assert found.energy_mae_meV_atom < 1e-9
    for error in (found.force_mae_meV_A, found.stress_mae_GPa, found.hessian_mae_eV_A2):
        assert error is not None
        assert error < 1e-9
    assert (found.structures, found.atoms) == (3, 32)


def test_errors_are_means_over_components_in_the_units_of_their_names() -> None:
    structures = rattled((1, 1, 1), (2, 1, 1))
    probes = random_signs(structures, [2, 2])
    off = []
    for label, atoms in zip(labelled(structures, probes), structures, strict=True):
        assert label.forces is not None
        assert label.stress is not None
        assert label.hessian_products is not None
        off.append(
            Prediction(
                energy=label.energy + 0.003 * len(atoms),
                forces=label.forces + torch.tensor([0.06, 0.0, 0.0]),
                stress=label.stress - 0.01 * torch.eye(3),
                hessian_products=label.hessian_products + torch.tensor([1.0, -2.0]).reshape(2, 1, 1),
            )
        )
    found = accuracy(StillingerWeber(), structures, off, probes)
    assert found.energy_mae_meV_atom == pytest.approx(3.0)
    assert found.force_mae_meV_A == pytest.approx(20.0)
    assert found.stress_mae_GPa == pytest.approx(0.01 / 3 * GPA_PER_EV_A3)
    assert found.hessian_mae_eV_A2 == pytest.approx(1.5)
    assert found.labelled_forces - found.forces == pytest.approx(np.tile([0.06, 0, 0], (24, 1)))
    assert found.labelled_energies - found.energies == pytest.approx(np.full(2, 0.003))


@pytest.mark.parametrize("atoms_at_once", [1, 20, 1000])
def test_chunks_change_nothing(atoms_at_once: int) -> None:
    structures = rattled((1, 1, 1), (2, 1, 1), (1, 1, 1), (1, 2, 1))
    probes = random_signs(structures, [2, 2, 1, 3])  # batches must not mix numbers of probes
    labels = labelled(structures, probes)
    student = tiny_painn("Si", channels=3, layers=1)
    alone = [accuracy(student, structures[i : i + 1], labels[i : i + 1], probes[i : i + 1]) for i in range(4)]
    found = accuracy(student, structures, labels, probes, atoms_at_once=atoms_at_once)
    assert found.energy_mae_meV_atom == pytest.approx(np.mean([one.energy_mae_meV_atom for one in alone]))
    sizes = [len(atoms) for atoms in structures]
    assert found.force_mae_meV_A == pytest.approx(np.average([one.force_mae_meV_A for one in alone], weights=sizes))
    products = [probe.numel() for probe in probes]
    errors = [one.hessian_mae_eV_A2 for one in alone]
    assert found.hessian_mae_eV_A2 == pytest.approx(np.average(errors, weights=products))


def test_what_the_labels_lack_is_none() -> None:
    structures = rattled((1, 1, 1))
    bare = [Prediction(energy=torch.zeros(1, dtype=torch.float64))]
    found = accuracy(StillingerWeber(), structures, bare)
    assert (found.force_mae_meV_A, found.stress_mae_GPa, found.hessian_mae_eV_A2) == (None, None, None)
    assert found.labelled_forces.shape == found.forces.shape == (0, 3)


def test_a_molecule_has_no_stress_error() -> None:
    molecule = Atoms("Si2", positions=[[0, 0, 0], [2.3, 0, 0]])
    probes = random_signs([molecule], [1])
    found = accuracy(StillingerWeber(), [molecule], labelled([molecule], probes), probes)
    assert found.stress_mae_GPa is None
    assert found.force_mae_meV_A == pytest.approx(0)


def test_labels_that_do_not_fit_are_refused() -> None:
    structures = rattled((1, 1, 1), (2, 1, 1))
    probes = random_signs(structures, [2, 2])
    labels = labelled(structures, probes)
    teacher = StillingerWeber()
    with pytest.raises(LabelError, match="no structures"):
        accuracy(teacher, [], [])
    with pytest.raises(LabelError, match="2 structures with 1 labels"):
        accuracy(teacher, structures, labels[:1], probes)
    with pytest.raises(LabelError, match="label 0 has 16 atoms, structure 0 has 8"):
        accuracy(teacher, structures, labels[::-1], probes)
    with pytest.raises(LabelError, match="other probes"):
        accuracy(teacher, structures, labels, random_signs(structures, [3, 3]))


def test_a_prediction_that_is_not_finite_names_its_structure() -> None:
    structures = rattled((1, 1, 1))
    teacher = StillingerWeber()
    labels = labelled(structures, random_signs(structures, [1]))
    teacher.epsilon.data.fill_(torch.nan)
    with pytest.raises(DivergedError, match=r"structure 0 \(Si8\)"):
        accuracy(teacher, structures, labels)


def from_a_data_set(structures: list[Atoms], energies: list[float]) -> np.ndarray:
    """Gives structures labels; returns their forces (atoms, 3)."""
    forces = [np.random.default_rng(8).normal(size=atoms.positions.shape) for atoms in structures]
    for atoms, energy, force in zip(structures, energies, forces, strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=force)
    return np.concatenate(forces)


def test_errors_against_a_data_set_leave_out_the_zero_of_each_composition() -> None:
    silicon = rattled((1, 1, 1), (2, 1, 1), (1, 1, 1))
    salt = [bulk("NaCl", "rocksalt", a=5.64, cubic=True) for _ in range(2)]
    lone = bulk("Cu", "fcc", a=3.6)
    structures = [*silicon, *salt, lone]
    counts = np.array([len(atoms) for atoms in structures])
    forces = from_a_data_set(structures, [0.0] * 6)
    energies = np.array([7.0, 7.0, 7.0, -3.0, -3.0, 900.0])  # eV/atom: of each composition its own zero
    found = against_dataset(structures, energies, forces + np.array([0.03, 0, 0]))
    assert found is not None
    assert found.energy_mae_meV_atom == pytest.approx(0, abs=1e-9)
    assert found.force_mae_meV_A == pytest.approx(10.0)
    assert found.structures == 6
    off = energies + np.array([0.006, -0.006, 0.0, 0.001, -0.001, 5.0])
    found = against_dataset(structures, off, forces)
    assert found is not None
    assert found.energy_mae_meV_atom == pytest.approx((6 + 6 + 0 + 1 + 1) / 5)
    assert counts[1] == 2 * counts[0]  # the supercell is of the same composition


def test_a_data_set_of_one_of_each_says_nothing_of_energies() -> None:
    structures = [*rattled((1, 1, 1)), bulk("Cu", "fcc", a=3.6)]
    forces = from_a_data_set(structures, [1.0, 2.0])
    found = against_dataset(structures, np.zeros(2), forces)
    assert found is not None
    assert found.energy_mae_meV_atom is None
    assert found.force_mae_meV_A == 0


def test_structures_without_labels_of_a_data_set_do_not_count() -> None:
    structures = rattled((1, 1, 1), (1, 1, 1))
    assert against_dataset(structures, np.zeros(2), np.zeros((16, 3))) is None
    from_a_data_set(structures[1:], [0.0])
    found = against_dataset(structures, np.zeros(2), np.zeros((16, 3)))
    assert found is not None
    assert found.structures == 1


def test_labels_without_energies_or_products_leave_those_errors_out() -> None:
    structures = rattled((1, 1, 1))
    none = [torch.zeros(0, 8, 3)]
    (label,) = labelled(structures, random_signs(structures, [1]))
    bare = Prediction(torch.tensor([torch.nan]), forces=label.forces, hessian_products=none[0])
    found = accuracy(StillingerWeber(), structures, [bare], none)
    assert found.energy_mae_meV_atom is None
    assert found.hessian_mae_eV_A2 is None
    assert found.force_mae_meV_A == pytest.approx(0, abs=1e-9)
