"""Columns of the Jacobian of direct forces, one by one in forward mode."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structures as scenes
import torch
from direct_potentials import direct_stillinger_weber, tiny_painn_dt
from gemnets import tiny_gemnet
from torch import Tensor, nn

from zoo.errors import CapabilityError
from zoo.graph import Graph
from zoo.neighbors import build_graph
from zoo.ops import polynomial_envelope, safe_norm, scatter_sum
from zoo.potential import AtomOutputs, Potential, Traits

# PyTorch compiles some formulas of forward mode with torch.jit, the first time
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


class Direct(Potential):
    """Forces along the edges, by a network of what both atoms have for neighbours: no gradient of anything."""

    traits = Traits(conservative=False, energies=False, stress=False)
    cutoff = 4.0
    elements = (8, 14)

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.weigh = nn.Linear(1, channels)
        self.mix = nn.Linear(2 * channels, 1)

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        vectors = graph.edge_vectors()  # (edges, 3)
        distance = safe_norm(vectors)[:, None]  # (edges, 1)
        fade = polynomial_envelope(distance / self.cutoff)
        messages = torch.tanh(self.weigh(distance)) * fade  # (edges, channels)
        atoms = scatter_sum(messages, graph.centers, graph.num_atoms)  # (atoms, channels)
        pairs = torch.cat([atoms[graph.centers], atoms[graph.neighbors].square()], dim=1)
        forces = scatter_sum(torch.tanh(self.mix(pairs)) * fade * vectors, graph.centers, graph.num_atoms)
        return AtomOutputs(atoms[:, 0], forces=forces)


@pytest.fixture
def direct() -> Direct:
    return Direct().double()


def _scene(potential: Potential, count: int) -> tuple[Graph, Tensor]:
    """A batch, and probes."""
    elements = scenes.species(potential)
    graph = build_graph([scenes.crystal(elements), scenes.molecule(elements)], potential.cutoff)
    return graph, torch.randn(count, 6, 3, dtype=torch.float64)


POTENTIALS = {
    "plain": lambda: Direct().double(),
    "painn-dt": lambda: tiny_painn_dt("Si", "O"),
    "gemnet-dt": lambda: tiny_gemnet("Si", "O", direct=True),
    "stillinger-weber": direct_stillinger_weber,
}


@pytest.mark.parametrize("name", POTENTIALS)
def test_they_are_the_columns_of_reverse_mode(name: str) -> None:
    potential = POTENTIALS[name]()
    graph, probes = _scene(potential, 3)
    ways = {side: potential.predict(graph, probes=probes, side=side).hessian_products for side in ("columns", "rows")}
    found = potential.force_columns(graph, probes)
    torch.testing.assert_close(found, ways["columns"], rtol=1e-11, atol=1e-11)
    assert (ways["columns"] - ways["rows"]).abs().max() > 1e-3, "no gradient: its sides differ"
    assert potential.force_columns(graph, probes[:0]).shape == (0, 6, 3)


def test_they_are_differences_of_forces(direct: Direct) -> None:
    graph, probes = _scene(direct, 1)

    def forces(step: float) -> Tensor:
        return direct.predict(graph.with_geometry(graph.positions + step * probes[0], graph.cells)).forces

    expected = -(forces(1e-5) - forces(-1e-5)) / 2e-5
    torch.testing.assert_close(direct.force_columns(graph, probes)[0], expected, rtol=1e-6, atol=1e-8)


@contextmanager
def kept() -> Iterator[list[Tensor]]:
    """What is saved for a derivative meanwhile."""
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def test_no_history_is_kept(direct: Direct) -> None:
    graph, probes = _scene(direct, 2)
    with kept() as saved:
        found = direct.force_columns(graph, probes)
        assert not saved
        direct.predict(graph, probes=probes, side="columns")
    assert saved, "reverse mode keeps what the pass made"
    assert not found.requires_grad


def test_energy_and_forces_alone_keep_no_history(direct: Direct) -> None:
    """They are the gradient of nothing; only products, and what learns, differentiate them."""
    graph, probes = _scene(direct, 1)
    with kept() as saved:
        found = direct.predict(graph, stress=True)
        assert not saved
        learning = direct.predict(graph, create_graph=True).forces
        assert saved
    assert torch.equal(found.forces, direct.predict(graph, probes=probes).forces)
    assert torch.equal(found.forces, learning)
    assert found.stress.isnan().all()
    torch.autograd.grad(learning.sum(), direct.weigh.weight)


def test_forces_that_do_not_depend_on_positions_have_none(direct: Direct, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, probes = _scene(direct, 1)
    monkeypatch.setattr(direct, "atomic_outputs", lambda graph: AtomOutputs(torch.ones(6), forces=torch.ones(6, 3)))
    assert not direct.force_columns(graph, probes).any()


def test_a_conservative_potential_is_asked_otherwise() -> None:
    potential = scenes.tiny_painn("Si", "O")
    with pytest.raises(CapabilityError, match=r"PaiNN.*gradient of its energy.*leave forward_mode out"):
        potential.force_columns(*_scene(potential, 1))


class _OneWay(torch.autograd.Function):
    """Something that can be differentiated backwards alone."""

    @staticmethod
    def forward(context: object, values: Tensor) -> Tensor:
        return values.clone()


def test_an_operation_without_forward_mode_is_named(direct: Direct, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, probes = _scene(direct, 1)
    whole = direct.atomic_outputs
    monkeypatch.setattr(
        direct, "atomic_outputs", lambda at: whole(at.with_geometry(_OneWay.apply(at.positions), at.cells))
    )
    with pytest.raises(CapabilityError, match=r"Direct has no forward mode.*leave forward_mode out") as error:
        direct.force_columns(graph, probes)
    assert "\n" not in str(error.value)
