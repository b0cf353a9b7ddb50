"""Non-maximum suppression of ordinary tensor ops: Cluster-NMS, unrolled.

Greedy NMS keeps a box unless a kept box of higher score overlaps it. Cluster-NMS (Zheng et al. 2020) starts
with all boxes kept and applies that sentence to all of them at once, again and again. Once nothing changes
the result is greedy NMS; a box's verdict is final after as many rounds as its longest chain of overlaps.
Rounds alternate between too few and too many boxes, so after an even number nothing that greedy NMS keeps is
lost, and what is left too many are duplicates at the end of chains longer than the number of rounds.

This is what makes the same graph train, evaluate and export: no NMS op, no loop, no plugin.
"""

from __future__ import annotations

from keras import ops

from tlt_runner.detector.boxes import Tensor

ROUNDS = 16
"""Unrolled rounds; even, see above. Random sets of 1,000 and 2,000 boxes, from sparse to all in a heap and in
clusters like proposals, reach the fixed point after 1 to 8."""


def keep_mask(
    boxes: Tensor,
    valid: Tensor,
    threshold: float,
    classes: Tensor | None = None,
    rounds: int = ROUNDS,
) -> Tensor:
    """Which boxes non-maximum suppression keeps.

    Args:
        boxes: [B, N, 4], by falling score.
        valid: [B, N] bool; other boxes are neither kept nor suppress.
        threshold: IoU above which the lower-scored box is dropped.
        classes: [B, N]; boxes of different classes do not suppress each other. None means one class.
        rounds: Rounds of Cluster-NMS.

    Returns:
        [B, N] bool.
    """
    overlaps = _overlap(boxes, threshold)
    index = ops.arange(boxes.shape[1], dtype="int32")
    overlaps = ops.logical_and(overlaps, (index[:, None] < index[None, :])[None])
    if classes is not None:
        overlaps = ops.logical_and(overlaps, ops.equal(classes[:, :, None], classes[:, None, :]))
    suppresses = ops.cast(overlaps, "float32")
    kept = start = ops.cast(valid, "float32")[:, None, :]
    for _ in range(rounds):
        kept = start * ops.cast(ops.matmul(kept, suppresses) < 0.5, "float32")
    return kept[:, 0, :] > 0.5


def _overlap(boxes: Tensor, threshold: float) -> Tensor:
    """Whether IoU is above the threshold [B, N, N], without the division: every pass over N x N counts."""
    sides = ops.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    share = sides[..., 0] * sides[..., 1] * (threshold / (1.0 + threshold))
    a, b = boxes[:, :, None, :], boxes[:, None, :, :]
    height = ops.minimum(a[..., 2], b[..., 2]) - ops.maximum(a[..., 0], b[..., 0])
    width = ops.minimum(a[..., 3], b[..., 3]) - ops.maximum(a[..., 1], b[..., 1])
    # i / (s - i) > t is i > (t / (1 + t)) s; a negative height makes the product no larger than zero
    return ops.maximum(height, 0.0) * width > share[:, :, None] + share[:, None, :]


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
