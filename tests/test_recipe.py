"""Recipes: closed, strict, and clear about what is wrong."""

from pathlib import Path

import pytest

from recipes import frames_data, frames_recipe, tiny_data, tiny_recipe, write_tiny
from zoo.errors import ConfigError, UnknownNameError
from zoo.recipe import LossSection, read_recipe, recipe_names

BAD = {
    "typo": ({"training__stepz": 3}, "unknown key 'training.stepz'; check its spelling"),
    "negative": ({"training__learning_rate": -1e-3}, "training.learning_rate"),
    "zero-count": ({"structures__groups": []}, "no group is in the split test, train, validation"),
    "teacher": ({"teacher__name": "sevenet-0/teacher"}, "no teacher is called 'sevenet-0/teacher'"),
    "architecture": ({"student__architecture": "schnet"}, "'student.architecture': no 'schnet'; known are painn"),
    "element": ({"student__elements": ["Xx"]}, "'Xx' is not an element"),
    "element-missing": ({"student__elements": ["Ge"]}, "student.elements lacks Si"),
    "weights": (
        {"loss__energy": 0, "loss__force": 0, "loss__stress": 0},
        "energy, force, stress and teacher_force all weigh 0, so nothing sets the forces; weigh one",
    ),
    "no-weights": ({"loss": {}}, "all weigh 0"),
    "hessian-alone": ({"loss": {"hessian": 20}}, "all weigh 0"),
    "gradient": ({"loss__gradient": 5}, "the forces of painn are its gradient already: set it to 0"),
    "direct-stress": (
        {"student": {"architecture": "painn-dt", "elements": ["Si"]}},
        "loss.stress has a weight, but painn-dt gives no stress; set it to 0",
    ),
    "switch": ({"loss__hessian_switch": {}}, "with the forces of a data set; set force_from: dataset"),
    "switch-of-nothing": (
        {"loss": {"force": 1, "force_from": "dataset", "hessian_switch": {}}},
        "hessian_switch wants a weight of force and of hessian; give both, or remove it",
    ),
    "gradient-of-no-data-set": (
        {
            "student": {"architecture": "painn-dt", "elements": ["Si"]},
            "loss": {"teacher_force": 1, "gradient": 1, "force_from": "dataset"},
        },
        "loss.force_from is dataset",
    ),
    "direct-energy": (
        {"student": {"architecture": "painn-dt", "elements": ["Si"]}, "loss": {"energy": 1}},
        "loss.force and loss.teacher_force weigh 0, but painn-dt predicts forces, which nothing else sets; weigh one",
    ),
    "switch-factor": ({"loss__hessian_switch": {"factor": 2}}, "loss.hessian_switch.factor"),
    "dataset": (
        {"loss__force_from": "dataset"},
        "loss.force_from is dataset, but not all groups to train and validate on are frames of a file as they are",
    ),
    "dataset-energy": ({"loss__energy_from": "dataset"}, "loss.energy_from is dataset"),
    "dataset-stress": ({"loss__stress_from": "dataset"}, "loss.stress_from is dataset"),
    "no-probes": (
        {"labels__probes": "none"},
        "loss.hessian has a weight, but labels.probes is none; choose probes, or set it to 0",
    ),
    "dense-and-fresh": (
        {"labels__probes": "dense", "loss__hessian_from": "teacher"},
        "loss.hessian_from is teacher, which draws its own probes; set labels.probes to rows",
    ),
    "features": ({"loss__feature": 1}, "loss.feature has a weight, but labels.extras lacks features; add it there"),
    "atomic-energies": (
        {"loss__atomic_energy": 1},
        "loss.atomic_energy has a weight, but labels.extras lacks atomic_energies; add it there",
    ),
    "extras": ({"labels__extras": ["forces"]}, "labels.extras.0"),
    "norm": ({"loss__norms": {"force": "l3"}}, "loss.norms.force"),
    "idle-norm": (
        {"loss__norms": {"feature": "l1"}},
        "norms says how feature is compared, which weighs 0; weigh it, or remove its norm",
    ),
    "forward-and-fresh": (
        {"labels__forward_mode": True, "labels__side": "columns", "loss__hessian_from": "teacher"},
        "loss.hessian_from is teacher, which is asked in reverse mode; remove labels.forward_mode",
    ),
    "norm-of-no-term": ({"loss__norms": {"froce": "l2"}}, "loss.norms.froce"),
    "kind-of-probes": ({"labels__probes": "hadamard"}, "labels.probes"),
    "forward-mode": ({"labels__forward_mode": True}, "forward_mode gives columns; set side: columns, or leave it out"),
    "batch-of-nothing": ({"training__batch_atoms": 0}, "training.batch_atoms"),
    "teacher-channels": ({"student__teacher_channels": -1}, "teacher_channels"),
    "probes": ({"loss__probes_per_step": 3}, "labels.probes_per_structure only 2; lower the one, or raise the other"),
    "missing": ({"teacher__name": ...}, "key 'teacher.name' is missing"),
    "no-length": ({"training__steps": ...}, "'training': steps is missing; give steps, or epochs in its place"),
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


ALLOWED = {
    "dense-rows": {"labels__probes": "dense", "loss__probes_per_step": 24},
    "fresh": {"loss__hessian_from": "teacher", "loss__probes_per_step": 9, "labels__probes_per_structure": 1},
    "no-probes": {"labels__probes": "none", "loss__hessian": 0, "loss__probes_per_step": 9},
    "teacher-forces": {"loss": {"teacher_force": 100}},
    "atoms": {"labels__extras": ["atomic_energies", "features"], "loss__atomic_energy": 1, "loss__feature": 1},
    "gradient": {
        "student": {"architecture": "painn-dt", "elements": ["Si"]},
        "loss": {"energy": 5, "force": 100, "gradient": 5},
    },
    "columns": {"labels__side": "columns", "labels__forward_mode": True},
}


@pytest.mark.parametrize("case", ALLOWED)
def test_signals_are_combined_freely(case, tmp_path):
    recipe = tiny_recipe(**ALLOWED[case])
    assert read_recipe(write_tiny(tmp_path, **ALLOWED[case])) == recipe
    assert recipe.digest != tiny_recipe().digest


def test_frames_of_a_data_set_have_its_labels(tmp_path):
    loss = {"energy": 5, "force": 100, "hessian": 400, "force_from": "dataset", "energy_from": "dataset"}
    weights = frames_recipe(tmp_path, loss=loss | {"hessian_switch": {}}).loss
    assert weights.hessian_switch.within == 0.05
    assert weights.hessian_switch.factor == 0.5
    groups = frames_data(tmp_path)["structures"]["groups"]
    groups[0]["displacement"] = [0.01, 0.02]
    with pytest.raises(ConfigError, match=r"loss.energy_from is dataset, but not all .* set it to teacher"):
        frames_recipe(tmp_path, loss=loss, structures={"groups": groups})


def test_weights_and_norms_are_those_that_are_given():
    loss = LossSection(force=3.0, feature=2.0, hessian=1.0, norms={"hessian": "huber"})
    assert loss.weights == {"force": 3.0, "hessian": 1.0, "feature": 2.0}
    norms = {term: loss.norm(term) for term in ("force", "hessian", "feature")}
    assert norms == {"force": "l2", "hessian": "huber", "feature": "squared"}


def test_the_twin_learns_nothing_that_only_a_teacher_gives():
    loss = LossSection(
        energy=1.0,
        force=2.0,
        teacher_force=3.0,
        hessian=4.0,
        atomic_energy=5.0,
        feature=6.0,
        force_from="dataset",
        hessian_switch={},
    )
    twin = loss.undistilled()
    assert twin.weights == {"energy": 1.0, "force": 2.0}
    assert twin.hessian_switch is None
    assert twin.force_from == "dataset"
    assert LossSection(teacher_force=3.0).undistilled().weights == {"force": 3.0}
    twin = LossSection(energy=5.0, teacher_force=3.0, force_from="dataset").undistilled()
    assert (twin.weights, twin.force_from) == ({"energy": 5.0, "force": 3.0}, "teacher")


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
