"""What a report says, in Markdown: tables and sentences."""

from collections.abc import Iterator, Sequence

from zoo.artifact import Domain
from zoo.evaluate.report import (
    DATASET_ENERGIES,
    QUANTITIES,
    Figures,
    Report,
    asymmetry_remarks,
    cell,
    listed,
    number,
    rows_of,
    times,
)

_ERRORS = tuple(quantity.key for quantity in QUANTITIES if "_mae_" in quantity.key)


def teacher_errors(report: Report) -> str:
    """What is known of the teacher's own errors, in a clause."""
    error = report.teacher.dataset_force_mae_meV_A
    if error is None:
        return "which were not measured here"
    return f"of which that of forces is {number(error)} meV/Å against the labels of the data set"


def speed(report: Report) -> str:
    timing = report.settings.timing
    if report.speedup is None:
        return ""
    where = f" ({timing.atoms} atoms, {timing.threads} threads, {timing.device})" if timing else ""
    return f"It answers {times(report.speedup)} times as fast as its teacher{where}."


def dynamics_limit(report: Report) -> str:
    run = report.settings.dynamics.get("student")
    if run is None:
        return "Whether its dynamics is stable was not tested."
    picoseconds = f"{run.steps * run.timestep_fs / 1000:g} ps"
    if not run.completed:
        return f"Its dynamics came to an end of its own after {picoseconds}, see the table."
    if report.student.drift_meV_atom_ps is None:
        return "Whether its dynamics is stable was not tested."
    return f"Its dynamics was tested for {picoseconds}, not for longer."


def domain_table(domain: Domain, report: Report) -> str:
    """The limits of a domain, and from which novelty on a structure is beyond what was tested."""
    axes = [axis for axis, flag in zip("abc", domain.pbc, strict=True) if flag]
    rows = [
        ("elements", ", ".join(domain.elements)),
        ("periodic along", ", ".join(axes) or "nothing: molecules"),
        ("shortest distance", f"{domain.min_distance_A:.2f} Å"),
        ("largest structure trained on", f"{domain.max_atoms_trained} atoms; larger ones are welcome"),
    ]
    if domain.charge is not None:
        rows.append(("total charge", "none" if domain.charge == 0 else f"{domain.charge:+d} e"))
    if domain.volume_per_atom_A3 is not None:
        low, high = domain.volume_per_atom_A3
        rows.append(("volume of an atom", f"{low:.1f} to {high:.1f} Å³"))
    if report.novelty is not None:
        rows.append(("novelty, tested up to", f"{number(report.novelty.threshold_meV_A)} meV/Å"))
    return markdown_table(("domain", ""), rows)


def novelty(report: Report) -> str:
    """What its users can make of the novelty of an atom."""
    found = report.novelty
    if found is None:
        return "It has no novelty score: nothing tells how far a structure within these limits is from what it learned."
    ranked = "not defined" if found.rank_correlation is None else f"{found.rank_correlation:.2f}"
    return (
        "Within these limits, `engine.novelty(structures)` tells at the price of a forward pass how far the "
        "surroundings of each atom are from those that it learned, as the error of the force to be expected (meV/Å). "
        f"On the test set the rank correlation with the true errors of {found.atoms} atoms is {ranked}, and "
        f"{100 * found.coverage:.0f} % of these are within twice what was expected; their root mean square is "
        f"{number(found.error_rms_meV_A)} meV/Å, where {number(found.expected_rms_meV_A)} was expected. "
        f"Beyond {number(found.threshold_meV_A)} meV/Å an atom is newer than what the engine was tested on."
    )


