"""Fast paths are right: a short form of scripts/check_fast_paths.py, and inputs at the edge of what there can be."""

import ctypes
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from test_scripts import load_script

from zoo.engine import Engine
from zoo.errors import StructureError
from zoo.execution import Compiled
from zoo.graph import Graph
from zoo.kernels import PaiNNKernel, painn
from zoo.neighbors import build_graph
from zoo.potential import Prediction

check = load_script("check_fast_paths")
SHAPES = [name for name in check.CONFIGS if name.startswith("PaiNN ")]
LEFT_HANDED = np.array([[0.2, 4.1, 0.1], [3.9, 0.3, 0.0], [0.1, -0.2, 4.4]])


def both(**shape: Any) -> tuple[Engine, Engine]:
    """A PaiNN of silicon and oxygen in float64: compiled, and by PyTorch."""
    potential = scenes.tiny_painn("Si", "O", **shape).requires_grad_(False)
    return check.engine(potential, Compiled(PaiNNKernel(potential), potential)), check.engine(potential)


def forces(engine: Engine, atoms: Atoms) -> np.ndarray:
    found: np.ndarray = engine.predict(atoms)[0].forces.double().numpy()
    return found


# --- the short form ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", SHAPES)
def test_every_path_of_a_network_is_within_its_bound(name: str) -> None:
    rows = check.rows_of([check.check_network(name, 24, None)])
    assert [row for row in rows if not row.good] == []
    assert all(row.count == 24 for row in rows if "walks" not in row.way)
    assert len(rows) == 16


@pytest.mark.usefixtures("kernels")
def test_products_and_differences_of_compiled_forces_are_those_of_pytorch() -> None:
    rows = check.rows_of([check.check_products("PaiNN 33/3/7", 8, None)])
    assert [row for row in rows if not row.good] == []
    assert len(rows) == 6
    assert min(row.count for row in rows) > 1


