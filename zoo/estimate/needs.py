"""What a recipe needs that may not be here: files of data, packages, a teacher, terms that agree."""

import importlib.util
import math
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from zoo.acceptance import text_to_repeat
from zoo.data.sources import get_file, get_source
from zoo.data.store import find_file
from zoo.data.structures import find_own
from zoo.data.subsets import data_terms
from zoo.errors import UnknownNameError, ZooError
from zoo.evaluate.compare import require_packages
from zoo.licences import Source, check_terms
from zoo.recipe import OwnData, Recipe, Subset
from zoo.run import Run
from zoo.teacher_facts import teacher_terms, why_not

_LARGE = 20_000_000  # bytes; of a larger file of frames only a few are read, of a larger archive none
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")  # first bytes
_STREAMED = ("extxyz", "mptrj-json")  # formats whose first frame is read before the rest of a file
_PACKAGES = {"spice": "h5py", "lmdb": "lmdb"}  # that readers of a format need


@dataclass(frozen=True)
class Need:
    """A file of data that a recipe is of."""

    name: str
    bytes: int | None
    host: str | None  # that it is fetched from
    licence: str | None
    here: bool
    remedy: str  # where it is not here
    source: str | None = None  # that has it, under this key
    key: str = ""
    unread: bool = False  # here, but too large an archive to be counted

    def __str__(self) -> str:
        facts = [self.name, "size unknown" if self.bytes is None else size_text(self.bytes)]
        facts += [f"from {self.host}"] if self.host else []
        facts += [self.licence] if self.licence else []
        here = "here, too large an archive to be counted" if self.unread else "here"
        return f"{', '.join(facts)}: {here if self.here else f'missing, {self.remedy}'}"


def lacking(run: Run) -> list[str]:
    """What of teacher, packages and terms is not as the recipe wants it."""
    recipe, missing = run.recipe, []
    name = recipe.teacher.name
    why = why_not(name) if run.handed is None else None
    missing += [f"teacher {name}: {why}"] if why else []
    for key, subset in recipe.structures.subsets.items():
        missing += no_package(_PACKAGES.get(_format(subset) or "", ""), f"subset {key}")
        missing += no_package("spglib" if subset.filters.space_group else "", f"subset {key}")
    missing += sentences(require_packages) + sentences(lambda: check_terms(recipe.name, recipe.licence, _sources(run)))
    return missing + sentences(lambda: text_to_repeat(_sources(run)))


def _sources(run: Run) -> list[Source]:
    """Teacher and data, with their licences; of data without terms the lines of data tell."""
    return [*teacher_terms(run.recipe.teacher.name, run.handed), *data_terms(run.recipe)]


def no_package(package: str, whose: str) -> list[str]:
    """What installs a package that is not here; nothing where it is, or where none is needed."""
    if not package or importlib.util.find_spec(package) is not None:
        return []
    return [f"{whose}: package {package} is not installed; run: pip install {package}"]


def sentences(check: Callable[[], object]) -> list[str]:
    """What a check that fails has to say."""
    try:
        check()
    except ZooError as error:
        return [str(error)]
    return []


def _format(subset: Subset) -> str | None:
    if subset.own is not None:
        return subset.own.format
    try:
        return get_source(subset.source or "").format
    except UnknownNameError:
        return None


def needs_of(recipe: Recipe, missing: list[str]) -> list[Need]:
    """All files of subsets, each once; what no source has, and what is to be fetched, is added to what is missing."""
    needs: dict[str, Need] = {}
    for subset in recipe.structures.subsets.values():
        try:
            needs |= {need.name: need for need in _files(subset)}
        except UnknownNameError as error:
            missing.append(str(error))
        missing += sentences(partial(_check_own, subset.own))
    missing += _fetches(list(needs.values()))
    return list(needs.values())


def _files(subset: Subset) -> Iterator[Need]:
    """Raises UnknownNameError for a source, or a file of it, that there is not."""
    if subset.own is not None:
        remedy = "correct its path, or set ZOO_DATA to the folder that holds it"
        own = own_file(subset.own)
        size = own.stat().st_size if own is not None and own.is_file() else None
        unread = own is not None and is_slow(own, subset.own.format)
        yield Need(subset.own.path, size, None, None, own is not None, remedy, unread=unread)
        return
    source = get_source(subset.source or "")
    for key in subset.files or source.files:
        file, path = get_file(source, key), find_file(source, key)
        size = file.bytes if path is None else path.stat().st_size
        remedy = f"zoo data fetch {source.name} --file {key}"
        host = urlsplit(file.urls[0]).hostname
        unread = path is not None and is_slow(path, source.format)
        name = f"{source.name}/{file.name}"
        yield Need(name, size, host, source.licence, path is not None, remedy, source.name, key, unread)


def _check_own(data: OwnData | None) -> None:
    """Raises IntegrityError where a file that is here, and not too large to be read now, has another digest."""
    path = None if data is None else own_file(data)
    if data is not None and path is not None and path.is_file() and not is_large(path):
        find_own("structures.subsets", data.path, data.sha256)


def _fetches(needs: Sequence[Need]) -> list[str]:
    """A line for each source that files are to be fetched from, and for each file of the user's own; what fetches."""
    absent = [need for need in needs if not need.here]
    lines = [f"data {need.name}: {need.remedy}" for need in absent if need.source is None]
    sources = dict.fromkeys(need.source for need in absent if need.source is not None)
    for name in sources:
        keys = [need.key for need in absent if need.source == name]
        some = len(keys) < len(get_source(name).on_disk)
        lines.append(f"data {name}: zoo data fetch {name}" + "".join(f" --file {key}" for key in keys if some))
    return lines + (no_package("requests", "data") if sources else [])


def own_file(data: OwnData) -> Path | None:
    """Where a file of the user's own is, unverified."""
    try:
        return find_own("structures.subsets", data.path, None)
    except UnknownNameError:
        return None


def is_large(path: Path) -> bool:
    """Whether a file is read only in part, or left for later."""
    return path.stat().st_size > _LARGE


def is_slow(path: Path, form: str) -> bool:
    """Whether much has to be decompressed before the first frame: no deadline could be kept meanwhile."""
    if not path.is_file() or not is_large(path):
        return False
    with path.open("rb") as file:
        compressed = file.read(6).startswith(_COMPRESSED)
    return (compressed and form not in _STREAMED) or tarfile.is_tarfile(path)


def size_text(count: int | None) -> str:
    """Bytes in the largest unit of which there is one."""
    if count is None:
        return "? bytes"
    power = min(int(math.log(max(count, 1), 1000)), 4)
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
