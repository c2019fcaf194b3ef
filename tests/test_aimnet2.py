"""AIMNet2: small models with random weights, in the format that aimnet exports, against aimnet's own calculators."""

import copy
import functools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aimnet2_artifacts
import numpy as np
import pytest
import torch
from aimnet2_artifacts import SHIFTS, SPECIES, artifact
from ase import Atoms
from ase.build import bulk, molecule
from contracts import CONTRACT
from small_teachers import small_weights
from teacher_contract import TeacherContract

from zoo.errors import ConfigError, DomainError, IntegrityError, MissingPackageError
from zoo.files import sha256_file
from zoo.neighbors import build_graph
from zoo.potential import Potential
from zoo.teachers import aimnet2
from zoo.teachers.base import Teacher
from zoo.teachers.weights import OwnTeacher, Weights, weights_path

needs_aimnet = pytest.mark.aimnet2
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

NAMES = {
    "aimnet2/teacher",
    "aimnet2-b973c/teacher",
    "aimnet2-2025/teacher",
    "aimnet2-nse/teacher",
    "aimnet2-pd/teacher",
    "aimnet2-rxn/teacher",
}
KINDS = ["aimnet2/teacher", "aimnet2-nse/teacher", "aimnet2-rxn/teacher"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache with files of some teachers, whose digests the table has."""
    folder = tmp_path_factory.mktemp("aimnet2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(folder))
        for seed, name in enumerate(KINDS):
            torch.manual_seed(seed)
            _put(patch, name, artifact(name))
        yield folder


def _put(patch: pytest.MonkeyPatch, name: str, content: Any) -> Path:
    path = weights_path(name, aimnet2.weights(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    _trust(patch, name, path)
    return path


def _trust(patch: pytest.MonkeyPatch, name: str, path: Path) -> None:
    model = copy.copy(aimnet2._MODELS[name])
    object.__setattr__(model, "sha256", sha256_file(path))
    patch.setitem(aimnet2._MODELS, name, model)


@pytest.fixture
def here(files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(files))
    return files


@functools.cache
def _loaded(cache: str, name: str) -> Potential:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", cache)
        return aimnet2.load(name, torch.float64, "cpu").potential


@pytest.fixture
def potentials(files: Path) -> Any:
    """Teachers in float64, each loaded once."""
    return functools.partial(_loaded, str(files))


def _molecule(name: str = "CH3CH2OH") -> Atoms:
    atoms = molecule(name)
    atoms.rattle(0.07, seed=3)
    return atoms


def _crystal() -> Atoms:
    atoms = bulk("SiC", "zincblende", a=4.4).repeat((2, 1, 1))
    atoms.rattle(0.08, seed=5)
    return atoms


# --- what is known without the package ------------------------------------------------------------


def test_names_are_the_short_ones_of_the_registry() -> None:
    assert set(aimnet2.names()) == NAMES


def test_digests_are_known_and_differ() -> None:
    found = {aimnet2.weights(name).digest for name in aimnet2.names()}
    assert len(found) == len(NAMES)
    assert all(isinstance(aimnet2.weights(name), Weights) for name in NAMES)


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.split(".")[0] == "aimnet"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "aimnet", None)
    with pytest.raises(MissingPackageError, match="run: pip install aimnet") as error:
        aimnet2.load("aimnet2/teacher", torch.float32, "cpu")
    assert "\n" not in str(error.value)


# --- against aimnet -------------------------------------------------------------------------------


@needs_aimnet
@pytest.mark.parametrize("name", sorted(NAMES))
def test_addresses_and_digests_are_those_of_the_registry(name: str) -> None:
    from aimnet.calculators.model_registry import load_model_registry

    registry = load_model_registry()
    entry = registry["models"][registry["aliases"][name.partition("/")[0]]]
    model = aimnet2._MODELS[name]
    assert (entry["url"], entry["sha256"], entry["family"]) == (aimnet2.weights(name).url, model.sha256, model.family)


@needs_aimnet
@pytest.mark.parametrize("name", KINDS)
def test_a_teacher_gives_what_was_stated(name: str, potentials: Any) -> None:
    assert potentials(name).traits == aimnet2.traits(name)
    assert potentials(name).elements == tuple(SPECIES)


def _asked(calculator: Any, atoms: Atoms, dtype: torch.dtype, **wanted: bool) -> dict[str, Any]:
    given = {
        "coord": torch.tensor(atoms.positions, dtype=dtype),
        "numbers": torch.tensor(atoms.numbers),
        "charge": torch.tensor(0.0, dtype=dtype),
        "mult": torch.tensor(1.0 + int(atoms.numbers.sum()) % 2, dtype=dtype),
    }
    if atoms.pbc.any():
        given |= {"cell": torch.tensor(np.array(atoms.cell), dtype=dtype), "pbc": torch.tensor(atoms.pbc)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of DSF in crystals, and of a multiplicity that a model does not read
        return calculator(given, **wanted)


@needs_aimnet
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.usefixtures("here")
def test_crystals_agree_too(name: str, potentials: Any) -> None:
    ours, theirs, atoms = potentials(name), aimnet2.calculator(name, torch.float64).base_calc, _crystal()
    expected = _asked(theirs, atoms, torch.float64, forces=True, stress=True)
    found = ours.predict(build_graph(atoms, ours.cutoff), stress=True)
    assert found.energy.item() == pytest.approx(expected["energy"].item(), abs=1e-6)
    torch.testing.assert_close(found.forces, expected["forces"].double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.stress[0], expected["stress"].double(), atol=1e-7, rtol=0)


@needs_aimnet
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.usefixtures("here")
def test_the_hessian_is_that_of_the_package(name: str, potentials: Any) -> None:
    ours, theirs, atoms = potentials(name), aimnet2.calculator(name, torch.float64).base_calc, _molecule()
    expected = _asked(theirs, atoms, torch.float64, hessian=True)["hessian"].reshape(27, 27)
    found = ours.hessian(build_graph(atoms, ours.cutoff))
    torch.testing.assert_close(found, expected.double(), atol=1e-7, rtol=0)


SPARED = {
    "parameter_gradient": "a teacher has nothing to learn",
    "supercell": "charges are balanced with a constant of 1e-6 beside a sum over atoms",
    "stress_is_gradient": "strains of 1e-3 carry pairs across 15 Å, where the energy has one derivative",
}


class _Contract(TeacherContract):
    structures = staticmethod(lambda: [_molecule(), _molecule("CO2"), _apart()])
    laws = tuple(law for law in CONTRACT if law not in SPARED)

    @pytest.fixture(autouse=True)
    def weights(self) -> Iterator[None]:
        with small_weights(self.name):
            yield


def _apart() -> Atoms:
    return Atoms("OCO", [[0, 0, 0], [9, 9, 9], [0, 0, 1]])


@needs_aimnet
class TestAIMNet2(_Contract):
    name = "aimnet2/teacher"


@needs_aimnet
class TestOfSpins(_Contract):
    name = "aimnet2-nse/teacher"


@needs_aimnet
class TestOfReactions(_Contract):
    name = "aimnet2-rxn/teacher"


@needs_aimnet
@pytest.mark.parametrize("name", KINDS)
def test_the_stress_is_the_slope_of_the_energy_as_a_crystal_is_strained_a_little(name: str, potentials: Any) -> None:
    potential, atoms = potentials(name), _crystal()
    stress = potential.predict(build_graph(atoms, potential.cutoff), stress=True).stress[0].numpy()
    strain = np.array([[0.3, -0.2, 0.5], [-0.2, 1.0, 0.1], [0.5, 0.1, -0.7]])
    energies = []
    for step in (1e-5, -1e-5):
        moved = atoms.copy()
        moved.set_cell(np.array(atoms.cell) @ (np.eye(3) + step * strain), scale_atoms=True)
        energies.append(float(potential.predict(build_graph(moved, potential.cutoff)).energy))
    slope = (energies[0] - energies[1]) / 2e-5 / atoms.get_volume()
    assert (stress * strain).sum() == pytest.approx(slope, abs=2e-6)


@needs_aimnet
@pytest.mark.parametrize("name", KINDS)
def test_twice_a_crystal_is_twice_its_energy(name: str, potentials: Any) -> None:
    potential, atoms = potentials(name), _crystal()
    one, two = (potential.predict(build_graph(part, potential.cutoff)) for part in (atoms, atoms.repeat((1, 2, 1))))
    assert two.energy.item() == pytest.approx(2 * one.energy.item(), abs=1e-4)
    torch.testing.assert_close(two.forces, one.forces.repeat(2, 1), atol=1e-4, rtol=0)


@needs_aimnet
@pytest.mark.usefixtures("here")
def test_features_are_the_last_of_the_network(potentials: Any) -> None:
    potential = potentials("aimnet2/teacher")
    graph = build_graph([_molecule(), _molecule("H2O")], potential.cutoff)
    features = potential.predict(graph, features=True).features
    assert features.shape == (12, 256)
    energies = potential.model.outputs["energy_mlp"].mlp(features)[:, 0]
    assert torch.isfinite(energies).all()
    assert energies.std() > 0
    rows = potential.element_embeddings()
    assert torch.equal(rows, potential.model.afv.weight[SPECIES])
    assert rows.isfinite().all()


@needs_aimnet
@pytest.mark.usefixtures("here")
def test_shifts_of_elements_keep_their_digits_in_single_precision() -> None:
    single = aimnet2.load("aimnet2/teacher", torch.float32, "cpu").potential
    found = single.reference_energies(torch.tensor([14, 1]))
    assert found.tolist() == [SHIFTS[14], SHIFTS[1]]


@needs_aimnet
@pytest.mark.parametrize(("name", "differs"), [("aimnet2/teacher", False), ("aimnet2-nse/teacher", True)])
@pytest.mark.usefixtures("here")
def test_a_radical_differs_from_a_singlet_only_where_the_model_knows_of_spin(
    name: str, differs: bool, potentials: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    potential = potentials(name)
    graph = build_graph(_molecule("CH3"), potential.cutoff)
    radical = potential.predict(graph).energy.item()
    monkeypatch.setattr(aimnet2, "lowest_multiplicities", lambda graph: torch.ones(graph.num_structures))
    assert (abs(potential.predict(graph).energy.item() - radical) > 1e-6) == differs


@needs_aimnet
@pytest.mark.usefixtures("here")
def test_dispersion_comes_to_the_energy_where_the_family_says(potentials: Any) -> None:
    """aimnet2-rxn's file asks for none; the policy of its family adds it."""
    assert potentials("aimnet2-rxn/teacher").dispersion is not None
    assert potentials("aimnet2-rxn/teacher").dispersion.s8 == 0.3908


@needs_aimnet
@pytest.mark.usefixtures("here")
def test_it_says_where_it_comes_from() -> None:
    teacher: Teacher = aimnet2.load("aimnet2/teacher", torch.float32, "cpu")
    assert teacher.package.startswith("aimnet ")
    assert (teacher.licence_code, teacher.licence_weights) == ("MIT", "MIT")
    assert teacher.weights_sha256 == aimnet2._MODELS["aimnet2/teacher"].sha256


def _own(path: Path, content: Any, **more: Any) -> Teacher:
    torch.save(content, path)
    facts = {"name": "own/mine", "family": "aimnet2", "file": path.name, "sha256": sha256_file(path), "elements": ()}
    told = OwnTeacher(**facts, licence="CC-BY-4.0", level_of_theory="PBE0/def2-SVP", **more)
    return aimnet2.load_file(path, "own/mine", told, torch.float64, "cpu")


@needs_aimnet
def test_a_file_of_ones_own_is_a_teacher(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    teacher = _own(path, artifact("aimnet2"))
    assert (teacher.name, teacher.licence_weights, teacher.level_of_theory) == (
        "own/mine",
        "CC-BY-4.0",
        "PBE0/def2-SVP",
    )
    assert teacher.weights_sha256 == sha256_file(path)
    assert teacher.potential.predict(build_graph(_molecule(), 15.0)).energy.isfinite().all()


@needs_aimnet
def test_a_file_of_ones_own_has_as_many_features_as_its_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aimnet2_artifacts, "_YAML", aimnet2_artifacts._YAML.replace("256", "24"))
    potential = _own(tmp_path / "mine.pt", artifact("aimnet2")).potential
    found = potential.predict(build_graph(_molecule(), potential.cutoff), features=True).features
    assert found.shape[1] == potential.traits.features == 24


@needs_aimnet
def test_a_file_of_ones_own_without_energies_of_elements_is_refused(tmp_path: Path) -> None:
    content = artifact("aimnet2")
    lines = content["model_yaml"].splitlines(keepends=True)
    content["model_yaml"] = "".join(line for line in lines if "atomic_shift" not in line)
    content["state_dict"] = {key: value for key, value in content["state_dict"].items() if "atomic_shift" not in key}
    with pytest.raises(IntegrityError, match="the model has 0 tables of energies of elements, expected one"):
        _own(tmp_path / "mine.pt", content)


def test_a_file_of_ones_own_has_no_heads_to_choose_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="whose models have one head, got omol; add it without a head") as error:
        _own(tmp_path / "mine.pt", {}, head="omol")
    assert "\n" not in str(error.value)


