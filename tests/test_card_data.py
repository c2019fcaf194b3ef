import time
from typing import Any

import pytest
import yaml
from model_folders import BODY, CARD, NAME, config_of
from structures import tiny_painn

from zoo.errors import ConfigError
from zoo.hub.card_data import MAX_FRONT_MATTER, CardData, card_data, parse_card, read_front_matter, split_card


def front_matter(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(CARD.decode().split("---\n")[1])
    return data | changes


def card(body: str = BODY, **changes: Any) -> str:
    return f"---\n{yaml.safe_dump(front_matter(**changes))}---\n{body}"


def spoilt(**changes: Any) -> str:
    return card(zoo=front_matter()["zoo"] | changes)


def test_a_card_is_read() -> None:
    config = config_of(tiny_painn("Si"))
    read = parse_card(card(base_model=["a/b"], new_version="me/a_b", tags=["one", "two"]))
    assert (read.licence, read.base_model, read.new_version, read.tags) == ("mit", ("a/b",), "me/a_b", ("one", "two"))
    assert read.body == BODY
    assert read.zoo is not None
    assert (read.zoo.name, read.zoo.domain) == (NAME, config.domain)
    assert read.zoo.weights.parameters == config.parameters


def test_what_a_hub_has_read_is_understood_too() -> None:
    assert card_data(front_matter(), BODY) == parse_card(card())


@pytest.mark.parametrize("text", ["\ufeff" + card(), card().replace("\n", "\r\n"), "\n" + card()])
def test_marks_and_line_ends_of_other_systems_do_no_harm(text: str) -> None:
    assert parse_card(text).zoo == parse_card(card()).zoo
    assert parse_card(text).body == BODY


def test_a_licence_of_its_own_goes_by_its_name() -> None:
    assert parse_card(card(license="other", license_name="asl")).licence == "asl"
    assert parse_card(card(license="other", license_name=None)).licence is None
    assert parse_card(card(license=["apache-2.0"])).licence == "apache-2.0"


def test_a_card_without_front_matter_is_all_body() -> None:
    assert parse_card("# Title\n") == CardData(body="# Title\n")
    assert parse_card("") == CardData()
    assert split_card("---\nlicense: mit\n") == (None, "---\nlicense: mit\n")


def test_a_rule_in_the_text_is_no_end_of_front_matter() -> None:
    assert split_card("---\na: 1\n---\ntext\n\n---\n\nmore\n") == ("a: 1\n", "text\n\n---\n\nmore\n")
    assert split_card("---\n---\ntext\n") == ("", "text\n")


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"schema": "1"},
        {"name": "../../etc/passwd"},
        {"name": "a/b@v1"},
        {"purpose": ""},
        {"purpose": "x" * 1001},
        {"purpose": "a\nb"},
        {"purpose": "\x1b[2J"},
        {"purpose": "\u202egnp.exe"},
        {"purpose": ["a"]},
        {"level_of_theory": "a\tb"},
        {"elements": []},
        {"elements": ["Si", "C"]},
        {"elements": "Si"},
        {"metrics": {"a": "1"}},
        {"metrics": {"a": True}},
        {"metrics": {"a": float("nan")}},
        {"metrics": {"a": float("inf")}},
        {"metrics": {"a": 10**400}},
        {"metrics": {"a b": 1.0}},
        {"metrics": {f"k{number}": 1.0 for number in range(65)}},
        {"metrics": [1.0]},
        {"weights": {"file": "../../model.safetensors", "sha256": "0" * 64, "dtype": "float32", "parameters": 1}},
        {"weights": {"file": "model.pt", "sha256": "0" * 64, "dtype": "float32", "parameters": 1}},
        {"weights": None},
        {"labels_sha256": "0" * 63},
        {"data": [{"name": "a\x07", "licence": "MIT"}]},
        {"domain": front_matter()["zoo"]["domain"] | {"description": "a\x1b]0;title\x07"}},
        {"domain": front_matter()["zoo"]["domain"] | {"elements": ["\x1b[31m"]}},
        {"teacher": "a/teacher"},
        {"colour": "red"},
    ],
)
def test_a_block_of_another_form_is_none_and_the_rest_is_read(change: dict[str, Any]) -> None:
    assert parse_card(spoilt()).zoo is not None
    read = parse_card(spoilt(**change))
    assert read.zoo is None
    assert (read.licence, read.body) == ("mit", BODY)


