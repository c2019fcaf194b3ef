"""UMA and eSEN: small models with random weights, saved as inference checkpoints, against fairchem's own calculator."""

import copy
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from fairchem_checkpoints import CONSERVING, DIRECT, NEWER, OMAT, OMOL, REFERENCES, SCALES, checkpoint, put
from small_teachers import small_weights
from teacher_contract import TeacherContract

from zoo.errors import ConfigError, DomainError, MissingPackageError, ZooWarning
from zoo.neighbors import build_graph
from zoo.potential import Potential
from zoo.teachers import fairchem
from zoo.teachers.weights import OwnTeacher

needs_fairchem = pytest.mark.fairchem
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch.jit, and of ray's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*index_reduce.*:UserWarning"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the files of some teachers; two of them are one file."""
    folder = tmp_path_factory.mktemp("fairchem")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(folder))
        for seed, name in enumerate((OMOL, NEWER, CONSERVING, DIRECT)):
            torch.manual_seed(seed)
            put(name, checkpoint(name, neighbors=30 if name == DIRECT else 300))
    return folder


@pytest.fixture
def here(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(cache))
    return cache


@functools.cache
def _loaded(cache: str, name: str) -> Potential:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", cache)
        return fairchem.load(name, torch.float64, "cpu").potential


@pytest.fixture
def potentials(cache: Path) -> Any:
    """Teachers in float64, each loaded once."""
    return functools.partial(_loaded, str(cache))


def _molecule(name: str = "CH3CH2OH") -> Atoms:
    atoms = molecule(name)
    atoms.rattle(0.07, seed=3)
    return atoms


def _crystal() -> Atoms:
    atoms = bulk("MgO", "rocksalt", a=4.3).repeat((2, 1, 1))
    atoms.rattle(0.08, seed=5)
    return atoms


# --- what is known without the package ------------------------------------------------------------


def test_names_say_the_task() -> None:
    assert {name for name in fairchem.names() if name.startswith("uma")} == {
        f"{model}/{task}-teacher" for model in ("uma-s-1p1", "uma-s-1p2p1", "uma-m-1p1") for task in ("omol", "omat")
    }
    assert {CONSERVING, DIRECT, "esen-md-direct-all-omol/teacher"} <= set(fairchem.names())


def test_tasks_of_one_model_are_one_file_behind_one_page() -> None:
    assert fairchem.weights(OMOL) == fairchem.weights(OMAT)
    assert fairchem.weights(OMOL).gated == "https://huggingface.co/facebook/UMA"
    assert fairchem.weights(DIRECT).gated == "https://huggingface.co/facebook/OMol25"


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.split(".")[0] == "fairchem"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "fairchem", None)
    with pytest.raises(MissingPackageError, match="run: pip install 'fairchem-core>=2'") as error:
        fairchem.load(OMOL, torch.float32, "cpu")
    assert "\n" not in str(error.value)


# --- against fairchem -----------------------------------------------------------------------------


@needs_fairchem
@pytest.mark.parametrize("name", fairchem.names())
def test_files_are_those_that_the_package_fetches(name: str) -> None:
    from fairchem.core.calculate.pretrained_mlip import _MODEL_CKPTS

    entry = _MODEL_CKPTS.checkpoints[name.partition("/")[0]]
    address = f"https://huggingface.co/{entry.repo_id}/resolve/main/{entry.subfolder}/{entry.filename}"
    assert fairchem.weights(name).url == address


class _Contract(TeacherContract):
    structures = staticmethod(lambda: [_neutral("CH3CH2OH"), _neutral("CO2"), _neutral("CH3"), _crystal()])

    @pytest.fixture(autouse=True)
    def weights(self) -> Iterator[None]:
        with small_weights(self.name):
            yield


def _neutral(name: str) -> Atoms:
    """As the task of molecules wants to be told; others take no notice."""
    atoms = _molecule(name)
    atoms.info.update(charge=0, spin=1 + int(atoms.numbers.sum()) % 2)
    return atoms


@needs_fairchem
class TestUMAOfMolecules(_Contract):
    name = OMOL


@needs_fairchem
class TestUMAOfMaterials(_Contract):
    name = OMAT
    structures = staticmethod(lambda: [_crystal(), _molecule()])


@needs_fairchem
class TestNewerUMA(_Contract):
    name = NEWER
    structures = staticmethod(lambda: [_crystal(), _molecule()])


@needs_fairchem
class TestConservingESEN(_Contract):
    name = CONSERVING


@needs_fairchem
class TestDirectESEN(_Contract):
    name = DIRECT


@needs_fairchem
@pytest.mark.parametrize("name", [OMOL, CONSERVING])
@pytest.mark.usefixtures("here")
def test_the_hessian_is_that_of_the_package(name: str, potentials: Any) -> None:
    atoms = _neutral("H2O")
    atoms.calc = fairchem.calculator(name, torch.float64, hessian=True)
    atoms.get_potential_energy()
    found = potentials(name).hessian(build_graph(atoms, potentials(name).cutoff))
    np.testing.assert_allclose(found, atoms.calc.results["hessian"], atol=1e-9)


