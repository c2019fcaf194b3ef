"""The base of every schema, and how a file becomes one."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from zoo.errors import ConfigError
from zoo.files import atomic_write
from zoo.naming import quoted

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MAX_CONFIG_BYTES = 4 << 20
MAX_WRITTEN_OUT = 1 << 20  # characters and nodes that the aliases of a YAML file may stand for


class Config(BaseModel):
    """Frozen, closed and strict: an unknown key, a wrong type, a NaN is an error, never a guess."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


C = TypeVar("C", bound=Config)
Place = tuple[str | int, ...]  # keys and indices, from the outermost
_KEYS = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*")


class _Loader(yaml.SafeLoader):
    """YAML without two of its traps: ``1e-3`` is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            again = next(number for number, key in enumerate(keys) if key in keys[:number])
            raise yaml.MarkedYAMLError(
                problem=f"key given twice: {', '.join(sorted(twice))}", problem_mark=node.value[again][0].start_mark
            )
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


@dataclass(frozen=True)
class Problem:
    """What is wrong with data: a text for people, and the path of keys and indices to what it is about."""

    path: Place
    text: str


@dataclass(frozen=True)
class Document:
    """A YAML file as plain data, and where in it each key and each item of a list stands."""

    path: Path
    data: Any
    root: yaml.Node | None  # None of an empty file

    def line_of(self, path: Sequence[str | int]) -> int:
        """The line, from 1, of a key or an item; of what is not there, that of what should hold it."""
        line, node = (self.root.start_mark.line + 1 if self.root else 1), self.root
        for part in path:
            found = _child(node, part)
            if found is None:
                return line
            line, node = found
        return line

    def problems(self, schema: type[Config]) -> list[str]:
        """All that keeps it from being a ``schema``, a line of text each, in the order of the file."""
        try:
            _validate(schema, self.data, str(self.path))
        except ValidationError as error:
            found = [(self.line_of(problem.path), problem.text) for problem in _problems(error, self.data)]
            return [f"{self.path}:{line}: {text}" for line, text in sorted(found, key=lambda one: one[0])]
        except ConfigError as error:
            return [str(error)]
        return []


def parse(schema: type[C], data: Any, source: str) -> C:
    """``data`` as a ``schema``; ``source`` names it in errors. Raises ConfigError."""
    try:
        return _validate(schema, data, source)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_problem(error, data).text}") from error


def load_yaml(path: Path) -> Document:
    """A YAML file, of whatever schema. Raises ConfigError."""
    text = _read_text(path)
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is not None:
            _written_out(root, max(MAX_WRITTEN_OUT, 2 * len(text)), {})  # without aliases it is at most the latter
        return Document(path, None if root is None else loader.construct_document(root), root)
    except RecursionError as error:
        raise ConfigError(f"{path}: not valid YAML: nested too deep; write it flatter") from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}" if where else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {_problem_of_yaml(error)}") from error


def read_yaml(schema: type[C], path: Path) -> C:
    """A YAML file as a ``schema``. Raises ConfigError, which names the line."""
    document = load_yaml(path)
    try:
        return _validate(schema, document.data, str(path))
    except ValidationError as error:
        first = _first_problem(error, document.data)
        raise ConfigError(f"{path}:{document.line_of(first.path)}: {first.text}") from error


def read_json(schema: type[C], path: Path) -> C:
    """A JSON file as a ``schema``. Raises ConfigError."""
    try:
        return schema.model_validate_json(_read_text(path), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_problem(error, None).text}") from error


def canonical_json(data: Any) -> str:
    """One text for equal data: keys sorted, no NaN, a final newline."""
    if isinstance(data, Config):
        data = data.model_dump(mode="json")
    return json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def digest(data: Any) -> str:
    """Hex SHA-256 of the canonical JSON of ``data``."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Writes ``data`` as canonical JSON, whole or not at all."""
    atomic_write(path, canonical_json(data))


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(
                f"{path}: {path.stat().st_size} bytes, over the {MAX_CONFIG_BYTES} that a config may have"
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text") from error


def _validate(schema: type[C], data: Any, source: str) -> C:
    """Raises ValidationError, and ConfigError for what is no plain data."""
    try:
        return schema.model_validate_json(json.dumps(data), strict=True)
    except ValidationError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: not plain data ({error}); use only text, numbers, lists and maps") from error


def _first_problem(error: ValidationError, data: Any) -> Problem:
    """The first problem of a validation, in one line, and how many more there are."""
    problems = _problems(error, data)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Problem(problems[0].path, problems[0].text + more)


def _problems(error: ValidationError, data: Any) -> list[Problem]:
    return [_problem(details, data) for details in error.errors(include_url=False)]


def _problem(details: "ErrorDetails", data: Any) -> Problem:
    """One problem in one line, with the key that the user must look at."""
    kind, loc = details["type"], details["loc"]
    if data is None:
        path = loc
    elif kind == "missing":
        path = (*_placed(data, loc[:-1], of_whole=True), loc[-1])
    else:
        path = _placed(data, loc, of_whole=kind == "value_error")
    where = ".".join(map(str, path)) or "top level"
    where = where if where.isprintable() and len(where) <= 200 else quoted(where)
    if kind == "extra_forbidden":
        text = f"unknown key '{where}'; check its spelling, or remove it"
    elif kind == "missing":
        text = f"key '{where}' is missing"
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        path, text = _wrong_tag(path, details["ctx"])
    elif kind == "value_error":
        text = f"'{where}': {details['ctx']['error']}"
        path = _meant(data, path, str(details["ctx"]["error"]))
    else:
        text = f"'{where}': {details['msg']}, got {str(details.get('input'))[:80]!r}"
    return Problem(path, " ".join(text.split()))


def _wrong_tag(path: Place, context: dict[str, Any]) -> tuple[Place, str]:
    """What is wrong with the key that says which of several schemas the rest follows."""
    path = (*path, context["discriminator"].strip(chr(39)))
    key = ".".join(map(str, path))
    if "tag" not in context:
        return path, f"key '{key}' is missing"
    known = context["expected_tags"].replace(chr(39), "")
    return path, f"'{key}': no {quoted(str(context['tag']))}; known are {known}"


def _placed(data: Any, loc: Place, of_whole: bool) -> Place:
    """The keys and indices of a location that the data have.

    The others are names of schemas, which pydantic puts after the key of a value that may follow one of several; of
    a problem with such a value as a whole (``of_whole``), the last one is that name, though a key may be called so.
    """
    if not loc:
        return ()
    part, rest = loc[0], loc[1:]
    skipped = _placed(data, rest, of_whole) if isinstance(part, str) else ()
    others = [value for key, value in data.items() if key != part] if isinstance(data, dict) else []
    if not _has(data, part) or (of_whole and not rest and part in others):
        return skipped
    return max(skipped, (part, *_placed(data[part], rest, of_whole)), key=len)


def _has(data: Any, part: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, dict) and part in data


def _meant(data: Any, path: Place, text: str) -> Place:
    """The key that a problem of a whole section speaks of first, else the section."""
    for words in _KEYS.findall(text):
        keys = tuple(words.split("."))
        if _holds(data, (*path, *keys)):
            return (*path, *keys)
        if len(keys) > 1 and _holds(data, keys):
            return keys
    return path


def _holds(data: Any, path: Place) -> bool:
    for part in path:
        if not _has(data, part):
            return False
        data = data[part]
    return True


def _child(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    """The line and the node of a key or an item."""
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == str(part):
                return key.start_mark.line + 1, value
    return None


def _written_out(node: yaml.Node, most: int, known: dict[int, int | None]) -> int:
    """How long a node is without aliases: its characters, and one for each node. Raises MarkedYAMLError if too long.

    Aliases of aliases grow as a power: 400 bytes can stand for more than any memory holds.
    """
    if id(node) not in known:
        known[id(node)] = None  # until it is known
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        whole = isinstance(node, yaml.ScalarNode)
        known[id(node)] = 1 + (len(parts) if whole else sum(_written_out(part, most, known) for part in parts))
    length = known[id(node)]
    if length is None:
        raise yaml.MarkedYAMLError(problem="an alias of what it stands in; remove it", problem_mark=node.start_mark)
    if length > most:
        problem = f"what its aliases stand for is longer than the {most} characters that it may have; use fewer aliases"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return length


def _problem_of_yaml(error: yaml.YAMLError) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())
