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
from glob import escape
from pathlib import Path

from zoo.artifact import DOCUMENTS, MANIFEST, read_manifest, verify_file
from zoo.config import MAX_CONFIG_BYTES
from zoo.errors import IntegrityError, UnknownNameError, ZooError
from zoo.files import is_running, sha256_file, sync
from zoo.hub.base import Listed, Release, Resolved
from zoo.hub.card_data import CardData, parse_card
from zoo.naming import COMMIT, VERSION, Repository, engine_name_of, is_revision, next_version, version_of, versions

_WORKSPACE = ".publishing"
_LONGEST_REF = 100  # bytes


class FolderHub:
    """Published engines in a folder. Reading writes nothing; adding makes the folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def title(self) -> str:
        text = str(self.root)
        return text if self.root.is_absolute() or text.startswith(".") else f"./{text}"

    def resolve(self, repository: Repository) -> Resolved | None:
        """See ``Hub``; a commit counts where its snapshot is there."""
        refs = self.refs(repository)
        tags = versions(refs)
        revision = repository.revision or next(reversed(tags), "main")
        commit = revision if COMMIT.fullmatch(revision) else refs.get(revision)
        if commit is None or not self.snapshot(repository, commit).is_dir():
            if not refs:
                return None
            known = ", ".join(refs)[:200]
            raise UnknownNameError(f"{self.root} has no {repository.id} of revision {revision}; it has {known}")
        tag = revision if revision in tags else version_of(commit, tags)
        moving = repository.revision is None
        return Resolved(commit, tag, self._new_version(repository, refs) if moving else None)

    def fetch(self, repository: Repository, resolved: Resolved) -> Path:
        """See ``Hub``; the files are there, and who reads them verifies them."""
        return self._own_snapshot(repository, resolved.commit)

    def fetch_card(self, repository: Repository, resolved: Resolved, *, figures: bool = False) -> Path:
        """See ``Hub``."""
        folder = self._own_snapshot(repository, resolved.commit)
        verify_card(folder, figures=figures)
        return folder

    def engines(self, namespace: str) -> list[Listed]:
        """See ``Hub``."""
        prefix = f"models--{namespace}--"
        places = {path.parent.parent.name.removeprefix(prefix) for path in self.root.glob(f"{prefix}*/refs/*")}
        names = {name: Repository(namespace, place) for place in places if (name := engine_name_of(place))}
        return [self._listed(name, names[name]) for name in sorted(names)]

    def owners(self, name: str) -> list[str]:
        """The namespaces that have a repository of that name."""
        return sorted(place.name.split("--")[1] for place in self.root.glob(f"models--*--{escape(name)}"))

    def refs(self, repository: Repository) -> dict[str, str]:
        """The commit of each name. Raises IntegrityError where a file holds none."""
        refs = {}
        for path in sorted((self.root / repository.folder / "refs").glob("[!.]*")):
            folder = path.is_dir() and not VERSION.fullmatch(path.name)  # refs/pr of a cache of huggingface.co
            if not folder and is_revision(path.name):
                refs[path.name] = _read_ref(path)
        return refs

    def snapshot(self, repository: Repository, commit: str) -> Path:
        """Where the files of a commit are."""
        return self.root / repository.folder / "snapshots" / commit

    def _own_snapshot(self, repository: Repository, commit: str) -> Path:
        """A snapshot whose links stay in the repository. Raises IntegrityError for another."""
        folder, place = self.snapshot(repository, commit), (self.root / repository.folder).resolve()
        for path in (folder, *folder.rglob("*")):
            if not _is_within(path, place):
                raise IntegrityError(f"{path} is a link that leaves its hub; pull or publish the engine again")
        return folder

    def tag_for(self, repository: Repository, files: Path) -> tuple[str, bool]:
        """The tag of the version that has these files, or the one that it would get, and whether it is new."""
        tags = versions(self.refs(repository))
        known = self._tag_of_content(repository, tags, files)
        return (known, False) if known else (next_version(tags), True)

    def add(
        self,
        repository: Repository,
        files: Path,
        accept: Callable[[Path], object],
        *,
        public: bool = False,
        gated: bool = False,
    ) -> Release:
        """See ``Hub``. Who may read a folder is a matter of its permissions, so ``public`` changes nothing."""
        commit = commit_of(digests_of(files))
        with self._workspace() as workspace:
            tags = versions(self.refs(repository))
            known = self._tag_of_content(repository, tags, files)
            commit = tags[known] if known else commit
            self._store(repository, commit, files, workspace)
            accept(self.snapshot(repository, commit))
            return Release(commit, known or self._name(repository, commit, workspace), new=not known)

    def keep(self, repository: Repository, resolved: Resolved, files: Path) -> None:
        """Adds a version of another hub under the commit and the tag that it has there; safe to repeat.

        Raises IntegrityError where the tag stands for another commit here.
        """
        with self._workspace() as workspace:
            self._store(repository, resolved.commit, files, workspace)
            refs = self.refs(repository)
            tags = versions(refs)
            if resolved.tag and tags.get(resolved.tag, resolved.commit) != resolved.commit:
                held = f"{self.root} has another {repository.id}@{resolved.tag} (commit {tags[resolved.tag][:12]})"
                raise IntegrityError(f"{held} than {resolved.commit[:12]}; choose another folder")
            names = dict.fromkeys(names_of(repository, resolved), resolved.commit)
            if refs.get("main") in (None, *tags.values()):  # what the stock client takes: the newest version
                newest = versions(tags | dict.fromkeys(names, resolved.commit))
                names.setdefault("main", next(reversed(newest.values()), resolved.commit))
            for name, commit in names.items():
                self.name(repository, name, commit, workspace)

    def name(self, repository: Repository, name: str, commit: str, workspace: Path | None = None) -> None:
        """Lets a branch or tag stand for a commit."""
        refs = self.root / repository.folder / "refs"
        refs.mkdir(parents=True, exist_ok=True)
        place = (workspace or refs) / f".{name}.{os.getpid()}"
        _write_ref(place, commit).replace(refs / name)
        sync(refs)

    @contextmanager
    def _workspace(self) -> Iterator[Path]:
        """An empty folder on the hub's disk; those of publishers of this machine that died are removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        prefix = f"{_WORKSPACE}-{socket.gethostname()}@"  # which no name of a host has
        for folder in self.root.glob(f"{prefix}*"):
            if not is_running(folder.name.removeprefix(prefix).partition("-")[0]):
                shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-", dir=self.root) as mine:
            yield Path(mine)

    def _store(self, repository: Repository, commit: str, files: Path, workspace: Path) -> None:
        """Contents, then the snapshot of links to them."""
        place = self.root / repository.folder
        for name in ("", "blobs", "snapshots", "refs"):
            if (place / name).is_symlink():
                raise IntegrityError(f"{place / name} is a link, and zoo writes into the hub alone; remove it")
            (place / name).mkdir(parents=True, exist_ok=True)
        digests = digests_of(files)
        for path, digest in digests.items():
            _store(files / path, place / "blobs" / digest, workspace)
        sync(place / "blobs")
        _link(self.snapshot(repository, commit), digests, workspace)

    def _name(self, repository: Repository, commit: str, workspace: Path) -> str:
        """Moves main to the commit and gives it the next tag; no two commits get the same one."""
        refs = self.root / repository.folder / "refs"
        while True:
            tags = versions(self.refs(repository))
            known = version_of(commit, tags)
            if known:
                return known
            _write_ref(workspace / "main", commit).replace(refs / "main")
            with suppress(FileExistsError):
                (refs / next_version(tags)).hardlink_to(_write_ref(workspace / "tag", commit))
            sync(refs)

    def _tag_of_content(self, repository: Repository, tags: dict[str, str], files: Path) -> str | None:
        """The version whose manifest is that of the files: it lists them all, so they are the same."""
        sought = (files / MANIFEST).read_bytes()
        for tag, commit in tags.items():
            manifest = self.snapshot(repository, commit) / MANIFEST
            alike = manifest.is_file() and manifest.stat().st_size == len(sought)
            if alike and manifest.read_bytes() == sought:
                return tag
        return None

    def _new_version(self, repository: Repository, refs: dict[str, str]) -> str | None:
        card = self.snapshot(repository, refs.get("main", "")) / DOCUMENTS[0]
        if "main" not in refs or not card.is_file() or card.stat().st_size > MAX_CONFIG_BYTES:
            return None
        return parse_card(card.read_text(encoding="utf-8", errors="replace")).new_version

    def _listed(self, name: str, repository: Repository) -> Listed:
        """One broken engine must not hide the others."""
        resolved: Resolved | None = None
        card: CardData | None = None
        with suppress(ZooError, OSError):
            resolved = self.resolve(repository)
            card = read_card(self.fetch_card(repository, resolved)) if resolved is not None else None
        if resolved is None:
            return Listed(name, repository.id, None)
        return Listed(name, repository.id, card, resolved.commit, resolved.tag)


