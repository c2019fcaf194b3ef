"""Relaxation: where it ends, what it keeps, and what stops it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from gemnets import tiny_gemnet

from zoo.calculator import ZooCalculator
from zoo.errors import CapabilityError, ConfigError, DomainError, StructureError
from zoo.relax import Settings, relax
from zoo.teachers import load_teacher
from zoo.units import GPA_PER_EV_A3

A0, E0 = 5.4309, -4.3366  # Å and eV/atom: silicon by Stillinger and Weber


@pytest.fixture
def calculator():
    return ZooCalculator(load_teacher("stillinger-weber/teacher", dtype=torch.float64).potential)


def silicon(lattice=A0, rattle=0.08):
    atoms = bulk("Si", "diamond", a=lattice, cubic=True)
    atoms.rattle(rattle, seed=1)
    return atoms


def sheared():
    atoms = silicon(5.6)
    atoms.set_cell(atoms.cell @ np.array([[1.02, 0.03, 0.0], [0.0, 0.98, 0.02], [0.0, 0.0, 1.0]]), scale_atoms=True)
    return atoms


def angles_and_ratios(atoms):
    return [*atoms.cell.angles(), *(atoms.cell.lengths() / atoms.cell.lengths()[0])]


@pytest.mark.parametrize("optimizer", ["fire", "lbfgs", "bfgs"])
def test_atoms_move_to_the_minimum_and_those_that_were_given_stay(optimizer, calculator):
    atoms = silicon()
    before = atoms.positions.copy()
    found = relax(atoms, calculator, Settings(fmax_eV_A=1e-3, optimizer=optimizer))
    assert found.converged
    assert found.stopped is None
    assert found.fmax_eV_A < 1e-3
    assert 0 < found.steps < 100
    assert found.energy_eV / 8 == pytest.approx(E0, abs=1e-3)
    np.testing.assert_array_equal(atoms.positions, before)
    np.testing.assert_array_equal(found.atoms.cell, atoms.cell)
    assert found.stress_GPa is None


def test_a_free_cell_finds_lattice_and_shape(calculator):
    found = relax(sheared(), calculator, Settings(fmax_eV_A=1e-3, cell="full", optimizer="lbfgs"))
    assert found.converged
    np.testing.assert_allclose(found.atoms.cell.cellpar(), [A0] * 3 + [90] * 3, rtol=2e-3)
    assert found.energy_eV / 8 == pytest.approx(E0, abs=1e-4)
    assert found.stress_GPa < 0.01


def test_a_large_cell_relaxes_without_a_warning(calculator):
    atoms = silicon().repeat(2)
    found = relax(atoms, calculator, Settings(cell="full", steps=3))
    assert found.steps == 3
    assert found.energy_eV < 8 * relax(silicon(), calculator, Settings(steps=1)).energy_eV


def test_a_volume_changes_without_the_shape(calculator):
    atoms = sheared()
    found = relax(atoms, calculator, Settings(cell="volume", optimizer="lbfgs"))
    assert found.converged
    assert found.atoms.get_volume() < 0.98 * atoms.get_volume()
    np.testing.assert_allclose(angles_and_ratios(found.atoms), angles_and_ratios(atoms), rtol=1e-8)
    assert np.abs(found.atoms.get_stress()[3:]).max() * GPA_PER_EV_A3 > 0.1  # of the shape, which is kept
    assert found.stress_GPa < 0.1


@pytest.mark.parametrize("cell", ["volume", "full"])
def test_a_pressure_is_balanced_by_the_stress(cell, calculator):
    settings = Settings(fmax_eV_A=1e-3, cell=cell, pressure_GPa=3.0, optimizer="lbfgs")
    found = relax(silicon(), calculator, settings)
    assert found.converged
    np.testing.assert_allclose(found.atoms.get_stress()[:3] * GPA_PER_EV_A3, -3.0, atol=0.03)
    assert found.stress_GPa < 0.03
    assert found.atoms.get_volume() < A0**3


def test_constraints_info_and_arrays_stay_and_old_results_do_not(calculator):
    atoms = silicon()
    atoms.set_constraint(FixAtoms([0, 3]))
    atoms.info |= {"name": "mine", "energy": 17.0}
    atoms.arrays["site"] = np.arange(8)
    atoms.arrays["forces"] = np.ones((8, 3))
    found = relax(atoms, calculator, Settings())
    assert found.converged
    assert found.atoms.info == {"name": "mine"}
    assert found.atoms.arrays["site"].tolist() == list(range(8))
    assert "forces" not in found.atoms.arrays
    moved = np.abs(found.atoms.positions - atoms.positions).max(axis=1)
    assert (moved[[0, 3]] == 0).all()
    assert moved.max() > 0.01
    assert found.atoms.constraints[0].index.tolist() == [0, 3]
    raw = found.atoms.get_forces(apply_constraint=False)
    assert np.abs(raw[[0, 3]]).max() > found.fmax_eV_A
    assert atoms.info["energy"] == 17.0


def test_steps_that_ran_out_are_no_convergence(calculator):
    found = relax(silicon(), calculator, Settings(fmax_eV_A=1e-8, steps=3))
    assert not found.converged
    assert found.steps == 3
    assert found.stopped is None


def test_each_step_is_seen_with_its_results(calculator):
    seen = []
    found = relax(silicon(), calculator, Settings(), on_step=lambda atoms, step: seen.append((step, atoms)))
    assert [step for step, _ in seen] == list(range(found.steps + 1))
    energies = [atoms.get_potential_energy() for _, atoms in seen]
    assert energies[0] > energies[-1] == found.energy_eV
    np.testing.assert_array_equal(seen[-1][1].positions, found.atoms.positions)
    np.testing.assert_array_equal(seen[0][1].positions, silicon().positions)


def shortest(atoms):
    distances = atoms.get_all_distances(mic=True)
    return distances[distances > 0].min()


def pair(distance=3.2):
    return Atoms("Si2", positions=[[0, 0, 0], [0, 0, distance]])


@pytest.mark.parametrize(("atoms", "cell"), [(pair(), "none"), (silicon(6.0), "full")], ids=["pair", "crystal"])
def test_atoms_that_leave_the_domain_end_as_they_last_were_inside(atoms, cell, calculator):
    free = relax(atoms, calculator, Settings(cell=cell))
    limit, seen = (shortest(atoms) + shortest(free.atoms)) / 2, []
    assert free.converged
    assert shortest(free.atoms) < shortest(atoms)

    def stay_apart(one, graph):
        if shortest(one) < limit:
            raise DomainError("too close")

    calculator = ZooCalculator(calculator.potential, check=stay_apart)
    found = relax(atoms, calculator, Settings(cell=cell), on_step=lambda one, step: seen.append(one))
    assert found.stopped == "too close"
    assert not found.converged
    assert 0 < found.steps == len(seen) - 1 < free.steps
    assert shortest(found.atoms) >= limit
    again = found.atoms.copy()
    again.calc = ZooCalculator(calculator.potential)
    assert again.get_potential_energy() == pytest.approx(found.energy_eV, abs=1e-9)


def test_numbers_that_are_not_finite_end_it_before_they_are_kept(calculator):
    potential, calls = calculator.potential, []

    def predict(graph, **options):
        calls.append(1)
        found = potential.predict(graph, **options)
        return found if len(calls) < 4 else replace(found, forces=found.forces * torch.nan)

    found = relax(silicon(), ZooCalculator(potential, predict=predict), Settings())
    assert "is not finite" in found.stopped
    assert found.steps == 2
    assert np.isfinite(found.atoms.get_forces()).all()


def test_atoms_that_are_refused_at_the_start_are_an_error(calculator):
    broken = silicon()
    broken.positions[2, 1] = np.nan
    with pytest.raises(StructureError, match="is not a finite number"):
        relax(broken, calculator, Settings())
    with pytest.raises(StructureError, match="not periodic in all three directions; relax it with --cell none"):
        relax(molecule("H2O"), EMT(), Settings(cell="full"))


def test_what_a_potential_lacks_is_named():
    forces_alone = load_teacher("stillinger-weber/direct-teacher", dtype=torch.float64).potential
    with pytest.raises(CapabilityError, match="gives forces alone, and no energy; relaxing takes both"):
        relax(silicon(), ZooCalculator(forces_alone), Settings())
    without_stress = ZooCalculator(tiny_gemnet("Si", direct=True))
    with pytest.raises(CapabilityError, match="gives no stress; relax with --cell none"):
        relax(silicon(), without_stress, Settings(cell="full"))
    assert relax(silicon(), without_stress, Settings(steps=1)).steps == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fmax_eV_A": 0}, "fmax_eV_A is 0; give a positive number"),
        ({"fmax_eV_A": float("nan")}, "fmax_eV_A is nan; give a positive number"),
        ({"steps": -1}, "steps is -1; give a positive number"),
        ({"cell": "shape"}, "cell is 'shape'; choose one of none, volume, full"),
        ({"optimizer": "newton"}, "optimizer is 'newton'; choose one of fire, lbfgs, bfgs"),
        ({"pressure_GPa": float("inf"), "cell": "full"}, "pressure_GPa is inf; give a number"),
        ({"pressure_GPa": 2.0}, "a pressure of 2 GPa cannot act on a kept cell; choose --cell volume or full"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ConfigError, match=message):
        Settings(**settings)
