"""The batch of a step: what is in it, which probes, and that step and seed alone decide."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from ase import Atoms
from rich_teacher import Rich, teacher_of

from recipes import tiny_recipe
from zoo.data.labels import draw_probes
from zoo.distill.batches import Batches, counted, generator, pack, validation_batches
from zoo.distill.loss import Example, LossSection
from zoo.distill.task import Task
from zoo.errors import ConfigError
from zoo.neighbors import build_graph
from zoo.recipe import LabelsSection

CUTOFF = 3.0


@pytest.fixture(scope="module")
def teacher():
    return teacher_of(Rich()).potential


def chains(sizes, teacher, kind="rows", count=3) -> list[Example]:
    """Crooked chains of silicon of these lengths, each with its own distances, labelled in float64."""
    random = torch.Generator().manual_seed(5)
    made = []
    for size in sizes:
        places = torch.zeros(size, 3, dtype=torch.float64)
        places[:, 0] = 2.4 * torch.arange(size)
        places += 0.1 * torch.randn(size, 3, generator=random, dtype=torch.float64)
        atoms = Atoms(f"Si{size}", positions=places.numpy())
        probes = draw_probes(kind, None if kind == "dense" else count, size, random).double()
        answer = teacher.predict(build_graph(atoms, teacher.cutoff), stress=True, probes=probes)
        made.append(Example(build_graph(atoms, CUTOFF), atoms, answer, probes))
    return made


def task_of(*, loss=None, labels=None, seed=0, **training) -> Task:
    recipe = tiny_recipe(**{f"training__{key}": value for key, value in training.items()})
    weights = LossSection(**{"force": 1.0, "hessian": 1.0} | (loss or {}))
    section = LabelsSection(**{"probes": "rows", "probes_per_structure": 3} | (labels or {}))
    return Task(recipe.student, recipe.training, weights, seed, "data", section)


def sizes_of(batch):
    return batch.graph.atom_counts.tolist()


LIMITS = [{"batch_size": 3}, {"batch_size": 99, "batch_atoms": 9}, {"batch_size": 99, "batch_edges": 14}]


@pytest.mark.parametrize("limits", [*LIMITS, {"batch_size": 3, "batch_atoms": 9, "batch_edges": 14}])
def test_an_epoch_sees_each_structure_once_but_for_a_last_batch_that_is_not_full(limits, teacher):
    examples = chains([2, 3, 4, 5, 6, 2, 3, 4, 5, 6, 12], teacher)
    task = task_of(**limits)
    batches = Batches(examples, task)
    orders, left_out, step = [], Counter(), 0
    for epoch in range(6):
        order = torch.randperm(len(examples), generator=generator(0, 1, epoch)).tolist()
        seen: list[int] = []
        while len(seen) < len(examples) and (now := batches.indices(step)) == order[len(seen) :][: len(now)]:
            seen += now
            step += 1
        rest = order[len(seen) :]
        assert seen == order[: len(seen)]
        assert not rest or not is_full(examples, rest, task.training)
        left_out.update(rest)
        orders.append(order)
    assert len({tuple(order) for order in orders}) == 6
    assert all(count < 6 for count in left_out.values()), "a structure is never seen"


def is_full(examples, indices, training):
    return (
        len(indices) >= training.batch_size
        or sum(examples[index].graph.num_atoms for index in indices) >= (training.batch_atoms or 1e9)
        or sum(examples[index].graph.num_edges for index in indices) >= (training.batch_edges or 1e9)
    )


@pytest.mark.parametrize("limits", [*LIMITS, {"batch_size": 3, "batch_atoms": 9, "batch_edges": 14}])
def test_epochs_are_as_many_steps_each_as_the_first_has_batches(limits, teacher):
    examples = chains([2, 3, 4, 5, 6, 2, 3, 4, 5, 6, 12], teacher)
    task = task_of(steps=..., epochs=5, warmup_steps=0, **limits)
    batches, order = Batches(examples, task), torch.randperm(11, generator=generator(0, 1, 0)).tolist()
    first, seen = 0, []
    while (now := batches.indices(first)) == order[len(seen) :][: len(now)]:
        seen += now
        first += 1
    assert 2 < first < 12
    known = counted(task, examples)
    assert known.steps == 5 * first >= task.training.steps_of(11)
    assert known.training == task_of(steps=5 * first, warmup_steps=0, **limits).training
    assert counted(known, examples) is known
    assert known.training.steps_of(11) == 5 * first


@pytest.mark.parametrize(("structures", "steps"), [(1, 4), (2, 4), (3, 4), (5, 4), (6, 8), (7, 8)])
def test_where_their_number_alone_limits_a_batch_no_structure_is_needed_to_count_steps(structures, steps, teacher):
    task = task_of(steps=..., epochs=4, warmup_steps=0, batch_size=3)
    assert task.training.steps_of(structures) == steps
    assert counted(task, chains([2] * structures, teacher)).steps == steps


def test_a_warm_up_as_long_as_all_epochs_is_refused(teacher):
    examples = chains([2, 3, 4, 5], teacher)
    assert counted(task_of(steps=..., epochs=3, warmup_steps=5, batch_size=2), examples).steps == 6
    with pytest.raises(ConfigError, match=r"warmup_steps is 6, but 3 epochs of 2 batches are only 6 steps; set it low"):
        counted(task_of(steps=..., epochs=3, warmup_steps=6, batch_size=2), examples)


def test_a_batch_is_as_full_as_the_recipe_allows_and_no_fuller(teacher):
    examples = chains([2, 3, 4, 5, 6, 2, 3, 4], teacher)
    edges = [example.graph.num_edges for example in examples]
    assert edges[:3] == [2, 4, 6]
    order = range(8)
    training = task_of(batch_size=3).training
    assert pack(examples, order, training) == [[0, 1, 2], [3, 4, 5]]
    assert pack(examples, order, training, all_of_them=True) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    training = task_of(batch_size=99, batch_atoms=9).training
    assert pack(examples, order, training) == [[0, 1, 2], [3], [4, 5]]  # 9, 5 and 8 atoms; 7 remain
    training = task_of(batch_size=99, batch_edges=12).training
    assert pack(examples, order, training) == [[0, 1, 2], [3], [4, 5]]  # 12, 8 and 12 edges
    training = task_of(batch_size=2, batch_atoms=9).training
    assert pack(examples, order, training) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_structure_over_the_limit_comes_alone(teacher):
    examples = chains([2, 12, 2, 2], teacher)
    training = task_of(batch_size=99, batch_atoms=6).training
    assert pack(examples, [0, 1, 2, 3], training) == [[0], [1]]
    assert pack(examples, [2, 3, 1], training) == [[2, 3], [1]]
    assert pack(examples, [1], training) == [[1]]


def test_fewer_structures_than_a_batch_holds_are_one_batch(teacher):
    examples = chains([2, 3], teacher)
    batches = Batches(examples, task_of(batch_size=8))
    assert [sorted(batches.indices(step)) for step in range(5)] == [[0, 1]] * 5


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("kind", ["rows", "dense"])
def test_validation_sees_every_structure_once(limits, kind, teacher):
    examples = chains([2, 3, 4, 12, 6, 2, 5], teacher, kind)
    batches = validation_batches(examples, task_of(labels={"probes": kind}, **limits))
    assert [size for batch in batches for size in sizes_of(batch)] == [2, 3, 4, 12, 6, 2, 5]
    counts = {len(batch.probes) for batch in batches}
    assert counts == ({3} if kind == "rows" else {6}), "a mean of means wants as many probes of each structure"
    for batch in batches:
        expected = teacher.predict(
            build_graph([atoms_of(batch, number) for number in range(batch.graph.num_structures)], teacher.cutoff),
            probes=batch.probes,
        )
        torch.testing.assert_close(batch.teacher.hessian_products, expected.hessian_products)


def atoms_of(batch, number):
    mine = batch.graph.structure == number
    return Atoms(batch.graph.numbers[mine].numpy(), positions=batch.graph.positions[mine].numpy())


def rows_of(batch):
    """The coordinates of the one-hot probes of a batch of one structure."""
    return [int(probe.flatten().argmax()) for probe in batch.probes]


def test_rows_of_a_dense_hessian_are_drawn_afresh_each_equally_likely_and_none_twice(teacher):
    examples = chains([2], teacher, "dense")  # 6 rows
    hessian = teacher.hessian(build_graph(examples[0].atoms, teacher.cutoff))
    batches = Batches(examples, task_of(loss={"probes_per_step": 2}, labels={"probes": "dense"}))
    counts = torch.zeros(6)
    draws = set()
    steps = 1500
    for step in range(steps):
        batch = batches.at(step)
        rows = rows_of(batch)
        assert len(set(rows)) == 2
        counts[rows] += 1
        draws.add(tuple(rows))
        if step < 5:
            torch.testing.assert_close(batch.teacher.hessian_products.flatten(1), hessian[rows])
    assert len(draws) == 30
    assert (counts - steps / 3).abs().max() < 5 * (steps * (1 / 3) * (2 / 3)) ** 0.5


def test_of_a_stored_pool_some_are_drawn_at_each_step(teacher):
    examples = chains([4, 5], teacher, "rows", count=5)
    batches = Batches(examples, task_of(loss={"probes_per_step": 2}, labels={"probes_per_structure": 5}))
    pools = [{int(probe.flatten().argmax()) for probe in example.probes} for example in examples]
    seen = [set(), set()]
    for step in range(40):
        batch = batches.at(step)
        assert batch.probes.shape == (2, 9, 3)
        for number in batches.indices(step):
            mine = batch.graph.structure == batches.indices(step).index(number)
            rows = {int(probe.flatten().argmax()) for probe in batch.probes[:, mine]}
            assert len(rows) == 2
            seen[number] |= rows
    assert seen == pools


def test_without_a_term_of_the_hessian_no_probes_are_drawn(teacher):
    examples = chains([4, 5], teacher)
    task = task_of(loss={"hessian": 0.0})
    assert Batches(examples, task).at(0).probes.shape == (0, 9, 3)
    assert validation_batches(examples, task)[0].probes.shape == (0, 9, 3)
    with_teacher = Batches(examples, task_of(loss={"hessian": 0.0, "hessian_from": "teacher"}), teacher)
    assert with_teacher.at(0).probes.shape == (0, 9, 3)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "rows"])
def test_fresh_probes_have_the_products_that_would_be_stored(kind, teacher):
    """What the teacher says at a step of a batch is what labelling says of each structure and the same probes."""
    examples = chains([4, 5, 3], teacher)
    labels = {"probes": kind, "probes_per_structure": 1}
    task = task_of(loss={"hessian_from": "teacher", "probes_per_step": 2}, labels=labels, batch_size=2)
    batches = Batches(examples, task, teacher)
    probes = set()
    for step in range(6):
        batch = batches.at(step)
        start = 0
        for index in batches.indices(step):
            size = len(examples[index].atoms)
            own = batch.probes[:, start : start + size]
            alone = teacher.predict(build_graph(examples[index].atoms, teacher.cutoff), probes=own)
            found = batch.teacher.hessian_products[:, start : start + size]
            torch.testing.assert_close(found, alone.hessian_products)
            assert torch.equal(batch.teacher.forces[start : start + size], examples[index].teacher.forces)
            probes.add(tuple(own.flatten().tolist()))
            if kind == "rows":
                assert torch.equal(own.sum(dim=(1, 2)), torch.ones(2, dtype=torch.float64))
                assert own.sum(dim=0).max() == 1, "a row twice"
            start += size
        assert start == len(batch.graph.numbers)
    assert len(probes) > 8


@pytest.mark.parametrize("fresh", [False, True])
def test_seed_and_step_alone_decide(fresh, teacher):
    examples = chains([4, 5, 3, 2, 6], teacher, count=6)
    loss = {"hessian_from": "teacher" if fresh else "stored"}
    asked = teacher if fresh else None

    def content(step, seed=0):
        torch.manual_seed(step + 100)  # of which nothing may depend
        batch = Batches(examples, task_of(loss=loss, seed=seed, batch_size=2), asked).at(step)
        return batch.graph.positions, batch.probes, batch.teacher.hessian_products

    one = Batches(examples, task_of(loss=loss, batch_size=2), asked)
    for step in (0, 1, 2, 7, 3):
        batch = one.at(step)
        for ours, theirs in zip(content(step), (batch.graph.positions, batch.probes), strict=False):
            assert torch.equal(ours, theirs)
        assert torch.equal(content(step)[2], batch.teacher.hessian_products)
    assert not any(torch.equal(content(0)[0], content(0, seed)[0]) for seed in (1, 2, 3))


def test_labels_of_a_data_set_reach_the_batch(teacher):
    examples = [replace(e, dataset=replace(e.teacher, energy=e.teacher.energy + 1)) for e in chains([3, 4], teacher)]
    fresh = task_of(loss={"hessian_from": "teacher"})
    for batch in (Batches(examples, task_of()).at(0), Batches(examples, fresh, teacher).at(0)):
        assert torch.equal(batch.dataset.energy, batch.teacher.energy + 1)


@pytest.mark.parametrize("side", ["rows", "columns", "symmetric"])
def test_the_side_of_the_labels_is_that_of_the_batch(side, teacher):
    examples = chains([3, 4], teacher)
    task = task_of(labels={"side": side})
    assert Batches(examples, task).at(0).side == side
    assert validation_batches(examples, task)[0].side == side
