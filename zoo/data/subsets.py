"""Subsets of data sets: which frames pass their filters, on which side of a division they stand, and which are taken.

All of it is decided frame by frame, by what the data set says of a frame and by hashes: never by its place among the
others, so nobody moves when frames are added or come in another order. Blocks alone are counted in the file or
trajectory: there, add frames at the end.
"""

import hashlib
import heapq
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.formula import Formula

from zoo.data.frame import Frame
from zoo.data.readers import read_frames
from zoo.data.sources import Source as DataSource
from zoo.data.sources import get_file, get_source
from zoo.data.store import locate, recorded
from zoo.data.structures import check_elements, data_digest, find_own, frame_copies, written_digest
from zoo.errors import ConfigError, MissingPackageError, UnknownNameError, ZooWarning
from zoo.licences import Source
from zoo.recipe import Division, Filters, Recipe, Split, StructuresSection, Subset, SubsetGroup

SPLITS: tuple[Split, ...] = ("train", "validation", "test")  # in the order in which a division cuts
_KEYS = ("molecule", "material", "trajectory")  # what a frame may be divided by where its data set says it
_MANY = 5  # names that an error lists

T = TypeVar("T")


def passes(frame: Frame, filters: Filters) -> bool:
    """Whether a frame belongs to a subset. What costs least is asked first, and nothing after the first no.

    A frame whose material has no band gap passes no filter by it, and one in which spglib finds no space group is of
    none. Raises ConfigError where another filter asks what the data set does not say of the frame, MissingPackageError
    where a space group is asked for and spglib is not installed.
    """
    return _refusal(frame, filters) is None


def _refusal(frame: Frame, filters: Filters) -> str | None:
    """Nothing of a frame that passes; else the name of what cannot be known of it, or "" where a filter says no."""
    for name, test in _TESTS:
        if not (found := test(frame, filters)):
            return name if found is None else ""
    return None


def _is_named(frame: Frame, filters: Filters) -> bool:
    for key, wanted in (("molecule", filters.molecules), ("part", filters.parts)):
        if wanted is not None and _said(frame, getattr(frame, key), key, f"{key}s") not in wanted:
            return False
    return filters.charge is None or _said(frame, frame.charge, "charge", "charge") == filters.charge


def _is_of_size(frame: Frame, filters: Filters) -> bool:
    return _within(len(frame.atoms), filters.min_atoms, filters.max_atoms)


def _is_of_elements(frame: Frame, filters: Filters) -> bool:
    if filters.element is None and filters.elements is None:
        return True
    held = set(frame.atoms.numbers.tolist())
    if filters.element is not None and atomic_numbers[filters.element] not in held:
        return False
    return filters.elements is None or held <= {atomic_numbers[symbol] for symbol in filters.elements}


def _is_of_formula(frame: Frame, filters: Filters) -> bool:
    return filters.formula is None or Counter(frame.atoms.get_chemical_symbols()) == _counts(filters.formula)


def _has_gap(frame: Frame, filters: Filters) -> bool | None:
    """None where nobody says: data sets leave out the gap of some materials."""
    least, most = filters.min_band_gap, filters.max_band_gap
    if least is None and most is None:
        return True
    return None if frame.band_gap is None else _within(frame.band_gap, least, most)


def _is_gentle(frame: Frame, filters: Filters) -> bool:
    if filters.max_force is None:
        return True
    labels = {} if frame.atoms.calc is None else frame.atoms.calc.results
    forces = _said(frame, labels.get("forces"), "forces", "max_force")
    return bool(np.abs(forces).max() < filters.max_force)


def _is_symmetric(frame: Frame, filters: Filters) -> bool | None:
    """None where spglib finds no group."""
    if filters.space_group is None:
        return True
    found = _space_group(frame, filters.symprec)
    return None if found is None else found == filters.space_group


_TESTS: tuple[tuple[str, Callable[[Frame, Filters], bool | None]], ...] = (  # by what it is that may not be known
    ("name", _is_named),
    ("size", _is_of_size),
    ("elements", _is_of_elements),
    ("formula", _is_of_formula),
    ("band gap", _has_gap),
    ("forces", _is_gentle),
    ("space group", _is_symmetric),
)


def _said(frame: Frame, value: T | None, what: str, name: str) -> T:
    """What the data set says of a frame. Raises ConfigError where it says nothing."""
    if value is None:
        raise ConfigError(_lacks(frame.place, what, name))
    return value


def _lacks(place: str, what: str, name: str) -> str:
    asked = f"which the filter {name} asks for; remove filters.{name}"
    return f"{place} has no {what}, {asked}, or take a data set that says it"


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


@cache
def _counts(formula: str) -> dict[str, int]:
    counts: dict[str, int] = Formula(formula).count()
    return counts


