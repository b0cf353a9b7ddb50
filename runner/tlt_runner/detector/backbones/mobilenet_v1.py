"""MobileNet: stem and separable blocks 1 to 11 as the trunk (stride 16), blocks 12 and 13 as the head.

Source: Howard et al., "MobileNets" (2017). Layers, names and shapes are keras.applications': its files load
whole (width 0.25, 0.5, 0.75, 1).
"""

from __future__ import annotations

import re
from typing import Any

from keras import layers

from tlt_runner.detector.backbones.family import Family
from tlt_runner.detector.backbones.layers import KERAS_EPSILON, Layers
from tlt_runner.detector.variant import SYMMETRIC_PIXELS

BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
)
"""Filters and stride of blocks 1 to 11."""
HEAD_BLOCKS = (12, 13)
HEAD_FILTERS = 1024


def _trunk(name: str, make: Layers, x: Any) -> Any:
    x = make.conv(x, "conv1", make.filters(32), 3, 2)
    x = layers.ReLU(6.0, name="conv1_relu")(make.norm(x, "conv1_bn", KERAS_EPSILON))
    for number, (filters, stride) in enumerate(BLOCKS, 1):
        x = _block(make, x, number, filters, stride)
    return x


def _head_stage(name: str, make: Layers, pooled: Any, stride: int) -> Any:
    x = pooled
    # Only the first block strides, and by as much as the config says: by 1, pooled features keep their size.
    for number in HEAD_BLOCKS:
        x = _block(make, x, number, HEAD_FILTERS, stride if number == HEAD_BLOCKS[0] else 1)
    return x


def _block(make: Layers, x: Any, number: int, filters: int, stride: int) -> Any:
    """A depthwise separable convolution: 3x3 of each channel, then 1x1 across the channels."""
    x = make.norm(make.depthwise(x, f"conv_dw_{number}", 3, stride), f"conv_dw_{number}_bn", KERAS_EPSILON)
    x = layers.ReLU(6.0, name=f"conv_dw_{number}_relu")(x)
    x = make.conv(x, f"conv_pw_{number}", make.filters(filters), 1)
    x = make.norm(x, f"conv_pw_{number}_bn", KERAS_EPSILON)
    return layers.ReLU(6.0, name=f"conv_pw_{number}_relu")(x)


def _block_of(layer: str) -> int | None:
    """Number of a layer's block, as TLT's: the stem is 0, then Keras' numbers, the head's have none."""
    # conv1, conv1_bn and conv1_relu; the blocks' names begin with conv_.
    if layer.startswith("conv1"):
        return 0
    block = re.match(r"conv_(?:dw|pw)_(\d+)", layer)
    return int(block[1]) if block and int(block[1]) <= len(BLOCKS) else None


FAMILY = Family(
    ("mobilenet_v1",),
    range(len(BLOCKS) + 1),
    _trunk,
    _head_stage,
    _block_of,
    pixels=SYMMETRIC_PIXELS,
)
