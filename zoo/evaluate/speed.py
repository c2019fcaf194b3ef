"""How long an engine takes to answer, measured beside others in one run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from tqdm import tqdm

BLOCK = 4  # timed calls of one engine in a row
MOVE = 0.01  # Å, standard deviation: far enough that no calculator answers from memory


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
    """Energy and forces of ``atoms`` through each ASE calculator, neighbour list included.

    The calculators take turns in blocks, so that what else the machine does falls on all alike. A block begins with
    a call that is not timed: what an engine needs is then in the caches, as it is in dynamics. Atoms are moved at
    random before each call. ``threads`` is PyTorch's number for the run; None leaves it.
    """
    taken: dict[str, list[float]] = {name: [] for name in calculators}
    blocks = -(-repeats // BLOCK)
    with _threads(threads):
        for _ in tqdm(range(blocks), desc="timing", unit="block", delay=2):
            for name, calculator in calculators.items():
                taken[name] += [_time_call(calculator, moved) for moved in _moved(atoms, generator)][1:]
    return {name: _timing(milliseconds[:repeats]) for name, milliseconds in taken.items()}


def _moved(atoms: Atoms, generator: np.random.Generator) -> Iterator[Atoms]:
    """One structure for each call of a block, the first of which is not timed."""
    for _ in range(BLOCK + 1):
        moved = atoms.copy()
        moved.positions += MOVE * generator.standard_normal((len(atoms), 3))
        yield moved


def _time_call(calculator: Calculator, atoms: Atoms) -> float:
    atoms.calc = calculator
    _wait_for_device()
    start = time.perf_counter()
    atoms.get_forces()
    atoms.get_potential_energy()
    _wait_for_device()
    return (time.perf_counter() - start) * 1000


def _timing(milliseconds: list[float]) -> Timing:
    low, median, high = np.percentile(milliseconds, [25, 50, 75])
    return Timing(float(median), float(low), float(high), len(milliseconds))


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
