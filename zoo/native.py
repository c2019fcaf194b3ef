"""Compiled code in the cache: checked before it is opened, kept where it can be, by which compiler, for which machine.

What is opened runs as this user: it has to belong to this user or to root, who may have filled a cache for all.
"""

import atexit
import errno
import hashlib
import os
import platform
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from zoo.errors import CapabilityError
from zoo.files import atomic_path

_COMPILERS = ("c++", "g++", "clang++")
_PACKAGE = Path(__file__).parent
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH  # by others


def find_compiler() -> list[str]:
    """The command: CXX with the words that it may have after it, else c++, g++ or clang++. Raises CapabilityError."""
    asked = shlex.split(os.environ.get("CXX", ""))
    for command in [asked] if asked else [[name] for name in _COMPILERS]:
        if found := shutil.which(command[0]):
            return [found, *command[1:]]
    names = f"the compiler of CXX, {asked[0]}, is not" if asked else f"of the compilers {', '.join(_COMPILERS)} none is"
    raise CapabilityError(f"{names} on this machine; install one, or let PyTorch run the student")


def whole_files(folder: Path, suffix: str) -> Iterator[Path]:
    """The files whose name is the digest of their content, and that nobody else can have written; other files, which
    might end a process that opens them, are removed, and a folder that others can write to is passed over."""
    if not _is_safe(folder):
        return
    for path in sorted(folder.glob(f"*{suffix}")):
        try:
            is_whole = path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:  # it may not be read, or is gone
            continue
        if is_whole and _is_safe(path):
            yield path
        else:
            discard(path)


def discard(path: Path) -> None:
    """Removes a file, where the cache can be written to."""
    with suppress(OSError):
        path.unlink()


def make_folder(folder: Path) -> None:
    """One that this user alone can use; what root makes is for all to read. Raises OSError, for another user's too."""
    mode = 0o700 if os.geteuid() else 0o755
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    told = folder.stat()
    if not _is_owned(told):
        raise PermissionError(errno.EPERM, "it belongs to another user", str(folder))
    if told.st_mode & _WRITABLE:
        folder.chmod(mode)


def keep(content: bytes, folder: Path, suffix: str, what: str) -> Path:
    """In a file of the cache, named by its digest; where that cannot be written to, in a folder of this process."""
    name = f"{hashlib.sha256(content).hexdigest()}{suffix}"
    try:
        make_folder(folder)
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)
            temporary.chmod(0o600 if os.geteuid() else 0o644)
        return folder / name
    except OSError as error:
        tqdm.write(
            f"zoo: {what} cannot be kept in {folder} ({error.strerror}): each process compiles anew; "
            "set ZOO_CACHE to a folder that can be written to",
            file=sys.stderr,
        )
    own = Path(tempfile.mkdtemp(prefix="zoo-native-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    (own / name).write_bytes(content)
    return own / name


def _is_safe(path: Path) -> bool:
    """Whether a file or folder is this user's or root's, and nobody else can write to it."""
    try:
        told = path.stat()
    except OSError:
        return False
    return _is_owned(told) and not told.st_mode & _WRITABLE


def _is_owned(told: os.stat_result) -> bool:
    """By this user, or by root."""
    return told.st_uid in (0, os.geteuid())


def read_sources(*patterns: str) -> Iterator[bytes]:
    """The content of files of this package: what of a digest says that code was changed."""
    for pattern in patterns:
        for path in sorted(_PACKAGE.glob(pattern)):
            yield path.read_bytes()


def processor() -> str:
    """The system, and what a compiler looks at that compiles for this processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.platform()} {platform.processor()}"
    told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU"))}
    return "\n".join([platform.platform(), *sorted(told)])
