"""A model folder becomes a version on a hub: checked before, checked after, named last."""

import shutil
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from zoo.artifact import (
    DOCUMENTS,
    MANIFEST,
    MODEL,
    ArtifactConfig,
    Manifest,
    read_manifest,
    verify_manifest,
    write_manifest,
)
from zoo.engine import Engine
from zoo.errors import HubError, LicenceError, PublishError, ZooError, ZooWarning
from zoo.files import atomic_path, sha256_file
from zoo.hub.base import Release
from zoo.hub.card_data import ZooBlock, parse_card
from zoo.hub.card_lint import lint_card
from zoo.hub.catalogue import entries
from zoo.hub.folder import FolderHub
from zoo.hub.remote import RemoteHub
from zoo.licences import TERMS, check_terms, unstated
from zoo.locate import open_hub
from zoo.naming import EngineName, Repository, default_namespace, is_engine_name, parse_name, parse_path

_SEEN = {True: ", public", False: ", private (open it with --public)", None: ""}
_PLANNED = {True: ", public", False: ", private where it is new", None: ""}


@dataclass(frozen=True)
class PublishResult:
    """What was published, and where."""

    repository: str
    commit: str | None  # None where a dry run cannot know it
    tag: str | None
    files: dict[str, int]  # path: bytes
    licence: str  # SPDX
    hub: str
    new: bool | None  # False where the hub had this very content before
    public: bool | None  # None where the hub has no private repositories
    dry_run: bool
    unstated: tuple[str, ...] = ()  # what to say of each data set whose terms nobody has stated

    def __str__(self) -> str:
        return self._plan() if self.dry_run else self._done()

    def _done(self) -> str:
        verb = "published" if self.new else "nothing new:"
        return f"{verb} {self.repository}@{self.tag} on {self.hub}, commit {self.commit}{_SEEN[self.public]}"

    def _plan(self) -> str:
        size = sum(self.files.values())
        version = f"@{self.tag}" if self.tag else ""
        verb = "nothing new:" if self.new is False else "would publish"
        return "\n".join(
            [
                *(f"{size:>12,}  {path}" for path, size in self.files.items()),
                f"{size:>12,}  bytes in {len(self.files)} files",
                f"card: no fault found. licence: {self.licence}, which its sources allow.",
                *(f"terms: {told}" for told in self.unstated),
                f"{verb} {self.repository}{version} on {self.hub}{_PLANNED[self.public]}",
            ]
        )


def publish(
    folder: str | Path,
    hub: str | Path | None = None,
    *,
    namespace: str | None = None,
    dry_run: bool = False,
    public: bool = False,
    unstated_terms: bool = False,
) -> PublishResult:
    """Publishes a model folder, and returns when it can be loaded by name.

    ``hub`` is a URL or a folder, by default what ZOO_HUB names, else huggingface.co; ``namespace`` is by default what
    ZOO_NAMESPACE names, else mlff-zoo. A new repository is private unless ``public``; who may read a hub that is a
    folder is a matter of its permissions. What learned from data that state no licence is not published for everybody
    without ``unstated_terms``, and a warning names them. ``dry_run`` checks all that can be checked without asking a
    server. The same content published again is the same version, and what was interrupted goes on when it is published
    again. Raises IntegrityError, ConfigError, LicenceError, PublishError, AccessError.
    """
    target = open_hub(hub)
    with tempfile.TemporaryDirectory(prefix="zoo-publish-") as temporary:
        staged = Path(temporary)
        _stage(parse_path(folder), staged)
        config = _approve(staged)
        if public and not unstated_terms:
            _refuse_open(config)
        name = parse_name(config.name)
        assert isinstance(name, EngineName)  # it was approved
        repository = name.repository(default_namespace(namespace))
        plan = _plan_of(config, staged, repository, target.title)
        if dry_run:
            return _planned(plan, target, repository, staged, public)
        if plan.unstated and not unstated_terms and _is_open(target, repository):
            _refuse_open(config)
        gated = config.lineage.teacher_terms is not None
        release = _release(target, repository, staged, public=public, gated=gated)
        commit, tag, new, seen = release.commit, release.tag, release.new, release.public
        return replace(plan, commit=commit, tag=tag, new=new, public=seen, dry_run=False)


