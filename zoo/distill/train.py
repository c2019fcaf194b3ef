"""The training loop. Killed and started again, it ends with the same weights, bit for bit, on a CPU in eager mode."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from zoo.artifact import DTYPES
from zoo.distill.batches import Batches, counted, generator, validation_batches
from zoo.distill.checkpoint import Apprentice, Plateau, TrainingState, load_checkpoint, save_checkpoint
from zoo.distill.compiled import CompiledGradient, trained_parameters
from zoo.distill.examples import check_targets, fit_references, relative_energies, zeros_of_elements
from zoo.distill.loss import Batch, Example, Terms, loss_terms, norm_term, term_count, weighted_sum
from zoo.distill.metrics import Metrics
from zoo.distill.task import Task
from zoo.distill.workers import ALONE, Workers
from zoo.errors import CapabilityError, DivergedError, IntegrityError
from zoo.files import atomic_write
from zoo.potential import Potential, given
from zoo.recipe import LossSection, Term, TrainingSection
from zoo.students import Student, build_student
from zoo.teachers import Teacher

WEIGHTS = "model.safetensors"
CHECKPOINT = Path("checkpoint") / "last.safetensors"


def train(
    folder: Path,
    task: Task,
    examples: Sequence[Example],
    validation: Sequence[Example],
    teacher: Teacher | None = None,
    workers: Workers = ALONE,
) -> Student:
    """Fits a student, going on from the checkpoint in ``folder`` if there is one, and returns its averaged weights.

    A teacher is needed where it is asked at each step, where the student has its table of elements, and where it starts
    from its weights. Raises ConfigError where the checkpoint is of another task or the warm-up as long as the training,
    LabelError where a label is missing that a term learns from, DivergedError where loss or gradient are not finite;
    the last good checkpoint stays.
    """
    for name, part in (("training", examples), ("validation", validation)):
        check_targets(name, part, task.weights, task.labels)
    task = counted(task, examples)
    state = start(folder, task, examples, teacher, workers)
    if task.weights.atomic_energy > 0:
        zeros = zeros_of_elements(state.student, examples, task.weights)
        examples, validation = (relative_energies(state.student, part, zeros) for part in (examples, validation))
    asked = _potential_to_ask(task, teacher)
    _run(folder, state, task, Batches(examples, task, asked, workers), validation_batches(validation, task))
    student = averaged(state)
    if workers.main:
        atomic_write(folder / WEIGHTS, save(student.state_dict()))
    workers.wait()
    return student


def _run(folder: Path, state: TrainingState, task: Task, batches: Batches, validation: Sequence[Batch]) -> None:
    """The loop itself: steps, with a record, a validation and a checkpoint now and then."""
    training, workers = task.training, batches.workers
    compiled = compiled_step(state, task) if training.compile else None
    log = Metrics(folder, state.step) if workers.main else None
    with tqdm(
        range(state.step, task.steps),
        initial=state.step,
        total=task.steps,
        desc=f"train {folder.name}",
        unit="step",
        delay=2,
        disable=not workers.main,
    ) as bar:
        for step in bar:
            weights = current_weights(state, task.weights)
            terms, loss, norm = train_step(state, batches.at(step), weights, training, workers, compiled)
            if log is not None and state.step % training.log_every == 0:
                log.write(state.step, "train", terms, loss=loss, gradient_norm=norm)
            if state.step % training.validate_every == 0 or state.step == task.steps:
                validate(state, validation, task, log, workers)
                bar.set_postfix_str(_standing(state), refresh=False)
            if log is not None and (state.step % training.checkpoint_every == 0 or state.step == task.steps):
                log.close()
                save_checkpoint(folder / CHECKPOINT, state, task.inputs)


def start(
    folder: Path,
    task: Task,
    examples: Sequence[Example],
    teacher: Teacher | None = None,
    workers: Workers = ALONE,
) -> TrainingState:
    """The state that training goes on from: that of the checkpoint, of an earlier round, or a fresh one."""
    random = generator(task.seed, 0)
    student = build_student(task.config, torch.Generator().manual_seed(task.seed))
    if task.config.teacher_channels:
        student.set_teacher_embedding(_teacher_embedding(student, teacher))
    if task.training.start == "teacher":
        student.start_from(_teacher_to_start_from(teacher))
    fit_references(student, examples, task.weights)
    student.to(DTYPES[task.training.dtype])
    apprentice = Apprentice(student, _projection(student, examples, task, random))
    optimizer = _optimizer(apprentice, task.training)
    if task.initial is not None:
        student.load_state_dict(load_file(task.initial))
    average = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    state = TrainingState(apprentice, average, optimizer)
    state.plateau = Plateau() if task.training.schedule == "plateau" else None
    workers.by_main(lambda: _load_if_there(folder / CHECKPOINT, state, task.inputs))
    _take_from_main(state, workers)
    return state


def _optimizer(apprentice: Apprentice, training: TrainingSection) -> torch.optim.AdamW:
    """AdamW, whose learning rate is set anew at each step."""
    return torch.optim.AdamW(
        apprentice.parameters(),
        lr=1.0,
        eps=training.epsilon,
        weight_decay=training.weight_decay,
        amsgrad=training.amsgrad,
    )


def _load_if_there(path: Path, state: TrainingState, inputs: str) -> None:
    if path.exists():
        load_checkpoint(path, state, inputs)


def train_step(
    state: TrainingState,
    batch: Batch | None,
    weights: LossSection,
    training: TrainingSection,
    workers: Workers = ALONE,
    compiled: CompiledGradient[Batch] | None = None,
) -> tuple[Terms, Tensor, Tensor]:
    """One step: the terms, the loss and the length of its gradient, over the parts of all workers."""
    state.optimizer.zero_grad(set_to_none=True)
    shares = _shares(batch, weights, workers)
    terms: Terms = {}
    loss = torch.zeros((), dtype=torch.float64)
    if batch is not None:
        terms, loss = _differentiate(state, batch, weights, shares, compiled)
    if workers.size > 1:
        terms, loss = _sum_over_workers(state, terms, loss, weights, workers)
    norm = descend(state, loss, training)
    return terms, loss, norm


def compiled_step(state: TrainingState, task: Task) -> CompiledGradient[Batch]:
    """The gradient of the loss as one compiled graph, equal to the eager one up to rounding."""
    apprentice = state.apprentice
    return CompiledGradient(
        apprentice, lambda batch: loss_terms(apprentice.student, batch, task.weights, apprentice.projection)
    )


def _differentiate(
    state: TrainingState,
    batch: Batch,
    weights: LossSection,
    shares: dict[Term, float],
    compiled: CompiledGradient[Batch] | None,
) -> tuple[Terms, Tensor]:
    """This worker's parts of terms and loss, the gradient of the latter put into the parameters."""
    if compiled is not None:
        coefficients = {name: weight * shares[name] for name, weight in weights.weights.items()}
        found, gradients = compiled(batch, coefficients)
        for parameter, gradient in zip(trained_parameters(state.apprentice), gradients, strict=True):
            parameter.grad = gradient
        parts = {name: found[name] * shares[name] for name in weights.weights}
        return parts, weighted_sum(parts, weights)
    terms = loss_terms(state.student, batch, weights, state.apprentice.projection)
    parts = {name: term * shares[name] for name, term in terms.items()}
    loss = weighted_sum(parts, weights)
    if loss.requires_grad:
        torch.autograd.backward(loss)
    return {name: part.detach() for name, part in parts.items()}, loss.detach()


