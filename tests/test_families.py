"""The table of families, the adapters, the catalogue and the locks say the same; and how a teacher is chosen."""

import hashlib
import importlib
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from ase.build import bulk, molecule
from packaging.requirements import Requirement
from teacher_contract import TeacherContract

from zoo.config import parse, write_json
from zoo.errors import IntegrityError, MissingPackageError, NotReleasedError, UnknownNameError, ZooWarning
from zoo.hub.catalogue import entries
from zoo.potential import Traits
from zoo.teachers import (
    FAMILIES,
    FINE_TUNED,
    OwnTeacher,
    Weights,
    absent,
    bringing,
    family_of,
    load_here,
    load_teacher,
    needs_converting,
    stated_traits,
    teacher_names,
    weights_of,
)
from zoo.teachers.environments import lock_path, locked, read_lock
from zoo.teachers.mace_file import import_mace
from zoo.teachers.weights import FACTS, Record, record_path, weights_folder, weights_path

FETCHED = "mace-off23-large/teacher"
OWN = "own/mine"


@pytest.mark.parametrize("key", FAMILIES)
def test_an_adapter_serves_the_names_of_the_table(key):
    family = FAMILIES[key]
    adapter = importlib.import_module(family.module)
    assert sorted(adapter.names()) == sorted(family.names)
    assert hasattr(adapter, "load_file") == family.own_files
    assert family.names, "a family without teachers"


