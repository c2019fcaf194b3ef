"""Teachers: agreement with what they adapt, with the literature, and refusals."""

import builtins
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from ase.build import bulk
from ase.units import GPa

from zoo.errors import IntegrityError, MissingPackageError, UnknownNameError
from zoo.neighbors import build_graph
from zoo.ops import deterministic
from zoo.potential import Potential
from zoo.teachers import Teacher, load_teacher, teacher_names

SEVENNETS = ("sevennet-0/teacher", "sevennet-l3i5/teacher")

# e3nn compiles its code with torch.jit; sevenn's calculator misses its CUDA kernels
_jit = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
_slow_there = pytest.mark.filterwarnings("ignore:No tensor product accelerator is enabled:UserWarning")


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sevennet-0/techer", "did you mean sevennet-0/teacher"),
        ("stillinger-webber/teacher", "did you mean stillinger-weber/teacher"),
        ("gpt/teacher", "known are"),
        ("", "known are"),
        ("../sevennet", "known are"),
    ],
)
def test_unknown_teacher_lists_the_known(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message) as caught:
        load_teacher(name)
    assert all(known in str(caught.value) for known in teacher_names())
    assert "\n" not in str(caught.value)


# --- Stillinger and Weber --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def silicon() -> Teacher:
    return load_teacher("stillinger-weber/teacher", dtype=torch.float64)


def _energy_per_atom(potential: Potential, lattice: float) -> float:
    atoms = bulk("Si", a=lattice)
    return potential.predict(build_graph(atoms, potential.cutoff), forces=False).energy.item() / len(atoms)


def test_silicon_has_the_cohesive_energy_and_lattice_constant_of_the_literature(silicon: Teacher) -> None:
    lattices = np.linspace(5.40, 5.46, 13)
    energies = [_energy_per_atom(silicon.potential, lattice) for lattice in lattices]
    fit = np.polynomial.Polynomial.fit(lattices, energies, 4)
    lowest = [root.real for root in fit.deriv().roots() if abs(root.imag) < 1e-9 and 5.4 < root.real < 5.46]
    assert lowest == [pytest.approx(5.431, abs=1e-3)]  # Å
    assert fit(lowest[0]) == pytest.approx(-4.3366, abs=2e-4)  # eV, Balamane et al. 1992


def _stress(potential: Potential, strain: np.ndarray) -> np.ndarray:
    atoms = bulk("Si", cubic=True, a=5.431)
    atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
    asked = potential.predict(build_graph(atoms, potential.cutoff), stress=True)
    return asked.stress[0].numpy() / GPa


def test_silicon_has_the_elastic_constants_of_the_literature(silicon: Teacher) -> None:
    """C11 = 151.4, C12 = 76.4, bulk modulus 101.4 GPa: Cowley, Phys. Rev. Lett. 60, 2379 (1988)."""
    stretch = np.diag([1e-4, 0.0, 0.0])
    slope = (_stress(silicon.potential, stretch) - _stress(silicon.potential, -stretch)) / 2e-4
    c11, c12 = slope[0, 0], slope[1, 1]
    assert c11 == pytest.approx(151.4, abs=0.5)
    assert c12 == pytest.approx(76.4, abs=0.5)
    assert (c11 + 2 * c12) / 3 == pytest.approx(101.4, abs=0.5)


def test_silicon_prefers_diamond(silicon: Teacher) -> None:
    others = [bulk("Si", structure, a=a) for structure, a in (("fcc", 4.15), ("bcc", 3.25), ("sc", 2.61))]
    for atoms in others:
        energy = silicon.potential.predict(build_graph(atoms, silicon.potential.cutoff), forces=False).energy.item()
        assert -4.3366 < energy < -3.5, atoms.info


def test_pair_of_silicon_atoms_follows_the_formula(silicon: Teacher) -> None:
    """Without a third atom only the two-body term is left, eq. 2.3; the minimum is −ε at 2^(1/6) σ."""
    graph = build_graph(scenes.dimer((14,), 2 ** (1 / 6) * 2.0951), silicon.potential.cutoff)
    asked = silicon.potential.predict(graph)
    assert asked.energy.item() == pytest.approx(-2.1683, abs=1e-6)
    assert asked.forces.abs().max().item() < 1e-6


