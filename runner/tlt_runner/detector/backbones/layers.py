"""Makes the layers of a new detector: seeded initialisers, filters scaled by the width multiplier.

One maker is handed through trunk, region proposal network and head, so that the same seed gives the same
weights. Every convolution is padded "same": a backbone's last stage must run on pooled features of any size.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

BATCH_NORM_MOMENTUM = 0.9
"""Moving statistics follow within some tens of steps, so short trainings have statistics of their own."""
BATCH_NORM_EPSILON = 1e-5
KERAS_EPSILON = 1e-3
"""Of keras.applications' MobileNets and EfficientNets, whose pretrained weights were made with it."""


class Layers:
    """Makes layers, one after the other.

    Args:
        seed: Of all initialisers.
        width_multiplier: Factor on the filters that :meth:`filters` and :meth:`rounded` are asked for.
    """

    def __init__(self, seed: int, width_multiplier: float = 1.0) -> None:
        self._seed = seed
        self._made = 0
        self._width = width_multiplier

    def filters(self, count: int) -> int:
        """``count`` times the width multiplier, a multiple of 8 and at least 8."""
        return max(8, int(count * self._width / 8 + 0.5) * 8)

    def rounded(self, count: float) -> int:
        """The same, but never more than a tenth below, as MobileNetV2 and EfficientNet round."""
        wanted = count * self._width
        filters = max(8, int(wanted + 4) // 8 * 8)
        return filters + 8 if filters < 0.9 * wanted else filters

    def seed(self) -> int:
        """The next layer's seed."""
        self._made += 1
        return self._seed * 1000 + self._made

    def conv(
        self, x: Any, name: str, filters: int, size: int, stride: int = 1, bias: bool = False, **options: Any
    ) -> Any:
        """Convolution, padded so that only the stride makes the map smaller."""
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
        """Depthwise convolution, one filter for each channel, without bias."""
        initializer = keras.initializers.VarianceScaling(
            2.0, "fan_out", "truncated_normal", seed=self.seed()
        )  # of this kernel [size, size, C, 1] fan_out is size * size, what one output sees
        layer = layers.DepthwiseConv2D(
            size, stride, "same", use_bias=False, depthwise_initializer=initializer, name=name
        )
        return layer(x)

    def norm(self, x: Any, name: str, epsilon: float = BATCH_NORM_EPSILON) -> Any:
        """Batch normalisation."""
        return layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, epsilon=epsilon, name=name)(x)
