"""What a detector found in one image, in the image's own pixels, and as a KITTI label file.

Called by ``tlt infer``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tlt_runner.data.images import geometry
from tlt_runner.data.images.geometry import Placement

CLIPPED_FROM = 0.01
"""Pixels of an edge beyond the image below which nothing was cut but a rounding error."""


@dataclass(frozen=True)
class ImageDetections:
    """Detections of one image.

    Attributes:
        boxes: [N, 4] yxyx, in pixels of the image as stored, none beyond its edges.
        class_ids: N ids.
        scores: N scores, falling.
        clipped: Boxes that were cut at the image's edge.
        outside: Detections left out because they lie in a letterbox's padding.
    """

    boxes: npt.NDArray[np.floating[Any]]
    class_ids: list[int]
    scores: list[float]
    clipped: int
    outside: int


def in_image(
    found: Mapping[str, Any], index: int, image_size: tuple[int, int], where: Placement, score: float
) -> ImageDetections:
    """One image's detections out of a batch's, in pixels of the image as stored.

    Args:
        found: ``boxes`` [B, D, 4] yxyx in the network's pixels, ``scores`` [B, D], ``classes`` [B, D].
        index: The image's place in the batch.
        image_size: Height and width of the image as stored.
        where: Where it lies in the network's input.
        score: Lowest score.
    """
    boxes, scores, classes = (np.asarray(found[key][index]) for key in ("boxes", "scores", "classes"))
    good = (classes >= 0) & (scores >= score) & np.isfinite(boxes).all(axis=-1)
    placed = where.to_original(boxes[good])
    inside = geometry.clip(placed, *image_size)
    area = ((inside[:, 2] - inside[:, 0]) > 0) & ((inside[:, 3] - inside[:, 1]) > 0)
    return ImageDetections(
        boxes=inside[area],
        class_ids=[int(value) for value in classes[good][area]],
        scores=[float(value) for value in scores[good][area]],
        clipped=int((np.abs(placed - inside)[area] > CLIPPED_FROM).any(axis=-1).sum()),
        outside=int((~area).sum()),
    )


def label_text(found: ImageDetections, names: Sequence[str]) -> str:
    """A KITTI label file of 16 columns, as TLT's: what is not known is 0, the score comes last."""
    lines = []
    for (y1, x1, y2, x2), class_id, score in zip(found.boxes, found.class_ids, found.scores, strict=True):
        box = f"{x1:.2f} {y1:.2f} {x2:.2f} {y2:.2f}"
        lines.append(f"{names[class_id]} 0.00 0 0.00 {box} 0 0 0 0 0 0 0 {score:.7f}\n")
    return "".join(lines)
