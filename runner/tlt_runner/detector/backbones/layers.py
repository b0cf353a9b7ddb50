"""Makes the layers of a new detector: seeded initialisers, filters scaled by the width multiplier.

One maker is handed through trunk, region proposal network and head, so that the same seed gives the same
weights. Every convolution and pooling is padded so that only its stride makes the map smaller, rounded up: a
backbone's last stage must run on pooled features of any size. :func:`fuse` makes batch normalisation faster
in training, in graphs built here or read from a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from tlt_runner.detector.boxes import Tensor
from tlt_runner.detector.dropout import Dropout
from tlt_runner.detector.variant import Variant

MAP_RANK = 4
"""Rank of a feature map [B, H, W, C], the only one that :func:`fuse` replaces."""
BATCH_NORM_MOMENTUM = 0.9
"""Moving statistics follow within some tens of steps, so that they fit even after a short training."""
BATCH_NORM_EPSILON = 1e-5
KERAS_EPSILON = 1e-3
"""Epsilon with which the weights of keras.applications' MobileNets and EfficientNets were trained."""


class Layers:
    """Makes layers, one after the other.

    Args:
        seed: Seed of all initialisers.
        width_multiplier: Factor on the number of filters, applied by :meth:`filters` and :meth:`rounded`.
        variant: Padding of layers that stride, epsilon of the normalisations, and details of single families.
        dropout: Rate of :meth:`drop`.
        activation: Keras' name of the activation function, for backbones that have a choice.
    """

    def __init__(
        self,
        seed: int,
        width_multiplier: float = 1.0,
        variant: Variant | None = None,
        dropout: float = 0.0,
        activation: str = "swish",
    ) -> None:
        self._seed = seed
        self._made = 0
        self._width = width_multiplier
        self.variant = variant or Variant()
        self._dropout = dropout
        self.activation = activation

    def filters(self, count: int) -> int:
        """Return ``count`` times the width multiplier, rounded to a multiple of 8, at least 8."""
        # int(x + 0.5), not round(), which takes halves to the even number.
        return max(8, int(count * self._width / 8 + 0.5) * 8)

    def rounded(self, count: float) -> int:
        """Return ``count`` times the width multiplier as MobileNetV2 and EfficientNet round it.

        A multiple of 8, at least 8, and never more than a tenth below the exact value.
        """
        exact = count * self._width
        filters = max(8, int(exact + 4) // 8 * 8)
        return filters + 8 if filters < 0.9 * exact else filters

    def seed(self) -> int:
        """Return the next layer's seed."""
        # 1000 keeps the seeds of neighbouring trainings apart for as many layers.
        self._made += 1
        return self._seed * 1000 + self._made

    def conv(
        self, x: Any, name: str, filters: int, size: int, stride: int = 1, bias: bool = False, **options: Any
    ) -> Any:
        """Add a convolution, padded so that only the stride makes the map smaller."""
        initializer = options.pop("kernel_initializer", None)
        initializer = initializer or keras.initializers.HeNormal(seed=self.seed())
        x, padding = self._padded(x, name, size, stride)
        layer = layers.Conv2D(
            filters,
            size,
            stride,
            padding,
            use_bias=bias,
            kernel_initializer=initializer,
            name=name,
            **options,
        )
        return layer(x)

    def depthwise(self, x: Any, name: str, size: int, stride: int) -> Any:
        """Add a depthwise convolution, one filter for each channel, without bias."""
        # Of a kernel [size, size, C, 1] Keras' fan_out is size * size: the inputs of one output.
        initializer = keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal", seed=self.seed())
        x, padding = self._padded(x, name, size, stride)
        layer = layers.DepthwiseConv2D(
            size, stride, padding, use_bias=False, depthwise_initializer=initializer, name=name
        )
        return layer(x)

    def max_pool(self, x: Any, name: str, size: int, stride: int) -> Any:
        """Add max pooling of values that are not negative: zeros around the map then change no maximum."""
        x, padding = self._padded(x, name, size, stride)
        return layers.MaxPooling2D(size, stride, padding, name=name)(x)

    def _padded(self, x: Any, name: str, size: int, stride: int) -> tuple[Any, str]:
        """Add zeros on every side where the variant asks for it; return the padding that is left to do."""
        # Without a stride, and for 1x1, "same" is symmetric: no layer is needed.
        if self.variant.padding == "same" or stride == 1 or size == 1:
            return x, "same"
        return layers.ZeroPadding2D((size - 1) // 2, name=f"{name}_pad")(x), "valid"

    def drop(self, x: Any, name: str) -> Any:
        """Add dropout to vectors [M, D] of the head, if the rate is above 0."""
        return Dropout(self._dropout, name=name)(x) if self._dropout else x

    def norm(self, x: Any, name: str, epsilon: float = BATCH_NORM_EPSILON) -> Any:
        """Add batch normalisation, with the variant's epsilon if it has one."""
        epsilon = self.variant.epsilon or epsilon
        return layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, epsilon=epsilon, name=name)(x)


def fuse(graph: keras.Model) -> None:
    """Let the graph's batch normalisations run as one op of TensorFlow in training.

    Keras 3 takes seven ops forward and seven back. On two cores this saves a tenth of a training step. In
    all else the layers stay Keras' own: their config, their weights and their inference, and so the files,
    pruning and export. On other backends nothing changes: their compilers fuse. Calling it twice does no
    harm.
    """
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
    """Return a ``call`` for the layer that is one op in training, and Keras' own otherwise."""
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
        # A number where the shapes are known, as in a training step: then nothing is left to compute.
        values = inputs.shape.num_elements() or tf.size(inputs)
        statistics = _Statistics(layer, mean, variance, values // inputs.shape[-1])
        waiting = _WAITING.get()
        if waiting is None:
            _move([statistics])
        else:
            waiting.append(statistics)
        return outputs

    return call


@dataclass(frozen=True)
class _Statistics:
    """Statistics of a batch, which the layer's moving ones are to follow.

    Attributes:
        layer: The batch normalisation.
        mean: [C].
        variance: [C], divided by ``count - 1``.
        count: Values of a channel: an integer, or a scalar int32 where shapes are unknown.
    """

    layer: Any
    mean: Tensor
    variance: Tensor
    count: int | Tensor


_WAITING: ContextVar[list[_Statistics] | None] = ContextVar("waiting", default=None)
"""Statistics of the calls in :func:`statistics_moved_together`; each replica is traced in its own thread."""


@contextmanager
def statistics_moved_together() -> Iterator[None]:
    """Context at whose end the moving statistics of all fused layers called in it move, by few ops for all.

    A layer must be called once in it: a second call does not see what the first one has changed.
    """
    waiting: list[_Statistics] = []
    token = _WAITING.set(waiting)
    try:
        yield
    finally:
        _WAITING.reset(token)
    if waiting:
        _move(waiting)


def _move(statistics: list[_Statistics]) -> None:
    """Have the moving statistics follow those of a batch."""
    import tensorflow as tf

    with tf.name_scope("statistics"):
        layers_moved = [item.layer for item in statistics]
        moving = [layer.moving_mean for layer in layers_moved] + [
            layer.moving_variance for layer in layers_moved
        ]
        sizes = [variable.shape[0] for variable in moving]
        channels = sizes[: len(statistics)]
        # The op returns the unbiased variance (divided by n - 1), Keras averages the biased one.
        counts: Any = [item.count for item in statistics]
        if all(isinstance(count, int) for count in counts):
            counts = np.repeat(counts, channels).astype(np.float32)
        else:
            counts = tf.repeat(tf.cast(tf.stack(counts), tf.float32), channels)
        variances = tf.concat([item.variance for item in statistics], 0) * (counts - 1.0) / counts
        current = tf.concat([*(item.mean for item in statistics), variances], 0)
        momentum = np.repeat([layer.momentum for layer in layers_moved * 2], sizes)
        before = tf.concat([tf.convert_to_tensor(variable) for variable in moving], 0)
        after = before * momentum.astype(np.float32) + current * (1.0 - momentum).astype(np.float32)
        for variable, value in zip(moving, tf.split(after, sizes), strict=True):
            variable.assign(value)
