"""What is true of every potential, as its traits say: one function a law, each raising AssertionError.

``CONTRACT`` holds them by name, ``laws_of(potential)`` gives those that its traits imply. The laws want a
potential in float64. Each law has its place because ``test_planted_bugs.py`` holds a bug that it catches.
"""

import copy
import functools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from torch import Tensor

from zoo import derivatives
from zoo.graph import Graph
from zoo.neighbors import build_graph
from zoo.potential import Potential, Prediction

Law = Callable[[Potential], None]
CONTRACT: dict[str, Law] = {}

EXACT = 1e-8  # of the larger of 1 and the largest number: for what only rounding disturbs
STENCIL = 1e-6  # the same, for what is compared with a difference of four points
_BROKEN = (
    RuntimeError,
    IndexError,
    ValueError,
    ArithmeticError,
)  # how torch says that shapes or graphs do not fit


def law(check: Law) -> Law:
    """Enters ``check_<name>`` into the contract as ``<name>``; a potential that raises breaks the law too."""
    name = check.__name__.removeprefix("check_")

    @functools.wraps(check)
    def checked(potential: Potential) -> None:
        try:
            check(potential)
        except _BROKEN as error:
            raise AssertionError(f"{name}: the potential raised {type(error).__name__}: {error}") from error

    CONTRACT[name] = checked
    return checked


def laws_of(potential: Potential) -> dict[str, Law]:
    """The laws that follow from what the potential declares of itself."""
    traits = potential.traits
    spared = {
        "forces_are_gradient": not traits.conservative,
        "hessian_symmetric": not traits.conservative,
        "energy_gradient": not traits.energies,
        "atomic_energies": not (traits.energies and traits.atomic_energies),
        "stress_is_gradient": not (traits.stress and traits.conservative),
        "stress_symmetric": not traits.stress,
        "stress_needs_volume": not traits.stress,
        "features": not traits.features,
        "rotation": not traits.rotation_invariant,
        "reflection": not traits.reflection_invariant,
        "permutation": not traits.permutation_invariant,
        "size_consistency": not traits.size_consistent,
        "supercell": not traits.permutation_invariant,  # which numbers its atoms anew
        "smooth_cutoff": traits.smoothness < 0,
        "no_cusp": traits.smoothness < 0,
        "parameter_gradient": not any(parameter.requires_grad for parameter in potential.parameters()),
    }
    return {name: check for name, check in CONTRACT.items() if not spared.get(name, False)}


def check_law(potential: Potential, name: str) -> None:
    """Raises AssertionError where the potential breaks the law; skips where its traits do not promise it."""
    laws = laws_of(potential)
    if name not in laws:
        pytest.skip("its traits do not promise this")
    laws[name](potential)


# --- invariances ----------------------------------------------------------------------------------


@law
def check_translation(potential: Potential) -> None:
    """All atoms moved together: nothing changes."""
    for name, atoms in _two_scenes(potential):
        moved = atoms.copy()
        moved.positions += [0.31, -1.7, 12.4]
        probes = _probes(atoms, 1)
        _same(_ask(potential, moved, probes=probes), _ask(potential, atoms, probes=probes), f"translated {name}")


@law
def check_images(potential: Potential) -> None:
    """One atom moved by lattice vectors, or the same lattice by other vectors: nothing changes."""
    atoms = scenes.crystal(scenes.species(potential))
    before, probes = _ask(potential, atoms, probes=_probes(atoms, 1)), _probes(atoms, 1)
    moved = atoms.copy()
    moved.positions[1] += np.array([1, -2, 1]) @ atoms.cell
    _same(_ask(potential, moved, probes=probes), before, "an atom moved by lattice vectors")
    chosen = atoms.copy()
    chosen.set_cell(np.array([[1, 1, 0], [0, 1, 0], [0, -1, 1]]) @ atoms.cell, scale_atoms=False)
    _same(_ask(potential, chosen, probes=probes), before, "other vectors of the same lattice")


