"""A teacher that answers from another process, where its packages may differ from those of this one.

The worker (``zoo/teachers/worker.py``) is started by the Python of the family's environment, which is given zoo's own
code alone of all that is installed here. It ends when the potential does, when this process does, and when a question
is interrupted; the next question starts another. It answers one question at a time: threads that share it wait in turn.
"""

import os
import selectors
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Never

import torch
from torch import Tensor

import zoo.errors
from zoo.derivatives import Side
from zoo.errors import (
    CapabilityError,
    IntegrityError,
    MissingPackageError,
    OutOfMemoryError,
    WorkerError,
    ZooError,
    ZooWarning,
)
from zoo.graph import Graph
from zoo.memory import Kept
from zoo.potential import Potential, Prediction, Traits
from zoo.teachers.base import Teacher
from zoo.teachers.environments import BOOT, code_folder, family_at, in_use, variables
from zoo.teachers.wire import OUT_OF_MEMORY, VERSION, Message, graph_tensors, prediction_of, receive, send

_PATIENCE = 3.0  # seconds that a worker is given to end by itself
_LOOK_SECONDS = 0.5  # how often it is asked whether it lives, while its answer is awaited
_LINES, _LINE = 500, 4096  # of what a worker prints: lines that are kept, bytes of one
_WORDS, _WORD = 3, 200  # of that, in a message: lines, characters of one
_AGAIN = "run the same again, which starts another"
_SMALLER = f"{_AGAIN}; if that is killed too, take smaller structures, or a machine with more memory"

_STARTING = threading.Lock()
_START = BOOT + "from zoo.teachers.worker import main\nmain()\n"


def load_remote(name: str, dtype: torch.dtype, device: torch.device | str, python: Path) -> Teacher:
    """A teacher in a worker that ``python`` runs. Raises WorkerError, and what loading it there raises."""
    potential = RemotePotential(Workplace(name, python), dtype, torch.device(device))
    return Teacher(potential=potential, **potential.told)


@dataclass(frozen=True)
class Workplace:
    """Which teacher a worker is for, and what runs it."""

    name: str
    python: Path

    @property
    def mending(self) -> str | None:
        """What helps where packages of its environment cannot be imported; None outside of one."""
        family = family_at(self.python)
        return f"run: zoo teachers remove {family}, then: zoo teachers install {family}" if family else None

    def command(self, dtype: torch.dtype, device: torch.device, pipes: Sequence[int]) -> list[str]:
        """How it is started. The paths and packages of this process are hidden from another one's Python."""
        own = self.python == Path(sys.executable)
        told = {
            "--dtype": str(dtype).removeprefix("torch."),
            "--device": str(device),
            "--threads": str(torch.get_num_threads()),
            "--parent": str(os.getpid()),
        }
        options = [word for pair in told.items() for word in pair]
        start = [str(self.python), "-P" if own else "-I", "-u", "-c", _START, code_folder()]
        return [*start, self.name, *options, "--pipes", *map(str, pipes)]


