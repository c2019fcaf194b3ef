"""A hub that is a folder: the layout of the stock client's cache, found from the bottom up, safe to kill."""

import os
from collections.abc import Callable
from pathlib import Path

import model_folders as folders
import pytest
from huggingface_hub import scan_cache_dir, snapshot_download

from zoo.errors import ConfigError, IntegrityError, UnknownNameError
from zoo.hub.folder import FolderHub, commit_of, open_hub
from zoo.naming import Repository

HERE = Repository("me", "a_b")


@pytest.fixture
def hub(tmp_path: Path) -> FolderHub:
    return FolderHub(tmp_path / "hub")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return _files(tmp_path / "files", "one")


def _files(folder: Path, text: str) -> Path:
    (folder / "figures").mkdir(parents=True)
    (folder / "config.json").write_text(text)
    (folder / "copy.json").write_text(text)
    (folder / "figures" / "a.png").write_text("png")
    return folder


def _accept(_: Path) -> None:
    pass


def _at(revision: str) -> Repository:
    return Repository(HERE.owner, HERE.name, revision)


def test_what_is_added_is_found_by_tag_by_commit_by_branch_and_by_default(hub: FolderHub, files: Path) -> None:
    assert hub.find(HERE) is None
    assert hub.add(HERE, files, _accept) == "v1"
    found = hub.find(HERE)
    assert (found.folder / "config.json").read_text() == "one"
    assert (found.folder / "figures" / "a.png").read_text() == "png"
    assert found == hub.find(_at("v1")) == hub.find(_at("main")) == hub.find(_at(found.commit))
    assert found.tag == "v1"
    assert hub.engine_names("me") == ["a/b"]
    assert hub.engine_names("m") == []


def test_the_layout_is_that_of_the_stock_cache(hub: FolderHub, files: Path) -> None:
    hub.add(HERE, files, _accept)
    for revision in ("v1", "main", hub.find(HERE).commit):
        path = snapshot_download("me/a_b", cache_dir=hub.root, revision=revision, local_files_only=True)
        assert folders.tree(Path(path)) == folders.tree(hub.find(HERE).folder)
    scan = scan_cache_dir(hub.root)
    assert not scan.warnings
    (repository,) = scan.repos
    assert repository.repo_id == "me/a_b"
    assert set(repository.refs) == {"main", "v1"}


def test_contents_are_stored_once_under_their_digest_and_linked_relatively(
    hub: FolderHub, files: Path, tmp_path: Path
) -> None:
    hub.add(HERE, files, _accept)
    blobs = list((hub.root / HERE.folder / "blobs").iterdir())
    assert len(blobs) == 2
    links = [path for path in hub.find(HERE).folder.rglob("*") if path.is_symlink()]
    assert len(links) == 3
    assert not any(path.readlink().is_absolute() for path in links)
    hub.root.rename(tmp_path / "moved")
    assert (FolderHub(tmp_path / "moved").find(HERE).folder / "config.json").read_text() == "one"


def test_other_content_is_the_next_version_and_the_same_content_is_none(
    hub: FolderHub, files: Path, tmp_path: Path
) -> None:
    other = _files(tmp_path / "other", "two")
    assert [hub.add(HERE, folder, _accept) for folder in (files, other, files, other)] == [
        "v1",
        "v2",
        "v1",
        "v2",
    ]
    assert list(hub.tags(HERE)) == ["v1", "v2"]
    assert hub.find(HERE).tag == "v2"
    assert (hub.find(_at("v1")).folder / "config.json").read_text() == "one"


def test_the_tenth_version_is_newer_than_the_ninth(hub: FolderHub, tmp_path: Path) -> None:
    for number in range(1, 11):
        assert hub.add(HERE, _files(tmp_path / str(number), str(number)), _accept) == f"v{number}"
    assert hub.find(HERE).tag == "v10"


