"""Files of torch.save: nothing that they name is run, and what is damaged, packed or claims too much is not opened."""

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.errors import IntegrityError
from zoo.teachers.pickles import read_pickle
from zoo.teachers.records import Record, read_records


class _Runs:
    """A pickle of it calls a function when it is opened as usual."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class _Nothing:
    """Takes the place of a name."""

    def __new__(cls, *arguments: Any) -> Any:
        return object.__new__(cls)


def _saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def _refused(path: Path, words: str) -> None:
    with pytest.raises(IntegrityError, match=words) as caught:
        read_pickle(path, lambda name: None, "fetch it again")
    told = str(caught.value)
    assert told.startswith(str(path))
    assert told.endswith("fetch it again")
    assert "\n" not in told
    assert "weights_only" not in told, "PyTorch's advice to open it without protection"


def _changed(path: Path, change: Callable[[bytes], bytes], **packed: Any) -> Path:
    """The same archive, its pickle changed, with checksums that fit."""
    other = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", **packed) as new:
        for member in old.namelist():
            held = old.read(member)
            new.writestr(member, change(held) if member.endswith("data.pkl") else held)
    return other


def test_what_a_file_wants_to_call_is_named_and_not_called(tmp_path: Path) -> None:
    sign = tmp_path / "harm"
    path = _saved(tmp_path / "one.pt", [_Runs(shutil.copy, __file__, str(sign)), _Runs(shutil.rmtree, "x")])
    _refused(path, r"wants to call shutil.copy and 1 more names, .* nothing of it was opened")
    assert not sign.exists()


@pytest.mark.parametrize("mapped", [False, True])
def test_what_takes_the_place_of_a_name_is_made_instead(tmp_path: Path, mapped: bool) -> None:
    sign = tmp_path / "harm"
    path = _saved(tmp_path / "one.pt", {"made": _Runs(shutil.copy, __file__, str(sign)), "weight": torch.ones(3)})
    found = read_pickle(path, {"shutil.copy": _Nothing}.get, "", mapped=mapped)
    assert type(found["made"]) is _Nothing
    assert found["weight"].tolist() == [1, 1, 1]
    assert not sign.exists()


def test_what_the_user_trusts_elsewhere_is_not_made_here_and_is_trusted_afterwards(tmp_path: Path) -> None:
    sign = tmp_path / "harm"
    path = _saved(tmp_path / "one.pt", _Runs(shutil.copy, __file__, str(sign)))
    with torch.serialization.safe_globals([shutil.copy]):
        trusted = set(torch.serialization.get_safe_globals())
        _refused(path, "wants to call shutil.copy")
        read_pickle(path, {"shutil.copy": _Nothing}.get, "")
        assert set(torch.serialization.get_safe_globals()) == trusted
    assert not sign.exists()


def test_a_damaged_number_is_seen_by_its_checksum(tmp_path: Path) -> None:
    path = _saved(tmp_path / "one.pt", torch.full((1000,), 1.5))
    whole = path.read_bytes()
    place = whole.index(torch.full((100,), 1.5).numpy().tobytes())
    path.write_bytes(whole[:place] + b"\x01" + whole[place + 1 :])
    assert not torch.load(path, weights_only=True).eq(1.5).all(), "PyTorch looks at no checksum"
    _refused(path, "is damaged: its one/data/0 is not what its checksum says")


def test_a_module_that_pytorch_refuses_whatever_takes_its_place_is_told_in_its_words(tmp_path: Path) -> None:
    path = _saved(tmp_path / "one.pt", _Runs(os.mkdir, str(tmp_path / "harm")))
    with pytest.raises(
        IntegrityError,
        match=r"\(UnpicklingError: Trying to load unsupported GLOBAL posix.mkdir whose .*\); ",
    ):
        read_pickle(path, {"posix.mkdir": _Nothing}.get, "fetch it again")


def test_memory_that_no_file_holds_is_not_taken(tmp_path: Path) -> None:
    path = _saved(tmp_path / "one.pt", _Runs(bytearray, 10))
    assert torch.load(path, weights_only=True) == bytearray(10), "PyTorch lets it through"
    _refused(path, r"wants a (builtins|__builtin__).bytearray, which no weights are made of")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is cut short"),
        (lambda path: path.write_bytes(b""), "is no checkpoint of PyTorch"),
        (lambda path: path.write_bytes(bytes(range(256))), "is no checkpoint of PyTorch"),
        (lambda path: path.unlink(), r"cannot be read as a checkpoint \(.*No such file"),
        (lambda path: _changed(path, lambda held: held[:20]).replace(path), "cannot be read as a checkpoint"),
        (lambda path: _changed(path, bytes, compression=zipfile.ZIP_DEFLATED).replace(path), "is packed"),
    ],
    ids=["cut", "empty", "noise", "gone", "half a pickle", "packed"],
)
def test_what_is_no_whole_file_is_one_sentence(tmp_path: Path, spoil: Callable[[Path], Any], words: str) -> None:
    path = _saved(tmp_path / "one.pt", {"weight": torch.ones(1000)})
    spoil(path)
    _refused(path, words)


def test_a_whole_module_is_read_as_records_of_what_it_is(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.SiLU())
    path = _saved(tmp_path / "one.pt", module)
    found = read_records(path, ("torch.nn.",), "")
    assert isinstance(found, Record)
    assert (found.kind, found.path) == ("Sequential", "torch.nn.modules.container.Sequential")
    assert [(name, one.kind) for name, one in found.modules()] == [("", "Sequential"), ("0", "Linear"), ("1", "SiLU")]
    assert (found.get("0.out_features"), found.get("1.inplace"), found.get("2.none")) == (3, False, None)
    assert found.tensors().keys() == module.state_dict().keys()
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in found.tensors().items())
    with pytest.raises(IntegrityError, match=r"wants to call torch.nn.modules.activation.SiLU"):
        read_records(path, ("torch.nn.modules.container.", "torch.nn.modules.linear.Linear"), "")
