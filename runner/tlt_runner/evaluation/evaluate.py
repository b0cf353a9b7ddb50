"""Evaluates a detector on batches: collects its detections and measures them by a protocol.

Called by training (each interval), by ``tlt evaluate`` and by the verification of an export: Keras and ONNX
Runtime are evaluated by this one function, so that their figures can be compared. Boxes are compared in
pixels of the original images, clipped to them: the boxes that ``tlt infer`` writes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlt_api.failures import Reason
from tlt_api.status import Metrics
from tlt_runner.data.images import geometry
from tlt_runner.data.input_pipeline.worker_slice import WorkerSlice
from tlt_runner.errors import RunnerError
from tlt_runner.evaluation import protocols
from tlt_runner.evaluation.collection import Collector, Total
from tlt_runner.evaluation.protocols import Measurement, Protocol

log = logging.getLogger(__name__)

Images = NDArray[np.uint8] | NDArray[np.float32]
"""[B, H, W, C], 0 to 255, RGB or luma."""
Detect = Callable[[Images], Mapping[str, Any]]
"""Images -> ``boxes`` [B, D, 4] yxyx in pixels of the network's input, ``scores`` [B, D], ``classes`` [B, D]
(-1 is padding)."""


@dataclass(frozen=True)
class Shared:
    """An evaluation shared by several workers, each of which evaluates its part of every batch.

    Attributes:
        worker_slice: This worker's part.
        total: Sums an array over all workers.
    """

    worker_slice: WorkerSlice
    total: Total


def evaluate(
    detect: Detect,
    batches: Iterable[Mapping[str, Any]],
    class_names: Sequence[str],
    protocol: Protocol,
    shared: Shared | None = None,
) -> Measurement:
    """Measure a detector on batches.

    Args:
        detect: The detector.
        batches: Mappings of ``image`` [B, H, W, C], ``boxes`` [B, G, 4] yxyx in pixels, ``classes`` [B, G]
            (-1 is padding, below that are ignored regions), ``difficult`` [B, G], ``placement`` [B, 6]
            (scale y, x, offset y, x, and the original image's height and width; ``network = original * scale
            + offset``) and ``valid`` [B] (False fills up the last batch). Arrays or tensors.
        class_names: Names, in the order of ids.
        protocol: Matching, IoU thresholds and formula of AP.
        shared: Given where the batches are one worker's part: every worker gets the figures of all images.

    Returns:
        The figures. The numbers of detections that were ignored or left out are logged.

    Raises:
        ValueError: A class id is beyond ``class_names``.
    """
    # One image after another: the detections of a whole data set are numbers, its images would not fit in
    # memory.
    collector = Collector(class_names)
    positions: list[int] = []
    count = 0
    for number, batch in enumerate(batches):
        valid = _add_batch(collector, detect, batch)
        # Position of each image in the order of all workers' batches together: batch after batch, each
        # batch divided among the workers by their slices.
        if shared is not None:
            # Images of this batch on all workers, whose slices are equal.
            size = len(batch["valid"]) * shared.worker_slice.count
            positions += (number * size + shared.worker_slice.positions(size)[valid]).tolist()
            count += size
    # Each worker has added its own images; merged, all workers have all of them.
    if shared is not None:
        collector = collector.merged(positions, count, shared.total)
    measurement = protocols.measure(collector.collection(), protocol)
    _log(measurement)
    return measurement


def require_measured(metrics: Metrics, purpose: str) -> None:
    """Refuse to decide anything by an evaluation that has measured nothing.

    Args:
        metrics: Result of an evaluation.
        purpose: What mAP decides, for the message.

    Raises:
        RunnerError: NoLabels; no class has an object that counts, so that mAP is empty.
    """
    if metrics.m_ap is None:
        raise RunnerError(
            Reason.NO_LABELS,
            f"mAP is empty, so that {purpose}: expected validation objects that count in evaluation, got "
            "none; difficult objects (VOC <difficult>, KITTI occlusion of at least 1) do not count",
            "Correct these marks in the labels, or add validation images with other objects of the target "
            "classes (spec.dataset.validation; see the dataset report).",
        )


def _add_batch(collector: Collector, detect: Detect, batch: Mapping[str, Any]) -> NDArray[Any]:
    """Detect in a batch and add its images; return the indices of those that do not only fill it up."""
    # np.asarray takes tensors of any framework without a copy where it can.
    detections = {name: np.asarray(value) for name, value in detect(np.asarray(batch["image"])).items()}
    names = ("boxes", "classes", "difficult", "placement", "valid")
    truth = {name: np.asarray(batch[name]) for name in names}
    # The last batch is filled up to the size of the others.
    valid = np.flatnonzero(truth["valid"])
    for index in valid:
        placement = truth["placement"][index]
        collector.add_image(
            _to_original(detections["boxes"][index], placement),
            detections["scores"][index],
            detections["classes"][index].astype(np.int64),
            _to_original(truth["boxes"][index], placement),
            truth["classes"][index].astype(np.int64),
            truth["difficult"][index],
        )
    return valid


def _to_original(boxes: NDArray[Any], placement: NDArray[Any]) -> NDArray[np.float64]:
    """Return boxes [N, 4] yxyx in pixels of the original image, clipped to it.

    Clipping would make an infinite box finite; it is kept as it is, so that it is left out and counted.
    """
    # [6] as the pairs (scale), (offset) and (height, width), each y before x.
    scale, offset, size = placement.reshape(3, 2)
    original = geometry.to_original(boxes, scale, offset)
    return np.where(np.isfinite(original), geometry.clip(original, *size), original)


def _log(measurement: Measurement) -> None:
    classes, collection = measurement.classes, measurement.collection
    ignored = sum(item.ignored for item in classes)
    # A class without objects has no AP: 0 would pull the mean down for what the data lack.
    absent = [item.name for item in classes if item.average_precision is None]
    log.info("evaluated %d images, mAP %s", collection.images, measurement.mean)
    log.debug("average precision by class\n%s", measurement.table())
    if ignored:
        log.info("ignored %d detections of difficult objects and in regions that the labels exclude", ignored)
    if absent:
        log.info("left %s out of the mean: the validation data have no object of them", ", ".join(absent))
    if collection.non_finite:
        log.warning("left out %d detections with NaN or infinite values", collection.non_finite)


def keras_detector(model: Callable[..., Any]) -> Detect:
    """Compile a model, once for each batch size, into a function from images to a mapping of arrays.

    Args:
        model: Images [B, H, W, C] to a mapping of tensors, as :class:`tlt_runner.detector.model.FasterRCNN`.
    """
    # Imported here: the evaluation itself needs no TensorFlow, and takes any other detector.
    import tensorflow as tf

    # Cast in the graph, so that images travel to the device as bytes.
    compiled = tf.function(lambda images: model(tf.cast(images, tf.float32), training=False))

    def detect(images: Images) -> dict[str, NDArray[Any]]:
        return {name: value.numpy() for name, value in compiled(tf.constant(images)).items()}

    return detect
