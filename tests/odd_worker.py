"""A worker that does what a worker must not, or tells what it was told: the first argument says which.

Started as ``zoo.teachers.worker`` is, with the folder of zoo's code first.
"""

import os
import signal
import sys
import time
import warnings
from dataclasses import replace
from typing import Any, BinaryIO

import torch

import zoo.teachers.worker as worker
from zoo.errors import DomainError, ZooWarning
from zoo.graph import Graph
from zoo.potential import Prediction
from zoo.teachers import Teacher, load_here
from zoo.teachers.stillinger_weber import StillingerWeber
from zoo.teachers.wire import VERSION, Message, send

HARMLESS = ("refuses", "fails", "full", "warns", "threads", "deterministic")  # by the number of structures


class Odd(StillingerWeber):
    """Stillinger and Weber's, until it is asked for forces."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def predict(self, graph: Graph, **options: Any) -> Prediction:
        kind = HARMLESS[graph.num_structures - 1] if self.kind == "harmless" else self.kind
        if kind in ACTS:
            ACTS[kind]()
        found = super().predict(graph, **options)
        return told(found, kind) if kind in ("threads", "deterministic") else found


def be_killed() -> None:
    sys.stdout.write("something went wrong\n")
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise KeyError("no such key")


def refuse() -> None:
    raise DomainError("Ge has no parameters; take silicon")


def find_no_memory() -> None:
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def warn() -> None:
    warnings.warn("it is old", ZooWarning, stacklevel=2)
    warnings.warn("it is deprecated", DeprecationWarning, stacklevel=2)


def shout() -> None:
    """Whatever a package may print, and read."""
    sys.stdout.write("a word from Python\n")
    sys.stderr.write("a word aside\n")
    os.write(1, b"a word from C\n" * 3000)
    assert sys.stdin.read() == ""


ACTS = {
    "prints": shout,
    "killed": be_killed,
    "exits": lambda: sys.exit(7),
    "fails": fail,
    "refuses": refuse,
    "full": find_no_memory,
    "warns": warn,
    "sleeps": lambda: time.sleep(600),
}


def told(found: Prediction, kind: str) -> Prediction:
    """With what is set here in the place of the energy."""
    value = torch.get_num_threads() if kind == "threads" else torch.are_deterministic_algorithms_enabled()
    return replace(found, energy=torch.full_like(found.energy, float(value)))


def answer_another(stream: BinaryIO, message: Message) -> None:
    """What looks like the answer to the question before."""
    send(stream, Message(message.facts | {"number": 0}, message.tensors))


def load(kind: str) -> Teacher:
    """Stillinger and Weber's, odd."""
    teacher = load_here("stillinger-weber/teacher", dtype=torch.float64)
    if kind in ("ages", "expires"):
        warn()
    if kind == "expires":
        raise DomainError("it is too old; take another")
    return replace(teacher, potential=Odd(kind).double().eval())


def rude(kind: str, answers: int) -> None:
    """What writes to the pipe itself."""
    if kind == "garbage":
        os.write(answers, b"Downloading model weights ...\n")
    elif kind == "cut":
        os.write(answers, b"zoo!\x40\x00\x00\x00" + bytes(8) + b'{"wire"')
    elif kind == "old":
        with os.fdopen(answers, "wb") as stream:
            send(stream, Message({"wire": VERSION + 1}))
    time.sleep(0 if kind == "cut" else 600)


def main() -> None:
    kind = sys.argv.pop(1)
    if kind in ("garbage", "cut", "old"):
        rude(kind, int(sys.argv[-1]))
    elif kind == "early":
        raise ImportError("cannot import name 'Irreps'")
    else:
        if kind == "prints":
            shout()
        if kind == "another":
            worker.send = answer_another
        worker.load_here = lambda name, **options: load(kind)
        worker.main()


main()
