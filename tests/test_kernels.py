"""The compiled PaiNN against the same student in eager PyTorch, and how its library is built and kept."""

import hashlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from structures import crystal, dimer, isolated, molecule, simple_cubic, symmetric_scenes, tiny_painn
from torch import Tensor

from zoo.errors import CapabilityError, DomainError, StructureError
from zoo.graph import Graph, collate
from zoo.kernels import PaiNNKernel, build, compile_kernels, painn_kernel
from zoo.neighbors import build_graph
from zoo.students import PaiNN, PaiNNConfig, build_student

ELEMENTS = (14, 8)
CUTOFF = 4.1  # Å, which float32 has not
QUICK = ("-std=c++17", "-O0", "-shared", "-fPIC")  # a library that is built in a moment
Answer = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, nothing opened yet, and a library that is built in a moment; the folder of libraries."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "FLAGS", QUICK)
    monkeypatch.setattr(build, "_loaded", {})
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def student(channels: int = 5, layers: int = 2, radials: int = 4, teacher_channels: int = 0) -> PaiNN:
    """A float64 PaiNN of silicon and oxygen in which nothing is zero or one by chance."""
    generator = torch.Generator().manual_seed(channels)
    config = PaiNNConfig(
        elements=("Si", "O"),
        channels=channels,
        layers=layers,
        radials=radials,
        cutoff=CUTOFF,
        teacher_channels=teacher_channels,
    )
    model = build_student(config, generator).double()
    assert isinstance(model, PaiNN)
    if teacher_channels:
        model.set_teacher_embedding(torch.randn(2, teacher_channels, generator=generator, dtype=torch.float64))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    model.average_neighbors.fill_(7.0)
    model.scale.fill_(1.3)
    return model.eval().requires_grad_(False)


def random_structures(count: int, seed: int = 0) -> list[Atoms]:
    """Crystals in skewed cells of one to six atoms, molecules, and clusters with atoms out of everyone's reach."""
    draw = np.random.default_rng(seed)
    found: list[Atoms] = []
    while len(found) < count:
        atoms, kind = int(draw.integers(1, 7)), len(found) % 3
        edge = 2.9 * atoms ** (1 / 3)
        if kind == 0:
            cell = edge * (np.eye(3) + draw.uniform(-0.25, 0.25, (3, 3)))
            one = Atoms(
                numbers=draw.choice(ELEMENTS, atoms), cell=cell, pbc=True, scaled_positions=draw.random((atoms, 3))
            )
        else:
            spread = edge if kind == 1 else 3 * edge
            one = Atoms(numbers=draw.choice(ELEMENTS, atoms), positions=spread * draw.random((atoms, 3)))
        if atoms == 1 or one.get_all_distances(mic=True)[~np.eye(atoms, dtype=bool)].min() > 1.2:
            found.append(one)
    return found


def eager(model: PaiNN, graph: Graph) -> Answer:
    """Energies without references, forces and virial, by PyTorch; in cells without a volume by one of their own."""
    graph = graph.to("cpu", model.dtype)
    positions = graph.positions.clone().requires_grad_()
    strain = torch.zeros_like(graph.cells).requires_grad_()
    symmetric = (strain + strain.transpose(1, 2)) / 2
    moved = positions + (positions[:, None] @ symmetric[graph.structure])[:, 0]
    energies = model.atomic_energies(graph.with_geometry(moved, graph.cells + graph.cells @ symmetric))
    slopes = torch.autograd.grad(energies.sum(), [positions, strain], allow_unused=True, materialize_grads=True)
    return energies.detach(), -slopes[0], slopes[1]