@pytest.mark.parametrize(
    "changes",
    [
        {"license": {"a": 1}},
        {"license": 3},
        {"license": "a\x1b[2J"},
        {"new_version": "a/b/c"},
        {"new_version": ["a/b"]},
        {"new_version": "../b"},
        {"new_version": "https://evil.example/a/b"},
        {"base_model": {"a": "b"}},
        {"base_model": ["no-owner", 3, None]},
        {"tags": {"a": 1}},
        {"extra_gated_prompt": ["x"]},
        {"tags": [None, 1, ["x"], "\x07", "", "x" * 5000]},
    ],
)
def test_a_value_of_another_form_is_left_out(changes: dict[str, Any]) -> None:
    read = parse_card(card(**changes))
    (key,) = changes
    assert getattr(read, {"license": "licence", "extra_gated_prompt": "terms"}.get(key, key)) in (None, ())
    assert read.zoo is not None


def test_what_readers_must_accept_is_read() -> None:
    assert parse_card(card(extra_gated_prompt="Do no\x1b[2J\n\nharm.")).terms == "Do no[2J\n\nharm."
    assert parse_card(card()).terms is None


def test_nothing_in_a_body_can_garble_a_terminal() -> None:
    body = "# T\x1b[2J\x9b31m\u202e\x00\r\x08\u2028\u200b\n\ttext é 火 \U0001f600\n"
    assert parse_card(card(body)).body == "# T[2J31m\n\ttext é 火 \U0001f600\n"


BOMB = "a: &a [x]\n" + "".join(
    f"{b}: &{b} [*{a},*{a},*{a},*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "aliases": BOMB,
    "an alias of itself": "a: &a [*a]",
    "anchors": "a: &b 1",
    "code": "a: !!python/object/apply:os.system ['false']",
    "a known tag": "a: !!binary //8=",
    "a broken timestamp": "a: 2026-99-99",
    "a broken tag": "a: !!timestamp x",
    "digits": "a: " + "1" * 30_000,
    "base 60": "a: 1" + ":59" * 20_000,
    "base 60, real": "a: 1" + ":59" * 20_000 + ".5",
    "binary digits": "a: 0b" + "1" * 60_000,
    "an equals sign": "a: =",
    "a merge": "<<: 1",
    "a list as key": "? [1]\n: 2",
    "a key twice": "a: 1\na: 2",
    "depth": "a: " + "[" * 30_000,
    "depth that closes": "a: " + "[" * 20 + "]" * 20,
    "maps in maps": "a: " + "{a: " * 10_000,
    "lists in lists": "- " * 30_000,
    "blocks in blocks": "\n".join(" " * depth + "a:" for depth in range(300)),
    "quotes": 'a: "' + "x" * 60_000,
    "escapes": 'a: "' + "\\x41" * 15_000 + '"',
    "commas": "a: [" + "," * 60_000 + "]",
    "colons": ": " * 30_000,
    "spaces": "a:" + " " * 60_000 + "b",
    "many keys": "\n".join(f"k{number}: 1" for number in range(6_000)),
    "controls": "a: \x00\x01",
    "surrogates": "a: \ud800",
    "documents": "a: 1\n--- \nb: 2",
    "directives": "%YAML 9.9\n",
    "no map": "- a",
    "no text": "",
    "a number": "3",
    "tabs": "a:\n\t- b",
    "question marks": "? " * 20_000,
    "pipes": "a: |\n" + " \n" * 20_000,
}


@pytest.mark.parametrize("front", HOSTILE.values(), ids=HOSTILE)
def test_hostile_front_matter_neither_raises_nor_hangs(front: str) -> None:
    start = time.monotonic()
    read = parse_card(f"---\n{front}\n---\n# Title\n")
    assert read.zoo is None
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "text",
    [
        "---\n" + "x" * (8 << 20),
        "---\n" * (1 << 20),
        "\n" * (8 << 20),
        "---" + " " * (4 << 20),
        "---\n" + "\n---" * (1 << 20),
        "---\n" + ("\n---" + " " * 1000 + "x") * 4000,
        "---\n" + "a: 1\n" * 20_000 + "---\nbody\n",
    ],
)
def test_a_huge_card_neither_raises_nor_hangs(text: str) -> None:
    start = time.monotonic()
    read = parse_card(text)
    assert read.zoo is None
    assert len(read.body) <= 4 << 20
    assert time.monotonic() - start < 5


def test_front_matter_is_bounded() -> None:
    with pytest.raises(ConfigError, match=f"over the {MAX_FRONT_MATTER}"):
        read_front_matter("a: " + "x" * MAX_FRONT_MATTER)


def test_what_a_hub_says_in_depth_neither_raises_nor_hangs() -> None:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    assert card_data({"zoo": nested}).zoo is None
    deep = nested
    while deep:  # taken apart by hand: Python's own way down is as deep as the list
        deep = deep.pop()
