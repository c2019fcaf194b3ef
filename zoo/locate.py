"""Where a name leads: which hub, which repository, which commit, and what must be true of it."""

import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from zoo.artifact import CONFIG, MANIFEST, ArtifactConfig
from zoo.config import read_json
from zoo.errors import (
    AccessError,
    ConfigError,
    HubError,
    IntegrityError,
    NotReleasedError,
    UnknownNameError,
    ZooWarning,
)
from zoo.files import sha256_file
from zoo.hub.base import Hub, Resolved
from zoo.hub.cache import HUGGING_FACE, parse_hub
from zoo.hub.catalogue import Entry, canonical, entries, is_repository_id, nearest
from zoo.hub.folder import FolderHub
from zoo.hub.remote import RemoteHub
from zoo.inputs import told
from zoo.naming import DEFAULT_NAMESPACE, FORMS, EngineName, Repository, parse_name
from zoo.teachers import FINE_TUNED, absent, bringing, is_own


@dataclass(frozen=True)
class Place:
    """A repository on a hub that should hold an engine."""

    hub: Hub
    repository: Repository  # with the revision that was asked for
    name: str | None = None  # that its engine must have; None for any
    pinned: Resolved | None = None  # by the catalogue, which need not ask
    manifest_sha256: str | None = None  # of the pinned commit


@dataclass(frozen=True)
class Fetched:
    """A version of an engine, as a folder."""

    place: Place
    resolved: Resolved
    folder: Path

    @property
    def source(self) -> str:
        return f"{self.place.repository.id} on {self.place.hub.title}"


def open_hub(hub: str | Path | None = None) -> FolderHub | RemoteHub:
    """The hub that is named, else the one that ZOO_HUB names, else huggingface.co. Raises ConfigError."""
    named = parse_hub(str(hub or os.environ.get("ZOO_HUB") or HUGGING_FACE))
    return FolderHub(named) if isinstance(named, Path) else RemoteHub(named)


def parse(name: str | Path, revision: str | None = None) -> EngineName | Repository | Path:
    """What a name and a revision beside it mean; an alias becomes the name it stands for, with a warning.

    Raises UnknownNameError for what is no name, ConfigError where the two contradict each other.
    """
    if not isinstance(name, str | os.PathLike):
        raise UnknownNameError(f"the name of an engine is {told(name)}; expected {FORMS}")
    try:
        found = parse_name(name)
    except UnknownNameError as error:
        hint = f"; a repository is hf://{name}" if is_repository_id(name) else ""
        raise UnknownNameError(f"{error}; {nearest(str(name))}{hint}") from error
    if isinstance(found, EngineName):
        found = _canonical(found)
    if revision is None:
        return found
    if isinstance(found, Path):
        raise ConfigError(f"revision={revision!r} of the folder {found}; a folder has one version, leave it out")
    if found.revision not in (None, revision):
        raise ConfigError(f"the name says revision {found.revision}, revision= says {revision}; give one of them")
    return replace(found, revision=revision)


def locate(found: EngineName | Repository, hub: Hub, namespace: str) -> Place:
    """Where a name leads on a hub.

    A name that the catalogue has on this very hub leads to the catalogue's repository and, unless another revision is
    asked for, to its commit. Every other name leads into the namespace.
    """
    if isinstance(found, Repository):
        return Place(hub, found)
    entry = entries().get(found.name)
    release = entry.release if entry else None
    if release is None:
        return Place(hub, found.repository(namespace), found.name)
    owner, _, name = release.repository.partition("/")
    if not isinstance(hub, RemoteHub) or hub.endpoint != parse_hub(release.hub):
        carried = found.repository(owner)  # pulled from where it was released
        held = isinstance(hub, FolderHub) and (hub.root / carried.folder).is_dir()
        return Place(hub, carried if held else found.repository(namespace), found.name)
    pinned = found.revision in (None, release.version, release.commit)
    return Place(
        hub,
        Repository(owner, name, found.revision),
        found.name,
        Resolved(release.commit, release.version, entry.new_version if entry else None) if pinned else None,
        release.manifest_sha256 if pinned else None,
    )


def resolve(place: Place) -> Resolved:
    """The commit that a place stands for. Raises UnknownNameError, NotReleasedError, HubError, AccessError."""
    resolved = place.pinned or _asked(place)
    if resolved.new_version:
        successor = f"hf://{resolved.new_version}"
        warnings.warn(f"{place.repository.id} has a successor: {successor}", ZooWarning, stacklevel=2)
    return resolved


def warn_without_folder(hub: Hub) -> None:
    """A hub that is a folder may be mistyped, and is then as good as empty."""
    if isinstance(hub, FolderHub) and not hub.root.is_dir():
        warnings.warn(f"{_no_folder(hub)}, so nothing is on that hub", ZooWarning, stacklevel=2)


def _no_folder(hub: FolderHub) -> str:
    place = hub.root.resolve()
    return (
        f"{place} is a file{'; unpack it with tar -xf' * (place.suffix == '.tar')}"
        if place.is_file()
        else (f"there is no hub, no folder {place}")
    )


