"""Where the virtual environment of a family of teachers is, and whether it is whole.

``environments/<family>-<digest of its lock>/`` in zoo's cache; another lock is another environment. A stamp is written
into it last: where that is missing, what made it was killed, and it is not used. What uses an environment holds a lock
on its stamp, and what removes it waits for nobody who does.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zoo.config import Config, read_json
from zoo.errors import ConfigError, UnknownNameError
from zoo.files import cache_root, sha256_file

STAMP = "zoo.json"
INSTALLED = "installed.txt"  # what pip says is in it
State = Literal["none", "made", "being made", "broken", "no python", "outdated"]
Version = tuple[int, int]

# What another Python is told first: where this process has zoo, and nothing else that lies there. It does without
# ``zoo/__init__.py``: a teacher needs no engine, and starts a second earlier.
BOOT = """
import sys, types
zoo = sys.modules["zoo"] = types.ModuleType("zoo")
zoo.__path__ = [sys.argv.pop(1)]
"""
_LOCKS = Path(__file__).parent / "locks"
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "ZOO_HUB_TOKEN")
_PYTHONS = re.compile(r"# python (\d+)\.(\d+)-(\d+)\.(\d+)")
_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;#]+)\s*(?:;[^#]*)?(?:#\s*needs\s+(.*))?")


class Stamp(Config):
    """``zoo.json``: what an environment was made of."""

    family: str
    lock_sha256: str
    python: str  # its version


@dataclass(frozen=True)
class Pin:
    """One package of a lock."""

    name: str  # in the form in which names compare
    version: str
    needs: tuple[str, ...] = ()  # requirements, as far as the lock states them


@dataclass(frozen=True)
class Environment:
    """The environment of a family under its present lock, whether it is there or not."""

    family: str
    folder: Path
    state: State

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"


def environments_root() -> Path:
    """The folder of all environments."""
    return cache_root() / "environments"


def log_path(family: str) -> Path:
    """What pip said of a family's environment; who makes or removes that holds a lock on it."""
    return environments_root() / f"{family}.log"


def code_folder() -> str:
    """The folder of zoo's own code, for ``BOOT``."""
    return str(Path(__file__).parents[1])


def lock_path(family: str) -> Path:
    """The lock of a family. Raises UnknownNameError where it has none."""
    path = _LOCKS / f"{family}.txt"
    if not path.is_file():
        raise UnknownNameError(f"{family!r} has no environment of its own; those that have are {', '.join(locked())}")
    return path


def locked() -> tuple[str, ...]:
    """The families that have a lock."""
    return tuple(sorted(path.stem for path in _LOCKS.glob("*.txt")))


def find_environment(family: str) -> Environment:
    """That of a family, and how it stands. Raises UnknownNameError where it has none."""
    lock = sha256_file(lock_path(family))
    folder = environments_root() / f"{family}-{lock[:12]}"
    return Environment(family, folder, _state(folder, family, lock))


def python_of(family: str) -> Path | None:
    """The Python of a family's environment; None where that is not made, or not whole."""
    if family not in locked():
        return None
    found = find_environment(family)
    return found.python if found.state == "made" else None


def family_at(python: Path) -> str | None:
    """Whose environment a Python is of; None where it is of none that zoo has made."""
    try:
        return read_json(Stamp, _stamp_at(python)).family
    except (ConfigError, OSError):
        return None


@contextmanager
def in_use(python: Path) -> Iterator[tuple[int, ...]]:
    """A file descriptor for a process to inherit: its environment is not removed while it holds it. None of others."""
    try:
        descriptor = os.open(_stamp_at(python), os.O_RDONLY)
    except OSError:
        yield ()
        return
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield (descriptor,)
    finally:
        os.close(descriptor)


def variables() -> dict[str, str]:
    """The variables of this process for one that runs code of others: without tokens of hubs, which zoo alone asks."""
    return {name: value for name, value in os.environ.items() if name not in _TOKENS}


def folders_of(family: str) -> list[Path]:
    """All environments of a family that are here, of earlier locks and half made ones too."""
    pattern = re.compile(rf"{re.escape(family)}-[0-9a-f]{{12}}")
    root = environments_root()
    return sorted(path for path in root.iterdir() if pattern.fullmatch(path.name)) if root.is_dir() else []


def read_lock(path: Path) -> dict[str, Pin]:
    """The packages of a lock by name. Raises ConfigError for a line that pins none."""
    return {pin.name: pin for pin in _pins(path)}


def pythons_of(path: Path) -> tuple[Version, Version] | None:
    """The oldest and the newest Python that the packages of a lock are for; None where it does not say."""
    found = _PYTHONS.match(path.read_text(encoding="utf-8"))
    return None if found is None else ((int(found[1]), int(found[2])), (int(found[3]), int(found[4])))


def normal_name(package: str) -> str:
    """The form in which names of packages compare."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _pins(path: Path) -> Iterator[Pin]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found = _LINE.fullmatch(text)
        if found is None:
            raise ConfigError(f"{path}, line {number}: {text!r} is no pin; expected a line such as torch==2.13.0")
        needs = tuple(part.strip() for part in (found[3] or "").split(", ") if part.strip())
        yield Pin(normal_name(found[1]), found[2], needs)


def _stamp_at(python: Path) -> Path:
    return python.parent.parent / STAMP


def _state(folder: Path, family: str, lock: str) -> State:
    if not folder.is_dir():
        return "outdated" if folders_of(family) else "none"
    try:
        stamp = read_json(Stamp, folder / STAMP)
    except (ConfigError, OSError):
        return "being made" if _is_locked(log_path(family)) else "broken"
    if (stamp.family, stamp.lock_sha256) != (family, lock):
        return "broken"
    return "made" if os.access(folder / "bin" / "python", os.X_OK) else "no python"  # as on another node of a cluster


def _is_locked(path: Path) -> bool:
    """Whether another process holds a lock on a file."""
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or no locks
        pass
    return False
