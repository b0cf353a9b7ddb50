"""Arithmetic of boxes: ``yxyx`` (top, left, bottom, right), float32, absolute pixels of the network's input.

Everything here is batch-wise, of static rank, and made of ops that export to plain ONNX.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from tlt_runner.detector import kernels

Tensor = Any
"""A tensor of the Keras backend, symbolic or not."""

LARGEST_LOG_RATIO = 4.135
"""log(1000 / 16): a decoded side is at most 62.5 times its reference's, so exp cannot overflow."""


def area(boxes: Tensor) -> Tensor:
    """Return the areas [...] of boxes [..., 4]; 0 for empty or inverted ones."""
    # A box from 3 to 7 is 4 wide, not 5: edges are coordinates, not indices of pixels.
    height = ops.maximum(boxes[..., 2] - boxes[..., 0], 0.0)
    width = ops.maximum(boxes[..., 3] - boxes[..., 1], 0.0)
    return height * width


def iou(left: Tensor, right: Tensor) -> Tensor:
    """Return the intersection over union [..., N, M] of all pairs of boxes [..., N, 4] and [..., M, 4]."""
    a, b = left[..., :, None, :], right[..., None, :, :]
    height = ops.minimum(a[..., 2], b[..., 2]) - ops.maximum(a[..., 0], b[..., 0])
    width = ops.minimum(a[..., 3], b[..., 3]) - ops.maximum(a[..., 1], b[..., 1])
    # Boxes that are apart have negative sides here: two of them would make a positive area.
    intersection = ops.maximum(height, 0.0) * ops.maximum(width, 0.0)
    union = area(left)[..., :, None] + area(right)[..., None, :] - intersection
    # Padding boxes have no area: their IoU is 0, not 0 / 0.
    return intersection / ops.maximum(union, 1e-6)


def encode(boxes: Tensor, references: Tensor, scales: tuple[float, ...]) -> Tensor:
    """Return the offsets (dy, dx, dh, dw) [..., 4] that :func:`decode` turns back into ``boxes``.

    Centres move in units of the reference's sides, sides by the logarithm of their ratio; each offset is
    multiplied by its scale. Source: Girshick et al., "Rich feature hierarchies" (R-CNN, 2014), appendix C.
    Sides below one thousandth of a pixel count as that, so padding boxes stay finite.

    Args:
        boxes: [..., 4], yxyx in pixels.
        references: Anchors or proposals [..., 4], yxyx in pixels.
        scales: Factors on the four offsets.
    """
    (middles, sides), (origins, units) = _middles_and_sides(boxes), _middles_and_sides(references)
    deltas = ops.concatenate([(middles - origins) / units, ops.log(sides / units)], axis=-1)
    halved = [factor * share for factor, share in zip(scales, (0.5, 0.5, 1.0, 1.0), strict=True)]
    return deltas * ops.convert_to_tensor(halved, dtype="float32")


def decode(deltas: Tensor, references: Tensor, scales: tuple[float, ...]) -> Tensor:
    """Return boxes [..., 4] from offsets [..., 4] and references [..., 4]; the inverse of :func:`encode`."""
    middles, sides = _middles_and_sides(references)
    moves, growths = ops.split(deltas / ops.convert_to_tensor(scales, dtype="float32"), 2, axis=-1)
    centres = middles / 2 + moves * sides
    # The exponent is limited, because an untrained network's offsets can be anything.
    half = sides * ops.exp(ops.minimum(growths, LARGEST_LOG_RATIO)) / 2
    return ops.concatenate([centres - half, centres + half], axis=-1)


def clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """Cut boxes [..., 4] to an image of height x width pixels."""
    limit = ops.convert_to_tensor([height, width, height, width], dtype="float32")
    return ops.minimum(ops.maximum(boxes, 0.0), limit)


def gather(values: Tensor, indices: Tensor) -> Tensor:
    """Take rows [B, K, ...] of ``values`` [B, N, ...] at ``indices`` [B, K], each image's from its own.

    Without TensorFlow's kernel it is one flat Gather, which converts to one of ONNX, also with a dynamic
    batch, and which TensorRT builds without a plugin.
    """
    if kernels.native():
        return _rows(values, indices, batch_dims=1)
    count, rest = values.shape[1], tuple(values.shape[2:])
    # Row r of image b is row b * N + r of the flat array.
    batch = ops.shape(values)[0]
    offsets = ops.cast(ops.arange(batch), "int32")[:, None] * count
    return ops.take(ops.reshape(values, (-1, *rest)), ops.cast(indices, "int32") + offsets, axis=0)


def gather_shared(values: Tensor, indices: Tensor) -> Tensor:
    """Take rows [..., *] of ``values`` [N, *], which belong to no image, at ``indices`` [...]."""
    if kernels.native():
        return _rows(values, indices)
    return ops.take(values, ops.cast(indices, "int32"), axis=0)


def _rows(values: Tensor, indices: Tensor, batch_dims: int = 0) -> Tensor:
    """TensorFlow's Gather by int32 indices or whole floats.

    ``ops.take`` also admits negative indices: three kernels, which compute int32 in the host's memory.
    """
    # Imported here, so that the module loads on other backends.
    import tensorflow as tf

    indices = tf.convert_to_tensor(indices)
    if not indices.dtype.is_integer:
        indices = tf.cast(indices, tf.int32)
    return tf.gather(values, indices, batch_dims=batch_dims)


def _middles_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Twice the centres (y, x), and the sides (height, width), both [..., 2], of boxes [..., 4]."""
    low, high = ops.split(boxes, 2, axis=-1)
    # Padding has sides of 0, which encode() would divide by.
    return low + high, ops.maximum(high - low, 1e-3)