def test_digest_of_a_formula_is_that_of_its_numbers(silicon: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.teachers import stillinger_weber

    monkeypatch.setitem(stillinger_weber._CONSTANTS, "lambda", 31.5)
    assert load_teacher("stillinger-weber/teacher").weights_sha256 != silicon.weights_sha256


# --- SevenNet --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=SEVENNETS)
def single(request: pytest.FixtureRequest) -> Teacher:
    return load_teacher(request.param, dtype=torch.float32)


def _rattled() -> Atoms:
    atoms = bulk("Si")
    atoms.rattle(0.1, seed=5)
    atoms.set_cell(atoms.cell @ (np.eye(3) + 0.02 * np.array([[1, 1, 0], [0, -1, 0], [0, 0, 0.5]])), scale_atoms=True)
    return atoms


def _oxide() -> Atoms:
    return scenes.crystal((14, 8))


@pytest.mark.sevennet
@_jit
@_slow_there
@pytest.mark.parametrize("atoms", [_rattled(), _oxide(), scenes.molecule((8, 14))], ids=["Si", "SiO", "molecule"])
def test_sevennet_agrees_with_its_own_calculator(single: Teacher, atoms: Atoms) -> None:
    from sevenn.calculator import SevenNetCalculator

    model = {"sevennet-0/teacher": "7net-0", "sevennet-l3i5/teacher": "7net-l3i5"}[single.name]
    theirs = atoms.copy()
    theirs.calc = SevenNetCalculator(model, device="cpu")
    ours = single.potential.predict(
        build_graph(atoms, single.potential.cutoff, dtype=torch.float32), stress=atoms.pbc.all()
    )
    assert ours.energy.item() == pytest.approx(theirs.get_potential_energy(), abs=1e-5 * len(atoms))
    np.testing.assert_allclose(ours.forces, theirs.get_forces(), atol=1e-4)
    if atoms.pbc.all():
        np.testing.assert_allclose(ours.stress[0], theirs.get_stress(voigt=False), atol=1e-5)


@pytest.mark.sevennet
@_jit
@pytest.mark.parametrize("name", SEVENNETS)
def test_sevennet_products_are_those_of_differences_of_forces(name: str) -> None:
    potential = load_teacher(name, dtype=torch.float64).potential
    atoms = _rattled()
    probe = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def forces(step: float) -> torch.Tensor:
        moved = atoms.copy()
        moved.positions += step * probe.numpy()
        return potential.predict(build_graph(moved, potential.cutoff)).forces

    got = potential.predict(build_graph(atoms, potential.cutoff), probes=probe[None]).hessian_products[0]
    expected = -(forces(1e-4) - forces(-1e-4)) / 2e-4
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.sevennet
@_jit
def test_sevennet_says_where_it_comes_from(single: Teacher) -> None:
    from zoo.teachers import sevennet

    assert single.weights_sha256 == sevennet._MODELS[single.name][1]
    assert single.package.startswith("sevenn ")
    assert "PBE" in single.level_of_theory
    assert (single.licence_code, single.licence_weights) != ("", "")
    assert 14 in single.potential.elements
    assert single.potential.cutoff == pytest.approx(5.0)
    assert (single.potential.dtype, single.potential.training) == (torch.float32, False)


def _first_layer(potential: Potential, atoms: Atoms) -> torch.Tensor:
    """(atoms, channels) What the first layer of sevenn gives while it predicts."""
    seen: list[torch.Tensor] = []
    layer = potential.model.get_submodule("onehot_to_feature_x")
    hook = layer.register_forward_hook(lambda module, given, data: seen.append(data["x"].detach().clone()))
    potential.predict(build_graph(atoms, potential.cutoff, dtype=potential.dtype), forces=False)
    hook.remove()
    return seen[0]


@pytest.mark.sevennet
@_jit
def test_rows_of_the_element_embedding_are_what_the_first_layer_gives(single: Teacher) -> None:
    potential = single.potential
    table = potential.element_embeddings()
    assert table.shape == (len(potential.elements), 128)
    for atoms in (_oxide(), scenes.crystal((38, 22))):
        rows = [potential.elements.index(number) for number in atoms.numbers]
        torch.testing.assert_close(table[rows], _first_layer(potential, atoms))
    assert torch.pdist(table).min() > 0, "elements are told apart"


@pytest.mark.sevennet
@_jit
@pytest.mark.parametrize("name", SEVENNETS)
def test_node_features_are_the_same_after_a_rotation_and_what_the_readout_is_made_from(name: str) -> None:
    potential = load_teacher(name, dtype=torch.float64).potential
    atoms = _oxide()
    turned = atoms.copy()
    turned.rotate(73, (1, 2, -0.5), rotate_cell=True)
    found = [potential.predict(build_graph(one, potential.cutoff), features=True).features for one in (atoms, turned)]
    assert found[0].shape == (2, potential.traits.features) == (2, 128)
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)  # sevenn's constants are float32
    assert (found[0][0] - found[0][1]).abs().max() > 1e-3, "atoms are told apart"
    readout = potential.model.get_submodule("reduce_input_to_hidden").layer.linear
    hidden = potential.model.get_submodule("reduce_hidden_to_energy").linear(readout(found[0]))
    rescaled = potential.model.get_submodule("rescale_atomic_energy")
    index = [potential.model.type_map[number] for number in atoms.numbers]
    energies = hidden[:, 0] * rescaled.scale[index] + rescaled.shift[index]
    torch.testing.assert_close(energies, potential.atomic_energies(build_graph(atoms, potential.cutoff)))


