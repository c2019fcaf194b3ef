"""Pickles of whole modules, read as records of what they say: nothing that they name is imported, made or run.

A file of ``torch.save(module)`` names classes and functions, which an ordinary load imports and calls. Here an inert
class stands for each of them, under its name, while PyTorch's restricted reader reads the file; what is code in
it (the source of a ``GraphModule``, the bytes of TorchScript) stays text and bytes.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from zoo.teachers.pickles import read_pickle


class Record:
    """One object of a pickle: what it was made from, and its state. Where a pickle holds a class, so does a record."""

    path = ""  # of the class or function: "mace.modules.models.MACE"
    args: tuple[Any, ...]
    state: dict[str, Any]

    def __new__(cls, *args: Any) -> Self:
        record = super().__new__(cls)
        record.args, record.state = args, {}
        return record

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    @property
    def kind(self) -> str:
        """The last part of its path."""
        return self.path.rpartition(".")[2]

    def plain(self) -> dict[str, Any]:
        """Its attributes, of a module beside parameters, buffers and modules."""
        return self.state or (self.args[0] if self.args and isinstance(self.args[0], dict) else {})

    def get(self, path: str, default: Any = None) -> Any:
        """A module, parameter, buffer or attribute below this one, as ``"readouts.1.linear"``; the default if none."""
        found: Any = self
        for name in path.split("."):
            if not isinstance(found, Record):
                return default
            held = found.plain()
            parts = [held.get(key) or {} for key in ("_modules", "_parameters", "_buffers")]
            found = next((part[name] for part in (*parts, held) if name in part), default)
        return found

    def modules(self, prefix: str = "") -> Iterator[tuple[str, "Record"]]:
        """This module and those below it, by name."""
        yield prefix, self
        for name, module in _part(self, "_modules"):
            if isinstance(module, Record):
                yield from module.modules(f"{prefix}.{name}" if prefix else name)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of this module and those below it, by name, as in a state dict."""
        return {
            f"{path}.{name}" if path else name: tensor
            for path, module in self.modules()
            for kind in ("_parameters", "_buffers")
            for name, tensor in _part(module, kind)
            if isinstance(tensor, Tensor)
        }


def read_records(path: Path, allowed: tuple[str, ...], remedy: str) -> Any:
    """What a file of ``torch.save`` holds. Tensors are real, in main memory; all else is records and plain values.

    ``allowed`` are the names that it may hold, or beginnings of names that end with a dot. Raises IntegrityError, with
    the remedy, where it holds another or cannot be read; then nothing was opened.
    """

    def stand_in(name: str) -> type[Record] | None:
        return type("Record", (Record,), {"path": name}) if _is_allowed(name, allowed) else None

    return read_pickle(path, stand_in, remedy)


def _is_allowed(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name.startswith(one) if one.endswith(".") else name == one for one in allowed)


def _part(module: Record, key: str) -> Iterator[tuple[str, Any]]:
    part = module.plain().get(key)
    if isinstance(part, Mapping):
        yield from part.items()
