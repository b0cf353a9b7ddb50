"""How well the anchors of a network fit objects where they lie: IoU on the real grid, within the image.

Called by the clustering of anchors, with the places of the objects, and by the dataset report, which keeps
sizes only and asks for the share of all places. An anchor of an object's own shape does not fit it
everywhere: anchors stand in the middle of cells of :data:`STRIDE` pixels, which for small objects is far.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tlt_api.model import Anchors

Floats = npt.NDArray[np.floating[Any]]

STRIDE = 16
"""Pixels of the network's input for one cell of the feature map, which has a set of anchors in its centre."""
FITS = 0.5
"""Least IoU with which an anchor fits an object."""
PLACES = 16
"""Distances from an anchor's centre, along each axis, that stand for all places of an object."""
_BLOCK = 1 << 14
"""Boxes that are compared with all anchors at once; bounds the memory."""


def best_overlaps(boxes: Floats, shapes: Floats, height: int, width: int) -> Floats:
    """Return the IoU [N] of each box with the anchor of the grid that overlaps it most.

    Args:
        boxes: [N, 4] yxyx, in pixels of the network's input.
        shapes: Height and width [A, 2] of the anchors of a cell.
        height: Rows of the network's input.
        width: Columns of the network's input.
    """
    best = np.empty(len(boxes), np.float32)
    half = np.asarray(shapes, np.float32) / 2
    areas = 4 * half.prod(axis=1)
    # A cell that the image fills in part only has anchors, too.
    last = np.ceil(np.array([height, width], np.float32) / STRIDE) - 1
    for start in range(0, len(boxes), _BLOCK):
        block = np.asarray(boxes[start : start + _BLOCK], np.float32)
        low, high = block[:, :2], block[:, 2:]
        # Of anchors of one shape the nearest overlaps most, along each axis by itself: no other is compared.
        cell = np.clip(np.floor((low + high) / (2 * STRIDE)), 0, last)
        centre = ((cell + 0.5) * STRIDE)[:, None]
        # [n, A, 2]
        shared = np.minimum(high[:, None], centre + half) - np.maximum(low[:, None], centre - half)
        shared_area = np.maximum(shared, 0).prod(axis=2)
        union = (high - low).prod(axis=1)[:, None] + areas - shared_area
        best[start : start + len(block)] = (shared_area / union).max(axis=1)
    return best


def shapes_of(anchors: Anchors) -> Floats:
    """Return height and width [A, 2] in pixels of the anchors of one cell, scales outermost.

    An anchor of scale s and ratio r has the area s squared and width / height = r.
    """
    return np.array([(height, width) for width, height in anchors.shapes()], np.float32)


def shares_found(sizes: Floats, shapes: Floats | None, height: int, width: int) -> Floats:
    """Return the share [N] of the places in the image at which an anchor fits an object of a size.

    Args:
        sizes: Height and width [N, 2] of objects, in pixels of the network's input.
        shapes: Height and width [A, 2] of the anchors of a cell. None: one of the object's own shape.
        height: Rows of the network's input.
        width: Columns of the network's input.
    """
    image = np.array([height, width], np.float32)
    sizes = np.minimum(np.asarray(sizes, np.float32), image)
    # Places repeat after a cell, and mirrored after half of one: from the centre of a cell to its end. An
    # object nearly as large as the image has less room than that, about the image's centre.
    room = image - sizes
    first = np.where(room >= STRIDE, STRIDE / 2, image / 2) - sizes / 2
    steps = (np.arange(PLACES) + 0.5) / PLACES * np.minimum(room, STRIDE)[..., None] / 2
    # [N, PLACES, PLACES, 2] upper left corners.
    top, left = (first[..., None] + steps).transpose(1, 0, 2)
    low = np.stack(np.broadcast_arrays(top[:, :, None], left[:, None, :]), axis=-1).reshape(len(sizes), -1, 2)
    boxes = np.concatenate([low, low + sizes[:, None]], axis=2)
    if shapes is None:
        best = [
            best_overlaps(of_size, size[None], height, width)
            for of_size, size in zip(boxes, sizes, strict=True)
        ]
        overlaps = np.array(best, np.float32)
    else:
        overlaps = best_overlaps(boxes.reshape(-1, 4), shapes, height, width).reshape(len(sizes), -1)
    return np.mean(overlaps >= FITS, axis=1)


def octaves(sizes: Floats) -> npt.NDArray[np.int64]:
    """Return the group [N] of sizes [N, 2]: the power of 2 at or below the square root of the area."""
    sides = np.sqrt(np.maximum(np.asarray(sizes, np.float64).prod(axis=1), 1.0))
    # A side of exactly a power of 2 is the first of its group, whatever the square root rounds to.
    return 2 ** np.floor(np.log2(sides) + 1e-9).astype(np.int64)
