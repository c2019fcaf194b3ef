"""Engines for people to choose from: lists and facts as text, and the cards of a hub as a web page."""

import warnings
from pathlib import Path
from typing import Any

from zoo.artifact import Domain
from zoo.calculator import elements_text
from zoo.config import parse
from zoo.errors import ZooError, ZooWarning
from zoo.evaluate.report import QUANTITIES
from zoo.gallery import Page, write_gallery
from zoo.guard import domain_text
from zoo.hub.base import Hub
from zoo.hub.folder import read_text
from zoo.listing import Row, listing
from zoo.locate import locate, open_hub, resolve
from zoo.naming import default_namespace, parse_name, parse_path

STATUSES = "package: by a package or zoo convert. recipe: zoo distill NAME makes it. published: on the hub."
_UNFINISHED = " unfinished: its publication was not ended, or cannot be read."
_HEADS = {"name": "name", "status": "status", "licence_weights": "licence", "purpose": "purpose"}
_FACTS = {  # key of a row: what a person calls it
    "status": "status",
    "purpose": "purpose",
    "subset": "subset",
    "level_of_theory": "level of theory",
    "elements": "elements",
    "parameters": "parameters",
    "teacher": "teacher",
    "package": "package",
    "head": "head of the network",
    "source": "weights from",
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
    """A line an engine, no longer than the width unless its name is, and what the statuses mean."""
    if not rows:
        return "no engine is like that; zoo list shows all"
    cells = [{key: _line(row[key]) for key in _HEADS} for row in (_HEADS, *rows)]
    name, status, licence = (max(len(line[key]) for line in cells) for key in list(_HEADS)[:3])
    room = max(width - (name + status + licence + 6), 20)
    lines = [
        f"{line['name']:<{name}}  {line['status']:<{status}}  {line['licence_weights']:<{licence}}  "
        + _cut(line["purpose"], room)
        for line in cells
    ]
    unfinished = any(row["status"] == "unfinished" for row in rows)
    return "\n".join([*lines, "", STATUSES + (_UNFINISHED if unfinished else "")])


def info_text(row: Row) -> str:
    """The facts of one engine, a line each, and its errors against its teacher or its data set."""
    facts = {label: _fact(row[key]) for key, label in _FACTS.items() if row[key] is not None}
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


def _fact(value: Any) -> str:
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
