"""Orb: small models with random weights, saved as orb-models' own are, against orb-models' own calculator."""

import builtins
import copy
import functools
import inspect
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from ase.build import bulk, molecule
from contracts import CONTRACT
from orb_checkpoints import SMALL, random_model, small_architectures
from small_teachers import small_weights
from teacher_contract import TeacherContract

from zoo.errors import CapabilityError, IntegrityError, MissingPackageError, ZooWarning
from zoo.neighbors import build_graph
from zoo.potential import Potential
from zoo.teachers import orb
from zoo.teachers.inputs import lowest_multiplicities, nearest, warn_of_hidden
from zoo.teachers.weights import Record, record_path, weights_path

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .safety_factor. argument:DeprecationWarning"),
]
needs_orb = pytest.mark.orb

NAMES = {
    "orb-v3-conservative-inf-omat/teacher",
    "orb-v3-conservative-20-omat/teacher",
    "orb-v3-direct-inf-omat/teacher",
    "orb-v3-direct-20-omat/teacher",
    "orb-v3-conservative-inf-mpa/teacher",
    "orb-v3-conservative-20-mpa/teacher",
    "orb-v3-direct-inf-mpa/teacher",
    "orb-v3-direct-20-mpa/teacher",
    "orb-v3-conservative-omol/teacher",
    "orb-v3-direct-omol/teacher",
}


@pytest.fixture(scope="module")
def small() -> Iterator[Any]:
    """orb-models, whose architectures are small, and whose files were written by itself."""
    with small_architectures() as pretrained:
        yield pretrained


