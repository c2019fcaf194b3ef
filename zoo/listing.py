"""What is known of engines without loading them: rows for lists, for programs and for the gallery."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from zoo.errors import ConfigError, UnknownNameError, ZooWarning
from zoo.hub.base import Listed
from zoo.hub.card_data import parse_card
from zoo.hub.catalogue import Entry, entries
from zoo.hub.folder import read_text, verify_card
from zoo.licences import is_commercial
from zoo.locate import locate, open_hub, parse, resolve, warn_without_folder
from zoo.naming import EngineName, default_namespace
from zoo.teacher_facts import why_not
from zoo.teachers import (
    FAMILIES,
    FINE_TUNED,
    Family,
    OwnTeacher,
    absent,
    family_of,
    is_own,
    needs_converting,
    own_teacher,
    own_teachers,
    weights_of,
)
from zoo.teachers.jmp.weights import read_config
from zoo.teachers.weights import weights_folder

Row = dict[str, Any]
_KEYS = (
    "name",
    "status",
    "purpose",
    "subset",
    "domain",
    "level_of_theory",
    "elements",
    "licence_code",
    "licence_weights",
    "commercial",
    "parameters",
    "teacher",
    "package",
    "install",
    "fastest",
    "head",
    "source",
    "size",
    "digest",
    "digest_seen",
    "gated",
    "folder",
    "missing",
    "hub",
    "repository",
    "version",
    "commit",
    "manifest_sha256",
    "metrics",
)


def listing(
    hub: str | Path | None = None,
    *,
    namespace: str | None = None,
    elements: Sequence[str] = (),
    subset: str | None = None,
    commercial: bool = False,
) -> list[Row]:
    """A row for each engine of the catalogue and of a namespace on a hub, teachers last; what nobody states is None.

    Those of a hub are ``published``, with what the card of their newest version says; without one that can be read they
    are ``unfinished``. ``elements`` are symbols
    that an engine must know, all of them; ``subset`` is a part of the subset's name; ``commercial`` leaves those whose
    licence is known to allow commercial use. Where the hub does not answer, a ZooWarning says so, and the catalogue and
    what was fetched before are listed. Raises ConfigError, AccessError.
    """
    strange = set(elements) - set(chemical_symbols)
    if strange:
        raise ConfigError(f"{min(strange)!r} is no element; give symbols, such as Si")
    target, owner = open_hub(hub), default_namespace(namespace)
    warn_without_folder(target)
    rows = {name: _entry_row(entry) for name, entry in entries().items()}
    rows |= _own_rows()
    for listed in target.engines(owner):
        entry = entries().get(listed.name)
        shipped = entry is not None and entry.status != "recipe"
        if not shipped and own_teacher(listed.name) is None:  # what comes with zoo, or is here, is never shadowed
            rows[listed.name] = _listed_row(listed, entry, target.title)
    chosen = sorted(rows.values(), key=lambda row: (row["status"] == "package", row["name"]))
    return [row for row in chosen if _matches(row, elements, subset, commercial)]


def describe(name: str, hub: str | Path | None = None, *, namespace: str | None = None) -> tuple[Row, str | None]:
    """The row of one engine, and its card as Markdown where it has one. Raises what ``load`` raises."""
    found = parse(name)
    if isinstance(found, Path):
        return _folder_row(found)
    entry = entries().get(found.name) if isinstance(found, EngineName) else None
    if isinstance(found, EngineName) and (own := _own(found, hub)) is not None:
        return _own_row(own), None
    if isinstance(found, EngineName) and is_own(found.name) and hub is None and found.revision is None:
        raise UnknownNameError(f"{found.name} is not known: {absent(found.name)}")
    here = isinstance(found, EngineName) and _is_here(found, hub)
    if entry is not None and (entry.status == "package" or here):
        return _entry_row(entry), None
    place = locate(found, open_hub(hub), default_namespace(namespace))
    resolved = resolve(place)
    text = read_text(place.hub.fetch_card(place.repository, resolved))
    card = parse_card(text)
    title = place.name or (card.zoo.name if card.zoo else place.repository.id)
    listed = Listed(title, place.repository.id, card, resolved.commit, resolved.tag)
    return _listed_row(listed, entry, place.hub.title), text


def _entry_row(entry: Entry) -> Row:
    facts = entry.model_dump(mode="json", exclude={"aliases", "base_model", "release", "new_version"})
    release = entry.release
    if release is not None:
        facts |= release.model_dump(mode="json")
    row = dict.fromkeys(_KEYS) | facts | _of_a_teacher(entry)
    return row | {"commercial": is_commercial(row["licence_weights"])}


def _of_a_teacher(entry: Entry) -> Row:
    """What brings a teacher here, and what of it is missing."""
    family = family_of(entry.name)
    if family is None or (entry.status == "recipe" and absent(entry.name)):
        return {}
    row: Row = {"missing": why_not(entry.name), "install": _install(family)}
    if (weights := weights_of(entry.name)) is not None:
        row |= {"source": weights.url, "size": weights.size, "gated": weights.gated}
        row |= {"digest": weights.digest, "digest_seen": weights.seen if weights.digest else None}
    return row | (_converted(entry.name) if needs_converting(entry.name) and not row["missing"] else {})


def _install(family: Family) -> str | None:
    """The commands that install a family's package; None where there is none."""
    if not family.install:
        return None
    own = f"zoo teachers install {family.key}, or: " if family.locked else ""
    return f"{own}pip install {family.install}"


