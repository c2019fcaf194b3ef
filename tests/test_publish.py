"""What is published is whole, checked and licensed; a publisher that dies leaves nothing half."""

import errno
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import model_folders as folders
import pytest
import structures as scenes
import torch
from click.testing import CliRunner
from hub_server import HubServer
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file

from zoo.artifact import DataSource, write_manifest, write_model_folder
from zoo.cli import main
from zoo.engine import Engine
from zoo.errors import IntegrityError, LicenceError, PublishError, ZooError, ZooWarning
from zoo.files import sha256_file
from zoo.load import load
from zoo.publish import publish


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.make_folder(tmp_path_factory.mktemp("runs") / "model")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "model")


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return tmp_path / "hub"


def test_what_was_published_answers_to_the_last_bit_as_before(folder: Path, hub: Path) -> None:
    result = publish(folder, hub)
    assert result.repository == "mlff-zoo/sevennet-0_silicon-student"
    assert (result.tag, result.new, result.dry_run) == ("v1", True, False)
    assert "manifest.json" in result.files
    before = Engine.read(folder, device="cpu", dtype="float32").predict(folders.cells(3))
    after = load(folders.NAME, hub=hub, device="cpu").predict(folders.cells(3))
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.energy, other.energy)
        assert torch.equal(one.forces, other.forces)
        assert torch.equal(one.stress, other.stress)


def test_the_stock_client_reads_it(folder: Path, hub: Path) -> None:
    result = publish(folder, hub)
    for revision in ("v1", "main", result.commit):
        path = snapshot_download(result.repository, cache_dir=hub, revision=revision, local_files_only=True)
        assert {name: Path(path, name).read_bytes() for name in result.files} == folders.tree(folder)


def test_the_same_content_again_changes_nothing(folder: Path, hub: Path) -> None:
    first = publish(folder, hub)
    before = folders.tree(hub)
    second = publish(folder, hub)
    assert (second.tag, second.commit, second.new) == (first.tag, first.commit, False)
    assert folders.tree(hub) == before


def test_other_content_is_the_next_version(folder: Path, hub: Path, tmp_path: Path) -> None:
    publish(folder, hub)
    assert publish(folders.make_folder(tmp_path / "other", seed=8), hub).tag == "v2"
    assert load(folders.NAME, hub=hub).provenance.revision == "v2"
    assert load(f"{folders.NAME}@v1", hub=hub).provenance.revision == "v1"
    assert publish(folder, hub).tag == "v1"


def test_the_same_content_has_the_same_commit_on_every_hub(folder: Path, tmp_path: Path) -> None:
    assert publish(folder, tmp_path / "a").commit == publish(folder, tmp_path / "b", namespace="me").commit


