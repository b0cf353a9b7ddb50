"""Batch normalisation in training as TensorFlow's one op, where Keras 3 takes seven each way.

Called by :class:`tlt_runner.detector.model.FasterRCNN` for both its graphs. On two cores this is a tenth of a
training step. The layers stay Keras' own in all else: their config, their weights, what they do in inference,
and so what is saved, pruned and exported. On other backends nothing changes: their compilers fuse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from tlt_runner.detector.boxes import Tensor

MAP_RANK = 4
"""Of [B, H, W, C], what the op takes."""


def fuse(graph: keras.Model) -> None:
    """Let the graph's batch normalisations run as one op when they train; twice does no harm."""
    if keras.backend.backend() != "tensorflow":
        return
    for layer in graph.layers:
        if type(layer) is layers.BatchNormalization and _is_plain(layer):
            layer.call = _fused(layer)


def _is_plain(layer: Any) -> bool:
    last = layer.axis in (-1, MAP_RANK - 1)
    return bool(last and layer.scale and layer.center and not layer.synchronized and not layer.renorm)


def _fused(layer: Any) -> Callable[..., Tensor]:
    import tensorflow as tf

    def call(inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        if not (training and layer.trainable) or mask is not None or len(inputs.shape) != MAP_RANK:
            return layers.BatchNormalization.call(layer, inputs, training=training, mask=mask)
        # TensorFlow takes an epsilon of at least 1.001e-5 here, in inference it is the layer's own 1e-5
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            tf.convert_to_tensor(layer.gamma),
            tf.convert_to_tensor(layer.beta),
            epsilon=layer.epsilon,
            is_training=True,
        )
        seen = tf.cast(tf.size(inputs) // inputs.shape[-1], variance.dtype)
        variance = variance * (seen - 1.0) / seen  # the op gives the sample's, Keras keeps the batch's own
        for moving, current in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            moving.assign(moving * layer.momentum + current * (1.0 - layer.momentum))
        return outputs

    return call
