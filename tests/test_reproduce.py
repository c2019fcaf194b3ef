"""A recipe is locked to what its run was made of, and an engine made again is compared with its report."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest

from recipes import tiny_data, tiny_recipe
from zoo.config import read_json, read_yaml
from zoo.errors import ConfigError, IntegrityError, LabelError, UnknownNameError
from zoo.evaluate.report import Bands, Report
from zoo.files import atomic_write
from zoo.naming import DEFAULT_NAMESPACE
from zoo.pipeline import distill, make_labels, make_structures
from zoo.publish import publish, seal
from zoo.recipe import Recipe, to_yaml
from zoo.reproduce import (
    compare_reports,
    lock_recipe,
    plan_text,
    read_published,
    reproduce,
    run_of,
)
from zoo.run import Run
from zoo.version import __version__, code_sha256
from zoo.version import digest_of as package_digest

BANDS = Bands()
QUICK = {
    "training__steps": 6,
    "training__warmup_steps": 1,
    "evaluation__dynamics_steps": 12,
    "evaluation__teacher_dynamics_steps": 12,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a finished run."""
    pytest.importorskip("phonopy", reason="evaluation needs the extra train")
    folder = tmp_path_factory.mktemp("made") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.package.run_snippet", lambda *arguments: "ran")  # which takes longer than all the rest
        distill(Run.of(tiny_recipe(**QUICK), folder))
    return folder


@pytest.fixture(scope="module")
def again(made, tmp_path_factory):
    """The folder of another run, in which the engine was made again."""
    folder = tmp_path_factory.mktemp("again") / "run"
    published = read_published(made / "model")
    reproduce(published, run_of(published, folder))
    return folder


def tampered(made: Path, place: Path, **figures) -> Path:
    """A copy of the model folder whose report says other figures of the student, sealed as by its publisher."""
    folder = place / "model"
    shutil.copytree(made / "model", folder)
    report = json.loads((folder / "report.json").read_text())
    report["student"] |= figures
    (folder / "report.json").write_text(json.dumps(report))
    seal(folder)
    return folder


def relocked(made: Path, place: Path, **lock) -> Path:
    """A copy of the model folder whose recipe is locked otherwise, sealed as by its publisher."""
    folder = place / "model"
    shutil.copytree(made / "model", folder)
    recipe = read_yaml(Recipe, folder / "recipe.yaml")
    atomic_write(
        folder / "recipe.yaml", to_yaml(recipe.model_copy(update={"lock": recipe.lock.model_copy(update=lock)}))
    )
    seal(folder)
    return folder


def outside(result) -> list[tuple[str, str]]:
    return [(row.engine, row.label) for row in result.rows if not row.inside]


def test_an_engine_made_again_on_the_same_machine_is_the_same(made, again, tmp_path):
    published = read_published(relocked(made, tmp_path, code_sha256=code_sha256()))
    result = reproduce(published, run_of(published, again))
    assert result.passed
    assert result.same == dict.fromkeys(("data", "structures", "labels", "code", "machine"), True)
    assert all(row.published == row.found for row in result.rows)
    engines = {row.engine for row in result.rows if row.label == "force error"}
    assert engines == {"student", "twin"}
    assert not any("time" in row.label for row in result.rows)
    text = str(result)
    assert f"all {len(result.rows)} figures lie in the band" in text
    assert "labels: the same, bit for bit (the same machine and versions, the same code)" in text
    assert "data: the same\n" in text
    assert "Band: errors within 10% of those stated" in text
    assert max(map(len, text.splitlines())) < 200
    assert json.loads(json.dumps(result.as_dict()))["passed"] is True
    assert read_yaml(Recipe, again / "recipe.yaml").lock is None  # not held to the last digit


@pytest.mark.parametrize("factor", [1 + 2 * BANDS.errors, 1 - 2 * BANDS.errors])
def test_a_report_that_says_other_figures_is_told(made, again, tmp_path, factor):
    report = read_json(Report, made / "model" / "report.json")
    force = report.student.force_mae_meV_A
    folder = tampered(made, tmp_path, force_mae_meV_A=force * factor)
    published = read_published(folder)
    result = reproduce(published, run_of(published, again))
    assert not result.passed
    assert outside(result) == [("student", "force error")]
    assert "outside the band: 1 of" in str(result)
    (line,) = [line for line in str(result).splitlines() if "OUTSIDE" in line]
    assert line.startswith("force error")
    assert result.as_dict()["passed"] is False


