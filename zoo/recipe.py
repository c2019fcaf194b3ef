"""A recipe: everything that decides the numbers of one run, and nothing else. It stands alone and names no code."""

from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from ase.build import bulk
from ase.data import atomic_numbers
from pydantic import Field, PositiveInt, model_validator

from zoo.config import Config, digest, read_yaml
from zoo.derivatives import Side
from zoo.errors import ConfigError, UnknownNameError
from zoo.licences import LICENCES
from zoo.naming import is_engine_name
from zoo.students import StudentConfig
from zoo.teachers import teacher_names

Split = Literal["train", "validation", "test"]
Cells = tuple[PositiveInt, PositiveInt, PositiveInt]
UnitCell = Literal["conventional", "primitive"]
Weight = Annotated[float, Field(ge=0)]
Precision = Literal["float32", "float64"]
Norm = Literal["l2", "l1", "squared", "huber"]
Source = Literal["teacher", "dataset"]
Term = Literal["energy", "force", "stress", "teacher_force", "gradient", "hessian", "atomic_energy", "feature"]


class TeacherSection(Config):
    """Who teaches, and in which precision its labels are computed."""

    name: str
    dtype: Precision = "float32"

    @model_validator(mode="after")
    def _exists(self) -> "TeacherSection":
        if self.name not in teacher_names():
            raise ValueError(f"no teacher is called {self.name!r}; known are {', '.join(teacher_names())}")
        return self


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


class FramesGroup(Config):
    """Frames of a file, with the labels of its data set where it has them, or displaced copies of frames.

    The file is sought in the folders that ``ZOO_DATA`` names, unless its path is absolute.
    """

    kind: Literal["frames"]
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    split: Split
    file: str = Field(min_length=1)  # any format that ASE reads, gzipped or not
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    element: str | None = None  # only frames that hold this element
    max_atoms: PositiveInt | None = None  # only frames up to this size
    max_force: float | None = Field(None, gt=0)  # eV/Å; only frames whose labelled force components stay below
    start: int = Field(0, ge=0)  # the first frame of those that remain
    stride: PositiveInt = 1
    count: PositiveInt
    copies: PositiveInt = 1  # of each frame, each displaced anew
    displacement: tuple[float, float] = (0.0, 0.0)  # Å, range of the standard deviation of a coordinate
    strain: float = Field(
        0.0, ge=0, lt=0.5
    )  # each diagonal element within ±strain, each off-diagonal within half of it
    shared: bool = False  # the same frames stand in other splits too, displaced otherwise

    @property
    def moved(self) -> bool:
        """Whether frames are displaced, so that the labels of the file are not theirs."""
        return self.displacement[1] > 0 or self.strain > 0

    def overlaps(self, other: "FramesGroup") -> bool:
        """Whether a frame belongs to both."""
        one, two = ((group.sha256, group.element, group.max_atoms, group.max_force) for group in (self, other))
        if one != two:
            return self.sha256 == other.sha256
        frames, others = (
            range(group.start, group.start + group.stride * group.count, group.stride) for group in (self, other)
        )
        return bool(set(frames) & set(others))

    @model_validator(mode="after")
    def _fits(self) -> "FramesGroup":
        low, high = self.displacement
        if not 0 <= low <= high <= 2:
            raise ValueError("displacement is a range [low, high] with 0 ≤ low ≤ high ≤ 2 Å")
        if self.copies > 1 and not self.moved:
            raise ValueError("copies of a frame that is not displaced are all the same; give a displacement")
        if self.element is not None and self.element not in atomic_numbers:
            raise ValueError(f"{self.element!r} is not an element")
        return self


class DataSet(Config):
    """A data set that frames are of, and the terms that it is under."""

    name: str = Field(min_length=1)
    licence: str  # SPDX

    @model_validator(mode="after")
    def _known(self) -> "DataSet":
        if self.licence not in LICENCES:
            raise ValueError(f"licence {self.licence!r} is unknown; known are {', '.join(LICENCES)}")
        return self


Group = Annotated[RattledGroup | DynamicsGroup | FramesGroup, Field(discriminator="kind")]


class StructuresSection(Config):
    """Which structures are learned from, and which are kept for the test. A group never spans two splits."""

    crystal: Crystal | None = None  # what rattled and dynamics groups are made of; phonons are measured on it
    groups: tuple[Group, ...]
    data: tuple[DataSet, ...] = ()  # what the frames of files are of; a student follows their terms

    @property
    def labelled(self) -> bool:
        """Whether all structures to train and validate on are frames as they are, with labels of their data set."""
        learned = [group for group in self.groups if group.split != "test"]
        return all(group.kind == "frames" and not group.moved for group in learned)

    @model_validator(mode="after")
    def _complete(self) -> "StructuresSection":
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            raise ValueError("two groups have the same name")
        made = [group.name for group in self.groups if group.kind != "frames"]
        if made and self.crystal is None:
            raise ValueError(f"group {made[0]} is made of a crystal, and there is none; give structures.crystal")
        self._check_frames()
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


