"""A static site of engines: one table to sort and filter, and a page for each card with its figures.

It works from disk and from any web server, and loads nothing but its own files. Rows and cards may be a stranger's.
"""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from zoo.errors import ConfigError
from zoo.evaluate.report import QUANTITIES
from zoo.hub.catalogue import is_repository_id
from zoo.markdown import parse_card_body, printable
from zoo.naming import DEFAULT_NAMESPACE, is_engine_name

MARKER = ".zoo-gallery"  # lists the files that zoo wrote, so that no other is ever removed
MAX_FIGURE_BYTES = 16 << 20

_FILES = Path(__file__).with_name("_gallery")
_ASSETS = ("gallery.css", "gallery.js")
_TAKEN = frozenset({"index.html", *_ASSETS})  # no family may have the name of a file
_FIGURE = re.compile(r"figures/[A-Za-z0-9][A-Za-z0-9_-]*\.png")
_PNG = b"\x89PNG\r\n\x1a\n"
_LONGEST = 300  # characters of a fact
_HUGE = 1e18
_SYMBOL = re.compile(r"[A-Z][a-z]?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ADDRESS = re.compile(r"https?://[A-Za-z0-9.-]+(?::[0-9]+)?(?:/[A-Za-z0-9._/-]*)?")
_DEFAULT_HUB = "https://huggingface.co"
# From disk, 'self' is nothing to some browsers, hence file:, which a page from a server may not load anyway.
_POLICY = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file:; img-src 'self' file:; "
    "base-uri 'none'; form-action 'none'"
)
_METRICS = (
    "force_mae_meV_A",
    "energy_mae_meV_atom",
    "hessian_mae_eV_A2",
    "dataset_force_mae_meV_A",
    "speedup",
    "ms_per_call",
)
_UNITS = {quantity.key: (quantity.label, quantity.unit) for quantity in QUANTITIES} | {
    "speedup": ("speed", "× its teacher")
}


@dataclass(frozen=True)
class Page:
    """One engine: its row of the listing, its card with front matter, and its figures by their path in the card."""

    row: Mapping[str, Any]
    card: str | None = None  # an engine without one has a row of the table and no page
    figures: Mapping[str, Path] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.row.get("name"))


@dataclass(frozen=True)
class _Cell:
    """What a cell shows, as HTML, and what it is sorted by; nothing known sorts last."""

    html: str
    sort: str = ""


@dataclass(frozen=True)
class _Column:
    key: str
    label: str
    cell: Callable[[Page], _Cell]
    unit: str = ""
    number: bool = False


def write_gallery(folder: Path, pages: Sequence[Page], *, title: str) -> Path:
    """Writes the site, whole or not at all, and returns its ``index.html``; the same pages give the same bytes.

    Raises ConfigError for a folder that holds files which zoo did not write there, and for the name of an engine or
    of a figure that is outside the law. A figure that is no PNG image is named and not shown.
    """
    target = folder.expanduser().resolve()
    _check_folder(target)
    _check_names(pages)
    with _replaced(target) as temporary:
        written = [_write(temporary, path, content) for path, content in _site(pages, title)]
        _write(temporary, MARKER, "".join(f"{path}\n" for path in sorted(written)).encode())
    return target / "index.html"


