"""ResNet-10, -18 and -50 as a C4 detector needs them: stem and stages 1 to 3 (stride 16), stage 4 apart.

Plain Keras functional graphs of Conv2D, BatchNormalization, ReLU, Add and MaxPooling2D: what pruning
can walk and every exporter knows. Layer names are stable (``stage2_block1_conv1``): pretrained weights and
freezing go by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

Block = Callable[["Layers", Any, str, int, int], Any]
BATCH_NORM_MOMENTUM = 0.9
"""Moving statistics follow within some tens of steps, so short trainings have statistics of their own."""


@dataclass(frozen=True)
class Architecture:
    """Blocks per stage, their kind, and the filters of stage 1's inner convolutions."""

    blocks: tuple[int, int, int, int]
    block: Block
    filters: int = 64


class Layers:
    """Makes layers with seeded initialisers; filters are scaled by the width multiplier."""

    def __init__(self, seed: int, width_multiplier: float = 1.0) -> None:
        self._seed = seed
        self._made = 0
        self._width = width_multiplier

    def filters(self, count: int) -> int:
        """``count`` times the width multiplier, a multiple of 8 and at least 8."""
        return max(8, int(count * self._width / 8 + 0.5) * 8)

    def seed(self) -> int:
        """The next layer's seed."""
        self._made += 1
        return self._seed * 1000 + self._made

    def conv(self, x: Any, name: str, filters: int, size: int, stride: int = 1) -> Any:
        """Convolution without bias, padded so that only the stride makes the map smaller."""
        initializer = keras.initializers.HeNormal(seed=self.seed())
        layer = layers.Conv2D(
            filters, size, stride, "same", use_bias=False, kernel_initializer=initializer, name=name
        )
        return layer(x)

    def norm(self, x: Any, name: str) -> Any:
        """Batch normalisation."""
        return layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, epsilon=1e-5, name=name)(x)


def _basic(make: Layers, x: Any, name: str, filters: int, stride: int) -> Any:
    """Two 3x3 convolutions beside a shortcut."""
    y = make.conv(x, f"{name}_conv1", filters, 3, stride)
    y = layers.ReLU(name=f"{name}_relu1")(make.norm(y, f"{name}_bn1"))
    y = make.norm(make.conv(y, f"{name}_conv2", filters, 3), f"{name}_bn2")
    return _join(make, x, y, name, filters, stride)


def _bottleneck(make: Layers, x: Any, name: str, filters: int, stride: int) -> Any:
    """1x1, 3x3, 1x1 with four times the filters, beside a shortcut; the 3x3 strides (ResNet v1.5)."""
    y = make.conv(x, f"{name}_conv1", filters, 1)
    y = layers.ReLU(name=f"{name}_relu1")(make.norm(y, f"{name}_bn1"))
    y = make.conv(y, f"{name}_conv2", filters, 3, stride)
    y = layers.ReLU(name=f"{name}_relu2")(make.norm(y, f"{name}_bn2"))
    y = make.norm(make.conv(y, f"{name}_conv3", 4 * filters, 1), f"{name}_bn3")
    return _join(make, x, y, name, 4 * filters, stride)


def _join(make: Layers, x: Any, y: Any, name: str, filters: int, stride: int) -> Any:
    """Add the shortcut, projected where the shape changes.

    Where the block strides the shortcut averages 2x2 before it projects (ResNet-D): nothing is skipped, both
    branches keep the same centre, and the gradient of a strided 1x1 convolution of few channels, which writes
    past its memory in TensorFlow 2.21 on CPUs, is not needed.
    """
    if stride != 1:
        x = layers.AveragePooling2D(stride, stride, "same", name=f"{name}_shortcut_pool")(x)
    if stride != 1 or x.shape[-1] != filters:
        x = make.norm(make.conv(x, f"{name}_shortcut", filters, 1), f"{name}_shortcut_bn")
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))


ARCHITECTURES = {
    "resnet10": Architecture((1, 1, 1, 1), _basic),
    "resnet18": Architecture((2, 2, 2, 2), _basic),
    "resnet50": Architecture((3, 4, 6, 3), _bottleneck),
}


def trunk(name: str, make: Layers, x: Any) -> Any:
    """Stem and stages 1 to 3: images [B, H, W, 3] to features [B, H/16, W/16, C]."""
    x = make.conv(x, "stem_conv", make.filters(64), 7, 2)
    x = layers.ReLU(name="stem_relu")(make.norm(x, "stem_bn"))
    x = layers.MaxPooling2D(3, 2, "same", name="stem_pool")(x)
    for number in (1, 2, 3):
        x = stage(name, make, x, number, stride=1 if number == 1 else 2)
    return x


def stage(name: str, make: Layers, x: Any, number: int, stride: int) -> Any:
    """Stage 1 to 4; its first block strides."""
    architecture = ARCHITECTURES[name]
    filters = make.filters(architecture.filters * 2 ** (number - 1))
    for index in range(architecture.blocks[number - 1]):
        block = f"stage{number}_block{index + 1}"
        x = architecture.block(make, x, block, filters, stride if index == 0 else 1)
    return x


def is_in_block(layer: str, block: int) -> bool:
    """Whether a layer belongs to a freezable block: 0 is the stem with stage 1, then one stage each."""
    prefixes = ("stem_", "stage1_") if block == 0 else (f"stage{block + 1}_",)
    return layer.startswith(prefixes)
