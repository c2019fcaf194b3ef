"""GFN2-xTB: agreement with tblite's own calculator, derivatives by another route, refusals."""

import copy
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.vibrations import Vibrations

from zoo.calculator import ZooCalculator
from zoo.errors import CapabilityError, DivergedError, DomainError, MissingPackageError
from zoo.neighbors import build_graph
from zoo.potential import Prediction
from zoo.teachers import Teacher, load_teacher, xtb
from zoo.teachers.differences import DifferencesPotential
from zoo.units import ANGSTROM_PER_BOHR, EV_PER_HARTREE

NAME = "gfn2-xtb/teacher"
needs_tblite = pytest.mark.xtb


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher(NAME, dtype=torch.float64)


def _rattled(name: str = "CH3CH2OH") -> Atoms:
    atoms = molecule(name)
    atoms.rattle(0.05, seed=1)
    return atoms


def _asked(teacher: Teacher, structures: Atoms | list[Atoms], **wanted: Any) -> Prediction:
    return teacher.potential.predict(build_graph(structures, teacher.potential.cutoff), **wanted)


def _theirs(atoms: Atoms, **parameters: Any) -> Atoms:
    from tblite.ase import TBLite

    atoms = atoms.copy()
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0, accuracy=1e-4, cache_api=False, **parameters)
    return atoms


def test_units_are_those_of_ase() -> None:
    """ASE's are of CODATA 2014, the differences in the ninth digit."""
    assert pytest.approx(units.Hartree, rel=1e-7) == EV_PER_HARTREE
    assert pytest.approx(units.Bohr, rel=1e-8) == ANGSTROM_PER_BOHR


@needs_tblite
@pytest.mark.parametrize("name", ["CH3CH2OH", "H2O", "CO2", "SiH4", "C6H6"])
def test_it_agrees_with_the_calculator_of_tblite(teacher: Teacher, name: str) -> None:
    ours, theirs = _asked(teacher, _rattled(name)), _theirs(_rattled(name))
    assert ours.energy.item() == pytest.approx(theirs.get_potential_energy(), rel=2e-8)
    np.testing.assert_allclose(ours.forces, theirs.get_forces(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours.atomic_energies, theirs.get_potential_energies(), rtol=2e-8)


@needs_tblite
def test_a_hydrogen_atom_has_the_energy_of_its_level(teacher: Teacher) -> None:
    """-10.707211 eV: one electron in the 1s shell of the parameters of GFN2-xTB."""
    assert _asked(teacher, Atoms("H")).energy.item() == pytest.approx(-10.707211, abs=1e-5)


@needs_tblite
def test_forces_are_the_gradient_of_the_energy_and_sum_to_zero(teacher: Teacher) -> None:
    atoms = _rattled()
    found = _asked(teacher, atoms)
    direction = np.random.default_rng(0).normal(size=(9, 3))
    energies = []
    for step in (1e-4, -1e-4):
        moved = atoms.copy()
        moved.positions += step * direction
        energies.append(_asked(teacher, moved).energy.item())
    assert -(found.forces.numpy() * direction).sum() == pytest.approx((energies[0] - energies[1]) / 2e-4, rel=1e-5)
    assert found.forces.sum(dim=0).abs().max() < 1e-10


@needs_tblite
def test_energies_of_the_atoms_sum_to_the_energy(teacher: Teacher) -> None:
    found = _asked(teacher, [_rattled(), _rattled("H2O")])
    sums = torch.stack([part.sum() for part in found.atomic_energies.split([9, 3])])
    torch.testing.assert_close(found.energy, sums)
    assert found.atomic_energies[0] != found.atomic_energies[1], "carbon atoms of ethanol are not alike"


@needs_tblite
def test_the_hessian_is_that_of_displaced_atoms(teacher: Teacher, tmp_path: Path) -> None:
    """By ASE's own differences of four points of tblite's own calculator."""
    atoms = _theirs(_rattled())
    vibrations = Vibrations(atoms, name=str(tmp_path / "modes"), delta=2e-3, nfree=4)
    vibrations.run()
    expected = vibrations.get_vibrations().get_hessian_2d()
    graph = build_graph(_rattled(), teacher.potential.cutoff)
    dense = teacher.potential.hessian(graph)
    np.testing.assert_allclose(dense, expected, atol=2e-4)  # of 50 eV/Å², the stretching of O-H
    assert torch.equal(dense, dense.t())
    probes = torch.randn(2, 9, 3, dtype=torch.float64)
    products = teacher.potential.predict(graph, probes=probes).hessian_products
    torch.testing.assert_close(products.flatten(1), probes.flatten(1) @ dense, rtol=1e-5, atol=1e-4)
    assert dense.reshape(27, 9, 3).sum(dim=1).abs().max() < 1e-4, "moving all atoms alike costs nothing"


@needs_tblite
def test_the_step_is_where_neither_curvature_nor_noise_disturbs(teacher: Teacher) -> None:
    """Relative errors against a difference of four points; the table is in the docstring of the adapter."""
    atoms = _rattled()
    signs = np.sign(np.random.default_rng(0).normal(size=(9, 3)))
    probes = torch.from_numpy(signs)[None]

    def product(step: float) -> torch.Tensor:
        ask = xtb.Molecules(NAME)
        potential = DifferencesPotential(ask, (1, 6, 8), name=NAME, traits=teacher.potential.traits, step=step)
        graph = build_graph(atoms, potential.cutoff)
        return potential.to(torch.float64).predict(graph, probes=probes).hessian_products

    reference = (4 * product(5e-4) - product(1e-3)) / 3
    errors = [float((product(step) - reference).norm() / reference.norm()) for step in (1e-2, 1e-3, xtb._STEP)]
    assert errors[0] > 20 * errors[1], "curvature"
    assert errors[1] > 2e-6
    assert errors[2] < 1e-6


@needs_tblite
def test_answers_are_the_same_each_time_whatever_was_asked_before_and_with_several_threads(teacher: Teacher) -> None:
    atoms, probes = _rattled("C6H6"), torch.ones(1, 12, 3)
    before = torch.get_num_threads()
    first = _asked(teacher, atoms, probes=probes)
    torch.set_num_threads(2)
    try:
        for other in ("H2O", "CH3CH2OH", "C6H6"):
            _asked(teacher, _rattled(other))
            again = _asked(teacher, atoms, probes=probes)
            assert torch.equal(again.energy, first.energy)
            assert torch.equal(again.forces, first.forces)
            assert torch.equal(again.hessian_products, first.hessian_products)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@needs_tblite
def test_a_radical_has_one_unpaired_electron(teacher: Teacher) -> None:
    assert _asked(teacher, _rattled("CH3")).energy.item() == pytest.approx(
        _theirs(_rattled("CH3"), multiplicity=2).get_potential_energy(), rel=2e-8
    )


@needs_tblite
def test_it_serves_as_a_calculator_in_single_precision() -> None:
    single = load_teacher(NAME, dtype=torch.float32)
    atoms = _rattled()
    atoms.calc = ZooCalculator(single.potential)
    assert atoms.get_potential_energy() == pytest.approx(_theirs(atoms).get_potential_energy(), abs=1e-4)


@needs_tblite
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda whole: pickle.loads(pickle.dumps(whole))])
def test_a_copy_says_the_same(teacher: Teacher, copied: Callable[[Any], Any]) -> None:
    twin = copied(teacher)
    assert twin.potential is not teacher.potential
    assert torch.equal(_asked(twin, _rattled()).forces, _asked(teacher, _rattled()).forces)


