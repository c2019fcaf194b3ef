"""``zoo data``: the data sets that recipes name, listed, shown and fetched."""

import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import click

from zoo.cli_options import json_option
from zoo.data.sources import Source, get_file, get_source, sources
from zoo.data.store import DATA_FOLDERS, data_folders, fetch, fetched_folder, find_file, recorded
from zoo.errors import HubError
from zoo.hub.cache import is_offline
from zoo.licences import is_commercial

_WIDTH = 100  # columns of a list
_HEADS = ("name", "files", "here", "size", "licence", "what")
_SIZE_WITNESS = {"publisher": "", "index": ", a size from third hand"}
_WITNESS = {"publisher": "as published", "index": "from third hand", "here": "of the copy here"}


@click.group("data")
def data() -> None:
    """List, show and fetch the data sets that recipes name.

    \b
    zoo data list                         which there are, and which are here
    zoo data show md22                    files, licence, citation, digests
    zoo data fetch md22 --file at-at      fetch a file, or go on with it
    """


@data.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the data sets that zoo can fetch and read.

    Nothing is asked over the network. What is here was found in the folders that ZOO_DATA names, or fetched.
    """
    rows = [source_row(source) for source in sources().values()]
    click.echo(json.dumps(rows, indent=1, ensure_ascii=False) if as_json else _list_text(rows))


@data.command("show")
@click.argument("name")
@json_option
def show_command(name: str, as_json: bool) -> None:
    """Show all that is known of data set NAME.

    Its files with their addresses, sizes and digests, which of them are here, its licence, and what to cite.
    """
    row = source_row(get_source(name)) | {"in": [file_row(get_source(name), key) for key in get_source(name).files]}
    click.echo(json.dumps(row, indent=1, ensure_ascii=False) if as_json else _show_text(row))


@data.command("fetch")
@click.argument("name", metavar="SOURCE")
@click.option("--file", "keys", multiple=True, metavar="KEY", help="Only this file; repeatable.  [default: all]")
@click.option(
    "--to",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Folder of data sets to have it in.  [default: data in ZOO_CACHE]",
)
@click.option("--accept-digest", is_flag=True, help="Take a file that differs from a digest not of its publisher.")
def fetch_command(name: str, keys: tuple[str, ...], to: Path | None, accept_digest: bool) -> None:
    """Fetch data set SOURCE, or files of it.

    A file that is here is verified and stays. One that was cut goes on where it stopped: run the same again.

    \b
    zoo data fetch md22 --file buckyball-catcher
    """
    source = get_source(name)
    files = {get_file(source, key).name: key for key in reversed(keys or tuple(source.files))}
    chosen = list(reversed(files.values()))
    missing = [key for key in chosen if not _is_here(source, key, to)]
    if missing and is_offline():
        first = source.files[missing[0]]
        raise HubError(
            f"{first.name} of {name} is not here, and HF_HUB_OFFLINE is set; unset it, or copy the file to "
            f"{(to or fetched_folder()) / name}"
        )
    click.echo(_terms_text(source, chosen, missing))
    for key in chosen:
        path = fetch(source, key, to, accept_digest=accept_digest)
        click.echo(f"{key} is in {path}{_size_note(source, key, path)}")
    if to is not None and to.resolve() not in [folder.resolve() for folder in data_folders()]:
        click.echo(f"To use what is there: export {DATA_FOLDERS}={to.resolve()}")


def source_row(source: Source) -> dict[str, Any]:
    """The facts of a data set; what nobody states is None."""
    facts = source.model_dump(mode="json", exclude={"files"})
    paths = [find_file(source, key) for key in source.on_disk]
    return facts | {
        "commercial": is_commercial(source.licence),
        "bytes": _sum([_size(source, key) for key in source.on_disk]),
        "files": len(source.on_disk),
        "here": sum(path is not None for path in paths),
    }


def file_row(source: Source, key: str) -> dict[str, Any]:
    """The facts of a file of a data set, with its place and the digest on record where it is here."""
    path, record = find_file(source, key), recorded(source, key)
    return {
        "key": key,
        **source.files[key].model_dump(mode="json", exclude={"browser"}),
        "path": str(path) if path else None,
        "recorded": record.digest.model_dump(mode="json") | {"accepted": record.accepted} if record else None,
    }


def _size(source: Source, key: str) -> int | None:
    """As published, else of the copy that is here."""
    path = find_file(source, key)
    return source.files[key].bytes or (path.stat().st_size if path else None)


def _sum(sizes: Sequence[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _is_here(source: Source, key: str, to: Path | None) -> bool:
    name = source.files[key].name
    if to is None:
        return find_file(source, key) is not None
    return (to / source.name / name).is_file() or (to / name).is_file()


def _size_note(source: Source, key: str, path: Path) -> str:
    """What is odd about the size of a file that was taken all the same."""
    stated, size = source.files[key].bytes, path.stat().st_size
    if stated in (None, size):
        return ""
    return f"; it has {size:,} bytes, {stated:,} were stated"


def _terms_text(source: Source, chosen: Sequence[str], missing: Sequence[str]) -> str:
    note = f"; {source.licence_note}" if source.licence_note else ""
    size = _bytes_text(_sum([source.files[key].bytes for key in missing]), unknown="whose size nobody states")
    return (
        f"{source.name}: {source.title}\nlicence: {source.licence}{note} ({source.licence_url})\n"
        f"to fetch: {len(missing)} of {len(chosen)} file{'s' if len(chosen) > 1 else ''}, {size}"
    )


def _list_text(rows: Sequence[dict[str, Any]]) -> str:
    lines = [_HEADS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADS) - 1)]
    room = _WIDTH - sum(widths) - 2 * len(widths)
    table = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), _cut(line[-1], room)])
        for line in lines
    ]
    folders = ", ".join(map(str, data_folders()))
    return "\n".join([*table, "", "Facts: zoo data show NAME. Fetch: zoo data fetch NAME.", f"Sought in: {folders}"])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        str(row["files"]),
        str(row["here"]),
        _bytes_text(row["bytes"]),
        row["licence"].removeprefix("LicenseRef-"),
        row["title"],
    )


def _show_text(row: dict[str, Any]) -> str:
    commercial = {True: "allowed", False: "forbidden", None: "unknown"}[row["commercial"]]
    facts = {
        "title": row["title"],
        "licence": row["licence"],
        "note": row["licence_note"],
        "terms": row["licence_url"],
        "commercial use": commercial,
        "level of theory": row["level_of_theory"],
        "units of files": row["units"],
        "read as": row["format"],
        "cite": row["citation"],
    }
    indent = " " * 19
    lines = [
        fill(f"  {label:<15}  {value}", _WIDTH, subsequent_indent=indent, break_long_words=False)
        for label, value in facts.items()
        if value is not None
    ]
    names = dict.fromkeys(file["name"] for file in row["in"])
    on_disk = [[file for file in row["in"] if file["name"] == name] for name in names]
    return "\n".join([row["name"], *lines, "", *(line for files in on_disk for line in _file_lines(files))])


def _file_lines(files: Sequence[dict[str, Any]]) -> list[str]:
    """One file on disk, with all that are read from it."""
    file, digest, record = files[0], files[0]["digest"], files[0]["recorded"]
    size = "" if file["bytes"] is None else f", {_bytes_text(file['bytes'])}{_SIZE_WITNESS[file['bytes_seen']]}"
    holdings = fill(f"    holds {', '.join(map(_holding, files))}", _WIDTH, subsequent_indent=" " * 10)
    lines = [f"  {file['name']}{size}", holdings]
    lines += [f"    from  {url}" for url in file["urls"]]
    if digest is not None:
        lines.append(f"    {digest['algorithm']} {digest['hex']}, {_WITNESS[digest['seen']]}")
    if record is not None and (digest is None or record["hex"] != digest["hex"]):
        witness = "accepted" if record["accepted"] else _WITNESS["here"]
        lines.append(f"    {record['algorithm']} {record['hex']}, {witness}")
    return [*lines, f"    here  {file['path'] or 'no'}"]


def _holding(file: dict[str, Any]) -> str:
    counts = [f"{file[key]:,} {key}" for key in ("frames", "atoms") if file[key]]
    return f"{file['key']} ({', '.join(counts)})" if counts else str(file["key"])


def _bytes_text(size: int | None, unknown: str = "-") -> str:
    if size is None:
        return unknown
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip(" ,") + "…"
