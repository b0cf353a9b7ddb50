"""RoI pooling by two interpolation matrices: RoIAlign as two matrix products.

Bilinear interpolation is separable and linear in the features: pooled = Y @ features @ X^T, where a row of
Y (or X) holds the weights with which one bin takes the feature map's rows (or columns). Averaging several
samples in a bin costs nothing more, for it only changes the weights. The gradient is two products again.
"""

from __future__ import annotations

import numpy as np
from keras import ops

from tlt_runner.detector.boxes import Tensor
from tlt_runner.detector.config import STRIDE

SAMPLES = 2
"""Samples per bin and direction (RoIAlign's sampling ratio)."""


def pool(features: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Features of every box, brought to one size.

    A cell of the feature map stands for its centre, at (i + 0.5) * STRIDE pixels (RoIAlign, aligned). Samples
    outside the outermost centres take the border's value.

    Args:
        features: [B, H, W, C].
        boxes: [B, R, 4] yxyx in pixels; no gradient flows to them.
        size: Bins P per side.

    Returns:
        [B * R, P, P, C].
    """
    height, width, channels = features.shape[1:]
    count = boxes.shape[1]
    boxes = ops.stop_gradient(boxes)
    rows = weights(boxes[..., 0], boxes[..., 2], height, size)
    columns = weights(boxes[..., 1], boxes[..., 3], width, size)
    flat = ops.reshape(features, (-1, height, width * channels))
    by_row = ops.matmul(ops.reshape(rows, (-1, count * size, height)), flat)
    by_row = ops.reshape(by_row, (-1, size, width, channels))
    columns = ops.reshape(columns, (-1, 1, size, width))
    return ops.matmul(columns, by_row)


def weights(start: Tensor, end: Tensor, length: int, size: int) -> Tensor:
    """Interpolation weights [..., P, L] of P bins from ``start`` to ``end`` pixels [...] on L cells.

    Every row sums to one.
    """
    fractions = (np.arange(size * SAMPLES, dtype=np.float32) + 0.5) / (size * SAMPLES)
    pixels = start[..., None] + (end - start)[..., None] * fractions
    cells = ops.clip(pixels / STRIDE - 0.5, 0.0, length - 1.0)
    distance = ops.abs(cells[..., None] - np.arange(length, dtype=np.float32))
    samples = ops.maximum(1.0 - distance, 0.0)
    bins = ops.reshape(samples, (-1, start.shape[1], size, SAMPLES, length))
    return ops.mean(bins, axis=-2)
