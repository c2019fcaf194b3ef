"""What is wrong with a card, before a hub sees it: the Hub's own rules, as far as they hold offline, and zoo's."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import Field

from zoo.config import MAX_CONFIG_BYTES, Config, parse
from zoo.errors import ConfigError
from zoo.hub.card_data import MAX_TAG, Line, ZooBlock, read_front_matter, split_card
from zoo.hub.catalogue import is_repository_id
from zoo.licences import LICENCES, TERMS

HUB_LICENCES = tuple(sorted({terms.hub for terms in TERMS.values()}))  # what the Hub calls the licences of the table
_REQUIRED = ("library_name", "pipeline_tag", "license", "tags", "zoo")


class _Task(Config):
    type: Line
    name: Line | None = None


class _Dataset(Config):
    type: Line
    name: Line
    split: Line | None = None
    revision: Line | None = None


class _Metric(Config):
    type: Line
    value: float
    name: Line | None = None


class _Result(Config):
    task: _Task
    dataset: _Dataset
    metrics: tuple[_Metric, ...] = Field(min_length=1)


class _Model(Config):
    name: Line
    results: tuple[_Result, ...] = Field(min_length=1)


class _Index(Config):
    """``model-index`` as the Hub's specification of model cards has it, with numbers as values."""

    models: tuple[_Model, ...] = Field(alias="model-index", min_length=1)