class RemotePotential(Potential):
    """What a teacher says, asked over pipes: the same numbers, to the bit, as from the same packages in this process.

    It has no parameters here, and what it says cannot be differentiated. A copy, and another process, have workers of
    their own.
    """

    place: Tensor

    def __init__(self, workplace: Workplace, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.workplace = workplace
        self._worker: Worker | None = None
        self._kept: dict[int, Kept] = {}  # thread -> what counts what the worker keeps for its questions
        # where answers are given, and in which type
        self.register_buffer("place", torch.zeros((), dtype=dtype, device=device), persistent=False)
        facts = self._running().hello.facts
        self.told: dict[str, Any] = facts["teacher"]  # all of a Teacher but its potential
        self.cutoff, self.elements = float(facts["cutoff"]), tuple(facts["elements"])
        self.traits = Traits(**facts["traits"])

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_worker": None, "_kept": {}}

    @property
    def dtype(self) -> torch.dtype:
        return self.place.dtype

    @property
    def device(self) -> torch.device:
        return self.place.device

    def atomic_energies(self, graph: Graph) -> Tensor:
        return self._ask("atomic_energies", graph_tensors(graph))["energies"]

    def reference_energies(self, numbers: Tensor) -> Tensor:
        return self._ask("reference_energies", {"numbers": numbers})["energies"]

    def element_embeddings(self) -> Tensor | None:
        table = self._running().hello.tensors.get("element_embeddings")
        return None if table is None else table.to(self.device)

    @contextmanager
    def counting(self, kept: Kept) -> Iterator[None]:
        self._kept[threading.get_ident()] = kept
        try:
            yield
        finally:
            self._kept.pop(threading.get_ident(), None)

    def free_memory(self) -> int:
        """Of a GPU what the worker may take, which keeps there what it has taken before."""
        return int(self._ask("free_memory", {})["bytes"]) if self.device.type == "cuda" else super().free_memory()

    def predict(
        self,
        graph: Graph,
        *,
        forces: bool = True,
        stress: bool = False,
        probes: Tensor | None = None,
        side: Side = "rows",
        features: bool = False,
        gradient: bool = False,
        create_graph: bool = False,
    ) -> Prediction:
        """As in this process, but for ``create_graph``, which raises CapabilityError. Raises WorkerError too."""
        if create_graph and threading.get_ident() not in self._kept:
            raise CapabilityError(
                f"{self.workplace.name} answers from a process of its own, and its answers cannot be differentiated "
                "here; leave create_graph out, or install its package beside zoo"
            )
        given = {} if probes is None else {"probes": probes}
        options = {"forces": forces, "stress": stress, "side": side, "features": features, "gradient": gradient}
        options["create_graph"] = create_graph
        return prediction_of(self._ask("predict", graph_tensors(graph) | given, **options))

    def hessian(self, graph: Graph, rows: Tensor | None = None) -> Tensor:
        given = {} if rows is None else {"rows": rows}
        return self._ask("hessian", graph_tensors(graph) | given)["hessian"]

    def force_columns(self, graph: Graph, probes: Tensor) -> Tensor:
        return self._ask("force_columns", graph_tensors(graph) | {"probes": probes})["columns"]

    def ping(self) -> None:
        """Raises WorkerError where no worker answers."""
        self._ask("ping", {})

    def close(self) -> None:
        """Ends the worker; the next question starts another."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _ask(self, what: str, tensors: dict[str, Tensor], **options: object) -> dict[str, Tensor]:
        kept = self._kept.get(threading.get_ident())
        facts = {
            "ask": what,
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "count": kept is not None,
        }
        answer = self._running().ask(Message(facts | options, tensors))
        if kept is not None:
            kept.add_elsewhere(*answer.facts["kept"])
        return {name: tensor.to(self.device) for name, tensor in answer.tensors.items()}

    def _running(self) -> "Worker":
        """The worker, started where there is none of this process, type and device that lives."""
        if (worker := self._serving()) is not None:
            return worker
        with _STARTING:
            if (worker := self._serving()) is None:  # else another thread has started it meanwhile
                self.close()
                worker = self._worker = self._started()
            return worker

    def _serving(self) -> "Worker | None":
        worker = self._worker
        return worker if worker is not None and worker.serves(self.dtype, self.device) else None

    def _started(self) -> "Worker":
        """A new worker, of the teacher that the others were of. Raises IntegrityError where it is of another."""
        fresh = Worker(self.workplace, self.dtype, self.device)
        known = vars(self).get("told")
        if known not in (None, fresh.hello.facts["teacher"]):
            fresh.close()
            raise IntegrityError(
                f"{self.workplace.name} is another one than it was: its package or its weights were changed "
                "meanwhile; run the same command again"
            )
        return fresh


class Worker:
    """A running worker, the pipes to it, and what it printed last."""

    def __init__(self, workplace: Workplace, dtype: torch.dtype, device: torch.device) -> None:
        """Started, and ready to be asked. Raises WorkerError, and what loading the teacher raised."""
        self.workplace, self.name, self._dtype, self._device = workplace, workplace.name, dtype, device
        self._turn, self._asked = threading.Lock(), 0  # held from a question to its answer; the number of the last
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        self._out, self._in = os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb", buffering=0)
        try:
            with in_use(workplace.python) as held:
                self._process = subprocess.Popen(
                    workplace.command(dtype, device, (theirs_in, theirs_out)),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs_in, theirs_out, *held),
                    env=variables(),
                )
        except OSError as error:
            self._out.close()
            self._in.close()
            raise WorkerError(
                f"the worker of {self.name} cannot be started ({workplace.python}: {error.strerror}); zoo teachers "
                "tells how the environments stand, and zoo teachers install makes one anew"
            ) from error
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._printed: deque[str] = deque(maxlen=_LINES)
        assert self._process.stdout is not None
        self._listener = threading.Thread(target=_listen, args=(self._process.stdout, self._printed), daemon=True)
        self._listener.start()
        self._greeting = True  # until it has said who it is
        self._owner = os.getpid()
        self._end = weakref.finalize(self, _end, self._process, (self._out, self._in), self._owner)
        self.hello = self._greeted()
        self._greeting = False

    def serves(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether it lives, answers in this type and on this device, and to this process: not to one forked from it."""
        return self._end.alive and (self._dtype, self._device, self._owner) == (dtype, device, os.getpid())

    def ask(self, question: Message) -> Message:
        """Its answer. Raises the error of zoo that the worker raised; WorkerError for others, and where it died."""
        answer = self._exchange(question)
        if "error" in answer.facts:
            self._raise(answer.facts["error"])
        return answer

    def close(self, *, at_once: bool = False) -> None:
        """Ends it, without waiting for an answer where it is to be at once."""
        if at_once and self._owner == os.getpid():
            self._process.kill()
        self._end()

    def _greeted(self) -> Message:
        hello = self._exchange(None)
        if "error" in hello.facts:
            self.close()
            self._raise(hello.facts["error"])
        if hello.facts.get("wire") != VERSION:
            self.close(at_once=True)
            raise WorkerError(
                f"the worker of {self.name} speaks version {hello.facts.get('wire')} of zoo's messages, expected "
                f"{VERSION}; end it, and run the same again"
            )
        return hello

    def _exchange(self, question: Message | None) -> Message:
        """The answer to a question, or the greeting to none; what zoo warned of there is shown."""
        with self._turn:
            if not self._end.alive:
                raise WorkerError(f"the worker of {self.name} was ended while another thread asked it; {_AGAIN}")
            answer = self._answer(question)
        for note in answer.facts.get("notes", ()):
            warnings.warn(note, ZooWarning, stacklevel=5)
        return answer

    def _answer(self, question: Message | None) -> Message:
        """Whatever goes wrong on the way, the pipes are of no more use: the worker is ended."""
        try:
            if question is not None:
                self._asked += 1
                send(self._out, Message(question.facts | {"number": self._asked}, question.tensors))
            answer = receive(self._read)
            if answer is not None and (number := answer.facts.get("number", 0)) != self._asked:
                raise WorkerError(f"to question {number}, expected to question {self._asked}")
        except CapabilityError:  # a question too large, of which nothing was sent
            raise
        except WorkerError as error:
            raise self._failed(str(error).partition(";")[0]) from error
        except (OSError, ValueError) as error:  # nobody reads what is asked, or another thread has closed the pipes
            raise self._failed() from error
        except BaseException:  # Ctrl-C, above all
            self.close(at_once=True)
            raise
        if answer is None:
            raise self._failed()
        return answer

    def _read(self, size: int) -> bytes:
        """Looks now and then whether the worker lives: what it has started may keep its end of the pipe open."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._in, selectors.EVENT_READ)
            while not selector.select(_LOOK_SECONDS):
                if self._process.poll() is not None and not selector.select(0):
                    return b""
        return self._in.read(size) or b""

    def _failed(self, why: str = "") -> WorkerError:
        """The error for a worker that died, or that sent what is no message."""
        try:
            code = self._process.wait(_LOOK_SECONDS if why else _PATIENCE)
        except subprocess.TimeoutExpired:
            code = None  # it lives, and is ended for what it sent
        self.close(at_once=True)
        self._listener.join(_PATIENCE)
        told = f"answered amiss: {why}" if why else "closed its end of the pipe"
        told = told if code is None else _ending(code)
        words = _last_words(self._printed)
        words = f"; its last words: {words}" if words else ""
        return WorkerError(f"the worker of {self.name} {told}{words}; {self._remedy(code)}")

    def _remedy(self, code: int | None) -> str:
        """What helps against the end of a process with this code; None of one that lived."""
        if code == -signal.SIGKILL:
            return _SMALLER
        failed = self._greeting and code is not None and code > 0  # before it was ready: above all its packages
        return (self.workplace.mending if failed else None) or _AGAIN

    def _raise(self, told: dict[str, str]) -> Never:
        """Raises at home what a worker raised."""
        kind, missing = getattr(zoo.errors, told["kind"], None), told["missing"]
        if missing and (mending := self.workplace.mending) is not None:
            raise MissingPackageError(
                f"the environment of {self.name} cannot import what it needs ({missing}); {mending}"
            )
        if isinstance(kind, type) and issubclass(kind, ZooError):
            raise kind(told["text"])
        reason = " ".join(told["text"].split())[:_WORD]
        if told["kind"] == OUT_OF_MEMORY:
            raise OutOfMemoryError(f"{self.name}: {reason}; take smaller structures, or a machine with more memory")
        error = WorkerError(f"{self.name} failed in its worker ({told['kind']}: {reason}); {_AGAIN}")
        error.add_note(f"In the worker:\n{told['traceback']}")
        raise error


def _listen(stream: BinaryIO, printed: deque[str]) -> None:
    """Keeps the last of what a worker prints, until it ends."""
    with stream:
        for line in iter(partial(stream.readline, _LINE), b""):
            printed.append(line.decode(errors="replace").rstrip())


def _end(process: "subprocess.Popen[bytes]", pipes: Sequence[BinaryIO], owner: int) -> None:
    """Lets go of a worker, which ends when its questions do; a process that was forked from its owner leaves it be."""
    for pipe in pipes:
        with suppress(OSError):  # what was not yet sent has no reader
            pipe.close()
    if os.getpid() != owner:
        process.returncode = 0
        return
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ending(code: int) -> str:
    """How a process ended."""
    if code >= 0:
        return f"ended with the exit code {code}"
    try:
        name = f" ({signal.Signals(-code).name})"
    except ValueError:
        name = ""
    return f"was killed by signal {-code}{name}{', maybe for want of memory' if -code == signal.SIGKILL else ''}"


def _last_words(printed: Sequence[str]) -> str:
    """The last lines that say something: not where in the code they come from."""
    lines = [line for line in printed if line and not line[0].isspace() and not line.startswith("Traceback (")]
    return " | ".join(line[:_WORD] for line in lines[-_WORDS:])
