"""Two teachers whose packages clash, on one machine, by ``zoo distill`` alone."""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from recipes import write_tiny
from zoo.files import cache_root
from zoo.teachers import FAMILIES
from zoo.teachers.environments import Environment, find_environment

pytest.importorskip("phonopy", reason="evaluation needs the extra train")

TEACHERS = {"own/tiny-mace": "mace-torch", "sevennet-0/teacher": "sevenn"}  # and the package that answers
SMALLER = {  # than the tiny recipe: SevenNet takes its time
    "labels__probes_per_structure": 1,
    "training__steps": 8,
    "training__warmup_steps": 2,
    "training__validate_every": 4,
    "evaluation__dynamics_steps": 20,
    "evaluation__teacher_dynamics_steps": 20,
    "evaluation__timing_repeats": 1,
}
WRITE = (
    "import sys; sys.path[:0] = sys.argv[2:]; import mace_models as made; made.save(made.random_model(), sys.argv[1])"
)


@pytest.fixture(scope="session")
def environment() -> Environment:
    """That of MACE in the cache of this machine."""
    found = find_environment("mace")
    if FAMILIES["mace"].is_importable:
        pytest.skip("mace is installed here, where it needs no environment of its own")
    if found.state != "made":
        pytest.skip("MACE has no environment of its own here: zoo teachers install mace")
    return found


@pytest.fixture
def linked(environment: Environment, no_hub: None) -> Environment:
    """The same in the cache of this test."""
    folder = cache_root() / "environments" / environment.folder.name
    folder.parent.mkdir(parents=True)
    folder.symlink_to(environment.folder, target_is_directory=True)
    return environment


def _run(command: Sequence[str | Path]) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def _zoo(*arguments: str | Path) -> str:
    return _run([sys.executable, "-m", "zoo", *arguments])


@pytest.mark.slow
@pytest.mark.sevennet
def test_students_of_mace_and_sevennet_are_distilled_one_after_the_other(
    linked: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tests.parent), os.environ.get("PYTHONPATH", "")]))
    _run([linked.python, "-c", WRITE, tmp_path / "tiny.model", tests.parent, tests])
    facts = ["--family", "mace", "--licence", "MIT", "--level-of-theory", "none, random weights"]
    assert "own/tiny-mace is added, with 3 elements" in _zoo(
        "teachers", "add", "own/tiny-mace", tmp_path / "tiny.model", *facts
    )
    for teacher, package in TEACHERS.items():
        folder = tmp_path / package
        folder.mkdir()
        recipe = write_tiny(folder, teacher={"name": teacher, "dtype": "float64"}, **SMALLER)
        _zoo("distill", recipe, "--run", folder / "run")
        plan = json.loads((folder / "run" / "labels" / "train" / "plan.json").read_text())
        assert plan["package"].startswith(f"{package} ")
        report = json.loads((folder / "run" / "model" / "report.json").read_text())
        assert report["teacher"]["ms_per_call"] > 0
        assert all(report[engine]["force_mae_meV_A"] > 0 for engine in ("student", "twin"))
    told = _run([linked.python, "-c", "import importlib.metadata as found; print(found.version('e3nn'))"])
    assert told.strip() != importlib.metadata.version("e3nn"), "the two pin e3nn alike, and this shows nothing"
