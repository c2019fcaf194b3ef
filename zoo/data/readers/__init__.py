"""Readers of data sets, one a format: frames one at a time, in eV and Å, each checked; no pickle is ever opened."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from zoo.data.frame import Frame
from zoo.data.readers.ase_db import read_ase_db
from zoo.data.readers.base import Origin
from zoo.data.readers.deepmd import read_deepmd
from zoo.data.readers.extxyz import read_extxyz
from zoo.data.readers.lmdb import read_lmdb
from zoo.data.readers.mptrj import read_mptrj_json
from zoo.data.readers.npz import read_rmd17, read_sgdml
from zoo.data.readers.phonopy import read_phonopy
from zoo.data.readers.spice import read_spice
from zoo.errors import ConfigError, IntegrityError, UnknownNameError


@dataclass(frozen=True)
class Format:
    """How files of a format are read, and whether archives of them are."""

    read: Callable[[Origin], Generator[Frame]]
    archives: bool = False
    folders: bool = False


FORMATS = {
    "extxyz": Format(read_extxyz, archives=True),
    "sgdml": Format(read_sgdml, archives=True),
    "rmd17": Format(read_rmd17, archives=True),
    "spice": Format(read_spice),
    "mptrj-json": Format(read_mptrj_json, archives=True),
    "ase-db": Format(read_ase_db),
    "lmdb": Format(read_lmdb, folders=True),
    "deepmd": Format(read_deepmd, folders=True),
    "phonopy": Format(read_phonopy, archives=True),
}


def read_frames(path: Path, format: str, *, members: str | None = None, name: str | None = None) -> Iterator[Frame]:
    """The frames of a file or folder of a format, one at a time, labels in eV and Å in float64.

    ``members`` is a glob for the members of an archive that are read; ``name`` stands for the file's name in the
    places of frames, and for that of a molecule whose file names none. Raises ConfigError for a format that is none,
    UnknownNameError for a file that is not there, IntegrityError for one that is cut short or not of its format,
    LabelError for labels that are not finite numbers, MissingPackageError.
    """
    if format not in FORMATS:
        raise ConfigError(f"format {format!r} is unknown; known are {', '.join(FORMATS)}")
    if members is not None and not FORMATS[format].archives:
        raise ConfigError(f"format {format} is not read from archives; remove members {members!r}")
    if not path.exists():
        raise UnknownNameError(f"there is no file {path}; give the path of one of the format {format}")
    if path.is_dir() and not FORMATS[format].folders:
        raise ConfigError(f"{path} is a folder, and {format} is read from files; give a file")
    return _frames(FORMATS[format], Origin(path, name or path.name, name, members))


def _frames(form: Format, origin: Origin) -> Iterator[Frame]:
    count = 0
    with closing(form.read(origin)) as frames:
        for frame in frames:
            yield frame
            count += 1
    if count == 0:
        raise IntegrityError(f"{origin.label} holds no frame; give another file, or the format that it has")
