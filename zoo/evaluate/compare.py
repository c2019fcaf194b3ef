"""Student, teacher and, where there is one, undistilled twin, measured in the same way in one run."""

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from ase import Atoms
from tqdm import tqdm

from zoo.artifact import NOVELTY
from zoo.config import write_json
from zoo.data.structures import dataset_prediction, perfect_crystal
from zoo.derivatives import asymmetry
from zoo.errors import CapabilityError, LabelError, MissingPackageError, ZooError
from zoo.evaluate.accuracy import Accuracy, DatasetErrors, accuracy, against_dataset
from zoo.evaluate.contest import Contest, Measurements
from zoo.evaluate.dynamics import Dynamics, nve
from zoo.evaluate.elasticity import Elasticity, equation_of_state
from zoo.evaluate.environment import hardware, versions
from zoo.evaluate.figures import draw
from zoo.evaluate.modes import LARGEST, mode_frequencies, mode_mae
from zoo.evaluate.novelty import fit_novelty
from zoo.evaluate.report import (
    REFERENCE,
    AccuracySettings,
    DynamicsSettings,
    EngineName,
    Figures,
    NoveltyFigures,
    PhononSettings,
    Report,
    Settings,
    TimingSettings,
    VibrationSettings,
    speedup,
)
from zoo.evaluate.speed import Timing, time_calls
from zoo.files import atomic_write
from zoo.neighbors import build_graph
from zoo.phonons import DISPLACEMENT, MESH, Phonons, phonon_mae, phonons
from zoo.potential import Potential
from zoo.recipe import Cells, Crystal, Recipe
from zoo.units import MEV_PER_EV

M = TypeVar("M")

ERRORS = ("energy_mae_meV_atom", "force_mae_meV_A", "stress_mae_GPa", "hessian_mae_eV_A2")
DATASET = ("dataset_energy_mae_meV_atom", "dataset_force_mae_meV_A")
PHONONS = ("phonon_mae_THz", "max_frequency_THz")
ELASTICITY = ("lattice_constant_A", "bulk_modulus_GPa")
AGAINST_TEACHER = (*ERRORS, "mode_mae_THz", "phonon_mae_THz")
NO_CRYSTAL = "the recipe has no crystal"
NO_DATASET = "the test structures bring no labels of a data set"
NOT_TAUGHT = "the student learned from a data set, not from its teacher"


def compare(contest: Contest, folder: Path) -> Report:
    """Measures all of them, writes figures, the student's novelty and, last, ``report.json`` into ``folder``.

    A measurement that fails for one engine, such as the equation of state of a twin that has no minimum, does not
    stop the others; its reason stands in the report. Raises MissingPackageError.
    """
    absent = _absent(contest)
    reasons: dict[EngineName, dict[str, str]] = {name: dict(absent) for name in contest.engines}
    errors = _each(contest, reasons, ERRORS if contest.taught else DATASET, _accuracy, without="teacher")
    measured = Measurements(
        accuracy=errors,
        dataset=_each(
            contest, reasons, DATASET, lambda contest, name: _against_dataset(contest, errors.get(name), name)
        ),
        modes=_each(contest, reasons, ("mode_mae_THz",), _modes),
        phonons=_each(contest, reasons, PHONONS, _phonons),
        elasticity=_each(contest, reasons, ELASTICITY, _elasticity),
        dynamics=_each(contest, reasons, ("drift_meV_atom_ps",), _dynamics),
        timing=_timing(contest, reasons),
        reasons=reasons,
    )
    report = _report(contest, measured, _novelty(contest, folder))
    draw(contest, measured, folder / "figures")
    write_json(folder / "report.json", report)
    return report