@law
def check_rotation(potential: Potential) -> None:
    """The energy stays; forces, stress and Hessian products turn with the structure."""
    _check_turned(potential, _orthogonal(+1), "rotated")


@law
def check_reflection(potential: Potential) -> None:
    """The energy of a mirror image is the same; forces, stress and Hessian products are mirrored."""
    _check_turned(potential, _orthogonal(-1), "mirrored")


@law
def check_permutation(potential: Potential) -> None:
    """Atoms in another order: the same numbers in that order."""
    elements = scenes.species(potential)
    for name, atoms in (
        ("molecule", scenes.molecule(elements)),
        ("crystal", scenes.crystal(elements).repeat((2, 1, 1))),
    ):
        probes = _probes(atoms, 1)
        before = _ask(potential, atoms, probes=probes)
        for order in ([2, 0, 3, 1], [3, 1, 0, 2]):
            expected = Prediction(
                before.energy,
                before.atomic_energies[order] if potential.traits.energies else None,
                before.forces[order],
                before.stress,
                before.hessian_products[:, order],
            )
            _same(_ask(potential, atoms[order], probes=probes[:, order]), expected, f"{name} in the order {order}")


# --- batches and sizes ----------------------------------------------------------------------------


@law
def check_batch(potential: Potential) -> None:
    """A batch of crystals, molecules and lone atoms is its parts, each with its own probes, in any order."""
    elements = scenes.species(potential)
    parts = [
        scenes.crystal(elements),
        scenes.isolated(elements),
        scenes.molecule(elements),
        scenes.simple_cubic(elements),
        scenes.dimer(elements),
    ]
    probes = [_probes(atoms, 2, seed=seed) for seed, atoms in enumerate(parts)]
    for order in ([0, 1, 2, 3, 4], [4, 2, 3, 1, 0]):
        together = _ask(potential, [parts[i] for i in order], probes=torch.cat([probes[i] for i in order], dim=1))
        split = together.split([len(parts[i]) for i in order])
        for position, index in enumerate(order):
            alone = _ask(potential, parts[index], probes=probes[index])
            _same(split[position], alone, f"structure {position} of a batch ({parts[index].symbols})")


@law
def check_hessian_rows(potential: Potential) -> None:
    """Chosen rows are rows of the dense Hessian, alone and in a batch whose structures choose their own."""
    elements = scenes.species(potential)
    parts = [scenes.molecule(elements), scenes.crystal(elements)]
    dense = [potential.hessian(_graph(potential, atoms)) for atoms in parts]
    some = torch.tensor([5, 0, 3])
    alone = potential.hessian(_graph(potential, parts[0]), some)
    _close(alone, dense[0][some], "rows of the Hessian against the dense one")
    rows = torch.tensor([[1, 11], [4, 2]])
    graph = _graph(potential, parts)
    products = potential.predict(graph, probes=derivatives.one_hot_probes(rows, graph)).hessian_products
    for index, block in enumerate(products.split([len(atoms) for atoms in parts], dim=1)):
        expected = dense[index][rows[index]].reshape(block.shape)
        _close(block, expected, f"rows of the Hessian of structure {index} of a batch")


@law
def check_supercell(potential: Potential) -> None:
    """Twice the crystal: twice the energy, forces repeated, the same stress, a Hessian that folds back."""
    atoms = scenes.crystal(scenes.species(potential))
    double = atoms.repeat((2, 1, 1))
    one, two = _ask(potential, atoms), _ask(potential, double)
    _close(two.energy, 2 * one.energy, "energy of a supercell of two")
    _close(two.forces, one.forces.repeat(2, 1), "forces of a supercell")
    _close(two.stress, one.stress, "stress of a supercell")
    large = potential.hessian(_graph(potential, double))[:6].reshape(6, 2, 6)
    _close(large.sum(dim=1), potential.hessian(_graph(potential, atoms)), "Hessian of a supercell, folded")