class LabelsSection(Config):
    """What the teacher is asked beside energy, forces and stress.

    ``rademacher`` and ``gaussian`` store products of the Hessian with random vectors, ``rows`` stores randomly chosen
    rows of it (products with one-hot vectors), ``dense`` all rows, as Amin et al. do; ``none`` stores no product.
    """

    probes: Literal["rademacher", "gaussian", "rows", "dense", "none"] = "rademacher"
    probes_per_structure: PositiveInt = 2  # of dense all, of none not one
    side: Side = "rows"  # of the Jacobian of a teacher that predicts forces directly; its sides differ
    forward_mode: bool = False  # columns one by one in forward mode: slower, in a fraction of the memory
    extras: tuple[Literal["atomic_energies", "features"], ...] = ()  # what else of each atom is stored
    shard_size: PositiveInt = 8  # structures a file

    @property
    def stored_probes(self) -> int | None:
        """How many products a structure has; None is as many as it has coordinates."""
        return {"none": 0, "dense": None}.get(self.probes, self.probes_per_structure)

    @model_validator(mode="after")
    def _fits(self) -> "LabelsSection":
        if self.forward_mode and self.side != "columns":
            raise ValueError("forward_mode gives columns; set side: columns, or leave it out")
        return self


class HessianSwitch(Config):
    """Lowers the weight of the Hessian, once, when the student is almost as good as its teacher.

    That is when the student's validation error of forces against the data set is less than ``within`` above the
    teacher's (Amin et al., ICLR 2025, as coded: 0.05 and 0.5).
    """

    within: float = Field(0.05, ge=0)
    factor: float = Field(0.5, gt=0, lt=1)


class LossSection(Config):
    """Weights λ of the terms, of which any may be combined; a term that weighs 0 is not computed. Units eV, Å.

    The weight of the Hessian belongs to its probes: an atom's part of H·v sums a whole row for random signs, and is
    one element for a one-hot vector. The paper's 5, 100 and 400 (energy, force, Hessian) are for ``rows``; the recipes
    here give random signs 20 in the place of 400.
    """

    energy: Weight = 0.0  # mean over structures of |ΔE| / atoms
    force: Weight = 0.0  # mean over atoms of |ΔF|
    stress: Weight = 0.0  # mean over structures of |Δσ|; not in the paper
    energy_from: Source = "teacher"  # dataset: the labels of the file, as in the paper
    force_from: Source = "teacher"
    stress_from: Source = "teacher"
    teacher_force: Weight = 0.0  # mean over atoms of |ΔF| from the teacher's, beside those of the data set
    gradient: Weight = 0.0  # mean over atoms of |∂E/∂r + F*|: ties a direct-force student's energy to forces
    hessian: Weight = 0.0  # mean over (probe, atom) of |ΔH·v|
    hessian_from: Literal["stored", "teacher"] = "stored"  # teacher: fresh probes, asked of it at each step
    hessian_switch: HessianSwitch | None = None
    probes_per_step: PositiveInt = 1  # drawn afresh at each step, from the stored ones unless the teacher is asked
    atomic_energy: Weight = 0.0  # mean over atoms of |Δe|, relative to the mean of the element
    feature: Weight = 0.0  # mean over atoms and channels of the teacher's last node features (n2n)
    norms: dict[Term, Norm] = Field(default_factory=dict)  # l2 where not given, squared for feature
    huber_delta: float = Field(0.1, gt=0)  # where huber turns from squared to linear, in units of the term

    @property
    def weights(self) -> dict[Term, float]:
        """The terms that weigh something."""
        return {term: weight for term in get_args(Term) if (weight := getattr(self, term)) > 0}

    def norm(self, term: Term) -> Norm:
        """The norm of a term's differences."""
        return self.norms.get(term, "squared" if term == "feature" else "l2")

    def undistilled(self) -> "LossSection":
        """The same without what only a teacher can give: labels of energies, forces and stress alone."""
        own: dict[str, float | str | None] = dict.fromkeys(
            ("teacher_force", "hessian", "atomic_energy", "feature"), 0.0
        )
        own["hessian_switch"] = None
        if self.force == 0 and self.teacher_force > 0:  # forces of the teacher alone: then it has those
            own |= {"force": self.teacher_force, "force_from": "teacher"}
        return self.model_copy(update=own)

    @model_validator(mode="after")
    def _teaches(self) -> "LossSection":
        if self.energy == self.force == self.stress == self.teacher_force == 0:
            raise ValueError(
                "energy, force, stress and teacher_force all weigh 0, so nothing sets the forces; weigh one"
            )
        if self.hessian_switch is not None and self.force_from == "teacher":
            raise ValueError(
                "hessian_switch compares student and teacher with the forces of a data set; set force_from: dataset"
            )
        if self.hessian_switch is not None and (self.force == 0 or self.hessian == 0):
            raise ValueError("hessian_switch wants a weight of force and of hessian; give both, or remove it")
        return self


