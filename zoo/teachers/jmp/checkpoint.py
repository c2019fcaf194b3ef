"""Checkpoints of PyTorch Lightning, opened so that nothing in them is run.

Of the names in one a short list is let through, each as a class that does nothing and keeps nothing; any other refuses
the file (``zoo/teachers/pickles.py``). Tensors stay on the disk until they are read.
"""

from pathlib import Path
from typing import Any

from zoo.errors import IntegrityError, UnknownNameError
from zoo.teachers.pickles import read_pickle

_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_DATA = frozenset(
    [f"pathlib.{name}" for name in _PATHS]
    + [f"pathlib._local.{name}" for name in _PATHS]  # as Python 3.13 writes them
    + [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
    + ["numpy.dtype", "numpy.ndarray", "argparse.Namespace", "types.SimpleNamespace"]
    + ["datetime.datetime", "datetime.timedelta"]
)
_PROGRAMS = (  # of JMP and of what it was trained with
    "jmp",
    "ll",
    "lightning",
    "lightning_fabric",
    "pytorch_lightning",
    "torchmetrics",
    "omegaconf",
    "torch.optim",
)
_REMEDY = "fetch it again from its authors"


def open_checkpoint(path: Path) -> dict[Any, Any]:
    """The content of a checkpoint, whose tensors are read from the file when they are used.

    Raises UnknownNameError where there is no file, IntegrityError where it is no checkpoint or names what could run.
    """
    check_file(path)
    content = read_pickle(path, lambda name: _stub(name) if is_data(name) else None, _REMEDY, mapped=True)
    if not isinstance(content, dict):
        raise IntegrityError(f"{path} holds a {type(content).__name__}, expected a checkpoint; {_REMEDY}")
    return content


def is_data(name: str) -> bool:
    """Whether a name in a pickle is known to stand for data that weights come with."""
    return name in _DATA or name.startswith(tuple(f"{program}." for program in _PROGRAMS))


def _stub(name: str) -> type:
    """A class of its own that takes the place of a name, whatever is done with it."""

    def make(cls: type, *arguments: Any, **options: Any) -> Any:
        return object.__new__(cls)

    def ignore(self: Any, *arguments: Any, **options: Any) -> None:
        return None

    nothing = {"__new__": make, "__init__": ignore, "__setstate__": ignore, "__setitem__": ignore, "__slots__": ()}
    return type(f"Without{name.rpartition('.')[2]}", (), nothing)


def check_file(path: Path) -> None:
    """Raises UnknownNameError where there is no file."""
    if path.is_dir():
        raise UnknownNameError(f"{path} is a folder; give the path of a checkpoint, or its address")
    if not path.is_file():
        raise UnknownNameError(f"there is no file {path}; give the path of a checkpoint, or its address")
