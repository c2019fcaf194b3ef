"""An engine that learned from a data set alone: nothing of its teacher is a twin, an error or a sentence too much."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from test_card import front_matter

import zoo.estimate
from recipes import frames_data
from zoo.artifact import read_model_folder
from zoo.card import template_path
from zoo.cli import main
from zoo.config import parse, read_json
from zoo.data.structures import dataset_prediction
from zoo.estimate import estimate
from zoo.estimate import text as estimate_text
from zoo.evaluate.accuracy import accuracy
from zoo.evaluate.report import Report, table
from zoo.hub.card_data import parse_card
from zoo.hub.card_lint import lint_card
from zoo.neighbors import build_graph
from zoo.pipeline import distill, evaluate, read_labels, train_student, train_twin
from zoo.recipe import Crystal, Recipe, to_yaml
from zoo.reproduce import compare_reports
from zoo.run import STAGES, Run

pytest.importorskip("phonopy", reason="evaluation needs the extra train")

LOSS = {"energy": 5, "force": 100, "energy_from": "dataset", "force_from": "dataset"}
TAUGHT_NOTHING = "the student learned from a data set, not from its teacher"
TEMPLATES = ("student", "from-data")
AGAINST_TEACHER = ("energy_mae_meV_atom", "force_mae_meV_A", "stress_mae_GPa", "hessian_mae_eV_A2", "mode_mae_THz")


def data_recipe(folder, **changes) -> Recipe:
    """The tiny recipe of molecules, of which energies and forces are learned from the file."""
    data = frames_data(folder, **({"loss": LOSS, "evaluation__dynamics_steps": 60} | changes))
    return parse(Recipe, data, "a tiny recipe that learns from data")


def read(template):
    return template_path(template).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A finished run; its labels hold Hessian products, which nobody learns from."""
    folder = tmp_path_factory.mktemp("from-data")
    recipe = data_recipe(folder)
    distill(Run.of(recipe, folder / "run"))
    return Run.of(recipe, folder / "run")


@pytest.fixture
def report(run) -> Report:
    return read_json(Report, run.folder / "model" / "report.json")


@pytest.fixture
def copied(run, tmp_path) -> Path:
    """A copy of its folder, to be changed."""
    return Path(shutil.copytree(run.folder, tmp_path / "run"))


@pytest.fixture
def card(run) -> str:
    return (run.folder / "model" / "README.md").read_text()


def test_no_twin_is_trained_and_none_is_in_the_report(run, report):
    assert run.stages == tuple(stage for stage in STAGES if stage != "twin")
    assert train_twin(run) is None
    assert not list(run.folder.rglob("*twin*"))
    assert report.twin is None
    assert list(report.engines) == ["teacher", "student"]
    assert report.training_seconds.keys() == {"student"}
    assert report.settings.dynamics.keys() <= {"teacher", "student"}


