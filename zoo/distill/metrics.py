"""What training writes down as it goes."""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from zoo.config import write_json
from zoo.distill.loss import Terms
from zoo.files import atomic_write, sync

_RSS_PER_GIB = 1 << (30 if sys.platform == "darwin" else 20)  # bytes there, KiB elsewhere


class Metrics:
    """``metrics.jsonl``: one line a record, complete lines only, nothing after the step that a run goes on from.

    Times and memory go to ``timing.json`` instead, for they are never the same twice.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        self.timing = folder / "timing.json"
        folder.mkdir(parents=True, exist_ok=True)
        kept = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in kept if line.endswith("\n") and json.loads(line)["step"] <= step]
        atomic_write(self.path, "".join(kept))
        self.seconds = json.loads(self.timing.read_text())["seconds"] if step and self.timing.exists() else 0.0
        self.started = time.perf_counter()

    def write(self, step: int, split: str, terms: Terms, **more: Tensor) -> None:
        """Appends a record; it can be read at once."""
        values = {name: value.item() for name, value in [*terms.items(), *more.items()]}
        with self.path.open("a") as stream:
            stream.write(json.dumps({"step": step, "split": split, **values}) + "\n")

    def note(self, step: int, what: str) -> None:
        """Appends an event in words."""
        with self.path.open("a") as stream:
            stream.write(json.dumps({"step": step, "split": "event", "what": what}) + "\n")

    def close(self) -> None:
        """Brings the records to the disk, and notes seconds of training, interruptions left out, and peak memory."""
        sync(self.path)
        seconds = self.seconds + time.perf_counter() - self.started
        write_json(self.timing, {"seconds": round(seconds, 3), "peak_memory_GiB": round(peak_memory(), 3)})


def peak_memory() -> float:
    """GiB: the most that this process held at once so far, on a GPU the most that its tensors took there."""
    if torch.cuda.is_available() and (most := torch.cuda.max_memory_allocated()) > 0:
        return most / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _RSS_PER_GIB