@needs_fairchem
@pytest.mark.parametrize("name", [OMOL, CONSERVING])
@pytest.mark.usefixtures("here")
def test_a_mirrored_molecule_has_another_energy(name: str, potentials: Any) -> None:
    """Which is why its traits do not promise the opposite."""
    potential, atoms, mirrored = potentials(name), _molecule(), _molecule()
    mirrored.positions[:, 0] *= -1
    energies = [float(potential.predict(build_graph(one, potential.cutoff)).energy) for one in (atoms, mirrored)]
    assert abs(energies[0] - energies[1]) > 1e-7


@needs_fairchem
@pytest.mark.parametrize(("name", "together"), [(OMOL, False), (CONSERVING, True)])
def test_two_molecules_far_apart_are_two_molecules_where_composition_mixes_nothing(
    name: str, together: bool, potentials: Any
) -> None:
    potential, near, far = potentials(name), _molecule(), _molecule("H2O")
    far.positions += [60, 0, 0]
    energies = [float(potential.predict(build_graph(one, potential.cutoff)).energy) for one in (near, far, near + far)]
    assert (abs(energies[2] - energies[0] - energies[1]) < 1e-8) == together == potential.traits.size_consistent


@needs_fairchem
def test_layers_on_a_grid_follow_a_rotation_only_so_far(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    torch.save(checkpoint(CONSERVING, layers="grid"), path)
    potential = fairchem.load_file(path, "own/mine", _facts(path), torch.float64, "cpu").potential
    assert not potential.traits.rotation_invariant
    atoms, turned = _molecule(), _molecule()
    turned.rotate(73, (1, 2, -0.5))
    found = [potential.predict(build_graph(one, potential.cutoff), features=True).features for one in (atoms, turned)]
    assert (found[0] - found[1]).abs().max() > 1e-7


@needs_fairchem
@pytest.mark.usefixtures("here")
def test_energies_of_atoms_and_features_are_those_of_the_network(potentials: Any) -> None:
    potential = potentials(NEWER)
    graph = build_graph([_crystal(), _molecule()], potential.cutoff)
    found = potential.predict(graph, features=True)
    own = potential.energy_head.energy_block(found.features)[:, 0] * SCALES["conserving"]
    torch.testing.assert_close(found.atomic_energies - potential.reference_energies(graph.numbers), own)
    assert potential.reference_energies(torch.tensor([8])).item() == REFERENCES["omat"][8]
    rows = potential.element_embeddings()
    assert torch.equal(rows[7], potential.backbone.sphere_embedding.weight[8])
    assert (len(rows), potential.elements[83]) == (89, 89)


@needs_fairchem
@pytest.mark.usefixtures("here")
def test_tasks_of_one_file_differ_in_energy_and_level_of_theory() -> None:
    omol, omat = (fairchem.load(name, torch.float64, "cpu") for name in (OMOL, OMAT))
    assert omol.weights_sha256 == omat.weights_sha256
    assert "ωB97M-V" in omol.level_of_theory
    assert "OMat24" in omat.level_of_theory
    graph = build_graph(_crystal(), omol.potential.cutoff)
    assert abs(omol.potential.predict(graph).energy - omat.potential.predict(graph).energy) > 1


@needs_fairchem
def test_an_element_whose_energy_a_file_lacks_is_none_of_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    without = [0.0 if number == 54 else energy for number, energy in enumerate(REFERENCES["omol"])]
    monkeypatch.setitem(REFERENCES, "omol", without)
    put(CONSERVING, checkpoint(CONSERVING))
    elements = fairchem.load(CONSERVING, torch.float64, "cpu").potential.elements
    assert elements == tuple(number for number in range(1, 84) if number != 54)


def test_the_task_of_molecules_alone_is_told_of_unpaired_electrons() -> None:
    told = {name for name in fairchem.names() if fairchem.traits(name).open_shells}
    assert told == {name for name in fairchem.names() if "omol" in name}


@needs_fairchem
@pytest.mark.usefixtures("here")
def test_a_radical_is_a_doublet_for_the_task_that_knows_of_spin_alone(
    potentials: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = build_graph(_molecule("CH3"), potentials(OMOL).cutoff)
    before = [potentials(name).predict(graph).energy.item() for name in (OMOL, OMAT)]
    monkeypatch.setattr(fairchem, "lowest_multiplicities", lambda graph: torch.ones_like(graph.atom_counts))
    after = [potentials(name).predict(graph).energy.item() for name in (OMOL, OMAT)]
    assert before[0] != after[0]
    assert before[1] == after[1]


@needs_fairchem
@pytest.mark.usefixtures("here")
def test_a_copy_says_the_same_and_asking_leaves_a_graph_as_it_was(potentials: Any) -> None:
    potential = potentials(OMOL)
    graph = build_graph(_molecule(), potential.cutoff)
    energy = potential.predict(graph, forces=False).energy
    with torch.no_grad():
        assert not potential.atomic_energies(graph).requires_grad
    assert not graph.positions.requires_grad
    assert torch.equal(copy.deepcopy(potential).predict(graph, forces=False).energy, energy)


@needs_fairchem
@pytest.mark.usefixtures("here")
def test_it_says_where_it_comes_from() -> None:
    teacher = fairchem.load(OMOL, torch.float32, "cpu")
    assert teacher.package.startswith("fairchem-core 2")
    assert (teacher.licence_code, teacher.licence_weights) == ("MIT", "LicenseRef-FAIR-Chemistry-v1")


@needs_fairchem
@pytest.mark.usefixtures("here")
def test_an_element_that_it_lacks_is_named(potentials: Any) -> None:
    with pytest.raises(DomainError, match="uma-s-1p1/omol-teacher was not trained on U;"):
        potentials(OMOL).predict(build_graph(Atoms("UH", [[0, 0, 0], [0, 0, 2]]), 4.5))


@needs_fairchem
@pytest.mark.parametrize("neighbors", [6, 7, 18])
def test_fewer_neighbours_are_those_that_the_package_takes(neighbors: int, tmp_path: Path) -> None:
    from fairchem.core import FAIRChemCalculator
    from fairchem.core.units.mlip_unit import InferenceSettings, load_predict_unit

    path = tmp_path / "mine.pt"
    torch.save(checkpoint(CONSERVING, neighbors=neighbors), path)
    ours = fairchem.load_file(path, "own/mine", _facts(path), torch.float64, "cpu").potential
    settings = InferenceSettings(activation_checkpointing=False, base_precision_dtype=torch.float64)
    theirs = FAIRChemCalculator(load_predict_unit(path, settings, device="cpu"), task_name="omol")
    assert ours.traits.smoothness == -1
    for atoms in (_crystal(), bulk("MgO", "rocksalt", a=4.2)):  # 6 at 2.10 Å, 12 at 2.97 Å, 8 at 3.64 Å
        atoms.calc = theirs
        found = ours.predict(build_graph(atoms, ours.cutoff))
        assert found.energy.item() == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        np.testing.assert_allclose(found.forces, atoms.get_forces(), atol=1e-8)


@needs_fairchem
def test_compressed_matter_is_told_of_where_smoothness_was_promised(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    torch.save(checkpoint(CONSERVING, neighbors=160), path)
    potential = fairchem.load_file(path, "own/mine", _facts(path), torch.float64, "cpu").potential
    graphs = [build_graph(bulk("C", "diamond", a=a), potential.cutoff) for a in (3.567, 2.5)]  # 70 and 190 neighbours
    potential.predict(graphs[0])
    with pytest.warns(ZooWarning, match="more than 160 neighbours, of which own/mine sees the nearest 160"):
        potential.predict(graphs[1])


@needs_fairchem
def test_a_lone_atom_is_refused_by_a_model_that_sees_none(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    torch.save(checkpoint(CONSERVING, single_atoms=False), path)
    potential = fairchem.load_file(path, "own/mine", _facts(path), torch.float64, "cpu").potential
    with pytest.raises(DomainError, match="a single atom, which own/mine does not take"):
        potential.predict(build_graph([_molecule(), Atoms("O")], potential.cutoff))
    crystal = Atoms("Si", cell=[2.6, 2.6, 2.6], pbc=True)
    assert potential.predict(build_graph(crystal, potential.cutoff)).energy.isfinite()


def _facts(path: Path, **more: Any) -> OwnTeacher:
    given = {"name": "own/mine", "family": "fairchem", "file": path.name, "sha256": "0" * 64, "elements": ()}
    return OwnTeacher(**given, licence="CC-BY-4.0", level_of_theory="PBE", **more)


@needs_fairchem
def test_a_file_of_ones_own_with_several_tasks_wants_one_of_them(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    torch.save(checkpoint(NEWER), path)
    with pytest.raises(ConfigError, match=r"tasks omat, omol, and none was chosen; .* add own/mine FILE ... --head"):
        fairchem.load_file(path, "own/mine", _facts(path), torch.float64, "cpu")
    with pytest.raises(ConfigError, match="has the tasks omat, omol, and 'odac' is none of them"):
        fairchem.load_file(path, "own/mine", _facts(path, head="odac"), torch.float64, "cpu")
    teacher = fairchem.load_file(path, "own/mine", _facts(path, head="omat"), torch.float64, "cpu")
    assert (teacher.licence_weights, teacher.level_of_theory) == ("CC-BY-4.0", "PBE")
    assert teacher.potential.elements == tuple(range(1, 100))


@needs_fairchem
def test_descriptions_that_omegaconf_keeps_are_read_too(tmp_path: Path) -> None:
    plain, wrapped = tmp_path / "plain.pt", tmp_path / "wrapped.pt"
    for path, wrap in ((plain, False), (wrapped, True)):
        torch.manual_seed(5)
        torch.save(checkpoint(CONSERVING, wrap=wrap), path)
    graph = build_graph(_molecule(), 4.5)
    energies = [
        fairchem.load_file(path, "own/mine", _facts(path), torch.float64, "cpu").potential.predict(graph).energy
        for path in (plain, wrapped)
    ]
    assert torch.equal(*energies)
