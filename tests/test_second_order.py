"""Hessians and their products of many structures at once: the rows that a potential gives of one."""

from collections.abc import Callable
from typing import Any

import model_folders as folders
import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from direct_potentials import tiny_painn_dt
from gemnets import tiny_gemnet
from test_differences import _silicon
from test_gemnet_oc import golden_atoms, golden_tiny, with_memory

from zoo import packing, second_order
from zoo.engine import Engine, Provenance
from zoo.errors import ConfigError, DivergedError, DomainError, OutOfMemoryError
from zoo.graph import Graph
from zoo.potential import Potential, Prediction
from zoo.teachers.stillinger_weber import StillingerWeber

PROVENANCE = Provenance("a/b", "here", "MIT", "theory")
SCENES = [scenes.crystal((14,)), scenes.molecule((14,)), scenes.isolated((14,)), scenes.dimer((14,))]


class Forward(StillingerWeber):
    """Takes products forward over reverse, for graphs of more than two atoms."""

    def products_in_forward_mode(self, graph: Graph) -> bool:
        return graph.num_atoms > 2


POTENTIALS: dict[str, Callable[[], Potential]] = {
    "PaiNN": lambda: scenes.tiny_painn("Si"),
    "GemNet-T": lambda: tiny_gemnet("Si"),
    "direct forces": lambda: tiny_gemnet("Si", direct=True),
    "direct PaiNN": lambda: tiny_painn_dt("Si"),
    "forward mode": Forward,
    "differences": _silicon,
}


class Broken(Forward):
    """Whose own Hessian is not finite."""

    def hessian(self, graph: Graph, rows: torch.Tensor | None = None) -> torch.Tensor:
        return torch.nan * super().hessian(graph, rows)


def engine_of(potential: Potential) -> Engine:
    return Engine(potential, PROVENANCE, check_domain=False)