def descend(state: TrainingState, loss: Tensor, training: TrainingSection) -> Tensor:
    """One step down the clipped gradient; returns its length. Raises DivergedError before any harm is done."""
    _check_finite("the loss", loss, state.step)
    norm = nn.utils.clip_grad_norm_(state.apprentice.parameters(), training.clip_norm)
    _check_finite("the gradient of the loss", norm, state.step)
    state.optimizer.param_groups[0]["lr"] = learning_rate(training, state.step, state.plateau)
    state.optimizer.step()
    update_average(state, training.ema_decay)
    state.step += 1
    return norm


def current_weights(state: TrainingState, weights: LossSection) -> LossSection:
    """The weights of now: that of the Hessian is lowered once the student is almost as good as its teacher."""
    if not state.switched or weights.hessian_switch is None:
        return weights
    return weights.model_copy(update={"hessian": weights.hessian * weights.hessian_switch.factor})


def validate(
    state: TrainingState, batches: Sequence[Batch], task: Task, log: Metrics | None, workers: Workers = ALONE
) -> None:
    """Notes the errors of the averaged student, and the best so far.

    Lowers the learning rate and the weight of the Hessian when it is time.
    """
    student = averaged(state)
    terms = validation_terms(student, batches, task.weights, state.apprentice.projection, workers)
    error = terms.get("force", terms.get("teacher_force"))
    if error is not None and float(error) < (math.inf if state.best is None else state.best[0]):
        state.best = (float(error), state.step)
    if log is not None:
        log.write(state.step, "validation", terms, **_rate_to_note(state))
    _lower_rate(state, terms, task.training, log)
    switch = task.weights.hessian_switch
    if switch is None or state.switched or error is None:
        return
    teacher = teacher_force_error(batches, task.weights)
    if float(error) < (1 + switch.within) * teacher:
        state.switched = True
        if log is not None:
            log.note(state.step, f"the weight of the Hessian is lowered by the factor {switch.factor}")


