"""The compiled gradient of a loss: the same numbers as eager mode, one graph for batches of all sizes, a way back."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from torch import Tensor, nn
from torch.fx import GraphModule

from zoo.distill.compiled import Answer, CompiledGradient, Terms, eager_gradient, inductor
from zoo.distill.loss import energy_term, norm_term
from zoo.errors import ZooWarning
from zoo.graph import Graph
from zoo.neighbors import build_graph
from zoo.ops import polynomial_envelope, safe_norm, scatter_sum
from zoo.potential import Potential
from zoo.students import PaiNN, PaiNNConfig

COEFFICIENTS = {"energy": 1.0, "force": 2.0, "hessian": 3.0}


@dataclass(frozen=True)
class Batch:
    graph: Graph
    energy: Tensor  # (structures,)
    forces: Tensor  # (atoms, 3)
    probes: Tensor | None  # (probes, atoms, 3)


class Pairs(Potential):
    """A function of each distance: quick to capture."""

    cutoff = 3.0
    elements = (14,)

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 3)
        self.outer = nn.Linear(3, 1)

    def atomic_energies(self, graph: Graph) -> Tensor:
        length = safe_norm(graph.edge_vectors())[:, None]  # (edges, 1)
        energy = self.outer(torch.tanh(self.inner(length))) * polynomial_envelope(length / self.cutoff)
        return scatter_sum(energy[:, 0], graph.centers, graph.num_atoms)


@pytest.fixture
def student() -> Pairs:
    torch.manual_seed(0)
    return Pairs().double()


def small_painn() -> PaiNN:
    config = PaiNNConfig(elements=("Si",), channels=3, layers=1, radials=2, cutoff=3.0)
    return PaiNN(config, torch.Generator().manual_seed(0)).double()


def make_batch(structures: int, seed: int = 0, probes: int = 1) -> Batch:
    random = np.random.default_rng(seed)
    atoms = [bulk("Si", cubic=True) for _ in range(structures)]
    for one in atoms:
        one.positions += 0.1 * random.standard_normal((8, 3))
    graph = build_graph(atoms, 3.0)
    rows = torch.from_numpy(random.standard_normal((2 + probes, graph.num_atoms, 3)))
    return Batch(graph, rows[0, :structures, 0], rows[1], rows[2:] if probes else None)


def terms_of(student: Potential) -> Callable[[Batch], Terms]:
    def terms(batch: Batch) -> Terms:
        answer = student.predict(batch.graph, probes=batch.probes, create_graph=True)
        assert answer.forces is not None
        found = {
            "energy": energy_term(answer.energy, batch.energy, batch.graph),
            "force": norm_term(answer.forces, batch.forces),
        }
        if answer.hessian_products is not None:
            found["hessian"] = norm_term(answer.hessian_products, torch.zeros_like(answer.hessian_products))
        return found

    return terms


def as_captured(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """A compiler that leaves the graph as it is: quick, and all but inductor is tested."""
    return graph


def assert_same(got: Answer, expected: Answer) -> None:
    assert got[0].keys() == expected[0].keys()
    for name, term in got[0].items():
        torch.testing.assert_close(term, expected[0][name])
    for left, right in zip(got[1], expected[1], strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            torch.testing.assert_close(left, right)


def test_one_graph_serves_batches_of_all_sizes() -> None:
    student = small_painn()
    compiled = CompiledGradient(student, terms_of(student), as_captured)
    for structures, seed in ((6, 0), (6, 1), (5, 2), (9, 3)):
        batch = make_batch(structures, seed)
        expected = eager_gradient(student, terms_of(student)(batch), COEFFICIENTS)
        assert_same(compiled(batch, COEFFICIENTS), expected)
    assert len(compiled.graphs) == 1
    assert not compiled.eager


def test_it_follows_parameters_and_coefficients(student: Potential) -> None:
    compiled = CompiledGradient(student, terms_of(student), as_captured)
    batch = make_batch(5, probes=0)
    compiled(batch, COEFFICIENTS)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.5)
    other = {"energy": 0.5, "force": 0.0, "hessian": 1.0}
    assert_same(compiled(batch, other), eager_gradient(student, terms_of(student)(batch), other))
    assert len(compiled.graphs) == 1


def test_another_kind_of_batch_gets_a_graph_of_its_own(student: Potential) -> None:
    compiled = CompiledGradient(student, terms_of(student), as_captured)
    for probes in (1, 0, 1):  # without probes there is no third term
        batch = make_batch(5, probes, probes)
        expected = eager_gradient(student, terms_of(student)(batch), COEFFICIENTS)
        assert_same(compiled(batch, COEFFICIENTS), expected)
    assert len(compiled.graphs) == 2


def test_a_single_structure_is_another_kind(student: Potential) -> None:
    compiled = CompiledGradient(student, terms_of(student), as_captured)
    for structures in (5, 1, 1, 5):
        batch = make_batch(structures, structures, probes=0)
        expected = eager_gradient(student, terms_of(student)(batch), COEFFICIENTS)
        assert_same(compiled(batch, COEFFICIENTS), expected)
    assert len(compiled.graphs) == 2


def test_the_first_batch_is_answered_by_the_compiled_graph_too(student: Potential) -> None:
    """A training that goes on after a kill compiles anew; its first step must have the bits of the others."""

    def rounding(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        return lambda *flat: [tensor * (1 + 1e-12) for tensor in graph(*flat)]

    compiled = CompiledGradient(student, terms_of(student), rounding)
    batch = make_batch(5, probes=0)
    first, second = compiled(batch, COEFFICIENTS), compiled(batch, COEFFICIENTS)
    assert torch.equal(first[0]["force"], second[0]["force"])
    assert not torch.equal(first[0]["force"], terms_of(student)(batch)["force"])


def test_beyond_so_many_kinds_it_is_eager(student: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.distill.compiled.MOST_GRAPHS", 1)
    compiled = CompiledGradient(student, terms_of(student), as_captured)
    for structures in (5, 1, 5):
        batch = make_batch(structures, probes=0)
        expected = eager_gradient(student, terms_of(student)(batch), COEFFICIENTS)
        assert_same(compiled(batch, COEFFICIENTS), expected)
    assert len(compiled.graphs) == 1
    assert not compiled.eager


def test_a_wrong_graph_is_found_out(student: Potential) -> None:
    def wrong(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        return lambda *flat: [1.001 * tensor for tensor in graph(*flat)]

    compiled = CompiledGradient(student, terms_of(student), wrong)
    batch = make_batch(5, probes=0)
    with pytest.warns(ZooWarning, match=r"could not be compiled .* off by 1\.0e-03"):
        answer = compiled(batch, COEFFICIENTS)
    expected = eager_gradient(student, terms_of(student)(batch), COEFFICIENTS)
    assert_same(answer, expected)
    assert_same(compiled(batch, COEFFICIENTS), expected)  # without a second warning
    assert compiled.eager


def test_a_compiler_that_fails_is_no_failure(student: Potential) -> None:
    def failing(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        raise RuntimeError("no C++ compiler\nand a long story")

    compiled = CompiledGradient(student, terms_of(student), failing)
    batch = make_batch(5, probes=0)
    with pytest.warns(ZooWarning, match="RuntimeError: no C\\+\\+ compiler"):
        answer = compiled(batch, COEFFICIENTS)
    assert_same(answer, eager_gradient(student, terms_of(student)(batch), COEFFICIENTS))


def test_a_parameter_without_a_say_has_no_gradient(student: Potential) -> None:
    student.register_parameter("idle", torch.nn.Parameter(torch.ones(2, dtype=torch.float64)))
    compiled = CompiledGradient(student, terms_of(student), as_captured)
    place = [name for name, _ in student.named_parameters()].index("idle")
    for _ in range(2):
        assert compiled(make_batch(5, probes=0), COEFFICIENTS)[1][place] is None


def test_what_is_not_trained_has_no_gradient_and_may_change(student: Potential) -> None:
    student.register_parameter("fixed", torch.nn.Parameter(torch.ones((), dtype=torch.float64), requires_grad=False))
    plain = terms_of(student)

    def scaled(batch: Batch) -> Terms:
        return {name: term * student.fixed for name, term in plain(batch).items()}

    compiled = CompiledGradient(student, scaled, as_captured)
    for value in (1.0, 2.0):
        student.fixed.fill_(value)
        batch = make_batch(5, probes=0)
        answer = compiled(batch, COEFFICIENTS)
        assert_same(answer, eager_gradient(student, scaled(batch), COEFFICIENTS))
        assert len(answer[1]) == 4
    assert len(compiled.graphs) == 1


@pytest.mark.slow
def test_inductor_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    student = small_painn().float()
    compiled = CompiledGradient(student, terms_of(student), inductor)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ZooWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        for structures in (6, 5):
            batch = make_batch(structures, structures, probes=0)
            batch = Batch(batch.graph.to("cpu", torch.float32), batch.energy, batch.forces.float(), None)
            got, expected = (
                compiled(batch, COEFFICIENTS),
                eager_gradient(student, terms_of(student)(batch), COEFFICIENTS),
            )
            for name, term in expected[0].items():
                torch.testing.assert_close(got[0][name], term, rtol=1e-4, atol=1e-5)
    assert len(compiled.graphs) == 1
