"""Checkpoints of JMP become teachers: the same numbers, or one clear line; nothing in a file is run."""

import hashlib
import json
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jmp_checkpoints as made
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from test_download import Site, Trouble, serving

import zoo
from zoo.artifact import count_parameters
from zoo.cli import main
from zoo.config import read_json
from zoo.convert import Conversion, convert, etag_of
from zoo.distill.label import check_teacher
from zoo.errors import (
    AccessError,
    CapabilityError,
    ConfigError,
    IntegrityError,
    MissingPackageError,
    NotReleasedError,
    UnknownNameError,
    ZooError,
    ZooWarning,
)
from zoo.estimate import estimate, text
from zoo.files import cache_root
from zoo.gemnet_oc.config import JMP_S
from zoo.gemnet_oc.network import GemNetOC
from zoo.hub.catalogue import entries
from zoo.neighbors import build_graph
from zoo.pull import pull
from zoo.recipe import read_recipe
from zoo.run import Run
from zoo.teachers import FINE_TUNED, absent, load_teacher, stated_traits
from zoo.teachers.jmp.checkpoint import is_data, open_checkpoint
from zoo.teachers.jmp.config import PUBLISHED, JMPConfig
from zoo.teachers.jmp.layout import SIZES, shape_of
from zoo.teachers.jmp.weights import (
    layout_of,
    read_weights,
    without_numbers,
    write_tensors,
    write_weights,
)
from zoo.teachers.weights import weights_folder

GOLDEN = json.loads((Path(__file__).parent / "golden" / "gemnet_oc.json").read_text())
TEACHER, FINE_TUNE = "jmp-s/teacher", "jmp-s/md22-teacher"
DIRECT, GRADIENT = {"forces": "direct"}, {"forces": "gradient"}


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=3)
    return atoms


