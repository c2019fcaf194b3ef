"""Recordings over padded buffers: on a CPU a plain call stands where a GPU has a CUDA graph; all else is the same."""

import gc
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from direct_potentials import tiny_painn_dt
from torch import Tensor

from zoo.captured import StudentCode, uncompiled
from zoo.cuda_graphs import CudaRecorder, Replay
from zoo.errors import ZooWarning
from zoo.graph import Graph
from zoo.neighbors import build_graph
from zoo.padding import Capacity
from zoo.students import Student


class Calling:
    """Repeats by calling again, into the memory of the first answer."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        self.recorded += 1
        answer = function()

        def replay() -> None:
            self.replayed += 1
            answer.copy_(function())

        return replay, answer


def code_of(student: Student) -> StudentCode:
    return uncompiled(student.requires_grad_(False))


def silicon(size: int = 1, seed: int = 0, move: float = 0.05) -> Atoms:
    atoms = scenes.crystal((14,)).repeat((size, 1, 1))
    atoms.rattle(move, seed=seed)
    return atoms


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("student", [scenes.tiny_painn("Si", "O"), tiny_painn_dt("Si", "O")])
def test_replays_are_what_the_code_says(student: Student) -> None:
    code, calling = code_of(student), Calling()
    replay = Replay(code, calling)
    many = [silicon(1), silicon(2), scenes.molecule((14, 8)), scenes.isolated((8,)), silicon(3)]
    for structures in ([silicon(1)], [silicon(1, seed=1)], many, [scenes.molecule((14, 8))], [scenes.isolated((8,))]):
        graph = build_graph(structures, student.cutoff)
        assert_same(replay(graph), code(graph))
    assert not replay.eager
    assert calling.replayed >= calling.recorded > 0


def test_sizes_that_are_about_the_same_share_a_recording() -> None:
    code, calling = code_of(scenes.tiny_painn("Si")), Calling()
    replay = Replay(code, calling)
    for seed in range(10):
        replay(build_graph(silicon(4, seed=seed, move=0.1), 4.0))
    assert calling.recorded <= 2
    assert calling.replayed == 10 + calling.recorded  # each recording is tried once


def test_an_answer_outlives_the_next_replay() -> None:
    code = code_of(scenes.tiny_painn("Si"))
    replay = Replay(code, Calling())
    first, second = (build_graph(silicon(1, seed=seed), 4.0) for seed in (0, 1))
    answer = replay(first)
    replay(second)
    assert_same(answer, code(first))


def test_the_recording_that_was_used_longest_ago_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.cuda_graphs.MOST_RECORDINGS", 3)
    code, calling = code_of(scenes.tiny_painn("Si")), Calling()
    replay = Replay(code, calling)
    graphs = [build_graph(silicon(size), 4.0) for size in (1, 2, 4, 8)]
    assert len({Capacity.of(graph) for graph in graphs}) == 4
    for number in (0, 1, 2, 0, 3, 0):
        assert_same(replay(graphs[number]), code(graphs[number]))
    assert calling.recorded == 4, "the first was used again and stayed"
    replay(graphs[1])
    assert calling.recorded == 5, "the second went"


def test_large_graphs_and_those_without_edges_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    code, calling = code_of(scenes.tiny_painn("Si")), Calling()
    replay = Replay(code, calling)
    monkeypatch.setattr("zoo.cuda_graphs.MOST_EDGES", 40)
    for atoms in (silicon(2), scenes.isolated((14,))):
        graph = build_graph(atoms, 4.0)
        assert_same(replay(graph), code(graph))
        found = replay.follow(graph)(graph.positions)
        assert_same((found.energies, found.forces, found.virial), code(graph))
    assert calling.recorded == 0
    assert found.shortest == float("inf")


def walk(atoms: Atoms, steps: int) -> list[Tensor]:
    random = np.random.default_rng(0)
    places = [atoms.positions]
    for _ in range(steps):
        places.append(places[-1] + 0.02 * random.standard_normal((len(atoms), 3)))
    return [torch.from_numpy(place) for place in places]


def at(graph: Graph, positions: Tensor) -> Graph:
    return graph.with_geometry(positions, graph.cells)


def test_atoms_are_followed_while_their_edges_stay() -> None:
    """Edges up to a skin beyond the cutoff, of which those within it count; two structures take turns."""
    code, calling = code_of(scenes.tiny_painn("Si")), Calling()
    replay = Replay(code, calling)
    structures = [silicon(2, seed=1), silicon(2, seed=2)]
    wide = [build_graph(atoms, 4.5) for atoms in structures]
    followers = [replay.follow(graph) for graph in wide]
    paths = [walk(atoms, 5) for atoms in structures]
    for step in range(6):
        for atoms, follower, path in zip(structures, followers, paths, strict=True):
            found = follower(path[step])
            moved = atoms.copy()
            moved.positions = path[step].numpy()
            graph = build_graph(moved, 4.0)
            assert_same((found.energies, found.forces, found.virial), code(graph))
            assert found.shortest == pytest.approx(float(graph.edge_vectors().norm(dim=1).min()), abs=1e-12)
    assert calling.recorded <= 2


def test_what_asks_in_between_does_not_disturb_a_follower() -> None:
    """Another cell with as many edges is written where the follower's was."""
    code, calling = code_of(scenes.tiny_painn("Si")), Calling()
    replay = Replay(code, calling)
    first, second = silicon(1), silicon(1)
    second.set_cell(1.001 * second.cell, scale_atoms=True)
    mine, other = (build_graph(atoms, 4.0) for atoms in (first, second))
    follower = replay.follow(mine)
    before = follower(mine.positions)
    replay(other)
    assert torch.equal(follower(mine.positions).forces, before.forces)
    assert calling.recorded == 1


