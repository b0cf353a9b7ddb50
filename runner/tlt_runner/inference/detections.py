"""Detections of one image in the pixels of the image as stored, and as a KITTI label file.

Called by :mod:`tlt_runner.inference.run`.
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
"""Distance of an edge beyond the image, in pixels, up to which it is a rounding error and not counted."""


@dataclass(frozen=True)
class ImageDetections:
    """Detections of one image.

    Attributes:
        boxes: [N, 4] yxyx, in pixels of the image as stored, none beyond its edges.
        class_ids: N ids.
        scores: N scores, in descending order.
        clipped: Boxes that were cut at the image's edge.
        outside: Detections left out because they lie in a letterbox's padding.
    """

    boxes: npt.NDArray[np.floating[Any]]
    class_ids: list[int]
    scores: list[float]
    clipped: int
    outside: int


def in_image(
    batch: Mapping[str, Any],
    index: int,
    image_size: tuple[int, int],
    placement: Placement,
    lowest_scores: Sequence[float],
) -> ImageDetections:
    """Return the detections of one image of a batch, in pixels of the image as stored.

    Args:
        batch: ``boxes`` [B, D, 4] yxyx in the network's pixels, ``scores`` [B, D], ``classes`` [B, D].
        index: Index of the image in the batch.
        image_size: Height and width of the image as stored.
        placement: Position and scale of the image in the network's input.
        lowest_scores: Lowest score of each class.
    """
    boxes, scores, classes = (np.asarray(batch[key][index]) for key in ("boxes", "scores", "classes"))
    # The model pads its detections to a fixed number, with class -1.
    # Padding reads the last class's score; it is left out in any case.
    enough = scores >= np.array(lowest_scores)[classes]
    kept = (classes >= 0) & enough & np.isfinite(boxes).all(axis=-1)
    # Not clipped yet: the difference is counted.
    original = placement.to_original(boxes[kept])
    clipped = geometry.clip(original, *image_size)
    # A box in the padding of a letterbox has no area left once it is cut at the image's edges.
    visible = ((clipped[:, 2] - clipped[:, 0]) > 0) & ((clipped[:, 3] - clipped[:, 1]) > 0)
    return ImageDetections(
        boxes=clipped[visible],
        class_ids=[int(value) for value in classes[kept][visible]],
        scores=[float(value) for value in scores[kept][visible]],
        clipped=int((np.abs(original - clipped)[visible] > CLIPPED_FROM).any(axis=-1).sum()),
        outside=int((~visible).sum()),
    )


def label_text(detections: ImageDetections, names: Sequence[str]) -> str:
    """Return a KITTI label file of 16 columns, as TLT's: unknown columns are 0, the score is the last."""
    lines = []
    # One line an object, the best first, as the model orders them.
    for (y1, x1, y2, x2), class_id, score in zip(
        detections.boxes, detections.class_ids, detections.scores, strict=True
    ):
        # KITTI's order is x before y; the truncation is 0.00, the occlusion 0, the angle 0.00.
        box = f"{x1:.2f} {y1:.2f} {x2:.2f} {y2:.2f}"
        lines.append(f"{names[class_id]} 0.00 0 0.00 {box} 0 0 0 0 0 0 0 {score:.7f}\n")
    return "".join(lines)
