from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.units import kB

from zoo.calculator import ZooCalculator
from zoo.errors import DomainError
from zoo.evaluate.dynamics import Dynamics, _start, nve
from zoo.graph import Graph
from zoo.teachers.stillinger_weber import StillingerWeber
from zoo.thermal import thermal_velocities


def run(
    *,
    steps: int,
    timestep_fs: float = 1.0,
    kelvin: float = 600.0,
    check: Callable[[Atoms, Graph], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Dynamics:
    return nve(
        bulk("Si", a=5.431, cubic=True),
        ZooCalculator(StillingerWeber(), check=check),
        temperature_K=kelvin,
        timestep_fs=timestep_fs,
        steps=steps,
        generator=np.random.default_rng(11),
        on_step=on_step,
    )


def test_the_error_of_the_energy_falls_with_the_square_of_the_step() -> None:
    coarse, fine = run(steps=100, timestep_fs=2.0), run(steps=200, timestep_fs=1.0)
    assert coarse.fluctuation_meV_atom is not None
    assert fine.fluctuation_meV_atom is not None
    assert coarse.fluctuation_meV_atom / fine.fluctuation_meV_atom == pytest.approx(4.0, rel=0.1)


def test_energy_is_kept_and_shared_with_the_potential() -> None:
    found = run(steps=400)
    assert found.completed
    assert found.reason is None
    assert found.drift_meV_atom_ps is not None
    assert abs(found.drift_meV_atom_ps) < 0.5
    assert found.times_ps[[0, -1]] == pytest.approx([0, 0.4])
    assert found.temperatures_K[0] == pytest.approx(600)
    assert found.temperatures_K[100:].mean() == pytest.approx(300, rel=0.2)


def test_the_drift_is_the_slope_after_the_start() -> None:
    found = run(steps=200, timestep_fs=2.0)
    slope = np.polyfit(found.times_ps[20:], found.energies_eV_atom[20:], 1)[0]
    assert found.drift_meV_atom_ps == pytest.approx(1000 * slope)


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = run(steps=5), run(steps=5)
    assert (first.energies_eV_atom == second.energies_eV_atom).all()


def test_the_atoms_given_stay_as_they_are() -> None:
    atoms = bulk("Si", a=5.431, cubic=True)
    before = atoms.copy()
    calculator = ZooCalculator(StillingerWeber())
    generator = np.random.default_rng(1)
    nve(atoms, calculator, temperature_K=900.0, timestep_fs=1.0, steps=3, generator=generator)
    assert (atoms.positions == before.positions).all()
    assert (atoms.get_velocities() == 0).all()
    assert atoms.calc is None


@pytest.mark.parametrize("steps", [1, 5, 100])
def test_a_short_run_has_no_drift_and_says_so(steps: int) -> None:
    found = run(steps=steps)
    assert found.completed
    assert found.drift_meV_atom_ps is None
    assert found.reason is not None
    assert "too short for a drift" in found.reason


def test_an_explosion_ends_the_run_and_says_why() -> None:
    found = run(steps=500, timestep_fs=60.0, kelvin=5000.0)
    assert not found.completed
    assert found.reason is not None
    assert "explode" in found.reason or "finite" in found.reason or "apart" in found.reason
    assert found.drift_meV_atom_ps is None
    assert len(found.times_ps) < 500


def test_leaving_the_domain_ends_the_run_and_says_why() -> None:
    def refuse(atoms: Atoms, graph: Graph) -> None:
        if float(graph.edge_vectors().norm(dim=1).min()) < 2.25:
            raise DomainError("too near for this engine")

    found = run(steps=50, check=refuse)
    assert not found.completed
    assert found.reason == "stopped at 0.011 ps: too near for this engine"
    assert len(found.times_ps) == 11


def test_a_structure_that_is_refused_at_once_gives_an_empty_run() -> None:
    def refuse(atoms: Atoms, graph: Graph) -> None:
        raise DomainError("not this one")

    found = run(steps=5, check=refuse)
    assert found.times_ps.shape == (0,)
    assert found.reason is not None
    assert "not this one" in found.reason


def test_progress_is_told_after_each_step() -> None:
    told: list[tuple[int, int]] = []
    run(steps=3, on_step=lambda done, steps: told.append((done, steps)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_velocities_have_their_temperature_and_no_momentum() -> None:
    masses = np.linspace(1, 50, 40)
    velocities = thermal_velocities(masses, 500.0, np.random.default_rng(2))
    assert masses @ velocities == pytest.approx(np.zeros(3), abs=1e-12)
    kinetic = 0.5 * (masses @ (velocities**2).sum(axis=1))
    assert 2 * kinetic / ((3 * 40 - 3) * kB) == pytest.approx(500, rel=1e-5)
    assert (velocities[:20] ** 2).mean() > (velocities[20:] ** 2).mean()
    assert (thermal_velocities(masses[:1], 500.0, np.random.default_rng(2)) == 0).all()


class Springs(Calculator):
    """Bonds of a molecule as springs, or, with a negative stiffness, as what pushes its ends apart."""

    implemented_properties = ("energy", "forces")

    def __init__(self, atoms: Atoms, stiffness: float) -> None:
        super().__init__()
        self.lengths, self.stiffness = atoms.get_all_distances(), stiffness

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        vectors, distances = self.atoms.get_all_distances(vector=True), self.atoms.get_all_distances()
        stretch = distances - self.lengths
        along = vectors / np.where(distances > 0, distances, 1)[..., None]
        forces = self.stiffness * (stretch[..., None] * along).sum(axis=1)
        self.results = {"energy": self.stiffness * (stretch**2).sum() / 4, "forces": forces}


WATER = Atoms("OH2", [[0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]])


@pytest.mark.parametrize(
    ("molecule", "freedom"), [(WATER, 3), (Atoms("OCO", [[0, 0, -1.16], [0, 0, 0], [0, 0, 1.16]]), 4)]
)
def test_a_molecule_starts_without_turning_and_has_its_temperature_within(molecule: Atoms, freedom: int) -> None:
    moving = molecule.copy()
    moving.rotate(31, (1, 2, 3))
    assert _start(moving, 700.0, np.random.default_rng(4)) == freedom
    assert moving.get_angular_momentum() == pytest.approx(np.zeros(3), abs=1e-9)
    assert moving.get_momenta().sum(axis=0) == pytest.approx(np.zeros(3), abs=1e-9)
    assert 2 * moving.get_kinetic_energy() / (freedom * kB) == pytest.approx(700, rel=1e-5)


def test_a_molecule_that_holds_keeps_its_energy() -> None:
    found = nve(
        WATER,
        Springs(WATER, 30.0),
        temperature_K=300,
        timestep_fs=0.25,
        steps=2000,
        generator=np.random.default_rng(1),
    )
    assert found.completed
    assert found.drift_meV_atom_ps is not None
    assert abs(found.drift_meV_atom_ps) < 0.5
    assert found.temperatures_K[0] == pytest.approx(300)


def test_a_molecule_that_comes_apart_ends_the_run_and_says_when() -> None:
    found = nve(
        WATER,
        Springs(WATER, -0.5),
        temperature_K=300,
        timestep_fs=0.25,
        steps=2000,
        generator=np.random.default_rng(1),
    )
    assert not found.completed
    assert found.drift_meV_atom_ps is None
    assert found.reason is not None
    assert found.reason.startswith("it came apart: O0 and H")
    assert found.reason.endswith(f"at {found.times_ps[-1]:.3f} ps")


def test_a_crystal_may_change_its_neighbours() -> None:
    """Atoms of a liquid leave theirs, and none of it is an end."""
    apart = bulk("Si", a=5.431, cubic=True)
    found = nve(
        apart,
        Springs(apart, -0.01),
        temperature_K=600,
        timestep_fs=1,
        steps=20,
        generator=np.random.default_rng(1),
    )
    assert found.completed
