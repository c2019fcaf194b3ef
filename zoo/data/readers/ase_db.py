"""ASE's databases in SQLite."""

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from ase import Atoms
from ase.db import connect

from zoo.data.frame import Frame, electrons
from zoo.data.readers.base import Origin, bare_atoms, broken
from zoo.errors import IntegrityError

_MAGIC = b"SQLite format 3\x00"
_PAGE_SIZE, _PAGES, _CHANGED, _COUNTED = slice(16, 18), slice(28, 32), slice(24, 28), slice(92, 96)  # of the header


def read_ase_db(origin: Origin) -> Generator[Frame]:
    """The rows of a database in order; keys, values and data of a row are left out."""
    _check_length(origin)
    form = "a database of ASE"
    with broken(origin.label, form, sqlite3.Error):
        _check_tables(origin)
    with broken(origin.label, form, Exception):  # ASE raises whatever SQLite and its columns raise
        rows: Iterator[Any] = connect(origin.path, type="db", use_lock_file=False).select(sort="id", include_data=False)
    index = 0
    while True:
        place = f"frame {index} of {origin.label}"
        with broken(place, form, Exception):
            row = next(rows, None)
        if row is None:
            return
        yield Frame(atoms=_atoms(place, row), place=place, index=index)
        index += 1


def _check_length(origin: Origin) -> None:
    """What a cut took off the end, SQLite misses only where it looks for it; its header counts the pages."""
    with origin.path.open("rb") as file:
        head = file.read(100)
    if not head.startswith(_MAGIC):
        raise IntegrityError(f"{origin.label} is no SQLite file, which ASE's databases are; give its format")
    size, pages = (int.from_bytes(head[place]) for place in (_PAGE_SIZE, _PAGES))
    needed = pages * (65536 if size == 1 else size) if head[_CHANGED] == head[_COUNTED] else 0  # else not kept
    there = origin.path.stat().st_size
    if len(head) < 100 or there < needed:
        raise IntegrityError(f"{origin.label} is cut short: it has {there} of {needed} bytes; fetch it again")


def _check_tables(origin: Origin) -> None:
    """ASE writes its tables into a database that has none of them: such a one is not shown to it."""
    with closing(_read_only(origin.path)) as base:
        (found,) = base.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'systems'").fetchone()
    if not found:
        raise IntegrityError(f"{origin.label} has no table 'systems', which ASE's databases have; give its format")


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True)


def _atoms(place: str, row: Any) -> Atoms:
    labels = {key: row.get(key) for key in ("energy", "forces", "stress")}
    pbc = np.asarray(row.pbc, dtype=bool)
    atoms = bare_atoms(place, row.numbers, row.positions, cell=row.cell, pbc=pbc, **labels)
    if (charges := row.get("initial_charges")) is not None:
        atoms.info = electrons(Atoms(row.numbers, charges=charges))
    return atoms
