"""A hub that is a folder, laid out as the cache of huggingface_hub is, so that the stock client reads it too.

::

    models--<owner>--<repository>/
        blobs/<sha256>               contents, each once
        snapshots/<commit>/<path>    links to blobs: one version
        refs/main, refs/v1, ...      each holds the commit that it stands for

A version is added bottom up: contents, links, then the names by which it is found. Each step is one rename,
so a publisher that is killed leaves nothing that can be found half, and the next goes on from what is there.
"""

import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import ConfigError, IntegrityError, UnknownNameError
from zoo.files import sha256_file, sync
from zoo.naming import Repository, engine_name_of

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TAG = re.compile(r"v([1-9][0-9]*)")
_WORKSPACE = ".publishing"


@dataclass(frozen=True)
class Version:
    """One version of a repository, as a folder of files."""

    commit: str
    tag: str | None
    folder: Path


class FolderHub:
    """Published engines in a folder. Reading writes nothing; adding makes the folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, repository: Repository) -> Version | None:
        """The version that is asked for, by default the newest tag, else the branch main.

        None where the hub has no such repository; raises UnknownNameError where it has no such revision.
        """
        refs = self._refs(repository)
        if not refs:
            return None
        tags = self.tags(repository)
        revision = repository.revision or next(reversed(tags), "main")
        commit = revision if _COMMIT.fullmatch(revision) else refs.get(revision)
        folder = self._snapshot(repository, commit or "")
        if commit is None or not folder.is_dir():
            known = ", ".join(refs)
            raise UnknownNameError(f"{self.root} has no {repository.id} of revision {revision}; it has {known}")
        named = revision if revision in tags else _tag_of(commit, tags)
        return Version(commit, named, folder)

    def tags(self, repository: Repository) -> dict[str, str]:
        """The commit of each released version, oldest first."""
        found = {name: commit for name, commit in self._refs(repository).items() if _TAG.fullmatch(name)}
        return dict(sorted(found.items(), key=lambda item: int(item[0][1:])))

    def engine_names(self, namespace: str) -> list[str]:
        """The engines of a namespace that are there."""
        prefix = f"models--{namespace}--"
        places = {path.parent.parent.name for path in self.root.glob(f"{prefix}*/refs/*")}
        return sorted(name for place in places if (name := engine_name_of(place.removeprefix(prefix))))

    def tag_for(self, repository: Repository, commit: str) -> str:
        """The tag of a commit, or the one that it would get."""
        tags = self.tags(repository)
        newest = next(reversed(tags), "v0")
        return _tag_of(commit, tags) or f"v{int(newest[1:]) + 1}"

    def add(self, repository: Repository, files: Path, accept: Callable[[Path], object]) -> str:
        """The tag of the version that has the files of a folder, added unless it is there; safe to repeat.

        ``accept`` sees the version by its commit before it has a name, and raises where it must not get one.
        """
        place = self.root / repository.folder
        digests = digests_of(files)
        commit = commit_of(digests)
        with self._workspace() as workspace:
            for name in ("blobs", "snapshots", "refs"):
                (place / name).mkdir(parents=True, exist_ok=True)
            for path, digest in digests.items():
                _store(files / path, place / "blobs" / digest, workspace)
            sync(place / "blobs")
            snapshot = self._snapshot(repository, commit)
            _link(snapshot, digests, workspace)
            accept(snapshot)
            return self._name(repository, commit, workspace)

    @contextmanager
    def _workspace(self) -> Iterator[Path]:
        """An empty folder on the hub's disk; those of publishers of this machine that died are removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        prefix = f"{_WORKSPACE}-{socket.gethostname()}-"
        for folder in self.root.glob(f"{prefix}*"):
            if not _is_running(folder.name.removeprefix(prefix).partition("-")[0]):
                shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-", dir=self.root) as mine:
            yield Path(mine)

    def _name(self, repository: Repository, commit: str, workspace: Path) -> str:
        """Moves main to the commit and tags it, unless it has a tag; no two commits get the same one."""
        refs = self.root / repository.folder / "refs"
        while True:
            tags = self.tags(repository)
            known = _tag_of(commit, tags)
            if known:
                return known
            _write_ref(workspace / "main", commit).replace(refs / "main")
            tag = self.tag_for(repository, commit)
            with suppress(FileExistsError):
                (refs / tag).hardlink_to(_write_ref(workspace / "tag", commit))
            sync(refs)

    def _refs(self, repository: Repository) -> dict[str, str]:
        """The commit of each name. Raises IntegrityError where a file holds none."""
        refs = {}
        for path in sorted((self.root / repository.folder / "refs").glob("[!.]*")):
            if path.is_dir():  # refs/pr of a cache of huggingface.co
                continue
            refs[path.name] = path.read_text(encoding="ascii", errors="replace").strip()
            if not _COMMIT.fullmatch(refs[path.name]):
                raise IntegrityError(f"{path} holds no commit; remove it, and publish the engine again")
        return refs

    def _snapshot(self, repository: Repository, commit: str) -> Path:
        return self.root / repository.folder / "snapshots" / commit


def open_hub(hub: str | Path | None) -> FolderHub | None:
    """The hub that is named, else the one that ZOO_HUB names, else None. Raises ConfigError for a URL."""
    named = str(hub or os.environ.get("ZOO_HUB") or "")
    if "://" in named:
        raise ConfigError(f"hub {named}: hubs are folders so far; pass --hub ./hub or set ZOO_HUB=./hub")
    return FolderHub(Path(named).expanduser()) if named else None


def commit_of(digests: dict[str, str]) -> str:
    """The commit of a set of files: the same for the same content, whoever publishes it, wherever."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items()))
    return hashlib.sha1(lines.encode(), usedforsecurity=False).hexdigest()


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def _store(file: Path, blob: Path, workspace: Path) -> None:
    if blob.is_file() and sha256_file(blob) == blob.name:
        return
    copy = workspace / "blob"
    shutil.copyfile(file, copy)
    sync(copy)
    copy.replace(blob)


def _link(snapshot: Path, digests: dict[str, str], workspace: Path) -> None:
    """Makes the snapshot, unless it is there and whole."""
    targets = {path: "../" * (path.count("/") + 2) + f"blobs/{digest}" for path, digest in digests.items()}
    if snapshot.is_dir() and _links(snapshot) == targets:
        return
    built = workspace / "snapshot"
    for path, target in targets.items():
        (built / path).parent.mkdir(parents=True, exist_ok=True)
        (built / path).symlink_to(target)
    if snapshot.exists():
        snapshot.replace(workspace / "broken")
    built.replace(snapshot)
    sync(snapshot.parent)


def _links(snapshot: Path) -> dict[str, str]:
    found = [path for path in snapshot.rglob("*") if path.is_symlink() or path.is_file()]
    targets = [str(path.readlink()) if path.is_symlink() else "" for path in found]
    return {path.relative_to(snapshot).as_posix(): target for path, target in zip(found, targets, strict=True)}


def _write_ref(path: Path, commit: str) -> Path:
    path.write_text(commit, encoding="ascii")
    sync(path)
    return path


def _tag_of(commit: str, tags: dict[str, str]) -> str | None:
    return next((tag for tag, target in tags.items() if target == commit), None)


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)  # signal 0 only asks
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
