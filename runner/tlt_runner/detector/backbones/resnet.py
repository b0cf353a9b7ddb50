"""ResNet-10, -18, -34, -50 and -101: stem and stages 1 to 3 (stride 16) as the trunk, stage 4 as the head.

Source: He et al., "Deep Residual Learning" (2015), in version 1.5 with averaging shortcuts (ResNet-D, He et
al., "Bag of Tricks", 2018), unlike keras.applications': see ADR 9.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras import layers

from tlt_runner.detector.backbones.family import Family
from tlt_runner.detector.backbones.layers import Layers

Block = Callable[[Layers, Any, str, int, int], Any]


@dataclass(frozen=True)
class Architecture:
    """Blocks per stage, their kind, and the filters of stage 1's inner convolutions."""

    blocks: tuple[int, int, int, int]
    block: Block
    filters: int = 64


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

    In a block with a stride the shortcut averages 2x2 before it projects (ResNet-D): nothing is skipped, both
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
    "resnet34": Architecture((3, 4, 6, 3), _basic),
    "resnet50": Architecture((3, 4, 6, 3), _bottleneck),
    "resnet101": Architecture((3, 4, 23, 3), _bottleneck),
}


def _trunk(name: str, make: Layers, x: Any) -> Any:
    x = make.conv(x, "stem_conv", make.filters(64), 7, 2)
    x = layers.ReLU(name="stem_relu")(make.norm(x, "stem_bn"))
    x = layers.MaxPooling2D(3, 2, "same", name="stem_pool")(x)
    # Stage 1 has no stride: the stem's pooling has one already.
    for number in (1, 2, 3):
        x = _stage(name, make, x, number, stride=1 if number == 1 else 2)
    return x


def _head_stage(name: str, make: Layers, pooled: Any, stride: int) -> Any:
    return _stage(name, make, pooled, 4, stride)


def _stage(name: str, make: Layers, x: Any, number: int, stride: int) -> Any:
    """Stage 1 to 4, whose first block strides."""
    architecture = ARCHITECTURES[name]
    filters = make.filters(architecture.filters * 2 ** (number - 1))
    for index in range(architecture.blocks[number - 1]):
        block = f"stage{number}_block{index + 1}"
        x = architecture.block(make, x, block, filters, stride if index == 0 else 1)
    return x


def _block_of(layer: str) -> int | None:
    """Number of a layer's block: 0 is the stem with stage 1, then one for each stage."""
    if layer.startswith("stem_"):
        return 0
    stage = re.match(r"stage(\d)_", layer)
    return int(stage[1]) - 1 if stage else None


FAMILY = Family(tuple(ARCHITECTURES), range(4), _trunk, _head_stage, _block_of)