@pytest.mark.usefixtures("kernels")
def test_a_path_that_is_off_is_beyond_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a ten-millionth of an eV/Å, in one structure of all."""
    ask = Compiled.predict
    calls = iter(range(10**6))

    def off(self: Compiled, graph: Graph, **options: Any) -> Prediction:
        found = ask(self, graph, **options)
        return replace(found, forces=found.forces + 1e-7) if next(calls) == 7 else found

    monkeypatch.setattr(Compiled, "predict", off)
    rows = check.rows_of([check.check_network("PaiNN 7/2/3", 12, None)])
    assert [row.way for row in rows if not row.good] == ["compiled, float64"]


def test_a_drift_and_its_error_are_those_of_the_numbers() -> None:
    """Of noise that is independent, a slope errs as the textbook says: by σ √12 / (T √n)."""
    draw = np.random.default_rng(0)
    times = np.linspace(0, 100, 90_000)
    many = [check.slopes(times, 0.3 * times + 2 * draw.normal(size=times.size)) for _ in range(40)]
    drifts, errors = np.array([drift for drift, _ in many]).T
    expected = 2 * 12**0.5 / (90 * 81_000**0.5)
    assert abs(drifts.mean() - 0.3) < 4 * expected / 40**0.5
    assert drifts.std() == pytest.approx(expected, rel=0.4)
    assert errors.mean() == pytest.approx(expected, rel=0.2)
    assert np.mean([swing for _, (swing, _) in many]) == pytest.approx(2, rel=0.01)


def test_energies_that_are_kept_otherwise_are_faults() -> None:
    drift, swing = (1e-6, 2e-6), (0.008, 2e-4)
    runs = [check.Kept(way, 100, 1.0, drift, swing, 300) for way in check.DYNAMICS]
    shorter = [check.Kept(runs[0].way, 10, step, drift, (0.008 * step**2, 1e-4), 300) for step in (2.0, 0.5, 1.0)]
    assert check.dynamics_faults(runs, shorter) == []
    for change in ({"drift": (2e-5, 2e-6)}, {"swing": (0.01, 2e-4)}, {"drift": (np.nan, 2e-6)}):
        (fault,) = check.dynamics_faults([replace(runs[0], **change), *runs[1:]], shorter)
        assert fault == "the energy of compiled, float32 is not kept as PyTorch in float64 keeps it"
    linear = [replace(run, swing=(0.008 * run.timestep, 1e-4)) for run in shorter]
    (fault,) = check.dynamics_faults(runs, linear)
    assert "does not swing with the square of the time step" in fault


# --- inputs at the edge -----------------------------------------------------------------------------


@pytest.mark.usefixtures("kernels")
def test_positions_that_are_no_numbers_are_refused_and_leave_nothing_behind() -> None:
    fast, _ = both()
    atoms, calculator = scenes.crystal((14, 8)), fast.calculator()
    atoms.calc = calculator
    before = atoms.get_forces()
    for value in (np.nan, np.inf):
        broken = atoms.copy()
        broken.positions[1, 2] = value
        broken.calc = calculator
        for ask in (broken.get_forces, lambda broken=broken: fast.predict(broken)):
            with pytest.raises(StructureError, match="is not a finite number"):
                ask()
    assert np.array_equal(forces(fast, atoms), before)
    again = atoms.copy()
    again.calc = calculator
    assert np.array_equal(again.get_forces(), before)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("make", [scenes.crystal, scenes.molecule])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
def test_atoms_far_from_the_origin_have_the_forces_that_they_have_at_it(
    make: Callable[..., Atoms], dtype: torch.dtype, bound: float
) -> None:
    potential = scenes.tiny_painn("Si", "O").to(dtype).requires_grad_(False)
    fast = check.engine(potential, Compiled(PaiNNKernel(potential), potential))
    atoms = make((14, 8))
    near = forces(check.engine(scenes.tiny_painn("Si", "O")), atoms)
    atoms.positions += [1e5, -3e5, 2e5]
    np.testing.assert_allclose(forces(fast, atoms), near, atol=bound)
    atoms.calc = fast.calculator()
    np.testing.assert_allclose(atoms.get_forces(), near, atol=bound)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_pair_at_the_cutoff_is_as_good_as_none(dtype: torch.dtype) -> None:
    potential = scenes.tiny_painn("Si", "O").to(dtype).requires_grad_(False)
    fast = check.engine(potential, Compiled(PaiNNKernel(potential), potential))
    alone = sum(float(fast.predict(Atoms(symbol))[0].energy) for symbol in ("Si", "O"))
    for distance in np.nextafter(potential.cutoff, [0, potential.cutoff, 9]):
        found = fast.predict(scenes.dimer((14, 8), distance))[0]
        assert float(found.energy) == pytest.approx(alone, abs=1e-3 if dtype == torch.float32 else 1e-9)
        assert float(found.forces.abs().max()) < 1e-12


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("distance", [0.0101, 0.1, 0.5])
@pytest.mark.parametrize("radials", [4, 9])
def test_atoms_that_almost_touch_have_the_forces_that_pytorch_says(distance: float, radials: int) -> None:
    config = scenes.tiny_painn("Si", "O").config.model_copy(update={"radials": radials})
    double = check.fresh(config).double()
    atoms = scenes.molecule((14, 8))
    atoms.positions[1] = atoms.positions[0] + [0.0, distance, 0.0]
    exact = forces(check.engine(double), atoms)
    for potential, bound in ((double, 1e-11), (check.fresh(config), 1e-5 / distance)):
        found = forces(check.engine(potential, Compiled(PaiNNKernel(potential), potential)), atoms)
        assert np.abs(found - exact).max() < bound * np.abs(exact).max()


@pytest.mark.usefixtures("kernels")
def test_three_thousand_neighbours_of_an_atom() -> None:
    fast, plain = both(cutoff=20.0)
    atoms = Atoms("SiO", cell=[2.1, 2.3, 4.6], pbc=True, positions=[[0, 0, 0], [1.0, 1.1, 2.2]])
    assert build_graph(atoms, 20.0).num_edges > 2 * 3000
    off = check.errors(fast.predict(atoms), plain.predict(atoms), [atoms])
    assert max(value for values in off.values() for value in values) < 1e-12


@pytest.mark.usefixtures("kernels")
def test_a_left_handed_cell_is_the_crystal_that_it_is() -> None:
    fast, plain = both()
    atoms = Atoms("Si2O", cell=LEFT_HANDED, pbc=True, positions=[[0, 0, 0], [2.1, 1.9, 0.2], [0.3, 2.0, 2.1]])
    assert np.linalg.det(atoms.cell) < 0
    for other in (atoms, right_handed(atoms)):
        found, wanted = fast.predict(other)[0], plain.predict(atoms)[0]
        for part in ("energy", "forces", "stress"):
            torch.testing.assert_close(getattr(found, part), getattr(wanted, part), rtol=1e-11, atol=1e-11)


def right_handed(atoms: Atoms) -> Atoms:
    other = atoms.copy()
    other.set_cell(atoms.cell.array[[1, 0, 2]])
    return other


@pytest.mark.usefixtures("kernels")
def test_structures_without_a_pair_are_answered_alone_and_among_others() -> None:
    fast, plain = both()
    apart = Atoms("SiOSi", positions=[[0, 0, 0], [50, 0, 0], [0, 60, 0]])
    many = [scenes.isolated((14,)), apart, scenes.crystal((14, 8)), scenes.isolated((8,))]
    for structures in ([many[0]], [apart], many, many[:2]):
        off = check.errors(fast.predict(structures), plain.predict(structures), structures)
        assert max(value for values in off.values() for value in values) < 1e-12


@pytest.mark.usefixtures("kernels")
def test_tensors_of_other_types_and_layouts_are_read_as_what_they_say() -> None:
    fast, _ = both()
    kernel, graph = fast._compiled.code, build_graph(scenes.crystal((14, 8)), 4.0)
    wanted = kernel(graph)
    strided = {
        name: torch.stack([value, torch.zeros_like(value)], dim=-1)[..., 0] for name, value in vars(graph).items()
    }
    assert not any(value.is_contiguous() for name, value in strided.items() if value.numel() > 1)
    whole = ("numbers", "structure", "centers", "neighbors")
    short = {name: getattr(graph, name).to(torch.int32) for name in whole}
    turned = {"positions": graph.positions.t().contiguous().t()}
    for other in (
        Graph(**strided),
        replace(graph, **short),
        replace(graph, **turned),
        replace(graph, shifts=graph.shifts.int()),
    ):
        assert all(torch.equal(*pair) for pair in zip(kernel(other), wanted, strict=True))


@pytest.mark.usefixtures("kernels")
def test_a_graph_too_large_for_its_indices_is_refused_before_anything_is_read() -> None:
    kernel = PaiNNKernel(scenes.tiny_painn("Si"))
    for sizes in ({"edges": 2**31}, {"atoms": 2**31 - 64}):
        status = kernel._run(kernel._handle, ctypes.byref(painn._Call(structures=1, **sizes)))
        assert "expected fewer than 2³¹" in str(painn._error(status, build_graph(scenes.isolated((14,)), 4.0)))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", ["structure", "neighbors", "shifts", "cells", "positions"])
def test_a_graph_whose_parts_are_of_different_lengths_is_refused(name: str) -> None:
    fast, _ = both()
    graph = build_graph(scenes.molecule((14, 8)), 4.0)
    with pytest.raises(StructureError):
        fast._compiled.code(replace(graph, **{name: getattr(graph, name)[:-1]}))


# --- threads and processes --------------------------------------------------------------------------


@pytest.mark.usefixtures("kernels")
def test_an_engine_and_its_calculators_may_be_used_by_several_threads_at_once() -> None:
    fast, _ = both(channels=16)
    structures = check.random_structures((14, 8), 24)
    wanted = [forces(fast, atoms) for atoms in structures]

    def ask(number: int) -> bool:
        atoms = structures[number % 24].copy()
        atoms.calc = fast.calculator()
        same = np.array_equal(atoms.get_forces(), wanted[number % 24])
        return same and np.array_equal(forces(fast, structures[-1 - number % 24]), wanted[-1 - number % 24])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(240)))


FORKED = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[1])
import structures as scenes
from zoo.kernels import PaiNNKernel, painn
from zoo.neighbors import build_graph

torch.set_num_threads(2)
kernel = PaiNNKernel(scenes.tiny_painn("Si", "O"))
graph = build_graph(scenes.crystal((14, 8)) * (4, 4, 4), 4.0)
wanted = kernel(graph)
child = os.fork()
if child == 0:
    signal.alarm(20)
    found = kernel(graph)
    os._exit(0 if all(torch.equal(*pair) for pair in zip(found, wanted)) else 3)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status) or not torch.equal(kernel(graph)[0], wanted[0]))
"""


@pytest.mark.usefixtures("kernels")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_a_process_that_is_forked_after_use_by_threads_answers_too() -> None:
    folder = scenes.__file__.rpartition("/")[0]
    subprocess.run([sys.executable, "-c", FORKED, folder], check=True, timeout=60)