@law
def check_size_consistency(potential: Potential) -> None:
    """Two molecules far apart know nothing of each other."""
    elements = scenes.species(potential)
    near, far = scenes.molecule(elements), scenes.dimer(elements)
    far.positions += [0.0, 90.0, 40.0]
    parts = [_ask(potential, near), _ask(potential, far)]
    both = _ask(potential, near + far)
    _close(both.energy, parts[0].energy + parts[1].energy, "energy of two molecules far apart")
    _close(both.forces, torch.cat([part.forces for part in parts]), "forces of two molecules far apart")


@law
def check_atomic_energies(potential: Potential) -> None:
    """One energy an atom, a lone atom included; they sum to the energy of each structure."""
    elements = scenes.species(potential)
    for atoms in (scenes.isolated(elements), scenes.crystal(elements)):
        shape = tuple(potential.atomic_energies(_graph(potential, atoms)).shape)
        assert shape == (len(atoms),), f"atomic_energies of {len(atoms)} atoms has the shape {shape}"
    parts = [scenes.molecule(elements), scenes.crystal(elements)]
    both = _ask(potential, parts)
    sums = torch.stack([block.sum() for block in both.atomic_energies.split([4, 2])])
    _close(both.energy, sums, "energy against the sum of atomic energies", EXACT / 10)


@law
def check_isolated_atom(potential: Potential) -> None:
    """An atom without neighbours: a finite energy that does not depend on its place, and no derivatives."""
    elements = scenes.species(potential)
    boxed = scenes.isolated(elements)
    boxed.set_cell(np.eye(3) * (2 * potential.cutoff + 3))
    boxed.pbc = True
    lone = scenes.isolated(elements)
    for name, atoms in (("lone atom", lone), ("atom in a large cell", boxed)):
        asked = _ask(potential, atoms, probes=_probes(atoms, 1))
        _close(asked.energy, _ask(potential, lone).energy, f"energy of a {name}")
        _close(asked.forces, torch.zeros(1, 3), f"force on a {name}")
        _close(asked.hessian_products, torch.zeros(1, 1, 3), f"Hessian product of a {name}")
        _close(potential.hessian(_graph(potential, atoms)), torch.zeros(3, 3), f"Hessian of a {name}")
    if potential.traits.stress and potential.traits.conservative:
        _close(_ask(potential, boxed).stress, torch.zeros(1, 3, 3), "stress of an atom in a large cell")


@law
def check_declared(potential: Potential) -> None:
    """What a potential declares not to give is NaN or None, however it is asked; what it gives is neither."""
    traits = potential.traits
    graph = _graph(potential, scenes.crystal(scenes.species(potential)))
    for asked in ({}, {"forces": False}, {"stress": True}):
        got = potential.predict(graph, **asked)
        assert bool(got.energy.isnan().all()) != traits.energies, f"an energy where energies={traits.energies}"
        assert (got.atomic_energies is None) != traits.energies, f"atomic energies where energies={traits.energies}"
        if got.stress is not None:
            assert bool(got.stress.isnan().all()) != traits.stress, f"a stress where stress={traits.stress}"


@law
def check_features(potential: Potential) -> None:
    """Node features, as many as declared: the same wherever the atoms are, however turned, mirrored or numbered."""
    atoms = scenes.molecule(scenes.species(potential))
    expected = _features(potential, atoms)
    shape, wanted = tuple(expected.shape), (len(atoms), potential.traits.features)
    assert shape == wanted, f"features of {len(atoms)} atoms have the shape {shape}, declared is {wanted}"
    assert expected.std(dim=0).max() > 0, "the features of all atoms are alike"
    moved = atoms.copy()
    moved.positions += [0.31, -1.7, 12.4]
    _close(_features(potential, moved), expected, "features of a moved molecule")
    for determinant in (1, -1) if potential.traits.reflection_invariant else (1,):
        turned = atoms.copy()
        turned.positions = atoms.positions @ _orthogonal(determinant).numpy()
        _close(_features(potential, turned), expected, f"features of a turned molecule, determinant {determinant}")
    if potential.traits.permutation_invariant:
        order = [2, 0, 3, 1]
        _close(_features(potential, atoms[order]), expected[order], "features in another order")
    crystal = scenes.crystal(scenes.species(potential))
    alone = torch.cat([_features(potential, crystal), expected])
    _close(_features(potential, [crystal, atoms]), alone, "features of a batch")


