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
from zoo.config import digest, read_yaml
from zoo.distill.checkpoint import Plateau
from zoo.distill.compiled import CompiledGradient
from zoo.distill.examples import make_examples
from zoo.distill.metrics import peak_memory
from zoo.distill.rounds import Explored, Found, train_in_rounds
from zoo.distill.task import Task
from zoo.distill.train import CHECKPOINT, descend, learning_rate, read_weights, start, train
from zoo.distill.workers import Workers
from zoo.errors import ConfigError, DivergedError, IntegrityError
from zoo.pipeline import make_labels, read_labels, train_student
from zoo.recipe import TrainingSection, read_recipe, to_yaml
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


JUMPY = {  # a rate at which validation errors jump about, and what else the paper sets
    "training__schedule": "plateau",
    "training__plateau_factor": 0.5,
    "training__plateau_patience": 1,
    "training__learning_rate": 0.1,
    "training__ema_decay": 0.0,
    "training__steps": 28,
    "training__validate_every": 3,
    "training__checkpoint_every": 5,
    "training__amsgrad": True,
    "training__epsilon": 1e-7,
}


def test_stopped_at_any_step_its_learning_rate_falls_where_it_would_have(examples, tmp_path, interrupted_at):
    fit(tmp_path / "whole", examples, **JUMPY)
    expected = content(tmp_path / "whole")
    falls = [record["step"] for record in records(tmp_path / "whole", "event")]
    assert len(falls) >= 2
    for stop in sorted({7, falls[0], falls[0] + 1, falls[1], falls[1] + 1, 27}):
        folder = tmp_path / str(stop)
        with interrupted_at(stop):
            fit(folder, examples, **JUMPY)
        fit(folder, examples, **JUMPY)
        assert content(folder) == expected, f"stopped at step {stop}"


def rates_of(folder, examples, monkeypatch, errors, term="force", **changes) -> list[float]:
    """The learning rates up to each validation of a training whose validation errors are these."""
    told = iter(errors)
    monkeypatch.setattr(module, "validation_terms", lambda *rest: {term: torch.tensor(next(told))})
    plan = {"schedule": "plateau", "warmup_steps": 0, "steps": len(errors), "validate_every": 1, "learning_rate": 0.01}
    fit(folder, examples, **{f"training__{key}": value for key, value in (plan | changes).items()})
    return [record["learning_rate"] for record in records(folder, "validation")]


HALVES = {"plateau_factor": 0.5, "plateau_patience": 2}
BY_HAND = {  # errors, and how often the rate has been halved by when each is measured
    "never better": ([5.0, 6, 6, 6, 6, 6, 6, 6], [0, 0, 0, 0, 1, 1, 1, 2]),
    "as good is no better": ([5.0, 5, 5, 5, 5], [0, 0, 0, 0, 1]),
    "hardly better is no better": ([5.0, 4.9999, 4.9998, 4.9996, 4.9], [0, 0, 0, 0, 1]),
    "better in time": ([5.0, 6, 6, 4, 6, 6, 6, 6], [0, 0, 0, 0, 0, 0, 0, 1]),
    "better than the one before, not than the best": ([5.0, 8, 7, 6, 5.5], [0, 0, 0, 0, 1]),
    "the best before a fall still counts": ([5.0, 6, 6, 6, 5.5, 5.5, 5.5, 4], [0, 0, 0, 0, 1, 1, 1, 2]),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_the_learning_rate_falls_when_errors_stay(case, examples, tmp_path, monkeypatch):
    errors, halved = BY_HAND[case]
    rates = rates_of(tmp_path, examples, monkeypatch, errors, **HALVES)
    assert rates == pytest.approx([0.01 * 0.5**times for times in halved])


@pytest.mark.parametrize("patience", [1, 5, 10])
def test_it_falls_as_with_pytorch(patience):
    """Its own ReduceLROnPlateau, at the settings of the paper, on errors that fall slowly and jump about."""
    random = torch.Generator().manual_seed(patience)
    errors = (torch.linspace(1, 0.9, 400) + 0.1 * torch.rand(400, generator=random)).tolist()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.8, patience=patience, min_lr=5e-6)
    own = {"schedule": "plateau", "plateau_patience": patience, "learning_rate": 0.01, "final_learning_rate": 5e-6}
    training, plateau = tiny_recipe(**{f"training__{key}": value for key, value in own.items()}).training, Plateau()
    for number, error in enumerate(errors):
        schedule.step(error)
        plateau = plateau.after(error, training.plateau_patience)
        rate = learning_rate(training, 5, plateau)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), number
    assert plateau.falls > 10