def predicted(network: GemNetOC, *, dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[float, torch.Tensor]:
    """Energy and forces of ethanol from the weights of a network and settings of its own."""
    config = network.config.model_copy(update={"elements": (1, 6, 7, 8), **settings})
    own = GemNetOC(config)
    own.load_state_dict(network.state_dict())
    own = own.to(dtype)
    prediction = own.predict(build_graph(ethanol(), own.cutoff, dtype=dtype))
    return float(prediction.energy), prediction.forces


def loaded(name: str) -> tuple[float, torch.Tensor]:
    (prediction,) = zoo.load(name).predict(ethanol())
    return float(prediction.energy), prediction.forces


def agree(found: tuple[float, torch.Tensor], expected: tuple[float, torch.Tensor]) -> bool:
    scale = expected[1].abs().max()
    return found[0] == pytest.approx(expected[0], rel=1e-5) and bool(
        (found[1] - expected[1]).abs().max() < 1e-5 * scale
    )


def quietly(family: str, source: str | Path, **options: Any) -> Conversion:
    return convert(family, source, **({"any_size": True, "progress": False} | options))


def refused(source: Path, words: str, error: type[ZooError] = IntegrityError, **options: Any) -> str:
    """What was said, in one line; and nothing was written anywhere."""
    with pytest.raises(error, match=words) as caught:
        quietly("jmp-s", source, **options)
    assert "\n" not in str(caught.value)
    assert not (cache_root() / "teachers").exists()
    return str(caught.value)


@pytest.fixture(scope="module")
def pre_trained() -> made.Made:
    return made.pre_trained(made.size())


@pytest.fixture(scope="module")
def file(pre_trained: made.Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pre_trained.save(tmp_path_factory.mktemp("checkpoints") / "jmp-s.pt")


@pytest.fixture
def changed(pre_trained: made.Made, tmp_path: Path) -> Callable[..., Path]:
    """The pre-trained checkpoint after a change to its content, saved anew."""

    def make(change: Callable[[dict[str, Any]], Any]) -> Path:
        content = pre_trained.content | {"state_dict": OrderedDict(pre_trained.content["state_dict"])}
        content["optimizer_states"] = [dict(content["optimizer_states"][0])]
        content["hyper_parameters"] = dict(content["hyper_parameters"])
        change(content)
        path = tmp_path / "changed.pt"
        torch.save(content, path)
        return path

    return make


# --- the published layout ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "keys", "averages", "parameters"), [("jmp-s", 437, 405, 44_131_328), ("jmp-l", 657, 585, 234_267_648)]
)
def test_a_whole_checkpoint_has_the_published_counts(family: str, keys: int, averages: int, parameters: int) -> None:
    with torch.device("meta"):
        whole = made.pre_trained(PUBLISHED[family].network).content
    state, ema = whole["state_dict"], whole["optimizer_states"][0]["ema"]
    assert family != "jmp-s" or len(state) == 514
    assert sum(name.startswith("backbone.") for name in state) == keys
    assert len(ema) == averages
    assert sum(tensor.numel() for tensor in ema) == parameters


def test_the_names_that_are_kept_are_the_golden_ones() -> None:
    with torch.device("meta"):
        state = made.pre_trained(JMP_S).content["state_dict"]
    golden = {name: tuple(shape) for name, shape in GOLDEN["shapes"]["s-direct"].items()}
    kept = {name: tuple(tensor.shape) for name, tensor in _as_fine_tuned(state).items()}
    extra = kept.keys() - golden.keys()
    assert {name: shape for name, shape in kept.items() if name not in extra} == golden
    assert extra == {f"out_energy.{layer}.bias" for layer in (0, 2, 4, 6)}  # of pre-training alone
    config = JMP_S.model_copy(update={"energy_bias": True})
    told = JMPConfig(name="x", network=config, level_of_theory="x", source="x", kept="ema")
    assert {name: shape for name, (_, shape) in layout_of(without_numbers(told)).items()} == kept


def _as_fine_tuned(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By hand what ``take`` does to names, for the head of ANI-1x."""
    kept = {}
    for name, tensor in state.items():
        if re.search(r"\.rbf\.|seq_energy_pre|task_steps|output\.out_\w+\.[013]\.", name) is None:
            kept[re.sub(r"output\.(out_\w+)\.2\.", r"\1.", name.replace("atom_embedding.", ""))] = tensor
    return kept


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_sizes_of_the_published_networks_are_told_by_their_shapes(family: str) -> None:
    config = PUBLISHED[family].network
    with torch.device("meta"):
        tensors = GemNetOC(config).state_dict()
    held = _Held(tensors)
    assert {size: getattr(shape_of(held), size) for size in SIZES} == {size: getattr(config, size) for size in SIZES}


class _Held:
    direct, energies = True, True

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors


def test_a_network_of_no_published_size_is_refused_by_the_size_that_differs(file: Path) -> None:
    words = "the network has num_blocks 2, jmp-s has 4; give a checkpoint of JMP"
    refused(file, words, ConfigError, any_size=False)


def test_the_other_family_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED, "jmp-l", replace(PUBLISHED["jmp-l"], network=made.size()))
    refused(file, "it is of jmp-l: run zoo convert jmp-l", ConfigError, any_size=False)


def test_the_catalogue_counts_the_parameters_of_converted_networks() -> None:
    for family, published in PUBLISHED.items():
        config = JMPConfig(
            name="x",
            network=published.network.model_copy(update={"energy_bias": True}),
            level_of_theory="x",
            source="x",
            kept="ema",
        )
        assert entries()[f"{family}/teacher"].parameters == count_parameters(without_numbers(config))


# --- the same numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["ani1x", "transition1x"])
@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_converted_teacher_says_what_the_network_of_its_checkpoint_says(
    pre_trained: made.Made, file: Path, head: str, weights: str
) -> None:
    quietly("jmp-s", file, head=head, weights=weights)
    energy, force = made.STDS[head]
    settings = {"cutoff": 8.0, "energy_scale": energy, "force_scale": force}
    networks = {"ema": pre_trained.averaged, "raw": pre_trained.last}
    right = predicted(networks[weights][head], **settings)
    found = loaded(TEACHER)
    assert agree(found, right)
    others = [predicted(one[task], **settings) for one in networks.values() for task in ("ani1x", "transition1x")]
    assert sum(agree(found, other) for other in others) == 1


def test_a_converted_teacher_is_an_engine_like_any_other(file: Path) -> None:
    conversion = quietly("jmp-s", file)
    engine = zoo.load(TEACHER, dtype="float64")
    atoms = ethanol()
    atoms.calc = engine.calculator()
    (prediction,) = engine.predict(ethanol())
    assert atoms.get_potential_energy() == pytest.approx(float(prediction.energy))
    assert torch.from_numpy(atoms.get_forces()) == pytest.approx(prediction.forces)
    assert engine.hessian(ethanol()).shape == (27, 27)
    assert "CC-BY-NC-4.0" in repr(engine)
    assert TEACHER in repr(engine)
    assert "JMP, 2 num blocks, 10 emb size atom, 11 emb size edge, direct forces, cutoff 8 Å" in repr(engine)
    with pytest.raises(zoo.DomainError, match="Si"):
        engine.predict(molecule("SiH4"))
    assert str(conversion).splitlines()[0] == f"{TEACHER} is in {weights_folder(TEACHER)}"
    assert "energies relative: without a mean" in str(conversion)


def test_what_is_known_of_the_weights_is_written_beside_them(file: Path, pre_trained: made.Made) -> None:
    conversion = quietly("jmp-s", file)
    config = read_json(JMPConfig, conversion.folder / "config.json")
    assert config == conversion.config
    assert conversion.folder == cache_root() / "teachers" / "jmp-s" / "teacher"
    assert (config.name, config.licence, config.source) == (TEACHER, "CC-BY-NC-4.0", "jmp-s.pt")
    assert (config.kept, config.head, config.references) == ("ema", "ani1x", {})
    assert config.source_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert config.source_bytes == file.stat().st_size
    assert config.weights_sha256 == hashlib.sha256((conversion.folder / "model.safetensors").read_bytes()).hexdigest()
    network = config.network
    assert (network.cutoff, network.basis_cutoff, network.elements) == (8.0, 12.0, (1, 6, 7, 8))
    limits = [getattr(network, f"max_neighbors{kind}") for kind in ("", "_aeaint", "_qint", "_aint")]
    assert limits == [30, 20, 8, 1000]
    assert network.energy_bias
    teacher = load_teacher(TEACHER)
    assert teacher.weights_sha256 == config.digest != config.weights_sha256
    assert (teacher.licence_code, teacher.licence_weights) == ("MIT", "CC-BY-NC-4.0")
    assert teacher.level_of_theory == "ωB97X/6-31G(d), the ANI-1x head"
    assert not any(parameter.requires_grad for parameter in teacher.potential.parameters())
    assert file.is_file()  # a file of the user's stays


@pytest.mark.parametrize("forces", [DIRECT, GRADIENT, DIRECT | {"energies": False}])
@pytest.mark.parametrize("ema", [True, False])
def test_a_fine_tune_says_what_its_network_says_and_its_energy_is_what_its_forces_are_the_gradient_of(
    tmp_path: Path, forces: dict[str, Any], ema: bool
) -> None:
    one = made.fine_tuned(made.size(**forces), ema=ema)
    path = one.save(tmp_path / "mine.ckpt")
    if ema:
        conversion = quietly("jmp-s", path, name=FINE_TUNE)
    else:
        with pytest.warns(ZooWarning, match="no averaged weights"):
            conversion = quietly("jmp-s", path, name=FINE_TUNE)
    gradient = forces["forces"] == "gradient"
    scales = {"energy_scale": 1.0899} if gradient else {"energy_scale": 0.646, "force_scale": 1.0899}
    network = (one.averaged if ema else one.last)["md22"]
    right = predicted(network, cutoff=12.0, **scales)
    if forces.get("energies", True):
        assert agree(loaded(FINE_TUNE), right)
    else:
        alone = load_teacher(FINE_TUNE).potential
        found = alone.predict(build_graph(ethanol(), alone.cutoff, dtype=torch.float32))
        assert bool(found.energy.isnan())
        assert agree((0.0, found.forces), (0.0, right[1]))
    assert conversion.config.kept == ("ema" if ema else "raw")
    assert (conversion.config.head, conversion.config.level_of_theory) == (None, "PBE+MBD, MD22")
    assert conversion.config.network.cutoff == 12.0
    assert stated_traits(FINE_TUNE) == load_teacher(FINE_TUNE).potential.traits
    assert stated_traits(FINE_TUNE).conservative == gradient
    assert stated_traits(FINE_TUNE).energies == forces.get("energies", True)


def test_no_energies_are_learned_from_a_fine_tune_that_has_none(tmp_path: Path) -> None:
    forces_alone = made.fine_tuned(made.size(energies=False)).save(tmp_path / "mine.ckpt")
    quietly("jmp-s", forces_alone, name=FINE_TUNE)
    recipe, teacher = read_recipe("jmp-s/buckyball-catcher-student"), load_teacher(FINE_TUNE)
    check_teacher(recipe, teacher)
    asks = recipe.model_copy(update={"loss": recipe.loss.model_copy(update={"energy_from": "teacher"})})
    with pytest.raises(CapabilityError, match="gives no energies"):
        check_teacher(asks, teacher)


def test_weights_of_half_precision_become_float32(changed: Callable[..., Path]) -> None:
    def halve(content: dict[str, Any]) -> None:
        first = content["optimizer_states"][0]
        first["ema"] = tuple(tensor.half() for tensor in first["ema"])

    stored = load_file(quietly("jmp-s", changed(halve)).folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_scales_and_elements_that_the_file_does_not_say_are_given(changed: Callable[..., Path]) -> None:
    path = changed(lambda content: content["hyper_parameters"].pop("tasks"))
    words = r"does not say what forces were divided by; give --energy-scale \(eV\) and --force-scale \(eV/Å\)"
    refused(path, words, ConfigError)
    refused(path, "does not say what energies were divided by", ConfigError, force_scale=2.0)
    refused(path, "a scale is -1.0 eV", ConfigError, energy_scale=-1.0)
    refused(path, "elements are Xx", ConfigError, elements=("H", "Xx"))
    config = quietly("jmp-s", path, energy_scale=1.5, force_scale=2.0, elements=("O", "H")).config
    assert (config.network.energy_scale, config.network.force_scale, config.network.elements) == (1.5, 2.0, (1, 8))


def test_the_scale_of_an_energy_whose_gradient_are_forces_cannot_be_given(tmp_path: Path) -> None:
    path = made.fine_tuned(made.size(**GRADIENT)).save(tmp_path / "mine.ckpt")
    refused(path, "leave --energy-scale out", ConfigError, name=FINE_TUNE, energy_scale=0.6)


def test_what_is_asked_for_must_be_what_the_file_can_be(file: Path, tmp_path: Path) -> None:
    mine = made.fine_tuned(made.size()).save(tmp_path / "mine.ckpt")
    refused(mine, f"is a fine-tune; say what it becomes with --name {FINE_TUNE}", ConfigError)
    refused(file, f"pre-trained, and {FINE_TUNE} is a fine-tune", ConfigError, name=FINE_TUNE)
    refused(
        file, "no teacher of jmp-s; give one of jmp-s/teacher, jmp-s/md22-teacher", ConfigError, name="jmp-l/teacher"
    )
    refused(file, "no head to convert is called 'oc20'", ConfigError, head="oc20")
    refused(file, "expected ema", ConfigError, weights="best")
    refused(tmp_path / "none.pt", "there is no file", UnknownNameError)
    with pytest.raises(ConfigError, match="no family to convert"):
        convert("jmp-xl", file)


# --- what a checkpoint may be instead ---------------------------------------------------------------


class Runs:
    """What calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (eval, "builtins.eval"),
        (os.remove, "posix.remove"),
        (torch.hub.load, "torch.hub.load"),
    ],
)
def test_a_file_that_would_run_something_is_refused_by_that_name(
    changed: Callable[..., Path], tmp_path: Path, function: Callable[..., Any], name: str
) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    arguments = {"posix.system": f"rm {victim}", "builtins.eval": "1/0"}.get(name, str(victim))
    path = changed(lambda content: content.update(loops=Runs(function, arguments)))
    words = refused(path, re.escape(f"wants to call {name}"))
    assert "nothing of it was opened" in words
    assert victim.exists()