def _asked(place: Place) -> Resolved:
    hub, repository = place.hub, place.repository
    if is_own(place.name or ""):
        told = absent(place.name or "") or "it is here; leave hub and version out"
        raise UnknownNameError(f"{place.name} is the name of a teacher of your own, which no hub has; {told}")
    if isinstance(hub, FolderHub) and not hub.root.is_dir():
        remedy = "give a folder" if hub.root.is_file() else f"make one: zoo publish FOLDER --hub {hub.root}"
        raise UnknownNameError(f"{_no_folder(hub)}; {remedy}")
    try:
        resolved = hub.resolve(repository)
    except HubError as error:
        raise _with_remedy(place, error) from error
    if resolved is None:
        raise _not_found(place)
    if resolved.tag is None and repository.revision is None and place.name is not None:
        raise NotReleasedError(
            f"{repository.id} on {hub.title} is without a version, for nobody finished publishing it; "
            f"publish it again, or load {place.name}@main as it is"
        )
    return resolved


def fetch(place: Place) -> Fetched:
    """The model folder that a place stands for, of the engine that it should be.

    Raises what ``resolve`` does, and IntegrityError.
    """
    resolved = resolve(place)
    folder = place.hub.fetch(place.repository, resolved)
    if place.manifest_sha256 is not None and sha256_file(folder / MANIFEST) != place.manifest_sha256:
        raise IntegrityError(
            f"{place.repository.id} of {place.hub.title} is not what the catalogue of zoo recorded for commit "
            f"{resolved.commit[:12]}; do not use it, and tell its publisher"
        )
    if place.name is not None:
        _check_name(folder, place)
    return Fetched(place, resolved, folder)


def _check_name(folder: Path, place: Place) -> None:
    held = read_json(ArtifactConfig, folder / CONFIG).name
    if held != place.name:
        raise IntegrityError(f"{place.repository.id} holds {held}, expected {place.name}; publish it again")


def _canonical(found: EngineName) -> EngineName:
    name, is_alias = canonical(found.name)
    if not is_alias:
        return found
    warnings.warn(f"{found.name} is called {name} now", ZooWarning, stacklevel=2)
    family, _, engine = name.partition("/")
    return EngineName(family, engine, found.revision)


def _with_remedy(place: Place, error: HubError) -> HubError | NotReleasedError:
    """An engine of zoo that zoo has not released is made, whatever huggingface.co would have said."""
    entry, hub = entries().get(place.name or ""), place.hub
    if entry is None and place.name is not None:
        return type(error)(f"{error} ({nearest(place.name)})")
    asked = isinstance(hub, RemoteHub) and hub.endpoint == HUGGING_FACE and place.repository.owner == DEFAULT_NAMESPACE
    if entry is None or entry.status != "recipe" or not asked:
        return error
    reason = str(error).partition(";")[0]
    return NotReleasedError(f"{entry.name} has a recipe and no released weights ({reason}); {_making(entry)}")


def _not_found(place: Place) -> UnknownNameError | NotReleasedError:
    hub, repository = place.hub, place.repository
    where = f"{hub.title} has no {repository.id}"
    if isinstance(hub, RemoteHub):
        none = hub.client().token is None
        where += ", or it is private and no token is set" if none else ", or your token may not see it"
    elif isinstance(hub, FolderHub) and (owners := hub.owners(repository.name)):
        where += f", but one of {', '.join(owners)}: choose with --namespace or namespace="
    known = hub.fetched(repository) if isinstance(hub, RemoteHub) else None
    if known is not None:
        named, version = place.name or f"hf://{repository.id}", known.tag or known.commit
        return UnknownNameError(f"{where}; but {version} was fetched before: load {named}@{version}")
    entry = entries().get(place.name or "")
    if place.name is None:
        return UnknownNameError(f"{where}; check owner and name, or choose another hub with ZOO_HUB or --hub")
    if entry is not None and entry.status == "recipe":
        return NotReleasedError(f"{entry.name} has a recipe and no released weights ({where}); {_making(entry)}")
    near = nearest(place.name, _names(hub, repository.owner))
    return UnknownNameError(f"no engine is called {place.name!r} ({where}); expected {FORMS}; {near}")


def _names(hub: Hub, namespace: str) -> list[str]:
    """For a message, which must not fail for want of them."""
    try:
        return [listed.name for listed in hub.engines(namespace)]
    except (HubError, AccessError, OSError):
        return []


def _making(entry: Entry) -> str:
    if entry.name in FINE_TUNED:
        family = entry.name.partition("/")[0]
        return (
            f"run: zoo distill {entry.name}, or convert a checkpoint of your own with: zoo convert {family} FILE "
            f"--name {entry.name}"
        )
    first = "".join(f"{step}, then: " for step in bringing(entry.teacher or ""))
    return (
        f"run: {first}zoo distill {entry.name}, then: zoo publish runs/{entry.name}/model --hub ./hub, "
        "and load it with hub='./hub' (--hub ./hub)"
    )
