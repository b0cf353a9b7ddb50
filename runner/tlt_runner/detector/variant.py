"""Details in which published networks of the same backbone differ, and which decide what their weights mean.

A ResNet-50 of Keras strides in the first convolution of a block, one of torchvision in the second; one
pads its stem on both sides, another at the end only; each was trained on pixels scaled in its own way.
Weights of one give other features in the graph of another. So the weights decide the variant
(:mod:`tlt_runner.training.pretrained.layer_names`), the graph is built for it, and the model file records it
(:mod:`tlt_runner.detector.config`).
"""

from __future__ import annotations

from typing import Literal

from tlt_api.base import StatusModel

Channels = tuple[float, float, float]
"""A number each for red, green and blue."""
LUMA: Channels = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the luma of a colour (ITU-R BT.601), which is the Y of a JPEG."""


class Pixels(StatusModel):
    """Normalisation of the pixels, inside the graph: (pixel - mean) / scale.

    Pixels are red, green and blue, 0 to 255. The first kernel always takes red first: one that was trained on
    blue first has its channels reversed when it is loaded, which is exact and costs nothing at inference.
    """

    mean: Channels
    """Subtracted from red, green and blue."""
    scale: Channels = (1.0, 1.0, 1.0)
    """Divisors of red, green and blue, after the subtraction."""

    @property
    def grey(self) -> tuple[float, float]:
        """Mean and factor of a single channel: the luma of those of red, green and blue."""
        mean = sum(share * value for share, value in zip(LUMA, self.mean, strict=True))
        factor = sum(share / value for share, value in zip(LUMA, self.scale, strict=True))
        return mean, factor


CAFFE_PIXELS = Pixels(mean=(123.68, 116.779, 103.939))
"""ImageNet's mean subtracted, without scaling."""
TORCH_PIXELS = Pixels(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), scale=(0.229 * 255, 0.224 * 255, 0.225 * 255)
)
"""ImageNet's mean and deviation, of pixels from 0 to 1."""
SYMMETRIC_PIXELS = Pixels(mean=(127.5, 127.5, 127.5), scale=(127.5, 127.5, 127.5))
"""From -1 to 1."""


class Variant(StatusModel):
    """A variant of a backbone. Fields that a family does not use are ignored by it."""

    padding: Literal["same", "symmetric"] = "same"
    """Zeros around an input that is strided over: ``same`` has one fewer at the top left of even sizes
    (TLT, Keras' MobileNets), ``symmetric`` as many on every side (torchvision, KerasHub, Keras' ResNet)."""
    epsilon: float | None = None
    """Added to the variance by every batch normalisation; None for the family's own."""
    stride_in: Literal["conv1", "conv2"] = "conv2"
    """Convolution of a ResNet's bottleneck that strides: the first (v1, as published) or the 3x3 (v1.5)."""
    shortcut: Literal["strided", "average"] = "strided"
    """Shortcut of a ResNet's block with a stride: every stride-th pixel (as published), or the mean."""
    projections: Literal["shape", "stage", "all"] = "shape"
    """Shortcuts of a ResNet with a convolution: where the shape changes, in the first block of each stage
    (TLT), or all (TLT's ``all_projections``)."""
    stem_pool: bool = True
    """Max pooling after a ResNet's first convolution; otherwise stage 1 strides (TLT: ``use_pooling``)."""
    wide_end: bool = False
    """Keep 1280 filters in MobileNetV2's last convolution below width 1 (Keras)."""
    pixels: Pixels | None = None
    """Normalisation of the pixels; None for the family's own."""


DEFAULT = Variant(shortcut="average")
"""Variant where no weights ask for another one; also that of all models of before 2026-12, whose files name
none. Averaging shortcuts, as in ResNet-D (He et al., "Bag of Tricks for Image Classification", 2019), do not
leave out three quarters of a map: from nothing, digits were learnt better so (docs/performance.md)."""
