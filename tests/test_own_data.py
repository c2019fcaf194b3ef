"""Data of one's own are read for their digest once in a process, and again when they changed."""

import hashlib
import os
from pathlib import Path

import pytest

import zoo.data.structures as structures
from zoo.data.structures import data_digest, find_own
from zoo.errors import IntegrityError


@pytest.fixture
def read(monkeypatch) -> list[Path]:
    """The files that were read for their digest."""
    files: list[Path] = []
    digest = structures.sha256_file

    def counted(path: Path) -> str:
        files.append(path)
        return digest(path)

    monkeypatch.setattr(structures, "sha256_file", counted)
    return files


def test_a_file_is_read_once_however_many_ask(tmp_path, monkeypatch, read):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    path = tmp_path / "own.extxyz"
    path.write_bytes(b"frames")
    expected = hashlib.sha256(b"frames").hexdigest()
    for _ in range(4):
        assert find_own("somebody", "own.extxyz", expected) == path
    monkeypatch.chdir(tmp_path)
    assert data_digest(path) == data_digest(Path("own.extxyz")) == expected
    assert read == [path]


@pytest.mark.parametrize("change", ["time", "size", "replaced"])
def test_a_file_that_changed_is_read_again(tmp_path, read, change):
    path, other = tmp_path / "own.extxyz", tmp_path / "other"
    path.write_bytes(b"frames")
    os.utime(path, ns=(1, 1))
    expected = data_digest(path)
    other.write_bytes(b"others" if change != "size" else b"more frames")
    os.utime(other, ns=(1, 1))
    if change == "replaced":
        other.replace(path)
    else:
        path.write_bytes(other.read_bytes())
        os.utime(path, ns=(2, 2) if change == "time" else (1, 1))
    with pytest.raises(IntegrityError, match="has the digest"):
        find_own("somebody", str(path), expected)
    assert read == [path, path]


def test_of_a_folder_only_what_changed_is_read_again(tmp_path, read):
    for name in ("a.npy", "b.npy"):
        (tmp_path / name).write_bytes(name.encode())
    first = data_digest(tmp_path)
    assert data_digest(tmp_path) == first
    (tmp_path / "b.npy").write_bytes(b"longer than before")
    assert data_digest(tmp_path) != first
    assert [path.name for path in read] == ["a.npy", "b.npy", "b.npy"]
