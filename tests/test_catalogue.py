"""Names, recipes, cards, adapters and the catalogue say the same."""

import re
from pathlib import Path

import pytest
from ase.data import chemical_symbols

from zoo.artifact import count_parameters
from zoo.config import parse
from zoo.errors import ConfigError
from zoo.hub.catalogue import Catalogue, Entry, canonical, entries, is_repository_id, nearest
from zoo.licences import CODE_LICENCE, TERMS
from zoo.naming import is_engine_name
from zoo.recipe import read_recipe
from zoo.students import build_student
from zoo.teachers import FINE_TUNED, absent, load_teacher, teacher_names

ROOT = Path(__file__).parent.parent


def _names(folder: str, suffix: str) -> dict[str, Path]:
    files = [path for path in (ROOT / folder).glob(f"*/*{suffix}") if not path.parent.name.startswith("_")]
    return {path.relative_to(ROOT / folder).with_suffix("").as_posix(): path for path in files}


def test_every_recipe_is_in_the_catalogue_and_every_entry_of_that_status_has_one() -> None:
    recipes = _names("recipes", ".yaml")
    assert "sevennet-0/silicon-student" in recipes
    assert set(recipes) == {name for name, entry in entries().items() if entry.status == "recipe"}


@pytest.mark.parametrize("name", [name for name, entry in entries().items() if entry.status != "package"])
def test_a_recipe_says_of_itself_what_the_catalogue_says(name: str) -> None:
    recipe, entry = read_recipe(name), entries()[name]
    assert (recipe.teacher.name, recipe.licence, recipe.subset) == (entry.teacher, entry.licence_weights, entry.subset)
    assert entry.licence_code == CODE_LICENCE
    assert set(recipe.student.elements) == set(entry.elements)
    assert count_parameters(build_student(recipe.student)) == entry.parameters


def test_nothing_is_called_published_that_nobody_has_published() -> None:
    assert {entry.status for entry in entries().values()} == {"package", "recipe"}


def test_every_card_is_that_of_a_student_in_the_catalogue() -> None:
    for name in _names("cards", ".md"):
        assert entries()[name].status != "package"


def test_packages_are_the_teachers_that_recipes_may_name() -> None:
    packages = {name for name, entry in entries().items() if entry.status == "package"}
    assert packages == set(teacher_names()) - set(FINE_TUNED)
    assert {entries()[name].status for name in FINE_TUNED} == {"recipe"}
    assert all(entry.teacher in teacher_names() for entry in entries().values() if entry.teacher)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", [name for name in teacher_names() if name not in FINE_TUNED])
def test_a_teacher_says_of_itself_what_the_catalogue_says(name: str) -> None:
    entry, why = entries()[name], absent(name)
    if why is not None:
        pytest.skip(why)
    teacher = load_teacher(name)
    assert teacher.package.split()[0] == entry.package
    assert (teacher.licence_code, teacher.licence_weights) == (entry.licence_code, entry.licence_weights)
    assert teacher.level_of_theory == entry.level_of_theory
    assert entry.elements == tuple(chemical_symbols[number] for number in teacher.potential.elements)
    assert entry.parameters in (None, count_parameters(teacher.potential))
    formula = entry.package in ("zoo", "tblite")
    assert (entry.parameters is None) == formula, "a formula has constants, no network of trained numbers"


def test_names_are_lawful_and_the_terms_of_all_weights_are_known() -> None:
    assert all(is_engine_name(name) for name in entries())
    assert all(entry.licence_weights in TERMS for entry in entries().values())


GOOD = {
    "name": "a/b",
    "status": "recipe",
    "purpose": "p",
    "elements": ["C", "Si"],
    "licence_code": "MIT",
    "licence_weights": "MIT",
    "teacher": "a/teacher",
}
TEACHER = GOOD | {"status": "package", "package": "x", "teacher": None, "periodic": True, "level_of_theory": "PBE"}
RELEASE = {"repository": "me/a_b", "version": "v2", "commit": "0" * 40, "manifest_sha256": "f" * 64}
PUBLISHED = GOOD | {"status": "published", "release": RELEASE}


def parsed(*engines: object) -> tuple[Entry, ...]:
    return parse(Catalogue, {"engines": list(engines)}, "catalogue.yaml").engines


def test_a_published_entry_says_where_it_is() -> None:
    (entry,) = parsed(PUBLISHED)
    assert entry.release is not None
    assert entry.release.hub == "https://huggingface.co"
    assert entry.release.repository == "me/a_b"
    (other,) = parsed(PUBLISHED | {"release": RELEASE | {"hub": "http://hub.example:8080/team"}})
    assert other.release is not None
    assert other.release.hub == "http://hub.example:8080/team"


