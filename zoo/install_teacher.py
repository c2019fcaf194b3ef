"""``zoo teachers install``: a virtual environment for a family of teachers, with the versions of its lock.

It is made where it stays, for it cannot be moved, and its stamp is written last: what was killed is made anew. PyTorch
comes first, with what its build for this machine needs; all else is exactly what the lock says, and nothing more.
"""

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from zoo.config import write_json
from zoo.errors import ConfigError, MissingPackageError, UnknownNameError, ZooError
from zoo.files import alone_in, atomic_write, sha256_file
from zoo.teachers.environments import (
    BOOT,
    INSTALLED,
    STAMP,
    Environment,
    Stamp,
    code_folder,
    environments_root,
    find_environment,
    folders_of,
    lock_path,
    read_lock,
)
from zoo.teachers.families import FAMILIES

_OLDEST = (3, 11)
_FULL = ("no space left on device", "disk quota exceeded")
_UNREACHABLE = (
    "connection",
    "temporary failure in name resolution",
    "name or service not known",
    "timed out",
    "no matching distribution found",
    "could not find a version",
    "network is unreachable",
)
_ASK = "import json, sys, venv, ensurepip; print(json.dumps(sys.version_info[:3]))"
_SHOWN = 300  # characters of what pip says, in a message

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Where pip finds packages: its index by default, folders of wheels alone, or both."""

    find_links: tuple[str, ...] = ()
    index_url: str | None = None

    def options(self) -> list[str]:
        links = [word for place in self.find_links for word in ("--find-links", place)]
        if self.index_url is not None:
            return [*links, "--index-url", self.index_url]
        return [*links, "--no-index"] if links else []


def install(family: str, *, python: str | None = None, source: Source | None = None, tell: Tell = print) -> Path:
    """The folder of a family's environment, made where it is not there; ``tell`` is given each line of progress.

    ``python`` is the Python 3.11 or newer that it is made with, by default this one. Raises UnknownNameError,
    ConfigError for a Python that cannot, and for a cache that cannot be written to or is full, MissingPackageError
    where a package cannot be had.
    """
    path, found = lock_path(_known(family)), find_environment(family)
    if found.state == "made":
        tell(f"{family} has its environment already, in {found.folder}")
        return found.folder
    base = python or sys.executable
    told = _version_of(base)
    root = environments_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with alone_in(root):
            found = find_environment(family)  # another process may have made it meanwhile
            if found.state != "made":
                _make(found, base, told, path, source or Source(), tell)
    except OSError as error:
        raise _of_system(error, root) from error
    return found.folder


def remove(family: str) -> list[Path]:
    """Removes the environments of a family, of earlier locks too, and says which. Raises UnknownNameError."""
    found = folders_of(_known(family))
    try:
        for folder in found:
            shutil.rmtree(folder)
    except OSError as error:
        raise _of_system(error, environments_root()) from error
    return found


def _known(family: str) -> str:
    if family not in FAMILIES:
        raise UnknownNameError(f"no family of teachers is called {family!r}; known are {', '.join(FAMILIES)}")
    if not FAMILIES[family].imports:
        raise UnknownNameError(f"{family} needs no package, and no environment; zoo computes it itself")
    return family


def _version_of(python: str) -> str:
    """Of a Python that can make environments. Raises ConfigError."""
    remedy = "give another with --python, such as --python /usr/bin/python3.11 (Debian: apt install python3-venv)"
    try:
        asked = subprocess.run([python, "-I", "-c", _ASK], capture_output=True, text=True, check=True)
        version: tuple[int, ...] = tuple(json.loads(asked.stdout))
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        reason = getattr(error, "strerror", None) or (getattr(error, "stderr", None) or str(error)).strip()
        raise ConfigError(
            f"{python} cannot make an environment ({reason.splitlines()[-1] if reason else error}); {remedy}"
        ) from error
    text = ".".join(map(str, version))
    if version < _OLDEST:
        raise ConfigError(f"{python} is Python {text}, expected {'.'.join(map(str, _OLDEST))} or newer; {remedy}")
    return text


def _make(place: Environment, base: str, version: str, lock: Path, source: Source, tell: Tell) -> None:
    """Raises ConfigError, MissingPackageError, OSError; what is half made is removed, and the log stays."""
    if place.folder.exists():
        tell(f"{place.folder} was left half made; it is made anew")
        shutil.rmtree(place.folder)
    log = environments_root() / f"{place.family}.log"
    tell(f"making {place.folder} with Python {version}; what pip says is also in {log}")
    try:
        with log.open("w", encoding="utf-8") as stream:
            _fill(_Steps(place, stream, log, tell), base, lock, source)
    except (ZooError, OSError):
        shutil.rmtree(place.folder, ignore_errors=True)
        raise
    write_json(place.folder / STAMP, Stamp(family=place.family, lock_sha256=sha256_file(lock), python=version))


def _fill(steps: "_Steps", base: str, lock: Path, source: Source) -> None:
    place = steps.place
    steps.run([base, "-I", "-m", "venv", str(place.folder)])
    pip = [str(place.python), "-I", "-m", "pip", "--disable-pip-version-check", "--no-input"]
    install = [*pip, "install", *source.options()]
    pins = read_lock(lock)
    if "torch" in pins:
        steps.run([*install, "-c", str(lock), f"torch=={pins['torch'].version}"])
    steps.run([*install, "--no-deps", "-r", str(lock)])
    code = BOOT + "import zoo.teachers.worker\n" if "torch" in pins else ""
    code += "".join(f"import {module}\n" for module in FAMILIES[place.family].imports)
    steps.run([str(place.python), "-I", "-c", code, code_folder()])
    frozen = subprocess.run([*pip, "freeze", "--all"], capture_output=True, text=True, check=False).stdout
    atomic_write(place.folder / INSTALLED, frozen)


@dataclass(frozen=True)
class _Steps:
    """Commands that make an environment, what they say told and written down."""

    place: Environment
    stream: TextIO
    log: Path
    tell: Tell

    def run(self, command: Sequence[str]) -> None:
        """Raises MissingPackageError where packages are not to be had, ConfigError for all else that goes wrong."""
        said: list[str] = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line.rstrip())
                self.stream.write(line)
                self.tell(line.rstrip())
        if process.returncode != 0:
            raise self._error(said)

    def _error(self, said: Sequence[str]) -> ZooError:
        errors = [line for line in said if line.startswith("ERROR:")]
        last = (errors or [line for line in said if line.strip()] or ["it says nothing"])[-1]
        reason, text = last.removeprefix("ERROR:").strip()[:_SHOWN], "\n".join(said).lower()
        failed = f"the environment of {self.place.family} could not be made ({reason}; all of it is in {self.log})"
        again = f"zoo teachers install {self.place.family}"
        if any(words in text for words in _FULL):
            return ConfigError(f"{failed}; make room there, or set ZOO_CACHE to a folder with room, and run: {again}")
        if any(words in text for words in _UNREACHABLE):
            lock = lock_path(self.place.family)
            return MissingPackageError(
                f"{failed}; run {again} again where there is a network, or carry the packages here: pip download -r "
                f"{lock} -d DIR there, then {again} --find-links DIR"
            )
        return ConfigError(f"{failed}; read it, and run {again} again, maybe with another --python")


def _of_system(error: OSError, root: Path) -> ConfigError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room there, or set ZOO_CACHE to a folder with room" if full else "set ZOO_CACHE to one that can be"
    state = "is full" if full else f"cannot be written to ({error.strerror or error})"
    return ConfigError(f"{error.filename or root} {state}; {remedy}, and run the same again")
