"""Files as streams of bytes: plain, compressed, or members of archives, which are read where they are.

What a file is, its first bytes tell, not its name.
"""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from zoo.data.readers.base import Origin, broken
from zoo.errors import ConfigError, IntegrityError

BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
_ZIP = b"PK\x03\x04"
_TAR = slice(257, 262)  # where a tar file says ustar
_COMPRESSED: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
)
_BUFFER = 1 << 20
_NAMED = 3  # members that an error names


@dataclass(frozen=True)
class Stream:
    """A file or a member of an archive, open until the next one is asked for."""

    label: str
    stem: str  # its name without folder and endings
    bytes: BinaryIO
    member: bool


def streams(origin: Origin, endings: tuple[str, ...]) -> Generator[Stream]:
    """The file, or each member of the archive that it is.

    Members are those that the origin's glob names, else those with one of the endings, compressed or not. Raises
    ConfigError where a glob fits no member, or is given for what is no archive, IntegrityError for what is cut short.
    """
    with broken(origin.label, "a file or an archive", *BROKEN), origin.path.open("rb") as file:
        if file.read(4) == _ZIP and not _is_npz(origin.path):
            found = _zipped(origin, endings)
        else:
            file.seek(0)
            found = _plain_or_tarred(origin, cast(BinaryIO, file), endings)
        yield from found


def _is_npz(path: Path) -> bool:
    """Whether a zip file is one of numpy's, which is read as a file."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def _plain_or_tarred(origin: Origin, file: BinaryIO, endings: tuple[str, ...]) -> Iterator[Stream]:
    with _decompressed(file) as stream:
        if stream.peek(512)[_TAR] == b"ustar":
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                yield from _tarred(origin, archive, endings)
        elif origin.members is not None:
            raise ConfigError(
                f"{origin.label} is no archive, but members {origin.members!r} are asked of it; remove members"
            )
        else:
            yield Stream(origin.label, _stem(origin.path.name), cast(BinaryIO, stream), member=False)


def _zipped(origin: Origin, endings: tuple[str, ...]) -> Iterator[Stream]:
    with zipfile.ZipFile(origin.path) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        chosen = [entry for entry in entries if _is_chosen(origin, entry.filename, endings)]
        _check_any(origin, len(chosen), [entry.filename for entry in entries], endings)
        for entry in chosen:
            if entry.flag_bits & 1:
                raise IntegrityError(f"{entry.filename} of {origin.label} is encrypted; decrypt it first")
            with archive.open(entry) as file, _decompressed(cast(BinaryIO, file)) as stream:
                yield _member(origin, entry.filename, stream)


def _tarred(origin: Origin, archive: tarfile.TarFile, endings: tuple[str, ...]) -> Iterator[Stream]:
    names: list[str] = []
    count = 0
    for entry in archive:
        if not entry.isfile():
            continue
        names = [*names, entry.name][: _NAMED + 1]
        if not _is_chosen(origin, entry.name, endings):
            continue
        count += 1
        file = archive.extractfile(entry)
        assert file is not None
        with _decompressed(cast(BinaryIO, file)) as stream:
            yield _member(origin, entry.name, stream)
    _check_any(origin, count, names, endings)


def _member(origin: Origin, name: str, stream: io.BufferedReader) -> Stream:
    file = PurePosixPath(name).name
    return Stream(f"{file} of {origin.label}", _stem(file), cast(BinaryIO, stream), member=True)


def _is_chosen(origin: Origin, name: str, endings: tuple[str, ...]) -> bool:
    if origin.members is not None:
        return fnmatchcase(name, origin.members) or fnmatchcase(PurePosixPath(name).name, origin.members)
    file = PurePosixPath(name).name
    if file.startswith("._") or name.startswith("__MACOSX/"):
        return False
    for ending in (".gz", ".bz2", ".xz"):
        file = file.removesuffix(ending)
    return file.endswith(endings)


def _check_any(origin: Origin, count: int, names: list[str], endings: tuple[str, ...]) -> None:
    if count:
        return
    wanted = origin.members if origin.members is not None else " or ".join(f"*{ending}" for ending in endings)
    held = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    raise ConfigError(f"{origin.label} has no member {wanted}; it has {held or 'none'}: give members that it has")


def _stem(name: str) -> str:
    return name.split(".", 1)[0] or name


@contextmanager
def _decompressed(file: BinaryIO) -> Iterator[io.BufferedReader]:
    """The stream as it was before it was compressed, if it was. Closes what it opens, not the file."""
    source: Any = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, file))
    head = source.peek(6)[:6]
    opener = next((opener for magic, opener in _COMPRESSED if head.startswith(magic)), None)
    if opener is None:
        yield source
        return
    with io.BufferedReader(opener(source), _BUFFER) as stream:
        yield stream
