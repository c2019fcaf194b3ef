"""A hub that is a folder: the layout of the stock client's cache, found from the bottom up, safe to kill."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import model_folders as folders
import pytest
from huggingface_hub import scan_cache_dir, snapshot_download

from zoo.errors import IntegrityError, UnknownNameError
from zoo.hub.base import Resolved
from zoo.hub.folder import FolderHub, commit_of
from zoo.naming import Repository, versions

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
    (folder / "manifest.json").write_text(f"of {text}")
    (folder / "figures" / "a.png").write_text("png")
    return folder


def _accept(_: Path) -> None:
    pass


@dataclass(frozen=True)
class Found:
    commit: str
    tag: str | None
    folder: Path


def _find(hub: FolderHub, repository: Repository) -> Found | None:
    resolved = hub.resolve(repository)
    return Found(resolved.commit, resolved.tag, hub.fetch(repository, resolved)) if resolved else None


def _add(hub: FolderHub, files: Path, accept: Callable[[Path], None] = _accept) -> str:
    return hub.add(HERE, files, accept).tag


def _at(revision: str) -> Repository:
    return Repository(HERE.owner, HERE.name, revision)


def test_what_is_added_is_found_by_tag_by_commit_by_branch_and_by_default(hub: FolderHub, files: Path) -> None:
    assert _find(hub, HERE) is None
    assert _add(hub, files) == "v1"
    found = _find(hub, HERE)
    assert (found.folder / "config.json").read_text() == "one"
    assert (found.folder / "figures" / "a.png").read_text() == "png"
    assert found == _find(hub, _at("v1")) == _find(hub, _at("main")) == _find(hub, _at(found.commit))
    assert found.tag == "v1"
    assert [one.name for one in hub.engines("me")] == ["a/b"]
    assert [one.name for one in hub.engines("m")] == []


def test_the_layout_is_that_of_the_stock_cache(hub: FolderHub, files: Path) -> None:
    _add(hub, files)
    for revision in ("v1", "main", _find(hub, HERE).commit):
        path = snapshot_download("me/a_b", cache_dir=hub.root, revision=revision, local_files_only=True)
        assert folders.tree(Path(path)) == folders.tree(_find(hub, HERE).folder)
    scan = scan_cache_dir(hub.root)
    assert not scan.warnings
    (repository,) = scan.repos
    assert repository.repo_id == "me/a_b"
    assert set(repository.refs) == {"main", "v1"}


def test_contents_are_stored_once_under_their_digest_and_linked_relatively(
    hub: FolderHub, files: Path, tmp_path: Path
) -> None:
    _add(hub, files)
    blobs = list((hub.root / HERE.folder / "blobs").iterdir())
    assert len(blobs) == 3
    links = [path for path in _find(hub, HERE).folder.rglob("*") if path.is_symlink()]
    assert len(links) == 4
    assert not any(path.readlink().is_absolute() for path in links)
    hub.root.rename(tmp_path / "moved")
    assert (_find(FolderHub(tmp_path / "moved"), HERE).folder / "config.json").read_text() == "one"


def test_other_content_is_the_next_version_and_the_same_content_is_none(
    hub: FolderHub, files: Path, tmp_path: Path
) -> None:
    other = _files(tmp_path / "other", "two")
    assert [_add(hub, folder) for folder in (files, other, files, other)] == [
        "v1",
        "v2",
        "v1",
        "v2",
    ]
    assert list(versions(hub.refs(HERE))) == ["v1", "v2"]
    assert _find(hub, HERE).tag == "v2"
    assert (_find(hub, _at("v1")).folder / "config.json").read_text() == "one"


def test_the_tenth_version_is_newer_than_the_ninth(hub: FolderHub, tmp_path: Path) -> None:
    for number in range(1, 11):
        assert _add(hub, _files(tmp_path / str(number), str(number))) == f"v{number}"
    assert _find(hub, HERE).tag == "v10"


def test_the_commit_depends_on_the_content_alone() -> None:
    assert commit_of({"b": "2", "a": "1"}) == commit_of({"a": "1", "b": "2"})
    assert commit_of({"a": "1"}) != commit_of({"a": "2"})
    assert len(commit_of({})) == 40


def test_what_is_not_accepted_gets_no_name(hub: FolderHub, files: Path) -> None:
    def refuse(folder: Path) -> None:
        assert (folder / "config.json").read_text() == "one"
        raise IntegrityError("no")

    with pytest.raises(IntegrityError, match="no"):
        _add(hub, files, refuse)
    assert _find(hub, HERE) is None
    assert [one.name for one in hub.engines("me")] == []


def test_a_damaged_blob_is_mended_by_adding_the_same_again(hub: FolderHub, files: Path) -> None:
    _add(hub, files)
    whole = folders.tree(hub.root)
    found = _find(hub, HERE).folder
    (found / "config.json").resolve().write_text("bad")
    (found / "figures" / "a.png").unlink()
    assert _add(hub, files) == "v1"
    assert folders.tree(hub.root) == whole


def test_an_unknown_revision_is_an_error_that_lists_those_there_are(hub: FolderHub, files: Path) -> None:
    _add(hub, files)
    for revision in ("v2", "0" * 40):
        with pytest.raises(UnknownNameError, match=f"revision {revision}; it has main, v1"):
            _find(hub, _at(revision))


def test_a_warm_cache_of_huggingface_without_tags_is_a_hub(hub: FolderHub, files: Path) -> None:
    _add(hub, files)
    refs = hub.root / HERE.folder / "refs"
    (refs / "v1").unlink()
    (refs / "pr").mkdir()
    found = _find(hub, HERE)
    assert found.tag is None
    assert found.folder.is_dir()


def test_a_broken_ref_is_an_error(hub: FolderHub, files: Path) -> None:
    _add(hub, files)
    (hub.root / HERE.folder / "refs" / "v1").write_text("../../../etc")
    with pytest.raises(IntegrityError, match="v1 holds no commit"):
        _find(hub, HERE)


def test_what_a_dead_publisher_left_is_removed_and_what_a_live_one_has_is_not(
    hub: FolderHub, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.hub.folder.socket.gethostname", lambda: "host")
    dead, live, elsewhere = (
        hub.root / f".publishing-{name}" for name in ("host@999999999-x", f"host@{os.getpid()}-x", "host-0@999999999-x")
    )
    for folder in (dead, live, elsewhere):
        folder.mkdir(parents=True)
    _add(hub, files)
    assert not dead.exists()
    assert live.exists()
    assert elsewhere.exists()


def test_a_version_that_another_publisher_tags_first_gets_the_next_tag(
    hub: FolderHub, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _add(hub, files)
    other = _files(tmp_path / "other", "two")
    monkeypatch.setattr(FolderHub, "refs", _stale(FolderHub.refs))
    assert _add(hub, other) == "v2"
    assert (_find(hub, _at("v1")).folder / "config.json").read_text() == "one"


def _stale(refs: Callable[..., dict[str, str]]) -> Callable[..., dict[str, str]]:
    before: list[dict[str, str]] = [{}, {}]  # what was there before the other publisher came
    return lambda self, repository: before.pop() if before else refs(self, repository)


def test_a_version_of_another_hub_is_kept_under_its_commit_and_tag(hub: FolderHub, files: Path, tmp_path: Path) -> None:
    first, second = Resolved("1" * 40, "v1"), Resolved("2" * 40, "v2")
    other = _files(tmp_path / "other", "two")
    hub.keep(HERE, second, other)
    hub.keep(HERE, first, files)
    assert hub.refs(HERE) == {"v1": first.commit, "v2": second.commit, "main": second.commit}
    before = folders.tree(hub.root)
    hub.keep(HERE, first, files)
    assert folders.tree(hub.root) == before
    assert _add(hub, files) == "v1"
    assert _find(hub, HERE).commit == second.commit
    with pytest.raises(IntegrityError, match=r"another me/a_b@v1 .* choose another folder"):
        hub.keep(HERE, Resolved("3" * 40, "v1"), files)


def test_a_commit_without_a_tag_is_kept_as_main(hub: FolderHub, files: Path) -> None:
    hub.keep(HERE, Resolved("1" * 40, None), files)
    assert hub.refs(HERE) == {"main": "1" * 40}
