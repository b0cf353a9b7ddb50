"""Draws detections into images. Called by ``tlt infer`` and by the training's image log."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

DEFAULT_SCORE = 0.6
"""Minimum score of a detection that is drawn or listed where the model has no thresholds of its own."""
GOLDEN_ANGLE = 0.381966
"""Fraction of the colour circle between a class and the next: neighbours differ, however many there are."""
_FONT_HEIGHT = 22
"""Height of OpenCV's plain font in pixels, at scale 1."""


def draw(
    image: npt.NDArray[np.uint8],
    boxes: npt.NDArray[np.floating[Any]],
    captions: Sequence[str],
    class_ids: Sequence[int],
) -> npt.NDArray[np.uint8]:
    """Return a copy of an image with boxes and captions, one colour for each class.

    Args:
        image: uint8 [height, width, 3], BGR.
        boxes: [N, 4] yxyx, in pixels of the image; the first are drawn on top.
        captions: N texts. OpenCV's font is ASCII: other characters become question marks.
        class_ids: N ids, which give the colours.
    """
    # Imported only where an image is drawn: it is large.
    import cv2

    drawn = image.copy()
    # Lines and texts grow with the image, so that a viewer that fits it to the screen shows them alike.
    thickness = max(1, round(min(image.shape[:2]) / 300))
    # Detections come by falling score: the best is drawn last, and captions after all boxes.
    order = range(len(boxes) - 1, -1, -1)
    for index in order:
        y1, x1, y2, x2 = (round(float(edge)) for edge in boxes[index])
        # OpenCV's rectangle includes its second corner; a box ends before it.
        cv2.rectangle(drawn, (x1, y1), (x2 - 1, y2 - 1), colour(class_ids[index]), thickness)
    for index in order:
        top, left = (round(float(edge)) for edge in boxes[index][:2])
        _caption(drawn, captions[index], top, left, colour(class_ids[index]), thickness)
    return drawn


def colour(class_id: int) -> tuple[int, int, int]:
    """Return the colour (BGR) of a class."""
    # Multiples of the golden angle keep away from every hue before them.
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
    """Draw text on a filled background above a box, or below its upper edge where there is no room above."""
    import cv2

    text = text.encode("ascii", "replace").decode()
    scale = max(0.35, min(image.shape[:2]) / 30 / _FONT_HEIGHT)
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    background_height = height + below + 2
    # A box at the upper edge has no room above; then the caption covers its upper part.
    y1 = top - background_height if top >= background_height else top
    # Never out of the image at the right; a text wider than the image begins at its left edge.
    x1 = max(0, min(left, image.shape[1] - width))
    cv2.rectangle(image, (x1, y1), (x1 + width, y1 + background_height), background, cv2.FILLED)
    baseline = (x1, y1 + height + 1)
    cv2.putText(image, text, baseline, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), thickness, cv2.LINE_AA)


def encode(image: npt.NDArray[np.uint8], suffix: str) -> bytes:
    """Encode an image (uint8 [height, width, 3], BGR) as PNG for the suffix ``.png``, else as JPEG."""
    import cv2

    kind, options = (".png", []) if suffix.lower() == ".png" else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 90])
    encoded, data = cv2.imencode(kind, image, options)
    if not encoded:
        raise ValueError(f"cannot encode pixels of shape {image.shape} as {kind}")
    return bytes(data)