def names_of(repository: Repository, resolved: Resolved) -> set[str]:
    """The names that a commit is found by: its version, and the branch that was asked for."""
    asked = repository.revision or ("" if resolved.tag else "main")
    branch = asked if asked and not COMMIT.fullmatch(asked) and not VERSION.fullmatch(asked) else None
    return {name for name in (resolved.tag, branch) if name}


def verify_card(folder: Path, *, figures: bool = False) -> None:
    """Reads the card of a model folder, and its figures where asked, against the manifest. Raises IntegrityError."""
    entries = [entry for entry in read_manifest(folder).files if is_of_card(entry.path, figures=figures)]
    if DOCUMENTS[0] not in (entry.path for entry in entries):
        raise IntegrityError(f"{folder} has no {DOCUMENTS[0]} in its {MANIFEST}")
    for entry in entries:
        verify_file(folder, entry)


def is_of_card(path: str, *, figures: bool) -> bool:
    return path == DOCUMENTS[0] or (figures and path.startswith("figures/"))


def read_text(folder: Path) -> str:
    """The card of a model folder, which was verified, as Markdown."""
    return (folder / DOCUMENTS[0]).read_text(encoding="utf-8", errors="replace")


def read_card(folder: Path) -> CardData:
    """What the card of a model folder, which was verified, says to programs."""
    return parse_card(read_text(folder))