def test_the_teacher_labels_what_it_is_compared_on_and_nothing_else(run, copied):
    assert run.recipe.labelled == ("test",)
    assert [path.parent.name for path in (run.folder / "labels").glob("*/manifest.json")] == ["test"]
    (copied / "labels" / "test" / "manifest.json").unlink()
    assert Run.of(run.recipe, copied).state("labels") == "begun"
    _, _, probe = read_model_folder(run.folder / "model")
    tested, _ = read_labels(run, "test")
    assert [atoms.positions.tolist() for atoms in probe.structures] == [
        tested[place].positions.tolist() for place in sorted({0, len(tested) // 2, len(tested) - 1})
    ]


def test_a_finished_run_is_not_done_again(run, monkeypatch):
    for work in ("label_structures", "train", "compare", "package"):
        monkeypatch.setattr(f"zoo.pipeline.{work}", lambda *arguments, **options: pytest.fail("done again"))
    distill(run)


def test_errors_are_against_the_data_set_and_nothing_else(run, report):
    """The forces of the file are 1.1 times the teacher's."""
    structures, _ = read_labels(run, "test")
    student, mine, theirs = train_student(run), [], []
    for atoms in structures:
        graph = build_graph(atoms, student.cutoff, dtype=student.dtype)
        mine.append(student.predict(graph).forces.double().numpy())
        theirs.append(dataset_prediction(atoms).forces.numpy())
    differences = np.abs(np.concatenate(mine) - np.concatenate(theirs))
    assert report.student.dataset_force_mae_meV_A == pytest.approx(1000 * differences.mean(), rel=1e-4)
    scale = 1000 * np.abs(np.concatenate(theirs)).mean()
    assert report.settings.accuracy.mean_force_meV_A == pytest.approx(scale, rel=1e-6)
    assert report.teacher.dataset_force_mae_meV_A == pytest.approx(scale * (1 - 1 / 1.1), rel=1e-3)
    assert report.student.dataset_energy_mae_meV_atom is not None
    for engine in (report.teacher, report.student):
        assert {engine.reasons[key] for key in AGAINST_TEACHER} == {TAUGHT_NOTHING}
    assert report.settings.accuracy.probes == 0
    assert report.settings.vibrations is None


def test_speed_and_dynamics_are_measured_as_ever(report):
    assert report.student.ms_per_call is not None
    assert report.speedup == pytest.approx(report.teacher.ms_per_call / report.student.ms_per_call)
    assert report.settings.dynamics.keys() == {"teacher", "student"}


def test_a_crystal_has_its_phonons_and_no_error_of_them(run, copied):
    crystal = {"formula": "Si", "prototype": "diamond", "lattice_constant": 5.43}
    recipe = run.recipe.model_copy(
        update={
            "structures": run.recipe.structures.model_copy(update={"crystal": parse(Crystal, crystal, "a crystal")})
        }
    )
    small = {"phonon_supercell": (1, 1, 1), "dynamics_supercell": (1, 1, 1), "timing_supercell": (1, 1, 1)}
    recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=small)})
    report = evaluate(Run.of(recipe, copied, replace=True))
    assert report.teacher.max_frequency_THz == pytest.approx(17.8, abs=1)
    for engine in (report.teacher, report.student):
        assert engine.phonon_mae_THz is None
        assert engine.reasons["phonon_mae_THz"] == TAUGHT_NOTHING


def test_the_parity_plot_is_against_the_data_set(run, copied, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "zoo.evaluate.figures.force_parity",
        lambda path, name, reference, others, *, against: drawn.update(
            reference=reference, others=others, against=against
        ),
    )
    shutil.rmtree(copied / "evaluation")
    report = evaluate(Run.of(run.recipe, copied))
    labelled = np.concatenate([dataset_prediction(atoms).forces.numpy() for atoms in read_labels(run, "test")[0]])
    np.testing.assert_array_equal(drawn["reference"], labelled)
    assert drawn["against"] == "data set"
    errors = {name: 1000 * np.abs(forces - labelled).mean() for name, forces in drawn["others"].items()}
    assert errors == pytest.approx(
        {"teacher": report.teacher.dataset_force_mae_meV_A, "student": report.student.dataset_force_mae_meV_A}
    )


def test_products_that_nobody_learned_are_not_asked_of_the_student(run, copied, monkeypatch):
    """Second derivatives of a large network cost more than all else that is measured of it."""
    asked = []

    def noted(potential, structures, labels, probes=(), **options):
        asked.append(list(probes))
        return accuracy(potential, structures, labels, probes, **options)

    monkeypatch.setattr("zoo.evaluate.compare.accuracy", noted)
    shutil.rmtree(copied / "evaluation")
    evaluate(Run.of(run.recipe, copied))
    assert all(len(label.probes) > 0 for label in read_labels(run, "test")[1])
    assert asked == [[]]


def test_structures_without_labels_of_their_own_are_in_no_error(run, tmp_path, monkeypatch):
    """Test structures may be displaced copies: then there is nothing to compare them with."""
    moved = frames_data(tmp_path, loss=LOSS)["structures"]["groups"]
    moved[2] |= {"copies": 2, "displacement": [0.01, 0.05]}
    structures = {"groups": moved, "data": [{"name": "clusters", "licence": "CC0-1.0"}]}
    quick = {"training__steps": 6, "evaluation__teacher_dynamics_steps": 5, "evaluation__dynamics_steps": 5}
    report = evaluate(Run.of(data_recipe(tmp_path, structures=structures, **quick), tmp_path / "run"))
    for engine in report.engines.values():
        assert "bring no labels of a data set" in engine.reasons["dataset_force_mae_meV_A"]
    assert report.settings.accuracy.mean_force_meV_A is None
    assert not (tmp_path / "run" / "evaluation" / "figures" / "force_parity.png").exists()
    assert "Errors are against" not in table(report)


def test_the_table_has_no_column_for_a_twin(report):
    text = table(report)
    assert "twin" not in text.lower()
    assert re.search(r"^ +teacher +student$", text, re.MULTILINE)
    plain = " ".join(text.split())
    assert "The student learned from a data set, and nothing from its teacher." in plain
    assert "Errors are against the labels of the data set" in plain
    assert f"vibration error: not measured ({TAUGHT_NOTHING})" in plain


