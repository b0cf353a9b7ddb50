"""Makes the layers of a new detector: seeded initialisers, filters scaled by the width multiplier.

One maker is handed through trunk, region proposal network and head, so that the same seed gives the same
weights. Every convolution is padded "same": a backbone's last stage must run on pooled features of any size.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

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
    """

    def __init__(self, seed: int, width_multiplier: float = 1.0) -> None:
        self._seed = seed
        self._made = 0
        self._width = width_multiplier

    def filters(self, count: int) -> int:
        """Return ``count`` times the width multiplier, rounded to a multiple of 8, at least 8."""
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
        layer = layers.Conv2D(
            filters,
            size,
            stride,
            "same",
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
        layer = layers.DepthwiseConv2D(
            size, stride, "same", use_bias=False, depthwise_initializer=initializer, name=name
        )
        return layer(x)

    def norm(self, x: Any, name: str, epsilon: float = BATCH_NORM_EPSILON) -> Any:
        """Add batch normalisation."""
        return layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, epsilon=epsilon, name=name)(x)