# --- first derivatives ----------------------------------------------------------------------------


@law
def check_forces_are_gradient(potential: Potential) -> None:
    """``F = −∂E/∂r``, by differences of the energy along random directions."""
    for name, atoms in _two_scenes(potential):
        forces = _ask(potential, atoms).forces
        for direction in _probes(atoms, 4, seed=3):
            slope = _slope(potential, atoms, direction, "energy")
            _close(-(forces * direction).sum()[None], slope, f"forces of the {name} against differences", STENCIL)


@law
def check_stress_is_gradient(potential: Potential) -> None:
    """``σ = ∂E/∂ε / V``, by differences of the energy of strained cells, of either handedness."""
    right = scenes.crystal(scenes.species(potential))
    left = right.copy()
    left.set_cell(np.asarray(right.cell)[[1, 0, 2]], scale_atoms=False)
    for name, atoms in (("cell", right), ("left-handed cell", left)):
        stress = _ask(potential, atoms).stress[0]
        for seed in range(3):
            strain = np.random.default_rng(seed).normal(size=(3, 3))
            strain = (strain + strain.T) / 2
            slope = _stencil(functools.partial(_energy_strained, potential, atoms, strain))
            work = (stress * torch.from_numpy(strain)).sum()[None]
            _close(work, slope / atoms.get_volume(), f"stress of a {name} against differences", STENCIL)


@law
def check_stress_symmetric(potential: Potential) -> None:
    stress = _ask(potential, scenes.crystal(scenes.species(potential))).stress
    _close(stress, stress.transpose(1, 2), "stress against its transpose")


@law
def check_stress_needs_volume(potential: Potential) -> None:
    """Without three periodic directions there is no volume, and the stress is NaN, not an accident."""
    elements = scenes.species(potential)
    slab = scenes.crystal(elements)
    slab.pbc = [True, True, False]
    for name, atoms in (("molecule", scenes.molecule(elements)), ("slab", slab)):
        assert _ask(potential, atoms).stress.isnan().all(), f"the stress of a {name} is not NaN"


@law
def check_asked(potential: Potential) -> None:
    """No number depends on what else is asked for, or on no_grad; what is not asked for is None."""
    atoms = scenes.crystal(scenes.species(potential))
    graph = _graph(potential, atoms)
    full = _ask(potential, atoms, probes=_probes(atoms, 1))
    energy = potential.predict(graph, forces=False)
    assert energy.forces is None, "forces were not asked for"
    assert energy.stress is None, "stress was not asked for"
    assert energy.hessian_products is None, "products were not asked for"
    _close(energy.energy, full.energy, "energy alone")
    _close(potential.predict(graph).forces, full.forces, "forces without stress")
    with torch.no_grad():
        quiet = potential.predict(graph, stress=True, probes=_probes(atoms, 1))
    _same(quiet, full, "the same inside torch.no_grad()")


@law
def check_energy_gradient(potential: Potential) -> None:
    """``gradient=True`` gives ``+∂E/∂r``, by differences of the energy, whatever the forces are made from."""
    for name, atoms in _two_scenes(potential):
        graph = _graph(potential, atoms)
        gradient = potential.predict(graph, gradient=True).energy_gradient
        for direction in _probes(atoms, 2, seed=3):
            slope = _slope(potential, atoms, direction, "energy")
            _close((gradient * direction).sum()[None], slope, f"∂E/∂r of the {name} against differences", STENCIL)
        alone = potential.predict(graph, forces=False, gradient=True)
        assert alone.forces is None, "forces were not asked for"
        _close(alone.energy_gradient, gradient, "∂E/∂r without forces")