@pytest.mark.parametrize("key", FAMILIES)
def test_an_adapter_is_imported_without_its_package(key):
    family = FAMILIES[key]
    hidden = sorted({module.partition(".")[0] for module in family.imports})
    program = (
        f"import sys\nfor name in {hidden}: sys.modules[name] = None\n"
        f"import importlib; a = importlib.import_module({family.module!r})\n"
        "assert all(a.traits(name) for name in a.names())\n"
        f"{family.converted} or [a.weights(name) for name in a.names()]"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("key", FAMILIES)
def test_a_family_has_a_lock_where_it_says_so(key):
    assert FAMILIES[key].locked == (key in locked())
    assert FAMILIES[key].locked == bool(FAMILIES[key].install)


@pytest.mark.parametrize("key", [key for key, family in FAMILIES.items() if family.locked])
def test_a_family_has_an_extra_whose_packages_its_lock_holds(key):
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    wanted = {found.name: found for found in map(Requirement, project["optional-dependencies"][key])}
    assert set(wanted) == set(FAMILIES[key].install.split())
    pins = read_lock(lock_path(key))
    assert all(wanted[name].specifier.contains(pins[name].version) for name in wanted)


def test_every_name_is_of_one_family():
    names = [name for family in FAMILIES.values() for name in family.names]
    assert len(names) == len(set(names)) == len(teacher_names())
    assert {family_of(name).key for name in names} == set(FAMILIES)
    assert family_of("no/teacher") is family_of(OWN) is None


@pytest.mark.parametrize("name", [name for name in teacher_names() if name not in FINE_TUNED])
def test_the_catalogue_names_the_package_that_the_table_installs(name):
    family, entry = family_of(name), entries()[name]
    assert entry.package == (family.install or "zoo").split()[0]
    assert isinstance(stated_traits(name), Traits)
    weights = weights_of(name)
    assert weights is None or (isinstance(weights, Weights) and weights.url.startswith("https://"))
    assert not (weights is not None and needs_converting(name))


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr("zoo.teachers.families._is_found", lambda module: False)


@pytest.fixture
def all_installed(monkeypatch):
    monkeypatch.setattr("zoo.teachers.families._is_found", lambda module: True)


@pytest.mark.parametrize("name", ["gfn2-xtb/teacher", "sevennet-0/teacher", FETCHED])
def test_a_missing_package_is_told_with_both_ways_to_get_it(name, nothing_installed):
    family = family_of(name)
    with pytest.raises(MissingPackageError) as caught:
        load_teacher(name)
    line = str(caught.value)
    assert line.startswith(f"{name} cannot be run: the package {family.install.split()[0]} is not installed; run: ")
    assert f"zoo teachers install {family.key}" in line
    assert line.endswith(f"pip install {family.install}")
    assert line == f"{name} cannot be run: {absent(name)}"
    assert "\n" not in line


def test_a_package_is_found_by_its_files_without_being_imported(tmp_path, monkeypatch):
    (tmp_path / "zoonamed" / "core" / "units").mkdir(parents=True)
    (tmp_path / "zoonamed" / "core" / "__init__.py").write_text("raise SystemExit('it was imported')")
    (tmp_path / "zoonamed" / "core" / "inner.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("zoonamed", "zoonamed.core", "zoonamed.core.inner", "zoonamed.core.units", "zoonamed.core.inner.deeper")
    found = [name for name in names if replace(FAMILIES["mace"], imports=(name,)).is_importable]
    assert found == ["zoonamed.core", "zoonamed.core.inner"], "folders alone are no package"
    assert not replace(FAMILIES["mace"], imports=("zoonamed.core", "no_such_module.at_all")).is_importable


def state(monkeypatch, **stated):
    """Has zoo say something else of silicon than is so; gives how a message tells it."""
    traits = stated_traits("stillinger-weber/teacher")
    monkeypatch.setattr("zoo.teachers.stillinger_weber.traits", lambda name: replace(traits, **stated))
    return "; ".join(f"{trait} {getattr(traits, trait)}, expected {value}" for trait, value in stated.items())


def test_what_the_right_file_gives_counts_whatever_was_stated(monkeypatch):
    told = state(monkeypatch, smoothness=2, features=128)
    with pytest.warns(ZooWarning) as caught:
        teacher = load_teacher("stillinger-weber/teacher")
    assert teacher.potential.traits.features == 0
    assert [(str(one.message), one.filename) for one in caught] == [
        (
            "the weights of stillinger-weber/teacher are of another model than zoo knows by this name "
            f"({told}); their digest is right, and what they give counts",
            __file__,
        )
    ]


@pytest.mark.parametrize("stated", [{"conservative": False, "smoothness": 2}, {"energies": False}])
def test_a_file_of_another_kind_than_was_stated_is_refused(monkeypatch, stated):
    told = state(monkeypatch, **stated)
    with pytest.raises(IntegrityError) as caught:
        load_teacher("stillinger-weber/teacher")
    assert f"({told}), of another kind; take a newer zoo" in str(caught.value)


@pytest.mark.parametrize(
    ("known", "accepted", "refused"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"digest": f"sha256:{'1' * 64}"}, False, False),
        ({"digest": f"sha256:{'2' * 64}", "seen": "index"}, False, False),
        ({"digest": f"sha256:{'2' * 64}", "seen": "index"}, True, False),
    ],
)
def test_a_file_that_only_its_first_download_vouches_for_must_be_as_stated(monkeypatch, known, accepted, refused):
    name, weights = "stillinger-weber/teacher", Weights("https://host/silicon.pt", **known)
    monkeypatch.setattr("zoo.teachers.stillinger_weber.weights", lambda name: weights)
    path = weights_path(name, weights)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"silicon")
    write_json(record_path(path), Record(url=weights.url, digest=f"sha256:{'1' * 64}", size=7, accepted=accepted))
    digest = load_teacher(name).weights_sha256
    told = state(monkeypatch, features=128)
    if not refused:
        with pytest.warns(ZooWarning, match="what they give counts"):
            load_teacher(name)
        return
    with pytest.raises(IntegrityError) as caught:
        load_teacher(name)
    line = str(caught.value)
    assert line.endswith(
        f"({told}), and only their first download says what they are; if you know them to be right, "
        f"run: zoo teachers fetch {name} --accept-digest sha256:{digest}"
    )
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("sevennet-0/teacher", "sevenn"),
        (FETCHED, "e3nn"),
        ("uma-s-1p1/omol-teacher", "fairchem"),
        ("orb-v3-conservative-omol/teacher", "orb_models"),
        ("aimnet2/teacher", "aimnet"),
    ],
)
def test_a_package_that_clashes_while_it_is_imported_is_one_that_is_missing(name, broken, tmp_path, monkeypatch):
    for module in [module for module in sys.modules if module.split(".")[0] == broken]:
        monkeypatch.delitem(sys.modules, module)
    (tmp_path / broken).mkdir()
    (tmp_path / broken / "__init__.py").write_text("raise AttributeError('module has no\\nattribute x')")
    monkeypatch.syspath_prepend(tmp_path)
    family = family_of(name)
    adapter = importlib.import_module(family.module)
    require = {"sevennet": "_check_package", "orb": "_package"}.get(family.key, "_require")
    with pytest.raises(MissingPackageError) as caught:
        import_mace() if family.key == "mace" else getattr(adapter, require)(name)
    line = str(caught.value)
    assert "which cannot be imported here (AttributeError: module has no attribute x); run: pip install " in line
    assert line.endswith(f"zoo teachers install {family.key}")
    assert family.install in line
    assert "\n" not in line


