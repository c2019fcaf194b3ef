"""``zoo teachers``: what is here is said without a network, and each command calls what does the work."""

import fcntl
import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from test_environments import TINY

import zoo.cli_teachers as commands
import zoo.teacher_table as table
import zoo.teachers.environments as environments
from zoo.browse import _here
from zoo.cli import Commands
from zoo.config import write_json
from zoo.teachers import FAMILIES, OwnTeacher, absent
from zoo.teachers.clashes import Clash
from zoo.teachers.weights import FACTS, weights_folder

main = Commands("zoo", commands={"teachers": commands.teachers})


def ask(*arguments: object) -> click.testing.Result:
    return CliRunner().invoke(main, ["teachers", *map(str, arguments)])


def said(*arguments: object) -> str:
    result = ask(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def rows() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said("--json"))
    return found


def own_teacher(name: str, family: str) -> Path:
    """The record of one, with its file."""
    folder = weights_folder(name)
    facts: dict[str, Any] = {
        "name": name,
        "family": family,
        "file": "my.model",
        "sha256": "0" * 64,
        "elements": ("Si",),
    }
    own = OwnTeacher(**facts, licence="MIT", level_of_theory="PBE")
    folder.mkdir(parents=True)
    write_json(folder / FACTS, own)
    (folder / "my.model").touch()
    return folder / "my.model"


def test_all_families_and_teachers_are_told_with_what_each_lacks() -> None:
    found = rows()
    assert [row["family"] for row in found["families"]] == list(FAMILIES)
    teachers = {one["name"]: one for row in found["families"] for one in row["teachers"]}
    assert set(teachers) == {name for family in FAMILIES.values() for name in family.names}
    assert teachers["stillinger-weber/teacher"]["weights"] == "computed"
    assert teachers["stillinger-weber/teacher"]["missing"] is None
    assert teachers["jmp-l/teacher"]["weights"] == "to convert"
    fetched = teachers["mace-off23-small/teacher"]
    assert (fetched["weights"], fetched["licence"], fetched["commercial"]) == ("to fetch", "LicenseRef-ASL", False)
    text = said()
    assert "to fetch ASL, not for commerce: mace-off23-small/teacher," in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100


def test_an_environment_that_is_half_made_is_told_with_the_command() -> None:
    place = environments.find_environment("mace")
    before = {row["family"]: row for row in rows()["families"]}["mace"]
    assert (before["environment"], before["folder"]) == ("none", None)
    place.folder.mkdir(parents=True)
    after = {row["family"]: row for row in rows()["families"]}["mace"]
    assert (after["environment"], after["folder"]) == ("broken", str(place.folder))
    if not FAMILIES["mace"].is_importable:
        assert "an environment that is not whole; run: zoo teachers install mace" in " ".join(said().split())
    with environments.log_path("mace").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert "an environment that is being made to fetch" in " ".join(said().split())


def test_a_teacher_of_ones_own_is_told_and_one_whose_file_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    path = own_teacher("own/my-teacher", "stillinger-weber")
    assert [(row["name"], row["weights"]) for row in rows()["own"]] == [("own/my-teacher", "here")]
    assert "own/my-teacher (stillinger-weber, MIT)" in said()
    path.unlink()
    assert [(row["name"], row["weights"]) for row in rows()["own"]] == [("own/my-teacher", "gone")]


def test_a_clash_is_told_with_what_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    clash = Clash(("mace", "stillinger-weber"), "e3nn", ("==0.4.4", ">=0.5"))
    monkeypatch.setattr(table, "clashes", lambda: [clash])
    assert rows()["clashes"] == [
        {"families": ["mace", "stillinger-weber"], "package": "e3nn", "required": ["==0.4.4", ">=0.5"]}
    ]
    text = " ".join(said().split())
    assert "Not in one environment: mace wants e3nn==0.4.4, stillinger-weber wants e3nn>=0.5" in text
    if not FAMILIES["mace"].is_importable:
        assert "stillinger-weber is here, zoo asks the other one apart" in text


def test_mace_and_sevennet_cannot_be_in_one_environment_by_their_locks() -> None:
    pairs = {tuple(sorted(clash["families"])): clash["package"] for clash in rows()["clashes"]}
    assert pairs[("mace", "sevennet")] == "e3nn"


