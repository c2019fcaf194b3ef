"""Engines fetched ahead: into the cache, or into a folder or a tar that is a hub where there is no network."""

import socket
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from zoo.artifact import verify_manifest
from zoo.errors import ConfigError
from zoo.files import atomic_path, is_running
from zoo.hub.catalogue import Entry, entries
from zoo.hub.folder import FolderHub
from zoo.locate import Fetched, fetch, locate, open_hub, parse
from zoo.naming import EngineName, Repository, default_namespace, parse_path
from zoo.teachers import is_own, needs_converting, own_teacher, weights_of

_PACKED = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tar.zst", ".zip")


@dataclass(frozen=True)
class PullResult:
    """What was fetched, and where it is."""

    engines: tuple[str, ...]  # owner/name@version
    folders: tuple[Path, ...]  # of each, in the cache
    to: Path | None


def pull(
    names: str | Sequence[str],
    to: str | Path | None = None,
    *,
    hub: str | Path | None = None,
    namespace: str | None = None,
) -> PullResult:
    """Fetches and verifies engines.

    ``to`` is a folder, which becomes a hub to name in ZOO_HUB, or a file that ends with .tar, which holds one; without
    it they are in the cache, for ``load``. A folder or a tar keeps what it has, under the commits and versions of the
    hub they come from. Raises what ``load`` raises, and ConfigError for what comes with a package.
    """
    if not names:
        raise ConfigError("no engine is named; give one or more, such as sevennet-0/silicon-student")
    many = [names] if isinstance(names, str) else names
    place = None if to is None else _parse_target(to)
    source, owner = open_hub(hub), default_namespace(namespace)
    fetched = [fetch(locate(_published(name), source, owner)) for name in many]
    for one in fetched:
        verify_manifest(one.folder)  # a hub that is a folder leaves that to who reads
    if place is not None and place.suffix == ".tar":
        _write_tar(place, fetched)
    elif place is not None:
        _keep(FolderHub(place), fetched)
    titles = tuple(f"{one.place.repository.id}@{one.resolved.tag or one.resolved.commit}" for one in fetched)
    return PullResult(titles, tuple(one.folder for one in fetched), place)


def _parse_target(to: str | Path) -> Path:
    """A folder, or a tar. Raises ConfigError for anything else."""
    if "://" in str(to):
        raise ConfigError(f"{to} is a server; pull to a folder or a tar, and publish what is in it there")
    place = parse_path(to)
    if place.name.endswith(_PACKED):
        raise ConfigError(f"{place}; give a name that ends with .tar, and compress the file afterwards")
    if place.suffix != ".tar" and place.exists() and not place.is_dir():
        raise ConfigError(f"{place} is a file; give a folder, or a name that ends with .tar")
    if place.suffix == ".tar" and not place.stem.strip("."):
        raise ConfigError(f"{place} is a tar without a name; give one, such as engines.tar")
    return place


def _published(name: str) -> EngineName | Repository:
    found = parse(name)
    if isinstance(found, Path):
        raise ConfigError(f"{name} is a folder, which is here already; give a name, such as family/engine")
    entry = entries().get(found.name) if isinstance(found, EngineName) else None
    if entry is not None and entry.status == "package":
        raise ConfigError(_elsewhere(entry))
    if isinstance(found, EngineName) and is_own(found.name) and own_teacher(found.name) is not None:
        raise ConfigError(f"{name} is a teacher of your own, on no hub; run zoo teachers add with its file there")
    return found


def _elsewhere(entry: Entry) -> str:
    """Where a teacher comes from, which no hub of zoo has."""
    if needs_converting(entry.name):
        family = entry.name.partition("/")[0]
        return f"{entry.name} is on no hub, for each machine converts its weights; run there: zoo convert {family}"
    if weights_of(entry.name) is not None:
        return (
            f"{entry.name} is on no hub of zoo, its authors publish its weights; run: zoo teachers fetch {entry.name}, "
            "and carry teachers/ of the cache to a machine without a network"
        )
    return f"{entry.name} comes with the package {entry.package}; run: pip download {entry.package}"


def _keep(hub: FolderHub, fetched: Sequence[Fetched]) -> None:
    for one in fetched:
        hub.keep(one.place.repository, one.resolved, one.folder)


def _write_tar(file: Path, fetched: Sequence[Fetched]) -> None:
    """A hub in a tar, below a folder of the tar's name; links stay links. The same bytes for the same engines.

    A tar that is there keeps what it holds. Raises ConfigError where that is no hub.
    """
    with tempfile.TemporaryDirectory(prefix="zoo-pull-") as temporary:
        root = Path(temporary) / file.stem
        if file.exists():
            _unpack(file, root)
        _keep(FolderHub(root), fetched)
        for left in file.parent.glob(f".{escape(file.name)}.{escape(socket.gethostname())}@*.tmp"):
            if not is_running(left.stem.rpartition("@")[2]):  # it was killed
                left.unlink(missing_ok=True)
        with atomic_path(file) as part, tarfile.open(part, "w") as tar:
            for path in [root, *sorted(root.rglob("*"))]:
                tar.add(path, arcname=path.relative_to(temporary).as_posix(), recursive=False, filter=_anonymous)


def _unpack(file: Path, root: Path) -> None:
    try:
        with tarfile.open(file, "r:") as tar:
            names = tar.getnames()
            if not all(name == root.name or name.startswith(f"{root.name}/models--") for name in names):
                raise ConfigError(f"{file} holds other files than engines of zoo; choose another name")
            tar.extractall(root.parent, filter="data")
    except tarfile.TarError as error:
        raise ConfigError(f"{file} cannot be read as a tar ({error}); remove it, or choose another name") from error


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the user, the time and the rights of the machine that wrote it."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    entry.mode = 0o755 if entry.isdir() else 0o644
    return entry
