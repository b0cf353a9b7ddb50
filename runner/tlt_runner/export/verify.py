"""Verifies that an exported file detects the same as the Keras model.

Called by ``tlt_runner.tasks.export``. ONNX Runtime and Keras get the same images and are evaluated by the
same function (``tlt_runner.evaluation.evaluate``). Without validation data there is no mAP, and only the
difference between the two on random images is measured.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from tlt_api.failures import Reason
from tlt_api.status import ExportStatus, Metrics
from tlt_runner import cpus
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.errors import RunnerError
from tlt_runner.evaluation.bootstrap import CONFIDENCE, Interval, difference_interval
from tlt_runner.evaluation.evaluate import Detect, Images, evaluate
from tlt_runner.evaluation.matching import iou_matrix
from tlt_runner.evaluation.protocols import Measurement, Protocol
from tlt_runner.export.onnx import INPUT, OUTPUTS

log = logging.getLogger(__name__)

PROTOCOL = Protocol("area", (0.5,))
"""Protocol of the mAP of both sides."""
SAME_OBJECT_IOU = 0.9
"""Least IoU with which two detections of one class are taken for the same one."""
LATENCY_RUNS = 9
"""Timed runs, after one that warms up."""

Detections = Mapping[str, NDArray[Any]]
"""Detections of a batch: boxes [B, D, 4] yxyx, scores [B, D], classes [B, D] (-1 is padding)."""


@dataclass(frozen=True)
class Results:
    """Detections of a detector over some batches, and their metrics.

    Attributes:
        metrics: mAP and AP by class; None where there is no ground truth.
        detections: Detections, batch by batch.
        measurement: What the metrics are made of; None where there is no ground truth.
    """

    metrics: Metrics | None
    detections: list[Detections]
    measurement: Measurement | None = None


@dataclass(frozen=True)
class Difference:
    """Difference between the detections of two detectors.

    Attributes:
        max_abs_error: Largest difference of a matched detection's score; 0 where nothing matches.
        matched: Number of pairs of detections that agree.
        unmatched: Number of detections that only one of the two detectors has.
    """

    max_abs_error: float
    matched: int
    unmatched: int


class OnnxDetector:
    """An exported file in ONNX Runtime on the CPU, with the Keras detector's conventions (NHWC, yxyx)."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        # ONNX Runtime would start a thread for each core of the node. A pod's CPU limit is a quota of time:
        # more threads than it allows are throttled, and the latency measured is that of the throttling.
        options.intra_op_num_threads = cpus.available_cpus()
        # For the same reason threads must not spin while they wait: that uses the quota up.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Images) -> dict[str, NDArray[Any]]:
        """Detect: images [B, H, W, C] to boxes [B, D, 4] yxyx, scores [B, D], classes [B, D], count [B]."""
        # The transposed array is a view with gaps: copied once, in the file's order.
        nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
        outputs = dict(zip(OUTPUTS, self._session.run(list(OUTPUTS), {INPUT: nchw}), strict=True))
        # The file has xyxy: swap x and y of both corners.
        return {**outputs, "boxes": outputs["boxes"][..., [1, 0, 3, 2]]}


def evaluate_detector(
    detect: Detect, batches: Iterable[Mapping[str, Any]], class_names: list[str]
) -> Results:
    """Evaluate a detector on validation batches at :data:`PROTOCOL`, and keep its detections."""
    # Kept for the comparison, so that the detector runs once over the data.
    detections: list[Detections] = []

    def detect_and_keep(images: Images) -> Mapping[str, Any]:
        detections.append(detect(images))
        return detections[-1]

    measurement = evaluate(detect_and_keep, batches, class_names, PROTOCOL)
    return Results(measurement.metrics, detections, measurement)


def run_random(detect: Detect, images: Iterable[NDArray[np.float32]]) -> Results:
    """Run a detector over images without ground truth."""
    return Results(None, [detect(batch) for batch in images])


