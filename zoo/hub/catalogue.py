"""The engines that zoo knows by name, and where the weights of each come from."""

from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from ase.data import chemical_symbols
from pydantic import AfterValidator, Field, model_validator

from zoo.config import Config, read_yaml
from zoo.errors import UnknownNameError
from zoo.naming import COMMIT, OWN, VERSION, EngineName, Repository, is_engine_name, parse_name

_ORIGINS = {"published": "teacher", "recipe": "teacher", "package": "package"}  # what an entry of a status names
_LONGEST = 200  # characters of owner/repository


def is_repository_id(text: object) -> bool:
    """Whether something is ``owner/repository``, as the Hub writes it."""
    if not isinstance(text, str) or len(text) > _LONGEST:
        return False
    try:
        found = parse_name(f"hf://{text}")
    except UnknownNameError:
        return False
    return isinstance(found, Repository) and found.id == text


def _in_order(symbols: tuple[str, ...]) -> tuple[str, ...]:
    strange = sorted(set(symbols) - set(chemical_symbols[1:]))
    if strange:
        raise ValueError(f"{strange[0]!r} is not an element")
    if list(symbols) != sorted(set(symbols), key=chemical_symbols.index):
        raise ValueError("elements are not each given once, in the order of their atomic numbers")
    return symbols


def _lawful(name: str) -> str:
    if not is_engine_name(name):
        raise ValueError(f"{name!r} is not family/engine")
    if name.partition("/")[0] == OWN:
        raise ValueError(f"{name!r} would be a teacher of a user's own, whose names begin with {OWN}/")
    return name


def _repository_id(text: str) -> str:
    if not is_repository_id(text):
        raise ValueError(f"{text!r} is not owner/repository")
    return text


Elements = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_in_order)]
Name = Annotated[str, AfterValidator(_lawful)]
RepositoryId = Annotated[str, AfterValidator(_repository_id)]


class Release(Config):
    """Where the weights of a published engine are. Commit and digest hold for this hub alone."""

    hub: str = Field("https://huggingface.co", pattern=r"^https?://[^\s/]+(/[^\s/]+)*$")
    repository: RepositoryId
    version: str = Field(pattern=rf"^{VERSION.pattern}$")
    commit: str = Field(pattern=rf"^{COMMIT.pattern}$")
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Entry(Config):
    """One engine of the catalogue."""

    name: Name
    status: Literal["published", "recipe", "package"]
    purpose: str = Field(min_length=1)
    subset: str | None = None  # what of its teacher's world it knows
    elements: Elements
    parameters: int | None = Field(None, ge=1)  # None where none were trained, or nobody has counted them
    licence_code: str  # SPDX
    licence_weights: str  # SPDX
    aliases: tuple[Name, ...] = ()  # earlier names
    package: str | None = None  # that computes it
    periodic: bool | None = Field(None, exclude=True)  # of a teacher: made for crystals, or for molecules
    level_of_theory: str | None = None  # of a teacher: what its training data were computed with
    fastest: str | None = None  # of a teacher: the fastest mode of inference that its authors offer
    teacher: str | None = None  # that the recipe distils
    base_model: RepositoryId | None = None  # on huggingface.co, that holds these very weights
    release: Release | None = None
    new_version: RepositoryId | None = None  # that follows it

    @model_validator(mode="after")
    def _whole(self) -> Self:
        needed = _ORIGINS[self.status]
        if [key for key in ("package", "teacher") if getattr(self, key)] != [needed]:
            raise ValueError(f"{self.name}: of package and teacher, status {self.status} has {needed} alone")
        told = (self.periodic is not None, self.level_of_theory is not None)
        if told != (self.status == "package",) * 2:
            raise ValueError(f"{self.name}: status package, and no other, has periodic and level_of_theory")
        if self.fastest is not None and self.status != "package":
            raise ValueError(f"{self.name}: fastest is said of a teacher, of status package; remove it")
        if (self.release is not None) != (self.status == "published"):
            raise ValueError(f"{self.name}: status published, and no other, has a release")
        return self

    @model_validator(mode="after")
    def _released_under_its_name(self) -> Self:
        name = parse_name(self.name)
        assert isinstance(name, EngineName)
        if self.release is not None:
            owner = self.release.repository.partition("/")[0]
            expected = name.repository(owner).id
            if self.release.repository != expected:
                raise ValueError(f"{self.name} is released as {self.release.repository}, expected {expected}")
        return self


class Catalogue(Config):
    """All entries, in the order in which they are shown."""

    engines: tuple[Entry, ...]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        names = [name for entry in self.engines for name in (entry.name, *entry.aliases)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"a name is given twice: {', '.join(twice)}")
        return self


@cache
def entries() -> dict[str, Entry]:
    """The catalogue that comes with zoo, by name."""
    catalogue = read_yaml(Catalogue, Path(__file__).with_name("catalogue.yaml"))
    return {entry.name: entry for entry in catalogue.engines}


def canonical(name: str) -> tuple[str, bool]:
    """The name that an engine goes by today, and whether ``name`` is an earlier one."""
    known = entries()
    for entry in known.values():
        if name in entry.aliases and name not in known:
            return entry.name, True
    return name, False


def nearest(name: str, beyond: Iterable[str] = ()) -> str:
    """For a message: the few names that ``name`` may have meant, and what shows all where none is much like it."""
    known = sorted({*entries(), *beyond})
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"nearest: {', '.join(near)}"
    family = name.partition("/")[0]
    near = get_close_matches(name, [one for one in known if family and family in one], n=3, cutoff=0)
    return "; ".join([*([f"nearest: {', '.join(near)}"] if near else []), "zoo list shows all names"])