class TrainingSection(Config):
    """How the student is fitted: AdamW, linear warm-up, cosine decay, clipping, and an average of the weights."""

    steps: PositiveInt
    batch_size: PositiveInt = 8  # structures at most
    batch_atoms: PositiveInt | None = None  # atoms at most; a structure that is larger comes alone
    batch_edges: PositiveInt | None = None  # edges at most, likewise
    learning_rate: float = Field(2e-3, gt=0, le=1)
    final_learning_rate: float = Field(1e-5, ge=0, le=1)
    warmup_steps: int = Field(50, ge=0)
    weight_decay: float = Field(1e-5, ge=0, le=1)
    ema_decay: float = Field(0.995, ge=0, lt=1)
    clip_norm: float = Field(10.0, gt=0)
    log_every: PositiveInt = 10  # steps
    validate_every: PositiveInt = 250
    checkpoint_every: PositiveInt = 100
    dtype: Precision = "float32"
    compile: bool = False  # the step as one graph: a minute first, then faster; resumed, equal up to rounding

    @model_validator(mode="after")
    def _falls(self) -> "TrainingSection":
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, but there are only {self.steps} steps; set it lower"
            )
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(f"final_learning_rate is above learning_rate, {self.learning_rate}")
        return self


class ExplorationSection(Config):
    """Structures beyond the data set, found by the student, labelled by the teacher, added between rounds of training.

    ``rattle-relax`` displaces training structures at random and relaxes them some steps with the student;
    ``dynamics`` takes snapshots of the student's molecular dynamics. Structures that have come apart are left out.
    """

    kind: Literal["rattle-relax", "dynamics"]
    rounds: PositiveInt = 1  # the student is trained once more after each
    budget: PositiveInt = 16  # structures that the teacher labels in a round
    displacement: tuple[float, float] = (0.05, 0.3)  # Å, of rattle-relax
    relax_steps: PositiveInt = 10  # of rattle-relax, at most
    temperature: float = Field(500.0, gt=0, le=20000)  # K, of dynamics
    timestep: float = Field(1.0, gt=0, le=10)  # fs
    interval: PositiveInt = 50  # steps between snapshots
    friction: float = Field(0.02, gt=0, le=1)  # 1/fs
    max_force: float = Field(30.0, gt=0)  # eV/Å; beyond, for student or teacher, a structure is left out
    closest: float = Field(0.8, gt=0, le=1)  # of the shortest distance in the training set; nearer is left out

    @model_validator(mode="after")
    def _ordered(self) -> "ExplorationSection":
        low, high = self.displacement
        if not 0 < low <= high <= 2:
            raise ValueError("displacement is a range [low, high] with 0 < low ≤ high ≤ 2 Å")
        return self


class EvaluationSection(Config):
    """What is measured of student, twin and teacher."""

    dynamics_supercell: Cells = (2, 2, 2)  # of the conventional cell
    initial_temperature: float = Field(600.0, gt=0)  # K, of the first velocities; half of it remains on perfect sites
    dynamics_timestep: float = Field(1.0, gt=0, le=10)  # fs
    dynamics_steps: PositiveInt = 2000
    teacher_dynamics_supercell: Cells = (2, 1, 1)  # the teacher is slow
    teacher_dynamics_steps: PositiveInt = 600
    phonon_supercell: Cells = (2, 2, 2)  # of the conventional cell
    timing_supercell: Cells = (2, 2, 2)  # of the conventional cell
    timing_repeats: PositiveInt = 20
    timing_threads: PositiveInt = 2  # of each engine


class Lock(Config):
    """What a run was made with; written by zoo into the recipe of a model folder, never needed to start one."""

    teacher_weights_sha256: str
    teacher_package: str
    structures_sha256: str
    labels_sha256: str
    zoo: str
    torch: str


