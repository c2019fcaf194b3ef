"""What docs/teachers.md shows can be run."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

import zoo
from zoo.cli import main
from zoo.teachers import FAMILIES, is_teacher_name, weights_of

PAGE = (Path(__file__).parents[1] / "docs" / "teachers.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("zoo ")]


def test_the_calculator_of_the_page_is_a_teacher_under_the_licence_of_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("zoo.chain.run_recipe", lambda recipe, teacher: given.update({recipe: teacher}))
    (code,) = blocks("python")
    exec(code, {})
    (teacher,) = given.values()
    assert isinstance(teacher, zoo.teachers.Teacher)
    assert teacher.licence_weights == "LGPL-2.1-or-later"  # ASE's


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_exists(line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    assert program == "zoo"
    command: Any = main
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    context = command.make_context(command.name, words)
    assert isinstance(context, click.Context)


def test_the_weights_that_the_page_fetches_are_those_of_the_recipe_that_it_runs() -> None:
    (fetched,) = re.findall(r"^zoo teachers fetch (\S+) --accept-licence", PAGE, flags=re.MULTILINE)
    (recipe,) = re.findall(r"^zoo distill (\S+)", PAGE, flags=re.MULTILINE)
    assert is_teacher_name(fetched)
    assert weights_of(fetched) is not None
    assert zoo.recipe.read_recipe(recipe).teacher.name == fetched


def test_the_page_has_a_row_for_each_family() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE, flags=re.MULTILINE)
    assert set(rows) == {*FAMILIES, "own"}
