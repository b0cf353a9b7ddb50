"""Position of an original image in the network's input: maps boxes and pixels there and back.

Coordinates are edges: pixel 0 reaches from 0.0 to 1.0, so scaling a box is a plain product, and it agrees
with what ``cv2.resize`` does to the pixels. Pure but for the resize itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

SMALLEST_SIDE = 1.0
"""Side in pixels below which an object is dropped: no proposal is that small, and VOC cannot express it."""

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Placement:
    """``network = original * scale + offset``, in pixels.

    Attributes:
        scale_y: Vertical scale.
        scale_x: Horizontal scale.
        offset_y: Rows of padding above.
        offset_x: Columns of padding at the left.
        content_height: Rows of the image inside the network's input.
        content_width: Columns of the image inside the network's input.
        height: Rows of the network's input.
        width: Columns of the network's input.
    """

    scale_y: float
    scale_x: float
    offset_y: int
    offset_x: int
    content_height: int
    content_width: int
    height: int
    width: int

    def to_network(self, boxes: FloatArray) -> FloatArray:
        """Map boxes [N, 4] yxyx from original pixels to network pixels."""
        # [4], for y1, x1, y2, x2.
        scale = np.array([self.scale_y, self.scale_x] * 2)
        offset = np.array([self.offset_y, self.offset_x] * 2)
        return np.asarray(boxes, np.float64).reshape(-1, 4) * scale + offset

    def to_original(self, boxes: FloatArray) -> FloatArray:
        """Map boxes [N, 4] yxyx from network pixels to original pixels."""
        return to_original(boxes, (self.scale_y, self.scale_x), (self.offset_y, self.offset_x))


def to_original(boxes: FloatArray, scale: ArrayLike, offset: ArrayLike) -> FloatArray:
    """Map boxes [N, 4] yxyx from network to original pixels; ``scale`` and ``offset`` [2] are of y and x."""
    # Offset first, then scale: the inverse of to_network in the opposite order.
    inverse = np.asarray(boxes, np.float64).reshape(-1, 4) - np.tile(np.asarray(offset, np.float64), 2)
    return inverse / np.tile(np.asarray(scale, np.float64), 2)


def placement(
    original_height: int, original_width: int, height: int, width: int, mode: Literal["stretch", "letterbox"]
) -> Placement:
    """Place an image of the original size in an input of ``height`` x ``width``.

    ``letterbox`` keeps the aspect ratio (to the nearest pixel) and centres the image.
    """
    content_height, content_width = height, width
    # The side that limits the scale may not be rounded beyond the input, nor a thin image to nothing.
    if mode == "letterbox":
        scale = min(height / original_height, width / original_width)
        content_height = min(height, max(1, round(original_height * scale)))
        content_width = min(width, max(1, round(original_width * scale)))
    # The scales are those of the rounded content, so that boxes follow the pixels; offsets are whole, and an
    # odd row or column of padding is below or at the right.
    return Placement(
        scale_y=content_height / original_height,
        scale_x=content_width / original_width,
        offset_y=(height - content_height) // 2,
        offset_x=(width - content_width) // 2,
        content_height=content_height,
        content_width=content_width,
        height=height,
        width=width,
    )


def place_image(image: npt.NDArray[np.uint8], placement: Placement) -> npt.NDArray[np.uint8]:
    """Bring an image [h, w, 3] to the network's size: area averaging to shrink, cubic to enlarge.

    Padding is black, as DeepStream pads (``maintain-aspect-ratio`` with ``symmetric-padding``).
    """
    import cv2

    # Every caller has a thread for each core that it may use; cv2's own pool has one for each of the machine.
    cv2.setNumThreads(1)
    # One axis may shrink while the other grows: shrink first, each with its own method.
    # cv2 takes sizes as (width, height).
    smaller = (min(image.shape[1], placement.content_width), min(image.shape[0], placement.content_height))
    if smaller != (image.shape[1], image.shape[0]):
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    if smaller != (placement.content_width, placement.content_height):
        size = (placement.content_width, placement.content_height)
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    if image.shape[:2] == (placement.height, placement.width):
        return image
    # Letterbox: the image is centred on black.
    canvas = np.zeros((placement.height, placement.width, 3), np.uint8)
    rows = slice(placement.offset_y, placement.offset_y + placement.content_height)
    columns = slice(placement.offset_x, placement.offset_x + placement.content_width)
    canvas[rows, columns] = image
    return canvas


def clip(boxes: FloatArray, height: float, width: float) -> FloatArray:
    """Cut boxes [N, 4] yxyx at the edges of an image; a box outside gets no area."""
    limits = np.array([height, width, height, width], np.float64)
    return np.clip(np.asarray(boxes, np.float64).reshape(-1, 4), 0.0, limits)
