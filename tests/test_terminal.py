"""A card on a terminal shows all that it says, and nothing that it says is obeyed."""

import re
import time
import unicodedata

import pytest
from rich.cells import cell_len

from zoo.errors import ConfigError
from zoo.markdown import MAX_SHOWN, printable
from zoo.terminal import card_text

CARD = """---
license: mit
zoo:
  name: family/student
---

# family/student

A `painn` student, **fast**, see [the paper](https://example.org/paper) and [the recipe](recipe.yaml).

```python
engine = zoo.load("family/student")
```

|                     |   teacher | student |
| ------------------- | --------: | ------: |
| force error (meV/Å) | reference |   114.4 |

| lineage  |                    |
| -------- | ------------------ |
| SHA-256 of the recipe | `0123456789abcdef` |

![Forces of the test set.](figures/force_parity.png)

- one
- two
"""
_SGR = re.compile(r"\x1b\[[0-9;]*m")


def _controls(text: str) -> set[str]:
    return {letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf", "Cs")} - {"\n"}


def test_a_card_is_shown_without_front_matter_and_with_its_figures_named() -> None:
    text = card_text(CARD, 80, colour=False)
    lines = text.splitlines()
    assert lines[:2] == ["family/student", "══════════════"]
    assert "license" not in text
    assert "A `painn` student, fast, see the paper (https://example.org/paper) and the" in lines
    assert "recipe." in lines
    assert 'engine = zoo.load("family/student")' in lines
    assert "[figure: Forces of the test set. (figures/force_parity.png)]" in lines
    assert any(re.fullmatch(r" *force error \(meV/Å\) +reference +114\.4 *", line) for line in lines)
    assert " • two" in lines


def test_colour_is_all_that_differs() -> None:
    plain, coloured = (card_text(CARD, 100, colour=colour) for colour in (False, True))
    assert _controls(plain) == set()
    assert _SGR.search(coloured)
    assert re.sub(r"[\s─━]+", " ", _SGR.sub("", coloured)) == re.sub(r"[\s─━]+", " ", plain.replace("`", ""))


@pytest.mark.parametrize("width", [0, 20, 33, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal_and_no_letter_is_lost(width: int) -> None:
    digest = "0123456789abcdef" * 4
    text = card_text(CARD.replace("0123456789abcdef", digest), width, colour=False)
    assert max(map(cell_len, text.splitlines())) <= max(width, 20)
    assert digest in re.sub(r"[`\s]", "", text)
    assert "114.4" in text
    assert "…" not in text


def test_the_rows_of_a_table_that_is_too_wide_follow_one_another() -> None:
    table = f"| engine | {'a' * 15} | {'b' * 15} |\n| - | - | - |\n| one | 1.5 | 2.5 |\n"
    assert card_text(table, 30, colour=False) == f"engine: one\n{'a' * 15}: 1.5\n{'b' * 15}: 2.5\n"


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize(
    "hostile",
    [
        "\x1b[2J\x1b]0;title\x07",
        "\x9b31m \x90 \x85",
        "a\rb\bc\fd\ve\x00f\x7f",
        "&#x202e; &#27;[31m &#x9b; &#13; &#12; &zwj; &#x2066;",
        "<https://example.org/%1b%5b31m%e2%80%ae>",
        "[x](https://example.org/%1b[31m '\x1b[31m')",
        "![\x1b[31m&#x202e;](figures/\u202e.png)",
        "`\x1b[31m`",
        "```python\nx = '\x1b[31m\u202e'\n```",
        "```\x1b[31m&#x202e;\nx\n```",
        "|\x1b[31m|\n|-|\n|&#x202e;\x9b|",
        "\u202a \u202e \u2066 \u2069 \u200f \u061c \u2028 \u2029 \ufeff \U000e0041 \ud800",
        "---\n\x1b[31m: \u202e\n---\n\x1b[31mbody",
    ],
)
def test_no_control_character_of_a_card_reaches_the_terminal(hostile: str, colour: bool) -> None:
    text = card_text(f"{hostile}\n\nlast words {hostile}", 80, colour=colour)
    assert _controls(_SGR.sub("", text) if colour else text) == set()
    assert "31m" not in "".join(_SGR.findall(text))
    text.encode()


def test_printable_text_keeps_its_lines_and_columns() -> None:
    assert printable("a\r\nb\tc\n√Å漢🙂") == "a\nb   c\n√Å漢🙂"


def test_html_and_links_that_lead_elsewhere_are_text() -> None:
    card = "<b onclick='x'>bold</b> <kbd></kbd></kbd> [a](javascript:x) [b](../x)"
    assert card_text(card, 80, colour=False) == card.replace("[b](../x)", "b") + "\n"


@pytest.mark.parametrize(
    "piece", [">", "[", "![", "](a)", "- ", "> - ", "*", "_a", "`", "|", "<", "&", "\\", "#", "~", "[a]: b\n"]
)
def test_deep_and_endless_nesting_ends(piece: str) -> None:
    start = time.perf_counter()
    card_text(piece * 10_000, 80, colour=True)
    card_text("![" * 10_000 + "](a)" * 10_000, 20, colour=False)
    assert time.perf_counter() - start < 20


def test_long_code_is_not_coloured_as_a_lexer_would_take_minutes() -> None:
    start = time.perf_counter()
    text = card_text("```python\n" + "\n " * 20_000 + "x = 1\n```", 80, colour=True)
    assert text.strip() == "x = 1"
    assert time.perf_counter() - start < 10


def test_a_card_that_is_too_long_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a card of \d+ characters; expected \d+ at most"):
        card_text("a" * (MAX_SHOWN + 1), 80, colour=False)


def test_an_empty_card_is_an_empty_line() -> None:
    assert card_text("", 80, colour=False) == "\n"
