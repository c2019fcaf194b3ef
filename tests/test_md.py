"""Dynamics for the command line."""

import numpy as np
import pytest
from ase.build import bulk
from ase.constraints import FixAtoms
from ase.io import read

from zoo.calculator import ZooCalculator
from zoo.errors import ConfigError, DomainError
from zoo.md import Settings, energy_drift, run_dynamics
from zoo.teachers import load_teacher


@pytest.fixture
def calculator():
    return ZooCalculator(load_teacher("stillinger-weber/teacher").potential)


def silicon():
    return bulk("Si", "diamond", a=5.43, cubic=True)


def test_energy_is_conserved_and_the_run_is_reproducible(calculator):
    settings = Settings(temperature_K=300, steps=500, every=10, seed=3)
    atoms = silicon()
    samples = run_dynamics(atoms, calculator, settings)
    assert len(samples) == 51
    assert abs(energy_drift(samples, len(atoms))) < 0.1
    again = run_dynamics(silicon(), calculator, settings)
    assert samples == again


def test_velocities_that_atoms_have_are_kept(calculator):
    atoms = silicon()
    atoms.set_velocities(np.outer([1, -1] * 4, np.full(3, 1e-3)))
    first = run_dynamics(atoms, calculator, Settings(steps=1, every=1))[0]
    assert first.temperature_K == pytest.approx(8 * atoms.get_masses()[0] * 3e-6 / (21 * 8.617333262e-5))


def test_a_drift_of_the_whole_is_no_heat_without_a_thermostat(calculator):
    atoms, still = silicon(), silicon()
    for one, drift in ((still, 0.0), (atoms, 0.02)):
        one.set_velocities(np.random.default_rng(0).normal(scale=0.01, size=(8, 3)))
        one.set_velocities(one.get_velocities() - one.get_velocities().mean(axis=0) + drift)
    settings = Settings(steps=4, every=2)
    expected, found = (run_dynamics(one, calculator, settings) for one in (still, atoms))
    assert [one.temperature_K for one in found] == pytest.approx([one.temperature_K for one in expected])
    assert found[0].total_eV > expected[0].total_eV + 0.01


def test_atoms_that_are_held_have_no_temperature(calculator):
    atoms = silicon()
    atoms.set_constraint(FixAtoms([0, 1]))
    atoms.set_velocities(np.outer([1, -1] * 4, np.full(3, 1e-3)))
    first = run_dynamics(atoms, calculator, Settings(steps=1, every=1))[0]
    assert first.temperature_K == pytest.approx(atoms.get_masses()[0] * 3e-6 / (3 * 8.617333262e-5))


def test_a_thermostat_brings_the_temperature(calculator):
    atoms = silicon().repeat(2)
    samples = run_dynamics(atoms, calculator, Settings(ensemble="nvt", temperature_K=400, steps=1500, every=10))
    late = [sample.temperature_K for sample in samples[75:]]
    assert np.mean(late) == pytest.approx(400, rel=0.2)


def test_a_run_that_must_stop_keeps_its_trajectory(calculator, tmp_path):
    def stay_apart(atoms, graph):
        if graph.edge_vectors().norm(dim=1).min() < 2.2:
            raise DomainError("too close")

    calculator = ZooCalculator(calculator.potential, check=stay_apart)
    settings = Settings(steps=100, every=5, temperature_K=2000)
    with pytest.raises(DomainError, match=r"^after \d+ steps \(0\.0\d+ ps\): too close$") as caught:
        run_dynamics(silicon(), calculator, settings, trajectory=tmp_path / "run.traj")
    steps = int(str(caught.value).split()[1])
    assert 5 < steps < 100
    frames = read(tmp_path / "run.traj", index=":")
    assert len(frames) == steps // 5 + 1
    assert min(frame.get_all_distances(mic=True)[~np.eye(8, dtype=bool)].min() for frame in frames) >= 2.2


@pytest.mark.parametrize(("steps", "seen"), [(7, [0, 3, 6, 7]), (2, [0, 2]), (6, [0, 3, 6])])
def test_the_last_step_is_sampled_and_written_once(steps, seen, calculator, tmp_path):
    told, path = [], tmp_path / "run.traj"
    samples = run_dynamics(
        silicon(), calculator, Settings(steps=steps, every=3), trajectory=path, on_sample=told.append
    )
    assert [sample.step for sample in samples] == seen
    assert told == samples
    frames = read(path, index=":")
    assert [frame.get_potential_energy() for frame in frames] == [sample.potential_eV for sample in samples]


def test_a_run_goes_on_from_the_last_frame_with_its_velocities(calculator, tmp_path):
    whole = silicon()
    run_dynamics(whole, calculator, Settings(steps=60))
    run_dynamics(silicon(), calculator, Settings(steps=25), trajectory=tmp_path / "first.traj")
    rest = read(tmp_path / "first.traj")
    samples = run_dynamics(rest, calculator, Settings(steps=35, every=35))
    np.testing.assert_allclose(rest.positions, whole.positions, atol=1e-5)
    np.testing.assert_allclose(rest.get_momenta(), whole.get_momenta(), atol=1e-4)
    assert samples[0].temperature_K > 10


def test_each_step_is_told(calculator):
    steps = []
    run_dynamics(silicon(), calculator, Settings(steps=7, every=5), on_step=steps.append)
    assert steps == list(range(8))


def test_atoms_that_are_refused_leave_no_trajectory(calculator, tmp_path):
    atoms = silicon()
    atoms.symbols[0] = "Ge"
    with pytest.raises(DomainError):
        run_dynamics(atoms, calculator, Settings(), trajectory=tmp_path / "run.traj")
    assert not list(tmp_path.iterdir())


def test_a_trajectory_that_exists_is_refused_or_overwritten(calculator, tmp_path):
    settings, path = Settings(steps=2, every=1), tmp_path / "run.traj"
    run_dynamics(silicon(), calculator, settings, trajectory=path)
    with pytest.raises(ConfigError, match="exists; choose another --output"):
        run_dynamics(silicon(), calculator, settings, trajectory=path)
    run_dynamics(silicon(), calculator, Settings(steps=1, every=1), trajectory=path, overwrite=True)
    assert len(read(path, index=":")) == 2


@pytest.mark.parametrize("name", ["steps", "every", "timestep_fs", "temperature_K", "seed"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(ConfigError, match=f"{name} is .* give"):
        Settings(**{name: value})


@pytest.mark.parametrize("name", ["steps", "every", "timestep_fs"])
def test_what_must_not_be_zero(name):
    with pytest.raises(ConfigError, match=f"{name} is 0; give a positive number"):
        Settings(**{name: 0})


def test_a_short_run_has_no_drift(calculator):
    samples = run_dynamics(silicon(), calculator, Settings(steps=20, every=1))
    assert energy_drift(samples, 8) is None
