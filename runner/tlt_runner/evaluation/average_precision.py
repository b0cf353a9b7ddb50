"""Average precision of detections in numpy: matching, precision and recall, PASCAL VOC's two formulas.

Called by :mod:`tlt_runner.evaluation.evaluate`, which adds one image after another. It knows nothing of
models, files or frameworks, so that the same code evaluates Keras and ONNX Runtime.

Matching is PASCAL VOC's: detections in order of falling score; each goes to the ground-truth box of its
class and image that it overlaps most; it is a true positive if that overlap reaches the IoU threshold and no
detection was matched with the box before, a false positive otherwise. A detection whose box is marked
difficult is ignored. So is a detection without a match of which the share of the IoU threshold lies in an
ignored region (a crowd, DontCare), as in pycocotools: intersection over the detection's own area. Source:
Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective" (2015), section 4. Boxes are
float yxyx; there is no "+1" for pixels, unlike in the VOC development kit.

Two images, two cars, one of them detected, and one false positive of a higher score: precision 1/2 at
recall 1/2.

>>> import numpy as np
>>> from tlt_runner.evaluation.average_precision import Accumulator
>>> car, elsewhere = np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([[20.0, 20.0, 30.0, 30.0]])
>>> car_id, easy = np.array([0]), np.array([False])
>>> accumulator = Accumulator(["car", "dog"], iou_threshold=0.5)
>>> accumulator.add_image(elsewhere, np.array([0.9]), car_id, car, car_id, easy)
>>> accumulator.add_image(car, np.array([0.8]), car_id, car, car_id, easy)
>>> result = accumulator.result("area")
>>> result.mean
0.25
>>> print(result.table())
class      AP  objects  true positives  false positives  ignored
car    0.2500        2               1                1        0
dog         -        0               0                0        0
mean   0.2500
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tlt_runner.data import sample

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]
Method = Literal["area", "voc07"]

Total = Callable[[FloatArray], FloatArray]
"""Sums an array over all workers, in float32: scores have no more digits, and counts are exact below 2^24."""

TRUE_POSITIVE, FALSE_POSITIVE, IGNORED = 1, 0, -1


@dataclass(frozen=True)
class ClassResult:
    """Average precision of one class, and the numbers behind it.

    Attributes:
        name: Class name.
        average_precision: AP in 0 to 1; None where no ground-truth box (difficult ones aside) has the class.
        objects: Number of ground-truth boxes, difficult ones not counted.
        true_positives: Number of detections that match a box.
        false_positives: Number of detections that match no box, or one that was matched already.
        ignored: Number of detections of difficult boxes and of ignored regions, which are neither true nor
            false positives.
    """

    name: str
    average_precision: float | None
    objects: int
    true_positives: int
    false_positives: int
    ignored: int


@dataclass(frozen=True)
class Result:
    """Average precision on a data set.

    Attributes:
        classes: Results by class, in the order of ids.
        images: Number of images.
        non_finite: Number of detections left out because their score or box was NaN or infinite.
    """

    classes: tuple[ClassResult, ...]
    images: int
    non_finite: int

    @property
    def mean(self) -> float | None:
        """Mean AP of the classes that have one; None where none has."""
        values = [item.average_precision for item in self.classes if item.average_precision is not None]
        return float(np.mean(values)) if values else None

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


def _four_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def iou_matrix(left: FloatArray, right: FloatArray) -> FloatArray:
    """Compute the intersection over union of every pair.

    Args:
        left: Boxes [N, 4], yxyx.
        right: Boxes [M, 4], yxyx, in the same unit.

    Returns:
        [N, M] in 0 to 1; 0 where a box has no area.
    """
    intersection = _intersections(left, right)
    union = _areas(left)[:, None] + _areas(right)[None, :] - intersection
    # 0 / 0 would be NaN, and a warning, which the tests take for an error.
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def _intersections(left: FloatArray, right: FloatArray) -> FloatArray:
    # [N, 1, 2] against [1, M, 2]: every pair, without a loop.
    top_left = np.maximum(left[:, None, :2], right[None, :, :2])
    bottom_right = np.minimum(left[:, None, 2:], right[None, :, 2:])
    return np.prod(np.clip(bottom_right - top_left, 0.0, None), axis=-1)


def _areas(boxes: FloatArray) -> FloatArray:
    return np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None), axis=-1)


def match_image(
    boxes: FloatArray,
    scores: FloatArray,
    classes: IntArray,
    true_boxes: FloatArray,
    true_classes: IntArray,
    difficult: NDArray[np.bool_],
    iou_threshold: float,
) -> IntArray:
    """Match the detections of one image with its ground truth.

    Args:
        boxes: Detections [D, 4], yxyx.
        scores: [D].
        classes: Class ids [D].
        true_boxes: Ground truth [G, 4], yxyx, in the unit of ``boxes``: objects and ignored regions.
        true_classes: Class ids [G]; of ignored regions as :func:`tlt_runner.data.sample.ignored_id` gives
            them.
        difficult: [G] bool; a difficult box counts neither as detected nor as missed.
        iou_threshold: Least IoU with which a detection is a true positive.

    Returns:
        [D]: ``TRUE_POSITIVE``, ``FALSE_POSITIVE`` or ``IGNORED``. Of equal scores the first comes first.
    """
    # Without a match a detection is a false positive; the others are overwritten below.
    outcome = np.full(len(boxes), FALSE_POSITIVE, np.int8)
    if not len(boxes) or not len(true_boxes):
        return outcome
    same_class = classes[:, None] == true_classes[None, :]
    # -1 is below any threshold: boxes of another class never match.
    overlap = np.where(same_class, iou_matrix(boxes, true_boxes), -1.0)
    # A detection goes to its best box even if another one has that box: VOC lets it fall back on no other.
    best = overlap.argmax(axis=1)
    reaches = overlap[np.arange(len(boxes)), best] >= iou_threshold
    outcome[reaches & difficult[best]] = IGNORED
    # Of the detections of one box, the first in order of score is the true positive.
    by_score = np.argsort(-scores, kind="stable")
    candidates = by_score[(reaches & ~difficult[best])[by_score]]
    # np.unique gives the first position of each box, so the best score of those that reach it.
    _, first = np.unique(best[candidates], return_index=True)
    outcome[candidates[first]] = TRUE_POSITIVE
    # Last, as in COCO: a region excuses what no object has matched.
    regions = true_classes <= sample.IGNORED
    if regions.any():
        excused = _in_regions(boxes, classes, true_boxes[regions], true_classes[regions], iou_threshold)
        outcome[(outcome == FALSE_POSITIVE) & excused] = IGNORED
    return outcome


def _in_regions(
    boxes: FloatArray, classes: IntArray, regions: FloatArray, region_ids: IntArray, share: float
) -> NDArray[np.bool_]:
    """Tell which of the boxes [D, 4] have ``share`` of their area in one of the regions [I, 4]."""
    # A region of every class, or of the detection's own.
    applies = (region_ids == sample.IGNORED) | (region_ids == sample.IGNORED - 1 - classes[:, None])
    inside = np.where(applies, _intersections(boxes, regions), 0.0).max(axis=1)
    # A box without area is inside nothing.
    return (inside > 0) & (inside >= share * _areas(boxes))


def average_precision(outcomes: IntArray, scores: FloatArray, objects: int, method: Method) -> float | None:
    """Compute the average precision of one class over all images.

    Args:
        outcomes: [N] from :func:`match_image`, of all images; ignored ones are left out.
        scores: [N].
        objects: Number of ground-truth boxes, difficult ones not counted.
        method: ``area`` under the monotone precision-recall envelope (VOC 2010 and later), or ``voc07``, the
            mean of the envelope at the 11 recalls 0, 0.1 ... 1.

    Returns:
        AP in 0 to 1, or None where there are no objects.
    """
    if objects == 0:
        return None
    counted = outcomes != IGNORED
    order = np.argsort(-scores[counted], kind="stable")
    # Ignored detections leave the curve: they are neither right nor wrong.
    hits = outcomes[counted][order] == TRUE_POSITIVE
    # True positives so far, at each place of the ranking.
    detected = np.cumsum(hits)
    precision = detected / np.arange(1, len(hits) + 1)
    # The envelope: at each recall, the best precision from there on.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    # Recall rises by 1 / objects at each hit, so the area is a sum over the hits.
    if method == "area":
        return float(np.sum(envelope[hits]) / objects)
    # Recall >= k / 10 in integers: 3 of 10 is 0.3, but less than 3 * 0.1 in floating point. Recalls that are
    # never reached find the appended precision 0.
    reached = np.searchsorted(10 * detected, np.arange(11) * objects)
    return float(np.append(envelope, 0.0)[reached].mean())


class Accumulator:
    """Accumulates images one after another into the average precision of all of them.

    Attributes:
        class_names: Names, in the order of ids.
        iou_threshold: Least IoU with which a detection is a true positive.
    """

    def __init__(self, class_names: Sequence[str], iou_threshold: float) -> None:
        self.class_names = tuple(class_names)
        self.iou_threshold = iou_threshold
        self._objects = np.zeros(len(self.class_names), np.int64)
        # Outcomes, scores and class ids of the detections of each image.
        self._detections: list[tuple[IntArray, FloatArray, IntArray]] = []
        self._non_finite = 0
        self._images = 0

    def add_image(
        self,
        boxes: FloatArray,
        scores: FloatArray,
        classes: IntArray,
        true_boxes: FloatArray,
        true_classes: IntArray,
        difficult: NDArray[np.bool_],
    ) -> None:
        """Add one image; arguments as in :func:`match_image`, a class of -1 marks padding.

        Raises:
            ValueError: A class id is beyond ``class_names``.
        """
        # A model of other classes would be judged by names that it does not mean.
        self._check("detection", classes)
        self._check("ground truth", true_classes)
        finite = np.isfinite(scores) & np.isfinite(boxes).all(axis=-1)
        self._non_finite += int(np.sum((classes >= 0) & ~finite))
        keep, given = (classes >= 0) & finite, true_classes != sample.PADDING
        # float64, so that an overlap of exactly the threshold is not lost in rounding.
        difficult = difficult.astype(bool)
        outcome = match_image(
            boxes[keep].astype(np.float64),
            scores[keep],
            classes[keep],
            true_boxes[given].astype(np.float64),
            true_classes[given],
            difficult[given],
            self.iou_threshold,
        )
        self._detections.append((outcome, scores[keep].astype(np.float64), classes[keep]))
        counted = true_classes[(true_classes >= 0) & ~difficult]
        self._objects += np.bincount(counted, minlength=len(self._objects))
        self._images += 1

    def merged(self, positions: Sequence[int], count: int, total: Total) -> Accumulator:
        """Merge the images of all workers into one accumulator, the same on every worker.

        The images are in the order in which one worker would have added them, because detections of equal
        score are ranked by that order.

        Args:
            positions: Position of each image added here among the images of all workers, in the order in
                which they were added.
            count: Number of positions of all workers.
            total: Sums an array over the workers.
        """
        # Each worker fills in the numbers of its images and leaves 0 for the others': the sum has all.
        sizes = np.zeros(count)
        sizes[list(positions)] = [len(scores) for _, scores, _ in self._detections]
        # Sums over the workers are the only exchange that they have, so each fills in its part of a whole.
        sizes = total(sizes).astype(np.int64)
        # In the same way for the detections, a row each, at the rows that the numbers give to an image.
        ends = np.cumsum(sizes)
        rows: FloatArray = np.zeros((int(sizes.sum()), 3))
        for position, detections in zip(positions, self._detections, strict=True):
            rows[ends[position] - sizes[position] : ends[position]] = np.stack(detections, axis=1)
        rows = total(rows)
        counts = total(np.array([*self._objects, self._images, self._non_finite])).astype(np.int64)
        # The order of the images is kept in the rows; from here on one entry holds them all.
        merged = Accumulator(self.class_names, self.iou_threshold)
        merged._detections = [
            (rows[:, 0].astype(np.int8), rows[:, 1].astype(np.float64), rows[:, 2].astype(np.int64))
        ]
        merged._objects = counts[:-2]
        merged._images, merged._non_finite = int(counts[-2]), int(counts[-1])
        return merged

    def result(self, method: Method) -> Result:
        """Compute the average precision of the images added so far."""
        # np.concatenate refuses an empty list, and there may be no image.
        empty = (np.zeros(0, np.int8), np.zeros(0), np.zeros(0, np.int64))
        outcomes, scores, classes = (
            np.concatenate(parts) for parts in zip(*([empty, *self._detections]), strict=True)
        )
        return Result(
            tuple(
                self._class_result(index, outcomes[classes == index], scores[classes == index], method)
                for index in range(len(self.class_names))
            ),
            self._images,
            self._non_finite,
        )

    def _class_result(
        self, index: int, outcomes: IntArray, scores: FloatArray, method: Method
    ) -> ClassResult:
        objects = int(self._objects[index])
        return ClassResult(
            self.class_names[index],
            average_precision(outcomes, scores, objects, method),
            objects,
            int(np.sum(outcomes == TRUE_POSITIVE)),
            int(np.sum(outcomes == FALSE_POSITIVE)),
            int(np.sum(outcomes == IGNORED)),
        )

    def _check(self, what: str, classes: IntArray) -> None:
        if classes.size and classes.max() >= len(self.class_names):
            raise ValueError(
                f"expected {what} class ids below {len(self.class_names)} ({', '.join(self.class_names)}), "
                f"got {classes.max()}: was the model made for other classes?"
            )
