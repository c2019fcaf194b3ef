"""A recipe: everything that decides the numbers of one run, and nothing else. It stands alone and names no code."""

from difflib import get_close_matches
from pathlib import Path
from typing import Literal, get_args

import yaml
from ase.build import bulk
from pydantic import Field, model_validator

from zoo.config import Config, digest, read_yaml
from zoo.errors import ConfigError, UnknownNameError
from zoo.licences import LICENCES
from zoo.naming import ENGINE_FORM, is_engine_name
from zoo.recipe.learning import (
    EvaluationSection,
    ExplorationSection,
    HessianSwitch,
    LabelsSection,
    LossSection,
    Norm,
    Precision,
    Source,
    TeacherSection,
    Term,
    TrainingSection,
    Weight,
)
from zoo.recipe.structures import (
    Cells,
    Crystal,
    DataSet,
    Displaced,
    Division,
    DynamicsGroup,
    Expected,
    Filters,
    FramesGroup,
    Group,
    OwnData,
    RattledGroup,
    Split,
    StructuresSection,
    Subset,
    SubsetGroup,
    Symbol,
    UnitCell,
)
from zoo.students import StudentConfig
from zoo.teachers import FINE_TUNED, teacher_names


class Lock(Config):
    """What a run was made with; written by zoo into the recipe of a model folder, never needed to start one."""

    teacher_weights_sha256: str
    teacher_package: str
    structures_sha256: str
    labels_sha256: str
    data_sha256: dict[str, str] = Field(default_factory=dict)  # of each file of data, by its name
    code_sha256: str = ""  # over the code of zoo; none in older locks
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
        teachers = {*teacher_names(), self.teacher.name} - set(FINE_TUNED)
        if not is_engine_name(self.name) or self.name in teachers:
            raise ValueError(f"name {self.name!r} is no name for an engine; {ENGINE_FORM}")
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
        self._check_hessian()
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

    def _check_hessian(self) -> None:
        """Products that the loss compares must be stored, or be such as the teacher is asked for at each step."""
        loss, labels = self.loss, self.labels
        if loss.hessian > 0 and labels.probes == "none":
            raise ValueError("loss.hessian has a weight, but labels.probes is none; choose probes, or set it to 0")
        if loss.hessian_from == "teacher" and labels.probes == "dense":
            raise ValueError("loss.hessian_from is teacher, which draws its own probes; set labels.probes to rows")
        if loss.hessian_from == "teacher" and labels.forward_mode:
            raise ValueError("loss.hessian_from is teacher, which is asked in reverse mode; remove labels.forward_mode")
        stored = labels.stored_probes
        if loss.hessian > 0 and loss.hessian_from == "stored" and stored is not None and loss.probes_per_step > stored:
            raise ValueError(
                f"loss.probes_per_step is {loss.probes_per_step}, but labels.probes_per_structure only {stored}; "
                "lower the one, or raise the other"
            )

    def _check_student(self) -> None:
        loss, direct = self.loss, self.student.direct
        fine_tuned = self.student.architecture == "gemnet-oc"
        if fine_tuned != (self.training.start == "teacher"):
            raise ValueError(
                f"training.start is {self.training.start}, but student.architecture is {self.student.architecture}; "
                "gemnet-oc, and no other, starts from its teacher's weights: set start: teacher for it alone"
            )
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
    def distils(self) -> bool:
        """Whether anything is learned from the teacher; else it is where the weights start, or a comparison."""
        given = any(loss_from(self.loss, part) == "teacher" for part in ("energy", "force", "stress"))
        return given or self.loss.undistilled() != self.loss or self.student.teacher_channels > 0

    @property
    def labelled(self) -> tuple[Split, ...]:
        """What the teacher labels: all, or, where nothing is learned from it, what it is compared on."""
        return get_args(Split) if self.distils else ("test",)

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
    folder = recipe_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/*.yaml"))


def _read_named(name: str) -> Recipe:
    if name not in recipe_names():
        near = get_close_matches(name, recipe_names(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UnknownNameError(
            f"no recipe is called {name!r}; {hint}give a path to a .yaml file, or one of: {_listed()}"
        )
    path = recipe_folder() / f"{name}.yaml"
    recipe = read_yaml(Recipe, path)
    if recipe.name != name:
        raise ConfigError(f"{path}: its name is {recipe.name}, expected {name}; a recipe's name is its path")
    return recipe


def _listed() -> str:
    return ", ".join(recipe_names()) or "none"


def recipe_folder() -> Path:
    """The recipes of an installed wheel, or those of the repository."""
    packaged = Path(__file__).parent.parent / "_recipes"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent.parent / "recipes"


__all__ = [
    "Cells",
    "Crystal",
    "DataSet",
    "Displaced",
    "Division",
    "DynamicsGroup",
    "EvaluationSection",
    "Expected",
    "ExplorationSection",
    "Filters",
    "FramesGroup",
    "Group",
    "HessianSwitch",
    "LabelsSection",
    "Lock",
    "LossSection",
    "Norm",
    "OwnData",
    "Precision",
    "RattledGroup",
    "Recipe",
    "Source",
    "Split",
    "StructuresSection",
    "Subset",
    "SubsetGroup",
    "Symbol",
    "TeacherSection",
    "Term",
    "TrainingSection",
    "UnitCell",
    "Weight",
    "loss_from",
    "read_recipe",
    "recipe_folder",
    "recipe_names",
    "to_yaml",
]
