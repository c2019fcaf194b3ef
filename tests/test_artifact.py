"""The model folder: what goes in comes out, and nothing that was damaged, added or forged gets in."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import model_folders as folders
import pytest
import structures as scenes
import torch
from safetensors.torch import load_file, save_file

from zoo.artifact import (
    ArtifactConfig,
    read_model_folder,
    verify_manifest,
    write_manifest,
    write_model_folder,
)
from zoo.errors import ConfigError, IntegrityError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.make_folder(tmp_path_factory.mktemp("runs") / "model")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "model")


def test_what_is_written_is_what_is_read(folder: Path) -> None:
    student = scenes.tiny_painn("Si")
    config, read, probe = read_model_folder(folder)
    assert config == folders.config_of(student)
    state = read.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in student.state_dict().items())
    expected = folders.probe_of(student)
    assert [len(atoms) for atoms in probe.structures] == [8, 16]
    for found, stored in zip(probe.structures, expected.structures, strict=True):
        assert found == stored
    for ours, theirs in ((probe.engine, expected.engine), (probe.teacher, expected.teacher)):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one.energy, other.energy)
            assert torch.equal(one.forces, other.forces)
            assert torch.equal(one.hessian_products, other.hessian_products)


def test_the_folder_holds_what_the_contract_names_and_the_manifest_lists_it(folder: Path) -> None:
    assert verify_manifest(folder).paths == (
        "README.md",
        "config.json",
        "figures/parity.png",
        "model.safetensors",
        "probe.safetensors",
        "recipe.yaml",
        "report.json",
    )


def test_two_writings_are_the_same_to_the_byte(original: Path, tmp_path: Path) -> None:
    assert folders.tree(folders.make_folder(tmp_path / "again")) == folders.tree(original)


def test_writing_replaces_the_old_folder_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for seed in (1, 2):
        folders.make_folder(tmp_path / "model", seed=seed)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    state = read_model_folder(tmp_path / "model")[1].state_dict()
    assert torch.equal(state["embedding.weight"], scenes.tiny_painn("Si", seed=2).state_dict()["embedding.weight"])


def test_a_kill_while_writing_leaves_the_old_folder(
    folder: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zoo.artifact.write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        folders.make_folder(folder, seed=99)
    assert folders.tree(folder) == folders.tree(original)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_folder_that_cannot_take_its_place_gives_it_back(
    folder: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if self.name.endswith(".new"):
            raise OSError("disk")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="disk"):
        folders.make_folder(folder, seed=99)
    assert folders.tree(folder) == folders.tree(original)


def test_weights_come_in_the_type_that_is_asked_for_and_references_stay_exact(folder: Path) -> None:
    student = read_model_folder(folder, dtype=torch.float32)[1]
    assert student.dtype == torch.float32
    assert student.references.dtype == torch.float64
    assert student.references.tolist() == [scenes.REFERENCES["Si"]]


def test_reading_leaves_the_random_state_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    read_model_folder(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_reading_does_not_depend_on_the_default_type(folder: Path) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert read_model_folder(folder, dtype=torch.float32)[1].dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_strange_document_has_no_place(tmp_path: Path) -> None:
    student = scenes.tiny_painn("Si")
    with pytest.raises(ConfigError, match=r"'\.\./evil' has no place"):
        write_model_folder(
            tmp_path / "model",
            config=folders.config_of(student),
            potential=student,
            probe=folders.probe_of(student),
            files={"../evil": b""},
        )
    assert not list(tmp_path.iterdir())


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def _edit_manifest(folder: Path, change: Callable[[list[dict[str, object]]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest["files"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGES = {
    "altered weights": (lambda f: _flip(f / "model.safetensors"), r"model\.safetensors has the digest"),
    "altered config": (lambda f: _flip(f / "config.json"), r"config\.json has the digest"),
    "altered card": (lambda f: _flip(f / "README.md"), r"README\.md has the digest"),
    "altered figure": (lambda f: _flip(f / "figures/parity.png"), r"parity\.png has the digest"),
    "truncated weights": (lambda f: _truncate(f / "model.safetensors"), r"model\.safetensors has \d+ bytes"),
    "missing weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "missing manifest": (lambda f: (f / "manifest.json").unlink(), r"no manifest\.json"),
    "manifest not json": (lambda f: (f / "manifest.json").write_text("{"), r"manifest\.json"),
    "extra file": (lambda f: (f / "evil.py").write_text(""), r"holds evil\.py"),
    "extra nested file": (lambda f: (f / "figures" / "x.pkl").write_text(""), r"holds figures/x\.pkl"),
    "extra link": (lambda f: (f / "link").symlink_to("/etc/passwd"), r"holds link"),
    "extra link to a folder": (lambda f: (f / "link").symlink_to("/etc"), r"holds link"),
    "path out of the folder": (
        lambda f: _edit_manifest(f, lambda files: files[0].update(path="../../etc/passwd")),
        "not a file of a model folder",
    ),
    "absolute path": (
        lambda f: _edit_manifest(f, lambda files: files[0].update(path="/etc/passwd")),
        "not a file of a model folder",
    ),
    "absurd size": (
        lambda f: _edit_manifest(f, lambda files: files[1].update(size=1 << 60)),
        "over the limit",
    ),
    "negative size": (lambda f: _edit_manifest(f, lambda files: files[1].update(size=-1)), "size"),
    "listed twice": (lambda f: _edit_manifest(f, lambda files: files.append(files[-1])), "given twice"),
    "unlisted weights": (lambda f: _edit_manifest(f, lambda files: files.pop(3)), r"model\.safetensors"),
    "newer format": (
        lambda f: (f / "manifest.json").write_text('{"format": 2, "files": []}'),
        "'format'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_an_error_in_one_line(folder: Path, damage: str) -> None:
    act, words = DAMAGES[damage]
    act(folder)
    with pytest.raises(IntegrityError, match=words) as error:
        read_model_folder(folder)
    assert "\n" not in str(error.value)


def test_no_folder_and_an_empty_one_are_errors(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="not a folder"):
        read_model_folder(tmp_path / "nothing")
    with pytest.raises(IntegrityError, match=r"no manifest\.json"):
        read_model_folder(tmp_path)


def test_hidden_files_are_not_looked_at(folder: Path) -> None:
    (folder / ".DS_Store").write_text("")
    assert ".DS_Store" not in verify_manifest(folder).paths


# Forgeries: the manifest agrees with what is there, and what is there is not an engine.


def _tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def forge(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return forge


def _config(**changes: object) -> Callable[[Path], None]:
    def forge(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        for path, value in changes.items():
            *parents, key = path.split("__")
            place = data
            for parent in parents:
                place = place[parent]
            place[key] = value
        (folder / "config.json").write_text(json.dumps(data))

    return forge


def _bytes(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _huge(tensors: dict[str, torch.Tensor]) -> None:
    tensors["scale"] = torch.zeros(100_000, dtype=torch.float64)


MODEL, PROBE = "model.safetensors", "probe.safetensors"
FORGERIES = {
    "pickle": (_bytes(MODEL, pickle.dumps({"a": 1})), "no pickles"),
    "torch pickle": (_bytes(MODEL, b"PK\x03\x04" + bytes(100)), "no pickles"),
    "empty file": (_bytes(MODEL, b""), "no pickles"),
    "huge header": (_bytes(MODEL, (1 << 40).to_bytes(8, "little") + b"{}"), "no pickles"),
    "header not json": (_bytes(MODEL, (2).to_bytes(8, "little") + b"xx"), "cannot be read as safetensors"),
    "missing tensor": (_tensors(MODEL, lambda t: t.pop("scale")), "lacks 1 tensors, scale"),
    "extra tensor": (_tensors(MODEL, lambda t: t.update(evil=torch.zeros(1))), "1 tensors too many, evil"),
    "wrong shape": (_tensors(MODEL, _huge), r"scale is float64 \[100000\], expected float64 \[\]"),
    "wrong type": (
        _tensors(MODEL, lambda t: t.update(scale=torch.tensor(1.0))),
        r"scale is float32 \[\], expected float64",
    ),
    "unknown type": (
        _tensors(MODEL, lambda t: t.update(scale=torch.tensor(1, dtype=torch.uint8))),
        "cannot be read",
    ),
    "not finite": (_tensors(MODEL, lambda t: t["embedding.weight"].fill_(torch.nan)), "not finite"),
    "wrong count": (_config(parameters=7), "states 7 parameters"),
    "config too large for its weights": (
        _config(architecture__channels=2048, architecture__layers=32),
        "lacks",
    ),
    "probe lacks offsets": (_tensors(PROBE, lambda t: t.pop("offsets")), "not a probe"),
    "probe lacks forces": (_tensors(PROBE, lambda t: t.pop("engine_forces")), "engine_forces"),
    "probe of no structures": (
        _tensors(PROBE, lambda t: t.update(offsets=torch.tensor([0], dtype=torch.int64))),
        "cells is",
    ),
    "probe offsets backwards": (
        _tensors(PROBE, lambda t: t.update(offsets=torch.tensor([0, 30, 24]))),
        "make no structures",
    ),
    "probe of another element": (_tensors(PROBE, lambda t: t["numbers"].fill_(92)), "make no structures"),
    "probe vectors flat": (_tensors(PROBE, lambda t: t.update(vectors=torch.zeros(3))), "not a probe"),
    "probe not finite": (_tensors(PROBE, lambda t: t["engine_energy"].fill_(torch.inf)), "not finite"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_folder_is_an_error_in_one_line(folder: Path, forgery: str) -> None:
    act, words = FORGERIES[forgery]
    act(folder)
    write_manifest(folder)
    with pytest.raises(IntegrityError, match=words) as error:
        read_model_folder(folder)
    assert "\n" not in str(error.value)


CONFIGS = {
    "unknown key": (_config(evil=1), "unknown key 'evil'"),
    "unknown architecture": (_config(architecture__architecture="os.system"), "architecture"),
    "absurd architecture": (_config(architecture__channels=10**9), "channels"),
    "newer format": (_config(format=2), "format"),
    "strange element in the domain": (_config(domain__elements=["Ge"]), "Ge, which the architecture lacks"),
    "volumes reversed": (_config(domain__volume_per_atom_A3=[3.0, 2.0]), "smaller first"),
    "digest": (_config(lineage__recipe_sha256="xyz"), "recipe_sha256"),
}


@pytest.mark.parametrize("wrong", CONFIGS)
def test_a_wrong_config_is_an_error_in_one_line(folder: Path, wrong: str) -> None:
    act, words = CONFIGS[wrong]
    act(folder)
    write_manifest(folder)
    with pytest.raises(ConfigError, match=words) as error:
        read_model_folder(folder)
    assert "\n" not in str(error.value)


def test_a_manifest_lists_no_strange_file(folder: Path) -> None:
    (folder / "evil.py").write_text("")
    with pytest.raises(IntegrityError, match=r"evil\.py"):
        write_manifest(folder)


def test_the_config_says_all_units_and_takes_no_others(folder: Path) -> None:
    units = json.loads((folder / "config.json").read_text())["units"]
    assert units["energy"] == "eV"
    assert units["stress"] == "eV/angstrom^3"
    data = folders.config_of(scenes.tiny_painn("Si")).model_dump(mode="json")
    with pytest.raises(ValueError, match="energy"):
        ArtifactConfig.model_validate(data | {"units": {"energy": "kcal/mol"}})
