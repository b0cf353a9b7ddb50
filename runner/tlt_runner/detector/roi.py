"""RoI pooling by bilinear sampling: RoIAlign (He et al., "Mask R-CNN", 2017), aligned.

A pooled value is the mean of a few samples, and a sample is the weighted mean of four cells of the feature
map. So pooling is a product of a sparse matrix with the features, whose rows have a fixed number of entries,
here called taps: the cost of a box depends neither on the size of the image nor on that of the box.

Two forms of that product (:mod:`tlt_runner.detector.kernels`). TensorFlow has sparse matrices, on CPUs and
GPUs: no intermediate result, and the gradient is the product with the transposed matrix. Elsewhere the cells
of each row are gathered and multiplied. Not used, though both compute the same: ``tf.image.crop_and_resize``,
because the threads of its gradient on CPUs add to the same cells without a lock (TensorFlow 2.21: errors as
large as the values), and ONNX's RoiAlign, because TensorRT builds it with a plugin and a GPU only.
"""

from __future__ import annotations

import math

import numpy as np
from keras import ops

from tlt_api.model import Sampling
from tlt_runner.detector import kernels
from tlt_runner.detector.boxes import Tensor
from tlt_runner.detector.config import STRIDE

SAMPLES = 2
"""Samples per bin and direction, where their number is fixed."""
MOST_SAMPLES = 4
"""Most samples per bin and direction with adaptive sampling. Cost grows with the square of this number; with
7 bins, only boxes with a side above 4 * 7 * 16 = 448 px get fewer samples than Detectron2 takes."""


def pool(features: Tensor, boxes: Tensor, size: int, sampling: Sampling = "fixed") -> Tensor:
    """Pool the features of every box to one size.

    A cell of the feature map stands for its centre, at (i + 0.5) * STRIDE pixels. Samples outside the
    outermost centres take the border's value.

    Args:
        features: [B, H, W, C].
        boxes: [B, R, 4] yxyx in pixels; no gradient flows to them.
        size: Number of bins P per side.
        sampling: Number of samples per bin: 2 x 2, or by the size of the box.

    Returns:
        [B * R, P, P, C], of the features' type.
    """
    height, width, channels = features.shape[1:]
    # TensorFlow computes int32 in the host's memory, and its sparse matrices have int64 indices.
    index, product = ("int64", _sparse_product) if kernels.native() else ("int32", _gathered_product)
    cells, weights = taps(ops.stop_gradient(boxes), (height, width), size, sampling, index)
    # Cells are numbered over the whole batch, in the order of the features in memory.
    images = ops.cast(ops.arange(ops.shape(features)[0]), index)
    first = ops.reshape(images * (height * width), (-1, 1, 1, 1, 1, 1))
    # [B, R, P, 1, T, 1] and [B, R, 1, P, 1, T].
    rows, columns = _crossed(cells)
    row_weights, column_weights = _crossed(weights)
    cells, weights = rows * width + first + columns, row_weights * column_weights
    # [N, T, T] with N = B * R * P * P rows and T taps in each direction.
    shape = (-1, *cells.shape[-2:])
    flat = ops.reshape(features, (-1, channels))
    pooled = product(flat, ops.reshape(cells, shape), ops.reshape(weights, shape))
    return ops.reshape(pooled, (-1, size, size, channels))