# --- second derivatives ---------------------------------------------------------------------------


@law
def check_hessian_is_gradient(potential: Potential) -> None:
    """``H = −∂F/∂r``, sign included, by differences of the forces."""
    for name, atoms in _two_scenes(potential):
        dense = potential.hessian(_graph(potential, atoms))
        for direction in _probes(atoms, 2, seed=4):
            slope = -_slope(potential, atoms, direction, "forces")
            product = (dense @ direction.flatten()).reshape(-1, 3)
            _close(product, slope, f"Hessian of the {name} against differences of forces", STENCIL)


@law
def check_hessian_products(potential: Potential) -> None:
    """``predict(probes=v)`` gives ``+vᵀ H`` of the dense Hessian, for several probes; ``H v`` where it is symmetric."""
    for name, atoms in _two_scenes(potential):
        probes = _probes(atoms, 3)
        dense = potential.hessian(_graph(potential, atoms))
        expected = (probes.flatten(1) @ dense).reshape(probes.shape)
        _close(
            _ask(potential, atoms, probes=probes).hessian_products,
            expected,
            f"Hessian products of the {name}",
        )


@law
def check_sides(potential: Potential) -> None:
    """Products from each side, in a batch, by differences of forces: ``−vᵀ J``, ``−J v``, and their mean."""
    elements = scenes.species(potential)
    parts = [scenes.crystal(elements), scenes.molecule(elements)]
    graph = _graph(potential, parts)
    probes = _draw(2, graph.num_atoms, 3, seed=9)
    rows, columns, both = (
        potential.predict(graph, probes=probes, side=side).hessian_products for side in ("rows", "columns", "symmetric")
    )
    start = 0
    for atoms in parts:
        block = slice(start, start + len(atoms))
        for index, probe in enumerate(probes[:, block]):
            away = -_slope(potential, atoms, probe, "forces")
            _close(columns[index, block], away, f"columns of the {atoms.symbols} against differences", STENCIL)
            for direction in _probes(atoms, 3, seed=10):
                along = -(_slope(potential, atoms, direction, "forces") * probe).sum()[None]
                got = (rows[index, block] * direction).sum()[None]
                _close(got, along, f"rows of the {atoms.symbols} against differences", STENCIL)
        start += len(atoms)
    _close(both, (rows + columns) / 2, "symmetric products against the mean of rows and columns")
    if not potential.traits.conservative:
        _close(potential.force_columns(graph, probes), columns, "columns in forward mode")


@law
def check_hessian_symmetric(potential: Potential) -> None:
    for name, atoms in _two_scenes(potential):
        dense = potential.hessian(_graph(potential, atoms))
        _close(dense, dense.T, f"Hessian of the {name} against its transpose")


@law
def check_acoustic_sum(potential: Potential) -> None:
    """Moving all atoms alike costs nothing: rows of the Hessian sum to zero, and so do forces that are a gradient."""
    for name, atoms in _two_scenes(potential):
        dense = potential.hessian(_graph(potential, atoms))
        sums = dense.reshape(-1, len(atoms), 3).sum(dim=1)
        _close(sums, torch.zeros_like(sums), f"acoustic sum of the {name}")
        if potential.traits.conservative:
            _close(_ask(potential, atoms).forces.sum(dim=0), torch.zeros(3), f"total force on the {name}")


# --- smoothness -----------------------------------------------------------------------------------


