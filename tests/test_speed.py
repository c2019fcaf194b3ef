import platform
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes

from zoo.evaluate.environment import hardware, versions
from zoo.evaluate.speed import BLOCK, Call, time_calls, time_in_turns

LOG: list[tuple[str, np.ndarray, int]] = []


class Sleeper(Calculator):
    """Takes a known time and notes who was asked, where the atoms were, and with how many threads."""

    implemented_properties = ("energy", "forces")

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__()
        self.label_, self.seconds = name, seconds

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        time.sleep(self.seconds)
        LOG.append((self.label_, self.atoms.positions.copy(), torch.get_num_threads()))
        self.results = {"energy": 0.0, "forces": np.zeros((len(self.atoms), 3))}


def test_calls_are_timed_in_turns_on_fresh_positions() -> None:
    LOG.clear()
    before = torch.get_num_threads()
    calculators = {"slow": Sleeper("slow", 0.02), "fast": Sleeper("fast", 0.002)}
    found = time_calls(calculators, bulk("Si"), repeats=5, generator=np.random.default_rng(1), threads=before + 1)
    assert 20 <= found["slow"].low_ms <= found["slow"].median_ms <= found["slow"].high_ms
    assert 2 <= found["fast"].median_ms < found["slow"].median_ms
    assert found["slow"].repeats == 5
    turns = [BLOCK + 1, 2]  # one call of a turn is not timed
    assert [name for name, _, _ in LOG] == [name for calls in turns for name in ["slow"] * calls + ["fast"] * calls]
    places = [positions.tobytes() for _, positions, _ in LOG]
    assert len(set(places)) == len(places)  # no calculator can answer from memory
    assert {threads for _, _, threads in LOG} == {before + 1}
    assert torch.get_num_threads() == before


def test_a_turn_of_fast_calls_goes_on_and_one_of_slow_calls_does_not() -> None:
    calls = {"slow": lambda: lambda: time.sleep(0.02), "fast": lambda: lambda: None}
    found = time_in_turns(calls, repeats=6, turn_s=0.04)
    assert found["slow"].repeats == 6
    assert found["fast"].repeats > 6


def test_making_ready_is_not_timed() -> None:
    def ready() -> Call:
        time.sleep(0.05)
        return lambda: None

    assert time_in_turns({"one": ready}, repeats=2)["one"].high_ms < 50


def test_what_fails_on_the_way_has_no_time_and_the_others_go_on_where_that_is_excused() -> None:
    count, noted = iter(range(100)), []

    def late() -> None:
        if next(count) == 3:
            raise ValueError("moved too far")

    calls = {"late": lambda: late, "whole": lambda: lambda: None}
    found = time_in_turns(calls, repeats=BLOCK + 1, excused=lambda *what: noted.append(what) is None)
    assert list(found) == ["whole"]
    assert found["whole"].repeats == BLOCK + 1
    assert [(name, str(error)) for name, error in noted] == [("late", "moved too far")]
    count = iter(range(100))
    with pytest.raises(ValueError, match="moved too far"):
        time_in_turns(calls, repeats=BLOCK, excused=lambda *_: False)


def test_threads_are_given_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(AttributeError):
        time_calls({"none": object()}, bulk("Si"), repeats=1, generator=np.random.default_rng(1), threads=before + 1)
    assert torch.get_num_threads() == before


def test_the_environment_names_hardware_and_versions_alone() -> None:
    machine, packages = hardware(), versions()
    assert machine["cpu"]
    assert isinstance(machine["cores"], int)
    assert machine["cores"] >= 1
    assert machine["threads"] == torch.get_num_threads()
    assert {"python", "zoo", "torch", "ase"} <= set(packages)
    text = f"{machine} {packages}"
    assert platform.node() not in text
    assert "/" not in "".join(packages.values())
