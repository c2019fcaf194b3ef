"""Teachers: agreement with what they adapt, with the literature, and refusals."""

import builtins
import functools
import hashlib
import importlib
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
from ase.build import bulk
from ase.data import atomic_numbers
from ase.units import GPa
from contracts import check_law
from sevennet_checkpoints import config_of, kinds, modal, write_checkpoint
from teacher_contract import TeacherContract

from recipes import tiny_recipe
from zoo.distill.label import label_plan, label_structures
from zoo.errors import ConfigError, IntegrityError, LabelError, MissingPackageError, UnknownNameError
from zoo.fetch_weights import add_teacher, remove_teacher
from zoo.hub.catalogue import entries
from zoo.neighbors import build_graph
from zoo.ops import deterministic
from zoo.potential import Potential, Traits
from zoo.run import Run
from zoo.teachers import Teacher, load_teacher, own_teacher, stated_traits
from zoo.teachers.sevennet import calculator, names, weights
from zoo.teachers.weights import find_own, record_path, weights_folder, weights_path

SEVENNETS = ("sevennet-0/teacher", "sevennet-l3i5/teacher")
SHIPPED = tuple(name for name in names() if weights(name) is None)
OMPA = "sevennet-mf-ompa/mpa-teacher"

# e3nn compiles its code with torch.jit
_jit = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sevennet-0/techer", "did you mean sevennet-0/teacher"),
        ("stillinger-webber/teacher", "did you mean stillinger-weber/teacher"),
        ("gpt/teacher", "zoo teachers lists them"),
        ("", "zoo teachers lists them"),
        ("../sevennet", "zoo teachers lists them"),
    ],
)
def test_unknown_teacher_is_told_what_may_have_been_meant(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message) as caught:
        load_teacher(name)
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
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", SHIPPED)
def test_sevennet_agrees_with_its_own_calculator(name: str, dtype: torch.dtype) -> None:
    potential, own = load_teacher(name, dtype=dtype).potential, calculator(name, dtype)
    near = 1e-9 if dtype == torch.float64 else 1e-5
    for atoms in (_rattled(), _oxide(), scenes.molecule((8, 14))):
        theirs = atoms.copy()
        theirs.calc = own
        ours = potential.predict(build_graph(atoms, potential.cutoff, dtype=dtype), stress=True)
        assert ours.energy.item() == pytest.approx(theirs.get_potential_energy(), abs=near * len(atoms))
        np.testing.assert_allclose(ours.forces, theirs.get_forces(), atol=10 * near)
        if atoms.pbc.all():
            np.testing.assert_allclose(ours.stress[0], theirs.get_stress(voigt=False), atol=near)


@pytest.mark.sevennet
@_jit
def test_calculator_for_comparisons_is_the_one_of_the_package() -> None:
    from sevenn.calculator import SevenNetCalculator

    theirs, ours = _oxide(), _oxide()
    with pytest.warns(UserWarning, match="No tensor product accelerator"):
        theirs.calc = SevenNetCalculator("7net-mf-0", device="cpu", modal="R2SCAN")
    ours.calc = calculator("sevennet-mf-0/r2scan-teacher", torch.float32)
    assert ours.get_potential_energy() == theirs.get_potential_energy()
    ours.calc = calculator("sevennet-mf-0/pbe-teacher", torch.float32)
    assert abs(ours.get_potential_energy() - theirs.get_potential_energy()) > 1


@pytest.mark.sevennet
@_jit
def test_polynomial_cutoff_has_one_more_continuous_derivative() -> None:
    potential = load_teacher("sevennet-l3i5/teacher", dtype=torch.float64).potential
    assert potential.traits.smoothness == 2
    check_law(potential, "smooth_cutoff")


@pytest.mark.parametrize("name", names())
def test_what_is_stated_of_a_sevennet_holds_together(name: str) -> None:
    entry, file = entries()[name], weights(name)
    assert stated_traits(name).features == 128
    assert (file is None) == (name in SHIPPED)
    assert file is None or file.url.startswith("https://github.com/MDIL-SNU/SevenNet/releases/download/v0.1")
    assert entry.parameters is not None or file is not None, "those that the package carries are counted"


@pytest.mark.sevennet
@_jit
def test_addresses_are_those_that_the_package_names() -> None:
    from sevenn._const import CHECKPOINT_DOWNLOAD_LINKS

    assert {file.url for name in names() if (file := weights(name))} == set(CHECKPOINT_DOWNLOAD_LINKS.values())


@pytest.mark.sevennet
@_jit
@pytest.mark.parametrize(("name", "symbols"), [("sevennet-mf-0/pbe-teacher", 89), ("sevennet-mf-0/r2scan-teacher", 88)])
def test_modality_knows_the_elements_of_its_own_data(name: str, symbols: int) -> None:
    potential = load_teacher(name).potential
    assert len(potential.elements) == symbols
    assert (atomic_numbers["Yb"] in potential.elements) == (symbols == 89)


