"""Normal modes against what is known in closed form, and against ase.vibrations."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.vibrations import Vibrations as AseVibrations

from zoo.engine import Engine
from zoo.errors import ConfigError, DivergedError, StructureError
from zoo.load import load
from zoo.vibrations import Vibrations, harmonic_thermochemistry, normal_modes

SPRING = 32.0  # eV/Å²


def diatomic(masses: tuple[float, float] = (12.0, 16.0), spring: float = SPRING) -> Vibrations:
    """Two atoms on a spring along x."""
    hessian = np.zeros((6, 6))
    hessian[np.ix_([0, 3], [0, 3])] = spring * np.array([[1, -1], [-1, 1]])
    return normal_modes(hessian, np.array(masses))


@pytest.fixture(scope="module")
def silicon() -> tuple[Engine, Atoms]:
    atoms = bulk("Si", "diamond", a=5.43, cubic=True)
    atoms.rattle(0.02, seed=1)
    return load("stillinger-weber/teacher", dtype="float64", device="cpu"), atoms


def test_a_diatomic_vibrates_with_the_root_of_its_spring_over_its_reduced_mass() -> None:
    reduced = 12 * 16 / 28
    angular = np.sqrt(SPRING / reduced) * 1000 * units.fs  # rad/ps, in ASE's units
    vibrations = diatomic()
    assert vibrations.frequencies_THz[-1] == pytest.approx(angular / (2 * np.pi), rel=1e-6)
    assert np.abs(vibrations.frequencies_THz[:-1]).max() < 1e-5
    assert vibrations.energies[-1] == pytest.approx(vibrations.wavenumbers_cm1[-1] * units.invcm, rel=1e-6)
    assert vibrations.zero_point_energy == pytest.approx(vibrations.energies[-1] / 2, rel=1e-6)


def test_modes_are_of_unit_length_and_move_the_lighter_atom_more() -> None:
    modes = diatomic().modes
    assert modes.shape == (6, 2, 3)
    np.testing.assert_allclose(np.einsum("kax,lax->kl", modes, modes), np.eye(6), atol=1e-12)
    assert abs(modes[-1, 0, 0]) > abs(modes[-1, 1, 0])


def test_a_mode_that_lowers_the_energy_is_negative_comes_first_and_has_no_zero_point_energy() -> None:
    vibrations = diatomic(spring=-SPRING)
    assert vibrations.frequencies_THz[0] == pytest.approx(-diatomic().frequencies_THz[-1])
    assert vibrations.zero_point_energy == 0


def test_the_summary_lists_each_mode_and_counts_the_imaginary() -> None:
    text = diatomic(spring=-SPRING).summary()
    assert len(text.splitlines()) == 1 + 6 + 2
    assert "imaginary modes 1" in text


def test_the_modes_of_a_crystal_are_those_of_ase(silicon: tuple[Engine, Atoms], tmp_path: Path) -> None:
    engine, atoms = silicon
    ours = engine.vibrations(atoms)
    reference = atoms.copy()
    reference.calc = engine.calculator()
    theirs = AseVibrations(reference, name=str(tmp_path / "vib"), delta=0.001, nfree=4)
    theirs.run()
    frequencies = theirs.get_frequencies()  # cm⁻¹, imaginary ones on the imaginary axis
    signed = np.sort(frequencies.real - frequencies.imag)
    strong = np.abs(ours.wavenumbers_cm1) > 20
    np.testing.assert_allclose(ours.wavenumbers_cm1[strong], signed[strong], rtol=1e-4)


def test_thermochemistry_of_one_mode_is_that_of_a_harmonic_oscillator() -> None:
    vibrations = diatomic()
    quantum, thermal = vibrations.energies[-1], 300 * units.kB
    result = harmonic_thermochemistry(vibrations, 300.0, energy=-1.0)
    helmholtz = -1.0 + quantum / 2 + thermal * np.log1p(-np.exp(-quantum / thermal))
    assert result.helmholtz_energy_eV == pytest.approx(helmholtz, rel=1e-6)
    assert result.internal_energy_eV - 300 * result.entropy_eV_K == pytest.approx(result.helmholtz_energy_eV)
    with pytest.raises(ConfigError, match="0 K"):
        harmonic_thermochemistry(vibrations, 0)


@pytest.mark.parametrize(
    ("hessian", "masses", "error", "words"),
    [
        (np.zeros((6, 6)), np.ones(3), StructureError, r"expected \(9, 9\)"),
        (np.zeros((6, 6)), np.array([1.0, 0.0]), StructureError, "mass"),
        (np.full((6, 6), np.nan), np.ones(2), DivergedError, "not finite"),
    ],
)
def test_what_has_no_modes_is_an_error(
    hessian: np.ndarray, masses: np.ndarray, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        normal_modes(hessian, masses)
