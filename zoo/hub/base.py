"""What every hub can do, be it huggingface.co, a server of one's own or a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zoo.errors import HubError
from zoo.hub.card_data import CardData
from zoo.naming import COMMIT, Repository, quoted


@dataclass(frozen=True)
class Resolved:
    """The commit that a revision stands for. Raises HubError for what is no commit: it becomes the name of a folder."""

    commit: str
    tag: str | None  # v1, v2, ... where it is a released version
    new_version: str | None = None  # the repository that follows this one, by the card on the branch main

    def __post_init__(self) -> None:
        if not COMMIT.fullmatch(self.commit):
            raise HubError(f"the hub answered the commit {quoted(self.commit)}; expected 40 hex digits, is it a hub?")


@dataclass(frozen=True)
class Listed:
    """An engine that was found on a hub; without a tag, nobody finished publishing it, or it cannot be read."""

    name: str
    repository: str  # owner/name
    card: CardData | None  # None where it cannot be read
    commit: str | None = None
    tag: str | None = None


@dataclass(frozen=True)
class Release:
    """What publishing left on a hub."""

    commit: str
    tag: str
    new: bool  # False where the hub had this very content before
    public: bool | None = None  # None where the hub has no private repositories


class Hub(Protocol):
    """Where engines are published and found."""

    @property
    def title(self) -> str:
        """For people: huggingface.co, a URL, or a folder."""

    def resolve(self, repository: Repository) -> Resolved | None:
        """The commit of its revision; without one that of the newest version, else of the branch main.

        None where there is no such repository. Raises UnknownNameError where it has no such revision,
        HubError, AccessError.
        """

    def fetch(self, repository: Repository, resolved: Resolved) -> Path:
        """A whole model folder. Raises IntegrityError, HubError, AccessError, UnknownNameError."""

    def fetch_card(self, repository: Repository, resolved: Resolved, *, figures: bool = False) -> Path:
        """A folder with the card, and its figures where asked, but perhaps no weights. Raises as ``fetch`` does."""

    def engines(self, namespace: str) -> list[Listed]:
        """The engines of a namespace, sorted by name. Raises HubError, AccessError."""

    def add(
        self, repository: Repository, files: Path, accept: Callable[[Path], object], *, public: bool, gated: bool
    ) -> Release:
        """Makes the files of a folder a version, unless they are one; safe to repeat.

        ``accept`` sees the version by its commit before it has a name, and raises where it must not get one.
        ``public`` opens the repository to everybody, ``gated`` asks its readers to accept its terms first.
        Raises PublishError, HubError, AccessError.
        """
