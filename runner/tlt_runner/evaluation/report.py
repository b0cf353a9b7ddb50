"""Details of an evaluation as JSON data: ``metrics.json``, which lies beside the model that it describes.

Called by the tasks that publish a model or judge one. The headline is :attr:`Measurement.metrics`, as in the
resource's status. Figures of one IoU are those of the lowest IoU threshold; the confusion matrix counts
detections from the score on at which F1 of their class is best.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tlt_api.status import Metrics
from tlt_runner.evaluation.average_precision import RECALLS, curve_at_recalls, ranked_hits
from tlt_runner.evaluation.coco import SIZES
from tlt_runner.evaluation.confusion import confusion_matrix
from tlt_runner.evaluation.error_types import error_costs
from tlt_runner.evaluation.operating_point import THRESHOLDS, calibration, over_thresholds
from tlt_runner.evaluation.protocols import Measurement

FILE_NAME = "metrics.json"
_DIGITS = 6


def write(measurement: Measurement, metrics: Metrics, path: Path) -> None:
    """Write ``metrics.json``.

    Args:
        measurement: What was measured.
        metrics: Its headline, with the epoch of the model.
        path: The file.
    """
    data = {"headline": metrics.to_wire(), **details(measurement)}
    # A number that is not finite would be no JSON; there is none, and this would say so.
    path.write_text(json.dumps(data, allow_nan=False) + "\n")


def details(measurement: Measurement) -> dict[str, Any]:
    """Return everything but the headline."""
    protocol, collection = measurement.protocol, measurement.collection
    lowest = protocol.iou_thresholds[0]
    outcomes, matched = measurement.matches.outcomes[0], measurement.matches.truth[0]
    bins, error = calibration(outcomes, collection.scores)
    costs = error_costs(collection, measurement.pairs, outcomes, matched, lowest, protocol.method)
    confusion = confusion_matrix(collection, measurement.pairs, lowest, measurement.chosen)
    return _rounded(
        {
            "protocol": protocol.method,
            "iouThresholds": list(protocol.iou_thresholds),
            "images": collection.images,
            "detections": len(collection.scores),
            "nonFiniteDetections": collection.non_finite,
            "operatingPoint": measurement.best and asdict(measurement.best),
            "recalls": RECALLS.tolist(),
            "scoreThresholds": THRESHOLDS.tolist(),
            "overall": _curves(outcomes, collection.scores, int(collection.objects.sum())),
            "perClass": [_of_class(measurement, index) for index in range(len(measurement.classes))],
            "confusion": {
                "iouThreshold": lowest,
                "labels": [*collection.class_names, "background"],
                "rows": "objects",
                "columns": "detections",
                "matrix": confusion.tolist(),
            },
            "errors": [asdict(cost) for cost in costs],
            "calibration": {"expectedError": error, "bins": [asdict(item) for item in bins]},
        }
    )


def _of_class(measurement: Measurement, index: int) -> dict[str, Any]:
    figures, collection = measurement.classes[index], measurement.collection
    own = np.flatnonzero(collection.classes == index)
    outcomes, scores = measurement.matches.outcomes[0][own], collection.scores[own]
    sizes: dict[str, Any] = {}
    if measurement.coco is not None:
        # Mean over the IoU thresholds; NaN, a size without objects, becomes null.
        means = measurement.coco.precision[index].mean(axis=0).tolist()
        sizes = {"averagePrecisionBySize": dict(zip(SIZES, means, strict=True))}
    return {
        "name": figures.name,
        "objects": figures.objects,
        "truePositives": figures.true_positives,
        "falsePositives": figures.false_positives,
        "ignored": figures.ignored,
        "averagePrecision": figures.average_precision,
        "averagePrecisionByIoU": list(figures.by_threshold),
        **sizes,
        "operatingPoint": figures.best and asdict(figures.best),
        **_curves(outcomes, scores, figures.objects),
    }


def _curves(outcomes: Any, scores: Any, objects: int) -> dict[str, Any]:
    """Return precision over recall and figures over the score threshold; nothing without objects."""
    if not objects:
        return {}
    curves = over_thresholds(outcomes, scores, objects)
    return {
        "precisionAtRecall": curve_at_recalls(ranked_hits(outcomes, scores), objects).tolist(),
        "overScoreThreshold": {name: curve.tolist() for name, curve in curves.items()},
    }


def _rounded(value: Any) -> Any:
    """Round all numbers, and make null of NaN."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, _DIGITS)
    return value
