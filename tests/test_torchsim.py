"""TorchSim: many systems at once give what one gives, in dynamics and relaxation, and what is refused is named."""

import importlib
import sys
import warnings

import model_folders as folders
import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms, units
from ase.build import bulk, diamond100
from ase.md.verlet import VelocityVerlet
from gemnets import tiny_gemnet

from zoo.calculator import ZooCalculator
from zoo.engine import Engine
from zoo.errors import CapabilityError, ConfigError, DivergedError, DomainError, MissingPackageError, StructureError
from zoo.neighbors import build_graph
from zoo.students import PaiNNConfig, build_student
from zoo.teachers import load_teacher

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TorchSim compiles by what PyTorch calls deprecated
    ts = pytest.importorskip("torch_sim", reason="TorchSim is not installed: pip install torch-sim-atomistic")
    from torch_sim import neighbors
    from torch_sim.models.interface import validate_model_outputs

    import zoo.torchsim
    from zoo.torchsim import TorchSimModel, _Frame, edges_of_all

pytestmark = pytest.mark.torchsim

OLD = not hasattr(ts, "Integrator")  # before 0.4
AT_ONCE = hasattr(neighbors, "torchsim_nl")  # lists for many systems, since 0.5
FS = 1e-3  # ps, TorchSim's unit of time
DOUBLE = torch.float64


def silicon(seed: int = 1, size: int = 1, lattice: float = 5.43) -> Atoms:
    atoms = bulk("Si", "diamond", a=lattice, cubic=True).repeat((size, 1, 1))
    atoms.rattle(0.05, seed=seed)
    atoms.positions += 0.6  # off the faces of the cell, where TorchSim 0.3 wraps them
    return atoms


def skewed() -> Atoms:
    """In a cell that is another one when its rows are taken for its columns."""
    return scenes.crystal((14,))


def state_of(*structures: Atoms, dtype: torch.dtype = DOUBLE):
    return ts.io.atoms_to_state(list(structures), torch.device("cpu"), dtype)


def as_on_a_gpu(model: TorchSimModel) -> TorchSimModel:
    """It seeks neighbours by TorchSim's lists."""
    if not AT_ONCE:
        pytest.skip("this TorchSim has no lists for many systems")
    model.seeks_at_once = True
    return model


def by_ase(potential, atoms: Atoms) -> Atoms:
    alone = atoms.copy()
    alone.calc = ZooCalculator(potential)
    return alone


@pytest.fixture
def potential():
    return load_teacher("stillinger-weber/teacher", dtype=DOUBLE).potential


@pytest.fixture
def engine(tmp_path) -> Engine:
    """A tiny engine for silicon, whose domain is checked."""
    return Engine.read(folders.make_folder(tmp_path / "model"), device="cpu", dtype=DOUBLE)


def nve(state, model: TorchSimModel, steps: int, seed: int = 5):
    """The states of a run of constant energy at 600 K, the first before its first step."""
    step, temperature = 1.0 * units.fs, torch.tensor(600 * units.kB, dtype=DOUBLE)
    if OLD:
        begin, move = ts.nve(model=model, dt=torch.tensor(step, dtype=DOUBLE), kT=temperature)
        state = begin(state, seed=seed)
    else:
        state.rng = seed
        state = ts.nve_init(state, model, kT=temperature)
    yield state.clone()
    for _ in range(steps):
        state = move(state) if OLD else ts.nve_step(state, model, dt=torch.tensor(step, dtype=DOUBLE))
        yield state.clone()


def total_energies(state) -> np.ndarray:
    """(systems,) eV"""
    kinetic = state.momenta.square().sum(dim=1) / (2 * state.masses)
    return (state.energy.index_add(0, state.system_idx, kinetic)).numpy()


def test_torchsims_own_validation_passes():
    config = PaiNNConfig(elements=("H", "C", "Mg", "Si", "Fe"), channels=5, layers=2, radials=4, cutoff=4.0)
    model = TorchSimModel(build_student(config, torch.Generator().manual_seed(7)).double())
    model.compute_stress = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        validate_model_outputs(model, torch.device("cpu"), DOUBLE)
    assert model.compute_stress


