"""The process that answers for one teacher, in an environment of its own: ``python -m zoo.teachers.worker``.

It is started by ``zoo/teachers/remote.py`` with a pipe for questions and one for answers. What its packages print goes
elsewhere, so that it cannot get between the answers. It says who it is, answers until the questions end, and ends with
the process that started it, whatever it is doing then.
"""

import argparse
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields
from typing import Any, BinaryIO

import torch
from torch import Tensor

from zoo.errors import MissingPackageError, WorkerError, ZooError, ZooWarning
from zoo.memory import Kept, is_out_of_memory
from zoo.ops import deterministic
from zoo.potential import Potential
from zoo.teachers import Teacher, load_here
from zoo.teachers.wire import OUT_OF_MEMORY, VERSION, Message, graph_of, prediction_tensors, receive, send

_LOOK_SECONDS = 1.0

Tensors = dict[str, Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads the teacher and answers. Never returns: nothing that a package does at its end keeps anybody waiting."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    asked = _parser().parse_args(arguments)
    for end in asked.pipes:
        os.set_inheritable(end, False)
    threading.Thread(target=_end_with, args=(asked.parent,), daemon=True).start()
    questions, answers = os.fdopen(asked.pipes[0], "rb"), os.fdopen(asked.pipes[1], "wb")
    torch.set_num_threads(asked.threads)
    code = 0
    try:
        _serve(asked, questions, answers)
    except BrokenPipeError:  # nobody is there any longer
        pass
    except SystemExit as end:  # of a package that means to end the program
        code = end.code if isinstance(end.code, int) else 1
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m zoo.teachers.worker", description="Answers for one teacher.")
    parser.add_argument("name")
    parser.add_argument("--dtype", choices=["float32", "float64"], required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True, help="number of the process that started this one")
    parser.add_argument("--pipes", type=int, nargs=2, required=True, help="file descriptors of questions and answers")
    return parser


def _end_with(parent: int) -> None:
    """Ends this process when the one that started it is gone, in the middle of an answer too."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(0)


def _serve(asked: argparse.Namespace, questions: BinaryIO, answers: BinaryIO) -> None:
    notes: list[str] = []
    with _noted(notes):
        try:
            teacher = load_here(asked.name, dtype=getattr(torch, asked.dtype), device=asked.device)
            hello = _hello(teacher)
        except Exception as error:
            _send(answers, _failure(error), notes)
            return
        _send(answers, hello, notes)
        while (question := receive(questions.read)) is not None:
            number = question.facts.get("number")
            try:
                _send(answers, _answer(teacher.potential, question), notes, number)
            except BrokenPipeError:
                raise
            except Exception as error:
                _send(answers, _failure(error), notes, number)


def _hello(teacher: Teacher) -> Message:
    """All that is known of a teacher before it is asked."""
    potential, facts = teacher.potential, {part.name: getattr(teacher, part.name) for part in fields(teacher)}
    del facts["potential"]
    table = potential.element_embeddings()
    told = {
        "wire": VERSION,
        "teacher": facts,
        "traits": asdict(potential.traits),
        "cutoff": potential.cutoff,
        "elements": potential.elements,
        "dtype": str(potential.dtype).removeprefix("torch."),
    }
    return Message(told, {} if table is None else {"element_embeddings": table})


def _answer(potential: Potential, question: Message) -> Message:
    """As the process that asks would compute it: with as many threads, by deterministic algorithms where it does."""
    facts, tensors = question.facts, question.tensors
    answer = _ANSWERS.get(facts.get("ask", ""))
    if answer is None:
        raise WorkerError(f"{facts.get('ask')!r} was asked; expected one of {', '.join(_ANSWERS)}")
    if facts["threads"] != torch.get_num_threads():
        torch.set_num_threads(facts["threads"])
    with deterministic() if facts["deterministic"] else nullcontext():
        if not facts["count"] or "graph.numbers" not in tensors:
            return Message({"kept": (0, 0)}, answer(potential, facts, tensors))
        graph = graph_of(tensors)
        kept = Kept(potential, graph.num_atoms, graph.num_edges)
        with potential.counting(kept):
            found = answer(potential, facts, tensors)
        return Message({"kept": kept.sizes}, found)


def _predict(potential: Potential, facts: dict[str, Any], tensors: Tensors) -> Tensors:
    graph, probes = graph_of(tensors).to(potential.device, potential.dtype), tensors.get("probes")
    found = potential.predict(
        graph,
        forces=facts["forces"],
        stress=facts["stress"],
        probes=None if probes is None else probes.to(potential.device),
        side=facts["side"],
        features=facts["features"],
        gradient=facts["gradient"],
        create_graph=facts["create_graph"],
    )
    return prediction_tensors(found)


def _hessian(potential: Potential, facts: dict[str, Any], tensors: Tensors) -> Tensors:
    rows = tensors.get("rows")
    graph = graph_of(tensors).to(potential.device, potential.dtype)
    return {"hessian": potential.hessian(graph, None if rows is None else rows.to(potential.device))}


def _force_columns(potential: Potential, facts: dict[str, Any], tensors: Tensors) -> Tensors:
    graph = graph_of(tensors).to(potential.device, potential.dtype)
    return {"columns": potential.force_columns(graph, tensors["probes"].to(potential.device))}


def _atomic_energies(potential: Potential, facts: dict[str, Any], tensors: Tensors) -> Tensors:
    with torch.no_grad():
        return {"energies": potential.atomic_energies(graph_of(tensors).to(potential.device, potential.dtype))}


def _reference_energies(potential: Potential, facts: dict[str, Any], tensors: Tensors) -> Tensors:
    return {"energies": potential.reference_energies(tensors["numbers"].to(potential.device))}


def _free_memory(potential: Potential, facts: dict[str, Any], tensors: Tensors) -> Tensors:
    return {"bytes": torch.tensor(potential.free_memory())}


def _ping(potential: Potential, facts: dict[str, Any], tensors: Tensors) -> Tensors:
    return {}


_ANSWERS: dict[str, Callable[[Potential, dict[str, Any], Tensors], Tensors]] = {
    "predict": _predict,
    "hessian": _hessian,
    "force_columns": _force_columns,
    "atomic_energies": _atomic_energies,
    "reference_energies": _reference_energies,
    "free_memory": _free_memory,
    "ping": _ping,
}


def _failure(error: Exception) -> Message:
    """An error by its class, its words and what could not be imported; of one not zoo's, where it was raised."""
    facts = {"kind": type(error).__name__, "text": str(error), "traceback": "", "missing": _not_importable(error)}
    if not isinstance(error, ZooError):
        traceback.print_exception(error)
        facts["traceback"] = "".join(traceback.format_exception(error))
    if not isinstance(error, ZooError) and is_out_of_memory(error):
        facts["kind"] = OUT_OF_MEMORY
    return Message({"error": facts})


def _not_importable(error: Exception) -> str:
    """What an import said, where an error is of one; else nothing."""
    found = error.__cause__ if isinstance(error, MissingPackageError) else error
    return " ".join(str(found).split()) if isinstance(found, ImportError) else ""


def _send(stream: BinaryIO, message: Message, notes: list[str], number: int | None = 0) -> None:
    """With what zoo warned of since the last one, and the number of the question that it answers."""
    send(stream, Message(message.facts | {"number": number, "notes": notes}, message.tensors))
    notes.clear()


@contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """Warnings of zoo are written down, to be shown where the questions come from; others are printed."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
            if issubclass(category, ZooWarning):
                notes.append(str(message))
            else:
                usual(message, category, *where, **options)

        warnings.showwarning = show
        warnings.simplefilter("always", ZooWarning)
        yield


if __name__ == "__main__":
    main()
