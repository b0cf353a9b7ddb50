"""Non-maximum suppression of ordinary tensor ops: Cluster-NMS, unrolled, block by block.

Greedy NMS keeps a box unless a kept box of higher score overlaps it. Cluster-NMS (Zheng et al. 2020) starts
with all boxes kept and applies that sentence to all of them at once, again and again. Once nothing changes
the result is greedy NMS; a box's verdict is final after as many rounds as its longest chain of overlaps.
Rounds give too many boxes and too few in turn: never fewer, never more than greedy NMS keeps.

Boxes go in blocks by falling score: what a block keeps suppresses all that follow, at once. So only half of
the pairs are compared, rounds run over the small squares on the diagonal, and chains within a block are
shorter. Until the rounds of a block have settled, later boxes are suppressed only by boxes that certainly
stay: nothing that greedy NMS keeps is ever lost, and what is left too many are duplicates at the end of
chains longer than the number of rounds.

This is what makes the same graph train, evaluate and export: no NMS op, no loop, no plugin.
"""

from __future__ import annotations

from keras import ops

from tlt_runner.detector.boxes import Tensor

ROUNDS = 16
"""Unrolled rounds of a block; even, see above. Random sets of 1,000 and 2,000 boxes, from sparse to all in a
heap and in clusters like proposals, reach the fixed point after 1 to 8 without blocks."""
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
    """Which boxes non-maximum suppression keeps.

    Args:
        boxes: [B, N, 4], by falling score.
        valid: [B, N] bool; other boxes are neither kept nor suppress.
        threshold: IoU above which the lower-scored box is dropped.
        classes: [B, N]; boxes of different classes do not suppress each other. None means one class.
        rounds: Rounds of Cluster-NMS in a block.
        block: Boxes of a block.

    Returns:
        [B, N] bool.
    """
    index = ops.arange(min(block, boxes.shape[1]), dtype="int32")
    kept = []
    possible = certain = ops.cast(valid, "float32")[:, None, :]
    while boxes.shape[1]:
        size = min(block, boxes.shape[1])
        own, own_classes = boxes[:, :size], None if classes is None else classes[:, :size]
        inner = _suppresses(own, own, own_classes, own_classes, threshold)
        inner = inner * ops.cast(index[:size, None] < index[None, :size], "float32")
        most, least = _rounds(possible[..., :size], certain[..., :size], inner, rounds)
        kept.append(most)
        boxes, classes = boxes[:, size:], None if classes is None else classes[:, size:]
        if boxes.shape[1]:
            outer = _suppresses(own, boxes, own_classes, classes, threshold)
            possible = possible[..., size:] * _free(least, outer)
            certain = certain[..., size:] * _free(most, outer)
    return ops.concatenate(kept, axis=2)[:, 0, :] > 0.5


def _rounds(possible: Tensor, certain: Tensor, inner: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """What a block keeps at most and at least, both [B, 1, N] of 0 and 1, of what came to it so."""
    most = least = possible
    for _ in range(rounds // 2):
        least = certain * _free(most, inner)
        most = possible * _free(least, inner)
    return most, least


def _free(kept: Tensor, suppresses: Tensor) -> Tensor:
    """1 for boxes [B, 1, M] that none of the kept [B, 1, N] suppresses."""
    return ops.cast(ops.matmul(kept, suppresses) < 0.5, "float32")


def _suppresses(
    left: Tensor, right: Tensor, left_classes: Tensor | None, right_classes: Tensor | None, threshold: float
) -> Tensor:
    """1 where two boxes of a class overlap too much, of pairs [B, N, M]; no division: every pass counts."""
    a, b = left[:, :, None, :], right[:, None, :, :]
    height = ops.minimum(a[..., 2], b[..., 2]) - ops.maximum(a[..., 0], b[..., 0])
    width = ops.minimum(a[..., 3], b[..., 3]) - ops.maximum(a[..., 1], b[..., 1])
    # i / (s - i) > t is i > (t / (1 + t)) s; a negative height makes the product no larger than zero
    share = threshold / (1.0 + threshold)
    limit = share * _area(left)[:, :, None] + share * _area(right)[:, None, :]
    overlaps = ops.maximum(height, 0.0) * width > limit
    if left_classes is not None and right_classes is not None:
        overlaps = ops.logical_and(overlaps, ops.equal(left_classes[:, :, None], right_classes[:, None, :]))
    return ops.cast(overlaps, "float32")


def _area(boxes: Tensor) -> Tensor:
    sides = ops.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def keep_best(scores: Tensor, keep: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` best of the kept boxes.

    Args:
        scores: [B, N], none negative.
        keep: [B, N] bool.
        count: How many are wanted.

    Returns:
        Indices [B, min(count, N)] by falling score, and which of them are kept boxes at all [...] bool.
    """
    ranked, indices = ops.top_k(ops.where(keep, scores, -1.0), min(count, scores.shape[1]))
    return indices, ranked >= 0.0
