"""Detections and ground truth of a data set, as arrays: what every figure of an evaluation is computed from.

:class:`Collector` takes one image after another, merges the images of several workers and gives a
:class:`Collection`. Nothing here knows models, files or metrics. Memory grows with the detections (48 bytes
each) and the labelled boxes; images are never kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlt_runner.data import sample

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]
BoolArray = NDArray[np.bool_]

Total = Callable[[FloatArray], FloatArray]
"""Sums an array over all workers, in float32."""

_PARTS = 3
"""Numbers of float32 whose sum is a float64 to the last bit: 3 x 24 bits, of 53."""


@dataclass(frozen=True)
class Collection:
    """Detections and labelled boxes of all images, in the order of the images.

    Attributes:
        class_names: Names, in the order of ids.
        images: Number of images (N).
        image: Image of each detection, int64 [D], not falling.
        boxes: Boxes of the detections, float64 [D, 4] yxyx, in pixels of the original images.
        scores: Their scores, float64 [D].
        classes: Their class ids, int64 [D].
        true_image: Image of each labelled box, int64 [G], not falling.
        true_boxes: Labelled boxes, float64 [G, 4] yxyx.
        true_classes: Class ids, int64 [G]; of ignored regions as :func:`tlt_runner.data.sample.ignored_id`
            gives them.
        difficult: Objects that count neither as detected nor as missed, bool [G].
        non_finite: Detections left out because their score or box was NaN or infinite.
    """

    class_names: tuple[str, ...]
    images: int
    image: IntArray
    boxes: FloatArray
    scores: FloatArray
    classes: IntArray
    true_image: IntArray
    true_boxes: FloatArray
    true_classes: IntArray
    difficult: BoolArray
    non_finite: int = 0

    @property
    def counted(self) -> BoolArray:
        """Labelled boxes that must be detected, [G]: objects that are not difficult."""
        return (self.true_classes >= 0) & ~self.difficult

    @property
    def objects(self) -> IntArray:
        """Number of counted objects of each class, [K]."""
        return np.bincount(self.true_classes[self.counted], minlength=len(self.class_names))


class Collector:
    """Collects the images of one worker.

    Attributes:
        class_names: Names, in the order of ids.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        # A table of each image: detections [D, 6] (box, score, class) and labels [G, 6] (box, class,
        # difficult).
        self._detections: list[FloatArray] = []
        self._labels: list[FloatArray] = []
        self._non_finite = 0

    def add_image(
        self,
        boxes: FloatArray,
        scores: FloatArray,
        classes: IntArray,
        true_boxes: FloatArray,
        true_classes: IntArray,
        difficult: BoolArray,
    ) -> None:
        """Add one image; boxes [N, 4] are yxyx in pixels of the original image, class -1 marks padding.

        Raises:
            ValueError: A class id is beyond ``class_names``.
        """
        # A model of other classes would be judged by names that it does not mean.
        self._check("detection", classes)
        self._check("ground truth", true_classes)
        finite = np.isfinite(scores) & np.isfinite(boxes).all(axis=-1)
        self._non_finite += int(np.sum((classes >= 0) & ~finite))
        keep, labelled = (classes >= 0) & finite, true_classes != sample.PADDING
        # float64, so that an overlap of exactly the threshold is not lost in rounding.
        self._detections.append(_table(boxes[keep], scores[keep], classes[keep]))
        self._labels.append(_table(true_boxes[labelled], true_classes[labelled], difficult[labelled]))

    def collection(self) -> Collection:
        """Return all images added so far, in the order in which they were added."""
        detections, image = _joined(self._detections)
        labels, true_image = _joined(self._labels)
        return Collection(
            class_names=self.class_names,
            images=len(self._detections),
            image=image,
            boxes=detections[:, :4],
            scores=detections[:, 4],
            classes=detections[:, 5].astype(np.int64),
            true_image=true_image,
            true_boxes=labels[:, :4],
            true_classes=labels[:, 4].astype(np.int64),
            difficult=labels[:, 5] > 0,
            non_finite=self._non_finite,
        )

    def merged(self, positions: Sequence[int], count: int, total: Total) -> Collector:
        """Merge the images of all workers into one collector, the same on every worker.

        The images are in the order in which one worker would have added them, because detections of equal
        score are ranked by that order.

        Args:
            positions: Position of each image added here among the images of all workers, in the order in
                which they were added.
            count: Number of positions of all workers; one without an image stays out.
            total: Sums an array over the workers.
        """
        added = np.zeros(count)
        added[list(positions)] = 1
        present = total(added) > 0
        merged = Collector(self.class_names)
        for own, target in ((self._detections, merged._detections), (self._labels, merged._labels)):
            tables = _exchanged(own, positions, count, total)
            target += [table for table, exists in zip(tables, present, strict=True) if exists]
        merged._non_finite = int(total(np.array([float(self._non_finite)]))[0])
        return merged

    def _check(self, what: str, classes: IntArray) -> None:
        if classes.size and classes.max() >= len(self.class_names):
            raise ValueError(
                f"expected {what} class ids below {len(self.class_names)} ({', '.join(self.class_names)}), "
                f"got {classes.max()}: was the model made for other classes?"
            )


def _table(boxes: FloatArray, *columns: NDArray[Any]) -> FloatArray:
    """Return boxes [N, 4] and two columns [N] as one table [N, 6] of float64."""
    return np.column_stack([boxes, *columns]).astype(np.float64)


def _joined(tables: Sequence[FloatArray]) -> tuple[FloatArray, IntArray]:
    """Join the tables of all images; return the rows and the image of each."""
    # np.concatenate refuses an empty list, and there may be no image.
    rows = np.concatenate([np.zeros((0, 6)), *tables])
    return rows, np.repeat(np.arange(len(tables)), [len(table) for table in tables])


def _exchanged(
    own: Sequence[FloatArray], positions: Sequence[int], count: int, total: Total
) -> list[FloatArray]:
    """Return the tables of all workers' images; sums over the workers are the only exchange they have."""
    # Each worker fills in the sizes of its tables and leaves 0 for the others': the sum has all.
    sizes = np.zeros(count)
    sizes[list(positions)] = [len(table) for table in own]
    sizes = total(sizes).astype(np.int64)
    # In the same way for the rows, at the places that the sizes give to an image.
    ends = np.cumsum(sizes)
    rows = np.zeros((int(sizes.sum()), 6))
    for position, table in zip(positions, own, strict=True):
        rows[ends[position] - sizes[position] : ends[position]] = table
    # The sum is made in float32. In parts, an overlap of exactly the threshold survives it.
    result = np.zeros_like(rows)
    for _ in range(_PARTS):
        part = rows.astype(np.float32).astype(np.float64)
        result += total(part)
        rows = rows - part
    return np.split(result, ends[:-1]) if count else []
