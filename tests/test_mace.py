"""MACE: agreement with its own calculator, files that are opened without running what they hold, refusals."""

import importlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mace_models
import numpy as np
import pytest
import structures as scenes
import torch
from ase import Atoms
from ase.build import bulk
from contracts import CONTRACT, check_law
from mace_models import KINDS, random_model, save
from small_teachers import KINDS as SMALL
from small_teachers import small_weights
from teacher_contract import TeacherContract

from zoo.errors import CapabilityError, DomainError, IntegrityError, MissingPackageError, ZooWarning
from zoo.files import sha256_file
from zoo.licences import LICENCES
from zoo.naming import parse_name
from zoo.neighbors import build_graph
from zoo.potential import Prediction, Traits
from zoo.teachers import FAMILIES, Teacher, families, load_here, mace, mace_file
from zoo.teachers.dtypes import default_dtype
from zoo.teachers.mace import MACE
from zoo.teachers.weights import OwnTeacher, Weights

needs_mace = pytest.mark.mace
_e3nn = [  # e3nn and mace compile functions so, and what they import warns
    pytest.mark.filterwarnings("ignore:`torch.jit"),
    pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning"),
    pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD:UserWarning"),
]
pytestmark = _e3nn

FACTS = OwnTeacher(
    name="own/tiny-teacher",
    family="mace",
    file="tiny.model",
    sha256="0" * 64,
    elements=("H", "O", "Si"),
    licence="MIT",
    level_of_theory="none, random weights",
    citation="nobody",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mace")


def _file(files: Path, kind: str, dtype: torch.dtype = torch.float64) -> Path:
    """The file of a model of a kind, made once."""
    path = files / f"{kind}-{str(dtype)[-2:]}.model"
    return path if path.exists() else save(random_model(kind, dtype=dtype), path)


def _ours(path: Path, dtype: torch.dtype = torch.float64, head: str | None = None) -> Teacher:
    head = head or ("default" if path.name.startswith("heads-") else None)  # which MACE takes unasked
    return mace.load_file(path, FACTS.name, FACTS.model_copy(update={"head": head}), dtype, "cpu")


def _theirs(path: Path, dtype: torch.dtype = torch.float64, **more: Any) -> Any:
    with mace_file.unprotected(), default_dtype(dtype):  # which the calculator sets, and leaves so
        from mace.calculators import MACECalculator

        return MACECalculator(str(path), device="cpu", default_dtype=str(dtype).removeprefix("torch."), **more)


@pytest.fixture(autouse=True)
def usual_dtype() -> Iterator[None]:
    """Their calculator sets the type of torch's new numbers."""
    yield
    torch.set_default_dtype(torch.float32)


def _oxide() -> Atoms:
    atoms = bulk("SiO", "zincblende", a=4.6)
    atoms.rattle(0.1, seed=1)
    return atoms


def _structures() -> list[Atoms]:
    return [
        scenes.molecule((14, 8)),
        _oxide(),
        scenes.crystal((14, 8)),
        scenes.molecule((1, 8, 14)),
        _oxide().repeat(2),
    ]


def _asked(teacher: Teacher, structures: Atoms | list[Atoms], **wanted: Any) -> Prediction:
    potential = teacher.potential
    return potential.predict(build_graph(structures, potential.cutoff, dtype=potential.dtype), **wanted)


# --- agreement -------------------------------------------------------------------------------------


@needs_mace
@pytest.mark.parametrize("kind", KINDS)
def test_it_agrees_with_the_calculator_of_mace_in_float64(files: Path, kind: str) -> None:
    teacher, calculator = _ours(_file(files, kind)), _theirs(_file(files, kind))
    for atoms in _structures():
        got = _asked(teacher, atoms, stress=all(atoms.pbc))
        theirs = atoms.copy()
        theirs.calc = calculator
        assert got.energy.item() == pytest.approx(theirs.get_potential_energy(), rel=1e-12, abs=1e-10)
        np.testing.assert_allclose(got.forces, theirs.get_forces(), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(got.atomic_energies, theirs.get_potential_energies(), rtol=1e-12, atol=1e-10)
        if all(atoms.pbc):
            np.testing.assert_allclose(got.stress[0], theirs.get_stress(voigt=False), rtol=1e-10, atol=1e-11)


@needs_mace
@pytest.mark.parametrize("kind", ["vectors", "density", "heads"])
@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
def test_it_agrees_with_the_calculator_of_mace_in_float32(files: Path, kind: str, stored: torch.dtype) -> None:
    path = _file(files, kind, stored)
    teacher, calculator = _ours(path, torch.float32), _theirs(path, torch.float32)
    for atoms in _structures():
        got = _asked(teacher, atoms, stress=all(atoms.pbc))
        theirs = atoms.copy()
        theirs.calc = calculator
        assert got.energy.item() == pytest.approx(theirs.get_potential_energy(), rel=3e-7, abs=1e-5)
        np.testing.assert_allclose(got.forces, theirs.get_forces(), rtol=3e-5, atol=3e-5)
        if all(atoms.pbc):
            np.testing.assert_allclose(got.stress[0], theirs.get_stress(voigt=False), rtol=3e-5, atol=3e-6)


@needs_mace
@pytest.mark.parametrize("kind", ["vectors", "density", "heads"])
def test_weights_stored_in_float32_are_the_same_numbers_in_float64(files: Path, kind: str) -> None:
    """Constants that e3nn makes are rounded too when a file was made in float32; so are they here."""
    path = _file(files, kind, torch.float32)
    atoms = _oxide()
    got = _asked(_ours(path), atoms)
    atoms.calc = _theirs(path)
    np.testing.assert_allclose(got.forces, atoms.get_forces(), rtol=1e-10, atol=1e-10)


@needs_mace
@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
def test_constants_that_e3nn_makes_are_those_of_the_file(files: Path, stored: torch.dtype) -> None:
    """Where couplings are rounded, they are rounded to the type that the file was made in."""
    path = _file(files, "tensors", stored)
    made, theirs = mace_file.open_model(path, ""), torch.load(path, weights_only=False)
    couplings = {name: tensor for name, tensor in theirs.named_buffers() if "_w3j_" in name}
    assert len(couplings) == 9
    for name, tensor in couplings.items():
        torch.testing.assert_close(dict(made.named_buffers())[name], tensor, rtol=0, atol=0)


@needs_mace
def test_energies_of_lone_atoms_lose_no_digits_in_float32(files: Path) -> None:
    path = _file(files, "vectors")
    atoms = _oxide().repeat(2)
    exact, rounded = (_asked(_ours(path, dtype), atoms).energy.item() for dtype in (torch.float64, torch.float32))
    assert abs(exact) > 7e4
    assert rounded == pytest.approx(exact, abs=2e-5)


@needs_mace
@pytest.mark.parametrize("kind", ["vectors", "repulsion", "heads"])
def test_a_batch_is_its_parts(files: Path, kind: str) -> None:
    teacher = _ours(_file(files, kind))
    many = _structures()
    together = _asked(teacher, many, stress=True, features=True).split([len(atoms) for atoms in many])
    for atoms, part in zip(many, together, strict=True):
        alone = _asked(teacher, atoms, stress=True, features=True)
        for name in ("energy", "forces", "stress", "features", "atomic_energies"):
            torch.testing.assert_close(
                getattr(part, name), getattr(alone, name), rtol=1e-10, atol=1e-10, equal_nan=True, msg=name
            )


@needs_mace
@pytest.mark.parametrize("kind", ["vectors", "density", "heads", "three", "gaussian"])
def test_rows_of_the_hessian_are_those_of_mace(files: Path, kind: str) -> None:
    teacher, calculator = _ours(_file(files, kind)), _theirs(_file(files, kind))
    for atoms in (scenes.molecule((14, 8, 1)), _oxide()):
        graph = build_graph(atoms, teacher.potential.cutoff)
        theirs = calculator.get_hessian(atoms).reshape(3 * len(atoms), 3 * len(atoms))
        np.testing.assert_allclose(teacher.potential.hessian(graph), theirs, rtol=1e-10, atol=1e-9)


@needs_mace
@pytest.mark.parametrize("kind", KINDS)
def test_hessian_products_are_differences_of_forces(files: Path, kind: str) -> None:
    teacher, atoms = _ours(_file(files, kind)), _oxide().repeat((2, 1, 1))
    probe = torch.randn(len(atoms), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-4
    forces = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions += sign * step * probe.numpy()
        forces.append(_asked(teacher, moved).forces)
    expected = -(forces[0] - forces[1]) / (2 * step)
    got = _asked(teacher, atoms, probes=probe[None]).hessian_products[0]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@needs_mace
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_descriptors_of_the_last_interaction(files: Path, kind: str) -> None:
    teacher, calculator = _ours(_file(files, kind)), _theirs(_file(files, kind))
    atoms = _oxide()
    got = _asked(teacher, atoms, features=True).features
    theirs = calculator.get_descriptors(atoms, invariants_only=True)
    assert got.shape == (len(atoms), teacher.potential.traits.features)
    np.testing.assert_allclose(got, theirs[:, -got.shape[1] :], rtol=1e-10, atol=1e-12)


@needs_mace
def test_asking_leaves_the_graph_as_it_was(files: Path) -> None:
    """MACE marks the positions that it is given as wanting a gradient."""
    potential = _ours(_file(files, "scalars")).potential
    graph = build_graph(_oxide(), potential.cutoff)
    potential.atomic_energies(graph)
    assert not graph.positions.requires_grad


@needs_mace
def test_rows_of_the_element_embedding_are_what_the_first_layer_gives(files: Path) -> None:
    potential = _ours(_file(files, "vectors")).potential
    seen: list[torch.Tensor] = []
    potential.model.node_embedding.register_forward_hook(lambda module, given, found: seen.append(found.detach()))
    potential.predict(build_graph(_oxide(), potential.cutoff), forces=False)
    table = potential.element_embeddings()
    assert table.shape == (3, 5)
    torch.testing.assert_close(table[[potential.elements.index(number) for number in _oxide().numbers]], seen[0])
    assert torch.pdist(table).min() > 0, "elements are told apart"


@needs_mace
@pytest.mark.parametrize("kind", ["vectors", "density", "heads", "one"])
@pytest.mark.parametrize("law", CONTRACT)
def test_it_keeps_the_law(files: Path, kind: str, law: str, potentials: dict[str, MACE]) -> None:
    if kind not in potentials:
        potentials[kind] = _ours(_file(files, kind)).potential
    check_law(potentials[kind], law)


@pytest.fixture(scope="module")
def potentials() -> dict[str, MACE]:
    """Those that were opened already."""
    return {}


# --- heads -----------------------------------------------------------------------------------------


@needs_mace
def test_a_head_can_be_chosen(files: Path) -> None:
    path, atoms = _file(files, "heads"), _oxide()
    energies = {head: _asked(_ours(path, head=head), atoms).energy.item() for head in ("omat_pbe", "default")}
    for head in ("omat_pbe", "default"):
        theirs = atoms.copy()
        theirs.calc = _theirs(path, head=head)
        assert energies[head] == pytest.approx(theirs.get_potential_energy(), rel=1e-12)
    assert abs(energies["omat_pbe"] - energies["default"]) > 1


@needs_mace
@pytest.mark.parametrize("second", ["omol", "default"])
def test_of_several_heads_none_is_taken_unasked(tmp_path: Path, second: str) -> None:
    path = save(random_model("heads", heads=["omat_pbe", second]), tmp_path / "two.model")
    told = f"heads omat_pbe, {second}, and none was chosen; choose one: zoo teachers add {FACTS.name} FILE ... --head"
    with pytest.raises(CapabilityError, match=re.escape(told)):
        _ours(path)
    with pytest.raises(CapabilityError, match="'pbe' is none of them"):
        _ours(path, head="pbe")
    assert np.isfinite(_asked(_ours(path, head=second), _oxide()).energy.item())


@needs_mace
def test_a_head_of_fewer_elements_than_its_file_says_so() -> None:
    with small_weights("mace-mh-1/omol-teacher"):
        of_molecules = load_here("mace-mh-1/omol-teacher", dtype=torch.float64).potential
    with small_weights("mace-mh-1/omat-pbe-teacher"):
        of_all = load_here("mace-mh-1/omat-pbe-teacher", dtype=torch.float64).potential
    assert (of_molecules.elements, of_all.elements) == (tuple(range(1, 84)), (*range(1, 84), *range(89, 95)))
    torch.testing.assert_close(of_molecules.element_embeddings(), of_all.element_embeddings()[:83], rtol=0, atol=0)
    actinium = build_graph(Atoms(["Ac", "O"], positions=[[0, 0, 0], [0, 0, 2.0]]), of_all.cutoff)
    assert of_all.predict(actinium).energy.isfinite().all()
    with pytest.raises(DomainError, match="not trained on Ac;"):
        of_molecules.predict(actinium)


# --- what opening leaves as it was -----------------------------------------------------------------


@needs_mace
def test_protection_against_pickles_is_still_on_after_a_load(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(mace_file.SWITCH, raising=False)
    for module in [name for name in sys.modules if name.split(".")[0] == "mace"]:
        monkeypatch.delitem(sys.modules, module)  # that setting is made when mace is imported
    path = _file(files, "vectors")
    trusted = set(torch.serialization.get_safe_globals())
    _ours(path)
    assert mace_file.SWITCH not in os.environ
    assert set(torch.serialization.get_safe_globals()) >= trusted
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(path)


@needs_mace
def test_a_user_who_ended_the_protection_himself_keeps_it_so(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mace_file.SWITCH, "yes")
    _ours(_file(files, "scalars"))
    assert os.environ[mace_file.SWITCH] == "yes"


@needs_mace
def test_opening_draws_no_random_number_and_leaves_settings_as_they_were(files: Path) -> None:
    import e3nn

    path = _file(files, "scalars", torch.float32)
    torch.set_default_dtype(torch.float64)
    before = torch.get_rng_state(), e3nn.get_optimization_defaults()
    _ours(path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert e3nn.get_optimization_defaults() == before[1]
    assert torch.get_default_dtype() == torch.float64


# --- hostile and broken files ----------------------------------------------------------------------


class _Runs:
    """A pickle of it calls a function when it is opened as usual."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def _hostile(path: Path, call: _Runs) -> Path:
    model = random_model("scalars")
    model.extra = call
    return save(model, path)


@needs_mace
def test_a_file_that_names_what_no_model_does_is_refused_unopened(tmp_path: Path) -> None:
    sign = tmp_path / "harm"
    path = _hostile(tmp_path / "hostile.model", _Runs(os.mkdir, str(sign)))
    with pytest.raises(IntegrityError, match=r"wants to call posix.mkdir, .* nothing of it was opened") as caught:
        _ours(path)
    assert "\n" not in str(caught.value)
    assert not sign.exists()


@needs_mace
def test_source_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    """That of a graph module, which models of MACE have: an ordinary load gives it to ``exec``."""
    sign = tmp_path / "harm"
    code = f"import os; os.makedirs({str(sign)!r}, exist_ok=True)\n"
    call = _Runs(torch.fx.graph_module.reduce_graph_module, {"_code": "def forward(self): pass"}, code)
    path = _hostile(tmp_path / "hostile.model", call)
    _ours(path)
    assert not sign.exists()
    with pytest.raises(AttributeError, match="_modules"):  # the source is no graph, as is seen after it was run
        torch.load(path, weights_only=False)
    assert sign.exists(), "the file is harmless as it is, and this test shows nothing"


@needs_mace
def test_what_the_user_trusts_elsewhere_is_not_made_here(tmp_path: Path) -> None:
    sign = tmp_path / "harm"
    path = _hostile(tmp_path / "hostile.model", _Runs(shutil.copy, __file__, str(sign)))
    with torch.serialization.safe_globals([shutil.copy]), pytest.raises(IntegrityError, match=r"shutil.copy"):
        _ours(path)
    assert not sign.exists()


@needs_mace
@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_one_sentence(files: Path, tmp_path: Path, kept: float) -> None:
    whole = _file(files, "vectors").read_bytes()
    path = tmp_path / "cut.model"
    path.write_bytes(whole[: int(kept if kept >= 1 else kept * len(whole))])
    told = r"(is cut short|no checkpoint of PyTorch).*zoo teachers add own/tiny-teacher FILE"
    with pytest.raises(IntegrityError, match=told) as caught:
        _ours(path)
    assert "\n" not in str(caught.value)


@needs_mace
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.ones(3)}, "holds no model of MACE"),
        (torch.nn.Linear(2, 2), "holds no model of MACE"),
        ([1, 2], "holds no model of MACE"),
    ],
)
def test_other_files_of_torch_are_no_models(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(IntegrityError, match=message):
        _ours(path)


@needs_mace
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = random_model("scalars")
    model.interactions[1].linear.weight.data[3] = torch.nan
    with pytest.raises(IntegrityError, match=r"interactions.1.linear.weight that is not finite"):
        _ours(save(model, tmp_path / "nan.model"))


@needs_mace
def test_a_tensor_too_many_or_too_few_is_refused(tmp_path: Path) -> None:
    model = random_model("scalars")
    model.register_buffer("unknown", torch.ones(2))
    with pytest.raises(IntegrityError, match="has a tensor unknown"):
        _ours(save(model, tmp_path / "more.model"))
    model = random_model("scalars")
    del model.radial_embedding.bessel_fn.prefactor
    with pytest.raises(IntegrityError, match=r"lacks the tensor radial_embedding.bessel_fn.prefactor"):
        _ours(save(model, tmp_path / "fewer.model"))


@needs_mace
def test_what_cannot_be_built_anew_alike_is_refused(tmp_path: Path) -> None:
    model = random_model("vectors")
    model.products[1].use_sc = False
    with pytest.raises(CapabilityError, match=r"products.1.use_sc = False.*builds True.*zoo.teacher_from"):
        _ours(save(model, tmp_path / "other.model"))


@needs_mace
def test_models_of_other_classes_are_refused_with_a_way_out(tmp_path: Path) -> None:
    model = random_model("vectors")
    model.__class__ = mace_file.import_mace().EnergyDipolesMACE
    with pytest.raises(
        CapabilityError, match=r"holds a EnergyDipolesMACE, expected ScaleShiftMACE or MACE; .*teacher_from"
    ):
        _ours(save(model, tmp_path / "dipoles.model"))


@needs_mace
def test_models_that_want_charges_are_refused(tmp_path: Path) -> None:
    spec = {"type": "categorical", "per": "graph", "in_dim": 1, "emb_dim": 4, "num_classes": 9, "offset": 4}
    model = random_model("vectors", embedding_specs={"total_charge": spec})
    with pytest.raises(CapabilityError, match="wants charges and spins"):
        _ours(save(model, tmp_path / "charges.model"))


@needs_mace
def test_a_constant_of_the_file_is_taken_rather_than_made_anew(tmp_path: Path) -> None:
    """The norm of an activation is estimated with random numbers, which another version of torch may draw otherwise."""
    model = random_model("vectors")
    activation = model.readouts[-1].non_linearity.acts[0]
    activation.cst *= 1 + 3e-6
    path = save(model, tmp_path / "drawn.model")
    teacher, atoms = _ours(path), _oxide()
    got = _asked(teacher, atoms).forces
    atoms.calc = _theirs(path)
    np.testing.assert_allclose(got, atoms.get_forces(), rtol=1e-10, atol=1e-10)


@needs_mace
@pytest.mark.parametrize("kind", ["vectors", "repulsion"])
def test_files_of_older_versions_are_read(tmp_path: Path, kind: str) -> None:
    """Without names of heads, options and masks of zeros, with a degree of the cutoff in floating point."""
    model = random_model(kind)
    for name in ("heads", "use_reduced_cg", "use_so3", "apply_cutoff", "edge_irreps", "use_last_readout_only"):
        vars(model).pop(name, None)
    for module in [one for one in model.modules() if not isinstance(one, torch.jit.ScriptModule)]:
        for name in [name for name in module._buffers if name.endswith("_zeroed")]:
            del module._buffers[name]
        if "p" in module._buffers and "r_max" in module._buffers:
            module._buffers["p"] = module._buffers["p"].double()
    if kind == "repulsion":
        model.pair_repulsion_fn.cutoff = model.radial_embedding.cutoff_fn
        model.pair_repulsion_fn.register_buffer("r_max", model.r_max.clone())
    path = save(model, tmp_path / "old.model")
    teacher, atoms = _ours(path), _oxide()
    got = _asked(teacher, atoms)
    atoms.calc = _theirs(path)
    np.testing.assert_allclose(got.forces, atoms.get_forces(), rtol=1e-10, atol=1e-10)
    assert got.energy.item() == pytest.approx(atoms.get_potential_energy(), rel=1e-12)


# --- names -----------------------------------------------------------------------------------------


@pytest.fixture
def published(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the cache, as if it had been published and fetched."""
    source = _file(files, "heads")
    address = Weights("https://example.org/tiny.model", f"sha256:{sha256_file(source)}", source.stat().st_size)
    known = replace(mace._MODELS["mace-mh-1/omat-pbe-teacher"], weights=address, channels=6)
    monkeypatch.setitem(mace._MODELS, "mace-tiny/teacher", known)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    path = tmp_path / "teachers" / "mace-tiny" / "teacher" / "tiny.model"
    path.parent.mkdir(parents=True)
    return shutil.copy(source, path)


@needs_mace
def test_a_published_teacher_says_what_it_is(published: Path) -> None:
    teacher = mace.load("mace-tiny/teacher", torch.float64, "cpu")
    assert teacher.weights_sha256 == sha256_file(published)
    assert teacher.package.startswith("mace-torch 0.")
    assert (teacher.licence_code, teacher.licence_weights) == ("MIT", "LicenseRef-ASL")
    assert teacher.potential.traits == mace.traits("mace-tiny/teacher") == Traits(smoothness=2, features=6)
    assert (teacher.potential.elements, teacher.potential.cutoff) == (mace_models.NUMBERS, 4.0)
    assert (teacher.potential.dtype, teacher.potential.training) == (torch.float64, False)
    assert not any(parameter.requires_grad for parameter in teacher.potential.parameters())


@needs_mace
def test_a_file_of_a_known_digest_that_gives_something_else_than_was_stated_counts_with_a_warning(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(families._BY_NAME, "mace-tiny/teacher", FAMILIES["mace"])
    assert load_here("mace-tiny/teacher").potential.traits.features == 6
    stated = replace(mace._MODELS["mace-tiny/teacher"], channels=128)
    monkeypatch.setitem(mace._MODELS, "mace-tiny/teacher", stated)
    with pytest.warns(ZooWarning, match=r"features 6, expected 128.*; their digest is right"):
        teacher = load_here("mace-tiny/teacher")
    assert teacher.potential.traits.features == 6


@needs_mace
@pytest.mark.parametrize("name", SMALL["mace"])
def test_small_models_say_much_more_than_what_is_tolerated(name: str) -> None:
    """Else a comparison with them would show nothing: bounds are at least 1e-4 eV/Å and 1e-5 eV/Å³ in float32."""
    with small_weights(name):
        teacher = load_here(name, dtype=torch.float64)
        theirs = mace.calculator(name, torch.float64)
    crystal = bulk("CO", "zincblende", a=3.9)
    crystal.rattle(0.1, seed=1)
    found = _asked(teacher, [scenes.molecule((6, 8, 1)), crystal], stress=True)
    assert all(forces.abs().max() > 0.05 for forces in found.forces.split([4, 2]))
    assert found.stress[1].abs().max() > 0.01
    assert not any(isinstance(layer, torch.jit.ScriptModule) for layer in teacher.potential.model.modules())
    assert any(isinstance(layer, torch.jit.ScriptModule) for layer in theirs.models[0].modules()), "another opening"


class _Contract(TeacherContract):
    structures = staticmethod(lambda: [_oxide(), scenes.molecule((1, 8, 14)), scenes.molecule((14, 8))])

    @pytest.fixture(autouse=True)
    def weights(self) -> Iterator[None]:
        with small_weights(self.name):
            yield


@needs_mace
class TestOneHeadOfSeveral(_Contract):
    name = "mace-mh-1/omat-pbe-teacher"


@needs_mace
class TestOfMolecules(_Contract):
    name = "mace-off23-small/teacher"
    structures = staticmethod(lambda: [scenes.molecule((6, 8, 1)), scenes.molecule((1, 8))])


@needs_mace
def test_altered_weights_are_refused_unopened(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *given, **asked: pytest.fail("opened before its digest was checked"))
    published.write_bytes(published.read_bytes()[:-1] + b"!")
    with pytest.raises(IntegrityError, match=r"not opened.*zoo teachers fetch mace-tiny/teacher"):
        mace.load("mace-tiny/teacher", torch.float64, "cpu")


@needs_mace
def test_an_element_that_it_lacks_is_named(files: Path) -> None:
    teacher = _ours(_file(files, "vectors"))
    for symbol in ("Fe", "He", "Og"):
        with pytest.raises(DomainError, match=rf"not trained on {symbol};"):
            _asked(teacher, Atoms(["O", symbol], positions=[[0, 0, 0], [0, 0, 1.5]]))


def test_names_addresses_and_licences_are_lawful() -> None:
    for name in mace.names():
        parse_name(name)
        known = mace.weights(name)
        assert known is not None
        assert known.url.startswith("https://github.com/ACEsuit/")
        assert known.digest is not None
        assert known.file.endswith(".model")
        assert mace._MODELS[name].source[1] in LICENCES
        assert mace.traits(name).features > 0
    addresses = {mace._MODELS[name].weights.digest for name in mace.names()}
    assert len(addresses) == len(mace.names()) - 2, "only the heads of one file share it"


def test_missing_package_is_named_with_both_ways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] in ("mace", "e3nn")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "e3nn", None)
    monkeypatch.setitem(sys.modules, "mace", None)
    adapter = importlib.reload(importlib.import_module("zoo.teachers.mace"))
    with pytest.raises(MissingPackageError, match=r"pip install mace-torch, or.*zoo teachers install mace") as caught:
        adapter.load_file(tmp_path / "any.model", FACTS.name, FACTS, torch.float32, "cpu")
    assert "\n" not in str(caught.value)
