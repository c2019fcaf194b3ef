"""Compiled code in the cache: checked before it is opened, kept where it can be, and for which machine."""

import atexit
import hashlib
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from zoo.files import atomic_write


def whole_files(folder: Path, suffix: str) -> Iterator[Path]:
    """The files whose name is the digest of their content; the others, which might end a process that opens them, are
    removed."""
    for path in sorted(folder.glob(f"*{suffix}")):
        if path.stem == hashlib.sha256(path.read_bytes()).hexdigest():
            yield path
        else:
            with suppress(OSError):  # a cache that cannot be written to
                path.unlink()


def keep(content: bytes, folder: Path, suffix: str, what: str) -> Path:
    """In a file of the cache, named by its digest; where that cannot be written to, in a folder of this process."""
    name = f"{hashlib.sha256(content).hexdigest()}{suffix}"
    try:
        atomic_write(folder / name, content)
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


def processor() -> str:
    """The system, and what a compiler looks at that compiles for this processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.platform()} {platform.processor()}"
    told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU"))}
    return "\n".join([platform.platform(), *sorted(told)])
