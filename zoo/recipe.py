"""A recipe: everything that decides the numbers of one run, and nothing else. It stands alone and names no code."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

import yaml
from ase.build import bulk
from pydantic import Field, PositiveInt, model_validator

from zoo.config import Config, digest, read_yaml
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


Group = Annotated[RattledGroup | DynamicsGroup, Field(discriminator="kind")]


class StructuresSection(Config):
    """Which structures are learned from, and which are kept for the test. A group never spans two splits."""

    crystal: Crystal
    groups: tuple[Group, ...]

    @model_validator(mode="after")
    def _complete(self) -> "StructuresSection":
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            raise ValueError("two groups have the same name")
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


class LabelsSection(Config):
    """What the teacher is asked beside energy, forces and stress.

    ``rademacher`` stores products of the Hessian with random ±1 vectors, ``rows`` stores randomly chosen rows of it
    (products with one-hot vectors), as Amin et al. use.
    """

    probes: Literal["rademacher", "rows"] = "rademacher"
    probes_per_structure: PositiveInt = 2
    shard_size: PositiveInt = 8  # structures a file


class LossSection(Config):
    """Weights λ of the terms, each an L2 norm (Amin et al., ICLR 2025); units eV, Å.

    The weight of the Hessian belongs to its probes: an atom's part of H·v sums a whole row for random signs, and is
    one element for a one-hot vector. The paper's 5, 100 and 400 (energy, force, Hessian) are for ``rows``; random
    signs want about 20 in the place of 400.
    """

    energy: Weight  # mean over structures of |ΔE| / atoms
    force: Weight  # mean over atoms of |ΔF|
    stress: Weight  # mean over structures of |Δσ|; not in the paper
    hessian: Weight  # mean over (probe, atom) of |ΔH·v|
    probes_per_step: PositiveInt = 1  # drawn afresh at each step from the stored ones

    @model_validator(mode="after")
    def _teaches(self) -> "LossSection":
        if self.energy == self.force == self.stress == 0:
            raise ValueError("energy, force and stress all weigh 0, so nothing sets the energy; give one a weight")
        return self


class TrainingSection(Config):
    """How the student is fitted: AdamW, linear warm-up, cosine decay, clipping, and an average of the weights."""

    steps: PositiveInt
    batch_size: PositiveInt = 8  # structures
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

    @model_validator(mode="after")
    def _falls(self) -> "TrainingSection":
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, but there are only {self.steps} steps; set it lower"
            )
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(f"final_learning_rate is above learning_rate, {self.learning_rate}")
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
        cell = bulk(self.structures.crystal.formula, self.structures.crystal.prototype, a=1.0)
        missing = set(cell.get_chemical_symbols()) - set(self.student.elements)
        if missing:
            raise ValueError(f"student.elements lacks {', '.join(sorted(missing))}, which the crystal holds")
        if self.loss.probes_per_step > self.labels.probes_per_structure:
            raise ValueError(
                f"loss.probes_per_step is {self.loss.probes_per_step}, but labels.probes_per_structure "
                f"only {self.labels.probes_per_structure}"
            )
        return self

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what the recipe asks for, whatever its file looks like and its lock says."""
        return digest(self.model_dump(mode="json", exclude={"lock"}))


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
