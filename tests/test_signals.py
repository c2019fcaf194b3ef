"""All signals at once, from labels to a student: stopped and gone on with, switched, refused where one is lacking."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich_teacher import Rich, WithoutEnergies, labelled_cells, teacher_of

from recipes import tiny_recipe
from zoo.distill.examples import make_examples
from zoo.distill.label import check_teacher, label_plan, label_structures
from zoo.distill.loss import LossSection
from zoo.distill.task import Task, needs_teacher
from zoo.distill.train import CHECKPOINT, read_weights, start, train
from zoo.errors import CapabilityError, ConfigError
from zoo.recipe import LabelsSection, TrainingSection
from zoo.students import GemNetDTConfig, GemNetTConfig, PaiNNConfig, PaiNNDTConfig, build_student
from zoo.teachers import load_teacher

STUDENTS = {
    "painn": PaiNNConfig(elements=("Si",), channels=6, layers=2, radials=4, cutoff=4.0, teacher_channels=4),
    "painn-dt": PaiNNDTConfig(elements=("Si",), channels=6, layers=1, radials=6, cutoff=4.0, teacher_channels=4),
}
SMALL = {
    "elements": ("Si",),
    "blocks": 1,
    "atom_channels": 6,
    "edge_channels": 6,
    "triplet_channels": 4,
    "radial_channels": 4,
    "circular_channels": 4,
    "bilinear_channels": 4,
    "radials": 4,
    "sphericals": 3,
    "cutoff": 3.0,
    "teacher_channels": 4,
}
EVERY = {
    "energy": 5.0,
    "force": 100.0,
    "energy_from": "dataset",
    "force_from": "dataset",
    "stress_from": "dataset",
    "teacher_force": 10.0,
    "hessian": 20.0,
    "hessian_from": "teacher",
    "atomic_energy": 2.0,
    "feature": 50.0,
    "norms": {"teacher_force": "l1", "atomic_energy": "huber"},
}
OF_ITS_KIND = {"painn": {"stress": 100.0}, "painn-dt": {"gradient": 5.0}}
LABELS = LabelsSection(extras=("atomic_energies", "features"))
TRAINING = TrainingSection(
    steps=16,
    batch_size=3,
    batch_atoms=20,
    learning_rate=1e-2,
    warmup_steps=2,
    ema_decay=0.9,
    log_every=1,
    validate_every=4,
    checkpoint_every=3,
)
FILES = ("model.safetensors", "metrics.jsonl", str(CHECKPOINT))


@pytest.fixture(scope="module")
def teacher():
    return teacher_of(Rich())


@pytest.fixture(scope="module")
def structures():
    return labelled_cells(7)


@pytest.fixture(scope="module")
def examples(teacher, structures, tmp_path_factory):
    return labelled(structures, teacher, tmp_path_factory.mktemp("labels"), LABELS)


def labelled(structures, teacher, folder, section, cutoff=4.0):
    plan = label_plan(structures, teacher, section, 0, "float64")
    return make_examples(structures, label_structures(folder, structures, teacher, plan), cutoff, torch.float32)


def task_of(name, **loss) -> Task:
    return Task(STUDENTS[name], TRAINING, LossSection(**EVERY | OF_ITS_KIND[name] | loss), 0, "data", LABELS)


def fit(folder, task, examples, teacher):
    return train(folder, task, examples[:5], examples[5:], teacher)


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def records(folder: Path, split: str) -> list[dict]:
    return [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if r["split"] == split]


@pytest.fixture(scope="module", params=STUDENTS)
def switched(request, examples, teacher, tmp_path_factory):
    """A task whose switch falls at its second validation, at step 8, and the folder of its run, never stopped."""
    name, folder = request.param, tmp_path_factory.mktemp("switched")
    never = task_of(name, hessian_switch={"within": 0.0})
    fit(folder / "never", never, examples, teacher)
    errors = [record["force"] for record in records(folder / "never", "validation")]
    assert errors == sorted(errors, reverse=True)
    own = [(e.teacher.forces - e.dataset.forces).norm(dim=1) for e in examples[5:]]
    within = (errors[0] + errors[1]) / 2 / torch.cat(own).mean().item() - 1
    task = task_of(name, hessian_switch={"within": within, "factor": 0.5})
    fit(folder / "whole", task, examples, teacher)
    return task, folder


def test_each_signal_is_measured_and_the_loss_falls(switched):
    task, folder = switched
    weights = task.weights.weights
    validation = records(folder / "never", "validation")
    assert len(weights) == 8 - ("stress" not in weights) - ("gradient" not in weights)
    first, last = (sum(weights[term] * record[term] for term in weights) for record in (validation[0], validation[-1]))
    assert last < first


def test_energies_of_atoms_are_compared_without_those_of_their_element(switched, examples):
    """What training wrote of the last step, against a sum by hand from the weights that it left."""
    task, folder = switched
    student = read_weights(folder / "whole", build_student(task.config))
    mean = torch.cat([example.teacher.atomic_energies.double() for example in examples[:5]]).mean()
    lengths = []
    for example in examples[5:]:
        own = student.predict(example.graph).atomic_energies - student.references[0]
        for one, two in zip(own.tolist(), (example.teacher.atomic_energies.double() - mean).tolist(), strict=True):
            size = abs(one - two)
            lengths.append(size * size / 2 if size < 0.1 else 0.1 * (size - 0.05))
    recorded = records(folder / "whole", "validation")[-1]["atomic_energy"]
    assert recorded == pytest.approx(sum(lengths) / len(lengths), rel=1e-4)


def test_stopped_at_any_step_with_every_signal_on_it_ends_with_the_same_files(
    switched, examples, teacher, tmp_path, interrupted_at
):
    """Stops before the first checkpoint, at one, before and after the switch, between it and its checkpoint."""
    task, folder = switched
    expected = content(folder / "whole")
    for stop in (0, 3, 5, 8, 9, 13):
        place = tmp_path / str(stop)
        with interrupted_at(stop):
            fit(place, task, examples, teacher)
        fit(place, task, examples, teacher)
        assert content(place) == expected, f"stopped at step {stop}"


def test_the_weight_of_the_hessian_is_halved_exactly_once(switched, examples, teacher):
    task, folder = switched
    events = records(folder / "whole", "event")
    assert [(event["step"], event["what"]) for event in events] == [
        (8, "the weight of the Hessian is lowered by the factor 0.5")
    ]
    weights = task.weights.weights
    for record in records(folder / "whole", "train"):
        by_hand = sum(
            weight * (0.5 if term == "hessian" and record["step"] > 8 else 1) * record[term]
            for term, weight in weights.items()
        )
        assert record["loss"] == pytest.approx(by_hand, rel=1e-6), record["step"]
    assert start(folder / "whole", task, examples[:5], teacher).switched


def test_a_switch_that_is_not_reached_does_not_switch(switched):
    _, folder = switched
    assert not records(folder / "never", "event")
    one, two = (records(folder / name, "train") for name in ("never", "whole"))
    assert one[:8] == two[:8]
    assert one[9] != two[9]


def test_the_switch_compares_with_the_teachers_error_in_the_same_norm(examples, teacher, tmp_path):
    """Just above and just below: the student's first validation error against the teacher's, both of the data set."""
    for norm in ("l2", "squared"):
        base = task_of("painn", norms={"force": norm})
        short = replace(base, training=TRAINING.model_copy(update={"steps": 4}))
        fit(tmp_path / norm, short, examples, teacher)
        error = records(tmp_path / norm, "validation")[0]["force"]
        differences = torch.cat([e.teacher.forces - e.dataset.forces for e in examples[5:]])
        own = differences.norm(dim=1).mean() if norm == "l2" else differences.square().mean()
        ratio = error / own.item() - 1
        for factor, falls in ((1.001, 1), (0.999, 0)):
            task = task_of("painn", norms={"force": norm}, hessian_switch={"within": ratio * factor})
            folder = tmp_path / f"{norm} {factor}"
            fit(folder, replace(task, training=short.training), examples, teacher)
            assert len(records(folder, "event")) == falls


def test_the_projection_is_trained_and_thrown_away(switched, examples, teacher):
    task, folder = switched
    fresh = start(folder / "nothing", task, examples[:5], teacher)
    trained = start(folder / "whole", task, examples[:5], teacher)
    assert fresh.apprentice.projection.weight.shape == (5, 6)
    for one, two in zip(
        fresh.apprentice.projection.parameters(), trained.apprentice.projection.parameters(), strict=True
    ):
        assert (one - two).abs().max() > 1e-3
    student = read_weights(folder / "whole", build_student(task.config))
    assert not [name for name in student.state_dict() if "projection" in name]


def test_the_teachers_embedding_is_taken_and_never_trained(switched, teacher):
    task, folder = switched
    student = read_weights(folder / "whole", build_student(task.config))
    torch.testing.assert_close(student.embedding.table.double(), teacher.potential.element_embeddings())
    assert needs_teacher(task)


@pytest.mark.parametrize("config", [GemNetTConfig, GemNetDTConfig])
def test_a_gemnet_learns_from_every_signal(config, structures, teacher, tmp_path):
    examples = labelled(structures, teacher, tmp_path / "labels", LABELS, cutoff=3.0)
    student = config(**SMALL)
    loss = EVERY | ({"gradient": 5.0} if student.direct else {"stress": 100.0})
    task = Task(student, TRAINING, LossSection(**loss), 0, "data", LABELS)
    fit(tmp_path / "run", task, examples, teacher)
    validation = records(tmp_path / "run", "validation")
    assert {*task.weights.weights} < {*validation[0]}
    assert validation[-1]["force"] < validation[0]["force"]


def test_a_direct_teacher_teaches_a_conservative_student(structures, tmp_path):
    """Of its Jacobian the symmetric part, for it has no energies and no Hessian."""
    teacher = load_teacher("stillinger-weber/direct-teacher", dtype=torch.float64)
    section = LabelsSection(probes="dense", side="symmetric")
    examples = labelled(structures, teacher, tmp_path / "labels", section)
    config = STUDENTS["painn"].model_copy(update={"teacher_channels": 0})
    training = TRAINING.model_copy(update={"steps": 40})
    task = Task(config, training, LossSection(force=100.0, hessian=20.0, probes_per_step=2), 0, "data", section)
    assert not needs_teacher(task)
    train(tmp_path / "run", task, examples[:5], examples[5:])
    validation = records(tmp_path / "run", "validation")
    assert validation[-1]["force"] < 0.8 * validation[0]["force"]
    assert validation[-1]["hessian"] < validation[0]["hessian"]


@pytest.mark.sevennet
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # e3nn compiles so
def test_sevennet_gives_features_and_an_embedding(structures, tmp_path):
    teacher = load_teacher("sevennet-0/teacher")
    section = LabelsSection(probes_per_structure=1, extras=("features",))
    plan = label_plan(structures[:2], teacher, section, 0, "float32")
    labels = label_structures(tmp_path / "labels", structures[:2], teacher, plan)
    examples = make_examples(structures[:2], labels, 4.0, torch.float32)
    channels = teacher.potential.element_embeddings().shape[1]
    config = STUDENTS["painn"].model_copy(update={"teacher_channels": channels})
    loss = LossSection(force=100.0, feature=10.0, hessian=20.0, hessian_from="teacher")
    task = Task(config, TRAINING.model_copy(update={"steps": 3}), loss, 0, "data", section)
    train(tmp_path / "run", task, examples[:1], examples[1:], teacher)
    assert examples[0].teacher.features.shape == (8, teacher.potential.traits.features)
    assert len(records(tmp_path / "run", "train")) == 3


CANNOT = {
    "features": (
        "stillinger-weber/teacher",
        {"labels__extras": ["features"]},
        r"labels\.extras: features .* node feat",
    ),
    "embedding": (
        "stillinger-weber/teacher",
        {"student__teacher_channels": 8},
        r"student\.teacher_channels .* has no channels in its element embedding, not 8; set it to 0",
    ),
    "elements": (
        "stillinger-weber/teacher",
        {"student__elements": ["Ge", "Si", "Po"]},
        r"student\.elements cannot be had: stillinger-weber/teacher does not know Ge, Po; remove what it lacks, or",
    ),
    "side": ("stillinger-weber/teacher", {"labels__side": "columns"}, r"labels\.side cannot be had: .* symmetric Hess"),
    "energy": ("stillinger-weber/direct-teacher", {"loss__stress": 0}, r"loss\.energy .*direct-teacher gives no energ"),
    "stress": ("stillinger-weber/direct-teacher", {"loss__energy": 0}, r"loss\.stress .* gives no stress; set it to 0"),
    "atoms": (
        "stillinger-weber/direct-teacher",
        {"loss__energy": 0, "loss__stress": 0, "labels__extras": ["atomic_energies"]},
        r"labels\.extras: atomic_energies .* gives no energies of atoms; remove it",
    ),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_a_teacher_cannot_give_is_said_before_it_is_asked(case):
    name, changes, message = CANNOT[case]
    with pytest.raises(CapabilityError, match=message) as error:
        check_teacher(tiny_recipe(teacher__name=name, **changes), load_teacher(name, dtype=torch.float64))
    assert "\n" not in str(error.value)


def test_energies_of_a_teacher_without():
    teacher = teacher_of(WithoutEnergies())
    with pytest.raises(CapabilityError, match=r"loss\.energy cannot be had: .* gives no energies; set it to 0, or"):
        check_teacher(tiny_recipe(), teacher)
    check_teacher(tiny_recipe(loss__energy=0), teacher)


def test_what_a_teacher_can_give_is_let_through():
    changes = {"student__teacher_channels": 4, "labels__extras": ["atomic_energies", "features"]}
    check_teacher(tiny_recipe(**changes), teacher_of(Rich()))
    with pytest.raises(CapabilityError, match="has 4 channels in its element embedding, not 5"):
        check_teacher(tiny_recipe(student__teacher_channels=5), teacher_of(Rich()))


def test_training_without_the_teacher_that_it_wants(examples, teacher, tmp_path):
    with pytest.raises(CapabilityError, match=r"student\.teacher_channels wants the teacher's .* set it to 0"):
        fit(tmp_path, task_of("painn"), examples, None)
    own = replace(task_of("painn"), config=STUDENTS["painn"].model_copy(update={"teacher_channels": 0}))
    with pytest.raises(CapabilityError, match=r"loss\.hessian_from is teacher, and there is none"):
        fit(tmp_path, own, examples, None)
    other = STUDENTS["painn"].model_copy(update={"elements": ("Si", "Ge")})
    with pytest.raises(CapabilityError, match=r"does not know the element 32 of the student; remove it from student"):
        fit(tmp_path, replace(task_of("painn"), config=other), examples, teacher)


def test_another_signal_is_another_run(switched, examples, teacher):
    task, folder = switched
    for changed in (
        replace(task, weights=task.weights.model_copy(update={"hessian_from": "stored"})),
        replace(task, labels=LABELS.model_copy(update={"side": "columns"})),
        replace(task, weights=task.weights.model_copy(update={"norms": {}})),
    ):
        with pytest.raises(ConfigError, match="belongs to other settings"):
            fit(folder / "whole", changed, examples, teacher)
