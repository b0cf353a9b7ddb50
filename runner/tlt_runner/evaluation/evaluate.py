"""Evaluation of a detector on batches, whatever computes the detections.

Called by training (each interval), by ``tlt evaluate`` and by the verification of an export: Keras and ONNX
Runtime are judged by this one function, so that their figures can be compared. They are judged in pixels of
the original images, cut at their edges: by the boxes that ``tlt infer`` writes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlt_api.status import ClassMetric, Metrics
from tlt_runner.data.images import geometry
from tlt_runner.data.input_pipeline.worker_slice import Share
from tlt_runner.evaluation.average_precision import Accumulator, Method, Result, Total

log = logging.getLogger(__name__)

Images = NDArray[np.uint8] | NDArray[np.float32]
"""[B, H, W, 3], RGB 0 to 255."""
Detect = Callable[[Images], Mapping[str, Any]]
"""Images -> ``boxes`` [B, D, 4] yxyx in pixels, ``scores`` [B, D], ``classes``
[B, D] (-1 is padding)."""


@dataclass(frozen=True)
class Shared:
    """How several workers judge together, each its part of every batch.

    Attributes:
        share: This worker's part.
        total: Sums an array over all workers.
    """

    share: Share
    total: Total


def evaluate(
    detect: Detect,
    batches: Iterable[Mapping[str, Any]],
    class_names: Sequence[str],
    iou_threshold: float,
    method: Method,
    shared: Shared | None = None,
) -> Metrics:
    """Average precision of ``detect`` on ``batches``.

    Args:
        detect: The detector.
        batches: Mappings of ``image`` [B, H, W, 3], ``boxes`` [B, G, 4] yxyx in pixels, ``classes`` [B, G]
            (-1 is padding), ``difficult`` [B, G], ``placement`` [B, 6] (scale y, x, offset y, x, and the
            original image's height and width; ``network = original * scale + offset``) and ``valid`` [B]
            (False fills up the last batch). Arrays or tensors.
        class_names: Names, in the order of ids.
        iou_threshold: IoU from which a detection counts.
        method: ``area`` or ``voc07``.
        shared: Where the batches are one worker's part of those of several; all get the figures of all.

    Returns:
        mAP and AP by class; None where the data have no object of the class. What was ignored or left out is
        logged.

    Raises:
        ValueError: A class id is beyond ``class_names``.
    """
    accumulator = Accumulator(class_names, iou_threshold)
    places: list[int] = []
    count = 0
    for number, batch in enumerate(batches):
        valid = _add_batch(accumulator, detect, batch)
        if shared is not None:
            size = len(batch["valid"]) * shared.share.count
            places += (number * size + shared.share.places(size)[valid]).tolist()
            count += size
    if shared is not None:
        accumulator = accumulator.merged(places, count, shared.total)
    result = accumulator.result(method)
    _log(result)
    return Metrics(
        m_ap=result.mean,
        iou_threshold=iou_threshold,
        per_class=[
            ClassMetric(name=item.name, average_precision=item.average_precision) for item in result.classes
        ],
    )


def _add_batch(accumulator: Accumulator, detect: Detect, batch: Mapping[str, Any]) -> NDArray[Any]:
    """Judge a batch; the indices of its images, what fills up left out."""
    found = {name: np.asarray(value) for name, value in detect(np.asarray(batch["image"])).items()}
    names = ("boxes", "classes", "difficult", "placement", "valid")
    truth = {name: np.asarray(batch[name]) for name in names}
    valid = np.flatnonzero(truth["valid"])
    for index in valid:
        placement = truth["placement"][index]
        accumulator.add_image(
            _to_original(found["boxes"][index], placement),
            found["scores"][index],
            found["classes"][index].astype(np.int64),
            _to_original(truth["boxes"][index], placement),
            truth["classes"][index].astype(np.int64),
            truth["difficult"][index],
        )
    return valid


def _to_original(boxes: NDArray[Any], placement: NDArray[Any]) -> NDArray[np.float64]:
    """Boxes [N, 4] yxyx in pixels of the original image, cut at its edges; what is not finite stays so."""
    scale, offset, size = placement.reshape(3, 2)
    placed = geometry.to_original(boxes, scale, offset)
    return np.where(np.isfinite(placed), geometry.clip(placed, *size), placed)


def _log(result: Result) -> None:
    ignored = sum(item.ignored for item in result.classes)
    absent = [item.name for item in result.classes if item.average_precision is None]
    log.info("evaluated %d images, mAP %s", result.images, result.mean)
    if ignored:
        log.info("%d detections of difficult objects were ignored", ignored)
    if absent:
        log.info("no object of %s in the validation data: not in the mean", ", ".join(absent))
    if result.non_finite:
        log.warning("%d detections with NaN or infinite values were left out", result.non_finite)
