"""GemNet-OC, JMP's architecture: golden numbers, names and counts, the laws, neighbours, angles, symmetric geometries.

``golden/gemnet_oc.json`` holds weights by a rule and the numbers of the MIT reference, fairchem-core 1.10.0;
``scripts/check_golden`` recomputes them.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from ase.build import molecule
from contracts import CONTRACT, check_law
from pydantic import ValidationError
from test_scripts import load_script
from torch import Tensor

from zoo.artifact import count_parameters
from zoo.derivatives import differentiable
from zoo.gemnet_oc.activation import scaled_silu
from zoo.gemnet_oc.basis import dihedral_cosine
from zoo.gemnet_oc.config import JMP_L, JMP_S, GemNetOCConfig
from zoo.gemnet_oc.graphs import Edges, Graphs, find_graphs
from zoo.gemnet_oc.layers import Dense, ScaleFactor
from zoo.gemnet_oc.network import WORKING_MEMORY, GemNetOC, make_head
from zoo.graph import Graph
from zoo.neighbors import build_graph
from zoo.potential import Potential

bench, check_golden = load_script("bench_gemnet_oc"), load_script("check_golden")

# what PyTorch imports for forward mode
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

GOLDEN = Path(__file__).parent / "golden" / "gemnet_oc.json"
TINY = {
    "num_blocks": 1,
    "emb_size_atom": 6,
    "emb_size_edge": 7,
    "emb_size_trip_in": 4,
    "emb_size_trip_out": 5,
    "emb_size_quad_in": 3,
    "emb_size_quad_out": 4,
    "emb_size_aint_in": 3,
    "emb_size_aint_out": 5,
    "emb_size_rbf": 4,
    "emb_size_cbf": 3,
    "emb_size_sbf": 4,
    "num_spherical": 4,
    "num_radial": 6,
    "num_before_skip": 1,
    "num_after_skip": 1,
    "num_atom": 1,
    "num_output_afteratom": 1,
    "num_atom_emb_layers": 1,
    "num_global_out_layers": 1,
    "cutoff": 4.0,
    "basis_cutoff": 4.5,
}
SMALL = {  # in the proportions of JMP-S, on which it depends what is kept
    name: value // 4 if name.startswith("emb_size_") else value
    for name, value in dict(JMP_S).items()
    if name.startswith(("emb_size_", "num_")) and name not in ("emb_size_rbf", "emb_size_cbf", "num_elements")
}
ALL_NEIGHBORS = {
    "max_neighbors": 500,
    "max_neighbors_aeaint": 500,
    "max_neighbors_qint": 500,
    "max_neighbors_aint": 500,
}


def stored() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


def tiny(seed: int = 3, **fields: Any) -> GemNetOC:
    """A float64 model with all neighbours in which nothing is zero or one by chance."""
    torch.manual_seed(seed)
    model = GemNetOC(GemNetOCConfig(**(TINY | ALL_NEIGHBORS | {"energy_scale": 1.3, "force_scale": 0.7} | fields)))
    for module in model.modules():
        if isinstance(module, ScaleFactor):
            module.scale_factor.uniform_(0.5, 2)
    return model.double().eval()


def golden_tiny(forces: str) -> GemNetOC:
    """The tiny model of the golden numbers, with JMP's cutoff and numbers of neighbours."""
    file = stored()
    case = {"size": "tiny", "forces_from": forces}
    return check_golden.build(check_golden.config_of(case, file), "zoo:", file["scale_factors"])


def golden_atoms(geometry: str) -> Atoms:
    case = next(case for case in stored()["cases"] if case["geometry"] == geometry)
    return Atoms(numbers=case["numbers"], positions=case["positions"])


# --- the published model --------------------------------------------------------------------------


def _golden_cases() -> list[object]:
    cases = []
    for case in stored()["cases"]:
        heavy = [pytest.mark.slow] if case["size"] == "s" and len(case["numbers"]) > 9 else []
        name = f"{case['size']}-{case['forces_from']}-{case['geometry']}"
        cases.append(pytest.param(case, id=name, marks=heavy))
    return cases


