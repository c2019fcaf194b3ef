"""The ASE calculator: the same numbers as the potential, and an error where they would mean nothing."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_stress

import zoo
from zoo.calculator import Follower, ZooCalculator, elements_text
from zoo.errors import DivergedError, DomainError, StructureError
from zoo.graph import Graph
from zoo.guard import check_charge
from zoo.neighbors import build_graph
from zoo.potential import Prediction
from zoo.students import PaiNN
from zoo.teachers import load_teacher

SI = (14,)


@pytest.fixture
def student() -> PaiNN:
    return scenes.tiny_painn("Si")


@pytest.fixture
def crystal(student: PaiNN) -> Atoms:
    atoms = scenes.crystal(SI)
    atoms.calc = ZooCalculator(student)
    return atoms


def test_energy_and_forces_are_those_of_the_potential(student: PaiNN, crystal: Atoms) -> None:
    expected = student.predict(build_graph(crystal, student.cutoff), stress=True)
    assert crystal.get_potential_energy() == float(expected.energy[0])
    assert crystal.get_potential_energy(force_consistent=True) == float(expected.energy[0])
    np.testing.assert_array_equal(crystal.get_forces(), expected.forces.numpy())
    np.testing.assert_allclose(crystal.get_stress(voigt=False), expected.stress[0].numpy(), atol=1e-14)


def test_stress_has_the_order_and_the_sign_of_ase(crystal: Atoms) -> None:
    numeric = calculate_numerical_stress(crystal, eps=1e-5)
    np.testing.assert_allclose(crystal.get_stress(), numeric, rtol=1e-4, atol=1e-6)


def test_stress_is_computed_only_once_it_was_asked_for(
    student: PaiNN, crystal: Atoms, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    predict = student.predict

    def spy(graph: Graph, *, stress: bool) -> object:
        asked.append(stress)
        return predict(graph, stress=stress)

    monkeypatch.setattr(student, "predict", spy)
    for _ in range(2):
        crystal.positions += 0.01
        crystal.get_forces()
    crystal.get_stress()
    crystal.positions += 0.01
    crystal.get_forces()
    crystal.get_stress()
    assert asked == [False, False, True, True]


def test_a_molecule_has_no_stress(student: PaiNN) -> None:
    atoms = scenes.molecule(SI)
    atoms.calc = ZooCalculator(student)
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError, match="no stress"):
        atoms.get_stress()


def test_the_check_sees_each_structure_with_its_edges_and_can_stop_it(student: PaiNN) -> None:
    seen: list[int] = []

    def check(atoms: Atoms, graph: Graph) -> None:
        seen.append(graph.num_edges)
        if atoms.get_volume() > 100:
            raise DomainError("too large")

    atoms = scenes.crystal(SI)
    atoms.calc = ZooCalculator(student, check=check)
    atoms.get_forces()
    assert seen == [build_graph(atoms, student.cutoff).num_edges]
    atoms.set_cell(atoms.cell * 2, scale_atoms=True)
    with pytest.raises(DomainError, match="too large"):
        atoms.get_forces()


def test_the_check_is_asked_again_when_atoms_come_nearer_than_it_has_seen_and_not_before(student: PaiNN) -> None:
    seen: list[float] = []

    def check(atoms: Atoms, graph: Graph) -> None:
        seen.append(float(graph.edge_vectors().norm(dim=1).min()))
        if seen[-1] < 2.1:
            raise DomainError("too near")

    atoms = scenes.dimer(SI)
    axis = np.array([0.0, 0.0, 1.0])
    atoms.calc = ZooCalculator(student, check=check)
    for distance in (2.3, 2.35, 2.32, 2.28, 2.29):
        atoms.positions[1] = atoms.positions[0] + distance * axis
        atoms.get_forces()
    assert seen == pytest.approx([2.3, 2.28])
    atoms.positions[1] = atoms.positions[0] + 2.09 * axis
    for _ in range(2):
        with pytest.raises(DomainError, match="too near"):
            atoms.get_forces()
    atoms.positions[1] = atoms.positions[0] + 2.3 * axis
    assert np.isfinite(atoms.get_forces()).all()


def test_a_follower_is_made_once_a_search_for_neighbours(student: PaiNN) -> None:
    made, atoms = [], scenes.crystal(SI)

    def follow(edges: Graph) -> Follower:
        made.append(edges)
        graph = build_graph(atoms, student.cutoff)

        def follower(positions: torch.Tensor, *, stress: bool) -> tuple[Prediction, float]:
            return student.predict(graph.with_geometry(positions, graph.cells), stress=stress), 2.0

        return follower

    calculator = ZooCalculator(student, follow=follow)
    atoms.calc = calculator
    for _ in range(3):
        atoms.positions[0] += 0.02
        expected = student.predict(build_graph(atoms, student.cutoff)).forces
        np.testing.assert_allclose(atoms.get_forces(), expected, atol=1e-12)
    assert len(made) == calculator.neighbors.searches == 1
    atoms.set_cell(atoms.cell * 1.01, scale_atoms=True)
    atoms.get_forces()
    assert len(made) == calculator.neighbors.searches == 2


def test_what_changes_of_a_structure_is_seen_and_the_rest_is_remembered(student: PaiNN, crystal: Atoms) -> None:
    def forces(atoms: Atoms) -> np.ndarray:
        return np.asarray(student.predict(build_graph(atoms, student.cutoff)).forces)

    for change in ("positions", "cell", "pbc", "more", "back"):
        if change == "positions":
            crystal.positions[0] += 0.1
        elif change == "cell":
            crystal.set_cell(crystal.cell * 1.02)
        elif change == "pbc":
            crystal.pbc = (True, True, False)
        elif change == "more":
            crystal.append("Si")
            crystal.positions[-1] = crystal.positions[0] + (1.0, 1.5, 1.2)
        else:
            del crystal[-1]
        np.testing.assert_allclose(crystal.get_forces(), forces(crystal), atol=1e-12, err_msg=change)
        before = crystal.calc.results
        crystal.get_potential_energy()
        assert crystal.calc.results is before
    crystal.calc.reset()
    assert not crystal.calc.results
    np.testing.assert_allclose(crystal.get_forces(), forces(crystal), atol=1e-12)


@pytest.mark.parametrize("way", ["info", "initial charges", "other atoms"])
def test_a_charge_that_is_stated_later_is_seen(way: str, student: PaiNN, crystal: Atoms) -> None:
    def check(atoms: Atoms, graph: Graph) -> None:
        check_charge(atoms, 0, "it")

    crystal.calc = ZooCalculator(student, check=check, nearest=1.0)
    before = crystal.get_potential_energy()
    if way == "info":
        crystal.info["charge"] = 1
    elif way == "initial charges":
        crystal.set_initial_charges([0.5] * len(crystal))
    else:
        other, calculator = crystal.copy(), crystal.calc
        other.info["spin"] = 3
        crystal = other
        crystal.calc = calculator
    with pytest.raises(DomainError, match="Si2 states"):
        crystal.get_potential_energy()
    crystal.info.clear()
    crystal.set_initial_charges([0.5, -0.5])
    assert crystal.get_potential_energy() == before


def test_a_follower_that_there_is_not_leaves_it_to_the_potential(student: PaiNN, crystal: Atoms) -> None:
    expected = crystal.get_forces()
    crystal.calc = ZooCalculator(student, follow=lambda edges: None)
    np.testing.assert_array_equal(crystal.get_forces(), expected)


def test_a_stress_that_is_not_finite_is_an_error(student: PaiNN, crystal: Atoms) -> None:
    def predict(graph: Graph, *, stress: bool) -> Prediction:
        found = student.predict(graph, stress=stress)
        return found if found.stress is None else replace(found, stress=found.stress * torch.nan)

    crystal.calc = ZooCalculator(student, predict=predict)
    assert np.isfinite(crystal.get_forces()).all()
    with pytest.raises(DivergedError, match="not finite"):
        crystal.get_stress()


def test_a_calculator_that_was_used_can_be_copied_and_sent(crystal: Atoms) -> None:
    expected = crystal.get_forces()
    for calculator in (copy.deepcopy(crystal.calc), pickle.loads(pickle.dumps(crystal.calc))):
        moved = crystal.copy()
        moved.positions += 0.01
        moved.calc = calculator
        np.testing.assert_allclose(moved.get_forces(), expected, atol=1e-10)


def test_a_potential_without_stress_has_none_of_a_crystal_either(crystal: Atoms) -> None:
    crystal.calc = ZooCalculator(load_teacher("stillinger-weber/direct-teacher").potential)
    with pytest.raises(PropertyNotImplementedError, match="gives no stress"):
        crystal.get_stress()
    assert "stress" not in crystal.calc.results


def test_an_unknown_element_is_an_error_whatever_the_check(crystal: Atoms) -> None:
    crystal.symbols[0] = "Ge"
    with pytest.raises(DomainError, match=r"has Ge.*for Si alone"):
        crystal.get_potential_energy()


def test_numbers_that_are_not_finite_are_an_error(student: PaiNN, crystal: Atoms) -> None:
    student.scale.fill_(float("inf"))
    with pytest.raises(DivergedError, match="not finite"):
        crystal.get_forces()


def test_atoms_on_one_spot_are_an_error(crystal: Atoms) -> None:
    crystal.positions[1] = crystal.positions[0]
    with pytest.raises(StructureError, match="apart"):
        crystal.get_forces()


def test_float32_gives_float64_arrays(crystal: Atoms) -> None:
    crystal.calc = ZooCalculator(scenes.tiny_painn("Si").to(torch.float32))
    assert crystal.get_forces().dtype == crystal.get_stress().dtype == np.float64


def test_forces_without_an_energy_are_given_and_the_energy_is_not(crystal: Atoms) -> None:
    crystal.calc = ZooCalculator(load_teacher("stillinger-weber/direct-teacher").potential)
    assert np.isfinite(crystal.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError, match="gives forces alone"):
        crystal.get_potential_energy()
    (prediction,) = zoo.load("stillinger-weber/direct-teacher").predict(crystal)
    assert np.allclose(prediction.forces, crystal.get_forces())


def test_many_elements_are_counted() -> None:
    assert elements_text(["Si"]) == "Si"
    assert elements_text([*"HBCNOFPSKV"]) == "H, B, C, N, O, F, P, S… (10 elements)"
