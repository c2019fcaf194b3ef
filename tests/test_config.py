"""Configs that are not what their schema says: one line, the key, what to do."""

import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from zoo.config import (
    MAX_CONFIG_BYTES,
    MAX_WRITTEN_OUT,
    Config,
    canonical_json,
    digest,
    load_yaml,
    parse,
    read_json,
    read_yaml,
    write_json,
)
from zoo.errors import ConfigError


class Inner(Config):
    rate: float = Field(gt=0)


class Schema(Config):
    name: str
    steps: int = Field(10, ge=1)
    sizes: tuple[int, ...] = ()
    inner: Inner = Inner(rate=0.5)


def _yaml(folder: Path, text: str | bytes) -> Path:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_yaml_becomes_its_schema(tmp_path: Path) -> None:
    read = read_yaml(Schema, _yaml(tmp_path, "name: a\nsteps: 3\nsizes: [1, 2]\ninner: {rate: 2}\n"))
    assert read == Schema(name="a", steps=3, sizes=(1, 2), inner=Inner(rate=2.0))


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("1.5E+2", 150.0), ("2", 2.0), (".5", 0.5)])
def test_numbers_in_any_spelling_are_numbers(tmp_path: Path, text: str, value: float) -> None:
    assert read_yaml(Inner, _yaml(tmp_path, f"rate: {text}\n")).rate == value


