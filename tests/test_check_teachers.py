"""The table of teachers beside their own calculators: what is beyond its bound, failed or not here is told."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from small_teachers import KINDS
from test_scripts import load_script

import zoo.potential
from zoo.potential import Potential
from zoo.teachers import FAMILIES, family_of

SILICON = "stillinger-weber/teacher"
SMALL = "sevennet-mf-ompa/mpa-teacher"
_jit = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    yield load_script("check_teachers")
    torch.set_num_threads(threads)


def _measured(script: ModuleType, name: str) -> Any:
    row = script.Row(name)
    script.measure(row, quick=True)
    return row


def test_a_teacher_is_measured_in_a_process_of_its_own(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([SILICON, "--quick"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {SILICON}")]
    assert line.endswith("| ok |")
    assert "Si4 (crystal)" in line


def test_products_of_the_wrong_sign_are_beyond(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    right = zoo.potential.hessian_products
    assert _measured(script, SILICON).fine
    monkeypatch.setattr(zoo.potential, "hessian_products", lambda *given, **asked: -right(*given, **asked))
    assert not _measured(script, SILICON).fine


@pytest.mark.sevennet
@_jit
def test_a_small_model_stands_for_weights_that_are_not_here(script: ModuleType) -> None:
    row = _measured(script, SMALL)
    assert (row.weights, row.verdict) == ("small, random", "ok")
    assert set(row.found) == set(script.SHARES) - {"own Hessian"}


@pytest.mark.sevennet
@_jit
def test_a_stress_of_the_wrong_sign_is_beyond(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    right = zoo.potential.forces_and_stress

    def wrong(*given: Any, **asked: Any) -> Any:
        forces, stress = right(*given, **asked)
        return forces, None if stress is None else -stress

    monkeypatch.setattr(zoo.potential, "forces_and_stress", wrong)
    row = _measured(script, SMALL)
    assert row.verdict == "**beyond**"
    beyond = {what for what, (error, bound) in row.found.items() if error > bound}
    assert beyond == {"stress float64", "stress float32"}


@pytest.mark.sevennet
@_jit
def test_energies_of_lone_atoms_that_are_off_are_beyond(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Potential.reference_energies
    monkeypatch.setattr(Potential, "reference_energies", lambda *given: right(*given) + 0.01)
    row = _measured(script, SMALL)
    assert {what for what, (error, bound) in row.found.items() if error > bound} == {"energy float64", "energy float32"}


def test_nan_is_beyond_and_stays_so(script: ModuleType) -> None:
    row = script.Row(SILICON)
    for ours in (1.0, float("nan"), 1.0):
        script.enter(row, "forces float64", np.array([ours]), np.ones(1))
    assert row.verdict == "**beyond**"


def test_numbers_too_small_for_the_bound_to_say_anything_are_not_ok(script: ModuleType) -> None:
    """A bound of 1e-4 eV/Å holds of forces of 1e-3 eV/Å, whatever they are."""
    row = script.Row(SILICON)
    script.enter(row, "forces float32", np.array([1e-3]), np.array([1e-3]))
    assert (row.verdict, row.fine) == ("**too small**: forces float32", False)
    script.enter(row, "forces float32", np.array([1.0]), np.array([1.0]))
    assert row.fine


def test_teachers_whose_code_alone_was_run_are_named(script: ModuleType) -> None:
    asked = argparse.Namespace(names=["sevennet"], threads=1)
    run = script.Row(SMALL, found={"forces float64": (0.0, 1.0)})
    (line,) = [line for line in script.page([run], asked).splitlines() if line.startswith("- ")]
    start = f"- sevennet: the same code as {SMALL}, and weights not here: "
    assert line.startswith(start)
    assert {*line.removeprefix(start).split(", "), SMALL} == set(FAMILIES["sevennet"].names)
    assert script.page([run], argparse.Namespace(names=[SMALL], threads=1)).find("## Not run") < 0


def test_each_teacher_stands_in_the_table_or_among_those_not_run(script: ModuleType) -> None:
    text = (Path(__file__).parents[1] / "benchmarks" / "teachers.md").read_text(encoding="utf-8")
    assert [name for family in FAMILIES.values() for name in family.names if name not in text] == []


def test_a_family_that_is_nowhere_is_a_row_that_says_what_to_run(script: ModuleType) -> None:
    nowhere = replace(FAMILIES["mace"], imports=("no_such_module",))
    (row,) = script.rows_of(nowhere, nowhere.names[:2], argparse.Namespace(python=[], quick=True, threads=1))
    assert row.fine
    assert "run: zoo teachers" in row.missing
    assert f"- mace: {row.missing}" in script.page([row], argparse.Namespace(names=[], threads=1))


def test_a_process_that_ends_too_soon_is_a_failure(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([SILICON, "--quick", "--python", "stillinger-weber=/bin/false"]) == 1
    assert "ended with the exit code 1" in capsys.readouterr().out


def test_what_a_teacher_raises_stands_in_its_row(script: ModuleType, tmp_path: Path) -> None:
    script.measure_all(["jmp-l/teacher", SILICON], tmp_path / "rows.json", quick=True)
    raised, fine = [script.row_of(told) for told in script.json.loads((tmp_path / "rows.json").read_text())]
    assert raised.verdict == "failed"
    assert raised.failure.startswith("MissingPackageError: ")
    assert fine.verdict == "ok"


def test_a_name_that_is_none_is_refused(script: ModuleType) -> None:
    with pytest.raises(SystemExit, match="'mase' is neither a teacher nor a family"):
        script.main(["mase"])


def test_small_models_are_of_teachers_of_their_family() -> None:
    for family, names in KINDS.items():
        assert {family_of(name) for name in names} == {FAMILIES[family]}
