"""The shared library of the kernels: compiled once for this machine, kept in the cache, checked before it is opened."""

import ctypes
import hashlib
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from zoo.errors import CapabilityError
from zoo.files import cache_root
from zoo.native import discard, find_compiler, keep, processor, whole_files

SOURCES = ("painn.cpp", "dense.h", "edges.h", "lists.h", "steps.h", "vectors.h")
# Nothing that lets the compiler forget NaN and infinity, or reorder sums: what the machine computes is seen.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
THREADS = ("-fopenmp", "-fopenmp-simd")  # the second where the compiler has no threads: one computes then
_PATIENCE = 300  # seconds
_turn = threading.Lock()
_loaded: dict[Path, tuple[ctypes.CDLL, str]] = {}


@dataclass(frozen=True)
class Compiled:
    """The library, or in one sentence why there is none."""

    library: ctypes.CDLL | None
    reason: str = ""
    folder: Path | None = None  # that the library is kept in, and what belongs to it
    name: str = ""  # the digest of the library's content


class _NoLibraryError(Exception):
    """Why there is no library."""


def compile_kernels() -> Compiled:
    """The library of all kernels, from the cache or from the compiler: CXX, else c++, g++ or clang++.

    Processes and threads may ask at once. A library whose content is not what its name says is built anew.
    """
    try:
        with _turn:
            return _find_or_build()
    except _NoLibraryError as error:
        return Compiled(None, str(error))
    except CapabilityError as error:  # no compiler; what to do, the kernel says
        return Compiled(None, str(error).partition(";")[0])
    except OSError as error:
        return Compiled(None, f"the library could not be kept in {cache_root() / 'kernels'} ({error})")


def _find_or_build() -> Compiled:
    folder = cache_root() / "kernels" / _digest()
    if folder not in _loaded:
        _loaded[folder] = _open_kept(folder) or _open(_build_aloud(find_compiler(), folder))
    library, name = _loaded[folder]
    return Compiled(library, folder=folder, name=name)


def _digest() -> str:
    """Changes with sources, flags and processor; not with the compiler, so that what is there runs without one."""
    parts = [*FLAGS, *THREADS, processor()]
    digest = hashlib.sha256("\0".join(parts).encode())
    for name in SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:32]


def _open_kept(folder: Path) -> tuple[ctypes.CDLL, str] | None:
    """A library of the cache."""
    for path in whole_files(folder, ".so"):
        try:
            return ctypes.CDLL(str(path)), path.stem
        except OSError:
            discard(path)
    return None


def _open(path: Path) -> tuple[ctypes.CDLL, str]:
    try:
        return ctypes.CDLL(str(path)), path.stem
    except OSError as error:
        raise _NoLibraryError(f"the compiled library cannot be opened ({error})") from error


def _build_aloud(compiler: list[str], folder: Path) -> Path:
    """Says what the first call waits for."""
    tqdm.write("zoo: compiling kernels for this machine, once; it takes some seconds", file=sys.stderr)
    return _build(compiler, folder)


def _build(compiler: list[str], folder: Path) -> Path:
    """Compiles into a file whose name is the digest of its content."""
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "kernels.so"
        source = str(Path(__file__).with_name(SOURCES[0]))
        failure = ""
        for threads in THREADS:
            failure = _compile([*compiler, *FLAGS, threads, source, "-o", str(output)])
            if not failure:
                break
        if failure:
            raise _NoLibraryError(f"the compiler {compiler[0]} failed: {failure}")
        if not output.is_file():
            raise _NoLibraryError(f"the compiler {compiler[0]} made no library")
        return keep(output.read_bytes(), folder, ".so", "the kernels")


def _compile(command: list[str]) -> str:
    """The first line that the compiler complains of, or nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else f"exit status {done.returncode}")
