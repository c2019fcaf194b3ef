"""The bench of a training step: all exact ways give the same gradient, and its table says what was measured."""

import functools

import pytest
import torch
from test_scripts import load_script

bench = load_script("bench_step")

# PyTorch compiles some formulas of forward mode with torch.jit, the first time
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def test_the_exact_ways_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.SYSTEMS, "8 silicon cells of 8 atoms", (bench.silicon, 2, ("Si",)))
    monkeypatch.setattr(bench, "make_student", functools.partial(bench.make_student, channels=4))
    found = bench.agreement()
    assert 1e-8 < found.pop("1 product, central differences") < 0.1  # which are not exact
    assert len(found) == 7
    assert max(found.values()) < 1e-10


def test_a_way_that_is_off_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.SYSTEMS, "8 silicon cells of 8 atoms", (bench.silicon, 1, ("Si",)))
    monkeypatch.setattr(bench, "make_student", functools.partial(bench.make_student, channels=4))
    monkeypatch.setattr(bench, "WAYS", {"halves": bench.Way(halves)})
    with pytest.raises(RuntimeError, match="halves is off by"):
        bench.agreement()


def halves(student: torch.nn.Module, batch: object) -> object:
    pieces = bench.reverse_over_reverse(student, batch)
    return bench.Pieces(pieces.energy, pieces.forces, pieces.products / 2)


def test_rows_are_one_hot_in_each_structure() -> None:
    way = bench.WAYS["4 rows, loop (the paper's)"]
    batch = bench.batch_for(way, bench.make_batch("32 ethanol molecules", 4, 0))
    assert batch.probes.sum(dim=(1, 2)).tolist() == [32.0] * 4
    assert batch.probes[2].nonzero()[:2].tolist() == [[2, 0], [9 + 2, 0]]


def test_the_table_has_ratios_of_the_run() -> None:
    ways = {
        name: {"ms": 10.0 * place, "memory_MiB": 5.0, "first_s": 60.0} for place, name in enumerate(bench.WAYS, start=1)
    }
    lines = bench.table(ways)
    assert lines[2] == "| none | 10.0 | 1.00 |  | 5 |"
    assert lines[-2] == "| 1 product, compiled | 110.0 | 11.00 | 1.10 | 5 |"
