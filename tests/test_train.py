"""Training: it learns, it can be stopped at any moment, and it keeps what it has when it diverges."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoo.distill.train as module
from recipes import tiny_recipe
from zoo.distill.compiled import CompiledGradient
from zoo.distill.examples import make_examples
from zoo.distill.metrics import peak_memory
from zoo.distill.task import Task
from zoo.distill.train import CHECKPOINT, learning_rate, read_weights, start, train
from zoo.errors import ConfigError, DivergedError, IntegrityError
from zoo.pipeline import make_labels, read_labels, train_student
from zoo.run import Run
from zoo.students import build_student

FILES = ("model.safetensors", "metrics.jsonl", str(CHECKPOINT))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A run folder with labels, to be copied."""
    folder = tmp_path_factory.mktemp("labelled")
    make_labels(Run.of(tiny_recipe(), folder))
    return folder


@pytest.fixture(scope="module")
def examples(labelled):
    recipe = tiny_recipe()
    run = Run.of(recipe, labelled)
    return {
        split: make_examples(*read_labels(run, split), recipe.student.cutoff, torch.float32)
        for split in ("train", "validation")
    }


def task_of(**changes) -> Task:
    recipe = tiny_recipe(**changes)
    return Task(recipe.student, recipe.training, recipe.loss, recipe.seed, "data", recipe.labels)


def fit(folder, examples, **changes):
    return train(folder, task_of(**changes), examples["train"], examples["validation"])


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def records(folder: Path, split: str) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["split"] == split]


def test_it_learns(examples, tmp_path):
    fit(tmp_path, examples, training__steps=150, training__validate_every=10)
    validation = records(tmp_path, "validation")
    assert validation[-1]["force"] < 0.5 * validation[0]["force"]
    assert validation[-1]["hessian"] < validation[0]["hessian"]


def test_stopped_at_any_step_it_ends_with_the_same_files(examples, tmp_path, interrupted_at):
    fit(tmp_path / "whole", examples)
    expected = content(tmp_path / "whole")
    for stop in (0, 6, 7, 20, 39):
        folder = tmp_path / str(stop)
        with interrupted_at(stop):
            fit(folder, examples)
        fit(folder, examples)
        assert content(folder) == expected, f"stopped at step {stop}"


def test_a_captured_step_trains_as_an_eager_one(labelled, tmp_path, monkeypatch):
    """With a compiler that leaves the captured graph as it is; what inductor makes of it is tested with compiled.py."""
    recipe = tiny_recipe()
    exact = {
        split: make_examples(*read_labels(Run.of(recipe, labelled), split), recipe.student.cutoff, torch.float64)
        for split in ("train", "validation")
    }
    made = []

    def capture(apprentice, terms_of):
        made.append(CompiledGradient(apprentice, terms_of, lambda graph, inputs: graph))
        return made[-1]

    monkeypatch.setattr(module, "CompiledGradient", capture)
    for way, compiled in (("eager", False), ("captured", True)):
        fit(tmp_path / way, exact, training__compile=compiled, training__dtype="float64", training__steps=12)
    eager, captured = (records(tmp_path / way, "train") for way in ("eager", "captured"))
    assert [len(gradient.graphs) for gradient in made] == [1]
    assert not made[0].eager
    for one, two in zip(eager, captured, strict=True):
        assert one.pop("split") == two.pop("split") == "train"
        assert one == pytest.approx(two, rel=1e-9)


def test_a_checkpoint_of_other_settings_is_refused(examples, tmp_path):
    fit(tmp_path, examples)
    with pytest.raises(ConfigError, match="belongs to other settings"):
        fit(tmp_path, examples, training__learning_rate=1e-3)


