"""Training targets: matches anchors and proposals with objects and draws the mini-batches.

Runs inside the graph with static shapes: ground truth is padded (class -1), a mini-batch is drawn by the
largest of random numbers, and anchors or proposals outside it have weight 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
from keras import ops

from tlt_runner.detector import boxes as box_ops
from tlt_runner.detector import seeds
from tlt_runner.detector.boxes import Tensor
from tlt_runner.detector.config import DetectorConfig


@dataclass(frozen=True)
class AnchorTargets:
    """Targets of the region proposal network.

    Attributes:
        positive: [B, N], 1 where an anchor is matched with an object and in the mini-batch.
        sampled: [B, N], 1 where an anchor is in the mini-batch, positive or negative.
        deltas: [B, N, 4] to the anchor's object, scaled; meaningful where positive.
    """

    positive: Tensor
    sampled: Tensor
    deltas: Tensor


@dataclass(frozen=True)
class RoiTargets:
    """The proposals on which the head is trained, and their targets.

    Attributes:
        boxes: [B, S, 4], S is the mini-batch (or all candidates, where there are fewer).
        classes: [B, S] int32; background is the number of classes.
        positive: [B, S], 1 where the box is matched with an object.
        sampled: [B, S], 0 where an image had too few candidates.
        deltas: [B, S, 4] to the box's object, scaled; meaningful where positive.
    """

    boxes: Tensor
    classes: Tensor
    positive: Tensor
    sampled: Tensor
    deltas: Tensor


def anchor_targets(
    config: DetectorConfig,
    anchors: Tensor,
    boxes: Tensor,
    classes: Tensor,
    random: keras.random.SeedGenerator,
) -> AnchorTargets:
    """Match anchors to objects and draw the mini-batch, at most half of it positive.

    An anchor is positive from IoU ``proposals.maxOverlap`` on, or if no other anchor overlaps an object more,
    so that each object has one; negative below ``proposals.minOverlap`` with all objects. Source: Ren et al.,
    "Faster R-CNN" (2015), section 3.1.2.

    Args:
        config: Overlaps, size of the mini-batch, factors on offsets.
        anchors: [N, 4].
        boxes: Objects [B, G, 4].
        classes: [B, G] int32, -1 in padding.
        random: Generator of the seed of the draw.
    """
    spec, real = config.proposals, classes >= 0
    # 1. Overlaps [B, N, G], 0 with padding. Anchors that reach over the border take part, unlike in TLT,
    # which gives them IoU 0: on small images they are most of the anchors.
    overlaps = box_ops.iou(anchors[None], boxes) * ops.cast(real, "float32")[:, None, :]
    # Each anchor's best object [B, N], and each object's best anchor [B, 1, G].
    best = ops.max(overlaps, axis=2)
    best_of_object = ops.max(overlaps, axis=1, keepdims=True)
    # 2. Positive and negative. An object may have several best anchors: all of them are positive. An overlap
    # of 0 is no match: padding, and objects that no anchor touches, force nothing.
    forced = ops.logical_and(overlaps >= best_of_object, best_of_object > 0.0)
    positive = ops.logical_or(best >= spec.max_overlap, ops.any(forced, axis=2))
    # Forced anchors can be below minOverlap: positive wins. Between the two limits an anchor takes no part.
    negative = ops.logical_and(best < spec.min_overlap, ops.logical_not(positive))
    # 3. The mini-batch: thousands of negatives would drown the few positives.
    positive, negative = _draw(positive, negative, spec.mini_batch, spec.mini_batch // 2, random)
    # 4. Offsets to the best object, for every anchor: the loss reads those of positives only.
    matched = box_ops.gather(boxes, ops.argmax(overlaps, axis=2))
    return AnchorTargets(
        positive=ops.cast(positive, "float32"),
        sampled=ops.cast(ops.logical_or(positive, negative), "float32"),
        deltas=box_ops.encode(matched, anchors[None], config.rpn_scales),
    )


def roi_targets(
    config: DetectorConfig,
    proposals: Tensor,
    valid: Tensor,
    boxes: Tensor,
    classes: Tensor,
    random: keras.random.SeedGenerator,
) -> RoiTargets:
    """Match proposals to objects and draw the mini-batch, at most ``roi.positiveFraction`` of it positive.

    Source: Girshick, "Fast R-CNN" (2015), section 2.3.

    Args:
        config: Classes, overlaps, size of the mini-batch, whether objects are added to the proposals.
        proposals: [B, R, 4].
        valid: [B, R] bool, whether each is a proposal.
        boxes: Objects [B, G, 4].
        classes: [B, G] int32, -1 in padding.
        random: Generator of the seed of the draw.
    """
    spec, real = config.roi, classes >= 0
    # Early in training few proposals match objects: the objects' own boxes give the head positives.
    if spec.ground_truth_as_roi:
        proposals = ops.concatenate([proposals, boxes], axis=1)
        valid = ops.concatenate([valid, real], axis=1)
    # [B, R (+ G), G], 0 with padding.
    overlaps = box_ops.iou(proposals, boxes) * ops.cast(real, "float32")[:, None, :]
    best = ops.max(overlaps, axis=2)
    positive = ops.logical_and(valid, best >= spec.max_overlap)
    # Proposals below minOverlap take no part: Fast R-CNN trains on the harder negatives above it.
    negative = ops.logical_and(valid, ops.logical_and(best < spec.max_overlap, best >= spec.min_overlap))
    size = min(spec.mini_batch, proposals.shape[1])
    # A small mini-batch would round its positives down to none.
    most_positive = max(1, int(spec.mini_batch * spec.positive_fraction))
    # Where candidates are too few, none is repeated (TLT repeats negatives): rows that are left have weight
    # 0.
    positive, negative = _draw(positive, negative, size, most_positive, random)
    # The mini-batch is gathered, so that the head runs on S boxes and not on all proposals.
    chosen = _first(positive, negative, size)
    proposals = box_ops.gather(proposals, chosen)
    positive, negative = box_ops.gather(positive, chosen), box_ops.gather(negative, chosen)
    # [B, S], the index of each box's object.
    match = box_ops.gather(ops.cast(ops.argmax(overlaps, axis=2), "int32"), chosen)
    return RoiTargets(
        boxes=proposals,
        classes=ops.where(positive, ops.cast(box_ops.gather(classes, match), "int32"), config.classes),
        positive=ops.cast(positive, "float32"),
        sampled=ops.cast(ops.logical_or(positive, negative), "float32"),
        deltas=box_ops.encode(box_ops.gather(boxes, match), proposals, config.head_scales),
    )


def _draw(
    positive: Tensor, negative: Tensor, size: int, most_positive: int, random: keras.random.SeedGenerator
) -> tuple[Tensor, Tensor]:
    """Draw at most ``most_positive`` positives, then negatives up to ``size`` in all; both [B, N] bool."""
    # One number for each candidate; the largest win. A shuffle would need sizes that depend on the data.
    noise = seeds.uniform(positive, random)
    size = min(size, positive.shape[1])
    positive = _largest(positive, noise, min(most_positive, size))
    # Negatives fill up what positives leave, a number that differs between images: so the threshold is
    # looked up at that rank, while every shape stays static.
    positive_count = ops.sum(ops.cast(positive, "int32"), axis=1, keepdims=True)
    keyed = ops.where(negative, noise, -1.0)
    # Where positives fill the mini-batch, rank 0 only keeps the index in range, and there is no room.
    last_rank = ops.maximum(size - positive_count - 1, 0)
    threshold = box_ops.gather(ops.top_k(keyed, size)[0], last_rank)
    room = ops.logical_and(negative, positive_count < size)
    return positive, ops.logical_and(room, keyed >= threshold)


def _largest(mask: Tensor, noise: Tensor, count: int) -> Tensor:
    """The part of ``mask`` [B, N] with the ``count`` largest random numbers."""
    # Random numbers are not negative: -1 ranks everything outside the mask last.
    keyed = ops.where(mask, noise, -1.0)
    threshold = ops.top_k(keyed, count)[0][:, -1:]
    # With fewer than count in the mask the threshold is -1, which all the others reach, too.
    return ops.logical_and(mask, keyed >= threshold)


def _first(positive: Tensor, negative: Tensor, size: int) -> Tensor:
    """Indices [B, size]: positives first, then negatives, then the rest."""
    # 2, 1 or 0: top_k sorts them, and size is static.
    order = 2.0 * ops.cast(positive, "float32") + ops.cast(negative, "float32")
    return ops.top_k(order, size)[1]
