"""The noise of forces, the step that it asks for, and the error of what is left: against functions that are known."""

from collections.abc import Callable, Collection
from hashlib import sha256
from itertools import pairwise
from math import hypot
from typing import Any

import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from zoo.neighbors import build_graph
from zoo.potential import Traits
from zoo.teachers import load_teacher
from zoo.teachers.calculators import from_calculator
from zoo.teachers.differences import Answer, Ask, DifferencesPotential, MeasuredDifferences
from zoo.teachers.noise import LARGEST, POINTS, SMALLEST, Differences, Table, best_step, measure

EXACT = load_teacher("stillinger-weber/teacher", dtype=torch.float64).potential
NOISES = [1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9]


def _waves(noise: float, seed: int) -> tuple[Callable[[float], np.ndarray], float]:
    """Forces of 5 atoms along a line, of some 50 eV/Å, and their third derivative's root mean square."""
    random = np.random.default_rng(seed)
    phases, waves = random.uniform(0, 2 * np.pi, 15), random.uniform(1, 4, 15)  # 1/Å

    def forces_at(distance: float) -> np.ndarray:
        forces = 50 * np.sin(waves * distance + phases) + noise * random.normal(size=15)
        return np.asarray(forces.reshape(5, 3))

    return forces_at, float(np.sqrt(np.mean((50 * waves**3 * np.cos(phases)) ** 2)))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("seed", range(5))
def test_noise_that_was_added_is_measured(noise: float, seed: int) -> None:
    forces_at, _ = _waves(noise, seed)
    found = measure(forces_at, forces_at(0.0))
    assert noise / 1.7 < found.noise_eV_A < 1.7 * noise


@pytest.mark.parametrize("noise", NOISES)
def test_the_step_is_that_of_the_true_noise_and_the_true_third_derivative(noise: float) -> None:
    forces_at, third = _waves(noise, seed=1)
    found = measure(forces_at, forces_at(0.0))
    assert found.step_A == pytest.approx(best_step(noise, third), rel=0.25)


def test_the_best_step_is_where_the_expected_error_is_least() -> None:
    best = best_step(1e-4, 500.0)

    def error(step: float) -> float:
        noise = Differences(step_A=step, noise_eV_A=1e-4, third_eV_A4=500.0).noise_part
        return hypot(noise, 500.0 * step**2 / 6)

    assert best == pytest.approx((3e-4 / 500) ** (1 / 3), rel=0.05)
    assert error(best) < min(error(0.8 * best), error(1.25 * best))


def test_the_noise_of_a_difference_is_that_of_two_forces_over_its_length() -> None:
    noise = 1e-3 * np.random.default_rng(0).normal(size=(2, 100_000))
    found = Differences(step_A=0.02, noise_eV_A=1e-3, third_eV_A4=0.0)
    assert found.noise_part == pytest.approx(np.std((noise[0] - noise[1]) / 0.04), rel=0.01)


@pytest.mark.parametrize(("noise", "third", "step"), [(0.0, 0.0, SMALLEST), (1e-15, 1e3, SMALLEST), (1.0, 1, LARGEST)])
def test_steps_stay_within_their_bounds(noise: float, third: float, step: float) -> None:
    assert best_step(noise, third) == step


def test_a_step_that_was_given_stays_and_its_error_is_measured() -> None:
    forces_at, third = _waves(1e-4, seed=2)
    found = measure(forces_at, forces_at(0.0), step=0.02)
    assert found.step_A == 0.02
    assert found.noise_eV_A == pytest.approx(1e-4, rel=0.5)
    assert found.third_eV_A4 == pytest.approx(third, rel=0.1)


def test_levels_of_noise_are_equal_and_those_of_a_polynomial_end() -> None:
    random = np.random.default_rng(0)
    np.testing.assert_allclose(Table(1e-2, random.normal(size=(POINTS, 10_000))).levels(), 1, rtol=0.05)
    cubic = Table(1e-2, np.linspace(-1, 1, POINTS)[:, None] ** 3)
    assert cubic.levels()[3] < 1e-12 < cubic.levels()[2]
    assert cubic.third(0.0) == pytest.approx(6 / 0.04**3)  # of x³, where x goes from −1 to 1 within 0.08 Å


