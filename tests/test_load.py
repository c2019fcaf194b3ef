"""From a name to an engine: what is found, what is refused, and what is never touched on the way."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import model_folders as folders
import pytest
import torch

import zoo
from zoo.errors import ConfigError, HubError, IntegrityError, NotReleasedError, UnknownNameError
from zoo.listing import describe, listing
from zoo.load import load, names
from zoo.publish import publish
from zoo.pull import pull
from zoo.teachers import load_teacher
from zoo.teachers.weights import FACTS, weights_folder

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.make_folder(tmp_path_factory.mktemp("runs") / "model")


@pytest.fixture(scope="module")
def hub(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hubs") / "hub"
    publish(folder, place, namespace="mlff-zoo")
    return place


def test_a_name_a_pin_an_address_and_a_folder_give_the_same_engine(folder: Path, hub: Path) -> None:
    loaded = [
        load(folders.NAME, hub=hub),
        load(f"{folders.NAME}@v1", hub=hub),
        load(folders.NAME, hub=hub, revision="v1"),
        load(f"{folders.NAME}@v1", hub=hub, revision="v1"),
        load(folders.NAME, hub=str(hub), revision="main"),
        load("hf://mlff-zoo/sevennet-0_silicon-student", hub=hub),
        load("hf://mlff-zoo/sevennet-0_silicon-student@v1", hub=hub),
        load(folder),
        load(str(folder)),
    ]
    (expected,) = loaded[0].predict(folders.cells(1)[0])
    for engine in loaded:
        assert engine.name == folders.NAME
        (found,) = engine.predict(folders.cells(1)[0])
        assert torch.equal(found.forces, expected.forces)
    assert {engine.provenance.revision for engine in loaded[:7]} == {"v1"}
    assert loaded[0].provenance.source == f"mlff-zoo/sevennet-0_silicon-student on {hub}"
    assert f"Engine {folders.NAME}@v1" in repr(loaded[0])


def test_options_reach_the_engine(hub: Path) -> None:
    engine = load(folders.NAME, hub=hub, dtype="float64", device="cpu", check_domain=False)
    assert engine.potential.dtype == torch.float64
    assert not engine.checks_domain
    assert load(folders.NAME, hub=hub).potential.dtype == torch.float32


def test_a_relative_folder_needs_its_dot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert load("./model").name == folders.NAME
    with pytest.raises(UnknownNameError, match=r"called \./model"):
        load("model")


def test_a_teacher_is_an_engine_like_any_other() -> None:
    engine = load("stillinger-weber/teacher", dtype="float64")
    atoms = folders.cells(1)[0]
    atoms.calc = engine.calculator()
    assert atoms.get_potential_energy() < -30
    assert engine.domain is None
    assert "CC0-1.0" in repr(engine)
    assert engine.hessian(atoms).shape == (24, 24)
    with pytest.raises(zoo.CapabilityError, match="no probe"):
        engine.check()


def test_a_teacher_is_never_shadowed_by_a_hub(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "models--mlff-zoo--stillinger-weber_teacher" / "refs").mkdir(parents=True)
    (tmp_path / "models--mlff-zoo--stillinger-weber_teacher" / "refs" / "main").write_text("broken")
    assert load("stillinger-weber/teacher", hub=tmp_path).provenance.source == "zoo"


@pytest.mark.sevennet
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_sevennet_is_an_engine_like_any_other() -> None:
    engine = load("sevennet-0/teacher")
    (prediction,) = engine.predict(folders.cells(1)[0])
    assert prediction.stress.shape == (3, 3)
    assert "89 elements" in repr(engine)


@pytest.mark.parametrize("hub_is_set", [False, True])
def test_a_recipe_without_weights_says_what_to_run(tmp_path: Path, hub_is_set: bool) -> None:
    with pytest.raises(NotReleasedError) as error:
        load(folders.NAME, hub=tmp_path if hub_is_set else None)
    text = str(error.value)
    for part in (
        f"zoo distill {folders.NAME}",
        f"zoo publish runs/{folders.NAME}/model --hub ./hub",
        "hub='./hub'",
    ):
        assert part in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("sevennet-0/silicon-studnet", "sevennet-0/silicon-student"),
        ("SevenNet-0/silicon-student", "sevennet-0/silicon-student"),
        ("silicon", "sevennet-0/silicon-student"),
        ("runs/x/y/model", "zoo list"),
        ("mace/si", "nearest: mace-"),
        ("", "zoo list"),
        (3, "the name of an engine is 3; expected"),
        (None, "the name of an engine is None; expected"),
        (["si"], "the name of an engine is list; expected"),
    ],
)
def test_an_unknown_name_lists_the_three_forms_and_the_nearest_names(hub: Path, name: object, near: str) -> None:
    with pytest.raises(UnknownNameError) as error:
        load(name, hub=hub)
    text = str(error.value)
    for part in ("family/engine", "hf://owner/repo", "./folder", near):
        assert part in text
    assert "\n" not in text
    assert len(text) < 400


def test_the_folder_that_holds_a_model_folder_leads_to_it(tmp_path: Path) -> None:
    folders.make_folder(tmp_path / "engine" / "model")
    with pytest.raises(UnknownNameError, match=r"/engine is no model folder; did you mean .*/engine/model\?$"):
        load(tmp_path / "engine")


def test_a_hub_that_is_not_there_is_told_with_what_makes_it(tmp_path: Path) -> None:
    place = tmp_path / "hub"
    with pytest.raises(UnknownNameError) as error:
        load("me/engine", hub=place)
    assert str(error.value) == f"there is no hub, no folder {place}; make one: zoo publish FOLDER --hub {place}"
    place.touch()
    with pytest.raises(UnknownNameError, match=r"is a file; give a folder$"):
        load("me/engine", hub=place)


def test_what_is_nowhere_is_an_error_that_says_so(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="there is no folder"):
        load(tmp_path / "nothing")
    with pytest.raises(UnknownNameError, match="has no someone/thing"):
        load("hf://someone/thing", hub=hub)
    with pytest.raises(HubError, match=r"someone/thing of huggingface\.co was not fetched .* HF_HUB_OFFLINE is set"):
        load("hf://someone/thing")
    with pytest.raises(UnknownNameError, match="revision v7; it has main, v1"):
        load(f"{folders.NAME}@v7", hub=hub)
    with pytest.raises(NotReleasedError, match="has no other/"):
        load(folders.NAME, hub=hub, namespace="other")
    with pytest.raises(NotReleasedError, match="without a version"):
        load(folders.NAME, hub=_untagged(hub, tmp_path / "untagged"))


def _untagged(hub: Path, copy: Path) -> Path:
    shutil.copytree(hub, copy, symlinks=True)
    for tag in copy.glob("*/refs/v1"):
        tag.unlink()
    return copy


def test_two_meanings_are_an_error(folder: Path, hub: Path) -> None:
    with pytest.raises(ConfigError, match="revision v1, revision= says v2"):
        load(f"{folders.NAME}@v1", hub=hub, revision="v2")
    with pytest.raises(ConfigError, match="one version"):
        load(folder, revision="v1")
    with pytest.raises(ConfigError, match="no revision v1"):
        load("stillinger-weber/teacher@v1")
    with pytest.raises(ConfigError, match="revision"):
        load(folders.NAME, hub=hub, revision="../../x")


def test_wrong_options_are_errors_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match="dtype"):
        load("nothing at all", dtype="float16")
    with pytest.raises(ConfigError, match="device"):
        load("nothing at all", device="gpu")


def test_a_blob_that_was_altered_is_never_loaded(folder: Path, tmp_path: Path) -> None:
    publish(folder, tmp_path / "hub")
    (weights,) = (tmp_path / "hub").glob("*/snapshots/*/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.resolve().write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.safetensors has the digest"):
        load(folders.NAME, hub=tmp_path / "hub")


def test_a_repository_of_another_engine_is_refused(tmp_path: Path) -> None:
    publish(folders.make_folder(tmp_path / "model", name="mine/engine"), tmp_path / "hub")
    (place,) = (tmp_path / "hub").iterdir()
    place.rename(place.with_name("models--mlff-zoo--sevennet-0_silicon-student"))
    with pytest.raises(IntegrityError, match="holds mine/engine, expected sevennet-0/silicon-student"):
        load(folders.NAME, hub=tmp_path / "hub")


def test_a_hub_that_cannot_be_written_is_read_and_stays_as_it_is(folder: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    publish(folder, hub)
    directories = [hub, *(path for path in hub.rglob("*") if path.is_dir() and not path.is_symlink())]
    before, times = folders.tree(hub), [path.stat().st_mtime_ns for path in directories]
    for path in directories:
        path.chmod(0o555)
    try:
        assert load(folders.NAME, hub=hub).check().passed
        assert [path.stat().st_mtime_ns for path in directories] == times
        assert folders.tree(hub) == before
    finally:
        for path in directories:
            path.chmod(0o755)


def test_names_are_those_of_the_catalogue_and_of_the_hub(hub: Path, tmp_path: Path) -> None:
    known = names()
    assert {"sevennet-0/teacher", "stillinger-weber/teacher", folders.NAME} <= set(known)
    assert names(hub) == known
    publish(folders.make_folder(tmp_path / "model", name="mine/engine"), tmp_path / "hub")
    assert names(tmp_path / "hub") == sorted([*known, "mine/engine"])
    assert names(tmp_path / "hub", namespace="other") == known


def test_an_engine_of_the_catalogue_is_published_once_it_is_on_the_hub(folder: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    for model in (folder, folders.make_folder(tmp_path / "model", name="mine/engine")):
        publish(model, hub)
    before, after = ({row["name"]: row for row in listing(place)} for place in (None, hub))
    assert (sorted(before), sorted(after)) == (names(), names(hub))
    assert before[folders.NAME]["status"] == "recipe"
    for name, row in after.items():
        assert row["status"] == ("published" if name in (folders.NAME, "mine/engine") else before[name]["status"])
        assert row.keys() == before[folders.NAME].keys()
    mine = after["mine/engine"]
    assert (mine["licence_weights"], mine["commercial"], mine["elements"]) == ("MIT", True, ["Si"])
    assert (mine["version"], mine["repository"]) == ("v1", "mlff-zoo/mine_engine")
    assert mine["teacher"] == "stillinger-weber/teacher"
    assert listing(hub, namespace="other") == listing()


@pytest.mark.parametrize("spoilt", ["README.md", "refs/main", "name"])
def test_an_engine_that_cannot_be_read_is_listed_without_its_licence(spoilt: str, folder: Path, tmp_path: Path) -> None:
    publish(folder, tmp_path / "hub")
    (place,) = (tmp_path / "hub").glob("models--*")
    if spoilt == "name":
        place.rename(place.with_name("models--mlff-zoo--other_engine"))
    else:
        (path,) = place.glob(spoilt if "/" in spoilt else f"snapshots/*/{spoilt}")
        path.resolve().write_text("{}")
    (row,) = [row for row in listing(tmp_path / "hub") if row["hub"]]
    assert row["licence_weights"] is None
    assert row["status"] == ("unfinished" if spoilt == "refs/main" else "published")


def test_a_teacher_on_a_hub_is_not_listed_as_published(tmp_path: Path) -> None:
    refs = tmp_path / "models--mlff-zoo--stillinger-weber_teacher" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("broken")
    assert listing(tmp_path) == listing()


def test_what_is_to_be_made_is_told_with_all_that_comes_before_it(tmp_path: Path) -> None:
    with pytest.raises(NotReleasedError) as error:
        load("jmp-l/md22-student", hub=tmp_path)
    told = ["convert jmp-l --download", "distill jmp-l/md22-teacher", "distill jmp-l/md22-student", "publish runs/"]
    assert [str(error.value).find(f"zoo {step}") for step in told] == sorted(
        str(error.value).find(f"zoo {step}") for step in told
    )
    assert all(f"zoo {step}" in str(error.value) for step in told)


def test_what_compile_may_be_is_said(folder: Path) -> None:
    assert not load(folder, compile=False).compiled
    with pytest.raises(ConfigError, match="compile='always'; expected True, False or 'auto'"):
        load(folder, compile="always")


def test_the_public_names_are_these() -> None:
    errors = {name for name in vars(zoo.errors) if name.endswith("Error")}
    types = {"CheckResult", "Engine", "Prediction", "PublishResult", "Vibrations"}
    assert set(zoo.__all__) >= errors | types | {"load", "names", "publish"}
    assert zoo.__all__ == sorted(zoo.__all__, key=lambda name: (name.islower(), name))
    assert all(hasattr(zoo, name) for name in zoo.__all__)


def _python(program: str, *arguments: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_loading_a_student_imports_neither_teachers_nor_training_nor_plotting(hub: Path) -> None:
    program = """
