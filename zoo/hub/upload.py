"""A version on a hub over HTTP: one commit, looked at as it arrived, and only then named.

Every step first asks how things stand, so the whole may be repeated: after a lost answer, after a kill, beside another
publisher. Until the tag is there nothing is released; who asks for the newest version gets the one before.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from zoo.artifact import MANIFEST
from zoo.errors import HubError, PublishError
from zoo.files import sha256_file
from zoo.hub.base import Release
from zoo.hub.cache import is_offline
from zoo.hub.client import Client, Refs, Stored, persistent
from zoo.hub.guard import ConflictError, TransientError
from zoo.naming import Repository, next_version, quoted, version_of, versions

_OF_THE_HUB = (".gitattributes",)  # that a hub puts into a repository itself


def upload(
    client: Client, repository: Repository, files: Path, check: Callable[[str], object], *, public: bool, gated: bool
) -> Release:
    """Makes the files of a folder a version of the repository, unless they are one.

    ``check`` sees the commit before it has a name, and raises where it must not get one. See ``Hub.add``.
    """
    if is_offline():
        raise HubError(f"publishing on {client.title} needs a network, and HF_HUB_OFFLINE is set; unset it")
    client.require_token()
    with client.session():
        commit, known = persistent(lambda: _arrived(client, repository, files, gated))
    check(commit)
    with client.session():
        tag = known or persistent(lambda: _tagged(client, repository, commit))
        if public:
            persistent(lambda: client.open_to_all(repository))
        return Release(commit, tag, not known, persistent(lambda: client.is_public(repository)))


def _arrived(client: Client, repository: Repository, files: Path, gated: bool) -> tuple[str, str | None]:
    """The commit that has the files, as the hub says, and its tag where it is a version already."""
    refs = client.refs(repository)
    if refs is None:
        client.create(repository)
        refs = _refs(client, repository)
    if "main" not in refs.branches:
        raise PublishError(f"{client.title} shows {repository.id} without a branch main; is it a hub?")
    if gated:
        client.gate(repository)
    stored = _stored_alike(files)
    known = _version_of(client, repository, refs, stored)
    commit = refs.tags[known] if known else _committed(client, repository, refs.branches["main"], files, stored)
    _check_arrived(client, repository, commit, stored)
    return commit, known


def _refs(client: Client, repository: Repository) -> Refs:
    refs = client.refs(repository)
    if refs is None or "main" not in refs.branches:
        raise PublishError(f"{client.title} made {repository.id} and does not show it; run the same again")
    return refs


def _stored_alike(files: Path) -> dict[str, tuple[Stored, Stored]]:
    """How a hub may hold each file: as a large one, or in git."""
    found = {path.relative_to(files).as_posix(): path for path in sorted(files.rglob("*")) if path.is_file()}
    return {path: _stored_as(file) for path, file in found.items()}


def _stored_as(file: Path) -> tuple[Stored, Stored]:
    size = file.stat().st_size
    git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            git.update(block)
    return Stored(size, sha256_file(file)), Stored(size, git.hexdigest())


def _version_of(
    client: Client, repository: Repository, refs: Refs, stored: dict[str, tuple[Stored, Stored]]
) -> str | None:
    """The version that has this very manifest, and with it this very content."""
    tags = versions(refs.tags)
    for tag in reversed(tags):
        if client.stored(repository, tags[tag], MANIFEST) in stored[MANIFEST]:
            return tag
    return None


def _committed(
    client: Client, repository: Repository, head: str, files: Path, stored: dict[str, tuple[Stored, Stored]]
) -> str:
    """The commit of the branch main that has these files and no others; made unless it is there."""
    present = client.tree(repository, head)
    if _is_same(present, stored):
        return head
    obsolete = [path for path in present if path not in stored and path not in _OF_THE_HUB]
    try:
        return client.commit(
            repository,
            {path: files / path for path in stored},
            obsolete,
            parent=head,
            message="Publish with zoo",
        )
    except ConflictError as error:
        now = _refs(client, repository).branches["main"]
        if now == head:  # nobody did; the hub is busy with the repository
            raise TransientError(str(error)) from error
        if _is_same(client.tree(repository, now), stored):
            return now
        raise PublishError(
            f"somebody else published {repository.id} in the meantime, commit {now[:12]}; nothing of yours was "
            "released. Run the same again to publish after it"
        ) from error


def _check_arrived(
    client: Client, repository: Repository, commit: str, stored: dict[str, tuple[Stored, Stored]]
) -> None:
    """Raises PublishError where the hub does not hold what was sent."""
    present = client.tree(repository, commit)
    if not _is_same(present, stored):
        differing = {str(path) for path in {*present, *stored} - {*_OF_THE_HUB} if not _agrees(path, present, stored)}
        raise PublishError(
            f"{client.title} holds {repository.id} otherwise than it was sent "
            f"({quoted(', '.join(sorted(differing)))}), "
            f"commit {commit[:12]}; it was not released. Run the same again"
        )


def _is_same(present: dict[str, Stored], stored: dict[str, tuple[Stored, Stored]]) -> bool:
    return all(_agrees(path, present, stored) for path in {*present, *stored} - {*_OF_THE_HUB})


def _agrees(path: str, present: dict[str, Stored], stored: dict[str, tuple[Stored, Stored]]) -> bool:
    return path in stored and present.get(path) in stored[path]


def _tagged(client: Client, repository: Repository, commit: str) -> str:
    """The tag of the commit, made unless it is there, and read back."""
    for _ in range(5):  # others may take a number first
        tags = _refs(client, repository).tags
        known = version_of(commit, tags)
        if known:
            return known
        tag = next_version(tags)
        try:
            client.tag(repository, tag, commit)
        except ConflictError:
            continue
        return _read_back(client, repository, tag, commit)
    raise PublishError(f"others take every version of {repository.id} first; it was not released, run the same again")


def _read_back(client: Client, repository: Repository, tag: str, commit: str) -> str:
    """The tag, once the hub shows it; one that was just made may take a moment."""

    def target() -> str:
        tags = _refs(client, repository).tags
        if tag not in tags:
            raise TransientError(f"{client.title} took {repository.id}@{tag} and does not show it yet")
        return tags[tag]

    try:
        found = persistent(target)
    except TransientError as error:
        raise PublishError(f"{error}; run the same again") from error
    if found != commit:
        stands = f"it stands for {quoted(found)} instead of {commit[:12]}"
        raise PublishError(f"{client.title} took {repository.id}@{tag}, and {stands}; look at it there")
    return tag