@pytest.mark.parametrize("case", _golden_cases())
def test_numbers_are_the_golden_ones(case: dict[str, Any]) -> None:
    file = stored()
    model = check_golden.build(check_golden.config_of(case, file), case["salt"], file["scale_factors"])
    found = check_golden.deviations(model, case)
    assert set(found) == ({"energy", "forces", "dF_dr"} if case["jacobian_rows"] else {"energy", "forces"})
    assert max(found.values()) < 1e-10, found


@pytest.mark.reference
@pytest.mark.parametrize("forces", ["direct", "gradient"])
@pytest.mark.parametrize("size", ["tiny", "s"])
def test_numbers_are_those_of_the_reference(size: str, forces: str) -> None:
    """Of molecules that the golden file does not have, alone and two at once, in either order of differentiation.

    The molecule is not quite planar, where the reference has no Hessian.
    """
    for needed in ("torch_geometric", "sympy", "scipy"):
        pytest.importorskip(needed, reason=f"the reference needs {needed}")
    import fairchem_gemnet_oc as fairchem  # lazy: it is only here that the package is needed

    file = stored()
    model = check_golden.build(
        check_golden.config_of({"size": size, "forces_from": forces}, file), "live:", file["scale_factors"]
    )
    theirs = fairchem.reference(model)
    acid, cloud = molecule("CH3COOH"), bench.structure(35)
    acid.rattle(0.02, seed=5)
    for structures in ([acid], [cloud], [cloud, acid]) if size == "tiny" else ([acid, cloud],):
        graph = build_graph(structures, model.cutoff)
        rows = [4, 3 * graph.num_atoms - 2]
        energy, given_forces, jacobian = fairchem.ask_reference(theirs, structures, rows)
        probes = -torch.eye(3 * graph.num_atoms, dtype=torch.float64)[rows].reshape(2, -1, 3)
        for memory in (WORKING_MEMORY, 0.0):
            got = with_memory(model, memory).predict(graph, probes=probes)
            for ours, expected in ((got.energy, energy), (got.forces, given_forces), (got.hessian_products, jacobian)):
                assert (ours - expected).abs().max() < 1e-10 * expected.abs().max()


@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_float32_is_as_near_as_it_can_be(forces: str) -> None:
    cases = [case for case in stored()["cases"] if (case["size"], case["forces_from"]) == ("tiny", forces)]
    model = golden_tiny(forces).float()
    for case in cases:
        found = check_golden.deviations(model, case)
        assert all(found[name] < check_golden.TOLERANCES["float32"][name] for name in found), found


@pytest.mark.parametrize("key", ["tiny-direct", "tiny-gradient", "s-direct", "s-gradient"])
def test_names_are_those_of_fine_tuned_checkpoints_in_their_order(key: str) -> None:
    """Averages of weights come without names, in the order of the parameters."""
    file = stored()
    size, forces = key.split("-")
    with torch.device("meta"):
        model = GemNetOC(check_golden.config_of({"size": size, "forces_from": forces}, file))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == file["shapes"][key]
    assert list(shapes) == list(file["shapes"][key])


