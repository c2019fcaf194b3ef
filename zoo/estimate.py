"""What a recipe would take: data, structures, labels, bytes, hours and memory, and what of it is missing here.

It asks no network, writes nothing and takes seconds. Data that are here are counted until the time for it is up, which
is looked at between frames; a large file that has to be decompressed before its first frame is seen is left unread. A
teacher that can run here is asked about one structure, and its rate times the count is the hours; where no structure is
here, the student takes its steps on one that is made up.
"""

import importlib.util
import math
import resource
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import numpy as np
import torch
from ase import Atoms

from zoo.artifact import DTYPES
from zoo.calculator import check_elements as check_known
from zoo.config import read_yaml
from zoo.data.frame import Frame
from zoo.data.labels import draw_probes
from zoo.data.readers import read_frames
from zoo.data.sources import get_file, get_source
from zoo.data.store import find_file
from zoo.data.structures import check_elements, find_data, find_own, frames, perfect_crystal, rattled
from zoo.data.subsets import data_terms, passes, split_of
from zoo.errors import ConfigError, UnknownNameError, ZooError
from zoo.evaluate.compare import require_packages
from zoo.licences import check_terms
from zoo.neighbors import build_graph
from zoo.potential import Potential, given
from zoo.recipe import DynamicsGroup, Filters, FramesGroup, Group, OwnData, Recipe, Split, Subset, SubsetGroup
from zoo.run import Run, Stage
from zoo.students import HEAVY, build_student
from zoo.teacher_facts import teacher_facts, teacher_terms, why_not
from zoo.teachers import absent

SPLITS: tuple[Split, ...] = get_args(Split)
COUNTING_SECONDS = 6.0  # of all subsets together
_LARGE = 20_000_000  # bytes; of a larger file of frames only a few are read, of a larger archive none
_FEW = 50
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")  # first bytes
_STREAMED = ("extxyz", "mptrj-json")  # formats whose first frame is read before the rest of a file
_SLOW = 3.0  # s; a teacher that takes longer is not asked for a product too
_PATIENCE = 10.0  # s; a first call that takes longer, though it prepares what later ones find ready, is the only one
_BATCH = 512  # atoms of the batch that a step is timed with, at most
_STEP_ATOMS = 128  # of a larger structure no step is measured: one of GemNet on 370 atoms takes over 5 GiB
_MADE_SIDE = 4  # sites along an edge of a structure that is made up, at most
_SPACING, _JITTER = 2.2, 0.6  # Å; its atoms are on a grid, each moved by as much, so that two are 1 Å apart or more
_NONE_HERE = "no structure was found here"
_STEP_CALLS = 3  # what a step costs of a network that goes on from its teacher's weights: as many of its calls
_PRODUCT_CALLS = 2  # what a Hessian product costs of a teacher too slow to be asked for one

_PACKAGES = {"spice": "h5py", "lmdb": "lmdb"}  # that readers of a format need

# The parts of a recipe that a stage depends on beside those of the stages before it.
_SECTIONS: dict[Stage, tuple[str, ...]] = {
    "structures": ("structures", "seed", "teacher"),
    "labels": ("labels",),
    "train": ("student", "training", "loss", "exploration"),
    "twin": ("student", "training", "loss", "exploration"),
    "evaluation": ("evaluation",),
    "model": ("name", "purpose", "subset", "licence"),
}


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
        facts = [self.name, "size unknown" if self.bytes is None else _size(self.bytes)]
        facts += [f"from {self.host}"] if self.host else []
        facts += [self.licence] if self.licence else []
        here = "here, too large an archive to be counted" if self.unread else "here"
        return f"{', '.join(facts)}: {here if self.here else f'missing, {self.remedy}'}"


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


@dataclass(frozen=True)
class Rate:
    """Seconds, measured here on one structure of this size."""

    atoms: int
    call: float | None  # of the teacher, for energy and forces
    product: float | None  # of the teacher, for a product of the Hessian
    step: float | None  # of training, a structure
    unknown: str = ""  # why the teacher has none
    no_step: str = ""  # why the student has none
    made_up: int = 0  # atoms of the made-up structure that the student saw instead, if it did
    memory: int | None = None  # bytes, the most that the process had


_UNMEASURED = Rate(0, None, None, None, unknown="not measured", no_step="not measured")


