"""Non-maximum suppression of ordinary tensor ops: Cluster-NMS, unrolled, block by block.

Greedy NMS keeps a box unless a kept box of higher score overlaps it. Cluster-NMS (Zheng et al., "Enhancing
Geometric Factors in Model Learning and Inference", 2020) starts with all boxes kept and applies that rule to
all of them at once, round after round. Once nothing changes the result is greedy NMS; the decision on a box
is final after as many rounds as its longest chain of overlaps. The rounds give an upper and a lower bound in
turn: a superset, then a subset, of what greedy NMS keeps.

Boxes are processed in blocks by falling score: the boxes that a block keeps suppress all later ones at once.
So only half of the pairs are compared, rounds run over the small squares on the diagonal, and chains within a
block are shorter. Until the rounds of a block have converged, later boxes are suppressed only by boxes that
certainly stay: no box that greedy NMS keeps is ever lost, and the surplus are duplicates at the end of chains
longer than the number of rounds.

The same graph can therefore train, evaluate and be exported: no NMS op, no loop, no plugin, which TensorRT
would need for sizes that depend on the data.
"""

from __future__ import annotations

from keras import ops

from tlt_runner.detector.boxes import Tensor

ROUNDS = 16
"""Unrolled rounds of a block; even, so that they end with an upper bound. Random sets of 1,000 and 2,000
boxes, from sparse to all in a heap and in clusters like proposals, converge after 1 to 8 rounds without
blocks."""
BLOCK = 512
"""Boxes of a block: its square of overlaps stays in a core's cache."""


def keep_mask(
    boxes: Tensor,
    valid: Tensor,
    threshold: float,
    classes: Tensor | None = None,
    rounds: int = ROUNDS,
    block: int = BLOCK,
) -> Tensor:
    """Mark the boxes that non-maximum suppression keeps.

    Args:
        boxes: [B, N, 4] yxyx, by falling score.
        valid: [B, N] bool; invalid boxes are not kept and suppress nothing.
        threshold: IoU above which the lower-scored box is dropped.
        classes: [B, N]; boxes of different classes do not suppress each other. None means one class.
        rounds: Rounds of Cluster-NMS in a block.
        block: Boxes of a block.

    Returns:
        [B, N] bool: at least the boxes that greedy suppression keeps.
    """
    index = ops.arange(min(block, boxes.shape[1]), dtype="int32")
    kept = []
    # Both [B, 1, N] of 0 and 1: boxes that may stay after earlier blocks, and those that certainly do.
    possible = certain = ops.cast(valid, "float32")[:, None, :]
    while boxes.shape[1]:
        size = min(block, boxes.shape[1])
        current, current_classes = boxes[:, :size], None if classes is None else classes[:, :size]
        inner = _suppresses(current, current, current_classes, current_classes, threshold)
        # Only boxes of higher score suppress: the triangle above the diagonal.
        inner = inner * ops.cast(index[:size, None] < index[None, :size], "float32")
        upper, lower = _rounds(possible[..., :size], certain[..., :size], inner, rounds)
        kept.append(upper)
        boxes, classes = boxes[:, size:], None if classes is None else classes[:, size:]
        if boxes.shape[1]:
            outer = _suppresses(current, boxes, current_classes, classes, threshold)
            possible = possible[..., size:] * _free(lower, outer)
            certain = certain[..., size:] * _free(upper, outer)
    return ops.concatenate(kept, axis=2)[:, 0, :] > 0.5


def _suppresses(
    left: Tensor, right: Tensor, left_classes: Tensor | None, right_classes: Tensor | None, threshold: float
) -> Tensor:
    """Matrix [B, N, M] of pairs: 1 where two boxes of a class overlap too much, else 0.

    Without the division of :func:`tlt_runner.detector.boxes.iou`: over all pairs, every pass over memory
    counts.
    """
    a, b = left[:, :, None, :], right[:, None, :, :]
    height = ops.minimum(a[..., 2], b[..., 2]) - ops.maximum(a[..., 0], b[..., 0])
    width = ops.minimum(a[..., 3], b[..., 3]) - ops.maximum(a[..., 1], b[..., 1])
    # With intersection i and sum of areas s, i / (s - i) > t is the same as i > t / (1 + t) * s. Only one
    # side needs the maximum with 0: a negative width makes the product no larger than zero.
    factor = threshold / (1.0 + threshold)
    limit = factor * _area(left)[:, :, None] + factor * _area(right)[:, None, :]
    overlaps = ops.maximum(height, 0.0) * width > limit
    if left_classes is not None and right_classes is not None:
        overlaps = ops.logical_and(overlaps, ops.equal(left_classes[:, :, None], right_classes[:, None, :]))
    return ops.cast(overlaps, "float32")


def _area(boxes: Tensor) -> Tensor:
    sides = ops.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def _rounds(possible: Tensor, certain: Tensor, inner: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Upper and lower bound of the boxes that a block keeps, both [B, 1, N] of 0 and 1.

    Args:
        possible: [B, 1, N], boxes of the block that may stay after earlier blocks.
        certain: [B, 1, N], boxes of the block that no earlier block can suppress.
        inner: [B, N, N], pairs in which the first box suppresses the second.
        rounds: Even number of rounds.
    """
    upper = lower = possible
    for _ in range(rounds // 2):
        # A superset of the kept boxes suppresses too many, a subset too few: the bounds alternate.
        lower = certain * _free(upper, inner)
        upper = possible * _free(lower, inner)
    return upper, lower


def _free(kept: Tensor, suppresses: Tensor) -> Tensor:
    """Mask [B, 1, M]: 1 for boxes that none of the kept ones [B, 1, N] suppresses, else 0."""
    # A matrix product counts the suppressors: exact in float32, and float16 holds up to 2,048 of them.
    return ops.cast(ops.matmul(kept, suppresses) < 0.5, "float32")


def keep_best(scores: Tensor, keep: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Select the ``count`` best of the kept boxes.

    Args:
        scores: [B, N], none negative.
        keep: [B, N] bool.
        count: Number of boxes to select.

    Returns:
        Indices [B, min(count, N)] by falling score, and whether each is a kept box [B, min(count, N)] bool:
        where too few boxes are kept, the rest of the indices means nothing.
    """
    # Scores are not negative, so -1 ranks every box that is not kept last.
    ranked, indices = ops.top_k(ops.where(keep, scores, -1.0), min(count, scores.shape[1]))
    return indices, ranked >= 0.0
