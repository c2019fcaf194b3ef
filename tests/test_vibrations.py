"""Normal modes against what is known in closed form, and against ase.vibrations."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from ase.vibrations import Vibrations as AseVibrations

from zoo.engine import Engine
from zoo.errors import ConfigError, DivergedError, StructureError
from zoo.load import load
from zoo.units import WAVENUMBER_PER_THZ
from zoo.vibrations import (
    IdealGas,
    Vibrations,
    harmonic_thermochemistry,
    ideal_gas_thermochemistry,
    moving_atoms,
    normal_modes,
    rigid_motions,
)

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


@pytest.mark.parametrize(("name", "count"), [("H2O", 6), ("CO2", 5), ("H", 3)])
def test_the_summary_leaves_out_what_a_free_molecule_does_as_a_whole(name: str, count: int) -> None:
    atoms = molecule(name)
    atoms.rotate(37, (1, 2, 3))
    springs = np.eye(3 * len(atoms))
    springs[range(count), range(count)] = np.linspace(-1e-4, -2e-5, count)  # turns that a potential does not forbid
    vibrations = normal_modes(springs, np.ones(len(atoms)), rigid_motions(atoms))
    lines = vibrations.summary().splitlines()
    assert len(lines) == 1 + (3 * len(atoms) - count) + 3
    assert lines[-2] == "imaginary modes 0 (shown as negative)"
    assert lines[-1] == f"left out {count} translations and rotations of the whole (up to 0.156 THz)"
    assert "imaginary modes" in normal_modes(springs, np.ones(len(atoms))).summary()
    assert f"imaginary modes {count} " in normal_modes(springs, np.ones(len(atoms))).summary()


def test_a_turn_that_is_slow_and_real_is_no_vibration() -> None:
    vibrations = normal_modes(np.diag([1e-4] * 6 + [1.0] * 3), np.ones(3), rigid_motions(molecule("H2O")))
    assert vibrations.vibrational.tolist() == [False] * 6 + [True] * 3
    assert vibrations.zero_point_energy == pytest.approx(vibrations.energies[6:].sum() / 2)


def test_an_engine_knows_which_molecules_are_free(silicon: tuple[Engine, Atoms]) -> None:
    engine, crystal = silicon
    trimer = Atoms("Si3", positions=[[0, 0, 0], [2.3, 0, 0], [0, 2.3, 0]])
    assert engine.vibrations(trimer).rigid == engine.vibrations(trimer, indices=slice(None)).rigid == 6
    assert engine.vibrations(trimer, indices=[2, 0]).rigid == engine.vibrations(crystal).rigid == 0


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
    cold = harmonic_thermochemistry(vibrations, 1.0)
    assert (cold.internal_energy_eV, cold.entropy_eV_K) == pytest.approx((quantum / 2, 0))
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


# --- molecules of a gas -----------------------------------------------------------------------------

WAVENUMBERS = {"H2O": [1595.0, 3657.0, 3756.0], "N2": [2330.0], "CO": [2143.0], "Ar": []}
ENTROPY = {"H2O": 188.84, "N2": 191.61, "CO": 197.66, "Ar": 154.85}  # J/(mol K) at 298.15 K and 1 bar: CODATA 1989
HEAT = {"H2O": 9.905, "N2": 8.670, "CO": 8.671, "Ar": 6.197}  # kJ/mol, H(298.15 K) − H(0 K): likewise
OF_MOLECULES = {  # geometry, symmetry number
    "H2O": ("nonlinear", 2),
    "N2": ("linear", 2),
    "CO": ("linear", 1),
    "Ar": ("monatomic", 1),
}
KELVIN = 298.15
JOULE = units.J / units.mol


def modes_of(atoms: Atoms, wavenumbers: list[float], others: float = 0.5) -> Vibrations:
    """Modes of known frequency, and all others near zero, of either sign."""
    free = 3 * len(atoms) - len(wavenumbers)
    slow = np.linspace(-others, others, free)  # cm⁻¹
    frequencies = np.sort(np.concatenate([slow, wavenumbers])) / WAVENUMBER_PER_THZ
    return Vibrations(frequencies, np.eye(3 * len(atoms)).reshape(-1, len(atoms), 3))


def gas(name: str, **changes: object) -> IdealGas:
    atoms = Atoms("Ar") if name == "Ar" else molecule(name)
    geometry, symmetry = OF_MOLECULES[name]
    asked = {"geometry": geometry, "symmetry_number": symmetry, "spin": 0.0} | changes
    return ideal_gas_thermochemistry(
        modes_of(atoms, WAVENUMBERS[name]), atoms, asked.pop("temperature", KELVIN), **asked
    )


@pytest.mark.parametrize("name", OF_MOLECULES)
def test_entropy_and_heat_of_a_gas_are_those_of_tables(name: str) -> None:
    found = gas(name)
    assert found.entropy_eV_K / JOULE == pytest.approx(ENTROPY[name], rel=3e-3)
    zero_point = sum(WAVENUMBERS[name]) * units.invcm / 2
    assert (found.enthalpy_eV - zero_point) / JOULE == pytest.approx(HEAT[name] * 1000, rel=3e-3)
    assert found.gibbs_energy_eV == pytest.approx(found.enthalpy_eV - KELVIN * found.entropy_eV_K)
    assert found.enthalpy_eV - found.internal_energy_eV == pytest.approx(KELVIN * units.kB)


def test_pressure_spin_and_potential_energy_count_as_they_must() -> None:
    normal = gas("N2")
    dense = gas("N2", pressure=10e5)
    assert dense.entropy_eV_K - normal.entropy_eV_K == pytest.approx(-units.kB * np.log(10))
    assert dense.pressure_Pa == 10e5
    triplet = gas("N2", spin=1.0)
    assert triplet.entropy_eV_K - normal.entropy_eV_K == pytest.approx(units.kB * np.log(3))
    assert gas("N2", energy=-3.0).gibbs_energy_eV == pytest.approx(normal.gibbs_energy_eV - 3.0)


def test_a_slow_mode_that_is_faster_than_rotations_is_kept() -> None:
    """Those nearest to zero are left out, not the lowest: a blurred rotation may be imaginary."""
    atoms = molecule("H2O")
    slow = modes_of(atoms, [30.0, 3657.0, 3756.0], others=9.0)
    found = ideal_gas_thermochemistry(slow, atoms, KELVIN, geometry="nonlinear", symmetry_number=2, spin=0)
    zero_point = (30.0 + 3657.0 + 3756.0) * units.invcm / 2
    cold = ideal_gas_thermochemistry(slow, atoms, 1e-2, geometry="nonlinear", symmetry_number=2, spin=0)
    assert cold.internal_energy_eV == pytest.approx(zero_point, rel=1e-5)
    assert found.entropy_eV_K > gas("H2O").entropy_eV_K


def test_a_gas_of_molecules_that_are_not_at_a_minimum_is_refused() -> None:
    atoms = molecule("H2O")
    saddle = modes_of(atoms, [-400.0, 3657.0, 3756.0])
    with pytest.raises(StructureError, match="imaginary modes of 400i cm⁻¹; relax the molecule to a minimum first"):
        ideal_gas_thermochemistry(saddle, atoms, KELVIN, geometry="nonlinear", symmetry_number=2, spin=0)


def test_what_is_no_molecule_is_no_ideal_gas(silicon: tuple[Engine, Atoms]) -> None:
    engine, crystal = silicon
    with pytest.raises(StructureError, match=r"Si8 is periodic, and no ideal gas; .* harmonic_thermochemistry"):
        ideal_gas_thermochemistry(
            engine.vibrations(crystal), crystal, KELVIN, geometry="nonlinear", symmetry_number=1, spin=0
        )
    water = molecule("H2O")
    part = normal_modes(np.eye(3), np.array([16.0]))
    with pytest.raises(StructureError, match=r"modes of 1 atoms, and 3 in OH2; .* indices=range\(len\(atoms\)\)"):
        ideal_gas_thermochemistry(part, water, KELVIN, geometry="nonlinear", symmetry_number=2, spin=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"geometry": "linear"}, "geometry 'linear' of OH2, which is nonlinear; give geometry='nonlinear'"),
        ({"geometry": "round"}, "geometry 'round' of OH2"),
        ({"symmetry_number": 0}, "symmetry number 0 and spin 0.0; expected a whole number from 1 on"),
        ({"symmetry_number": 1.5}, "symmetry number 1.5"),
        ({"spin": 0.3}, "spin 0.3; expected"),
        ({"spin": -1}, "spin -1; expected"),
        ({"pressure": 0}, "a pressure of 0 Pa; expected one above zero"),
        ({"temperature": -1}, "a temperature of -1 K"),
    ],
)
def test_numbers_that_no_gas_has_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        gas("H2O", **changes)


def test_a_linear_molecule_is_known_by_its_moments_of_inertia() -> None:
    carbon_dioxide = molecule("CO2")
    carbon_dioxide.rotate(37, (1, 2, 3))
    carbon_dioxide.rattle(1e-3, seed=0)  # as relaxation leaves it
    modes = modes_of(carbon_dioxide, [667.0, 667.0, 1333.0, 2349.0])
    found = ideal_gas_thermochemistry(modes, carbon_dioxide, KELVIN, geometry="linear", symmetry_number=2, spin=0)
    assert found.entropy_eV_K / JOULE == pytest.approx(213.79, rel=3e-3)


def test_atoms_move_that_nothing_holds() -> None:
    atoms = molecule("H2O")
    assert moving_atoms(atoms) is None
    atoms.set_constraint(FixAtoms(mask=[True, False, True]))
    assert moving_atoms(atoms) == [1]