import sys, zoo
engine = zoo.load("sevennet-0/silicon-student", hub=sys.argv[1])
engine.check()
print(*sys.modules, sep="\\n")
"""
    loaded = set(_python(program, hub).splitlines())
    assert "zoo.engine" in loaded
    unwanted = (
        "zoo.teachers.sevennet",
        "zoo.teachers.stillinger_weber",
        "zoo.distill",
        "zoo.evaluate",
        "zoo.data",
        "sevenn",
        "e3nn",
        "phonopy",
        "matplotlib",
        "huggingface_hub",
        "torch._dynamo",  # takes a second
    )
    assert not [name for name in loaded if name in unwanted]


def test_importing_zoo_reads_no_file_and_opens_no_socket() -> None:
    program = """
import sys
import torch, ase.data, ase.calculators.calculator, ase.thermochemistry, safetensors.torch, vesin, yaml
import pydantic
pydantic.create_model("First")  # looks for plugins, once in a process
seen = []
def hook(event, arguments):
    code = (".py", ".pyc", ".so", ".zip")
    if event == "open" and isinstance(arguments[0], str):
        if not arguments[0].endswith(code) and "__pycache__" not in arguments[0]:
            seen.append(arguments[0])
    elif event.startswith("socket."):
        seen.append(event)