def random_images(
    seed: int, batches: int, batch_size: int, height: int, width: int, channels: int = 3
) -> Iterator[NDArray[np.float32]]:
    """Generate batches of seeded images [B, H, W, C], 0 to 255.

    Noise in cells of several sizes: plain noise of single pixels averages out in the first layers, and all
    images would give the same detections.
    """
    # Seeded, so that Keras and every precision get the same images, although each asks for its own.
    generator = np.random.default_rng(seed)
    for _ in range(batches):
        image = np.zeros((batch_size, height, width, channels))
        for cell in (16, 4, 1):
            coarse = generator.random((batch_size, -(-height // cell), -(-width // cell), channels))
            image += coarse.repeat(cell, axis=1).repeat(cell, axis=2)[:, :height, :width]
        yield (image * (255.0 / 3)).astype(np.float32)


def compare(reference: list[Detections], other: list[Detections]) -> Difference:
    """Match the detections of two runs over the same images, and compare the scores of pairs.

    A pair is of one class and overlaps by :data:`SAME_OBJECT_IOU`; pairs are made from the greatest overlap
    down. Detections are not compared by rank: two whose scores differ by rounding only can change places.
    """
    errors: list[float] = []
    unmatched = 0
    # Image by image: boxes of different images must not be paired.
    for reference_batch, other_batch in zip(reference, other, strict=True):
        for left, right in zip(_images(reference_batch), _images(other_batch), strict=True):
            pairs = _pairs(left, right)
            errors += [abs(float(left["scores"][i]) - float(right["scores"][j])) for i, j in pairs]
            unmatched += len(left["scores"]) + len(right["scores"]) - 2 * len(pairs)
    return Difference(max(errors, default=0.0), len(errors), unmatched)


def image_shape(config: DetectorConfig) -> tuple[int, int, int]:
    """Return height, width and channels of a detector's images."""
    return config.height, config.width, config.channels


def latency_milliseconds(detect: Detect, shape: tuple[int, int, int]) -> float:
    """Measure the median time of one image [H, W, C], after one run that warms up."""
    image = next(random_images(0, 1, 1, *shape))
    times = []
    # The first run allocates memory. The median, because another process on the node may slow a run down.
    for _ in range(LATENCY_RUNS + 1):
        started = time.perf_counter()
        detect(image)
        times.append(time.perf_counter() - started)
    return 1000 * median(times[1:])


def status_of(
    precision: str,
    reference: Results,
    exported: Results,
    size_bytes: int,
    latency: float,
    pre_nms: int | None = None,
    confidence: float | None = None,
) -> ExportStatus:
    """Compare one precision with Keras and make its status.

    Args:
        precision: Name of the precision, ``fp32`` or ``fp16``.
        reference: Detections and metrics of Keras.
        exported: Detections and metrics of the exported file.
        size_bytes: Size of the exported file.
        latency: Milliseconds for one image.
        pre_nms: Boxes that enter the exported file's suppression of proposals.
        confidence: Confidence of the interval of the drop; None for 95 %.

    Raises:
        RunnerError: ExportFailed, if no detection at all matches one of Keras.
    """
    difference = compare(reference.detections, exported.detections)
    log.info(
        "compared %s with Keras: %d detections match, %d are in one of the two only, largest difference of a "
        "score %.2g",
        precision,
        difference.matched,
        difference.unmatched,
        difference.max_abs_error,
    )
    # Neither side detecting anything is no difference.
    if difference.unmatched and not difference.matched:
        raise RunnerError(
            Reason.EXPORT_FAILED,
            f"{precision}: expected the detections of Keras, but none of {difference.unmatched} agrees in "
            "class and place, or their figures are not finite",
        )
    # None without ground truth: then there is no mAP that could drop. A rise is a negative drop.
    reference_map = (reference.metrics or Metrics()).m_ap
    exported_map = (exported.metrics or Metrics()).m_ap
    interval = _drop_interval(reference, exported, confidence or CONFIDENCE)
    return ExportStatus(
        precision=precision,
        m_ap_drop_interval=[interval.low, interval.high] if interval else None,
        comparison=interval.difference_text() if interval else None,
        not_compared=_not_compared(reference, difference),
        m_ap=exported_map,
        m_ap_drop=None if reference_map is None or exported_map is None else reference_map - exported_map,
        max_abs_error=difference.max_abs_error,
        unmatched=difference.unmatched,
        pre_nms=pre_nms,
        size_bytes=size_bytes,
        latency_milliseconds=round(latency, 3),
    )


def _drop_interval(reference: Results, exported: Results, confidence: float) -> Interval | None:
    """Return the drop of mAP with its interval; None where there is no mAP, or one image only."""
    if reference.measurement is None or exported.measurement is None:
        return None
    left, right = reference.measurement.scored, exported.measurement.scored
    # One image drawn again and again is always the same one.
    if left is None or right is None or left.collection.images < 2:
        return None
    return difference_interval(left, right, confidence)


def _not_compared(reference: Results, difference: Difference) -> str | None:
    """Say why mAP, or even the detections, were not compared; None if both were."""
    reasons = []
    if reference.metrics is None:
        reasons.append(
            "the model comes from a file, which names no validation data: only detections on random images "
            "were compared"
        )
    elif reference.metrics.m_ap is None:
        reasons.append("the validation images have no object that counts in evaluation")
    if not difference.matched:
        reasons.append("neither Keras nor the exported model detects anything on these images")
    return "; ".join(reasons) or None


def _images(batch: Detections) -> Iterator[dict[str, NDArray[Any]]]:
    """The detections of each image, without padding and without values that are not finite."""
    # A detection that is not finite overlaps nothing: without it, its counterpart counts as unmatched.
    for boxes, scores, classes in zip(batch["boxes"], batch["scores"], batch["classes"], strict=True):
        usable = (np.asarray(classes) >= 0) & np.isfinite(scores) & np.isfinite(boxes).all(axis=-1)
        yield {
            "boxes": np.asarray(boxes)[usable],
            "scores": np.asarray(scores)[usable],
            "classes": np.asarray(classes)[usable],
        }


def _pairs(left: Detections, right: Detections) -> list[tuple[int, int]]:
    """Indices of the pairs of two images' detections."""
    # [L, R], 0 for pairs of different classes.
    same = left["classes"][:, None] == right["classes"][None, :]
    overlap = np.where(same, iou_matrix(left["boxes"], right["boxes"]), 0.0)
    pairs: list[tuple[int, int]] = []
    while overlap.size and overlap.max() >= SAME_OBJECT_IOU:
        i, j = np.unravel_index(int(overlap.argmax()), overlap.shape)
        pairs.append((int(i), int(j)))
        # Both are taken: each detection is in one pair at most.
        overlap[i, :] = overlap[:, j] = 0.0
    return pairs