@law
def check_smooth_cutoff(potential: Potential) -> None:
    """Energy, forces and Hessian do not jump where an atom crosses the cutoff, as far as the traits promise.

    A jump is what does not shrink with the gap across which it is measured.
    """
    elements = scenes.species(potential)
    names = ("energy", "forces", "Hessian")[: potential.traits.smoothness + 1]
    for scene in ("pair", "triplet"):
        wide, narrow = (_across_cutoff(potential, elements, scene, gap) for gap in (1e-3, 1e-5))
        for name, far, near, size in zip(names, wide[0], narrow[0], wide[1], strict=False):
            assert near <= 0.1 * far + 1e-10 * max(size, 1.0), (
                f"the {name} of a {scene} jumps by {near:.1e} where an atom crosses the cutoff"
            )


@law
def check_finite_to_third(potential: Potential) -> None:
    """Where symmetry makes lengths and sums zero, derivatives up to that of ``|H v|²`` are numbers."""
    parameters = [parameter for parameter in potential.parameters() if parameter.requires_grad]
    for name, atoms in scenes.symmetric_scenes(scenes.species(potential)).items():
        graph, positions, strain = derivatives.differentiable(_graph(potential, atoms), strain=True)
        outputs = potential.atomic_outputs(graph)
        energy = derivatives.sum_over_structures(outputs.energies, graph)
        energy = energy if potential.traits.energies else torch.zeros_like(energy)
        forces = outputs.forces
        if forces is None:
            forces, _ = derivatives.forces_and_stress(energy, graph, positions, strain, create_graph=True)
        side = "rows" if potential.traits.conservative else "symmetric"
        products = derivatives.hessian_products(forces, positions, _probes(atoms, 1), side, create_graph=True)
        loss = energy.sum() + forces.square().sum() + products.square().sum()
        third = torch.autograd.grad(loss, [positions, *parameters], allow_unused=True, materialize_grads=True)
        for order, numbers in enumerate((energy, forces, products, *third)):
            assert numbers.isfinite().all(), f"a derivative of order {min(order, 3)} of the {name} is not finite"


@law
def check_no_cusp(potential: Potential) -> None:
    """The Hessian of a symmetric structure is the limit of those of structures ever less displaced."""
    for name, atoms in scenes.symmetric_scenes(scenes.species(potential)).items():
        perfect = potential.hessian(_graph(potential, atoms))
        assert perfect.isfinite().all(), f"the Hessian of the {name} is not finite"
        direction = _probes(atoms, 1, seed=5)[0]
        far, near = (
            (potential.hessian(_graph(potential, _displaced(atoms, step * direction))) - perfect).abs().max().item()
            for step in (1e-3, 1e-5)
        )
        size = max(perfect.abs().max().item(), 1.0)
        assert near <= 0.1 * far + 1e-9 * size, f"the Hessian of the {name} is not its own limit: {near:.1e} eV/Å² off"


# --- numbers and parameters -----------------------------------------------------------------------


@law
def check_float32(potential: Potential) -> None:
    """A copy in float32 says the same as far as it can; energies keep the digits of references."""
    single = copy.deepcopy(potential).float()
    for name, atoms in _two_scenes(potential):
        probes = _probes(atoms, 1)
        exact = _ask(potential, atoms, probes=probes)
        rough = _ask(single, atoms, probes=probes.float())
        if potential.traits.energies:
            own = exact.atomic_energies - potential.reference_energies(torch.as_tensor(atoms.numbers))
            allowed = 1e-6 * max(own.abs().sum().item(), 10.0)
            error = (rough.energy - exact.energy).abs().item()
            assert error <= allowed, f"energy of the {name} in float32 is {error:.1e} eV off, {allowed:.1e} allowed"
        _close(rough.forces.double(), exact.forces, f"forces of the {name} in float32", 1e-4)
        _close(
            rough.hessian_products.double(),
            exact.hessian_products,
            f"products of the {name} in float32",
            1e-3,
        )
        if atoms.pbc.all():
            _close(rough.stress.double(), exact.stress, f"stress of the {name} in float32", 1e-4)


