"""Detections drawn into an image, for people. Called by ``tlt infer``."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

GOLDEN_ANGLE = 0.381966
"""Share of the colour circle between a class and the next: neighbours differ, however many there are."""
_FONT_HEIGHT = 22
"""Pixels of OpenCV's plain font at scale 1."""


def draw(
    image: npt.NDArray[np.uint8],
    boxes: npt.NDArray[np.floating[Any]],
    captions: Sequence[str],
    class_ids: Sequence[int],
) -> npt.NDArray[np.uint8]:
    """A copy of an image with boxes and captions, one colour a class.

    Args:
        image: uint8 [height, width, 3], BGR.
        boxes: [N, 4] yxyx, in its pixels; the first lie on top.
        captions: N texts. OpenCV's font is ASCII: other characters become question marks.
        class_ids: N ids, which give the colours.
    """
    import cv2

    drawn = image.copy()
    thickness = max(1, round(min(image.shape[:2]) / 300))
    order = range(len(boxes) - 1, -1, -1)
    for index in order:
        y1, x1, y2, x2 = (round(float(edge)) for edge in boxes[index])
        cv2.rectangle(drawn, (x1, y1), (x2 - 1, y2 - 1), colour(class_ids[index]), thickness)
    for index in order:
        top, left = (round(float(edge)) for edge in boxes[index][:2])
        _caption(drawn, captions[index], top, left, colour(class_ids[index]), thickness)
    return drawn


def colour(class_id: int) -> tuple[int, int, int]:
    """The colour (BGR) of a class."""
    red, green, blue = colorsys.hsv_to_rgb(class_id * GOLDEN_ANGLE % 1.0, 0.85, 1.0)
    return round(255 * blue), round(255 * green), round(255 * red)


def _caption(
    image: npt.NDArray[np.uint8],
    text: str,
    top: int,
    left: int,
    background: tuple[int, int, int],
    thickness: int,
) -> None:
    """Text on a filled ground above a box; below its upper edge where there is no room above."""
    import cv2

    text = text.encode("ascii", "replace").decode()
    scale = max(0.35, min(image.shape[:2]) / 30 / _FONT_HEIGHT)
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    ground = height + below + 2
    y1 = top - ground if top >= ground else top
    x1 = max(0, min(left, image.shape[1] - width))
    cv2.rectangle(image, (x1, y1), (x1 + width, y1 + ground), background, cv2.FILLED)
    place = (x1, y1 + height + 1)
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), thickness, cv2.LINE_AA)


def encode(image: npt.NDArray[np.uint8], suffix: str) -> bytes:
    """An image (uint8 [height, width, 3], BGR) as the kind of file that its suffix says: PNG, else JPEG."""
    import cv2

    kind, options = (".png", []) if suffix.lower() == ".png" else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 90])
    encoded, data = cv2.imencode(kind, image, options)
    if not encoded:
        raise ValueError(f"cannot encode pixels of shape {image.shape} as {kind}")
    return bytes(data)
