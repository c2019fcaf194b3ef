"""How a recipe learns: what the teacher is asked, the loss, the training, exploration, and what is evaluated."""

from typing import Annotated, Literal, get_args

from pydantic import Field, PositiveInt, model_validator

from zoo.config import Config
from zoo.derivatives import Side
from zoo.errors import ConfigError
from zoo.recipe.structures import Cells
from zoo.teachers import is_teacher_name, no_teacher

Weight = Annotated[float, Field(ge=0)]
Precision = Literal["float32", "float64"]
Norm = Literal["l2", "l1", "squared", "huber"]
Source = Literal["teacher", "dataset"]
Term = Literal["energy", "force", "stress", "teacher_force", "gradient", "hessian", "atomic_energy", "feature"]


class TeacherSection(Config):
    """Who teaches, and in which precision its labels are computed."""

    name: str  # of the catalogue, or own/<engine>
    dtype: Precision = "float32"

    @model_validator(mode="after")
    def _exists(self) -> "TeacherSection":
        if not is_teacher_name(self.name):
            raise ValueError(no_teacher(self.name))
        return self


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
    here give random signs 5 to 20 in the place of 400.
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
        if idle := [term for term in self.norms if term not in self.weights]:
            raise ValueError(f"norms says how {idle[0]} is compared, which weighs 0; weigh it, or remove its norm")
        if self.hessian_switch is not None and self.force_from == "teacher":
            raise ValueError(
                "hessian_switch compares student and teacher with the forces of a data set; set force_from: dataset"
            )
        if self.hessian_switch is not None and (self.force == 0 or self.hessian == 0):
            raise ValueError("hessian_switch wants a weight of force and of hessian; give both, or remove it")
        return self


class TrainingSection(Config):
    """How the student is fitted: AdamW, linear warm-up, decay, clipping, and an average of the weights.

    With ``start: teacher`` it begins with the weights of its teacher, which has the same network, and new heads.

    ``steps`` or ``epochs`` say how long: epochs are as many steps each as the first of them has batches.

    With ``schedule: cosine`` the learning rate follows a cosine down to ``final_learning_rate``. With ``plateau`` it
    falls by ``plateau_factor``, not below that, whenever more than ``plateau_patience`` validations in a row were no
    better than the best before them, as PyTorch's ReduceLROnPlateau counts: better is an error of forces (where the
    loss has none, of stress or energy) that is less by over a ten-thousandth.
    """

    start: Literal["fresh", "teacher"] = "fresh"
    steps: PositiveInt | None = None
    epochs: PositiveInt | None = None
    batch_size: PositiveInt = 8  # structures at most
    batch_atoms: PositiveInt | None = None  # atoms at most; a structure that is larger comes alone
    batch_edges: PositiveInt | None = None  # edges at most, likewise
    schedule: Literal["cosine", "plateau"] = "cosine"
    learning_rate: float = Field(2e-3, gt=0, le=1)
    final_learning_rate: float = Field(1e-5, ge=0, le=1)
    plateau_factor: float = Field(0.8, gt=0, lt=1)
    plateau_patience: PositiveInt = 10  # validations
    warmup_steps: int = Field(50, ge=0)
    weight_decay: float = Field(1e-5, ge=0, le=1)
    amsgrad: bool = False
    epsilon: float = Field(1e-8, gt=0, le=1)  # added to the root of the second moment
    ema_decay: float = Field(0.995, ge=0, lt=1)
    clip_norm: float = Field(10.0, gt=0)
    log_every: PositiveInt = 10  # steps
    validate_every: PositiveInt = 250
    checkpoint_every: PositiveInt = 100
    dtype: Precision = "float32"
    compile: bool = False  # the step as one graph: a minute first, then faster; resumed, equal up to rounding

    def steps_of(self, structures: int) -> int:
        """How many steps so many structures to train on make; a lower bound where atoms or edges limit a batch."""
        return self.total if self.epochs is None else self.epochs * max(structures // self.batch_size, 1)

    def in_steps(self, batches: int) -> "TrainingSection":
        """The same with its epochs, of so many batches each, counted in steps.

        Raises ConfigError where the warm-up is as long.
        """
        if self.epochs is None:
            return self
        steps = self.epochs * batches
        if self.warmup_steps >= steps:
            raise ConfigError(
                f"training.warmup_steps is {self.warmup_steps}, but {self.epochs} epochs of {batches} batches are only "
                f"{steps} steps; set it lower, or raise training.epochs"
            )
        return self.model_copy(update={"steps": steps, "epochs": None})

    @property
    def total(self) -> int:
        """All steps, which are known where epochs have been counted."""
        assert self.steps is not None
        return self.steps

    @model_validator(mode="after")
    def _ends(self) -> "TrainingSection":
        if self.steps is None and self.epochs is None:
            raise ValueError("steps is missing; give steps, or epochs in its place")
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                f"steps is {self.steps} and epochs is {self.epochs}; give one of the two, remove the other"
            )
        if self.steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, but there are only {self.steps} steps; set it lower"
            )
        return self

    @model_validator(mode="after")
    def _falls(self) -> "TrainingSection":
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(f"final_learning_rate is above learning_rate, {self.learning_rate}")
        for key in ("plateau_factor", "plateau_patience"):  # at their defaults they stand in every recipe of a run
            value = getattr(self, key)
            if self.schedule != "plateau" and value != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} is {value}, but schedule is {self.schedule}, which knows no plateau; "
                    "set schedule: plateau, or remove it"
                )
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
