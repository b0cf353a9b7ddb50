"""Does the exported file detect what the Keras model detects?

Called by ``tlt_runner.tasks.export``. ONNX Runtime and Keras get the same images and are judged by the same
function (``tlt_runner.evaluation.evaluate``). Without validation data there is no mAP, and what can be said
is how far the two are apart on random images.
"""

from __future__ import annotations

import logging
import os
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
from tlt_runner.errors import RunnerError
from tlt_runner.evaluation.average_precision import iou_matrix
from tlt_runner.evaluation.evaluate import Detect, Images, evaluate
from tlt_runner.export.onnx import INPUT, OUTPUTS

log = logging.getLogger(__name__)

IOU_THRESHOLD = 0.5
"""IoU from which a detection counts, in the mAP of both sides."""
SAME_OBJECT_IOU = 0.9
"""IoU from which two detections of one class are taken for the same one."""
LATENCY_RUNS = 9

Found = Mapping[str, NDArray[Any]]
"""Detections of a batch: boxes yxyx, scores, classes."""


@dataclass(frozen=True)
class Judged:
    """What a detector found, and how good that is.

    Attributes:
        metrics: mAP and AP by class; None where there is no truth to compare with.
        found: Detections, batch by batch.
    """

    metrics: Metrics | None
    found: list[Found]


@dataclass(frozen=True)
class Difference:
    """How far two detectors are apart.

    Attributes:
        max_abs_error: Largest difference of a matched detection's score; 0 where nothing matches.
        matched: Detections that both have.
        unmatched: Detections that only one of them has, or that are not finite numbers.
    """

    max_abs_error: float
    matched: int
    unmatched: int


class OnnxDetector:
    """An exported file in ONNX Runtime on the CPU, with the detector's own conventions (NHWC, yxyx)."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        # A pod's CPU limit is a quota: threads that spin while they wait use it up.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Images) -> dict[str, NDArray[Any]]:
        """Images [B, H, W, 3] to boxes [B, D, 4] yxyx, scores [B, D], classes [B, D], count [B]."""
        nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
        found = dict(zip(OUTPUTS, self._session.run(list(OUTPUTS), {INPUT: nchw}), strict=True))
        return {**found, "boxes": found["boxes"][..., [1, 0, 3, 2]]}


def judge(detect: Detect, batches: Iterable[Mapping[str, Any]], class_names: list[str]) -> Judged:
    """Run a detector over validation batches: mAP at :data:`IOU_THRESHOLD`, and its detections."""
    found: list[Found] = []

    def remember(images: Images) -> Mapping[str, Any]:
        found.append(detect(images))
        return found[-1]

    return Judged(evaluate(remember, batches, class_names, IOU_THRESHOLD, "area"), found)


def run_random(detect: Detect, images: Iterable[NDArray[np.float32]]) -> Judged:
    """Run a detector over images without truth."""
    return Judged(None, [detect(batch) for batch in images])


def random_images(
    seed: int, batches: int, batch_size: int, height: int, width: int
) -> Iterator[NDArray[np.float32]]:
    """Seeded images [B, H, W, 3], 0 to 255: noise of several sizes, so that they have structure."""
    generator = np.random.default_rng(seed)
    for _ in range(batches):
        image = np.zeros((batch_size, height, width, 3))
        for cell in (16, 4, 1):
            coarse = generator.random((batch_size, -(-height // cell), -(-width // cell), 3))
            image += coarse.repeat(cell, axis=1).repeat(cell, axis=2)[:, :height, :width]
        yield (image * (255.0 / 3)).astype(np.float32)


def compare(reference: list[Found], other: list[Found]) -> Difference:
    """Match the detections of two runs over the same images, and compare the scores of pairs.

    A pair is of one class and overlaps by :data:`SAME_OBJECT_IOU`; pairs are made from the greatest overlap
    down.
    """
    errors: list[float] = []
    unmatched = 0
    for mine, theirs in zip(reference, other, strict=True):
        for left, right in zip(_images(mine), _images(theirs), strict=True):
            pairs = _pairs(left, right)
            errors += [abs(float(left["scores"][i]) - float(right["scores"][j])) for i, j in pairs]
            unmatched += len(left["scores"]) + len(right["scores"]) - 2 * len(pairs)
    return Difference(max(errors, default=0.0), len(errors), unmatched)


def latency_milliseconds(detect: Detect, height: int, width: int) -> float:
    """Median time of one image, after a first run that does not count."""
    image = next(random_images(0, 1, 1, height, width))
    times = []
    for _ in range(LATENCY_RUNS + 1):
        started = time.perf_counter()
        detect(image)
        times.append(time.perf_counter() - started)
    return 1000 * median(times[1:])


def status_of(
    precision: str, reference: Judged, exported: Judged, size_bytes: int, latency: float
) -> ExportStatus:
    """What is reported of one precision; what cannot be matched is logged.

    Raises:
        RunnerError: ExportFailed, where not one detection is as in Keras.
    """
    difference = compare(reference.found, exported.found)
    log.info(
        "%s: %d detections as in Keras, %d in one of the two only, scores differ by %.2g at most",
        precision,
        difference.matched,
        difference.unmatched,
        difference.max_abs_error,
    )
    if difference.unmatched and not difference.matched:
        raise RunnerError(
            Reason.EXPORT_FAILED,
            f"{precision}: expected the detections of Keras, but none of {difference.unmatched} agrees in "
            "class and place, or their figures are not finite",
        )
    before = (reference.metrics or Metrics()).m_ap
    after = (exported.metrics or Metrics()).m_ap
    return ExportStatus(
        precision=precision,
        m_ap=after,
        m_ap_drop=None if before is None or after is None else before - after,
        max_abs_error=difference.max_abs_error,
        size_bytes=size_bytes,
        latency_milliseconds=round(latency, 3),
    )


def _images(found: Found) -> Iterator[dict[str, NDArray[Any]]]:
    for boxes, scores, classes in zip(found["boxes"], found["scores"], found["classes"], strict=True):
        real = (np.asarray(classes) >= 0) & np.isfinite(scores) & np.isfinite(boxes).all(axis=-1)
        yield {
            "boxes": np.asarray(boxes)[real],
            "scores": np.asarray(scores)[real],
            "classes": np.asarray(classes)[real],
        }


def _pairs(left: Found, right: Found) -> list[tuple[int, int]]:
    same = left["classes"][:, None] == right["classes"][None, :]
    overlap = np.where(same, iou_matrix(left["boxes"], right["boxes"]), 0.0)
    pairs: list[tuple[int, int]] = []
    while overlap.size and overlap.max() >= SAME_OBJECT_IOU:
        i, j = np.unravel_index(int(overlap.argmax()), overlap.shape)
        pairs.append((int(i), int(j)))
        overlap[i, :] = overlap[:, j] = 0.0
    return pairs
