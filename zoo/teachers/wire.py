"""Messages between zoo and a worker: facts as JSON and tensors as safetensors, never a pickle.

A message is a head of fixed size, ``zoo!``, the bytes of its facts and those of its tensors, and then both. What does
not begin so, is longer than a message can be, or ends too early is an error that says so.
"""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.numpy import save
from safetensors.torch import load
from torch import Tensor

from zoo.errors import CapabilityError, WorkerError
from zoo.graph import Graph
from zoo.potential import Prediction

VERSION = 1  # of the messages; both ends say theirs
OUT_OF_MEMORY = "out of memory"  # the kind of an error that smaller questions may help
MOST_FACTS = 1 << 24  # bytes
MOST_TENSORS = 1 << 32  # bytes: the Hessian of 7,700 atoms in float64
_MAGIC = b"zoo!"
_HEAD = struct.Struct("<4sIQ")
_CHUNK = 1 << 24  # bytes that are asked for at once
_ODD = 24  # bytes that are shown of what is no message
_END_BOTH = "end both processes, and run the same again"

Read = Callable[[int], bytes]  # up to so many bytes, at least one; none at the end of the stream


@dataclass(frozen=True)
class Message:
    """Facts that JSON can hold, and tensors by name."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


def send(stream: BinaryIO, message: Message) -> None:
    """Writes a message. Raises CapabilityError for one that is too large, OSError where nobody reads any longer."""
    facts, tensors = json.dumps(message.facts, allow_nan=False).encode(), _packed(message.tensors)
    if len(facts) > MOST_FACTS or len(tensors) > MOST_TENSORS:
        raise CapabilityError(
            f"{(len(facts) + len(tensors)) / 1e9:.1f} GB are too much for one message to or from a worker, which takes "
            f"{MOST_TENSORS / 1e9:.1f} GB; ask for fewer probes or rows at once"
        )
    stream.write(_HEAD.pack(_MAGIC, len(facts), len(tensors)))
    stream.write(facts)
    stream.write(tensors)
    stream.flush()


def receive(read: Read) -> Message | None:
    """The next message; None where the stream ends before one. Raises WorkerError for what is no message."""
    head = _exactly(read, _HEAD.size, may_end=True)
    if not head:
        return None
    magic, of_facts, of_tensors = _HEAD.unpack(head)
    if magic != _MAGIC or of_facts > MOST_FACTS or of_tensors > MOST_TENSORS:
        raise WorkerError(f"{head[:_ODD]!r} came where a message was expected; {_END_BOTH}")
    facts, tensors = _exactly(read, of_facts), _exactly(read, of_tensors)
    try:
        found = json.loads(facts)
        if not isinstance(found, dict):
            raise ValueError("the facts are no table")
        return Message(found, load(tensors) if tensors else {})
    except (ValueError, SafetensorError) as error:
        raise WorkerError(f"a message cannot be read ({error}); {_END_BOTH}") from error


def graph_tensors(graph: Graph) -> dict[str, Tensor]:
    """A graph by the names of its parts."""
    return {f"graph.{part.name}": getattr(graph, part.name) for part in fields(graph)}


def graph_of(tensors: Mapping[str, Tensor]) -> Graph:
    """The graph of a message. Raises WorkerError."""
    try:
        return Graph(**{part.name: tensors[f"graph.{part.name}"] for part in fields(Graph)})
    except KeyError as error:
        raise WorkerError(f"a message lacks {error}; {_END_BOTH}") from None


def prediction_tensors(prediction: Prediction) -> dict[str, Tensor]:
    """What a prediction holds."""
    return {name: part for name, part in vars(prediction).items() if part is not None}


def prediction_of(tensors: Mapping[str, Tensor]) -> Prediction:
    """The prediction of a message. Raises WorkerError."""
    try:
        return Prediction(**tensors)
    except TypeError as error:
        raise WorkerError(f"an answer is no prediction ({error}); {_END_BOTH}") from error


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    """By way of NumPy, for tensors may share their memory; contiguous, for safetensors takes the bytes as they lie."""
    return (
        save({name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}) if tensors else b""
    )


def _exactly(read: Read, size: int, *, may_end: bool = False) -> bytes:
    """So many bytes; none at the end of the stream, where it may end. Raises WorkerError where it is cut."""
    found = bytearray()
    while len(found) < size:
        part = read(min(size - len(found), _CHUNK))
        if not part:
            break
        found += part
    if len(found) < size and not (may_end and not found):
        raise WorkerError(f"the stream was cut after {len(found)} of {size} bytes of a message; {_END_BOTH}")
    return bytes(found)