def test_the_commit_depends_on_the_content_alone() -> None:
    assert commit_of({"b": "2", "a": "1"}) == commit_of({"a": "1", "b": "2"})
    assert commit_of({"a": "1"}) != commit_of({"a": "2"})
    assert len(commit_of({})) == 40


def test_what_is_not_accepted_gets_no_name(hub: FolderHub, files: Path) -> None:
    def refuse(folder: Path) -> None:
        assert (folder / "config.json").read_text() == "one"
        raise IntegrityError("no")

    with pytest.raises(IntegrityError, match="no"):
        hub.add(HERE, files, refuse)
    assert hub.find(HERE) is None
    assert hub.engine_names("me") == []


def test_a_damaged_blob_is_mended_by_adding_the_same_again(hub: FolderHub, files: Path) -> None:
    hub.add(HERE, files, _accept)
    whole = folders.tree(hub.root)
    found = hub.find(HERE).folder
    (found / "config.json").resolve().write_text("bad")
    (found / "figures" / "a.png").unlink()
    assert hub.add(HERE, files, _accept) == "v1"
    assert folders.tree(hub.root) == whole


def test_an_unknown_revision_is_an_error_that_lists_those_there_are(hub: FolderHub, files: Path) -> None:
    hub.add(HERE, files, _accept)
    for revision in ("v2", "0" * 40):
        with pytest.raises(UnknownNameError, match=f"revision {revision}; it has main, v1"):
            hub.find(_at(revision))


def test_a_warm_cache_of_huggingface_without_tags_is_a_hub(hub: FolderHub, files: Path) -> None:
    hub.add(HERE, files, _accept)
    refs = hub.root / HERE.folder / "refs"
    (refs / "v1").unlink()
    (refs / "pr").mkdir()
    found = hub.find(HERE)
    assert found.tag is None
    assert found.folder.is_dir()


def test_a_broken_ref_is_an_error(hub: FolderHub, files: Path) -> None:
    hub.add(HERE, files, _accept)
    (hub.root / HERE.folder / "refs" / "v1").write_text("../../../etc")
    with pytest.raises(IntegrityError, match="v1 holds no commit"):
        hub.find(HERE)


def test_what_a_dead_publisher_left_is_removed_and_what_a_live_one_has_is_not(
    hub: FolderHub, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.hub.folder.socket.gethostname", lambda: "host")
    dead, live, elsewhere = (
        hub.root / f".publishing-{name}" for name in ("host-999999999-x", f"host-{os.getpid()}-x", "other-1-x")
    )
    for folder in (dead, live, elsewhere):
        folder.mkdir(parents=True)
    hub.add(HERE, files, _accept)
    assert not dead.exists()
    assert live.exists()
    assert elsewhere.exists()


def test_a_version_that_another_publisher_tags_first_gets_the_next_tag(
    hub: FolderHub, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(HERE, files, _accept)
    other = _files(tmp_path / "other", "two")
    monkeypatch.setattr(FolderHub, "tags", _stale(FolderHub.tags))
    assert hub.add(HERE, other, _accept) == "v2"
    assert (hub.find(_at("v1")).folder / "config.json").read_text() == "one"


def _stale(tags: Callable[..., dict[str, str]]) -> Callable[..., dict[str, str]]:
    before: list[dict[str, str]] = [{}, {}]  # what was there before the other publisher came
    return lambda self, repository: before.pop() if before else tags(self, repository)


def test_a_hub_is_named_by_the_argument_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_HUB", raising=False)
    assert open_hub(None) is None
    monkeypatch.setenv("ZOO_HUB", "~/there")
    assert open_hub(None).root == Path("~/there").expanduser()
    assert open_hub("./here").root == Path("here")
    monkeypatch.setenv("ZOO_HUB", "")
    assert open_hub(None) is None


def test_a_hub_that_is_a_url_says_what_works() -> None:
    with pytest.raises(ConfigError, match=r"hubs are folders so far; pass --hub \./hub or set ZOO_HUB=\./hub"):
        open_hub("https://huggingface.co")
