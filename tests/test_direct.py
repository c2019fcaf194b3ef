"""Direct-force potentials: the laws of the contract on each, what is theirs alone, and PaiNN against fairchem's."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import painn_reference as published
import pytest
import structures as scenes
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import chemical_symbols
from contracts import CONTRACT, check_law, laws_of
from direct_potentials import direct_stillinger_weber, tiny_painn_dt
from torch import Tensor

from zoo.derivatives import asymmetry, one_hot_probes
from zoo.graph import Graph
from zoo.neighbors import build_graph
from zoo.ops import scatter_sum
from zoo.potential import AtomOutputs, Potential
from zoo.students import PaiNNDT, PaiNNDTConfig, build_student
from zoo.students.gemnet_edges import find_edges
from zoo.teachers import load_teacher, stillinger_weber
from zoo.teachers.stillinger_weber import DirectStillingerWeber, StillingerWeber

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # forward mode

GOLDEN = Path(__file__).parent / "golden" / "painn_dt.json"
ALL_83 = tuple(chemical_symbols[1:84])
AGREES = 1e-10  # of the largest number, in float64

POTENTIALS: dict[str, Callable[[], Potential]] = {
    "painn-dt": lambda: tiny_painn_dt("Si"),
    "painn-dt-two-elements": lambda: tiny_painn_dt("O", "Si", seed=11),
    "painn-dt-as-published": lambda: tiny_painn_dt("O", "Si", seed=12, smooth=False),
    "painn-dt-few-neighbours": lambda: tiny_painn_dt("Si", max_neighbors=6, seed=13),
    "stillinger-weber-direct": direct_stillinger_weber,
}


@pytest.fixture(scope="module")
def potentials() -> dict[str, Potential]:
    """Those that were built already."""
    return {}


@pytest.mark.parametrize("law", CONTRACT)
@pytest.mark.parametrize("name", POTENTIALS)
def test_potential_keeps_the_law(name: str, law: str, potentials: dict[str, Potential]) -> None:
    if name not in potentials:
        potentials[name] = POTENTIALS[name]()
    check_law(potentials[name], law)


# --- the teacher without an energy ----------------------------------------------------------------


def _rattled(spread: float = 0.1) -> Atoms:
    atoms = bulk("Si", "diamond", a=scenes.LATTICE, cubic=True)
    atoms.rattle(spread, seed=1)
    return atoms


def test_the_closed_forces_are_the_gradient_where_nothing_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stillinger_weber._DIRECT, "kappa", 0.0)
    direct, potential = DirectStillingerWeber(), StillingerWeber()
    for atoms in (_rattled(), scenes.molecule((14,))):
        graph = build_graph(atoms, potential.cutoff)
        torch.testing.assert_close(direct.predict(graph).forces, potential.predict(graph).forces)
        torch.testing.assert_close(direct.hessian(graph), potential.hessian(graph))


def test_what_is_added_is_small_has_no_reaction_and_no_energy() -> None:
    direct, potential = DirectStillingerWeber(), StillingerWeber()
    graph = build_graph(_rattled(), potential.cutoff)
    forces, gradient = direct.predict(graph).forces, potential.predict(graph).forces
    assert 0.002 < (forces - gradient).abs().mean() / gradient.abs().mean() < 0.05
    assert forces.sum(dim=0).abs().max() > 1e-3
    assert asymmetry(potential.hessian(graph)) < 1e-12
    assert 0.01 < asymmetry(direct.hessian(graph)) < 0.1


def test_the_direct_teacher_is_another_teacher() -> None:
    direct, teacher = (load_teacher(f"stillinger-weber/{name}") for name in ("direct-teacher", "teacher"))
    assert direct.weights_sha256 != teacher.weights_sha256
    assert direct.potential.predict(build_graph(_rattled(), 3.8, dtype=torch.float32)).energy.isnan().all()


# --- direct-force PaiNN ---------------------------------------------------------------------------


def test_parameters_are_as_many_as_the_papers() -> None:
    model = build_student(PaiNNDTConfig(elements=ALL_83))
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_029_639
    assert sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad) == 4


def test_traits_say_what_a_config_costs() -> None:
    smooth, published, few = (
        build_student(PaiNNDTConfig(elements=("Si",), channels=8, **fields)).traits
        for fields in ({}, {"smooth": False}, {"max_neighbors": 50})
    )
    assert (smooth.smoothness, smooth.permutation_invariant) == (2, True)
    assert (published.smoothness, published.permutation_invariant) == (-1, True)
    assert (few.smoothness, few.permutation_invariant) == (-1, False)
    assert (smooth.conservative, smooth.stress) == (False, False)
    assert smooth.features == 8


class WithStress(PaiNNDT):
    """It predicts a stress too."""

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        vectors = graph.edge_vectors()
        squares = vectors[:, :, None] * vectors[:, None, :]  # (edges, 3, 3)
        found = scatter_sum(squares, graph.structure[graph.centers], graph.num_structures)
        return replace(super().atomic_outputs(graph), stress=found)


def _with_stress() -> Potential:
    model = tiny_painn_dt("Si")
    model.__class__ = WithStress
    model.traits = replace(model.traits, stress=True)
    return model


@pytest.mark.parametrize("name", laws_of(_with_stress()))
def test_a_stress_that_is_predicted_keeps_the_laws(name: str) -> None:
    if name not in ("supercell", "parameter_gradient"):  # a sum over edges grows with the cell
        check_law(_with_stress(), name)


def test_a_stress_that_is_predicted_is_passed_on_where_there_is_a_volume() -> None:
    model = _with_stress()
    parts = [scenes.crystal((14,)), scenes.molecule((14,))]
    graph = build_graph(parts, model.cutoff)
    found, own = model.predict(graph, stress=True).stress, model.atomic_outputs(graph).stress
    assert torch.equal(found[0], own[0])
    assert found[0].abs().max() > 1
    assert found[1].isnan().all()
    assert model.predict(graph).stress is None


def test_few_neighbours_make_forces_jump() -> None:
    def largest_step(**fields: int) -> float:
        model = tiny_painn_dt("Si", seed=3, **fields)
        atoms = scenes.molecule((14,))
        forces = []
        for _ in range(150):
            atoms.positions[0] -= [6e-3, 2.5e-3, 0.0]
            forces.append(model.predict(build_graph(atoms, model.cutoff)).forces)
        steps = (torch.stack(forces[1:]) - torch.stack(forces[:-1])).abs().amax(dim=(1, 2))
        return float(steps.max())

    assert largest_step(max_neighbors=2) > 10 * largest_step()


def test_calibration_brings_scalars_near_one_after_each_layer() -> None:
    model = tiny_painn_dt("Si", layers=3)
    graphs = [build_graph(atoms, model.cutoff) for atoms in (scenes.crystal((14,)), scenes.molecule((14,)))]
    seen: list[Tensor] = []
    for update in model.updates:
        update.register_forward_hook(lambda module, given, got: seen.append(got[0]))
    model.calibrate(graphs)
    fitted = model.factors.clone()
    for scalars, factor in zip(seen, fitted, strict=True):
        assert (scalars * factor).square().mean() == pytest.approx(1.0)
    model.calibrate(graphs)
    assert torch.equal(model.factors, fitted), "calibration depends on what was there before"
    assert not fitted.requires_grad


def test_a_teachers_embedding_may_stand_in_for_its_own() -> None:
    model = build_student(PaiNNDTConfig(elements=("O", "Si"), channels=8, radials=4, teacher_channels=3)).double()
    model.set_teacher_embedding(torch.randn(2, 3))
    graph = build_graph(scenes.molecule((14, 8)), 4.0)
    model.calibrate([graph])
    assert model.predict(graph).forces.isfinite().all()
    assert model.element_embeddings().shape == (2, 8)


# --- against fairchem -----------------------------------------------------------------------------


def _close(got: Tensor, expected: Any, what: str) -> None:
    expected = torch.tensor(expected, dtype=torch.float64)
    error = (got.reshape(expected.shape) - expected).abs().max() / expected.abs().max()
    assert error < AGREES, f"{what}: off by {float(error):.1e} of the largest number"


def _atoms(case: dict[str, Any]) -> Atoms:
    return Atoms(case["numbers"], positions=case["positions"], cell=case["cell"], pbc=case["cell"] is not None)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", ["paper", "few-neighbours", "crystal"])
def test_numbers_are_those_of_fairchem(name: str, golden: dict[str, Any]) -> None:
    case = golden["cases"][name]
    model = PaiNNDT(PaiNNDTConfig(elements=ALL_83, smooth=False, **case["shape"])).double()
    published.draw_weights(model, golden["salt"], golden["scale_factors"])
    graph = build_graph(_atoms(case), model.cutoff)
    rows = torch.tensor([[3 * atom + axis for atom, axis in case["rows"]]])
    got = model.predict(graph, probes=one_hot_probes(rows, graph))
    _close(got.energy, case["energy"], "energy")
    _close(got.forces, case["forces"], "forces")
    _close(-got.hessian_products, case["dF_dr"], "Jacobian")


def test_few_neighbours_leave_fewer_edges(golden: dict[str, Any]) -> None:
    """So that the stored numbers test the choice of neighbours: in each case but the paper's, edges are left out."""
    for name, case in golden["cases"].items():
        graph = build_graph(_atoms(case), case["shape"]["cutoff"])
        assert (find_edges(graph, case["shape"]["max_neighbors"]).centers.numel() < graph.num_edges) == (
            name != "paper"
        )


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
def test_golden_numbers_are_what_fairchem_says(golden: dict[str, Any]) -> None:
    """ZOO_WRITE_TABLES=1 writes them anew."""
    pytest.importorskip("torch_geometric")
    torch.set_default_dtype(torch.float64)
    try:
        for case in golden["cases"].values():
            model = published.reference(case["shape"], golden["salt"], golden["scale_factors"])
            energy, forces, slopes = published.ask_reference(model, _atoms(case), case["rows"])
            if os.environ.get("ZOO_WRITE_TABLES"):
                case.update(energy=energy.item(), forces=forces.tolist(), dF_dr=slopes.tolist())
            _close(energy, case["energy"], "energy")
            _close(forces, case["forces"], "forces")
            _close(slopes, case["dF_dr"], "Jacobian")
    finally:
        torch.set_default_dtype(torch.float32)
    if os.environ.get("ZOO_WRITE_TABLES"):
        GOLDEN.write_text(json.dumps(golden) + "\n")
