"""Precision, recall and F1 over the score threshold, the threshold at which F1 is best, and calibration.

Called by :mod:`tlt_runner.evaluation.report` with the outcomes of one IoU threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tlt_runner.evaluation.collection import Collection, FloatArray, IntArray
from tlt_runner.evaluation.matching import IGNORED, TRUE_POSITIVE, by_falling_score

CALIBRATION_BINS = 10
"""Bins of equal width into which scores from 0 to 1 are sorted."""
THRESHOLDS = np.arange(101) / 100
"""Score thresholds of the curves."""


@dataclass(frozen=True)
class OperatingPoint:
    """Precision, recall and F1 of the detections with a score of at least a threshold.

    Attributes:
        threshold: Lowest score of a detection that counts.
        precision: Share of the detections that are right.
        recall: Share of the objects that are detected.
        f1: Harmonic mean of the two.
    """

    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class CalibrationBin:
    """Detections of about one score.

    Attributes:
        lowest: Lower edge of the bin; the upper one is that of the next.
        detections: Number of detections.
        mean_score: Mean of their scores; None without detections.
        precision: Share of them that are right; in a calibrated model about ``mean_score``.
    """

    lowest: float
    detections: int
    mean_score: float | None
    precision: float | None


def best_operating_point(outcomes: IntArray, scores: FloatArray, objects: int) -> OperatingPoint | None:
    """Return the score threshold at which F1 is best; of equally good ones the highest.

    Args:
        outcomes: [N]; ignored detections count for nothing.
        scores: [N].
        objects: Number of objects that must be detected.

    Returns:
        None where no detection is right, or where there are no objects: then no threshold is best.
    """
    counted = outcomes != IGNORED
    outcomes, scores = outcomes[counted], scores[counted]
    order = by_falling_score(scores)
    outcomes, scores = outcomes[order], scores[order]
    # Detections of one score stand or fall together: a threshold is after the last of them.
    last = np.flatnonzero(np.diff(scores, append=-np.inf)) if len(scores) else np.zeros(0, np.int64)
    right, chosen = np.cumsum(outcomes == TRUE_POSITIVE)[last], last + 1
    if objects == 0 or not right.any():
        return None
    # 2 * P * R / (P + R), with P = right / chosen and R = right / objects.
    f1 = 2 * right / (chosen + objects)
    best = int(f1.argmax())
    return OperatingPoint(
        threshold=float(scores[last[best]]),
        precision=float(right[best] / chosen[best]),
        recall=float(right[best] / objects),
        f1=float(f1[best]),
    )


def best_operating_points(collection: Collection, outcomes: IntArray) -> list[OperatingPoint | None]:
    """Return the best operating point of each class."""
    order = np.argsort(collection.classes, kind="stable")
    edges = np.searchsorted(collection.classes[order], np.arange(len(collection.class_names) + 1))
    parts = [order[start:end] for start, end in zip(edges[:-1], edges[1:], strict=True)]
    return [
        best_operating_point(outcomes[part], collection.scores[part], int(objects))
        for part, objects in zip(parts, collection.objects, strict=True)
    ]


def over_thresholds(outcomes: IntArray, scores: FloatArray, objects: int) -> dict[str, FloatArray]:
    """Return precision, recall and F1 at the score thresholds 0, 0.01 ... 1, each [101].

    Precision is 1 where no detection reaches the threshold: none of them is wrong.
    """
    counted = outcomes != IGNORED
    order = by_falling_score(scores[counted])
    right = np.append(0, np.cumsum(outcomes[counted][order] == TRUE_POSITIVE))
    chosen = np.searchsorted(-scores[counted][order], -THRESHOLDS, side="right")
    detected = right[chosen]
    return {
        "precision": np.divide(detected, chosen, out=np.ones(len(chosen)), where=chosen > 0),
        "recall": detected / max(objects, 1),
        "f1": 2 * detected / np.maximum(chosen + objects, 1),
    }


def calibration(outcomes: IntArray, scores: FloatArray) -> tuple[list[CalibrationBin], float | None]:
    """Compare scores with the share of detections that are right.

    Returns:
        The bins, and the expected calibration error: the mean distance of score and precision over the bins,
        weighted by their detections; None without detections. Source: Guo et al., "On Calibration of Modern
        Neural Networks" (2017).
    """
    counted = outcomes != IGNORED
    right, scores = outcomes[counted] == TRUE_POSITIVE, scores[counted]
    # A score of 1 belongs to the last bin.
    bins = np.clip((scores * CALIBRATION_BINS).astype(np.int64), 0, CALIBRATION_BINS - 1)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    score_sums = np.bincount(bins, weights=scores, minlength=CALIBRATION_BINS)
    right_sums = np.bincount(bins, weights=right, minlength=CALIBRATION_BINS)
    curve = [
        CalibrationBin(
            lowest=index / CALIBRATION_BINS,
            detections=int(number),
            mean_score=float(score_sums[index] / number) if number else None,
            precision=float(right_sums[index] / number) if number else None,
        )
        for index, number in enumerate(count)
    ]
    error = float(np.abs(score_sums - right_sums).sum() / count.sum()) if count.sum() else None
    return curve, error