def seal(folder: str | Path) -> Manifest:
    """Writes the manifest of a model folder anew, after its card was corrected by hand.

    Raises IntegrityError for a folder that is none, or that does not hold a whole engine.
    """
    place = parse_path(folder)
    read_manifest(place)
    manifest = write_manifest(place)
    Engine.read(place, device="cpu")
    return manifest


def check_licence(config: ArtifactConfig) -> None:
    """Raises LicenceError where a student's terms are weaker than those of its sources, or where nobody knows.

    Warns of data whose terms nobody has stated.
    """
    lineage = config.lineage
    stated, entry = lineage.teacher_licence_weights, entries().get(lineage.teacher)
    if entry is not None and entry.licence_weights != stated:
        raise LicenceError(
            f"config.json says that the weights of {lineage.teacher} are {stated}, "
            f"they are {entry.licence_weights}; make the model folder again"
        )
    check_terms(config.name, config.licence, lineage.sources)
    for told in unstated(lineage.sources).values():
        warnings.warn(told, ZooWarning, stacklevel=2)
    bound = [source for source in lineage.sources if source.licence in TERMS and TERMS[source.licence].repeated]
    silent = [] if lineage.teacher_terms else bound
    if silent:
        raise LicenceError(
            f"{silent[0]} is under {silent[0].licence}, whose text must be passed on; "
            "config.json has no teacher_terms, make the model folder again with zoo distill"
        )


def _refuse_open(config: ArtifactConfig) -> None:
    """Raises LicenceError where nobody has stated the terms of data that an engine learned from."""
    names = ", ".join(unstated(config.lineage.sources))
    if names:
        raise LicenceError(
            f"{config.name} learned from data that state no licence ({names}), so it is not published for everybody; "
            "ask their authors and add --unstated-terms, or publish it to a private repository, without --public"
        )


def _stage(folder: Path, staged: Path) -> None:
    """Copies what the manifest lists, and nothing else; it is the copy that is checked and published.

    Raises IntegrityError, and PublishError for a link, or where the disk is full.
    """
    try:
        for path in (*verify_manifest(folder).paths, MANIFEST):
            with atomic_path(staged / path) as copy:
                shutil.copyfile(_own_file(folder, path), copy)
    except ZooError:
        raise  # some are errors of the system too
    except OSError as error:
        where, reason = error.filename or staged, error.strerror or error
        raise PublishError(f"{where}: {reason}; nothing was sent, so mend that and run the same again") from error
    verify_manifest(staged)


def _own_file(folder: Path, path: str) -> Path:
    """The file itself. Links are followed where a hub's layout has them, from a snapshot to the blobs beside it."""
    source = folder / path
    if not source.is_symlink() and (source.parent == folder or not source.parent.is_symlink()):
        return source
    whole = folder.resolve()
    blobs = whole.parent.parent / "blobs"
    if whole.parent.name == "snapshots" and source.resolve().parent == blobs and not source.parent.is_symlink():
        return source.resolve()
    raise PublishError(f"{source} is a link; publish a folder that holds its files itself")


def _approve(staged: Path) -> ArtifactConfig:
    """The config of a folder that may be published. Raises PublishError, LicenceError where it may not."""
    missing = [path for path in DOCUMENTS if not (staged / path).is_file()]
    if missing:
        raise PublishError(f"the model folder has no {', '.join(missing)}; make it again with zoo distill")
    config = _checked(staged)
    if not is_engine_name(config.name):
        raise PublishError(f"the engine is called {config.name!r}; expected family/engine")
    entry = entries().get(config.name)
    if entry is not None and entry.status == "package":
        raise PublishError(f"{config.name} is the name of a teacher; give the recipe another name")
    check_licence(config)
    _check_card(staged, config)
    return config


