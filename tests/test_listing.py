"""What lists and facts say of teachers whose weights no package brings."""

import json
from pathlib import Path

import jmp_checkpoints as made
import pytest
from click.testing import CliRunner

from zoo.browse import info_text, list_text
from zoo.cli import main
from zoo.convert import convert
from zoo.errors import NotReleasedError, UnknownNameError, ZooWarning
from zoo.licences import TERMS
from zoo.listing import describe, listing
from zoo.teachers.jmp import weights_folder
from zoo.teachers.jmp.weights import CONFIG
from zoo.teachers.weights import FACTS

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
    assert row["missing"].startswith("its weights are not here; run: zoo convert jmp-s --download --accept-licence (")
    assert [row[key] for key in ("head", "source", "folder")] == [None] * 3
    assert row == row_of(TEACHER)
    assert "run: zoo convert jmp-s --download" in info_text(row)


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
    for name in ("stillinger-weber/teacher", "sevennet-0/silicon-student"):
        assert [row_of(name)[key] for key in NEW] == [None] * 4
    assert row_of("sevennet-0/teacher")["source"] is None


def test_a_teacher_tells_where_its_weights_are_from_and_what_to_run_next(monkeypatch):
    monkeypatch.setattr("zoo.teachers.families._is_found", lambda module: False)
    row, card = describe("mace-off23-large/teacher")
    assert card is None
    assert row == row_of("mace-off23-large/teacher")
    assert row["source"].startswith("https://")
    assert row["install"] == "zoo teachers install mace, or: pip install mace-torch"
    text = " ".join(info_text(row).split())
    for words in (
        "level of theory ωB97M-D3(BJ)/def2-TZVPPD",
        f"weights from {row['source']}",
        f"digest of the weights {row['digest']}",
        "licence of the weights Academic Software License (LicenseRef-ASL), https://github.com/gabor1/ASL/blob/",
        f"text for students its licence, which they must repeat, from {TERMS['LicenseRef-ASL'].text} in ",
        "licence of the code MIT",
        "commercial use forbidden",
        "to run it the package mace-torch is not installed; run: zoo teachers install mace",
        "fastest mode ",
    ):
        assert words in text
    monkeypatch.setattr("zoo.teachers.families._is_found", lambda module: True)
    text = " ".join(info_text(row_of("mace-off23-large/teacher")).split())
    assert "to run it its weights are not here; run: zoo teachers fetch mace-off23-large/teacher" in text
    assert "here yes: zoo.load('sevennet-0/teacher')" in " ".join(info_text(row_of("sevennet-0/teacher")).split())


def test_weights_without_a_published_digest_say_so():
    told = {row["name"]: " ".join(info_text(row).split()) for row in listing() if row["source"] and not row["digest"]}
    assert "digest of the weights none was found" in told["orb-v3-direct-omol/teacher"]
    assert "digest of the weights what the hub states when it is fetched" in told["uma-s-1p1/omol-teacher"]
    assert "terms to accept at https://huggingface.co/facebook/UMA" in told["uma-s-1p1/omol-teacher"]


def test_teachers_stand_after_the_engines_in_lists():
    statuses = [row["status"] for row in listing()]
    assert statuses == sorted(statuses, key=lambda status: status == "package")
    assert statuses[-1] == "package"


def test_the_list_says_of_each_teacher_what_to_do_first(monkeypatch):
    def steps():
        table = list_text(listing(), 100).split("\n\n")[2]
        return {line.split()[0]: line.split()[1] for line in table.splitlines()[1:]}

    monkeypatch.setattr("zoo.teachers.families._is_found", lambda module: False)
    found = steps()
    assert found["stillinger-weber/teacher"] == "yes"
    assert found["mace-mp-0-small/teacher"] == found["sevennet-0/teacher"] == "install"
    assert found["jmp-l/teacher"] == "convert"
    monkeypatch.setattr("zoo.teachers.families._is_found", lambda module: True)
    found = steps()
    assert found["mace-mp-0-small/teacher"] == "fetch"
    assert found["sevennet-0/teacher"] == "yes"


OWN = {"name": "own/mine", "family": "mace", "file": "mine.model", "sha256": "0" * 64, "elements": ["Si"]}


def test_a_teacher_of_one_s_own_is_listed_and_described_from_its_record(monkeypatch):
    monkeypatch.setattr("zoo.teachers.families._is_found", lambda module: True)
    folder = weights_folder("own/mine")
    folder.mkdir(parents=True)
    facts = OWN | {"licence": "LicenseRef-ASL", "level_of_theory": "PBE", "head": "omol"}
    (folder / FACTS).write_text(json.dumps(facts))
    row, card = describe("own/mine")
    assert card is None
    assert row == row_of("own/mine")
    assert (row["elements"], row["level_of_theory"], row["commercial"]) == (["Si"], "PBE", False)
    assert row["head"] == "omol"
    assert (row["source"], row["folder"], row["digest"]) == ("mine.model", str(folder), f"sha256:{'0' * 64}")
    assert "is gone; put it back, or run: zoo teachers add own/mine" in row["missing"]
    (folder / "mine.model").touch()
    assert row_of("own/mine")["missing"] is None
    (folder / FACTS).write_text("{")
    with pytest.warns(ZooWarning, match=FACTS):
        assert "own/mine" not in {row["name"] for row in listing()}


def test_a_teacher_of_one_s_own_that_nobody_added_is_asked_of_no_hub(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    with pytest.raises(UnknownNameError, match="own/emt is not known: nobody has added it here; run: zoo teachers add"):
        describe("own/emt")
