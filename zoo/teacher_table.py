"""Which teachers are here: their packages, their environments, their weights, and which cannot be together."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from textwrap import fill
from typing import Any

from zoo.hub.catalogue import entries
from zoo.licences import is_commercial
from zoo.teachers import FAMILIES, Family, absent, next_step, own_teachers, weights_of
from zoo.teachers.clashes import Clash, clashes, packages_of
from zoo.teachers.environments import find_environment, locked
from zoo.teachers.weights import copies

Row = dict[str, Any]
_WEIGHTS = ("here", "with the package", "computed", "to fetch", "to convert", "gone")  # as the text orders them
_ENVIRONMENTS = {
    "none": "no environment",
    "made": "an environment of its own",
    "being made": "an environment that is being made",
    "broken": "an environment that is not whole",
    "no python": "an environment whose Python is not on this machine",
    "outdated": "an environment of an earlier zoo",
}
_HELP = (
    "Environment: zoo teachers install FAMILY. Weights: zoo teachers fetch NAME, zoo convert.",
    "A file of your own: zoo teachers add own/NAME FILE --family FAMILY. Facts: zoo info NAME.",
)


def teacher_rows() -> dict[str, Any]:
    """Families with their teachers, those of one's own, and clashes. Nothing is asked over the network.

    Raises ConfigError for a record of a teacher of one's own that cannot be read.
    """
    return {
        "families": [_family_row(family) for family in FAMILIES.values()],
        "own": [_own_row(facts.name, facts.family, facts.licence) for facts in own_teachers()],
        "clashes": [asdict(clash) for clash in clashes()],
    }


def text_of(rows: dict[str, Any], width: int) -> str:
    """The same to be read: a paragraph a family."""
    paragraphs = ["\n".join(_family_lines(row, width)) for row in rows["families"]]
    if rows["own"]:
        lines = [f"  {row['weights']:<16}  {row['name']} ({row['family']}, {row['licence']})" for row in rows["own"]]
        paragraphs.append("\n".join(["own: added by zoo teachers add", *lines]))
    told = [_filled(_clash_line(Clash(**clash), rows["families"]), width, 2) for clash in rows["clashes"]]
    return "\n\n".join([*paragraphs, *(["\n".join(told)] if told else []), "\n".join(_HELP)])


def _family_row(family: Family) -> Row:
    place = find_environment(family.key) if family.key in locked() else None
    return {
        "family": family.key,
        "packages": packages_of(family),
        "importable": family.is_importable,
        "environment": None if place is None else place.state,
        "folder": str(place.folder) if place is not None and place.state != "none" else None,
        "own_files": family.own_files,
        "teachers": [_teacher_row(name, family) for name in family.names],
    }


def _teacher_row(name: str, family: Family) -> Row:
    entry, file = entries().get(name), weights_of(name)
    return {
        "name": name,
        "weights": _weights(name, family),
        "bytes": None if file is None else file.size,
        "gated": None if file is None else file.gated,
        "licence": None if entry is None else entry.licence_weights,
        "commercial": None if entry is None else is_commercial(entry.licence_weights),
        "missing": absent(name),
    }


def _own_row(name: str, family: str, licence: str) -> Row:
    return {
        "name": name,
        "family": family,
        "weights": "gone" if next_step(name) == "add" else "here",
        "licence": licence,
        "commercial": is_commercial(licence),
        "missing": absent(name),
    }


def _weights(name: str, family: Family) -> str:
    if family.converted:
        return "here" if absent(name) is None else "to convert"
    file = weights_of(name)
    if file is None:
        return "with the package" if family.imports else "computed"
    return "here" if next(copies(name, file), None) is not None else "to fetch"


def _family_lines(row: Row, width: int) -> Iterator[str]:
    yield _filled(f"{row['family']}: {_standing(row)}", width, 2)
    for weights in _WEIGHTS:
        of_these = [one for one in row["teachers"] if one["weights"] == weights]
        for licence in dict.fromkeys(map(_licence_text, of_these)):
            names = ", ".join(one["name"] for one in of_these if _licence_text(one) == licence)
            yield _filled(f"  {weights:<16}  {licence}: {names}", width, 20)


def _standing(row: Row) -> str:
    """Where its teachers are computed."""
    if not row["packages"]:
        return "computed by zoo itself"
    here = [f"{name} {version}" for name, version in row["packages"].items() if version is not None]
    lacking = [name for name, version in row["packages"].items() if version is None]
    parts = [f"{', '.join(here)} {'are' if len(here) > 1 else 'is'} here"] * bool(here)
    parts += [f"{', '.join(lacking)} {'are' if len(lacking) > 1 else 'is'} not here"] * bool(lacking)
    if row["environment"] is not None:
        parts.append(_ENVIRONMENTS[row["environment"]])
    if not row["importable"] and row["environment"] not in (None, "made", "being made"):
        parts.append(f"run: zoo teachers install {row['family']}")
    return "; ".join(parts)


def _licence_text(row: Row) -> str:
    licence = (row["licence"] or "licence unknown").removeprefix("LicenseRef-")
    return f"{licence}, not for commerce" if row["commercial"] is False else licence


def _filled(text: str, width: int, indent: int) -> str:
    """In lines that end between names."""
    return fill(text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def _clash_line(clash: Clash, families: Sequence[Row]) -> str:
    here = [row["family"] for row in families if row["family"] in clash.families and row["importable"]]
    where = f"; {here[0]} is here, zoo asks the other one apart" if len(here) == 1 else ""
    one, other = (
        f"{name} wants {clash.package}{wanted}" for name, wanted in zip(clash.families, clash.required, strict=True)
    )
    return f"Not in one environment: {one}, {other}{where}."