def _rate_to_note(state: TrainingState) -> dict[str, Tensor]:
    """That of the last step, where nothing but the course of the training says what it is."""
    if state.plateau is None:
        return {}
    return {"learning_rate": torch.tensor(state.optimizer.param_groups[0]["lr"], dtype=torch.float64)}


def _lower_rate(state: TrainingState, terms: Terms, training: TrainingSection, log: Metrics | None) -> None:
    """Lets the learning rate fall where the error has stayed on a plateau for too long."""
    if state.plateau is None:
        return
    watched = next(name for name in ("force", "teacher_force", "stress", "energy") if name in terms)
    before = learning_rate(training, state.step, state.plateau)
    state.plateau = state.plateau.after(float(terms[watched]), training.plateau_patience)
    after = learning_rate(training, state.step, state.plateau)
    if after < before and log is not None:
        log.note(state.step, f"the learning rate falls to {after:.3g}")


def validation_terms(
    student: Student,
    batches: Sequence[Batch],
    weights: LossSection,
    projection: nn.Module | None = None,
    workers: Workers = ALONE,
) -> Terms:
    """Means of the terms over structures that are not trained on."""
    sums: Terms = {}
    counts: dict[str, int] = {}
    for batch in workers.share(batches, [batch.graph.num_edges for batch in batches]):
        for name, term in loss_terms(student, batch, weights, projection, create_graph=False).items():
            count = term_count(name, batch)
            sums[name] = sums.get(name, torch.zeros(())) + term.detach() * count
            counts[name] = counts.get(name, 0) + count
    if workers.size == 1:
        return {name: total / counts[name] for name, total in sums.items()}
    pairs = [[float(sums.get(name, 0)), counts.get(name, 0)] for name in weights.weights]
    together = workers.total(torch.tensor(pairs, dtype=torch.float64))  # (terms, 2)
    return dict(zip(weights.weights, together[:, 0] / together[:, 1], strict=True))


def teacher_force_error(batches: Sequence[Batch], weights: LossSection) -> float:
    """The teacher's error of forces against the data set, in the norm of the student's."""
    total, atoms = 0.0, 0
    for batch in batches:
        assert batch.dataset is not None
        error = norm_term(
            given(batch.teacher.forces), given(batch.dataset.forces), weights.norm("force"), weights.huber_delta
        )
        total += float(error) * batch.graph.num_atoms
        atoms += batch.graph.num_atoms
    return total / atoms


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


def learning_rate(training: TrainingSection, step: int, plateau: Plateau | None = None) -> float:
    """Linear warm-up, then a cosine from the first rate to the final one, or falls between the two."""
    low, high = training.final_learning_rate, training.learning_rate
    if plateau is not None:
        high = max(high * training.plateau_factor**plateau.falls, low)
    if step < training.warmup_steps:
        return high * (step + 1) / training.warmup_steps
    if plateau is not None:
        return high
    progress = (step - training.warmup_steps) / max(training.total - training.warmup_steps, 1)
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


def _potential_to_ask(task: Task, teacher: Teacher | None) -> Potential | None:
    """The teacher, where it is asked for products of fresh probes."""
    if task.weights.hessian == 0 or task.weights.hessian_from == "stored":
        return None
    if teacher is None:
        raise CapabilityError("loss.hessian_from is teacher, and there is none; give train its teacher")
    return teacher.potential


