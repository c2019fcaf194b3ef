"""The naming law: one string names an engine everywhere, and what names what is told by its form.

``family/engine[@revision]`` a name of the zoo · ``hf://owner/repo[@revision]`` a repository · ``./folder``,
``/folder``, ``~/folder`` or a Path a model folder.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from zoo.errors import ConfigError, UnknownNameError

FORMS = "family/engine[@v1], hf://owner/repo[@v1], or a path to a model folder (./folder, /folder, ~/folder)"
DEFAULT_NAMESPACE = "mlff-zoo"
ENGINE_FORM = "expected family/engine in small letters, digits and -, as in sw/my-student"
OWN = "own"  # the family of teachers of a user's own

COMMIT = re.compile(r"[0-9a-f]{40}")
VERSION = re.compile(r"v([1-9][0-9]{0,8})")

_PART = r"[a-z0-9][a-z0-9.]*(?:-[a-z0-9.]+)*"
_NAME = re.compile(rf"({_PART})/({_PART})(?:@(.+))?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OWNER = re.compile(r"[A-Za-z0-9_]+(?:-[A-Za-z0-9_]+)*")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ON_HUB = re.compile(r"(https?://.+?)/([^/]+)/([^/]+)/resolve/([^/]+)/(.+)")
_FOLDER = re.compile(r"/|(\.{1,2}|~)(/|$)")
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST = 96  # characters of a repository's name on the Hub, of its owner and of a revision
_LONGEST_PART = 255  # bytes of a name in a path


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
        return Repository(check_namespace(namespace), f"{self.family}_{self.engine}", self.revision)


@dataclass(frozen=True)
class Repository:
    """A repository of a hub. Raises ConfigError for a revision that no hub could have."""

    owner: str
    name: str
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.revision is not None and not is_revision(self.revision):
            raise ConfigError(f"revision {quoted(self.revision)}; expected a tag such as v1, a branch or a commit")

    @property
    def id(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def folder(self) -> str:
        """Its folder in a hub that is a folder."""
        return f"models--{self.owner}--{self.name}"

    @property
    def title(self) -> str:
        """With its revision, where it has one."""
        return f"{self.id}@{self.revision}" if self.revision else self.id


class HubFile(NamedTuple):
    """A file of a repository, as its address says."""

    endpoint: str  # of the hub
    repository: Repository
    revision: str
    path: str  # in the repository


def file_on_hub(url: str) -> HubFile | None:
    """What ``https://hub/owner/name/resolve/revision/path`` addresses; None for an address of another form."""
    match = _ON_HUB.fullmatch(url)
    if match is None:
        return None
    endpoint, owner, name, revision, path = match.groups()
    return HubFile(endpoint, Repository(owner, name), revision, str(PurePosixPath(unquote(path))))


def parse_name(text: str | Path) -> EngineName | Repository | Path:
    """What a string, or a Path, means by its form alone. Raises UnknownNameError for a string of no form."""
    if isinstance(text, os.PathLike) or _FOLDER.match(text):
        return parse_path(text)
    if text.startswith("hf://"):
        return _repository(text)
    match = _NAME.fullmatch(text)
    if match and is_engine_name(f"{match[1]}/{match[2]}") and (match[3] is None or is_revision(match[3])):
        return EngineName(match[1], match[2], match[3])
    hint = f"; there is such a folder, which is called ./{text}" if _is_folder(text) else ""
    raise UnknownNameError(f"{quoted(text)} names nothing{hint}; expected {FORMS}")


def parse_path(text: str | Path) -> Path:
    """A path, with the home that ~ stands for. Raises UnknownNameError for one that no file system has."""
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise UnknownNameError(f"{quoted(str(text))}: {error}; write the path out") from error
    if _UNSEEN.search(str(path)) or any(len(part.encode()) > _LONGEST_PART for part in path.parts):
        expected = "expected one without control characters, with short names"
        raise UnknownNameError(f"{quoted(str(text))} is no path to a folder or file; {expected}")
    return path


def quoted(text: str) -> str:
    """A text of a stranger in a message: in quotes, cut, and without a character that cannot be seen."""
    return repr(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


def check_namespace(namespace: str) -> str:
    """The namespace. Raises ConfigError for one that no hub takes."""
    if len(namespace) > _LONGEST or not _OWNER.fullmatch(namespace):
        raise ConfigError(f"namespace {quoted(namespace)}; expected letters and digits, parted by single hyphens")
    return namespace


def default_namespace(namespace: str | None) -> str:
    """The namespace that is given, else the one that ZOO_NAMESPACE names, else that of zoo. Raises ConfigError."""
    return check_namespace(namespace or os.environ.get("ZOO_NAMESPACE") or DEFAULT_NAMESPACE)


def is_revision(text: str) -> bool:
    """Whether a string can be a tag, a branch or a commit."""
    return len(text) <= _LONGEST and bool(_REVISION.fullmatch(text)) and ".." not in text


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


def versions(tags: Mapping[str, str]) -> dict[str, str]:
    """Of the commits of tags those of released versions, oldest first."""
    numbers = {tag: int(found[1]) for tag in tags if (found := VERSION.fullmatch(tag))}
    return {tag: tags[tag] for tag in sorted(numbers, key=numbers.__getitem__)}


def version_of(commit: str, tags: Mapping[str, str]) -> str | None:
    """The released version that a commit is, if it is one."""
    return next((tag for tag, target in versions(tags).items() if target == commit), None)


def next_version(tags: Mapping[str, str]) -> str:
    """The tag that the version after these gets."""
    newest = next(reversed(versions(tags)), "v0")
    return f"v{int(newest[1:]) + 1}"


def _repository(text: str) -> Repository:
    path, _, revision = text.removeprefix("hf://").partition("@")
    owner, _, name = path.partition("/")
    known = _OWNER.fullmatch(owner) and _REPOSITORY.fullmatch(name)
    garbled = ".." in name or "--" in name or max(len(owner), len(name)) > _LONGEST
    if not known or garbled or ("@" in text and not is_revision(revision)):
        raise UnknownNameError(f"{quoted(text)} names no repository; expected hf://owner/repo or hf://owner/repo@v1")
    return Repository(owner, name, revision or None)


def _is_folder(text: str) -> bool:
    try:
        return Path(text).is_dir() and bool(text) and text.isprintable()
    except OSError:  # too long
        return False