def _space_group(frame: Frame, symprec: float) -> str | None:
    """The short symbol of the space group that spglib finds, if it does. Raises ConfigError where there can be none."""
    spglib = _import_spglib()
    atoms = frame.atoms
    if not all(atoms.pbc):
        raise ConfigError(
            f"{frame.place} ({atoms.symbols}) is not periodic in all three directions and has no space group; remove "
            "filters.space_group, or filter such frames out"
        )
    cell = (atoms.cell[:], atoms.get_scaled_positions(), atoms.numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # spglib warns of a change of its errors at each call
        try:
            found = spglib.get_symmetry_dataset(cell, symprec=symprec)
        except Exception:  # releases of spglib differ in whether they raise, and what
            found = None
    return None if found is None else str(found.international)


@cache
def _space_groups() -> tuple[str, ...]:
    """The short symbols of all space groups, each in its first setting, as spglib says them of structures."""
    spglib = _import_spglib()
    symbols: dict[int, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for hall in range(1, 531):
            found = spglib.get_spacegroup_type(hall)
            symbols.setdefault(found.number, str(found.international_short))
    return tuple(symbols.values())


def _import_spglib() -> Any:
    try:
        import spglib  # optional: only space groups need it
    except ImportError as error:
        raise MissingPackageError("a filter by space group needs spglib; run: pip install spglib") from error
    return spglib


def split_of(frame: Frame, division: Division) -> Split:
    """The side of a division on which a frame stands, with all of its group: decided by the group's name and the salt.

    Raises ConfigError where the data set does not say of the frame what it is to be divided by.
    """
    return _side(group_key(frame, division), division)


def group_key(frame: Frame, division: Division) -> str:
    """The name of the group of frames that stays together. Raises ConfigError where the frame has none."""
    if division.by == "frame":
        return written_digest(frame.atoms)  # so that frames that become equal stand together
    if division.by == "block":
        assert division.block is not None  # the schema sees to it
        return f"{frame.trajectory or ''} {frame.index // division.block}"
    key = getattr(frame, division.by)
    if not key:
        others = [other for other in _KEYS if getattr(frame, other)]
        raise ConfigError(
            f"{frame.place} has no {division.by}, by which its subset is to be divided; set division.by to "
            f"{', '.join([*others, 'block'])} or frame"
        )
    return str(key)


def _side(key: str, division: Division) -> Split:
    """Where a number in [0, 1) falls among the cumulative fractions; past their rounded sum, on the last side."""
    number, end = _hash(division.salt, key) / 2**64, 0.0
    sides = [split for split in SPLITS if getattr(division, split) > 0]
    for split in sides:
        end += getattr(division, split)
        if number < end:
            return split
    return sides[-1]


def _hash(*words: str) -> int:
    """64 bits of SHA-256, the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256("\0".join(words).encode()).digest()[:8], "big")


@dataclass
class _Share:
    """What a group has of its side so far: all frames, or as many as it wants, those of the lowest hashes."""

    group: SubsetGroup
    kept: list[tuple[int, int, Frame]] = field(default_factory=list)  # (-hash, order, frame): the highest hash is first

    def take(self, order: int, frame: Frame, salt: str) -> None:
        if self.group.count is None:
            self.kept.append((0, order, frame))
            return
        entry = (-_hash(salt, "count", written_digest(frame.atoms)), order, frame)
        if len(self.kept) < self.group.count:
            heapq.heappush(self.kept, entry)
        else:
            heapq.heappushpop(self.kept, entry)

    def structures(self, seed: int) -> list[Atoms]:
        """The frames that were kept, in the order of the data set, or their displaced copies."""
        frames = [frame for _, _, frame in sorted(self.kept, key=lambda entry: entry[1])]
        for frame in frames:
            if frame.charge:
                frame.atoms.info["charge"] = frame.charge
        return [
            atoms
            for frame in frames
            for atoms in frame_copies(self.group, frame.place, frame.atoms, seed, int(written_digest(frame.atoms), 16))
        ]


@dataclass
class _Unknown:
    """The frames that do not pass because something of them is not known."""

    first: str  # its place
    frames: int = 0
    materials: set[int] = field(default_factory=set)  # hashes of their names, where they have some

    def add(self, frame: Frame) -> None:
        self.frames += 1
        if frame.material is not None:
            self.materials.add(_hash(frame.material))

    def __str__(self) -> str:
        of = f" of {_number(len(self.materials), 'material')}" if self.materials else ""
        return f"{_number(self.frames, 'frame')}{of} (the first: {self.first})"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


@dataclass
class _Tally:
    """What was seen of a subset: for the errors that say what it has."""

    division: Division
    filters: Filters
    read: int = 0
    frames: Counter[Split] = field(default_factory=Counter)  # that pass, on each side
    groups: set[int] = field(default_factory=set)  # hashes of the names of those that pass
    names: dict[str, set[str]] = field(default_factory=lambda: {"molecule": set(), "part": set()})
    has_gaps: bool = False  # whether any frame says one
    unknown: dict[str, _Unknown] = field(default_factory=dict)  # by what is not known

    def see(self, frame: Frame) -> Split | None:
        """The side of a frame that passes."""
        self.read += 1
        self.has_gaps = self.has_gaps or frame.band_gap is not None
        for key, names in self.names.items():
            if getattr(self.filters, f"{key}s") is not None and getattr(frame, key) is not None:
                names.add(getattr(frame, key))
        refusal = _refusal(frame, self.filters)
        if refusal:
            self.unknown.setdefault(refusal, _Unknown(frame.place)).add(frame)
        return self._pass(frame) if refusal is None else None

    def _pass(self, frame: Frame) -> Split:
        key = group_key(frame, self.division)
        split = _side(key, self.division)
        self.frames[split] += 1
        if self.division.by != "frame":  # where there is a group a frame, they need not be told apart
            self.groups.add(_hash(key))
        return split

    @property
    def groups_text(self) -> str:
        """How many groups passed: "12 molecules"."""
        count, noun = len(self.groups) or self.frames.total(), self.division.by
        return f"{count} {noun}" if count == 1 else f"{count} {noun[:-1]}ies" if noun[-1] == "y" else f"{count} {noun}s"


def choose(
    subset: Subset,
    groups: Sequence[SubsetGroup],
    seed: int,
    frames: Iterable[Frame],
    elements: Sequence[str] | None = None,
) -> dict[str, list[Atoms]]:
    """The structures of groups of a subset, by the name of each, from one pass over its frames.

    A group that wants a ``count`` keeps no more frames than that; each frame of its side is of ``elements``, whether it
    is kept or not. Frames that do not pass because their band gap or space group is not known are counted in a warning.
    Raises ConfigError where a group comes out empty or with fewer frames than it wants, where a name that is filtered
    for is nowhere in the data set, or a band gap, and as ``passes``, ``split_of`` and ``frame_copies`` do.
    """
    sides = {group.split: _Share(group) for group in groups}
    tally = _Tally(subset.division, subset.filters)
    for order, frame in enumerate(frames):
        split = tally.see(frame)
        if split in sides:
            if elements is not None:
                check_elements(sides[split].group, [frame.atoms], elements)
            sides[split].take(order, frame, subset.division.salt)
    _check_names(groups[0].subset, tally)
    _tell_unknown(groups[0].subset, tally)
    for side in sides.values():
        _check_count(side, tally)
    return {side.group.name: side.structures(seed) for side in sides.values()}


def _tell_unknown(subset: str, tally: _Tally) -> None:
    """Warns of frames that do not pass for want of knowledge. Raises ConfigError where no frame has a band gap."""
    filters = tally.filters
    name = "max_band_gap" if filters.min_band_gap is None else "min_band_gap"
    gapless, groupless = tally.unknown.get("band gap"), tally.unknown.get("space group")
    told = []
    if gapless is not None:
        if not tally.has_gaps:
            raise ConfigError(_lacks(gapless.first, "band gap", name))
        told.append(f"without a band gap, which filters.{name} asks for, are {gapless}")
    if groupless is not None:
        told.append(f"of no space group that spglib finds within {filters.symprec:g} Å are {groupless}")
    if told:
        warnings.warn(f"subset {subset} leaves out what cannot be known: {'; '.join(told)}", ZooWarning, stacklevel=3)


def _check_names(subset: str, tally: _Tally) -> None:
    """Raises ConfigError for a molecule or part that is filtered for and that the data set does not have."""
    for key, known in tally.names.items():
        for name in getattr(tally.filters, f"{key}s") or ():
            if tally.read > 0 and name not in known:
                near = get_close_matches(name, known, n=1)
                listed = ", ".join(sorted(known)[:_MANY]) + (", ..." if len(known) > _MANY else "")
                hint = f"did you mean {near[0]}?" if near else f"it has {len(known)}: {listed}"
                raise ConfigError(f"no frame of subset {subset} has the {key} {name!r}; {hint}")


def _check_count(side: _Share, tally: _Tally) -> None:
    """Raises ConfigError where a group has no frames, or fewer than it wants."""
    group, passed = side.group, tally.frames.total()
    place = f"structures.subsets.{group.subset}"
    if passed == 0:
        raise ConfigError(
            f"none of the {tally.read} frames of subset {group.subset} passes its filters; loosen {place}.filters"
        )
    count, share = tally.frames[group.split], getattr(tally.division, group.split)
    if count == 0:
        raise ConfigError(
            f"group {group.name} is empty: the {passed} frames of subset {group.subset} are of {tally.groups_text}, "
            f"none of which falls to {group.split}, whose part is {share:g}; raise that part, change "
            f"{place}.division.salt, or divide into smaller groups, as by block"
        )
    if group.count is not None and count < group.count:
        raise ConfigError(
            f"group {group.name} asks for {group.count} frames, but the {group.split} side of subset {group.subset} "
            f"has {count} of {passed} that pass its filters ({tally.groups_text} in all, a part of {share:g}); lower "
            f"count, or raise {place}.division.{group.split}"
        )


@dataclass(frozen=True)
class DataFile:
    """A file, or a folder, that a subset is read from."""

    name: str  # what records of the data call it; of a path on the machine of the author, its end alone
    format: str
    stated: Callable[[], str | None]  # its digest as recipe, store or publisher say it: "md5:0cc1..."
    find: Callable[[], Path]  # where it is here, verified; UnknownNameError with what to do, IntegrityError
    members: str | None = None  # of an archive


def data_files(subset: Subset) -> list[DataFile]:
    """What a subset is read from, in order. Raises UnknownNameError for a source or a file that there is not."""
    if subset.own is not None:
        own = subset.own
        stated = None if own.sha256 is None else f"sha256:{own.sha256}"
        find = partial(find_own, "structures.subsets", own.path, own.sha256)
        return [DataFile(public_name(own.path), own.format, lambda: stated, find)]
    assert subset.source is not None  # the schema sees to it
    source = get_source(subset.source)
    files = []
    for key in subset.files or source.files:
        file, name = get_file(source, key), f"{source.name}/{source.files[key].name}"
        stands, find = partial(_stated, source, key), partial(locate, source, key)
        files.append(DataFile(name, source.format, stands, find, file.members))
    return files


def _stated(source: DataSource, key: str) -> str | None:
    """The digest that a user accepted, or else the published one, or else that of the first copy here."""
    published, record = get_file(source, key).digest, recorded(source, key)
    found = record.digest if record is not None and (record.accepted or published is None) else published
    return None if found is None else f"{found.algorithm}:{found.hex}"


def public_name(path: str) -> str:
    """A path as the recipe has it; of one on the machine of its author, the end alone."""
    return Path(path).name if Path(path).is_absolute() else path


def subset_frames(subset: Subset) -> Generator[Frame, None, None]:
    """All frames of the data that a subset is of, one at a time.

    Raises UnknownNameError where data are not here, with what to do, and what the readers raise.
    """
    for file in data_files(subset):
        yield from read_frames(file.find(), file.format, members=file.members)


def check_subsets(section: StructuresSection) -> None:
    """Fails before any work where data are missing or unreadable, or a space group has a name that none has."""
    for subset in section.subsets.values():
        group = subset.filters.space_group
        if group is not None and group not in _space_groups():
            near = get_close_matches(group, _space_groups(), n=1)
            hint = f"did you mean {near[0]}?" if near else "expected a short symbol, as Pm-3m or P2_1/c"
            raise ConfigError(f"filters.space_group is {group!r}, which no space group is called; {hint}")
        for file in data_files(subset):
            file.find()
        with closing(subset_frames(subset)) as frames:
            next(frames, None)


def known_digests(section: StructuresSection, record: dict[str, str]) -> dict[str, str | None]:
    """What is known of the digests of the data, without those that are not here: what decides a stage's inputs.

    Where nobody states one, it is that of the file that is here, or else the one in ``record``, by its name.
    """
    return {file.name: file.stated() or _found_digest(file, record) for file in _all_files(section)}


def _found_digest(file: DataFile, record: dict[str, str]) -> str | None:
    try:
        path = file.find()  # after which the store may know more
    except UnknownNameError:
        return f"sha256:{record[file.name]}" if file.name in record else None
    return file.stated() or f"sha256:{data_digest(path)}"


def data_sha256(section: StructuresSection) -> dict[str, str]:
    """Hex SHA-256 of each file of data that structures are of, by name. Raises where one is not here, as finds do."""
    digests = {public_name(group.file): group.sha256 for group in section.groups if group.kind == "frames"}
    for file in _all_files(section):
        if file.name not in digests:  # of an archive, several files are read
            path = file.find()
            kind, _, stated = (file.stated() or "").partition(":")
            digests[file.name] = stated if kind == "sha256" else data_digest(path)
    return digests


def _all_files(section: StructuresSection) -> list[DataFile]:
    return [file for subset in section.subsets.values() for file in data_files(subset)]


def data_terms(recipe: Recipe) -> list[Source]:
    """The data sets that a recipe's structures are of, each once, with their licences: as stated, and of the sources.

    Raises UnknownNameError for a source that there is not.
    """
    stated = [Source("data", one.name, one.licence) for one in recipe.structures.data]
    named = [get_source(subset.source) for subset in recipe.structures.subsets.values() if subset.source is not None]
    return list(dict.fromkeys([*stated, *(Source("data", source.name, source.licence) for source in named)]))
