"""Validation images with boxes: what the model finds, and beside it what is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlt_runner.evaluation import visualize
from tlt_runner.evaluation.evaluate import Detect

LONGEST_SIDE = 640
"""Pixels of an image's longer side in a picture, at most."""


@dataclass(frozen=True)
class Picture:
    """A picture of one image.

    Attributes:
        id: The image's.
        jpeg: The file.
        size: Height and width of the picture.
    """

    id: str
    jpeg: bytes
    size: tuple[int, int]


class Pictures:
    """Draws the same validation images again and again.

    Args:
        detect: The detector as it is at the time.
        batches: The images, from the first on: batches of
            :func:`tlt_runner.evaluation.evaluate.evaluate` with ``id`` [B].
        class_names: Names, in the order of ids.
        score_threshold: Lowest score of a detection that is drawn.
    """

    def __init__(
        self,
        detect: Detect,
        batches: Callable[[], Iterable[Mapping[str, Any]]],
        class_names: Sequence[str],
        score_threshold: float,
    ) -> None:
        self._detect, self._batches = detect, batches
        self._names = class_names
        self._threshold = score_threshold

    def draw(self) -> Iterator[Picture]:
        """The pictures, one after the other."""
        for batch in self._batches():
            truth = {name: np.asarray(batch[name]) for name in ("image", "boxes", "classes", "valid", "id")}
            found = {name: np.asarray(value) for name, value in self._detect(truth["image"]).items()}
            for index in np.flatnonzero(truth["valid"]):
                keep = (found["classes"][index] >= 0) & (found["scores"][index] >= self._threshold)
                there = truth["classes"][index] >= 0
                yield self._picture(
                    truth["id"][index].decode(),
                    truth["image"][index],
                    {name: found[name][index][keep] for name in ("boxes", "scores", "classes")},
                    {name: truth[name][index][there] for name in ("boxes", "classes")},
                )

    def _picture(
        self,
        image_id: str,
        image: NDArray[Any],
        found: Mapping[str, NDArray[Any]],
        truth: Mapping[str, NDArray[Any]],
    ) -> Picture:
        ids = [int(item) for item in found["classes"]]
        scored = [
            f"{self._names[item]} {score:.2f}" for item, score in zip(ids, found["scores"], strict=True)
        ]
        true_ids = [int(item) for item in truth["classes"]]
        pixels, scale = _reduced(image)
        left = visualize.draw(pixels, found["boxes"] * scale, scored, ids)
        right = visualize.draw(
            pixels, truth["boxes"] * scale, [self._names[item] for item in true_ids], true_ids
        )
        height, width = pixels.shape[:2]
        both = np.concatenate([left, right], axis=0 if width > height else 1)
        return Picture(image_id, visualize.encode(both, ".jpg"), (both.shape[0], both.shape[1]))


def _reduced(image: NDArray[Any]) -> tuple[NDArray[np.uint8], float]:
    """An RGB image as BGR bytes, not larger than a picture shows it, and the factor of its boxes."""
    import cv2

    pixels = np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8)[..., ::-1])
    scale = min(1.0, LONGEST_SIDE / max(pixels.shape[:2]))
    if scale == 1.0:
        return pixels, scale
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8), scale
