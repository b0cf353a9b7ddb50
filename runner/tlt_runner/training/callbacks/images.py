"""Validation images with the detections of the model and, beside them, the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlt_api.status import Metrics
from tlt_runner.evaluation import visualize
from tlt_runner.evaluation.evaluate import Detect
from tlt_runner.evaluation.visualize import DEFAULT_SCORE

LONGEST_SIDE = 640
"""Maximum of an image's longer side in pixels; larger images are reduced."""


@dataclass(frozen=True)
class DrawnImage:
    """A validation image with boxes drawn into it.

    Attributes:
        id: Id of the image.
        jpeg: The file.
        size: Its height and width.
    """

    id: str
    jpeg: bytes
    size: tuple[int, int]


class ValidationImages:
    """Draws the same validation images at every evaluation.

    Args:
        detect: The detector with its current weights.
        batches: Returns the images, from the first on: batches of
            :func:`tlt_runner.evaluation.evaluate.evaluate` with ``id`` [B].
        class_names: Names, in the order of ids.
        score_threshold: Minimum score of a detection that is drawn; None for that of each class at which F1
            is best.
    """

    def __init__(
        self,
        detect: Detect,
        batches: Callable[[], Iterable[Mapping[str, Any]]],
        class_names: Sequence[str],
        score_threshold: float | None,
    ) -> None:
        self._detect, self._batches = detect, batches
        self._names = class_names
        self._threshold = score_threshold

    def draw(self, metrics: Metrics) -> Iterator[DrawnImage]:
        """Yield the images, one after the other.

        Args:
            metrics: The evaluation, which knows the best thresholds.
        """
        thresholds = np.array(self._thresholds(metrics))
        for batch in self._batches():
            labels = {name: np.asarray(batch[name]) for name in ("image", "boxes", "classes", "valid", "id")}
            detections = {name: np.asarray(value) for name, value in self._detect(labels["image"]).items()}
            # The last batch is filled up with images that are not valid.
            for index in np.flatnonzero(labels["valid"]):
                classes, scores = detections["classes"][index], detections["scores"][index]
                # Padding has class -1, which reads the last threshold here and is not drawn.
                drawn = (classes >= 0) & (scores >= thresholds[classes])
                real = labels["classes"][index] >= 0  # padding and ignored regions are below
                yield self._draw_one(
                    labels["id"][index].decode(),
                    labels["image"][index],
                    {name: detections[name][index][drawn] for name in ("boxes", "scores", "classes")},
                    {name: labels[name][index][real] for name in ("boxes", "classes")},
                )

    def _thresholds(self, metrics: Metrics) -> list[float]:
        if self._threshold is not None:
            return [self._threshold] * len(self._names)
        return metrics.score_thresholds or [DEFAULT_SCORE] * len(self._names)

    def _draw_one(
        self,
        image_id: str,
        image: NDArray[Any],
        detections: Mapping[str, NDArray[Any]],
        labels: Mapping[str, NDArray[Any]],
    ) -> DrawnImage:
        """Draw the detections into one copy of the image [H, W, C] and the labels into another."""
        detected_ids = [int(item) for item in detections["classes"]]
        scored = [
            f"{self._names[item]} {score:.2f}"
            for item, score in zip(detected_ids, detections["scores"], strict=True)
        ]
        label_ids = [int(item) for item in labels["classes"]]
        pixels, scale = _reduced(image)
        left = visualize.draw(pixels, detections["boxes"] * scale, scored, detected_ids)
        right = visualize.draw(
            pixels, labels["boxes"] * scale, [self._names[item] for item in label_ids], label_ids
        )
        # Labels below an image that is wider than high, else beside it: the picture stays near a square.
        height, width = pixels.shape[:2]
        both = np.concatenate([left, right], axis=0 if width > height else 1)
        return DrawnImage(image_id, visualize.encode(both, ".jpg"), (both.shape[0], both.shape[1]))


def _reduced(image: NDArray[Any]) -> tuple[NDArray[np.uint8], float]:
    """The image, RGB or luma, as BGR bytes, reduced to LONGEST_SIDE, and the factor for its boxes."""
    import cv2

    # OpenCV takes BGR; a single channel becomes three equal ones, so that boxes have their colours.
    rgb = np.broadcast_to(image, (*image.shape[:2], 3))
    pixels = np.ascontiguousarray(np.clip(rgb, 0, 255).astype(np.uint8)[..., ::-1])
    scale = min(1.0, LONGEST_SIDE / max(pixels.shape[:2]))
    if scale == 1.0:
        return pixels, scale
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    # Averages the pixels; other interpolations skip some, which shows as noise.
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8), scale