def test_a_teacher_without_a_package_needs_none(nothing_installed):
    assert absent("stillinger-weber/teacher") is None
    assert load_teacher("stillinger-weber/teacher").package == "zoo"


def test_what_brings_a_teacher_is_told_in_order(nothing_installed, monkeypatch):
    assert bringing("stillinger-weber/teacher") == []
    assert bringing("sevennet-0/teacher") == ["zoo teachers install sevennet"]
    assert bringing(FETCHED) == ["zoo teachers install mace", f"zoo teachers fetch {FETCHED}"]
    assert bringing("jmp-l/md22-teacher") == ["zoo convert jmp-l --download", "zoo distill jmp-l/md22-teacher"]
    monkeypatch.setattr("zoo.teachers.families._is_found", lambda module: True)
    assert bringing(FETCHED) == [f"zoo teachers fetch {FETCHED}"]


def test_weights_that_are_not_here_are_told_with_the_command_that_fetches_them(all_installed):
    with pytest.raises(MissingPackageError, match=f"its weights are not here; run: zoo teachers fetch {FETCHED}$"):
        load_teacher(FETCHED)
    path = weights_path(FETCHED, weights_of(FETCHED))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert absent(FETCHED) is None


def test_weights_that_are_converted_are_told_with_classes_of_their_own():
    with pytest.raises(MissingPackageError, match="run: zoo convert jmp-l --download"):
        load_teacher("jmp-l/teacher")
    with pytest.raises(NotReleasedError, match="zoo distill jmp-l/md22-teacher"):
        load_teacher("jmp-l/md22-teacher")


def test_an_environment_takes_the_place_of_a_package(nothing_installed, monkeypatch):
    asked = []
    monkeypatch.setattr("zoo.teachers.python_of", {"sevennet": Path("/there/python")}.get)
    monkeypatch.setattr("zoo.teachers.load_remote", lambda *what: asked.append(what))
    assert absent("sevennet-0/teacher") is None
    load_teacher("sevennet-0/teacher", dtype=torch.float64)
    assert asked == [("sevennet-0/teacher", torch.float64, "cpu", Path("/there/python"))]
    assert absent("gfn2-xtb/teacher") is not None


def test_a_package_that_does_not_work_here_leaves_the_teacher_to_its_environment(all_installed, monkeypatch):
    adapter = importlib.import_module("zoo.teachers.sevennet")

    def load(name, dtype, device):
        raise MissingPackageError("it wants another e3nn; install that")

    monkeypatch.setattr(adapter, "load", load)
    with pytest.raises(MissingPackageError, match="another e3nn"):
        load_teacher("sevennet-0/teacher")
    asked = []
    monkeypatch.setattr("zoo.teachers.python_of", lambda family: Path("/there/python"))
    monkeypatch.setattr("zoo.teachers.load_remote", lambda *what: asked.append(what))
    load_teacher("sevennet-0/teacher")
    assert len(asked) == 1


