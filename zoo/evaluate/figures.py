"""The pictures of a card, each written to one PNG. Drawn without a display and without global state."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zoo.errors import MissingPackageError
from zoo.evaluate.contest import Contest, Measurements
from zoo.evaluate.dynamics import Dynamics
from zoo.files import atomic_write
from zoo.phonons import Bands
from zoo.units import MEV_PER_EV

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, apart for all kinds of sight; line styles tell them apart in print.
COLORS = {"teacher": "#000000", "student": "#0072B2", "twin": "#D55E00"}
_MORE_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = {"teacher": "-", "student": "-", "twin": "--"}
LEGENDS = {"twin": "twin (no Hessians)"}
_DPI = 130
_POINTS = 20_000  # of a scatter; more would only make the file larger


def draw(contest: Contest, measured: Measurements, folder: Path) -> None:
    """A figure for each measurement that came to something."""
    name = contest.recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    if measured.accuracy:
        _draw_parity(contest, measured, folder / "force_parity.png")
    if measured.phonons:
        bands: dict[str, Bands] = {engine: found.bands for engine, found in measured.phonons.items()}
        phonon_bands(folder / "phonon_bands.png", name, bands)
    if measured.dynamics:
        runs: dict[str, Dynamics] = dict(measured.dynamics.items())
        energy_drift(folder / "energy_drift.png", name, runs)
    curves = {str(engine): _validation_curve(trained) for engine, trained in contest.trained.items()}
    learning_curve(folder / "training.png", name, curves, x_label="step", y_label="validation force error (eV/Å)")


def _draw_parity(contest: Contest, measured: Measurements, path: Path) -> None:
    """Against the teacher; where the student learned from a data set, student and teacher against that."""
    name = contest.recipe.name
    forces: dict[str, np.ndarray] = {engine: found.forces for engine, found in measured.accuracy.items()}
    if contest.taught:
        force_parity(path, name, contest.teacher_forces, forces)
        return
    labelled = ~np.isnan(contest.dataset_forces[:, 0])  # (atoms,)
    shown = {engine: own[labelled] for engine, own in ({"teacher": contest.teacher_forces} | forces).items()}
    force_parity(path, name, contest.dataset_forces[labelled], shown, against="data set")


def _validation_curve(folder: Path) -> tuple[list[float], list[float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    forces = [(record["step"], record.get("force", record.get("teacher_force"))) for record in records]
    kept = [
        (step, error)
        for (step, error), record in zip(forces, records, strict=True)
        if error is not None and record["split"] == "validation"
    ]
    return [step for step, _ in kept], [error for _, error in kept]


def force_parity(
    path: Path, name: str, reference: np.ndarray, others: Mapping[str, np.ndarray], *, against: str = "teacher"
) -> None:
    """Force components (atoms, 3) in eV/Å of each engine against a reference of that name, one panel an engine."""
    figure = _figure(3.6 * len(others), 4.4, f"{name}: forces of the test set")
    limit = 1.05 * max(float(np.abs(values).max()) for values in (reference, *others.values()))
    panels = figure.subplots(1, len(others), sharey=True, squeeze=False)[0]
    for panel, (engine, forces) in zip(panels, others.items(), strict=True):
        chosen = slice(None, None, max(1, reference.size // _POINTS))
        panel.plot([-limit, limit], [-limit, limit], color="0.6", linewidth=0.8, zorder=1)
        panel.plot(
            reference.ravel()[chosen],
            forces.ravel()[chosen],
            ".",
            color=_color(engine),
            markersize=2.5,
            alpha=0.5,
            markeredgewidth=0,
            zorder=2,
        )
        error = float(np.abs(forces - reference).mean()) * MEV_PER_EV
        panel.set_title(f"{_legend(engine)}, mean error {error:.3g} meV/Å", fontsize=9.5)
        panel.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel=f"{against} (eV/Å)")
        panel.locator_params(nbins=9, steps=[1, 2, 5, 10])
    panels[0].set_ylabel("engine (eV/Å)")
    _save(figure, path)


def phonon_bands(path: Path, name: str, bands: Mapping[str, Bands]) -> None:
    """Phonon bands of the engines over each other, in the order given, on the path of the first."""
    figure = _figure(6.6, 4.2, f"{name}: phonons")
    panel = figure.subplots()
    for engine, band in bands.items():
        label: str | None = _legend(engine)
        for piece in band.segments():
            below = engine == "teacher"
            lines = panel.plot(
                band.distances[piece],
                band.frequencies_THz[piece],
                color="0.72" if below else _color(engine),
                linewidth=3.5 if below else 1.2,
                linestyle=_style(engine),
                zorder=1 if below else 2,
            )
            lines[0].set_label(label or "_")
            label = None
    first = next(iter(bands.values()))
    _mark_special_points(panel, first)
    lowest = min(float(band.frequencies_THz.min()) for band in bands.values())
    panel.set(xlim=(first.distances[0], first.distances[-1]), ylabel="frequency (THz)")
    panel.set_ylim(bottom=0 if lowest > -0.05 else None)
    panel.axhline(0, color="0.7", linewidth=0.6)
    _legend_above(panel, len(bands))
    _save(figure, path)


def energy_drift(path: Path, name: str, runs: Mapping[str, Dynamics]) -> None:
    """Total energy of each NVE run against its start."""
    figure = _figure(6.6, 3.6, f"{name}: total energy in NVE dynamics")
    panel = figure.subplots()
    for engine, run in runs.items():
        times, change = _energy_change(run)
        ending = "" if run.completed or not len(run.times_ps) else f", ended at {run.times_ps[-1]:.2f} ps"
        panel.plot(
            times,
            change,
            color=_color(engine),
            linestyle=_style(engine),
            linewidth=1.0,
            label=_legend(engine) + ending,
            zorder=3 if engine == "student" else 2,
        )
    panel.axhline(0, color="0.7", linewidth=0.6, zorder=1)
    panel.set(xlabel="time (ps)", ylabel="change of the total energy\n(meV/atom)", xlim=(0, None))
    panel.set_ylim(*_limits_of_completed(runs))
    _legend_above(panel, len(runs))
    _save(figure, path)


def learning_curve(
    path: Path,
    name: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
) -> None:
    """Any number of curves, each its x and y, on a logarithmic y axis.

    A label that begins with an engine's name ("student", "student, training") has that engine's colour.
    """
    figure = _figure(6.6, 3.8, f"{name}: training")
    panel = figure.subplots()
    for index, (label, (x, y)) in enumerate(series.items()):
        panel.plot(x, y, color=_color(label, index), linestyle=_style(label), linewidth=1.4, label=_legend(label))
    panel.set(xlabel=x_label, ylabel=y_label, yscale="log")
    panel.grid(True, which="both", axis="y", color="0.9", linewidth=0.6)
    _legend_above(panel, min(len(series), 4))
    _save(figure, path)


def scaling(
    path: Path,
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
) -> None:
    """Any number of curves, each its x and y, on logarithmic axes. Raises MissingPackageError without matplotlib."""
    figure = _figure(6.6, 4.6, title)
    panel = figure.subplots()
    colors = (*COLORS.values(), *_MORE_COLORS)
    for index, (label, (x, y)) in enumerate(series.items()):
        turn, place = divmod(index, len(colors))
        style = ("o-", "s--")[turn % 2]
        panel.plot(x, y, style, color=colors[place], label=label, linewidth=1.4, markersize=3.5)
    panel.set(xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
    panel.grid(True, which="both", color="0.9", linewidth=0.6)
    _legend_above(panel, 3)
    _save(figure, path)


def _figure(width: float, height: float, title: str) -> "Figure":
    try:  # an optional package
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("figures need matplotlib; run: pip install matplotlib") from error
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    return figure


def _save(figure: "Figure", path: Path) -> None:
    """As a PNG with a palette, a third of the size of one with all colours."""
    from PIL import Image  # comes with matplotlib

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    palette = Image.open(drawn).convert("RGB").quantize(colors=96, method=Image.Quantize.MAXCOVERAGE)
    palette.save(small, format="png", optimize=True)
    atomic_write(path, small.getvalue())


def _mark_special_points(panel: "Axes", bands: Bands) -> None:
    """Names under the special points; two that share a place, where the path jumps, share a name."""
    names: dict[float, str] = {}
    for distance, label in zip(bands.ticks.round(9).tolist(), bands.labels, strict=True):
        names[distance] = f"{names[distance]}|{label}" if distance in names else label
    panel.set_xticks(list(names), list(names.values()))
    for distance in names:
        panel.axvline(distance, color="0.8", linewidth=0.6, zorder=0)


def _energy_change(run: Dynamics) -> tuple[np.ndarray, np.ndarray]:
    """Times (ps) and the total energy against its start (meV/atom), as long as it was finite."""
    finite = np.isfinite(run.energies_eV_atom)
    energies = run.energies_eV_atom[finite]
    return run.times_ps[finite], (energies - energies[:1]) * MEV_PER_EV


def _limits_of_completed(runs: Mapping[str, Dynamics]) -> tuple[float | None, float | None]:
    """What the completed runs span, with room, so that one that exploded does not flatten them."""
    changes = [_energy_change(run)[1] for run in runs.values() if run.completed]
    if not changes or len(changes) == len(runs):
        return None, None
    low, high = (float(f(np.concatenate(changes))) for f in (np.min, np.max))
    room = 0.5 * (high - low) + 1e-6
    return low - room, high + room


def _legend_above(panel: "Axes", columns: int) -> None:
    panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False, fontsize=9)


def _color(label: str, index: int = 0) -> str:
    return COLORS.get(label.split(",")[0], _MORE_COLORS[index % len(_MORE_COLORS)])


def _style(label: str) -> str:
    """A label with a remark ("student, training") is the engine's colour, dotted."""
    return ":" if "," in label else STYLES.get(label, "-")


def _legend(engine: str) -> str:
    return LEGENDS.get(engine, engine)
