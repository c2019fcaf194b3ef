"""GemNet-T and GemNet-dT: the published model's numbers, edges and triplets, scale factors, a teacher's embedding."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from ase.build import molecule
from ase.data import chemical_symbols
from gemnets import TINY, tiny_gemnet
from numpy.polynomial.legendre import Legendre
from torch import Tensor

from zoo.artifact import count_parameters
from zoo.config import Config, parse, write_json
from zoo.errors import ConfigError, StructureError
from zoo.graph import Graph, collate
from zoo.neighbors import build_graph
from zoo.potential import Prediction
from zoo.students import GemNetDTConfig, GemNetT, GemNetTConfig, PaiNNConfig, StudentConfig, build_student
from zoo.students.gemnet_edges import find_edges
from zoo.students.gemnet_layers import ScaleFactor, circular_harmonics

GOLDEN = Path(__file__).parent / "golden" / "gemnet_t.json"
ELEMENTS = tuple(chemical_symbols[1:84])  # hydrogen to bismuth, as the Open Catalyst models know them
CONFIGS = {"gemnet-t": GemNetTConfig, "gemnet-dt": GemNetDTConfig}
CUTOFF = 5.0


# --- the published model --------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "count"), [("gemnet-t", 565_073), ("gemnet-dt", 672_918)])
def test_the_default_has_as_many_parameters_as_the_paper_has(architecture: str, count: int) -> None:
    assert count_parameters(build_student(CONFIGS[architecture](elements=ELEMENTS))) == count


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


CASES = [
    (architecture, structure, neighbors)
    for architecture in CONFIGS
    for structure, neighbors in [
        ("ethanol", None),
        ("cloud", None),
        ("crystal", None),
        ("cloud", 12),
        ("crystal", 6),
    ]
]


@pytest.mark.parametrize(("architecture", "structure", "neighbors"), CASES)
def test_numbers_are_the_stored_ones_of_the_reference(architecture: str, structure: str, neighbors: int | None) -> None:
    stored = golden()
    model = build(architecture, neighbors, stored)
    shapes = {name: list(tensor.shape) for name, tensor in model.named_parameters()}
    assert shapes == stored["shapes"][architecture]
    expected = stored["cases"][_key(architecture, structure, neighbors)]
    for name, got in ask(model, _atoms(stored["structures"][structure]), expected["rows"]).items():
        assert _difference(got, torch.tensor(expected[name], dtype=torch.float64)) < 1e-10, name


@pytest.mark.reference
def test_numbers_are_those_of_the_reference() -> None:
    """``ZOO_WRITE_TABLES=1`` writes ``golden/gemnet_t.json`` anew from it."""
    for needed in ("torch_geometric", "sympy", "scipy"):
        pytest.importorskip(needed, reason=f"the reference needs {needed}")
    import fairchem_gemnet as fairchem  # lazy: it is only here that the package is needed

    stored = _rule() if os.environ.get("ZOO_WRITE_TABLES") else golden()
    for architecture, structure, neighbors in CASES:
        ours = build(architecture, neighbors, stored)
        atoms = _atoms(stored["structures"][structure])
        rows = [0, 3 * len(atoms) - 2]
        names = ("energy", "forces", "dF_dr")
        theirs = dict(zip(names, fairchem.ask_reference(fairchem.reference(ours), atoms, rows), strict=True))
        for name, got in ask(ours, atoms, rows).items():
            assert _difference(got, theirs[name]) < 1e-10, (architecture, structure, neighbors, name)
        numbers = {"rows": rows} | {name: tensor.tolist() for name, tensor in theirs.items()}
        stored.setdefault("cases", {})[_key(architecture, structure, neighbors)] = numbers
    if os.environ.get("ZOO_WRITE_TABLES"):
        write_json(GOLDEN, stored)


def build(architecture: str, neighbors: int | None, stored: dict[str, Any]) -> GemNetT:
    """The default shape with the weights of the rule, in float64."""
    config = CONFIGS[architecture](elements=ELEMENTS, cutoff=CUTOFF, max_neighbors=neighbors)
    model = build_student(config).double()
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weight(name, tuple(parameter.shape), stored))
    return model.eval().requires_grad_(False)


def weight(name: str, shape: tuple[int, ...], stored: dict[str, Any]) -> Tensor:
    """The weight of that name by the rule of the stored numbers."""
    if name.endswith("factor"):
        ends = stored["scale_factors"]
        return torch.tensor(next(value for end, value in ends if name.endswith(end)), dtype=torch.float64)
    drawn = np.random.default_rng(zlib.crc32((stored["salt"] + name).encode())).standard_normal(shape)
    if name != "embedding.weight":
        drawn -= drawn.mean(axis=-1, keepdims=True)
        drawn /= drawn.std(axis=-1, ddof=1, keepdims=True) * np.sqrt(shape[-1])
    return torch.from_numpy(drawn)


def ask(model: GemNetT, atoms: Atoms, rows: list[int]) -> dict[str, Tensor]:
    """Energy, forces and rows of the Jacobian of the forces."""
    graph = build_graph(atoms, CUTOFF)
    got = model.predict(graph)
    jacobian = -model.hessian(graph, torch.tensor(rows)).reshape(len(rows), -1, 3)
    return {"energy": got.energy[0], "forces": got.forces, "dF_dr": jacobian}


def _rule() -> dict[str, Any]:
    """All of the stored numbers that is not computed by the reference."""
    shapes = {
        architecture: {
            name: list(tensor.shape) for name, tensor in build_student(config(elements=ELEMENTS)).named_parameters()
        }
        for architecture, config in CONFIGS.items()
    }
    structures = {"ethanol": _ethanol(), "cloud": _cloud(), "crystal": _crystal()}
    return {
        "made_by": f"fairchem-core 1.10.0 with torch {torch.__version__}, float64; "
        "ZOO_WRITE_TABLES=1 pytest tests/test_gemnet.py -k reference",
        "rule": "weight of name k: w = "
        "numpy.random.default_rng(zlib.crc32((salt + k).encode())).standard_normal(shape); "
        "embedding.weight excepted: subtract the mean over the last axis, divide by the standard deviation (unbiased) "
        "over it and by the root of its length; names that end in factor: the first of scale_factors whose end fits",
        "units": "the network's own: no scale, no references; dF_dr[k] is the derivative of forces.flatten()[rows[k]]",
        "salt": "gemnet-t:",
        "scale_factors": [
            ["radial_scale.factor", 3.0],
            ["sum_scale.factor", 1.25],
            ["update.scale.factor", 0.5],
            ["scale.factor", 2.5],
        ],
        "shapes": shapes,
        "structures": {
            name: {
                "numbers": atoms.numbers.tolist(),
                "positions": np.round(atoms.positions, 6).tolist(),
                "cell": np.asarray(atoms.cell).tolist() if atoms.pbc.all() else None,
            }
            for name, atoms in structures.items()
        },
    }


def _ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.02, seed=1)
    return atoms


def _cloud() -> Atoms:
    """Thirty atoms anywhere, none closer to another than 0.95 Å."""
    random = np.random.default_rng(5)
    places = [np.zeros(3)]
    while len(places) < 30:
        place = random.uniform(0, 7, 3)
        if min(np.linalg.norm(place - other) for other in places) > 0.95:
            places.append(place)
    return Atoms(numbers=random.choice([1, 6, 7, 8], 30), positions=places)


def _crystal() -> Atoms:
    """A cell smaller than the cutoff, of lengths that float32 holds exactly, for the reference computes it so."""
    atoms = scenes.crystal((14, 8))
    atoms.set_cell([[4.25, 0.5, 0.0], [0.0, 3.75, 0.25], [0.5, 0.0, 4.5]], scale_atoms=True)
    return atoms


def _atoms(stored: dict[str, Any]) -> Atoms:
    periodic = stored["cell"] is not None
    return Atoms(numbers=stored["numbers"], positions=stored["positions"], cell=stored["cell"], pbc=periodic)


def _key(architecture: str, structure: str, neighbors: int | None) -> str:
    return f"{architecture}, {structure}, " + ("all neighbours" if neighbors is None else f"{neighbors} neighbours")


def _difference(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


# --- edges, triplets, bases -----------------------------------------------------------------------


def _edge_vectors(graph: Graph, centers: Tensor, neighbors: Tensor, shifts: Tensor) -> Tensor:
    return graph.positions[neighbors] - graph.positions[centers] + shifts @ graph.cells[0]


@pytest.mark.parametrize("most", [None, 5, 1000])
def test_a_counter_edge_leads_back_also_between_images(most: int | None) -> None:
    graph = build_graph(scenes.crystal((14, 8)), CUTOFF)
    edges = find_edges(graph, most)
    vectors = _edge_vectors(graph, edges.centers, edges.neighbors, edges.shifts)
    assert torch.equal(edges.centers[edges.counters], edges.neighbors)
    torch.testing.assert_close(vectors[edges.counters], -vectors)
    assert (edges.counters[edges.counters] == torch.arange(len(edges.counters))).all()


def test_as_many_neighbours_as_there_are_are_all() -> None:
    graph = build_graph([scenes.crystal((14, 8)), scenes.molecule((14, 8))], CUTOFF)
    models = [tiny_gemnet("Si", "O", cutoff=CUTOFF, max_neighbors=most) for most in (None, 1000)]
    whole, same = (model.predict(graph) for model in models)
    torch.testing.assert_close(same.forces, whole.forces)
    assert find_edges(graph, 3).centers.numel() < graph.num_edges


def test_equally_near_neighbours_are_taken_in_the_order_of_the_graph() -> None:
    graph = build_graph(scenes.perfect_crystal((14,)), CUTOFF)
    first, again = find_edges(graph, 6), find_edges(graph, 6)
    assert torch.equal(first.shifts, again.shifts)
    squares = graph.edge_vectors().square().sum(dim=1).round(decimals=6)
    cut = squares[graph.centers == 1].sort().values
    assert cut[5] == cut[6], "the sixth and the seventh neighbour are equally near"


def test_few_neighbours_promise_neither_smoothness_nor_permutation_invariance() -> None:
    whole, few = tiny_gemnet("Si").traits, tiny_gemnet("Si", max_neighbors=2).traits
    assert (whole.smoothness, whole.permutation_invariant) == (2, True)
    assert (few.smoothness, few.permutation_invariant) == (-1, False)
    atoms, model = scenes.crystal((14,)).repeat((2, 2, 1)), tiny_gemnet("Si", max_neighbors=3)
    atoms.rattle(0.1, seed=1)
    before, after = (model.predict(build_graph(one, 4.0)).energy for one in (atoms, atoms[::-1]))
    assert abs(before - after) > 1e-6


def test_an_edge_without_its_counter_edge_is_an_error() -> None:
    graph = build_graph(scenes.molecule((14,)), CUTOFF)
    broken = Graph(**(vars(graph) | {name: getattr(graph, name)[1:] for name in ("centers", "neighbors", "shifts")}))
    with pytest.raises(StructureError, match="make it with build_graph"):
        tiny_gemnet("Si").predict(broken)


def test_harmonics_are_legendre_polynomials_of_the_angle_of_two_different_edges() -> None:
    vectors = torch.randn(2, 4, 3, dtype=torch.float64)
    directions = vectors / vectors.norm(dim=2, keepdim=True)
    got = circular_harmonics(directions, 7).reshape(2, 4, 7, 4)
    cosine = (directions @ directions.transpose(1, 2)).numpy()
    for degree in range(7):
        expected = Legendre.basis(degree)(cosine) * np.sqrt((2 * degree + 1) / (4 * np.pi)) * (1 - np.eye(4))
        np.testing.assert_allclose(got[:, :, degree].numpy(), expected, atol=1e-12)


def test_angles_matter() -> None:
    """Two trimers with the same distances from their centre, in which the outer atoms do not see each other."""
    bent, straight = (
        Atoms("Si3", [[0, 0, 0], [2.3, 0, 0], [2.3 * np.cos(angle), 2.3 * np.sin(angle), 0]])
        for angle in np.radians([130, 180])
    )
    model = tiny_gemnet("Si", cutoff=4.0)
    energies = [model.predict(build_graph(atoms, 4.0), forces=False).energy for atoms in (bent, straight)]
    assert abs(energies[0] - energies[1]) > 1e-5


@pytest.mark.parametrize("direct", [False, True])
def test_an_atom_alone_or_in_a_batch_without_any_edges(direct: bool) -> None:
    model = tiny_gemnet("Si", "O", direct=direct).requires_grad_(False)
    for structures in (scenes.isolated((14,)), [scenes.isolated((14,)), scenes.isolated((8,))]):
        got = model.predict(build_graph(structures, 4.0), probes=None)
        assert torch.equal(got.forces, torch.zeros_like(got.forces))
    energies = model.predict(build_graph(scenes.isolated((14,)), 4.0)).energy
    assert float(energies) == scenes.REFERENCES["Si"]


# --- what a direct force is -----------------------------------------------------------------------


def test_direct_forces_are_not_the_gradient_which_can_be_asked_for_beside_them() -> None:
    model, graph = tiny_gemnet("Si", direct=True), build_graph(scenes.crystal((14,)), 4.0)
    got = model.predict(graph, gradient=True, stress=True)
    conservative = tiny_gemnet("Si")
    shared = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("force_readouts")}
    conservative.load_state_dict(shared)
    torch.testing.assert_close(got.energy_gradient, -conservative.predict(graph).forces)
    assert (got.forces + got.energy_gradient).abs().max() > 1e-3
    assert got.stress.isnan().all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # forward mode
def test_columns_in_forward_mode_are_those_of_reverse_mode() -> None:
    model, graph = tiny_gemnet("Si", "O", direct=True), build_graph(scenes.crystal((14, 8)), 4.0)
    probes = torch.randn(2, 2, 3, dtype=torch.float64)
    columns = model.predict(graph, probes=probes, side="columns").hessian_products
    torch.testing.assert_close(model.force_columns(graph, probes), columns)


# --- scale factors --------------------------------------------------------------------------------


def _training_graphs(dtype: torch.dtype = torch.float32) -> list[Graph]:
    structures = [scenes.crystal((14, 8), seed=seed).repeat((2, 1, 1)) for seed in range(4)]
    for seed, atoms in enumerate(structures):
        atoms.rattle(0.1, seed=seed)
    return [build_graph(atoms, CUTOFF, dtype=dtype) for atoms in structures]


def _fresh(architecture: str = "gemnet-dt", seed: int = 0) -> GemNetT:
    return build_student(CONFIGS[architecture](elements=("Si", "O")), torch.Generator().manual_seed(seed))


def _factors(model: GemNetT) -> Tensor:
    return torch.stack([module.factor for module in model.modules() if isinstance(module, ScaleFactor)])


def _ratios(model: GemNetT, graphs: list[Graph]) -> list[float]:
    """Variance after each scale factor over that of its reference, on all graphs together."""
    found: list[float] = []

    def note(module: ScaleFactor, given: tuple[Tensor, Tensor], result: Tensor) -> None:
        after, reference = (float(tensor.var(dim=0, correction=0).mean()) for tensor in (result, given[1]))
        found.append(after / reference)

    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, ScaleFactor)]
    with torch.no_grad():
        model.predict(collate(graphs), forces=False)
    for hook in hooks:
        hook.remove()
    return found


def test_calibration_keeps_the_variance_at_each_factor() -> None:
    model, graphs = _fresh(), _training_graphs()
    assert max(abs(ratio - 1) for ratio in _ratios(model, graphs)) > 0.5
    model.calibrate(graphs)
    ratios = _ratios(model, graphs)
    assert len(ratios) == 22
    assert max(abs(ratio - 1) for ratio in ratios) < 1e-3


def test_calibrated_activations_stay_near_unit_variance_through_all_blocks() -> None:
    model, graphs = _fresh(), _training_graphs()
    model.calibrate(graphs)
    variances = []
    for block in model.blocks:
        block.register_forward_hook(
            lambda module, given, result: variances.extend(float(part.var(dim=0).mean()) for part in result)
        )
    features = model.predict(collate(graphs), forces=False, features=True).features
    assert len(variances) == 8
    assert min(variances) > 0.05, variances
    assert max(variances) < 5, variances
    assert tuple(features.shape) == (16, 64)


def test_calibration_is_the_same_again_and_needs_no_order_of_types() -> None:
    models = [_fresh() for _ in range(3)]
    for model, dtype in zip(models, (torch.float32, torch.float32, torch.float64), strict=True):
        model.calibrate(_training_graphs(dtype))
    assert torch.equal(_factors(models[0]), _factors(models[1]))
    torch.testing.assert_close(_factors(models[0]), _factors(models[2]), rtol=1e-4, atol=0)


def test_factors_are_counted_and_saved_but_not_trained() -> None:
    model, graphs = _fresh(), _training_graphs()
    model.calibrate(graphs)
    model.predict(graphs[0], create_graph=True).energy.sum().backward()
    for name, parameter in model.named_parameters():
        if name.endswith("factor"):
            assert parameter.grad is None
            assert name in model.state_dict()


@pytest.mark.parametrize(
    "structure", [scenes.isolated((14,)), scenes.dimer((14,)), scenes.perfect_crystal((14,))], ids=str
)
def test_where_nothing_varies_factors_stay_as_they_are(structure: Atoms) -> None:
    """All edges are alike, or there are none: no variance to keep, and none that is rounding."""
    model = _fresh()
    model.calibrate([build_graph(structure, CUTOFF, dtype=torch.float32)])
    assert ((_factors(model) > 0.01) & (_factors(model) < 100)).all()
    model.calibrate([build_graph(scenes.isolated((14,)), CUTOFF)])


def test_painn_is_calibrated_by_its_neighbours() -> None:
    model, graphs = build_student(PaiNNConfig(elements=("Si", "O"))), _training_graphs()
    model.calibrate(graphs)
    assert float(model.average_neighbors) == pytest.approx(sum(graph.num_edges for graph in graphs) / 16)
    model.calibrate([build_graph(scenes.isolated((14,)), CUTOFF)])
    assert float(model.average_neighbors) == 1


# --- features, the embedding of a teacher, configs ------------------------------------------------

SHAPES = {
    "painn": PaiNNConfig(elements=("Si", "O"), channels=8, radials=4),
    "gemnet-t": GemNetTConfig(elements=("Si", "O"), **TINY),
    "gemnet-dt": GemNetDTConfig(elements=("Si", "O"), **TINY),
}


@pytest.mark.parametrize("name", SHAPES)
def test_features_are_as_many_as_declared_and_the_same_after_a_rotation(name: str) -> None:
    model = build_student(SHAPES[name], torch.Generator().manual_seed(1)).double()
    atoms = scenes.molecule((14, 8))
    turned = atoms.copy()
    turned.rotate(73, (1, 2, 3))
    before, after = (
        model.predict(build_graph(one, CUTOFF), forces=False, features=True).features for one in (atoms, turned)
    )
    assert tuple(before.shape) == (4, model.traits.features)
    torch.testing.assert_close(after, before)
    assert (before[0] - before[2]).abs().max() > 1e-3, "the same element, another place"


@pytest.mark.parametrize("name", SHAPES)
def test_the_embedding_of_a_teacher_is_frozen_and_saved(name: str) -> None:
    config = SHAPES[name].model_copy(update={"teacher_channels": 3})
    model, graphs = build_student(config, torch.Generator().manual_seed(1)), _training_graphs()
    table = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 0.0]])
    with pytest.raises(ConfigError, match="call set_teacher_embedding first"):
        model.calibrate(graphs)
    model.set_teacher_embedding(table)
    model.calibrate(graphs)
    model.predict(graphs[0], create_graph=True).energy.sum().backward()
    assert "embedding.table" not in dict(model.named_parameters())
    assert torch.equal(model.state_dict()["embedding.table"], table)
    assert model.embedding.linear.weight.grad.abs().max() > 0
    assert tuple(model.element_embeddings().shape) == tuple(build_student(SHAPES[name]).element_embeddings().shape)
    before = model.predict(graphs[0], forces=False).energy
    model.set_teacher_embedding(table.flip(0))
    assert not torch.equal(model.predict(graphs[0], forces=False).energy, before)


def test_an_embedding_that_does_not_fit_is_an_error() -> None:
    model = build_student(SHAPES["painn"].model_copy(update={"teacher_channels": 3}))
    with pytest.raises(ConfigError, match=r"has the shape \(2, 4\), expected \(2, 3\)"):
        model.set_teacher_embedding(torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="set it to 4 to have the teacher's"):
        build_student(SHAPES["painn"]).set_teacher_embedding(torch.zeros(2, 4))


def test_the_embedding_of_painn_is_called_as_ever() -> None:
    assert "embedding.weight" in build_student(SHAPES["painn"]).state_dict()


class Shelf(Config):
    student: StudentConfig


@pytest.mark.parametrize("name", SHAPES)
def test_a_config_becomes_the_architecture_that_it_names(name: str) -> None:
    data = SHAPES[name].model_dump(mode="json")
    assert parse(Shelf, {"student": data}, "shelf").student == SHAPES[name]
    assert SHAPES[name].direct == (name == "gemnet-dt")
    assert build_student(SHAPES[name]).traits.conservative != SHAPES[name].direct


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "schnet"}, "schnet"),
        ({"channels": 64}, "channels"),
        ({"max_neighbors": 0}, "max_neighbors"),
        ({"radials": 1}, "radials"),
    ],
)
def test_a_config_that_says_what_it_must_not_is_an_error(changes: dict[str, Any], words: str) -> None:
    data = SHAPES["gemnet-t"].model_dump(mode="json") | changes
    with pytest.raises(ConfigError, match=words):
        parse(Shelf, {"student": data}, "shelf")


def test_a_prediction_splits_with_its_features() -> None:
    model = tiny_gemnet("Si")
    graph = build_graph([scenes.crystal((14,)), scenes.dimer((14,)), scenes.isolated((14,))], 4.0)
    parts: list[Prediction] = model.predict(graph, features=True).split([2, 2, 1])
    alone = model.predict(build_graph(scenes.dimer((14,)), 4.0), features=True)
    torch.testing.assert_close(parts[1].features, alone.features)
