"""Hessian products by differences of forces: against automatic differentiation, and of any calculator of ASE."""

from collections import Counter
from collections.abc import Collection
from typing import Any, ClassVar

import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT

from zoo.errors import CapabilityError, DivergedError, DomainError
from zoo.graph import Graph
from zoo.neighbors import build_graph
from zoo.potential import Potential, Traits
from zoo.teachers import load_teacher
from zoo.teachers.calculators import from_calculator
from zoo.teachers.differences import Answer, Ask, DifferencesPotential, MeasuredDifferences

EXACT = load_teacher("stillinger-weber/teacher", dtype=torch.float64).potential


def _ask(
    numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, more: Collection[str] = ()
) -> Answer:
    """Stillinger and Weber's silicon, whose Hessian is known, as a program that gives energy, forces and stress."""
    graph = build_graph(Atoms(numbers, positions, cell=cell, pbc=pbc), EXACT.cutoff)
    found = EXACT.predict(graph, stress=True)
    return Answer(
        float(found.energy), found.forces.numpy(), found.stress[0].numpy(), found.atomic_energies.double().numpy()
    )


def _silicon(ask: Ask = _ask, step: float = 1e-4, **declared: Any) -> DifferencesPotential:
    made = DifferencesPotential(ask, (14,), name="silicon", traits=Traits(**declared), step=step)
    return made.to(torch.float64)


def _asked(potential: Potential, structures: Atoms | list[Atoms], **wanted: Any) -> Any:
    return potential.predict(build_graph(structures, EXACT.cutoff), **wanted)


def _probes(count: int, atoms: int) -> torch.Tensor:
    return torch.randn(count, atoms, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


PARTS = [scenes.crystal((14,)), scenes.isolated((14,)), scenes.molecule((14,)), scenes.dimer((14,))]


def test_a_batch_of_structures_is_what_differentiation_says_of_it() -> None:
    probes = _probes(2, sum(map(len, PARTS)))
    ours = _asked(_silicon(), PARTS, stress=True, probes=probes, gradient=True)
    theirs = _asked(EXACT, PARTS, stress=True, probes=probes, gradient=True)
    for name in ("energy", "atomic_energies", "forces", "stress", "energy_gradient"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), equal_nan=True)
    assert ours.stress[1:].isnan().all()
    error = (ours.hessian_products - theirs.hessian_products).abs().max() / theirs.hessian_products.abs().max()
    assert error < 1e-6