def test_in_a_worker_nothing_is_sought_elsewhere(nothing_installed, monkeypatch):
    monkeypatch.setattr("zoo.teachers.load_remote", lambda *what: pytest.fail("another worker"))
    adapter = importlib.import_module("zoo.teachers.mace")

    def load(*asked):
        raise MissingPackageError(repr(asked))

    monkeypatch.setattr(adapter, "load", load)
    with pytest.raises(MissingPackageError, match=re.escape(repr((FETCHED, torch.float64, "cpu")))):
        load_here(FETCHED, dtype=torch.float64)


def test_a_name_that_no_teacher_has_is_an_error_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"did you mean sevennet-0/teacher\? zoo teachers lists them"):
        load_teacher("sevenet-0/teacher")
    assert absent("sevenet-0/teacher") is None


def added(**changes):
    facts = {"name": OWN, "family": "mace", "file": "mine.model", "sha256": "0" * 64, "elements": ("Si",)}
    facts |= {"licence": "MIT", "level_of_theory": "PBE"} | changes
    folder = weights_folder(OWN)
    folder.mkdir(parents=True)
    write_json(folder / FACTS, parse(OwnTeacher, facts, "test"))
    (folder / "mine.model").write_bytes(b"weights")
    return folder / "mine.model"


def test_a_teacher_of_one_s_own_that_nobody_added_says_how():
    with pytest.raises(UnknownNameError) as caught:
        load_teacher(OWN)
    assert str(caught.value) == f"{OWN} cannot be run: {absent(OWN)}"
    assert f"run: zoo teachers add {OWN} FILE" in str(caught.value)
    assert "zoo.teacher_from" in str(caught.value)


def test_a_file_of_one_s_own_is_opened_by_its_family_when_its_digest_is_right(all_installed, monkeypatch):
    adapter, opened = importlib.import_module("zoo.teachers.mace"), []
    monkeypatch.setattr(adapter, "load_file", lambda path, name, facts, dtype, device: opened.append((path, facts)))
    path = added(sha256=hashlib.sha256(b"weights").hexdigest())
    load_teacher(OWN)
    assert [one[0] for one in opened] == [path]
    assert opened[0][1].level_of_theory == "PBE"
    path.write_bytes(b"others")
    with pytest.raises(IntegrityError, match="has the digest"):
        load_teacher(OWN)
    assert len(opened) == 1
    path.unlink()
    with pytest.raises(IntegrityError, match=rf"{OWN} cannot be run: its file .* is gone; put it back, or run"):
        load_teacher(OWN)


def test_a_file_for_a_family_that_takes_none_is_an_error(all_installed):
    added(family="xtb")
    with pytest.raises(UnknownNameError, match=r"whose adapter takes no files of one's own; expected .*mace"):
        load_teacher(OWN)


def _molecules():
    return [molecule("CH3CH2OH"), molecule("H2O")]


def _crystals():
    found = [bulk("Si", cubic=True), bulk("NaCl", "rocksalt", a=5.6)]
    for seed, atoms in enumerate(found):
        atoms.rattle(0.05, seed=seed)
    return found


@pytest.mark.xtb
class TestXTB(TeacherContract):
    name = "gfn2-xtb/teacher"
    structures = staticmethod(_molecules)
    agreement: ClassVar = {"float64": 1e-6, "float32": 2e-4}  # ASE's units are of CODATA 2014
    laws = ()  # of crystals, most of them
    difference = 1e-5


@pytest.mark.sevennet
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
class TestSevenNet(TeacherContract):
    name = "sevennet-0/teacher"
    structures = staticmethod(_crystals)
    laws = ()  # in tests/test_contracts.py