def test_a_recording_that_fails_is_announced_once() -> None:
    def fail(_: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nand a long story")

    code = code_of(scenes.tiny_painn("Si"))
    replay = Replay(code, fail)
    graph = build_graph(silicon(1), 4.0)
    with pytest.warns(ZooWarning, match=r"PaiNN could not be recorded .*RuntimeError: operation not permitted .*\);"):
        answer = replay(graph)
    assert_same(answer, code(graph))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(replay(graph), code(graph))
        assert_same((replay.follow(graph)(graph.positions).forces,), (code(graph)[1],))


@pytest.mark.parametrize("wrong", [lambda answer: answer * 1.001, lambda answer: answer + torch.nan, torch.zeros_like])
def test_a_replay_that_does_not_repeat_is_not_used(wrong: Callable[[Tensor], Tensor]) -> None:
    def record(function: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        answer = function()
        return lambda: answer.copy_(wrong(answer)), answer

    code = code_of(scenes.tiny_painn("Si"))
    replay = Replay(code, record)
    graph = build_graph(silicon(1), 4.0)
    with pytest.warns(ZooWarning, match="could not be recorded as a CUDA graph"):
        assert_same(replay(graph), code(graph))
    assert replay.eager


def test_too_little_memory_is_the_callers_to_handle() -> None:
    """Who asked may ask for less; what was recorded makes room."""
    code, calling = code_of(scenes.tiny_painn("Si")), Calling()

    def record(function: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        if calling.recorded == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return calling(function)

    replay = Replay(code, record)
    small, large = build_graph(silicon(1), 4.0), build_graph(silicon(4), 4.0)
    replay(small)
    with pytest.raises(torch.OutOfMemoryError):
        replay(large)
    calling.recorded = 0
    replay(small)
    assert calling.recorded == 1, "the first was dropped and is recorded anew"
    assert not replay.eager


class Memory:
    """What of torch.cuda a recorder asks for; of each recording, the memory that it was told to share is noted."""

    def __init__(self) -> None:
        self.pools: list[int | None] = []
        memory = self

        class CUDAGraph:
            def __init__(self) -> None:
                self.own = 1 + len(memory.pools)

            def pool(self) -> int:
                return self.own

            def replay(self) -> None:
                """The buffers hold what they held."""

        self.CUDAGraph = CUDAGraph

    def graph(self, graph: Any, pool: int | None) -> AbstractContextManager[None]:
        self.pools.append(pool)
        graph.own = graph.own if pool is None else pool
        return nullcontext()

    def __getattr__(self, name: str) -> Any:
        return lambda *_: SimpleNamespace(wait_stream=lambda _: None) if name.endswith("tream") else nullcontext()

    stream = device = staticmethod(lambda _: nullcontext())


def test_memory_is_shared_with_recordings_that_are_there_and_with_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """After memory ended all recordings went, and what they shared."""
    memory = Memory()
    monkeypatch.setattr("zoo.cuda_graphs.torch.cuda", memory)
    code = code_of(scenes.tiny_painn("Si"))
    replay = Replay(code, CudaRecorder(torch.device("cpu")))
    graphs = [build_graph(silicon(size), 4.0) for size in (1, 2, 4)]
    for graph in graphs[:2]:
        assert_same(replay(graph), code(graph))
    assert memory.pools == [None, 1]
    with monkeypatch.context() as patch:
        patch.setattr("zoo.cuda_graphs._difference", exhausted)
        with pytest.raises(torch.OutOfMemoryError):
            replay(graphs[2])
    assert memory.pools == [None, 1, 1]
    gc.collect()
    for graph in graphs[:2]:
        replay(graph)
    assert memory.pools == [None, 1, 1, None, 4]


def exhausted(*_: object) -> float:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_threads_take_turns() -> None:
    code = code_of(scenes.tiny_painn("Si"))
    replay = Replay(code, Calling())
    graphs = [build_graph(silicon(2, seed=seed), 4.0) for seed in range(4)]
    expected, wrong = [code(graph)[1] for graph in graphs], []

    def ask(number: int) -> None:
        for _ in range(20):
            if not torch.allclose(replay(graphs[number])[1], expected[number], rtol=0, atol=1e-12):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [scenes.tiny_painn, tiny_painn_dt])
def test_cuda_graphs_are_what_the_code_says(make: Callable[..., Student], dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    student = make("Si", "O").to("cuda", dtype)
    code = code_of(student)
    replay = Replay(code, CudaRecorder(code.device))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for structures in ([silicon(1)], [silicon(1, seed=1)], [silicon(2), scenes.molecule((14, 8))], [silicon(1)]):
        graph = build_graph(structures, student.cutoff, dtype=dtype, device="cuda")
        for ours, theirs in zip(replay(graph), code(graph), strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=tolerance, equal_nan=True)
        found = replay.follow(graph.to("cpu", torch.float64))(graph.positions.cpu().double())
        assert torch.allclose(found.forces, code(graph)[1].cpu(), rtol=0, atol=tolerance)
    assert not replay.eager
