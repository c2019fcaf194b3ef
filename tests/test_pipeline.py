"""The chain in small: each stage once, again only when its inputs change, and never over other work."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

import zoo
from recipes import frames_data, frames_recipe, silicon_clusters, tiny_recipe
from zoo.artifact import read_model_folder, read_novelty
from zoo.config import parse
from zoo.errors import ConfigError, LabelError
from zoo.estimate import estimate
from zoo.estimate import text as estimate_text
from zoo.evaluate.report import Figures, Report, table
from zoo.novelty import calibrate, describe
from zoo.pipeline import (
    distill,
    evaluate,
    make_labels,
    make_structures,
    read_labels,
    read_structures,
    train_student,
)
from zoo.recipe import Recipe, read_recipe
from zoo.run import Run

pytest.importorskip("phonopy", reason="evaluation needs the extra train")

STAGES = ("structures", "labels", "train", "twin", "evaluation", "model")
KEYS = {
    "energy_mae_meV_atom",
    "force_mae_meV_A",
    "stress_mae_GPa",
    "hessian_mae_eV_A2",
    "max_frequency_THz",
    "drift_meV_atom_ps",
    "ms_per_call",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    distill(Run.of(tiny_recipe(), folder))
    return folder


def copied(finished: Path, place: Path) -> Path:
    shutil.copytree(finished, place / "run")
    return place / "run"


def test_a_run_leaves_what_the_contract_names(finished):
    for path in (
        "recipe.yaml",
        "structures/manifest.json",
        "labels/train/manifest.json",
        "train/metrics.jsonl",
        "train/checkpoint",
        "twin/metrics.jsonl",
        "model/config.json",
        "model/report.json",
        "model/README.md",
        "model/model.safetensors",
        "model/probe.safetensors",
        "model/novelty.safetensors",
        "model/manifest.json",
        "model/figures",
    ):
        assert (finished / path).exists(), path
    assert not list(finished.rglob(".*.tmp"))
    report = json.loads((finished / "model" / "report.json").read_text())
    for engine in ("teacher", "student", "twin"):
        assert set(report[engine]) >= KEYS
        for key in KEYS:
            assert report[engine][key] is not None or report[engine]["reasons"][key]
    assert report["speedup"] == pytest.approx(report["teacher"]["ms_per_call"] / report["student"]["ms_per_call"])
    assert report["hardware"]["cores"] >= 1


def test_novelty_is_fitted_to_what_was_trained_on_and_told_of_the_test_set(finished):
    report = json.loads((finished / "model" / "report.json").read_text())
    assert report["novelty_reason"] is None
    assert (report["novelty"]["structures"], report["novelty"]["atoms"]) == (2, 32)
    run = Run.of(tiny_recipe(), finished)
    student = read_model_folder(finished / "model")[1]
    found = read_novelty(finished / "model", student)
    assert found is not None
    assert found.gaussians.atoms.tolist() == [sum(len(atoms) for atoms in read_structures(run, "train"))]
    validation, labels = read_labels(run, "validation")
    truth = torch.cat([label.forces for label in labels]).double().numpy()
    scales = calibrate(found.gaussians, describe(student, validation, forces=True), truth)
    np.testing.assert_allclose(found.scales_meV_A, scales, rtol=1e-5)
    newest = [one.largest for one in found.of(student, read_structures(run, "test"))]
    assert found.threshold_meV_A == pytest.approx(min(newest))  # of two test structures the newer is left out
    assert report["novelty"]["threshold_meV_A"] == pytest.approx(found.threshold_meV_A)


def test_the_recipe_of_a_finished_run_is_locked_and_reads_back(finished):
    locked = read_recipe(finished / "recipe.yaml")
    assert locked.lock is not None
    assert locked.digest == tiny_recipe().digest
    assert read_recipe(finished / "model" / "recipe.yaml") == locked


def test_a_recipe_locked_to_other_weights_is_refused(finished, tmp_path):
    locked = read_recipe(finished / "recipe.yaml")
    assert locked.lock is not None
    other = locked.model_copy(update={"lock": locked.lock.model_copy(update={"teacher_weights_sha256": "0" * 64})})
    with pytest.raises(LabelError, match=r"locked to weights 000000000000… .* or remove the lock"):
        make_structures(Run.of(other, tmp_path / "run"))


def test_a_second_run_reuses_everything(finished, tmp_path, monkeypatch):
    folder = copied(finished, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for work in ("rattled", "trajectory", "label_structures", "train", "compare", "package"):
        monkeypatch.setattr(f"zoo.pipeline.{work}", lambda *arguments, **options: pytest.fail("done again"))
    monkeypatch.setattr("zoo.run.load_teacher", lambda *arguments, **options: pytest.fail("not needed"))
    distill(Run.of(tiny_recipe(), folder))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_change_of_the_training_keeps_the_labels(finished, tmp_path):
    folder = copied(finished, tmp_path)
    recipe = tiny_recipe(training__steps=8)
    with pytest.raises(ConfigError, match=r"train was made from another recipe .* pass --replace"):
        train_student(Run.of(recipe, folder))
    labels = {path: path.stat().st_mtime_ns for path in (folder / "labels").rglob("*")}
    train_student(Run.of(recipe, folder, replace=True))
    assert {path: path.stat().st_mtime_ns for path in (folder / "labels").rglob("*")} == labels
    lines = (folder / "train" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 8


def test_a_kill_while_old_files_are_replaced_mixes_nothing(finished, tmp_path, monkeypatch):
    folder = copied(finished, tmp_path)
    other = tiny_recipe(seed=8)
    for step in ("write_json", "atomic_write"):

        def stop(*arguments):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(f"zoo.run.{step}", stop)
            with pytest.raises(KeyboardInterrupt):
                make_structures(Run.of(other, folder, replace=True))
    make_structures(Run.of(other, folder, replace=True))
    make_structures(Run.of(other, tmp_path / "fresh"))
    for path in (tmp_path / "fresh" / "structures").iterdir():
        assert (folder / "structures" / path.name).read_bytes() == path.read_bytes()
    assert not list(folder.glob(".*.tmp"))


def test_labels_of_other_structures_are_never_overwritten_unasked(finished, tmp_path):
    folder = copied(finished, tmp_path)
    with pytest.raises(ConfigError, match="structures was made from another recipe"):
        make_labels(Run.of(tiny_recipe(seed=8), folder))
    assert (folder / "labels" / "train" / "manifest.json").exists()


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    (tmp_path / "run").mkdir()
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    lock = str(tmp_path / "run" / ".lock")
    with subprocess.Popen([sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ConfigError, match="another process works in"):
            make_structures(Run.of(tiny_recipe(), tmp_path / "run"))
        other.communicate(b"")
    make_structures(Run.of(tiny_recipe(), tmp_path / "run"))


def test_what_a_killed_run_left_half_is_swept(tmp_path):
    run = Run.of(tiny_recipe(), tmp_path / "run")
    make_structures(run)
    half = tmp_path / "run" / "labels" / "train" / ".shard-00000.safetensors.123.tmp"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    del run
    make_labels(Run.of(tiny_recipe(), tmp_path / "run"))
    assert not half.exists()


def test_structures_lost_from_a_finished_stage_are_named(finished, tmp_path):
    folder = copied(finished, tmp_path)
    (folder / "structures" / "cells.extxyz").unlink()
    shutil.rmtree(folder / "labels")
    with pytest.raises(zoo.IntegrityError, match=r"cells\.extxyz is missing or was changed"):
        make_labels(Run.of(tiny_recipe(), folder))


def damage_shard(folder):
    shard = folder / "labels" / "train" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    return "shard-00001.safetensors is missing or altered"


def damage_structures(folder):
    (folder / "structures" / "cells.extxyz").unlink()
    shutil.rmtree(folder / "labels")
    return "cells.extxyz is missing or was changed"


def damage_weights(folder):
    (folder / "train" / "model.safetensors").write_bytes(b"short")
    return "model.safetensors cannot be read"


def damage_checkpoint(folder):
    (folder / "train" / "model.safetensors").unlink()
    (folder / "train" / "checkpoint" / "last.safetensors").write_bytes(b"short")
    return "last.safetensors cannot be read"


@pytest.mark.parametrize("damage", [damage_shard, damage_structures, damage_weights, damage_checkpoint])
def test_the_remedy_of_an_error_leads_out_of_it(damage, finished, tmp_path):
    """What the message says to delete is deleted, and the same command then ends with the same weights."""
    folder = copied(finished, tmp_path)
    said = damage(folder)
    if damage is damage_shard:
        (folder / "train" / "model.safetensors").unlink()
    with pytest.raises(zoo.IntegrityError) as error:
        train_student(Run.of(tiny_recipe(), folder))
    assert said in str(error.value)
    for word in re.findall(rf"{re.escape(str(tmp_path))}[^\s,;]*", str(error.value).partition("; delete")[2]):
        shutil.rmtree(word) if Path(word).is_dir() else Path(word).unlink()
    train_student(Run.of(tiny_recipe(), folder))
    assert (folder / "train" / "model.safetensors").read_bytes() == (finished / "train/model.safetensors").read_bytes()


def test_the_locked_recipe_of_a_run_is_its_recipe(finished, tmp_path):
    folder = copied(finished, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    distill(Run.of(read_recipe(folder / "recipe.yaml"), folder))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_recipe_locked_to_other_structures_is_refused(finished, tmp_path):
    locked = read_recipe(finished / "recipe.yaml")
    assert locked.lock is not None
    other = locked.model_copy(update={"lock": locked.lock.model_copy(update={"structures_sha256": "0" * 64})})
    with pytest.raises(LabelError, match=r"structures_sha256 is .* locked to 000000000000"):
        make_structures(Run.of(other, tmp_path / "run"))


def test_terms_that_may_not_follow_are_refused_before_any_work(tmp_path):
    recipe = tiny_recipe(teacher__name="sevennet-0/teacher", licence="CC0-1.0")
    with pytest.raises(zoo.LicenceError, match="set the recipe's licence to MIT"):
        make_labels(Run.of(recipe, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_terms_of_a_data_set_bind_too(tmp_path):
    recipe = frames_recipe(tmp_path, structures__data=[{"name": "shared frames", "licence": "CC-BY-SA-4.0"}])
    with pytest.raises(zoo.LicenceError, match=r"data set shared frames is CC-BY-SA-4\.0"):
        make_labels(Run.of(recipe, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_missing_teacher_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sevenn.checkpoint", None)
    recipe = tiny_recipe(teacher__name="sevennet-0/teacher")
    with pytest.raises(zoo.MissingPackageError, match="pip install sevenn"):
        make_labels(Run.of(recipe, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_touches_nothing(tmp_path):
    text = estimate_text(estimate(Run.of(tiny_recipe(), tmp_path / "run"), measure=False))
    assert "train            9 structures in 2 groups" in text
    assert text.count("to do") == len(STAGES)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tells_of_exploration(tmp_path):
    recipe = tiny_recipe(exploration={"kind": "dynamics", "rounds": 2, "budget": 5})
    text = estimate_text(estimate(Run.of(recipe, tmp_path / "run"), measure=False))
    assert "exploration     10 structures at most, 5 in each of 2 rounds of dynamics" in text


def test_a_dry_run_tells_what_would_be_refused(finished):
    recipe = tiny_recipe(training__steps=8)
    lines = estimate_text(estimate(Run.of(recipe, finished), measure=False)).splitlines()
    assert "labels      done" in lines
    assert "train       made from another recipe: refused, see --replace" in lines
    assert "model       made from another recipe: refused, see --replace" in lines
    assert "will be deleted and made anew" in estimate_text(
        estimate(Run.of(recipe, finished, replace=True), measure=False)
    )
    assert estimate_text(estimate(Run.of(tiny_recipe(), finished), measure=False)).count("done") == len(STAGES)


def test_what_was_made_can_be_published_loaded_and_asked(finished, tmp_path):
    published = zoo.publish(finished / "model", hub=tmp_path / "hub")
    assert published.tag == "v1"
    engine = zoo.load("stillinger-weber/tiny-student", hub=tmp_path / "hub", device="cpu")
    assert engine.check().passed
    atoms = bulk("Si", "diamond", a=5.43, cubic=True)
    atoms.rattle(0.05, seed=1)
    student = train_student(Run.of(tiny_recipe(), finished))
    assert torch.equal(student.references, engine.potential.references)
    atoms.calc = engine.calculator()
    assert np.isfinite(atoms.get_forces()).all()


def test_what_could_not_be_measured_does_not_stop_the_rest(finished, tmp_path, monkeypatch):
    def unmeasurable(*arguments):
        raise zoo.CapabilityError("no minimum anywhere")

    folder = copied(finished, tmp_path)
    shutil.rmtree(folder / "evaluation")
    (folder / "stages" / "evaluation.json").unlink()
    monkeypatch.setattr("zoo.evaluate.compare.equation_of_state", unmeasurable)
    report = evaluate(Run.of(tiny_recipe(), folder))
    assert report.student.bulk_modulus_GPa is None
    assert report.student.reasons["bulk_modulus_GPa"] == "no minimum anywhere"
    assert report.student.force_mae_meV_A is not None


def test_the_report_reads_back(finished):
    report = Report.model_validate_json((finished / "model" / "report.json").read_text())
    assert isinstance(report.student, Figures)
    assert report.name == "stillinger-weber/tiny-student"


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    """The folder of a finished run on frames of a file."""
    folder = tmp_path_factory.mktemp("molecules")
    evaluation = {"dynamics_steps": 60, "teacher_dynamics_steps": 450}
    changes = {f"evaluation__{key}": value for key, value in evaluation.items()}
    recipe = parse(Recipe, tiny_changes(frames_data(folder), **changes), "the tiny recipe of molecules")
    distill(Run.of(recipe, folder / "run"))
    return folder / "run"


def tiny_changes(data, **changes):
    for path, value in changes.items():
        section, key = path.split("__")
        data[section][key] = value
    return data


def test_frames_of_a_file_go_through_the_whole_chain(molecules, tmp_path):
    report = Report.model_validate_json((molecules / "model" / "report.json").read_text())
    crystal = ("phonon_mae_THz", "max_frequency_THz", "lattice_constant_A", "bulk_modulus_GPa")
    for engine in (report.teacher, report.student, report.twin):
        assert {engine.reasons[key] for key in crystal} == {"the recipe has no crystal"}
        assert engine.reasons["stress_mae_GPa"] == "the test structures have no volume"
    for engine in (report.student, report.twin):
        assert engine.mode_mae_THz is not None
        assert engine.dataset_energy_mae_meV_atom is not None
    assert "too short for a drift" in report.student.reasons["drift_meV_atom_ps"]
    assert report.teacher.drift_meV_atom_ps is not None
    assert report.settings.dynamics["student"].atoms == report.settings.timing.atoms == 5
    zoo.publish(molecules / "model", hub=tmp_path / "hub")
    engine = zoo.load("stillinger-weber/tiny-molecule", hub=tmp_path / "hub", device="cpu")
    assert engine.check().passed
    atoms = silicon_clusters(1)[0]
    atoms.calc = engine.calculator()
    assert np.isfinite(atoms.get_forces()).all()


def test_errors_against_the_data_set_are_of_its_labels(molecules):
    """The forces of the file are 1.1 times the teacher's, its energies lie 100 eV below."""
    report = Report.model_validate_json((molecules / "model" / "report.json").read_text())
    assert report.settings.accuracy.dataset_structures == 4
    assert report.teacher.dataset_force_mae_meV_A == pytest.approx(0.1 * report.settings.accuracy.mean_force_meV_A)
    assert report.teacher.dataset_energy_mae_meV_atom == pytest.approx(0, abs=1e-3)
    assert report.student.dataset_force_mae_meV_A > report.teacher.dataset_force_mae_meV_A