def test_the_error_of_a_product_falls_with_the_square_of_the_step() -> None:
    atoms = scenes.crystal((14,))
    probes = _probes(1, 2)
    exact = _asked(EXACT, atoms, probes=probes).hessian_products
    errors = [
        (_asked(_silicon(step=step), atoms, probes=probes).hessian_products - exact).norm() for step in (2e-2, 1e-2)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("length", [1e-6, 1.0, 1e6])
def test_the_largest_displacement_is_the_step_whatever_the_length_of_a_probe(length: float) -> None:
    places: list[np.ndarray] = []

    def noted(numbers: np.ndarray, positions: np.ndarray, *rest: Any) -> Answer:
        places.append(positions)
        return _ask(numbers, positions, *rest)

    atoms = scenes.molecule((14,))
    potential = _silicon(noted)
    got = _asked(potential, atoms, probes=length * _probes(1, 4)).hessian_products / length
    moved = [np.linalg.norm(place - atoms.positions, axis=1).max() for place in places]
    np.testing.assert_allclose(moved, [0, potential.step, potential.step], rtol=1e-9)
    torch.testing.assert_close(got, _asked(_silicon(), atoms, probes=_probes(1, 4)).hessian_products)


def test_a_probe_that_is_zero_costs_nothing_and_no_probes_are_none() -> None:
    calls: list[int] = []

    def counted(*given: Any) -> Answer:
        calls.append(1)
        return _ask(*given)

    atoms = scenes.molecule((14,))
    assert not _asked(_silicon(counted), atoms, probes=torch.zeros(2, 4, 3)).hessian_products.any()
    assert len(calls) == 1
    assert _asked(_silicon(), atoms, probes=torch.zeros(0, 4, 3)).hessian_products.shape == (0, 4, 3)
    assert _asked(_silicon(), atoms).hessian_products is None


def test_displacements_are_not_rounded_to_the_type_of_the_answers() -> None:
    atoms = scenes.molecule((14,))
    atoms.positions += 300  # where float32 has steps of 3e-5 Å, a third of the displacement
    graph = build_graph(atoms, EXACT.cutoff, dtype=torch.float32)
    single = _silicon().to(torch.float32).predict(graph, probes=_probes(1, 4).float())
    assert single.hessian_products.dtype == single.forces.dtype == torch.float32
    assert single.energy.dtype == torch.float64
    exact = EXACT.predict(graph.to("cpu", torch.float64), probes=_probes(1, 4)).hessian_products
    torch.testing.assert_close(single.hessian_products.double(), exact, rtol=1e-4, atol=1e-4)


def test_the_hessian_is_symmetric_and_chosen_rows_are_rows_of_it() -> None:
    graph = build_graph(scenes.molecule((14,)), EXACT.cutoff)
    dense, exact = _silicon().hessian(graph), EXACT.hessian(graph)
    assert torch.equal(dense, dense.t())
    torch.testing.assert_close(dense, exact, rtol=1e-6, atol=1e-6)
    rows = torch.tensor([5, 0, 3])
    torch.testing.assert_close(_silicon().hessian(graph, rows), exact[rows], rtol=1e-6, atol=1e-6)
    with pytest.raises(CapabilityError, match="one at a time"):
        _silicon().hessian(build_graph(PARTS, EXACT.cutoff))


def test_without_energies_of_atoms_each_has_its_share() -> None:
    def told_nothing(*given: Any) -> Answer:
        whole = _ask(*given)
        return Answer(whole.energy, whole.forces)

    atoms = scenes.crystal((14,))
    potential = _silicon(told_nothing, atomic_energies=False, stress=False)
    found = _asked(potential, [atoms, scenes.molecule((14,))], stress=True)
    torch.testing.assert_close(found.atomic_energies[:2], (found.energy[0] / 2).expand(2))
    torch.testing.assert_close(found.atomic_energies, potential.atomic_energies(_two(atoms)))
    assert found.stress.isnan().all()


def _two(atoms: Atoms) -> Graph:
    return build_graph([atoms, scenes.molecule((14,))], EXACT.cutoff)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"features": True}, "silicon gives no node features"),
        ({"create_graph": True}, "silicon cannot be differentiated"),
    ],
)
def test_what_differences_cannot_give_is_an_error(asked: dict[str, bool], words: str) -> None:
    with pytest.raises(CapabilityError, match=words):
        _asked(_silicon(), scenes.crystal((14,)), **asked)


def test_forces_that_are_no_gradient_are_refused() -> None:
    with pytest.raises(CapabilityError, match="no gradient"):
        _silicon(conservative=False)


def test_an_element_without_parameters_is_named() -> None:
    with pytest.raises(DomainError, match="silicon has no parameters for O, U;"):
        _asked(_silicon(), Atoms("SiUO", [[0, 0, 0], [0, 0, 2], [0, 2, 0]]))


def test_type_and_place_without_parameters() -> None:
    potential = _silicon()
    assert (potential.dtype, potential.device) == (torch.float64, torch.device("cpu"))
    assert potential.to(torch.float32).dtype == torch.float32
    assert not list(potential.parameters())


# --- calculators of ASE ----------------------------------------------------------------------------


def _copper() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=2)
    return atoms


def test_a_calculator_of_ase_is_a_potential() -> None:
    atoms = _copper()
    potential = DifferencesPotential(from_calculator(EMT()), (29,), name="EMT", traits=Traits()).to(torch.float64)
    found = potential.predict(build_graph(atoms, potential.cutoff), stress=True)
    atoms.calc = EMT()
    assert found.energy.item() == pytest.approx(atoms.get_potential_energy())
    np.testing.assert_allclose(found.forces, atoms.get_forces())
    np.testing.assert_allclose(found.stress[0], atoms.get_stress(voigt=False))
    np.testing.assert_allclose(found.atomic_energies, atoms.get_potential_energies())
    molecule = potential.predict(build_graph(Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]]), potential.cutoff), stress=True)
    assert molecule.stress.isnan().all()


class _Smeared(Calculator):
    """A calculator whose forces are the gradient of a free energy, with nothing else."""

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces"]

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 1.0, "free_energy": 3.0, "forces": np.zeros((len(self.atoms), 3))}


