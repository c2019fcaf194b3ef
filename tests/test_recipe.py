"""Recipes: closed, strict, and clear about what is wrong."""

from pathlib import Path

import pytest

from recipes import tiny_data, tiny_recipe, write_tiny
from zoo.errors import ConfigError, UnknownNameError
from zoo.recipe import read_recipe, recipe_names

BAD = {
    "typo": ({"training__stepz": 3}, "unknown key 'training.stepz'; check its spelling"),
    "negative": ({"training__learning_rate": -1e-3}, "training.learning_rate"),
    "zero-count": ({"structures__groups": []}, "no group is in the split test, train, validation"),
    "teacher": ({"teacher__name": "sevenet-0/teacher"}, "no teacher is called 'sevenet-0/teacher'"),
    "architecture": ({"student__architecture": "schnet"}, "student.architecture"),
    "element": ({"student__elements": ["Xx"]}, "'Xx' is not an element"),
    "element-missing": ({"student__elements": ["Ge"]}, "student.elements lacks Si"),
    "weights": (
        {"loss__energy": 0, "loss__force": 0, "loss__stress": 0},
        "energy, force and stress all weigh 0",
    ),
    "probes": ({"loss__probes_per_step": 3}, "labels.probes_per_structure only 2"),
    "missing": ({"training__steps": ...}, "key 'training.steps' is missing"),
    "string": ({"training__steps": "many"}, "training.steps"),
    "infinite": ({"loss__force": float("inf")}, "loss.force"),
    "crystal": ({"structures__crystal__prototype": "graphite"}, "structures.crystal.prototype"),
    "formula": ({"structures__crystal__formula": "Sii"}, "no diamond crystal of 'Sii' can be built"),
    "name": ({"name": "../escape"}, "is no name for an engine"),
    "name-form": ({"name": "Silicon"}, "is no name for an engine"),
    "name-of-a-teacher": ({"name": "stillinger-weber/teacher"}, "is no name for an engine"),
    "licence": ({"licence": "MITT"}, "licence 'MITT' is unknown"),
    "warm-up": ({"training__warmup_steps": 40}, "there are only 40 steps"),
    "rates": ({"training__final_learning_rate": 0.1}, "final_learning_rate is above learning_rate"),
    "no-loss": ({"loss": ...}, "key 'loss' is missing"),
    "format": ({"format": 2}, "'format'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_in_one_line(case, tmp_path):
    changes, message = BAD[case]
    path = write_tiny(tmp_path, **changes)
    with pytest.raises(ConfigError) as error:
        read_recipe(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_range_the_wrong_way_round(tmp_path):
    groups = tiny_data()["structures"]["groups"]
    groups[0]["displacement"] = [0.2, 0.1]
    with pytest.raises(ConfigError, match="displacement is a range"):
        read_recipe(write_tiny(tmp_path, structures__groups=groups))


def test_a_supercell_of_two_splits(tmp_path):
    groups = tiny_data()["structures"]["groups"]
    groups[3]["supercell"] = groups[0]["supercell"]
    with pytest.raises(ConfigError, match=r"group tested has the supercell \[1, 1, 1\] of another split"):
        read_recipe(write_tiny(tmp_path, structures__groups=groups))


def test_two_groups_of_one_name(tmp_path):
    groups = tiny_data()["structures"]["groups"]
    groups[1]["name"] = groups[0]["name"]
    with pytest.raises(ConfigError, match="two groups have the same name"):
        read_recipe(write_tiny(tmp_path, structures__groups=groups))


def test_shipped_recipes_read_under_their_own_name():
    assert "sevennet-0/silicon-student" in recipe_names()
    for name in recipe_names():
        assert read_recipe(name).name == name


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"did you mean sevennet-0/silicon-student\?"):
        read_recipe("sevennet-0/silicone-student")


def test_a_missing_file_is_named():
    with pytest.raises(UnknownNameError, match=r"no recipe file nowhere\.yaml"):
        read_recipe(Path("nowhere.yaml"))


def test_the_digest_sees_what_is_asked_for_and_not_how_it_is_written(tmp_path):
    recipe = tiny_recipe()
    assert read_recipe(write_tiny(tmp_path)).digest == recipe.digest
    assert tiny_recipe(training__steps=41).digest != recipe.digest


def test_the_test_set_of_the_silicon_recipe_is_hotter_and_more_strained_than_its_training_set():
    groups = read_recipe("sevennet-0/silicon-student").structures.groups

    def largest(split, key):
        return max(getattr(group, key) for group in groups if group.split == split and hasattr(group, key))

    for key in ("temperature", "strain", "shear"):
        assert largest("test", key) > largest("train", key)
    cells = {split: {group.supercell for group in groups if group.split == split} for split in ("train", "test")}
    assert {group.name for group in groups if group.split == "test"}
    assert (2, 2, 1) in cells["test"] - cells["train"]
