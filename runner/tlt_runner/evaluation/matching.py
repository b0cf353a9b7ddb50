"""Matches detections with labelled boxes: overlaps of a whole data set, and the rules of VOC and COCO.

Called by the metrics of this package with a :class:`~tlt_runner.evaluation.collection.Collection`. Loops run
over ranks and thresholds, never over images or detections.

VOC: detections in order of falling score; each goes to the object of its class and image that it overlaps
most; it is a true positive if that overlap reaches the IoU threshold and no detection was matched with the
object before, a false positive otherwise. A detection whose object is difficult is ignored. Source:
Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective" (2015), section 4. There is
no "+1" for pixels, unlike in the VOC development kit.

COCO: each detection, in order of falling score, goes to the object that it overlaps most of those that are
still free, at most 100 detections of a class and an image. Source: pycocotools.

In both a detection without a match is ignored if the share of the IoU threshold lies in an ignored region (a
crowd, DontCare): intersection over the detection's own area, as in pycocotools.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlt_runner.data import sample
from tlt_runner.evaluation.collection import BoolArray, Collection, FloatArray, IntArray

TRUE_POSITIVE, FALSE_POSITIVE, IGNORED = 1, 0, -1

LEAST_OVERLAP = 0.1
"""IoU below which two boxes have nothing to do with each other (the background threshold of TIDE)."""
MOST_DETECTIONS = 100
"""Detections of a class and an image that COCO takes, those of the best scores."""
_PAIRS_AT_ONCE = 1 << 20
"""Pairs of boxes whose overlap is computed at a time, which limits the memory."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of a detection and an object of one image that overlap, of any classes, ordered by detection.

    Attributes:
        detection: Index of the detection, int64 [P].
        truth: Index of the labelled box, int64 [P].
        iou: Intersection over union, float64 [P], at least the ``least`` of :func:`overlaps`.
        same_class: Whether both are of one class, bool [P].
        excused: Largest share of a detection's area that lies in an ignored region of its class, [D].
    """

    detection: IntArray
    truth: IntArray
    iou: FloatArray
    same_class: BoolArray
    excused: FloatArray

    def of_one_class(self) -> tuple[IntArray, IntArray, FloatArray]:
        """Return detection, truth and IoU of the pairs of one class."""
        return self.detection[self.same_class], self.truth[self.same_class], self.iou[self.same_class]


@dataclass(frozen=True)
class Matches:
    """Result of a matching at several IoU thresholds.

    Attributes:
        outcomes: ``TRUE_POSITIVE``, ``FALSE_POSITIVE`` or ``IGNORED``, int8 [T, D].
        truth: Object that a true positive is matched with, int64 [T, D]; -1 elsewhere.
    """

    outcomes: NDArray[np.int8]
    truth: IntArray


def iou_matrix(left: FloatArray, right: FloatArray) -> FloatArray:
    """Compute the intersection over union of every pair.

    Args:
        left: Boxes [N, 4], yxyx.
        right: Boxes [M, 4], yxyx, in the same unit.

    Returns:
        [N, M] in 0 to 1; 0 where a box has no area.
    """
    count, other = len(left), len(right)
    rows, columns = np.repeat(np.arange(count), other), np.tile(np.arange(other), count)
    return overlap_of_pairs(left[rows], right[columns])[0].reshape(count, other)


def areas(boxes: FloatArray) -> FloatArray:
    """Return the areas of boxes [N, 4] yxyx; 0 where an edge is beyond its opposite one."""
    return np.clip(boxes[:, 2] - boxes[:, 0], 0.0, None) * np.clip(boxes[:, 3] - boxes[:, 1], 0.0, None)


def overlap_of_pairs(left: FloatArray, right: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Compute IoU and intersection of the pairs of two lists of boxes [P, 4]."""
    height = np.minimum(left[:, 2], right[:, 2]) - np.maximum(left[:, 0], right[:, 0])
    width = np.minimum(left[:, 3], right[:, 3]) - np.maximum(left[:, 1], right[:, 1])
    intersection = np.clip(height, 0.0, None) * np.clip(width, 0.0, None)
    union = areas(left) + areas(right) - intersection
    # 0 / 0 would be NaN, and a warning, which the tests take for an error.
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0), intersection