def require_packages() -> None:
    """Raises MissingPackageError, before hours are spent, where an evaluation could not be made."""
    missing = [package for package in ("phonopy", "matplotlib") if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingPackageError(f"evaluation needs {' and '.join(missing)}; run: pip install {' '.join(missing)}")


def _absent(contest: Contest) -> dict[str, str]:
    """What is measured of no engine, and why."""
    absent = _absent_errors(contest) if contest.taught else dict.fromkeys(AGAINST_TEACHER, NOT_TAUGHT)
    if contest.recipe.structures.crystal is None:
        absent |= dict.fromkeys((*PHONONS, *ELASTICITY), NO_CRYSTAL)
    if all(atoms.calc is None for atoms in contest.structures):
        absent |= dict.fromkeys(DATASET, NO_DATASET)
    return absent


def _absent_errors(contest: Contest) -> dict[str, str]:
    """Which errors against the teacher are measured of no engine, and why."""
    absent: dict[str, str] = {}
    traits, structures = contest.teacher.traits, contest.structures
    if contest.recipe.structures.crystal is not None:
        absent["mode_mae_THz"] = "phonons tell more of a crystal"
    elif contest.vibrating is None:
        absent["mode_mae_THz"] = f"no test structure has 2 to {LARGEST} atoms"
    if not traits.energies:
        absent["energy_mae_meV_atom"] = "the teacher gives no energies"
    if not any(all(atoms.pbc) for atoms in structures):
        absent["stress_mae_GPa"] = "the test structures have no volume"
    elif not traits.stress:
        absent["stress_mae_GPa"] = "the teacher gives no stress"
    if contest.recipe.labels.probes == "none":
        absent["hessian_mae_eV_A2"] = "the labels hold no Hessian products"
    return absent


def _each(
    contest: Contest,
    reasons: dict[EngineName, dict[str, str]],
    keys: Sequence[str],
    measure: Callable[[Contest, EngineName], M],
    without: EngineName | None = None,
) -> dict[EngineName, M]:
    found: dict[EngineName, M] = {}
    for name in contest.engines:
        if name == without or all(key in reasons[name] for key in keys):
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
    probes = [label.probes for label in labels] if contest.taught else []
    side = contest.recipe.labels.side
    return accuracy(contest.engines[name], contest.structures, predictions, probes, side=side)


def _against_dataset(contest: Contest, own: Accuracy | None, name: EngineName) -> DatasetErrors:
    """Of the teacher its labels are compared, of the others what they were just asked."""
    if name == "teacher":
        energies = np.array([label.energy.item() / len(label.forces) for label in contest.labels])
        forces = contest.teacher_forces
    elif own is None:
        raise LabelError("its errors could not be measured")
    else:
        energies, forces = own.energies, own.forces
    found = against_dataset(contest.structures, energies, forces)
    if found is None:
        raise LabelError(NO_DATASET)
    return found


def _modes(contest: Contest, name: EngineName) -> np.ndarray:
    assert contest.vibrating is not None  # otherwise nobody asks
    with in_float64(contest.engines[name]) as potential:
        return mode_frequencies(potential, contest.vibrating)


def _phonons(contest: Contest, name: EngineName) -> Phonons:
    return phonons_of(contest.recipe, contest.engines[name])


def phonons_of(recipe: Recipe, potential: Potential) -> Phonons:
    """Phonons of the recipe's crystal, in float64: finite displacements of float32 forces would show its noise.

    Raises CapabilityError where the recipe has no crystal.
    """
    crystal = _crystal(recipe)
    primitive = perfect_crystal(crystal, cell="primitive")
    large = perfect_crystal(crystal, recipe.evaluation.phonon_supercell)
    matrix = np.rint(large.cell[:] @ np.linalg.inv(primitive.cell[:])).astype(int)
    with in_float64(potential):
        return phonons(potential, primitive, matrix)


def _crystal(recipe: Recipe) -> Crystal:
    if recipe.structures.crystal is None:
        raise CapabilityError(f"{NO_CRYSTAL}; give structures.crystal")
    return recipe.structures.crystal


def _elasticity(contest: Contest, name: EngineName) -> Elasticity:
    _require_energies(contest.engines[name])
    with in_float64(contest.engines[name]) as potential:
        return equation_of_state(potential, perfect_crystal(_crystal(contest.recipe)))


def _require_energies(potential: Potential) -> None:
    if not potential.traits.energies:
        raise CapabilityError("it gives no energies")


def _dynamics(contest: Contest, name: EngineName) -> Dynamics:
    section = contest.recipe.evaluation
    steps, atoms = _dynamics_size(contest, name)
    _require_energies(contest.engines[name])
    with tqdm(total=steps, desc=f"NVE dynamics, {name}", unit="step", delay=2) as bar:
        return nve(
            atoms,
            contest.calculator(name),
            temperature_K=section.initial_temperature,
            timestep_fs=section.dynamics_timestep,
            steps=steps,
            generator=np.random.default_rng(contest.recipe.seed),
            on_step=lambda done, _: _advance(bar, done),
        )


def _dynamics_size(contest: Contest, name: EngineName) -> tuple[int, Atoms]:
    """Steps and start of a run; the teacher is slow and has its own."""
    section = contest.recipe.evaluation
    if name == "teacher":
        return section.teacher_dynamics_steps, _scene(contest, section.teacher_dynamics_supercell)
    return section.dynamics_steps, _scene(contest, section.dynamics_supercell)


def _scene(contest: Contest, supercell: Cells) -> Atoms:
    """What dynamics starts from and calls are timed on: the crystal, without one the first test structure."""
    crystal = contest.recipe.structures.crystal
    return contest.structures[0].copy() if crystal is None else perfect_crystal(crystal, supercell)


def _timing(contest: Contest, reasons: dict[EngineName, dict[str, str]]) -> dict[str, Timing]:
    """Of the engines that ASE can ask, which takes energies."""
    section = contest.recipe.evaluation
    able = {name: potential for name, potential in contest.engines.items() if potential.traits.energies}
    for name in contest.engines.keys() - able.keys():
        reasons[name]["ms_per_call"] = "it gives no energies"
    return time_calls(
        {name: contest.calculator(name) for name in able},
        _scene(contest, section.timing_supercell),
        repeats=section.timing_repeats,
        generator=np.random.default_rng(contest.recipe.seed),
        threads=section.timing_threads,
    )


def _novelty(contest: Contest, folder: Path) -> NoveltyFigures | str:
    """What the student's is worth, which is written where it could be fitted; else the reason."""
    path = folder / NOVELTY
    path.unlink(missing_ok=True)
    try:
        fitted = fit_novelty(contest)
    except ZooError as error:
        return str(error)
    atomic_write(path, fitted.model.encode())
    return fitted.figures


def _report(contest: Contest, measured: Measurements, novelty: NoveltyFigures | str) -> Report:
    figures = {name: _figures(name, measured) for name in contest.engines}
    parameters = sum(parameter.numel() for parameter in contest.student.parameters())
    return Report(
        name=contest.recipe.name,
        teacher=figures["teacher"],
        student=figures["student"],
        twin=figures.get("twin"),
        speedup=speedup(figures["teacher"], figures["student"]),
        parameters=parameters,
        training_seconds={name: _seconds(folder) for name, folder in contest.trained.items()},
        novelty=None if isinstance(novelty, str) else novelty,
        novelty_reason=novelty if isinstance(novelty, str) else None,
        settings=_settings(contest, measured),
        hardware=hardware(),
        versions=versions(),
    )


def _figures(name: EngineName, measured: Measurements) -> Figures:
    values: dict[str, float | None] = {}
    reasons = dict(measured.reasons[name])
    if name == "teacher":
        reasons = dict.fromkeys(AGAINST_TEACHER, REFERENCE) | reasons
    elif name in measured.accuracy:
        values |= {key: getattr(measured.accuracy[name], key) for key in ERRORS}
    values |= _harmonic_figures(name, measured)
    if name in measured.dataset:
        values["dataset_energy_mae_meV_atom"] = measured.dataset[name].energy_mae_meV_atom
        values["dataset_force_mae_meV_A"] = measured.dataset[name].force_mae_meV_A
        reasons.setdefault("dataset_energy_mae_meV_atom", "no composition occurs twice in the test set, or no energies")
    if name in measured.elasticity:
        values["lattice_constant_A"] = measured.elasticity[name].lattice_constant_A
        values["bulk_modulus_GPa"] = measured.elasticity[name].bulk_modulus_GPa
    if name in measured.dynamics:
        values["drift_meV_atom_ps"] = measured.dynamics[name].drift_meV_atom_ps
        reasons |= {"drift_meV_atom_ps": measured.dynamics[name].reason or ""}
    if name in measured.timing:
        values["ms_per_call"] = measured.timing[name].median_ms
    return Figures.of(
        {key: value for key, value in values.items() if value is not None and key not in measured.reasons[name]},
        reasons,
        "it could not be compared with the teacher",
    )


def _harmonic_figures(name: EngineName, measured: Measurements) -> dict[str, float | None]:
    """Of phonons and of the vibrations of one structure."""
    values: dict[str, float | None] = {}
    if name in measured.phonons:
        values["max_frequency_THz"] = measured.phonons[name].max_frequency_THz
    if name != "teacher" and {name, "teacher"} <= measured.phonons.keys():
        values["phonon_mae_THz"] = phonon_mae(measured.phonons["teacher"], measured.phonons[name])
    if name != "teacher" and {name, "teacher"} <= measured.modes.keys():
        values["mode_mae_THz"] = mode_mae(measured.modes["teacher"], measured.modes[name])
    return values


def _settings(contest: Contest, measured: Measurements) -> Settings:
    section, vibrating = contest.recipe.evaluation, contest.vibrating
    return Settings(
        accuracy=_accuracy_settings(contest),
        vibrations=VibrationSettings(formula=str(vibrating.symbols), atoms=len(vibrating))
        if measured.modes and vibrating is not None
        else None,
        phonons=_phonon_settings(contest.recipe),
        dynamics={name: _dynamics_settings(contest, name, run) for name, run in measured.dynamics.items()},
        timing=TimingSettings(
            atoms=len(_scene(contest, section.timing_supercell)),
            repeats=section.timing_repeats,
            threads=section.timing_threads,
            device=str(contest.student.device),
            dtype=str(contest.student.dtype).removeprefix("torch."),
            spread_ms={name: (timing.low_ms, timing.high_ms) for name, timing in measured.timing.items()},
        ),
    )


def _accuracy_settings(contest: Contest) -> AccuracySettings:
    return AccuracySettings(
        structures=len(contest.structures),
        atoms=sum(len(atoms) for atoms in contest.structures),
        mean_force_meV_A=_mean_force(contest),
        probes=max(len(label.probes) for label in contest.labels) if contest.taught else 0,
        probe_kind=contest.recipe.labels.probes,
        description=_test_split(contest.recipe),
        dataset_structures=sum(dataset_prediction(atoms) is not None for atoms in contest.structures),
        teacher_asymmetry=teacher_asymmetry(contest),
        label_error_eV_A2=_label_error(contest),
    )


def _label_error(contest: Contest) -> float | None:
    found = contest.labels.products_and_errors() if contest.taught else None
    return None if found is None else found[1]


def teacher_asymmetry(contest: Contest) -> float | None:
    """Of the Jacobian of its forces, in the smallest test structure; None where they are a gradient, or not learned."""
    if contest.teacher.traits.conservative or not contest.taught:
        return None
    smallest = min(contest.structures, key=len)
    with in_float64(contest.teacher) as teacher:
        graph = build_graph(smallest, teacher.cutoff, dtype=teacher.dtype, device=teacher.device)
        return asymmetry(teacher.hessian(graph))


def _phonon_settings(recipe: Recipe) -> PhononSettings | None:
    crystal = recipe.structures.crystal
    if crystal is None:
        return None
    return PhononSettings(
        atoms=len(perfect_crystal(crystal, recipe.evaluation.phonon_supercell)),
        displacement_A=DISPLACEMENT,
        mesh=MESH,
        lattice_constant_A=crystal.lattice_constant,
    )


def _mean_force(contest: Contest) -> float | None:
    forces = np.abs(contest.teacher_forces if contest.taught else contest.dataset_forces)
    forces = forces[~np.isnan(forces)]
    return float(forces.mean()) * MEV_PER_EV if forces.size else None


def _dynamics_settings(contest: Contest, name: EngineName, run: Dynamics) -> DynamicsSettings:
    _, atoms = _dynamics_size(contest, name)
    section = contest.recipe.evaluation
    return DynamicsSettings(
        atoms=len(atoms),
        steps=max(len(run.times_ps) - 1, 1),
        timestep_fs=section.dynamics_timestep,
        temperature_K=section.initial_temperature,
        completed=run.completed,
    )


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
    groups = [group for group in recipe.structures.groups if group.split == "test"]
    told = f"groups {', '.join(group.name for group in groups)}, none of which is trained on"
    shared = any(group.kind == "frames" and group.shared for group in groups)
    subsets = [recipe.structures.subsets[group.subset] for group in groups if group.kind == "subset"]
    if any(subset.division.by == "frame" for subset in subsets):
        return f"{told}; frames were divided one by one, so that others of their trajectories are"
    return f"{told}; the same frames, displaced otherwise, are" if shared else told


def _seconds(folder: Path) -> float:
    seconds: float = json.loads((folder / "timing.json").read_text())["seconds"]
    return seconds


def _advance(bar: "tqdm[Any]", done: int) -> None:
    bar.update(done - bar.n)
