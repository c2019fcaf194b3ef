"""The batch of each step, decided by the seed and the step alone, so that a checkpoint needs no generator's state."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zoo.data.labels import draw_probes
from zoo.distill.loss import Batch, Example, make_batch
from zoo.distill.task import Task
from zoo.distill.workers import ALONE, Workers
from zoo.neighbors import build_graph
from zoo.ops import deterministic
from zoo.potential import Potential, Prediction, given
from zoo.recipe import TrainingSection

_VALIDATION_PROBES = 8  # of a dense Hessian, whose rows are many


class Batches:
    """Batches of training: each epoch a new order, each step new probes."""

    def __init__(
        self, examples: Sequence[Example], task: Task, teacher: Potential | None = None, workers: Workers = ALONE
    ) -> None:
        self.examples = examples
        self.task = task
        self.teacher = teacher
        self.workers = workers
        self._epochs: list[list[list[int]]] = []  # of the epochs so far, the batches, each of numbers of examples
        self._starts = [0]  # the first step of each epoch, and of the next

    def indices(self, step: int) -> list[int]:
        """The examples of a step, of all workers together."""
        while self._starts[-1] <= step:
            self._epochs.append(epoch(self.examples, self.task, len(self._epochs)))
            self._starts.append(self._starts[-1] + len(self._epochs[-1]))
        now = bisect_right(self._starts, step) - 1
        return self._epochs[now][step - self._starts[now]]

    def at(self, step: int) -> Batch | None:
        """This worker's part of the batch of a step; None where there is nothing left for it."""
        chosen, random = self.indices(step), generator(self.task.seed, 2, step)
        # drawn for the whole batch, whoever computes what, so that workers and one process draw the same
        pairs = [(self.examples[index], self._draw(self.examples[index], random)) for index in chosen]
        mine = self.workers.share(pairs, [self.examples[index].graph.num_edges for index in chosen])
        if not mine:
            return None
        examples, draws = [example for example, _ in mine], [draw for _, draw in mine]
        if self.teacher is not None and self.task.weights.hessian > 0:
            return self._ask(examples, draws)
        return make_batch(examples, draws, self.task.labels.side)

    def _draw(self, example: Example, random: torch.Generator) -> Tensor:
        """The numbers of stored probes (probes,), or fresh probes (probes, atoms, 3), of one structure."""
        weights = self.task.weights
        if weights.hessian == 0:
            return torch.zeros(0, dtype=torch.int64)
        if self.teacher is not None:
            return draw_probes(self.task.labels.probes, weights.probes_per_step, example.graph.num_atoms, random)
        return torch.randperm(len(example.probes), generator=random)[: weights.probes_per_step]

    def _ask(self, examples: Sequence[Example], vectors: Sequence[Tensor]) -> Batch:
        """The batch with products of fresh probes, which the teacher is asked for now."""
        assert self.teacher is not None
        batch = make_batch(examples, [torch.zeros(0, dtype=torch.int64) for _ in examples], self.task.labels.side)
        graph = build_graph(
            [example.atoms for example in examples],
            self.teacher.cutoff,
            dtype=self.teacher.dtype,
            device=self.teacher.device,
        )
        probes = torch.cat(list(vectors), dim=1)
        with deterministic():
            answer = self.teacher.predict(graph, probes=probes.to(graph.positions), side=batch.side).cpu()
        dtype = batch.graph.positions.dtype
        products = given(answer.hessian_products).to(dtype)
        return Batch(
            graph=batch.graph,
            teacher=Prediction(**vars(batch.teacher) | {"hessian_products": products}),
            probes=probes.to(dtype),
            dataset=batch.dataset,
            side=batch.side,
        )


def epoch(examples: Sequence[Example], task: Task, number: int) -> list[list[int]]:
    """The batches of an epoch, each of numbers of examples, which come in an order of its own."""
    order = torch.randperm(len(examples), generator=generator(task.seed, 1, number))
    return pack(examples, order.tolist(), task.training)


def counted(task: Task, examples: Sequence[Example]) -> Task:
    """The task with its epochs counted in steps, each as many as the first has batches.

    Where ``batch_atoms`` or ``batch_edges`` limit them, epochs in other orders may have some batches more or fewer; the
    training ends with its last step then, not with an epoch. Raises ConfigError where the warm-up is as long as that.
    """
    if task.training.epochs is None:
        return task
    return replace(task, training=task.training.in_steps(len(epoch(examples, task, 0))))


def pack(
    examples: Sequence[Example], order: Sequence[int], training: TrainingSection, *, all_of_them: bool = False
) -> list[list[int]]:
    """Batches in order, each as full as the recipe allows; the last, seldom full, only where it is the only one."""
    limits = (training.batch_size, training.batch_atoms, training.batch_edges)
    batches: list[list[int]] = [[]]
    filled = (0, 0, 0)
    for index in order:
        graph = examples[index].graph
        more = (filled[0] + 1, filled[1] + graph.num_atoms, filled[2] + graph.num_edges)
        if batches[-1] and any(limit is not None and size > limit for size, limit in zip(more, limits, strict=True)):
            batches.append([])
            more = (1, graph.num_atoms, graph.num_edges)
        batches[-1].append(index)
        filled = more
    full = any(limit is not None and size >= limit for size, limit in zip(filled, limits, strict=True))
    return batches if all_of_them or full or len(batches) == 1 else batches[:-1]


def validation_batches(examples: Sequence[Example], task: Task) -> list[Batch]:
    """All examples in order, with all their stored probes, of a dense Hessian some rows."""
    batches, count = [], min((len(example.probes) for example in examples), default=0)
    if task.labels.probes == "dense":
        count = min(count, _VALIDATION_PROBES)
    for indices in pack(examples, range(len(examples)), task.training, all_of_them=True):
        chosen = [examples[index] for index in indices]
        batches.append(make_batch(chosen, [_some_probes(example, count, task) for example in chosen], task.labels.side))
    return batches


def _some_probes(example: Example, count: int, task: Task) -> Tensor:
    """(count,) As many of each structure, for the mean over probes and atoms to be that of all structures."""
    if task.weights.hessian == 0:
        return torch.zeros(0, dtype=torch.int64)
    return torch.randperm(len(example.probes), generator=generator(task.seed, 3))[:count].sort().values


def generator(*keys: int) -> torch.Generator:
    """A generator of its own for each set of keys."""
    seed = int.from_bytes(hashlib.sha256(repr(keys).encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(seed)
