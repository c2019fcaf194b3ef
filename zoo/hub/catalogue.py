"""The engines that zoo knows by name, and where the weights of each come from."""

from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from zoo.config import Config, read_yaml
from zoo.naming import is_engine_name


class Entry(Config):
    """One engine of the catalogue."""

    name: str
    status: Literal["package", "recipe"]
    purpose: str = Field(min_length=1)
    elements: str  # for people: symbols, or how many
    licence_code: str  # SPDX
    licence_weights: str  # SPDX
    package: str | None = None  # that brings the weights
    teacher: str | None = None  # that the recipe distils

    @field_validator("name")
    @classmethod
    def _lawful(cls, name: str) -> str:
        if not is_engine_name(name):
            raise ValueError(f"{name!r} is not family/engine")
        return name

    @model_validator(mode="after")
    def _whole(self) -> "Entry":
        needed = "package" if self.status == "package" else "teacher"
        if [key for key in ("package", "teacher") if getattr(self, key)] != [needed]:
            raise ValueError(f"{self.name}: of package and teacher, status {self.status} has {needed} alone")
        return self


class Catalogue(Config):
    """All entries, in the order in which they are shown."""

    engines: tuple[Entry, ...]

    @model_validator(mode="after")
    def _each_once(self) -> "Catalogue":
        names = [entry.name for entry in self.engines]
        if len(set(names)) != len(names):
            raise ValueError("a name is given twice")
        return self


@cache
def entries() -> dict[str, Entry]:
    """The catalogue that comes with zoo, by name."""
    catalogue = read_yaml(Catalogue, Path(__file__).with_name("catalogue.yaml"))
    return {entry.name: entry for entry in catalogue.engines}


def nearest(name: str, beyond: Iterable[str] = ()) -> str:
    """For a message: the names that ``name`` may have meant, or all of them."""
    known = sorted({*entries(), *beyond})
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"nearest: {', '.join(near)}" if near else f"known: {', '.join(known)}"