def _all(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether something is a list, not empty, of distinct items for which ``holds`` is true."""
    return lambda value: (
        isinstance(value, list) and bool(value) and all(map(holds, value)) and len(set(value)) == len(value)
    )


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value))


def _one_or_all(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: holds(value) or _all(holds)(value)


# What the value of a key must be, where the key is there.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "library_name": (lambda value: value == "zoo", "zoo"),
    "pipeline_tag": (lambda value: value == "graph-ml", "graph-ml"),
    "license": (lambda value: value in HUB_LICENCES, f"one of {', '.join(HUB_LICENCES)}"),
    "license_name": (_matches(r"[a-z0-9][a-z0-9.-]*"), "a name of small letters, digits, dots and hyphens"),
    "license_link": (_matches(r"https://\S+"), "an address that begins with https://"),
    "tags": (_all(_matches(rf"[!-~]([ -~]{{0,{MAX_TAG - 2}}}[!-~])?")), f"a list of tags of up to {MAX_TAG} letters"),
    "metrics": (_all(_matches(r"[a-z0-9_]+")), "a list of identifiers"),
    "base_model": (_one_or_all(is_repository_id), "owner/repository, or a list of them"),
    "base_model_relation": (_matches("finetune|adapter|merge|quantized"), "finetune, adapter, merge or quantized"),
    "new_version": (is_repository_id, "owner/repository"),
    "datasets": (_all(is_repository_id), "a list of owner/repository"),
    "language": (_one_or_all(_matches(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")), "a code such as en"),
    "extra_gated_prompt": (lambda value: isinstance(value, str) and bool(value.strip()), "text"),
}

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)"  # [text](link) and ![text](link)
    r"|\b(?:src|href)\s*=\s*[\"']?([^\"'\s>]+)"  # of HTML
    r"|^\[[^\]\n]+\]:\s*(\S+)",  # [name]: link
    re.MULTILINE,
)
_QUOTED = re.compile(r"^>.*$", re.MULTILINE)  # the words of others
_OUTSIDE = ("http", "https", "mailto")
_LEFT_OVER = re.compile(r"\$\{\w+\}|\{\{|\bTODO\b|\bTBD\b|\bXXX\b")
_NOT_A_NUMBER = re.compile(r"(?<![\w.])[-.]?(nan|inf)(?!\w)", re.IGNORECASE)


def lint_card(text: str, folder: Path | None = None) -> list[str]:
    """What is wrong with a card, nothing where it may be published. Its links must lead into ``folder``."""
    front, body = split_card(text)
    if front is None:
        return ["no front matter: the file must begin with a block between two lines of ---"]
    try:
        data = read_front_matter(front)
    except ConfigError as error:
        return [str(error)]
    return [*_lint_keys(data), *_lint_schemas(data), *_lint_text(text), *_lint_body(body), *_lint_links(body, folder)]


def _lint_keys(data: dict[str, Any]) -> Iterator[str]:
    for key in _REQUIRED:
        if not data.get(key):
            yield f"the front matter lacks {key}"
    for key, (holds, expected) in _RULES.items():
        if data.get(key) is not None and not holds(data[key]):
            yield f"{key} is {str(data[key])[:80]!r}; expected {expected}"
    if data.get("license") == "other" and not (data.get("license_name") and data.get("license_link")):
        yield "license is other, so license_name and license_link must be there"


def _lint_schemas(data: dict[str, Any]) -> Iterator[str]:
    """The nested keys, each compared with its schema, unless a number in them is none."""
    strange = [f"{where} is {value}; leave out what was not measured" for where, value in _not_finite(data, "")]
    if strange or not data.get("zoo"):
        yield from strange
        return
    try:
        block = parse(ZooBlock, data["zoo"], "zoo")
        index = parse(_Index, {"model-index": data["model-index"]}, "README.md") if "model-index" in data else None
    except ConfigError as error:
        yield str(error)
        return
    yield from _lint_index(index, block)
    yield from _lint_licence(data, block)


def _lint_index(index: _Index | None, block: ZooBlock) -> Iterator[str]:
    if index is None and block.metrics:
        yield "the front matter lacks model-index, and zoo.metrics has figures"
    for model in index.models if index else ():
        if model.name != block.name:
            yield f"model-index is of {model.name}, zoo.name is {block.name}"


def _lint_licence(data: dict[str, Any], block: ZooBlock) -> Iterator[str]:
    terms = TERMS.get(block.licence_weights)
    if terms is None:
        yield f"zoo.licence_weights is {block.licence_weights}; expected one of {', '.join(LICENCES)}"
        return
    for what, licence in (("teacher", block.teacher.licence), *(("data", one.licence) for one in block.data)):
        if licence in TERMS and TERMS[licence].repeated and not data.get("extra_gated_prompt"):
            yield f"{TERMS[licence].name}, that of the {what}, must be repeated, and extra_gated_prompt does not"
    if data.get("license") not in HUB_LICENCES:
        return
    for key, value in terms.card_keys.items():
        if data.get(key) != value:
            yield f"{key} is {str(data.get(key))[:80]!r}, but for zoo.licence_weights {terms.spdx} it is {value!r}"


def _lint_text(text: str) -> Iterator[str]:
    size = len(text.encode())
    if size > MAX_CONFIG_BYTES:
        yield f"the card has {size} bytes, over the {MAX_CONFIG_BYTES} that it may have"
    if not text.endswith("\n"):
        yield "the text does not end with a new line"


def _lint_body(body: str) -> Iterator[str]:
    own = _QUOTED.sub("", body)
    for found in _LEFT_OVER.finditer(own):
        yield f"a placeholder was left: {found[0]}"
    for missing in _NOT_A_NUMBER.finditer(own):
        yield f"the text says {missing[0]}; write why it was not measured"
    if not body.lstrip().startswith("# "):
        yield "the text does not begin with a title"


def _lint_links(body: str, folder: Path | None) -> Iterator[str]:
    for found in _LINK.finditer(_without_code(body)):
        link = next(filter(None, found.groups()))
        problem = _problem_of_link(link, folder)
        if problem:
            yield f"the link {link} {problem}"


def _without_code(body: str) -> str:
    kept, fence = [], ""
    for line in body.splitlines():
        found = _FENCE.match(line)
        if fence:
            fence = "" if found and found[1].startswith(fence) else fence
        elif found:
            fence = found[1]
        else:
            kept.append(line)
    return _CODE.sub("", "\n".join(kept))


def _problem_of_link(link: str, folder: Path | None) -> str | None:
    parts = urlsplit(link)
    if parts.scheme in _OUTSIDE or link.startswith("#"):
        return None
    path = Path(unquote(parts.path))
    if parts.scheme or parts.netloc or "\\" in link or path.is_absolute() or ".." in path.parts:
        return "leads out of the folder"
    if folder is not None and not (folder / path).is_file():
        return "leads nowhere"
    return None


def _not_finite(data: Any, where: str) -> Iterator[tuple[str, float]]:
    """Every number in nested maps and lists that is none, with its place."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _not_finite(value, f"{where}.{key}" if where else str(key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _not_finite(value, f"{where}.{index}")
    elif isinstance(data, float) and not math.isfinite(data):
        yield where, data
