"""GemNet-OC fine-tuned from a teacher's weights, made a teacher, and distilled: the whole chain, small."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from test_gemnet_oc import TINY as SHAPE

import zoo
from recipes import frames_data, silicon_clusters
from zoo.config import parse
from zoo.errors import CapabilityError, ConfigError, ZooWarning
from zoo.evaluate.report import Report
from zoo.fine_tuned import keep_as_teacher
from zoo.gemnet_oc.config import GemNetOCConfig
from zoo.gemnet_oc.layers import ScaleFactor
from zoo.gemnet_oc.network import GemNetOC
from zoo.neighbors import build_graph
from zoo.pipeline import distill, evaluate, train_student
from zoo.recipe import Recipe
from zoo.run import Run
from zoo.students import GemNetOCStudent, GemNetOCStudentConfig, build_student
from zoo.teachers import load_teacher
from zoo.teachers.jmp import JMPConfig, weights_folder, write_weights
from zoo.teachers.jmp.weights import read_config

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

_SHAPE = {key: value for key, value in SHAPE.items() if key not in ("cutoff",)} | {
    "emb_size_atom": 8,
    "emb_size_edge": 12,
    "max_neighbors": 30,
    "max_neighbors_aeaint": 20,
    "max_neighbors_qint": 8,
}
_STUDENT = {"architecture": "gemnet-oc", "elements": ["Si"], "cutoff": 4.0, "forces": "direct", **_SHAPE}
_DATASET = {"energy": 5, "force": 100, "energy_from": "dataset", "force_from": "dataset"}


def pretrained(seed: int = 0, **fields: Any) -> GemNetOC:
    """A small network that stands for the pre-trained one."""
    torch.manual_seed(seed)
    network = GemNetOC(GemNetOCConfig(**(_SHAPE | {"cutoff": 3.5, "energy_bias": True, "elements": (14,)} | fields)))
    for module in network.modules():
        if isinstance(module, ScaleFactor):
            module.scale_factor.uniform_(0.8, 1.3)
    return network.eval()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def convert(network: GemNetOC) -> None:
    """Puts a network where the converted weights of JMP-S would be."""
    config = JMPConfig(
        name="jmp-s/teacher",
        network=network.config,
        references={},
        level_of_theory="none, a test",
        licence="CC-BY-NC-4.0",
        citation="none, a test",
        source="test",
        source_sha256="0" * 64,
        source_bytes=1,
        kept="raw",
    )
    write_weights(weights_folder("jmp-s/teacher"), config, network)


def teacher_recipe(folder: Path, clusters: list[Atoms] | None = None, **changes: Any) -> Recipe:
    """A recipe that fine-tunes the small network on five atoms of silicon, or on other molecules."""
    own: dict[str, Any] = {
        "name": "jmp-s/md22-teacher",
        "licence": "CC-BY-NC-4.0",
        "teacher": {"name": "jmp-s/teacher", "dtype": "float32"},
        "labels": {"probes": "none"},
        "student": _STUDENT,
        "loss": _DATASET,
        "training__start": "teacher",
        "training__steps": 120,
        "training__learning_rate": 0.02,
    }
    return parse(Recipe, frames_data(folder, clusters, **(own | changes)), "the small fine-tune")


def student_recipe(folder: Path, clusters: list[Atoms] | None = None, **changes: Any) -> Recipe:
    """A recipe in which the fine-tuned network teaches a conservative PaiNN, with columns of its Jacobian."""
    own: dict[str, Any] = {
        "name": "jmp-s/tiny-student",
        "licence": "CC-BY-NC-4.0",
        "teacher": {"name": "jmp-s/md22-teacher", "dtype": "float32"},
        "labels": {"probes": "rademacher", "probes_per_structure": 2, "side": "columns", "forward_mode": True},
        "training__steps": 20,
    }
    return parse(Recipe, frames_data(folder, clusters, **(own | changes)), "the small student of a fine-tune")


# --- the student ----------------------------------------------------------------------------------


def student(seed: int = 1, **changes: Any) -> GemNetOCStudent:
    config = parse(GemNetOCStudentConfig, _STUDENT | changes, "the student")
    built = build_student(config, torch.Generator().manual_seed(seed))
    assert isinstance(built, GemNetOCStudent)
    return built


def test_all_but_the_heads_are_the_teachers_weights() -> None:
    teacher, started = pretrained(), student()
    before = {name: tensor.clone() for name, tensor in started.network.state_dict().items()}
    started.start_from(teacher)
    for name, tensor in started.network.state_dict().items():
        expected = before[name] if name.startswith("out_") else teacher.state_dict()[name]
        assert torch.equal(tensor, expected), name
    graph = build_graph(silicon_clusters(1)[0], 3.5, dtype=torch.float32)
    own = started.predict(graph, features=True).features
    assert torch.equal(own, teacher.predict(graph, features=True).features)


def test_a_force_branch_may_be_left_behind_but_not_made_up() -> None:
    student(forces="gradient").start_from(pretrained())
    with pytest.raises(CapabilityError, match="set it to gradient"):
        student().start_from(pretrained(forces="gradient"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"emb_size_edge": 13}, r"student\.emb_size_edge is 13, but the teacher's network has 12"),
        ({"max_neighbors": 29}, r"student\.max_neighbors is 29, .* has 30"),
    ],
)
def test_a_network_of_another_shape_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CapabilityError, match=message):
        student(**changes).start_from(pretrained())


def test_weights_come_from_the_generator_alone() -> None:
    first, second, other = student(1), student(1), student(2)
    for one, two, three in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
        assert one.dim() < 2 or not torch.equal(one, three)


def test_scale_and_references_are_those_of_the_training_set() -> None:
    built = student().double()
    built.start_from(pretrained().double())
    graph = build_graph(silicon_clusters(1)[0], 4.0)
    plain = built.predict(graph)
    built.scale.fill_(3.0)
    built.references.fill_(-7.0)
    scaled = built.predict(graph)
    assert torch.allclose(scaled.forces, 3 * plain.forces)
    assert scaled.energy.item() == pytest.approx(3 * plain.energy.item() - 35)


# --- what a recipe may say ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__start": "fresh"}, "set start: teacher for it alone"),
        (
            {"student": {"architecture": "painn", "elements": ["Si"], "channels": 8, "layers": 1, "cutoff": 4.0}},
            "set start: teacher for it alone",
        ),
        ({"student": _STUDENT | {"basis_cutoff": 3.0}}, "basis_cutoff 3 Å is below the cutoff"),
        ({"student": _STUDENT | {"teacher_channels": 8}}, "teacher_channels"),
    ],
)
def test_a_recipe_that_cannot_fine_tune_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        teacher_recipe(tmp_path, **changes)


def test_a_teacher_of_another_network_is_refused_before_labels_are_made(tmp_path: Path) -> None:
    convert(pretrained(emb_size_edge=14))
    with pytest.raises(CapabilityError, match=r"student\.emb_size_edge is 12, but the teacher's network has 14"):
        train_student(Run(teacher_recipe(tmp_path), tmp_path / "run"))
    assert not list((tmp_path / "run" / "labels").glob("*/*.safetensors"))


# --- the chain ------------------------------------------------------------------------------------


def _errors(report: Report) -> tuple[float, float]:
    """Of forces, of the fine-tuned network and of the one before (meV/Å)."""
    return float(report.student.dataset_force_mae_meV_A or "nan"), float(
        report.teacher.dataset_force_mae_meV_A or "nan"
    )


def test_a_fine_tune_goes_on_where_it_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(pretrained())
    recipe = teacher_recipe(tmp_path, training__steps=14)
    whole = train_student(Run(recipe, tmp_path / "whole")).state_dict()
    step = zoo.distill.train.train_step
    calls = iter(range(100))

    def stops(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 9:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    monkeypatch.setattr("zoo.distill.train.train_step", stops)
    with pytest.raises(KeyboardInterrupt):
        train_student(Run(recipe, tmp_path / "cut"))
    monkeypatch.undo()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    resumed = train_student(Run(recipe, tmp_path / "cut")).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(("forces", "steps"), [("direct", 120), ("gradient", 30)])
def test_the_chain_from_pretrained_weights_to_a_student_of_the_fine_tune(
    tmp_path: Path, forces: str, steps: int
) -> None:
    convert(pretrained())
    recipe = teacher_recipe(tmp_path, student=_STUDENT | {"forces": forces}, training__steps=steps)
    run = Run(recipe, tmp_path / "fine-tune")
    model = distill(run)
    tuned, before = _errors(evaluate(run))
    assert tuned < before, "it learned from the labels of the data"

    engine, teacher = zoo.load(model, dtype="float64"), load_teacher("jmp-s/md22-teacher", dtype=torch.float64)
    atoms = silicon_clusters(10)[9]
    told = teacher.potential.predict(build_graph(atoms, teacher.potential.cutoff))
    assert told.energy.item() == pytest.approx(engine.predict(atoms)[0].energy.item(), abs=1e-6)
    assert np.allclose(told.forces, engine.predict(atoms)[0].forces, atol=1e-6)
    assert teacher.potential.traits.conservative == (forces == "gradient")
    assert zoo.load("jmp-s/md22-teacher").provenance.licence == "CC-BY-NC-4.0"

    sides = {} if forces == "direct" else {"labels": {"probes": "rademacher", "probes_per_structure": 2}}
    taught = distill(Run(student_recipe(tmp_path, **sides), tmp_path / "student"))
    student = zoo.load(taught)
    assert student.provenance.teacher == "jmp-s/md22-teacher"
    assert student.check().passed


@pytest.mark.slow
def test_the_chain_on_ethanol_with_labels_of_density_functional_theory(tmp_path: Path, samples: Path) -> None:
    frames = ase.io.read(samples / "rmd17_ethanol_xyz" / "train.xyz.gz", index="0:12")
    elements = {"elements": ["H", "C", "O"]}
    convert(pretrained(elements=(1, 6, 8)))
    run = Run(teacher_recipe(tmp_path, frames, student=_STUDENT | elements), tmp_path / "fine-tune")
    distill(run)
    tuned, before = _errors(evaluate(run))
    assert tuned < before
    painn = {"architecture": "painn", "channels": 8, "layers": 1, "radials": 6, "cutoff": 4.0, **elements}
    taught = distill(Run(student_recipe(tmp_path, frames, student=painn), tmp_path / "student"))
    assert zoo.load(taught).check().passed


def test_converted_weights_stay_until_they_are_removed_and_those_of_a_distillation_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, network = "jmp-s/md22-teacher", pretrained()
    folder = weights_folder(name)
    told = {"level_of_theory": "none, a test", "source_sha256": "0" * 64}
    mine = JMPConfig(name=name, network=network.config, source="mine.ckpt", kept="ema", **told)
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"of a run")
    lineage = SimpleNamespace(level_of_theory="none, a test", teacher="jmp-s/teacher")
    config = SimpleNamespace(name=name, licence="CC-BY-NC-4.0", lineage=lineage)
    monkeypatch.setattr("zoo.fine_tuned.read_model_folder", lambda path: (config, student(), None))
    write_weights(folder, mine, network)
    with pytest.warns(ZooWarning, match=f"stays what was converted from mine.ckpt; .* run: rm -r {folder}, and the"):
        assert keep_as_teacher(model) == folder
    assert read_config(folder).source == "mine.ckpt"
    shutil.rmtree(folder)
    keep_as_teacher(model)
    first = read_config(folder)
    (model / "model.safetensors").write_bytes(b"of another run")
    keep_as_teacher(model)
    assert (first.kept, read_config(folder).kept) == ("trained", "trained")
    assert first.source_sha256 != read_config(folder).source_sha256