def test_a_batch_gives_what_ase_gives_of_each(potential):
    structures = [silicon(), silicon(2, size=2), skewed()]
    found = TorchSimModel(potential)(state_of(*structures))
    start = 0
    for index, atoms in enumerate(structures):
        alone, mine = by_ase(potential, atoms), slice(start, start + len(atoms))
        assert float(found["energy"][index]) == pytest.approx(alone.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(found["forces"][mine], alone.get_forces(), atol=1e-9)
        np.testing.assert_allclose(found["stress"][index], alone.get_stress(voigt=False), atol=1e-10)
        start += len(atoms)


def test_molecules_have_energies_and_no_stress():
    potential = scenes.tiny_painn("H", "C")
    structures = [scenes.molecule((1, 6)), scenes.molecule((1, 6), seed=5)]
    asked = []

    def predict(graph, *, stress: bool):
        asked.append(stress)
        return potential.predict(graph, stress=stress)

    found = TorchSimModel(potential, predict=predict)(state_of(*structures))
    expected = [by_ase(potential, atoms) for atoms in structures]
    assert asked == [False]  # which would take time
    np.testing.assert_allclose(found["energy"], [atoms.get_potential_energy() for atoms in expected], atol=1e-9)
    np.testing.assert_allclose(found["forces"], np.concatenate([atoms.get_forces() for atoms in expected]), atol=1e-9)
    assert found["stress"].shape == (2, 3, 3)
    assert found["stress"].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_of_the_type_of_the_state_whatever_the_potential_computes_in(dtype):
    exact = scenes.tiny_painn("Si")
    model = TorchSimModel(scenes.tiny_painn("Si").float(), dtype=dtype)
    assert model.dtype == dtype
    found = model(state_of(silicon(), dtype=dtype))
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    np.testing.assert_allclose(found["forces"], by_ase(exact, silicon()).get_forces(), atol=1e-4)


def test_dynamics_of_a_batch_is_that_of_each_system_and_keeps_its_energy(potential):
    structures = [silicon(), silicon(2, size=2)]
    model = TorchSimModel(potential)
    states = list(nve(state_of(*structures), model, 100))
    assert model.searches < 10
    energies = np.array([total_energies(state) for state in states])  # (steps, systems)
    assert np.ptp(energies, axis=0).max() < 2e-3
    kinetic = energies[0] - states[0].energy.numpy()
    assert kinetic.min() > 0.1
    alone = by_ase(potential, structures[1])
    alone.set_momenta(states[0].momenta[8:].numpy())
    VelocityVerlet(alone, 1.0 * units.fs).run(100)
    np.testing.assert_allclose(states[-1].positions[8:], alone.positions, atol=1e-6)


def test_torchsim_integrates_a_batch(potential):
    structures = [silicon(), silicon(2), silicon(3)]
    before = [by_ase(potential, atoms).get_potential_energy() for atoms in structures]
    integrator = ts.nve if OLD else ts.Integrator.nve
    model = TorchSimModel(potential)
    final = ts.integrate(structures, model, integrator=integrator, n_steps=50, temperature=1e-6, timestep=1 * FS)
    np.testing.assert_allclose(total_energies(final), before, atol=2e-3)
    assert (final.energy.numpy() < np.array(before) - 0.01).all()


def test_torchsim_relaxes_a_batch(potential):
    structures = [silicon(), silicon(2, size=2)]
    optimizer = ts.optimizers.fire if OLD else ts.Optimizer.fire
    converged = ts.generate_force_convergence_fn(force_tol=1e-3, include_cell_forces=False)
    final = ts.optimize(structures, TorchSimModel(potential), optimizer=optimizer, convergence_fn=converged)
    np.testing.assert_allclose(final.energy.numpy() / [8, 16], -4.3366, atol=1e-3)
    assert final.forces.abs().max() < 1e-3
    assert len(structures[0]) == 8
    assert np.abs(by_ase(potential, structures[0]).get_forces()).max() > 0.1


def test_torchsim_relaxes_cells(potential):
    structures = [silicon(lattice=5.6), silicon(2, lattice=5.3)]
    tolerance = {"convergence_fn": ts.generate_force_convergence_fn(force_tol=1e-3, include_cell_forces=True)}
    if OLD:
        options = {"optimizer": ts.frechet_cell_fire}
    else:
        options = {"optimizer": ts.Optimizer.fire, "init_kwargs": {"cell_filter": ts.CellFilter.frechet}}
    final = ts.optimize(structures, TorchSimModel(potential), **options, **tolerance)
    lengths = torch.linalg.norm(final.row_vector_cell, dim=2)
    np.testing.assert_allclose(lengths.numpy(), 5.4309, rtol=1e-3)


@pytest.mark.parametrize("at_once", [False, True])
def test_neighbours_are_kept_while_atoms_move_little_and_nothing_is_lost(at_once, potential):
    state, model = state_of(silicon(), silicon(2, size=2)), TorchSimModel(potential)
    model = as_on_a_gpu(model) if at_once else model
    generator = torch.Generator().manual_seed(3)
    searches = []
    for step in range(12):
        if step == 9:
            state.cell.mul_(1.01)  # in place
        moves = torch.randn(state.positions.shape, generator=generator, dtype=DOUBLE)
        state.positions.add_(0.05 * moves)  # in place
        found, fresh = model(state), TorchSimModel(potential)(state)
        for key in found:
            torch.testing.assert_close(found[key], fresh[key], rtol=0, atol=1e-9)
        searches.append(model.searches)
    assert searches[0] == 1
    assert searches[9] > searches[8]
    assert searches[-1] < 12


def test_other_systems_are_sought_anew(potential):
    model = TorchSimModel(potential)
    whole = model(state_of(silicon(), silicon(2, size=2)))
    part = model(state_of(silicon()))
    torch.testing.assert_close(part["energy"][0], whole["energy"][0])
    assert model.searches == 2


def outside() -> dict[str, tuple[Atoms, str]]:
    """What lies outside the domain of the engine, and what must be said."""
    strange, squeezed, near = silicon(), silicon(lattice=5.0), silicon()
    strange.symbols[2] = "Ge"
    near.positions[1] = near.positions[0] + [1.5, 0, 0]
    return {"element": (strange, "Ge"), "density": (squeezed, "Å³ per atom"), "distance": (near, "1.500 Å apart")}


@pytest.mark.parametrize("case", list(outside()))
def test_a_system_outside_the_domain_is_named_each_time(case, engine):
    atoms, message = outside()[case]
    model = engine.torchsim()
    model(state_of(silicon(), silicon(2)))
    for _ in range(2):
        with pytest.raises(DomainError, match=f"^system 1: .*{message}"):
            model(state_of(silicon(), atoms, silicon(2)))
    model(state_of(silicon()))


def test_an_element_without_parameters_is_named_without_a_check_too(potential):
    atoms, _ = outside()["element"]
    with pytest.raises(DomainError, match=r"^system 1: .* has Ge, and this potential has parameters for Si alone"):
        TorchSimModel(potential)(state_of(silicon(), atoms))


def test_a_system_that_leaves_the_domain_on_its_way_is_stopped(engine):
    model, state = engine.torchsim(), state_of(silicon(), silicon(2))
    apart = state.positions[9] - state.positions[8]
    model(state)

    def approach() -> None:
        for _ in range(40):
            state.positions[9] = state.positions[9] - 0.02 * apart
            model(state)

    with pytest.raises(DomainError, match=r"^system 1: atoms \d and \d of Si8 are 1\.7\d* Å apart"):
        approach()
    assert model.searches < 10


def test_a_check_looks_again_only_when_it_could_find_anything_new(potential):
    looked = []

    def look(atoms, graph) -> None:
        looked.append((len(atoms), graph.num_edges))

    model = TorchSimModel(potential, check=look, nearest=2.0)
    state = state_of(silicon(), silicon(2, size=2))
    model(state)
    expected = [build_graph(atoms, potential.cutoff).num_edges for atoms in (silicon(), silicon(2, size=2))]
    assert looked == [(8, expected[0]), (16, expected[1])]
    state.positions = state.positions + 0.3  # far enough for a search, but no distance has changed
    model(state)
    assert (len(looked), model.searches) == (2, 2)
    state.cell = state.cell * 1.01
    model(state)
    assert len(looked) == 4
    state.positions[1] = state.positions[0] + 1.1  # nearer than 2 Å
    model(state)
    assert len(looked) == 6
    model(state_of(silicon()))
    assert looked[6:] == [(8, expected[0])]


def test_what_a_system_states_of_its_charge_reaches_the_check(potential):
    if OLD:
        pytest.skip("TorchSim 0.3 has no charges")
    seen = []
    state = state_of(silicon(), silicon(2))
    state.system_extras["charge"] = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    TorchSimModel(potential, check=lambda atoms, graph: seen.append(atoms.info))(state)
    assert seen == [{"charge": 0.0}, {"charge": 1.0}]


def test_two_atoms_on_one_spot_are_named_without_a_check_too(potential):
    state, model = state_of(silicon(), silicon(2)), TorchSimModel(potential, skin=6.0)
    model(state)
    state.positions[9] = state.positions[8]  # without another search
    with pytest.raises(StructureError, match=r"^system 1: atoms 0 and 1 of Si8 are 0.0000 Å apart"):
        model(state)


def test_numbers_that_are_not_finite_name_the_system(potential):
    def predict(graph, **options):
        found = potential.predict(graph, **options)
        found.forces[10] = torch.nan
        return found

    with pytest.raises(DivergedError, match=r"^system 1: its energy or a force is not finite"):
        TorchSimModel(potential, predict=predict)(state_of(silicon(), silicon(2)))


def test_what_a_potential_lacks_is_said():
    model = TorchSimModel(tiny_gemnet("Si", direct=True))
    assert not model.compute_stress
    assert set(model(state_of(silicon()))) == {"energy", "forces"}
    with pytest.raises(NotImplementedError, match="gives no stress"):
        model.compute_stress = True
    with pytest.raises(CapabilityError, match="gives forces alone"):
        TorchSimModel(load_teacher("stillinger-weber/direct-teacher").potential)
    with pytest.raises(ConfigError, match="a skin of 0 Å"):
        TorchSimModel(scenes.tiny_painn("Si"), skin=0)


def without_rows(*periodic: bool) -> Atoms:
    """Silicon whose cell has no vectors along the axes that are not periodic."""
    atoms = silicon()
    atoms.set_cell(atoms.cell.array * np.array(periodic)[:, None])
    atoms.pbc = periodic
    return atoms


def in_plane() -> Atoms:
    """A slab whose third vector, which counts for nothing, lies in its plane."""
    atoms = without_rows(True, True, False)
    atoms.cell[2] = atoms.cell[0]
    return atoms


def systems() -> dict[str, tuple[Atoms, ...]]:
    return {
        "crystals": (silicon(), skewed()),
        "molecule": (scenes.molecule((14,)),),
        "slabs": (diamond100("Si", (2, 2, 4), a=5.43), in_plane(), without_rows(True, True, False)),
        "wires": (without_rows(False, True, False), without_rows(False, True, False)),
    }


@pytest.mark.skipif(not AT_ONCE, reason="this TorchSim has no lists for many systems")
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("case", list(systems()))
def test_torchsims_lists_find_the_same_edges(case, large, monkeypatch):
    structures = systems()[case]
    if large:
        monkeypatch.setattr(zoo.torchsim, "_MANY", 0)
    state = state_of(*structures)
    found = edges_of_all(_Frame.of(state), state.positions, 4.0)
    expected = build_graph(list(structures), 4.0)
    for graph in (found, expected):
        assert graph.num_edges > 0
    assert edges(found) == edges(expected)
    torch.testing.assert_close(found.cells, expected.cells)
    torch.testing.assert_close(found.periodic, expected.periodic)


def test_one_large_system_goes_to_a_cell_list(monkeypatch):
    if not (AT_ONCE and neighbors.ALCHEMIOPS_AVAILABLE):
        pytest.skip("this TorchSim has one list for all sizes")
    asked, seek = [], neighbors.alchemiops_nl_cell_list
    monkeypatch.setattr(
        neighbors, "alchemiops_nl_cell_list", lambda *given: asked.append(len(given[0])) or seek(*given)
    )
    monkeypatch.setattr(zoo.torchsim, "_MANY", 10)
    for structures in ((silicon(), silicon(2)), (silicon(), silicon(2, size=2))):  # 8 atoms; 8 and 16
        state = state_of(*structures)
        edges_of_all(_Frame.of(state), state.positions, 4.0)
    assert asked == [24]


def test_a_slab_has_the_same_forces_by_torchsims_lists(potential):
    slab = diamond100("Si", (2, 2, 4), a=5.43)
    slab.rattle(0.05, seed=1)
    found = as_on_a_gpu(TorchSimModel(potential))(state_of(slab))
    np.testing.assert_allclose(found["forces"], by_ase(potential, slab).get_forces(), atol=1e-9)


@pytest.mark.parametrize("place", [np.nan, np.inf, 1e12])
@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("late", [False, True])
def test_an_atom_that_is_nowhere_names_its_system_by_torchsims_lists(place, periodic, late, potential):
    atoms = silicon() if periodic else without_rows(False, False, False)
    state, model = state_of(atoms, atoms), as_on_a_gpu(TorchSimModel(potential))
    if late:
        model(state)
    state.positions[9, 0] = place
    reason = "atoms of Si8 are over 100000 Å apart" if place == 1e12 else "position 1 of Si8 is not a finite number"
    for _ in range(2):
        with pytest.raises(StructureError, match=f"^system 1: {reason}"):
            model(state)


def test_a_cell_that_is_none_names_its_system_by_torchsims_lists(potential):
    state, model = state_of(silicon(), silicon(2)), as_on_a_gpu(TorchSimModel(potential))
    model(state)
    for row, reason in ((0.0, "is periodic along a, b, c but has no cell there"), (np.nan, "is not a finite number")):
        state.cell[1, :, 0] = row
        with pytest.raises(StructureError, match=f"^system 1: .*{reason}"):
            model(state)


def edges(graph) -> list[tuple[int, ...]]:
    ends = torch.stack([graph.centers, graph.neighbors], dim=1)
    return sorted(map(tuple, torch.cat([ends, graph.shifts.long()], dim=1).tolist()))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("follows", [False, True])
def test_compiled_code_answers_for_a_batch(follows, tmp_path):
    engine = Engine.read(folders.make_folder(tmp_path / "model"), device="cpu", dtype=DOUBLE)
    assert engine.compiled
    options = {"follow": engine._compiled.follow} if follows else {"predict": engine._ask}
    plain = TorchSimModel(engine.potential)
    states = list(nve(state_of(silicon(), silicon(2, size=2)), plain, 3))
    expected = [plain(state) for state in states]
    engine.potential.predict = None  # whoever asks PyTorch fails
    model = TorchSimModel(engine.potential, **options)
    for state, right in zip(states, expected, strict=True):
        found = model(state)
        for key in right:
            torch.testing.assert_close(found[key], right[key], rtol=1e-9, atol=1e-9)
    assert model.searches == 1


@pytest.mark.usefixtures("kernels")
def test_compiled_code_keeps_its_digits_far_from_the_origin(tmp_path):
    engine = Engine.read(folders.make_folder(tmp_path / "model"), device="cpu", dtype=torch.float32)
    model = TorchSimModel(engine.potential, predict=engine._ask)
    far = silicon()
    far.positions += 1000
    here, there = model(state_of(silicon())), model(state_of(far))
    assert here["forces"].abs().max() > 0.1
    torch.testing.assert_close(there["forces"], here["forces"], rtol=0, atol=3e-6)


def test_the_potential_answers_where_nothing_follows(potential):
    expected = TorchSimModel(potential)(state_of(silicon()))
    found = TorchSimModel(potential, follow=lambda graph: None)(state_of(silicon()))
    torch.testing.assert_close(found["forces"], expected["forces"])


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "zoo.torchsim")
    monkeypatch.setitem(sys.modules, "torch_sim", None)
    with pytest.raises(MissingPackageError, match=r"run: pip install torch-sim-atomistic$"):
        importlib.import_module("zoo.torchsim")


