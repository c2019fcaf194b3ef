import json

import numpy as np
import pytest

from zoo.config import canonical_json, parse
from zoo.errors import ConfigError
from zoo.evaluate.report import (
    OLDER,
    QUANTITIES,
    REFERENCE,
    WIDTH,
    AccuracySettings,
    DynamicsSettings,
    Figures,
    PhononSettings,
    Report,
    Settings,
    TimingSettings,
    gaps,
    number,
    rows_of,
    speedup,
    table,
    times,
)

ERRORS = {
    "energy_mae_meV_atom": 1.5,
    "force_mae_meV_A": 63.2,
    "stress_mae_GPa": 0.21,
    "hessian_mae_eV_A2": 0.31,
    "dataset_energy_mae_meV_atom": 8.4,
    "dataset_force_mae_meV_A": 210.0,
    "mode_mae_THz": 0.71,
}
CRYSTAL = {"max_frequency_THz": 15.2, "lattice_constant_A": 5.4612, "bulk_modulus_GPa": 88.7}


def example_report() -> Report:
    """A report of made-up numbers, with everything that a report can hold."""
    teacher = Figures.of(CRYSTAL | {"drift_meV_atom_ps": 2e-4, "ms_per_call": 417.0}, {}, otherwise=REFERENCE)
    student = Figures.of(
        ERRORS | CRYSTAL | {"phonon_mae_THz": 0.11, "drift_meV_atom_ps": -0.002, "ms_per_call": 8.1}, {}
    )
    worse = {key: 2 * value for key, value in ERRORS.items()} | {"energy_mae_meV_atom": 1.1}
    twin = Figures.of(
        worse | {"ms_per_call": 8.0},
        {"drift_meV_atom_ps": "it exploded: 90000 K at 0.5 ps"},
        otherwise="phonopy was not installed",
    )
    return Report(
        name="stillinger-weber/silicon-student",
        teacher=teacher,
        student=student,
        twin=twin,
        speedup=speedup(teacher, student),
        parameters=61234,
        training_seconds={"student": 181.0, "twin": 95.0},
        settings=Settings(
            accuracy=AccuracySettings(
                structures=16,
                atoms=384,
                probes=2,
                probe_kind="rademacher",
                description="hotter and more strained",
            ),
            phonons=PhononSettings(atoms=64, displacement_A=0.01, mesh=(10, 10, 10), lattice_constant_A=5.46),
            dynamics={"student": DynamicsSettings(atoms=64, steps=2000, timestep_fs=1.0, temperature_K=600.0)},
            timing=TimingSettings(atoms=64, repeats=20, threads=2, device="cpu", dtype="float32"),
        ),
        hardware={"cpu": "A processor", "cores": 2, "threads": 2, "memory_GiB": 4.0, "gpu": None},
        versions={"python": "3.11.7", "torch": "2.13.0"},
    )


def test_a_figure_that_was_not_measured_must_say_why() -> None:
    with pytest.raises(ValueError, match="energy_mae_meV_atom was not measured and reasons"):
        Figures()
    with pytest.raises(ValueError, match="does not say why"):
        Figures.of({}, {"stress_mae_GPa": "  "})


def test_a_figure_that_was_measured_has_no_reason() -> None:
    everything = {quantity.key: 1.0 for quantity in QUANTITIES}
    with pytest.raises(ValueError, match="ms_per_call was measured"):
        Figures.model_validate(everything | {"reasons": {"ms_per_call": "too slow"}})
    with pytest.raises(ValueError, match="do not exist: colour"):
        Figures.model_validate(everything | {"reasons": {"colour": "blue"}})


