"""Random augmentation of an image and its boxes, as two matrices, drawn and applied with numpy and cv2.

Called by :mod:`tlt_runner.data.input_pipeline.samples`, once an image and epoch; knows neither records nor
TensorFlow. All numbers come from a counter (Philox), so that a change depends on seed, epoch and the image's
position in the epoch alone, in whatever order and on whatever thread it is drawn. Names and ranges are TLT's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tlt_api.training import Augmentation
from tlt_runner.data.images.geometry import SMALLEST_SIDE

Floats = npt.NDArray[np.floating[Any]]
Pixels = npt.NDArray[np.uint8]

_LUMA = np.array([0.299, 0.587, 0.114])
_DRAWS = 7
"""Uniform numbers of an affine change. All are always drawn: no option alters the numbers of another."""


@dataclass(frozen=True)
class Change:
    """Augmentation of one image.

    Attributes:
        affine: [2, 3], maps a point (x, y, 1), in pixels; pixel 0 reaches from 0 to 1.
        colour: [3, 4], maps a colour (R, G, B, 1) of 0 to 255; None keeps colours.
    """

    affine: Floats
    colour: Floats | None


def generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """Make the random generator of the image at ``position`` in an epoch's order."""
    # Philox is a counter-based generator: any position is reached without drawing those before it.
    key, counter = np.array([seed, epoch], np.uint64), np.array([0, position, 0, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def draw(augmentation: Augmentation, height: int, width: int, random: np.random.Generator) -> Change:
    """Draw the change of one image of ``height`` x ``width`` pixels."""
    return Change(
        affine=_affine(augmentation, height, width, random.random(_DRAWS)),
        colour=_colour(augmentation, random.random(3), random.standard_normal(3)),
    )


def _affine(limits: Augmentation, height: int, width: int, uniform: Floats) -> Floats:
    """Mirror, zoom and turn about the centre, then move."""
    # [7], uniform in [0, 1).
    flip_x, flip_y, rotate, zooms, turns, moves_x, moves_y = uniform.tolist()
    zoom = limits.zoom_min + zooms * (limits.zoom_max - limits.zoom_min)
    angle = (2 * turns - 1) * limits.rotate_rad_max * (rotate < limits.rotate_probability)
    cosine, sine = zoom * math.cos(angle), zoom * math.sin(angle)
    # A mirror is a negative scale of one axis; turned and zoomed in the same matrix, the pixels are
    # interpolated once.
    sign_x = -1.0 if flip_x < limits.horizontal_flip else 1.0
    sign_y = -1.0 if flip_y < limits.vertical_flip else 1.0
    (xx, xy), (yx, yy) = (sign_x * cosine, -sign_y * sine), (sign_x * sine, sign_y * cosine)
    centre_x, centre_y = width / 2, height / 2
    # Turning and zooming about the centre: c + M (p - c), plus the random move.
    to_x = centre_x + (2 * moves_x - 1) * limits.translate_max_x - xx * centre_x - xy * centre_y
    to_y = centre_y + (2 * moves_y - 1) * limits.translate_max_y - yx * centre_x - yy * centre_y
    return np.array([[xx, xy, to_x], [yx, yy, to_y]])


def _colour(limits: Augmentation, uniform: Floats, normal: Floats) -> Floats | None:
    """Turn the hue, then change saturation and contrast, then shift.

    Linear in RGB, after P. Haeberli, "Matrix Operations for Image Processing" (1993), as in TLT; the grey of
    a colour is its luma (ITU-R BT.601), as the values are gamma-encoded.
    """
    # None spares a pass over all pixels.
    if not (
        limits.hue_rotation_max
        or limits.saturation_shift_max
        or limits.contrast_scale_max
        or limits.color_shift_stddev
    ):
        return None
    signed = 2 * uniform - 1
    saturation, contrast = 1 + signed[1:] * [limits.saturation_shift_max, limits.contrast_scale_max]
    # Rightmost first: hue, saturation, contrast.
    matrix = (
        contrast
        * (saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1)))
        @ hue_rotation(np.deg2rad(signed[0] * limits.hue_rotation_max))
    )
    # contrast_center is the brightness (0 to 1) that contrast leaves as it is.
    shift = 255 * ((1 - contrast) * limits.contrast_center + normal * limits.color_shift_stddev)
    return np.column_stack([matrix, shift])


def hue_rotation(angle: float) -> Floats:
    """Return the rotation [3, 3] by ``angle`` (radians) about the axis of greys, which stay (Rodrigues)."""
    # The axis is (1, 1, 1) / sqrt(3), hence the division; (1 - cosine) / 3 is its projection.
    cosine, sine = np.cos(angle), np.sin(angle) / np.sqrt(3)
    cross = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    return cosine * np.eye(3) + sine * cross + (1 - cosine) / 3


