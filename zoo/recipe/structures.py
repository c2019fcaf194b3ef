"""Which structures a recipe learns from: made of a crystal, frames of files, subsets of data sets, divided."""

from itertools import combinations
from typing import Annotated, Literal

from ase.build import bulk
from ase.data import atomic_numbers
from ase.formula import Formula
from pydantic import AfterValidator, Field, PositiveInt, model_validator

from zoo.config import Config
from zoo.licences import LICENCES

Split = Literal["train", "validation", "test"]
Cells = tuple[PositiveInt, PositiveInt, PositiveInt]
UnitCell = Literal["conventional", "primitive"]


def _is_element(symbol: str) -> str:
    if symbol not in atomic_numbers or symbol == "X":
        raise ValueError(f"{symbol!r} is not an element")
    return symbol


def _is_formula(text: str) -> str:
    try:
        symbols = list(Formula(text).count())
    except ValueError as error:
        raise ValueError(f"{text!r} is not a formula; expected elements and their numbers, as in C2H6O") from error
    if not symbols:
        raise ValueError(f"{text!r} is a formula without elements; expected one as C2H6O")
    for symbol in symbols:
        _is_element(symbol)
    return text


Symbol = Annotated[str, AfterValidator(_is_element)]
FormulaText = Annotated[str, AfterValidator(_is_formula)]


class Crystal(Config):
    """A perfect crystal in its conventional cell, as ``ase.build.bulk`` knows it."""

    formula: str
    prototype: Literal["diamond", "zincblende", "rocksalt", "cesiumchloride", "fluorite", "sc", "fcc", "bcc"]
    lattice_constant: float = Field(gt=1, le=30)  # Å

    @model_validator(mode="after")
    def _can_be_built(self) -> "Crystal":
        try:
            bulk(self.formula, self.prototype, a=self.lattice_constant, cubic=True)
        except Exception as error:
            raise ValueError(f"no {self.prototype} crystal of {self.formula!r} can be built: {error}") from error
        return self


class RattledGroup(Config):
    """Independent supercells, each strained, sheared and rattled at random."""

    kind: Literal["rattled"]
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    split: Split
    cell: UnitCell = "conventional"
    supercell: Cells  # of that cell
    count: PositiveInt
    displacement: tuple[float, float]  # Å, range of the standard deviation of a coordinate; one value a frame
    strain: float = Field(ge=0, lt=0.5)  # each diagonal element within ±strain
    shear: float = Field(ge=0, lt=0.5)  # each off-diagonal element within ±shear

    @model_validator(mode="after")
    def _ordered(self) -> "RattledGroup":
        low, high = self.displacement
        if not 0 <= low <= high <= 2:
            raise ValueError("displacement is a range [low, high] with 0 ≤ low ≤ high ≤ 2 Å")
        return self


class DynamicsGroup(Config):
    """Snapshots of one trajectory of the teacher: Langevin dynamics at constant temperature and cell."""

    kind: Literal["dynamics"]
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    split: Split
    cell: UnitCell = "conventional"
    supercell: Cells  # of that cell
    count: PositiveInt
    temperature: float = Field(gt=0, le=20000)  # K
    settle: int = Field(0, ge=0)  # steps before the first interval: the trajectory starts on perfect sites
    strain: float = Field(0.0, gt=-0.5, lt=0.5)  # isotropic
    timestep: float = Field(2.0, gt=0, le=10)  # fs
    interval: PositiveInt  # steps between snapshots
    friction: float = Field(0.02, gt=0, le=1)  # 1/fs


class Displaced(Config):
    """What is done to frames: displaced copies, or nothing."""

    copies: PositiveInt = 1  # of each frame, each displaced anew
    displacement: tuple[float, float] = (0.0, 0.0)  # Å, range of the standard deviation of a coordinate
    strain: float = Field(0.0, ge=0, lt=0.5)  # each diagonal element within ±strain, the others within half of it

    @property
    def moved(self) -> bool:
        """Whether frames are displaced, so that the labels of their data set are not theirs."""
        return self.displacement[1] > 0 or self.strain > 0

    @model_validator(mode="after")
    def _displaced_if_copied(self) -> "Displaced":
        low, high = self.displacement
        if not 0 <= low <= high <= 2:
            raise ValueError("displacement is a range [low, high] with 0 ≤ low ≤ high ≤ 2 Å")
        if self.copies > 1 and not self.moved:
            raise ValueError("copies of a frame that is not displaced are all the same; give a displacement")
        return self


