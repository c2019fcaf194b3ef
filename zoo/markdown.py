"""Markdown of a stranger: bounded, parsed, and without what a terminal or a browser would obey."""

import re
from collections.abc import Iterator
from dataclasses import replace

from markdown_it import MarkdownIt
from markdown_it.token import Token

from zoo.errors import ConfigError
from zoo.hub.card_data import split_card

MAX_SHOWN = 256 << 10  # characters; a card has about ten thousand, and the worst of this size takes seconds

# All control characters but the newline, what turns or hides text, line ends of Unicode, and lone surrogates.
_INVISIBLE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_WEB = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)


def printable(text: str) -> str:
    """The text without control characters other than newlines, and without what turns or hides letters."""
    lines = text.replace("\r\n", "\n").expandtabs(4)
    return _INVISIBLE.sub("", lines)


def parse_card_body(markdown: str) -> list[Token]:
    """The tokens of a card without front matter: HTML is text, and only links to the web or to mail are links.

    Raises ConfigError for a card that is too long.
    """
    if len(markdown) > MAX_SHOWN:
        raise ConfigError(f"a card of {len(markdown)} characters; expected {MAX_SHOWN} at most, read the file itself")
    _, body = split_card(markdown)
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    return [_harmless(token) for token in parser.parse(body)]


def _harmless(token: Token) -> Token:
    """A token whose entities and percent signs spelled nothing that ``printable`` forbids."""
    attrs = {key: printable(value) if isinstance(value, str) else value for key, value in token.attrs.items()}
    children = list(_without_local_links(token.children)) if token.children else token.children
    return replace(token, content=printable(token.content), attrs=attrs, children=children)


def _without_local_links(tokens: list[Token]) -> Iterator[Token]:
    kept = True  # whether the link that is open leads to the web; links hold no links
    for token in tokens:
        if token.type == "link_open":
            kept = bool(_WEB.match(str(token.attrs.get("href", ""))))
        if kept or token.type not in ("link_open", "link_close"):
            yield _harmless(token)
