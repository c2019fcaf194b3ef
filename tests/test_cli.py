"""The command line: help for newcomers, one line for errors, and the exit codes of the contract."""

import json
from pathlib import Path

import ase.io
import pytest
from ase.build import bulk
from click.testing import CliRunner

from recipes import write_tiny
from zoo.cli import main

COMMANDS = ("distill", "label", "train", "evaluate", "publish", "list", "check", "md")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a recipe, its run and a hub."""
    pytest.importorskip("phonopy", reason="evaluation needs the extra train")
    folder = tmp_path_factory.mktemp("cli")
    recipe = write_tiny(folder)
    result = ask("distill", recipe, "--run", folder / "run")
    assert result.exit_code == 0, result.output
    result = ask("publish", folder / "run" / "model", "--hub", folder / "hub")
    assert result.exit_code == 0, result.output
    return folder


def ask(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def silicon(folder: Path) -> Path:
    atoms = bulk("Si", "diamond", a=5.43, cubic=True)
    ase.io.write(folder / "si.xyz", atoms)
    return folder / "si.xyz"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command):
    result = ask(command, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5
    assert command in ask("--help").output


@pytest.mark.parametrize(
    "arguments",
    [["distil"], ["distill"], ["md", "x/y"], ["check", "x/y", "--dtype", "float16"], ["list", "--jason"]],
)
def test_wrong_usage_exits_with_two(arguments):
    assert ask(*arguments).exit_code == 2


def test_the_stages_can_run_alone(tmp_path):
    recipe = write_tiny(tmp_path)
    for command, said in (("label", "labels are in"), ("train", "weights are in")):
        result = ask(command, recipe, "--run", tmp_path / "run")
        assert result.exit_code == 0, result.output
        assert said in result.output


def test_distill_prints_the_table(made):
    result = ask("distill", made / "tiny.yaml", "--run", made / "run")
    assert "force error" in result.output
    assert "zoo publish" in result.output
    assert ask("evaluate", made / "tiny.yaml", "--run", made / "run").exit_code == 0


def test_a_dry_run_writes_nothing(tmp_path):
    recipe = write_tiny(tmp_path)
    for command in ("distill", "label", "train", "evaluate"):
        result = ask(command, recipe, "--run", tmp_path / "run", "--dry-run")
        assert result.exit_code == 0
        assert "Hessian products" in result.output
    assert not (tmp_path / "run").exists()


def test_the_dry_run_of_publish_writes_nothing(made, tmp_path):
    result = ask("publish", made / "run" / "model", "--hub", tmp_path / "hub", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "would publish mlff-zoo/stillinger-weber_tiny-student@v1" in result.output
    assert not (tmp_path / "hub").exists()


def test_list_shows_what_is_known_and_what_is_on_the_hub(made):
    rows = {row["name"]: row for row in json.loads(ask("list", "--json", "--hub", made / "hub").output)}
    assert rows["stillinger-weber/tiny-student"]["status"] == "published"
    assert rows["sevennet-0/teacher"]["status"] == "package"
    assert rows["sevennet-0/silicon-student"]["status"] == "recipe"
    assert "stillinger-weber/tiny-student" not in ask("list").output


def test_check_recomputes_the_probe(made):
    result = ask("check", "stillinger-weber/tiny-student", "--hub", made / "hub", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["passed"] is True


def test_dynamics_writes_a_trajectory(made, tmp_path):
    trajectory = tmp_path / "si.traj"
    result = ask(
        "md",
        "stillinger-weber/tiny-student",
        silicon(tmp_path),
        "--hub",
        made / "hub",
        *("--steps", 20, "--every", 5, "--temperature", 50, "--output", trajectory, "--device", "cpu"),
    )
    assert result.exit_code == 0, result.output
    frames = ase.io.read(trajectory, index=":")
    assert len(frames) == 5
    assert (frames[-1].positions != frames[0].positions).any()


def bad_structures(folder: Path) -> dict[str, tuple[object, str]]:
    """Files that dynamics cannot start from, and what must be said."""
    nan = bulk("Si", "diamond", a=5.43, cubic=True)
    nan.positions[3, 1] = float("nan")
    double = bulk("Si", "diamond", a=5.43, cubic=True)
    double.positions[1] = double.positions[0]
    no_cell = bulk("Si", "diamond", a=5.43, cubic=True)
    no_cell.pbc = False
    germanium = bulk("Ge", "diamond", a=5.43, cubic=True)
    squeezed = bulk("Si", "diamond", a=4.6, cubic=True)
    return {
        "nan": (nan, "is not a finite number"),
        "double": (double, "0.0000 Å apart"),
        "molecule": (no_cell, "was made for pbc=(True, True, True)"),
        "germanium": (germanium, "Ge"),
        "squeezed": (squeezed, "Å³ per atom"),
    }


@pytest.mark.parametrize("case", ["nan", "double", "molecule", "germanium", "squeezed"])
def test_a_bad_structure_is_refused_in_one_line(case, made, tmp_path):
    atoms, message = bad_structures(tmp_path)[case]
    ase.io.write(tmp_path / "bad.traj", atoms)
    result = ask("md", "stillinger-weber/tiny-student", tmp_path / "bad.traj", "--hub", made / "hub", "--device", "cpu")
    assert result.exit_code == 1
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("zoo: ")
    assert message in last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "sevennet-0/silicone-student"], "did you mean sevennet-0/silicon-student?"),
        (["distill", "nowhere.yaml"], "no recipe file nowhere.yaml"),
        (["check", "sevennet-0/silicon-student"], "zoo distill sevennet-0/silicon-student"),
        (["check", "./nowhere"], "no folder"),
        (["md", "sevennet-0/silicon-student", "nowhere.xyz"], "zoo distill sevennet-0/silicon-student"),
        (["publish", "nowhere", "--hub", "hub"], "nowhere is not a folder"),
    ],
)
def test_errors_are_one_line_with_the_remedy(arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZOO_HUB", raising=False)
    result = ask(*arguments)
    assert result.exit_code == 1
    assert result.output.startswith("zoo: ")
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_typo_in_a_recipe_leaves_nothing_behind(tmp_path):
    recipe = write_tiny(tmp_path, training__stepz=3)
    result = ask("distill", recipe, "--run", tmp_path / "run")
    assert result.exit_code == 1
    assert "unknown key 'training.stepz'" in result.output
    assert not (tmp_path / "run").exists()
