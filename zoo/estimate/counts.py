"""How many structures and atoms a recipe is of: counted where they are here, else expected."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from ase import Atoms

from zoo.data.frame import Frame, electrons
from zoo.data.readers import read_frames
from zoo.data.sources import get_file, get_source
from zoo.data.store import find_file
from zoo.data.structures import check_elements, find_data, frames, perfect_crystal, rattled
from zoo.data.subsets import passes, split_of
from zoo.errors import ConfigError, DomainError, UnknownNameError, ZooError
from zoo.estimate.needs import is_large, is_slow, own_file, sentences
from zoo.guard import stated_electrons
from zoo.recipe import DynamicsGroup, Filters, FramesGroup, Group, Recipe, Split, Subset, SubsetGroup
from zoo.teacher_facts import teacher_facts

SPLITS: tuple[Split, ...] = get_args(Split)
COUNTING_SECONDS = 6.0  # of all subsets together
_FEW = 50


@dataclass(frozen=True)
class Count:
    """How many structures and atoms; None is unknown."""

    structures: int | None
    atoms: int | None  # of all of them together
    squares: int | None  # the squares of their numbers of atoms, summed
    exact: bool

    @classmethod
    def sum(cls, counts: Sequence["Count"]) -> "Count":
        """All of them together; unknown where one is."""
        parts = {key: [getattr(count, key) for count in counts] for key in ("structures", "atoms", "squares")}
        whole = {key: None if None in values else sum(values) for key, values in parts.items()}
        return cls(**whole, exact=all(count.exact for count in counts))

    @classmethod
    def of(cls, sizes: Sequence[int]) -> "Count":
        """Of structures of these numbers of atoms."""
        return cls(len(sizes), sum(sizes), sum(size**2 for size in sizes), exact=True)

    @classmethod
    def about(cls, structures: int | None, atoms: float | None, squares: float | None = None) -> "Count":
        """So many structures of so many atoms on average, and of such a mean square."""
        if structures is None or atoms is None:
            return cls(structures, None, None, exact=False)
        mean = atoms**2 if squares is None else squares
        return cls(structures, round(structures * atoms), round(structures * mean), exact=False)


_Read = dict[str, list[Atoms]]  # frames of files, by what they are chosen by
_File = tuple[Path, str, str | None]  # with its format, and which members of an archive are read


@dataclass
class Scan:
    """What was seen of a subset's frames, and whether these are all of them."""

    open_shells: bool = True  # whether the teacher takes one unpaired electron where the number of electrons is odd
    sizes: dict[Split, list[int]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    numbers: dict[Split, set[int]] = field(default_factory=lambda: {split: set() for split in SPLITS})  # atomic
    stated: dict[Split, list[str]] = field(default_factory=lambda: {split: [] for split in SPLITS})  # of electrons
    first: Atoms | None = None
    read: int = 0
    gaps: int = 0  # frames whose data set says a band gap
    complete: bool = False

    def see(self, frame: Frame, subset: Subset) -> None:
        self.read += 1
        self.gaps += frame.band_gap is not None
        if passes(frame, subset.filters):
            split = split_of(frame, subset.division)
            self.sizes[split].append(len(frame.atoms))
            self.numbers[split].update(frame.atoms.numbers.tolist())
            self.stated[split] += _stated(frame.atoms, self.open_shells, frame.charge)
            self.first = self.first or frame.atoms


def _stated(atoms: Atoms, open_shells: bool, charge: int | None = None) -> list[str]:
    """What a frame, of that charge by its data set, will state that a teacher is not told; nothing of most frames."""
    info = electrons(atoms) | ({"charge": charge} if charge else {})
    odd = open_shells and bool(atoms.numbers.sum() % 2)
    problem = stated_electrons(Atoms(info=info), 0, multiplicity=2 if odd else 1)
    return [] if problem is None else [problem]


def _opens_shells(recipe: Recipe) -> bool:
    """Whether the teacher takes radicals; of one that only its loading tells, that it may."""
    facts = teacher_facts(recipe.teacher.name)
    return facts is None or facts.traits is None or facts.traits.open_shells


def scan_all(recipe: Recipe, missing: list[str]) -> dict[str, Scan]:
    """Each subset by its name, as far as the time for it goes; why one cannot be read is added to what is missing."""
    subsets, scans, open_shells = recipe.structures.subsets, {}, _opens_shells(recipe)
    for name, subset in subsets.items():
        scans[name] = Scan(open_shells)
        try:
            _scan(subset, scans[name], time.monotonic() + COUNTING_SECONDS / len(subsets))
        except ZooError as error:
            missing.append(f"subset {name}: {error}")
    return scans


def _scan(subset: Subset, scan: Scan, deadline: float) -> None:
    """Looks at the frames that are here until the time is up. Raises what readers and filters raise."""
    files = _files_here(subset)
    if files is None or any(is_slow(path, form) for path, form, _ in files):
        return
    for path, form, members in files:
        for frame in read_frames(path, form, members=members):
            scan.see(frame, subset)
            if time.monotonic() > deadline:
                return
    filters = subset.filters
    if scan.gaps == 0 and (filters.min_band_gap is not None or filters.max_band_gap is not None):
        raise ConfigError("no frame of it has a band gap, which its filters ask for; remove them, or take other data")
    scan.complete = True


def _files_here(subset: Subset) -> list[_File] | None:
    """All files, unverified; None where one is not here."""
    if subset.own is not None:
        own = own_file(subset.own)
        return None if own is None else [(own, subset.own.format, None)]
    files: list[_File] = []
    try:
        source = get_source(subset.source or "")
        for key in subset.files or source.files:
            path = find_file(source, key)
            if path is None:
                return None
            files.append((path, source.format, source.files[key].members))
    except UnknownNameError:
        return None
    return files


def count_all(recipe: Recipe, scans: dict[str, Scan], missing: list[str]) -> tuple[dict[str, Count], Atoms | None]:
    """The count of each group by its name, and a structure to measure on; what cannot be made is missing."""
    counts: dict[str, Count] = {}
    sample: Atoms | None = None
    read: _Read = {}
    for group in sorted(recipe.structures.groups, key=lambda group: SPLITS.index(group.split)):
        try:
            counts[group.name], first = _count(recipe, group, scans, read)
        except ZooError as error:
            counts[group.name], first = Count.about(_asked(group), None), None
            missing.append(str(error))
        if group.kind == "subset":
            missing += _refused(recipe, group, scans[group.subset])
        sample = sample or first
    return counts, sample


def _refused(recipe: Recipe, group: SubsetGroup, scan: Scan) -> list[str]:
    """What the run will refuse of a group of a subset, as far as frames were seen."""
    seen = Atoms(sorted(scan.numbers[group.split]))
    strange = sentences(lambda: check_elements(group, [seen], recipe.student.elements))
    charged = _charged(recipe, group, scan.stated[group.split], len(scan.sizes[group.split]))
    short = _shortage(group, scan) if scan.complete else ""
    return [*strange, *filter(None, (charged, short))]


def _charged(recipe: Recipe, group: Group, stated: Sequence[str], seen: int) -> str:
    """Why frames of a group cannot be learned from, by what they state; nothing where all can."""
    if not stated or not recipe.distils or group.split not in recipe.labelled:
        return ""
    return (
        f"group {group.name}: of {seen} frames that it is taken from, {len(stated)} cannot be learned from, the first "
        f"states {stated[0]}, of which {recipe.teacher.name} is told nothing; leave them out, as by the filter "
        "charge: 0 of a subset, or, in a file of your own, remove that from their info"
    )


def _shortage(group: SubsetGroup, scan: Scan) -> str:
    """Why a group of a subset that was seen as a whole cannot be had; nothing where it can."""
    count, passed = len(scan.sizes[group.split]), sum(map(len, scan.sizes.values()))
    place, part = f"structures.subsets.{group.subset}", f"structures.subsets.{group.subset}.division.{group.split}"
    if passed == 0:
        return f"none of the {scan.read} frames of subset {group.subset} passes its filters; loosen {place}.filters"
    if count == 0:
        return (
            f"group {group.name} is empty: none of the {passed} frames of subset {group.subset} falls to "
            f"{group.split}; raise {part}, or change {place}.division.salt"
        )
    if group.count is not None and count < group.count:
        return (
            f"group {group.name} asks for {group.count} frames, but the {group.split} side of subset {group.subset} "
            f"has {count} of {passed}; lower count, or raise {part}"
        )
    return ""


def _count(recipe: Recipe, group: Group, scans: dict[str, Scan], read: _Read) -> tuple[Count, Atoms | None]:
    section = recipe.structures
    if group.kind == "subset":
        scan, subset = scans[group.subset], section.subsets[group.subset]
        return _count_subset(group, subset, scan), scan.first
    if group.kind == "frames":
        return _count_frames(recipe, group, read)
    assert section.crystal is not None  # the schema sees to it
    cell = perfect_crystal(section.crystal, group.supercell, group.cell)
    if group.kind == "rattled":
        cell = rattled(section.crystal, group.model_copy(update={"count": 1}), recipe.seed)[0]
    return Count(group.count, group.count * len(cell), group.count * len(cell) ** 2, exact=True), cell


def _count_frames(recipe: Recipe, group: FramesGroup, read: _Read) -> tuple[Count, Atoms]:
    """Frames are read once, however many groups displace them; of a large file only a few are."""
    few = is_large(find_data(group)) and group.count > _FEW
    still = {"count": _FEW if few else group.count, "copies": 1, "displacement": (0.0, 0.0), "strain": 0.0}
    wanted = group.model_copy(update=still)
    key = wanted.model_dump_json(exclude={"name", "split", "shared"})
    if key not in read:
        read[key] = frames(wanted, recipe.seed)
    check_elements(group, read[key], recipe.student.elements)
    stated = [one for atoms in read[key] for one in _stated(atoms, _opens_shells(recipe))]
    if charged := _charged(recipe, group, stated, len(read[key])):
        raise DomainError(charged)
    sizes = [len(atoms) for atoms in read[key]]
    return (_about(_asked(group), sizes) if few else Count.of(sizes * group.copies)), read[key][0]


def _count_subset(group: SubsetGroup, subset: Subset, scan: Scan) -> Count:
    """Counted where all frames were seen; else from what was seen and what the recipe or the source expects."""
    sizes = scan.sizes[group.split]
    if scan.complete and (group.count is None or len(sizes) <= group.count):
        return Count.of(group.copies * sizes)
    seen = sizes or [size for split in SPLITS for size in scan.sizes[split]]
    count, expected = group.count, _expected(subset)
    if count is None and expected is not None:
        count = round(expected[0] * getattr(subset.division, group.split))
    structures = None if count is None else count * group.copies
    if seen:
        return _about(structures, seen)
    return Count.about(structures, None if expected is None else expected[1])


def _about(structures: int | None, seen: Sequence[int]) -> Count:
    """So many structures, of such sizes as were seen."""
    return Count.about(structures, sum(seen) / len(seen), sum(size**2 for size in seen) / len(seen))


def _expected(subset: Subset) -> tuple[int, float] | None:
    """Frames, and atoms of each, as the recipe expects them, or as its source has them where nothing is filtered."""
    if subset.expected is not None:
        return subset.expected.frames, subset.expected.atoms
    if subset.source is None or subset.filters != Filters():
        return None
    source = get_source(subset.source)
    files = [get_file(source, key) for key in subset.files or source.files]
    known = [(file.frames, file.frames * file.atoms) for file in files if file.frames and file.atoms]
    total = sum(count for count, _ in known)
    return (total, sum(atoms for _, atoms in known) / total) if len(known) == len(files) else None


def mean_size(counts: Sequence[Count]) -> int | None:
    """Atoms of a structure, by the first count that knows."""
    known = ((count.structures, count.atoms) for count in counts)
    return next((round(atoms / structures) for structures, atoms in known if structures and atoms), None)


def _asked(group: Group) -> int | None:
    """How many structures a group asks for, where it says so."""
    if group.kind in ("rattled", "dynamics") or group.count is None:
        return group.count
    return group.count * getattr(group, "copies", 1)


def groups_of(recipe: Recipe, split: Split) -> list[Group]:
    """Of one split."""
    return [group for group in recipe.structures.groups if group.split == split]


def moving_groups(recipe: Recipe) -> list[DynamicsGroup]:
    """Those that teacher dynamics makes."""
    return [group for group in recipe.structures.groups if group.kind == "dynamics"]
