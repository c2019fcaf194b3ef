"""Engines for people to choose from: lists and facts as text, and the cards of a hub as a web page."""

import warnings
from pathlib import Path
from typing import Any

from zoo.acceptance import text_path
from zoo.artifact import Domain
from zoo.calculator import elements_text
from zoo.config import parse
from zoo.errors import ZooError, ZooWarning
from zoo.evaluate.report import QUANTITIES
from zoo.gallery import Page, write_gallery
from zoo.guard import domain_text
from zoo.hub.base import Hub
from zoo.hub.folder import read_text
from zoo.licences import TERMS
from zoo.listing import Row, listing
from zoo.locate import locate, open_hub, resolve
from zoo.naming import default_namespace, parse_name, parse_path
from zoo.teachers import next_step

STATUSES = "recipe: zoo distill NAME makes it. published: on the hub."
_UNFINISHED = " unfinished: its publication was not ended, or cannot be read."
_HERE = "here: yes, or what to do first; zoo info NAME says with which command."
_HEADS = {"name": "name", "status": "status", "licence_weights": "licence", "purpose": "purpose"}
_TEACHERS = {"name": "teacher", "here": "here", "licence_weights": "licence", "purpose": "purpose"}
_FACTS = {  # key of a row: what a person calls it
    "status": "status",
    "purpose": "purpose",
    "subset": "subset",
    "level_of_theory": "level of theory",
    "elements": "elements",
    "parameters": "parameters",
    "teacher": "teacher",
    "package": "package",
    "install": "to install it",
    "fastest": "fastest mode",
    "head": "head of the network",
    "source": "weights from",
    "size": "size of the weights",
    "digest": "digest of the weights",
    "gated": "terms to accept at",
    "folder": "weights in",
    "missing": "to run it",
    "licence_weights": "licence of the weights",
    "licence_code": "licence of the code",
    "commercial": "commercial use",
    "hub": "hub",
    "repository": "repository",
    "version": "version",
    "commit": "commit",
}
_UNITS = {quantity.key: (quantity.label, quantity.unit) for quantity in QUANTITIES} | {
    "speedup": ("speed", "times its teacher's")
}


def list_text(rows: list[Row], width: int) -> str:
    """A line an engine, then a line a teacher, no longer than the width unless its name is, and what the words mean."""
    if not rows:
        return "no engine is like that; zoo list shows all"
    engines = [row for row in rows if row["status"] != "package"]
    teachers = [row | {"here": _here(row)} for row in rows if row["status"] == "package"]
    unfinished = any(row["status"] == "unfinished" for row in engines)
    parts = [_table(engines, _HEADS, width), STATUSES + _UNFINISHED * unfinished] if engines else []
    parts += [_table(teachers, _TEACHERS, width), _HERE] if teachers else []
    return "\n\n".join(parts)


def _table(rows: list[Row], heads: dict[str, str], width: int) -> str:
    """Rows under the heads of four columns, of which the last is cut."""
    cells = [[_line(row[key]).removeprefix("LicenseRef-") for key in heads] for row in (heads, *rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(3)]
    room = max(width - (sum(widths) + 6), 20)
    columns = [[f"{text:<{wide}}" for text, wide in zip(line, widths, strict=False)] for line in cells]
    return "\n".join("  ".join([*first, _cut(line[3], room)]) for first, line in zip(columns, cells, strict=True))


def _here(row: Row) -> str:
    """Whether a teacher can be asked now, or the first step to that."""
    return "yes" if row["missing"] is None else next_step(row["name"]) or "no"


def info_text(row: Row) -> str:
    """The facts of one engine, a line each, and its errors against its teacher or its data set."""
    shown = row | {"digest": _digest(row)}
    facts = {label: _fact(key, shown[key]) for key, label in _FACTS.items() if shown[key] is not None}
    if row["status"] == "package" and row["missing"] is None:
        facts["here"] = f"yes: zoo.load({row['name']!r}), or teacher: name: {row['name']} in a recipe"
    if row["status"] == "package" and (terms := TERMS.get(row["licence_weights"] or "")) and terms.repeated:
        facts["text for students"] = f"its licence, which they must repeat, from {terms.text} in {text_path(terms)}"
    if row["domain"] is not None:
        facts["domain"] = _line(domain_text(parse(Domain, row["domain"], row["name"])))
    for key, value in (row["metrics"] or {}).items():
        label, unit = _UNITS.get(key, (key, ""))
        facts[label] = f"{value:.4g} {unit}".strip()
    width = max(map(len, facts))
    lines = [f"  {label:<{width}}  {value}" for label, value in facts.items()]
    errors = {"dataset_force_mae_meV_A", "force_mae_meV_A"} & (row["metrics"] or {}).keys()
    against = "the labels of the data set" if errors == {"dataset_force_mae_meV_A"} else "the teacher"
    note = ["", f"Errors are against {against}; how they were measured says: zoo card {row['name']}"]
    return "\n".join([_line(row["name"]), *lines, *(note if row["metrics"] else [])])


def build_gallery(folder: str | Path, hub: str | Path | None = None, *, namespace: str | None = None) -> Path:
    """Writes the engines of the catalogue and of a namespace on a hub as a web page, and returns its index.

    Raises HubError, AccessError, IntegrityError, and ConfigError for a folder that holds something else.
    """
    target, owner = open_hub(hub), default_namespace(namespace)
    pages = [_page(row, target, owner) for row in listing(hub, namespace=namespace)]
    return write_gallery(parse_path(folder), pages, title=f"Engines of {owner} on {target.title}")


def _page(row: Row, hub: Hub, namespace: str) -> Page:
    """With its card and figures; one that cannot be read must not hide the others."""
    if row["status"] != "published":
        return Page(row)
    name = parse_name(row["name"])
    assert not isinstance(name, Path)
    place = locate(name, hub, namespace)
    try:
        folder = hub.fetch_card(place.repository, resolve(place), figures=True)
    except ZooError as error:
        warnings.warn(f"{row['name']} has no page: {error}", ZooWarning, stacklevel=2)
        return Page(row)
    figures = {f"figures/{path.name}": path for path in sorted((folder / "figures").glob("*.png"))}
    return Page(row, read_text(folder), figures)


def _digest(row: Row) -> str | None:
    """The digest of weights, or what is known in its place of a file that is fetched."""
    found: str | None = row["digest"]
    if found is not None:
        return f"{found}{', from third hand' if row['digest_seen'] == 'index' else ''}"
    if not (row["source"] or "").startswith("https://"):
        return None
    if row["gated"] is not None:
        return "what the hub states when it is fetched"
    return "none was found; that of the first download is kept, and held to"


def _fact(key: str, value: Any) -> str:
    if key == "size":
        return f"{value / 1e6:,.1f} MB ({value:,} bytes)"
    if key == "licence_weights" and value.startswith("LicenseRef-") and value in TERMS:
        return f"{TERMS[value].name} ({value}), {TERMS[value].url}"
    if isinstance(value, bool):
        return "allowed" if value else "forbidden"
    if isinstance(value, list):
        return elements_text(value)
    return f"{value:,}" if isinstance(value, int) else _line(value)


def _line(text: str | None) -> str:
    """One line without control characters: a hub may hold anything."""
    return "".join(letter if letter.isprintable() else " " for letter in text or "-")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip(" ,") + "…"