def _checked(folder: Path) -> ArtifactConfig:
    """The config of an engine that says here what it said where it was made. Raises PublishError."""
    engine = Engine.read(folder, device="cpu")
    result = engine.check()
    if not result.passed:
        worst = next(row for row in result.rows if not row.passed)
        raise PublishError(
            f"{engine.name} misses its probe by {worst.error:.3g} {worst.unit} in {worst.quantity} "
            f"(allowed {worst.tolerance:.3g}), so the two are not of one engine; make the folder again"
        )
    assert engine.config is not None
    return engine.config


def _check_card(staged: Path, config: ArtifactConfig) -> None:
    """What a hub reads of the card must be what hubs take, and must not contradict the engine."""
    text = (staged / DOCUMENTS[0]).read_text(encoding="utf-8", errors="replace")
    faults = lint_card(text, staged)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise PublishError(f"README.md: {faults[0]}{more}; mend it and run: zoo seal FOLDER, or make it again")
    card = parse_card(text)
    assert card.zoo is not None  # the lint asks for it
    for what, (stated, true) in _statements(card.zoo, config, sha256_file(staged / MODEL)).items():
        if stated != true:
            raise LicenceError(f"README.md states {what} {stated}, config.json {true}; make the model folder again")
    terms = config.lineage.teacher_terms
    if terms and " ".join((card.terms or "").split()) != " ".join(terms.split()):
        raise LicenceError(f"README.md does not repeat the terms of {config.lineage.teacher}; make the folder again")


def _statements(block: ZooBlock, config: ArtifactConfig, weights: str) -> dict[str, tuple[object, object]]:
    """What the card says and what is true, of all that decides who may use what."""
    lineage = config.lineage
    return {
        "the name": (block.name, config.name),
        "the licence": (block.licence_weights, config.licence),
        "the teacher": (block.teacher.name, lineage.teacher),
        "its licence": (block.teacher.licence, lineage.teacher_licence_weights),
        "data": (block.data, lineage.data),
        "elements": (set(block.elements), set(config.domain.elements)),
        "parameters": (block.weights.parameters, config.parameters),
        "the digest of the weights": (block.weights.sha256, weights),
    }


def _plan_of(config: ArtifactConfig, staged: Path, repository: Repository, hub: str) -> PublishResult:
    """What is known before any hub is asked."""
    return PublishResult(
        repository=repository.id,
        commit=None,
        tag=None,
        files=_sizes(staged),
        licence=config.licence,
        hub=hub,
        new=None,
        public=None,
        dry_run=True,
        unstated=tuple(unstated(config.lineage.sources).values()),
    )


def _planned(
    plan: PublishResult, target: FolderHub | RemoteHub, repository: Repository, staged: Path, public: bool
) -> PublishResult:
    """A folder says which version it would be; a server is not asked, for that may need a token."""
    if isinstance(target, RemoteHub):
        return replace(plan, public=public)
    tag, new = target.tag_for(repository, staged)
    return replace(plan, tag=tag, new=new)


def _sizes(staged: Path) -> dict[str, int]:
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    return {path.relative_to(staged).as_posix(): path.stat().st_size for path in files}


def _is_open(hub: FolderHub | RemoteHub, repository: Repository) -> bool:
    """Whether a server lets everybody read what is published there; who may read a folder is not zoo's to say."""
    if isinstance(hub, FolderHub):
        return False
    client = hub.client()
    try:
        with client.session():
            return client.refs(repository) is not None and client.is_public(repository)
    except HubError as error:
        raise PublishError(f"{error}. Nothing is lost: run the same again") from error


def _release(hub: FolderHub | RemoteHub, repository: Repository, staged: Path, *, public: bool, gated: bool) -> Release:
    try:
        return hub.add(repository, staged, accept=_checked, public=public, gated=gated)
    except HubError as error:
        raise PublishError(f"{error}. Nothing is lost: run the same again") from error
    except ZooError:
        raise  # some are errors of the system too
    except OSError as error:
        raise PublishError(f"{hub.title}: {error}; no version was released, so run the same again") from error
