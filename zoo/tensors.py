"""Files of tensors that are believed in nothing: names, types and shapes are known before a number is in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo.errors import IntegrityError
from zoo.naming import quoted

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

_MAX_HEADER_BYTES = 1 << 20
_LONGEST_WORD = 200  # characters, in a message
_DTYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "BOOL": torch.bool}
_OF_NUMBERS = (Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_, Tensor.div)  # that keep a shape


def read_tensors(path: Path, expected: Layout, remedy: str) -> dict[str, Tensor]:
    """Finite tensors of exactly these names, types and shapes. Raises IntegrityError, which ends with the remedy."""
    compare_layouts(path, read_layout(path, remedy), expected, remedy)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in expected}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise IntegrityError(f"{path}: {name} holds a number that is not finite; {remedy}")
    return tensors


def read_layout(path: Path, remedy: str) -> Layout:
    """Names, types and shapes in the header of a file. Raises IntegrityError."""
    _check_header(path, remedy)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in sorted(file.keys())}
            return {name: (_DTYPES[part.get_dtype()], tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, KeyError) as error:
        problem = shown(" ".join(str(error).split()))
        raise IntegrityError(f"{path} cannot be read as safetensors ({problem}); {remedy}") from error


def compare_layouts(path: Path, found: Layout, expected: Layout, remedy: str) -> None:
    """Raises IntegrityError, which names the first tensor that is not as expected."""
    lacking, strange = expected.keys() - found.keys(), found.keys() - expected.keys()
    if lacking:
        raise IntegrityError(f"{path} lacks {len(lacking)} tensors, {min(lacking)} among them; {remedy}")
    if strange:
        raise IntegrityError(f"{path} has {len(strange)} tensors too many, {shown(min(strange))} among them; {remedy}")
    for name, layout in expected.items():
        if found[name] != layout:
            difference = f"{name} is {_layout_text(found[name])}, expected {_layout_text(layout)}"
            raise IntegrityError(f"{path}: {difference}; {remedy}")


def shown(text: str) -> str:
    """A word of a file, quoted where it could garble a terminal or is no word."""
    return text if text.isprintable() and len(text) <= _LONGEST_WORD else quoted(text)


class WithoutParameters(TorchFunctionMode):
    """Parameters get no numbers and no memory; the rest of a module is made as ever.

    PyTorch's own way, the device ``meta``, imports its compiler for the first random number or quotient, which
    takes a second.
    """

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        given = options or {}
        if function in (torch.empty, torch.randn):
            return torch.empty(*arguments, **(given | {"device": "meta"}))
        if getattr(function, "__module__", None) == nn.init.__name__ and "tensor" in given:
            return given["tensor"]
        if function in _OF_NUMBERS and arguments[0].is_meta:
            return arguments[0]
        return function(*arguments, **given)


def _check_header(path: Path, remedy: str) -> None:
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= min(_MAX_HEADER_BYTES, path.stat().st_size - 8):
        raise IntegrityError(f"{path} is not safetensors, or is cut short (zoo opens no pickles); {remedy}")


def _layout_text(layout: tuple[torch.dtype, tuple[int, ...]]) -> str:
    return f"{str(layout[0]).removeprefix('torch.')} {list(layout[1])}"[:100]