# --- files that are not what they should be ---------------------------------------------------------


def _refused(match: str) -> None:
    with pytest.raises(IntegrityError, match=match) as error:
        aimnet2.load("aimnet2/teacher", torch.float32, "cpu")
    assert "\n" not in str(error.value)


@needs_aimnet
def test_weights_that_are_not_here_are_named_with_their_command() -> None:
    with pytest.raises(MissingPackageError, match="run: zoo teachers fetch aimnet2/teacher"):
        aimnet2.load("aimnet2/teacher", torch.float32, "cpu")


@needs_aimnet
def test_another_file_than_was_published_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(99)
    path = weights_path("aimnet2/teacher", aimnet2.weights("aimnet2/teacher"))
    path.parent.mkdir(parents=True)
    torch.save(artifact("aimnet2"), path)
    monkeypatch.setattr(torch, "load", lambda *given, **asked: pytest.fail("it was opened"))
    _refused("not opened")


@needs_aimnet
def test_a_truncated_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = _put(monkeypatch, "aimnet2/teacher", artifact("aimnet2"))
    path.write_bytes(path.read_bytes()[:-200])
    _trust(monkeypatch, "aimnet2/teacher", path)
    _refused("is cut short; .*zoo teachers fetch aimnet2/teacher")


@needs_aimnet
@pytest.mark.parametrize("harm", ["class: os.system", "class: subprocess.Popen"])
def test_a_description_that_would_run_something_is_refused(harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = artifact("aimnet2")
    content["model_yaml"] = content["model_yaml"].replace("class: aimnet.modules.AtomicSum", harm)
    _put(monkeypatch, "aimnet2/teacher", content)
    _refused("cannot be read as an AIMNet2 model")


@needs_aimnet
def test_what_would_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, ("raise SystemExit('something was run')",)

    _put(monkeypatch, "aimnet2/teacher", {"state_dict": Hostile()})
    with torch.serialization.safe_globals([(exec, "builtins.exec")]):  # which a user trusts elsewhere
        _refused("wants to call builtins.exec")


@needs_aimnet
@pytest.mark.usefixtures("here")
def test_an_element_that_it_lacks_is_named(potentials: Any) -> None:
    potential = potentials("aimnet2/teacher")
    with pytest.raises(DomainError, match="aimnet2/teacher was not trained on U"):
        potential.predict(build_graph(Atoms("UH", [[0, 0, 0], [0, 0, 2]]), potential.cutoff))