def test_the_energy_is_the_one_that_forces_belong_to() -> None:
    potential = DifferencesPotential(from_calculator(_Smeared()), (29,), name="x", traits=Traits()).to(torch.float64)
    found = potential.predict(build_graph(_copper(), potential.cutoff), stress=True)
    assert found.energy.item() == 3.0
    assert found.atomic_energies.tolist() == [0.75] * 4
    assert found.stress.isnan().all()


class _Costly(EMT):
    """Effective medium theory that writes down what it is asked for."""

    asked: ClassVar[list[str]] = []

    def get_property(self, name: str, atoms: Any = None, allow_calculation: bool = True) -> Any:
        self.asked.append(name)
        return super().get_property(name, atoms, allow_calculation)


def test_of_displaced_structures_no_stress_and_no_energies_of_atoms_are_asked_for() -> None:
    _Costly.asked.clear()
    potential = DifferencesPotential(from_calculator(_Costly()), (29,), name="EMT", traits=Traits()).to(torch.float64)
    _asked(potential, _copper(), stress=True, probes=_probes(2, 4))
    counts = Counter(_Costly.asked)
    assert counts["stress"] == counts["energies"] == 1
    assert counts["forces"] == 1 + 2 * 2
    _Costly.asked.clear()
    _asked(potential, _copper())
    assert "stress" not in _Costly.asked


# --- the step that is measured ---------------------------------------------------------------------


def _counted(calls: list[int]) -> Ask:
    def ask(*given: Any) -> Answer:
        calls.append(1)
        return _ask(*given)

    return ask


def test_the_step_is_measured_with_the_first_product_and_then_kept() -> None:
    calls: list[int] = []
    potential = MeasuredDifferences(_counted(calls), (14,), name="silicon", traits=Traits()).to(torch.float64)
    atoms = scenes.molecule((14,))
    assert _asked(potential, atoms).energy is not None
    assert potential.differences is None
    assert len(calls) == 1
    first = _asked(potential, atoms, probes=_probes(1, 4)).hessian_products
    kept, measured = potential.differences, len(calls)
    assert kept is not None
    assert potential.step == kept.step_A
    exact = _asked(EXACT, atoms, probes=_probes(1, 4)).hessian_products
    torch.testing.assert_close(first, exact, rtol=1e-5, atol=1e-5)
    _asked(potential, atoms, probes=_probes(2, 4))
    assert len(calls) == measured + 1 + 2 * 2
    assert potential.differences is kept


def test_a_step_that_is_taken_over_is_not_measured() -> None:
    measured = MeasuredDifferences(_ask, (14,), name="silicon", traits=Traits()).to(torch.float64)
    graph = build_graph(scenes.molecule((14,)), EXACT.cutoff)
    found = measured.measure(graph, _probes(1, 4)[0])
    calls: list[int] = []
    other = MeasuredDifferences(_counted(calls), (14,), name="silicon", traits=Traits()).to(torch.float64)
    other.differences = found.model_copy(update={"step_A": 0.01})
    products = other.predict(graph, probes=_probes(2, 4)).hessian_products
    assert len(calls) == 1 + 2 * 2
    torch.testing.assert_close(products, _silicon(step=0.01).predict(graph, probes=_probes(2, 4)).hessian_products)


def test_what_truncation_adds_is_a_third_of_the_difference_from_twice_the_step() -> None:
    """At a step so large that truncation is all there is, whatever the length of the probe."""
    graph, probes = build_graph(scenes.molecule((14,)), EXACT.cutoff), _probes(1, 4)
    exact = EXACT.predict(graph, probes=probes).hessian_products
    potential = MeasuredDifferences(_ask, (14,), name="silicon", traits=Traits(), step=0.01).to(torch.float64)
    for length in (1.0, 100.0):
        products = potential.predict(graph, probes=length * probes).hessian_products
        longest = length * float(probes.norm(dim=-1).max())
        stated = longest * potential.truncation(graph, length * probes[0], products[0])
        assert stated == pytest.approx(float((products - length * exact).square().mean().sqrt()), rel=0.1)


def test_forces_that_are_not_finite_give_no_step() -> None:
    def broken(*given: Any) -> Answer:
        whole = _ask(*given)
        return Answer(whole.energy, np.full_like(whole.forces, np.nan))

    potential = MeasuredDifferences(broken, (14,), name="silicon", traits=Traits()).to(torch.float64)
    with pytest.raises(DivergedError, match="silicon gives forces that are not finite for Si4; leave"):
        _asked(potential, scenes.molecule((14,)), probes=_probes(1, 4))
