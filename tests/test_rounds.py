"""Training in rounds: what is found joins what is learned from, the twin has the same, and a kill changes nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from test_kills import check_kills, content, long_recipe

import zoo.distill.rounds as module
import zoo.distill.train as training
from recipes import frames_recipe, tiny_recipe
from zoo.calculator import ZooCalculator
from zoo.data.structures import structure_digest
from zoo.distill.task import Task
from zoo.errors import ConfigError, DivergedError, IntegrityError, LabelError
from zoo.package import make_domain
from zoo.pipeline import (
    all_labels_digest,
    distill,
    labels_digest,
    make_labels,
    read_explored,
    read_labels,
    train_student,
    train_twin,
)
from zoo.recipe import Lock, Recipe, read_recipe
from zoo.run import Run
from zoo.teachers import load_teacher

STEPS = 6
TRAINING = {
    "steps": STEPS,
    "batch_size": 4,
    "learning_rate": 5e-3,
    "warmup_steps": 2,
    "log_every": 2,
    "validate_every": 3,
    "checkpoint_every": 4,
}


def exploring(**changes: Any) -> Recipe:
    exploration = {"kind": "dynamics", "rounds": 2, "budget": 5, "interval": 4, "temperature": 400} | changes
    return tiny_recipe(training=TRAINING, exploration=exploration)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with labels, to be copied; exploration does not change them."""
    folder = tmp_path_factory.mktemp("rounds") / "labelled"
    make_labels(Run.of(exploring(), folder))
    return folder


@pytest.fixture(scope="module")
def trained(labelled: Path) -> Path:
    """A run folder with student and twin, to be copied."""
    folder = labelled.with_name("trained")
    shutil.copytree(labelled, folder)
    train_twin(Run.of(exploring(), folder))
    return folder


def copied(folder: Path, place: Path) -> Path:
    shutil.copytree(folder, place / "run")
    return place / "run"


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rounds_leave_what_the_contract_names(trained: Path) -> None:
    for number in (1, 2):
        folder = trained / "exploration" / f"round-{number}"
        record = json.loads((folder / "round.json").read_text())
        structures = ase.io.read(folder / "structures.extxyz", index=":")
        assert len(structures) == 5 == record["tried"] - sum(record["left_out"].values())
        assert {atoms.info["round"] for atoms in structures} == {number}
        assert {atoms.info["kind"] for atoms in structures} == {"dynamics"}
        assert all(0 <= atoms.info["parent"] < 9 for atoms in structures)
        assert (folder / "labels" / "manifest.json").exists()
    for stage in ("train", "twin"):
        for number in (0, 1, 2):
            assert (trained / stage / f"round-{number}" / "model.safetensors").exists()
    assert not list(trained.rglob(".*.tmp"))


def test_the_whole_training_stands_where_one_without_rounds_would(trained: Path) -> None:
    """The last weights, all records with steps that go on, and the seconds of all rounds."""
    for stage in (trained / "train", trained / "twin"):
        rounds = [stage / f"round-{number}" for number in (0, 1, 2)]
        weights = [(folder / "model.safetensors").read_bytes() for folder in rounds]
        assert (stage / "model.safetensors").read_bytes() == weights[2]
        assert len(set(weights)) == 3
        steps = [record["step"] for record in records(stage) if record["split"] == "validation"]
        assert steps == [3, 6, 9, 12, 15, 18]
        assert [record["round"] for record in records(stage)] == sorted(record["round"] for record in records(stage))
        seconds = [json.loads((folder / "timing.json").read_text())["seconds"] for folder in [*rounds, stage]]
        assert seconds[3] == pytest.approx(sum(seconds[:3]), abs=2e-3)


def test_without_exploration_nothing_is_new(labelled: Path, tmp_path: Path) -> None:
    folder = copied(labelled, tmp_path)
    run = Run.of(tiny_recipe(training=TRAINING), folder)
    train_student(run)
    assert not (folder / "exploration").exists()
    names = {path.name for path in (folder / "train").iterdir()}
    assert names == {"checkpoint", "metrics.jsonl", "model.safetensors", "timing.json"}
    assert all_labels_digest(run) == labels_digest(folder / "labels")