def test_a_missing_file_leaves_nothing_behind(tmp_path):
    recipe = frames_recipe(tmp_path)
    (tmp_path / "clusters.xyz.gz").unlink()
    with pytest.raises(zoo.UnknownNameError, match=r"no file .*clusters\.xyz\.gz"):
        make_structures(Run.of(recipe, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_element_that_the_student_lacks_stops_the_structures(tmp_path):
    clusters = silicon_clusters(12)
    clusters[9].symbols[0] = "C"
    recipe = frames_recipe(tmp_path, clusters=clusters)
    with pytest.raises(ConfigError, match=r"group tested holds C, which student\.elements lacks"):
        make_structures(Run.of(recipe, tmp_path / "run"))


def test_another_digest_of_the_file_makes_other_structures(molecules, tmp_path):
    folder = copied(molecules, tmp_path)
    other = frames_recipe(tmp_path, clusters=silicon_clusters(12, seed=1))
    with pytest.raises(ConfigError, match="structures was made from another recipe"):
        make_structures(Run.of(other, folder))


def test_a_dry_run_counts_frames_and_says_what_is_missing(tmp_path):
    recipe = frames_recipe(tmp_path, labels__probes="dense")
    text = estimate_text(estimate(Run.of(recipe, tmp_path / "run"), measure=False))
    assert "train            6 structures in 1 groups, 30 atoms" in text
    assert f"labels         {15 * 12} Hessian products (dense)" in text
    (tmp_path / "clusters.xyz.gz").unlink()
    text = estimate_text(estimate(Run.of(recipe, tmp_path / "run"), measure=False))
    assert "train            6 structures in 1 groups, ? atoms" in text
    assert re.search(r"missing +group learned: no file .*clusters\.xyz\.gz \(SHA-256 ", text)
    assert not (tmp_path / "run").exists()


def test_a_direct_teacher_is_measured_for_what_it_lacks(tmp_path):
    """Its Jacobian is not symmetric, and without energies there is nothing to compare and nothing to keep constant."""
    name = "stillinger-weber/direct-teacher"
    changes = {"loss__energy": 0, "training__steps": 8, "evaluation__dynamics_steps": 5}
    recipe = frames_recipe(tmp_path, teacher__name=name, **changes)
    report = Report.model_validate_json((distill(Run.of(recipe, tmp_path / "run")) / "report.json").read_text())
    assert report.settings.accuracy.teacher_asymmetry > 1e-3
    assert "no gradient of an energy" in table(report)
    for engine in (report.teacher, report.student, report.twin):
        assert engine.reasons["energy_mae_meV_atom"] == "the teacher gives no energies"
    assert report.student.force_mae_meV_A is not None
    assert report.teacher.dataset_force_mae_meV_A is not None
    for key in ("drift_meV_atom_ps", "ms_per_call"):
        assert report.teacher.reasons[key] == "it gives no energies"
    assert report.student.ms_per_call is not None
    assert report.speedup is None


def test_a_stage_that_failed_before_it_wrote_anything_keeps_no_other_recipe_out(tmp_path):
    assert Run.of(tiny_recipe(), tmp_path).begin("labels", "a recipe that the teacher refuses")
    assert Run.of(tiny_recipe(), tmp_path).state("labels") == "to do"
    run = Run.of(tiny_recipe(), tmp_path)
    assert run.begin("labels", "the recipe as it was mended")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "plan.json").touch()
    with pytest.raises(ConfigError, match="labels was made from another recipe"):
        run.begin("labels", "another one")
