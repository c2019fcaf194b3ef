"""Files of ``torch.save``, opened so that nothing that they name is run.

Such a file is a pickle, and a pickle names what is to be called when it is opened. PyTorch's own restricted reader
knows tensors and plain containers; other names are let through only where something harmless takes their place. Any
other name refuses the file before it is opened, as does a wrong checksum: the reader looks at none.
"""

import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
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

from zoo.errors import IntegrityError
from zoo.tensors import shown

_MAX_PICKLE_BYTES = 64 << 20  # of names and structure, without the tensors
_MAX_NAMES = 2000  # in a pickle, each of which becomes a class
_LONGEST_NAME = 200  # characters
_PICKLE = "data.pkl"
_ALLOCATES = re.compile(  # what PyTorch lets through, takes memory that no file holds, and no weights are made of
    r"(builtins|__builtin__)\.bytearray|torch\.(cuda\.|sparse\.)*\w+Tensor"
    r"|torch\._utils\._rebuild_(nested_tensor|wrapper_subclass)"
)


def read_pickle(
    path: Path, stand_in: Callable[[str], Any], remedy: str, *, made: Sequence[type] = (), mapped: bool = False
) -> Any:
    """What a file holds; its tensors are in main memory, or, mapped, on the disk until they are read.

    ``stand_in`` gives what takes the place of a name that PyTorch does not know, and None for one that such a file
    does not have; ``made`` are classes of what stand-ins make, whose state a file may set. Raises IntegrityError, with
    the remedy, where the file has one of those, is damaged, or is none of ``torch.save``; then nothing was opened.
    """
    _check_archive(path, remedy)
    _check_names(path, remedy)
    with _only([]):
        names = _names(path, remedy)
    allowed = {name: stand_in(name) for name in names}
    if strange := sorted(name for name, harmless in allowed.items() if harmless is None):
        more = f" and {len(strange) - 1} more names" if len(strange) > 1 else ""
        raise IntegrityError(
            f"{path} wants to call {shown(strange[0])}{more}, which zoo does not know to be harmless; nothing of it "
            f"was opened, and nothing else should open it: {remedy}"
        )
    with _only([*made, *((harmless, name) for name, harmless in allowed.items())]):
        try:
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # PyTorch's reader raises anything
            raise unreadable(path, error, remedy) from error


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


def _check_archive(path: Path, remedy: str) -> None:
    """Raises IntegrityError for what ``torch.save`` does not write, or did not write to its end."""
    try:
        with path.open("rb") as stream:
            begun = stream.read(4) == b"PK\x03\x04"
        if not zipfile.is_zipfile(path):
            problem = "is cut short" if begun else "is no checkpoint of PyTorch 1.6 or newer"
            raise IntegrityError(f"{path} {problem}; {remedy}")
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive.infolist(), remedy)
            damaged = archive.testzip()  # raises the last two for what is encrypted, or packed by an unknown method
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise unreadable(path, error, remedy) from error
    if damaged is not None:
        raise IntegrityError(f"{path} is damaged: its {shown(damaged)} is not what its checksum says; {remedy}")


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo], remedy: str) -> None:
    """Raises IntegrityError where what an archive says of itself is not what ``torch.save`` writes."""
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed or sum(member.file_size for member in members) > path.stat().st_size:
        raise IntegrityError(f"{path} is packed, or states more than it holds, as no checkpoint does; {remedy}")
    pickles = [member.file_size for member in members if member.filename.rpartition("/")[2] == _PICKLE]
    if len(pickles) != 1 or pickles[0] > _MAX_PICKLE_BYTES:
        raise IntegrityError(f"{path} has no {_PICKLE}, several, or one that is too large; {remedy}")


def _check_names(path: Path, remedy: str) -> None:
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
                    raise IntegrityError(f"{path} has more names, or longer ones, than a checkpoint has; {remedy}")
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise unreadable(path, error, remedy) from error
    strange = sorted(name for name in found if _ALLOCATES.fullmatch(name))
    if strange:
        raise IntegrityError(f"{path} wants a {strange[0]}, which no weights are made of; {remedy}")


def _names(path: Path, remedy: str) -> list[str]:
    """What a file names beside what PyTorch knows, without opening it."""
    try:
        return get_unsafe_globals_in_checkpoint(str(path))
    except Exception as error:  # PyTorch's reader raises anything
        raise unreadable(path, error, remedy) from error


def unreadable(path: Path, error: Exception, remedy: str, what: str = "a checkpoint") -> IntegrityError:
    """That a file cannot be read as what it should be, without PyTorch's advice to open it unprotected."""
    lines = [line for line in str(error).splitlines() if not re.search("weights.only", line, re.IGNORECASE)]
    reason = f"{type(error).__name__}: {' '.join(' '.join(lines).split())}"[:200].removesuffix(": ")
    return IntegrityError(f"{path} cannot be read as {what} ({shown(reason)}); {remedy}")
