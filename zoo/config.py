"""The base of every schema, and how a file becomes one."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from zoo.errors import ConfigError
from zoo.files import atomic_write
from zoo.naming import quoted

MAX_CONFIG_BYTES = 4 << 20


class Config(BaseModel):
    """Frozen, closed and strict: an unknown key, a wrong type, a NaN is an error, never a guess."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


C = TypeVar("C", bound=Config)


class _Loader(yaml.SafeLoader):
    """YAML without two of its traps: ``1e-3`` is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.MarkedYAMLError(
                problem=f"key given twice: {', '.join(sorted(twice))}", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse(schema: type[C], data: Any, source: str) -> C:
    """``data`` as a ``schema``; ``source`` names it in errors. Raises ConfigError."""
    try:
        return schema.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_problem(error)}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: not plain data ({error}); use only text, numbers, lists and maps") from error


def read_yaml(schema: type[C], path: Path) -> C:
    """A YAML file as a ``schema``. Raises ConfigError."""
    try:
        data = yaml.load(_read_text(path), Loader=_Loader)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise ConfigError(f"{path}: not valid YAML{line}: {getattr(error, 'problem', error)}") from error
    return parse(schema, data, str(path))


def read_json(schema: type[C], path: Path) -> C:
    """A JSON file as a ``schema``. Raises ConfigError."""
    try:
        return schema.model_validate_json(_read_text(path), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_problem(error)}") from error


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


def _first_problem(error: ValidationError) -> str:
    """The first problem of a validation, in one line, with the key that the user must look at."""
    problems = error.errors(include_url=False)
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"]) or "top level"
    where = where if where.isprintable() and len(where) <= 200 else quoted(where)
    if first["type"] == "extra_forbidden":
        text = f"unknown key '{where}'; check its spelling, or remove it"
    elif first["type"] == "missing":
        text = f"key '{where}' is missing"
    elif first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        text = _wrong_tag(where, first["ctx"])
    elif first["type"] == "value_error":
        text = f"'{where}': {first['ctx']['error']}"
    else:
        got = first.get("input")
        text = f"'{where}': {first['msg']}, got {str(got)[:80]!r}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return " ".join(text.split()) + more


def _wrong_tag(where: str, context: dict[str, Any]) -> str:
    """What is wrong with the key that says which of several schemas the rest follows."""
    key = f"{where}.{context['discriminator'].strip(chr(39))}"
    if "tag" not in context:
        return f"key '{key}' is missing"
    return f"'{key}': no {quoted(str(context['tag']))}; known are {context['expected_tags'].replace(chr(39), '')}"
