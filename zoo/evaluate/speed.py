"""How long an engine takes to answer, measured beside others in one run."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from tqdm import tqdm

BLOCK = 4  # timed calls of one engine in a row
MOVE = 0.01  # Å, standard deviation: far enough that no calculator answers from memory

Call = Callable[[], object]  # what is timed


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median and quartiles."""

    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int


def time_calls(
    calculators: dict[str, Calculator],
    atoms: Atoms,
    *,
    repeats: int,
    generator: np.random.Generator,
    threads: int | None = None,
) -> dict[str, Timing]:
    """Energy and forces of ``atoms`` through each ASE calculator, timed in turns.

    Atoms are moved at random before each call, by so little that a neighbour list with a skin holds, as in dynamics.
    ``repeats`` and ``threads`` as in ``time_in_turns``.
    """
    calls = {name: calculator_turn(calculator, atoms, generator) for name, calculator in calculators.items()}
    return time_in_turns(calls, repeats=repeats, threads=threads)


def time_in_turns(
    calls: Mapping[str, Callable[[], Call]],
    *,
    repeats: int,
    turn_s: float = 0.0,
    threads: int | None = None,
    excused: Callable[[str, Exception], bool] | None = None,
) -> dict[str, Timing]:
    """The time of each call; what makes one ready, and returns it, is not timed.

    The calls take turns, so that what else the machine does falls on all alike. A turn begins with a call that is not
    timed: what an engine needs is then in the caches, as it is in dynamics. Up to BLOCK timed calls follow, ``repeats``
    in all turns together; a turn of fast calls goes on for ``turn_s`` seconds, so that they are timed more often.
    ``threads`` is PyTorch's number for the run; None leaves it. What raises an error ends the run, unless ``excused``,
    which gets its name and the error, is true of it: then it alone ends, and has no time.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    with pytorch_threads(threads):
        for done in tqdm(range(0, repeats, BLOCK), desc="timing", unit="turn", delay=2):
            for name in list(taken):
                try:
                    taken[name] += _turn(calls[name], min(BLOCK, repeats - done), turn_s)
                except Exception as error:
                    if excused is None or not excused(name, error):
                        raise
                    del taken[name]
    return {name: _timing(milliseconds) for name, milliseconds in taken.items()}


def calculator_turn(calculator: Calculator, atoms: Atoms, generator: np.random.Generator) -> Callable[[], Call]:
    """Makes ready to ask a calculator for forces and energy of atoms that have moved since."""

    def ready() -> Call:
        moved = move(atoms, generator)
        moved.calc = calculator

        def ask() -> None:
            moved.get_forces()
            moved.get_potential_energy()

        return ask

    return ready


def move(atoms: Atoms, generator: np.random.Generator) -> Atoms:
    """A copy, each atom of it moved at random by about MOVE."""
    moved = atoms.copy()
    moved.positions += MOVE * generator.standard_normal((len(atoms), 3))
    return moved


def time_once(call: Call) -> float:
    """Milliseconds."""
    _wait_for_device()
    start = time.perf_counter()
    call()
    _wait_for_device()
    return (time.perf_counter() - start) * 1000


@contextmanager
def pytorch_threads(count: int | None) -> Iterator[None]:
    """As many threads of PyTorch as that in the block; None leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _turn(ready: Callable[[], Call], least: int, turn_s: float) -> list[float]:
    ready()()
    end = time.perf_counter() + turn_s
    taken: list[float] = []
    while len(taken) < least or time.perf_counter() < end:
        taken.append(time_once(ready()))
    return taken


def _timing(milliseconds: list[float]) -> Timing:
    low, median, high = np.percentile(milliseconds, [25, 50, 75])
    return Timing(float(median), float(low), float(high), len(milliseconds))


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
