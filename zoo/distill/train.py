"""The training loop. Killed and started again, it ends with the same weights, bit for bit, on a CPU.

Everything drawn at random depends on the seed and the step alone, so that a checkpoint needs no generator's state.
"""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from ase import Atoms
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from zoo.artifact import DTYPES
from zoo.config import digest, write_json
from zoo.data.labels import Labels
from zoo.distill.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from zoo.distill.loss import Batch, Example, loss_terms, make_batch, weighted_sum
from zoo.errors import DivergedError, IntegrityError
from zoo.files import atomic_write, sync
from zoo.neighbors import build_graph
from zoo.recipe import LossSection, TrainingSection
from zoo.students import Student, StudentConfig, build_student

WEIGHTS = "model.safetensors"
CHECKPOINT = Path("checkpoint") / "last.safetensors"


@dataclass(frozen=True)
class Task:
    """Everything that decides the weights of a student."""

    config: StudentConfig
    training: TrainingSection
    weights: LossSection
    seed: int
    data: str  # the digest of what is learned from

    @property
    def inputs(self) -> str:
        """Hex SHA-256 of all of it."""
        return digest(
            [self.config.model_dump(), self.training.model_dump(), self.weights.model_dump(), self.seed, self.data]
        )


def train(folder: Path, task: Task, examples: list[Example], validation: list[Example]) -> Student:
    """Fits a student, going on from the checkpoint in ``folder`` if there is one, and returns its averaged weights.

    Raises ConfigError where the checkpoint is of another task, DivergedError where loss or gradient are not finite; the
    last good checkpoint stays.
    """
    training, weights = task.training, task.weights
    state = start(folder, task, examples)
    log = Metrics(folder, state.step)
    for step in tqdm(
        range(state.step, training.steps),
        initial=state.step,
        total=training.steps,
        desc=f"train {folder.name}",
        unit="step",
        delay=2,
    ):
        batch = draw_batch(examples, step, task.seed, training.batch_size, weights.probes_per_step)
        terms = loss_terms(state.student, batch, weights)
        loss = weighted_sum(terms, weights)
        norm = descend(state, loss, training)
        if state.step % training.log_every == 0:
            log.write(state.step, "train", terms, loss=loss, gradient_norm=norm)
        if state.step % training.validate_every == 0 or state.step == training.steps:
            log.write(state.step, "validation", validation_terms(averaged(state), validation, task))
        if state.step % training.checkpoint_every == 0 or state.step == training.steps:
            log.close()
            save_checkpoint(folder / CHECKPOINT, state, task.inputs)
    student = averaged(state)
    atomic_write(folder / WEIGHTS, save(student.state_dict()))
    return student


def start(folder: Path, task: Task, examples: list[Example]) -> TrainingState:
    """The state that training goes on from: that of the checkpoint, or a fresh one."""
    student = build_student(task.config, torch.Generator().manual_seed(task.seed))
    fit_references(student, examples)
    student.to(DTYPES[task.training.dtype])
    optimizer = torch.optim.AdamW(student.parameters(), lr=1.0, weight_decay=task.training.weight_decay)
    average = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    state = TrainingState(student, average, optimizer)
    if (folder / CHECKPOINT).exists():
        load_checkpoint(folder / CHECKPOINT, state, task.inputs)
    return state


def descend(state: TrainingState, loss: Tensor, training: TrainingSection) -> Tensor:
    """One step down the clipped gradient; returns its length. Raises DivergedError before any harm is done."""
    _check_finite("the loss", loss, state.step)
    state.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_(state.student.parameters(), training.clip_norm)
    _check_finite("the gradient of the loss", norm, state.step)
    state.optimizer.param_groups[0]["lr"] = learning_rate(training, state.step)
    state.optimizer.step()
    update_average(state, training.ema_decay)
    state.step += 1
    return norm


def read_weights(folder: Path, student: Student) -> Student:
    """The weights that training left in ``folder``. Raises IntegrityError for a broken file."""
    path = folder / WEIGHTS
    try:
        student.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise IntegrityError(
            f"{path} cannot be read ({error}); delete the folder {folder} and run the same again"
        ) from error
    return student.eval().requires_grad_(False)


def make_examples(structures: Sequence[Atoms], labels: Labels, cutoff: float, dtype: torch.dtype) -> list[Example]:
    """Structures with their labels, their neighbours found once."""
    return [
        Example(
            graph=build_graph(atoms, cutoff, dtype=dtype),
            energy=label.energy.double(),
            forces=label.forces.to(dtype),
            stress=label.stress.to(dtype),
            probes=label.probes.to(dtype),
            hessian_products=label.hessian_products.to(dtype),
        )
        for atoms, label in zip(structures, labels, strict=True)
    ]