def test_figures_that_differ_by_a_little_lie_in_the_band(made, again, tmp_path):
    report = read_json(Report, made / "model" / "report.json")
    force = report.student.force_mae_meV_A
    folder = tampered(made, tmp_path, force_mae_meV_A=force * (1 + BANDS.errors / 2))
    published = read_published(folder)
    assert reproduce(published, run_of(published, again)).passed


def test_a_report_that_was_altered_and_not_sealed_is_refused(made, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(made / "model", folder)
    report = json.loads((folder / "report.json").read_text())
    report["student"]["force_mae_meV_A"] = 1.0
    (folder / "report.json").write_text(json.dumps(report))
    with pytest.raises(IntegrityError, match=r"report\.json"):
        read_published(folder)


def test_the_folder_of_a_run_and_a_name_on_a_hub_lead_to_the_model(made, tmp_path):
    assert read_published(made).folder == made / "model"
    publish(made / "model", hub=tmp_path / "hub")
    name = "stillinger-weber/tiny-student"
    found = read_published(name, hub=str(tmp_path / "hub"), namespace=DEFAULT_NAMESPACE)
    assert found.recipe == read_published(made).recipe
    assert run_of(found).folder == Path("runs") / f"{name}-reproduced"
    text = plan_text(found, run_of(found, tmp_path / "new"))
    assert f"{name} is made again from its locked recipe" in text
    assert "labels      to do" in text
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_reproduced_is_refused(made, tmp_path):
    with pytest.raises(ConfigError, match="is the run that made this engine; give another --run"):
        run_of(read_published(made), made)
    with pytest.raises(ConfigError, match="stillinger-weber/teacher is a teacher"):
        read_published("stillinger-weber/teacher")
    with pytest.raises(UnknownNameError, match="there is no model folder"):
        read_published(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(made / "model", folder)
    atomic_write(folder / "recipe.yaml", to_yaml(tiny_recipe(**QUICK)))
    seal(folder)
    with pytest.raises(ConfigError, match="has no lock"):
        read_published(folder)


def test_a_teacher_of_other_weights_is_refused_before_any_work(made, tmp_path):
    published = read_published(relocked(made, tmp_path, teacher_weights_sha256="0" * 64))
    with pytest.raises(LabelError, match=r"locked to weights 000000000000… of stillinger-weber/teacher, here are"):
        reproduce(published, run_of(published, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_other_labels_are_told_and_decide_nothing(made, again, tmp_path):
    published = read_published(relocked(made, tmp_path, labels_sha256="0" * 64))
    result = reproduce(published, run_of(published, again))
    assert result.passed
    assert result.same["structures"]
    assert not result.same["labels"]
    assert "labels: others in their last digits or more" in str(result)
    assert "they should be equal there" in str(result)


@pytest.mark.parametrize(("code", "told"), [("0" * 64, "other code"), ("", "code that its lock does not name")])
def test_other_code_is_told_and_decides_nothing(made, again, tmp_path, code, told):
    published = read_published(relocked(made, tmp_path, labels_sha256="0" * 64, code_sha256=code))
    run = run_of(published, again)
    assert f"here are zoo {__version__} ({told}), torch " in plan_text(published, run)
    result = reproduce(published, run)
    assert result.passed
    assert result.same["code"] is (False if code else None)
    assert f"labels: others in their last digits or more (the same machine and versions, {told}" in str(result)
    assert ("they should be equal there" in str(result)) == (not code)


def test_other_data_are_told_by_their_names(made, again, tmp_path):
    published = read_published(relocked(made, tmp_path, data_sha256={"b.xyz": "0" * 64, "a.xyz": "1" * 64}))
    result = reproduce(published, run_of(published, again))
    assert result.passed
    assert result.same["data"] is False
    assert "data: other data than it is locked to: a.xyz, b.xyz" in str(result).splitlines()
    assert list(result.as_dict()["other_data"]) == ["a.xyz", "b.xyz"]


def test_the_digest_of_code_is_of_its_files_their_paths_and_nothing_else(tmp_path):
    def digest(**files: str) -> str:
        package = Path(tempfile.mkdtemp(dir=tmp_path))
        for path, text in files.items():
            atomic_write(package / path, text)
        return package_digest(package)

    files = {"a.py": "1", "data/b.yaml": "2"}
    same = digest(**files)
    compiled = {"__pycache__/a.pyc": "x", "notes.txt": "x", "_recipes/sw/a.yaml": "x", "_cards/a.yaml": "x"}
    assert digest(**dict(reversed(files.items())), **compiled) == same
    others = ({"a.py": "2", "data/b.yaml": "2"}, {"c.py": "1", "data/b.yaml": "2"}, {"a.py": "1"}, files | {"c.py": ""})
    assert len({same, *(digest(**other) for other in others)}) == 1 + len(others)
    assert code_sha256() == code_sha256() != same


def test_the_band_is_that_of_the_published_report(made):
    report = read_json(Report, made / "model" / "report.json")
    wide = report.model_copy(update={"bands": Bands(errors=0.5)})
    (row,) = (row for row in compare_reports(wide, report) if (row.engine, row.label) == ("student", "force error"))
    assert row.low == pytest.approx(0.5 * row.published)


def test_bands_are_as_the_docstring_says():
    assert BANDS.of("force_mae_meV_A", 20.0) == pytest.approx((20 - 20 * BANDS.errors, 20 + 20 * BANDS.errors))
    low, high = BANDS.of("lattice_constant_A", 5.43)
    assert high - low == pytest.approx(2 * 5.43 * BANDS.lattice_constant_A)
    assert BANDS.of("drift_meV_atom_ps", -0.3) == pytest.approx((-0.3 * BANDS.drift, 0.3 * BANDS.drift))
    assert BANDS.of("dataset_energy_mae_meV_atom", 0.0) == (-BANDS.floor, BANDS.floor)


def test_what_was_measured_once_alone_is_outside(made):
    report = read_json(Report, made / "model" / "report.json")
    data = report.model_dump(mode="json")
    data["student"]["force_mae_meV_A"] = None
    data["student"]["reasons"]["force_mae_meV_A"] = "it came apart"
    lacking = Report.model_validate_json(json.dumps(data))
    for rows in (compare_reports(report, lacking), compare_reports(lacking, report)):
        assert [(row.engine, row.label) for row in rows if not row.inside] == [("student", "force error")]
    data["student"]["reasons"]["force_mae_meV_A"] = "the report is older than this figure"
    older = Report.model_validate_json(json.dumps(data))
    assert all(row.inside for row in compare_reports(older, report))


def test_another_number_of_parameters_is_outside(made):
    report = read_json(Report, made / "model" / "report.json")
    other = report.model_copy(update={"parameters": report.parameters + 1})
    assert [row.label for row in compare_reports(report, other) if not row.inside] == ["parameters"]


def test_the_lock_of_a_finished_run_is_the_one_that_it_wrote(made):
    recipe = tiny_recipe(**QUICK)
    locked = lock_recipe(recipe, made)
    assert locked.lock == read_yaml(Recipe, made / "recipe.yaml").lock
    assert locked.digest == recipe.digest


def test_labels_are_enough_for_the_same_lock(made, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns("train", "twin", "evaluation", "model", "model.json"))
    shutil.copytree(made / "labels", folder / "labels", dirs_exist_ok=True)
    atomic_write(folder / "recipe.yaml", to_yaml(tiny_recipe(**QUICK)))
    locked = lock_recipe(tiny_recipe(**QUICK | {"training__steps": 9}), folder)
    written = read_yaml(Recipe, made / "recipe.yaml").lock
    assert locked.lock == written.model_copy(update={"code_sha256": code_sha256()})
    assert locked.training.steps == 9


def test_a_run_that_is_not_so_far_says_which_stage_to_run(tmp_path):
    recipe = tiny_recipe(**QUICK)
    with pytest.raises(ConfigError, match=r"has no finished labels, .* run zoo label with this recipe first"):
        lock_recipe(recipe, tmp_path / "run")
    make_structures(Run.of(recipe, tmp_path / "run"))
    with pytest.raises(ConfigError, match="has no finished labels"):
        lock_recipe(recipe, tmp_path / "run")
    make_labels(Run.of(recipe, tmp_path / "run"))
    assert lock_recipe(recipe, tmp_path / "run").lock is not None
    exploring = tiny_recipe(**QUICK, exploration={"kind": "rattle-relax"})
    with pytest.raises(ConfigError, match=r"has no finished train, .* run zoo train"):
        lock_recipe(exploring, tmp_path / "run")


def test_a_run_of_another_recipe_locks_nothing(made):
    for changes in ({"seed": 8}, {"labels__probes_per_structure": 3}, {"teacher__dtype": "float32"}):
        (section,) = {path.partition("__")[0] for path in changes}
        with pytest.raises(ConfigError, match=f"made from a recipe with other {section}"):
            lock_recipe(tiny_recipe(**QUICK, **changes), made)
    assert tiny_data()["seed"] != 8