def test_each_round_goes_on_with_the_weights_before_and_learns_from_more(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(trained, tmp_path)
    for stage in ("train", "twin"):
        shutil.rmtree(folder / stage)
        (folder / "stages" / f"{stage}.json").unlink()
    seen: list[tuple[str, Task, list[str], dict[str, torch.Tensor]]] = []
    original = training.start

    def spy(place: Path, task: Task, examples: Any, *rest: Any) -> training.TrainingState:
        state = original(place, task, examples, *rest)
        digests = [structure_digest(example.atoms) for example in examples]
        weights = {name: tensor.clone() for name, tensor in state.student.state_dict().items()}
        seen.append((f"{place.parent.name}/{place.name}", task, digests, weights))
        return state

    monkeypatch.setattr(training, "start", spy)
    train_twin(Run.of(exploring(), folder))
    names = [name for name, *_ in seen]
    assert names == [f"{stage}/round-{number}" for stage in ("train", "twin") for number in (0, 1, 2)]
    for number in (1, 2):
        _, task, digests, weights = seen[number]
        before = training.load_file(folder / "train" / f"round-{number - 1}" / "model.safetensors")
        assert weights.keys() == before.keys()
        assert all(torch.equal(weights[name], before[name]) for name in before)
        found = ase.io.read(folder / "exploration" / f"round-{number}" / "structures.extxyz", index=":")
        assert digests == seen[number - 1][2] + [structure_digest(atoms) for atoms in found]
        assert task.training.steps == STEPS
    for student, twin in zip(seen[:3], seen[3:], strict=True):
        assert twin[2] == student[2]
        assert twin[1].data == student[1].data
        assert twin[1].training == student[1].training
        assert twin[1].weights.hessian == 0 < student[1].weights.hessian
    assert len({task.data for _, task, *_ in seen[:3]}) == 3


def test_what_was_found_is_labelled_by_the_teacher(trained: Path) -> None:
    calculator = ZooCalculator(load_teacher("stillinger-weber/teacher").potential)
    for found in read_explored(Run.of(exploring(), trained)):
        assert len(found.labels) == 5
        for atoms, label in zip(found.structures, found.labels, strict=True):
            assert label.hessian_products.shape == (2, 8, 3)
            forces = torch.from_numpy(calculator.get_forces(atoms))
            torch.testing.assert_close(label.forces.double(), forces, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["dynamics", "rattle-relax"])
def test_stopped_before_any_file_it_ends_with_the_same_files(
    kind: str, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file takes its place by a rename; the work is stopped at one of them, and goes on."""
    recipe = exploring(kind=kind, budget=3)
    original, calls, stop = Path.replace, 0, -1

    def counted(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return original(path, target)

    monkeypatch.setattr(Path, "replace", counted)

    def work(folder: Path) -> dict[Path, bytes]:
        train_student(Run.of(recipe, folder))
        return content(folder)

    expected = work(copied(labelled, tmp_path / "whole"))
    total = calls
    assert total > 30
    for moment in range(3, total + 1, 1 + total // 4):
        folder = copied(labelled, tmp_path / str(moment))
        calls, stop = 0, moment
        with pytest.raises(KeyboardInterrupt):
            work(folder)
        calls, stop = 0, -1
        found = work(folder)
        assert found.keys() == expected.keys(), f"stopped before file {moment}"
        assert not [path for path in expected if found[path] != expected[path]], f"stopped before file {moment}"


def test_a_finished_training_needs_no_teacher_and_touches_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(trained, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr("zoo.run.load_teacher", lambda *arguments, **options: pytest.fail("not needed"))
    train_twin(Run.of(exploring(), folder))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_another_exploration_is_refused_and_replaced_when_asked(trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path)
    other = exploring(temperature=200)
    with pytest.raises(ConfigError, match="train was made from another recipe"):
        train_student(Run.of(other, folder))
    shutil.rmtree(folder / "train")
    (folder / "stages" / "train.json").unlink()
    with pytest.raises(ConfigError, match=r"round-1 was made from another recipe .* pass --replace"):
        train_student(Run.of(other, folder))
    train_student(Run.of(other, folder, replace=True))
    shutil.rmtree(folder / "twin")
    (folder / "stages" / "twin.json").unlink()
    fresh = tmp_path / "fresh"
    shutil.copytree(trained / "structures", fresh / "structures")
    shutil.copytree(trained / "labels", fresh / "labels")
    (fresh / "stages").mkdir()
    for stage in ("structures", "labels"):
        shutil.copy(trained / "stages" / f"{stage}.json", fresh / "stages")
    train_student(Run.of(other, fresh))
    assert content(folder) == content(fresh)


def test_labels_in_other_shards_replace_those_of_the_rounds_too(trained: Path, tmp_path: Path) -> None:
    """The student's weights do not change then, so only the labels' own section tells the difference."""
    folder = copied(trained, tmp_path)
    recipe = exploring()
    other = recipe.model_copy(update={"labels": recipe.labels.model_copy(update={"shard_size": 4})})
    train_student(Run.of(other, folder, replace=True))
    assert [found.labels.plan.shard_size for found in read_explored(Run.of(other, folder))] == [4, 4]
    assert (folder / "train/model.safetensors").read_bytes() == (trained / "train/model.safetensors").read_bytes()


def damage_structures(folder: Path) -> str:
    path = folder / "exploration" / "round-1" / "structures.extxyz"
    path.write_bytes(path.read_bytes() + b"\n")
    return "structures.extxyz is missing or was changed"


def damage_labels(folder: Path) -> str:
    path = folder / "exploration" / "round-2" / "labels" / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    return "shard-00000.safetensors is missing or altered"


@pytest.mark.parametrize("damage", [damage_structures, damage_labels])
def test_the_remedy_of_an_error_leads_out_of_it(damage: Any, trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path)
    said = damage(folder)
    with pytest.raises(IntegrityError, match=said) as error:
        train_twin(Run.of(exploring(), folder))
    word = Path(str(error.value).partition("; delete ")[2].removeprefix("the folder ").split(" and ")[0])
    shutil.rmtree(word) if word.is_dir() else word.unlink()
    train_twin(Run.of(exploring(), folder))
    assert content(folder) == content(trained)


def test_a_lost_exploration_is_made_again(trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path)
    shutil.rmtree(folder / "exploration")
    train_twin(Run.of(exploring(), folder))
    assert content(folder) == content(trained)


def test_the_lock_is_of_all_labels(trained: Path, labelled: Path, tmp_path: Path) -> None:
    whole, first = all_labels_digest(Run.of(exploring(), trained)), labels_digest(trained / "labels")
    assert whole != first
    lock = Lock(
        teacher_weights_sha256=load_teacher("stillinger-weber/teacher").weights_sha256,
        teacher_package="zoo",
        structures_sha256=module.sha256_file(trained / "structures" / "manifest.json"),
        labels_sha256=whole,
        zoo="0",
        torch="0",
    )
    train_student(Run.of(exploring().model_copy(update={"lock": lock}), copied(labelled, tmp_path / "same")))
    other = exploring().model_copy(update={"lock": lock.model_copy(update={"labels_sha256": first})})
    with pytest.raises(LabelError, match="labels_sha256 is"):
        train_student(Run.of(other, copied(labelled, tmp_path / "other")))


def test_what_the_teacher_puts_away_is_kept_with_its_reason(labelled: Path, tmp_path: Path) -> None:
    """A student that sees no danger, and a teacher that does: forces of the first are a hundredth of the second's."""
    folder = copied(labelled, tmp_path)
    recipe = exploring(kind="rattle-relax", rounds=1, budget=8, displacement=[0.02, 0.3], relax_steps=1, max_force=6)
    student = train_student(Run.of(tiny_recipe(training=TRAINING), copied(labelled, tmp_path / "student")))
    with torch.no_grad():
        student.scale.mul_(0.01)
    weights = tmp_path / "weights"
    weights.write_bytes(b"any")
    run = Run.of(recipe, folder)
    pool, _ = read_labels(run, "train")
    found = module.Exploration(folder / "exploration", recipe, pool, lambda: run.teacher)(1, student, weights)
    place = folder / "exploration" / "round-1"
    record = json.loads((place / "round.json").read_text())
    rejected = ase.io.read(place / "rejected.extxyz", index=":")
    assert 0 < len(rejected) == record["rejected"]["force too large"] < 8
    assert len(found.structures) == len(found.labels) == 8 - len(rejected)
    for atoms in rejected:
        assert atoms.info["reason"] == "force too large"
        atoms.calc = ZooCalculator(run.teacher.potential)
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() > 6
    for label in found.labels:
        assert float(label.forces.norm(dim=1).max()) < 6


def test_a_student_that_finds_nothing_stops_the_run_and_keeps_its_training(labelled: Path, tmp_path: Path) -> None:
    folder = copied(labelled, tmp_path)
    with pytest.raises(DivergedError, match=r"round 1 of exploration: the student leaves not one structure of 25"):
        train_student(Run.of(exploring(max_force=1e-6), folder))
    assert (folder / "train" / "round-0" / "model.safetensors").exists()
    assert not (folder / "train" / "model.safetensors").exists()


def test_molecules_are_explored_too(tmp_path: Path) -> None:
    exploration = {"kind": "rattle-relax", "rounds": 1, "budget": 3, "displacement": [0.02, 0.1]}
    run = Run.of(frames_recipe(tmp_path, training=TRAINING, exploration=exploration), tmp_path / "run")
    train_student(run)
    (found,) = read_explored(run)
    assert len(found.structures) == 3
    assert not any(atoms.pbc.any() for atoms in found.structures)


@pytest.mark.slow
def test_an_engine_is_for_what_was_explored_too(labelled: Path, tmp_path: Path) -> None:
    """Its domain spans the explored structures, its lock all labels, and the locked recipe is its recipe."""
    pytest.importorskip("phonopy", reason="evaluation needs the extra train")
    folder = copied(labelled, tmp_path)
    recipe = exploring(kind="rattle-relax", rounds=1, budget=4, displacement=[0.15, 0.2], relax_steps=1)
    run = Run.of(recipe, folder)
    distill(run)
    structures, _ = read_labels(run, "train")
    explored = [atoms for found in read_explored(run) for atoms in found.structures]
    domain = json.loads((folder / "model" / "config.json").read_text())["domain"]
    alone, together = make_domain(run.recipe, structures), make_domain(run.recipe, structures + explored)
    assert domain["min_distance_A"] == together.min_distance_A < alone.min_distance_A
    locked = read_recipe(folder / "recipe.yaml")
    assert locked.lock is not None
    assert locked.lock.labels_sha256 == all_labels_digest(run)
    before = content(folder)
    distill(Run.of(locked, folder))
    assert content(folder) == before


def explore(run: Run) -> None:
    """Work for a process of its own, in the folder of the run that it is given."""
    recipe = long_recipe().model_copy(
        update={"exploration": exploring(budget=4).exploration, "training": exploring().training}
    )
    train_student(Run.of(recipe, run.folder))


@pytest.mark.slow
def test_rounds_killed_at_ten_random_moments_end_with_the_same_files(tmp_path: Path) -> None:
    labelled = tmp_path / "labelled"
    make_labels(Run.of(long_recipe(), labelled))
    check_kills(explore, tmp_path, labelled, partial="exploration/round-*/round.json", last="train/model.safetensors")
