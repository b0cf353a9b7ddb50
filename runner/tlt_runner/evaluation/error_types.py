"""Types of errors of a detector, and the mAP that each of them costs.

Called by :mod:`tlt_runner.evaluation.report`. Written after Bolya et al., "TIDE: A General Toolbox for
Identifying Object Detection Errors" (2020). Every false positive is of one type; every object that was
missed and that no false positive accounts for is missed. The cost of a type is the mAP that is gained when
its errors, and no others, are corrected; costs do not add up to 1 - mAP, because corrections help each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from tlt_runner.evaluation import average_precision
from tlt_runner.evaluation.average_precision import Method
from tlt_runner.evaluation.collection import BoolArray, Collection, FloatArray, IntArray
from tlt_runner.evaluation.matching import FALSE_POSITIVE, IGNORED, LEAST_OVERLAP, TRUE_POSITIVE, Pairs

ErrorType = Literal["class", "place", "both", "duplicate", "background", "missed"]
"""class: well placed on an object of another class; place: of the right class, but with an IoU between 0.1
and the threshold; both: so placed on an object of another class; duplicate: of an object that is detected
already; background: on nothing; missed: an object that no detection, right or wrong, accounts for."""
ERROR_TYPES: Sequence[ErrorType] = get_args(ErrorType)


@dataclass(frozen=True)
class ErrorCost:
    """Errors of one type.

    Attributes:
        type: Type of the errors.
        count: Number of detections, or of missed objects.
        cost: mAP gained by correcting them, 0 to 1; None where there is no mAP.
    """

    type: ErrorType
    count: int
    cost: float | None


def error_costs(
    collection: Collection,
    pairs: Pairs,
    outcomes: IntArray,
    matched: IntArray,
    iou_threshold: float,
    method: Method,
) -> list[ErrorCost]:
    """Sort the errors at one IoU threshold by type, and compute what each type costs.

    Args:
        collection: Detections and ground truth.
        pairs: Their overlaps, from an IoU of 0.1 on.
        outcomes: Outcomes of the matching, [D].
        matched: Objects matched, [D]; -1 for none.
        iou_threshold: IoU threshold of the matching.
        method: Formula of the average precision.
    """
    types, goals = _types(collection, pairs, outcomes, matched, iou_threshold)
    used = np.zeros(len(collection.true_image), bool)
    used[matched[matched >= 0]] = True
    # An object that a wrong class or a bad place accounts for is not missed: that error is counted there.
    accounted = used.copy()
    accounted[goals[(types == "class") | (types == "place")]] = True
    missed = collection.counted & ~accounted
    base = _mean(collection, outcomes, collection.classes, collection.objects, method)
    costs = []
    for kind in ERROR_TYPES:
        errors = types == kind
        fixed, classes, objects = outcomes.copy(), collection.classes, collection.objects
        if kind == "missed":
            # Objects that nobody asks for any more.
            objects = objects - np.bincount(collection.true_classes[missed], minlength=len(objects))
        else:
            # Removed; a wrong class or place is corrected instead, of each object for the best score only.
            fixed[errors] = IGNORED
        if kind in ("class", "place"):
            winners = _best_of_each(np.flatnonzero(errors), goals, collection.scores)
            fixed[winners] = TRUE_POSITIVE
            classes = classes.copy()
            classes[winners] = collection.true_classes[goals[winners]]
        gained = _mean(collection, fixed, classes, objects, method)
        cost = None if base is None or gained is None else gained - base
        count = int(missed.sum()) if kind == "missed" else int(errors.sum())
        costs.append(ErrorCost(kind, count, cost))
    return costs


def _types(
    collection: Collection, pairs: Pairs, outcomes: IntArray, matched: IntArray, iou_threshold: float
) -> tuple[np.ndarray, IntArray]:
    """Return the type of each false positive (empty for the others), and the object that it was meant for."""
    detections = len(outcomes)
    used = np.zeros(len(collection.true_image), bool)
    used[matched[matched >= 0]] = True
    free = ~used[pairs.truth] & ~collection.difficult[pairs.truth]
    near = pairs.iou >= iou_threshold
    wrong = outcomes == FALSE_POSITIVE
    types = np.full(detections, "", "U10")
    goals = np.full(detections, -1, np.int64)
    # In the paper's order: the first that applies is the type.
    place = _best_pair(pairs, free & pairs.same_class & (pairs.iou >= LEAST_OVERLAP), detections)
    # Of the right class, and the best free object is too far for a match; one that is near would be matched,
    # but for VOC's rule that a detection goes to its best object only.
    far = (place >= 0) & ~_at(near, place)
    other = _best_pair(pairs, free & ~pairs.same_class & near, detections)
    taken = _best_pair(pairs, ~free & pairs.same_class & near, detections)
    any_object = _best_pair(pairs, pairs.iou >= LEAST_OVERLAP, detections)
    rules: list[tuple[ErrorType, BoolArray]] = [
        ("place", far),
        ("class", other >= 0),
        ("duplicate", taken >= 0),
        ("background", any_object < 0),
    ]
    open_cases = wrong.copy()
    for kind, applies in rules:
        types[open_cases & applies] = kind
        open_cases &= ~applies
    types[open_cases] = "both"
    for kind, best in (("place", place), ("class", other)):
        of_kind = types == kind
        goals[of_kind] = pairs.truth[best[of_kind]]
    return types, goals


def _best_pair(pairs: Pairs, usable: BoolArray, detections: int) -> IntArray:
    """Return the usable pair of greatest IoU of each detection, [D]; -1 for none."""
    positions = np.flatnonzero(usable)
    order = positions[np.lexsort((pairs.iou[positions], pairs.detection[positions]))]
    best = np.full(detections, -1, np.int64)
    # Of several assignments to one detection the last one stays, which is the greatest.
    best[pairs.detection[order]] = order
    return best


def _at(values: BoolArray, positions: IntArray) -> BoolArray:
    """Return the values at positions [D]; False at -1."""
    return np.append(values, False)[positions]


def _best_of_each(errors: IntArray, goals: IntArray, scores: FloatArray) -> IntArray:
    """Return of the errors of one object the one with the best score."""
    order = errors[np.lexsort((-scores[errors], goals[errors]))]
    return order[np.flatnonzero(np.diff(goals[order], prepend=-1))]


def _mean(
    collection: Collection, outcomes: IntArray, classes: IntArray, objects: IntArray, method: Method
) -> float | None:
    values = average_precision.by_class(outcomes, collection.scores, classes, objects, method)
    # A class whose objects were all missed has none left once these are corrected: nothing is wrong with it.
    corrected = collection.objects > objects
    return average_precision.mean(
        [1.0 if value is None and fixed else value for value, fixed in zip(values, corrected, strict=True)]
    )