@pytest.mark.usefixtures("kernels")
def test_an_engine_is_a_model_of_torchsim(tmp_path):
    engine = Engine.read(folders.make_folder(tmp_path / "model"), device="cpu", dtype=torch.float32)
    found = engine.torchsim()(state_of(silicon(), silicon(2)))
    engine.potential.predict = None  # whoever asks PyTorch fails
    again = engine.torchsim()(state_of(silicon(), silicon(2)))
    assert (again["forces"].dtype, again["forces"].tolist()) == (DOUBLE, found["forces"].tolist())
    alone = silicon(2)
    alone.calc = engine.calculator()
    np.testing.assert_allclose(found["forces"][8:], alone.get_forces(), atol=1e-6)
    atoms, message = outside()["density"]
    with pytest.raises(DomainError, match=f"^system 1: .*{message}"):
        engine.torchsim()(state_of(silicon(), atoms))
    at_will = Engine.read(tmp_path / "model", device="cpu", check_domain=False)
    assert at_will.torchsim(dtype=torch.float32)(state_of(atoms, dtype=torch.float32))["energy"].isfinite().all()
    assert at_will.torchsim(dtype="float32").dtype == torch.float32
    with pytest.raises(ConfigError, match="dtype 'float16'; expected 'float32'"):
        at_will.torchsim(dtype="float16")
