"""What a card says to programs: the front matter of its README.md, without fetching any weights.

Cards come from strangers. Reading one takes plain YAML of bounded size and depth, without anchors, tags or code, and
ends with what could be understood; only writing and linting tell what was wrong.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, model_validator

from zoo.artifact import DataSource, Domain, ProbeTolerance, Sha256
from zoo.config import MAX_CONFIG_BYTES, Config, parse
from zoo.errors import ConfigError
from zoo.hub.catalogue import Elements, Name, is_repository_id

MAX_FRONT_MATTER = 64 << 10  # characters: a licence that must be repeated fits in
MAX_TAG = 64  # characters

_MAX_DEPTH = 16
_MAX_TAGS = 100
_LONGEST = 1000  # characters of a line that is shown in a table
_OPENING = re.compile(r"\s*---\n")
_CLOSING = re.compile(r"\n---[ \t]*(\n|$)")
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def _one_line(text: str) -> str:
    if not text.isprintable() or len(text) > _LONGEST:
        raise ValueError(f"{text[:40]!r} is not one line of at most {_LONGEST} characters that can be printed")
    return text


Line = Annotated[str, Field(min_length=1), AfterValidator(_one_line)]
Metrics = dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")], float]


class TeacherBlock(Config):
    name: Line
    weights_sha256: Sha256
    licence: Line  # SPDX, of its weights


class RecipeBlock(Config):
    sha256: Sha256


class WeightsBlock(Config):
    file: Literal["model.safetensors"]
    sha256: Sha256
    dtype: Literal["float32", "float64"]
    parameters: int = Field(ge=1)


class ProbeBlock(Config):
    file: Literal["probe.safetensors"]
    tolerance: ProbeTolerance


class ZooBlock(Config):
    """The map under ``zoo`` in the front matter: what a program needs to know of an engine."""

    format: Literal[1] = Field(alias="schema")
    name: Name
    purpose: Line
    subset: Line | None
    level_of_theory: Line
    licence_code: Line  # SPDX
    licence_weights: Line  # SPDX
    elements: Elements
    teacher: TeacherBlock
    data: tuple[DataSource, ...]
    recipe: RecipeBlock
    structures_sha256: Sha256
    labels_sha256: Sha256
    domain: Domain
    weights: WeightsBlock
    probe: ProbeBlock
    metrics: Metrics = Field(max_length=64)  # the student's, with keys of a report's figures

    @model_validator(mode="after")
    def _printable(self) -> "ZooBlock":
        texts = [self.domain.description, *self.domain.elements]
        for text in (*texts, *(word for source in self.data for word in (source.name, source.licence))):
            _one_line(text)
        return self


@dataclass(frozen=True)
class CardData:
    """What could be understood of a card. Nothing in it can garble a terminal."""

    licence: str | None = None  # the Hub's identifier, or the name of a licence that it has none for
    new_version: str | None = None  # owner/repository that replaces this one
    base_model: tuple[str, ...] = ()  # owner/repository
    tags: tuple[str, ...] = ()
    terms: str | None = None  # what its readers must accept first
    zoo: ZooBlock | None = None
    body: str = ""  # Markdown


def parse_card(text: str) -> CardData:
    """What a card says; what is wrong in it, is left out."""
    front, body = split_card(text)
    try:
        return card_data(read_front_matter(front or ""), body)
    except ConfigError:
        return card_data({}, body)


def card_data(data: dict[str, Any], body: str = "") -> CardData:
    """What front matter says that a hub has read already; what is wrong in it, is left out."""
    licence = data.get("license_name") if data.get("license") == "other" else data.get("license")
    new_version, terms = data.get("new_version"), data.get("extra_gated_prompt")
    return CardData(
        licence=next(iter(_lines(licence)), None),
        new_version=new_version if is_repository_id(new_version) else None,
        base_model=tuple(line for line in _lines(data.get("base_model")) if is_repository_id(line)),
        tags=_lines(data.get("tags")),
        terms=_UNSEEN.sub("", terms) if isinstance(terms, str) else None,
        zoo=_zoo_block(data.get("zoo")),
        body=_UNSEEN.sub("", body),
    )


def split_card(text: str) -> tuple[str | None, str]:
    """Front matter, None where there is none, and body. A card longer than a config may be is cut."""
    text = text[:MAX_CONFIG_BYTES].removeprefix("\ufeff").replace("\r\n", "\n")
    opening = _OPENING.match(text)
    closing = _CLOSING.search(text, opening.end() - 1) if opening else None
    if opening is None or closing is None:
        return None, text
    return text[opening.end() : closing.start() + 1], text[closing.end() :]


def read_front_matter(text: str) -> dict[str, Any]:
    """Front matter as plain data. Raises ConfigError, in one line, for what no hub or no reader would take."""
    if len(text) > MAX_FRONT_MATTER:
        raise ConfigError(f"the front matter has {len(text)} characters, over the {MAX_FRONT_MATTER} that it may have")
    try:
        _check_events(text)
        data = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"the front matter is not plain YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError("the front matter is not a map from names to values")
    return data


class _Loader(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error, as it is to the Hub."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            raise yaml.MarkedYAMLError(problem="a key is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep=deep)


def _check_events(text: str) -> None:
    """Raises YAMLError for what makes a small text large, deep or more than data."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"at line {event.start_mark.line + 1}" if event.start_mark else ""
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.YAMLError(f"an anchor {where}")
        if tag := getattr(event, "tag", None):
            raise yaml.YAMLError(f"a tag {where}, {tag}")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"nested too deeply {where}")


def _zoo_block(data: object) -> ZooBlock | None:
    try:
        return parse(ZooBlock, data, "zoo")
    except (ConfigError, RecursionError):
        return None


def _lines(data: object) -> tuple[str, ...]:
    """The short printable texts among one value or a list of them."""
    many = data if isinstance(data, list) else [data]
    texts = [text for text in many if isinstance(text, str) and text.isprintable() and 0 < len(text) <= _LONGEST]
    return tuple(texts[:_MAX_TAGS])
