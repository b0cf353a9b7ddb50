"""Darknet-19 and -53: groups 1 to 5 (stem and stages 1 to 4) as the trunk, the last group as the head.

Redmon and Farhadi, YOLO9000 (2016) and YOLOv3 (2018). keras.applications has neither. Strides are poolings
in Darknet-19 and 3x3 convolutions in Darknet-53.
"""

from __future__ import annotations

import re
from typing import Any

from keras import layers

from tlt_runner.detector.backbones.family import Family
from tlt_runner.detector.backbones.layers import Layers

CONVOLUTIONS = (1, 1, 3, 3, 5, 5)
"""Convolutions of each group of Darknet-19: 3x3 and 1x1 in turn; filters double by group, from 32."""
RESIDUALS = (1, 2, 8, 8, 4)
"""Residual blocks of each stage of Darknet-53."""
LAST = 5
"""Number of the group that is the head."""


def _trunk(name: str, make: Layers, x: Any) -> Any:
    if name == "darknet53":
        x = _conv(make, x, "group0_conv1", make.filters(32), 3)
    # Darknet-53's group 0 is its stem, which does not stride.
    for group in range(1 if name == "darknet53" else 0, LAST):
        x = _group(name, make, x, group, stride=2)
    return x


def _head_stage(name: str, make: Layers, pooled: Any, stride: int) -> Any:
    return _group(name, make, pooled, LAST, stride)


def _group(name: str, make: Layers, x: Any, group: int, stride: int) -> Any:
    """A group, whose first layer strides; Darknet-19's first group has no stride."""
    filters = make.filters(32 * 2**group)
    if name == "darknet53":
        x = _conv(make, x, f"group{group}_conv1", filters, 3, stride)
        for number in range(1, RESIDUALS[group - 1] + 1):
            x = _residual(make, x, f"group{group}_block{number}", filters)
        return x
    # Without a stride the head keeps the size of the pooled features.
    if group and stride != 1:
        x = layers.MaxPooling2D(stride, stride, "same", name=f"group{group}_pool")(x)
    # 3x3 layers alternate with 1x1 layers that halve the channels between them.
    for number in range(1, CONVOLUTIONS[group] + 1):
        wide = number % 2 == 1
        x = _conv(make, x, f"group{group}_conv{number}", filters if wide else filters // 2, 3 if wide else 1)
    return x


def _residual(make: Layers, x: Any, name: str, filters: int) -> Any:
    y = _conv(make, x, f"{name}_conv1", filters // 2, 1)
    y = _conv(make, y, f"{name}_conv2", filters, 3)
    return layers.Add(name=f"{name}_add")([x, y])


def _conv(make: Layers, x: Any, name: str, filters: int, size: int, stride: int = 1) -> Any:
    x = make.norm(make.conv(x, name, filters, size, stride), f"{name}_bn")
    return layers.LeakyReLU(negative_slope=0.1, name=f"{name}_relu")(x)


def _block_of(layer: str) -> int | None:
    """Number of a layer's group; Darknet-53's stem is 0, the head is 5."""
    group = re.match(r"group(\d)_", layer)
    return int(group[1]) if group else None


FAMILY = Family(("darknet19", "darknet53"), range(LAST + 1), _trunk, _head_stage, _block_of)
