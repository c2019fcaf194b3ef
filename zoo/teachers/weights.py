"""Weights of teachers on this disk: where they lie, what they must be, and teachers of one's own. Nothing is fetched.

Beside a file that was fetched lies its record, which says from where it came. Where nobody publishes a digest, the
record pins the file to what the first download was.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Never
from urllib.parse import urlsplit

from ase.data import chemical_symbols
from pydantic import AfterValidator, Field

from zoo.config import Config, read_json
from zoo.errors import ConfigError, IntegrityError, MissingPackageError
from zoo.files import cache_root, sha256_file
from zoo.naming import OWN, is_engine_name

FACTS = "teacher.json"  # what is recorded of one of these, beside its file

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|git:[0-9a-f]{40}")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Weights:
    """A file that a teacher is made from. Raises ConfigError where it is described as no file can be."""

    url: str
    digest: str | None = None  # "sha256:<hex>", or "git:<hex>", the id of git's blob; None where nobody publishes one
    size: int | None = None  # bytes
    gated: str | None = None  # the page where its terms are accepted first, which wants a token

    def __post_init__(self) -> None:
        if self.digest is not None and not _DIGEST.fullmatch(self.digest):
            raise ConfigError(f"digest {self.digest!r}; expected sha256: and 64 hex digits, or git: and 40")
        if not self.url.startswith(("http://", "https://")) or not self.file:
            raise ConfigError(f"weights at {self.url!r}; expected an http or https address of a file")

    @property
    def file(self) -> str:
        """What it is called on disk."""
        return urlsplit(self.url).path.rpartition("/")[2]


class Record(Config):
    """``FILE.json``: what was fetched, and from where."""

    url: str
    digest: str = Field(pattern=f"^({_DIGEST.pattern})$")
    size: int = Field(ge=0)  # bytes


def _known(symbols: tuple[str, ...]) -> tuple[str, ...]:
    strange = sorted(set(symbols) - set(chemical_symbols[1:]))
    if strange:
        raise ValueError(f"{strange[0]!r} is not an element")
    return symbols


class OwnTeacher(Config):
    """A file of weights that the user has added, as ``zoo teachers add`` recorded it."""

    name: str  # own/<engine>
    family: str  # whose adapter opens it: "mace"
    file: str = Field(pattern=r"^[^/\\\x00-\x1f]+$")  # its name in the folder of the teacher
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    elements: Annotated[tuple[str, ...], AfterValidator(_known)]  # symbols; none before it was opened once
    licence: str  # SPDX
    level_of_theory: str
    citation: str = ""
    head: str | None = None  # of a file with several: a modality, a head, a task


# --- what is fetched -----------------------------------------------------------------------------------


def weights_folder(name: str) -> Path:
    """Where the weights of a teacher are kept: ``teachers/<family>/<engine>`` in zoo's cache."""
    family, _, engine = name.partition("/")
    return cache_root() / "teachers" / family / engine


def weights_path(name: str, weights: Weights) -> Path:
    """Where the file of a teacher is put."""
    return weights_folder(name) / weights.file


def find_weights(name: str, weights: Weights) -> Path:
    """The file of a teacher, its size and digest checked; one that another teacher of the family has fetched will do.

    Raises MissingPackageError where it was not fetched, IntegrityError where it is another file.
    """
    path = next(copies(name, weights), None)
    if path is None:
        raise MissingPackageError(f"the weights of {name} are not here; run: zoo teachers fetch {name}")
    check_weights(path, name, weights)
    return path


def copies(name: str, weights: Weights) -> Iterator[Path]:
    """The files of a teacher that are here, unchecked: its own, then those fetched from there for others of its family.

    Teachers of one family may be one file, of which each takes another part.
    """
    own = weights_path(name, weights)
    if own.is_file():
        yield own
    for path in sorted(own.parent.parent.glob(f"*/{own.name}")) if own.parent.parent.is_dir() else ():
        record = read_record(path)
        if path != own and path.is_file() and record is not None and record.url == weights.url:
            yield path


