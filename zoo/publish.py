"""A model folder becomes a version on a hub: checked before, checked after, named last."""

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from zoo.artifact import DOCUMENTS, MANIFEST, ArtifactConfig, verify_manifest
from zoo.engine import Engine
from zoo.errors import LicenceError, PublishError
from zoo.files import atomic_path
from zoo.hub.catalogue import entries
from zoo.hub.folder import FolderHub, commit_of, digests_of, open_hub
from zoo.licences import check_terms
from zoo.naming import EngineName, Repository, default_namespace, is_engine_name, parse_name

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


@dataclass(frozen=True)
class PublishResult:
    """What was published, and where."""

    repository: str
    commit: str
    tag: str
    files: tuple[str, ...]
    hub: Path
    new: bool  # False where the hub had this very content before
    dry_run: bool

    def __str__(self) -> str:
        verb = "would publish" if self.dry_run else "published"
        done = verb if self.new else "nothing new:"
        return f"{done} {self.repository}@{self.tag} on {self.hub}, commit {self.commit}"


def publish(
    folder: str | Path,
    hub: str | Path | None = None,
    *,
    namespace: str | None = None,
    dry_run: bool = False,
    public: bool = False,
) -> PublishResult:
    """Publishes a model folder, and returns when it can be loaded by name.

    ``hub`` is a folder, by default what ZOO_HUB names; ``namespace`` is by default what ZOO_NAMESPACE names,
    else mlff-zoo. ``dry_run`` checks all that can be checked and writes nothing to the hub. Who may read a
    hub that is a folder is a matter of its permissions, so ``public`` changes nothing there. The same content
    published again is the same version. Raises IntegrityError, ConfigError, LicenceError, PublishError.
    """
    target = open_hub(hub)
    if target is None:
        raise PublishError("no hub to publish to; pass --hub ./hub or set ZOO_HUB=./hub")
    with tempfile.TemporaryDirectory(prefix="zoo-publish-") as temporary:
        staged = Path(temporary)
        _stage(Path(folder).expanduser(), staged)
        repository = _approve(staged).repository(default_namespace(namespace))
        digests = digests_of(staged)
        commit = commit_of(digests)
        new = commit not in target.tags(repository).values()
        tag = target.tag_for(repository, commit) if dry_run else _release(target, repository, staged)
    return PublishResult(repository.id, commit, tag, tuple(digests), target.root, new, dry_run)


def check_licence(config: ArtifactConfig) -> None:
    """Raises LicenceError where a student's terms are weaker than its teacher's, or where nobody knows."""
    lineage = config.lineage
    stated, entry = lineage.teacher_licence_weights, entries().get(lineage.teacher)
    if entry is not None and entry.licence_weights != stated:
        raise LicenceError(
            f"config.json says that the weights of {lineage.teacher} are {stated}, "
            f"they are {entry.licence_weights}; make the model folder again"
        )
    check_terms(config.name, config.licence, lineage.teacher, stated)


def _stage(folder: Path, staged: Path) -> None:
    """Copies what the manifest lists, and nothing else; it is the copy that is checked and published."""
    for path in (*verify_manifest(folder).paths, MANIFEST):
        source = folder / path
        if source.is_symlink() or (source.parent.is_symlink() and source.parent != folder):
            raise PublishError(f"{source} is a link; publish a folder that holds its files itself")
        with atomic_path(staged / path) as copy:
            shutil.copyfile(source, copy)
    verify_manifest(staged)


def _approve(staged: Path) -> EngineName:
    """The name under which a folder may be published. Raises PublishError where it may not."""
    missing = [path for path in DOCUMENTS if not (staged / path).is_file()]
    if missing:
        raise PublishError(f"the model folder has no {', '.join(missing)}; make it again with zoo distill")
    config = _checked(staged)
    check_licence(config)
    _check_card((staged / DOCUMENTS[0]).read_text(encoding="utf-8", errors="replace"), config)
    if not is_engine_name(config.name):
        raise PublishError(f"the engine is called {config.name!r}; expected family/engine")
    entry = entries().get(config.name)
    if entry is not None and entry.status == "package":
        raise PublishError(f"{config.name} is the name of a teacher; give the recipe another name")
    name = parse_name(config.name)
    assert isinstance(name, EngineName)
    return name


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


def _check_card(card: str, config: ArtifactConfig) -> None:
    """What a hub reads of the card must not contradict the engine."""
    front_matter = _FRONT_MATTER.match(card)
    try:
        stated = yaml.safe_load(front_matter[1]) if front_matter else None
    except yaml.YAMLError as error:
        raise PublishError(f"README.md: its front matter is not YAML ({' '.join(str(error).split())})") from error
    licence, expected = stated.get("license") if isinstance(stated, dict) else None, config.licence.lower()
    if licence != expected:
        raise LicenceError(f"README.md states license {licence!r}, config.json {expected!r}; render the card again")


def _release(hub: FolderHub, repository: Repository, staged: Path) -> str:
    try:
        return hub.add(repository, staged, accept=_checked)
    except OSError as error:
        raise PublishError(f"{hub.root}: {error}; no version was released, so run the same again") from error