def far(found: Answer, wanted: Answer) -> float:
    """The largest difference of energies, forces and virial, each over its largest value (at least one)."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, wanted, strict=True)]
    return max(float((a - b).abs().max() / max(1.0, float(b.abs().max()))) for a, b in pairs)


SHAPES = {
    "one channel": (1, 1, 1, 0),
    "one layer": (5, 1, 4, 0),
    "two layers": (16, 2, 8, 0),
    "three layers, a panel and a rest": (40, 3, 7, 0),
    "the embedding of a teacher": (6, 2, 5, 9),
    "many channels": (300, 2, 3, 0),
}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_energies_forces_and_virial_are_those_of_eager_pytorch(shape: tuple[int, int, int, int]) -> None:
    model = student(*shape)
    kernel = PaiNNKernel(model)
    for structures in (random_structures(24, seed=1), list(symmetric_scenes(ELEMENTS).values())):
        for one in [*([atoms] for atoms in structures), structures]:
            graph = build_graph(one, CUTOFF)
            assert far(kernel(graph), eager(model, graph)) < 1e-12


@pytest.mark.usefixtures("kernels")
def test_the_virial_over_the_volume_is_the_stress_of_the_potential() -> None:
    model, graph = student(), build_graph([crystal(ELEMENTS), simple_cubic(ELEMENTS)], CUTOFF)
    stress = PaiNNKernel(model)(graph)[2] / torch.linalg.det(graph.cells).abs()[:, None, None]
    wanted = model.predict(graph, stress=True).stress
    assert wanted is not None
    torch.testing.assert_close(stress, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("radials", [8, 16])
def test_float32_is_no_further_from_float64_than_eager_float32_is(radials: int) -> None:
    model, structures = student(32, 2, radials), random_structures(200)
    graphs = [build_graph(atoms, CUTOFF) for atoms in structures]
    exact = [eager(model, graph) for graph in graphs]
    model = model.float()
    kernel = PaiNNKernel(model)
    of_kernel = [far(kernel(graph), answer) for graph, answer in zip(graphs, exact, strict=True)]
    of_eager = [far(eager(model, graph), answer) for graph, answer in zip(graphs, exact, strict=True)]
    assert max(of_kernel) < 1.3 * max(of_eager)
    assert np.mean(of_kernel) < 1.1 * np.mean(of_eager)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("radials", [7, 16, 32])
def test_a_table_of_filters_errs_less_than_a_millionth(radials: int) -> None:
    model, graph = student(8, 2, radials), build_graph(random_structures(60), CUTOFF)
    exact, table = PaiNNKernel(model)(graph), PaiNNKernel(model, knots=16 * radials)(graph)
    assert 0 < far(table, exact) < 1e-6


@pytest.mark.usefixtures("kernels")
def test_forces_and_virial_are_the_derivatives_of_the_energy_that_the_table_gives() -> None:
    kernel, graph = PaiNNKernel(student(6, 2, 8), knots=32), build_graph(crystal(ELEMENTS), CUTOFF)
    _, forces, virial = kernel(graph)
    step, direction = 2e-5, torch.randn(2, 3, dtype=torch.float64)
    ends = [kernel(replace(graph, positions=graph.positions + sign * step * direction))[0].sum() for sign in (1, -1)]
    assert float((ends[1] - ends[0]) / (2 * step)) == pytest.approx(float((forces * direction).sum()), abs=1e-7)
    strain = torch.tensor([[1.0, 0.3, 0.2], [0.3, -0.5, 0.4], [0.2, 0.4, 0.7]], dtype=torch.float64)
    bent = [torch.eye(3, dtype=torch.float64) + sign * step * strain for sign in (1, -1)]
    ends = [kernel(graph.with_geometry(graph.positions @ by, graph.cells @ by))[0].sum() for by in bent]
    assert float((ends[0] - ends[1]) / (2 * step)) == pytest.approx(float((virial[0] * strain).sum()), abs=1e-7)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_longer_than_the_cutoff_add_nothing(dtype: torch.dtype) -> None:
    model = student(8, 2, 8).to(dtype)
    kernel, structures = PaiNNKernel(model), random_structures(20)
    tight, wide = (kernel(build_graph(structures, CUTOFF + skin)) for skin in (0.0, 1.5))
    assert far(wide, tight) < (1e-5 if dtype == torch.float32 else 1e-13)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_atoms_are_followed_as_if_each_call_were_the_first(dtype: torch.dtype) -> None:
    kernel = PaiNNKernel(student(8, 2, 8).to(dtype))
    wide = build_graph(random_structures(6), CUTOFF + 0.5, dtype=dtype)
    follow, random = kernel.follow(wide), torch.Generator().manual_seed(0)
    answers = []
    for _ in range(4):
        moved = wide.positions + 0.05 * torch.randn(wide.positions.shape, generator=random, dtype=dtype)
        graph = wide.with_geometry(moved, wide.cells)
        found, expected = follow(moved), kernel(graph)
        assert all(map(torch.equal, (found.energies, found.forces, found.virial), expected))
        assert found.shortest == pytest.approx(float(graph.edge_vectors().norm(dim=1).min()), rel=1e-6)
        answers.append(found.energies)
    assert not torch.equal(*answers[:2])
    with pytest.raises(StructureError, match=r"positions .* of"):
        follow(wide.positions[1:])


@pytest.mark.usefixtures("kernels")
def test_atoms_without_edges_have_no_shortest_one() -> None:
    graph = build_graph(isolated(ELEMENTS), CUTOFF)
    assert PaiNNKernel(student()).follow(graph)(graph.positions).shortest == float("inf")


@pytest.mark.usefixtures("kernels", "threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_do_not_depend_on_threads_calls_or_batches(dtype: torch.dtype) -> None:
    kernel = PaiNNKernel(student(33, 2, 8).to(dtype))
    graphs = [build_graph(atoms, CUTOFF, dtype=dtype) for atoms in random_structures(150)]
    torch.set_num_threads(1)
    wanted = kernel(collate(graphs))
    parts = [kernel(graph) for graph in graphs]
    assert all(
        torch.equal(torch.cat(part), whole) for part, whole in zip(zip(*parts, strict=True), wanted, strict=True)
    )
    for count in (1, 2, 3, 8) * 5:
        torch.set_num_threads(count)
        assert all(torch.equal(*pair) for pair in zip(kernel(collate(graphs)), wanted, strict=True))


@pytest.mark.usefixtures("kernels")
def test_several_callers_at_once_get_what_each_would_get_alone() -> None:
    kernel = PaiNNKernel(student(16, 2, 4))
    graphs = [build_graph(random_structures(10 + 40 * seed, seed), CUTOFF) for seed in range(4)] * 25
    wanted = [kernel(graph) for graph in graphs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(kernel, graphs))
    assert all(
        torch.equal(*pair) for one, other in zip(found, wanted, strict=True) for pair in zip(one, other, strict=True)
    )


@pytest.mark.usefixtures("kernels")
def test_the_order_of_atoms_and_of_edges_does_not_matter_and_forces_turn_with_the_atoms() -> None:
    kernel, atoms = PaiNNKernel(student()), crystal(ELEMENTS) * (1, 2, 1)
    energies, forces, virial = kernel(build_graph(atoms, CUTOFF))
    order = [2, 0, 3, 1]
    assert far(kernel(build_graph(atoms[order], CUTOFF)), (energies[order], forces[order], virial)) < 1e-12
    graph = build_graph(atoms, CUTOFF)
    mixed = torch.randperm(graph.num_edges)
    edges = {name: getattr(graph, name)[mixed] for name in ("centers", "neighbors", "shifts")}
    assert far(kernel(replace(graph, **edges)), (energies, forces, virial)) < 1e-12
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    turned = graph.with_geometry(graph.positions @ turn, graph.cells @ turn)
    assert far(kernel(turned), (energies, forces @ turn, turn.t() @ virial @ turn)) < 1e-12


@pytest.mark.usefixtures("kernels")
def test_a_list_that_has_some_pairs_in_one_direction_only_is_summed_as_it_is() -> None:
    model, graph = student(), build_graph(crystal(ELEMENTS), CUTOFF)
    some = torch.rand(graph.num_edges) < 0.6
    edges = {name: getattr(graph, name)[some] for name in ("centers", "neighbors", "shifts")}
    assert far(PaiNNKernel(model)(replace(graph, **edges)), eager(model, replace(graph, **edges))) < 1e-12


@pytest.mark.usefixtures("kernels")
def test_atoms_without_neighbours_and_graphs_without_atoms_have_answers_of_their_shapes() -> None:
    model = student()
    kernel, alone = PaiNNKernel(model), build_graph(isolated(ELEMENTS), CUTOFF)
    assert alone.num_edges == 0
    assert far(kernel(alone), eager(model, alone)) < 1e-14
    nobody = replace(alone, numbers=alone.numbers[:0], positions=alone.positions[:0], structure=alone.structure[:0])
    energies, forces, virial = kernel(nobody)
    assert (energies.shape, forces.shape) == ((0,), (0, 3))
    assert torch.equal(virial, torch.zeros(1, 3, 3, dtype=torch.float64))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("radials", [4, 8])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_finite_is_seen_and_stays_in_its_structure(dtype: torch.dtype, value: float, radials: int) -> None:
    kernel = PaiNNKernel(student(9, 2, radials).to(dtype))
    graph = build_graph([molecule(ELEMENTS), dimer(ELEMENTS)], CUTOFF, dtype=dtype)
    healthy, broken = kernel(graph), graph.positions.clone()
    broken[0, 1] = value
    energies, forces, virial = kernel(replace(graph, positions=broken))
    assert energies[:4].isnan().all()
    assert forces[:4].isnan().any(dim=1).all()
    assert virial[0].isnan().any()
    assert torch.equal(energies[4:], healthy[0][4:])
    assert torch.equal(forces[4:], healthy[1][4:])
    assert torch.equal(virial[1], healthy[2][1])


@pytest.mark.usefixtures("kernels")
def test_a_kernel_keeps_the_weights_that_it_was_made_from() -> None:
    model, graph = student(), build_graph(molecule(ELEMENTS), CUTOFF)
    kernel = PaiNNKernel(model)
    before = kernel(graph)
    model.readout[2].weight.data.mul_(2)
    assert torch.equal(kernel(graph)[0], before[0])
    assert not torch.allclose(PaiNNKernel(model)(graph)[0], before[0])


@pytest.mark.usefixtures("kernels")
def test_graphs_of_other_elements_or_with_wrong_indices_are_refused() -> None:
    kernel, graph = PaiNNKernel(student()), build_graph(molecule(ELEMENTS), CUTOFF)
    for number in (6, 119, -1):
        with pytest.raises(DomainError, match="was not made for"):
            kernel(replace(graph, numbers=torch.full_like(graph.numbers, number)))
    for name, wrong in (("centers", 4), ("neighbors", -1), ("structure", 1)):
        with pytest.raises(StructureError, match="a graph of 4 atoms"):
            kernel(replace(graph, **{name: torch.full_like(getattr(graph, name), wrong)}))
    torch.testing.assert_close(kernel(graph)[0], eager(student(), graph)[0])


@pytest.mark.usefixtures("kernels")
def test_a_student_of_half_precision_is_refused() -> None:
    kernel, reason = painn_kernel(student().to(torch.bfloat16))
    assert kernel is None
    assert "float32 or float64" in reason


def test_without_a_compiler_there_is_a_reason_and_no_kernel(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(quick))
    kernel, reason = painn_kernel(tiny_painn("Si"))
    assert kernel is None
    assert "of the compilers c++, g++, clang++ none is on this machine" in reason
    assert "\n" not in reason
    monkeypatch.setenv("CXX", "no-such-compiler -O9")
    assert compile_kernels().reason == "the compiler of CXX, no-such-compiler, is not on this machine"
    with pytest.raises(CapabilityError, match="no-such-compiler"):
        PaiNNKernel(tiny_painn("Si"))


def test_a_compiler_that_fails_is_quoted_in_one_line(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ -DZOO_PAINN=oops")
    monkeypatch.setattr(build, "FLAGS", (*QUICK, "-no-such-flag-at-all"))
    found = compile_kernels()
    assert found.library is None
    assert "no-such-flag-at-all" in found.reason
    assert "\n" not in found.reason
    assert not list(quick.rglob("*.so"))


@pytest.mark.usefixtures("quick")
def test_a_cache_that_cannot_be_written_costs_a_compilation_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "a file"
    in_the_way.write_text("not a folder")
    monkeypatch.setenv("ZOO_CACHE", str(in_the_way))
    first, second = compile_kernels(), compile_kernels()
    assert first.library is not None
    assert first.library is second.library
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert "cannot be kept in" in told[1]
    assert "set ZOO_CACHE to a folder that can be written to" in told[1]


@pytest.mark.usefixtures("quick")
def test_a_compiler_that_makes_nothing_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "true")
    assert "made no library" in compile_kernels().reason


def test_a_library_that_was_cut_short_or_exchanged_is_built_anew(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compile_kernels().library is not None
    (path,) = quick.rglob("*.so")
    whole = path.read_bytes()
    garbage = b"not a library"
    for name, content in ((path.name, whole[:5000]), (f"{hashlib.sha256(garbage).hexdigest()}.so", garbage)):
        path.unlink(missing_ok=True)
        path.with_name(name).write_bytes(content)
        monkeypatch.setattr(build, "_loaded", {})
        assert compile_kernels().library is not None
        (left,) = quick.rglob("*.so")
        assert left.stem == hashlib.sha256(left.read_bytes()).hexdigest()


def test_the_cache_is_asked_before_the_compiler(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compile_kernels().library is not None
    monkeypatch.setattr(build, "_loaded", {})
    monkeypatch.setattr(build, "_build", lambda *_: pytest.fail("built twice"))
    assert compile_kernels().library is not None
    monkeypatch.setattr(build, "FLAGS", (*QUICK, "-g"))
    with pytest.raises(pytest.fail.Exception, match="built twice"):
        compile_kernels()


def test_processes_and_threads_may_build_at_once(quick: Path) -> None:
    program = (
        "import sys; from zoo.kernels import build; build.FLAGS = tuple(sys.argv[1:]);"
        "sys.exit(build.compile_kernels().library is None)"
    )
    others = [subprocess.Popen([sys.executable, "-c", program, *QUICK]) for _ in range(2)]
    found: list[build.Compiled] = []
    workers = [threading.Thread(target=lambda: found.append(compile_kernels())) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [other.wait(timeout=300) for other in others] == [0, 0]
    assert found[0].library is not None
    assert found[0].library is found[1].library
    files = [path for path in quick.rglob("*") if path.is_file()]
    assert files
    assert all(path.name == f"{hashlib.sha256(path.read_bytes()).hexdigest()}.so" for path in files)


def test_every_source_is_in_the_digest_of_the_library() -> None:
    folder = Path(build.__file__).parent
    present = {path.name for path in folder.iterdir() if path.suffix in {".cpp", ".h"}}
    included = set(re.findall(r'#include "([^"]+)"', "".join((folder / name).read_text() for name in build.SOURCES)))
    assert set(build.SOURCES) == present == included | {"painn.cpp"}