@functools.cache
def _ompa(file: bytes, dtype: str) -> Teacher:
    """The teacher in a file; once for all tests, of which each has a cache of its own."""
    return load_teacher(OMPA, dtype=getattr(torch, dtype))


@pytest.fixture(scope="module")
def small_ompa(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small model with two modalities and mirror symmetry, of the elements of MPtrj among all that there are."""
    shifts = [0.0] * 119
    for symbol in entries()[OMPA].elements:
        shifts[atomic_numbers[symbol]] = -0.1 * atomic_numbers[symbol]
    twice = modal({"mpa": shifts, "omat24": [2 * shift for shift in shifts]}, use_modal_node_embedding=True)
    shape = {"channel": 128, "irreps_manual": ["128x0e", "128x0e+4x1o", "128x0e"]}
    config = config_of({number: number for number in range(119)}, **twice, **shape)
    return write_checkpoint(tmp_path_factory.mktemp("ompa") / "file", config).read_bytes()


@pytest.mark.sevennet
@_jit
class TestModalities(TeacherContract):
    """A teacher whose file is fetched, with small random numbers in the place of its own."""

    name = OMPA
    structures = staticmethod(lambda: [scenes.crystal((14, 8)), scenes.molecule((8, 14))])

    @pytest.fixture(autouse=True)
    def weights(self, small_ompa: bytes) -> None:
        file = weights(OMPA)
        path = weights_path(OMPA, file)
        path.parent.mkdir(parents=True)
        path.write_bytes(small_ompa)
        told = {"url": file.url, "size": len(small_ompa), "digest": f"sha256:{hashlib.sha256(small_ompa).hexdigest()}"}
        record_path(path).write_text(json.dumps(told))
        self.file = small_ompa

    def teacher(self, dtype: str = "float64") -> Teacher:
        return _ompa(self.file, dtype)

    def test_modalities_differ(self) -> None:
        energies = []
        for name in (OMPA, "sevennet-mf-ompa/omat24-teacher"):
            potential = load_teacher(name, dtype=torch.float64).potential
            graph = build_graph(_oxide(), potential.cutoff)
            energies.append(potential.predict(graph, forces=False).energy.item())
        assert abs(energies[0] - energies[1]) > 0.1

    def test_each_modality_has_rows_of_its_own_in_the_element_embedding(self) -> None:
        potential = self.teacher().potential
        other = load_teacher("sevennet-mf-ompa/omat24-teacher", dtype=torch.float64).potential
        rows = [potential.elements.index(number) for number in _oxide().numbers]
        torch.testing.assert_close(potential.element_embeddings()[rows], _first_layer(potential, _oxide()))
        assert (potential.element_embeddings() - other.element_embeddings()).abs().max() > 1e-3


@pytest.mark.sevennet
@_jit
class TestR2SCAN(TeacherContract):
    """One of the package's own with two modalities."""

    name = "sevennet-mf-0/r2scan-teacher"
    structures = staticmethod(lambda: [_rattled(), scenes.molecule((8, 14))])
    laws = ("translation", "images", "permutation", "features")


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

    assert single.weights_sha256 == sevennet._MODELS[single.name].digest
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


# --- files of one's own ----------------------------------------------------------------------------


def _add(path: Path, **more: Any) -> Teacher:
    add_teacher("own/mine", path, family="sevennet", licence="CC-BY-4.0", level_of_theory="SCAN", citation="me", **more)
    return load_teacher("own/mine", dtype=torch.float64)


@pytest.mark.sevennet
@_jit
def test_checkpoint_of_ones_own_is_a_teacher(tmp_path: Path) -> None:
    config = config_of(kinds(8, 14), cutoff_function={"cutoff_function_name": "poly_cut", "poly_cut_p_value": 6})
    teacher = _add(write_checkpoint(tmp_path / "mine.pth", config, optimizer_state_dict={}, epoch=7))
    assert (teacher.name, teacher.level_of_theory, teacher.citation) == ("own/mine", "SCAN", "me")
    assert (teacher.licence_code, teacher.licence_weights) == ("MIT", "CC-BY-4.0")
    assert teacher.potential.elements == (8, 14)
    assert teacher.potential.traits == Traits(smoothness=2, features=4)
    theirs = _oxide()
    theirs.calc = calculator("own/mine", torch.float64)
    ours = teacher.potential.predict(build_graph(theirs, teacher.potential.cutoff))
    np.testing.assert_allclose(ours.forces, theirs.get_forces(), atol=1e-9)
    check_law(teacher.potential, "smooth_cutoff")


@pytest.mark.sevennet
@_jit
def test_further_trained_checkpoint_of_the_package_is_a_teacher(tmp_path: Path) -> None:
    import sevenn

    path = Path(sevenn.__file__).parent / "pretrained_potentials/SevenNet_MF_0/checkpoint_sevennet_mf_0.pth"
    teacher = _add(path, head="PBE")
    same = load_teacher("sevennet-mf-0/pbe-teacher", dtype=torch.float64)
    assert own_teacher("own/mine").sha256 == same.weights_sha256
    graph = build_graph(_oxide(), teacher.potential.cutoff)
    assert torch.equal(teacher.potential.predict(graph).forces, same.potential.predict(graph).forces)


@pytest.mark.sevennet
@_jit
def test_modality_must_be_chosen_where_there_are_several_and_only_there(tmp_path: Path) -> None:
    one = write_checkpoint(tmp_path / "one.pth", config_of(kinds(8, 14)))
    shifts = {"low": [-1.0] * 119, "high": [-2.0] * 119}
    two = write_checkpoint(tmp_path / "two.pth", config_of(kinds(8, 14), **modal(shifts)))
    for path, asked, message in (
        (two, {}, r"has the modalities low, high, and none was chosen; .*--head MODALITY"),
        (two, {"head": "mid"}, r"'mid' is none of them"),
        (one, {"head": "low"}, r"has no modalities, and 'low' is none of them; leave --head out"),
    ):
        with pytest.raises(ConfigError, match=message):
            _add(path, **asked)
        assert not weights_folder("own/mine").exists()
    assert _add(two, head="high").potential.elements == (8, 14)


@pytest.mark.sevennet
@_jit
def test_the_only_modality_of_a_checkpoint_is_taken_unasked(tmp_path: Path) -> None:
    layers = dict.fromkeys(
        (f"use_modal_{part}" for part in ("self_inter_intro", "self_inter_outro", "output_block")), False
    )
    config = config_of(kinds(8, 14), **modal({"low": [-1.0] * 119}, **layers))
    only = write_checkpoint(tmp_path / "only.pth", config)
    teacher, theirs = _add(only), _oxide()
    theirs.calc = calculator("own/mine", torch.float64)
    ours = teacher.potential.predict(build_graph(theirs, teacher.potential.cutoff))
    np.testing.assert_allclose(ours.forces, theirs.get_forces(), atol=1e-9)


@pytest.mark.sevennet
@_jit
def test_labels_of_one_modality_are_not_taken_for_those_of_another(tmp_path: Path) -> None:
    shifts = {"low": [-1.0] * 119, "high": [-2.0] * 119}
    path = write_checkpoint(tmp_path / "two.pth", config_of(kinds(8, 14), **modal(shifts)))
    structures, recipe = [_rattled()], tiny_recipe(teacher__name="own/mine")
    told = set()
    for head in ("low", "high"):
        teacher = _add(path, head=head)
        plan = label_plan(structures, teacher, recipe.labels, 0, "float64")
        if told:
            with pytest.raises(LabelError, match=r"weights"):
                label_structures(tmp_path / "labels", structures, teacher, plan)
        else:
            label_structures(tmp_path / "labels", structures, teacher, plan)
        told |= {teacher.weights_sha256, Run.of(recipe, tmp_path / head).own_digest}
        remove_teacher("own/mine")
    assert len(told) == 2


class _Harm:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm-was-done"),)


@pytest.mark.sevennet
@_jit
def test_file_that_would_run_code_is_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_checkpoint(tmp_path / "harm.pth", config_of(kinds(8, 14)), harm=_Harm())
    with pytest.raises(IntegrityError, match="nothing of it was opened") as caught:
        _add(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm-was-done").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "harm-was-done").exists(), "it would have been"


@pytest.mark.sevennet
@_jit
def test_sevenn_opens_no_file_whose_content_might_be_another_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sevenn.checkpoint.torch_load", lambda *_, **__: pytest.fail("was opened without restriction"))
    load_teacher("sevennet-0/teacher")
    calculator("sevennet-0/teacher", torch.float32)


@pytest.mark.sevennet
@_jit
@pytest.mark.parametrize("what", ["cut", "other", "text", "config"])
def test_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    path = write_checkpoint(tmp_path / "mine.pth", config_of(kinds(8, 14)))
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-2000])
    elif what == "other":
        torch.save({"model_state_dict": {"weight": torch.ones(3)}, "config": {}}, path)
    elif what == "text":
        path.write_text("no weights at all")
    else:
        torch.save({"config": config_of(kinds(8, 14), channel=8), "model_state_dict": {}}, path)
    with pytest.raises(IntegrityError) as caught:
        _add(path)
    assert "\n" not in str(caught.value)
    assert not weights_folder("own/mine").exists()


@pytest.mark.sevennet
@_jit
def test_file_that_changed_after_it_was_added_is_refused(tmp_path: Path) -> None:
    _add(write_checkpoint(tmp_path / "mine.pth", config_of(kinds(8, 14))))
    path = find_own(own_teacher("own/mine"))
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match="not opened"):
        load_teacher("own/mine")


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

    path = tmp_path / "pretrained_potentials" / sevennet._MODELS["sevennet-0/teacher"].file
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
