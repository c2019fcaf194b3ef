"""The scripts and the README: what they name exists, and what they write has the keys that others read."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from types import ModuleType

import click
import conftest
import model_folders as folders
import pytest
from hub_server import HubServer
from test_report import example_report

from zoo.cli import main
from zoo.hub.remote import RemoteHub
from zoo.teachers.environments import locked

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BASH = [path for path in (*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run") if path.is_file() and not path.suffix]


def blocks(language: str) -> list[str]:
    """The code blocks of the README in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def command_lines() -> list[str]:
    """The lines of the README that call zoo."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("zoo ")]


def refusal(line: str) -> str | None:
    """What click has against a command line, without running it."""
    _, command, *arguments = shlex.split(line, comments=True)
    if command not in main.commands:
        return f"no command {command}"
    try:
        main.commands[command].make_context(command, arguments)
    except click.UsageError as error:
        return error.format_message()
    return None


def load_script(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_quickstart_json_has_the_keys_of_the_contract() -> None:
    report = example_report()
    written = json.loads(json.dumps(load_script("quickstart").summary(report), allow_nan=False))
    assert set(written) == {"teacher", "student", "twin", "hardware", "versions", "speedup"}
    assert written["speedup"] == report.speedup
    for engine in ("teacher", "student", "twin"):
        assert written[engine] == json.loads(getattr(report, engine).model_dump_json())


def test_there_are_scripts() -> None:
    known = {"check_golden", "install", "quickstart", "run", "test", "test_families", "verify_on_hub"}
    assert {path.name for path in BASH} == known


@pytest.mark.parametrize("path", BASH, ids=lambda path: path.name)
def test_a_script_can_be_run(path: Path) -> None:
    assert os.access(path, os.X_OK), "its run bit is not set: chmod +x"
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", path], check=True)


def test_each_family_with_an_environment_is_tested_by_a_script() -> None:
    (required,) = re.findall(r"ZOO_REQUIRE=(\S+)", (ROOT / ".ci" / "run").read_text())
    (apart,) = re.findall(r"^families=\((.*)\)$", (ROOT / "scripts" / "test_families").read_text(), flags=re.MULTILINE)
    assert set(locked()) == set(required.split(",")) - {"scatter"} | set(apart.split())
    assert all((ROOT / "tests" / f"test_{family}.py").is_file() for family in apart.split())


def test_a_family_without_tests_is_refused_before_anything_is_installed() -> None:
    script = ROOT / "scripts" / "test_families"
    asked = subprocess.run([script, "mace", "jmp"], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert asked.returncode == 2
    assert asked.stderr.startswith("jmp is no family with an environment")
    assert asked.stdout == ""


def test_python_in_the_readme_compiles() -> None:
    assert blocks("python")
    for block in blocks("python"):
        compile(block, "README.md", "exec")


def test_commands_in_the_readme_exist() -> None:
    lines = command_lines()
    assert len(lines) >= 5
    assert [(line, found) for line in lines if (found := refusal(line))] == []


@pytest.mark.parametrize("line", ["zoo distil x", "zoo distill x --dryrun", "zoo md x/y", "zoo md a b --steps many"])
def test_a_command_that_does_not_exist_would_be_found(line: str) -> None:
    assert refusal(line) is not None


def test_files_in_the_readme_exist() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    scripts = re.findall(r"scripts/\S+", "\n".join(blocks("bash")))
    assert links
    assert scripts
    assert [name for name in links + scripts if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("marker", ["scatter", "sevennet"])
def test_ci_does_not_skip_what_is_missing(marker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (required,) = re.findall(r"^export ZOO_REQUIRE=(\S+)$", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)
    assert marker in required.split(",")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("ZOO_REQUIRE", marker)
    with pytest.raises(pytest.UsageError, match=rf"asks for {marker}, but \w+ is not installed: pip install"):
        conftest.pytest_collection_modifyitems([])


def test_a_requirement_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_REQUIRE", "scater")
    with pytest.raises(
        pytest.UsageError, match="ZOO_REQUIRE names scater; known are sevennet, xtb, reference, scatter, torchsim"
    ):
        conftest.pytest_collection_modifyitems([])


def test_the_oldest_client_that_is_tested_is_the_oldest_that_is_allowed() -> None:
    tested = re.search(r"^oldest_client=(\d+\.\d+)\.0$", (ROOT / "scripts" / "test").read_text(), re.MULTILINE)
    assert tested is not None
    assert f'"huggingface-hub>={tested[1]},<3"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes/text content:DeprecationWarning")
def test_the_verification_on_a_hub_takes_every_step_and_leaves_nothing(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("verify_on_hub")
    monkeypatch.chdir(tmp_path)
    script.verify(folders.make_folder(tmp_path / "model"), RemoteHub(server.endpoint))
    assert capsys.readouterr().out.count("  ok  ") == 8
    assert not server.repositories
    written = json.loads((tmp_path / "verified-on-hub.json").read_text())
    assert (written["hub"], len(written["seconds"])) == (server.endpoint, 8)


def test_the_readme_says_whether_the_real_hub_was_tried() -> None:
    result = ROOT / "verified-on-hub.json"
    tried = result.is_file() and json.loads(result.read_text())["hub"] == "huggingface.co"
    assert ("was not tried on huggingface.co" in " ".join(README.split())) != tried