def fit_references(student: Student, examples: list[Example]) -> None:
    """Sets what the network need not learn: element energies by least squares, the scale of energies, neighbours."""
    composition = torch.zeros(len(examples), len(student.elements), dtype=torch.float64)
    for row, example in enumerate(examples):
        composition[row] = torch.bincount(student.slots[example.graph.numbers], minlength=len(student.elements))
    energies = torch.stack([example.energy for example in examples])
    solution = torch.linalg.lstsq(composition, energies[:, None], driver="gelsd").solution[:, 0]
    student.references.copy_(solution)
    forces = torch.cat([example.forces for example in examples])
    student.scale.fill_(float(forces.square().mean().sqrt()) or 1.0)  # eV, over one Å
    edges = sum(example.graph.num_edges for example in examples)
    atoms = sum(example.graph.num_atoms for example in examples)
    student.average_neighbors.fill_(max(edges / atoms, 1.0))


def draw_batch(examples: list[Example], step: int, seed: int, size: int, probes: int) -> Batch:
    """The batch of a step: each epoch a new order, each step new probes out of the stored ones."""
    size = min(size, len(examples))
    per_epoch = len(examples) // size
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(len(examples), generator=_generator(seed, 1, epoch))
    chosen = [examples[int(index)] for index in order[place * size : (place + 1) * size]]
    random = _generator(seed, 2, step)
    choices = [torch.randperm(len(example.probes), generator=random)[:probes] for example in chosen]
    return make_batch(chosen, choices)


def learning_rate(training: TrainingSection, step: int) -> float:
    """Linear warm-up, then a cosine from the first rate to the final one."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(training.steps - training.warmup_steps, 1)
    low, high = training.final_learning_rate, training.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * progress)) / 2


def update_average(state: TrainingState, decay: float) -> None:
    """Moves the averaged weights towards the present ones, faster in the first steps."""
    decay = min(decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for name, parameter in state.student.named_parameters():
            state.average[name].lerp_(parameter, 1 - decay)


def averaged(state: TrainingState) -> Student:
    """A student with the averaged weights."""
    student = build_student(state.student.config)
    student.to(next(state.student.parameters()).dtype)
    student.load_state_dict(state.student.state_dict() | state.average)
    return student.eval().requires_grad_(False)


def validation_terms(student: Student, examples: list[Example], task: Task) -> dict[str, Tensor]:
    """Means over batches of the terms, on structures that are not trained on, with all stored probes."""
    size = task.training.batch_size
    found: dict[str, list[Tensor]] = {}
    for first in range(0, len(examples), size):
        batch = examples[first : first + size]
        choices = [torch.arange(len(example.probes)) for example in batch]
        for name, term in loss_terms(student, make_batch(batch, choices), task.weights, create_graph=False).items():
            found.setdefault(name, []).append(term.detach())
    return {name: torch.stack(terms).mean() for name, terms in found.items()}


class Metrics:
    """``metrics.jsonl``: one line a record, complete lines only, nothing after the step that a run goes on from.

    Times go to ``timing.json`` instead, for they are never the same twice.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        self.timing = folder / "timing.json"
        folder.mkdir(parents=True, exist_ok=True)
        kept = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in kept if line.endswith("\n") and json.loads(line)["step"] <= step]
        atomic_write(self.path, "".join(kept))
        self.seconds = json.loads(self.timing.read_text())["seconds"] if step and self.timing.exists() else 0.0
        self.started = time.perf_counter()

    def write(self, step: int, split: str, terms: dict[str, Tensor], **more: Tensor) -> None:
        """Appends a record; it can be read at once."""
        values = {name: value.item() for name, value in (terms | more).items()}
        with self.path.open("a") as stream:
            stream.write(json.dumps({"step": step, "split": split, **values}) + "\n")

    def close(self) -> None:
        """Brings the records to the disk and notes the seconds of training so far, interruptions left out."""
        sync(self.path)
        seconds = self.seconds + time.perf_counter() - self.started
        write_json(self.timing, {"seconds": round(seconds, 3)})


def _check_finite(what: str, value: Tensor, step: int) -> None:
    if not torch.isfinite(value):
        raise DivergedError(
            f"{what} is {value.item()} at step {step}; lower training.learning_rate in the recipe and pass --replace"
        )


def _generator(*keys: int) -> torch.Generator:
    seed = int.from_bytes(hashlib.sha256(repr(keys).encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(seed)