@pytest.mark.parametrize(
    ("engines", "words"),
    [
        ([GOOD, GOOD], "given twice: a/b"),
        ([GOOD | {"aliases": ["a/b"]}], "given twice: a/b"),
        ([GOOD | {"aliases": ["a/old"]}, GOOD | {"name": "a/old"}], "given twice: a/old"),
        ([GOOD | {"aliases": ["x/y"]}, GOOD | {"name": "a/c", "aliases": ["x/y"]}], "given twice: x/y"),
        ([GOOD | {"aliases": ["old name"]}], "not family/engine"),
        ([GOOD | {"name": "a b"}], "not family/engine"),
        ([GOOD | {"name": "own/b"}], "would be a teacher of a user's own"),
        ([GOOD | {"level_of_theory": "PBE"}], "status package, and no other, has periodic and level_of_theory"),
        ([TEACHER | {"periodic": None}], "status package, and no other, has periodic and level_of_theory"),
        ([GOOD | {"fastest": "on a GPU"}], "fastest is said of a teacher"),
        ([GOOD | {"package": "x"}], "has teacher alone"),
        ([GOOD | {"status": "package"}], "has package alone"),
        ([GOOD | {"colour": "red"}], "unknown key"),
        ([GOOD | {"elements": "Si"}], "elements"),
        ([GOOD | {"elements": []}], "elements"),
        ([GOOD | {"elements": ["Si", "C"]}], "order of their atomic numbers"),
        ([GOOD | {"elements": ["Si", "Si"]}], "each given once"),
        ([GOOD | {"elements": ["X"]}], "'X' is not an element"),
        ([GOOD | {"elements": ["Q"]}], "'Q' is not an element"),
        ([GOOD | {"parameters": 0}], "parameters"),
        ([GOOD | {"base_model": "model"}], "'model' is not owner/repository"),
        ([GOOD | {"release": RELEASE}], "status published, and no other, has a release"),
        ([GOOD | {"status": "published"}], "status published, and no other, has a release"),
        ([GOOD | {"status": "announced"}], "status"),
        ([PUBLISHED | {"release": RELEASE | {"repository": "me/a_c"}}], "expected me/a_b"),
        ([PUBLISHED | {"release": RELEASE | {"repository": "me/../a_b"}}], "not owner/repository"),
        ([PUBLISHED | {"release": RELEASE | {"version": "2"}}], "version"),
        ([PUBLISHED | {"release": RELEASE | {"version": "v02"}}], "version"),
        ([PUBLISHED | {"release": RELEASE | {"commit": "0" * 7}}], "commit"),
        ([PUBLISHED | {"release": RELEASE | {"manifest_sha256": "F" * 64}}], "manifest_sha256"),
        ([PUBLISHED | {"release": RELEASE | {"hub": "file:///etc"}}], "hub"),
        ([PUBLISHED | {"release": RELEASE | {"hub": "https://hub.example/"}}], "hub"),
    ],
)
def test_a_wrong_catalogue_is_an_error(engines: list[dict[str, object]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parsed(*engines)


def test_an_earlier_name_is_known_by_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = parsed(GOOD | {"aliases": ["a/old", "b/older"]})
    monkeypatch.setattr("zoo.hub.catalogue.entries", lambda: {entry.name: entry})
    assert canonical("b/older") == ("a/b", True)
    assert canonical("a/b") == ("a/b", False)
    assert canonical("a/unknown") == ("a/unknown", False)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("facebook/UMA", True),
        ("mlff-zoo/sevennet-0_silicon-student", True),
        ("model", False),
        ("a/b/c", False),
        ("a/b@v1", False),
        ("../b", False),
        ("a/..", False),
        ("a/b\n", False),
        ("a/" + "b" * 300, False),
        (None, False),
        (["a/b"], False),
    ],
)
def test_what_is_a_repository(text: object, holds: bool) -> None:
    assert is_repository_id(text) is holds


def test_the_few_nearest_names_are_told_or_what_shows_all() -> None:
    assert nearest("sevennet-0/silicon-studnet").startswith("nearest: sevennet-0/silicon-student")
    assert "me/engine" in nearest("me/engin", ["me/engine"])
    assert nearest("qqqqqqqqqqqq") == nearest("") == "zoo list shows all names"
    related = nearest("mace/si")
    assert re.fullmatch(r"nearest: mace-\S+, mace-\S+, mace-\S+; zoo list shows all names", related), related
