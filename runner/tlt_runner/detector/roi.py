"""RoI pooling by two interpolation matrices: RoIAlign (He et al., "Mask R-CNN", 2017) as two matrix products.

Bilinear interpolation is separable and linear in the features: pooled = Y @ features @ X^T, where a row of
Y (or X) holds the weights with which one bin takes the feature map's rows (or columns). Averaging several
samples in a bin costs nothing more, because it only changes the weights. The gradient is two products again.
TensorRT builds matrix products without a plugin, ONNX's RoiAlign only with one.

The columns are multiplied first: images are wide, and the intermediate result keeps the other side, the
shorter one. Neither product broadcasts: that corrupts memory in TensorFlow 2.21 on CPUs
(tensorflow/tensorflow#123109).
"""

from __future__ import annotations

import numpy as np
from keras import ops

from tlt_runner.detector.boxes import Tensor
from tlt_runner.detector.config import STRIDE

SAMPLES = 2
"""Samples per bin and direction (RoIAlign's sampling ratio)."""


def pool(features: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Pool the features of every box to one size.

    A cell of the feature map stands for its centre, at (i + 0.5) * STRIDE pixels (RoIAlign, aligned). Samples
    outside the outermost centres take the border's value.

    Args:
        features: [B, H, W, C].
        boxes: [B, R, 4] yxyx in pixels; no gradient flows to them.
        size: Number of bins P per side.

    Returns:
        [B * R, P, P, C].
    """
    height, width, channels = features.shape[1:]
    count = boxes.shape[1]
    boxes = ops.stop_gradient(boxes)
    rows = weights(boxes[..., 0], boxes[..., 2], height, size)
    columns = weights(boxes[..., 1], boxes[..., 3], width, size)
    # [B, R * P, W] @ [B, W, H * C]: the boxes of an image share one product.
    by_column = ops.reshape(ops.transpose(features, (0, 2, 1, 3)), (-1, width, height * channels))
    strips = ops.matmul(ops.reshape(columns, (-1, count * size, width)), by_column)
    strips = ops.transpose(ops.reshape(strips, (-1, size, height, channels)), (0, 2, 1, 3))
    # [B * R, P, H] @ [B * R, H, P * C]: each box has strips of its own by now.
    strips = ops.reshape(strips, (-1, height, size * channels))
    pooled = ops.matmul(ops.reshape(rows, (-1, size, height)), strips)
    return ops.reshape(pooled, (-1, size, size, channels))


def weights(start: Tensor, end: Tensor, length: int, size: int) -> Tensor:
    """Compute interpolation weights [B * R, P, L] for one direction; every row sums to one.

    Args:
        start: First edge of the boxes [B, R], in pixels.
        end: Last edge of the boxes [B, R], in pixels.
        length: Cells L of the feature map in this direction.
        size: Number of bins P.
    """
    # Samples are centred in equal parts of the box, SAMPLES of them to a bin.
    fractions = (np.arange(size * SAMPLES, dtype=np.float32) + 0.5) / (size * SAMPLES)
    pixels = start[..., None] + (end - start)[..., None] * fractions
    # Beyond the outermost centres the border's value is repeated.
    cells = ops.clip(pixels / STRIDE - 0.5, 0.0, length - 1.0)
    # A cell's weight falls from 1 to 0 within one cell of the sample: bilinear interpolation.
    distance = ops.abs(cells[..., None] - np.arange(length, dtype=np.float32))
    samples = ops.maximum(1.0 - distance, 0.0)
    bins = ops.reshape(samples, (-1, start.shape[1], size, SAMPLES, length))
    return ops.mean(bins, axis=-2)
