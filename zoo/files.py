"""Files that exist whole or not at all, and what is in them."""

import fcntl
import hashlib
import itertools
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zoo.errors import ConfigError, ZooError

ELSEWHERE = "set ZOO_CACHE to another folder"  # what helps where this one will not do

_BLOCK = 1 << 20
_replacements = itertools.count()  # a name of its own for each that one process makes


def cache_root() -> Path:
    """The folder of all that zoo fetches and keeps: ZOO_CACHE, by default beside the Hugging Face cache."""
    own, shared = os.environ.get("ZOO_CACHE"), os.environ.get("HF_HOME")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = Path(own) if own else Path(shared or f"{base}/huggingface") / "zoo"
    return root.expanduser()


@contextmanager
def writing_to_cache(folder: Path) -> Iterator[None]:
    """What keeps this machine from writing to a folder of the cache is a ConfigError, in one line."""
    try:
        yield
    except ZooError:
        raise  # some are errors of the system, too
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror or error}); make it writable, or {ELSEWHERE}"
        ) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block ends well.

    The data reach the disk before the name does, so a kill or a power cut leaves the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}@{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def atomic_write(path: Path, content: bytes | str) -> None:
    """Writes ``content`` to ``path``, whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder`` that takes its place when the block ends well.

    Where several do so at once, the last stays, whole. A link stays a link: what it leads to is replaced. What killed
    processes of this machine left beside it is removed.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = f".{folder.name}.{socket.gethostname()}@{os.getpid()}.{next(_replacements)}"
    staging, old = folder.with_name(f"{place}.new"), folder.with_name(f"{place}.old")
    with alone_in(folder.parent):
        _sweep(folder)
        for leftover in (staging, old):  # of a process that had the same number
            shutil.rmtree(leftover, ignore_errors=True)
        staging.mkdir()
    try:
        yield staging
        with alone_in(folder.parent):
            _swap(folder, staging, old)
    finally:
        for leftover in (staging, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _swap(folder: Path, staging: Path, old: Path) -> None:
    if folder.exists():
        folder.replace(old)
    try:
        staging.replace(folder)
    finally:
        if old.exists() and not folder.exists():
            old.replace(folder)


def _sweep(folder: Path) -> None:
    """Removes what killed processes left; what one had just put aside comes back, where nothing took its place."""
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.{re.escape(socket.gethostname())}@([0-9]+)\.[0-9]+\.(new|old)")
    for path in sorted(folder.parent.iterdir()):
        left = pattern.fullmatch(path.name)
        if left is None or is_running(left[1]):
            continue
        if left[2] == "old" and not folder.exists():
            path.replace(folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """No other process that asks so works in a folder meanwhile, where the file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_running(process: str) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(int(process), 0)  # signal 0 only asks
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
