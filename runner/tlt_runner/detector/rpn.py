"""The region proposal network (Ren et al., "Faster R-CNN", 2015): its layers, and how they give proposals."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from tlt_api.model import ProposalCounts
from tlt_runner.detector import boxes as box_ops
from tlt_runner.detector import nms
from tlt_runner.detector.anchors import anchors
from tlt_runner.detector.backbones.layers import Layers
from tlt_runner.detector.boxes import Tensor
from tlt_runner.detector.config import DetectorConfig

FILTERS = 512
"""Filters of the 3 x 3 convolution, before the width multiplier."""
SMALLEST_SIDE = 1.0
"""Pixels; proposals with a side of at most this are dropped."""


def add_layers(config: DetectorConfig, make: Layers, features: Any) -> tuple[Any, Any]:
    """Add the network's layers to a graph.

    Args:
        config: The detector.
        make: Maker of layers.
        features: Feature map [B, H, W, C].

    Returns:
        Objectness logits [B, N] and deltas [B, N, 4] of all N anchors, in the order of
        :func:`tlt_runner.detector.anchors.anchors`.
    """
    per_cell = config.anchors_per_cell
    # Padded "same": every cell of the feature map gets its outputs, at the border as well.
    x = layers.Conv2D(
        make.filters(FILTERS),
        3,
        padding="same",
        activation="relu",
        kernel_initializer=keras.initializers.HeNormal(seed=make.seed()),
        name="rpn_conv",
    )(features)
    objectness = _output(make, "rpn_objectness", per_cell)(x)
    deltas = _output(make, "rpn_deltas", 4 * per_cell)(x)
    # [B, H, W, A] and [B, H, W, 4 A] flattened row by row: the order in which anchors() lists them.
    return (
        layers.Reshape((config.anchor_count,), name="rpn_objectness_flat")(objectness),
        layers.Reshape((config.anchor_count, 4), name="rpn_deltas_flat")(deltas),
    )


def _output(make: Layers, name: str, filters: int) -> Any:
    # Deviation of fresh weights: Ren et al. (2015), section 3.1.3.
    initializer = keras.initializers.RandomNormal(stddev=0.01, seed=make.seed())
    return layers.Conv2D(filters, 1, kernel_initializer=initializer, name=name)


def propose(
    config: DetectorConfig, objectness: Tensor, deltas: Tensor, counts: ProposalCounts
) -> tuple[Tensor, Tensor]:
    """Turn the network's output into proposals; no gradient flows through them.

    Args:
        config: The detector.
        objectness: [B, N] logits.
        deltas: [B, N, 4].
        counts: How many boxes enter and leave non-maximum suppression, and its threshold where it has one of
            its own.

    Returns:
        Proposals [B, R, 4] (yxyx, pixels, inside the image) by falling objectness, and whether each is one
        [B, R] bool: fewer can be left than R, the smallest of counts.post_nms, counts.pre_nms and N.
    """
    # The best first, so that only their boxes are decoded and suppression gets them by falling score.
    _, indices = ops.top_k(ops.stop_gradient(objectness), min(counts.pre_nms, config.anchor_count))
    # Anchors are a constant of the graph: the image size is fixed.
    references = box_ops.gather_shared(ops.convert_to_tensor(anchors(config)), indices)
    boxes = box_ops.decode(box_ops.gather(ops.stop_gradient(deltas), indices), references, config.rpn_scales)
    boxes = box_ops.clip(boxes, config.height, config.width)
    sides = boxes[..., 2:] - boxes[..., :2]
    # After clipping, as in TLT: a box outside the image has no side left.
    valid = ops.all(sides > SMALLEST_SIDE, axis=-1)
    overlap = config.proposals.nms_overlap if counts.nms_overlap is None else counts.nms_overlap
    best, kept = nms.suppress(boxes, valid, overlap, counts.post_nms)
    return box_ops.gather(boxes, best), kept
