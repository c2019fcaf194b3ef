"""What evaluation measured: one set of figures for the teacher, the student and its undistilled twin, if it has one."""

import textwrap
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from zoo.config import Config

EngineName = Literal["teacher", "student", "twin"]
Trained = Literal["student", "twin"]
DATASET_ENERGIES = "of energies, the mean difference of each composition is taken away first"
WIDTH = 80  # columns of the terminal table
LABEL = 22  # of them, for the names of the figures
REFERENCE = "it is the reference"  # the reason why a teacher has no error against itself
OLDER = "the report is older than this figure"  # the reason that a report gets when it is read


@dataclass(frozen=True)
class Quantity:
    """One row of the table: a key of ``Figures`` as people read it."""

    key: str
    label: str
    unit: str


QUANTITIES = (
    Quantity("energy_mae_meV_atom", "energy error", "meV/atom"),
    Quantity("force_mae_meV_A", "force error", "meV/Å"),
    Quantity("stress_mae_GPa", "stress error", "GPa"),
    Quantity("hessian_mae_eV_A2", "Hessian·v error", "eV/Å²"),
    Quantity("dataset_energy_mae_meV_atom", "data set energy error", "meV/atom"),
    Quantity("dataset_force_mae_meV_A", "data set force error", "meV/Å"),
    Quantity("mode_mae_THz", "vibration error", "THz"),
    Quantity("phonon_mae_THz", "phonon error", "THz"),
    Quantity("max_frequency_THz", "highest phonon", "THz"),
    Quantity("lattice_constant_A", "lattice constant", "Å"),
    Quantity("bulk_modulus_GPa", "bulk modulus", "GPa"),
    Quantity("drift_meV_atom_ps", "NVE energy drift", "meV/atom/ps"),
    Quantity("ms_per_call", "time per call", "ms"),
)

_LATER = ("dataset_energy_mae_meV_atom", "dataset_force_mae_meV_A", "mode_mae_THz")  # that the first reports lack