def _converted(name: str) -> Row:
    """What weights that were converted or made here say of themselves."""
    folder = weights_folder(name)
    try:
        config = read_config(folder)
    except ConfigError as error:  # one that is broken must not hide the others
        return {"missing": str(error)}
    return {
        "head": config.head,
        "source": config.source,
        "folder": str(folder),
        "level_of_theory": config.level_of_theory,
        "elements": [chemical_symbols[number] for number in config.network.elements],
        "licence_weights": config.licence,
    }


def _is_here(name: EngineName, hub: str | Path | None) -> bool:
    """Whether a fine-tune was made or converted here, where ``load`` takes it from."""
    return name.name in FINE_TUNED and hub is None and name.revision is None and absent(name.name) is None


def _own(name: EngineName, hub: str | Path | None) -> OwnTeacher | None:
    """A teacher of one's own that was added here, which ``load`` takes where no hub and no version is asked for."""
    return own_teacher(name.name) if is_own(name.name) and hub is None and name.revision is None else None


def _own_rows() -> dict[str, Row]:
    """Those of one's own, by name; a record that cannot be read must not hide the others."""
    try:
        return {own.name: _own_row(own) for own in own_teachers()}
    except ConfigError as error:
        warnings.warn(str(error), ZooWarning, stacklevel=3)
        return {}


def _own_row(own: OwnTeacher) -> Row:
    """What was recorded of a teacher of one's own."""
    family = FAMILIES.get(own.family)
    told = {
        "name": own.name,
        "status": "package",
        "purpose": f"a teacher of your own, for {own.family}",
        "level_of_theory": own.level_of_theory,
        "elements": list(own.elements),
        "licence_weights": own.licence,
        "commercial": is_commercial(own.licence),
        "package": family.install.partition(" ")[0] if family else None,
        "install": _install(family) if family else None,
        "head": own.head,
        "source": own.file,
        "folder": str(weights_folder(own.name)),
        "digest": f"sha256:{own.sha256}",
        "missing": absent(own.name),
    }
    return dict.fromkeys(_KEYS) | told


def _listed_row(listed: Listed, entry: Entry | None, hub: str) -> Row:
    row = _entry_row(entry) if entry else dict.fromkeys(_KEYS)
    block = listed.card.zoo if listed.card else None
    if block is not None and block.name != listed.name:
        block = None  # of another engine
    row |= {"licence_weights": None, "metrics": None, "parameters": None}
    if block is not None:
        row |= {
            "purpose": block.purpose,
            "subset": block.subset,
            "domain": block.domain.model_dump(mode="json"),
            "level_of_theory": block.level_of_theory,
            "elements": list(block.elements),
            "licence_code": block.licence_code,
            "licence_weights": block.licence_weights,
            "parameters": block.weights.parameters,
            "teacher": block.teacher.name,
            "metrics": dict(block.metrics),
        }
    status = "published" if listed.tag else "unfinished"
    row |= {"name": listed.name, "status": status, "hub": hub, "repository": listed.repository}
    row |= {"version": listed.tag, "commit": listed.commit, "commercial": is_commercial(row["licence_weights"])}
    return row


def _folder_row(folder: Path) -> tuple[Row, str]:
    """A model folder on disk, whose card is verified."""
    verify_card(folder)
    text = read_text(folder)
    card = parse_card(text)
    name = card.zoo.name if card.zoo else folder.name
    row = _listed_row(Listed(name, str(folder), card), None, "")
    return row | {"status": "folder", "hub": None}, text


def _matches(row: Row, elements: Sequence[str], subset: str | None, commercial: bool) -> bool:
    knows = set(elements) <= set(row["elements"] or ())
    within = subset is None or subset.lower() in (row["subset"] or "").lower()
    return knows and within and (row["commercial"] is True or not commercial)