WRONG = {
    "unknown key": ("name: a\nstepz: 3\n", "unknown key 'stepz'; check its spelling"),
    "unknown key within": ("name: a\ninner: {rate: 1, rat: 2}\n", r"unknown key 'inner\.rat'"),
    "missing key": ("steps: 3\n", "key 'name' is missing"),
    "negative number": ("name: a\nsteps: -3\n", "'steps': .*greater than or equal to 1.*got '-3'"),
    "zero rate": ("name: a\ninner: {rate: 0}\n", r"'inner\.rate': .*greater than 0"),
    "text for a number": ("name: a\nsteps: three\n", "'steps': .*integer.*got 'three'"),
    "number in quotes": ('name: a\nsteps: "3"\n', "'steps': .*integer"),
    "real for a whole number": ("name: a\nsteps: 3.5\n", "'steps': .*integer"),
    "truth for a number": ("name: a\nsteps: yes\n", "'steps': .*integer"),
    "number for a text": ("name: 5\n", "'name': .*string"),
    "number for a list": ("name: a\nsizes: 4\n", "'sizes'"),
    "NaN": ("name: a\ninner: {rate: .nan}\n", r"'inner\.rate'.*finite"),
    "infinite": ("name: a\ninner: {rate: .inf}\n", r"'inner\.rate'.*finite"),
    "key given twice": ("name: a\nsteps: 3\nsteps: 4\n", r"yaml:3: .*key given twice: steps"),
    "key given twice within": (
        "name: a\ninner:\n  rate: 1\n  rate: 2\n",
        r"yaml:4: .*key given twice: rate",
    ),
    "not YAML": ("name: [a\nsteps: 3\n", r"yaml:2: not valid YAML: expected"),
    "an object of Python": ("name: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    "a list": ("- name\n", "top level"),
    "a text": ("name\n", "top level"),
    "empty": ("", "top level"),
    "a character of no text": ("name: a\x00b\n", "not valid YAML"),
    "a date": ("name: 2024-01-01\n", "not plain data"),
    "a map as a key": ("? {a: 1}\n: 2\nname: a\n", "not valid YAML"),
    "a list as a key": ("? [a, b]\n: 2\nname: a\n", "not valid YAML"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_yaml_is_one_line_that_says_where(tmp_path: Path, name: str) -> None:
    text, message = WRONG[name]
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(Schema, _yaml(tmp_path, text))
    assert "recipe.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_more_than_one_problem_is_counted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(and 1 more\)"):
        read_yaml(Schema, _yaml(tmp_path, "name: 5\nsteps: -1\n"))


class Disc(Config):
    kind: Literal["disc"]
    radius: float = Field(gt=0)
    disc: str = "a"

    @model_validator(mode="after")
    def _free(self) -> "Disc":
        if self.disc == "rate":
            raise ValueError("it is called as named.first.rate; choose another")
        return self


class Box(Config):
    kind: Literal["box"]
    edge: float = Field(gt=0)
    label: str = "a"

    @model_validator(mode="after")
    def _named(self) -> "Box":
        if self.label == "edge":
            raise ValueError("label is 'edge', which is taken; choose another")
        return self


class Drawing(Config):
    shapes: tuple[Annotated[Disc | Box, Field(discriminator="kind")], ...]
    named: dict[str, Inner] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _drawn(self) -> "Drawing":
        if len(self.shapes) == 2:
            raise ValueError("two shapes are none")
        if "none" in self.named:
            raise ValueError("named.none.rate says nothing; remove it")
        return self


DRAWING = """\
# a comment

shapes:
  - kind: disc
    disc: a
    radius: 1
  - {kind: box,
     edge: 2}
  -
    kind: box
    edge: 3  # Å
named:
  "first": {rate: 1}
  second:

    rate: 2
"""
LINES = {
    "a value": ("radius: 1", "radius: -1", 6, r"'shapes\.0\.radius'"),
    "a missing key": ("    radius: 1\n", "", 4, r"key 'shapes\.0\.radius' is missing"),
    "a missing key beside one that is called as the kind": ("radius: 1", "disk: b", 4, r"key 'shapes\.0\.radius'"),
    "an unknown key": ("    radius: 1", "    radius: 1\n    size: 2", 7, r"unknown key 'shapes\.0\.size'"),
    "a value in a map in braces": ("edge: 2", "edge: 0", 8, r"'shapes\.1\.edge'"),
    "an item below its dash": ("edge: 3", "edges: 3", 10, r"key 'shapes\.2\.edge' is missing"),
    "a kind": ("kind: disc", "kind: disk", 4, r"'shapes\.0\.kind': no 'disk'; known are disc, box"),
    "no kind": ("kind: box\n    edge: 3", "edge: 3", 10, r"key 'shapes\.2\.kind' is missing"),
    "a key in quotes": ("{rate: 1}", "{rate: x}", 13, r"'named\.first\.rate'"),
    "a key and its value apart": ("rate: 2", "rate: x", 16, r"'named\.second\.rate'"),
    "a key that is missing deep down": ("    rate: 2", "    {}", 14, r"key 'named\.second\.rate' is missing"),
    "an item as a whole, by the key that is spoken of": (
        "edge: 3",
        "edge: 3\n    label: edge",
        12,
        r"'shapes\.2': label is 'edge', which is taken",
    ),
    "an item as a whole, by a key elsewhere": ("disc: a", "disc: rate", 13, r"'shapes\.0': it is called as named"),
    "the whole, by the key that is spoken of": ("second:", "none:", 16, r"'top level': named\.none\.rate says nothing"),
    "the whole": ("  -\n    kind: box\n    edge: 3  # Å\n", "", 3, "two shapes are none"),
    "the section that is missing": ("shapes:", "shape:", 3, "key 'shapes' is missing"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_problem_names_its_line(tmp_path: Path, name: str) -> None:
    right, wrong, line, message = LINES[name]
    assert DRAWING.count(right) == 1
    with pytest.raises(ConfigError, match=rf"recipe\.yaml:{line}: .*{message}"):
        read_yaml(Drawing, _yaml(tmp_path, DRAWING.replace(right, wrong)))


def test_all_problems_are_listed_each_with_its_line(tmp_path: Path) -> None:
    text = DRAWING.replace("radius: 1", "radius: x").replace("edge: 3", "edges: 3").replace("rate: 2", "rate: -2")
    path = _yaml(tmp_path, text)
    found = load_yaml(path).problems(Drawing)
    assert [problem.partition(": ")[0] for problem in found] == [f"{path}:{line}" for line in (6, 10, 11, 16)]
    assert all("\n" not in problem for problem in found)
    assert load_yaml(_yaml(tmp_path, DRAWING)).problems(Drawing) == []
    (problem,) = load_yaml(_yaml(tmp_path, "shapes: 2024-01-01\n")).problems(Drawing)
    assert "not plain data" in problem


def test_the_line_of_what_is_not_there_is_that_of_its_place(tmp_path: Path) -> None:
    document = load_yaml(_yaml(tmp_path, DRAWING))
    lines = [document.line_of(path) for path in ((), ("shapes", 7), ("named", "second", "rate", 3), ("nothing",))]
    assert lines == [3, 3, 16, 3]
    assert load_yaml(_yaml(tmp_path, "")).line_of(("name",)) == 1


def test_a_bomb_of_aliases_does_not_explode(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 5)]
    with pytest.raises(ConfigError) as caught:
        read_yaml(Schema, _yaml(tmp_path, "\n".join(levels)))
    assert len(str(caught.value)) < 400


BOMBS = {
    "lists": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)),
    "maps": "a0: &a0 {a: x, b: x}\n" + "".join(f"a{i}: &a{i} {{a: *a{i - 1}, b: *a{i - 1}}}\n" for i in range(1, 40)),
    "a long text": f"a: &a {'x' * 10_000}\nb: [{', '.join(['*a'] * 1000)}]\n",
    "itself": "a: &a [*a]\n",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_of_aliases_is_refused_unexploded_with_its_line(tmp_path: Path, bomb: str, monkeypatch) -> None:
    monkeypatch.setattr("json.dumps", lambda data: pytest.fail("was written out"))
    with pytest.raises(ConfigError, match=r"recipe\.yaml:\d+: .*alias") as caught:
        read_yaml(Schema, _yaml(tmp_path, BOMBS[bomb]))
    assert "\n" not in str(caught.value)


def test_aliases_and_long_files_within_measure_are_read(tmp_path: Path) -> None:
    shared = "sizes: &s [1, 2]\n" + "".join(f"a{i}: *s\n" for i in range(1000))
    assert load_yaml(_yaml(tmp_path, shared)).data["a999"] == [1, 2]
    long = f"a: [{','.join(['{a,b}'] * 10_000)}]\nb: {'x' * MAX_WRITTEN_OUT}\n"
    assert len(load_yaml(_yaml(tmp_path, long)).data["a"]) == 10_000


@pytest.mark.parametrize("text", ["[" * 5000, "[" * 5000 + "]" * 5000])
def test_what_is_nested_too_deep_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="nested too deep"):
        read_yaml(Schema, _yaml(tmp_path, text))


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = _yaml(tmp_path, b"name: \xff\xfe\n")
    for read in (read_yaml, read_json):
        with pytest.raises(ConfigError, match="not UTF-8"):
            read(Schema, path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        for read in (read_yaml, read_json):
            with pytest.raises(ConfigError, match="cannot be read"):
                read(Schema, path)


def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    with path.open("wb") as stream:
        stream.truncate(MAX_CONFIG_BYTES + 1)
    for read in (read_yaml, read_json):
        with pytest.raises(ConfigError, match=f"over the {MAX_CONFIG_BYTES}"):
            read(Schema, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON"),
        ('{"name": "a", "x": 1}', "unknown key 'x'"),
        ('{"name": "a", "inner": {"rate": NaN}}', "rate"),
    ],
)
def test_wrong_json_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_json(Schema, path)
    assert "\n" not in str(caught.value)


def test_configs_are_frozen_and_strict() -> None:
    config = Schema(name="a")
    with pytest.raises(ValueError, match="frozen"):
        config.name = "b"
    with pytest.raises(ConfigError, match="source"):
        parse(Schema, {"name": "a", "steps": object()}, "source")


def test_canonical_json_has_one_text_for_equal_data() -> None:
    assert canonical_json({"b": 1, "a": "å"}) == canonical_json({"a": "å", "b": 1})
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    assert digest({"a": 2}) != digest({"a": 3})
    assert digest(Schema(name="a")) == digest(Schema(name="a").model_dump(mode="json"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_written_json_is_read_back(tmp_path: Path) -> None:
    config = Schema(name="ångström", sizes=(1, 2), inner=Inner(rate=1e-3))
    write_json(tmp_path / "deep" / "config.json", config)
    assert read_json(Schema, tmp_path / "deep" / "config.json") == config
    assert json.loads((tmp_path / "deep" / "config.json").read_text())["inner"]["rate"] == 1e-3