@law
def check_parameter_gradient(potential: Potential) -> None:
    """The gradient, by each parameter, of a loss over all that is predicted, against differences of it."""
    model = copy.deepcopy(potential)
    elements = scenes.species(potential)
    graph = _graph(model, [scenes.crystal(elements), scenes.molecule(elements)])
    probes = _draw(2, graph.num_atoms, 3, seed=6)
    value = functools.partial(_loss, model, graph, probes)
    parameters = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    gradients = torch.autograd.grad(
        value(create_graph=True), list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    largest = max(gradient.abs().max().item() for gradient in gradients)
    for seed, (name, parameter) in enumerate(parameters.items()):
        direction = _draw(*parameter.shape, seed=seed)
        slope = _stencil(functools.partial(_loss_shifted, value, parameter, direction))
        got = (gradients[seed] * direction).sum()
        assert abs(got - slope) <= STENCIL * max(largest, 1.0), (
            f"the loss changes with {name} by {slope:.6e}, its gradient says {got:.6e}"
        )


# --- how laws ask and compare ---------------------------------------------------------------------


def _two_scenes(potential: Potential) -> Iterator[tuple[str, Atoms]]:
    elements = scenes.species(potential)
    yield "crystal", scenes.crystal(elements)
    yield "molecule", scenes.molecule(elements)


def _graph(potential: Potential, structures: Atoms | list[Atoms]) -> Graph:
    return build_graph(structures, potential.cutoff, dtype=potential.dtype, device=potential.device)


def _ask(potential: Potential, structures: Atoms | list[Atoms], probes: Tensor | None = None) -> Prediction:
    """Energy, forces, stress and products, of the shapes and types that a Prediction promises."""
    graph = _graph(potential, structures)
    asked = potential.predict(graph, stress=True, probes=probes)
    atoms, many = graph.num_atoms, graph.num_structures
    wanted = {"energy": (many,), "forces": (atoms, 3), "stress": (many, 3, 3)}
    if potential.traits.energies:
        wanted["atomic_energies"] = (atoms,)
    if probes is not None:
        wanted["hessian_products"] = (len(probes), atoms, 3)
    for name, shape in wanted.items():
        got = tuple(getattr(asked, name).shape)
        assert got == shape, f"{name} of {many} structures and {atoms} atoms has the shape {got}, expected {shape}"
        may_be_nan = name == "stress" or (name == "energy" and not potential.traits.energies)
        assert may_be_nan or getattr(asked, name).isfinite().all(), (
            f"{name} of {atoms} atoms in {many} structures is not finite"
        )
    assert asked.energy.dtype == torch.float64, f"the energy is {asked.energy.dtype}, expected float64"
    return asked


def _features(potential: Potential, structures: Atoms | list[Atoms]) -> Tensor:
    return potential.predict(_graph(potential, structures), features=True).features


def _same(got: Prediction, expected: Prediction, what: str) -> None:
    """All that was expected, within rounding; NaN where NaN is expected."""
    for name, tensor in vars(expected).items():
        if tensor is not None:
            _close(getattr(got, name), tensor, f"{name}, {what}")


def _close(got: Tensor, expected: Tensor, what: str, tolerance: float = EXACT) -> None:
    got, expected = got.double(), expected.double()
    assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    assert torch.equal(got.isnan(), expected.isnan()), f"{what}: NaN where the other is a number"
    error = (got - expected).nan_to_num().abs().max().item()
    size = max(expected.nan_to_num().abs().max().item(), 1.0)
    assert error <= tolerance * size, f"{what}: off by {error:.2e}, where the largest number is {size:.2e}"


def _check_turned(potential: Potential, matrix: Tensor, what: str) -> None:
    for name, atoms in _two_scenes(potential):
        turned = atoms.copy()
        turned.set_cell(np.asarray(atoms.cell) @ matrix.numpy(), scale_atoms=False)
        turned.positions = atoms.positions @ matrix.numpy()
        probes = _probes(atoms, 1)
        before = _ask(potential, atoms, probes=probes)
        expected = Prediction(
            before.energy,
            before.atomic_energies,
            before.forces @ matrix,
            matrix.T @ before.stress @ matrix,
            before.hessian_products @ matrix,
        )
        _same(_ask(potential, turned, probes=probes @ matrix), expected, f"{what} {name}")


def _orthogonal(determinant: int) -> Tensor:
    """A turn about no particular axis, with a mirror if the determinant is −1."""
    matrix = torch.linalg.qr(_draw(3, 3, seed=8))[0]
    matrix[0] *= determinant * torch.linalg.det(matrix).sign()
    return matrix


def _across_cutoff(
    potential: Potential, elements: tuple[int, ...], scene: str, gap: float
) -> tuple[list[float], list[float]]:
    """How much energy, forces and Hessian differ on both sides of the cutoff, and their sizes."""
    sides = []
    for offset in (-gap, gap):
        if scene == "pair":
            atoms = scenes.dimer(elements, potential.cutoff + offset)
        else:
            atoms = scenes.crossing(elements, potential.cutoff, offset)
        asked = _ask(potential, atoms)
        energy = asked.energy if potential.traits.energies else torch.zeros_like(asked.energy)
        sides.append((energy, asked.forces, potential.hessian(_graph(potential, atoms))))
    jumps = [(inside - outside).abs().max().item() for inside, outside in zip(*sides, strict=True)]
    return jumps, [numbers.abs().max().item() for numbers in sides[0]]


def _loss(model: Potential, graph: Graph, probes: Tensor, *, create_graph: bool = False) -> Tensor:
    """A number that depends on all that is predicted."""
    traits = model.traits
    got = model.predict(
        graph,
        stress=True,
        probes=probes,
        side="rows" if traits.conservative else "symmetric",
        features=traits.features > 0,
        gradient=traits.energies and not traits.conservative,
        create_graph=create_graph,
    )
    solid = graph.periodic.all(dim=1)
    stress = 30 * got.stress[solid] if traits.stress else None
    energy = got.energy if traits.energies else None
    parts = (energy, got.forces, stress, got.hessian_products, got.features, got.energy_gradient)
    terms = [(part * _draw(*part.shape, seed=seed)).sum() for seed, part in enumerate(parts) if part is not None]
    return torch.stack(terms).sum()


def _loss_shifted(value: Callable[..., Tensor], parameter: Tensor, direction: Tensor, step: float) -> Tensor:
    before = parameter.data.clone()
    parameter.data += step * direction
    moved = value()
    parameter.data.copy_(before)
    return moved


def _slope(potential: Potential, atoms: Atoms, direction: Tensor, name: str) -> Tensor:
    """How a prediction changes as the atoms move along a direction."""
    return _stencil(lambda step: getattr(_ask(potential, _displaced(atoms, step * direction)), name))


def _energy_strained(potential: Potential, atoms: Atoms, strain: np.ndarray, step: float) -> Tensor:
    moved = atoms.copy()
    moved.set_cell(np.asarray(atoms.cell) @ (np.eye(3) + step * strain), scale_atoms=True)
    return _ask(potential, moved).energy


def _stencil(value: Callable[[float], Tensor], step: float = 1e-3) -> Tensor:
    """The derivative at zero, by the central difference of four points."""
    near = value(step) - value(-step)
    far = value(2 * step) - value(-2 * step)
    return (8 * near - far) / (12 * step)


def _displaced(atoms: Atoms, shift: Tensor) -> Atoms:
    moved = atoms.copy()
    moved.positions += shift.numpy()
    return moved


def _probes(atoms: Atoms, count: int, seed: int = 0) -> Tensor:
    """(count, atoms, 3)"""
    return _draw(count, len(atoms), 3, seed=seed)


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