def test_every_figure_has_a_row() -> None:
    assert {quantity.key for quantity in QUANTITIES} == set(Figures.model_fields) - {"reasons"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_figures_are_finite(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Figures.of({"force_mae_meV_A": value}, {})


def test_figures_become_plain_floats() -> None:
    figures = Figures.of({"force_mae_meV_A": np.float64(1.5)}, {})
    assert type(figures.force_mae_meV_A) is float


def test_the_report_survives_its_file() -> None:
    report = example_report()
    data = json.loads(canonical_json(report))
    assert parse(Report, data, "report.json") == report
    assert data["twin"]["max_frequency_THz"] is None
    assert data["twin"]["reasons"]["max_frequency_THz"] == "phonopy was not installed"


def test_a_report_without_a_twin_reads_and_has_no_column_for_one() -> None:
    report = example_report()
    data = json.loads(canonical_json(report))
    bare = parse(Report, {key: value for key, value in data.items() if key != "twin"}, "report.json")
    assert bare.twin is None
    assert parse(Report, json.loads(canonical_json(bare)), "report.json") == bare
    assert list(bare.engines) == ["teacher", "student"]
    assert list(report.engines) == ["teacher", "student", "twin"]
    assert "twin" not in table(bare)
    assert not any("twin" in gap for gap in gaps(bare))
    assert "drift" in table(bare)


@pytest.mark.parametrize(
    ("ratio", "said"), [(0.0279, "0.028"), (0.84, "0.84"), (1.0, "1.0"), (43.27, "43.3"), (234.5, "234")]
)
def test_how_many_times_as_fast(ratio: float, said: str) -> None:
    assert times(ratio) == said


def test_the_speedup_is_the_ratio_of_the_times() -> None:
    report = example_report()
    assert report.speedup == pytest.approx(417 / 8.1)
    data = json.loads(canonical_json(report))
    for wrong in (40.0, None):
        with pytest.raises(ConfigError, match="speedup"):
            parse(Report, data | {"speedup": wrong}, "report.json")


def test_the_table_fits_a_terminal_and_says_what_is_missing() -> None:
    text = table(example_report())
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    for quantity in QUANTITIES:
        assert f"{quantity.label:<22}{quantity.unit}" in text
    assert "63.2" in text
    assert "reference" in text
    assert "51.5 times as fast" in text
    assert "it exploded" in text


def test_a_report_from_before_a_figure_still_reads_and_keeps_quiet_about_it() -> None:
    data = json.loads(canonical_json(example_report()))
    for engine in ("teacher", "student", "twin"):
        for key in ("mode_mae_THz", "dataset_energy_mae_meV_atom", "dataset_force_mae_meV_A"):
            data[engine].pop(key)
            data[engine]["reasons"].pop(key, None)
    data["settings"].pop("vibrations")
    for key in ("dataset_structures", "teacher_asymmetry"):
        data["settings"]["accuracy"].pop(key)
    data["settings"]["dynamics"]["student"].pop("completed")
    old = parse(Report, data, "report.json")
    assert old.student.force_mae_meV_A == ERRORS["force_mae_meV_A"]
    assert old.student.reasons["mode_mae_THz"] == OLDER
    assert OLDER not in table(old)
    assert "vibration" not in table(old)


def test_a_figure_that_nobody_has_stands_below_the_table_once() -> None:
    report = example_report()
    without = {
        engine: Figures.of({"force_mae_meV_A": 1.0}, {"stress_mae_GPa": "no volume"}, otherwise="not asked for")
        for engine in ("teacher", "student", "twin")
    }
    told = report.model_copy(update=without | {"speedup": None})
    assert [quantity.key for quantity in rows_of(told)] == ["force_mae_meV_A"]
    assert "teacher, student and twin, stress error: not measured (no volume)" in gaps(told)
    assert "GPa" not in table(told)


def test_a_teacher_that_is_not_conservative_is_told() -> None:
    report = example_report()
    assert "Jacobian" not in table(report)
    errors = report.settings.accuracy.model_copy(update={"teacher_asymmetry": 0.073})
    told = report.model_copy(update={"settings": report.settings.model_copy(update={"accuracy": errors})})
    assert "its Jacobian differs from its transpose by 7.3 %" in " ".join(table(told).split())


def test_gaps_name_engine_figures_and_reason_but_not_the_reference() -> None:
    found = gaps(example_report())
    assert not any(gap.startswith("teacher") for gap in found)
    assert any(gap.startswith("twin, phonon error, highest phonon, lattice constant and") for gap in found)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0.0000"),
        (-0.002, "-0.0020"),
        (5.4312, "5.431"),
        (99.97, "100.0"),
        (1417.2, "1417"),
        (2e-4, "2.0e-04"),
    ],
)
def test_numbers_show_the_digits_that_matter(value: float | None, text: str) -> None:
    assert number(value) == text
