"""Node features and element embeddings of foundation models reach the training: n2n and a2a, by the pipeline itself."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_teachers import small_weights
from torch import Tensor

from recipes import TINY, tiny_recipe
from zoo.distill.checkpoint import TrainingState
from zoo.distill.examples import make_examples
from zoo.distill.loss import Example, loss_terms, make_batch
from zoo.distill.task import Task
from zoo.distill.train import start
from zoo.pipeline import labels_digest, read_labels, train_student
from zoo.potential import given
from zoo.run import Run

pytestmark = [  # e3nn and mace compile functions so, and what they import warns
    pytest.mark.filterwarnings("ignore:`torch.jit"),
    pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning"),
    pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD:UserWarning"),
]
TEACHERS = {"sevennet-0/teacher": 128, "mace-mp-0-small/teacher": 6}  # channels of features, and of the embedding
SECTIONS = {
    "structures__crystal": {"formula": "SiC", "prototype": "zincblende", "lattice_constant": 4.36},
    "structures__groups": [
        group | {"count": 2} for group in TINY["structures"]["groups"] if group["kind"] == "rattled"
    ],
    "labels": {"probes_per_structure": 1, "extras": ["features"]},
    "loss": {"energy": 5, "force": 100, "feature": 1000},
    "training__steps": 6,
    "training__warmup_steps": 1,
    "training__log_every": 1,
    "training__validate_every": 3,
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("sevennet-0/teacher", marks=pytest.mark.sevennet),
        pytest.param("mace-mp-0-small/teacher", marks=pytest.mark.mace),
    ],
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A finished training; MACE's weights are random."""
    name: str = request.param
    student = TINY["student"] | {"elements": ["C", "Si"], "teacher_channels": TEACHERS[name]}
    recipe = tiny_recipe(teacher={"name": name, "dtype": "float32"}, student=student, **SECTIONS)
    with _weights(name):
        run = Run.of(recipe, tmp_path_factory.mktemp("signals"))
        train_student(run)
        yield run


def _weights(name: str) -> AbstractContextManager[Any]:
    return small_weights(name) if name.startswith("mace-") else nullcontext()


@pytest.fixture
def examples(run: Run) -> list[Example]:
    return make_examples(*read_labels(run, "train"), run.recipe.student.cutoff, torch.float32)


@pytest.fixture
def state(run: Run, examples: list[Example]) -> TrainingState:
    """What the checkpoint of the run says; it is refused where it is of another task."""
    recipe = run.recipe
    data = labels_digest(run.folder / "labels", recipe.labelled)
    task = Task(recipe.student, recipe.training, recipe.loss, recipe.seed, data, recipe.labels)
    found = start(run.folder / "train", task, examples, run.teacher)
    assert found.step == recipe.training.steps
    return found


def _gradients(state: TrainingState, run: Run, examples: list[Example], term: str) -> dict[str, Tensor]:
    """Of one term, by the parameters of the student that it depends on."""
    batch = make_batch(examples, [torch.zeros(0, dtype=torch.long)] * len(examples))
    value = loss_terms(state.student, batch, run.recipe.loss, state.apprentice.projection)[term]
    parameters = dict(state.student.named_parameters())
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {name: one for name, one in zip(parameters, found, strict=True) if one is not None}


def test_the_loss_of_each_step_has_a_term_of_the_teachers_features(run: Run) -> None:
    lines = (run.folder / "train" / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["split"] == "train"]
    assert len(records) == 6
    weights = run.recipe.loss.weights
    for record in records:
        assert record["feature"] > 0
        assert record["loss"] == pytest.approx(sum(weights[term] * record[term] for term in weights), rel=1e-5)
    assert records[-1]["feature"] < records[0]["feature"]


def test_stored_features_are_what_the_teacher_says_and_tell_atoms_apart(run: Run, examples: list[Example]) -> None:
    potential = run.teacher.potential
    assert potential.traits.features == TEACHERS[run.teacher.name]
    for example in examples:
        stored = given(example.teacher.features)  # (atoms, channels)
        assert stored.shape == (len(example.atoms), potential.traits.features)
        assert torch.pdist(stored).min() > 1e-4 * stored.abs().max(), "each atom has neighbours of its own"


def test_gradients_of_the_student_depend_on_the_teachers_features(
    run: Run, state: TrainingState, examples: list[Example]
) -> None:
    real = _gradients(state, run, examples, "feature")
    of_others = [replace(one.teacher, features=-given(one.teacher.features).flip(0)) for one in examples]
    changed = [replace(one, teacher=teacher) for one, teacher in zip(examples, of_others, strict=True)]
    other = _gradients(state, run, changed, "feature")
    layers = [name for name in real if real[name].abs().max() > 0]
    assert {"embedding.linear.weight"} < set(layers)
    assert len(layers) > 10, "all layers before the features"
    for name in layers:
        assert (real[name] - other[name]).abs().max() > 1e-3 * real[name].abs().max(), name


def test_the_student_has_the_teachers_table_of_elements_and_gradients_depend_on_it(
    run: Run, state: TrainingState, examples: list[Example]
) -> None:
    potential = run.teacher.potential
    rows = given(potential.element_embeddings())[[potential.elements.index(number) for number in (6, 14)]]
    stored = load_file(run.folder / "train" / "model.safetensors")["embedding.table"]
    torch.testing.assert_close(stored, rows.detach().float(), rtol=0, atol=0)
    assert (stored[0] - stored[1]).abs().max() > 1e-3
    real = _gradients(state, run, examples, "force")["embedding.linear.weight"]
    assert real.abs().max() > 0
    state.student.embedding.table.copy_(stored.flip(0))
    other = _gradients(state, run, examples, "force")["embedding.linear.weight"]
    assert (real - other).abs().max() > 0.01 * real.abs().max()