def overlaps(collection: Collection, least: float = LEAST_OVERLAP) -> Pairs:
    """Compute all pairs of a detection and an object of its image with an IoU of ``least`` and more."""
    detections = len(collection.image)
    # Labelled boxes of one image stand together: those of image n from first[n] on, labelled[n] of them.
    labelled = np.bincount(collection.true_image, minlength=collection.images)
    first = np.cumsum(labelled) - labelled
    partners = labelled[collection.image]
    # Whole detections at a time, so many that their pairs fit.
    blocks = np.cumsum(partners) // _PAIRS_AT_ONCE
    edges = np.flatnonzero(np.diff(blocks, prepend=-1, append=-2)) if detections else np.zeros(1, np.int64)
    excused = np.zeros(detections)
    parts: list[tuple[IntArray, IntArray, FloatArray, BoolArray]] = []
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        counts = partners[start:end]
        detection = np.repeat(np.arange(start, end), counts)
        # 0, 1, 2 ... within the pairs of each detection, from the first labelled box of its image.
        within = np.arange(len(detection)) - np.repeat(np.cumsum(counts) - counts, counts)
        truth = first[collection.image[detection]] + within
        iou, intersection = overlap_of_pairs(collection.boxes[detection], collection.true_boxes[truth])
        # 1. Ignored regions: of every class, or of the detection's own.
        region = collection.true_classes[truth]
        own = collection.classes[detection]
        applies = ((region == sample.IGNORED) | (region == sample.IGNORED - 1 - own)) & (intersection > 0)
        inside = detection[applies]
        # A box without area is inside nothing: it has no intersection.
        np.maximum.at(excused, inside, intersection[applies] / areas(collection.boxes[inside]))
        # 2. Objects.
        kept = (iou >= least) & (region >= 0)
        parts.append((detection[kept], truth[kept], iou[kept], own[kept] == region[kept]))
    nothing = np.zeros(0, np.int64)
    detection, truth, iou, same = (
        np.concatenate(columns)
        for columns in zip((nothing, nothing, np.zeros(0), nothing.astype(bool)), *parts, strict=True)
    )
    return Pairs(detection, truth, iou, same, excused)


def by_falling_score(scores: FloatArray) -> IntArray:
    """Return the order of falling scores; of equal ones the first comes first."""
    return np.argsort(-scores, kind="stable")


def match_voc(collection: Collection, pairs: Pairs, thresholds: FloatArray) -> Matches:
    """Match by VOC's rule at IoU thresholds [T]."""
    matches = _unmatched(collection, len(thresholds))
    detection, truth, iou = pairs.of_one_class()
    # A detection goes to its best object even if another one has that: VOC lets it fall back on no other.
    order = np.lexsort((truth, -iou, detection))
    first = np.flatnonzero(np.diff(detection[order], prepend=-1))
    best = order[first]
    detection, truth, iou = detection[best], truth[best], iou[best]
    # Of the detections of one object, the first in order of score is the true positive.
    order = np.lexsort((detection, -collection.scores[detection], truth))
    detection, truth, iou = detection[order], truth[order], iou[order]
    difficult = collection.difficult[truth]
    for outcome, matched, threshold in zip(matches.outcomes, matches.truth, thresholds, strict=True):
        reaches = iou >= threshold
        outcome[detection[reaches & difficult]] = IGNORED
        candidate, target = detection[reaches & ~difficult], truth[reaches & ~difficult]
        winners = np.flatnonzero(np.diff(target, prepend=-1))
        outcome[candidate[winners]] = TRUE_POSITIVE
        matched[candidate[winners]] = target[winners]
        # Last, as in COCO: a region excuses what no object has matched.
        outcome[(outcome == FALSE_POSITIVE) & _excused(pairs, threshold)] = IGNORED
    return matches


