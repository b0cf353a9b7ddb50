"""ResNet-10, -18, -34, -50 and -101: stem and stages 1 to 3 (stride 16) as the trunk, stage 4 as the head.

Source: He et al., "Deep Residual Learning" (2015). Published networks differ in where they stride, pad and
project: all of that is the :class:`~tlt_runner.detector.variant.Variant`'s, so that weights of Keras,
KerasHub, torchvision and TLT give their own features. Without weights it is version 1.5, torchvision's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras import layers

from tlt_runner.detector.backbones.family import Family
from tlt_runner.detector.backbones.layers import Layers

Block = Callable[[Layers, Any, str, int, int, bool], Any]


@dataclass(frozen=True)
class Architecture:
    """Blocks per stage, their kind, and the filters of stage 1's inner convolutions."""

    blocks: tuple[int, int, int, int]
    block: Block
    filters: int = 64


def _basic(make: Layers, x: Any, name: str, filters: int, stride: int, first: bool) -> Any:
    """Two 3x3 convolutions, of which the first strides, beside a shortcut."""
    y = make.conv(x, f"{name}_conv1", filters, 3, stride)
    y = layers.ReLU(name=f"{name}_relu1")(make.norm(y, f"{name}_bn1"))
    y = make.norm(make.conv(y, f"{name}_conv2", filters, 3), f"{name}_bn2")
    return _join(make, _skipped(make, x, name, stride), y, name, stride != 1, first)


def _bottleneck(make: Layers, x: Any, name: str, filters: int, stride: int, first: bool) -> Any:
    """1x1, 3x3, 1x1 with four times the filters, beside a shortcut; the variant says which one strides."""
    shortcut = _skipped(make, x, name, stride)
    # The first convolution of v1 takes the pixels that the shortcut takes: they are left out once.
    v1 = make.variant.stride_in == "conv1"
    y = make.conv(shortcut if v1 else x, f"{name}_conv1", filters, 1)
    y = layers.ReLU(name=f"{name}_relu1")(make.norm(y, f"{name}_bn1"))
    y = make.conv(y, f"{name}_conv2", filters, 3, 1 if v1 else stride)
    y = layers.ReLU(name=f"{name}_relu2")(make.norm(y, f"{name}_bn2"))
    y = make.norm(make.conv(y, f"{name}_conv3", 4 * filters, 1), f"{name}_bn3")
    return _join(make, shortcut, y, name, stride != 1, first)


def _skipped(make: Layers, x: Any, name: str, stride: int) -> Any:
    """Shortcut of a block at its stride: every stride-th pixel or, in models of before 2026-12, the mean."""
    if stride == 1:
        return x
    if make.variant.shortcut == "average":
        return layers.AveragePooling2D(stride, stride, "same", name=f"{name}_shortcut_pool")(x)
    # A 1x1 convolution of these pixels is a strided one, bit by bit. The gradient of a strided one writes
    # past its memory in TensorFlow 2.21 on CPUs below 16 channels (oneDNN issue 6035).
    return layers.MaxPooling2D(1, stride, name=f"{name}_shortcut_pool")(x)


def _join(make: Layers, x: Any, y: Any, name: str, strides: bool, first: bool) -> Any:
    """Add the shortcut, with a convolution where the variant has one."""
    projections = make.variant.projections
    changes = strides or x.shape[-1] != y.shape[-1]
    if changes or projections == "all" or (projections == "stage" and first):
        x = make.norm(make.conv(x, f"{name}_shortcut", y.shape[-1], 1), f"{name}_shortcut_bn")
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
    # Either the stem's pooling or stage 1 has a stride: the trunk's is 16 in both cases.
    if make.variant.stem_pool:
        x = make.max_pool(x, "stem_pool", 3, 2)
    for number in (1, 2, 3):
        x = _stage(name, make, x, number, stride=1 if number == 1 and make.variant.stem_pool else 2)
    return x


def _head_stage(name: str, make: Layers, pooled: Any, stride: int) -> Any:
    return _stage(name, make, pooled, 4, stride)


def _stage(name: str, make: Layers, x: Any, number: int, stride: int) -> Any:
    """Stage 1 to 4, whose first block strides."""
    architecture = ARCHITECTURES[name]
    filters = make.filters(architecture.filters * 2 ** (number - 1))
    for index in range(architecture.blocks[number - 1]):
        block = f"stage{number}_block{index + 1}"
        first = index == 0
        x = architecture.block(make, x, block, filters, stride if first else 1, first)
    return x


def _block_of(layer: str) -> int | None:
    """Number of a layer's block, as TLT's: 0 is the stem, 1 to 3 are the stages, the head's has none."""
    if layer.startswith("stem_"):
        return 0
    stage = re.match(r"stage([1-3])_", layer)
    return int(stage[1]) if stage else None


def _former_block_of(layer: str) -> int | None:
    """Number of a layer's block in models of before 2026-12: 0 is stem and stage 1, 3 the head's stage."""
    if layer.startswith("stem_"):
        return 0
    stage = re.match(r"stage(\d)_", layer)
    return int(stage[1]) - 1 if stage else None


FAMILY = Family(
    tuple(ARCHITECTURES), range(4), _trunk, _head_stage, _block_of, former_block_of=_former_block_of
)
