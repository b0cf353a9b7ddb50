"""Confusion matrix of a detector, with a row and a column for the background.

Called by :mod:`tlt_runner.evaluation.report`. Pairs of one class are matched first, by IoU from the greatest
down; then what is left over, whatever its class. A detection without a pair is an object seen in the
background, an object without a pair one that was missed.
"""

from __future__ import annotations

import numpy as np

from tlt_runner.evaluation.collection import BoolArray, Collection, IntArray
from tlt_runner.evaluation.matching import Pairs, one_to_one


def confusion_matrix(
    collection: Collection, pairs: Pairs, iou_threshold: float, chosen: BoolArray
) -> IntArray:
    """Count objects by their class and by the class with which they were detected.

    Args:
        collection: Detections and ground truth (K classes).
        pairs: Their overlaps.
        iou_threshold: Least IoU of a pair.
        chosen: [D]: detections that count, those above their class's score threshold.

    Returns:
        int64 [K + 1, K + 1]: rows are the classes of objects, columns those of detections, the background
        last in both. Difficult objects and what is detected of them, and detections in ignored regions, are
        left out.
    """
    usable = chosen[pairs.detection] & (pairs.iou >= iou_threshold)
    # Same class first, then by IoU: the order in which pairs are made. Difficult objects come last of their
    # kind, so that they take no detection from another.
    difficult = collection.difficult[pairs.truth]
    order = np.lexsort((-pairs.iou, difficult, ~pairs.same_class))
    order = order[usable[order]]
    detection, truth = pairs.detection[order], pairs.truth[order]
    made = one_to_one(detection, truth)
    detection, truth = detection[made], truth[made]
    background = len(collection.class_names)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    counted = ~collection.difficult[truth]
    np.add.at(matrix, (collection.true_classes[truth[counted]], collection.classes[detection[counted]]), 1)
    # What overlaps a difficult object, or lies in an ignored region, is neither right nor wrong.
    alone = chosen & (pairs.excused < iou_threshold)
    alone[detection] = False
    alone[pairs.detection[usable & difficult]] = False
    np.add.at(matrix[background], collection.classes[alone], 1)
    missed = collection.counted
    missed[truth] = False
    np.add.at(matrix[:, background], collection.true_classes[missed], 1)
    return matrix