class Recipe(Config):
    """How a teacher is distilled into a student for one subset of chemistry."""

    format: Literal[1]
    name: str
    purpose: str = Field(min_length=10)
    subset: str = Field(pattern=r"^[a-z0-9-]+$")
    licence: str
    seed: int = Field(ge=0, lt=2**32)
    teacher: TeacherSection
    structures: StructuresSection
    labels: LabelsSection = LabelsSection()
    student: StudentConfig
    loss: LossSection
    training: TrainingSection
    exploration: ExplorationSection | None = None
    evaluation: EvaluationSection = EvaluationSection()
    lock: Lock | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "Recipe":
        if not is_engine_name(self.name) or self.name in teacher_names():
            raise ValueError(
                f"name {self.name!r} is no name for an engine; expected family/engine, as in sw/my-student"
            )
        if self.licence not in LICENCES:
            raise ValueError(f"licence {self.licence!r} is unknown; known are {', '.join(LICENCES)}")
        if self.structures.crystal is not None:
            cell = bulk(self.structures.crystal.formula, self.structures.crystal.prototype, a=1.0)
            missing = set(cell.get_chemical_symbols()) - set(self.student.elements)
            if missing:
                raise ValueError(f"student.elements lacks {', '.join(sorted(missing))}, which the crystal holds")
        self._check_signals()
        return self

    def _check_signals(self) -> None:
        """What the loss wants must be labelled, and the student must be able to give it."""
        loss, labels = self.loss, self.labels
        if loss.hessian > 0 and labels.probes == "none":
            raise ValueError("loss.hessian has a weight, but labels.probes is none; choose probes, or set it to 0")
        if loss.hessian_from == "teacher" and labels.probes == "dense":
            raise ValueError("loss.hessian_from is teacher, which draws its own probes; set labels.probes to rows")
        stored = labels.stored_probes
        if loss.hessian > 0 and loss.hessian_from == "stored" and stored is not None and loss.probes_per_step > stored:
            raise ValueError(
                f"loss.probes_per_step is {loss.probes_per_step}, but labels.probes_per_structure only {stored}; "
                "lower the one, or raise the other"
            )
        for term, extra in (("atomic_energy", "atomic_energies"), ("feature", "features")):
            if getattr(loss, term) > 0 and extra not in labels.extras:
                raise ValueError(f"loss.{term} has a weight, but labels.extras lacks {extra}; add it there")
        for part in ("energy", "force", "stress"):
            if loss_from(loss, part) == "dataset" and not self.structures.labelled:
                raise ValueError(
                    f"loss.{part}_from is dataset, but not all groups to train and validate on are frames of a file as "
                    "they are; set it to teacher, or leave out the displaced and generated groups"
                )
        self._check_student()

    def _check_student(self) -> None:
        loss, direct = self.loss, self.student.direct
        if loss.gradient > 0 and not direct:
            raise ValueError(
                f"loss.gradient ties the energy of a direct-force student to forces; the forces of "
                f"{self.student.architecture} are its gradient already: set it to 0"
            )
        if direct and loss.force == loss.teacher_force == 0:
            raise ValueError(
                f"loss.force and loss.teacher_force weigh 0, but {self.student.architecture} predicts forces, which "
                "nothing else sets; weigh one"
            )
        if loss.stress > 0 and direct:
            raise ValueError(f"loss.stress has a weight, but {self.student.architecture} gives no stress; set it to 0")
        if self.exploration is not None and any(
            loss_from(loss, part) == "dataset" for part in ("energy", "force", "stress")
        ):
            raise ValueError("exploration finds structures that no data set has labels of; set loss.*_from to teacher")

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what the recipe asks for, whatever its file looks like and its lock says."""
        return digest(self.model_dump(mode="json", exclude={"lock"}))


def loss_from(loss: LossSection, part: str) -> Source | None:
    """Whose labels a term of the loss learns from; None where it weighs nothing."""
    source: Source = getattr(loss, f"{part}_from")
    used = getattr(loss, part) > 0 or (part == "force" and loss.gradient > 0)
    return source if used else None


def read_recipe(name_or_path: str | Path) -> Recipe:
    """A recipe by name (``sevennet-0/silicon-student``) or by path (``./my.yaml``).

    Raises UnknownNameError where there is none, ConfigError where it is not a valid recipe.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        return _read_named(str(name_or_path))
    if not path.is_file():
        raise UnknownNameError(f"no recipe file {path}; give a path to a .yaml file, or one of: {_listed()}")
    return read_yaml(Recipe, path)


def to_yaml(recipe: Recipe) -> str:
    """A recipe as the text of a file that reads back as the same recipe."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def recipe_names() -> list[str]:
    """All recipes that come with zoo."""
    folder = _folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/*.yaml"))


def _read_named(name: str) -> Recipe:
    if name not in recipe_names():
        near = get_close_matches(name, recipe_names(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UnknownNameError(
            f"no recipe is called {name!r}; {hint}give a path to a .yaml file, or one of: {_listed()}"
        )
    path = _folder() / f"{name}.yaml"
    recipe = read_yaml(Recipe, path)
    if recipe.name != name:
        raise ConfigError(f"{path}: its name is {recipe.name}, expected {name}; a recipe's name is its path")
    return recipe


def _listed() -> str:
    return ", ".join(recipe_names()) or "none"


def _folder() -> Path:
    """The recipes of an installed wheel, or those of the repository."""
    packaged = Path(__file__).parent / "_recipes"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "recipes"
