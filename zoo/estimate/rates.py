"""Seconds that teacher and student take for one structure, measured here."""

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms

from zoo.artifact import DTYPES
from zoo.calculator import check_elements as check_known
from zoo.data.labels import draw_probes
from zoo.errors import ZooError
from zoo.neighbors import build_graph
from zoo.potential import Potential, given
from zoo.recipe import Recipe
from zoo.run import Run
from zoo.students import HEAVY, build_student
from zoo.teachers import absent

_SLOW = 3.0  # s; a teacher that takes longer is not asked for a product too
_PATIENCE = 10.0  # s; a first call that takes longer, though it prepares what later ones find ready, is the only one
BATCH = 512  # atoms of the batch that a step is timed with, at most
_STEP_ATOMS = 128  # of a larger structure no step is measured: one of GemNet on 370 atoms takes over 5 GiB
_MADE_SIDE = 4  # sites along an edge of a structure that is made up, at most
_SPACING, _JITTER = 2.2, 0.6  # Å; its atoms are on a grid, each moved by as much, so that two are 1 Å apart or more
_NONE_HERE = "no structure was found here"
_STEP_CALLS = 3  # what a step costs of a network that goes on from its teacher's weights: as many of its calls
_PRODUCT_CALLS = 2  # what a Hessian product costs of a teacher too slow to be asked for one


@dataclass(frozen=True)
class Rate:
    """Seconds, measured here on one structure of this size."""

    atoms: int
    call: float | None  # of the teacher, for energy and forces
    product: float | None  # of the teacher, for a product of the Hessian
    step: float | None  # of training, a structure
    unknown: str = ""  # why the teacher has none
    no_step: str = ""  # why the student has none
    made_up: int = 0  # atoms of the made-up structure that the student saw instead, if it did
    memory: int | None = None  # bytes, the most that the process had


UNMEASURED = Rate(0, None, None, None, unknown="not measured", no_step="not measured")


def measured(run: Run, sample: Atoms | None, size: int | None) -> Rate:
    """What teacher and student take for one structure; the student for a made-up one where that is none, or large."""
    recipe, seen = run.recipe, sample
    call, product, unknown = _teacher_rate(run, sample)
    if sample is not None and len(sample) > _STEP_ATOMS:
        seen = _made_up(recipe.student.elements, len(sample))
    elif sample is None and size is not None:
        seen = _made_up(recipe.student.elements, size)
    step, no_step = _step_rate(recipe, seen)
    if step is None and call is not None and recipe.training.start == "teacher":
        step, seen = _STEP_CALLS * call, sample
    made_up = 0 if seen is None or seen is sample else len(seen)
    memory = None if call is None and step is None else _peak_memory()
    return Rate(made_up if sample is None else len(sample), call, product, step, unknown, no_step, made_up, memory)


def _teacher_rate(run: Run, sample: Atoms | None) -> tuple[float | None, float | None, str]:
    """Of a call and of a product, or why there is none."""
    if sample is None:
        cannot = run.handed is None and absent(run.recipe.teacher.name) is not None
        return None, None, "the teacher cannot run here" if cannot else _NONE_HERE
    try:
        return *_time_teacher(run.recipe, run.teacher.potential, sample), ""
    except ZooError as error:
        return None, None, f"the teacher cannot run here ({str(error).partition(';')[0]})"


def _step_rate(recipe: Recipe, atoms: Atoms | None) -> tuple[float | None, str]:
    """Of a step of training, or why there is none."""
    if recipe.student.architecture in HEAVY:
        return None, f"a step of {recipe.student.architecture} takes gigabytes, and is not taken in a dry run"
    if atoms is None:
        return None, _NONE_HERE
    if strange := sorted(set(atoms.get_chemical_symbols()) - set(recipe.student.elements)):
        return None, f"student.elements lacks {', '.join(strange)} of the structure to measure on"
    try:
        return _time_step(recipe, atoms), ""
    except ZooError as error:
        return None, f"the student cannot be measured ({str(error).partition(';')[0]})"


def _made_up(elements: Sequence[str], size: int) -> Atoms:
    """Atoms at random, as dense as in a molecule: about as many as ``size``, or a crystal of fewer, for larger ones."""
    side = min(math.ceil(max(size, 1) ** (1 / 3)), _MADE_SIDE)
    sites = np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3) - (side - 1) / 2  # (sites, 3)
    nearest = sites[np.argsort(np.linalg.norm(sites, axis=1), kind="stable")[: max(size, 1)]]
    jitter = np.random.default_rng(0).uniform(-_JITTER, _JITTER, nearest.shape)
    symbols = [elements[place % len(elements)] for place in range(len(nearest))]
    large = size > len(nearest)
    return Atoms(symbols, _SPACING * nearest + jitter, cell=[_SPACING * side] * 3 if large else None, pbc=large)


def _time_teacher(recipe: Recipe, potential: Potential, atoms: Atoms) -> tuple[float, float]:
    """Seconds of a call for energy and forces, and of a product of the Hessian. Raises DomainError."""
    check_known(atoms, potential)
    graph = build_graph(atoms, potential.cutoff, dtype=potential.dtype, device=potential.device)
    call = _seconds(lambda: potential.predict(graph, stress=True))
    labels = recipe.labels
    if labels.probes == "none":
        return call, 0.0
    if call > _SLOW:
        return call, _PRODUCT_CALLS * call
    count = min(labels.stored_probes or 2, 2)
    probes = draw_probes("rademacher", count, len(atoms), torch.Generator().manual_seed(0))
    probes = probes.to(potential.device, potential.dtype)
    if labels.forward_mode:
        return call, _seconds(lambda: potential.force_columns(graph, probes)) / count
    both = _seconds(lambda: potential.predict(graph, stress=True, probes=probes, side=labels.side))
    return call, max(both - call, 0.0) / count


def _time_step(recipe: Recipe, atoms: Atoms) -> float:
    """Seconds, a structure of a batch of copies, of the backward pass through all that the loss weighs."""
    loss, config = recipe.loss, recipe.student.model_copy(update={"teacher_channels": 0})
    student = build_student(config, torch.Generator().manual_seed(0)).to(DTYPES[recipe.training.dtype])
    copies = max(min(recipe.training.batch_size, BATCH // len(atoms)), 1)
    graph = build_graph([atoms] * copies, config.cutoff, dtype=student.dtype)
    student.calibrate([graph])
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    probes = None
    if loss.hessian > 0:
        drawn = draw_probes("rademacher", loss.probes_per_step, graph.num_atoms, torch.Generator().manual_seed(0))
        probes = drawn.to(student.dtype)

    def step() -> None:
        answer = student.predict(
            graph, stress=loss.stress > 0, probes=probes, gradient=loss.gradient > 0, create_graph=True
        )
        parts = [answer.energy, given(answer.forces), answer.stress, answer.hessian_products, answer.energy_gradient]
        total = torch.stack([part.double().square().mean() for part in parts if part is not None]).sum()
        torch.autograd.grad(total, trained, allow_unused=True)

    return _seconds(step) / copies


def _seconds(call: Callable[[], object]) -> float:
    """The quickest of four calls after a first one, for what else runs only makes them slower; fewer where slow."""
    times: list[float] = []
    while len(times) < 5:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        if sum(times) > _PATIENCE:
            break
    return min(times[1:] or times)


def _peak_memory() -> int:
    """Bytes, the most that this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
