"""Where data sets lie on this machine, and whether they are what they should be.

A file is ``<folder>/<source>/<file name>``, or a copy of one's own right in the folder. ``.zoo-digests.json`` in a
folder keeps the digests of what was verified there, so that it is read once, and those that nobody has published.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, NonNegativeInt

from zoo.config import Config, read_json, write_json
from zoo.data.download import check_digest, digest_of, download
from zoo.data.sources import Digest, Source, SourceFile, get_file, get_source
from zoo.errors import ConfigError, IntegrityError, UnknownNameError
from zoo.files import alone_in, cache_root

DATA_FOLDERS = "ZOO_DATA"  # the variable that names the folders of data sets
RECORDS = ".zoo-digests.json"  # in folders of the user too, where common names are taken


class Record(Config):
    """A digest that a file was seen to have, and which file that was; one that changed since is read again."""

    digest: Digest
    path: str
    bytes: NonNegativeInt
    modified: int  # ns
    accepted: bool = False  # by the user, against the digest that zoo has at third hand or of an earlier copy


class Records(Config):
    """``.zoo-digests.json``: by ``<source>/<file name>``."""

    files: dict[str, Record] = Field(default_factory=dict)


@dataclass(frozen=True)
class _Copy:
    """A file of a data set that lies in a folder of data sets."""

    source: Source
    key: str
    folder: Path
    path: Path

    @property
    def file(self) -> SourceFile:
        return self.source.files[self.key]

    @property
    def name(self) -> str:
        """As ``zoo data fetch`` takes it."""
        return f"{self.source.name} --file {self.key}"


def data_folders() -> list[Path]:
    """Where data sets are sought: the folders that ``ZOO_DATA`` names, then that of what zoo fetched."""
    given = os.environ.get(DATA_FOLDERS, "")
    own = [Path(folder).expanduser() for folder in given.split(os.pathsep) if folder]
    return [*own, fetched_folder()]


def fetched_folder() -> Path:
    """Where ``zoo data fetch`` puts files, unless it is told otherwise: ``data`` in zoo's cache."""
    return cache_root() / "data"


def find_file(source: Source | str, key: str) -> Path | None:
    """The first copy of a file in the folders of data sets, unverified. Raises UnknownNameError for no such file."""
    copy = _find(_named(source, key)[0], key, data_folders())
    return copy.path if copy else None


def locate(source: Source | str, key: str) -> Path:
    """The first copy of a file, verified; it is read for that once, and again when it changed.

    Raises UnknownNameError where there is none, IntegrityError where it is another file.
    """
    source, file = _named(source, key)
    copy = _find(source, key, data_folders())
    if copy is None:
        raise UnknownNameError(
            f"{file.name} of {source.name} is not in {', '.join(map(str, data_folders()))}; run: zoo data fetch "
            f"{source.name} --file {key}, or set {DATA_FOLDERS} to the folder that holds it"
        )
    return _verified(copy)


def fetch(
    source: Source | str,
    key: str,
    to: Path | None = None,
    *,
    accept_digest: bool = False,
    progress: bool = True,
) -> Path:
    """A verified file of a data set, downloaded unless it is here; ``to`` is the folder to have it in.

    ``accept_digest`` takes a file whose digest differs from one that zoo has at third hand, or from that of an earlier
    copy; never one that differs from what its publisher says. Raises what ``download`` and ``locate`` raise.
    """
    source, file = _named(source, key)
    found = _find(source, key, data_folders() if to is None else [to])
    if found is not None:
        return _verified(found, accept=accept_digest, progress=progress)
    folder = to or fetched_folder()
    copy = _Copy(source, key, folder, folder / source.name / file.name)
    expected = _expected(source, file)
    free = accept_digest and _may_differ(expected)
    download(
        file.urls,
        copy.path,
        size=None if free else file.binding_bytes,
        digest=None if free else expected,
        progress=progress,
        browser=file.browser,
        name=copy.name,
    )
    digest = digest_of(copy.path, progress=progress) if expected is None or free else expected
    _remember(copy, digest, accepted=free)
    return copy.path


