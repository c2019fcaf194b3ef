"""The version of zoo, said once, and the digest of the code that has it."""

import hashlib
from functools import cache
from pathlib import Path

__version__ = "0.1.0"

_SUFFIXES = (".py", ".yaml")
_BESIDE = ("_recipes", "_cards")  # which a wheel has in its package and a repository beside it


@cache
def code_sha256() -> str:
    """Hex SHA-256 over zoo's own .py and .yaml files, their paths and their bytes, as they were when first asked."""
    return digest_of(Path(__file__).parent)


def digest_of(package: Path) -> str:
    """Hex SHA-256 over the code below a folder."""
    digest = hashlib.sha256()
    for name, path in sorted((path.relative_to(package).as_posix(), path) for path in package.rglob("*")):
        if path.suffix in _SUFFIXES and not name.startswith(_BESIDE) and path.is_file():
            digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest()
