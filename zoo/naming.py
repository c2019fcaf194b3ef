"""The naming law: one string names an engine everywhere, and what names what is told by its form.

``family/engine[@revision]`` a name of the zoo · ``hf://owner/repo[@revision]`` a repository · ``./folder``,
``/folder``, ``~/folder`` or a Path a model folder.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import ConfigError, UnknownNameError

FORMS = "family/engine[@v1], hf://owner/repo[@v1], or a path to a model folder (./folder, /folder, ~/folder)"
DEFAULT_NAMESPACE = "mlff-zoo"

_PART = r"[a-z0-9][a-z0-9.]*(?:-[a-z0-9.]+)*"
_NAME = re.compile(rf"({_PART})/({_PART})(?:@(.+))?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OWNER = re.compile(r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FOLDER = re.compile(r"/|(\.{1,2}|~)(/|$)")
_LONGEST = 96  # characters of a repository's name on the Hub


@dataclass(frozen=True)
class EngineName:
    """A name of the zoo: ``family/engine``, perhaps pinned to a revision."""

    family: str
    engine: str
    revision: str | None = None

    @property
    def name(self) -> str:
        return f"{self.family}/{self.engine}"

    def repository(self, namespace: str) -> "Repository":
        """Where a hub keeps it. Raises ConfigError for a namespace that no hub takes."""
        if not _OWNER.fullmatch(namespace):
            raise ConfigError(f"namespace {namespace!r}; expected letters and digits, parted by single hyphens")
        return Repository(namespace, f"{self.family}_{self.engine}", self.revision)


@dataclass(frozen=True)
class Repository:
    """A repository of a hub. Raises ConfigError for a revision that no hub could have."""

    owner: str
    name: str
    revision: str | None = None

    def __post_init__(self) -> None:
        if not _is_revision(self.revision):
            raise ConfigError(f"revision {self.revision!r}; expected a tag such as v1, a branch or a commit")

    @property
    def id(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def folder(self) -> str:
        """Its folder in a hub that is a folder."""
        return f"models--{self.owner}--{self.name}"


def parse_name(text: str | Path) -> EngineName | Repository | Path:
    """What a string, or a Path, means by its form alone. Raises UnknownNameError for a string of no form."""
    if isinstance(text, os.PathLike) or _FOLDER.match(text):
        return Path(text).expanduser()
    if text.startswith("hf://"):
        return _repository(text)
    match = _NAME.fullmatch(text)
    if match and is_engine_name(f"{match[1]}/{match[2]}") and _is_revision(match[3]):
        return EngineName(match[1], match[2], match[3])
    hint = f"; there is such a folder, which is called ./{text}" if Path(text).is_dir() else ""
    raise UnknownNameError(f"{text!r} names nothing{hint}; expected {FORMS}")


def default_namespace(namespace: str | None) -> str:
    """The namespace that is given, else the one that ZOO_NAMESPACE names, else that of zoo."""
    return namespace or os.environ.get("ZOO_NAMESPACE") or DEFAULT_NAMESPACE


def is_engine_name(text: str) -> bool:
    """Whether a string is ``family/engine`` by the law: no hub may garble it, and it can be read back."""
    match = _NAME.fullmatch(text)
    parts = match.groups()[:2] if match and match[3] is None else ()
    whole = all(".." not in part and not part.endswith((".", ".git")) for part in parts)
    return bool(parts) and whole and len(text) <= _LONGEST


def engine_name_of(repository: str) -> str | None:
    """The ``family/engine`` that a repository ``family_engine`` holds; None for a name of another form."""
    family, _, engine = repository.partition("_")
    name = f"{family}/{engine}"
    return name if is_engine_name(name) else None


def _repository(text: str) -> Repository:
    path, _, revision = text.removeprefix("hf://").partition("@")
    owner, _, name = path.partition("/")
    known = _OWNER.fullmatch(owner) and _REPOSITORY.fullmatch(name)
    garbled = ".." in name or "--" in name or len(name) > _LONGEST
    if not known or garbled or ("@" in text and not _is_revision(revision)):
        raise UnknownNameError(f"{text!r} names no repository; expected hf://owner/repo or hf://owner/repo@v1")
    return Repository(owner, name, revision or None)


def _is_revision(text: str | None) -> bool:
    return text is None or (bool(_REVISION.fullmatch(text)) and ".." not in text)
