"""Batches that fit memory: how they are cut, what they are measured by, and what happens where they do not fit."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import model_folders as folders
import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from direct_potentials import tiny_painn_dt
from torch import Tensor

from zoo import memory, packing
from zoo.engine import Engine, Provenance
from zoo.errors import DivergedError, DomainError, OutOfMemoryError, StructureError
from zoo.graph import Graph
from zoo.memory import free_memory, is_out_of_memory
from zoo.packing import Need
from zoo.potential import Potential, Prediction

CPU = torch.device("cpu")
PROVENANCE = Provenance("a/b", "here", "MIT", "theory")


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine.read(folders.make_folder(tmp_path / "model"), device="cpu")


@pytest.fixture
def passes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """The graphs of the passes that the engine's potential makes."""
    seen: list[Graph] = []
    predict = engine.potential.predict

    def spy(graph: Graph, **asked: Any) -> Prediction:
        seen.append(graph)
        return predict(graph, **asked)

    monkeypatch.setattr(engine.potential, "predict", spy)
    return seen


def limit(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Of atoms and edges in a pass."""
    monkeypatch.setitem(packing.FASTEST, ("forces", "cpu"), size)


def size(graph: Graph) -> int:
    return graph.num_atoms + graph.num_edges


def same(found: list[Prediction], wanted: list[Prediction]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert float(one.energy) == pytest.approx(float(other.energy), abs=1e-9)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-12)


# --- how batches are cut ----------------------------------------------------------------------------


def test_a_batch_ends_where_it_would_be_larger_than_what_is_fastest(
    engine: Engine, passes: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    structures = [*folders.cells(4), *folders.cells(1, size=3), *folders.cells(3)]
    whole = engine.predict(structures)
    sizes = [size(engine._graph(atoms)) for atoms in structures]
    limit(monkeypatch, sizes[0] + sizes[1] + sizes[2])
    passes.clear()
    same(engine.predict(structures), whole)
    assert [graph.num_structures for graph in passes] == [3, 1, 1, 3], "the large one goes alone"


def test_a_structure_larger_than_any_batch_goes_alone(
    engine: Engine, passes: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 1)
    assert len(engine.predict(folders.cells(3))) == 3
    assert [graph.num_structures for graph in passes] == [1, 1, 1]


def test_structures_are_taken_from_an_iterator_as_they_are_needed(
    engine: Engine, passes: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    structures, taken = folders.cells(9), []
    wanted = engine.predict(structures)
    limit(monkeypatch, 2 * size(engine._graph(structures[0])) + 20)
    passes.clear()

    def stream() -> Iterator[Atoms]:
        for number, atoms in enumerate(structures):
            taken.append((number, len(passes)))
            yield atoms

    same(engine.predict(stream()), wanted)
    assert taken[-1] == (8, 3), "when the last was taken, six had been answered"


def test_fewer_structures_than_one_need_no_measurement(engine: Engine, passes: list[Graph]) -> None:
    engine.predict(folders.cells(1)[0])
    engine.predict(iter(folders.cells(1)))
    assert engine.predict([]) == engine.predict(iter([])) == []
    assert not engine._needs
    assert len(passes) == 2


def test_a_batch_takes_no_more_memory_than_is_free(
    engine: Engine, passes: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    structures = [*folders.cells(6), *folders.cells(2, size=2)]
    wanted = engine.predict(structures)
    need = engine._needs["forces"]
    room = int(2.5 * need.of(8, engine._graph(structures[0]).num_edges))
    monkeypatch.setattr("zoo.potential.free_memory", lambda device: int(room / packing.SHARE))
    passes.clear()
    same(engine.predict(structures), wanted)
    assert [graph.num_structures for graph in passes] == [2, 2, 2, 1, 1]
    assert all(need.of(graph.num_atoms, graph.num_edges) <= room for graph in passes)


# --- what is measured -------------------------------------------------------------------------------


class Springs(Potential):
    """A stiffness times the square of each edge."""

    cutoff = 3.0
    elements = (14,)

    def __init__(self) -> None:
        super().__init__()
        self.stiffness = torch.nn.Parameter(torch.full((1000,), 0.5, dtype=torch.float64))

    def atomic_energies(self, graph: Graph) -> Tensor:
        squares = graph.edge_vectors().square().sum(dim=1) * self.stiffness[0]  # (edges,)
        return graph.positions.new_zeros(graph.num_atoms).index_add(0, graph.centers, squares)


def test_what_a_pass_keeps_of_an_edge_is_counted_once_and_without_weights() -> None:
    engine = Engine(Springs(), PROVENANCE, check_domain=False)
    engine.predict([scenes.molecule((14,)) for _ in range(30)])
    vectors, squares, ends, structure = 3 * 8, 8, 2 * 8, 8  # bytes
    assert engine._needs["forces"] == Need(packing._IN_ALL * structure, packing._IN_ALL * (vectors + squares + ends))


def test_a_pass_is_measured_once_on_a_small_batch(
    engine: Engine, passes: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_SMALL", 3 * size(engine._graph(folders.cells(1)[0])))
    engine.predict(folders.cells(9))
    assert [graph.num_structures for graph in passes] == [3, 6]
    measured = engine._needs["forces"]
    passes.clear()
    larger = folders.cells(9, size=2)
    limit(monkeypatch, 3 * size(engine._graph(larger[0])) + 60)
    engine.predict(larger)
    assert engine._needs["forces"] is measured
    assert [graph.num_structures for graph in passes] == [3, 3, 3]


def test_more_channels_need_more_memory() -> None:
    needs = []
    for channels in (8, 32):
        engine = Engine(scenes.tiny_painn("Si", channels=channels), PROVENANCE)
        engine.predict(folders.cells(20))
        needs.append(engine._needs["forces"].of(8, 100))
    assert 2 < needs[1] / needs[0] < 6


def test_forces_that_are_predicted_directly_need_memory_too() -> None:
    engine = Engine(tiny_painn_dt("Si"), PROVENANCE)
    engine.predict(folders.cells(20))
    assert engine._needs["forces"].edge > 100


@pytest.mark.usefixtures("kernels")
def test_compiled_code_is_measured_by_pytorch_and_packed_like_it(tmp_path: Path) -> None:
    folder = folders.make_folder(tmp_path / "model")
    fast, plain = (Engine.read(folder, device="cpu", compile=compile) for compile in (True, False))
    structures = [*folders.cells(20), *folders.cells(3, size=2)]
    for one, other in zip(fast.predict(iter(structures)), plain.predict(structures), strict=True):
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-9)
    assert fast.compiled
    assert fast._needs["forces"].edge >= plain._needs["forces"].edge / 2 > 0


# --- where memory ends ------------------------------------------------------------------------------

EXHAUSTED: dict[str, Callable[[], Exception]] = {
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "Python": lambda: MemoryError(),
    "PyTorch": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 8 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "the kernel": lambda: StructureError("no memory for a graph of 8 atoms and 9 edges; divide it"),
    "the C++ library": lambda: RuntimeError("std::bad_alloc"),
}


def refuse(engine: Engine, monkeypatch: pytest.MonkeyPatch, most: int, error: Callable[[], Exception]) -> list[int]:
    """Passes over more structures than that end in an error; returns how many each had."""
    predict, seen = engine.potential.predict, []

    def refusing(graph: Graph, **asked: Any) -> Prediction:
        seen.append(graph.num_structures)
        if graph.num_structures > most:
            raise error()
        return predict(graph, **asked)

    monkeypatch.setattr(engine.potential, "predict", refusing)
    return seen


@pytest.mark.parametrize("kind", EXHAUSTED)
def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    structures = folders.cells(12)
    wanted = engine.predict(structures)
    seen = refuse(engine, monkeypatch, 3, EXHAUSTED[kind])
    same(engine.predict([*structures, *structures]), [*wanted, *wanted])
    failed = [count for count in seen if count > 3]
    assert failed == seen[: len(failed)], "nothing as large as what failed is tried again"
    assert all(later <= earlier / 2 for earlier, later in pairwise(failed))
    assert sum(seen) - sum(failed) == 24


def test_later_batches_are_no_larger_than_what_fitted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    structures = folders.cells(4) * 5
    wanted = engine.predict(structures)
    limit(monkeypatch, 4 * size(engine._graph(structures[0])) + 40)
    seen = refuse(engine, monkeypatch, 2, EXHAUSTED["PyTorch"])
    same(engine.predict(structures), wanted)
    assert seen[0] == 4
    assert max(seen[1:]) == 2


def test_other_errors_are_not_taken_for_a_lack_of_memory(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (RuntimeError("The size of tensor a must match"), ValueError("out of memory"), DomainError("strange")):
        engine.predict(folders.cells(4))
        with monkeypatch.context() as patch:
            seen = refuse(engine, patch, 1, lambda error=error: error)
            with pytest.raises(type(error)) as caught:
                engine.predict(folders.cells(4))
        assert str(error) in str(caught.value)
        assert seen == [4]


def test_a_structure_that_does_not_fit_alone_is_named_with_its_size(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = engine.potential.predict

    def refusing(graph: Graph, **asked: Any) -> Prediction:
        if (graph.atom_counts == 16).any():
            raise EXHAUSTED["PyTorch"]()
        return predict(graph, **asked)

    monkeypatch.setattr(engine.potential, "predict", refusing)
    structures = [*folders.cells(2), *folders.cells(1, size=2)]
    words = r"structures\[2\] of 3: no memory for forces of Si16 \(16 atoms and \d+ edges\) in float64 on cpu"
    with pytest.raises(OutOfMemoryError, match=rf"^{words}.* GiB are free; take dtype='float32' or a machine") as error:
        engine.predict(structures)
    assert isinstance(error.value, MemoryError)
    with pytest.raises(OutOfMemoryError, match=r"^no memory for forces of Si16"):
        engine.predict(structures[2])


def test_a_structure_without_memory_for_its_neighbours_is_named(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object, **__: object) -> Graph:
        raise MemoryError("Unable to allocate 5 GiB")

    structures = folders.cells(2)
    monkeypatch.setattr("zoo.engine.build_graph", build)
    with pytest.raises(
        OutOfMemoryError, match=r"^structures\[0\] of 2: no memory for the neighbours of Si8 \(8 atoms\)"
    ):
        engine.predict(structures)
    with pytest.raises(OutOfMemoryError, match=r"^no memory for the neighbours of Si8"):
        engine.hessian(structures[0])


LIMITED = """
import resource, sys
import torch
import zoo.packing as packing
import zoo.potential
from ase.build import bulk
from zoo.engine import Engine, Provenance
from zoo.errors import OutOfMemoryError
from zoo.memory import free_memory
from zoo.students import PaiNNConfig, build_student

torch.set_num_threads(1)
config = PaiNNConfig(elements=("Si",), channels=32, layers=2, radials=8, cutoff=4.5)
potential = build_student(config, torch.Generator().manual_seed(0)).float()
engine = Engine(potential, Provenance("a/b", "here", "MIT", "theory"))
cell = bulk("Si", cubic=True)
structures = [cell.copy() for _ in range(160)]
for number, atoms in enumerate(structures):
    atoms.rattle(0.05, seed=number)
wanted = engine.predict(structures)
tried, predict = [], potential.predict

def spy(graph, **asked):
    tried.append(graph.num_structures)
    return predict(graph, **asked)

potential.predict = spy
packing.FASTEST["forces", "cpu"] = 1_000_000
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (60 << 20), -1))
assert free_memory(torch.device("cpu")) <= 60 << 20
if sys.argv[1] == "blind":  # as if there were no limit, and the allocator fails
    zoo.potential.free_memory = lambda device: 1 << 40
