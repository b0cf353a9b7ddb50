"""Measures a detector by a protocol: which detections are right, and the figures that follow from it.

Called by :mod:`tlt_runner.evaluation.evaluate` with the
:class:`~tlt_runner.evaluation.collection.Collection` of a data set. ``area`` and ``voc07`` match by VOC's
rule, ``coco`` by COCO's; with several IoU thresholds AP is the mean over them. Figures of one IoU (F1,
curves, confusion, error types) are those of the lowest one.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tlt_api.status import ClassMetric, Metrics
from tlt_api.training import Evaluation
from tlt_runner.evaluation import average_precision, bootstrap, coco, matching
from tlt_runner.evaluation.average_precision import Method
from tlt_runner.evaluation.bootstrap import Scored
from tlt_runner.evaluation.coco import CocoFigures
from tlt_runner.evaluation.collection import BoolArray, Collection, FloatArray
from tlt_runner.evaluation.matching import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE, Matches, Pairs
from tlt_runner.evaluation.operating_point import (
    OperatingPoint,
    best_operating_point,
    best_operating_points,
)


@dataclass(frozen=True)
class Protocol:
    """How a detector is measured.

    Attributes:
        method: Formula of AP, which decides the rule of matching, too.
        iou_thresholds: IoU from which a detection is right, rising; AP is the mean over them.
    """

    method: Method = "area"
    iou_thresholds: tuple[float, ...] = (0.5,)

    @classmethod
    def of(cls, evaluation: Evaluation) -> Protocol:
        """Return the protocol of a TrainingJob's evaluation."""
        return cls(evaluation.effective_protocol, tuple(evaluation.effective_iou_thresholds))


@dataclass(frozen=True)
class ClassFigures:
    """Figures of one class; counts are those of the lowest IoU threshold.

    Attributes:
        name: Class name.
        average_precision: Mean AP over the IoU thresholds, 0 to 1; None where no object counts.
        by_threshold: AP at each IoU threshold; empty where there is none.
        objects: Number of objects, difficult ones not counted.
        true_positives: Number of detections that match an object.
        false_positives: Number of detections that match no object, or one that was matched already.
        ignored: Number of detections of difficult objects and of ignored regions, and of those that COCO does
            not look at.
        best: Operating point at which F1 is best; None where no detection is right.
    """

    name: str
    average_precision: float | None
    by_threshold: tuple[float, ...]
    objects: int
    true_positives: int
    false_positives: int
    ignored: int
    best: OperatingPoint | None


