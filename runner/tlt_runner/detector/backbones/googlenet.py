"""GoogLeNet with batch normalisation: stem and inceptions 3a to 4e as the trunk, 5a and 5b as the head.

Source: Szegedy et al., "Going Deeper with Convolutions" (2014), without the auxiliary classifiers and the
local response normalisation, which batch normalisation replaces. keras.applications does not have it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import layers

from tlt_runner.detector.backbones.family import Family
from tlt_runner.detector.backbones.layers import Layers


class Inception(NamedTuple):
    """Filters of the four branches: 1x1, reduction and 3x3, reduction and 5x5, projection after pooling."""

    one: int
    three_reduce: int
    three: int
    five_reduce: int
    five: int
    pool: int


TRUNK = {
    "3a": Inception(64, 96, 128, 16, 32, 32),
    "3b": Inception(128, 128, 192, 32, 96, 64),
    "4a": Inception(192, 96, 208, 16, 48, 64),
    "4b": Inception(160, 112, 224, 24, 64, 64),
    "4c": Inception(128, 128, 256, 24, 64, 64),
    "4d": Inception(112, 144, 288, 32, 64, 64),
    "4e": Inception(256, 160, 320, 32, 128, 128),
}
HEAD = {"5a": Inception(256, 160, 320, 32, 128, 128), "5b": Inception(384, 192, 384, 48, 128, 128)}


def _trunk(name: str, make: Layers, x: Any) -> Any:
    """Build the stem and inceptions 3a to 4e: pixels to features of stride 16."""
    x = _conv(make, x, "stem_conv1", 64, 7, 2)
    x = layers.MaxPooling2D(3, 2, "same", name="stem_pool1")(x)
    x = _conv(make, x, "stem_conv2_reduce", 64, 1)
    x = _conv(make, x, "stem_conv2", 192, 3)
    x = layers.MaxPooling2D(3, 2, "same", name="stem_pool2")(x)
    for label, widths in TRUNK.items():
        # Stride 16 from here on; the poolings inside an inception do not stride.
        if label == "4a":
            x = layers.MaxPooling2D(3, 2, "same", name="inception_4a_stride")(x)
        x = _inception(make, x, f"inception_{label}", widths)
    return x


def _head_stage(name: str, make: Layers, pooled: Any, stride: int) -> Any:
    x = pooled
    # The pooling before 5a, which is the stage's only stride, runs on pooled features.
    if stride != 1:
        x = layers.MaxPooling2D(3, stride, "same", name="inception_5a_stride")(x)
    for label, widths in HEAD.items():
        x = _inception(make, x, f"inception_{label}", widths)
    return x


def _inception(make: Layers, x: Any, name: str, widths: Inception) -> Any:
    """Run four branches over the same features and concatenate their channels."""
    # The 1x1 reductions before 3x3 and 5x5 keep these affordable.
    one = _conv(make, x, f"{name}_1x1", widths.one, 1)
    three = _conv(make, x, f"{name}_3x3_reduce", widths.three_reduce, 1)
    three = _conv(make, three, f"{name}_3x3", widths.three, 3)
    five = _conv(make, x, f"{name}_5x5_reduce", widths.five_reduce, 1)
    five = _conv(make, five, f"{name}_5x5", widths.five, 5)
    pool = layers.MaxPooling2D(3, 1, "same", name=f"{name}_pool")(x)
    pool = _conv(make, pool, f"{name}_pool_proj", widths.pool, 1)
    return layers.Concatenate(name=f"{name}_concat")([one, three, five, pool])


def _conv(make: Layers, x: Any, name: str, filters: int, size: int, stride: int = 1) -> Any:
    x = make.norm(make.conv(x, name, make.filters(filters), size, stride), f"{name}_bn")
    return layers.ReLU(name=f"{name}_relu")(x)


def _block_of(layer: str) -> int | None:
    """Number of a layer's block, as TLT's: the stem is 0, 3a to 4e are 1 to 7, the head's have none."""
    if layer.startswith("stem_"):
        return 0
    for number, label in enumerate(TRUNK, 1):
        if layer.startswith(f"inception_{label}_"):
            return number
    return None


FAMILY = Family(("googlenet",), range(len(TRUNK) + 1), _trunk, _head_stage, _block_of)
