"""Compose four images to one mosaic: each is shrunk into a quadrant around a random centre.

Called by :mod:`tlt_runner.data.input_pipeline.samples`. All four are shrunk alike, by as little as covers the
largest quadrant (0.5 to 0.75), so that objects keep their proportions; each image has a corner at the centre
and is cut at the edges of its quadrant, as in YOLOv4 (A. Bochkovskiy et al., 2020), whose mosaic this
follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tlt_runner.data.input_pipeline import augment
from tlt_runner.data.input_pipeline.augment import Floats, Pixels

IMAGES = 4
_FARTHEST = 0.25
"""Largest distance of the centre from the middle, as a share of height and width."""


@dataclass(frozen=True)
class Quadrant:
    """Quadrant of a mosaic, with the map of its image into it.

    Attributes:
        window: The quadrant, [4] yxyx, whole pixels.
        affine: [2, 3], maps a point (x, y, 1) of its image to pixels of the mosaic.
    """

    window: Floats
    affine: Floats


def draw(height: int, width: int, random: np.random.Generator) -> list[Quadrant]:
    """Draw the quadrants of a mosaic of ``height`` x ``width``, from four images of that size."""
    size = np.array([height, width])
    # A whole pixel, so that quadrants meet without a seam.
    centre = np.round(size * (0.5 + _FARTHEST * (2 * random.random(2) - 1)))
    # The largest quadrant decides: all four images are shrunk alike, and fill it.
    scale = float(max((centre / size).max(), (1 - centre / size).max()))
    quadrants = []
    # (y, x) of the quadrants: upper left, upper right, lower left, lower right.
    for lower in np.array([[0, 0], [0, 1], [1, 0], [1, 1]]):
        window = np.concatenate([np.where(lower, centre, 0), np.where(lower, size, centre)])
        # The image's corner at the centre: its own upper left one in the lower right quadrant, and so on.
        offset = np.where(lower, centre, centre - scale * size)
        quadrants.append(Quadrant(window, np.column_stack([scale * np.eye(2), offset[::-1]])))
    return quadrants


def paint(images: Sequence[Pixels], quadrants: Sequence[Quadrant]) -> Pixels:
    """Paint the mosaic, [H, W, C], of four images [H, W, C], RGB or luma."""
    import cv2

    grey = images[0].shape[2] == 1
    # Four channels, as in augment.paint: OpenCV warps them faster than three.
    canvas = np.empty((*images[0].shape[:2], 1 if grey else 4), np.uint8)
    for image, quadrant in zip(images, quadrants, strict=True):
        y1, x1, y2, x2 = quadrant.window.astype(int)
        # The quadrant is painted by itself, so coordinates count from its corner.
        affine = quadrant.affine - [[0, 0, x1], [0, 0, y1]]
        source = image if grey else cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
        moved = augment.warp(source, affine, y2 - y1, x2 - x1)
        # OpenCV drops the axis of a single channel.
        canvas[y1:y2, x1:x2] = moved.reshape(y2 - y1, x2 - x1, -1)
    return canvas if grey else cv2.cvtColor(canvas, cv2.COLOR_RGBA2RGB)


def move_boxes(
    boxes: Sequence[Floats], quadrants: Sequence[Quadrant], min_visible: Sequence[float | Floats]
) -> tuple[Floats, np.ndarray]:
    """Move boxes [N, 4] yxyx of the four images into the mosaic, and tell which [N] are kept.

    A box is kept where ``min_visible``, given for each image or each of its boxes, is inside its quadrant.
    """
    moved = [
        augment.cut_boxes(augment.move_boxes(image_boxes, quadrant.affine), quadrant.window, visible)
        for image_boxes, quadrant, visible in zip(boxes, quadrants, min_visible, strict=True)
    ]
    return np.concatenate([cut for cut, _ in moved]), np.concatenate([kept for _, kept in moved])