@pytest.mark.parametrize(
    ("config", "backbone", "energy_only", "pretrained", "tensors"),
    [
        (JMP_S, 38_842_368, 28_577_792, 44_131_328, 405),
        (JMP_L, 216_385_536, 160_581_632, 234_267_648, 585),
    ],
    ids=["s", "l"],
)
def test_parameters_are_as_many_as_published(
    config: GemNetOCConfig, backbone: int, energy_only: int, pretrained: int, tensors: int
) -> None:
    with torch.device("meta"):
        model = GemNetOC(config.model_copy(update={"energy_bias": True}))
        conservative = GemNetOC(config.model_copy(update={"forces": "gradient"}))
        others = [make_head(size, bias=True) for size in (config.emb_size_atom, config.emb_size_edge) for _ in range(3)]
    assert _count(model.backbone) == backbone
    assert _count(conservative.backbone) == energy_only
    assert count_parameters(conservative) == energy_only + 120 * 256 + 262_400
    assert count_parameters(model) + sum(map(_count, others)) == pretrained  # pre-training has four heads of each kind
    assert sum(len(list(module.parameters())) for module in (model, *others)) == tensors


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_scale_factor_of_zero_changes_nothing() -> None:
    factor, values = ScaleFactor(), torch.randn(3)
    factor.scale_factor.fill_(0)
    assert torch.equal(factor(values), values)
    factor.scale_factor.fill_(2)
    assert torch.equal(factor(values), 2 * values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"forces": "gradient", "energies": False}, "need energies"),
        ({"num_elements": 83}, "num_elements 83"),
        ({"cutoff": 12.5}, "below the cutoff"),
        ({"channels": 3}, "channels"),
    ],
)
def test_a_config_that_does_not_fit_is_an_error(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        GemNetOCConfig(**changes)


# --- the activation -------------------------------------------------------------------------------


def test_the_activation_has_the_derivatives_of_silu_in_every_mode() -> None:
    values = torch.linspace(-6, 6, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(scaled_silu, values, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(scaled_silu, values, check_fwd_over_rev=True)
    ours, theirs = scaled_silu(values), torch.nn.functional.silu(values) / 0.6
    for _ in range(5):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
        ours, theirs = (torch.autograd.grad(one.sum(), values, create_graph=True)[0] for one in (ours, theirs))


def test_a_derivative_of_the_activation_keeps_two_tensors() -> None:
    values = torch.randn(5, dtype=torch.float64).requires_grad_()
    upstream = torch.randn(5, dtype=torch.float64).requires_grad_()
    kept: set[int] = set()

    def keep(tensor: Tensor) -> Tensor:
        kept.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        torch.autograd.grad(scaled_silu(values), values, upstream, create_graph=True)
    assert kept == {values.data_ptr(), upstream.data_ptr()}


@pytest.mark.parametrize("frozen", [True, False])
def test_a_linear_layer_is_linear_in_every_mode_whether_its_weight_learns(frozen: bool) -> None:
    layer = Dense(4, 3, active=False).double().requires_grad_(not frozen)
    values = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(layer(values), values @ layer.linear.weight.t())
    assert torch.autograd.gradcheck(lambda x: layer(x).square(), values, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x).square(), values, check_fwd_over_rev=True)
    layer(values).sum().backward()
    expected = values.detach().sum(dim=(0, 1)).expand(3, 4)
    if frozen:
        assert layer.linear.weight.grad is None
    else:
        torch.testing.assert_close(layer.linear.weight.grad, expected)


def test_a_frozen_linear_layer_keeps_only_its_weight() -> None:
    layer = Dense(4, 3, active=False).requires_grad_(False)
    assert _kept_by(lambda: layer(torch.randn(5, 4, requires_grad=True))) == {layer.linear.weight.data_ptr(): 48}


# --- memory ---------------------------------------------------------------------------------------


def _kept_by(call: Callable[[], object]) -> dict[int, int]:
    """Bytes of the storages that are kept for a gradient, by their addresses."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return {address: tensor.untyped_storage().nbytes() for address, tensor in kept.items()}


def _kept_in_all(model: GemNetOC, graph: Graph) -> int:
    """Bytes that a pass keeps besides the weights."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    tracked, *_ = differentiable(graph, strain=False)
    found = _kept_by(lambda: model.atomic_outputs(tracked))
    return sum(size for address, size in found.items() if address not in weights)


def with_memory(model: GemNetOC, memory: float) -> GemNetOC:
    """The same model that may keep as many bytes for a gradient."""
    model = copy.deepcopy(model)
    model.backbone.working_memory = memory
    return model


@pytest.mark.parametrize("forces", ["direct", "gradient"])
@pytest.mark.parametrize("name", ["ethanol", "cloud30"])
def test_numbers_are_the_same_when_blocks_are_computed_again(name: str, forces: str) -> None:
    """Products of the Hessian are then taken forward over reverse, before in reverse over reverse."""
    model = golden_tiny(forces)
    little = with_memory(model, 0.0)
    graph = build_graph(golden_atoms(name), model.cutoff)
    probes = torch.randn(2, graph.num_atoms, 3, dtype=torch.float64)
    assert not model.products_in_forward_mode(graph)
    assert little.products_in_forward_mode(graph) == (forces == "gradient")
    for side in ("rows", "columns", "symmetric"):
        got, expected = (one.predict(graph, probes=probes, side=side, features=True) for one in (little, model))
        for part in ("energy", "atomic_energies", "forces", "hessian_products", "features"):
            torch.testing.assert_close(getattr(got, part), getattr(expected, part), rtol=1e-10, atol=1e-11)
    rows = torch.tensor([0, 13])
    torch.testing.assert_close(little.hessian(graph, rows), model.hessian(graph, rows), rtol=1e-10, atol=1e-11)
    if forces == "direct":
        torch.testing.assert_close(
            little.force_columns(graph, probes),
            model.predict(graph, probes=probes, side="columns").hessian_products,
            rtol=1e-10,
            atol=1e-11,
        )


def test_what_was_not_asked_is_not_there_in_forward_over_reverse_either() -> None:
    model = with_memory(golden_tiny("gradient"), 0.0)
    graph = build_graph(golden_atoms("ethanol"), model.cutoff)
    got = model.predict(graph, forces=False, probes=torch.ones(1, 9, 3, dtype=torch.float64))
    assert got.forces is None
    assert got.stress is None
    assert not got.hessian_products.requires_grad
    whole = model.predict(graph, gradient=True, probes=torch.ones(1, 9, 3, dtype=torch.float64))
    assert torch.equal(whole.energy_gradient, -whole.forces)
    assert model.predict(graph, probes=torch.ones(0, 9, 3, dtype=torch.float64)).hessian_products.shape == (0, 9, 3)


def test_what_is_kept_is_near_its_estimate_and_shrinks_with_the_memory() -> None:
    for forces, times in (("direct", 1), ("gradient", 2)):  # forces that are a gradient may keep twice as much
        model = tiny(forces=forces, **SMALL).float().requires_grad_(False)
        graph = build_graph(golden_atoms("cloud30"), model.cutoff, dtype=torch.float32)
        estimate = model.backbone.kept_bytes(find_graphs(graph, model.config), 4)
        whole = _kept_in_all(model, graph)
        assert 0.8 < estimate / whole < 1.2, (estimate, whole)
        part = _kept_in_all(with_memory(model, estimate / 2 / times), graph)
        little = _kept_in_all(with_memory(model, 0.0), graph)
        assert little < 0.8 * part < 0.8 * 0.7 * whole
        assert little < 0.4 * whole


@pytest.mark.parametrize(("memory", "expected"), [(1.0, 0), (0.99, 2), (0.5, 3), (0.2, 4), (0.0, 4)])
def test_blocks_that_do_not_fit_beside_one_are_computed_again(memory: float, expected: int) -> None:
    model = tiny(num_blocks=4).requires_grad_(False)
    model.backbone.working_memory = memory * 1000
    assert model.backbone.blocks_recomputed(1000) == expected
    model.backbone.out_mlp_E.requires_grad_(True)
    assert model.backbone.blocks_recomputed(1000) == 0


def test_parameters_learn_the_same_whatever_the_memory() -> None:
    """Also where the backbone is frozen and a head learns: forces by create_graph are differentiable twice."""
    for learning in ("backbone", "out_energy"):
        model = tiny(forces="gradient").requires_grad_(False)
        getattr(model, learning).requires_grad_(True)
        graph = build_graph(golden_atoms("ethanol"), model.cutoff)
        gradients = []
        for one in (model, with_memory(model, 0.0)):
            probes = torch.ones(1, 9, 3, dtype=torch.float64)
            answer = one.predict(graph, probes=probes, create_graph=True)
            loss = answer.forces.square().sum() + answer.hessian_products.square().sum()
            parameters = [parameter for parameter in one.parameters() if parameter.requires_grad]
            gradients.append(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
        for got, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
        assert any(gradient.abs().max() > 1e-6 for gradient in gradients[0])


# --- laws -----------------------------------------------------------------------------------------

POTENTIALS = {
    "direct": lambda: tiny(),
    "gradient": lambda: tiny(forces="gradient"),
    "direct-without-energies": lambda: tiny(energies=False, cutoff=3.0),
    "direct-in-little-memory": lambda: with_memory(tiny(num_blocks=3).requires_grad_(False), 0.0),
    "gradient-in-little-memory": lambda: with_memory(tiny(num_blocks=3, forces="gradient").requires_grad_(False), 0.0),
    "gradient-few-neighbors": lambda: tiny(
        forces="gradient",
        energy_bias=True,
        max_neighbors=5,
        max_neighbors_aeaint=4,
        max_neighbors_qint=3,
        max_neighbors_aint=7,
    ),
}


def _law_cases() -> list[object]:
    cases = []
    for name in POTENTIALS:
        for law in CONTRACT:
            by_parameters = law == "parameter_gradient"  # slow: each parameter is changed
            if not by_parameters or name in ("direct", "gradient"):
                marks = [pytest.mark.slow] if by_parameters else []
                cases.append(pytest.param(name, law, id=f"{name}-{law}", marks=marks))
    return cases


@pytest.fixture(scope="module")
def potentials() -> dict[str, Potential]:
    """Those that were built already."""
    return {}


@pytest.mark.parametrize(("name", "law"), _law_cases())
def test_potential_keeps_the_law(name: str, law: str, potentials: dict[str, Potential]) -> None:
    if name not in potentials:
        potentials[name] = POTENTIALS[name]()
    check_law(potentials[name], law)


@pytest.mark.parametrize("memory", [WORKING_MEMORY, 0.0])
@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_a_batch_of_molecules_is_its_parts(forces: str, memory: float) -> None:
    """Of different sizes, with more neighbours than are kept, and an atom alone."""
    model = with_memory(golden_tiny(forces), memory)
    parts = [golden_atoms("c60"), scenes.isolated((8,)), golden_atoms("ethanol"), scenes.dimer((6, 8))]
    probes = [torch.randn(1, len(atoms), 3, dtype=torch.float64) for atoms in parts]
    together = model.predict(build_graph(parts, model.cutoff), probes=torch.cat(probes, dim=1))
    for got, atoms, probe in zip(together.split([len(atoms) for atoms in parts]), parts, probes, strict=True):
        alone = model.predict(build_graph(atoms, model.cutoff), probes=probe)
        for name in ("energy", "forces", "hessian_products"):
            torch.testing.assert_close(getattr(got, name), getattr(alone, name), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("forces", ["direct", "gradient"])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("memory", [WORKING_MEMORY, 0.0])
def test_few_atoms_are_enough(memory: float, count: int, forces: str) -> None:
    """Without triplets or quadruplets; three in a bent molecule have them but no fourth atom."""
    model = with_memory(golden_tiny(forces), memory)
    atoms = molecule("H2O")[:count]
    graph = build_graph(atoms, model.cutoff)
    got, dense = model.predict(graph), model.hessian(graph)
    assert got.energy.isfinite().all()
    assert got.forces.isfinite().all()
    assert dense.isfinite().all()
    assert (got.forces.abs().max() > 1e-3) == (count > 1)
    assert (dense.abs().max() > 1e-3) == (count > 1)


# --- which neighbours -----------------------------------------------------------------------------


def _edges_of(atoms: Atoms, **fields: int) -> Graphs:
    config = GemNetOCConfig(**fields)
    return find_graphs(build_graph(atoms, config.cutoff), config)


def _pairs(edges: Edges) -> set[tuple[int, int]]:
    return set(zip(edges.sources.tolist(), edges.targets.tolist(), strict=True))


def test_each_atom_hears_of_its_nearest_and_main_edges_come_in_pairs() -> None:
    atoms = golden_atoms("c60")
    graphs = _edges_of(atoms)
    nearest = np.argsort(atoms.get_all_distances(), axis=1)[:, 1:]
    for edges, count in ((graphs.to_edges, 20), (graphs.middle, 8), (graphs.to_atoms, 59)):
        assert _pairs(edges) == {(int(source), target) for target in range(60) for source in nearest[target, :count]}
    half = {(int(source), target) for target in range(60) for source in nearest[target, :30] if source < target}
    assert _pairs(graphs.main) == half | {(target, source) for source, target in half}
    assert torch.equal(graphs.main.sources[graphs.counters], graphs.main.targets)
    torch.testing.assert_close(graphs.main.directions[graphs.counters], -graphs.main.directions)


def test_equally_near_neighbours_are_taken_in_the_order_of_atoms_however_they_are_turned() -> None:
    """A cube of atoms, in which all three kinds of truncation choose among equals."""
    atoms = Atoms("C64", 1.5 * np.stack(np.meshgrid(*[np.arange(4)] * 3), axis=-1).reshape(-1, 3))
    expected = _edges_of(atoms)
    distances = np.sort(atoms.get_all_distances(), axis=1)  # of which the first is 0
    for count in (8, 20, 30):
        assert (distances[:, count + 1] - distances[:, count]).min() < 1e-9
    for angle in range(8):
        turned = atoms.copy()
        turned.rotate(17 + 31 * angle, (1, 2, angle))
        got = _edges_of(turned)
        for kind in ("main", "to_edges", "middle"):
            assert _pairs(getattr(got, kind)) == _pairs(getattr(expected, kind)), (kind, angle)


def test_few_enough_atoms_may_be_in_any_order_but_not_more() -> None:
    """30 atoms have all their main edges; of 60 atoms the choice among neighbours depends on their order."""
    model, random = golden_tiny("direct"), np.random.default_rng(0)
    changes = {}
    for name in ("cloud30", "c60"):
        atoms = golden_atoms(name)
        order = random.permutation(len(atoms))
        before, after = (model.predict(build_graph(one, model.cutoff)) for one in (atoms, atoms[order]))
        changes[name] = float(abs(after.energy - before.energy) / abs(before.energy))
    assert changes["cloud30"] < 1e-12
    assert changes["c60"] > 1e-4
    assert not model.traits.permutation_invariant
    assert model.traits.smoothness == -1


def test_cutoffs_of_edges_and_of_the_basis_are_two() -> None:
    """As in pre-training: an atom farther than the edges reach is not heard of, whatever the envelope says."""
    near, far = (
        tiny(cutoff=4.0, basis_cutoff=basis).predict(build_graph(scenes.molecule((14, 8)), 4.0)).energy
        for basis in (4.0, 12.0)
    )
    assert abs(near - far) > 1e-4
    model = tiny(cutoff=4.0, basis_cutoff=12.0)
    apart = scenes.molecule((14, 8)) + Atoms("Si", positions=[[0.0, 0.0, 9.0]])
    alone = model.predict(build_graph(Atoms("Si"), 4.0)).energy
    together = model.predict(build_graph(apart, 4.0)).energy
    expected = model.predict(build_graph(scenes.molecule((14, 8)), 4.0)).energy + alone
    torch.testing.assert_close(together, expected)


# --- angles, and geometries that are symmetric ----------------------------------------------------


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def test_the_cosine_is_that_of_the_dihedral_angle() -> None:
    places = np.random.default_rng(2).normal(size=(4, 3))
    angle = np.radians(Atoms("H4", places).get_dihedral(2, 0, 1, 3))
    a, b, c, d = torch.from_numpy(places)
    cosine = dihedral_cosine(_unit(a - c)[None, None], _unit(b - d)[None, None], _unit(a - b)[None, None])
    assert float(cosine) == pytest.approx(np.cos(angle), abs=1e-13)


@pytest.mark.parametrize("bend", [0.0, 3e-6, 1e-4, 1e-2])
def test_the_dihedral_cosine_fades_where_three_atoms_are_in_a_line(bend: float) -> None:
    """It is exact down to 1e-4, and three of its derivatives are numbers also below."""
    line = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    ca = _unit(torch.tensor([-1.0, bend, 0.0], dtype=torch.float64)).requires_grad_()
    db = _unit(torch.tensor([0.3, 1.0, 0.4], dtype=torch.float64))
    cosine = dihedral_cosine(ca[None, None], db[None, None], line[None, None]).sum()
    exact = 1 / np.sqrt(1.16)
    if bend == 0:
        assert cosine.detach() == 0
    elif bend > 1e-4:
        assert float(cosine.detach()) == pytest.approx(exact, abs=1e-12)
    else:
        assert 0 <= float(cosine.detach()) <= exact + 1e-12
    derivative = cosine
    for _ in range(3):
        derivative = torch.autograd.grad(derivative.sum(), ca, create_graph=True)[0]
        assert derivative.isfinite().all()


@pytest.mark.parametrize("degrees", [0.01, 0.05, 0.3, 1.0])
def test_a_chain_that_is_almost_straight_at_both_ends_has_its_own_dihedral_angle(degrees: float) -> None:
    """As the published weights were trained; both ends together are no nearer to a line than each."""
    bend, turn = np.radians(degrees), np.radians(57.0)
    ca = torch.tensor([-np.cos(bend), np.sin(bend), 0.0])
    db = torch.tensor([np.cos(bend), np.sin(bend) * np.cos(turn), np.sin(bend) * np.sin(turn)])
    line = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    cosine = dihedral_cosine(*(vector.double()[None, None] for vector in (ca, db, line)))
    assert float(cosine) == pytest.approx(np.cos(turn), abs=1e-7)


@pytest.mark.parametrize("forces", ["direct", "gradient"])
@pytest.mark.parametrize("memory", [WORKING_MEMORY, 0.0])
@pytest.mark.parametrize("name", ["CH3CH2OH", "C6H6", "C2H2", "CO2"])
def test_the_hessian_of_a_planar_or_straight_molecule_is_finite(name: str, memory: float, forces: str) -> None:
    """The reference gives NaN or millions for each of them.

    Exactly planar ethanol is the limit of those nearly so; where atoms stand in a line, as in the others, there is no
    limit: a little off it the architecture itself is as steep as the dihedral angle there.
    """
    model, atoms = with_memory(golden_tiny(forces), memory), molecule(name)
    dense = model.hessian(build_graph(atoms, model.cutoff))
    assert dense.isfinite().all()
    assert dense.abs().max() < 1e3
    if forces == "gradient":
        torch.testing.assert_close(dense, dense.T, rtol=1e-8, atol=1e-8)
    if name == "CH3CH2OH":
        atoms.rattle(1e-6, seed=1)
        nearly = model.hessian(build_graph(atoms, model.cutoff))
        assert (nearly - dense).abs().max() < 1e-3 * dense.abs().max()


# --- the script -----------------------------------------------------------------------------------


def _run_script(monkeypatch: pytest.MonkeyPatch, path: Path, content: dict[str, Any], *arguments: str) -> int:
    path.write_text(json.dumps(content))
    monkeypatch.setattr(sys, "argv", ["check_golden", str(path), "--threads", "1", *arguments])
    return check_golden.main()


def test_the_script_finds_what_is_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = stored()
    file["cases"] = [case for case in file["cases"] if (case["size"], case["geometry"]) == ("tiny", "ethanol")]
    assert _run_script(monkeypatch, tmp_path / "good.json", file) == 0
    assert "2 of 2 cases within the tolerances of float64" in capsys.readouterr().out
    file["cases"][0]["forces"][3][1] += 1e-9
    file["shapes"]["tiny-gradient"]["backbone.of.somebody.else"] = [3]
    assert _run_script(monkeypatch, tmp_path / "off.json", file) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["WRONG", "WRONG", "backbone.of.somebody.else", "0"]
    assert _run_script(monkeypatch, tmp_path / "none.json", file, "--only", "cloud") == 1
    file["cases"][0]["size"] = "xl"
    with pytest.raises(SystemExit, match="size 'xl'"):
        _run_script(monkeypatch, tmp_path / "size.json", file)


def test_the_bench_measures_what_it_names_and_tells_what_failed() -> None:
    """In the process of a case numbers come with time and memory; a limit that is met is an entry like any other."""
    case = bench.Case("zoo", "S", "energy, gradient forces, a Hessian product", 9)
    found = bench.measured(case, patience=100)
    assert found["seconds"] > 0
    assert 0.1 < found["peak_GiB"] < 20
    assert [len(found["numbers"][name]) for name in ("energy", "forces", "row")] == [1, 27, 27]
    limits = argparse.Namespace(memory=0.4, patience=100, threads=1)
    assert bench.in_process(case, limits) == {"failed": "out of memory"}
    for count in bench.ATOMS:
        places = bench.structure(count)
        assert len(places) == count
        assert places.get_all_distances()[np.triu_indices(count, 1)].min() > 0.9
    rows = [
        vars(case) | {"seconds": 2.0, "peak_GiB": 1.25},
        vars(case) | {"whose": "fairchem", "seconds": 3.0, "peak_GiB": 4},
    ]
    assert "| 9 | 2.00 s, 1.2 | 3.00 s, 4.0 | 1.50 |" in bench.table(case.quantity, rows)
    rows[1] |= {"failed": "out of memory"}
    assert "| 9 | 2.00 s, 1.2 | out of memory | – |" in bench.table(case.quantity, rows)


def test_the_bench_gives_up_a_call_that_takes_too_long() -> None:
    limits = argparse.Namespace(memory=20.0, patience=1, threads=1)
    case = bench.Case("zoo", "S", "energy, gradient forces, a Hessian product", 148)
    assert bench.in_process(case, limits) == {"failed": "over 1 s"}