def test_the_card_speaks_of_the_data_set_alone(card, run):
    body = card.split("---\n", 2)[2]
    for word in ("twin", "distilled", "distillation", "hessians", "amin"):
        assert word not in body.lower()
    plain = " ".join(body.split())
    assert "parameters, trained on the energy and forces of the data set clusters. It answers" in plain
    assert "mean absolute errors against the labels of the data set, on structures that it was not trained" in plain
    assert "`stillinger-weber/teacher`, with which it is compared." in plain
    assert "random weights. It learned energy and forces of 6 structures of the data set clusters" in plain
    assert "(level of theory: that of the frames' labels)" in plain
    assert "engine against data set" in plain
    assert lint_card(card, run.folder / "model") == []


def test_what_programs_read_of_the_card_is_of_the_data_set(card, report):
    read = parse_card(card)
    assert not [tag for tag in read.tags if "distillation" in tag]
    assert "fine-tuning" not in read.tags
    assert read.zoo is not None
    assert read.zoo.level_of_theory == "that of the frames' labels"
    assert set(read.zoo.metrics) >= {"dataset_energy_mae_meV_atom", "dataset_force_mae_meV_A"}
    assert not set(read.zoo.metrics) & set(AGAINST_TEACHER)
    result = json.loads(json.dumps(front_matter(card)["model-index"][0]["results"][0]))
    assert result["dataset"]["name"] == "silicon-clusters, with its own labels"
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values == {
        "energy_mae": report.student.dataset_energy_mae_meV_atom,
        "forces_mae": report.student.dataset_force_mae_meV_A,
    }


def test_it_is_published_and_answers(run, tmp_path):
    model = str(run.folder / "model")
    shown = CliRunner().invoke(main, ["publish", model, "--hub", str(tmp_path / "hub"), "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "card: no fault found" in shown.output
    zoo.publish(model, hub=tmp_path / "hub")
    assert zoo.load("stillinger-weber/tiny-molecule", hub=tmp_path / "hub", device="cpu").check().passed
    told = CliRunner().invoke(main, ["info", "stillinger-weber/tiny-molecule", "--hub", str(tmp_path / "hub")])
    assert "Errors are against the labels of the data set" in told.output


def test_the_commands_name_no_twin(run, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(run.recipe))
    done = CliRunner().invoke(main, ["train", str(path), "--run", str(run.folder)])
    assert done.exit_code == 0, done.output
    assert done.output.endswith(f"weights are in {run.folder / 'train'}\n")


def test_a_dry_run_counts_one_training(run, tmp_path):
    said = estimate_text(estimate(Run.of(run.recipe, tmp_path / "run"), measure=False))
    assert "twin" not in said
    assert "40 steps of 4 structures, the student alone" in said
    assert said.count("to do") == len(STAGES) - 1
    rate = zoo.estimate.rates.Rate(atoms=5, call=0.8, product=1.6, step=0.4)
    counted = zoo.estimate.counts.Count(12, 60, 300, exact=True)
    taught = run.recipe.model_copy(update={"loss": run.recipe.loss.model_copy(update={"force_from": "teacher"})})
    hours = [zoo.estimate.costs.training_hours(recipe, counted, 40, rate) for recipe in (run.recipe, taught)]
    assert hours == pytest.approx([40 * 4 * 0.4 / 3600, 2 * 40 * 4 * 0.4 / 3600])


def test_what_is_made_again_has_the_same_rows(report):
    rows = list(compare_reports(report, report))
    assert {row.engine for row in rows} == {"teacher", "student"}
    assert all(row.inside for row in rows)
    worse = report.student.model_copy(update={"dataset_force_mae_meV_A": 2 * report.student.dataset_force_mae_meV_A})
    outside = [row for row in compare_reports(report, report.model_copy(update={"student": worse})) if not row.inside]
    assert [(row.engine, row.label) for row in outside] == [("student", "data set force error")]


def test_both_templates_say_alike_what_holds_for_all_engines():
    parts = [
        dict(re.findall(r"^## (.+)\n\n((?:.|\n)+?)(?=^## |\Z)", text, re.MULTILINE)) for text in map(read, TEMPLATES)
    ]
    for title in ("Use it", "Domain", "Licence"):
        assert parts[0][title] == parts[1][title]