def test_noise_is_taken_away_from_the_third_derivative_that_it_hides() -> None:
    spacing, noise = 1e-2, 1e-3
    line = spacing * (np.arange(POINTS) - POINTS // 2)[:, None]
    forces = 30 * line**3 + noise * np.random.default_rng(0).normal(size=(POINTS, 20_000))
    assert Table(spacing, forces).third(0.0) > 250, "with the noise"
    assert Table(spacing, forces).third(noise) == pytest.approx(180, rel=0.05)


@pytest.mark.parametrize("steepness", [1.0, 10.0, 100.0, 1000.0])
def test_what_rises_steeply_is_no_noise(steepness: float) -> None:
    line = np.linspace(-0.04, 0.04, POINTS)[:, None]
    assert Table(1e-2, np.exp(steepness * line)).noise() is None


def test_forces_that_are_all_zero_have_the_smallest_step() -> None:
    found = measure(lambda distance: np.zeros((1, 3)), np.zeros((1, 3)))
    assert (found.step_A, found.noise_eV_A, found.third_eV_A4) == (SMALLEST, 0, 0)


def test_how_many_calls_a_measurement_takes() -> None:
    for noise, calls in ((1e-3, 8), (1e-9, 16), (1e-12, 24)):
        asked: list[float] = []
        forces_at, _ = _waves(noise, seed=3)

        def counted(
            distance: float, ask: Callable[[float], np.ndarray] = forces_at, seen: list[float] = asked
        ) -> np.ndarray:
            seen.append(distance)
            return ask(distance)

        measure(counted, forces_at(0.0))
        assert len(asked) == calls


# --- of potentials: is the step good, and is the error the one that is stated? ------------------------------


def _noisy(ask: Ask, noise: float) -> Ask:
    """The same with normal noise in the forces, which positions decide: asked again, the same comes back."""

    def noisy(numbers: np.ndarray, positions: np.ndarray, *rest: Any) -> Answer:
        answer = ask(numbers, positions, *rest)
        random = np.random.default_rng(list(sha256(positions.tobytes()).digest()))
        return Answer(answer.energy, answer.forces + noise * random.normal(size=answer.forces.shape), answer.stress)

    return noisy


def _silicon(
    numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, more: Collection[str]
) -> Answer:
    found = EXACT.predict(build_graph(Atoms(numbers, positions, cell=cell, pbc=pbc), EXACT.cutoff), stress=True)
    return Answer(float(found.energy), found.forces.numpy(), found.stress[0].numpy())


def _check(ask: Ask, atoms: Atoms, exact: torch.Tensor, probes: torch.Tensor) -> Differences:
    """The error of the chosen step is near the best of a scan, and near what is stated."""
    elements = tuple(sorted(set(atoms.numbers.tolist())))
    graph = build_graph(atoms, 1.0)
    measured = MeasuredDifferences(ask, elements, name="x", traits=Traits()).to(torch.float64)
    found = measured.measure(graph, probes[0])
    products = measured.predict(graph, probes=probes).hessian_products
    error = _rms(products - exact)
    scan = []
    for step in np.geomspace(SMALLEST, LARGEST, 9):
        fixed = DifferencesPotential(ask, elements, name="x", traits=Traits(), step=step).to(torch.float64)
        scan.append(_rms(fixed.predict(graph, probes=probes).hessian_products - exact))
    assert error < 5 * min(scan), f"{found}: {error:.2e}, best {min(scan):.2e}"
    lengths = probes.norm(dim=-1).amax(dim=-1).square().mean().sqrt().item()
    stated = lengths * measured.error(measured.truncation(graph, probes[0], products[0]))
    assert error / 5 < stated < 5 * error, f"{found}: {error:.2e}, stated {stated:.2e}"
    return found


def _rms(difference: torch.Tensor) -> float:
    return float(difference.square().mean().sqrt())


def _signs(atoms: Atoms, count: int = 4) -> torch.Tensor:
    drawn = torch.randint(0, 2, (count, len(atoms), 3), generator=torch.Generator().manual_seed(5))
    return 2.0 * drawn.double() - 1


def _rows(atoms: Atoms) -> torch.Tensor:
    return torch.eye(3 * len(atoms), dtype=torch.float64)[:4].reshape(4, len(atoms), 3)


def _extrapolated(ask: Ask, atoms: Atoms, probes: torch.Tensor, steps: tuple[float, ...]) -> torch.Tensor:
    """Products by differences at h, h/2 and h/4, of which the errors of second and fourth order are taken away."""
    elements = tuple(sorted(set(atoms.numbers.tolist())))
    found = []
    for step in steps:
        potential = DifferencesPotential(ask, elements, name="x", traits=Traits(), step=step).to(torch.float64)
        found.append(potential.predict(build_graph(atoms, 1.0), probes=probes).hessian_products)
    first = [(4 * fine - coarse) / 3 for coarse, fine in pairwise(found)]
    return (16 * first[1] - first[0]) / 15


@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-5, 1e-3])
@pytest.mark.parametrize("probes_of", [_signs, _rows])
def test_silicon_with_noise_has_a_good_step_and_an_honest_error(
    noise: float, probes_of: Callable[[Atoms], torch.Tensor]
) -> None:
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    probes = probes_of(atoms)
    exact = EXACT.predict(build_graph(atoms, EXACT.cutoff), probes=probes).hessian_products
    found = _check(_noisy(_silicon, noise), atoms, exact, probes)
    if noise:
        assert noise / 3 < found.noise_eV_A < 3 * noise


def test_copper_in_effective_medium_theory_has_a_good_step_and_an_honest_error() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=2)
    ask, probes = from_calculator(EMT()), _signs(atoms)
    _check(ask, atoms, _extrapolated(ask, atoms, probes, (4e-3, 2e-3, 1e-3)), probes)


@pytest.mark.xtb
def test_ethanol_with_a_loose_self_consistency_has_a_good_step_and_an_honest_error() -> None:
    from tblite.ase import TBLite

    def calculator(accuracy: float) -> TBLite:
        return TBLite(method="GFN2-xTB", verbosity=0, accuracy=accuracy, cache_api=False)

    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    probes, tight = _signs(atoms, count=2), from_calculator(calculator(1e-4))
    exact = _extrapolated(tight, atoms, probes, (4e-3, 2e-3, 1e-3))
    _check(from_calculator(calculator(1.0)), atoms, exact, probes)


def test_the_noise_of_single_precision_is_seen() -> None:
    single = load_teacher("stillinger-weber/teacher", dtype=torch.float32).potential

    def ask(
        numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, more: Collection[str]
    ) -> Answer:
        graph = build_graph(Atoms(numbers, positions, cell=cell, pbc=pbc), single.cutoff, dtype=torch.float32)
        found = single.predict(graph)
        return Answer(float(found.energy), found.forces.double().numpy())

    atoms = scenes.crystal((14,))
    probes = _signs(atoms)
    exact = EXACT.predict(build_graph(atoms, EXACT.cutoff), probes=probes).hessian_products
    found = _check(ask, atoms, exact, probes)
    assert 1e-8 < found.noise_eV_A < 1e-5