def recorded(source: Source | str, key: str) -> Record | None:
    """What is on record of a file here: the digest of its first copy, or one that the user has accepted."""
    found = [record for _, record in _records(*_named(source, key))]
    return next((record for record in found if record.accepted), found[0] if found else None)


def _verified(copy: _Copy, *, accept: bool = False, progress: bool = True) -> Path:
    expected = _expected(copy.source, copy.file)
    if expected is not None and _is_on_record(copy, expected):
        return copy.path
    free = accept and _may_differ(expected)
    if expected is None or free:
        digest = digest_of(copy.path, progress=progress)
    else:
        _check_size(copy)
        check_digest(copy.path, expected, progress=progress, name=copy.name)
        digest = expected
    _remember(copy, digest, accepted=free)
    return copy.path


def _may_differ(expected: Digest | None) -> bool:
    """Whether the user can know better."""
    return expected is not None and expected.seen != "publisher"


def _expected(source: Source, file: SourceFile) -> Digest | None:
    """What a file must be: what the user accepted, else what is published, else what the first copy was."""
    records = [record for _, record in _records(source, file)]
    accepted = [record.digest for record in records if record.accepted]
    published = [file.digest] if file.digest is not None else []
    return next(iter([*accepted, *published, *(record.digest for record in records)]), None)


def _is_on_record(copy: _Copy, expected: Digest) -> bool:
    """Whether this very file was found to be right before."""
    status = copy.path.stat()
    now = (status.st_size, status.st_mtime_ns, expected.hex)
    return any(
        (record.bytes, record.modified, record.digest.hex) == now
        and (folder / record.path).resolve() == copy.path.resolve()
        for folder, record in _records(copy.source, copy.file)
    )


def _check_size(copy: _Copy) -> None:
    """Spares the reading of what cannot be right. Raises IntegrityError."""
    size, expected = copy.path.stat().st_size, copy.file.binding_bytes
    accepted = any(record.accepted for _, record in _records(copy.source, copy.file))
    if expected not in (None, size) and not accepted:
        raise IntegrityError(
            f"{copy.path} has {size:,} bytes, expected {expected:,}; remove it, and run: zoo data fetch {copy.name}"
        )


def _find(source: Source, key: str, folders: Sequence[Path]) -> _Copy | None:
    name = source.files[key].name
    places = [(folder, place) for folder in folders for place in (folder / source.name, folder)]
    found = [(folder, place / name) for folder, place in places if (place / name).is_file()]
    return _Copy(source, key, *found[0]) if found else None


def _named(source: Source | str, key: str) -> tuple[Source, SourceFile]:
    found = get_source(source) if isinstance(source, str) else source
    return found, get_file(found, key)


def _records(source: Source, file: SourceFile) -> Iterator[tuple[Path, Record]]:
    """What the folders have on record of a file, each with its folder."""
    for folder in data_folders():
        record = _read(folder).files.get(f"{source.name}/{file.name}")
        if record is not None:
            yield folder, record


def _read(folder: Path) -> Records:
    path = folder / RECORDS
    if not path.is_file():
        return Records()
    try:
        return read_json(Records, path)
    except ConfigError as error:
        raise IntegrityError(f"{error}; remove {path}, what is in its folder is then verified anew") from error


def _remember(copy: _Copy, digest: Digest, *, accepted: bool) -> None:
    """Writes a record beside the data, or where zoo keeps what it fetched if nobody may write there, or nowhere."""
    status, key = copy.path.stat(), f"{copy.source.name}/{copy.file.name}"
    known = (record for _, record in _records(copy.source, copy.file))
    accepted = accepted or any(record.accepted and record.digest == digest for record in known)
    for folder in dict.fromkeys([copy.folder, fetched_folder()]):
        path = copy.path.relative_to(folder) if folder == copy.folder else copy.path.resolve()
        record = Record(
            digest=digest, path=str(path), bytes=status.st_size, modified=status.st_mtime_ns, accepted=accepted
        )
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with alone_in(folder):
                write_json(folder / RECORDS, Records(files=_read(folder).files | {key: record}))
            if folder in data_folders():
                return