class Figures(Config):
    """What was measured of one engine, on the test split. Errors are against the teacher, but for those whose names
    begin with ``dataset``, which are against the labels that structures brought along.

    A figure is None where it was not measured, and ``reasons`` then says why, under the same key.
    """

    energy_mae_meV_atom: float | None = Field(None, ge=0)
    force_mae_meV_A: float | None = Field(None, ge=0)  # mean over Cartesian components
    stress_mae_GPa: float | None = Field(None, ge=0)  # mean over the nine components
    hessian_mae_eV_A2: float | None = Field(None, ge=0)  # of products with random signs, see evaluate.accuracy
    dataset_energy_mae_meV_atom: float | None = Field(None, ge=0)  # less the mean difference of each composition
    dataset_force_mae_meV_A: float | None = Field(None, ge=0)  # mean over Cartesian components
    mode_mae_THz: float | None = Field(None, ge=0)  # mean over the sorted eigenfrequencies of one Hessian
    phonon_mae_THz: float | None = Field(None, ge=0)  # mean over a mesh of wave vectors and all branches
    max_frequency_THz: float | None = None  # the highest of that mesh
    lattice_constant_A: float | None = Field(None, gt=0)
    bulk_modulus_GPa: float | None = None
    drift_meV_atom_ps: float | None = None  # slope of the total energy in NVE dynamics
    ms_per_call: float | None = Field(None, gt=0)  # energy and forces, neighbours kept while atoms move little
    reasons: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _older_reports_read(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        reasons = data.get("reasons", {})
        lacking = [key for key in _LATER if key not in data]
        if not isinstance(reasons, dict) or not lacking:
            return data
        return data | {"reasons": dict.fromkeys(lacking, OLDER) | reasons}

    @model_validator(mode="after")
    def _each_gap_has_a_reason(self) -> Self:
        for quantity in QUANTITIES:
            measured = getattr(self, quantity.key) is not None
            if not measured and not self.reasons.get(quantity.key, "").strip():
                raise ValueError(f"{quantity.key} was not measured and reasons['{quantity.key}'] does not say why")
            if measured and quantity.key in self.reasons:
                raise ValueError(f"{quantity.key} was measured; reasons['{quantity.key}'] must go")
        unknown = set(self.reasons) - {quantity.key for quantity in QUANTITIES}
        if unknown:
            raise ValueError(f"reasons for figures that do not exist: {', '.join(sorted(unknown))}")
        return self

    @classmethod
    def of(cls, measured: dict[str, float], reasons: dict[str, str], otherwise: str = "not asked for") -> Self:
        """Figures from those that were measured; the others get their reason, or ``otherwise``."""
        missing = [quantity.key for quantity in QUANTITIES if quantity.key not in measured]
        plain = {key: float(value) for key, value in measured.items()}
        return cls.model_validate(plain | {"reasons": {key: reasons.get(key, otherwise) for key in missing}})


class NoveltyFigures(Config):
    """What the student's novelty is worth on the test split: the error that it expects of the force on an atom.

    Errors of forces are lengths of differences, of single atoms.
    """

    rank_correlation: float | None = Field(ge=-1, le=1)  # Spearman's, of expected and true errors; None of equal ones
    coverage: float = Field(ge=0, le=1)  # of atoms, whose error is within twice what was expected
    expected_rms_meV_A: float = Field(ge=0)
    error_rms_meV_A: float = Field(ge=0)
    threshold_meV_A: float = Field(ge=0)  # the newest atom of all structures, but for one in a hundred and at least one
    structures: int = Field(ge=1)
    atoms: int = Field(ge=1)


class AccuracySettings(Config):
    """On what the errors were taken."""

    structures: int = Field(ge=1)
    atoms: int = Field(ge=1)  # of all structures together
    probes: int = Field(ge=0)  # Hessian products of each structure
    mean_force_meV_A: float | None = Field(
        None, ge=0
    )  # mean |component| of the labels that errors are against: their scale
    probe_kind: str  # "rademacher" or "rows": a Hessian error is comparable with one of the same kind alone
    description: str  # what the test split is, in a phrase
    dataset_structures: int = Field(0, ge=0)  # of them, those with labels of their data set
    label_error_eV_A2: float | None = Field(
        None, ge=0
    )  # expected of the teacher's own products, root mean square; None where they are derivatives
    teacher_asymmetry: float | None = Field(
        None, ge=0
    )  # of its Jacobian: mean |A − Aᵀ| over mean |A|; None is exactly 0, or of no concern


class VibrationSettings(Config):
    """Of what the eigenfrequencies are: the first test structure that is small enough, as it stands."""

    formula: str
    atoms: int = Field(ge=1)


class PhononSettings(Config):
    """How the phonons were made: finite displacements, the same cell for all engines."""

    atoms: int = Field(ge=1)  # of the supercell
    displacement_A: float = Field(gt=0)
    mesh: tuple[int, int, int]
    lattice_constant_A: float | None = Field(None, gt=0)


class DynamicsSettings(Config):
    """One engine's run of NVE dynamics; the teacher's may be shorter."""

    atoms: int = Field(ge=1)
    steps: int = Field(ge=1)
    timestep_fs: float = Field(gt=0)
    temperature_K: float = Field(ge=0)  # of the initial velocities
    completed: bool = True  # whether it came to the end that was asked for


class TimingSettings(Config):
    """How the calls were timed: all engines in one run, in turn."""

    atoms: int = Field(ge=1)
    repeats: int = Field(ge=1)
    threads: int = Field(ge=1)
    device: str
    dtype: str
    spread_ms: dict[str, tuple[float, float]] = Field(default_factory=dict)  # quartiles, by engine


class Settings(Config):
    """What was measured how; None where a kind of measurement was left out."""

    accuracy: AccuracySettings | None = None
    vibrations: VibrationSettings | None = None
    phonons: PhononSettings | None = None
    dynamics: dict[EngineName, DynamicsSettings] = Field(default_factory=dict)
    timing: TimingSettings | None = None


class Bands(Config):
    """How far each figure may lie from the one that the report states when the recipe is run again.

    On one kind of machine, with one number of threads and the same versions, a run repeats bit for bit. Another machine
    gives other last digits in the teacher's forces, and training carries them into the errors, by a few per cent. What
    is no error but a property of the student is steadier. The drift is a slope near zero in which chaos has a part: its
    size alone is bounded. What differs by less than ``floor`` of its unit, no table shows.
    """

    errors: float = Field(0.10, gt=0)  # of the error, up and down
    lattice_constant_A: float = Field(0.005, gt=0)  # likewise
    max_frequency_THz: float = Field(0.02, gt=0)
    bulk_modulus_GPa: float = Field(0.05, gt=0)
    drift: float = Field(2.0, ge=1)  # times the size of the stated one, at most
    floor: float = Field(1e-3, ge=0)  # of the figure's unit

    def of(self, key: str, stated: float) -> tuple[float, float]:
        """The least and the most that a figure may be when it is measured again."""
        if key == "drift_meV_atom_ps":
            width = max(self.drift * abs(stated), self.floor)
            return -width, width
        width = max(getattr(self, key, self.errors) * abs(stated), self.floor)
        return stated - width, stated + width

    def __str__(self) -> str:
        return (
            f"Band: errors within {self.errors:.0%} of those stated, up and down; lattice constant "
            f"{self.lattice_constant_A:.1%}, highest phonon {self.max_frequency_THz:.0%}, bulk modulus "
            f"{self.bulk_modulus_GPa:.0%}; drift up to {self.drift:g} times; times are not compared."
        )


class Report(Config):
    """``report.json``: the figures of the engines, with the hardware and versions that gave them."""

    format: Literal[1] = 1
    name: str
    teacher: Figures
    student: Figures
    twin: Figures | None = None  # the student trained without what only a teacher gives; None where that is nothing
    speedup: float | None = Field(None, gt=0)  # the teacher's time over the student's
    parameters: int = Field(ge=1)  # of the student
    training_seconds: dict[Trained, float] = Field(default_factory=dict)
    novelty: NoveltyFigures | None = None
    novelty_reason: str | None = OLDER  # why it was not measured
    bands: Bands = Bands()  # in which the figures lie when the recipe is run again
    settings: Settings
    hardware: dict[str, str | int | float | None]
    versions: dict[str, str]

    @property
    def engines(self) -> dict[EngineName, Figures]:
        """The figures of those that were measured, in the order of a table's columns."""
        found: dict[EngineName, Figures] = {"teacher": self.teacher, "student": self.student}
        return found if self.twin is None else found | {"twin": self.twin}

    @model_validator(mode="after")
    def _novelty_or_a_reason(self) -> Self:
        if (self.novelty is None) != bool((self.novelty_reason or "").strip()):
            raise ValueError("novelty needs a novelty_reason where it was not measured, and only there")
        return self

    @model_validator(mode="after")
    def _speedup_is_the_ratio(self) -> Self:
        expected = speedup(self.teacher, self.student)
        if (expected is None) != (self.speedup is None):
            raise ValueError("speedup and ms_per_call of teacher and student must be given together")
        if expected is not None and self.speedup is not None and abs(self.speedup / expected - 1) > 0.01:
            raise ValueError(f"speedup {self.speedup:.4g} is not the ratio of the times, {expected:.4g}")
        return self


def speedup(teacher: Figures, student: Figures) -> float | None:
    """How many times as fast the student answers; None where either was not timed."""
    if teacher.ms_per_call is None or student.ms_per_call is None:
        return None
    return teacher.ms_per_call / student.ms_per_call


def table(report: Report) -> str:
    """The figures side by side, for a terminal of 80 columns, with the reasons of the gaps below."""
    head = f"{'':<{LABEL + 12}}" + "".join(f"{engine:>14}" for engine in report.engines)
    rows = [_row(report, quantity) for quantity in rows_of(report)]
    return "\n".join([report.name, "", head, "-" * len(head), *rows, "", *_remarks(report)]) + "\n"


def rows_of(report: Report) -> list[Quantity]:
    """The figures that at least one engine has; of the others, the gaps tell why."""
    return [
        quantity
        for quantity in QUANTITIES
        if any(getattr(figures, quantity.key) is not None for figures in report.engines.values())
    ]


def number(value: float | None) -> str:
    """A figure with about four digits; a dash where there is none."""
    if value is None:
        return "-"
    size = abs(value)
    if 0 < size < 1e-3:
        return f"{value:.1e}"
    decimals = next((count for count, floor in enumerate((999.5, 99.95, 9.995, 0.0995)) if size >= floor), 4)
    return f"{value:.{decimals}f}"


def times(ratio: float) -> str:
    """How many times as fast; below one in two digits, so that what is slow is not zero."""
    if ratio < 1:
        return f"{ratio:.2g}"
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


def cell(figures: Figures, key: str) -> str:
    """A figure as it stands in a table: its number, "reference", or a dash where it was not measured."""
    return "reference" if figures.reasons.get(key) == REFERENCE else number(getattr(figures, key))


def gaps(report: Report) -> list[str]:
    """One phrase for each reason why figures are missing, naming the engines and the figures."""
    found: dict[tuple[str, str], list[str]] = {}
    for engine, figures in report.engines.items():
        for quantity in QUANTITIES:
            reason = figures.reasons.get(quantity.key, REFERENCE)
            if reason not in (REFERENCE, OLDER):
                found.setdefault((engine, reason), []).append(quantity.label)
    grouped: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (name, reason), labels in found.items():
        grouped.setdefault((reason, tuple(labels)), []).append(name)
    return [
        f"{listed(engines)}, {listed(list(labels))}: not measured ({reason})"
        for (reason, labels), engines in grouped.items()
    ]


def asymmetry_remarks(report: Report) -> list[str]:
    """How far the forces of the teacher are from being the gradient of an energy, if they are not."""
    errors = report.settings.accuracy
    if errors is None or errors.teacher_asymmetry is None:
        return []
    return [
        "The teacher predicts forces that are no gradient of an energy: its Jacobian differs from its transpose by "
        f"{100 * errors.teacher_asymmetry:.2g} % of its mean element."
    ]


def novelty_remarks(report: Report) -> list[str]:
    """What the novelty of atoms tells of the errors of their forces, or why there is none."""
    found = report.novelty
    if found is None:
        reason = report.novelty_reason
        return [] if reason == OLDER else [f"What is new to the student, nothing tells ({reason})."]
    ranked = "not defined" if found.rank_correlation is None else f"{found.rank_correlation:.2f}"
    return [
        f"Novelty: the rank correlation of expected and true errors of forces is {ranked}, and "
        f"{found.coverage:.0%} are within twice what was expected; their root mean square is "
        f"{number(found.error_rms_meV_A)} meV/Å, where {number(found.expected_rms_meV_A)} was expected; beyond "
        f"{number(found.threshold_meV_A)} meV/Å an atom is newer than those that were tested."
    ]


def _row(report: Report, quantity: Quantity) -> str:
    values = [cell(figures, quantity.key) for figures in report.engines.values()]
    return f"{quantity.label:<{LABEL}}{quantity.unit:<12}" + "".join(f"{value:>14}" for value in values)


def _remarks(report: Report) -> list[str]:
    remarks = []
    if report.speedup is not None:
        timing = report.settings.timing
        where = f" ({timing.atoms} atoms, {timing.threads} threads, {timing.device})" if timing else ""
        remarks.append(f"The student answers {times(report.speedup)} times as fast as its teacher{where}.")
    remarks += _error_remarks(report)
    remarks += asymmetry_remarks(report)
    remarks += novelty_remarks(report)
    runs = report.settings.dynamics
    measured = any(figures.drift_meV_atom_ps is not None for figures in report.engines.values())
    if measured and len({(run.atoms, run.steps) for run in runs.values()}) > 1:
        told = [
            f"{engine} {run.atoms} atoms for {run.steps * run.timestep_fs / 1000:g} ps" for engine, run in runs.items()
        ]
        remarks.append(f"The drifts are of different runs: {listed(told)}.")
    remarks += [f"- {gap}" for gap in gaps(report)]
    return [line for remark in remarks for line in textwrap.wrap(remark, WIDTH, subsequent_indent="  ")]


def _error_remarks(report: Report) -> list[str]:
    """What the errors are against."""
    errors = report.settings.accuracy
    labelled = errors is not None and errors.dataset_structures > 0
    if report.twin is None:
        told = "The student learned from a data set, and nothing from its teacher."
        return [told, f"Errors are against the labels of the data set; {DATASET_ENERGIES}."] if labelled else [told]
    told = "Errors are against the teacher. The twin is the same student trained without Hessians."
    return [told, f"Those of the data set are against its own labels; {DATASET_ENERGIES}."] if labelled else [told]


def listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
