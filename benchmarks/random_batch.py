"""A batch of random images and objects: the same arrays for every detector that a benchmark times."""

import numpy as np

CLASSES, OBJECTS = 20, 8
"""Number of classes of the detectors, and of objects in an image."""
PROPOSALS = 64
"""Proposals of an image that a head is trained on, unless a benchmark says otherwise."""


def examples(size: int | tuple[int, int], batch: int, room: int) -> dict[str, np.ndarray]:
    """Images and padded objects.

    Args:
        size: Pixels of both sides, or (height, width).
        batch: Images (B).
        room: Objects for which there is room.

    Returns:
        image [B, height, width, 3] uint8 RGB; boxes [B, room, 4] yxyx in pixels; classes [B, room] from 0, -1
        in padding.
    """
    random = np.random.default_rng(0)
    shape = np.array((size, size) if isinstance(size, int) else size)
    sides = random.uniform(shape / 8, shape / 2, (batch, OBJECTS, 2))
    corners = random.uniform(0, 1, sides.shape) * (shape - sides)
    boxes = np.zeros((batch, room, 4), np.float32)
    boxes[:, :OBJECTS] = np.concatenate([corners, corners + sides], axis=-1)
    classes = np.full((batch, room), -1, np.int32)
    classes[:, :OBJECTS] = random.integers(0, CLASSES, (batch, OBJECTS))
    images = random.integers(0, 256, (batch, *shape, 3), np.uint8)
    return {"image": images, "boxes": boxes, "classes": classes}