def test_hub_and_namespace_come_from_the_environment(folder: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_HUB", str(hub))
    monkeypatch.setenv("ZOO_NAMESPACE", "me")
    assert publish(str(folder)).repository == "me/sevennet-0_silicon-student"
    assert load(folders.NAME).name == folders.NAME


def test_a_dry_run_checks_and_writes_nothing(folder: Path, hub: Path) -> None:
    dry = publish(folder, hub, dry_run=True)
    assert not hub.exists()
    wet = publish(folder, hub)
    assert (dry.tag, dry.files, dry.new) == (wet.tag, wet.files, True)
    again = publish(folder, hub, dry_run=True)
    assert (again.tag, again.new) == ("v1", False)
    assert str(dry).splitlines()[-1].startswith("would publish mlff-zoo/sevennet-0_silicon-student@v1 on ")
    assert str(wet).startswith("published ")
    assert str(again).splitlines()[-1].startswith("nothing new: ")
    size = (folder / "model.safetensors").stat().st_size
    assert f"{size:>12,}  model.safetensors" in str(dry)
    assert "card: no fault found. licence: MIT, which its sources allow." in str(dry)


def test_hidden_files_stay_at_home(folder: Path, hub: Path) -> None:
    (folder / ".env").write_text("secret")
    assert ".env" not in publish(folder, hub).files
    assert not any(b"secret" in content for content in folders.tree(hub).values() if isinstance(content, bytes))


def _remanifest(act: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        act(folder)
        write_manifest(folder)

    return change


def _link(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / "outside")
    (folder / name).symlink_to(folder.parent / "outside")


def _digest(folder: Path) -> str:
    return sha256_file(folder / "model.safetensors")


def _reword(folder: Path, before: tuple[str, ...], after: tuple[str, ...]) -> None:
    card = folder / "README.md"
    text = card.read_text()
    for one, other in zip(before, after, strict=True):
        assert one in text
        text = text.replace(one, other)
    card.write_text(text)


def _other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["embedding.weight"] += 0.01
    save_file(tensors, folder / "model.safetensors")


REFUSED = {
    "extra file": (lambda f: (f / "notes.txt").write_text(""), IntegrityError, r"holds notes\.txt"),
    "altered": (lambda f: (f / "README.md").write_text("x"), IntegrityError, r"README\.md has"),
    "link": (lambda f: _link(f, "model.safetensors"), PublishError, r"model\.safetensors is a link"),
    "linked folder": (lambda f: _link(f, "figures"), ZooError, "figures"),
    "no card": (_remanifest(lambda f: (f / "README.md").unlink()), PublishError, r"no README\.md"),
    "no recipe": (_remanifest(lambda f: (f / "recipe.yaml").unlink()), PublishError, r"no recipe\.yaml"),
    "no report": (_remanifest(lambda f: (f / "report.json").unlink()), PublishError, r"no report\.json"),
    "card without data": (_remanifest(lambda f: (f / "README.md").write_text("# x")), PublishError, "front matter"),
    "card of another licence": (
        _remanifest(
            lambda f: _reword(
                f, ("licence_weights: MIT", "license: mit"), ("licence_weights: CC0-1.0", "license: cc0-1.0")
            )
        ),
        LicenceError,
        "states the licence CC0-1.0, config.json MIT",
    ),
    "card of another engine": (
        _remanifest(lambda f: _reword(f, (f"name: {folders.NAME}",), ("name: sevennet-0/other",))),
        LicenceError,
        "states the name sevennet-0/other, config.json sevennet-0/silicon-student",
    ),
    "card with a licence that no hub knows": (
        _remanifest(lambda f: _reword(f, ("license: mit",), ("license: mine",))),
        PublishError,
        "mine",
    ),
    "card of other weights": (
        _remanifest(lambda f: _reword(f, (_digest(f),), ("a" * 64,))),
        LicenceError,
        "states the digest of the weights aaaa",
    ),
    "card of another teacher": (
        _remanifest(lambda f: _reword(f, ("stillinger-weber/teacher",), ("sevennet-0/teacher",))),
        LicenceError,
        "states the teacher sevennet-0/teacher",
    ),
    "card that is no yaml": (
        _remanifest(lambda f: (f / "README.md").write_text("---\n{\n---\n")),
        PublishError,
        "not plain YAML",
    ),
    "weights of another engine": (_remanifest(_other_weights), PublishError, "misses its probe"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_must_not_be_published_is_refused_in_one_line_and_nothing_is_left(
    folder: Path, hub: Path, case: str
) -> None:
    act, error, words = REFUSED[case]
    act(folder)
    for dry_run in (True, False):
        with pytest.raises(error, match=words) as refusal:
            publish(folder, hub, dry_run=dry_run)
        assert "\n" not in str(refusal.value)
    assert not hub.exists()


@pytest.mark.parametrize(
    ("licence", "teacher", "weights", "words"),
    [
        ("MIT", "me/teacher", "CC-BY-NC-4.0", "set the recipe's licence to CC-BY-NC-4.0"),
        ("CC0-1.0", "me/teacher", "MIT", "set the recipe's licence to MIT"),
        ("MIT", "me/teacher", "Proprietary", "whose terms zoo does not know"),
        ("WTFPL", "me/teacher", "MIT", "is WTFPL"),
        ("MIT", "sevennet-0/teacher", "CC0-1.0", "they are MIT"),
    ],
)
def test_terms_weaker_than_the_teachers_or_unknown_are_refused(
    tmp_path: Path, hub: Path, licence: str, teacher: str, weights: str, words: str
) -> None:
    lineage = folders.lineage(teacher=teacher, teacher_licence_weights=weights)
    folder = folders.make_folder(tmp_path / "model", licence=licence, lineage=lineage)
    with pytest.raises(LicenceError, match=words):
        publish(folder, hub)


@pytest.fixture
def silent(tmp_path: Path) -> Path:
    """A model folder that learned from data whose terms nobody has stated."""
    data = (DataSource(name="md22", licence="LicenseRef-unstated"), DataSource(name="crystals", licence="CC0-1.0"))
    return folders.make_folder(tmp_path / "silent", lineage=folders.lineage(data=data))


def test_data_that_state_no_terms_are_told(silent: Path, hub: Path) -> None:
    text = "data set md22 states no licence; ask its authors before you pass on what learns from it"
    for dry_run in (True, False):
        with pytest.warns(ZooWarning) as warned:
            result = publish(silent, hub, dry_run=dry_run)
        assert [str(one.message) for one in warned] == [text]
        assert result.unstated == (text,)
        assert (f"terms: {text}" in str(result).splitlines()) == dry_run


def test_what_learned_from_data_without_terms_is_public_only_when_that_is_asked_for(silent: Path, hub: Path) -> None:
    for dry_run in (True, False):
        refusal = pytest.raises(LicenceError, match=r"state no licence \(md22\).*--unstated-terms")
        with pytest.warns(ZooWarning), refusal:
            publish(silent, hub, public=True, dry_run=dry_run)
    assert not hub.exists()
    arguments = ["publish", str(silent), "--hub", str(hub), "--public"]
    assert "without --public" in CliRunner().invoke(main, arguments).output
    assert "published " in CliRunner().invoke(main, [*arguments, "--unstated-terms"]).output


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the stock client
def test_what_learned_from_data_without_terms_is_not_put_where_everybody_reads_it_already(
    server: HubServer, folder: Path, silent: Path
) -> None:
    private = folders.make_folder(silent.parent / "mine", name="my/engine", lineage=Engine.read(silent).config.lineage)
    with pytest.warns(ZooWarning):
        assert publish(private).public is False
    publish(folder, public=True)
    with pytest.warns(ZooWarning), pytest.raises(LicenceError, match="so it is not published for everybody"):
        publish(silent)
    with pytest.warns(ZooWarning):
        assert publish(silent, unstated_terms=True).public is True


def test_what_is_of_stated_terms_is_public_without_a_word(folder: Path, hub: Path) -> None:
    assert publish(folder, hub, public=True).unstated == ()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stillinger-weber/teacher", "name of a teacher"),
        ("Not A Name", "family/engine"),
        ("a/b@v1", "family/engine"),
    ],
)
def test_a_name_that_is_taken_or_unlawful_is_refused(tmp_path: Path, hub: Path, name: str, words: str) -> None:
    with pytest.raises(PublishError, match=words):
        publish(folders.make_folder(tmp_path / "model", name=name), hub)


def test_a_user_may_publish_what_the_catalogue_does_not_know(tmp_path: Path, hub: Path) -> None:
    publish(folders.make_folder(tmp_path / "model", name="mine/engine"), hub, namespace="me")
    assert load("mine/engine", hub=hub, namespace="me").name == "mine/engine"


def test_a_snapshot_of_a_hub_is_published_again_and_its_links_lead_nowhere_else(folder: Path, tmp_path: Path) -> None:
    first = publish(folder, tmp_path / "a")
    snapshot = tmp_path / "a" / "models--mlff-zoo--sevennet-0_silicon-student" / "snapshots" / first.commit
    again = publish(snapshot, tmp_path / "b")
    assert (again.commit, again.tag) == (first.commit, "v1")
    assert folders.tree(tmp_path / "b") == folders.tree(tmp_path / "a")
    outside = tmp_path / "outside.json"
    outside.write_bytes((snapshot / "report.json").read_bytes())
    (snapshot / "report.json").unlink()
    (snapshot / "report.json").symlink_to(outside)
    with pytest.raises(PublishError, match=r"report\.json is a link"):
        publish(snapshot, tmp_path / "c")


def test_a_full_disk_is_an_error_in_one_line(folder: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zoo.hub.folder._store", full)
    with pytest.raises(PublishError, match=r"No space left.*run the same again"):
        publish(folder, hub)
    with pytest.raises(ZooError):
        load(folders.NAME, hub=hub)


class Killed(BaseException):
    """What no handler of errors catches."""


class Step:
    """Counts the calls that write to the disk, and kills the publisher right after one of them."""

    CALLS = (
        (os, "replace"),
        (os, "symlink"),
        (os, "link"),
        (os, "fsync"),
        (os, "mkdir"),
        (shutil, "copyfile"),
    )

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.deadly = 0, -1
        monkeypatch.setattr(os, "fsync", lambda _: None)  # slow, and a kill loses no page that was written
        for module, name in self.CALLS:
            monkeypatch.setattr(module, name, self._wrap(getattr(module, name)))

    def _wrap(self, call: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            self.count += 1
            deadly = self.count == self.deadly
            try:
                return call(*arguments, **options)
            finally:
                if deadly:
                    raise Killed

        return counted


def _released(hub: Path) -> list[str]:
    return sorted(path.name for path in hub.glob("models--*/refs/v*"))


def test_killed_at_any_step_it_leaves_no_half_version_and_ends_the_same_when_run_again(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = folders.make_folder(tmp_path / "second", seed=8)
    undisturbed = tmp_path / "undisturbed"
    publish(original, undisturbed)
    start = shutil.copytree(undisturbed, tmp_path / "start", symlinks=True)
    monkeypatch.setattr(importlib.import_module("zoo.publish"), "_checked", _quick_check)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # for what the killed leave there
    step = Step(monkeypatch)
    publish(second, undisturbed)
    expected, total = folders.tree(undisturbed), step.count
    assert total > 40
    for deadly in range(1, total + 1):
        step.deadly = -1
        hub = shutil.copytree(start, tmp_path / f"hub-{deadly}", symlinks=True)
        step.count, step.deadly = 0, deadly
        with pytest.raises(Killed):
            publish(second, hub)
        step.deadly = -1
        names = _released(hub)
        assert names in (["v1"], ["v1", "v2"])
        assert load(folders.NAME, hub=hub).provenance.revision == names[-1]
        assert publish(second, hub).tag == "v2"
        assert folders.tree(hub) == expected
        shutil.rmtree(hub)


def _quick_check(folder: Path) -> object:
    """The config alone: the probe of one engine need not be recomputed a hundred times."""
    return Engine.read(folder, device="cpu").config


def test_killed_for_good_by_the_system_it_goes_on_too(original: Path, tmp_path: Path) -> None:
    """A process that is really gone: no handler and no clean-up of Python runs."""
    hub, expected = tmp_path / "hub", tmp_path / "expected"
    publish(original, expected)
    dies = "import os, sys, zoo; os.link = lambda *_, **__: os._exit(9); zoo.publish(*sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", dies, str(original), str(hub)]
    assert subprocess.run(command, env=environment, check=False).returncode == 9
    assert list(hub.glob(".publishing-*"))
    assert _released(hub) == []
    publish(original, hub)
    assert folders.tree(hub) == folders.tree(expected)
    assert not list(hub.glob(".publishing-*"))


def test_the_float32_weights_of_a_run_are_published_as_they_are(tmp_path: Path, hub: Path) -> None:
    student, folder = scenes.tiny_painn("Si").to(torch.float32), tmp_path / "model"
    config, probe = folders.config_of(student, dtype="float32"), folders.probe_of(student)
    write_model_folder(folder, config=config, potential=student, probe=probe, files=folders.DOCUMENTS)
    (folder / "README.md").write_bytes(folders.card_of(config, sha256_file(folder / "model.safetensors")))
    write_manifest(folder)
    publish(folder, hub)
    assert load(folders.NAME, hub=hub, dtype="float32").check().passed
    assert load(folders.NAME, hub=hub, dtype="float64").check().passed