def _allowed_elsewhere(*arguments: object) -> None:
    raise AssertionError("it was called")


def test_what_another_package_allows_is_not_allowed_here(changed: Callable[..., Path], file: Path) -> None:
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([_allowed_elsewhere])
    try:
        path = changed(lambda content: content.update(loops=Runs(_allowed_elsewhere, 1)))
        refused(path, "_allowed_elsewhere")
        quietly("jmp-s", file)
        assert set(torch.serialization.get_safe_globals()) == {*before, _allowed_elsewhere}
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_names_of_data_are_let_through_and_no_others() -> None:
    assert all(is_data(name) for name in ("pathlib.PosixPath", "jmp.modules.ema.EMA", "lightning.pytorch.Trainer"))
    others = (
        "os.system",
        "jmpx.y",
        "builtins.getattr",
        "pathlib.os",
        "subprocess.Popen",
        "sys.exit",
        "torch.load",
        "ll",
    )
    assert not any(is_data(name) for name in others)


def test_classes_of_its_training_are_nothing_here(tmp_path: Path, file: Path) -> None:
    """A stand-in takes what is done to an object in a pickle, and keeps none of it."""

    def rename(name: str, held: bytes) -> bytes:
        return held.replace(b"cpathlib\nPosixPath", b"cjmp.trainer\nConfig") if name.endswith("data.pkl") else held

    path = made.rewrite(file, tmp_path / "of-classes.pt", rename)
    assert b"jmp.trainer" in zipfile.ZipFile(path).read("jmp-s/data.pkl")
    assert quietly("jmp-s", path).config.head == "ani1x"


def _cut(file: Path, to: Path) -> Path:
    to.write_bytes(file.read_bytes()[:-5000])
    return to


def _noise(file: Path, to: Path) -> Path:
    to.write_bytes(bytes(range(256)) * 100)
    return to


def _legacy(file: Path, to: Path) -> Path:
    torch.save({"state_dict": {"a": torch.ones(2)}}, to, _use_new_zipfile_serialization=False)
    return to


def _packed(file: Path, to: Path) -> Path:
    return made.rewrite(file, to, lambda name, held: held, 9)


def _packed_without_gain(file: Path, to: Path) -> Path:
    return made.rewrite(file, to, lambda name, held: held, 0)


def _other_zip(file: Path, to: Path) -> Path:
    with zipfile.ZipFile(to, "w") as archive:
        archive.writestr("letter.txt", "dear friend")
    return to


def _list(file: Path, to: Path) -> Path:
    torch.save([1, 2], to)
    return to


def _more_than_there_is(file: Path, to: Path) -> Path:
    content = {"state_dict": {"embedding.weight": made.claimed(10**12, (10**6, 10**6))}}
    return made.write_archive(to, content, {"0": bytes(400)})


def _beyond_its_storage(file: Path, to: Path) -> Path:
    content = {"state_dict": {"embedding.weight": made.claimed(4, (1000, 1000))}}
    return made.write_archive(to, content, {"0": bytes(16)})


def _broken_pickle(file: Path, to: Path) -> Path:
    return made.rewrite(file, to, lambda name, held: held[:2000] if name.endswith("data.pkl") else held)


def _new_protocol(file: Path, to: Path) -> Path:
    torch.save({"state_dict": {"a": torch.ones(2)}}, to, pickle_protocol=5)
    return to