def _teacher_to_start_from(teacher: Teacher | None) -> Potential:
    if teacher is None:
        raise CapabilityError("training.start is teacher, and there is none; give train its teacher")
    return teacher.potential


def _teacher_embedding(student: Student, teacher: Teacher | None) -> Tensor:
    """(elements, channels) The teacher's table, of the student's elements."""
    table = None if teacher is None else teacher.potential.element_embeddings()
    if teacher is None or table is None:
        raise CapabilityError(
            "student.teacher_channels wants the teacher's element embedding, and there is none; set it to 0"
        )
    unknown = [number for number in student.elements if number not in teacher.potential.elements]
    if unknown:
        raise CapabilityError(
            f"student.teacher_channels cannot be had: {teacher.name} does not know the element {unknown[0]} of the "
            "student; remove it from student.elements"
        )
    rows = [teacher.potential.elements.index(number) for number in student.elements]
    return table[rows].detach().cpu()


def _projection(student: Student, examples: Sequence[Example], task: Task, random: torch.Generator) -> nn.Linear | None:
    """From the student's node features to the teacher's, where they are compared."""
    if task.weights.feature == 0:
        return None
    channels = given(examples[0].teacher.features).shape[1]
    projection = nn.Linear(student.traits.features, channels)
    nn.init.xavier_uniform_(projection.weight, generator=random)
    nn.init.zeros_(projection.bias)
    return projection.to(student.dtype)


def _take_from_main(state: TrainingState, workers: Workers) -> None:
    """Gives all workers the main one's state, to the bit: the checkpoint that it read, the constants that it fitted."""
    if workers.size == 1:
        return
    modules = (state.apprentice.state_dict(), state.average, state.optimizer.state_dict())
    (apprentice, average, optimizer), facts = workers.tell(
        (modules, (state.step, state.switched, state.best, state.plateau))
    )
    if not workers.main:
        state.apprentice.load_state_dict(apprentice)
        state.average.update(average)
        state.optimizer.load_state_dict(optimizer)
        state.step, state.switched, state.best, state.plateau = facts


def _shares(batch: Batch | None, weights: LossSection, workers: Workers) -> dict[Term, float]:
    """This worker's share of what each term is a mean over, so that its parts sum to the term of the whole batch."""
    names = list(weights.weights)
    if workers.size == 1:
        return dict.fromkeys(names, 1.0)
    counts = torch.tensor([0 if batch is None else term_count(name, batch) for name in names], dtype=torch.float64)
    return dict(zip(names, (counts / workers.total(counts.clone()).clamp(min=1)).tolist(), strict=True))


def _sum_over_workers(
    state: TrainingState, terms: Terms, loss: Tensor, weights: LossSection, workers: Workers
) -> tuple[Terms, Tensor]:
    """Adds up gradients, terms and loss; all workers get the same. What none has a gradient of stays as it is."""
    parameters = list(state.apprentice.parameters())
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    there = torch.tensor([float(p.grad is not None) for p in parameters]).to(gradients[0])  # (parameters,)
    total = workers.total(torch.cat([there, *(gradient.flatten() for gradient in gradients)]))
    there, *parts = torch.split(total, [len(parameters), *(p.numel() for p in parameters)])
    for parameter, part, known in zip(parameters, parts, there.tolist(), strict=True):
        parameter.grad = part.reshape(parameter.shape) if known else None
    values = [terms[name].detach().double() if name in terms else torch.zeros(()).double() for name in weights.weights]
    sums = workers.total(torch.stack([*values, loss.detach()]))
    return dict(zip(weights.weights, sums[:-1], strict=True)), sums[-1]


def _standing(state: TrainingState) -> str:
    return "" if state.best is None else f"best force error {state.best[0]:.4f} eV/Å at step {state.best[1]}"


def _check_finite(what: str, value: Tensor, step: int) -> None:
    if not torch.isfinite(value):
        raise DivergedError(
            f"{what} is {value.item()} at step {step}; lower training.learning_rate in the recipe and pass --replace "
            "(the last good checkpoint stays until then)"
        )
