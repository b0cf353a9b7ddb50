"""MobileNetV2: stem and inverted residuals 0 to 12 as the trunk (stride 16), 13 to 16 and Conv_1 as the head.

Source: Sandler et al., "MobileNetV2" (2018). Layers, names and shapes are keras.applications': its files load
whole.
"""

from __future__ import annotations

import re
from typing import Any

from keras import layers

from tlt_runner.detector.backbones.family import Family
from tlt_runner.detector.backbones.layers import KERAS_EPSILON, Layers
from tlt_runner.detector.variant import SYMMETRIC_PIXELS

TRUNK = (
    (16, 1),
    (24, 2),
    (24, 1),
    (32, 2),
    (32, 1),
    (32, 1),
    (64, 2),
    (64, 1),
    (64, 1),
    (64, 1),
    (96, 1),
    (96, 1),
    (96, 1),
)
"""Filters and stride of inverted residuals 0 to 12."""
HEAD = (160, 160, 160, 320)
"""Filters of inverted residuals 13 to 16; the first one strides."""
LAST_FILTERS = 1280
EXPANSION = 6


def _trunk(name: str, make: Layers, x: Any) -> Any:
    x = make.conv(x, "Conv1", make.rounded(32), 3, 2)
    x = layers.ReLU(6.0, name="Conv1_relu")(make.norm(x, "bn_Conv1", KERAS_EPSILON))
    for number, (filters, stride) in enumerate(TRUNK):
        x = _inverted_residual(make, x, number, make.rounded(filters), stride)
    return x


def _head_stage(name: str, make: Layers, pooled: Any, stride: int) -> Any:
    """Build inverted residuals 13 to 16 and Conv_1, on pooled features."""
    # Numbered on from the trunk, as in Keras: weights load by these names.
    x = pooled
    for number, filters in enumerate(HEAD, len(TRUNK)):
        block_stride = stride if number == len(TRUNK) else 1
        x = _inverted_residual(make, x, number, make.rounded(filters), block_stride)
    last = make.rounded(LAST_FILTERS)
    # Smaller below width 1, too, unless the weights are of Keras, which keeps 1280 there.
    if make.variant.wide_end:
        last = max(last, LAST_FILTERS)
    x = make.norm(make.conv(x, "Conv_1", last, 1), "Conv_1_bn", KERAS_EPSILON)
    return layers.ReLU(6.0, name="out_relu")(x)


def _inverted_residual(make: Layers, x: Any, number: int, filters: int, stride: int) -> Any:
    """1x1 to six times the channels, 3x3 of each, 1x1 back without activation; added where shapes agree."""
    prefix = f"block_{number}_" if number else "expanded_conv_"
    y, channels = x, x.shape[-1]
    # The first block does not expand its channels; Keras names it without a number.
    if number:
        y = make.conv(y, f"{prefix}expand", channels * EXPANSION, 1)
        y = make.norm(y, f"{prefix}expand_BN", KERAS_EPSILON)
        y = layers.ReLU(6.0, name=f"{prefix}expand_relu")(y)
    y = make.norm(make.depthwise(y, f"{prefix}depthwise", 3, stride), f"{prefix}depthwise_BN", KERAS_EPSILON)
    y = layers.ReLU(6.0, name=f"{prefix}depthwise_relu")(y)
    y = make.norm(make.conv(y, f"{prefix}project", filters, 1), f"{prefix}project_BN", KERAS_EPSILON)
    # All other blocks have no shortcut: it is never projected.
    if stride == 1 and channels == filters:
        return layers.Add(name=f"{prefix}add")([x, y])
    return y


def _block_of(layer: str) -> int | None:
    """Number of a layer's block, as TLT's: the stem is 0, inverted residuals are 1 to 13, the head's none."""
    if layer in ("Conv1", "bn_Conv1", "Conv1_relu"):
        return 0
    if layer.startswith("expanded_conv_"):
        return 1
    block = re.match(r"block_(\d+)_", layer)
    return int(block[1]) + 1 if block and int(block[1]) < len(TRUNK) else None


FAMILY = Family(
    ("mobilenet_v2",),
    range(len(TRUNK) + 1),
    _trunk,
    _head_stage,
    _block_of,
    pixels=SYMMETRIC_PIXELS,
)
