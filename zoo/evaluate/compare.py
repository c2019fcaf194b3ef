"""Student, undistilled twin and teacher, measured in the same way in one run."""

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from ase import Atoms
from tqdm import tqdm

from zoo.calculator import ZooCalculator
from zoo.config import write_json
from zoo.data.labels import Labels
from zoo.data.structures import perfect_crystal
from zoo.errors import MissingPackageError, ZooError
from zoo.evaluate.accuracy import Accuracy, accuracy
from zoo.evaluate.dynamics import Dynamics, nve
from zoo.evaluate.elasticity import Elasticity, equation_of_state
from zoo.evaluate.environment import hardware, versions
from zoo.evaluate.figures import energy_drift, force_parity, learning_curve, phonon_bands
from zoo.evaluate.phonons import DISPLACEMENT, MESH, Bands, Phonons, phonon_mae, phonons
from zoo.evaluate.report import (
    REFERENCE,
    AccuracySettings,
    DynamicsSettings,
    EngineName,
    Figures,
    PhononSettings,
    Report,
    Settings,
    TimingSettings,
    speedup,
)
from zoo.evaluate.speed import Timing, time_calls
from zoo.potential import Potential
from zoo.recipe import Recipe
from zoo.students import Student
from zoo.units import MEV_PER_EV

M = TypeVar("M")

ERRORS = ("energy_mae_meV_atom", "force_mae_meV_A", "stress_mae_GPa", "hessian_mae_eV_A2")


@dataclass(frozen=True)
class Contest:
    """Who is compared, on what."""

    recipe: Recipe
    teacher: Potential
    student: Student
    twin: Student
    structures: list[Atoms]  # the test split
    labels: Labels  # of the test split
    run: Path  # where train/ and twin/ left their metrics

    @property
    def engines(self) -> dict[EngineName, Potential]:
        return {"teacher": self.teacher, "student": self.student, "twin": self.twin}


@dataclass(frozen=True)
class Measurements:
    """What was measured, by engine; what could not be is missing here and has its reason."""

    accuracy: dict[EngineName, Accuracy]  # of student and twin; the teacher is the reference
    phonons: dict[EngineName, Phonons]
    elasticity: dict[EngineName, Elasticity]
    dynamics: dict[EngineName, Dynamics]
    timing: dict[str, Timing]
    reasons: dict[EngineName, dict[str, str]]


def compare(contest: Contest, folder: Path) -> Report:
    """Measures all three, writes figures and, last, ``report.json`` into ``folder``.

    A measurement that fails for one engine, such as the equation of state of a twin that has no minimum, does not
    stop the others; its reason stands in the report. Raises MissingPackageError.
    """
    reasons: dict[EngineName, dict[str, str]] = {name: {} for name in contest.engines}
    measured = Measurements(
        accuracy=_each(contest, reasons, ERRORS, _accuracy, without="teacher"),
        phonons=_each(contest, reasons, ("phonon_mae_THz", "max_frequency_THz"), _phonons),
        elasticity=_each(contest, reasons, ("lattice_constant_A", "bulk_modulus_GPa"), _elasticity),
        dynamics=_each(contest, reasons, ("drift_meV_atom_ps",), _dynamics),
        timing=_timing(contest),
        reasons=reasons,
    )
    report = _report(contest, measured)
    _draw(contest, measured, folder / "figures")
    write_json(folder / "report.json", report)
    return report


