"""JSON of any length, ``{key: {key: {…}}}``, of which one innermost object at a time is in memory."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

_BLOCK = 4 << 20  # bytes that are read at once
_LONGEST = 1 << 16  # more than a key, a number or a text of a record has
_KEY = re.compile(r'\s*,?\s*(?:"(?P<key>(?:[^"\\]|\\.)*)"\s*:\s*|(?P<end>\}))')
_OPEN = re.compile(r"\s*\{")


def records(stream: BinaryIO) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Outer key, inner key, object. Raises EOFError where the text ends too early, ValueError where it is another."""
    text = _Text(stream)
    text.open()
    while (outer := text.key()) is not None:
        text.open()
        while (inner := text.key()) is not None:
            yield outer, inner, text.value()
    if text.rest().strip():
        raise ValueError("something follows the last brace")


class _Text:
    """A window on the text, which is read once, from its begin to its end."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._parse = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._ended = False

    def open(self) -> None:
        self._token(_OPEN, "{")

    def key(self) -> str | None:
        """The next key, or None where the object ends."""
        found = self._token(_KEY, "a key or }")
        return None if found["key"] is None else str(json.loads(f'"{found["key"]}"'))

    def value(self) -> dict[str, Any]:
        """The object that stands here."""
        if not self.rest(1).startswith("{"):
            raise ValueError(f"expected an object, got {self.rest(40)!r}")
        while True:
            try:
                value, self._at = self._parse(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) - error.pos > _LONGEST:  # not for want of text
                    raise ValueError(f"{error.msg} at {self._text[error.pos : error.pos + 40]!r}") from error
                if not self._more():
                    raise EOFError("the file ends within an object") from error
            else:
                assert isinstance(value, dict)
                return value

    def rest(self, least: int = _LONGEST) -> str:
        """What comes, so many characters unless the text ends before."""
        while len(self._text) - self._at < least and self._more():
            pass
        return self._text[self._at : self._at + least]

    def _token(self, pattern: re.Pattern[str], name: str) -> re.Match[str]:
        if len(self._text) - self._at < _LONGEST:
            self.rest()
        found = pattern.match(self._text, self._at)
        if found is None:
            if not self.rest().strip():
                raise EOFError(f"the file ends where {name} should be")
            raise ValueError(f"expected {name}, got {self.rest(40)!r}")
        self._at = found.end()
        return found

    def _more(self) -> bool:
        """Reads on, and forgets what was used."""
        if self._ended:
            return False
        block = self._stream.read(_BLOCK)
        self._ended = not block
        self._text = self._text[self._at :] + self._decoder.decode(block, final=self._ended)
        self._at = 0
        return True
