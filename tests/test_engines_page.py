"""What docs/engines.md shows can be run."""

import re
import shlex
from pathlib import Path

import click
import model_folders as folders
import pytest

import zoo
from zoo.cli import main
from zoo.engine import Engine

PAGE = (Path(__file__).parents[1] / "docs" / "engines.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_python_of_the_page_runs_from_its_top_to_its_end(tmp_path, monkeypatch):
    engine = Engine.read(folders.make_folder(tmp_path / "model"), device="cpu")
    monkeypatch.setattr(zoo, "load", lambda name, hub: engine)
    names: dict[str, object] = {}
    ran = [block for block in blocks("python") if "torch_sim" not in block]  # tests/test_torchsim.py has that
    for block in ran:
        exec(block, names)
    assert len(ran) >= 5
    assert names["engine"] is engine
    assert names["hessian"].shape == (24, 24)


@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines() if "zoo " in line])
def test_the_commands_of_the_page_exist(line):
    program, command, *arguments = shlex.split(line)
    assert program == "zoo"
    context = main.commands[command].make_context(command, arguments)
    assert isinstance(context, click.Context)