def _without_pickle(file: Path, to: Path) -> Path:
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(to, "w") as new:
        for member in old.namelist():
            if not member.endswith("data.pkl"):
                new.writestr(member, old.read(member))
    return to


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_cut, "is cut short"),
        (_noise, "no checkpoint of PyTorch 1.6 or newer"),
        (_legacy, "no checkpoint of PyTorch 1.6 or newer"),
        (_packed, "is packed"),
        (_packed_without_gain, "is packed"),
        (_other_zip, "has no data.pkl"),
        (_without_pickle, "has no data.pkl"),
        (_list, "holds a list, expected a checkpoint"),
        (_more_than_there_is, "cannot be read as a checkpoint"),
        (_beyond_its_storage, "cannot be read as a checkpoint"),
        (_broken_pickle, "cannot be read as a checkpoint"),
        (_new_protocol, "cannot be read as a checkpoint"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused(
    file: Path, tmp_path: Path, spoil: Callable[[Path, Path], Path], words: str
) -> None:
    path = spoil(file, tmp_path / "spoilt.pt")
    told = refused(path, words)
    assert str(path) in told
    assert len(told) < 600


EMBEDDING = "embedding.atom_embedding.weight"
DENSE = "backbone.int_blocks.1.dense_ca.linear.weight"


def _of_state(name: str, make: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        state = content["state_dict"]
        state[name] = make(state[name])

    return change


def _of_ema(place: int, make: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        first = content["optimizer_states"][0]
        found = list(first["ema"])
        found[place] = make(found[place])
        first["ema"] = tuple(found)

    return change


def _swap(content: dict[str, Any]) -> None:
    """Two averages of one shape in each other's place."""
    first = content["optimizer_states"][0]
    names, found = made.trained_names(content["state_dict"]), list(first["ema"])
    one = names.index(DENSE)
    other = names.index(DENSE.replace("blocks.1", "blocks.0"))
    found[one], found[other] = found[other], found[one]
    first["ema"] = tuple(found)


def _drop_head(content: dict[str, Any]) -> None:
    state = content["state_dict"]
    for name in [name for name in state if name.startswith("output.out_energy.3.")]:
        del state[name]
    for name in [name for name in state if name.startswith("output.out_forces.3.")]:
        del state[name]
    content["optimizer_states"][0]["ema"] = tuple(state[name] for name in made.trained_names(state))


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        del content["state_dict"][name]
        content["optimizer_states"][0]["ema"] = tuple(
            content["state_dict"][one] for one in made.trained_names(content["state_dict"])
        )

    return change


def _with_more(content: dict[str, Any]) -> None:
    content["state_dict"]["backbone.more.weight"] = torch.ones(3)
    content["optimizer_states"][0]["ema"] += (torch.ones(3),)


def _with_nan(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed[0, 0] = float("nan")
    return changed


def _order(content: dict[str, Any]) -> None:
    tasks = content["hyper_parameters"]["tasks"]
    content["hyper_parameters"]["tasks"] = [tasks[0], tasks[1], tasks[3], tasks[2]]


def _no_spread(content: dict[str, Any]) -> None:
    normalization = {"y": {"mean": 0.0, "std": 0.0}, "force": {"mean": 0.0, "std": 1.0}}
    content["hyper_parameters"]["tasks"] = [{"normalization": normalization}] * 4


ALIAS = "backbone.out_blocks.1.seq_energy_pre.0.linear.weight"
OFFSET, TEMPS = "backbone.bases.radial_3.rbf.offset", "backbone.bases.radial_3.rbf.temps"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop("state_dict"), "no state_dict"),
        (lambda content: content.update(state_dict=7), "no state_dict"),
        (_of_state(EMBEDDING, lambda one: "weights"), "is no plain tensor but a str"),
        (_of_state(EMBEDDING, lambda one: one.to_sparse()), "is no plain tensor"),
        (_of_state(EMBEDDING, lambda one: one.to(torch.int32)), "holds torch.int32, expected real numbers"),
        (_of_state(EMBEDDING, lambda one: torch.empty(one.shape, device="meta")), "is no plain tensor"),
        (_of_state(ALIAS, lambda one: one + 1), "is not what its layers are"),
        (_of_state(ALIAS, lambda one: one[:2]), "is not what its layers are"),
        (_of_state(OFFSET, lambda one: one**2), "other Gaussians"),
        (_of_state(TEMPS, lambda one: one / 2), "other Gaussians"),
        (_without(OFFSET), "without the centres"),
        (_without(EMBEDDING), "neither embedding.atom_embedding.weight nor embedding.weight"),
        (_without(DENSE), f"lacks 1 tensors, {DENSE} among them"),
        (_without("backbone.bases.mlp_sbf_qint.weight"), "the file lacks backbone.bases.mlp_sbf_qint.weight"),
        (_with_more, "1 tensors too many, backbone.more.weight among them"),
        (_drop_head, "3 pairs of heads, expected those of oc20, oc22, ani1x, transition1x"),
        (_order, "heads in the order oc20, oc22, transition1x, ani1x"),
        (_no_spread, "divided by 0.0"),
        (_of_ema(5, lambda one: one[:-1]), "expected"),
        (_of_ema(5, lambda one: 3.0), "is no plain tensor but a float"),
        (_of_ema(0, _with_nan), "not finite; nothing was written"),
        (_swap, f"averaged .*{re.escape('dense_ca.linear.weight')} .* of another one's"),
        (lambda content: content["optimizer_states"][0].update(ema=(torch.ones(2),)), "has 1 averaged weights"),
        (lambda content: content["optimizer_states"][0].update(ema=5), "has 0 averaged weights"),
        (lambda content: content["optimizer_states"][0].pop("ema"), "has no averaged weights .* --weights raw"),
        (lambda content: content.update(optimizer_states=[]), "has no averaged weights"),
    ],
)
def test_a_checkpoint_that_is_not_one_of_jmp_is_refused_in_one_line(
    changed: Callable[..., Path], change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    refused(changed(change), words)


def test_a_tensor_of_another_shape_is_named(changed: Callable[..., Path]) -> None:
    def change(content: dict[str, Any]) -> None:
        _of_state(DENSE, lambda one: one[:-1])(content)
        place = made.trained_names(content["state_dict"]).index(DENSE)
        _of_ema(place, lambda one: one[:-1])(content)

    refused(changed(change), rf"{re.escape(DENSE)} is float32 \[10, 11\], expected float32 \[11, 11\]")


def test_the_last_weights_are_there_without_the_averaged_ones(changed: Callable[..., Path]) -> None:
    path = changed(lambda content: content["optimizer_states"][0].pop("ema"))
    assert quietly("jmp-s", path, weights="raw").config.kept == "raw"


# --- what a file may hide ---------------------------------------------------------------------------


def _damaged(file: Path, to: Path, make: Callable[[bytes], bytes]) -> Path:
    """The file with the middle of its largest tensor changed, and its checksum as it was."""
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size * ("/data/" in member.filename))
    middle = largest.header_offset + largest.file_size // 2
    content[middle : middle + 400] = make(bytes(content[middle : middle + 400]))
    to.write_bytes(content)
    return to


@pytest.mark.parametrize("make", [bytes.upper, lambda held: bytes([held[0] ^ 1]) + held[1:], lambda held: bytes(400)])
def test_a_flipped_bit_and_a_hole_of_zeros_are_refused(
    file: Path, tmp_path: Path, make: Callable[[bytes], bytes]
) -> None:
    path = _damaged(file, tmp_path / "damaged.pt", make)
    refused(path, r"is damaged: its .*/data/\d+ is not what its checksum says", weights="raw")


@pytest.mark.parametrize(
    "change",
    [
        lambda path: _other(path).replace(path),
        lambda path: path.write_bytes(path.read_bytes()),
        lambda path: path.unlink(),
        lambda path: os.truncate(path, 1000),
    ],
)
@pytest.mark.parametrize("moment", ["opened", "written"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], Any], moment: str
) -> None:
    path = tmp_path / "mine.pt"
    path.write_bytes(file.read_bytes())
    os.utime(path, (1, 1))
    name = {"opened": "zoo.convert.open_checkpoint", "written": "zoo.teachers.jmp.weights.save_file"}[moment]
    right = {"opened": open_checkpoint, "written": save_file}[moment]

    def late(*arguments: Any) -> Any:
        found = right(*arguments)
        change(path)
        return found

    monkeypatch.setattr(name, late)
    with pytest.raises(IntegrityError, match="changed while it was read"):
        quietly("jmp-s", path)
    assert list(cache_root().glob("teachers/*/*")) == []


