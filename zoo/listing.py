"""What is known of engines without loading them: rows for lists, for programs and for the gallery."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from zoo.errors import ConfigError
from zoo.hub.base import Listed
from zoo.hub.card_data import parse_card
from zoo.hub.catalogue import Entry, entries
from zoo.hub.folder import read_text, verify_card
from zoo.licences import is_commercial
from zoo.locate import locate, open_hub, parse, resolve, warn_without_folder
from zoo.naming import EngineName, default_namespace
from zoo.teachers import ANNOUNCED, FINE_TUNED, absent, needs_weights
from zoo.teachers.jmp.weights import read_config, weights_folder

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
    "head",
    "source",
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
    """A row for each engine of the catalogue and of a namespace on a hub; what nobody states is None.

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
    for listed in target.engines(owner):
        entry = entries().get(listed.name)
        if entry is None or entry.status == "recipe":  # what zoo ships is never shadowed
            rows[listed.name] = _listed_row(listed, entry, target.title)
    chosen = [rows[name] for name in sorted(rows)]
    return [row for row in chosen if _matches(row, elements, subset, commercial)]


def describe(name: str, hub: str | Path | None = None, *, namespace: str | None = None) -> tuple[Row, str | None]:
    """The row of one engine, and its card as Markdown where it has one. Raises what ``load`` raises."""
    found = parse(name)
    if isinstance(found, Path):
        return _folder_row(found)
    entry = entries().get(found.name) if isinstance(found, EngineName) else None
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
    row = dict.fromkeys(_KEYS) | facts | _weights(entry)
    return row | {"commercial": is_commercial(row["licence_weights"])}


def _weights(entry: Entry) -> Row:
    """Of a teacher that no package brings: what was converted or made here, or how to bring it."""
    if not (needs_weights(entry.name) or entry.name in ANNOUNCED):
        return {}
    if missing := absent(entry.name):
        return {} if entry.status == "recipe" else {"missing": missing}
    folder = weights_folder(entry.name)
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
