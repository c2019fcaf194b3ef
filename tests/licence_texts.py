"""Made-up texts in the place of those of licences that must be repeated: none of these is in the project."""

from pathlib import Path

from zoo.acceptance import text_path
from zoo.licences import TERMS

TEXT = """MADE-UP LICENCE FOR TESTS

1. Whoever passes it on, "changed" or not, passes on these words; trailing blanks too.  \nThat's all.

\ta) Use it well: no #harm, no ${harm}, no {harm}.
b) Say so – in a line that is longer than the width of a card, so that it is broken somewhere when it is quoted there.
"""


def save_text(spdx: str, text: str | bytes = TEXT) -> Path:
    """Puts the text of a licence where zoo looks for it."""
    path = text_path(TERMS[spdx])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
