"""A hub over HTTP: huggingface.co, or any server that speaks as it does.

What was fetched is kept in a folder of its own for each hub, laid out as a hub that is a folder is. A version, a commit
and anything in offline mode come from there without a request, a lock or a write; so does all that was fetched before
when the hub cannot be reached. Files are believed when the manifest, and what it says of them, is verified.
"""

import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.artifact import MANIFEST, ManifestEntry, read_manifest, verify_file, verify_manifest
from zoo.config import MAX_CONFIG_BYTES
from zoo.errors import AccessError, ConfigError, HubError, IntegrityError, UnknownNameError, ZooError, ZooWarning
from zoo.hub.base import Listed, Release, Resolved
from zoo.hub.cache import cache_folder, hub_title, is_offline
from zoo.hub.card_data import CardData, card_data
from zoo.hub.folder import FolderHub, is_of_card, names_of, read_card, verify_card
from zoo.naming import COMMIT, VERSION, Repository, engine_name_of, is_revision, version_of, versions

if TYPE_CHECKING:
    from zoo.hub.client import Client

_STALE = 24 * 3600  # seconds after which what a download left unfinished is no other's work
_OFFLINE = "HF_HUB_OFFLINE is set; where there is a network, run: zoo pull"


class RemoteHub:
    """Published engines on a server."""

    def __init__(self, endpoint: str, cache: Path | None = None, timeout: float | None = None) -> None:
        self.endpoint = endpoint
        self.cache = FolderHub(cache or cache_folder(endpoint))
        self._timeout = timeout

    @property
    def title(self) -> str:
        return hub_title(self.endpoint)

    def resolve(self, repository: Repository) -> Resolved | None:
        """See ``Hub``. A commit, and a version that was fetched before, are not asked for; they do not change."""
        revision = repository.revision or ""
        if COMMIT.fullmatch(revision):
            return Resolved(revision, self._tag_of(repository, revision))
        known = self.fetched(repository)
        if known is not None and (VERSION.fullmatch(revision) or is_offline()):
            return known
        if is_offline():
            raise HubError(f"{repository.title} of {self.title} was not fetched before, and {_OFFLINE}")
        try:
            return self._unmoved(repository, self._ask(repository))
        except (HubError, AccessError) as error:
            if known is None:
                raise
            self._warn(f"{error}. Taking {known.tag or known.commit[:12]}, which was fetched before")
            return known

    def fetch(self, repository: Repository, resolved: Resolved) -> Path:
        """See ``Hub``. What is there and whole is taken as it is; what is missing or damaged is fetched."""
        folder = self.cache.snapshot(repository, resolved.commit)
        try:
            verify_manifest(folder)
        except IntegrityError as error:
            if is_offline():
                raise HubError(f"{repository.title} was not fetched whole ({error}), and {_OFFLINE}") from error
            self._download(repository, resolved.commit)
        self._remember(repository, resolved)
        return folder

    def fetch_card(self, repository: Repository, resolved: Resolved, *, figures: bool = False) -> Path:
        """See ``Hub``."""
        folder = self.cache.snapshot(repository, resolved.commit)
        try:
            verify_card(folder, figures=figures)
        except IntegrityError as error:
            if is_offline():
                raise HubError(f"the card of {repository.title} was not fetched before, and {_OFFLINE}") from error
            self._download(repository, resolved.commit, lambda path: is_of_card(path, figures=figures))
            verify_card(folder, figures=figures)
        return folder

    def engines(self, namespace: str) -> list[Listed]:
        """See ``Hub``; those that were fetched before where the hub cannot be reached."""
        if is_offline():
            return self.cache.engines(namespace)
        try:
            client = self.client()
            with client.session():
                found = client.engines(namespace)
        except (HubError, AccessError) as error:
            self._warn(f"{error}. Showing what was fetched before")
            return self.cache.engines(namespace)
        places = [one.removeprefix(f"{namespace}/") for one in found if one.startswith(f"{namespace}/")]
        names = {name: Repository(namespace, place) for place in places if (name := engine_name_of(place))}
        return [self._listed(name, names[name]) for name in sorted(names)]

    def add(
        self, repository: Repository, files: Path, accept: Callable[[Path], object], *, public: bool, gated: bool
    ) -> Release:
        """See ``Hub``."""
        from zoo.hub.upload import upload  # lazy: it imports the client

        def check(commit: str) -> None:
            """What arrived, as who has fetched nothing before would get it."""
            with tempfile.TemporaryDirectory(prefix="zoo-arrived-") as temporary:
                fresh = RemoteHub(self.endpoint, cache=Path(temporary), timeout=self._timeout)
                accept(fresh.fetch(repository, Resolved(commit, None)))

        return upload(self.client(), repository, files, check, public=public, gated=gated)

    def fetched(self, repository: Repository) -> Resolved | None:
        """What its revision was when it was fetched whole; None where it was not."""
        try:
            return self.cache.resolve(repository)
        except (UnknownNameError, IntegrityError):
            return None

    def client(self) -> "Client":
        """What speaks to the hub."""
        from zoo.hub.client import Client  # lazy: it imports the stock client, which what is cached does without

        return Client(self.endpoint, self._timeout)

    def _ask(self, repository: Repository, *, successor: bool = True) -> Resolved | None:
        client, newer = self.client(), None
        with client.session():
            refs = client.refs(repository)
            if refs is None:
                return None
            revision = repository.revision or next(reversed(versions(refs.tags)), "main")
            commit = (refs.branches | refs.tags).get(revision)
            if commit is None:
                known = ", ".join(filter(is_revision, (*refs.branches, *refs.tags)))[:200]
                raise UnknownNameError(f"{self.title} has no {repository.title}; it has {known}")
            if not COMMIT.fullmatch(commit):
                raise HubError(f"{self.title} answered the commit {commit[:60]!r}; expected 40 hex digits")
            if successor and repository.revision is None:
                with suppress(ZooError):  # an engine is no worse for a card that cannot be read
                    newer = card_data(client.card_data(repository)).new_version
        tag = revision if VERSION.fullmatch(revision) else version_of(commit, refs.tags)
        return Resolved(commit, tag, newer)

    def _unmoved(self, repository: Repository, found: Resolved | None) -> Resolved | None:
        """What was found, unless its version was fetched before and was another commit: a version never changes."""
        before = self._refs(repository).get(found.tag) if found and found.tag else None
        if found is None or before in (None, found.commit):
            return found
        self._warn(
            f"{repository.id}@{found.tag} was {str(before)[:12]} when it was fetched before and is {found.commit[:12]} "
            f"on {self.title} now. Taking what was fetched before; ask its publisher why, and delete "
            f"{self.cache.root / repository.folder} to take the other"
        )
        return Resolved(str(before), found.tag, found.new_version)

    def _listed(self, name: str, repository: Repository) -> Listed:
        """An engine with the card of its newest version; one that cannot be read must not hide the others."""
        resolved: Resolved | None = None
        card: CardData | None = None
        with suppress(ZooError, OSError):
            resolved = self._ask(repository, successor=False)
            if resolved is not None and resolved.tag is not None:
                card = read_card(self.fetch_card(repository, resolved))
        if resolved is None:
            return Listed(name, repository.id, None)
        return Listed(name, repository.id, card, resolved.commit, resolved.tag)

    def _refs(self, repository: Repository) -> dict[str, str]:
        """The names in the cache; none where one is damaged, for what they stand for can be asked again."""
        try:
            return self.cache.refs(repository)
        except IntegrityError:
            return {}

    def _tag_of(self, repository: Repository, commit: str) -> str | None:
        return version_of(commit, self._refs(repository))

    def _download(self, repository: Repository, commit: str, wanted: Callable[[str], bool] | None = None) -> None:
        """Fetches what is missing or damaged, and verifies it; what arrives damaged is fetched once more.

        ``wanted`` chooses among the paths of the manifest; without it all are.
        """
        from zoo.hub.client import persistent  # lazy, as above

        client, damage = self.client(), self._held_damage(repository, commit)
        try:
            with client.session():
                for _ in range(2):
                    if damage is not None:
                        self._discard(repository, commit, damage)
                    damage = persistent(lambda: self._download_once(client, repository, commit, wanted))
                    if damage is None:
                        break
        except ZooError:
            raise  # some are errors of the system too
        except OSError as error:
            root, reason = self.cache.root, error.strerror or error
            raise ConfigError(f"{root}: {reason}; set ZOO_CACHE to a folder that can be written, with room") from error
        self._sweep(repository)
        if damage is not None:
            raise IntegrityError(f"{repository.id} of {self.title} arrived damaged twice: {damage[0]}")

    def _held_damage(self, repository: Repository, commit: str) -> tuple[str, list[str]] | None:
        """What the cache holds and should not: what is wrong, and the files to throw away."""
        folder = self.cache.snapshot(repository, commit)
        if not (folder / MANIFEST).is_file():
            return None
        try:
            return _damaged(folder, (entry for entry in read_manifest(folder).files if (folder / entry.path).exists()))
        except IntegrityError as error:
            return str(error), [MANIFEST]

    def _download_once(
        self, client: "Client", repository: Repository, commit: str, wanted: Callable[[str], bool] | None
    ) -> tuple[str, list[str]] | None:
        """None where all is well, else what is wrong, and the files to throw away."""
        folder = self.cache.snapshot(repository, commit)
        if not (folder / MANIFEST).is_file():
            client.download(repository, commit, [MANIFEST], self.cache.root, size=MAX_CONFIG_BYTES)
        try:
            entries = [entry for entry in read_manifest(folder).files if wanted is None or wanted(entry.path)]
        except IntegrityError as error:
            return str(error), [MANIFEST]
        missing = [entry for entry in entries if not (folder / entry.path).is_file()]
        size = sum(entry.size for entry in missing)
        self._check_room(size)
        client.download(repository, commit, [entry.path for entry in missing], self.cache.root, size=size)
        return _damaged(folder, entries)

    def _discard(self, repository: Repository, commit: str, damage: tuple[str, list[str]]) -> None:
        """Deletes files of a snapshot, their contents in the cache, and the manifest, which may be what lies."""
        folder, blobs = self.cache.snapshot(repository, commit), self.cache.root / repository.folder / "blobs"
        for path in {*damage[1], MANIFEST}:
            content = (folder / path).resolve()
            if content.parent == blobs.resolve():
                content.unlink(missing_ok=True)
            (folder / path).unlink(missing_ok=True)

    def _check_room(self, size: int) -> None:
        place = self.cache.root
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if size > free:
            needs = f"{size / 1e6:.0f} MB are to be fetched, {free / 1e6:.0f} MB are free in {self.cache.root}"
            raise ConfigError(f"{needs}; make room, or set ZOO_CACHE to another disk")

    def _remember(self, repository: Repository, resolved: Resolved) -> None:
        """Names what was fetched whole, for the time when the hub cannot be asked; a cache may be read-only."""
        refs = self._refs(repository)
        with suppress(OSError):
            for name in names_of(repository, resolved):
                if refs.get(name) != resolved.commit and not (VERSION.fullmatch(name) and name in refs):
                    self.cache.name(repository, name, resolved.commit)

    def _sweep(self, repository: Repository) -> None:
        """Removes what downloads that were killed left."""
        for path in (self.cache.root / repository.folder / "blobs").glob("*.incomplete"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()

    def _warn(self, text: str) -> None:
        warnings.warn(text, ZooWarning, stacklevel=2)


def _damaged(folder: Path, entries: Iterable[ManifestEntry]) -> tuple[str, list[str]] | None:
    """What the first damaged file has, and the paths of all."""
    problems: dict[str, str] = {}
    for entry in entries:
        try:
            verify_file(folder, entry)
        except IntegrityError as error:
            problems[entry.path] = str(error)
    return (next(iter(problems.values())), list(problems)) if problems else None