def test_install_hands_on_where_packages_are_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(commands, "install", lambda family, **options: asked.append((family, options)) or tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wheels").mkdir()
    indexes = ["--index-url", "https://example.org", "--torch-index-url", "https://example.org/cpu"]
    told = said("install", "mace", "--python", "py", "--find-links", "wheels", *indexes)
    assert told.endswith(f"mace is ready in {tmp_path}\n")
    family, options = asked[0]
    assert (family, options["python"]) == ("mace", "py")
    assert options["source"] == commands.Source((str(tmp_path / "wheels"),), indexes[1], indexes[3])


def test_a_folder_of_packages_that_is_not_there_is_refused_and_an_address_is_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(commands, "install", lambda family, **options: asked.append(options["source"]) or tmp_path)
    assert "nofolder is no folder; give one of packages" in ask("install", "mace", "--find-links", "nofolder").output
    assert asked == []
    said("install", "mace", "--find-links", "https://example.org/wheels")
    assert asked == [commands.Source(("https://example.org/wheels",))]


def test_remove_says_what_went(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "tiny", TINY)
    folder = environments.environments_root() / f"tiny-{'0' * 12}"
    folder.mkdir(parents=True)
    assert said("remove", "tiny") == f"{folder} is removed\n"
    assert not folder.exists()
    assert said("remove", "tiny") == "tiny has no environment here\n"


def test_remove_says_of_a_teacher_with_weights_where_they_are_and_removes_nothing() -> None:
    folder = weights_folder("mace-mp-0-small/teacher")
    assert "expected the family that serves it: mace" in ask("remove", "mace-mp-0-small/teacher").output
    folder.mkdir(parents=True)
    result = ask("remove", "mace-mp-0-small/teacher")
    assert result.exit_code == 1
    assert f"whose weights are in {folder}; delete that, or" in result.output
    assert result.output.endswith("run: zoo teachers remove mace\n")
    assert folder.is_dir()


def test_the_list_names_the_step_that_helps_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(name: str) -> str:
        return _here({"name": name, "missing": absent(name)})

    path = own_teacher("own/my-teacher", "stillinger-weber")
    assert (step("stillinger-weber/teacher"), step("own/my-teacher")) == ("yes", "yes")
    path.unlink()
    assert (step("own/my-teacher"), step("own/nobodys"), step("jmp-s/teacher")) == ("add", "add", "convert")
    monkeypatch.setattr("zoo.teachers.families._is_found", lambda module: False)
    assert step("mace-off23-small/teacher") == "install"
    monkeypatch.setattr("zoo.teachers.families._is_found", lambda module: True)
    assert step("mace-off23-small/teacher") == "fetch"


def test_remove_takes_away_a_teacher_that_was_added_with_its_file() -> None:
    path = own_teacher("own/my-teacher", "stillinger-weber")
    other = own_teacher("own/other", "stillinger-weber")
    assert said("remove", "own/my-teacher") == f"{path.parent} is removed\n"
    assert not path.parent.exists()
    assert other.is_file()
    assert said("remove", "own/my-teacher") == "no teacher own/my-teacher was added here\n"
    assert [row["name"] for row in rows()["own"]] == ["own/other"]


def test_an_environment_whose_python_is_not_here_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    place = environments.find_environment("mace")
    (place.folder / "bin").mkdir(parents=True)
    place.python.symlink_to("/nowhere/python")
    digest = environments.sha256_file(environments.lock_path("mace"))
    write_json(place.folder / "zoo.json", environments.Stamp(family="mace", lock_sha256=digest, python="3.11.7"))
    assert "an environment whose Python is not on this machine" in " ".join(said().split())


def test_fetch_and_add_hand_on_what_they_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(commands, "fetch_weights", lambda *facts, **more: asked.append((facts, more)) or tmp_path / "f")
    own = OwnTeacher(
        name="own/a",
        family="mace",
        file="f",
        sha256="0" * 64,
        elements=("H", "O"),
        licence="MIT",
        level_of_theory="PBE",
    )
    monkeypatch.setattr(commands, "add_teacher", lambda *facts, **more: asked.append((facts, more)) or own)
    assert said("fetch", "mace-off23-small/teacher", "--accept-licence").endswith(f"{tmp_path / 'f'}\n")
    facts = ["--family", "mace", "--licence", "MIT", "--level-of-theory", "PBE"]
    assert "own/a is added, with 2 elements" in said("add", "own/a", "f", *facts)
    assert asked[0] == (("mace-off23-small/teacher",), {"accept_licence": True, "accept_digest": None})
    said("fetch", "mace-mp-0-large/teacher", "--accept-digest", "sha256:0")
    assert asked.pop() == (("mace-mp-0-large/teacher",), {"accept_licence": False, "accept_digest": "sha256:0"})
    options = {
        "family": "mace",
        "licence": "MIT",
        "level_of_theory": "PBE",
        "sha256": None,
        "citation": "",
        "head": None,
    }
    assert asked[1] == (("own/a", Path("f")), options)


def test_what_goes_wrong_is_one_line_and_the_exit_code_1() -> None:
    result = ask("install", "mice")
    assert result.exit_code == 1
    assert result.output.startswith("zoo: no family of teachers is called 'mice'")
    assert result.output.count("\n") == 1