@pytest.mark.sevennet
@_jit
def test_node_features_are_given_when_they_are_asked_for(single: Teacher) -> None:
    graph = build_graph(_oxide(), single.potential.cutoff, dtype=torch.float32)
    without, beside = (single.potential.predict(graph, features=asked) for asked in (False, True))
    assert without.features is None
    assert beside.features.shape == (2, single.potential.traits.features)
    assert torch.equal(without.forces, beside.forces)
    assert single.potential.traits.atomic_energies


@pytest.fixture
def nothing_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **asked: Any) -> None:
        raise AssertionError("weights were opened before their digest was checked")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)


@pytest.fixture
def weights_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of SevenNet-0's weights, as if sevenn were installed in a folder of ours."""
    import sevenn

    from zoo.teachers import sevennet

    path = tmp_path / "pretrained_potentials" / sevennet._MODELS["sevennet-0/teacher"][0]
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(sevenn, "__file__", str(tmp_path / "__init__.py"))
    return path


@pytest.mark.sevennet
@_jit
@pytest.mark.usefixtures("nothing_unpickled")
def test_altered_weights_are_refused_unopened(weights_elsewhere: Path) -> None:
    weights_elsewhere.write_bytes(b"not what it was")
    with pytest.raises(IntegrityError, match=r"digest .* not opened.*pip install --force-reinstall sevenn"):
        load_teacher("sevennet-0/teacher")


@pytest.mark.sevennet
@_jit
@pytest.mark.usefixtures("nothing_unpickled")
def test_absent_weights_are_named(weights_elsewhere: Path) -> None:
    with pytest.raises(IntegrityError, match=r"lacks .*sevennet_0.*pip install"):
        load_teacher("sevennet-0/teacher")


@pytest.fixture
def without_sevenn(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "sevenn"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sevenn", None)


@pytest.mark.usefixtures("without_sevenn")
@pytest.mark.parametrize("name", SEVENNETS)
def test_missing_package_is_named_with_its_command(name: str) -> None:
    with pytest.raises(MissingPackageError, match="pip install") as caught:
        load_teacher(name)
    assert "sevenn" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("without_sevenn")
def test_adapter_is_imported_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "zoo.teachers.sevennet", raising=False)
    adapter = importlib.import_module("zoo.teachers.sevennet")
    assert set(SEVENNETS) <= set(adapter._MODELS)


def test_no_teacher_is_imported_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real: Callable[..., Any] = builtins.__import__

    def noted(name: str, *rest: Any, **more: Any) -> Any:
        asked.append(name.split(".")[0])
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", noted)
    load_teacher("stillinger-weber/teacher")
    assert "sevenn" not in asked


@pytest.mark.sevennet
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # e3nn compiles so
def test_labels_are_the_same_each_time_with_several_threads() -> None:
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    potential = load_teacher("sevennet-0/teacher", dtype=torch.float32).potential
    graph = build_graph(atoms, potential.cutoff, dtype=torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with deterministic():
            answers = [potential.predict(graph, probes=torch.ones(1, len(atoms), 3)) for _ in range(6)]
    finally:
        torch.set_num_threads(before)
    assert not torch.are_deterministic_algorithms_enabled()
    for answer in answers[1:]:
        assert torch.equal(answer.forces, answers[0].forces)
        assert torch.equal(answer.hessian_products, answers[0].hessian_products)
