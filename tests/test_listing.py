"""What lists and facts say of teachers whose weights no package brings."""

import json
from pathlib import Path

import jmp_checkpoints as made
import pytest
from click.testing import CliRunner

from zoo.browse import info_text
from zoo.cli import main
from zoo.convert import convert
from zoo.errors import NotReleasedError
from zoo.listing import describe, listing
from zoo.teachers.jmp import weights_folder
from zoo.teachers.jmp.weights import CONFIG

TEACHER, FINE_TUNE = "jmp-s/teacher", "jmp-s/md22-teacher"
NEW = ("head", "source", "folder", "missing")


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return made.pre_trained(made.size()).save(tmp_path_factory.mktemp("checkpoints") / "jmp-s.pt")


def converted(file: Path, **options):
    return convert("jmp-s", file, any_size=True, progress=False, **options)


def row_of(name: str) -> dict:
    return {row["name"]: row for row in listing()}[name]


def test_weights_that_are_not_here_come_with_the_command_that_brings_them():
    row, card = describe(TEACHER)
    assert card is None
    assert row["missing"].startswith("its weights are not here; run: zoo convert jmp-s --download (")
    assert [row[key] for key in ("head", "source", "folder")] == [None] * 3
    assert row == row_of(TEACHER)
    assert "run: zoo convert jmp-s --download" in info_text(row)
    announced = info_text(describe("mace-mp-0-large/teacher")[0])
    assert "this version has no adapter for MACE; sevennet-0/teacher can teach the same subset" in announced


def test_weights_that_were_converted_say_of_what(file):
    converted(file, head="transition1x", elements=["H", "C", "O"])
    row, _ = describe(TEACHER)
    assert (row["head"], row["source"], row["missing"]) == ("transition1x", "jmp-s.pt", None)
    assert row["folder"] == str(weights_folder(TEACHER))
    assert row["level_of_theory"] == "ωB97X/6-31G(d), the Transition-1x head"
    assert row["elements"] == ["H", "C", "O"]
    assert (row["licence_weights"], row["commercial"], row["status"]) == ("CC-BY-NC-4.0", False, "package")
    assert row == row_of(TEACHER)
    lines = [" ".join(line.split()) for line in info_text(row).splitlines()]
    assert {"head of the network transition1x", "weights from jmp-s.pt"} <= set(lines)
    assert not any(line.startswith("to run it") for line in lines)
    told = CliRunner().invoke(main, ["info", TEACHER, "--json"])
    assert json.loads(told.stdout) == row


def test_weights_that_cannot_be_read_do_not_hide_the_others(file):
    converted(file)
    (weights_folder(TEACHER) / CONFIG).write_text("{")
    assert str(weights_folder(TEACHER) / CONFIG) in row_of(TEACHER)["missing"]
    assert row_of("jmp-l/teacher")["missing"].startswith("its weights are not here")


def test_a_fine_tune_is_told_where_it_is_and_where_it_is_made(tmp_path):
    with pytest.raises(NotReleasedError, match=f"zoo distill {FINE_TUNE}"):
        describe(FINE_TUNE)
    assert [row_of(FINE_TUNE)[key] for key in NEW] == [None] * 4
    converted(made.fine_tuned(made.size(forces="gradient")).save(tmp_path / "mine.ckpt"), name=FINE_TUNE)
    row, card = describe(FINE_TUNE)
    assert card is None
    assert (row["source"], row["folder"]) == ("mine.ckpt", str(weights_folder(FINE_TUNE)))
    (tmp_path / "hub").mkdir()
    with pytest.raises(NotReleasedError):  # as of load: a hub that is named is asked
        describe(FINE_TUNE, tmp_path / "hub")


def test_what_a_package_or_a_recipe_brings_says_nothing_of_weights():
    for name in ("sevennet-0/teacher", "sevennet-0/silicon-student"):
        assert [row_of(name)[key] for key in NEW] == [None] * 4
