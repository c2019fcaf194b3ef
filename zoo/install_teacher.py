"""``zoo teachers install``: a virtual environment for a family of teachers, with the versions of its lock.

It is made where it stays, for it cannot be moved, and its stamp is written last: what was killed is made anew. PyTorch
comes first, with what its build for this machine needs; all else is exactly what the lock says, and nothing more. One
process at a time makes or removes an environment of a family, and none is removed while a teacher answers from it.
"""

import errno
import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from zoo.config import write_json
from zoo.errors import ConfigError, MissingPackageError, UnknownNameError, ZooError
from zoo.files import atomic_write, sha256_file
from zoo.teachers.environments import (
    BOOT,
    INSTALLED,
    STAMP,
    Environment,
    Stamp,
    Version,
    code_folder,
    environments_root,
    find_environment,
    folders_of,
    lock_path,
    log_path,
    pythons_of,
    read_lock,
    variables,
)
from zoo.teachers.families import FAMILIES, family_of
from zoo.teachers.weights import weights_folder

_ANY: tuple[Version, Version] = ((3, 11), (3, 99))  # of zoo, where a lock does not say
_FULL = ("no space left on device", "disk quota exceeded")
_UNREACHABLE = (
    "connection",
    "temporary failure in name resolution",
    "name or service not known",
    "timed out",
    "no matching distribution found",
    "could not find a version",
    "network is unreachable",
    "resolutionimpossible",
)
_ASK = "import json, sys, venv, ensurepip; print(json.dumps(sys.version_info[:3]))"
_ELSEWHERE = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON")  # where a user has pip install
_SHOWN = 300  # characters of what pip says, in a message

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Where pip finds packages: its index by default, folders of wheels alone, or both."""

    find_links: tuple[str, ...] = ()
    index_url: str | None = None
    torch_index_url: str | None = None  # for PyTorch and what it needs, beside the others

    def options(self) -> list[str]:
        """Of pip, for all packages."""
        links = [word for place in self.find_links for word in ("--find-links", place)]
        if self.index_url is not None:
            return [*links, "--index-url", self.index_url]
        return [*links, "--no-index"] if links else []

    def options_for_torch(self) -> list[str]:
        """With an index of builds of PyTorch: of the same version pip takes the one that names its build."""
        if self.torch_index_url is None:
            return self.options()
        found = self.options()
        if "--no-index" in found:
            return [*found[:-1], "--index-url", self.torch_index_url]
        return [*found, "--extra-index-url", self.torch_index_url]


def install(family: str, *, python: str | None = None, source: Source | None = None, tell: Tell = print) -> Path:
    """The folder of a family's environment, made where it is not there; ``tell`` is given each line of progress.

    ``python`` makes it, by default this one. Raises UnknownNameError, ConfigError for a Python that cannot or that the
    lock is not for, for a cache that cannot be written to or is full, and for an environment that another machine has
    made, MissingPackageError where a package cannot be had.
    """
    path, found = lock_path(_known(family)), find_environment(family)
    if found.state == "made":
        tell(f"{family} has its environment already")
    else:
        _check_own(found)
        base = python or sys.executable
        told = _version_of(base, family, pythons_of(path) or _ANY)
        with _alone(family, tell) as log:
            found = find_environment(family)  # another process may have made it meanwhile
            _check_own(found)
            if found.state != "made":
                _make(found, base, told, path, source or Source(), log, tell)
    for folder in folders_of(family):
        if folder != found.folder:
            command = f"rm -r {shlex.quote(str(folder))}"
            tell(f"{folder} is of another lock and stays; where no other zoo uses it, run: {command}")
    return found.folder


def remove(family: str, *, tell: Tell = print) -> list[Path]:
    """Removes the environments of a family, of earlier locks too, and says which.

    Raises UnknownNameError, ConfigError while a teacher answers from one.
    """
    _check_no_teacher(family)
    if not folders_of(_known(family)):
        return []
    with _alone(family, tell):
        found = folders_of(family)
        for folder in found:
            _retire(folder, family)
            shutil.rmtree(folder)
    return found


@contextmanager
def _alone(family: str, tell: Tell) -> Iterator[TextIO]:
    """The log of a family, which one process holds at a time. Raises ConfigError where the cache takes nothing."""
    root = environments_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with log_path(family).open("a", encoding="utf-8") as log:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell(f"another process is at the environment of {family}; waiting for it, which writes {log.name}")
                fcntl.flock(log, fcntl.LOCK_EX)
            except OSError:  # a file system without locks
                pass
            yield log
    except ZooError:
        raise
    except OSError as error:
        raise _of_system(error, root) from error


def _retire(folder: Path, family: str) -> None:
    """Takes the stamp away: what is half removed is not taken for whole. Raises ConfigError while it is used."""
    with suppress(FileNotFoundError), (folder / STAMP).open("r+b") as stamp:
        try:
            fcntl.flock(stamp, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"a teacher answers from {folder}; wait until what asks it has ended, or end that, and run: "
                f"zoo teachers remove {family}"
            ) from None
        except OSError:  # a file system without locks
            pass
        (folder / STAMP).unlink()


def _check_own(place: Environment) -> None:
    """Raises ConfigError for an environment whose Python is not on this machine, and may be on others."""
    if place.state == "no python":
        raise ConfigError(
            f"{place.folder} was made with {os.path.realpath(place.python)}, which is not on this machine; work where "
            f"it is, set ZOO_CACHE to a folder of this machine, or, where nobody needs it, run: zoo teachers remove "
            f"{place.family}, and install it again"
        )


def _check_no_teacher(name: str) -> None:
    """Raises UnknownNameError for a teacher, of which nothing but its weights can be removed."""
    of, folder = family_of(name), weights_folder(name)
    if of is not None and folder.is_dir():
        raise UnknownNameError(
            f"{name} is a teacher, whose weights are in {folder}; delete that, or, to remove the environment of its "
            f"family, run: zoo teachers remove {of.key}"
        )


def _known(family: str) -> str:
    """Raises UnknownNameError for what is no family with packages."""
    of = family_of(family)
    if of is not None:
        raise UnknownNameError(f"{family} is a teacher, expected the family that serves it: {of.key}")
    if family not in FAMILIES:
        raise UnknownNameError(f"no family of teachers is called {family!r}; known are {', '.join(FAMILIES)}")
    if not FAMILIES[family].imports:
        raise UnknownNameError(f"{family} needs no package, and no environment; zoo computes it itself")
    return family


def _version_of(python: str, family: str, able: tuple[Version, Version]) -> str:
    """Of a Python that can make environments, from the oldest to the newest that will do. Raises ConfigError."""
    oldest, newest = (".".join(map(str, version)) for version in able)
    remedy = f"give another with --python, such as --python python{oldest} (Debian: apt install python3-venv)"
    try:
        asked = subprocess.run([python, "-I", "-c", _ASK], capture_output=True, text=True, check=True)
        version: tuple[int, ...] = tuple(json.loads(asked.stdout))
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        reason = getattr(error, "strerror", None) or (getattr(error, "stderr", None) or str(error)).strip()
        lines = reason.splitlines() or [str(error)]
        shown = lines[-1] if lines[0].startswith("Traceback") else lines[0]
        raise ConfigError(f"{python} cannot make an environment ({shown}); {remedy}") from error
    text = ".".join(map(str, version))
    if not able[0] <= version[:2] <= able[1]:
        expected = f"{oldest} or newer" if able == _ANY else f"{oldest} to {newest}, which the lock of {family} is for"
        raise ConfigError(f"{python} is Python {text}, expected {expected}; {remedy}")
    return text


def _make(place: Environment, base: str, version: str, lock: Path, source: Source, log: TextIO, tell: Tell) -> None:
    """Raises ConfigError, MissingPackageError, OSError; what is half made is removed, and the log stays."""
    if place.folder.exists():
        tell(f"{place.folder} was left half made; it is made anew")
        shutil.rmtree(place.folder)
    log.truncate(0)
    tell(f"making {place.folder} with Python {version}; what pip says is also in {log.name}")
    try:
        _fill(_Steps(place, log, tell), base, lock, source)
    except (ZooError, OSError):
        shutil.rmtree(place.folder, ignore_errors=True)
        raise
    write_json(place.folder / STAMP, Stamp(family=place.family, lock_sha256=sha256_file(lock), python=version))


def _fill(steps: "_Steps", base: str, lock: Path, source: Source) -> None:
    place = steps.place
    steps.run([base, "-I", "-m", "venv", str(place.folder)])
    pip = [str(place.python), "-I", "-m", "pip", "--disable-pip-version-check", "--no-input"]
    install = [*pip, "install"]
    pins = read_lock(lock)
    if "torch" in pins:
        steps.run([*install, *source.options_for_torch(), "-c", str(lock), f"torch=={pins['torch'].version}"])
    steps.run([*install, *source.options(), "--no-deps", "-r", str(lock)])
    code = BOOT + "import zoo.teachers.worker\n" if "torch" in pins else ""
    code += "".join(f"import {module}\n" for module in FAMILIES[place.family].imports)
    steps.run([str(place.python), "-I", "-c", code, code_folder()])
    frozen = subprocess.run(
        [*pip, "freeze", "--all"], capture_output=True, text=True, check=False, env=_variables()
    ).stdout
    atomic_write(place.folder / INSTALLED, frozen)


def _variables() -> dict[str, str]:
    """Those of this process, but for what has pip install elsewhere, as its file of settings may too."""
    return {name: value for name, value in variables().items() if name not in _ELSEWHERE} | {"PIP_USER": "0"}


@dataclass(frozen=True)
class _Steps:
    """Commands that make an environment, what they say told and written down."""

    place: Environment
    log: TextIO
    tell: Tell

    def run(self, command: Sequence[str]) -> None:
        """Raises MissingPackageError where packages are not to be had, ConfigError for all else that goes wrong."""
        said: list[str] = []
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=_variables()) as process:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line.rstrip())
                self.log.write(line)
                self.tell(line.rstrip())
        if process.returncode != 0:
            raise self._error(said)

    def _error(self, said: Sequence[str]) -> ZooError:
        reason, text = _reason(said)[:_SHOWN], "\n".join(said).lower()
        failed = f"the environment of {self.place.family} could not be made ({reason}; all of it is in {self.log.name})"
        again = f"zoo teachers install {self.place.family}"
        if any(words in text for words in _FULL):
            return ConfigError(f"{failed}; make room there, or set ZOO_CACHE to a folder with room, and run: {again}")
        if any(words in text for words in _UNREACHABLE):
            lock = lock_path(self.place.family)
            return MissingPackageError(
                f"{failed}; run {again} again where there is a network, or carry the packages here: there, with the "
                f"same Python, pip wheel -r {lock} -w DIR, then here {again} --find-links DIR"
            )
        return ConfigError(f"{failed}; read it, and run {again} again, maybe with another --python")


def _reason(said: Sequence[str]) -> str:
    """Of all that pip says why it failed; a line that names what it lacks rather than its last one."""
    lacking = dict.fromkeys(line.partition("(constraint) ")[2] for line in said if "(constraint) " in line)
    if lacking:
        return f"pip finds no {', no '.join(lacking)}"
    lines = [line.strip() for line in said if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    missing = [line for line in errors if "No matching distribution" in line]
    return (missing or errors or lines or ["it says nothing"])[-1]


def _of_system(error: OSError, root: Path) -> ConfigError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room there, or set ZOO_CACHE to a folder with room" if full else "set ZOO_CACHE to one that can be"
    state = "is full" if full else f"cannot be written to ({error.strerror or error})"
    return ConfigError(f"{error.filename or root} {state}; {remedy}, and run the same again")