def limit(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Of atoms and edges in a pass."""
    monkeypatch.setitem(packing.FASTEST, ("Hessian products", "cpu"), size)


def rows_of(engine: Engine, atoms: Atoms, rows: list[int] | None = None) -> np.ndarray:
    """What the potential itself says, one row after another."""
    told = None if rows is None else torch.tensor(rows)
    return engine.potential.hessian(engine._graph(atoms), told).numpy()


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == np.float64
    if wanted.size:
        assert np.abs(found - wanted).max() <= 1e-12 * max(np.abs(wanted).max(), 1.0)


def spied(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Structures and probes of each pass."""
    predict, seen = engine.potential.predict, []

    def spy(graph: Graph, **asked: Any) -> Prediction:
        seen.append((graph.num_structures, len(asked["probes"])))
        return predict(graph, **asked)

    monkeypatch.setattr(engine.potential, "predict", spy)
    return seen


# --- Hessians ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("size", [1, 60, 100_000])
@pytest.mark.parametrize("name", POTENTIALS)
def test_rows_by_copies_are_the_rows_of_one_structure(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(POTENTIALS[name]())
    limit(monkeypatch, size)
    for atoms in SCENES:
        close(engine.hessian(atoms), rows_of(engine, atoms))
    atoms, rows = SCENES[1], [7, 0, 11, 4, 5]
    close(engine.hessian(atoms, rows=rows), rows_of(engine, atoms, rows))
    close(engine.hessian(atoms, indices=[3, 1]), rows_of(engine, atoms, [9, 10, 11, 3, 4, 5])[:, [9, 10, 11, 3, 4, 5]])


def test_direct_forces_keep_rows_and_columns_apart() -> None:
    hessian = engine_of(tiny_gemnet("Si", direct=True)).hessian(SCENES[1])
    assert np.abs(hessian - hessian.T).max() > 1e-3


@pytest.mark.parametrize("name", ["PaiNN", "differences"])
@pytest.mark.parametrize("size", [1, 60, 100_000])
def test_hessians_of_many_come_in_their_order_as_of_each_alone(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(POTENTIALS[name]())
    limit(monkeypatch, size)
    structures = [*SCENES, *(scenes.molecule((14,), seed=seed) for seed in range(4)), *SCENES[::-1]]
    found = engine.hessians(iter(structures))
    assert len(found) == len(structures)
    for one, atoms in zip(found, structures, strict=True):
        close(one, rows_of(engine, atoms))
    assert engine.hessians([]) == []


def test_a_small_structure_is_copied_until_a_pass_is_worth_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, atoms = engine_of(scenes.tiny_painn("Si")), SCENES[1]
    size = len(atoms) + engine._graph(atoms).num_edges
    engine.hessians([atoms] * 20)  # measured
    seen = spied(engine, monkeypatch)
    for copies, passes in {1: [(1, 12)], 4: [(4, 3)], 5: [(4, 3)], 12: [(12, 1)], 1000: [(12, 1)]}.items():
        limit(monkeypatch, copies * size)
        seen.clear()
        engine.hessian(atoms)
        assert seen == passes, copies
    limit(monkeypatch, 6 * size)
    seen.clear()
    engine.hessians([atoms] * 3)
    assert seen == [(6, 6)], "two copies each"
    seen.clear()
    engine.hessians([atoms] * 12)
    assert seen == [(6, 12)] * 2, "enough without copies"


def test_rows_are_divided_where_their_numbers_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, atoms = engine_of(scenes.tiny_painn("Si")), SCENES[1]
    wanted = engine.hessian(atoms)
    limit(monkeypatch, 1)
    room = 5 * 12 * second_order._OF_A_NUMBER / second_order._SHARE  # of five rows
    monkeypatch.setattr(second_order, "free_memory", lambda device: int(room) + 1)
    seen = spied(engine, monkeypatch)
    close(engine.hessian(atoms), wanted)
    assert seen == [(1, 5), (1, 5), (1, 2)]


def test_a_hessian_that_no_memory_holds_is_refused_before_it_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(scenes.tiny_painn("Si"))
    monkeypatch.setattr(second_order, "free_memory", lambda device: 1000)
    with pytest.raises(OutOfMemoryError, match=r"Hessians of 0\.0 GiB, .* ask for some rows= at a time"):
        engine.hessian(SCENES[1])
    assert engine.hessian(SCENES[1], rows=[3, 4]).shape == (2, 12)


def test_products_of_many_large_networks_in_forward_mode_are_those_of_each() -> None:
    engine = engine_of(with_memory(golden_tiny("gradient"), 0.0))
    atoms = golden_atoms("ethanol")
    vectors = np.random.default_rng(0).normal(size=(9, 3))
    wanted = engine.hvp(atoms, vectors)
    for found in engine.hvp([atoms] * 3, (vectors for _ in range(3))):
        close(found, wanted)


def test_second_derivatives_that_are_not_finite_are_an_error_that_names_the_structure() -> None:
    student = scenes.tiny_painn("Si")
    engine, atoms = engine_of(student), SCENES[1]
    student.readout[2].weight.data.fill_(torch.nan)
    with pytest.raises(DivergedError, match="second derivatives of Si4 are not finite"):
        engine.hessian(atoms)
    with pytest.raises(DivergedError, match=r"structures\[1\] of 2: second derivatives"):
        engine.hvp(iter([SCENES[2], atoms]), [np.ones((1, 3)), np.ones((4, 3))])
    with pytest.raises(DivergedError, match="not finite"):
        engine_of(Broken()).hessian(atoms)


def test_what_does_not_fit_at_once_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(scenes.tiny_painn("Si"))
    structures = [scenes.molecule((14,), seed=seed) for seed in range(6)]
    wanted = engine.hessians(structures)
    predict, seen = engine.potential.predict, []

    def refusing(graph: Graph, **asked: Any) -> Prediction:
        seen.append(graph.num_structures)
        if graph.num_structures > 2:
            raise MemoryError
        return predict(graph, **asked)

    monkeypatch.setattr(engine.potential, "predict", refusing)
    for one, other in zip(engine.hessians(structures), wanted, strict=True):
        close(one, other)
    assert max(seen) > 2
    close(engine.hessian(structures[2]), wanted[2])
    monkeypatch.setattr(engine.potential, "predict", _always_full)
    with pytest.raises(OutOfMemoryError, match=r"^structures\[0\] of 2: no memory for Hessian products of Si4"):
        engine.hessians(structures[:2])


def _always_full(*_: object, **__: object) -> Prediction:
    raise MemoryError


def test_a_float32_engine_gives_what_its_potential_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    potential = scenes.tiny_painn("Si").float()
    engine = engine_of(potential)
    wanted = potential.hessian(engine._graph(SCENES[1]).to("cpu", torch.float32)).numpy()
    found = engine.hessian(SCENES[1])
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_no_rows_are_an_empty_array() -> None:
    engine = engine_of(scenes.tiny_painn("Si"))
    assert engine.hessian(SCENES[1], rows=[]).shape == (0, 12)
    assert engine.hessian(SCENES[1], indices=[]).shape == (0, 0)


def test_the_structure_that_has_no_hessian_is_named() -> None:
    student = scenes.tiny_painn("Si")
    engine = Engine(student, PROVENANCE, config=folders.config_of(student))
    structures = [*folders.cells(2), SCENES[1], *folders.cells(1)]
    with pytest.raises(DomainError, match=r"^structures\[2\] of 4: Si4 has pbc"):
        engine.hessians(structures)
    with pytest.raises(DomainError, match=r"^structures\[2\] of 4: Si4 has pbc"):
        engine.hvp(structures, [np.zeros((len(atoms), 3)) for atoms in structures])
    with pytest.raises(DomainError, match=r"^Si4 has pbc"):
        engine.hessian(SCENES[1])


# --- products ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", POTENTIALS)
def test_products_of_many_are_those_of_each_alone(name: str) -> None:
    engine = engine_of(POTENTIALS[name]())
    draw = np.random.default_rng(5)
    structures = [*SCENES, *SCENES[::-1]]
    counts = [2, None, 1, 3, 0, 1, None, 2]
    vectors = [
        draw.normal(size=(len(atoms), 3) if count is None else (count, len(atoms), 3))
        for atoms, count in zip(structures, counts, strict=True)
    ]
    before = [one.copy() for one in vectors]
    found = engine.hvp(structures, vectors)
    for one, atoms, given, old in zip(found, structures, vectors, before, strict=True):
        assert one.shape == given.shape
        assert np.array_equal(given, old)
        close(one, engine.hvp(atoms, given))
        if name != "differences":
            wanted = given.reshape(-1, 3 * len(atoms)) @ rows_of(engine, atoms)
            np.testing.assert_allclose(one.reshape(wanted.shape), wanted, atol=1e-9)


def test_one_array_may_hold_the_vectors_of_all() -> None:
    engine, structures = engine_of(scenes.tiny_painn("Si")), [scenes.molecule((14,), seed=seed) for seed in (1, 2)]
    vectors = np.random.default_rng(0).normal(size=(2, 4, 3))
    found = engine.hvp(structures, vectors)
    assert [one.shape for one in found] == [(4, 3), (4, 3)]
    close(found[1], engine.hvp(structures[1], vectors[1]))


def test_vectors_may_be_of_any_order_in_memory() -> None:
    engine = engine_of(scenes.tiny_painn("Si"))
    vectors = np.random.default_rng(0).normal(size=(3, 4, 2))
    close(engine.hvp(SCENES[1], vectors.T[::-1]), engine.hvp(SCENES[1], vectors.T[::-1].copy()))


def test_vectors_that_do_not_fit_their_structures_are_refused() -> None:
    engine = engine_of(scenes.tiny_painn("Si"))
    with pytest.raises(ConfigError, match="1 arrays of vectors for 2 structures; give one a structure"):
        engine.hvp(SCENES[:2], [np.zeros((2, 3))])
    with pytest.raises(ConfigError, match=r"vectors of shape \(2, 3\) for 4 atoms; expected \(4, 3\)"):
        engine.hvp(SCENES[:2], [np.zeros((2, 3)), np.zeros((2, 3))])


def test_the_memory_of_products_is_measured_apart_from_that_of_forces() -> None:
    engine = engine_of(scenes.tiny_painn("Si"))
    structures = [scenes.molecule((14,), seed=seed) for seed in range(30)]
    engine.predict(structures)
    engine.hessians(structures)
    forces, products = engine._needs["forces"], engine._needs["Hessian products"]
    assert products.of(4, 12) > 1.5 * forces.of(4, 12)


def test_a_teacher_of_closed_form_agrees_through_every_way() -> None:
    engine = engine_of(StillingerWeber())
    atoms = folders.cells(1)[0]
    close(engine.hessian(atoms), rows_of(engine, atoms))
    close(engine.hvp(atoms, np.eye(24).reshape(24, 8, 3)).reshape(24, 24), engine.hessian(atoms))