@dataclass(frozen=True)
class Estimate:
    """What is known of a run before it is begun."""

    run: Run
    needs: tuple[Need, ...]
    splits: dict[Split, Count]
    products: int | None  # of the Hessian
    label_bytes: int | None
    moves: int  # steps of teacher dynamics
    steps: int | None  # of training
    rate: Rate
    label_hours: float | None
    training_hours: float | None  # of student and twin together, about
    missing: tuple[str, ...]
    standing: tuple[str, ...] = field(default=())


_Read = dict[str, list[Atoms]]  # frames of files, by what they are chosen by
_File = tuple[Path, str, str | None]  # with its format, and which members of an archive are read


@dataclass
class _Scan:
    """What was seen of a subset's frames, and whether these are all of them."""

    sizes: dict[Split, list[int]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    numbers: dict[Split, set[int]] = field(default_factory=lambda: {split: set() for split in SPLITS})  # atomic
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
            self.first = self.first or frame.atoms


def estimate(run: Run, *, measure: bool = True) -> Estimate:
    """What a run would take; ``measure`` asks the teacher about one structure and the student for a few steps.

    Raises nothing that a recipe may lack here: what is missing is listed.
    """
    recipe = run.recipe
    missing = _lacking(run)
    needs = _needs(recipe, missing)
    scans = _scan_all(recipe, missing)
    counts, sample = _count_all(recipe, scans, missing)
    splits = {split: Count.sum([counts[group.name] for group in _groups(recipe, split)]) for split in SPLITS}
    labelled, train = Count.sum([splits[split] for split in recipe.labelled]), splits["train"].structures
    training = recipe.training
    steps = training.steps if training.epochs is None else None if train is None else training.steps_of(train)
    rate = _measured(run, sample, _mean_size([*splits.values(), *counts.values()])) if measure else _UNMEASURED
    if measure and sample is not None and rate.unknown:
        missing.append(f"teacher {recipe.teacher.name}: {rate.unknown}")
    return Estimate(
        run=run,
        needs=tuple(needs),
        splits=splits,
        products=_products(recipe, labelled),
        label_bytes=_label_bytes(run, labelled),
        moves=sum(group.settle + group.count * group.interval for group in _moving(recipe)),
        steps=steps,
        rate=rate,
        label_hours=_label_hours(recipe, labelled, rate),
        training_hours=_training_hours(recipe, Count.sum(list(splits.values())), steps, rate),
        missing=tuple(dict.fromkeys(missing)),
        standing=tuple(_standing(run)),
    )


def text(found: Estimate) -> str:
    """An estimate in a few lines."""
    run, recipe = found.run, found.run.recipe
    lines = [f"{recipe.name}: {recipe.purpose}", f"teacher {recipe.teacher.name}, run folder {run.folder}", ""]
    lines += [f"data        {need}" for need in found.needs]
    lines += [_split_line(recipe, split, count) for split, count in found.splits.items()]
    calls = Count.sum([found.splits[split] for split in recipe.labelled]).structures
    training, whose = recipe.training, "student and twin" if recipe.distils else "the student alone"
    lines += [
        f"labels      {_number(found.products)} Hessian products ({recipe.labels.probes}), {found.moves} steps of "
        "teacher dynamics",
        f"            {_number(calls)} energies with forces, {_size(found.label_bytes)} on disk; {_label_time(found)}",
        f"training    {_number(found.steps)} steps of {training.batch_size} structures, {whose}",
        f"            {_training_time(found)}",
        *_exploration_lines(recipe),
        f"memory      {_memory(found.rate)}",
        *(f"missing     {line}" for line in found.missing),
        "",
        *found.standing,
    ]
    return "\n".join(lines)


# --- what is missing -----------------------------------------------------------------------------------


def _lacking(run: Run) -> list[str]:
    """What of teacher, packages and terms is not as the recipe wants it."""
    recipe, missing = run.recipe, []
    name = recipe.teacher.name
    why = why_not(name) if run.handed is None else None
    missing += [f"teacher {name}: {why}"] if why else []
    for key, subset in recipe.structures.subsets.items():
        missing += _absent(_PACKAGES.get(_format(subset) or "", ""), f"subset {key}")
        missing += _absent("spglib" if subset.filters.space_group else "", f"subset {key}")
    return missing + _errors(require_packages) + _errors(lambda: _check_terms(run))


def _absent(package: str, whose: str) -> list[str]:
    if not package or importlib.util.find_spec(package) is not None:
        return []
    return [f"{whose}: package {package} is not installed; run: pip install {package}"]


def _errors(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except ZooError as error:
        return [str(error)]
    return []


def _check_terms(run: Run) -> None:
    """Raises LicenceError; of data without terms the lines of data tell."""
    recipe = run.recipe
    sources = [*teacher_terms(recipe.teacher.name, run.handed), *data_terms(recipe)]
    check_terms(recipe.name, recipe.licence, sources)


def _format(subset: Subset) -> str | None:
    if subset.own is not None:
        return subset.own.format
    try:
        return get_source(subset.source or "").format
    except UnknownNameError:
        return None


def _needs(recipe: Recipe, missing: list[str]) -> list[Need]:
    """All files of subsets, each once; what no source has, and what is to be fetched, is added to what is missing."""
    needs: dict[str, Need] = {}
    for subset in recipe.structures.subsets.values():
        try:
            needs |= {need.name: need for need in _files(subset)}
        except UnknownNameError as error:
            missing.append(str(error))
        missing += _errors(partial(_check_own, subset.own))
    missing += _fetches(list(needs.values()))
    return list(needs.values())


def _files(subset: Subset) -> Iterator[Need]:
    """Raises UnknownNameError for a source, or a file of it, that there is not."""
    if subset.own is not None:
        remedy = "correct its path, or set ZOO_DATA to the folder that holds it"
        own = _own(subset.own)
        size = own.stat().st_size if own is not None and own.is_file() else None
        unread = own is not None and _is_slow(own, subset.own.format)
        yield Need(subset.own.path, size, None, None, own is not None, remedy, unread=unread)
        return
    source = get_source(subset.source or "")
    for key in subset.files or source.files:
        file, path = get_file(source, key), find_file(source, key)
        size = file.bytes if path is None else path.stat().st_size
        remedy = f"zoo data fetch {source.name} --file {key}"
        host = urlsplit(file.urls[0]).hostname
        unread = path is not None and _is_slow(path, source.format)
        name = f"{source.name}/{file.name}"
        yield Need(name, size, host, source.licence, path is not None, remedy, source.name, key, unread)


def _check_own(data: OwnData | None) -> None:
    """Raises IntegrityError where a file that is here, and not too large to be read now, has another digest."""
    path = None if data is None else _own(data)
    if data is not None and path is not None and path.is_file() and path.stat().st_size < _LARGE:
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
    return lines + (_absent("requests", "data") if sources else [])


def _own(data: OwnData) -> Path | None:
    """Where a file of the user's own is, unverified."""
    try:
        return find_own("structures.subsets", data.path, None)
    except UnknownNameError:
        return None


# --- structures and atoms ------------------------------------------------------------------------------


def _scan_all(recipe: Recipe, missing: list[str]) -> dict[str, _Scan]:
    subsets, scans = recipe.structures.subsets, {}
    for name, subset in subsets.items():
        scans[name] = _Scan()
        try:
            _scan(subset, scans[name], time.monotonic() + COUNTING_SECONDS / len(subsets))
        except ZooError as error:
            missing.append(f"subset {name}: {error}")
    return scans


def _scan(subset: Subset, scan: _Scan, deadline: float) -> None:
    """Looks at the frames that are here until the time is up. Raises what readers and filters raise."""
    files = _files_here(subset)
    if files is None or any(_is_slow(path, form) for path, form, _ in files):
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
        own = _own(subset.own)
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


def _is_slow(path: Path, form: str) -> bool:
    """Whether much has to be decompressed before the first frame: no deadline could be kept meanwhile."""
    if not path.is_file() or path.stat().st_size <= _LARGE:
        return False
    with path.open("rb") as file:
        compressed = file.read(6).startswith(_COMPRESSED)
    return (compressed and form not in _STREAMED) or tarfile.is_tarfile(path)


def _count_all(recipe: Recipe, scans: dict[str, _Scan], missing: list[str]) -> tuple[dict[str, Count], Atoms | None]:
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


def _refused(recipe: Recipe, group: SubsetGroup, scan: _Scan) -> list[str]:
    """What the run will refuse of a group of a subset, as far as frames were seen."""
    seen = Atoms(sorted(scan.numbers[group.split]))
    strange = _errors(lambda: check_elements(group, [seen], recipe.student.elements))
    short = _shortage(group, scan) if scan.complete else ""
    return [*strange, short] if short else strange


def _shortage(group: SubsetGroup, scan: _Scan) -> str:
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


def _count(recipe: Recipe, group: Group, scans: dict[str, _Scan], read: _Read) -> tuple[Count, Atoms | None]:
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
    few = find_data(group).stat().st_size > _LARGE and group.count > _FEW
    still = {"count": _FEW if few else group.count, "copies": 1, "displacement": (0.0, 0.0), "strain": 0.0}
    wanted = group.model_copy(update=still)
    key = wanted.model_dump_json(exclude={"name", "split", "shared"})
    if key not in read:
        read[key] = frames(wanted, recipe.seed)
    check_elements(group, read[key], recipe.student.elements)
    sizes = [len(atoms) for atoms in read[key]]
    return (_about(_asked(group), sizes) if few else Count.of(sizes * group.copies)), read[key][0]


def _count_subset(group: SubsetGroup, subset: Subset, scan: _Scan) -> Count:
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


def _mean_size(counts: Sequence[Count]) -> int | None:
    """Atoms of a structure, by the first count that knows."""
    known = ((count.structures, count.atoms) for count in counts)
    return next((round(atoms / structures) for structures, atoms in known if structures and atoms), None)


def _asked(group: Group) -> int | None:
    """How many structures a group asks for, where it says so."""
    if group.kind in ("rattled", "dynamics") or group.count is None:
        return group.count
    return group.count * getattr(group, "copies", 1)


def _groups(recipe: Recipe, split: Split) -> list[Group]:
    return [group for group in recipe.structures.groups if group.split == split]


def _moving(recipe: Recipe) -> list[DynamicsGroup]:
    return [group for group in recipe.structures.groups if group.kind == "dynamics"]


# --- labels --------------------------------------------------------------------------------------------


def _products(recipe: Recipe, count: Count) -> int | None:
    stored = recipe.labels.stored_probes
    if stored is None:
        return None if count.atoms is None else 3 * count.atoms
    return None if count.structures is None else stored * count.structures


def _label_bytes(run: Run, count: Count) -> int | None:
    """What ``zoo.data.labels`` writes: energy, forces, stress, products, and their probes unless these are all rows."""
    if count.structures is None or count.atoms is None or count.squares is None:
        return None
    recipe = run.recipe
    labels, facts = recipe.labels, teacher_facts(recipe.teacher.name, run.handed)
    number = DTYPES[recipe.teacher.dtype].itemsize
    stored = labels.stored_probes
    probe = 4 if labels.probes == "gaussian" else 1
    products = 9 * count.squares * number if stored is None else 3 * stored * count.atoms * (number + probe)
    each = 8 + 9 * number + 16  # energy, stress, two offsets
    atom = 3 * number + 8 * ("atomic_energies" in labels.extras)
    if "features" in labels.extras:
        if facts is None or facts.traits is None:  # of one's own, which only the loaded teacher can tell
            return None
        atom += facts.traits.features * number
    return count.structures * each + count.atoms * atom + products


def _label_hours(recipe: Recipe, count: Count, rate: Rate) -> float | None:
    """Seconds an atom times atoms: of a call for each structure and move, and of all products."""
    if rate.call is None or rate.product is None or count.atoms is None or count.squares is None:
        return None
    stored = recipe.labels.stored_probes
    rows = 3 * count.squares if stored is None else stored * count.atoms
    crystal, moves = recipe.structures.crystal, 0
    for group in _moving(recipe):
        assert crystal is not None  # the schema sees to it
        size = len(perfect_crystal(crystal, group.supercell, group.cell))
        moves += (group.settle + group.count * group.interval) * size
    return (rate.call * (count.atoms + moves) + rate.product * rows) / rate.atoms / 3600


def _training_hours(recipe: Recipe, count: Count, steps: int | None, rate: Rate) -> float | None:
    """Of the student and, where it has one, its twin, as if each step of that cost as much."""
    if rate.step is None or steps is None or count.atoms is None or not count.structures:
        return None
    size = count.atoms / count.structures / (rate.made_up or rate.atoms)
    trainings = 2 if recipe.distils else 1
    return trainings * steps * recipe.training.batch_size * rate.step * size / 3600


# --- measured ------------------------------------------------------------------------------------------


def _measured(run: Run, sample: Atoms | None, size: int | None) -> Rate:
    """What teacher and student take for one structure; the student for a made-up one where that is none, or large."""
    recipe, seen = run.recipe, sample
    call, product, unknown = _teacher_rate(run, sample)
    if sample is not None and len(sample) > _STEP_ATOMS:
        seen = _made_up(recipe.student.elements, len(sample))
    elif sample is None and size is not None:
        seen = _made_up(recipe.student.elements, size)
    step, no_step = _step_rate(recipe, seen)
    if step is None and call is not None and recipe.training.start == "teacher":
        step, seen = _STEP_CALLS * call, sample
    made_up = 0 if seen is None or seen is sample else len(seen)
    memory = None if call is None and step is None else _peak_memory()
    return Rate(made_up if sample is None else len(sample), call, product, step, unknown, no_step, made_up, memory)


def _teacher_rate(run: Run, sample: Atoms | None) -> tuple[float | None, float | None, str]:
    """Of a call and of a product, or why there is none."""
    if sample is None:
        cannot = run.handed is None and absent(run.recipe.teacher.name) is not None
        return None, None, "the teacher cannot run here" if cannot else _NONE_HERE
    try:
        return *_time_teacher(run.recipe, run.teacher.potential, sample), ""
    except ZooError as error:
        return None, None, f"the teacher cannot run here ({str(error).partition(';')[0]})"


def _step_rate(recipe: Recipe, atoms: Atoms | None) -> tuple[float | None, str]:
    """Of a step of training, or why there is none."""
    if recipe.student.architecture in HEAVY:
        return None, f"a step of {recipe.student.architecture} takes gigabytes, and is not taken in a dry run"
    if atoms is None:
        return None, _NONE_HERE
    if strange := sorted(set(atoms.get_chemical_symbols()) - set(recipe.student.elements)):
        return None, f"student.elements lacks {', '.join(strange)} of the structure to measure on"
    try:
        return _time_step(recipe, atoms), ""
    except ZooError as error:
        return None, f"the student cannot be measured ({str(error).partition(';')[0]})"


def _made_up(elements: Sequence[str], size: int) -> Atoms:
    """Atoms at random, as dense as in a molecule: about as many as ``size``, or a crystal of fewer, for larger ones."""
    side = min(math.ceil(max(size, 1) ** (1 / 3)), _MADE_SIDE)
    sites = np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3) - (side - 1) / 2  # (sites, 3)
    nearest = sites[np.argsort(np.linalg.norm(sites, axis=1), kind="stable")[: max(size, 1)]]
    jitter = np.random.default_rng(0).uniform(-_JITTER, _JITTER, nearest.shape)
    symbols = [elements[place % len(elements)] for place in range(len(nearest))]
    large = size > len(nearest)
    return Atoms(symbols, _SPACING * nearest + jitter, cell=[_SPACING * side] * 3 if large else None, pbc=large)


def _time_teacher(recipe: Recipe, potential: Potential, atoms: Atoms) -> tuple[float, float]:
    """Seconds of a call for energy and forces, and of a product of the Hessian. Raises DomainError."""
    check_known(atoms, potential)
    graph = build_graph(atoms, potential.cutoff, dtype=potential.dtype, device=potential.device)
    call = _seconds(lambda: potential.predict(graph, stress=True))
    labels = recipe.labels
    if labels.probes == "none":
        return call, 0.0
    if call > _SLOW:
        return call, _PRODUCT_CALLS * call
    count = min(labels.stored_probes or 2, 2)
    probes = draw_probes("rademacher", count, len(atoms), torch.Generator().manual_seed(0))
    probes = probes.to(potential.device, potential.dtype)
    if labels.forward_mode:
        return call, _seconds(lambda: potential.force_columns(graph, probes)) / count
    both = _seconds(lambda: potential.predict(graph, stress=True, probes=probes, side=labels.side))
    return call, max(both - call, 0.0) / count


def _time_step(recipe: Recipe, atoms: Atoms) -> float:
    """Seconds, a structure of a batch of copies, of the backward pass through all that the loss weighs."""
    loss, config = recipe.loss, recipe.student.model_copy(update={"teacher_channels": 0})
    student = build_student(config, torch.Generator().manual_seed(0)).to(DTYPES[recipe.training.dtype])
    copies = max(min(recipe.training.batch_size, _BATCH // len(atoms)), 1)
    graph = build_graph([atoms] * copies, config.cutoff, dtype=student.dtype)
    student.calibrate([graph])
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    probes = None
    if loss.hessian > 0:
        drawn = draw_probes("rademacher", loss.probes_per_step, graph.num_atoms, torch.Generator().manual_seed(0))
        probes = drawn.to(student.dtype)

    def step() -> None:
        answer = student.predict(
            graph, stress=loss.stress > 0, probes=probes, gradient=loss.gradient > 0, create_graph=True
        )
        parts = [answer.energy, given(answer.forces), answer.stress, answer.hessian_products, answer.energy_gradient]
        total = torch.stack([part.double().square().mean() for part in parts if part is not None]).sum()
        torch.autograd.grad(total, trained, allow_unused=True)

    return _seconds(step) / copies


def _seconds(call: Callable[[], object]) -> float:
    """The quickest of four calls after a first one, for what else runs only makes them slower; fewer where slow."""
    times: list[float] = []
    while len(times) < 5:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        if sum(times) > _PATIENCE:
            break
    return min(times[1:] or times)


def _peak_memory() -> int:
    """Bytes, the most that this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


# --- lines ---------------------------------------------------------------------------------------------


def _split_line(recipe: Recipe, split: Split, count: Count) -> str:
    groups = len(_groups(recipe, split))
    atoms = "?" if count.atoms is None else str(count.atoms)
    about = "" if count.exact or count.structures is None else ", about"
    return f"{split:<11} {_number(count.structures)} structures in {groups} groups, {atoms} atoms{about}"


def _number(count: int | None) -> str:
    return f"{'?' if count is None else count:>6}"


def _size(count: int | None) -> str:
    if count is None:
        return "? bytes"
    power = min(int(math.log(max(count, 1), 1000)), 4)
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def _hours(hours: float) -> str:
    return f"{hours * 60:.2g} minutes" if hours < 1 else f"{hours:.3g} hours"


def _label_time(found: Estimate) -> str:
    rate = found.rate
    if rate.call is None or rate.product is None:
        return f"rate unknown: {rate.unknown}"
    pace = f"{rate.call:.2g} s a call and {rate.product:.2g} s a product for {rate.atoms} atoms"
    return f"{pace}, {'?' if found.label_hours is None else _hours(found.label_hours)} in all"


def _training_time(found: Estimate) -> str:
    rate = found.rate
    if rate.step is None:
        return f"rate unknown: {rate.no_step}"
    what = f"made-up structure of {rate.made_up}" if rate.made_up else f"structure of {rate.atoms}"
    pace = f"{rate.step:.2g} s a {what} atoms"
    return f"{pace}, {'?' if found.training_hours is None else f'about {_hours(found.training_hours)}'} in all"


def _memory(rate: Rate) -> str:
    if rate.memory is None:
        return "unknown"
    whose = "a structure" if rate.step is None else f"a batch of at most {max(_BATCH, rate.atoms)} atoms"
    without = ", without the teacher" if rate.call is None else ""
    return f"{rate.memory / 2**30:.2g} GiB for {whose}{without}; larger ones take more"


def _exploration_lines(recipe: Recipe) -> list[str]:
    section = recipe.exploration
    if section is None:
        return []
    return [
        f"exploration {section.rounds * section.budget:>6} structures at most, {section.budget} in each of "
        f"{section.rounds} rounds of {section.kind}, and as many trainings more"
    ]


def _standing(run: Run) -> list[str]:
    """A line a stage: whether it is done, and whether what is there was made from this recipe."""
    meaning = {"to do": "to do", "begun": "begun, will go on", "done": "done"}
    other = "made from another recipe: " + (
        "will be deleted and made anew" if run.replace else "refused, see --replace"
    )
    before = run.folder / "recipe.yaml"
    earlier = read_yaml(Recipe, before) if before.exists() else run.recipe
    lines, differs = [], False
    for stage in run.stages:
        here, there = (recipe.model_dump(include=set(_SECTIONS[stage])) for recipe in (run.recipe, earlier))
        differs = differs or here != there
        state = run.state(stage)
        lines.append(f"{stage:<11} {other if differs and state != 'to do' else meaning[state]}")
    return lines
