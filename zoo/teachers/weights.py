"""Weights of teachers on this disk: where they lie, what they must be, and teachers of one's own. Nothing is fetched.

Beside a file that was fetched lies its record, which says from where it came. Where no digest of it is known, the
record pins the file to what the first download was, or to what the user said that it is.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Never
from urllib.parse import urlsplit

from ase.data import chemical_symbols
from pydantic import AfterValidator, Field

from zoo.config import Config, read_json
from zoo.errors import ConfigError, IntegrityError, MissingPackageError
from zoo.files import cache_root, sha256_file
from zoo.naming import OWN, is_engine_name
from zoo.potential import Potential
from zoo.teachers.base import Teacher

FACTS = "teacher.json"  # what is recorded of one of these, beside its file

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|git:[0-9a-f]{40}")
_BLOCK = 1 << 20

Witness = Literal["publisher", "index", "here", "user"]  # index: at third hand; here: the first download
_WITNESS: dict[Witness, str] = {
    "publisher": " as published",
    "index": ", which zoo has from third hand, not from its publisher",
    "here": ", which was recorded at its first download",
    "user": " as you have accepted it",
}


@dataclass(frozen=True)
class Weights:
    """A file that a teacher is made from. Raises ConfigError where it is described as no file can be."""

    url: str
    digest: str | None = None  # "sha256:<hex>", or "git:<hex>", the id of git's blob; None where none was found
    size: int | None = None  # bytes
    gated: str | None = None  # the page where its terms are accepted first, which wants a token
    seen: Witness = "publisher"  # who says digest and size

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
    accepted: bool = False  # by the user, who may know better than third hands and first downloads


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

    @property
    def digest(self) -> str:
        """What tells this teacher from others: the SHA-256 of its file, of file and head where a head was chosen."""
        return self.sha256 if self.head is None else hashlib.sha256(f"{self.sha256} {self.head}".encode()).hexdigest()

    def teacher(self, potential: Potential, *, package: str) -> Teacher:
        """This teacher, of the potential that an adapter made of its file by a package; all of these are under MIT."""
        return Teacher(
            name=self.name,
            potential=potential,
            weights_sha256=self.digest,
            package=package,
            level_of_theory=self.level_of_theory,
            licence_code="MIT",
            licence_weights=self.licence,
            citation=self.citation,
        )


# --- what is fetched -----------------------------------------------------------------------------------


def weights_folder(name: str) -> Path:
    """Where the weights of a teacher are kept: ``teachers/<family>/<engine>`` in zoo's cache."""
    family, _, engine = name.partition("/")
    return cache_root() / "teachers" / family / engine


def weights_path(name: str, weights: Weights) -> Path:
    """Where the file of a teacher is put."""
    return weights_folder(name) / weights.file


class Found(NamedTuple):
    """A file of weights that is what it should be."""

    path: Path
    sha256: str  # hex


def find_weights(name: str, weights: Weights) -> Found:
    """The file of a teacher, its size and digest checked; one that another teacher of the family has fetched will do.

    Raises MissingPackageError where it was not fetched, IntegrityError where it is another file.
    """
    path = next(copies(name, weights), None)
    if path is None:
        raise MissingPackageError(f"the weights of {name} are not here; run: zoo teachers fetch {name}")
    due = weights_due(path, name, weights)
    if due.digest is None:
        raise IntegrityError(
            f"{path} has no record of what it is, and zoo knows no digest of it; to take it as it is, run: "
            f"zoo teachers fetch {name}"
        )
    return Found(path, check_weights(path, name, due))


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


def weights_due(path: Path, name: str, weights: Weights) -> Weights:
    """What a file must be: as published, else as the user has accepted it, else as third hands say, or as it came.

    Raises IntegrityError where nobody says it, and the file came from another address.
    """
    record = read_record(path)
    firm = weights.seen == "user" or (weights.seen == "publisher" and weights.digest is not None)
    if firm or record is None:
        return weights
    if record.url != weights.url and weights.digest is None and path.is_file():
        raise IntegrityError(
            f"{path} came from {record.url}, expected {weights.url}; remove it, and run: zoo teachers fetch {name}"
        )
    if record.url != weights.url or (weights.digest is not None and not record.accepted):
        return weights
    return replace(weights, digest=record.digest, size=record.size, seen="user" if record.accepted else "here")


def check_weights(path: Path, name: str, weights: Weights) -> str:
    """The SHA-256 of a file of this size and digest, as far as they are known. Raises IntegrityError for another."""
    sha256, wrong = compare(path, weights)
    if wrong is None:
        return sha256
    remedy = f"remove it, and run: zoo teachers fetch {name}"
    if weights.seen != "publisher":
        remedy += f", or, if you know it to be right, run: {accepting(name, sha256)}"
    raise IntegrityError(f"{path} has {wrong}; it was not opened, {remedy}")


def accepting(name: str, sha256: str) -> str:
    """The command by which a user takes a file that is not as zoo knows it."""
    return f"zoo teachers fetch {name} --accept-digest sha256:{sha256}"


def compare(path: Path, weights: Weights) -> tuple[str, str | None]:
    """The SHA-256 of a file, and for messages how it differs from what it should be; it is read once, as a stream.

    One of another size than its publisher says is not read.
    """
    size, other = path.stat().st_size, weights.size not in (None, path.stat().st_size)
    if other and (weights.seen == "publisher" or weights.digest is None):
        return "", f"{size:,} bytes, expected {weights.size:,}{_WITNESS[weights.seen]}"
    found = digests_of(path, git=(weights.digest or "").startswith("git:"))
    sha256 = found[0].removeprefix("sha256:")
    if not other and weights.digest in (None, found[-1]):
        return sha256, None
    sizes = (f"{size:,} bytes and ", f"{weights.size:,} bytes and ") if other else ("", "")
    return sha256, f"{sizes[0]}{found[-1]}, expected {sizes[1]}{weights.digest}{_WITNESS[weights.seen]}"


def digests_of(path: Path, *, git: bool = False) -> list[str]:
    """``sha256:<hex>`` of a file, then, where it is asked for, ``git:<hex>``, the id of its blob."""
    contents = {"sha256": hashlib.sha256()}
    if git:
        contents["git"] = hashlib.sha1(b"blob %d\x00" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            for content in contents.values():
                content.update(block)
    return [f"{kind}:{content.hexdigest()}" for kind, content in contents.items()]


def record_path(path: Path) -> Path:
    """Where the record of a file lies."""
    return path.with_name(f"{path.name}.json")


def read_record(path: Path) -> Record | None:
    """What is on record of a file; None where nothing is, or nothing that can be read."""
    try:
        return read_json(Record, record_path(path))
    except ConfigError:
        return None


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