class FramesGroup(Displaced):
    """Frames of a file by their number, with the labels of its data set where it has them, or displaced copies.

    The file is sought in the folders that ``ZOO_DATA`` names, unless its path is absolute.
    """

    kind: Literal["frames"]
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    split: Split
    file: str = Field(min_length=1)  # any format that ASE reads, gzipped or not
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    element: Symbol | None = None  # only frames that hold this element
    max_atoms: PositiveInt | None = None  # only frames up to this size
    max_force: float | None = Field(None, gt=0)  # eV/Å; only frames whose labelled force components stay below
    start: int = Field(0, ge=0)  # the first frame of those that remain
    stride: PositiveInt = 1
    count: PositiveInt
    shared: bool = False  # the same frames stand in other splits too, displaced otherwise

    def overlaps(self, other: "FramesGroup") -> bool:
        """Whether a frame belongs to both."""
        one, two = ((group.sha256, group.element, group.max_atoms, group.max_force) for group in (self, other))
        if one != two:
            return self.sha256 == other.sha256
        frames, others = (
            range(group.start, group.start + group.stride * group.count, group.stride) for group in (self, other)
        )
        return bool(set(frames) & set(others))


class Filters(Config):
    """Which frames of a data set belong to a subset: those that pass all that is given."""

    element: Symbol | None = None  # frames that hold it
    elements: tuple[Symbol, ...] | None = Field(None, min_length=1)  # frames that hold no other
    formula: FormulaText | None = None  # frames of just these atoms, in any order: C2H6O
    molecules: tuple[str, ...] | None = Field(None, min_length=1)  # by the name or SMILES that the data set has
    parts: tuple[str, ...] | None = Field(None, min_length=1)  # of the data set, by its own names for them
    charge: int | None = None  # e, of the whole frame
    space_group: str | None = None  # Hermann and Mauguin's short symbol, found from the structure by spglib: Pm-3m
    symprec: float = Field(0.01, gt=0, le=1)  # Å, the tolerance of spglib
    min_band_gap: float | None = Field(None, ge=0)  # eV, as the data set has it
    max_band_gap: float | None = Field(None, ge=0)
    min_atoms: PositiveInt | None = None
    max_atoms: PositiveInt | None = None
    max_force: float | None = Field(None, gt=0)  # eV/Å; all labelled force components stay below

    @model_validator(mode="after")
    def _ranges(self) -> "Filters":
        for low, high in (("min_band_gap", "max_band_gap"), ("min_atoms", "max_atoms")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(f"{low} is {least}, above {high}, which is {most}")
        return self


class Division(Config):
    """Which frames of a subset belong to which split.

    Whole groups go to one side, decided by a hash of the group's name and the salt alone: no group stands on two
    sides, and what was decided stays so when frames are added or come in another order. Blocks are counted in the file
    or trajectory: there, add frames at the end. ``frame`` takes each frame for
    a group of its own, as Amin et al. do: neighbours in a trajectory then stand on both sides, for comparison only.
    """

    by: Literal["molecule", "material", "trajectory", "block", "frame"]
    train: float = Field(ge=0, le=1)
    validation: float = Field(ge=0, le=1)
    test: float = Field(ge=0, le=1)
    block: PositiveInt | None = None  # consecutive frames of a trajectory that stay together, of by: block
    salt: str = ""

    @model_validator(mode="after")
    def _whole(self) -> "Division":
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError("train, validation and test are parts of the whole; make their sum 1")
        if (self.by == "block") != (self.block is not None):
            raise ValueError("block is the number of frames of a block; give it with by: block, and only there")
        return self


class OwnData(Config):
    """A file or folder of the user's own, sought in the folders of ``ZOO_DATA`` unless its path is absolute.

    Units are those that the format has, or that the file names; what is read is in eV and Å.
    """

    path: str = Field(min_length=1)
    format: Literal["extxyz", "ase-db", "lmdb", "deepmd", "sgdml", "rmd17", "spice", "mptrj-json", "phonopy"]
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")  # of the file, or of all files of a folder


class Expected(Config):
    """About how many frames a subset has: what a dry run counts with where the data are not there."""

    frames: PositiveInt
    atoms: PositiveInt  # of a frame, on average


class Subset(Config):
    """A part of a data set: a source of zoo or a file of one's own, filtered, and divided into splits."""

    source: str | None = None  # a name of ``zoo data list``
    files: tuple[str, ...] | None = Field(None, min_length=1)  # of the source; all of them without
    own: OwnData | None = None
    filters: Filters = Filters()
    division: Division
    expected: Expected | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "Subset":
        if (self.source is None) == (self.own is None):
            raise ValueError("a subset is of one source; give source, a name of zoo data list, or own, not both")
        if self.own is not None and self.files is not None:
            raise ValueError("files are those of a source; remove them, own names its file")
        return self


class SubsetGroup(Displaced):
    """The frames of one split of a subset, with the labels of its data set where it has them, or displaced copies."""

    kind: Literal["subset"]
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    split: Split
    subset: str  # a key of structures.subsets
    count: PositiveInt | None = None  # so many frames, those whose hashes are lowest; all without


class DataSet(Config):
    """A data set that frames are of, and the terms that it is under."""

    name: str = Field(min_length=1)
    licence: str  # SPDX

    @model_validator(mode="after")
    def _known(self) -> "DataSet":
        if self.licence not in LICENCES:
            raise ValueError(f"licence {self.licence!r} is unknown; known are {', '.join(LICENCES)}")
        return self


Group = Annotated[RattledGroup | DynamicsGroup | FramesGroup | SubsetGroup, Field(discriminator="kind")]


class StructuresSection(Config):
    """Which structures are learned from, and which are kept for the test. A group never spans two splits."""

    crystal: Crystal | None = None  # what rattled and dynamics groups are made of; phonons are measured on it
    subsets: dict[str, Subset] = Field(default_factory=dict)  # what groups of the kind subset are of
    groups: tuple[Group, ...]
    data: tuple[DataSet, ...] = ()  # what the frames of files are of; a student follows their terms

    @property
    def labelled(self) -> bool:
        """Whether all structures to train and validate on are frames as they are, with labels of their data set."""
        learned = [group for group in self.groups if group.split != "test"]
        return all(group.kind in ("frames", "subset") and not group.moved for group in learned)

    @model_validator(mode="after")
    def _complete(self) -> "StructuresSection":
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            raise ValueError("two groups have the same name")
        made = [group.name for group in self.groups if group.kind in ("rattled", "dynamics")]
        if made and self.crystal is None:
            raise ValueError(f"group {made[0]} is made of a crystal, and there is none; give structures.crystal")
        self._check_frames()
        self._check_subsets()
        sides: dict[tuple[str, Cells], str] = {}
        for group in self.groups:
            if group.kind == "rattled" and sides.setdefault((group.cell, group.supercell), group.split) != group.split:
                raise ValueError(
                    f"group {group.name} has the supercell {list(group.supercell)} of another split; "
                    "a supercell belongs to one split"
                )
        missing = {"train", "validation", "test"} - {group.split for group in self.groups}
        if missing:
            raise ValueError(f"no group is in the split {', '.join(sorted(missing))}")
        return self

    def _check_frames(self) -> None:
        """A frame belongs to one split, unless its groups say that they share it."""
        frames = [group for group in self.groups if group.kind == "frames"]
        for one, two in combinations(frames, 2):
            if one.split != two.split and not (one.shared and two.shared) and one.overlaps(two):
                raise ValueError(
                    f"groups {one.name} and {two.name} hold the same frames in two splits; choose other frames, or say "
                    "shared: true in both where they are displaced otherwise"
                )

    def _check_subsets(self) -> None:
        """Each group is of a subset that there is, and the only one of its split."""
        seen: dict[tuple[str, Split], str] = {}
        groups = [group for group in self.groups if group.kind == "subset"]
        for group in groups:
            if group.subset not in self.subsets:
                known = ", ".join(self.subsets) or "none"
                raise ValueError(f"group {group.name} is of {group.subset!r}; structures.subsets has {known}")
            if getattr(self.subsets[group.subset].division, group.split) == 0:
                raise ValueError(
                    f"group {group.name} is the {group.split} split of {group.subset}, whose division gives it "
                    f"nothing; raise structures.subsets.{group.subset}.division.{group.split}"
                )
            other = seen.setdefault((group.subset, group.split), group.name)
            if other != group.name:
                raise ValueError(f"groups {other} and {group.name} are both {group.split} of {group.subset}; join them")
        if unused := set(self.subsets) - {group.subset for group in groups}:
            raise ValueError(f"no group is of the subset {', '.join(sorted(unused))}; give one, or remove it")