def match_coco(collection: Collection, pairs: Pairs, thresholds: FloatArray) -> Matches:
    """Match by COCO's rule at IoU thresholds [T]."""
    matches = _unmatched(collection, len(thresholds))
    # A perfect overlap reaches a threshold of 1 in spite of rounding, as in pycocotools.
    thresholds = np.minimum(thresholds, 1 - 1e-10)
    rank = ranks(collection)
    detection, truth, iou = pairs.of_one_class()
    usable = (rank[detection] < MOST_DETECTIONS) & (iou >= thresholds.min(initial=1.0))
    detection, truth, iou = detection[usable], truth[usable], iou[usable]
    # Detections of one rank belong to different images or classes: they cannot meet at an object. Of the
    # pairs of a detection the best stands last: an object before a difficult one, then by IoU.
    order = np.lexsort((truth, iou, ~collection.difficult[truth], detection, rank[detection]))
    detection, truth, iou = detection[order], truth[order], iou[order]
    ends = np.flatnonzero(np.diff(rank[detection], append=-1)) + 1
    taken = np.zeros((len(thresholds), len(collection.true_image)), bool)
    start = 0
    for end in ends.tolist():
        block, target, overlap = detection[start:end], truth[start:end], iou[start:end]
        start = end
        free = (overlap >= thresholds[:, None]) & ~taken[:, target]
        segments = np.flatnonzero(np.diff(block, prepend=-1))
        # Position of the best free object of each detection at each threshold, -1 for none.
        last = np.maximum.reduceat(np.where(free, np.arange(len(block)), -1), segments, axis=1)
        row, column = np.nonzero(last >= 0)
        chosen = last[row, column]
        winner, goal = block[chosen], target[chosen]
        difficult = collection.difficult[goal]
        # A region that holds more of a detection than a difficult object overlaps it comes before it.
        by_region = difficult & (pairs.excused[winner] > overlap[chosen])
        taken[row[~by_region], goal[~by_region]] = True
        matches.outcomes[row, winner] = np.where(difficult, IGNORED, TRUE_POSITIVE)
        matches.truth[row, winner] = np.where(difficult, -1, goal)
    for outcome, threshold in zip(matches.outcomes, thresholds, strict=True):
        outcome[(outcome == FALSE_POSITIVE) & _excused(pairs, threshold)] = IGNORED
        # What COCO does not look at at all leaves the ranking, as an ignored one does.
        outcome[rank >= MOST_DETECTIONS] = IGNORED
    return matches


def ranks(collection: Collection) -> IntArray:
    """Return the rank of each detection by score among those of its class and image, from 0, [D]."""
    order = np.lexsort((-collection.scores, collection.classes, collection.image))
    group = collection.image[order] * len(collection.class_names) + collection.classes[order]
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    sizes = np.diff(starts, append=len(order))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(starts, sizes)
    return rank


def one_to_one(detection: IntArray, truth: IntArray) -> IntArray:
    """Pick pairs from the first to the last, each detection and each object once; return their positions."""
    positions, picked = np.arange(len(detection)), [np.zeros(0, np.int64)]
    while len(positions):
        # A pair that is the first one of its detection and of its object is taken in any case.
        firsts = [
            np.isin(np.arange(len(positions)), np.unique(side[positions], return_index=True)[1])
            for side in (detection, truth)
        ]
        sure = positions[firsts[0] & firsts[1]]
        picked.append(sure)
        gone = np.isin(detection[positions], detection[sure]) | np.isin(truth[positions], truth[sure])
        positions = positions[~gone]
    return np.sort(np.concatenate(picked))


def _unmatched(collection: Collection, thresholds: int) -> Matches:
    # Without a match a detection is a false positive.
    shape = (thresholds, len(collection.image))
    return Matches(np.full(shape, FALSE_POSITIVE, np.int8), np.full(shape, -1, np.int64))


def _excused(pairs: Pairs, threshold: float) -> BoolArray:
    return (pairs.excused > 0) & (pairs.excused >= threshold)