def _other(path: Path) -> Path:
    other = path.with_name("other.pt")
    other.write_bytes(path.read_bytes())
    return other


def _averages_of(make: Callable[[str, torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        first, names = content["optimizer_states"][0], made.trained_names(content["state_dict"])
        first["ema"] = tuple(make(name, one) for name, one in zip(names, first["ema"], strict=True))

    return change


def _twice_as_biases(content: dict[str, Any]) -> None:
    """A bias whose average lies farther from it than zero."""
    name = "output.out_energy.2.0.bias"
    content["state_dict"][name] = torch.ones(10)
    place = made.trained_names(content["state_dict"]).index(name)
    _of_ema(place, lambda one: torch.full((10,), 2.01))(content)


def _from_nothing(content: dict[str, Any]) -> None:
    """A weight of zeros, whose average is of something."""
    name = "output.out_energy.2.0.weight"
    content["state_dict"][name] = torch.zeros(10, 10)
    place = made.trained_names(content["state_dict"]).index(name)
    _of_ema(place, lambda one: torch.full((10, 10), 1e-6))(content)


@pytest.mark.parametrize(
    "change",
    [
        _averages_of(lambda name, one: torch.zeros_like(one)),
        _averages_of(lambda name, one: one * 1e6),
        _twice_as_biases,
        _from_nothing,
    ],
)
def test_an_average_that_is_not_near_is_refused(changed: Callable[..., Path], change: Callable[..., None]) -> None:
    refused(changed(change), r"the averaged \S+ \(ema\) is no average of its last value")


class Attributes:
    """A tensor whose methods the pickle replaces."""

    def __init__(self, tensor: torch.Tensor, **attributes: Any) -> None:
        self.tensor, self.attributes = tensor, attributes

    def __reduce__(self) -> tuple[Any, ...]:
        make, arguments = self.tensor.__reduce_ex__(2)[:2]
        return torch._tensor._rebuild_from_type_v2, (make, torch.Tensor, arguments, self.attributes)


def _names_of_laughter(content: dict[str, Any]) -> None:
    """A name of a task whose text would have 2^60 letters."""
    name: Any = "ani1x"
    for _ in range(60):
        name = [name, name]
    content["hyper_parameters"]["tasks"] = [{"name": name}] * 4


def _stated(std: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        normalization = {"y": {"std": std}, "force": {"std": 1.0}}
        content["hyper_parameters"]["tasks"] = [{"normalization": normalization}] * 4

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.update(loops=Runs(bytearray, 1 << 40)), "wants a .*bytearray"),
        (_of_state(EMBEDDING, lambda one: Runs(torch.FloatTensor, 120, 10)), r"wants a torch\.FloatTensor"),
        (_of_state(EMBEDDING, lambda one: Runs(torch.Tensor, 120, 10)), "does not lie in the file"),
        (_of_state(EMBEDDING, lambda one: one.as_strided((120, 10), (0, 1))), "does not lie in the file"),
        (_of_state(OFFSET, lambda one: torch.zeros(1).expand(10**13)), "does not lie in the file"),
        (_of_state(EMBEDDING, lambda one: one.to(torch.float8_e4m3fn)), "holds torch.float8_e4m3fn, expected real"),
        (_of_state(EMBEDDING, lambda one: Attributes(one.clone(), numel=Path("/"))), "is no plain tensor"),
        (lambda content: content["state_dict"].update({"a" * 201: torch.ones(2)}), "too long for a weight"),
        (
            lambda content: content["state_dict"].update({f"output.out_energy.{'9' * 99}.0.weight": torch.ones(2)}),
            "the file has 237 averaged|too many",
        ),
        (_stated(10**400), "the std of y is beyond 1e\\+12"),
        (_stated(float("nan")), "the std of y is beyond 1e\\+12"),
        (_stated(1e-320), "y was divided by 1e-320"),
        (_stated(torch.tensor(2 + 1j)), "std holds torch.complex64"),
    ],
)
def test_what_would_take_memory_or_is_no_number_of_a_file_is_refused(
    changed: Callable[..., Path], change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    refused(changed(change), words)


def test_names_are_neither_many_nor_long(tmp_path: Path) -> None:
    for names in ([f"b{number}" for number in range(2001)], ["b" * 300]):
        body = b"".join(b"cjmp.a\n%s\n" % name.encode() for name in names)
        with zipfile.ZipFile(tmp_path / "many.pt", "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02](" + body + b"e.")
            archive.writestr("archive/version", "3\n")
        refused(tmp_path / "many.pt", "more names, or longer ones")


def test_a_name_without_an_end_is_never_written_out(changed: Callable[..., Path]) -> None:
    refused(changed(_names_of_laughter), "does not say what forces were divided by", ConfigError)


def test_what_nobody_foresaw_is_one_line_about_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RecursionError("too\ndeep")

    for name in ("zoo.convert.take", "zoo.convert._config", "zoo.teachers.jmp.weights.save_file"):
        with monkeypatch.context() as patched:
            patched.setattr(name, broken)
            with pytest.raises(
                IntegrityError, match=r"jmp-s.pt cannot be converted \(RecursionError: too deep\); give"
            ):
                quietly("jmp-s", file)


def test_weights_under_two_names_are_written_under_both(changed: Callable[..., Path]) -> None:
    first, second = "output.out_energy.2.0.weight", "output.out_energy.2.2.weight"

    def tie(content: dict[str, Any]) -> None:
        content["state_dict"][second] = content["state_dict"][first]

    stored = load_file(quietly("jmp-s", changed(tie), weights="raw").folder / "model.safetensors")
    assert torch.equal(stored["out_energy.0.weight"], stored["out_energy.2.weight"])


def test_folders_that_cannot_be_are_refused_in_one_line(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for to in (".", "..", tmp_path):
        refused(file, "is the folder that you are in, or holds it", ConfigError, to=to)
    refused(file, "cannot be made, because .* is a file", ConfigError, to=file / "x" / "y")
    refused(file, "which is no part of weights", ConfigError, to=file)
    refused(tmp_path, "is a folder; give the path of a checkpoint", UnknownNameError)


# --- what is kept -----------------------------------------------------------------------------------


def test_weights_are_replaced_on_request_alone_and_nothing_else_ever_is(file: Path, tmp_path: Path) -> None:
    quietly("jmp-s", file, weights="raw")
    with pytest.raises(ConfigError, match="has weights already; add --replace"):
        quietly("jmp-s", file)
    assert quietly("jmp-s", file, replace=True).config.kept == "ema"
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "letter.txt").write_text("dear friend")
    with pytest.raises(ConfigError, match=r"holds letter\.txt, which is no part of weights"):
        quietly("jmp-s", file, to=letters, replace=True)
    assert (letters / "letter.txt").read_text() == "dear friend"
    elsewhere = quietly("jmp-s", file, to=tmp_path / "elsewhere")
    assert elsewhere.folder == tmp_path / "elsewhere"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_weights_that_cannot_be_written_leave_those_that_were_there(
    file: Path, changed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = quietly("jmp-s", file).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zoo.teachers.jmp.weights.save_file", full)
    with pytest.raises(OSError, match="No space"):
        quietly("jmp-s", file, weights="raw", replace=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def _other_numbers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["embedding.weight"] += 1
    save_file(tensors, folder / "model.safetensors")


def _other_digest(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """A change whose digest is written too, as whoever changes both files would."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        config["weights_sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        (folder / "config.json").write_text(json.dumps(config))

    return spoil


def _of_config(**changes: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "has the digest"),
        (_other_numbers, "has the digest"),
        (_other_digest(lambda tensors: tensors.pop("embedding.weight")), "lacks 1 tensors, embedding.weight"),
        (_other_digest(lambda tensors: tensors.update(more=torch.ones(2))), "1 tensors too many, more"),
        (_other_digest(lambda tensors: tensors["embedding.weight"].fill_(float("inf"))), "not finite"),
        (_other_digest(lambda tensors: tensors.update({"embedding.weight": torch.ones(3)})), "expected float32"),
        (_of_config(name="jmp-s/other"), "holds jmp-s/other, expected jmp-s/teacher"),
        (_of_config(weights_sha256=None), "says none"),
        (_of_config(references={"Si": 1.0}), "references has Si"),
        (_of_config(colour="red"), "unknown key 'colour'"),
    ],
)
def test_weights_that_changed_are_not_loaded(file: Path, spoil: Callable[[Path], Any], words: str) -> None:
    spoil(quietly("jmp-s", file).folder)
    with pytest.raises((IntegrityError, ConfigError), match=words):
        zoo.load(TEACHER)


def test_references_keep_their_digits_whatever_type_the_network_is_in(tmp_path: Path) -> None:
    torch.manual_seed(4)
    network = GemNetOC(made.size(elements=(1, 6, 8)))
    references = {"H": -13.587222780835477, "C": -1029.499, "O": -2041.8396}
    told = JMPConfig(
        name=FINE_TUNE,
        network=network.config.model_copy(update={"force_scale": 2.0}),
        references=references,
        level_of_theory="PBE+MBD, MD22",
        source="zoo distill",
        kept="trained",
    )
    write_weights(tmp_path / "weights", told, network)
    config, potential = read_weights(tmp_path / "weights", torch.float32, "cpu")
    assert config.references == references
    assert config.network.force_scale == 2.0
    numbers = torch.tensor([1, 6, 8, 1])
    expected = torch.tensor([references["H"], references["C"], references["O"], references["H"]], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(potential.to(dtype).reference_energies(numbers), expected)
    plain = GemNetOC(network.config.model_copy(update={"force_scale": 2.0}))
    plain.load_state_dict(network.state_dict())
    graph = build_graph(molecule("CH3OH"), 12.0, dtype=torch.float32)
    energy, own = potential.float().predict(graph).energy, plain.predict(graph).energy
    assert float(energy - own) == pytest.approx(4 * references["H"] + references["C"] + references["O"], abs=1e-9)
    with pytest.raises(ConfigError, match="another shape"):
        write_weights(tmp_path / "other", told, GemNetOC(made.size(num_blocks=1)))
    assert not (tmp_path / "other").exists()


def test_the_digest_of_a_teacher_is_of_all_that_decides_what_it_says(file: Path) -> None:
    folder = quietly("jmp-s", file).folder
    first, written = load_teacher(TEACHER).weights_sha256, (folder / "config.json").read_text()
    network = json.loads(written)["network"]
    others = ({"network": network | {"force_scale": 3.0}}, {"references": {"H": -13.6}})
    for changes in others:
        _of_config(**changes)(folder)
        assert load_teacher(TEACHER).weights_sha256 != first
        (folder / "config.json").write_text(written)
    _of_config(source="a copy", citation="somebody")(folder)
    assert load_teacher(TEACHER).weights_sha256 == first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"licence": "WTFPL"}, "zoo does not know the terms of 'WTFPL'"),
        ({"citation": "\x1b[31mred"}, "expected one line of text"),
        ({"level_of_theory": "two\nlines"}, "expected one line of text"),
        ({"source": " "}, "expected one line of text"),
    ],
)
def test_what_is_told_of_weights_is_a_known_licence_and_a_line(file: Path, changes: dict[str, str], words: str) -> None:
    _of_config(**changes)(quietly("jmp-s", file).folder)
    with pytest.raises(ConfigError, match=words):
        load_teacher(TEACHER)


def test_a_text_of_the_user_is_one_line_too(file: Path) -> None:
    refused(file, "'level_of_theory': expected one line", ConfigError, level_of_theory="PBE\n\x1b[31m")


def test_elements_without_a_symbol_are_none(file: Path) -> None:
    folder = quietly("jmp-s", file).folder
    _of_config(network=json.loads((folder / "config.json").read_text())["network"] | {"elements": [1, 119]})(folder)
    with pytest.raises(ConfigError, match="less than or equal to 118"):
        load_teacher(TEACHER)


def test_a_config_without_its_weights_is_no_teacher_and_is_replaced_unasked(file: Path) -> None:
    folder = quietly("jmp-s", file).folder
    (folder / "model.safetensors").unlink()
    assert "its weights are not here" in str(absent(TEACHER))
    with pytest.raises(IntegrityError, match="is missing"):
        read_weights(folder, torch.float32, "cpu")
    quietly("jmp-s", file)
    assert absent(TEACHER) is None


def test_what_a_checkpoint_states_of_its_data_is_kept_and_not_added(tmp_path: Path) -> None:
    path = made.fine_tuned(made.size()).save(tmp_path / "mine.ckpt")
    config = quietly("jmp-s", path, name=FINE_TUNE, energy_scale=2.0).config
    assert config.normalization is not None
    stated = config.normalization.model_dump()
    assert stated == {"energy_mean": -3.2, "energy_std": 0.646, "force_mean": 0.0, "force_std": 1.0899}
    assert (config.network.energy_scale, config.references) == (2.0, {})


def test_what_was_assumed_of_a_fine_tune_is_said(file: Path, tmp_path: Path) -> None:
    path = made.fine_tuned(made.size()).save(tmp_path / "mine.ckpt")
    told = str(quietly("jmp-s", path, name=FINE_TUNE))
    all_of_it = "assumed  theory PBE+MBD, MD22; elements H, C, N, O; cutoff 12 Å; neighbours 30, 20, 8, 1000"
    assert all_of_it in told.splitlines()
    given = quietly("jmp-s", path, name=FINE_TUNE, elements=("H",), level_of_theory="mine", replace=True)
    assert "assumed  cutoff 12 Å; neighbours 30, 20, 8, 1000" in str(given).splitlines()
    assert "assumed" not in str(quietly("jmp-s", file))


@pytest.mark.parametrize(
    "stated", [{"cutoff": 6.0}, {"cutoffs": {"main": 12, "aint": 6.0}}, {"backbone": {"cutoff": 6}}]
)
def test_a_fine_tune_of_another_cutoff_is_refused(tmp_path: Path, stated: dict[str, Any]) -> None:
    one = made.fine_tuned(made.size())
    one.content["hyper_parameters"].update(stated)
    path = one.save(tmp_path / "mine.ckpt")
    refused(path, "states a cutoff of 6 Å, and zoo runs fine-tunes with 12 Å alone", ConfigError, name=FINE_TUNE)
    one.content["hyper_parameters"].update({key: {"cutoff": 12} for key in stated})
    one.save(path)
    assert "cutoff 12" not in str(quietly("jmp-s", path, name=FINE_TUNE))


# --- names ------------------------------------------------------------------------------------------


def test_a_teacher_that_is_not_here_says_how_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    words = (
        r"zoo convert jmp-l --download --accept-licence "
        r"\(3.7 GB from jmp-iclr-datasets.s3.amazonaws.com, CC-BY-NC-4.0, 0.9 GB kept\), "
        "or, with a copy of your own: zoo convert jmp-l FILE$"
    )
    for ask in (load_teacher, zoo.load):
        with pytest.raises(MissingPackageError, match=words):
            ask("jmp-l/teacher")
    both = f"make it with: zoo distill {FINE_TUNE}, or convert .*: zoo convert jmp-s FILE --name {FINE_TUNE}$"
    with pytest.raises(NotReleasedError, match=both):
        load_teacher(FINE_TUNE)
    with pytest.raises(ConfigError, match=r"on no hub, .* zoo convert jmp-l"):
        pull("jmp-l/teacher")


def test_a_fine_tune_that_no_hub_has_names_both_ways_to_it(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    with pytest.raises(NotReleasedError, match=f"run: zoo distill {FINE_TUNE}, or convert .* --name {FINE_TUNE}"):
        zoo.load(FINE_TUNE, hub=tmp_path / "hub")


def test_a_fine_tune_is_loaded_from_here_unless_a_hub_is_named(tmp_path: Path) -> None:
    quietly("jmp-s", made.fine_tuned(made.size()).save(tmp_path / "mine.ckpt"), name=FINE_TUNE)
    assert zoo.load(FINE_TUNE).name == FINE_TUNE
    (tmp_path / "hub").mkdir()
    for options in ({"hub": tmp_path / "hub"}, {"revision": "v1", "hub": tmp_path / "hub"}):
        with pytest.raises(NotReleasedError):
            zoo.load(FINE_TUNE, **options)


@pytest.mark.parametrize("name", [TEACHER, FINE_TUNE])
def test_what_is_known_before_and_after_a_conversion(name: str, file: Path, tmp_path: Path) -> None:
    before = stated_traits(name)
    assert absent(name) is not None
    assert before.features == 256
    assert not before.conservative
    assert before.energies
    path = file if name == TEACHER else made.fine_tuned(made.size()).save(tmp_path / "mine.ckpt")
    quietly("jmp-s", path, name=name)
    assert absent(name) is None
    assert stated_traits(name) == replace(before, features=10) == load_teacher(name).potential.traits


def test_a_dry_run_is_whole_without_weights_and_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.estimate.rates._step_rate", lambda *arguments: (None, "not asked"))
    run = Run.of(read_recipe("jmp-l/buckyball-catcher-student"), tmp_path / "run")
    lines = text(estimate(run, measure=False))
    assert "missing     teacher jmp-l/md22-teacher: nobody has published this fine-tune; make it with" in lines
    assert "the teacher cannot run here" in text(estimate(run))


def test_each_fine_tune_is_of_a_family_that_can_be_converted() -> None:
    assert {name.partition("/")[0] for name in FINE_TUNED} == set(PUBLISHED)


# --- fetched ----------------------------------------------------------------------------------------


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("zoo.data.download.PAUSES", (0.01, 0.01))
    with serving() as one:
        yield one


def publish(site: Site, file: Path, monkeypatch: pytest.MonkeyPatch, **facts: Any) -> str:
    """The file as what its authors give out for jmp-s."""
    url = site.put(file.read_bytes(), "jmp-s.pt")
    body = file.read_bytes()
    known = {"url": url, "network": made.size(), "bytes": len(body), "etag": _etag(body)} | facts
    monkeypatch.setitem(PUBLISHED, "jmp-s", replace(PUBLISHED["jmp-s"], **known))
    return url


def _etag(body: bytes) -> str:
    return hashlib.md5(hashlib.md5(body).digest()).hexdigest() + "-1"


def ask(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def test_what_the_authors_publish_is_fetched_converted_and_removed(
    site: Site, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = publish(site, file, monkeypatch)
    site.troubles.append(Trouble(cut=100_000))
    refused = ask("jmp-s", "--download")
    assert refused.exit_code == 1
    assert "allows no commercial use" in refused.output
    assert "to accept it run: zoo convert jmp-s --download --accept-licence" in refused.output
    assert not site.seen
    result = ask("jmp-s", "--download", "--accept-licence")
    assert result.exit_code == 0, result.output
    assert "licence: CC-BY-NC-4.0, not for commercial use" in result.output
    assert load_teacher(TEACHER).name == TEACHER
    config = read_json(JMPConfig, weights_folder(TEACHER) / "config.json")
    assert (config.source, config.source_bytes) == (url, file.stat().st_size)
    assert list((cache_root() / "downloads").iterdir()) == []
    again = ask("jmp-s", "--download")
    assert again.exit_code == 1
    assert "has weights already" in again.output
    assert len(site.seen) == 2  # the second went on, and a third was not asked for


def test_a_key_in_an_address_is_not_kept(site: Site, file: Path) -> None:
    site.put(file.read_bytes(), "mine.pt?key=secret")
    conversion = quietly("jmp-s", f"{site.url}/mine.pt?key=secret")
    assert conversion.config.source == f"{site.url}/mine.pt"


@pytest.mark.parametrize("trouble", [None, Trouble(status=403), Trouble(status=404)])
def test_a_key_in_an_address_is_not_shown(site: Site, file: Path, trouble: Trouble | None) -> None:
    site.put(file.read_bytes(), "mine.pt?key=secret")
    site.always = trouble
    address = site.url.replace("://", "://somebody:password@")
    told = ask("jmp-s", f"{address}/mine.pt?key=secret").output
    assert f"{site.url}/mine.pt\n" in told
    for secret in ("secret", "somebody", "password"):
        assert secret not in told
    both = ask("jmp-s", f"{address}/mine.pt?key=secret", "--download").output
    assert "give one of them" in both
    assert "secret" not in both
    assert "is no address" in ask("jmp-s", "http://[secret").output


def test_two_conversions_of_one_download_both_succeed(
    site: Site, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one removes what was fetched when the other has written."""
    url = publish(site, file, monkeypatch)

    def late(*arguments: Any) -> JMPConfig:
        config = write_tensors(*arguments)
        for path in (cache_root() / "downloads").iterdir():
            path.unlink()
        return config

    monkeypatch.setattr("zoo.convert.write_tensors", late)
    assert quietly("jmp-s", url, to=tmp_path / "there").folder == tmp_path / "there"


def test_another_size_and_another_digest_are_refused_and_what_came_is_kept(
    site: Site, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(site, file, monkeypatch, bytes=file.stat().st_size + 1)
    assert "announces" in ask("jmp-s", "--download", "--accept-licence").output
    publish(site, file, monkeypatch, etag="0" * 32 + "-1")
    told = ask("jmp-s", "--download").output
    assert "from third hand alone" in told
    assert "--accept-digest" in told
    assert not (cache_root() / "teachers").exists()
    asked = len(site.seen)
    assert ask("jmp-s", "--download", "--accept-digest").exit_code == 0
    assert len(site.seen) == asked  # what came is not fetched again


def test_a_page_in_the_place_of_the_file_is_refused(site: Site) -> None:
    site.always = Trouble(status=403)
    site.put(b"", "mine.pt")
    with pytest.raises(AccessError, match="refuses"):
        quietly("jmp-s", f"{site.url}/mine.pt")


def test_the_etag_of_a_file_in_parts(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"aaabbbc")
    parts = b"".join(hashlib.md5(part).digest() for part in (b"aaa", b"bbb", b"c"))
    assert etag_of(tmp_path / "file", 3) == hashlib.md5(parts).hexdigest() + "-3"


# --- the command ------------------------------------------------------------------------------------


def test_without_a_file_it_says_what_there_is_and_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", None)
    result = ask("jmp-l")
    assert result.exit_code == 0
    for words in ("jmp-l.pt", "3.7 GB, 3,749,529,931 bytes", "CC-BY-NC-4.0", "zoo convert jmp-l --download"):
        assert words in result.output
    offline = ask("jmp-l", "--download")
    assert offline.exit_code == 1
    assert "HF_HUB_OFFLINE is set" in offline.output


def test_help_shows_the_addresses_that_are_published() -> None:
    told = ask("--help").output
    assert all(published.url in told for published in PUBLISHED.values())


def test_options_of_the_command_reach_the_conversion(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PUBLISHED, "jmp-s", replace(PUBLISHED["jmp-s"], network=made.size()))
    options = ["--head", "transition1x", "--weights", "raw", "--energy-scale", 3, "--force-scale", 4]
    options += ["--elements", "O, H", "--level-of-theory", "of mine", "--to", tmp_path / "there"]
    result = ask("jmp-s", file, *options)
    assert result.exit_code == 0, result.output
    config, potential = read_weights(tmp_path / "there", torch.float64, "cpu")
    assert (config.head, config.kept, config.level_of_theory) == ("transition1x", "raw", "of mine")
    assert (potential.config.energy_scale, potential.config.force_scale, potential.elements) == (3, 4, (1, 8))
    assert f"jmp-s/teacher is in {tmp_path / 'there'}" in result.output
    assert "energies relative" in result.output
    refusal = ask("jmp-s", tmp_path / "none.pt")
    assert refusal.exit_code == 1
    assert refusal.output.startswith("zoo: there is no file")
    assert "give one of them" in ask("jmp-s", file, "--download").output
    assert ask("jmp-m").exit_code == 2
