"""What two recipes differ in, key by key."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zoo.recipe import read_recipe


@dataclass(frozen=True)
class Difference:
    """One key that two recipes have otherwise; of what is absent, ``absent`` names the side."""

    path: str
    first: Any
    second: Any
    absent: Literal["first", "second"] | None = None

    def __str__(self) -> str:
        first = "(absent)" if self.absent == "first" else _shown(self.first)
        second = "(absent)" if self.absent == "second" else _shown(self.second)
        return f"{self.path}: {first} -> {second}"

    def as_dict(self) -> dict[str, Any]:
        """The same for programs; a side that lacks the key is left out."""
        sides = {"first": self.first, "second": self.second}
        return {"path": self.path} | {side: value for side, value in sides.items() if side != self.absent}


def diff_recipes(first: str | Path, second: str | Path) -> list[Difference]:
    """What two recipes, by name or path, differ in, key by key; what is not given has its default.

    Items of lists that have names, such as groups, are matched by them. Raises UnknownNameError, ConfigError.
    """
    one, other = (read_recipe(recipe).model_dump(mode="json") for recipe in (first, second))
    return list(_differences("", one, other))


def _differences(path: str, one: Any, other: Any) -> Iterator[Difference]:
    if isinstance(one, dict) and isinstance(other, dict):
        yield from _of_keys([(f"{path}.{key}".lstrip("."), key) for key in {**one, **other}], one, other)
    elif (names := _names(one)) is not None and (others := _names(other)) is not None:
        keys = [(f"{path}[{name}]", name) for name in {**names, **others}]
        yield from _of_keys(keys, names, others)
        if list(names) != list(others) and set(names) == set(others):
            yield Difference(f"{path} (order)", list(names), list(others))
    elif one != other:
        yield Difference(path, one, other)


def _of_keys(keys: list[tuple[str, str]], one: dict[str, Any], other: dict[str, Any]) -> Iterator[Difference]:
    for path, key in keys:
        if key not in one:
            yield Difference(path, None, other[key], "first")
        elif key not in other:
            yield Difference(path, one[key], None, "second")
        else:
            yield from _differences(path, one[key], other[key])


def _names(items: Any) -> dict[str, Any] | None:
    """The items of a list by their names; None where one has none."""
    if not isinstance(items, list) or not all(isinstance(item, dict) and "name" in item for item in items):
        return None
    return {item["name"]: item for item in items}


def _shown(value: Any) -> str:
    """A value in one line; of a map only what is given."""
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if item is not None}
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
