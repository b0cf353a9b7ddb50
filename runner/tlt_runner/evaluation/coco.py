"""COCO's figures by faster-coco-eval: AP over several IoUs and by size, and average recall (AR).

Called by :mod:`tlt_runner.evaluation.protocols`. The library's Python classes want a dict for each detection
of the whole data set and lists for each pair of image and class, which take gigabytes; its compiled core is
called here instead, class after class and some images at a time, with overlaps computed in numpy. The core
keeps its matches to itself: figures that need them (curves, errors, intervals) come from
:func:`tlt_runner.evaluation.matching.match_coco`, the same rule.

A difficult object is an ignored one of COCO: it is neither found nor missed, and one detection of it is
ignored. The size of an object is the area of its box in pixels of the original image: labels have no mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlt_runner.data import sample
from tlt_runner.evaluation.average_precision import RECALLS
from tlt_runner.evaluation.collection import BoolArray, Collection, FloatArray, IntArray
from tlt_runner.evaluation.matching import MOST_DETECTIONS, areas, overlap_of_pairs, ranks

SIZES = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
"""Least and largest area of an object of each size, in square pixels."""
DETECTIONS = (1, 10, MOST_DETECTIONS)
"""Detections of a class and an image that AR 1, AR 10 and AR 100 count."""
_IMAGES_AT_ONCE = 500
"""Images whose overlaps are handed over at a time, which limits the memory."""


@dataclass(frozen=True)
class CocoFigures:
    """Precision and recall of each class; NaN where a class has no object.

    Attributes:
        precision: AP by class, IoU threshold and size of :data:`SIZES`, [K, T, 4].
        recall: Recall by class, IoU threshold, size, and number of :data:`DETECTIONS`, [K, T, 4, 3].
    """

    precision: FloatArray
    recall: FloatArray


def coco_figures(collection: Collection, thresholds: FloatArray) -> CocoFigures:
    """Compute COCO's figures at IoU thresholds [T]."""
    classes, count = len(collection.class_names), len(thresholds)
    precision = np.full((classes, count, len(SIZES)), np.nan)
    recall = np.full((classes, count, len(SIZES), len(DETECTIONS)), np.nan)
    # COCO looks at the best 100 detections of a class and an image.
    taken = np.flatnonzero(ranks(collection) < MOST_DETECTIONS)
    by_class = taken[np.argsort(collection.classes[taken], kind="stable")]
    edges = np.searchsorted(collection.classes[by_class], np.arange(classes + 1))
    # A class without objects has no figures: its detections need not be looked at.
    for class_id in np.flatnonzero(collection.objects):
        detections = by_class[edges[class_id] : edges[class_id + 1]]
        figures = _one_class(collection, int(class_id), detections, thresholds)
        # -1 is the library's mark of a size without objects. [T, R, 1, 4, 3] and [T, 1, 4, 3].
        curve, reached = figures["precision"][:, :, 0, :, -1], figures["recall"][:, 0]
        precision[class_id] = np.where(curve[:, 0] < 0, np.nan, curve.mean(axis=1))
        recall[class_id] = np.where(reached < 0, np.nan, reached)
    return CocoFigures(precision, recall)