def taps(
    boxes: Tensor, lengths: tuple[int, int], size: int, sampling: Sampling, index: str = "int32"
) -> tuple[Tensor, Tensor]:
    """Compute the cells that each bin of a direction reads, and with which weights.

    Args:
        boxes: [B, R, 4] yxyx in pixels.
        lengths: Height H and width W of the feature map.
        size: Number of bins P.
        sampling: See :func:`pool`.
        index: Type of the cells.

    Returns:
        Cells [B, R, 2, P, T], rows from 0 to H - 1 and columns from 0 to W - 1, and weights [B, R, 2, P, T],
        whose sum in a bin is 1. T is two for each sample; a cell can occur twice.
    """
    start, end = ops.split(boxes, 2, axis=-1)
    # [B, R, 2, 1, 1]. expand_dims moves no data, an index of None does.
    start, bins = (ops.expand_dims(edge, (-1, -2)) for edge in (start, (end - start) / size))
    if sampling == "adaptive":
        most = MOST_SAMPLES
        # Detectron2's rule: as many samples as the bin has cells, rounded up.
        count = ops.clip(ops.ceil(bins / STRIDE), 1.0, float(most))
    else:
        most = SAMPLES
        count = ops.convert_to_tensor(float(most))
    numbers = np.arange(most, dtype=np.float32)
    # Samples are the centres of equal parts of a bin.
    fractions = np.arange(size, dtype=np.float32)[:, None] + (numbers + 0.5) / count
    # Beyond the outermost centres the border's value is repeated.
    last = np.array(lengths)[:, None, None] - 1
    samples = (start + bins * fractions) / STRIDE - 0.5
    samples = ops.minimum(ops.maximum(samples, 0.0), last.astype(np.float32))
    lower = ops.floor(samples)
    above = samples - lower
    share = ops.cast(numbers < count, "float32") / count
    cells = ops.cast(lower, index)
    # Boxes that are not numbers give any integer here; an index out of range would end the process.
    cells = ops.stack([cells, cells + 1], axis=-1)
    cells = ops.minimum(ops.maximum(cells, 0), last[..., None].astype(index))
    weights = ops.stack([(1.0 - above) * share, above * share], axis=-1)
    shape = (-1, boxes.shape[1], 2, size, 2 * most)
    return ops.reshape(cells, shape), ops.reshape(weights, shape)


def _crossed(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Values of both directions [B, R, 2, P, T], which then broadcast to all bins and all pairs of taps."""
    rows, columns = ops.unstack(pairs, axis=2)
    return ops.expand_dims(rows, (3, 5)), ops.expand_dims(columns, (2, 4))


def _gathered_product(flat: Tensor, cells: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums [N, C] of rows of ``flat`` [M, C], by their numbers and weights [N, T, T]."""
    weights = ops.cast(weights, flat.dtype)
    total = 0.0
    # One tap of the first direction after the other: all at once would take T times the memory.
    for tap in range(cells.shape[1]):
        rows = ops.take(flat, cells[:, tap], axis=0)
        # A matrix product for each row; neither factor broadcasts, which corrupts memory in TensorFlow 2.21
        # on CPUs (tensorflow/tensorflow#123109).
        total = total + ops.matmul(weights[:, tap, None, :], rows)[:, 0, :]
    return total


def _sparse_product(flat: Tensor, cells: Tensor, weights: Tensor) -> Tensor:
    """Compute what :func:`_gathered_product` does, with TensorFlow's sparse matrices (CSR)."""
    # Imported here, so that the module loads on other backends.
    import tensorflow as tf

    taps_of_row = math.prod(cells.shape[1:])
    count, total = tf.shape(cells, tf.int64)[0], tf.shape(flat, tf.int64)[0]
    rows = tf.repeat(tf.range(count), taps_of_row)
    matrix = tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=tf.stack([rows, tf.reshape(cells, (-1,))], axis=1),
        values=tf.reshape(weights, (-1,)),
        dense_shape=tf.stack([count, total]),
    )

    def times(matrix: Tensor, values: Tensor) -> Tensor:
        # The kernels exist for float32, not for the types of mixed precision.
        product = tf.raw_ops.SparseMatrixMatMul(a=matrix, b=tf.cast(values, tf.float32))
        return tf.cast(product, values.dtype)

    @tf.custom_gradient
    def product(flat: Tensor) -> tuple[Tensor, object]:
        def gradient(upstream: Tensor) -> Tensor:
            # Transposed beforehand: the product's own transposition takes three times as long on large maps.
            transposed = tf.raw_ops.SparseMatrixTranspose(input=matrix, type=tf.float32)
            return times(transposed, upstream)

        return times(matrix, flat), gradient

    return tf.ensure_shape(product(flat), (cells.shape[0], flat.shape[1]))