def test_it_never_falls_below_the_final_one_and_says_each_fall(examples, tmp_path, monkeypatch):
    own = {"plateau_factor": 0.5, "plateau_patience": 1, "final_learning_rate": 0.003}
    rates = rates_of(tmp_path, examples, monkeypatch, [1.0] * 12, **own)
    assert rates == pytest.approx([0.01] * 3 + [0.005] * 2 + [0.003] * 7)
    said = [(event["step"], event["what"]) for event in records(tmp_path, "event")]
    assert said == [(3, "the learning rate falls to 0.005"), (5, "the learning rate falls to 0.003")]


@pytest.mark.parametrize("term", ["teacher_force", "stress", "energy"])
def test_where_forces_are_not_learned_another_error_is_watched(term, examples, tmp_path, monkeypatch):
    rates = rates_of(tmp_path, examples, monkeypatch, [1.0, 1, 1, 1, 1], term, **HALVES)
    assert rates == pytest.approx([0.01] * 4 + [0.005])


def test_the_force_error_is_watched_before_all_others(examples, tmp_path, monkeypatch):
    told = [{"energy": e, "stress": e, "teacher_force": e, "force": 1.0} for e in (5.0, 4, 3, 2, 1)]
    terms = iter([{name: torch.tensor(value) for name, value in one.items()} for one in told])
    monkeypatch.setattr(module, "validation_terms", lambda *rest: next(terms))
    plan = {"schedule": "plateau", "warmup_steps": 0, "steps": 5, "validate_every": 1, **HALVES}
    fit(tmp_path, examples, **{f"training__{key}": value for key, value in plan.items()})
    assert [event["step"] for event in records(tmp_path, "event")] == [4]


def test_it_warms_up_before_a_plateau_too():
    training = tiny_recipe(training__schedule="plateau", training__plateau_factor=0.5).training
    rates = [learning_rate(training, step, Plateau()) for step in range(40)]
    assert rates == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3] + [5e-3] * 36)
    assert learning_rate(training, 39, Plateau(falls=2)) == pytest.approx(1.25e-3)
    assert learning_rate(training, 1, Plateau(falls=2)) == pytest.approx(5e-4)


def test_another_process_takes_the_plateau_of_the_main_one(examples, tmp_path):
    told = []

    class First(Workers):
        def tell(self, value):
            told.append(value)
            return value

    class Second(Workers):
        def tell(self, value):
            return told.pop(0)

    fit(tmp_path, examples, **JUMPY)
    task = task_of(**JUMPY)
    main = start(tmp_path, task, examples["train"], None, First(rank=0, size=2))
    other = start(tmp_path / "nobody", task, examples["train"], None, Second(rank=1, size=2))
    assert not told
    assert other.plateau == main.plateau != Plateau()


@pytest.mark.parametrize("amsgrad", [False, True])
def test_two_steps_by_hand(amsgrad, examples, tmp_path):
    """AdamW as in Loshchilov and Hutter; amsgrad keeps the larger second moment when gradients shrink."""
    task = task_of(
        training__amsgrad=amsgrad, training__epsilon=0.3, training__weight_decay=0.1, training__clip_norm=1e9
    )
    state = start(tmp_path, task, examples["train"])
    parameter = state.student.embedding.weight
    expected, first, second, largest = parameter.detach().double(), 0.0, 0.0, 0.0
    for number, gradient in enumerate((2.0, 0.01), start=1):
        for other in state.apprentice.parameters():
            other.grad = torch.full_like(other, gradient)
        rate = learning_rate(task.training, number - 1)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        largest = max(largest, second) if amsgrad else second
        root = (largest / (1 - 0.999**number)) ** 0.5
        expected = expected * (1 - rate * 0.1) - rate * first / (1 - 0.9**number) / (root + 0.3)
        descend(state, torch.tensor(1.0), task.training)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-6, atol=1e-7)


def test_epochs_are_counted_in_steps_and_are_the_same_training(examples, tmp_path, interrupted_at):
    """Nine structures in batches of four are two batches an epoch, the last structure left out."""
    assert len(examples["train"]) == 9
    counted = {"training__steps": ..., "training__epochs": 5}
    with interrupted_at(8):
        fit(tmp_path / "epochs", examples, **counted)
    fit(tmp_path / "epochs", examples, **counted)
    fit(tmp_path / "steps", examples, training__steps=10)
    assert content(tmp_path / "epochs") == content(tmp_path / "steps")
    assert records(tmp_path / "steps", "validation")[-1]["step"] == 10
    with pytest.raises(ConfigError, match="belongs to other settings"):
        fit(tmp_path / "epochs", examples, training__steps=..., training__epochs=6)