@dataclass(frozen=True)
class Measurement:
    """Everything that was measured of a detector on a data set.

    Attributes:
        protocol: How it was measured.
        collection: Detections and ground truth.
        pairs: Their overlaps.
        matches: Which detections are right, at each IoU threshold.
        classes: Figures by class, in the order of ids.
        coco: COCO's figures by size; None with another protocol.
        best: Operating point of all classes together.
    """

    protocol: Protocol
    collection: Collection
    pairs: Pairs
    matches: Matches
    classes: tuple[ClassFigures, ...]
    coco: CocoFigures | None
    best: OperatingPoint | None

    @property
    def mean(self) -> float | None:
        """Mean AP of the classes that have one; None where none has."""
        return average_precision.mean([item.average_precision for item in self.classes])

    @property
    def scored(self) -> Scored | None:
        """Input of a bootstrap; None where there is no mAP."""
        if self.mean is None:
            return None
        return Scored(self.collection, self.matches.outcomes, self.mean)

    @property
    def score_thresholds(self) -> list[float] | None:
        """Score threshold at which F1 is best, by class; that of all classes where a class has none."""
        if self.best is None:
            return None
        return [(item.best or self.best).threshold for item in self.classes]

    @property
    def chosen(self) -> BoolArray:
        """Detections above the threshold of their class, [D]; all where no threshold is known."""
        thresholds = self.score_thresholds
        if thresholds is None:
            return np.ones(len(self.collection.scores), bool)
        return self.collection.scores >= np.array(thresholds)[self.collection.classes]

    def at(self, threshold: float) -> float | None:
        """Return mAP at one IoU threshold; None where it was not measured."""
        if threshold not in self.protocol.iou_thresholds:
            return None
        index = self.protocol.iou_thresholds.index(threshold)
        return average_precision.mean(
            [item.by_threshold[index] for item in self.classes if item.by_threshold]
        )

    @cached_property
    def metrics(self) -> Metrics:
        """The headline, as a resource's status has it."""
        thresholds = self.protocol.iou_thresholds
        scored, best = self.scored, self.best
        # One image drawn again and again is always the same one: no interval.
        interval = bootstrap.mean_interval(scored) if scored and self.collection.images > 1 else None
        return Metrics(
            m_ap=self.mean,
            iou_threshold=thresholds[0] if len(thresholds) == 1 else None,
            protocol=self.protocol.method,
            interval=[interval.low, interval.high] if interval else None,
            ap50=self.at(0.5),
            ap75=self.at(0.75),
            **self._sizes(),
            precision=best and best.precision,
            recall=best and best.recall,
            f1=best and best.f1,
            best_threshold=best and best.threshold,
            images=self.collection.images,
            per_class=[
                ClassMetric(
                    name=item.name,
                    average_precision=item.average_precision,
                    objects=item.objects,
                    precision=item.best and item.best.precision,
                    recall=item.best and item.best.recall,
                    f1=item.best and item.best.f1,
                    best_threshold=item.best and item.best.threshold,
                )
                for item in self.classes
            ],
        )

    def _sizes(self) -> dict[str, float | None]:
        """COCO's figures by size and by number of detections, by field of Metrics."""
        if self.coco is None:
            return {}
        # AP is read at 100 detections, as are AR 100 and the recalls by size; sizes start with "all".
        names = ("ap_small", "ap_medium", "ap_large")
        figures = {name: _mean(self.coco.precision[:, :, 1 + i]) for i, name in enumerate(names)}
        names = ("ar1", "ar10", "ar100")
        figures |= {name: _mean(self.coco.recall[:, :, 0, i]) for i, name in enumerate(names)}
        names = ("ar_small", "ar_medium", "ar_large")
        return figures | {name: _mean(self.coco.recall[:, :, 1 + i, -1]) for i, name in enumerate(names)}

    def table(self) -> str:
        """Return the results as text, a line for each class; ``-`` where there is no AP."""
        width = max(len(name) for name in ("class", *(item.name for item in self.classes)))
        lines = [f"{'class':<{width}}  {'AP':>6}  objects  true positives  false positives  ignored"]
        for item in self.classes:
            counts = (
                f"{item.objects:>7}  {item.true_positives:>14}  {item.false_positives:>15}  {item.ignored:>7}"
            )
            lines.append(f"{item.name:<{width}}  {_four_digits(item.average_precision):>6}  {counts}")
        return "\n".join([*lines, f"{'mean':<{width}}  {_four_digits(self.mean):>6}"])


def measure(collection: Collection, protocol: Protocol) -> Measurement:
    """Measure detections by a protocol."""
    thresholds = np.array(protocol.iou_thresholds)
    pairs = matching.overlaps(collection, min(matching.LEAST_OVERLAP, float(thresholds.min())))
    match = matching.match_coco if protocol.method == "coco" else matching.match_voc
    matches = match(collection, pairs, thresholds)
    figures = coco.coco_figures(collection, thresholds) if protocol.method == "coco" else None
    # [K, T], NaN where a class has no object.
    precisions = _precisions(collection, matches, protocol) if figures is None else figures.precision[:, :, 0]
    outcome, classes = matches.outcomes[0], len(collection.class_names)
    counts = {
        kind: np.bincount(collection.classes[outcome == kind], minlength=classes).tolist()
        for kind in (TRUE_POSITIVE, FALSE_POSITIVE, IGNORED)
    }
    points, objects = best_operating_points(collection, outcome), collection.objects.tolist()
    return Measurement(
        protocol=protocol,
        collection=collection,
        pairs=pairs,
        matches=matches,
        classes=tuple(
            ClassFigures(
                name=name,
                average_precision=float(np.mean(precisions[index])) if objects[index] else None,
                by_threshold=tuple(precisions[index].tolist()) if objects[index] else (),
                objects=objects[index],
                true_positives=counts[TRUE_POSITIVE][index],
                false_positives=counts[FALSE_POSITIVE][index],
                ignored=counts[IGNORED][index],
                best=points[index],
            )
            for index, name in enumerate(collection.class_names)
        ),
        coco=figures,
        # Classes without an object have no F1: their detections do not count against the others'.
        best=best_operating_point(
            np.where(collection.objects[collection.classes] > 0, outcome, IGNORED),
            collection.scores,
            sum(objects),
        ),
    )


def _precisions(collection: Collection, matches: Matches, protocol: Protocol) -> FloatArray:
    """Compute AP by class and IoU threshold, [K, T]; NaN where a class has no object."""
    columns = [
        average_precision.class_average_precisions(collection, outcome, protocol.method)
        for outcome in matches.outcomes
    ]
    return np.array(columns, np.float64).T


def _mean(values: FloatArray) -> float | None:
    """Return the mean of the values that are not NaN; None where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mean = float(np.nanmean(values))
    return None if np.isnan(mean) else mean


def _four_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
