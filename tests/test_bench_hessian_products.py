"""The page of what Hessian products cost: each way is the same product, and one that there is not is told."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_scripts import load_script

import zoo.potential
from zoo.teachers import FAMILIES

SILICON = "stillinger-weber/teacher"
DIRECT = "stillinger-weber/direct-teacher"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "scripts"), *sys.path])
    threads = torch.get_num_threads()
    yield load_script("bench_hessian_products")
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [SILICON, DIRECT])
def test_each_way_gives_the_same_product(script: ModuleType, name: str) -> None:
    row = script.Row(name)
    script.measure(row, rounds=1)
    assert row.error.keys() == set(script.WAYS)
    assert max(row.error[way] for way in (script.BACKWARDS, script.FORWARDS)) < 1e-5
    assert max(row.error.values()) < 1e-2
    assert row.first.keys() == row.more.keys() == row.error.keys()
    assert row.forces > 0


def test_a_wrong_product_is_seen(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    right = zoo.potential.forward_columns
    monkeypatch.setattr(zoo.potential, "forward_columns", lambda *given: -right(*given))
    row = script.Row(SILICON)
    script.measure(row, rounds=1)
    assert row.error[script.FORWARDS] == pytest.approx(2, rel=1e-3)
    assert row.error[script.BACKWARDS] < 1e-5


def test_a_family_that_is_nowhere_is_told_with_what_to_run(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = replace(FAMILIES["mace"], imports=("no_such_module",))
    monkeypatch.setitem(script.FAMILIES, "mace", nowhere)
    monkeypatch.setattr(script, "python_for", lambda *given: None)
    assert script.main(["mace-off23-medium/teacher", "--quick"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("- mace: ")]
    assert line.startswith("- mace: not run: ")
    assert "run: zoo teachers install mace" in line


@pytest.mark.xtb
def test_the_page_says_which_way_is_taken_and_what_there_is_not(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """From processes of their own."""
    assert script.main([SILICON, "gfn2-xtb/teacher", "--quick"]) == 0
    told = capsys.readouterr().out
    (silicon,) = [line.split("|") for line in told.splitlines() if line.startswith(f"| {SILICON}")]
    (program,) = [line.split("|") for line in told.splitlines() if line.startswith("| gfn2-xtb")]
    assert [index for index, cell in enumerate(silicon) if "**" in cell] == [6]
    assert [index for index, cell in enumerate(program) if "**" in cell] == [8]
    assert "- gfn2-xtb/teacher, twice backwards: CapabilityError: a program without derivatives" in told
