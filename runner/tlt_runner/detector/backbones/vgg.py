"""VGG-16 and -19: convolutional blocks 1 to 5 as the trunk, the two dense layers as the head.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks" (2014), divided as in the first Faster
R-CNN (Ren et al., 2015): RoI pooling takes the place of the pooling after block 5, so the trunk has stride
16. Layers, names and shapes are keras.applications': its files load whole, the dense layers where poolSize is
7. It has no batch normalisation (ADR 9), and the head does not stride.
"""

from __future__ import annotations

import re
from typing import Any

import keras
from keras import layers

from tlt_runner.detector.backbones.family import Family
from tlt_runner.detector.backbones.layers import Layers

CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
"""Number of convolutions of each block."""
FILTERS = (64, 128, 256, 512, 512)
UNITS = 4096
PIXEL_SPREAD = 64.0
"""Standard deviation of the pixels, by which the first layer's fresh weights are divided: without any
normalisation in the network, losses would start in the hundreds. Keras' weights take unscaled pixels."""


def _trunk(name: str, make: Layers, x: Any) -> Any:
    """Build blocks 1 to 5: pixels to features of stride 16."""
    first = keras.initializers.VarianceScaling(
        2.0 / PIXEL_SPREAD**2, "fan_in", "truncated_normal", seed=make.seed()
    )
    for block, (count, filters) in enumerate(zip(CONVOLUTIONS[name], FILTERS, strict=True), 1):
        for number in range(1, count + 1):
            x = make.conv(
                x,
                f"block{block}_conv{number}",
                make.filters(filters),
                3,
                bias=True,
                activation="relu",
                kernel_initializer=first if block == number == 1 else None,
            )
        # RoI pooling takes the place of the last pooling.
        if block < len(FILTERS):
            x = layers.MaxPooling2D(2, 2, name=f"block{block}_pool")(x)
    return x


def _head_stage(name: str, make: Layers, pooled: Any, stride: int) -> Any:
    # The stride is ignored: dense layers need the one size that their weights were made for.
    x = layers.Flatten(name="flatten")(pooled)
    for layer in ("fc1", "fc2"):
        initializer = keras.initializers.HeNormal(seed=make.seed())
        x = layers.Dense(make.filters(UNITS), activation="relu", kernel_initializer=initializer, name=layer)(
            x
        )
        x = make.drop(x, f"{layer}_dropout")
    return x


def _block_of(layer: str) -> int | None:
    """Number of a layer's block, Keras' own, from 1; the dense layers have none."""
    block = re.match(r"block(\d)_", layer)
    return int(block[1]) if block else None


FAMILY = Family(tuple(CONVOLUTIONS), range(1, 6), _trunk, _head_stage, _block_of, dense_head=True)
