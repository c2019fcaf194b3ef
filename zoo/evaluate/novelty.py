"""The novelty of a student's atoms: fitted to its training set, calibrated on validation, told on the test set."""

from dataclasses import dataclass, replace

import numpy as np

from zoo.errors import LabelError
from zoo.evaluate.contest import Contest, forces_of
from zoo.evaluate.report import NoveltyFigures
from zoo.novelty import (
    FEWEST,
    NoveltyModel,
    calibrate,
    describe,
    fit_structures,
    force_errors,
    rank_correlation,
    threshold,
)


@dataclass(frozen=True)
class FittedNovelty:
    """A score, and what it is worth."""

    model: NoveltyModel
    figures: NoveltyFigures


def fit_novelty(contest: Contest) -> FittedNovelty:
    """That of the student of a contest. Raises CapabilityError without node features, LabelError without errors."""
    student, learned = contest.student, contest.learned
    gaussians = fit_structures(student, learned.train)
    validation = describe(student, learned.validation, forces=True)
    scales = calibrate(gaussians, validation, forces_of(learned.validation, learned.labels))
    model = NoveltyModel(gaussians, scales, threshold_meV_A=0.0)
    test = describe(student, contest.structures, forces=True)
    expected = model.expected(test)
    model = replace(model, threshold_meV_A=threshold(expected, test.counts))
    errors = force_errors(test, contest.teacher_forces if contest.taught else contest.dataset_forces)
    return FittedNovelty(model, novelty_figures(expected, errors, model.threshold_meV_A, len(test.counts)))


def novelty_figures(expected: np.ndarray, errors: np.ndarray, limit: float, structures: int) -> NoveltyFigures:
    """What is expected of the errors of forces is worth, both (atoms,) meV/Å; what is not a number does not count.

    Raises LabelError for too few atoms.
    """
    known = np.isfinite(expected) & np.isfinite(errors)
    if known.sum() < FEWEST:
        raise LabelError(f"{known.sum()} atoms with known forces to test novelty on; give {FEWEST} or more")
    told, true = expected[known], errors[known]
    return NoveltyFigures(
        rank_correlation=rank_correlation(told, true),
        coverage=float((true <= 2 * told).mean()),
        expected_rms_meV_A=_root_mean_square(told),
        error_rms_meV_A=_root_mean_square(true),
        threshold_meV_A=limit,
        structures=structures,
        atoms=len(true),
    )


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))