def check_weights(path: Path, name: str, weights: Weights) -> None:
    """Raises IntegrityError where a file is not what its publisher says, or, if he says nothing, what came first."""
    again = f"remove it, and run: zoo teachers fetch {name}"
    size = path.stat().st_size
    if weights.size not in (None, size):
        raise IntegrityError(f"{path} has {size:,} bytes, expected {weights.size:,}; it was not opened, {again}")
    expected = weights.digest
    if expected is None:
        expected = _pinned(path, name, weights)
    found = digest_of(path, expected)
    if found == expected:
        return
    if weights.digest is not None:
        raise IntegrityError(f"{path} has {found}, expected {expected} as published; it was not opened, {again}")
    raise IntegrityError(
        f"{path} has {found}, expected {expected}, which was recorded at its first download; it was not opened, "
        f"{again}, or, if you know why it changed, remove {record_path(path)} alone, and run the same"
    )


def _pinned(path: Path, name: str, weights: Weights) -> str:
    """The digest that was recorded of a file of which nobody publishes one. Raises IntegrityError."""
    record = read_record(path)
    if record is None:
        raise IntegrityError(
            f"{path} has no record of what it is, and nobody publishes its digest; to take it as it is, run: "
            f"zoo teachers fetch {name}"
        )
    if record.url != weights.url:
        raise IntegrityError(
            f"{path} came from {record.url}, expected {weights.url}; remove it, and run: zoo teachers fetch {name}"
        )
    return record.digest


def record_path(path: Path) -> Path:
    """Where the record of a file lies."""
    return path.with_name(f"{path.name}.json")


def read_record(path: Path) -> Record | None:
    """What is on record of a file; None where nothing is, or nothing that can be read."""
    try:
        return read_json(Record, record_path(path))
    except ConfigError:
        return None


def digest_of(path: Path, like: str = "sha256:") -> str:
    """The digest of a file, of the same kind as ``like``, read as a stream."""
    if like.startswith("sha256:"):
        return f"sha256:{sha256_file(path)}"
    content = hashlib.sha1(b"blob %d\x00" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            content.update(block)
    return f"git:{content.hexdigest()}"


# --- teachers of one's own -----------------------------------------------------------------------------


def is_own(name: str) -> bool:
    """Whether this is the name of a teacher of one's own, ``own/<engine>``."""
    return name.startswith(f"{OWN}/") and is_engine_name(name)


def own_teacher(name: str) -> OwnTeacher | None:
    """What is recorded of a teacher of one's own; None where nothing is. Raises ConfigError."""
    path = weights_folder(name) / FACTS
    if not is_own(name) or not path.is_file():
        return None
    facts = read_json(OwnTeacher, path)
    if facts.name != name:
        _other(path, facts, name)
    return facts


def _other(path: Path, facts: OwnTeacher, name: str) -> Never:
    raise ConfigError(
        f"{path} is of {facts.name}, expected {name}; remove its folder, and run: zoo teachers add {name} FILE"
    )


def own_teachers() -> tuple[OwnTeacher, ...]:
    """All teachers of one's own that are here, by name. Raises ConfigError for a record that cannot be read."""
    folder = cache_root() / "teachers" / OWN
    names = [f"{OWN}/{path.parent.name}" for path in sorted(folder.glob(f"*/{FACTS}"))] if folder.is_dir() else []
    return tuple(facts for facts in map(own_teacher, names) if facts is not None)


def find_own(facts: OwnTeacher) -> Path:
    """The file of a teacher of one's own, its digest checked. Raises IntegrityError."""
    path = weights_folder(facts.name) / facts.file
    again = f"remove {path.parent}, and run: zoo teachers add {facts.name} FILE"
    if not path.is_file():
        raise IntegrityError(f"{path} is missing; {again}")
    found = sha256_file(path)
    if found != facts.sha256:
        raise IntegrityError(
            f"{path} has the digest {found[:12]}…, {FACTS} says {facts.sha256[:12]}…; it was not opened, {again}"
        )
    return path
