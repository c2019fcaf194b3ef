"""What an engine answers, where it refuses, and how it shows what it is."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import model_folders as folders
import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.constraints import FixAtoms, FixedPlane
from ase.md.verlet import VelocityVerlet

from zoo.engine import Engine, Provenance, resolve_dtype
from zoo.errors import (
    CapabilityError,
    ConfigError,
    DivergedError,
    DomainError,
    MissingPackageError,
    StructureError,
    ZooWarning,
)
from zoo.graph import Graph
from zoo.inputs import resolve_device
from zoo.phonons import phonons
from zoo.potential import Prediction
from zoo.units import THZ_PER_ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.make_folder(tmp_path_factory.mktemp("runs") / "model")


@pytest.fixture
def engine(folder: Path) -> Engine:
    return Engine.read(folder, device="cpu", revision="v1")


@pytest.fixture
def free(folder: Path) -> Engine:
    return Engine.read(folder, device="cpu", check_domain=False)


def test_a_batch_gives_what_the_structures_give_alone_in_their_order(engine: Engine) -> None:
    structures = [*folders.cells(2), *folders.cells(1, size=2), *folders.cells(1)]
    together = engine.predict(structures)
    for atoms, one in zip(structures, together, strict=True):
        (alone,) = engine.predict(atoms)
        assert one.energy.shape == ()
        assert one.stress.shape == (3, 3)
        assert one.forces.shape == (len(atoms), 3)
        assert float(one.energy) == pytest.approx(float(alone.energy), abs=1e-9)
        np.testing.assert_allclose(one.forces, alone.forces, atol=1e-12)
        np.testing.assert_allclose(one.stress, alone.stress, atol=1e-12)
        assert not one.forces.requires_grad


def test_no_structures_give_no_predictions(engine: Engine) -> None:
    assert engine.predict([]) == []


def test_stress_is_none_where_there_is_no_volume(free: Engine) -> None:
    slab = folders.cells(1)[0]
    slab.pbc = (True, True, False)
    crystal, molecule, layer = free.predict([folders.cells(1)[0], scenes.molecule((14,)), slab])
    assert crystal.stress is not None
    assert molecule.stress is None
    assert layer.stress is None


def test_prediction_and_calculator_agree(engine: Engine) -> None:
    atoms = folders.cells(1)[0]
    (prediction,) = engine.predict(atoms)
    atoms.calc = engine.calculator()
    assert float(prediction.energy) == atoms.get_potential_energy()
    np.testing.assert_array_equal(prediction.forces, atoms.get_forces())
    np.testing.assert_allclose(prediction.stress, atoms.get_stress(voigt=False), atol=1e-14)


def test_what_is_asked_about_is_not_modified(engine: Engine) -> None:
    atoms = folders.cells(1)[0]
    before = atoms.copy()
    engine.predict([atoms])
    engine.hessian(atoms)
    engine.vibrations(atoms)
    assert atoms == before
    assert atoms.calc is None


def test_the_hessian_is_the_slope_of_the_forces(engine: Engine) -> None:
    atoms = folders.cells(1)[0]
    hessian = engine.hessian(atoms)
    assert hessian.shape == (24, 24)
    assert hessian.dtype == np.float64
    step = 1e-4
    moved = []
    for sign in (1, -1):
        copy = atoms.copy()
        copy.positions[2, 1] += sign * step
        moved.append(engine.predict(copy)[0].forces.numpy())
    np.testing.assert_allclose(hessian[3 * 2 + 1], ((moved[1] - moved[0]) / (2 * step)).reshape(-1), atol=1e-6)


def test_a_float32_hessian_comes_in_float64(folder: Path) -> None:
    hessian = Engine.read(folder, device="cpu", dtype="float32").hessian(folders.cells(1)[0])
    assert hessian.dtype == np.float64


def test_vibrations_of_a_crystal_and_of_a_molecule(engine: Engine, free: Engine) -> None:
    assert engine.vibrations(folders.cells(1)[0]).frequencies_THz.shape == (24,)
    assert free.vibrations(scenes.molecule((14,))).modes.shape == (12, 4, 3)


def _scaled(factor: float) -> Callable[[Atoms], None]:
    return lambda atoms: atoms.set_cell(atoms.cell * factor, scale_atoms=True)


def _pbc(atoms: Atoms) -> None:
    atoms.pbc = False


def _close(atoms: Atoms) -> None:
    atoms.positions[1] = atoms.positions[0] + [1.2, 0, 0]


OUTSIDE = {
    "periodicity": (_pbc, r"pbc=\(False, False, False\).*made for pbc=\(True, True, True\)"),
    "too dense": (_scaled(0.9), r"14\.\d+ Å³ per atom.*16\.00 to 24\.00"),
    "too thin": (_scaled(1.2), r"Å³ per atom.*16\.00 to 24\.00"),
    "too near": (_close, r"atoms \d+ and \d+ of Si8 are 1\.200 Å apart.*1\.800 Å and more"),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_outside_its_domain_an_engine_refuses_and_answers_when_asked_anyway(
    engine: Engine, free: Engine, case: str
) -> None:
    act, words = OUTSIDE[case]
    atoms = folders.cells(1)[0]
    act(atoms)
    for ask in (engine.predict, engine.hessian, engine.vibrations, engine.check_domain, _energy(engine)):
        with pytest.raises(DomainError, match=f"{words}.*asks anyway") as error:
            ask(atoms)
        assert "\n" not in str(error.value)
    assert np.isfinite(float(free.predict(atoms)[0].energy))
    assert np.isfinite(_energy(free)(atoms))


def _energy(engine: Engine) -> Callable[[Atoms], float]:
    def ask(atoms: Atoms) -> float:
        copy = atoms.copy()
        copy.calc = engine.calculator()
        return copy.get_potential_energy()

    return ask


def test_an_element_without_parameters_is_refused_even_when_asked_anyway(free: Engine) -> None:
    atoms = folders.cells(1)[0]
    atoms.symbols[3] = "Ge"
    with pytest.raises(DomainError, match="has Ge"):
        free.predict(atoms)


def test_an_element_may_have_parameters_and_lie_outside_the_domain() -> None:
    student = scenes.tiny_painn("Si", "O")
    config = folders.config_of(student)
    engine = Engine(student, Provenance("a/b", "here", "MIT", "theory"), config=config)
    atoms = folders.cells(1)[0]
    atoms.symbols[3] = "O"
    with pytest.raises(DomainError, match=r"a/b was made for Si, not for O; .*check_domain=False.* asks anyway"):
        engine.predict(atoms)
    assert Engine(student, engine.provenance, config=config, check_domain=False).predict(atoms)


def test_broken_structures_are_errors(free: Engine) -> None:
    atoms = folders.cells(1)[0]
    atoms.positions[0, 0] = np.nan
    with pytest.raises(StructureError, match="not a finite number"):
        free.predict([folders.cells(1)[0], atoms])


def test_infinite_numbers_are_an_error(free: Engine) -> None:
    free.potential.scale.fill_(float("nan"))
    with pytest.raises(DivergedError, match="not finite"):
        free.predict(folders.cells(2))


def test_dynamics_that_explodes_stops_with_a_domain_error(engine: Engine) -> None:
    atoms = folders.cells(1)[0]
    atoms.calc = engine.calculator()
    atoms.set_velocities(np.random.default_rng(0).normal(scale=0.4, size=(8, 3)))
    with pytest.raises(DomainError, match="apart"):
        VelocityVerlet(atoms, 2 * units.fs).run(200)


@pytest.mark.parametrize("dtype", ["float64", "float32", torch.float32])
def test_the_probe_passes_in_either_precision(folder: Path, dtype: str | torch.dtype) -> None:
    result = Engine.read(folder, device="cpu", dtype=dtype).check()
    assert result.passed, str(result)
    assert [row.quantity for row in result.rows] == ["energy", "forces", "Hessian products"]
    assert "ok" in str(result)
    as_dict = json.loads(json.dumps(result.as_dict()))
    assert as_dict["passed"] is True
    assert as_dict["rows"][1]["unit"] == "meV/Å"


def test_the_probe_fails_where_the_weights_are_not_those_that_were_published(engine: Engine) -> None:
    with torch.no_grad():
        engine.potential.embedding.weight.add_(0.01)
    result = engine.check()
    assert not result.passed
    assert "FAILED" in str(result)


def test_the_probe_fails_on_nan(engine: Engine) -> None:
    engine.potential.scale.fill_(float("nan"))
    assert not engine.check().passed


def test_an_engine_without_a_probe_says_so() -> None:
    engine = Engine(scenes.tiny_painn("Si"), Provenance("a/b", "here", "MIT", "theory"))
    assert engine.domain is None
    with pytest.raises(CapabilityError, match="no probe"):
        engine.check()


def test_its_representation_says_what_it_is(engine: Engine, folder: Path) -> None:
    text = repr(engine)
    for part in (
        f"Engine {folders.NAME}@v1",
        "PaiNN",
        "5 channels",
        "2 layers",
        "cutoff 4 Å",
        "cpu, float64",
        "MIT",
        "stillinger-weber/teacher",
        "rattled diamond silicon",
        "16.0 to 24.0 Å³ per atom",
        str(folder),
    ):
        assert part in text
    assert len(text.splitlines()) == 9


def test_types_and_devices_are_named_or_refused() -> None:
    assert resolve_dtype("float32") == resolve_dtype(torch.float32) == torch.float32
    assert resolve_device("auto").type in ("cpu", "cuda")
    for wrong in ("half", "f32", torch.float16, None):
        with pytest.raises(ConfigError, match="expected 'float32'"):
            resolve_dtype(wrong)
    for wrong in ("gpu", "mps", torch.device("meta"), None):
        with pytest.raises(ConfigError, match=r"^device \S+; expected auto, cpu, cuda or cuda:0$"):
            resolve_device(wrong)


def test_an_engine_says_where_it_is_and_in_what_type_it_computes(folder: Path) -> None:
    engine = Engine.read(folder, device="cpu", dtype="float32")
    assert (engine.device, engine.dtype) == (torch.device("cpu"), torch.float32)
    engine.potential.double()
    assert engine.dtype == torch.float64


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="no CUDA"):
        resolve_device("cuda")


# --- second derivatives -----------------------------------------------------------------------------


def test_rows_blocks_and_products_are_those_of_the_whole_hessian(engine: Engine) -> None:
    atoms = folders.cells(1)[0]
    whole = engine.hessian(atoms)
    assert np.allclose(engine.hessian(atoms, rows=[7, 2]), whole[[7, 2]])
    moving = [5, 1]
    places = [15, 16, 17, 3, 4, 5]
    assert np.allclose(engine.hessian(atoms, indices=moving), whole[np.ix_(places, places)])
    vectors = np.random.default_rng(0).normal(size=(2, len(atoms), 3))
    expected = (whole @ vectors.reshape(2, -1).T).T.reshape(vectors.shape)
    assert np.allclose(engine.hvp(atoms, vectors), expected, atol=1e-8)
    assert np.allclose(engine.hvp(atoms, vectors[1]), expected[1], atol=1e-8)


def test_modes_of_some_atoms_are_those_of_their_block(engine: Engine) -> None:
    atoms = folders.cells(1)[0]
    part = engine.vibrations(atoms, indices=[2])
    assert part.modes.shape == (3, 1, 3)
    block = engine.hessian(atoms)[6:9, 6:9]
    squares = np.linalg.eigvalsh((block + block.T) / 2 / atoms.get_masses()[2])
    assert np.allclose(part.frequencies_THz, np.sign(squares) * np.sqrt(np.abs(squares)) * THZ_PER_ROOT)


@pytest.mark.parametrize("numbers", [[8], [-1], [1, 1], [0.5], [[0, 1]]])
def test_what_a_structure_does_not_have_has_no_rows(engine: Engine, numbers: list[int]) -> None:
    with pytest.raises(ConfigError, match="expected whole numbers from 0 to 7, each once"):
        engine.hessian(folders.cells(1)[0], indices=numbers)


def test_a_hessian_is_asked_for_in_one_way(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        engine.hessian(folders.cells(1)[0], indices=[0], rows=[0])
    with pytest.raises(ConfigError, match=r"vectors of shape \(3, 8\) for 8 atoms; expected \(8, 3\)"):
        engine.hvp(folders.cells(1)[0], np.zeros((3, 8)))


def test_modes_leave_out_atoms_that_are_held_fixed_unless_told_otherwise(engine: Engine) -> None:
    atoms = folders.cells(1)[0]
    free = engine.vibrations(atoms)
    moving = engine.vibrations(atoms, indices=[1, 4, 6])
    atoms.set_constraint([FixAtoms([0, 2, 3]), FixAtoms([5, -1]), FixedPlane([1, 4], (0, 0, 1))])
    with pytest.warns(ZooWarning, match=r"do not count in vibrations: FixedPlane; say by indices= which") as caught:
        held = engine.vibrations(atoms)
    assert caught[0].filename == __file__
    assert held.modes.shape == (9, 3, 3)
    np.testing.assert_array_equal(held.frequencies_THz, moving.frequencies_THz)
    whole = engine.vibrations(atoms, indices=range(8))
    np.testing.assert_allclose(whole.frequencies_THz, free.frequencies_THz, atol=1e-6)
    atoms.set_constraint(FixAtoms(range(8)))
    with pytest.raises(ConfigError, match="all 8 atoms are held by FixAtoms; say by indices="):
        engine.vibrations(atoms)


# --- phonons ----------------------------------------------------------------------------------------


def test_phonons_are_those_of_the_potential_and_take_few_passes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("phonopy", reason="phonopy is not installed: pip install phonopy")
    cell = bulk("Si", "diamond", a=scenes.LATTICE, cubic=True)
    cell.rattle(0.01, seed=3)  # without symmetry, so that there are 48 displacements
    wanted = phonons(engine.potential, cell, (1, 1, 1), mesh=(2, 2, 2))
    seen, predict = [], engine.potential.predict

    def spy(graph: Graph, **asked: object) -> Prediction:
        seen.append(graph.num_structures)
        return predict(graph, **asked)

    monkeypatch.setattr(engine.potential, "predict", spy)
    found = engine.phonons(cell, (1, 1, 1), mesh=(2, 2, 2))
    np.testing.assert_allclose(found.frequencies_THz, wanted.frequencies_THz, atol=1e-5)
    assert np.abs(found.frequencies_THz).max() > 5
    assert len(seen) < sum(seen) / 8
    far = engine.phonons(cell, (1, 1, 1), mesh=(2, 2, 2), displacement=0.2)
    assert np.abs(far.frequencies_THz - wanted.frequencies_THz).max() > 1e-3


def test_phonons_of_what_is_no_crystal_or_outside_the_domain_are_refused(engine: Engine, free: Engine) -> None:
    pytest.importorskip("phonopy", reason="phonopy is not installed: pip install phonopy")
    with pytest.raises(StructureError, match="give a crystal"):
        free.phonons(scenes.molecule((14,)), (1, 1, 1))
    with pytest.raises(DomainError, match=r"^SiO has O"):
        engine.phonons(bulk("SiO", "zincblende", a=5.43), (2, 2, 2))


def test_without_phonopy_phonons_say_what_to_install(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "phonopy", None)
    with pytest.raises(MissingPackageError, match="pip install phonopy"):
        engine.phonons(folders.cells(1)[0], (1, 1, 1))