def test_a_gradient_that_explodes_leaves_the_last_good_checkpoint(examples, tmp_path, monkeypatch):
    """A finite loss can have an infinite gradient; its step must not reach the weights, nor the checkpoint."""
    original = torch.nn.utils.clip_grad_norm_
    calls = []

    def explode_at_thirteen(parameters, limit):
        many = list(parameters)
        calls.append(1)
        if len(calls) == 14:
            many[0].grad.fill_(float("inf"))
        return original(many, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", explode_at_thirteen)
    with pytest.raises(DivergedError, match=r"the gradient of the loss is (inf|nan) at step 13"):
        fit(tmp_path, examples)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", original)
    state = read_weights_of_checkpoint(tmp_path / CHECKPOINT)
    assert state
    assert all(tensor.isfinite().all() for tensor in state.values())
    fit(tmp_path, examples)
    fit(tmp_path / "undisturbed", examples)
    assert content(tmp_path) == content(tmp_path / "undisturbed")


@pytest.mark.parametrize("damage", [lambda data: data[:200], lambda data: b"\x80\x04not safetensors"])
def test_a_broken_checkpoint_is_named(examples, tmp_path, damage):
    fit(tmp_path, examples)
    (tmp_path / CHECKPOINT).write_bytes(damage((tmp_path / CHECKPOINT).read_bytes()))
    with pytest.raises(IntegrityError, match=r"delete the folder .* and run the same again"):
        fit(tmp_path, examples)


def test_a_diverging_run_keeps_its_last_good_checkpoint(examples, tmp_path, monkeypatch):
    original = module.weighted_sum
    calls = []

    def explode_at_twenty(terms, weights):
        calls.append(1)
        return original(terms, weights) * (float("nan") if len(calls) > 20 else 1.0)

    monkeypatch.setattr(module, "weighted_sum", explode_at_twenty)
    with pytest.raises(DivergedError, match=r"the loss is nan at step 20; lower training.learning_rate"):
        fit(tmp_path, examples)
    state = read_weights_of_checkpoint(tmp_path / CHECKPOINT)
    assert state
    assert all(tensor.isfinite().all() for tensor in state.values())
    monkeypatch.setattr(module, "weighted_sum", original)
    fit(tmp_path, examples)
    fit(tmp_path / "undisturbed", examples)
    assert content(tmp_path) == content(tmp_path / "undisturbed")


def read_weights_of_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in load_file(path).items() if key.startswith("apprentice.student.")}


def test_broken_weights_are_named(examples, tmp_path):
    student = fit(tmp_path, examples)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(IntegrityError, match="run the same again"):
        read_weights(tmp_path, build_student(student.config))


def test_the_best_so_far_and_the_peak_of_memory_are_reported(examples, tmp_path, monkeypatch):
    shown = []

    class Bar(module.tqdm):
        def set_postfix_str(self, text, refresh=True):
            shown.append(text)

    monkeypatch.setattr(module, "tqdm", Bar)
    fit(tmp_path, examples, training__validate_every=5, training__learning_rate=0.05)
    errors = {record["step"]: record["force"] for record in records(tmp_path, "validation")}
    assert list(errors) == list(range(5, 41, 5))
    best = min(errors, key=errors.get)
    assert len(shown) == len(errors)
    assert shown[-1] == f"best force error {errors[best]:.4f} eV/Å at step {best}"
    state = start(tmp_path, task_of(training__validate_every=5, training__learning_rate=0.05), examples["train"])
    assert state.best == (errors[best], best)
    timing = json.loads((tmp_path / "timing.json").read_text())
    assert timing["seconds"] > 0
    assert 0.05 < timing["peak_memory_GiB"] <= round(peak_memory(), 3)


def test_a_later_round_begins_with_the_weights_of_the_one_before(examples, tmp_path):
    fit(tmp_path / "first", examples)
    weights = tmp_path / "first" / "model.safetensors"
    task = replace(task_of(), initial=weights)
    state = start(tmp_path / "second", task, examples["train"])
    for name, tensor in load_file(weights).items():
        assert torch.equal(state.student.state_dict()[name], tensor)
        assert name not in state.average or torch.equal(state.average[name], tensor)
    assert task.inputs != task_of().inputs
    fresh = start(tmp_path / "third", task_of(), examples["train"])
    assert not torch.equal(fresh.student.embedding.weight, state.student.embedding.weight)


def test_the_learning_rate_rises_and_falls():
    training = tiny_recipe().training
    rates = [learning_rate(training, step) for step in range(training.steps)]
    assert rates[training.warmup_steps - 1] == pytest.approx(training.learning_rate)
    assert rates[0] < rates[1] < rates[training.warmup_steps - 1]
    assert all(a >= b for a, b in zip(rates[training.warmup_steps :], rates[training.warmup_steps + 1 :], strict=False))
    assert rates[-1] < 0.05 * training.learning_rate


def test_a_finished_run_is_reused(labelled, tmp_path, monkeypatch):
    shutil.copytree(labelled, tmp_path / "run")
    student = train_student(Run.of(tiny_recipe(), tmp_path / "run"))
    monkeypatch.setattr("zoo.pipeline.train", lambda *arguments: pytest.fail("trained again"))
    again = train_student(Run.of(tiny_recipe(), tmp_path / "run"))
    for one, two in zip(student.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two)
