"""Checkpoints of PyTorch Lightning, opened so that nothing in them is run.

A checkpoint is a pickle, and a pickle names what is to be called when it is opened. PyTorch's own restricted reader
knows tensors and plain containers; of other names a short list is let through, each as a class that does nothing and
keeps nothing. Any other name refuses the file before it is opened, as does a wrong checksum: the reader looks at none.
Tensors stay on the disk until they are read.
"""

import pickletools
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.serialization import (
    add_safe_globals,
    clear_safe_globals,
    get_safe_globals,
    get_unsafe_globals_in_checkpoint,
)

from zoo.errors import IntegrityError, UnknownNameError
from zoo.tensors import shown

_MAX_PICKLE_BYTES = 64 << 20  # of names and structure, without the tensors
_MAX_NAMES = 2000  # in a pickle, each of which becomes a class
_LONGEST_NAME = 200  # characters
_PICKLE = "data.pkl"
_ALLOCATES = re.compile(  # what PyTorch lets through, takes memory that no file holds, and no weights are made of
    r"(builtins|__builtin__)\.bytearray|torch\.(cuda\.|sparse\.)*\w+Tensor"
    r"|torch\._utils\._rebuild_(nested_tensor|wrapper_subclass)"
)
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_DATA = frozenset(
    [f"pathlib.{name}" for name in _PATHS]
    + [f"pathlib._local.{name}" for name in _PATHS]  # as Python 3.13 writes them
    + [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
    + ["numpy.dtype", "numpy.ndarray", "argparse.Namespace", "types.SimpleNamespace"]
    + ["datetime.datetime", "datetime.timedelta"]
)
_PROGRAMS = (  # of JMP and of what it was trained with
    "jmp",
    "ll",
    "lightning",
    "lightning_fabric",
    "pytorch_lightning",
    "torchmetrics",
    "omegaconf",
    "torch.optim",
)
_REMEDY = "fetch it again from its authors"


def open_checkpoint(path: Path) -> dict[Any, Any]:
    """The content of a checkpoint, whose tensors are read from the file when they are used.

    Raises UnknownNameError where there is no file, IntegrityError where it is no checkpoint or names what could run.
    """
    _check_archive(path)
    _check_names(path)
    with _only([]):
        names = _names(path)
    strange = sorted(name for name in names if not is_data(name))
    if strange:
        more = f" and {len(strange) - 1} more names" if len(strange) > 1 else ""
        raise IntegrityError(
            f"{path} wants to call {shown(strange[0])}{more}, which zoo does not know to be harmless; nothing of it "
            f"was opened, and nothing else should open it: {_REMEDY}"
        )
    with _only([(_stub(name), name) for name in names]):
        content = _load(path)
    if not isinstance(content, dict):
        raise IntegrityError(f"{path} holds a {type(content).__name__}, expected a checkpoint; {_REMEDY}")
    return content


def is_data(name: str) -> bool:
    """Whether a name in a pickle is known to stand for data that weights come with."""
    return name in _DATA or name.startswith(tuple(f"{program}." for program in _PROGRAMS))


def _stub(name: str) -> type:
    """A class of its own that takes the place of a name, whatever is done with it."""

    def make(cls: type, *arguments: Any, **options: Any) -> Any:
        return object.__new__(cls)

    def ignore(self: Any, *arguments: Any, **options: Any) -> None:
        return None

    nothing = {"__new__": make, "__init__": ignore, "__setstate__": ignore, "__setitem__": ignore, "__slots__": ()}
    return type(f"Without{name.rpartition('.')[2]}", (), nothing)


def check_file(path: Path) -> None:
    """Raises UnknownNameError where there is no file."""
    if path.is_dir():
        raise UnknownNameError(f"{path} is a folder; give the path of a checkpoint, or its address")
    if not path.is_file():
        raise UnknownNameError(f"there is no file {path}; give the path of a checkpoint, or its address")


@contextmanager
def _only(allowed: Sequence[Any]) -> Iterator[None]:
    """Nothing else is let through than this and what PyTorch itself does, whatever other packages have added."""
    others = get_safe_globals()
    clear_safe_globals()
    add_safe_globals(list(allowed))
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(others)


def _check_archive(path: Path) -> None:
    """Raises IntegrityError for what ``torch.save`` does not write, or did not write to its end."""
    check_file(path)
    with path.open("rb") as stream:
        begun = stream.read(4) == b"PK\x03\x04"
    if not zipfile.is_zipfile(path):
        problem = "is cut short" if begun else "is no checkpoint of PyTorch 1.6 or newer"
        raise IntegrityError(f"{path} {problem}; {_REMEDY}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    _check_members(path, members)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # raises the last two for what is encrypted, or packed by an unknown method
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise _unreadable(path, error) from error
    if damaged is not None:
        raise IntegrityError(f"{path} is damaged: its {shown(damaged)} is not what its checksum says; {_REMEDY}")


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Raises IntegrityError where what an archive says of itself is not what ``torch.save`` writes."""
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed or sum(member.file_size for member in members) > path.stat().st_size:
        raise IntegrityError(f"{path} is packed, or states more than it holds, as no checkpoint does; {_REMEDY}")
    pickles = [member.file_size for member in members if member.filename.rpartition("/")[2] == _PICKLE]
    if len(pickles) != 1 or pickles[0] > _MAX_PICKLE_BYTES:
        raise IntegrityError(f"{path} has no {_PICKLE}, several, or one that is too large; {_REMEDY}")


def _check_names(path: Path) -> None:
    """Raises IntegrityError for names that are no weights' own: too many, too long, or of memory without a file."""
    found: set[str] = set()
    try:
        with zipfile.ZipFile(path) as archive:
            place = next(name for name in archive.namelist() if name.rpartition("/")[2] == _PICKLE)
            content = archive.read(place)
        for operation, argument, _ in pickletools.genops(content):
            if operation.name == "GLOBAL":
                found.add(str(argument).replace(" ", "."))
                if len(found) > _MAX_NAMES or len(str(argument)) > _LONGEST_NAME:
                    raise IntegrityError(f"{path} has more names, or longer ones, than a checkpoint has; {_REMEDY}")
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    strange = sorted(name for name in found if _ALLOCATES.fullmatch(name))
    if strange:
        raise IntegrityError(f"{path} wants a {strange[0]}, which no weights are made of; {_REMEDY}")


def _names(path: Path) -> list[str]:
    """What a checkpoint names beside what PyTorch knows, without opening it."""
    try:
        return get_unsafe_globals_in_checkpoint(str(path))
    except Exception as error:  # PyTorch's reader raises anything
        raise _unreadable(path, error) from error


def _load(path: Path) -> Any:
    try:
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # PyTorch's reader raises anything
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> IntegrityError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return IntegrityError(f"{path} cannot be read as a checkpoint ({shown(reason)}); {_REMEDY}")