def _one_class(
    collection: Collection, class_id: int, detections: IntArray, thresholds: FloatArray
) -> dict[str, NDArray[Any]]:
    from faster_coco_eval import faster_eval_api_cpp as core

    # By image, and in order of falling score within: the order of the core's own matching.
    order = np.lexsort((-collection.scores[detections], collection.image[detections]))
    detections = detections[order]
    # Objects of the class, and regions of it or of every class.
    applies = np.isin(collection.true_classes, (class_id, sample.IGNORED, sample.ignored_id(class_id)))
    truth = np.flatnonzero(applies)
    images = np.union1d(collection.image[detections], collection.true_image[truth])
    sizes = [list(limits) for limits in SIZES.values()]
    evaluated: list[list[Any]] = [[] for _ in sizes]
    for block in np.split(images, np.arange(_IMAGES_AT_ONCE, len(images), _IMAGES_AT_ONCE)):
        ious, given, labelled = _block(collection, detections, truth, block, core)
        results = core.COCOevalEvaluateImages(
            sizes, MOST_DETECTIONS, list(thresholds), ious, labelled, given, block.tolist(), [1], True
        )
        # [4 * images], size after size: joined for each size over the blocks.
        for number, part in enumerate(evaluated):
            part += results[number * len(block) : (number + 1) * len(block)]
    parameters = SimpleNamespace(
        recThrs=RECALLS,
        maxDets=list(DETECTIONS),
        useCats=1,
        iouThrs=thresholds,
        catIds=[1],
        areaRng=sizes,
        imgIds=images.tolist(),
    )
    result: dict[str, NDArray[Any]] = core.COCOevalAccumulate(
        parameters, [image for part in evaluated for image in part]
    )
    return result


def _block(
    collection: Collection, detections: IntArray, truth: IntArray, images: IntArray, core: Any
) -> tuple[list[list[list[list[float]]]], Any, Any]:
    """Return overlaps by image, and detections and labelled boxes as the core takes them."""
    bounds = (int(images[0]), int(images[-1]) + 1)
    detections = detections[slice(*np.searchsorted(collection.image[detections], bounds))]
    truth = truth[slice(*np.searchsorted(collection.true_image[truth], bounds))]
    given, labelled = core.Dataset(), core.Dataset()
    for number, (image, score, area) in enumerate(
        zip(
            collection.image[detections].tolist(),
            collection.scores[detections].tolist(),
            areas(collection.boxes[detections]).tolist(),
            strict=True,
        )
    ):
        # 0 is the core's mark of no match, so the numbers start at 1.
        given.append(image, 1, {"id": number + 1, "score": score, "area": area})
    region = collection.true_classes[truth] < 0
    ignored = region | collection.difficult[truth]
    columns = (collection.true_image[truth], areas(collection.true_boxes[truth]), region, ignored)
    for number, (image, area, crowd, ignore) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        labelled.append(
            image, 1, {"id": number + 1, "area": area, "iscrowd": int(crowd), "ignore": int(ignore)}
        )
    return list(_overlaps(collection, detections, truth, region, images)), given, labelled


def _overlaps(
    collection: Collection, detections: IntArray, truth: IntArray, region: BoolArray, images: IntArray
) -> Iterator[list[list[list[float]]]]:
    """Yield the overlaps of each image, [detections, labelled boxes]; empty where it lacks either."""
    stops = np.append(images, images[-1] + 1)
    first = np.searchsorted(collection.image[detections], stops)
    first_truth = np.searchsorted(collection.true_image[truth], stops)
    rows, columns = np.diff(first), np.diff(first_truth)
    # All pairs of the block in one go: for each detection the labelled boxes of its image.
    left = np.repeat(np.arange(len(detections)), np.repeat(columns, rows))
    ends = np.cumsum(rows * columns)
    within = np.arange(len(left)) - np.repeat(ends - rows * columns, rows * columns)
    wide = np.repeat(columns, rows * columns)
    right = np.repeat(first_truth[:-1], rows * columns) + within % np.maximum(wide, 1)
    boxes = collection.boxes[detections[left]]
    iou, intersection = overlap_of_pairs(boxes, collection.true_boxes[truth[right]])
    # Of a region: the share of the detection that lies in it.
    area = areas(boxes)
    share = np.divide(intersection, area, out=np.zeros_like(area), where=area > 0)
    values = np.where(region[right], share, iou)
    starts = ends - rows * columns
    for start, end, width in zip(starts.tolist(), ends.tolist(), columns.tolist(), strict=True):
        # A list of classes, of which there is one here.
        yield [values[start:end].reshape(-1, width).tolist() if end > start else []]