@needs_tblite
def test_electrons_without_a_self_consistent_state_are_an_error(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(xtb._SETTINGS, "max-iter", 2)
    with pytest.raises(
        DivergedError, match=r"gfn2-xtb/teacher fails for C2OH6 \(.*\); leave the structure out"
    ) as error:
        _asked(teacher, _rattled())
    assert "\n" not in str(error.value)


@needs_tblite
def test_crystals_and_elements_without_parameters_are_refused(teacher: Teacher) -> None:
    with pytest.raises(DomainError, match=r"Si2 is periodic.*atoms\.pbc = False"):
        _asked(teacher, bulk("Si"))
    with pytest.raises(DomainError, match="no parameters for U"):
        _asked(teacher, Atoms("UH", [[0, 0, 0], [0, 0, 2]]))
    boxed = _rattled()
    boxed.cell = [50, 50, 50]
    assert torch.equal(_asked(teacher, boxed).energy, _asked(teacher, _rattled()).energy)


@needs_tblite
def test_what_it_lacks_it_says(teacher: Teacher) -> None:
    traits = teacher.potential.traits
    assert (traits.conservative, traits.energies, traits.atomic_energies) == (True, True, True)
    assert (traits.stress, traits.features, teacher.potential.element_embeddings()) == (False, 0, None)
    assert _asked(teacher, _rattled(), stress=True).stress.isnan().all()
    with pytest.raises(CapabilityError, match="no node features"):
        _asked(teacher, _rattled(), features=True)
    graph = build_graph(_rattled(), teacher.potential.cutoff)
    with pytest.raises(CapabilityError, match="leave forward_mode out"):
        teacher.potential.force_columns(graph, torch.ones(1, 9, 3))


@needs_tblite
def test_it_says_where_it_comes_from(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    assert teacher.package.startswith("tblite ")
    assert (teacher.licence_code, teacher.licence_weights) == ("LGPL-3.0-or-later", "LGPL-3.0-or-later")
    assert load_teacher(NAME).weights_sha256 == teacher.weights_sha256
    monkeypatch.setitem(xtb._SETTINGS, "accuracy", 1.0)
    assert load_teacher(NAME).weights_sha256 != teacher.weights_sha256, "other numbers, another digest"


@pytest.mark.parametrize("package", ["tblite", "threadpoolctl"])
def test_a_missing_package_is_named_with_its_command(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match="pip install tblite threadpoolctl") as error:
        load_teacher(NAME)
    assert package in str(error.value)
    assert "\n" not in str(error.value)
