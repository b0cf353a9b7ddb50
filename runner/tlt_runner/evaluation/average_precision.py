"""Average precision of detections, in numpy: matching, precision and recall, the two VOC figures.

Called by :mod:`tlt_runner.evaluation.evaluate`, which feeds it one image after another. It knows nothing of
models, files or frameworks, so that the same figures judge Keras and ONNX Runtime.

Matching is PASCAL VOC's: detections in order of falling score; each goes to the ground-truth box of its own
class and image that it overlaps most; it is a true positive if that overlap reaches the IoU threshold and
nobody was there before, a false positive otherwise. A detection whose box is marked difficult is ignored.
Source: Everingham et al., The PASCAL Visual Object Classes Challenge: A Retrospective (2015), section 4.
Boxes are float yxyx; there is no "+1" for pixels, unlike in the VOC development kit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]
Method = Literal["area", "voc07"]

Total = Callable[[FloatArray], FloatArray]
"""Sums an array over all workers, in float32: scores are no finer, and counts are exact below 2^24."""

TRUE_POSITIVE, FALSE_POSITIVE, IGNORED = 1, 0, -1


@dataclass(frozen=True)
class ClassResult:
    """What one class came to.

    Attributes:
        name: Class name.
        average_precision: AP in 0 to 1; None where no ground-truth box (difficult ones aside) has the class.
        objects: Ground-truth boxes that had to be found, difficult ones not counted.
        true_positives: Detections that found one.
        false_positives: Detections that found none, or one that was found already.
        ignored: Detections of difficult boxes, which count neither way.
    """

    name: str
    average_precision: float | None
    objects: int
    true_positives: int
    false_positives: int
    ignored: int


@dataclass(frozen=True)
class Result:
    """What a data set came to.

    Attributes:
        classes: By class, in the order of ids.
        images: Images seen.
        non_finite: Detections left out because their score or box was NaN or infinite.
    """

    classes: tuple[ClassResult, ...]
    images: int
    non_finite: int

    @property
    def mean(self) -> float | None:
        """Mean AP of the classes that have one; None where none has."""
        known = [item.average_precision for item in self.classes if item.average_precision is not None]
        return float(np.mean(known)) if known else None


def iou_matrix(left: FloatArray, right: FloatArray) -> FloatArray:
    """Intersection over union of every pair.

    Args:
        left: Boxes [N, 4], yxyx.
        right: Boxes [M, 4], yxyx, in the same unit.

    Returns:
        [N, M] in 0 to 1; 0 where a box has no area.
    """
    top_left = np.maximum(left[:, None, :2], right[None, :, :2])
    bottom_right = np.minimum(left[:, None, 2:], right[None, :, 2:])
    intersection = np.prod(np.clip(bottom_right - top_left, 0.0, None), axis=-1)
    union = _areas(left)[:, None] + _areas(right)[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


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
    """What each detection of one image is.

    Args:
        boxes: Detections [D, 4], yxyx.
        scores: [D].
        classes: Class ids [D].
        true_boxes: Ground truth [G, 4], yxyx, in the unit of ``boxes``.
        true_classes: Class ids [G].
        difficult: [G]; whether finding the box counts.
        iou_threshold: IoU from which a detection counts.

    Returns:
        [D]: ``TRUE_POSITIVE``, ``FALSE_POSITIVE`` or ``IGNORED``. Of equal scores the first goes first.
    """
    outcome = np.full(len(boxes), FALSE_POSITIVE, np.int8)
    if not len(boxes) or not len(true_boxes):
        return outcome
    same_class = classes[:, None] == true_classes[None, :]
    overlap = np.where(same_class, iou_matrix(boxes, true_boxes), -1.0)
    best = overlap.argmax(axis=1)
    found = overlap[np.arange(len(boxes)), best] >= iou_threshold
    outcome[found & difficult[best]] = IGNORED
    in_order = np.argsort(-scores, kind="stable")
    candidates = in_order[(found & ~difficult[best])[in_order]]
    _, first = np.unique(best[candidates], return_index=True)
    outcome[candidates[first]] = TRUE_POSITIVE
    return outcome


def average_precision(outcomes: IntArray, scores: FloatArray, objects: int, method: Method) -> float | None:
    """Average precision of one class over all images.

    Args:
        outcomes: [N] as :func:`match_image` gives them, of all images; ignored ones drop out.
        scores: [N].
        objects: Ground-truth boxes to be found.
        method: ``area`` under the monotone precision-recall envelope (VOC 2010 and later), or ``voc07``, the
            mean of the envelope at the 11 recalls 0, 0.1 ... 1.

    Returns:
        AP in 0 to 1, or None where there is nothing to be found.
    """
    if objects == 0:
        return None
    counted = outcomes != IGNORED
    order = np.argsort(-scores[counted], kind="stable")
    hits = outcomes[counted][order] == TRUE_POSITIVE
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if method == "area":
        return float(np.sum(envelope[hits]) / objects)
    # Recall >= k / 10 in integers: 3 of 10 reaches 0.3, which 3 * 0.1 in floating point denies.
    reached = np.searchsorted(10 * found, np.arange(11) * objects)
    return float(np.append(envelope, 0.0)[reached].mean())


class Accumulator:
    """Takes images one after another; gives the figures of all of them.

    Attributes:
        class_names: Names, in the order of ids.
        iou_threshold: IoU from which a detection counts.
    """

    def __init__(self, class_names: Sequence[str], iou_threshold: float) -> None:
        self.class_names = tuple(class_names)
        self.iou_threshold = iou_threshold
        self._objects = np.zeros(len(self.class_names), np.int64)
        self._found: list[tuple[IntArray, FloatArray, IntArray]] = []
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
        self._check("detection", classes)
        self._check("ground truth", true_classes)
        finite = np.isfinite(scores) & np.isfinite(boxes).all(axis=-1)
        self._non_finite += int(np.sum((classes >= 0) & ~finite))
        keep, real = (classes >= 0) & finite, true_classes >= 0
        difficult = difficult.astype(bool)
        outcome = match_image(
            boxes[keep].astype(np.float64),
            scores[keep],
            classes[keep],
            true_boxes[real].astype(np.float64),
            true_classes[real],
            difficult[real],
            self.iou_threshold,
        )
        self._found.append((outcome, scores[keep].astype(np.float64), classes[keep]))
        self._objects += np.bincount(true_classes[real & ~difficult], minlength=len(self._objects))
        self._images += 1

    def merged(self, places: Sequence[int], count: int, total: Total) -> Accumulator:
        """The images of all workers, in the order of one: what falls together is told apart by that order.

        Every worker calls this with its own images and gets the same.

        Args:
            places: The place of each image added here, in the order in which they were added.
            count: Places of all workers.
            total: Sums an array over the workers.
        """
        sizes = np.zeros(count)
        sizes[list(places)] = [len(scores) for _, scores, _ in self._found]
        sizes = total(sizes).astype(np.int64)
        ends = np.cumsum(sizes)
        rows: FloatArray = np.zeros((int(sizes.sum()), 3))
        for place, found in zip(places, self._found, strict=True):
            rows[ends[place] - sizes[place] : ends[place]] = np.stack(found, axis=1)
        rows = total(rows)
        counts = total(np.array([*self._objects, self._images, self._non_finite])).astype(np.int64)
        merged = Accumulator(self.class_names, self.iou_threshold)
        merged._found = [
            (rows[:, 0].astype(np.int8), rows[:, 1].astype(np.float64), rows[:, 2].astype(np.int64))
        ]
        merged._objects = counts[:-2]
        merged._images, merged._non_finite = int(counts[-2]), int(counts[-1])
        return merged

    def result(self, method: Method) -> Result:
        """The figures of the images added so far."""
        empty = (np.zeros(0, np.int8), np.zeros(0), np.zeros(0, np.int64))
        outcomes, scores, classes = (
            np.concatenate(parts) for parts in zip(*([empty, *self._found]), strict=True)
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
