"""Packages of families, imported where a teacher needs them."""

from collections.abc import Iterator
from contextlib import contextmanager

from zoo.errors import MissingPackageError

_LONGEST = 200  # characters of another package's message


@contextmanager
def importing(name: str, requirement: str, family: str) -> Iterator[None]:
    """Whatever keeps a package from being imported is a MissingPackageError: packages that clash raise anything.

    ``requirement`` is what pip is given: "mace-torch".
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:_LONGEST]
        told = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        raise MissingPackageError(
            f"{name} needs {requirement}, which cannot be imported here ({told}); run: pip install {requirement}, or, "
            f"beside packages that clash with it: zoo teachers install {family}"
        ) from error
