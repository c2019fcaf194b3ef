"""The data sets that zoo can fetch and read: where they are, what they weigh, and under which terms."""

from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from zoo.config import Config, read_yaml
from zoo.errors import UnknownNameError
from zoo.licences import LICENCES, UNSTATED

_KEY = r"^[a-z0-9.]+(-[a-z0-9.]+)*$"
_SHARED = ("urls", "bytes", "bytes_seen", "digest", "browser")  # by what is one file on disk
_DIGITS = {"md5": 32, "sha256": 64}  # of a digest in hex


class Digest(Config):
    """What a file must be, and who says so: its publisher, somebody at third hand, or the first copy seen here."""

    algorithm: Literal["md5", "sha256"]
    hex: str = Field(pattern=r"^[0-9a-f]+$")
    seen: Literal["publisher", "index", "here"] = "publisher"

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(self.hex) != _DIGITS[self.algorithm]:
            raise ValueError(f"{self.algorithm} has {_DIGITS[self.algorithm]} hex digits, not {len(self.hex)}")
        return self

    def __str__(self) -> str:
        return f"{self.algorithm} {self.hex}"


class SourceFile(Config):
    """A file of a source; files with the same name are one file on disk, of which each reads its own members."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")  # on disk
    urls: tuple[str, ...] = Field(min_length=1)  # of the same content, the best first
    bytes: PositiveInt | None = None
    bytes_seen: Literal["publisher", "index"] = "publisher"
    digest: Digest | None = None
    members: str | None = None  # of an archive, those to read: a pattern as of a shell
    frames: PositiveInt | None = None
    atoms: PositiveInt | None = None  # of each frame
    browser: bool = False  # its server wants to be asked as by a browser

    @property
    def binding_bytes(self) -> int | None:
        """The size that it must have: one at third hand binds nobody."""
        return self.bytes if self.bytes_seen == "publisher" else None

    @model_validator(mode="after")
    def _lawful(self) -> Self:
        strange = [url for url in self.urls if not url.startswith(("http://", "https://"))]
        if strange:
            raise ValueError(f"{strange[0]!r} is no http or https address")
        if self.bytes is None and self.bytes_seen == "index":
            raise ValueError(f"{self.name}: bytes_seen without bytes")
        if self.digest is not None and self.digest.seen == "here":
            raise ValueError(f"{self.name}: a digest that was seen here belongs to this machine, not to the table")
        return self


class Source(Config):
    """A data set."""

    name: str = Field(pattern=_KEY)
    title: str = Field(min_length=1)
    format: Literal["extxyz", "sgdml", "rmd17", "spice", "mptrj-json"]  # how its files are read
    licence: str  # SPDX
    licence_note: str | None = None
    licence_url: str
    citation: str
    level_of_theory: str
    units: str  # of the files: energy, length; what is read from them is in eV and Å
    files: dict[str, SourceFile] = Field(min_length=1)

    @property
    def on_disk(self) -> dict[str, SourceFile]:
        """One key for each file on disk."""
        names: dict[str, str] = {}
        for key, file in self.files.items():
            names.setdefault(file.name, key)
        return {key: self.files[key] for key in names.values()}

    @model_validator(mode="after")
    def _lawful(self) -> Self:
        if self.licence not in (*LICENCES, UNSTATED):
            raise ValueError(f"licence {self.licence!r} is unknown; known are {', '.join(LICENCES)}, {UNSTATED}")
        for key, file in self.files.items():
            same = self.files[next(other for other in self.files if self.files[other].name == file.name)]
            if any(getattr(file, part) != getattr(same, part) for part in _SHARED):
                raise ValueError(f"file {key} is {file.name}, which another file says otherwise of")
        return self


class Sources(Config):
    """All data sets, in the order in which they are shown."""

    sources: tuple[Source, ...]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"a name is given twice: {', '.join(twice)}")
        return self


@cache
def sources() -> dict[str, Source]:
    """The data sets that zoo knows, by name."""
    table = read_yaml(Sources, Path(__file__).with_name("sources.yaml"))
    return {source.name: source for source in table.sources}


def get_source(name: str) -> Source:
    """A data set by name. Raises UnknownNameError with the nearest names."""
    if name not in sources():
        raise UnknownNameError(f"{name!r} is no data set of zoo; {_nearest(name, list(sources()))}")
    return sources()[name]


def get_file(source: Source, key: str) -> SourceFile:
    """A file of a data set by its key. Raises UnknownNameError with the nearest keys."""
    if key not in source.files:
        raise UnknownNameError(f"{source.name} has no file {key!r}; {_nearest(key, list(source.files))}")
    return source.files[key]


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"nearest: {', '.join(near)}" if near else f"known: {', '.join(known)}"