def verdict(report: Report) -> str:
    """In which errors the student is better than its twin, or without one its teacher, and in which it is not."""
    name, other = ("teacher", report.teacher) if report.twin is None else ("twin", report.twin)
    better: list[str] = []
    worse: list[str] = []
    for quantity in QUANTITIES:
        student, its = getattr(report.student, quantity.key), getattr(other, quantity.key)
        if quantity.key in _ERRORS and student is not None and its is not None and student != its:
            (better if student < its else worse).append(quantity.label)
    sentences = [f"The student has the smaller {listed(better)}."] if better else []
    if worse:
        sentences.append(f"The {name} has the smaller {listed(worse)}.")
    return " ".join(sentences)


def comparison(report: Report) -> str:
    columns: list[Figures] = list(report.engines.values())
    rows = [
        (f"{quantity.label} ({quantity.unit})", *(cell(figures, quantity.key) for figures in columns))
        for quantity in rows_of(report)
    ]
    return markdown_table(("", *report.engines), rows)


def conditions(report: Report) -> Iterator[str]:
    """How the figures were measured, and on what."""
    settings = report.settings
    yield from _error_conditions(report)
    if one := settings.vibrations:
        yield (
            f"Vibrations: sorted eigenfrequencies of the mass-weighted Hessian of {one.formula} ({one.atoms} atoms) as "
            "it stands in the test set, relaxed by none of them; motions of the whole are left out."
        )
    if crystal := settings.phonons:
        yield (
            f"Phonons: finite displacements of {crystal.displacement_A:g} Å in {crystal.atoms} atoms, "
            f"{'×'.join(map(str, crystal.mesh))} wave vectors, the same cell for all."
        )
    start = (
        "in the first structure of the test set" if crystal is None else "on perfect sites, where half of it remains"
    )
    for engine, run in settings.dynamics.items():
        yield (
            f"Drift of the {engine}: {run.atoms} atoms, {run.steps * run.timestep_fs / 1000:g} ps in steps "
            f"of {run.timestep_fs:g} fs, velocities drawn at {run.temperature_K:g} K {start}."
        )
    if timing := settings.timing:
        yield (
            f"Time: energy and forces of {timing.atoms} atoms through ASE, neighbours kept in a skin, median "
            f"of {timing.repeats} calls, engines in turn, {timing.dtype}, {timing.threads} threads, "
            f"{timing.device}."
        )
    machine = report.hardware.get("gpu") or report.hardware.get("cpu") or "hardware that was not recorded"
    packages = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield f"Hardware and versions: {machine}; {packages}."


def _error_conditions(report: Report) -> Iterator[str]:
    errors = report.settings.accuracy
    if errors is None:
        return
    products = f"; the Hessian's is of components of H·v, {errors.probes} {errors.probe_kind} probes a structure"
    yield (
        f"Errors: {errors.structures} structures, {errors.atoms} atoms in all ({errors.description})"
        f"{products if errors.probes else ''}."
    )
    if errors.mean_force_meV_A is not None:
        yield f"Scale: a component of a force in the test set is {errors.mean_force_meV_A:.0f} meV/Å on average."
    if errors.dataset_structures:
        yield f"Data set: its own labels of {errors.dataset_structures} of these structures; {DATASET_ENERGIES}."
    if errors.label_error_eV_A2 is not None:
        yield (
            "The teacher's Hessian products are differences of its forces, with an error of about "
            f"{errors.label_error_eV_A2:.1e} eV/Å² (root mean square)."
        )
    yield from asymmetry_remarks(report)


def markdown_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Padded, so that it reads as text too; figures to the right where there are several columns."""
    right = len(head) > 2
    widths = [max(3, *(len(row[column]) for row in (head, *rows))) for column in range(len(head))]
    rule = tuple("-" * (width - 1) + (":" if right and column else "-") for column, width in enumerate(widths))
    return "\n".join(_padded(row, widths, right) for row in (head, rule, *rows))


def _padded(cells: tuple[str, ...], widths: list[int], right: bool) -> str:
    first, *others = zip(cells, widths, strict=True)
    padded = [text.rjust(width) if right else text.ljust(width) for text, width in others]
    return f"| {' | '.join([first[0].ljust(first[1]), *padded])} |"
