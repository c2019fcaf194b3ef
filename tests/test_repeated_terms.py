"""Licences whose text must be passed on: a student carries it from its teacher to the repository that it is put in."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from licence_texts import TEXT, save_text
from test_own_calculator import copper, copper_recipe

import zoo
from zoo.acceptance import text_path
from zoo.artifact import write_manifest
from zoo.cli import main
from zoo.errors import LicenceError, ZooWarning
from zoo.estimate.needs import lacking
from zoo.hub.card_data import parse_card
from zoo.hub.card_lint import lint_card
from zoo.licences import TERMS
from zoo.publish import publish
from zoo.recipe_check import check_recipe
from zoo.run import Run

ASL, FAIR = "LicenseRef-ASL", "LicenseRef-FAIR-Chemistry-v1"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the model folder of a student whose teacher is under a licence; it is trained once for all."""
    pytest.importorskip("phonopy", reason="evaluation needs the extra train")
    folder, made = tmp_path_factory.mktemp("copper"), {}

    def make(licence: str) -> Path:
        if licence not in made:
            save_text(licence)
            recipe, teacher = copper_recipe(licence=licence), copper(licence=licence)
            place = zoo.run_recipe(recipe, teacher=teacher, folder=folder / "run", replace=True)
            made[licence] = Path(shutil.copytree(place, folder / licence))
        return made[licence]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("licence", [ASL, FAIR])
def test_a_student_carries_the_text_of_its_teacher_s_licence_to_where_it_is_published(
    licence: str, model: Callable[[str], Path], tmp_path: Path
) -> None:
    place, text = model(licence), TEXT.strip()
    card = (place / "README.md").read_text()
    assert lint_card(card, place) == []
    assert json.loads((place / "config.json").read_text())["lineage"]["teacher_terms"] == text
    assert parse_card(card).terms == text
    quoted = [line.removeprefix(">") for line in card.splitlines() if line.startswith(">")]
    assert " ".join(text.split()) in " ".join(" ".join(quoted).split())
    done = CliRunner().invoke(main, ["publish", str(place), "--hub", str(tmp_path / "hub"), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert f"licence: {licence}, which its sources allow" in done.output


def test_a_run_is_refused_before_it_begins_where_the_text_is_not_here(tmp_path: Path) -> None:
    pytest.importorskip("phonopy", reason="evaluation needs the extra train")
    recipe, teacher = copper_recipe(licence=ASL), copper(licence=ASL)
    (told,) = [line for line in lacking(Run.of(recipe, tmp_path / "run", teacher=teacher)) if "repeat" in line]
    assert told.endswith(f"save {TERMS[ASL].text} as {text_path(TERMS[ASL])}")
    with pytest.raises(LicenceError) as caught:
        zoo.run_recipe(recipe, teacher=teacher, folder=tmp_path / "run")
    assert str(caught.value) == told
    assert not (tmp_path / "run").exists()
    save_text(ASL)
    assert lacking(Run.of(recipe, tmp_path / "run", teacher=teacher)) == []


def test_check_of_a_recipe_notes_that_the_text_is_not_here() -> None:
    name = "mace-off23-large/monomers-student"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ZooWarning)
        assert check_recipe(name) == []
        save_text(ASL)
        told = [str(one.message) for one in caught if "must repeat" in str(one.message)]
        caught.clear()
        assert check_recipe(name) == []
    assert [line.startswith("teacher mace-off23-large/teacher is under LicenseRef-ASL") for line in told] == [True]
    assert not [one for one in caught if "must repeat" in str(one.message)]


@pytest.mark.slow
def test_a_card_that_leaves_a_word_of_the_licence_out_is_refused(model: Callable[[str], Path], tmp_path: Path) -> None:
    place = Path(shutil.copytree(model(ASL), tmp_path / "model"))
    card = place / "README.md"
    card.write_text(card.read_text().replace("no #harm", "#harm"))
    write_manifest(place)
    with pytest.raises(LicenceError, match="does not repeat the terms of own/copper-teacher"):
        publish(place, tmp_path / "hub", dry_run=True)
