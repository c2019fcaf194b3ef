"""Names, recipes, cards, adapters and the catalogue say the same."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from zoo.config import parse
from zoo.errors import ConfigError
from zoo.hub.catalogue import Catalogue, entries, nearest
from zoo.licences import TERMS
from zoo.naming import is_engine_name
from zoo.teachers import load_teacher, teacher_names

ROOT = Path(__file__).parent.parent


def _names(folder: str, suffix: str) -> dict[str, Path]:
    files = [path for path in (ROOT / folder).glob(f"*/*{suffix}") if not path.parent.name.startswith("_")]
    return {path.relative_to(ROOT / folder).with_suffix("").as_posix(): path for path in files}


def test_every_recipe_is_in_the_catalogue_and_every_entry_of_that_status_has_one() -> None:
    recipes = _names("recipes", ".yaml")
    assert "sevennet-0/silicon-student" in recipes
    assert set(recipes) == {name for name, entry in entries().items() if entry.status == "recipe"}


def test_a_recipe_says_of_itself_what_the_catalogue_says() -> None:
    for name, path in _names("recipes", ".yaml").items():
        recipe = yaml.safe_load(path.read_text())
        entry = entries()[name]
        assert recipe["name"] == name
        assert recipe["teacher"]["name"] == entry.teacher
        assert recipe["licence"] == entry.licence_weights


def test_every_card_is_that_of_a_student_in_the_catalogue() -> None:
    for name in _names("cards", ".md"):
        assert entries()[name].status != "package"


def test_packages_are_the_teachers_that_have_an_adapter() -> None:
    assert {name for name, entry in entries().items() if entry.status == "package"} == set(teacher_names())
    assert all(entry.teacher in teacher_names() for entry in entries().values() if entry.teacher)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", teacher_names())
def test_a_teacher_says_of_itself_what_the_catalogue_says(name: str) -> None:
    entry = entries()[name]
    if importlib.util.find_spec(entry.package) is None:
        pytest.skip(f"{entry.package} is not installed")
    teacher = load_teacher(name)
    assert teacher.package.split()[0] == entry.package
    assert (teacher.licence_code, teacher.licence_weights) == (entry.licence_code, entry.licence_weights)
    count = len(teacher.potential.elements)
    assert entry.elements == ("Si" if count == 1 else f"{count} elements")


def test_names_are_lawful_and_the_terms_of_all_weights_are_known() -> None:
    assert all(is_engine_name(name) for name in entries())
    assert all(entry.licence_weights in TERMS for entry in entries().values())


GOOD = {
    "name": "a/b",
    "status": "recipe",
    "purpose": "p",
    "elements": "Si",
    "licence_code": "MIT",
    "licence_weights": "MIT",
    "teacher": "a/teacher",
}


@pytest.mark.parametrize(
    ("engines", "words"),
    [
        ([GOOD, GOOD], "given twice"),
        ([GOOD | {"name": "a b"}], "not family/engine"),
        ([GOOD | {"package": "x"}], "has teacher alone"),
        ([GOOD | {"status": "package"}], "has package alone"),
        ([GOOD | {"colour": "red"}], "unknown key"),
    ],
)
def test_a_wrong_catalogue_is_an_error(engines: list[dict[str, str]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(Catalogue, {"engines": engines}, "catalogue.yaml")


def test_nearest_names_are_found_or_all_are_listed() -> None:
    assert nearest("sevennet-0/silicon-studnet").startswith("nearest: sevennet-0/silicon-student")
    assert "me/engine" in nearest("me/engin", ["me/engine"])
    assert nearest("qqqqqqqqqqqq").startswith("known: ")
