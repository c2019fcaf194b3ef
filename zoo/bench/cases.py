"""What is timed: structures of rising size and batches of them, each asked in every way of every runner, in turns."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import inf, log
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_AS, getpagesize, getrlimit, setrlimit

import numpy as np
import torch
from ase import Atoms

from zoo.bench.runners import Ask, Runner, Way, forces_of
from zoo.engine import Engine
from zoo.errors import ZooError
from zoo.evaluate.speed import Call, Timing, move, pytorch_threads, time_in_turns, time_once
from zoo.memory import free_memory, is_out_of_memory, until_out_of_memory
from zoo.neighbors import build_graph
from zoo.units import MEV_PER_EV

_ALONE: tuple[Way, ...] = ("ase", "potential")
TURN_S = 0.05  # that a turn of fast calls goes on for
_STATM = Path("/proc/self/statm")
_SHARE = 0.9  # of the free memory, that a call may take
_REACH = 8  # times as many atoms, for which a time is foretold: calls have costs that do not grow with them


@dataclass(frozen=True)
class Case:
    """Structures that are asked together, in one way."""

    way: Way
    structures: tuple[Atoms, ...]
    edges: int  # within the cutoff of the engine, of all structures

    @property
    def atoms(self) -> int:
        return sum(len(atoms) for atoms in self.structures)


@dataclass(frozen=True)
class Row:
    """One runner in one case: its time, or why there is none."""

    name: str
    kind: str
    way: Way
    structures: int
    atoms: int  # of all structures
    edges: int
    timing: Timing | None = None
    note: str | None = None
    force_difference_meV_A: float | None = None  # the largest, from the engine in float64 by PyTorch

    @property
    def us_atom(self) -> float | None:
        """Microseconds an atom."""
        return None if self.timing is None else self.timing.median_ms * 1000 / self.atoms


@dataclass(frozen=True)
class Pace:
    """How long a call took, or was foretold to take."""

    seconds: float
    atoms: int

    def foretell(self, atoms: int) -> float:
        """Seconds for another number of atoms; for far more, that they take as long as these at least."""
        return self.seconds * (atoms / self.atoms if atoms <= _REACH * self.atoms else 1.0)


def repeated(atoms: Atoms, count: int) -> Atoms:
    """A structure, repeated where it is periodic to about ``count`` atoms and about a cube."""
    best, cells = atoms, np.ones(3, dtype=int)
    axes = np.flatnonzero(atoms.pbc)
    lengths = atoms.cell.lengths()
    while len(axes) and len(atoms) * cells.prod() < count:
        cells[axes[np.argmin((lengths * cells)[axes])]] += 1
        if _away(len(atoms) * int(cells.prod()), count) < _away(len(best), count):
            best = atoms.repeat(tuple(int(cell) for cell in cells))
    return best


def scenes(base: Sequence[Atoms], counts: Sequence[int]) -> list[Atoms]:
    """Structures of about these numbers of atoms, each number once; molecules are as they are, and not repeated."""
    smallest = min(base, key=len)
    many = [repeated(smallest, count) for count in counts] if any(smallest.pbc) else list(base)
    return sorted({len(atoms): atoms for atoms in many}.values(), key=len)


def plan_cases(base: Sequence[Atoms], counts: Sequence[int], batches: Sequence[int], cutoff: float) -> Iterator[Case]:
    """Each size through ASE and alone, then the smallest in batches."""
    found = scenes(base, counts)
    for atoms in found:
        edges = build_graph(atoms, cutoff).num_edges
        for way in _ALONE:
            yield Case(way, (atoms,), edges)
    edges = build_graph(found[0], cutoff).num_edges
    for size in batches:
        yield Case("batch", (found[0],) * size, size * edges)


def measure(
    case: Case,
    runners: Sequence[Runner],
    *,
    repeats: int,
    exact: Engine | None = None,
    patience_s: float = inf,
    paces: dict[str, Pace] | None = None,
    threads: int | None = None,
    seed: int = 0,
) -> list[Row]:
    """A row for each runner that can be asked in this way.

    Own ones are compared with ``exact``. A runner that fails, has not the memory, or whose call takes longer than
    ``patience_s``, is a row that says so; it is not even tried where ``paces``, of its earlier cases, foretell that.
    They are brought up to date.
    """
    generator, known = np.random.default_rng(seed), {} if paces is None else paces
    able = [runner for runner in runners if case.way in runner.ways]
    with pytorch_threads(threads):
        notes = {one.name: _try(one, case, generator, patience_s, known) for one in able}
        timed = [runner for runner in able if notes[runner.name] is None]
        differences = {} if exact is None else _differences(case, timed, exact, generator)
        times = _times(case, timed, generator, repeats, notes)
    known.update({name: Pace(timing.median_ms / 1000, case.atoms) for name, timing in times.items()})
    return [
        Row(
            name=one.name,
            kind=one.kind,
            way=case.way,
            structures=len(case.structures),
            atoms=case.atoms,
            edges=case.edges,
            timing=times.get(one.name),
            note=notes[one.name],
            force_difference_meV_A=differences.get(one.name),
        )
        for one in able
    ]


def measure_all(
    many: Iterable[Case],
    runners: Sequence[Runner],
    *,
    repeats: int,
    exact: Engine | None,
    patience_s: float,
    threads: int | None,
) -> Iterator[Row]:
    """The rows of all cases, as they come; what was slow on a small structure is left out on a large one."""
    paces: dict[str, Pace] = {}
    for case in many:
        yield from measure(
            case, runners, repeats=repeats, exact=exact, patience_s=patience_s, paces=paces, threads=threads
        )


def _moving(runner: Runner, case: Case, generator: np.random.Generator) -> Callable[[], Call]:
    """Makes ready to ask after atoms have moved; alone, a potential is asked of the same graph again."""
    ask = runner.ways[case.way]
    if case.way == "potential":
        call = ask(case.structures)
        return lambda: call
    return lambda: ask([move(atoms, generator) for atoms in case.structures])


def _try(
    runner: Runner, case: Case, generator: np.random.Generator, patience_s: float, paces: dict[str, Pace]
) -> str | None:
    """Two calls, the first of which compiles what has to be. Why it is not to be timed, or None."""
    expected_s = paces[runner.name].foretell(case.atoms) if runner.name in paces else 0.0
    if expected_s > patience_s:
        paces[runner.name] = Pace(expected_s, case.atoms)
        return f"left out: a call would take more than {patience_s:g} s"
    try:
        with within_free_memory():
            ready = _moving(runner, case, generator)
            ready()()
            took_s = time_once(ready()) / 1000
    except _foreign(runner) as error:
        return _why(error)
    if took_s <= patience_s:
        return None
    paces[runner.name] = Pace(took_s, case.atoms)
    return f"left out: a call took {took_s:.0f} s"


def _times(
    case: Case, timed: Sequence[Runner], generator: np.random.Generator, repeats: int, notes: dict[str, str | None]
) -> dict[str, Timing]:
    """Of each runner; one that fails late gets its note, and the others go on."""
    by_name = {runner.name: runner for runner in timed}

    def excused(name: str, error: Exception) -> bool:
        if not isinstance(error, _foreign(by_name[name])):
            return False
        notes[name] = _why(error)
        return True

    ready: dict[str, Callable[[], Call]] = {}
    with within_free_memory():
        for name, runner in by_name.items():
            try:
                ready[name] = _moving(runner, case, generator)
            except _foreign(runner) as error:
                notes[name] = _why(error)
        return time_in_turns(ready, repeats=repeats, turn_s=TURN_S, excused=excused)


def _foreign(runner: Runner) -> tuple[type[Exception], ...]:
    """Errors that are not a fault of this program; peers raise anything."""
    return (Exception,) if runner.kind == "peer" else (ZooError, MemoryError, RuntimeError)


def _why(error: Exception) -> str:
    if is_out_of_memory(error):
        return "out of memory"
    text = " ".join(str(error).split())
    return text if isinstance(error, ZooError) else f"{type(error).__name__}: {text}"


def _differences(
    case: Case, timed: Sequence[Runner], exact: Engine, generator: np.random.Generator
) -> dict[str, float]:
    """meV/Å, the largest of a force component of own runners; nothing where there is no answer, as for want of memory.

    Atoms are moved before: in a perfect crystal all forces are zero, whoever is asked.
    """
    moved = [move(atoms, generator) for atoms in case.structures]
    own = {runner.name: runner.ways[case.way] for runner in timed if runner.kind == "own"}
    expected = _answer(lambda structures: lambda: exact.predict(structures), moved) if own else None
    found = {} if expected is None else {name: _answer(ask, moved) for name, ask in own.items()}
    return {
        name: float(np.abs(forces - expected).max()) * MEV_PER_EV
        for name, forces in found.items()
        if forces is not None
    }


def _answer(ask: Ask, structures: Sequence[Atoms]) -> np.ndarray | None:
    """(atoms, 3) eV/Å; None where the structures are refused or memory ends."""
    with suppress(ZooError), until_out_of_memory(), within_free_memory():
        return forces_of(ask(structures)())
    return None


@contextmanager
def within_free_memory() -> Iterator[None]:
    """What asks for more memory than is free gets an error, where Linux would end the process."""
    if not _STATM.exists() or torch.cuda.is_available():  # CUDA takes addresses without memory
        yield
        return
    soft, hard = getrlimit(RLIMIT_AS)
    taken = int(_STATM.read_text().split()[0]) * getpagesize()
    most = taken + int(_SHARE * free_memory(torch.device("cpu")))
    setrlimit(RLIMIT_AS, (min([most, *(limit for limit in (soft, hard) if limit != RLIM_INFINITY)]), hard))
    try:
        yield
    finally:
        setrlimit(RLIMIT_AS, (soft, hard))


def _away(atoms: int, count: int) -> float:
    return abs(log(atoms / count))
