import sys
from pathlib import Path

import numpy as np
import pytest

from zoo.errors import MissingPackageError
from zoo.evaluate.dynamics import Dynamics
from zoo.evaluate.figures import energy_drift, force_parity, learning_curve, phonon_bands
from zoo.phonons import Bands

NAME = "sevennet-0/silicon-student"
ENGINES = ("teacher", "student", "twin")
MAX_BYTES = 100_000


@pytest.fixture
def matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install phonopy matplotlib")


def bands(scale: float) -> Bands:
    x = np.linspace(0, 4, 101)
    distances = np.insert(x, 50, x[50])  # a jump
    frequencies = scale * np.abs(np.sin(distances[:, None] + np.arange(6)))
    return Bands(distances, frequencies, np.array([0.0, 2.0, 2.0, 4.0]), ("Γ", "K", "U", "X"))


def dynamics(points: int, completed: bool = True) -> Dynamics:
    times = np.arange(points) / 1000
    energies = -4 + 1e-4 * np.random.default_rng(points).standard_normal(points)
    if not completed:
        energies[-1] = np.inf
    reason = None if completed else "the energy was no longer finite"
    return Dynamics(times, energies, np.full(points, 300.0), 0.1, 0.1, completed, reason)


def assert_small_png(path: Path) -> None:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert 3000 < len(content) < MAX_BYTES


@pytest.mark.usefixtures("matplotlib")
def test_every_figure_is_a_small_png(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    forces = generator.standard_normal((30_000, 3))
    others = {engine: forces + 0.1 * generator.standard_normal(forces.shape) for engine in ENGINES[1:]}
    force_parity(tmp_path / "parity.png", NAME, forces, others)
    phonon_bands(tmp_path / "bands.png", NAME, {e: bands(15 + i) for i, e in enumerate(ENGINES)})
    energy_drift(tmp_path / "drift.png", NAME, {e: dynamics(2000) for e in ENGINES})
    steps = range(10, 1000, 10)
    series = {label: (steps, [100 / step for step in steps]) for label in ("student", "twin", "student, training")}
    learning_curve(tmp_path / "training.png", NAME, series, x_label="step", y_label="force error (meV/Å)")
    for name in ("parity", "bands", "drift", "training"):
        assert_small_png(tmp_path / f"{name}.png")


@pytest.mark.usefixtures("matplotlib")
@pytest.mark.parametrize("points", [0, 1, 50])
def test_a_run_that_ended_early_is_drawn_as_far_as_it_went(tmp_path: Path, points: int) -> None:
    early = Dynamics(*np.zeros((3, 0)), None, None, False, "refused") if points == 0 else dynamics(points, False)
    energy_drift(tmp_path / "drift.png", NAME, {"student": dynamics(100), "twin": early})
    assert_small_png(tmp_path / "drift.png")


@pytest.mark.usefixtures("matplotlib")
def test_imaginary_bands_are_shown_below_zero(tmp_path: Path) -> None:
    phonon_bands(tmp_path / "bands.png", NAME, {"teacher": bands(15), "twin": bands(-3)})
    assert_small_png(tmp_path / "bands.png")


@pytest.mark.usefixtures("matplotlib")
def test_drawing_leaves_no_global_state(tmp_path: Path) -> None:
    phonon_bands(tmp_path / "bands.png", NAME, {"teacher": bands(15)})
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_without_matplotlib_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match="run: pip install matplotlib"):
        energy_drift(tmp_path / "drift.png", NAME, {"student": dynamics(10)})
    assert list(tmp_path.iterdir()) == []
