"""What zoo asks of a hub over HTTP, in terms of the stock client, one method a question.

Importing this file imports the client; reading what is cached does without it.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
)
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from huggingface_hub.utils.tqdm import progress_bar_states

from zoo.errors import AccessError, ConfigError, IntegrityError
from zoo.hub.cache import HUGGING_FACE, hub_title
from zoo.hub.guard import ANSWER_BYTES, SLOWEST, Guard, TransientError, guarded, remedy_of
from zoo.naming import Repository
from zoo.version import __version__

T = TypeVar("T")

TIMEOUT = 10.0  # seconds that a silent server is waited for
PAUSES = (1.0, 3.0)  # seconds between tries
_LONGEST_WAIT = 30.0  # seconds
_LARGE = (".safetensors", ".png")  # what a hub keeps outside of git
_MOST_ENGINES = 1000  # of a namespace that are listed
_PROGRESS = 50_000_000  # bytes from which a download shows how far it is


@dataclass(frozen=True)
class Refs:
    """The commit of each branch and tag."""

    branches: dict[str, str]
    tags: dict[str, str]


@dataclass(frozen=True)
class Stored:
    """A file on the hub: its size, and its SHA-256 or, where the hub keeps it in git, the SHA-1 of its git object."""

    size: int
    digest: str


class Client:
    """A hub over HTTP. Raises HubError and AccessError, in one line, and never waits without end."""

    def __init__(self, endpoint: str, timeout: float | None = None) -> None:
        self.endpoint = endpoint
        self.title = hub_title(endpoint)
        self.timeout = timeout or _timeout()
        self.token = _token(endpoint)
        self._guard = Guard(endpoint, self.token, self.timeout)
        self._api = HfApi(endpoint=endpoint, token=self.token or False, library_name="zoo", library_version=__version__)

    @contextmanager
    def session(self) -> Iterator[None]:
        """The rules of ``guard.py`` for what this thread asks in the block; all other methods want to be within one."""
        with guarded(self._guard):
            yield

    def refs(self, repository: Repository) -> Refs | None:
        """Branches and tags; None where there is no such repository, or none that this user may see."""
        with self._asking(f"the versions of {repository.id}", patience=0.5):
            try:
                found = self._api.list_repo_refs(repository.id)
            except RepositoryNotFoundError as error:
                if type(error) is not RepositoryNotFoundError:
                    raise  # gated
                return None
            parts = (found.branches, found.tags)
            return Refs(*({str(one.name): str(one.target_commit) for one in part} for part in parts))

    def card_data(self, repository: Repository) -> dict[str, Any]:
        """The front matter of the card on the branch main."""
        with self._asking(f"the card of {repository.id}", patience=0.5):
            data = self._api.model_info(repository.id).card_data
            return data.to_dict() if data else {}

    def engines(self, namespace: str) -> list[str]:
        """Ids of the repositories of a namespace that hold engines of zoo."""
        with self._asking(f"the engines of {namespace}", patience=1):
            found = self._api.list_models(author=namespace, filter="zoo")
            return [str(one.id) for one in islice(found, _MOST_ENGINES)]

    def download(self, repository: Repository, commit: str, paths: Sequence[str], cache: Path, *, size: int) -> None:
        """Puts files of a commit, of ``size`` bytes together, into a cache of the client's layout.

        Raises IntegrityError where the commit lacks one.
        """
        title = f"{repository.id} {commit[:12]}"
        with self._transfer(f"fetching {title}", size), _quiet(unless=size > _PROGRESS):
            for path in paths:  # not by snapshot_download, which asks in threads, and believes a listing
                try:
                    self._api.hf_hub_download(
                        repository.id, path, revision=commit, cache_dir=cache, etag_timeout=self.timeout
                    )
                except RemoteEntryNotFoundError as error:
                    lacks = f"{title} on {self.title} lacks {path}"
                    raise IntegrityError(f"{lacks}, so it is no engine of zoo; check the name") from error

    def whoami(self) -> str:
        """The name of the one whose token is used."""
        with self._asking("whose token this is", patience=1):
            return str(self._api.whoami()["name"])

    def create(self, repository: Repository) -> None:
        """A private repository, unless there is one."""
        with self._asking(f"making {repository.id}", patience=6):
            self._api.create_repo(repository.id, private=True, exist_ok=True)

    def tree(self, repository: Repository, commit: str) -> dict[str, Stored]:
        """Every file of a commit."""
        with self._asking(f"the files of {repository.id}", patience=6):
            found = self._api.list_repo_tree(repository.id, revision=commit, recursive=True)
            files = [one for one in islice(found, 10_000) if isinstance(one, RepoFile)]
            return {one.path: _stored(one) for one in files}

    def stored(self, repository: Repository, commit: str, path: str) -> Stored | None:
        """One file of a commit."""
        with self._asking(f"the files of {repository.id}", patience=3):
            found = self._api.get_paths_info(repository.id, [path], revision=commit)
            return next((_stored(one) for one in found if isinstance(one, RepoFile) and one.path == path), None)

    def commit(
        self, repository: Repository, files: dict[str, Path], obsolete: Sequence[str], *, parent: str, message: str
    ) -> str:
        """One commit on the branch main that adds files and deletes obsolete ones. Raises ConflictError."""
        size = sum(file.stat().st_size for file in files.values())
        with (
            self._transfer(f"publishing {repository.id}", size),
            _quiet(unless=size > _PROGRESS),
            ExitStack() as opened,
        ):
            operations: list[Any] = [
                CommitOperationAdd(path, opened.enter_context(file.open("rb"))) for path, file in files.items()
            ]
            for addition in operations:
                if addition.path_in_repo.endswith(_LARGE):  # one by one; of many at once threads take care
                    self._api.preupload_lfs_files(repository.id, [addition], num_threads=1, free_memory=False)
            operations += [CommitOperationDelete(path) for path in obsolete]
            done = self._api.create_commit(
                repository.id, operations, commit_message=message, parent_commit=parent, num_threads=2
            )
            return str(done.oid)

    def tag(self, repository: Repository, tag: str, commit: str) -> None:
        """Raises ConflictError where the tag exists."""
        with self._asking(f"tagging {repository.id}", patience=3):
            self._api.create_tag(repository.id, tag=tag, revision=commit, exist_ok=False)

    def is_public(self, repository: Repository) -> bool:
        with self._asking(f"the settings of {repository.id}", patience=3):
            return not self._api.model_info(repository.id).private

    def gate(self, repository: Repository) -> None:
        """Lets its readers accept its terms first, unless they are asked for more already."""
        with self._asking(f"the settings of {repository.id}", patience=6):
            if not self._api.model_info(repository.id).gated:
                self._api.update_repo_settings(repository.id, gated="auto")

    def open_to_all(self, repository: Repository) -> None:
        """Lets everybody read it."""
        with self._asking(f"the settings of {repository.id}", patience=6):
            self._api.update_repo_settings(repository.id, private=False)

    def delete(self, repository: Repository) -> None:
        with self._asking(f"deleting {repository.id}", patience=6):
            self._api.delete_repo(repository.id, missing_ok=True)

    def require_token(self) -> None:
        """Raises AccessError where there is none."""
        if self.token is None:
            raise AccessError(f"publishing on {self.title} needs a token that may write; {remedy_of(self.endpoint)}")

    @contextmanager
    def _asking(self, what: str, patience: float) -> Iterator[None]:
        with self._guard.phase(what, seconds=patience * self.timeout):
            yield

    @contextmanager
    def _transfer(self, what: str, size: int) -> Iterator[None]:
        """Twice the size, for what is fetched again after a connection broke."""
        with self._guard.phase(what, seconds=6 * self.timeout + size / SLOWEST, size=2 * size + ANSWER_BYTES):
            yield


def persistent(action: Callable[[], T]) -> T:
    """What the action returns, tried again where its failure may pass; it must be safe to repeat.

    A hub that asks to wait longer than half a minute is not waited for.
    """
    for pause in PAUSES:
        try:
            return action()
        except TransientError as error:
            if error.wait is not None and error.wait > _LONGEST_WAIT:
                raise
            time.sleep(max(pause, error.wait or 0.0))
    return action()


def _stored(file: RepoFile) -> Stored:
    if file.lfs is not None:
        return Stored(int(file.lfs.size), str(file.lfs.sha256))
    return Stored(int(file.size), str(file.blob_id))


def _token(endpoint: str) -> str | None:
    """That of huggingface.co for huggingface.co alone; ZOO_HUB_TOKEN for any other hub. Raises AccessError."""
    if endpoint != HUGGING_FACE:
        return _given("ZOO_HUB_TOKEN")
    given = _given("HF_TOKEN") or _given("HUGGING_FACE_HUB_TOKEN")
    if given or constants.ENDPOINT != HUGGING_FACE:  # there the client would renew a stored token at another server
        return given
    try:
        return get_token()
    except Exception as error:  # logins that are renewed fail in many ways
        reason = " ".join(str(error).split())[:200]
        raise AccessError(f"the stored token cannot be used ({reason}); run: hf auth login, or set HF_TOKEN") from error


def _given(variable: str) -> str | None:
    """The token in a variable of the environment, which no message ever shows."""
    token = os.environ.get(variable, "").strip()
    if not re.fullmatch(r"[\x21-\x7e]*", token):
        raise AccessError(f"{variable} holds characters that no token has, such as a space; set it anew")
    return token or None


def _timeout() -> float:
    text = os.environ.get("ZOO_HUB_TIMEOUT") or str(TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise ConfigError(f"ZOO_HUB_TIMEOUT={text!r}; expected seconds, such as 60")
    return seconds


@contextmanager
def _quiet(unless: bool) -> Iterator[None]:
    """Without progress bars, for what takes a moment; then with those that the user's program shows."""
    before = dict(progress_bar_states)
    if not unless and not are_progress_bars_disabled():
        disable_progress_bars()
    try:
        yield
    finally:
        progress_bar_states.clear()
        progress_bar_states.update(before)