sys.addaudithook(hook)
import zoo
print(*seen)
"""
    assert _python(program).strip() == ""


def test_a_teacher_of_one_s_own_is_loaded_where_it_was_added_and_nothing_else_is_asked_for(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UnknownNameError, match=r"own/mine is the name of a teacher .* run: zoo teachers add own/mine FILE"
    ):
        load("own/mine", hub=hub)
    for ask in (load, describe):  # else it cannot be reached
        with pytest.raises(UnknownNameError, match=r"nobody has added it here; .* or hand a calculator of ASE over"):
            ask("own/mine", hub="http://127.0.0.1:9")
    place = weights_folder("own/mine")
    place.mkdir(parents=True)
    facts = {"name": "own/mine", "family": "mace", "file": "a.model", "sha256": "0" * 64, "elements": ["Si"]}
    (place / FACTS).write_text(json.dumps(facts | {"licence": "MIT", "level_of_theory": "PBE"}))
    (place / "a.model").touch()
    closed_form = load_teacher("stillinger-weber/teacher")
    monkeypatch.setattr(
        sys.modules["zoo.load"], "load_teacher", lambda name, **options: replace(closed_form, name=name)
    )
    monkeypatch.setattr("zoo.teachers.families._is_found", lambda module: True)
    assert load("own/mine", compile=False).name == "own/mine"
    assert "own/mine" in names()
    with pytest.raises(UnknownNameError, match="it is here; leave hub and version out"):
        load("own/mine", hub=hub)
    with pytest.raises(ConfigError, match="is a teacher of your own, on no hub"):
        pull("own/mine")
