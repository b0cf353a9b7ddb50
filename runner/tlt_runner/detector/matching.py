"""Training targets: matches anchors and proposals with objects and draws the mini-batches.

Runs inside the graph with static shapes: ground truth is padded (class -1), a mini-batch is drawn by the
largest of random numbers, and anchors or proposals outside it have weight 0.

Rows of the ground truth of class :data:`tlt_runner.data.sample.IGNORED` and below are regions to leave out of
account (COCO's crowds, KITTI's DontCare, objects beyond ``maxObjects``): what lies in them is no background.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
from keras import ops

from tlt_runner.data.sample import IGNORED
from tlt_runner.detector import boxes as box_ops
from tlt_runner.detector import kernels, seeds
from tlt_runner.detector.boxes import Tensor
from tlt_runner.detector.config import DetectorConfig

INSIDE = 0.5
"""Share of an anchor's or proposal's area in one ignored region from which it is inside it (intersection over
its own area, as COCO compares a detection with a crowd)."""


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

    An anchor is positive from IoU ``proposals.maxOverlap`` with an object on, negative below
    ``proposals.minOverlap`` with all objects and outside of ignored regions. An object that has no positive
    anchor takes the one that overlaps it most, whatever else that anchor overlaps (:func:`_claims`). Sources:
    Ren et al., "Faster R-CNN" (2015), section 3.1.2; TLT's assignment of anchors.

    Args:
        config: Overlaps, size of the mini-batch, factors on offsets.
        anchors: [N, 4].
        boxes: Objects and ignored regions [B, G, 4].
        classes: [B, G] int32, -1 in padding, below that in ignored regions.
        random: Generator of the seed of the draw.
    """
    spec = config.proposals
    # 1. Overlaps [B, N, G]. Anchors that reach over the border take part, unlike in TLT, which gives them IoU
    # 0: on small images they are most of the anchors.
    overlaps, inside = _overlaps(ops.expand_dims(anchors, 0), boxes, classes)
    # 2. Each anchor's best overlap and object, [B, N]; an object's claim on an anchor goes before.
    best, nearest = _best(overlaps)
    fits = best >= spec.max_overlap
    claims = _claims(overlaps, ops.where(fits, nearest, -1.0), classes >= 0)
    claimed = claims >= 0.0
    positive = ops.logical_or(fits, claimed)
    # Claimed anchors can be below minOverlap: positive wins. Between the two limits an anchor takes no part.
    negative = ops.logical_and(best < spec.min_overlap, ops.logical_not(ops.logical_or(positive, inside)))
    # 3. The mini-batch: thousands of negatives would drown the few positives.
    positive, negative = _draw(positive, negative, spec.mini_batch, spec.mini_batch // 2, random)
    # 4. Offsets to the object, for every anchor: the loss reads those of positives only.
    matched = box_ops.gather(boxes, ops.where(claimed, claims, nearest))
    return AnchorTargets(
        positive=ops.cast(positive, "float32"),
        sampled=ops.cast(ops.logical_or(positive, negative), "float32"),
        deltas=box_ops.encode(matched, anchors, config.rpn_scales),
    )


def _overlaps(references: Tensor, boxes: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Compare anchors or proposals with the ground truth.

    Args:
        references: [B or 1, N, 4].
        boxes: Objects and ignored regions [B, G, 4].
        classes: [B, G].

    Returns:
        IoU [B, N, G] with objects, 0 with all other rows; and whether each reference is :data:`INSIDE` an
        ignored region, [B, N] bool.
    """
    # Columns [B, N, 1] against rows [B, 1, G], each edge by one slice: a kernel launch for each operation is
    # what this costs on a GPU.
    top, left, bottom, right = ops.split(references, 4, axis=-1)
    upper, near, lower, far = ops.split(ops.transpose(boxes, (0, 2, 1)), 4, axis=1)
    height = ops.relu(ops.minimum(bottom, lower) - ops.maximum(top, upper))
    width = ops.relu(ops.minimum(right, far) - ops.maximum(left, near))
    shared = height * width
    area = (bottom - top) * (right - left)
    union = area + (lower - upper) * (far - near) - shared
    # Inverted boxes share nothing with another: their union may be of either sign.
    rows = ops.expand_dims(classes, 1)
    overlaps = ops.where(rows >= 0, shared / ops.maximum(union, 1e-6), 0.0)
    covered = ops.max(ops.where(rows <= IGNORED, shared, 0.0), axis=2)
    return overlaps, covered >= INSIDE * ops.maximum(ops.squeeze(area, 2), 1e-6)


def _best(overlaps: Tensor) -> tuple[Tensor, Tensor]:
    """The best overlap [B, N] of overlaps [B, N, G], and whose it is, as a float; the first of equal ones."""
    best = ops.max(overlaps, axis=2)
    if not kernels.native():
        return best, ops.cast(ops.argmax(overlaps, axis=2), "float32")
    # Imported here, so that the module loads on other backends.
    import tensorflow as tf

    # One kernel, where Keras' argmax is six.
    return best, tf.cast(tf.argmax(overlaps, axis=2, output_type=tf.int32), tf.float32)


def _claims(overlaps: Tensor, matches: Tensor, real: Tensor) -> Tensor:
    """Assign an anchor to each object that has none: [B, N], the object's index, or -1 for no claim.

    Rounds, until each object has an anchor or overlaps none that is free: an object without one claims the
    free anchor that overlaps it most, or several that do so equally. Of several objects that claim the same
    anchor the last one gets it. The first round is TLT's rule; the others serve objects whose only anchor was
    claimed by another one, which TLT leaves without. Most images need one round.

    Args:
        overlaps: IoU [B, N, G] of anchors and objects, 0 with padding.
        matches: [B, N], the object that each anchor overlaps enough by itself, or -1.
        real: [B, G] bool, False for rows that are no object.
    """
    # Indices are floats throughout: TensorFlow's int32 arithmetic runs on the host, not on the GPU.
    numbers = ops.arange(overlaps.shape[2], dtype="float32")

    def unserved(objects: Tensor) -> Tensor:
        """[B, 1, G], objects that no anchor [B, N] is assigned to."""
        served = ops.any(ops.equal(ops.expand_dims(objects, 2), numbers), axis=1, keepdims=True)
        return ops.logical_not(served)

    def claim(claims: Tensor, waiting: Tensor) -> tuple[Tensor, Tensor]:
        free = ops.where(ops.expand_dims(claims >= 0.0, 2), 0.0, overlaps)
        highest = ops.max(free, axis=1, keepdims=True)
        # An object that touches no free anchor waits no longer. No IoU reaches 2: the others claim nothing.
        waiting = ops.logical_and(waiting, highest > 0.0)
        wanted = free >= ops.where(waiting, highest, 2.0)
        new_claims = ops.maximum(claims, ops.max(ops.where(wanted, numbers, -1.0), axis=2))
        assigned = ops.where(new_claims >= 0.0, new_claims, matches)
        # An object with an anchor of its own may have lost it to a claim: it waits, too. A round without a
        # claim is the last one: what still waits touches no free anchor.
        progress = ops.any(ops.not_equal(new_claims, claims))
        unassigned = ops.logical_and(ops.expand_dims(real, 1), unserved(assigned))
        return new_claims, ops.logical_and(unassigned, progress)

    claims, _ = ops.while_loop(
        lambda claims, waiting: ops.any(waiting),
        claim,
        (ops.full_like(matches, -1.0), ops.logical_and(ops.expand_dims(real, 1), unserved(matches))),
        # An object a round at least; the limit ends rounds for objects that no free anchor is left for.
        maximum_iterations=overlaps.shape[2],
    )
    return claims


def roi_targets(
    config: DetectorConfig,
    proposals: Tensor,
    valid: Tensor,
    boxes: Tensor,
    classes: Tensor,
    random: keras.random.SeedGenerator,
) -> RoiTargets:
    """Match proposals to objects and draw the mini-batch, at most ``roi.positiveFraction`` of it positive.

    Proposals inside ignored regions that match no object take no part. Source: Girshick, "Fast R-CNN"
    (2015), section 2.3.

    Args:
        config: Classes, overlaps, size of the mini-batch, whether objects are added to the proposals.
        proposals: [B, R, 4].
        valid: [B, R] bool, whether each is a proposal.
        boxes: Objects and ignored regions [B, G, 4].
        classes: [B, G] int32, -1 in padding, below that in ignored regions.
        random: Generator of the seed of the draw.
    """
    spec = config.roi
    # Early in training few proposals match objects: the objects' own boxes give the head positives.
    if spec.ground_truth_as_roi:
        proposals = ops.concatenate([proposals, boxes], axis=1)
        valid = ops.concatenate([valid, classes >= 0], axis=1)
    # [B, R (+ G), G].
    overlaps, inside = _overlaps(proposals, boxes, classes)
    best, match = _best(overlaps)
    positive = ops.logical_and(valid, best >= spec.max_overlap)
    # Proposals below minOverlap take no part: Fast R-CNN trains on the harder negatives above it.
    # Nor do those inside an ignored region, unless an object there is theirs.
    background = ops.logical_and(best < spec.max_overlap, best >= spec.min_overlap)
    negative = ops.logical_and(ops.logical_and(valid, background), ops.logical_not(inside))
    size = min(spec.mini_batch, proposals.shape[1])
    # A small mini-batch would round its positives down to none.
    most_positive = max(1, int(spec.mini_batch * spec.positive_fraction))
    # Where candidates are too few, none is repeated (TLT repeats negatives): rows that are left have weight
    # 0.
    positive, negative = _draw(positive, negative, size, most_positive, random)
    # The mini-batch is gathered, so that the head runs on S boxes and not on all proposals. One gather of
    # everything that belongs to a proposal, one of everything that belongs to its object.
    drawn = ops.cast(ops.stack([positive, negative], axis=2), "float32")
    columns = ops.concatenate([proposals, drawn, ops.expand_dims(match, 2)], axis=2)
    proposals, positive, negative, match = ops.split(
        box_ops.gather(columns, _first(drawn, size)), [4, 5, 6], axis=2
    )
    objects = ops.concatenate([boxes, ops.expand_dims(ops.cast(classes, "float32"), 2)], axis=2)
    matched, classes = ops.split(box_ops.gather(objects, ops.squeeze(match, 2)), [4], axis=2)
    # [B, S]
    classes = ops.squeeze(ops.where(positive > 0.0, classes, float(config.classes)), 2)
    return RoiTargets(
        boxes=proposals,
        classes=ops.cast(classes, "int32"),
        positive=ops.squeeze(positive, 2),
        sampled=ops.squeeze(positive + negative, 2),
        deltas=box_ops.encode(matched, proposals, config.head_scales),
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
    # Counted in floats: TensorFlow's int32 arithmetic runs on the host, for which the device would wait.
    positive_count = ops.sum(ops.cast(positive, "float32"), axis=1, keepdims=True)
    keyed = ops.where(negative, noise, -1.0)
    # Where positives fill the mini-batch, rank 0 only keeps the index in range, and there is no room.
    last_rank = ops.maximum(size - positive_count - 1.0, 0.0)
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


def _first(drawn: Tensor, size: int) -> Tensor:
    """Indices [B, size] of proposals: positives first, then negatives, then the rest.

    Args:
        drawn: [B, N, 2], 1 for a positive and for a negative.
        size: Number of indices.
    """
    # 2, 1 or 0: top_k sorts them, and size is static.
    return ops.top_k(2.0 * drawn[..., 0] + drawn[..., 1], size)[1]