def test_rounds_have_their_epochs_one_after_the_other(examples, labelled, tmp_path):
    """Nine structures in batches of two are four batches; with two that were found they are five, with four six."""
    found = Found(*read_labels(Run.of(tiny_recipe(), labelled), "test"))
    plan = {"steps": ..., "epochs": 2, "batch_size": 2, "validate_every": 3, "schedule": "plateau"}
    task = task_of(**{f"training__{key}": value for key, value in plan.items()})
    train_in_rounds(tmp_path, task, examples["train"], examples["validation"], Explored([found, found]))
    marks = [(record["round"], record["step"]) for record in records(tmp_path, "validation")]
    assert marks[:3] == [(0, 3), (0, 6), (0, 8)]
    assert marks[3:7] == [(1, 11), (1, 14), (1, 17), (1, 18)]
    assert marks[7:] == [(2, 21), (2, 24), (2, 27), (2, 30)]


WRONG = {
    "neither": ({"steps": ...}, "steps is missing; give steps, or epochs in its place"),
    "both": ({"epochs": 3}, "steps is 40 and epochs is 3; give one of the two, remove the other"),
    "no epoch": ({"steps": ..., "epochs": 0}, r"training\.epochs"),
    "factor of a cosine": ({"plateau_factor": 0.5}, "plateau_factor is 0.5, but schedule is cosine, which knows no pl"),
    "patience of a cosine": ({"plateau_patience": 5}, "plateau_patience is 5, .* set schedule: plateau, or remove it"),
    "no patience": ({"schedule": "plateau", "plateau_patience": 0}, r"training\.plateau_patience"),
    "a factor that does not lower": ({"schedule": "plateau", "plateau_factor": 1.0}, r"training\.plateau_factor"),
    "schedule": ({"schedule": "linear"}, r"training\.schedule"),
    "epsilon": ({"epsilon": 0.0}, r"training\.epsilon"),
}


@pytest.mark.parametrize("case", WRONG)
def test_settings_that_cannot_be_are_refused(case):
    changes, message = WRONG[case]
    with pytest.raises(ConfigError, match=message) as error:
        tiny_recipe(**{f"training__{key}": value for key, value in changes.items()})
    assert "\n" not in str(error.value)


def test_the_settings_of_the_paper_can_be_given(tmp_path):
    """As the documentation has them."""
    page = (Path(__file__).parent.parent / "docs" / "distillation.md").read_text()
    block = page.partition("## How long")[2].partition("```yaml\ntraining:\n")[2].partition("```")[0]
    (tmp_path / "training.yaml").write_text(block)
    training = read_yaml(TrainingSection, tmp_path / "training.yaml")
    assert (training.schedule, training.amsgrad, training.epsilon) == ("plateau", True, 1e-7)
    assert training.steps_of(1000) == 1_250_000


def test_the_recipe_of_a_run_reads_back(tmp_path):
    """It spells out every default, those of the other schedule too."""
    for number, changes in enumerate(({}, {"training__steps": ..., "training__epochs": 9}, JUMPY)):
        path = tmp_path / f"{number}.yaml"
        path.write_text(to_yaml(tiny_recipe(**changes)))
        assert read_recipe(path) == tiny_recipe(**changes)


def test_a_training_from_before_there_were_epochs_and_plateaus_is_the_same_training():
    """The digest that its files name is of what a recipe could say then."""
    task = task_of()
    keys = "steps batch_size batch_atoms batch_edges learning_rate final_learning_rate warmup_steps weight_decay"
    keys += " ema_decay clip_norm log_every validate_every checkpoint_every dtype compile"
    training = {key: getattr(task.training, key) for key in keys.split()}
    parts = [part.model_dump(mode="json") for part in (task.config, task.weights, task.labels)]
    assert task.inputs == digest([parts[0], training, *parts[1:], task.seed, task.data, None])
    changed = [task_of(training__amsgrad=True), task_of(training__epsilon=1e-7), task_of(**JUMPY)]
    changed += [task_of(**JUMPY | {"training__plateau_patience": 2}), task_of(training__schedule="plateau")]
    changed += [task_of(training__steps=..., training__epochs=20), task_of(training__steps=..., training__epochs=21)]
    assert len({one.inputs for one in [task, *changed]}) == 8


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
