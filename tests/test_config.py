"""Configs that are not what their schema says: one line, the key, what to do."""

import json
from pathlib import Path

import pytest
from pydantic import Field

from zoo.config import (
    MAX_CONFIG_BYTES,
    Config,
    canonical_json,
    digest,
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
    "key given twice": ("name: a\nsteps: 3\nsteps: 4\n", "line 1.*key given twice: steps"),
    "key given twice within": ("name: a\ninner:\n  rate: 1\n  rate: 2\n", "line 3.*key given twice: rate"),
    "not YAML": ("name: [a\nsteps: 3\n", "not valid YAML at line"),
    "an object of Python": ("name: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    "a list": ("- name\n", "top level"),
    "a text": ("name\n", "top level"),
    "empty": ("", "top level"),
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


def test_a_bomb_of_aliases_does_not_explode(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 5)]
    with pytest.raises(ConfigError) as caught:
        read_yaml(Schema, _yaml(tmp_path, "\n".join(levels)))
    assert len(str(caught.value)) < 400


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