def move_boxes(boxes: Floats, affine: Floats) -> Floats:
    """Enclose the moved boxes in boxes [N, 4] yxyx, not clipped.

    The box around a turned box is larger than the object in it: by up to 2 in area for a square turned by 45
    degrees, more for a long one.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    linear = affine[::-1, 1::-1]  # of (y, x)
    # Half the sides times the absolute values of the matrix: the extent of a box around all four corners.
    centre = (boxes[:, 2:] + boxes[:, :2]) / 2 @ linear.T + affine[::-1, 2]
    half = (boxes[:, 2:] - boxes[:, :2]) / 2 @ np.abs(linear).T
    return np.concatenate([centre - half, centre + half], axis=1)


def cut_boxes(
    boxes: Floats,
    window: Floats,
    min_visible: float | Floats,
    min_sides: float | Floats = SMALLEST_SIDE,
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Cut boxes at a window, and decide which of them are still objects.

    Args:
        boxes: [N, 4] yxyx.
        window: [4] yxyx.
        min_visible: Share of a box's area that must be inside, of all or of each [N].
        min_sides: Height and width that a cut box must have, in pixels: of all or of each, [N, 2].

    Returns:
        The cut boxes [N, 4], and a mask [N] of those with the share and the sides.
    """
    # [4]: the window's (y1, x1) is the lower limit of both corners, its (y2, x2) the upper limit.
    cut = np.minimum(np.maximum(boxes, window[[0, 1, 0, 1]]), window[[2, 3, 2, 3]])
    sides, whole = cut[:, 2:] - cut[:, :2], boxes[:, 2:] - boxes[:, :2]
    # Compared as a product, so that a box without area needs no division.
    visible = sides.prod(axis=1) >= min_visible * whole.prod(axis=1)
    return cut, visible & (sides >= min_sides).all(axis=1)


def paint(image: Pixels, change: Change, out: Pixels) -> None:
    """Write the changed image; pixels from outside of it are black.

    Args:
        image: [H, W, C], RGB or luma.
        change: The augmentation.
        out: [H, W, C]; may be ``image``.
    """
    import cv2

    height, width = image.shape[:2]
    (xx, xy, to_x), (yx, yy, to_y) = change.affine.tolist()
    if change.colour is not None:
        colour = change.colour if image.shape[2] == 3 else _of_grey(change.colour)
        # Results below 0 and above 255 are cut by cv2, since the pixels are bytes.
        image = cv2.transform(image, colour.astype(np.float32)).reshape(image.shape)
    # A mirrored image needs no interpolation: cv2.flip moves whole pixels, so nothing is blurred.
    sideways, upside_down = (xx, to_x) == (-1, width), (yy, to_y) == (-1, height)
    only_mirrored = (
        (xy, yx) == (0, 0) and (sideways or (xx, to_x) == (1, 0)) and (upside_down or (yy, to_y) == (1, 0))
    )
    if not only_mirrored and image.shape[2] == 1:
        out[..., 0] = warp(image, change.affine, height, width)
    elif not only_mirrored:
        # OpenCV 5 warps four channels 2.5 times as fast as three.
        image = warp(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), change.affine, height, width)
        cv2.cvtColor(image, cv2.COLOR_RGBA2RGB, dst=out)
    elif sideways or upside_down:
        code = {(True, False): 1, (False, True): 0, (True, True): -1}[sideways, upside_down]
        # The view [H, W] of a single channel is what OpenCV itself gives.
        cv2.flip(image, code, dst=out if out.shape[2] == 3 else out[..., 0])
    elif image is not out:
        out[...] = image


def _of_grey(colour: Floats) -> Floats:
    """Return the map [1, 2] of a grey (Y, 1): the luma of what the map [3, 4] of colours makes of it."""
    return np.array([[_LUMA @ colour[:, :3].sum(axis=1), _LUMA @ colour[:, 3]]])


def warp(image: Pixels, affine: Floats, height: int, width: int) -> Pixels:
    """Move an image's pixels, bilinear, onto black of ``height`` x ``width``."""
    import cv2

    # cv2 means centres of pixels by its coordinates, we mean edges: half a pixel apart.
    centred = affine.copy()
    centred[:, 2] += affine[:, :2] @ [0.5, 0.5] - 0.5
    return cv2.warpAffine(image, centred, (width, height), flags=cv2.INTER_LINEAR)
