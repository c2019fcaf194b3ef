"""Databases that ASE did not write are left as they are, though ASE itself would write its tables into them."""

import sqlite3
from contextlib import closing

import ase.db
import pytest
from ase.build import molecule

from zoo.data.readers.ase_db import read_ase_db
from zoo.data.readers.base import Origin
from zoo.errors import IntegrityError


@pytest.mark.parametrize("name", ["mine.db", "what? #1 100%.db"])
@pytest.mark.parametrize("statements", [["CREATE TABLE accounts (id INTEGER)"], ["PRAGMA user_version = 3"]])
def test_a_foreign_database_keeps_its_bytes(tmp_path, name, statements):
    path = tmp_path / name
    with closing(sqlite3.connect(path)) as base:
        for statement in statements:
            base.execute(statement)
        base.commit()
    before = path.read_bytes()
    with pytest.raises(IntegrityError, match=r"has no table 'systems', which ASE's databases have; give its format$"):
        next(read_ase_db(Origin(path, name)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["mine.db", "what? #1 100%.db"])
def test_one_of_ase_is_read_and_keeps_its_bytes(tmp_path, name):
    path = tmp_path / name
    with ase.db.connect(path, type="db") as base:
        base.write(molecule("H2O"))
    before = path.read_bytes()
    (frame,) = read_ase_db(Origin(path, name))
    assert str(frame.atoms.symbols) == "OH2"
    assert path.read_bytes() == before


def test_what_is_no_database_though_it_begins_as_one_is_one_line(tmp_path):
    path = tmp_path / "mine.db"
    path.write_bytes(b"SQLite format 3\x00" + bytes(200))
    with pytest.raises(IntegrityError, match="cannot be read as a database of ASE") as error:
        next(read_ase_db(Origin(path, "mine.db")))
    assert len(str(error.value).splitlines()) == 1
