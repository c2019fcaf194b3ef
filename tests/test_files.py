"""Files that exist whole or not at all."""

import hashlib
import os
from pathlib import Path

import pytest

from zoo import files
from zoo.files import atomic_path, atomic_write, sha256_file


class Interrupted(BaseException):
    """Like a KeyboardInterrupt: no ordinary exception."""


def test_content_is_written_and_folders_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    atomic_write(path, "ångström")
    assert path.read_bytes() == "ångström".encode()
    atomic_write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, Interrupted])
def test_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    atomic_write(path, "old")

    def half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        half()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_exception_before_anything_is_written_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "file.txt"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_block_that_writes_nothing_is_an_error_and_keeps_the_old(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    atomic_write(path, "old")
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass
    assert path.read_text() == "old"


def test_failing_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    atomic_write(path, "old")

    def full(*given: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_data_reach_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (events.append("sync"), sync(fd)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    atomic_write(tmp_path / "file.txt", "new")
    assert events == ["sync", "rename", "sync"]


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 3])
def test_digest_is_that_of_the_content(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    assert sha256_file(path) == hashlib.sha256(b"x" * size).hexdigest()
