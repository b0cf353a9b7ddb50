"""Runs batch normalisation in training as one op of TensorFlow, where Keras 3 takes seven each way.

Called by :class:`tlt_runner.detector.model.FasterRCNN` for both its graphs. On two cores this saves a tenth
of a training step. In all else the layers stay Keras' own: their config, their weights and their inference,
and so the files, pruning and export. On other backends nothing changes: their compilers fuse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from tlt_runner.detector.boxes import Tensor

MAP_RANK = 4
"""Rank of a feature map [B, H, W, C], the only one that the op takes."""


def fuse(graph: keras.Model) -> None:
    """Let the graph's batch normalisations run as one op in training; calling it twice does no harm."""
    if keras.backend.backend() != "tensorflow":
        return
    for layer in graph.layers:
        # An exact type: a subclass may compute something else. The instance's attribute replaces the
        # class's method and is not serialised.
        if type(layer) is layers.BatchNormalization and _is_plain(layer):
            layer.call = _fused(layer)


def _is_plain(layer: Any) -> bool:
    """True if the layer does what the op does: normalise channels by the batch, then scale and shift."""
    last = layer.axis in (-1, MAP_RANK - 1)
    return bool(last and layer.scale and layer.center and not layer.synchronized and not layer.renorm)


def _fused(layer: Any) -> Callable[..., Tensor]:
    # Imported here, so that the module loads on other backends.
    import tensorflow as tf

    def call(inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        # Inference and frozen layers use the moving statistics: Keras' own ops.
        if not (training and layer.trainable) or mask is not None or len(inputs.shape) != MAP_RANK:
            return layers.BatchNormalization.call(layer, inputs, training=training, mask=mask)
        # TensorFlow raises a smaller epsilon to 1.001e-5 here; inference uses the layer's own 1e-5.
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            tf.convert_to_tensor(layer.gamma),
            tf.convert_to_tensor(layer.beta),
            epsilon=layer.epsilon,
            is_training=True,
        )
        # The op returns the unbiased variance (divided by n - 1), Keras averages the biased one.
        count = tf.cast(tf.size(inputs) // inputs.shape[-1], variance.dtype)
        variance = variance * (count - 1.0) / count
        for moving, current in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            moving.assign(moving * layer.momentum + current * (1.0 - layer.momentum))
        return outputs

    return call
