"""Recipes at the command line: from a file of frames to an engine that is made twice."""

import json
import shutil
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase.build import bulk
from click.testing import CliRunner

from recipes import write_tiny
from zoo.cli import Commands
from zoo.cli import main as zoo_main
from zoo.cli_recipe import recipe_group, reproduce_command
from zoo.config import read_yaml
from zoo.naming import ENGINE_FORM
from zoo.publish import seal
from zoo.recipe import Recipe

TEACHER = "stillinger-weber/teacher"
QUICK = {
    "training": {"steps": 4, "batch_size": 4, "warmup_steps": 1, "validate_every": 2},
    "evaluation": {"dynamics_steps": 5, "teacher_dynamics_steps": 5, "timing_repeats": 1, "timing_threads": 1},
    "student": {"architecture": "painn", "elements": ["Si"], "channels": 8, "radials": 6, "cutoff": 4.0},
}


def ask(*arguments, stdin: str | None = None):
    group = Commands("zoo", commands=[recipe_group, reproduce_command, zoo_main.commands["distill"]])
    return CliRunner().invoke(group, [str(argument) for argument in arguments], input=stdin)


def done(*arguments) -> str:
    result = ask(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    random = np.random.default_rng(0)
    cells = [bulk("Si", "diamond", a=5.43, cubic=True) for _ in range(10)]
    for atoms in cells:
        atoms.positions += random.normal(0, 0.05, atoms.positions.shape)
    path = tmp_path_factory.mktemp("frames") / "si.extxyz"
    ase.io.write(path, cells)
    return path


@pytest.fixture(scope="module")
def made(frames):
    """A recipe that was begun from frames, made quick, and carried out; beside it the folder of its run."""
    pytest.importorskip("phonopy", reason="evaluation needs the extra train")
    recipe = frames.parent / "my.yaml"
    text = done("recipe", "new", "sw/my-student", "--data", frames, "--teacher", TEACHER, "--output", recipe)
    assert "10 frames of 8 atoms, periodic" in text
    assert done("recipe", "check", recipe) == f"ok {recipe}\n"
    assert "structures  to do" in done("distill", recipe, "--dry-run", "--run", frames.parent / "run")
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | QUICK, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.package.run_snippet", lambda *arguments: "ran")  # which takes longer than all the rest
        done("distill", recipe, "--run", frames.parent / "run")
    return recipe, frames.parent / "run"


def test_a_recipe_that_was_begun_is_distilled_locked_and_reproduced(made, tmp_path):
    recipe, run = made
    text = done("recipe", "lock", recipe, "--run", run)
    assert Recipe.model_validate_json(json.dumps(yaml.safe_load(text))).lock is not None
    done("recipe", "lock", recipe, "--run", run, "--output", tmp_path / "locked.yaml")
    assert read_yaml(Recipe, tmp_path / "locked.yaml") == read_yaml(Recipe, run / "recipe.yaml")
    assert "exists and is not overwritten" in ask("recipe", "lock", recipe, "--output", recipe).output
    again = ("reproduce", run / "model", "--run", tmp_path / "again")
    assert "--check" in done(*again)
    assert not (tmp_path / "again").exists()
    text = done(*again, "--check")
    assert text.index("is made again from its locked recipe") < text.index("figures lie in the band")
    assert "data: the same\n" in text
    shutil.copytree(run / "model", tmp_path / "other")
    report = json.loads((tmp_path / "other" / "report.json").read_text())
    report["twin"]["hessian_mae_eV_A2"] *= 2
    (tmp_path / "other" / "report.json").write_text(json.dumps(report))
    locked = yaml.safe_load((tmp_path / "other" / "recipe.yaml").read_text())
    assert locked["lock"].pop("data_sha256").keys() == {"si.extxyz"}  # which older locks lack
    (tmp_path / "other" / "recipe.yaml").write_text(yaml.safe_dump(locked))
    seal(tmp_path / "other")
    result = ask("reproduce", tmp_path / "other", "--run", tmp_path / "again", "--check", "--json")
    assert result.exit_code == 1
    told = json.loads(result.output)
    assert not told["passed"]
    assert (told["same"]["data"], told["other_data"]) == (None, [])
    assert [row["engine"] for row in told["figures"] if not row["inside"]] == ["twin"]


def test_check_lists_all_problems_of_all_recipes(tmp_path):
    path = write_tiny(tmp_path, training__steps="many", seed=-1)
    result = ask("recipe", "check", "sevennet-0/silicon-student", path, "no/recipe")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0] == "ok sevennet-0/silicon-student"
    assert [line.split(": ")[0] for line in lines[1:3]] == [
        f"{path}:{path.read_text().splitlines().index(text) + 1}" for text in ("seed: -1", "  steps: many")
    ]
    assert "no recipe is called 'no/recipe'" in lines[3]
    assert ask("recipe", "check").exit_code == 2


def test_diff_says_what_differs(tmp_path):
    one = write_tiny(tmp_path).rename(tmp_path / "one.yaml")
    other = write_tiny(tmp_path, training__steps=1200)
    assert done("recipe", "diff", one, other) == "training.steps: 40 -> 1200\n"
    assert json.loads(done("recipe", "diff", one, other, "--json")) == [
        {"path": "training.steps", "first": 40, "second": 1200}
    ]
    assert done("recipe", "diff", one, one) == "no difference\n"
    assert done("recipe", "diff", one, one, "--json") == "[]\n"
    assert ask("recipe", "diff", one, tmp_path / "none.yaml").exit_code == 1


def test_what_is_missing_is_named_where_nobody_can_be_asked(frames, tmp_path):
    for arguments, option in (
        (("--data", frames), "--teacher"),
        (("--teacher", TEACHER), "--data"),
        (("--data", _renamed(frames, tmp_path), "--teacher", TEACHER), "--format"),
    ):
        result = ask("recipe", "new", "sw/my", *arguments, "--output", tmp_path / "my.yaml")
        assert result.exit_code == 2
        assert f"{option} is missing, and there is no terminal to ask at" in result.output
        assert not (tmp_path / "my.yaml").exists()


def _renamed(frames: Path, folder: Path) -> Path:
    return Path(shutil.copy(frames, folder / "frames.dat"))


def test_what_is_missing_is_asked_for_at_a_terminal(frames, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.cli_recipe.at_terminal", lambda: True)
    data = _renamed(frames, tmp_path)
    result = ask("recipe", "new", "sw/my", "--output", tmp_path / "my.yaml", stdin=f"{data}\nextxyz\n{TEACHER}\n")
    assert result.exit_code == 0, result.output
    assert "File of frames: " in result.output
    assert "Teacher: " in result.output
    assert read_yaml(Recipe, tmp_path / "my.yaml").structures.subsets["own"].own.format == "extxyz"


def test_an_error_is_one_line(frames, tmp_path):
    result = ask("recipe", "new", "Bad", "--data", frames, "--teacher", TEACHER)
    assert result.exit_code == 1
    assert result.output == f"zoo: 'Bad' is no name for an engine; {ENGINE_FORM}\n"
    result = ask("reproduce", tmp_path / "none", "--check")
    assert (result.exit_code, len(result.output.splitlines())) == (1, 1)