@pytest.fixture(scope="module")
def cache(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the files of all teachers."""
    folder = tmp_path_factory.mktemp("orb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(folder))
        for seed, name in enumerate(sorted(NAMES)):
            torch.manual_seed(seed)
            _write(name, random_model(small, name).state_dict())
    return folder


def _write(name: str, content: Any) -> Path:
    path = weights_path(name, orb.weights(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    _record(name, path)
    return path


def _record(name: str, path: Path) -> None:
    from zoo.files import sha256_file

    record = Record(url=orb.weights(name).url, digest=f"sha256:{sha256_file(path)}", size=path.stat().st_size)
    record_path(path).write_text(record.model_dump_json(), encoding="utf-8")


@pytest.fixture
def here(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(cache))
    return cache


@pytest.fixture
def potentials(cache: Path) -> Any:
    """Teachers in float64, each loaded once."""
    return functools.partial(_loaded, str(cache))


@functools.cache
def _loaded(cache: str, name: str) -> Potential:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", cache)
        return orb.load(name, torch.float64, "cpu").potential


def _molecule(name: str = "CH3CH2OH") -> Atoms:
    atoms = molecule(name)
    atoms.rattle(0.07, seed=3)
    atoms.info.update(charge=0, spin=1 + int(atoms.numbers.sum()) % 2)
    return atoms


def _squeezed() -> Atoms:
    """Water whose atoms are so near that the short-range repulsion counts."""
    atoms = _molecule("H2O")
    atoms.positions *= 0.7
    return atoms


def _crystal() -> Atoms:
    atoms = bulk("MgO", "rocksalt", a=4.3).repeat((2, 1, 1))
    atoms.rattle(0.08, seed=5)
    atoms.info.update(charge=0, spin=1)
    return atoms


# --- what is known without the package ------------------------------------------------------------


def test_names_are_those_of_the_package_with_hyphens() -> None:
    assert set(orb.names()) == NAMES


def test_what_a_teacher_gives_is_known_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "orb_models", None)
    conservative, direct = (orb.traits(f"orb-v3-{kind}-inf-omat/teacher") for kind in ("conservative", "direct"))
    assert (conservative.conservative, conservative.stress, conservative.smoothness) == (True, True, 2)
    assert (direct.conservative, direct.stress, direct.energies) == (False, True, True)
    assert not orb.traits("orb-v3-direct-omol/teacher").stress
    assert [name for name in sorted(NAMES) if orb.traits(name).open_shells] == [
        "orb-v3-conservative-omol/teacher",
        "orb-v3-direct-omol/teacher",
    ]
    few = orb.traits("orb-v3-conservative-20-omat/teacher")
    assert (few.smoothness, few.permutation_invariant) == (-1, False)
    assert not any(orb.traits(name).rotation_invariant for name in orb.names())
    assert not any(orb.traits(name).atomic_energies for name in orb.names())


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "orb_models", None)
    with pytest.raises(MissingPackageError, match=r"run: pip install 'orb-models>=0\.5\.5'") as error:
        orb.load("orb-v3-direct-omol/teacher", torch.float32, "cpu")
    assert "\n" not in str(error.value)


@needs_orb
def test_a_package_that_knows_no_charge_yet_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    from orb_models.forcefield import pretrained

    def older(latent_dim: int = 256, device: Any = None) -> None: ...

    monkeypatch.setattr(pretrained, "orb_v3_direct_architecture", older)
    with pytest.raises(MissingPackageError, match=r"the installed one is older than 0\.5\.5"):
        orb.load("orb-v3-direct-omol/teacher", torch.float32, "cpu")


@pytest.mark.parametrize("count", [1, 5, 11])
def test_the_nearest_neighbours_are_kept_in_their_order(count: int) -> None:
    graph = build_graph([_crystal(), _molecule()], 4.0)
    fewer = nearest(graph, count)
    lengths, kept = graph.edge_vectors().norm(dim=1), fewer.edge_vectors().norm(dim=1)
    for atom in range(graph.num_atoms):
        expected = lengths[graph.centers == atom].sort().values[:count]
        torch.testing.assert_close(kept[fewer.centers == atom].sort().values, expected)
    places = [
        tuple(edge) for edge in torch.stack([graph.centers, graph.neighbors, *graph.shifts.long().t()], 1).tolist()
    ]
    chosen = [
        tuple(edge) for edge in torch.stack([fewer.centers, fewer.neighbors, *fewer.shifts.long().t()], 1).tolist()
    ]
    assert [edge for edge in places if edge in set(chosen)] == chosen
    assert nearest(graph, 10_000) is graph


def test_neighbours_as_far_as_the_next_are_kept_where_ties_count() -> None:
    graph = build_graph(bulk("Cu", a=3.6), 4.0)  # 12 at 2.55 Å, 6 at 3.6 Å
    assert [nearest(graph, count, beyond=0.01).num_edges for count in (5, 12, 15)] == [12, 18, 18]
    assert nearest(graph, 5).num_edges == 5


def test_atoms_with_more_neighbours_than_are_seen_are_told_of() -> None:
    dense = build_graph(bulk("C", "diamond", a=3.567), 6.0)  # 158 neighbours
    with pytest.warns(ZooWarning, match="more than 120 neighbours, of which orb-v3 sees the nearest 120"):
        warn_of_hidden(dense, nearest(dense, 120), 120, "orb-v3")
    warn_of_hidden(dense, nearest(dense, 158), 158, "orb-v3")


def test_neutral_structures_have_the_lowest_spin() -> None:
    graph = build_graph([_molecule("H2O"), _molecule("CH3"), _crystal()], 4.0)
    assert lowest_multiplicities(graph).tolist() == [1, 2, 1]


# --- against orb-models ---------------------------------------------------------------------------


@needs_orb
@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.usefixtures("here")
def test_it_is_published_where_the_package_says(name: str, small: Any) -> None:
    build = small.ORB_PRETRAINED_MODELS[name.partition("/")[0]]
    assert inspect.signature(build).parameters["weights_path"].default == orb.weights(name).url


@needs_orb
@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.usefixtures("here")
def test_it_keeps_as_many_neighbours_as_the_package(name: str, potentials: Any) -> None:
    calculator = orb.calculator(name, torch.float32)
    graphs = getattr(calculator, "adapter", None) or calculator.system_config  # since version 0.6, and before
    assert potentials(name).neighbors == graphs.max_num_neighbors
    assert potentials(name).cutoff == graphs.radius


def _squeezed_and_others() -> list[Atoms]:
    return [_molecule(), _squeezed(), _crystal()]


class _Contract(TeacherContract):
    structures = staticmethod(_squeezed_and_others)

    @pytest.fixture(autouse=True)
    def weights(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(
            scenes, "LATTICE", 5.39
        )  # at silicon's own a pair is 6.000 Å apart, where edges come and go
        with small_weights(self.name):
            yield


@needs_orb
class TestConservative(_Contract):
    name = "orb-v3-conservative-inf-omat/teacher"


@needs_orb
class TestConservativeOfFewNeighbours(_Contract):
    name = "orb-v3-conservative-20-omat/teacher"


@needs_orb
class TestConservativeOfMolecules(_Contract):
    name = "orb-v3-conservative-omol/teacher"


# without the torque, which is removed, forces have no limit where a molecule becomes linear
_OF_DIRECT = tuple(law for law in CONTRACT if law != "no_cusp")


@needs_orb
class TestDirect(_Contract):
    name = "orb-v3-direct-inf-omat/teacher"
    laws = _OF_DIRECT


@needs_orb
class TestDirectOfFewNeighbours(_Contract):
    name = "orb-v3-direct-20-omat/teacher"
    laws = _OF_DIRECT


@needs_orb
class TestDirectOfMolecules(_Contract):
    name = "orb-v3-direct-omol/teacher"
    laws = _OF_DIRECT


@needs_orb
@pytest.mark.usefixtures("here", "small")
def test_a_turned_molecule_has_another_energy(potentials: Any) -> None:
    """Which is why its traits do not promise the opposite."""
    potential = potentials("orb-v3-conservative-inf-omat/teacher")
    atoms, turned = _molecule(), _molecule()
    turned.rotate(73, (1, 2, -0.5))
    energies = [float(potential.predict(build_graph(one, potential.cutoff)).energy) for one in (atoms, turned)]
    assert abs(energies[0] - energies[1]) > 1e-6


@needs_orb
@pytest.mark.usefixtures("here", "small")
def test_features_that_turn_are_not_given(potentials: Any) -> None:
    potential = potentials("orb-v3-conservative-omol/teacher")
    with pytest.raises(CapabilityError, match="gives no node features"):
        potential.predict(build_graph(_molecule(), potential.cutoff), features=True)


@needs_orb
@pytest.mark.usefixtures("here", "small")
def test_elements_have_rows_in_their_order(potentials: Any) -> None:
    potential = potentials("orb-v3-conservative-inf-omat/teacher")
    rows = potential.element_embeddings()
    assert rows.shape == (len(potential.elements), SMALL["latent_dim"])
    assert (len(potential.elements), potential.elements[83]) == (89, 89)
    assert torch.equal(rows[13], potential.model.model.atom_emb.embeddings.weight[14])


@needs_orb
@pytest.mark.usefixtures("here", "small")
def test_energies_keep_the_digits_of_references() -> None:
    """A float32 holds a sum of −10,000 eV to a millielectronvolt."""
    single = orb.load("orb-v3-conservative-inf-omat/teacher", torch.float32, "cpu").potential
    numbers = torch.tensor([8, 14])
    head = single.model.heads["energy"].reference.linear.weight
    assert single.reference_energies(numbers).dtype == torch.float64
    assert torch.equal(single.reference_energies(numbers), head.reshape(-1)[[8, 14]].double())


@needs_orb
@pytest.mark.usefixtures("here", "small")
def test_a_copy_says_the_same(potentials: Any) -> None:
    potential = potentials("orb-v3-direct-omol/teacher")
    twin = copy.deepcopy(potential)
    graph = build_graph(_molecule(), potential.cutoff)
    assert torch.equal(twin.predict(graph).forces, potential.predict(graph).forces)


@needs_orb
@pytest.mark.usefixtures("here", "small")
def test_it_says_where_it_comes_from() -> None:
    teacher = orb.load("orb-v3-conservative-omol/teacher", torch.float32, "cpu")
    assert teacher.package.startswith("orb-models ")
    assert (teacher.licence_code, teacher.licence_weights) == ("Apache-2.0", "Apache-2.0")
    assert "OMol25" in teacher.level_of_theory
    other = orb.load("orb-v3-direct-omol/teacher", torch.float32, "cpu")
    assert other.weights_sha256 != teacher.weights_sha256


def _crowded_cell() -> Atoms:
    """Two atoms so near that the repulsion counts, in a cell of no symmetry."""
    cell = [[7.0, 0.3, 0.0], [0.5, 8.0, -0.4], [0.0, 0.2, 9.0]]
    return Atoms("OH", [[0, 0, 0], [0.55, 0.2, 0.1]], cell=cell, pbc=True)


@needs_orb
@pytest.mark.usefixtures("here", "small")
@pytest.mark.parametrize("name", ["orb-v3-direct-inf-omat/teacher", "orb-v3-direct-20-mpa/teacher"])
def test_the_stress_of_direct_models_is_their_own_whatever_the_hand_of_the_cell(name: str, potentials: Any) -> None:
    potential, atoms, left = potentials(name), _crowded_cell(), _crowded_cell()
    left.set_cell(atoms.cell[[1, 0, 2]])
    found = [potential.predict(build_graph(one, potential.cutoff), stress=True).stress[0] for one in (atoms, left)]
    atoms.calc = orb.calculator(name, torch.float64)
    assert np.abs(atoms.get_stress()).max() > 0.1
    np.testing.assert_allclose(found[0], atoms.get_stress(voigt=False), atol=1e-9)
    torch.testing.assert_close(found[0], found[1])


@needs_orb
@pytest.mark.usefixtures("here", "small")
def test_dense_matter_is_told_of_where_smoothness_was_promised(potentials: Any) -> None:
    diamond = bulk("C", "diamond", a=3.567)
    whole, few = (potentials(f"orb-v3-conservative-{reach}-omat/teacher") for reach in ("inf", "20"))
    with pytest.warns(ZooWarning, match="orb-v3-conservative-inf-omat/teacher sees the nearest 120"):
        whole.predict(build_graph(diamond, whole.cutoff))
    few.predict(build_graph(diamond, few.cutoff))  # whose traits promise nothing


# --- files that are not what they should be ---------------------------------------------------------


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.exec, ("raise SystemExit('something was run')",)


NAME = "orb-v3-conservative-omol/teacher"


def _refused(match: str) -> None:
    with pytest.raises(IntegrityError, match=match) as error:
        orb.load(NAME, torch.float32, "cpu")
    assert "\n" not in str(error.value)


@needs_orb
@pytest.mark.usefixtures("small")
def test_weights_that_are_not_here_are_named_with_their_command() -> None:
    with pytest.raises(MissingPackageError, match="run: zoo teachers fetch orb-v3-conservative-omol/teacher"):
        orb.load(NAME, torch.float32, "cpu")


@needs_orb
@pytest.mark.usefixtures("small")
def test_another_file_than_was_fetched_is_not_opened(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(NAME, random_model(small, NAME).state_dict())
    path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setattr(torch, "load", lambda *given, **asked: pytest.fail("it was opened"))
    _refused("not opened")


@needs_orb
@pytest.mark.usefixtures("small")
def test_a_truncated_file_is_refused(small: Any) -> None:
    path = _write(NAME, random_model(small, NAME).state_dict())
    path.write_bytes(path.read_bytes()[:-100])
    _record(NAME, path)
    _refused("cut short")


@needs_orb
@pytest.mark.usefixtures("small")
def test_what_would_run_is_refused() -> None:
    _write(NAME, {"weights": Hostile()})
    _refused("wants to call .*exec")


@needs_orb
@pytest.mark.usefixtures("small")
def test_a_bare_pickle_is_refused() -> None:
    path = _write(NAME, {})
    path.write_bytes(pickle.dumps(Hostile()))
    _record(NAME, path)
    _refused("no checkpoint")


@needs_orb
@pytest.mark.usefixtures("small")
def test_a_model_of_another_kind_is_refused(small: Any) -> None:
    _write(NAME, random_model(small, "orb-v3-direct-omol/teacher").state_dict())
    _refused("cannot be read as weights of orb-v3-conservative-omol .*; fetch it again: zoo teachers fetch")


@needs_orb
@pytest.mark.usefixtures("here", "small")
@pytest.mark.parametrize("name", ["orb-v3-conservative-inf-omat/teacher", "orb-v3-direct-inf-omat/teacher"])
def test_atoms_that_are_too_near_are_driven_apart(name: str, potentials: Any) -> None:
    potential = potentials(name)
    graph = build_graph(Atoms("OH", [[0, 0, 0], [0.3, 0, 0]]), potential.cutoff)
    assert potential.predict(graph).forces[1, 0] > 10
