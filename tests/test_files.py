"""Files that exist whole or not at all."""

import hashlib
import os
import socket
import threading
from pathlib import Path

import pytest

from zoo import files
from zoo.files import atomic_path, atomic_write, replacing, sha256_file


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


# --- folders ----------------------------------------------------------------------------------------


def _write(folder: Path, word: str) -> None:
    (folder / "one").write_text(word)
    (folder / "two").write_text(word)


def _held(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.iterdir()}


def test_two_that_replace_one_folder_at_once_leave_one_of_them_whole(tmp_path: Path) -> None:
    folder, first_wrote, second_ended = tmp_path / "model", threading.Event(), threading.Event()

    def first() -> None:
        with replacing(folder) as staging:
            (staging / "one").write_text("first")
            first_wrote.set()
            assert second_ended.wait(20)
            (staging / "two").write_text("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert first_wrote.wait(20)
    with replacing(folder) as staging:
        _write(staging, "second")
    assert _held(folder) == {"second"}
    second_ended.set()
    thread.join()
    assert _held(folder) == {"first"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_process_left_is_removed_and_what_a_running_one_writes_is_not(tmp_path: Path) -> None:
    host, dead = socket.gethostname(), _number_of_no_process()
    names = {
        "dead": f".model.{host}@{dead}.0.new",
        "running": f".model.{host}@{os.getppid()}.0.new",
        "elsewhere": f".model.other-host@{dead}.0.new",
        "of another": f".model2.{host}@{dead}.0.new",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
    with replacing(tmp_path / "model") as staging:
        _write(staging, "new")
    assert {path.name for path in tmp_path.iterdir()} == {"model", *names.values()} - {names["dead"]}


def test_a_folder_that_a_killed_process_had_put_aside_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / f".model.{socket.gethostname()}@{_number_of_no_process()}.3.old"
    aside.mkdir()
    _write(aside, "old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "model"):
        _ = 1 / 0
    assert _held(tmp_path / "model") == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "link").symlink_to(there)
    with replacing(tmp_path / "link") as staging:
        _write(staging, "new")
    assert (tmp_path / "link").is_symlink()
    assert _held(there) == {"new"}


def _number_of_no_process() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child
