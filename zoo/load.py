"""From a name to an engine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from zoo.artifact import CONFIG, ArtifactConfig
from zoo.calculator import elements_text
from zoo.config import read_json
from zoo.engine import Engine, Provenance, resolve_device, resolve_dtype
from zoo.errors import (
    CapabilityError,
    ConfigError,
    IntegrityError,
    NotReleasedError,
    UnknownNameError,
    ZooError,
)
from zoo.hub.catalogue import Entry, entries, nearest
from zoo.hub.folder import FolderHub, open_hub
from zoo.naming import FORMS, EngineName, Repository, default_namespace, parse_name
from zoo.teachers import load_teacher, teacher_names


def load(
    name: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    compile: bool = False,
    check_domain: bool = True,
    hub: str | Path | None = None,
    revision: str | None = None,
    namespace: str | None = None,
) -> Engine:
    """The engine of that name, verified and ready.

    ``name`` is ``family/engine[@revision]``, ``hf://owner/repo[@revision]`` or a path to a model folder.
    ``hub`` is a folder, by default what ZOO_HUB names; ``namespace`` is by default what ZOO_NAMESPACE names,
    else mlff-zoo. Engines run eager: this version compiles none, and ``compile=True`` is a CapabilityError.
    Raises UnknownNameError, NotReleasedError, IntegrityError, ConfigError, MissingPackageError.
    """
    if compile:
        raise CapabilityError("compile=True: compiled engines are not offered in this version of zoo; leave it out")
    place, real = resolve_device(device), resolve_dtype(dtype)
    found = _pinned(_parsed(name), revision)
    if isinstance(found, EngineName) and found.name in teacher_names():
        return _teacher(found, place, real, check_domain)
    if isinstance(found, Path):
        if not found.is_dir():
            raise UnknownNameError(f"there is no folder {found}; expected {FORMS}")
        return Engine.read(found, device=place, dtype=real, check_domain=check_domain)
    return _published(found, open_hub(hub), default_namespace(namespace), place, real, check_domain)


def names(hub: str | Path | None = None, *, namespace: str | None = None) -> list[str]:
    """Every name that ``load`` knows: the catalogue's, and those of a namespace on a hub."""
    target = open_hub(hub)
    found = target.engine_names(default_namespace(namespace)) if target else []
    return sorted({*entries(), *found})


def listing(hub: str | Path | None = None, *, namespace: str | None = None) -> list[dict[str, Any]]:
    """A row for each of ``names``, with the keys of the catalogue; what nobody states is None.

    An engine on the hub is ``published``, and its elements, licence and teacher are those of its ``config.json``,
    whose digest only ``load`` checks. Raises ConfigError.
    """
    rows = {name: entry.model_dump(mode="json") for name, entry in entries().items()}
    target, owner = open_hub(hub), default_namespace(namespace)
    if target is not None:
        found = set(target.engine_names(owner)) - set(teacher_names())  # load looks for no teacher on a hub
        rows |= {name: _published_row(name, _published_config(name, target, owner)) for name in found}
    return [rows[name] for name in sorted(rows)]


def _published_row(name: str, config: ArtifactConfig | None) -> dict[str, Any]:
    entry = entries().get(name)
    row = entry.model_dump(mode="json") if entry else dict.fromkeys(Entry.model_fields)
    row |= {"name": name, "status": "published", "licence_weights": config.licence if config else None}
    if config is not None:
        row |= {"elements": elements_text(config.domain.elements), "teacher": config.lineage.teacher}
        row["purpose"] = row["purpose"] or config.domain.description
    return row


def _published_config(name: str, hub: FolderHub, owner: str) -> ArtifactConfig | None:
    """None where it cannot be read: one broken engine must not hide the others."""
    found = parse_name(name)
    assert isinstance(found, EngineName)
    try:
        version = hub.find(found.repository(owner))
        config = read_json(ArtifactConfig, version.folder / CONFIG) if version else None
    except (ZooError, OSError):
        return None
    return config if config and config.name == name else None


def _parsed(name: str | Path) -> EngineName | Repository | Path:
    try:
        return parse_name(name)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error}; {nearest(str(name))}") from error


def _pinned(found: EngineName | Repository | Path, revision: str | None) -> EngineName | Repository | Path:
    """With the revision that was given beside the name. Raises ConfigError where that makes no sense."""
    if revision is None:
        return found
    if isinstance(found, Path):
        raise ConfigError(f"revision={revision!r} of the folder {found}; a folder has one version, leave it out")
    if found.revision not in (None, revision):
        raise ConfigError(f"the name says revision {found.revision}, revision= says {revision}; give one of them")
    return replace(found, revision=revision)


def _teacher(found: EngineName, device: torch.device, dtype: torch.dtype, check_domain: bool) -> Engine:
    if found.revision is not None:
        raise ConfigError(f"{found.name} comes with an installed package and has no revision {found.revision}")
    teacher = load_teacher(found.name, dtype=dtype, device=device)
    provenance = Provenance(
        name=teacher.name,
        source=teacher.package,
        licence=teacher.licence_weights,
        level_of_theory=teacher.level_of_theory,
    )
    return Engine(teacher.potential, provenance, check_domain=check_domain)


def _published(
    found: EngineName | Repository,
    hub: FolderHub | None,
    namespace: str,
    device: torch.device,
    dtype: torch.dtype,
    check_domain: bool,
) -> Engine:
    repository = found.repository(namespace) if isinstance(found, EngineName) else found
    version = hub.find(repository) if hub else None
    if hub is None or version is None:
        raise _not_found(found, repository, hub)
    engine = Engine.read(
        version.folder,
        device=device,
        dtype=dtype,
        check_domain=check_domain,
        source=f"{repository.id} on {hub.root}",
        revision=version.tag,
        commit=version.commit,
    )
    if isinstance(found, EngineName) and engine.name != found.name:
        raise IntegrityError(f"{repository.id} holds {engine.name}, expected {found.name}; publish it again")
    return engine


def _not_found(
    found: EngineName | Repository, repository: Repository, hub: FolderHub | None
) -> UnknownNameError | NotReleasedError:
    unset = "no hub is set: pass hub='./hub' (--hub ./hub) or set ZOO_HUB=./hub"
    where = unset if hub is None else f"{hub.root.resolve()} has no {repository.id}"
    if hub is not None and not hub.root.is_dir():
        return UnknownNameError(
            f"there is no hub, no folder {hub.root.resolve()}; give the path of a hub, such as ./hub"
        )
    if isinstance(found, Repository):
        return UnknownNameError(f"{where}; so far a hub is a folder, and nothing is fetched from huggingface.co")
    if found.name in entries():
        return NotReleasedError(
            f"{found.name} has a recipe and no released weights ({where}); run: zoo distill {found.name}, "
            f"then: zoo publish runs/{found.name}/model --hub ./hub, and load it with hub='./hub'"
        )
    near = nearest(found.name, hub.engine_names(repository.owner) if hub else [])
    return UnknownNameError(f"no engine is called {found.name!r} ({where}); expected {FORMS}; {near}")