found = engine.predict(structures)
close = all(torch.allclose(one.forces, other.forces, atol=1e-4) for one, other in zip(found, wanted, strict=True))
large = (cell * (16, 16, 8)).copy()
large.rattle(0.05, seed=1)
try:
    engine.predict(large)
except OutOfMemoryError as error:
    print(error)
print(close, tried[0], sum(tried[:-1]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc here")
@pytest.mark.parametrize("way", ["seeing", "blind"])
def test_under_a_real_limit_batches_are_made_to_fit(way: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, way], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    error, last = done.stdout.splitlines()
    assert error.startswith("no memory for forces of Si16384 (16,384 atoms")
    close, first, structures = last.split()
    assert close == "True"
    if way == "seeing":
        assert int(first) < 160, "the first batch is small enough, as the limit is known"
        assert int(structures) == 160, "and nothing is tried twice"
    else:
        assert int(first) == 160, "all at once, which fails"
        assert int(structures) > 160


def test_real_allocators_are_heard() -> None:
    for allocate in (lambda: torch.empty(1 << 50), lambda: np.empty(1 << 60, dtype=np.int8)):
        with pytest.raises((RuntimeError, MemoryError)) as error:
            allocate()
        assert is_out_of_memory(error.value)


# --- which structure an error is of -----------------------------------------------------------------


def test_errors_say_which_structure_of_many_they_are_of(engine: Engine) -> None:
    good, bad = folders.cells(2), folders.cells(1)[0]
    bad.set_cell(bad.cell * 1.3, scale_atoms=True)
    with pytest.raises(DomainError, match=r"^structures\[2\] of 3: Si8 has .* Å³ per atom"):
        engine.predict([*good, bad])
    with pytest.raises(DomainError, match=r"^structures\[2\]: Si8 has"):
        engine.predict(iter([*good, bad]))
    with pytest.raises(DomainError, match=r"^Si8 has"):
        engine.predict(bad)
    bad.positions[0] = np.nan
    with pytest.raises(StructureError, match=r"^structures\[1\] of 2: position 0 of Si8") as error:
        engine.predict([good[0], bad])
    assert type(error.value) is StructureError


def test_the_structure_whose_forces_are_not_finite_is_named(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = engine.potential.predict
    structures = folders.cells(5)

    def broken(graph: Graph, **asked: Any) -> Prediction:
        found = predict(graph, **asked)
        there = (graph.positions[:, 0] == structures[3].positions[0, 0]).nonzero()
        found.forces[there] = torch.nan
        return found

    monkeypatch.setattr(engine.potential, "predict", broken)
    with pytest.raises(DivergedError, match=r"^structures\[3\] of 5: the energy or a force of Si8 is not finite"):
        engine.predict(structures)


# --- how much memory is free ------------------------------------------------------------------------

GIB = 1 << 30


def machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, available: int, group: str, files: dict[str, int | str]
) -> None:
    """What the kernel says of a machine, and of the control groups of this process."""
    process, groups = folder / "proc", folder / "groups"
    (process / "self").mkdir(parents=True)
    (process / "meminfo").write_text(f"MemTotal: {64 * GIB >> 10} kB\nMemAvailable:   {available >> 10} kB\n")
    (process / "self" / "cgroup").write_text(group)
    for name, value in files.items():
        path = groups / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    monkeypatch.setattr(memory, "_PROCESS", process)
    monkeypatch.setattr(memory, "_GROUPS", groups)


SECOND = "0::/job/step\n"
FIRST = "5:cpu,cpuacct:/other\n4:memory:/job\n"
GROUPS: dict[str, tuple[str, dict[str, int | str], int]] = {
    "no group has a limit": (SECOND, {"memory.max": "max", "memory.current": GIB}, 9 * GIB),
    "its own": (
        SECOND,
        {"job/step/memory.max": 4 * GIB, "job/step/memory.current": 3 * GIB, "job/step/memory.stat": "inactive_file 0"},
        GIB,
    ),
    "files give way": (
        SECOND,
        {
            "job/step/memory.max": 4 * GIB,
            "job/step/memory.current": 3 * GIB,
            "job/step/memory.stat": f"anon 5\ninactive_file {2 * GIB}\nactive_file 7",
        },
        3 * GIB,
    ),
    "that of a group above": (
        SECOND,
        {
            "job/memory.max": 2 * GIB,
            "job/memory.current": GIB,
            "job/memory.stat": "inactive_file 0",
            "job/step/memory.max": "max",
        },
        GIB,
    ),
    "more than there is": (
        SECOND,
        {"memory.max": 100 * GIB, "memory.current": GIB, "memory.stat": "inactive_file 0"},
        9 * GIB,
    ),
    "exceeded": (SECOND, {"memory.max": GIB, "memory.current": 2 * GIB, "memory.stat": "inactive_file 0"}, 0),
    "of the first version": (
        FIRST,
        {
            "memory/job/memory.limit_in_bytes": 3 * GIB,
            "memory/job/memory.usage_in_bytes": 2 * GIB,
            "memory/job/memory.stat": "inactive_file 9\ntotal_inactive_file 0",
        },
        GIB,
    ),
    "of the first version, without one": (
        FIRST,
        {
            "memory/memory.limit_in_bytes": 9223372036854771712,
            "memory/memory.usage_in_bytes": GIB,
            "memory/memory.stat": "total_inactive_file 0",
        },
        9 * GIB,
    ),
}


@pytest.mark.parametrize("case", GROUPS)
def test_memory_is_free_within_the_limits_of_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    group, files, free = GROUPS[case]
    machine(tmp_path, monkeypatch, available=9 * GIB, group=group, files=files)
    assert free_memory(CPU) == free


def test_where_the_system_says_nothing_some_memory_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "nowhere")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "nowhere")
    assert free_memory(CPU) > GIB // 4


def test_what_is_needed_grows_with_atoms_and_with_edges() -> None:
    assert Need(2.0, 3.0).of(10, 100) == 320
