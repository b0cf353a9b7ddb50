"""Interface between a family of backbones and the detector, which knows no architecture.

Each module of this package beside this one, :mod:`~tlt_runner.detector.backbones.layers` and the registry
describes one family. All are plain Keras functional graphs of layers that pruning can walk and every exporter
knows. Layer names are stable: pretrained weights and freezing go by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tlt_runner.detector.backbones.layers import Layers

Channels = tuple[float, float, float]
"""A number each for red, green and blue."""
IMAGENET_MEAN: Channels = (123.68, 116.779, 103.939)
LUMA: Channels = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the luma of a colour (ITU-R BT.601), which is the Y of a JPEG."""


@dataclass(frozen=True)
class Family:
    """Backbones that are built alike.

    Attributes:
        names: Values of ``spec.model.backbone``.
        blocks: Numbers that ``freezeBlocks`` may hold.
        trunk: ``(name, make, pixels)``: pixels [B, H, W, C] to features [B, H/16, W/16, C].
        head_stage: ``(name, make, pooled, stride)``: pooled features [M, P, P, C] to [M, p, p, D] of the
            last stage, which strides by ``stride``, or to vectors [M, D].
        dense_head: Whether the last stage is dense layers, which run on pooled features only.
        block_of: Layer name -> number of its freezable block; None for layers outside all blocks.
        pixel_mean: Subtracted from RGB 0 to 255, inside the graph.
        pixel_scale: Factor on the pixels after the subtraction.
    """

    names: tuple[str, ...]
    blocks: range
    trunk: Callable[[str, Layers, Any], Any]
    head_stage: Callable[[str, Layers, Any, int], Any]
    block_of: Callable[[str], int | None]
    pixel_mean: Channels = IMAGENET_MEAN
    pixel_scale: Channels | None = None
    dense_head: bool = False

    @property
    def grey_pixels(self) -> tuple[float, float]:
        """Mean and factor of a single channel: the luma of those of red, green and blue."""
        factors = self.pixel_scale or (1.0, 1.0, 1.0)
        mean, factor = (
            sum(weight * value for weight, value in zip(LUMA, values, strict=True))
            for values in (self.pixel_mean, factors)
        )
        return mean, factor