def require_packages() -> None:
    """Raises MissingPackageError, before hours are spent, where an evaluation could not be made."""
    missing = [package for package in ("phonopy", "matplotlib") if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingPackageError(f"evaluation needs {' and '.join(missing)}; run: pip install {' '.join(missing)}")


def _each(
    contest: Contest,
    reasons: dict[EngineName, dict[str, str]],
    keys: Sequence[str],
    measure: Callable[[Contest, EngineName], M],
    without: EngineName | None = None,
) -> dict[EngineName, M]:
    found: dict[EngineName, M] = {}
    for name in contest.engines:
        if name == without:
            continue
        try:
            found[name] = measure(contest, name)
        except MissingPackageError:
            raise
        except ZooError as error:
            reasons[name] |= dict.fromkeys(keys, str(error))
    return found


def _accuracy(contest: Contest, name: EngineName) -> Accuracy:
    labels = list(contest.labels)
    predictions = [label.prediction() for label in labels]
    return accuracy(contest.engines[name], contest.structures, predictions, [label.probes for label in labels])


def _phonons(contest: Contest, name: EngineName) -> Phonons:
    return phonons_of(contest.recipe, contest.engines[name])


def phonons_of(recipe: Recipe, potential: Potential) -> Phonons:
    """Phonons of the recipe's crystal, in float64: finite displacements of float32 forces would show its noise."""
    crystal = recipe.structures.crystal
    primitive = perfect_crystal(crystal, cell="primitive")
    large = perfect_crystal(crystal, recipe.evaluation.phonon_supercell)
    matrix = np.rint(large.cell[:] @ np.linalg.inv(primitive.cell[:])).astype(int)
    with in_float64(potential):
        return phonons(potential, primitive, matrix)


def _elasticity(contest: Contest, name: EngineName) -> Elasticity:
    with in_float64(contest.engines[name]) as potential:
        return equation_of_state(potential, perfect_crystal(contest.recipe.structures.crystal))


def _dynamics(contest: Contest, name: EngineName) -> Dynamics:
    section = contest.recipe.evaluation
    steps, supercell = _dynamics_size(contest.recipe, name)
    with tqdm(total=steps, desc=f"NVE dynamics, {name}", unit="step", delay=2) as bar:
        return nve(
            perfect_crystal(contest.recipe.structures.crystal, supercell),
            ZooCalculator(contest.engines[name]),
            temperature_K=section.initial_temperature,
            timestep_fs=section.dynamics_timestep,
            steps=steps,
            generator=np.random.default_rng(contest.recipe.seed),
            on_step=lambda done, _: _advance(bar, done),
        )


def _dynamics_size(recipe: Recipe, name: EngineName) -> tuple[int, tuple[int, int, int]]:
    """Steps and supercell of a run; the teacher is slow and has its own."""
    section = recipe.evaluation
    if name == "teacher":
        return section.teacher_dynamics_steps, section.teacher_dynamics_supercell
    return section.dynamics_steps, section.dynamics_supercell


def _timing(contest: Contest) -> dict[str, Timing]:
    section = contest.recipe.evaluation
    return time_calls(
        {name: ZooCalculator(potential) for name, potential in contest.engines.items()},
        perfect_crystal(contest.recipe.structures.crystal, section.timing_supercell),
        repeats=section.timing_repeats,
        generator=np.random.default_rng(contest.recipe.seed),
        threads=section.timing_threads,
    )


def _report(contest: Contest, measured: Measurements) -> Report:
    figures = {name: _figures(name, measured) for name in contest.engines}
    parameters = sum(parameter.numel() for parameter in contest.student.parameters())
    return Report(
        name=contest.recipe.name,
        teacher=figures["teacher"],
        student=figures["student"],
        twin=figures["twin"],
        speedup=speedup(figures["teacher"], figures["student"]),
        parameters=parameters,
        training_seconds={
            "student": _seconds(contest.run / "train"),
            "twin": _seconds(contest.run / "twin"),
        },
        settings=_settings(contest, measured),
        hardware=hardware(),
        versions=versions(),
    )


def _figures(name: EngineName, measured: Measurements) -> Figures:
    values: dict[str, float | None] = {}
    reasons = dict(measured.reasons[name])
    if name == "teacher":
        reasons |= dict.fromkeys((*ERRORS, "phonon_mae_THz"), REFERENCE)
    elif name in measured.accuracy:
        values |= {key: getattr(measured.accuracy[name], key) for key in ERRORS}
    if name in measured.phonons:
        values["max_frequency_THz"] = measured.phonons[name].max_frequency_THz
    if name != "teacher" and {name, "teacher"} <= measured.phonons.keys():
        values["phonon_mae_THz"] = phonon_mae(measured.phonons["teacher"], measured.phonons[name])
    if name in measured.elasticity:
        values["lattice_constant_A"] = measured.elasticity[name].lattice_constant_A
        values["bulk_modulus_GPa"] = measured.elasticity[name].bulk_modulus_GPa
    if name in measured.dynamics:
        values["drift_meV_atom_ps"] = measured.dynamics[name].drift_meV_atom_ps
        reasons |= {"drift_meV_atom_ps": measured.dynamics[name].reason or ""}
    values["ms_per_call"] = measured.timing[name].median_ms
    return Figures.of(
        {key: value for key, value in values.items() if value is not None},
        reasons,
        "it could not be compared with the teacher",
    )


def _settings(contest: Contest, measured: Measurements) -> Settings:
    section, crystal = contest.recipe.evaluation, contest.recipe.structures.crystal
    return Settings(
        accuracy=AccuracySettings(
            structures=len(contest.structures),
            atoms=sum(len(atoms) for atoms in contest.structures),
            mean_force_meV_A=_mean_force(contest),
            probes=contest.recipe.labels.probes_per_structure,
            probe_kind=contest.recipe.labels.probes,
            description=_test_split(contest.recipe),
        ),
        phonons=PhononSettings(
            atoms=len(perfect_crystal(crystal, section.phonon_supercell)),
            displacement_A=DISPLACEMENT,
            mesh=MESH,
            lattice_constant_A=crystal.lattice_constant,
        ),
        dynamics={name: _dynamics_settings(contest.recipe, name, run) for name, run in measured.dynamics.items()},
        timing=TimingSettings(
            atoms=len(perfect_crystal(crystal, section.timing_supercell)),
            repeats=section.timing_repeats,
            threads=section.timing_threads,
            device=str(contest.student.device),
            dtype=str(contest.student.dtype).removeprefix("torch."),
            spread_ms={name: (timing.low_ms, timing.high_ms) for name, timing in measured.timing.items()},
        ),
    )


def _mean_force(contest: Contest) -> float:
    forces = torch.cat([label.forces for label in contest.labels])
    return float(forces.abs().mean()) * MEV_PER_EV


def _dynamics_settings(recipe: Recipe, name: EngineName, run: Dynamics) -> DynamicsSettings:
    _, supercell = _dynamics_size(recipe, name)
    return DynamicsSettings(
        atoms=len(perfect_crystal(recipe.structures.crystal, supercell)),
        steps=max(len(run.times_ps) - 1, 1),
        timestep_fs=recipe.evaluation.dynamics_timestep,
        temperature_K=recipe.evaluation.initial_temperature,
    )


def _draw(contest: Contest, measured: Measurements, folder: Path) -> None:
    """A figure for each measurement that came to something."""
    name = contest.recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    if measured.accuracy:
        forces: dict[str, np.ndarray] = {engine: found.forces for engine, found in measured.accuracy.items()}
        labelled = next(iter(measured.accuracy.values())).labelled_forces
        force_parity(folder / "force_parity.png", name, labelled, forces)
    if measured.phonons:
        bands: dict[str, Bands] = {engine: found.bands for engine, found in measured.phonons.items()}
        phonon_bands(folder / "phonon_bands.png", name, bands)
    if measured.dynamics:
        energy_drift(
            folder / "energy_drift.png", name, {str(engine): found for engine, found in measured.dynamics.items()}
        )
    curves = {
        engine: _validation_curve(contest.run / stage) for engine, stage in (("student", "train"), ("twin", "twin"))
    }
    learning_curve(folder / "training.png", name, curves, x_label="step", y_label="validation force error (eV/Å)")


def _validation_curve(folder: Path) -> tuple[list[float], list[float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [record for record in records if record["split"] == "validation" and "force" in record]
    return [record["step"] for record in kept], [record["force"] for record in kept]


@contextmanager
def in_float64(potential: Potential) -> Iterator[Potential]:
    """A potential in double precision for the time of a block; the way there and back loses nothing."""
    before = potential.dtype
    potential.to(torch.float64)
    try:
        yield potential
    finally:
        potential.to(before)


def _test_split(recipe: Recipe) -> str:
    groups = [group.name for group in recipe.structures.groups if group.split == "test"]
    return f"groups {', '.join(groups)}, none of which is trained on"


def _seconds(folder: Path) -> float:
    seconds: float = json.loads((folder / "timing.json").read_text())["seconds"]
    return seconds


def _advance(bar: "tqdm[Any]", done: int) -> None:
    bar.update(done - bar.n)
