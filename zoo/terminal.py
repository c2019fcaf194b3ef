"""A card on a terminal, where no character of its author can do more than be read."""

from dataclasses import replace
from typing import ClassVar

from markdown_it.token import Token
from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement, TableElement
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

from zoo.markdown import parse_card_body

_NARROWEST, _WIDEST = 20, 1000  # columns
_LANGUAGES = frozenset({"bash", "console", "json", "python", "text", "toml", "yaml"})
_MAX_COLOURED = 4000  # characters of code; the time of some lexers grows with their square
_THEME = Theme({"markdown.h1": "bold", "markdown.h2": "bold", "markdown.h3": "bold", "markdown.code": "cyan"})


def card_text(markdown: str, width: int, *, colour: bool) -> str:
    """A card for a terminal of ``width`` columns. Raises ConfigError for one that is too long.

    Front matter is left out, figures are named. Without colour the text holds no escape at all, and code in a line
    keeps its backticks.
    """
    document = _Document([_in_words(token, colour) for token in parse_card_body(markdown)])
    console = Console(
        width=max(_NARROWEST, min(width, _WIDEST)),
        color_system=None,  # _painted colours
        force_terminal=False,
        force_jupyter=False,
        legacy_windows=False,
        theme=_THEME,
    )
    lines = console.render_lines(document, console.options, pad=False)
    return "\n".join(_line(segments, colour) for segments in lines).strip("\n") + "\n"


def _line(segments: list[Segment], colour: bool) -> str:
    text = "".join(_painted(segment, colour) for segment in segments if not segment.control)
    return text.rstrip()


def _painted(segment: Segment, colour: bool) -> str:
    if not (colour and segment.style and segment.text.strip()):
        return segment.text
    return segment.style.render(segment.text, color_system=ColorSystem.STANDARD)


def _in_words(token: Token, colour: bool) -> Token:
    """A token that names what a terminal cannot show: figures, and code where there is no colour."""
    if token.type == "image":
        return Token("text", "", 0, content=f"[figure: {token.content} ({token.attrs.get('src', '')})]")
    if token.type == "code_inline" and not colour:
        return Token("text", "", 0, content=f"`{token.content}`")
    children = [_in_words(child, colour) for child in token.children] if token.children else token.children
    return replace(token, children=children)


class _Heading(Heading):
    """A heading that is one without colour too: on the left, with a line under the first two levels."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text
        underline = {"h1": "═", "h2": "─"}.get(self.tag)
        if underline:
            yield Text(underline * min(cell_len(self.text.plain), options.max_width))


class _CodeBlock(CodeBlock):
    """Code in the colours of the terminal, where it is short and of a language that a card needs."""

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> "_CodeBlock":
        language = token.info.partition(" ")[0]
        known = language in _LANGUAGES and len(token.content) <= _MAX_COLOURED
        return cls(language if known else "text", markdown.code_theme)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        if self.lexer_name == "text":
            yield Text(code, overflow="fold")
        else:
            yield Syntax(code, self.lexer_name, theme=self.theme, word_wrap=True, background_color="default")


class _Table(TableElement):
    """A table; where its longest words do not fit beside each other, its rows one after another."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        heads = [cell.content for cell in self.header.row.cells] if self.header and self.header.row else []
        rows = [[cell.content for cell in row.cells] for row in self.body.rows] if self.body else []
        columns = list(zip(heads, *rows, strict=False))
        if sum(max(map(_longest_word, column)) + 2 for column in columns) <= options.max_width:
            for cell in (cell for column in columns for cell in column):
                cell.overflow = "fold"  # rich would cut the end off
            yield from super().__rich_console__(console, options)
        else:
            for row in rows:
                yield _record(heads, row)


def _record(heads: list[Text], row: list[Text]) -> Text:
    """One row of a table as lines of ``head: cell``."""
    lines = []
    for head, cell in zip(heads, row, strict=False):
        bold = Text(head.plain or cell.plain, style="bold")
        lines.append(Text.assemble(bold, ": ", cell) if head.plain else bold)
    return Text("\n", overflow="fold").join([*lines, Text("")])


def _longest_word(text: Text) -> int:
    return max(map(cell_len, text.plain.split()), default=0)


class _Document(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _CodeBlock,
        "code_block": _CodeBlock,
        "table_open": _Table,
    }

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__("", code_theme="ansi_dark", hyperlinks=False)
        self.parsed = tokens
