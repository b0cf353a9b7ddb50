"""Noise of mAP: intervals by a bootstrap over images, and whether a difference of two models is significant.

Called by :mod:`tlt_runner.evaluation.evaluate` for one model, and by comparisons for two models on the same
images: paired, so that images that are hard for both do not count as noise. Source: Efron and Tibshirani, "An
Introduction to the Bootstrap" (1993), percentile interval.

Each resample gives every image a weight, the number of times it was drawn; AP is that of the weighted
detections. To be fast, the ranking of a class is read at :data:`CUTS` places at most, spread evenly over its
true positives; the interval is moved to the exact mAP afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlt_runner.evaluation.collection import Collection, FloatArray, IntArray
from tlt_runner.evaluation.matching import IGNORED, TRUE_POSITIVE

RESAMPLES = 1000
"""Resamples of the images."""
CONFIDENCE = 0.95
"""Probability with which an interval holds the value on all images of this kind."""
CUTS = 64
"""Places of a class's ranking at which precision and recall are computed."""


@dataclass(frozen=True)
class Scored:
    """Detections of one model with their outcomes, from which a bootstrap draws.

    Attributes:
        collection: Detections and ground truth.
        outcomes: Outcomes at each IoU threshold over which mAP is a mean, int8 [T, D].
        mean: mAP.
    """

    collection: Collection
    outcomes: IntArray
    mean: float


@dataclass(frozen=True)
class Interval:
    """A figure with its interval, in 0 to 1 (of a difference: -1 to 1).

    Attributes:
        value: The figure on the images at hand.
        low: Lower end.
        high: Upper end.
        confidence: Probability that the interval holds the figure on all images of this kind.
    """

    value: float
    low: float
    high: float
    confidence: float

    @property
    def significant(self) -> bool:
        """True if a difference is more than noise: 0 is outside its interval."""
        return self.low > 0 or self.high < 0

    def difference_text(self) -> str:
        """Describe a difference: ``0.3 points, 95 % interval -0.1 to 0.7: not significant``."""
        value, low, high = (_points(number) for number in (self.value, self.low, self.high))
        verdict = "significant" if self.significant else "not significant"
        return f"{value} points, {100 * self.confidence:g} % interval {low} to {high}: {verdict}"


def _points(value: float) -> str:
    # Adding 0 makes 0.0 of -0.0.
    return f"{round(100 * value, 1) + 0.0:.1f}"


def mean_interval(
    model: Scored, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Compute the interval of a model's mAP."""
    values = _resampled_means([model], resamples, seed)[0]
    return _interval(model.mean, values, confidence)


def difference_interval(
    left: Scored, right: Scored, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Compute the interval of the difference of two models' mAP, left minus right, on the same images.

    Raises:
        ValueError: The two were not evaluated on the same number of images.
    """
    if left.collection.images != right.collection.images:
        raise ValueError(
            "expected two evaluations of the same images, got "
            f"{left.collection.images} and {right.collection.images} images"
        )
    values = _resampled_means([left, right], resamples, seed)
    return _interval(left.mean - right.mean, values[0] - values[1], confidence)


def _interval(value: float, values: FloatArray, confidence: float) -> Interval:
    # The first value is that of the images as they are: what it lacks of the exact one, all lack.
    resampled = values[1:] + (value - values[0])
    # A resample in which no class has an object says nothing.
    resampled = resampled[np.isfinite(resampled)]
    if not len(resampled):
        return Interval(value, value, value, confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(value, float(low), float(high), confidence)


def _resampled_means(models: Sequence[Scored], resamples: int, seed: int) -> NDArray[np.float64]:
    """Return the mAP of each model, [M, 1 + B]: on all images, then on each resample of them."""
    images = models[0].collection.images
    generator = np.random.default_rng(seed)
    # [N, 1 + B], images first: the weights of an image in all resamples lie together.
    weights = np.ones((images, 1 + resamples), np.float32)
    for column in range(1, 1 + resamples):
        weights[:, column] = np.bincount(generator.integers(0, images, images), minlength=images)
    return np.stack([_means(model, weights) for model in models])


def _means(model: Scored, weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return mAP under each column of weights [N, B], [B]."""
    collection = model.collection
    classes = len(collection.class_names)
    order = np.lexsort((np.arange(len(collection.scores)), -collection.scores, collection.classes))
    edges = np.searchsorted(collection.classes[order], np.arange(classes + 1))
    counted = collection.counted
    truth_order = np.flatnonzero(counted)[np.argsort(collection.true_classes[counted], kind="stable")]
    truth_edges = np.searchsorted(collection.true_classes[truth_order], np.arange(classes + 1))
    totals = np.zeros(weights.shape[1])
    present = np.zeros(weights.shape[1])
    for class_id in range(classes):
        truth = truth_order[truth_edges[class_id] : truth_edges[class_id + 1]]
        if not len(truth):
            continue
        objects = (
            np.bincount(collection.true_image[truth], minlength=len(weights)).astype(np.float32) @ weights
        )
        ranking = order[edges[class_id] : edges[class_id + 1]]
        values = _class_means(collection.image[ranking], model.outcomes[:, ranking], objects, weights)
        # A class of which a resample has no object has no AP there.
        has = objects > 0
        totals += np.where(has, values, 0.0)
        present += has
    return np.divide(totals, present, out=np.full_like(totals, np.nan), where=present > 0)


def _class_means(
    image: IntArray, outcomes: IntArray, objects: FloatArray, weights: NDArray[np.float32]
) -> FloatArray:
    """Return the AP of a class, mean over the IoU thresholds, under each column of weights."""
    ever = np.flatnonzero((outcomes == TRUE_POSITIVE).any(axis=0))
    if not len(ever):
        return np.zeros(len(objects))
    # Cuts after true positives, where the envelope can have its corners; what ranks below the last one
    # changes nothing.
    cuts = ever[np.unique(np.linspace(0, len(ever) - 1, CUTS).round().astype(np.int64))] + 1
    image, outcomes = image[: cuts[-1]], outcomes[:, : cuts[-1]]
    # Ignored detections differ between thresholds: taken off the number of all of them.
    everything = _sums(image, np.ones((1, len(image)), bool), cuts, weights)
    right = _sums(image, outcomes == TRUE_POSITIVE, cuts, weights)
    counted = np.cumsum(everything - _sums(image, outcomes == IGNORED, cuts, weights), axis=1)
    precision = np.divide(np.cumsum(right, axis=1), counted, out=np.zeros_like(counted), where=counted > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    area = np.einsum("tkb,tkb->b", right, envelope)
    return area / np.maximum(objects, 1) / len(outcomes)


def _sums(
    image: IntArray, chosen: NDArray[np.bool_], cuts: IntArray, weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Add up the weights of the chosen places [T, P] of a ranking between the cuts, [T, K, B]."""
    rows, places = np.nonzero(chosen)
    # As a product of matrices, which is faster than adding up the rows one after the other: how often each
    # image stands between two cuts, times its weights. Whole numbers, exact in float32.
    images, column = np.unique(image[places], return_inverse=True)
    row = rows * len(cuts) + np.searchsorted(cuts, places, side="right")
    size = len(chosen) * len(cuts)
    counts = np.bincount(row * len(images) + column, minlength=size * len(images))
    sums = counts.reshape(size, len(images)).astype(np.float32) @ weights[images]
    return sums.reshape(len(chosen), len(cuts), weights.shape[1])