def commit_of(digests: dict[str, str]) -> str:
    """The commit of a set of files: the same for the same content, whoever publishes it, wherever."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items()))
    return hashlib.sha1(lines.encode(), usedforsecurity=False).hexdigest()


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by its path; hidden ones are nobody's business."""
    names = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: sha256_file(path) for name, path in names.items() if not re.search(r"(^|/)\.", name)}


def _store(file: Path, blob: Path, workspace: Path) -> None:
    alike = blob.is_file() and not blob.is_symlink() and blob.stat().st_size == file.stat().st_size
    if alike and sha256_file(blob) == blob.name:
        return
    copy = workspace / "blob"
    shutil.copyfile(file, copy)
    sync(copy)
    copy.replace(blob)


def _link(snapshot: Path, digests: dict[str, str], workspace: Path) -> None:
    """Makes the snapshot, unless it is there and whole."""
    targets = {path: "../" * (path.count("/") + 2) + f"blobs/{digest}" for path, digest in digests.items()}
    if snapshot.is_dir() and not snapshot.is_symlink() and _links(snapshot) == targets:
        return
    built = workspace / "snapshot"
    for path, target in targets.items():
        (built / path).parent.mkdir(parents=True, exist_ok=True)
        (built / path).symlink_to(target)
    if snapshot.exists() or snapshot.is_symlink():
        snapshot.replace(workspace / "broken")
    built.replace(snapshot)
    sync(snapshot.parent)


def _links(snapshot: Path) -> dict[str, str]:
    found = [path for path in snapshot.rglob("*") if path.is_symlink() or path.is_file()]
    targets = [str(path.readlink()) if path.is_symlink() else "" for path in found]
    return {path.relative_to(snapshot).as_posix(): target for path, target in zip(found, targets, strict=True)}


def _is_within(path: Path, place: Path) -> bool:
    try:
        return path.resolve().is_relative_to(place)
    except (OSError, RuntimeError):  # links in a circle
        return False


def _read_ref(path: Path) -> str:
    """The commit in a file. A link, a pipe or a large file is none, and is not opened."""
    whole = path.is_file() and not path.is_symlink() and path.stat().st_size <= _LONGEST_REF
    commit = path.read_text(encoding="ascii", errors="replace").strip() if whole else ""
    if not COMMIT.fullmatch(commit):
        raise IntegrityError(f"{path} holds no commit; remove it, and publish or pull the engine again")
    return commit


def _write_ref(path: Path, commit: str) -> Path:
    path.write_text(commit, encoding="ascii")
    sync(path)
    return path
