"""EfficientNet b0 to b7: stem and groups 1 to 5 as the trunk (stride 16), 6, 7 and top_conv as the head.

Source: Tan and Le, "EfficientNet" (2019). Layers, names and shapes are keras.applications': its files load
whole at width 1. Stochastic depth is left out (ADR 9); relu can take the place of swish, as in TLT. b0 to b7
differ in their two coefficients only.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from keras import layers

from tlt_runner.detector.backbones.family import Family
from tlt_runner.detector.backbones.layers import KERAS_EPSILON, Layers
from tlt_runner.detector.variant import TORCH_PIXELS


class Group(NamedTuple):
    """Blocks of the same kernel and output; the first block strides."""

    size: int
    repeats: int
    filters: int
    expansion: int
    stride: int


GROUPS = (
    Group(3, 1, 16, 1, 1),
    Group(3, 2, 24, 6, 2),
    Group(5, 2, 40, 6, 2),
    Group(3, 3, 80, 6, 2),
    Group(5, 3, 112, 6, 1),
    Group(5, 4, 192, 6, 2),
    Group(3, 1, 320, 6, 1),
)
HEAD_GROUPS = (6, 7)
STEM_FILTERS, LAST_FILTERS = 32, 1280
SQUEEZE = 4
"""A block's squeeze-and-excitation has a fourth of the block's input channels."""
COEFFICIENTS = {
    "efficientnet_b0": (1.0, 1.0),
    "efficientnet_b1": (1.0, 1.1),
    "efficientnet_b2": (1.1, 1.2),
    "efficientnet_b3": (1.2, 1.4),
    "efficientnet_b4": (1.4, 1.8),
    "efficientnet_b5": (1.6, 2.2),
    "efficientnet_b6": (1.8, 2.6),
    "efficientnet_b7": (2.0, 3.1),
}
"""Name -> coefficients of width and depth."""


def _trunk(name: str, make: Layers, x: Any) -> Any:
    """Build the stem and groups 1 to 5: pixels to features of stride 16."""
    width, _ = COEFFICIENTS[name]
    x = make.norm(
        make.conv(x, "stem_conv", make.rounded(STEM_FILTERS * width), 3, 2), "stem_bn", KERAS_EPSILON
    )
    x = layers.Activation(make.activation, name="stem_activation")(x)
    for number in range(1, HEAD_GROUPS[0]):
        x = _group(name, make, x, number, GROUPS[number - 1].stride)
    return x


def _head_stage(name: str, make: Layers, pooled: Any, stride: int) -> Any:
    x = pooled
    for number in HEAD_GROUPS:
        x = _group(name, make, x, number, stride if number == HEAD_GROUPS[0] else 1)
    width, _ = COEFFICIENTS[name]
    x = make.norm(make.conv(x, "top_conv", make.rounded(LAST_FILTERS * width), 1), "top_bn", KERAS_EPSILON)
    return layers.Activation(make.activation, name="top_activation")(x)


def _group(name: str, make: Layers, x: Any, number: int, stride: int) -> Any:
    width, depth = COEFFICIENTS[name]
    group = GROUPS[number - 1]
    # Rounded up, as in keras.applications.
    for index in range(math.ceil(depth * group.repeats)):
        block = f"block{number}{chr(ord('a') + index)}_"
        x = _block(make, x, block, group, make.rounded(group.filters * width), stride if index == 0 else 1)
    return x


def _block(make: Layers, x: Any, name: str, group: Group, filters: int, stride: int) -> Any:
    """An inverted residual with squeeze-and-excitation."""
    y, channels = x, x.shape[-1]
    # Group 1 does not expand, and Keras' files have no layers for it.
    if group.expansion != 1:
        y = make.conv(y, f"{name}expand_conv", channels * group.expansion, 1)
        y = make.norm(y, f"{name}expand_bn", KERAS_EPSILON)
        y = layers.Activation(make.activation, name=f"{name}expand_activation")(y)
    y = make.norm(make.depthwise(y, f"{name}dwconv", group.size, stride), f"{name}bn", KERAS_EPSILON)
    y = layers.Activation(make.activation, name=f"{name}activation")(y)
    # A fourth of the block's input channels, not of the expanded ones.
    y = _excited(make, y, name, max(1, channels // SQUEEZE))
    y = make.norm(make.conv(y, f"{name}project_conv", filters, 1), f"{name}project_bn", KERAS_EPSILON)
    # All other blocks have no shortcut: it is never projected.
    if stride == 1 and channels == filters:
        return layers.Add(name=f"{name}add")([y, x])
    return y


def _excited(make: Layers, x: Any, name: str, squeezed: int) -> Any:
    """Squeeze-and-excitation: each channel times a factor in (0, 1) that the means of all channels give."""
    channels = x.shape[-1]
    # [B, H, W, C] -> [B, C] -> [B, 1, 1, C], which the 1x1 convolutions below take.
    factor = layers.GlobalAveragePooling2D(name=f"{name}se_squeeze")(x)
    factor = layers.Reshape((1, 1, channels), name=f"{name}se_reshape")(factor)
    factor = make.conv(factor, f"{name}se_reduce", squeezed, 1, bias=True, activation=make.activation)
    factor = make.conv(factor, f"{name}se_expand", channels, 1, bias=True, activation="sigmoid")
    return layers.Multiply(name=f"{name}se_excite")([x, factor])


def _block_of(layer: str) -> int | None:
    """Number of a layer's group, as TLT's: the stem is 0, 6 and 7 are the head's, top_conv is 8."""
    if layer.startswith("stem_"):
        return 0
    if layer.startswith("top_"):
        return len(GROUPS) + 1
    group = re.match(r"block(\d)[a-z]_", layer)
    return int(group[1]) if group else None


FAMILY = Family(
    tuple(COEFFICIENTS),
    range(len(GROUPS) + 2),
    _trunk,
    _head_stage,
    _block_of,
    pixels=TORCH_PIXELS,
)