def _check_folder(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigError(f"{target} is a file; expected a folder for the gallery, choose another")
    marker = target / MARKER
    ours = {MARKER, *marker.read_text().splitlines()} if marker.is_file() else set()
    found = (path for path in target.rglob("*") if path.is_symlink() or not path.is_dir())
    foreign = sorted({path.relative_to(target).as_posix() for path in found} - ours)
    if foreign:
        raise ConfigError(
            f"{target} holds {foreign[0]!r}, which zoo gallery did not write; move it away, or choose another folder"
        )


def _check_names(pages: Sequence[Page]) -> None:
    for name, count in Counter(page.name for page in pages).items():
        if not is_engine_name(name) or name.partition("/")[0] in _TAKEN:
            raise ConfigError(f"an engine called {name[:_LONGEST]!r}; expected family/engine, leave it out")
        if count > 1:
            raise ConfigError(f"{name} is given {count} times; expected one row for each engine")


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` that takes its place when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (target.with_name(f".{target.name}.{os.getpid()}.{suffix}") for suffix in ("tmp", "old"))
    temporary.mkdir()
    try:
        yield temporary
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _write(folder: Path, path: str, content: bytes) -> str:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return path


def _site(pages: Sequence[Page], title: str) -> Iterator[tuple[str, bytes]]:
    """Every file of the site: its path, and what is in it."""
    ordered = sorted(pages, key=lambda page: page.name)
    yield "index.html", _index(ordered, title).encode()
    for asset in _ASSETS:
        yield asset, (_FILES / asset).read_bytes()
    for page in ordered:
        if page.card is not None:
            figures = _figures(page)
            yield f"{page.name}.html", _card(page, page.card, {key: link for key, link, _ in figures}, title).encode()
            for _, link, image in figures:
                yield f"{page.name.partition('/')[0]}/{link}", image


def _filled(template: str, **values: str) -> str:
    return Template((_FILES / template).read_text(encoding="utf-8")).substitute(values, policy=_POLICY)


# The table


def _index(pages: Sequence[Page], title: str) -> str:
    columns = _columns(pages)
    statuses = sorted({_fact(page, "status") for page in pages} - {""})
    return _filled(
        "index.html",
        title=_safe(title),
        count=f"{len(pages)} engine{'' if len(pages) == 1 else 's'}",
        statuses="".join(f"<option>{escape(status)}</option>" for status in statuses),
        heads="".join(map(_head, columns)),
        rows="\n".join(_table_row(page, columns) for page in pages),
    )


def _columns(pages: Sequence[Page]) -> list[_Column]:
    metrics = [key for key in _METRICS if any(_metric(page, key) is not None for page in pages)]
    return [
        _Column("name", "name", _name_cell),
        _text_column("status"),
        _text_column("teacher"),
        _text_column("subset"),
        _Column("elements", "elements", _elements_cell),
        _Column("licence", "licence", _licence_cell),
        _Column("commercial", "commercial use", _commercial_cell),
        _Column("parameters", "parameters", _parameters_cell, number=True),
        *(_metric_column(key) for key in metrics),
        _text_column("version"),
    ]


def _head(column: _Column) -> str:
    unit = f'<span class="unit">{escape(column.unit)}</span>' if column.unit else ""
    kind = ' class="number"' if column.number else ""
    return f'<th scope="col" data-key="{column.key}"{kind}><span class="key">{escape(column.label)}</span>{unit}</th>'


def _table_row(page: Page, columns: Sequence[_Column]) -> str:
    cells = "".join(_cell(column, column.cell(page)) for column in columns)
    facts = {
        "elements": " ".join(_symbols(page)),
        "status": _fact(page, "status"),
        "commercial": _commercial(page),
    }
    data = "".join(f' data-{key}="{escape(value)}"' for key, value in facts.items())
    return f"<tr{data}>{cells}</tr>"


def _cell(column: _Column, cell: _Cell) -> str:
    kinds = ("number" if column.number else "", "name" if column.key == "name" else "", "" if cell.html else "empty")
    names = " ".join(filter(None, kinds))
    kind = f' class="{names}"' if names else ""
    unit = f" ({column.unit})" if column.number and column.unit else ""
    return f'<td{kind} data-label="{escape(column.label + unit)}" data-sort="{escape(cell.sort)}">{cell.html}</td>'


def _text_column(key: str) -> _Column:
    return _Column(key, key, lambda page: _Cell(escape(_fact(page, key)), _fact(page, key)))


def _metric_column(key: str) -> _Column:
    label, unit = _UNITS[key]
    return _Column(key, label, lambda page: _number_cell(_metric(page, key), "{:.4g}"), unit, number=True)


def _name_cell(page: Page) -> _Cell:
    name = f'<a href="{page.name}.html">{page.name}</a>' if page.card is not None else f"<b>{page.name}</b>"
    return _Cell(f'{name}<span class="purpose">{escape(_fact(page, "purpose"))}</span>', page.name)


def _elements_cell(page: Page) -> _Cell:
    symbols = _symbols(page)
    text = " ".join(symbols)
    if len(symbols) > 4:
        return _Cell(f"<details><summary>{len(symbols)} elements</summary>{text}</details>", text)
    return _Cell(text, text)


def _licence_cell(page: Page) -> _Cell:
    weights, code = _fact(page, "licence_weights"), _fact(page, "licence_code")
    other = f'<span class="purpose">code: {escape(code)}</span>' if code and code != weights else ""
    return _Cell(escape(weights) + other, weights)


def _commercial_cell(page: Page) -> _Cell:
    verdict = _commercial(page)
    return _Cell(f'<span class="{verdict}">{verdict}</span>', "" if verdict == "unknown" else verdict)


def _parameters_cell(page: Page) -> _Cell:
    return _number_cell(_number(page.row.get("parameters")), "{:,.0f}")


def _number_cell(value: float | None, form: str) -> _Cell:
    return _Cell("") if value is None else _Cell(form.format(value), repr(value))


# A card's page


def _card(page: Page, card: str, figures: Mapping[str, str], title: str) -> str:
    facts = {key: value for key, value in _facts(page).items() if value}
    return _filled(
        "card.html",
        title=_safe(title),
        name=page.name,
        facts="\n".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts.items()),
        load=escape(_load_command(page)),
        body=_body(page, card, figures),
    )


def _facts(page: Page) -> dict[str, str]:
    """What a reader of the page wants first, as HTML; empty where nothing is known."""
    return {
        "version": escape(_fact(page, "version")),
        "for": escape(_fact(page, "purpose")),
        "teacher": escape(_fact(page, "teacher")),
        "elements": " ".join(_symbols(page)),
        "licence of the weights": escape(_fact(page, "licence_weights")),
        "licence of the code": escape(_fact(page, "licence_code")),
        "commercial use": _commercial(page),
        "repository": _repository_link(page),
        "commit": f"<code>{escape(_fact(page, 'commit'))}</code>" if _fact(page, "commit") else "",
    }


def _repository_link(page: Page) -> str:
    hub, repository = _hub(page) or _DEFAULT_HUB, _fact(page, "repository")
    if _ADDRESS.fullmatch(hub) and is_repository_id(repository):
        return f'<a href="{hub.rstrip("/")}/{repository}" rel="noopener noreferrer">{repository}</a>'
    return escape(repository)


def _hub(page: Page) -> str:
    """The hub, where it is another than the default."""
    hub = _fact(page, "hub")
    return "" if hub.removeprefix("https://") == _DEFAULT_HUB.removeprefix("https://") else hub


def _load_command(page: Page) -> str:
    version, hub = _fact(page, "version"), _hub(page)
    revision = f"@{version}" if _REVISION.fullmatch(version) else ""
    secret = "://" in hub and not _ADDRESS.fullmatch(hub)  # an address may hold a password
    where = "" if secret or not hub else f", hub={json.dumps(hub, ensure_ascii=False)}"
    repository = _fact(page, "repository")
    owner = repository.partition("/")[0]
    if owner != DEFAULT_NAMESPACE and is_repository_id(repository):
        where += f', namespace="{owner}"'
    return f'import zoo\n\nengine = zoo.load("{page.name}{revision}"{where})'


def _body(page: Page, card: str, figures: Mapping[str, str]) -> str:
    try:
        tokens = parse_card_body(card)
    except ConfigError as error:  # one card that cannot be shown is no reason for no gallery
        return f"<p>This card is not shown: {escape(str(error))}</p>"
    parser = MarkdownIt("commonmark", {"html": False})
    drawn = [part for token in _without_title(tokens, page.name) for part in _drawn(token, figures)]
    return str(parser.renderer.render(drawn, parser.options, {}))


def _without_title(tokens: list[Token], name: str) -> list[Token]:
    """A card without its first line, where that is the name, which the page has above it already."""
    titled = len(tokens) > 1 and tokens[0].tag == "h1" and tokens[1].content == name
    return tokens[3:] if titled else tokens


def _drawn(token: Token, figures: Mapping[str, str]) -> Iterator[Token]:
    """A token as this site shows it: own figures, tables that scroll, and no style of its own."""
    if token.type == "image":
        yield _figure(token, figures.get(str(token.attrs.get("src"))))
        return
    if token.type == "table_open":
        yield _raw('<div class="wide">\n')
    children = [part for child in token.children for part in _drawn(child, figures)] if token.children else None
    attrs = {key: value for key, value in token.attrs.items() if key != "style"}
    if "right" in str(token.attrs.get("style")):
        attrs["class"] = "number"
    if token.type == "link_open":
        attrs["rel"] = "noopener noreferrer nofollow"
    tag = "h2" if token.tag == "h1" else token.tag
    yield replace(token, tag=tag, info="", attrs=attrs, children=children)  # the language would be a class
    if token.type == "table_close":
        yield _raw("</div>\n")


def _figure(token: Token, link: str | None) -> Token:
    caption = escape(token.content)
    if link is None:
        return _raw(f"[figure: {caption}]")
    return _raw(
        f'<span class="figure"><a href="{link}"><img src="{link}" alt="{caption}"></a>'
        f'<span class="caption">{caption}</span></span>'
    )


def _raw(html: str) -> Token:
    return Token("html_inline", "", 0, content=html)


def _figures(page: Page) -> list[tuple[str, str, bytes]]:
    """Of each figure the path in the card, the link from the page, and the image; none for what is no PNG image.

    The link's folder has a ``_`` in its name, as no engine has.
    """
    engine = page.name.partition("/")[2]
    for key in page.figures:
        if not _FIGURE.fullmatch(key):
            raise ConfigError(f"{page.name}: a figure {key[:_LONGEST]!r}; expected figures/NAME.png, leave it out")
    images = {key: _read_image(page.figures[key]) for key in sorted(page.figures)}
    return [(key, f"{engine}_{key}", image) for key, image in images.items() if image]


def _read_image(path: Path) -> bytes:
    content = path.read_bytes() if path.stat().st_size <= MAX_FIGURE_BYTES else b""
    return content if content.startswith(_PNG) else b""


# What a row says


def _safe(text: str) -> str:
    return escape(" ".join(printable(text).split())[:_LONGEST])


def _fact(page: Page, key: str) -> str:
    """A text of the row, on one line and not long; empty where it is no text."""
    value = page.row.get(key)
    return " ".join(printable(value).split())[:_LONGEST] if isinstance(value, str) else ""


def _symbols(page: Page) -> list[str]:
    value = page.row.get("elements")
    listed = value if isinstance(value, list | tuple) else ()
    return list(dict.fromkeys(symbol for symbol in listed if isinstance(symbol, str) and _SYMBOL.fullmatch(symbol)))


def _commercial(page: Page) -> str:
    value = page.row.get("commercial")
    return "unknown" if not isinstance(value, bool) else "yes" if value else "no"


def _metric(page: Page, key: str) -> float | None:
    metrics = page.row.get("metrics")
    return _number(metrics.get(key)) if isinstance(metrics, Mapping) else None


def _number(value: object) -> float | None:
    """A number that can be shown; None for anything else. NaN is below nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < _HUGE else None
