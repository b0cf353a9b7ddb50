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
from tlt_runner.detector.variant import CAFFE_PIXELS, Pixels


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
        pixels: Normalisation of the pixels, where the variant has none of its own.
        former_block_of: ``block_of`` of models of before 2026-12, where the numbers were others.
    """

    names: tuple[str, ...]
    blocks: range
    trunk: Callable[[str, Layers, Any], Any]
    head_stage: Callable[[str, Layers, Any, int], Any]
    block_of: Callable[[str], int | None]
    pixels: Pixels = CAFFE_PIXELS
    dense_head: bool = False
    former_block_of: Callable[[str], int | None] | None = None
