"""What tests launch in several processes: labels and a training. Run as ``python tests/together.py CASE FOLDER``.

With ``--die STEP`` all processes are killed when that step is done; ``--nan STEP`` spoils the loss of the last one, and
``--fail STEP`` makes it raise, before that step. What a process raises it writes to ``raised-RANK.txt``.
"""

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from rich_teacher import Rich, labelled_cells, teacher_of

import zoo.distill.train as training
from zoo.distill.examples import make_examples
from zoo.distill.label import label_plan, label_structures
from zoo.distill.task import Task, needs_teacher
from zoo.distill.workers import Workers, launched_workers
from zoo.errors import LabelError, ZooError
from zoo.recipe import HessianSwitch, LabelsSection, LossSection, TrainingSection
from zoo.students import PaiNNConfig, PaiNNDTConfig

STEPS = {"steps": 12, "warmup_steps": 2, "log_every": 1, "validate_every": 5, "checkpoint_every": 3, "dtype": "float64"}
PAINN = PaiNNConfig(elements=("Si",), cutoff=4.0, channels=6, layers=2, radials=5)
LABELS = LabelsSection(probes_per_structure=3, extras=("atomic_energies", "features"), shard_size=2)
CASES: dict[str, dict[str, Any]] = {
    # every term, by the labels of a data set and the teacher's; three structures do not halve
    "conservative": {
        "config": PAINN,
        "training": TrainingSection(**STEPS, batch_size=3),
        "weights": LossSection(
            energy=5,
            force=100,
            stress=50,
            teacher_force=10,
            hessian=20,
            atomic_energy=3,
            feature=2,
            energy_from="dataset",
            force_from="dataset",
            probes_per_step=2,
            norms={"force": "huber", "stress": "l1", "teacher_force": "squared"},
            hessian_switch=HessianSwitch(within=1e6),
        ),
        "labels": LABELS,
    },
    # batches by atoms, of which one in two leaves the second process without a structure
    "direct": {
        "config": PaiNNDTConfig(elements=("Si",), cutoff=4.0, channels=6, layers=2, radials=5),
        "training": TrainingSection(**STEPS, batch_size=2, batch_atoms=16),
        "weights": LossSection(energy=5, force=100, gradient=10, hessian=20),
        "labels": LABELS,
    },
    # a learning rate that falls when the validation error, of which each process has a part, stays
    "plateau": {
        "config": PAINN,
        "training": TrainingSection(
            epochs=12,
            warmup_steps=2,
            log_every=1,
            validate_every=2,
            checkpoint_every=3,
            dtype="float64",
            batch_size=3,
            schedule="plateau",
            plateau_factor=0.5,
            plateau_patience=1,
            learning_rate=0.1,
            ema_decay=0.0,
            amsgrad=True,
            epsilon=1e-7,
        ),
        "weights": LossSection(force=100, hessian=20),
        "labels": LABELS,
    },
    # parameters that no term reaches, and a teacher that is asked at each step
    "fresh": {
        "config": PaiNNDTConfig(elements=("Si",), cutoff=4.0, channels=6, layers=2, radials=5),
        "training": TrainingSection(**STEPS, batch_size=3, weight_decay=0.5),
        "weights": LossSection(force=100, hessian=20, hessian_from="teacher", probes_per_step=2),
        "labels": LABELS,
    },
}


def cells() -> list[Atoms]:
    """Seven to learn from and three to validate with, of 8 and 16 atoms."""
    small, large = labelled_cells(10), labelled_cells(10, seed=1)
    doubled = []
    for atoms in large:
        twice = atoms.repeat((2, 1, 1))
        results = atoms.calc.results
        twice.calc = type(atoms.calc)(
            twice,
            energy=2 * results["energy"],
            forces=torch.tensor(results["forces"]).repeat(2, 1).numpy(),
            stress=results["stress"],
        )
        doubled.append(twice)
    return [doubled[number] if number % 3 == 1 else small[number] for number in range(10)]


def work(case: str, folder: Path, workers: Workers) -> None:
    """Labels and trains."""
    structures, teacher, parts = cells(), teacher_of(Rich()), CASES[case]
    plan = label_plan(structures, teacher, parts["labels"], 5, "float64")
    labels = label_structures(folder / "labels", structures, teacher, plan, workers=workers)
    if case == "labels":
        return
    task = Task(seed=3, data="data", **parts)
    examples = make_examples(structures, labels, task.config.cutoff, torch.float64)
    asked = teacher if needs_teacher(task) else None
    place = folder / ("train" if workers.main else "nobody")  # the others read no checkpoint and write nothing
    training.train(place, task, examples[:7], examples[7:], asked, workers)


def misbehave(options: argparse.Namespace, workers: Workers) -> None:
    """Does what the options say at their step."""
    original, descend = training.loss_terms, training.descend

    def spoilt(student: Any, batch: Any, *rest: Any, **more: Any) -> Any:
        terms = original(student, batch, *rest, **more)
        if not more and misbehave.step == options.fail:
            raise LabelError("this one has had enough")
        return {name: term * torch.nan for name, term in terms.items()} if misbehave.step == options.nan else terms

    def counted(state: Any, *rest: Any) -> Any:
        norm = descend(state, *rest)
        misbehave.step = state.step
        if state.step == options.die:
            os.kill(os.getpid(), signal.SIGKILL)
        return norm

    misbehave.step = 0
    training.descend = counted
    if workers.rank == workers.size - 1:
        training.loss_terms = spoilt


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("case")
    parser.add_argument("folder", type=Path)
    for option in ("--die", "--nan", "--fail"):
        parser.add_argument(option, type=int, default=-1)
    options = parser.parse_args()
    CASES["labels"] = CASES["conservative"]
    try:
        with launched_workers() as workers:
            misbehave(options, workers)
            work(options.case, options.folder, workers)
    except ZooError as error:
        (options.folder / f"raised-{workers.rank}.txt").write_text(f"{type(error).__name__}: {error}")
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
