"""Average precision (AP) of a ranking of detections: VOC's two formulas and COCO's.

Called by :mod:`tlt_runner.evaluation.protocols` and by the figures that compare models or errors. It knows
no boxes: only which detections are right, and in which order.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from tlt_runner.evaluation.collection import Collection, FloatArray, IntArray
from tlt_runner.evaluation.matching import IGNORED, TRUE_POSITIVE, by_falling_score

Method = Literal["area", "voc07", "coco"]
"""``area`` under the monotone precision-recall envelope (VOC 2010 and later); ``voc07``, the mean of the
envelope at the 11 recalls 0, 0.1 ... 1; ``coco``, its mean at the 101 recalls 0, 0.01 ... 1."""

RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which COCO reads the envelope."""


def average_precision(outcomes: IntArray, scores: FloatArray, objects: int, method: Method) -> float | None:
    """Compute the average precision of one class over all images.

    Args:
        outcomes: [N] of :class:`tlt_runner.evaluation.matching.Matches`; ignored ones are left out.
        scores: [N].
        objects: Number of ground-truth boxes, difficult ones not counted.
        method: Formula.

    Returns:
        AP in 0 to 1, or None where there are no objects.

    Two objects, and a false positive before the detection of one of them: precision 1/2 at recall 1/2.

    >>> import numpy as np
    >>> average_precision(np.array([0, 1]), np.array([0.9, 0.8]), 2, "area")
    0.25
    """
    if objects == 0:
        return None
    hits = ranked_hits(outcomes, scores)
    envelope = _envelope(hits)
    # True positives so far, at each place of the ranking.
    detected = np.cumsum(hits)
    # Recall rises by 1 / objects at each hit, so the area is a sum over the hits.
    if method == "area":
        return float(np.sum(envelope[hits]) / objects)
    if method == "coco":
        return float(curve_at_recalls(hits, objects).mean())
    # Recall >= k / 10 in integers: 3 of 10 is 0.3, but less than 3 * 0.1 in floating point. Recalls that are
    # never reached find the appended precision 0.
    reached = np.searchsorted(10 * detected, np.arange(11) * objects)
    return float(np.append(envelope, 0.0)[reached].mean())


def curve_at_recalls(hits: IntArray, objects: int) -> FloatArray:
    """Return the precision envelope at COCO's 101 recalls, 0 beyond the largest recall reached."""
    recall = np.cumsum(hits) / objects
    return np.append(_envelope(hits), 0.0)[np.searchsorted(recall, RECALLS)]


def ranked_hits(outcomes: IntArray, scores: FloatArray) -> IntArray:
    """Return whether each detection is right, in order of falling score, without the ignored ones."""
    # Ignored detections leave the curve: they are neither right nor wrong.
    counted = outcomes != IGNORED
    return outcomes[counted][by_falling_score(scores[counted])] == TRUE_POSITIVE


def class_average_precisions(
    collection: Collection, outcomes: IntArray, method: Method
) -> list[float | None]:
    """Compute the AP of each class at one IoU threshold.

    Args:
        collection: Detections and ground truth.
        outcomes: [D].
        method: Formula.
    """
    return by_class(outcomes, collection.scores, collection.classes, collection.objects, method)


def by_class(
    outcomes: IntArray, scores: FloatArray, classes: IntArray, objects: IntArray, method: Method
) -> list[float | None]:
    """Compute the AP of each class from outcomes, scores and class ids [D], and objects by class [K]."""
    # Sorted by class once: a mask for each of 1,000 classes would read all detections 1,000 times.
    order = np.argsort(classes, kind="stable")
    edges = np.searchsorted(classes[order], np.arange(len(objects) + 1))
    parts = [order[start:end] for start, end in zip(edges[:-1], edges[1:], strict=True)]
    return [
        average_precision(outcomes[part], scores[part], int(count), method)
        for part, count in zip(parts, objects, strict=True)
    ]


def mean(values: list[float | None]) -> float | None:
    """Return the mean of the values that there are; None where there is none."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def _envelope(hits: IntArray) -> FloatArray:
    """Return the envelope of the precision: at each place of the ranking, the best from there on."""
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return np.maximum.accumulate(precision[::-1])[::-1]
