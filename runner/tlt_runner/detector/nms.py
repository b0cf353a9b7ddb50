"""Greedy non-maximum suppression: a box is kept unless a kept box of higher score overlaps it too much.

Two forms with equal results (:mod:`tlt_runner.detector.kernels`). TensorFlow has kernels. Elsewhere, where an
NMS op is missing (XLA, JAX) or has a result of a size that depends on the data (ONNX, which TensorRT-RTX does
not build), it is Cluster-NMS (Zheng et al., "Enhancing Geometric Factors in Model Learning and Inference",
2020): all boxes are kept at first, and the rule above is applied to all of them at once, until nothing
changes. Such a mask obeys the rule, and only one does: the result is that of greedy suppression, after one
round more than the longest chain of overlaps has links.

Cluster-NMS processes the boxes in blocks by falling score: the boxes that a block keeps suppress all later
ones at once. So only half of the pairs are compared, rounds run over the small squares on the diagonal, and
chains within a block are shorter.
"""

from __future__ import annotations

from keras import ops

from tlt_runner.detector import kernels
from tlt_runner.detector.boxes import Tensor

BLOCK = 512
"""Boxes of a block: its square of overlaps stays in a core's cache."""


def suppress(
    boxes: Tensor,
    valid: Tensor,
    threshold: float,
    count: int,
    classes: Tensor | None = None,
    class_count: int = 1,
) -> tuple[Tensor, Tensor]:
    """Select the ``count`` best boxes that greedy suppression keeps.

    Args:
        boxes: [B, N, 4] yxyx, by falling score: of equal scores, the first box wins.
        valid: [B, N] bool; invalid boxes are not kept and suppress nothing.
        threshold: IoU above which the lower-scored box is dropped.
        count: Number of boxes to select.
        classes: [B, N] int32; boxes of different classes do not suppress each other. None means one class.
        class_count: Number of classes K; classes are from 0 to K - 1.

    Returns:
        Indices [B, min(count, N)] int32, rising, and whether each is a kept box [B, min(count, N)] bool:
        where too few boxes are kept, the rest of the indices means nothing, but is in range.
    """
    count = min(count, boxes.shape[1])
    if not kernels.native():
        return _first(keep_mask(boxes, valid, threshold, classes), count)
    if classes is None:
        return _by_kernel(boxes, valid, threshold, count)
    return _by_kernel_and_class(boxes, valid, threshold, count, classes, class_count)


def _by_kernel(boxes: Tensor, valid: Tensor, threshold: float, count: int) -> tuple[Tensor, Tensor]:
    # Imported here, so that the module loads on other backends.
    import tensorflow as tf

    def of_image(image: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        indices, kept = tf.raw_ops.NonMaxSuppressionV4(
            boxes=image[0],
            scores=image[1],
            max_output_size=count,
            iou_threshold=threshold,
            score_threshold=0.5,
            pad_to_max_output_size=True,
        )
        return indices, tf.range(count) < kept

    return tf.map_fn(of_image, (boxes, _ranks(valid)), fn_output_signature=(tf.int32, tf.bool))


def _by_kernel_and_class(
    boxes: Tensor, valid: Tensor, threshold: float, count: int, classes: Tensor, class_count: int
) -> tuple[Tensor, Tensor]:
    import tensorflow as tf

    ranks = _ranks(valid)
    # The kernel sorts the kept boxes of all classes by their ranks, and returns these.
    _, best, _, _ = tf.raw_ops.CombinedNonMaxSuppression(
        boxes=boxes[:, :, None, :],
        scores=ranks[:, :, None] * tf.one_hot(classes, class_count),
        max_output_size_per_class=count,
        max_total_size=count,
        iou_threshold=threshold,
        score_threshold=0.5,
        clip_boxes=False,
    )
    kept = best > 0.5
    return tf.where(kept, boxes.shape[1] - tf.cast(best, tf.int32), 0), kept


def _ranks(valid: Tensor) -> Tensor:
    """Ranks [B, N] float32 from N for the first box to 1, and 0 for invalid boxes: scores without ties."""
    total = valid.shape[1]
    return ops.cast(valid, "float32") * ops.arange(total, 0, -1, dtype="float32")


def _first(keep: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices [B, count] of the first boxes of a mask [B, N], and whether each is in the mask."""
    ranked, indices = ops.top_k(_ranks(keep), count)
    return ops.cast(indices, "int32"), ranked > 0.5


def keep_mask(
    boxes: Tensor, valid: Tensor, threshold: float, classes: Tensor | None = None, block: int = BLOCK
) -> Tensor:
    """Mark the boxes that greedy suppression keeps, by Cluster-NMS.

    Args:
        boxes: [B, N, 4] yxyx, by falling score.
        valid: [B, N] bool; invalid boxes are not kept and suppress nothing.
        threshold: IoU above which the lower-scored box is dropped.
        classes: [B, N]; boxes of different classes do not suppress each other. None means one class.
        block: Boxes of a block.

    Returns:
        [B, N] bool.
    """
    index = ops.arange(min(block, boxes.shape[1]), dtype="int32")
    kept = []
    # [B, N] of 0 and 1: boxes that no box of an earlier block suppresses.
    possible = ops.cast(valid, "float32")
    while boxes.shape[1]:
        size = min(block, boxes.shape[1])
        current, current_classes = boxes[:, :size], None if classes is None else classes[:, :size]
        inner = _suppresses(current, current, current_classes, current_classes, threshold)
        # Only boxes of higher score suppress: the triangle above the diagonal.
        inner = inner * ops.cast(index[:size, None] < index[None, :size], "float32")
        kept.append(_fixed_point(possible[:, :size], inner))
        boxes, classes = boxes[:, size:], None if classes is None else classes[:, size:]
        if boxes.shape[1]:
            outer = _suppresses(current, boxes, current_classes, classes, threshold)
            possible = possible[:, size:] * _free(kept[-1], outer)
    return ops.concatenate(kept, axis=1) > 0.5


def _suppresses(
    left: Tensor, right: Tensor, left_classes: Tensor | None, right_classes: Tensor | None, threshold: float
) -> Tensor:
    """Matrix [B, N, M] of pairs: 1 where two boxes of a class overlap too much, else 0."""
    a, b = left[:, :, None, :], right[:, None, :, :]
    height = ops.minimum(a[..., 2], b[..., 2]) - ops.maximum(a[..., 0], b[..., 0])
    width = ops.minimum(a[..., 3], b[..., 3]) - ops.maximum(a[..., 1], b[..., 1])
    shared = ops.maximum(height, 0.0) * ops.maximum(width, 0.0)
    union = _area(left)[:, :, None] + _area(right)[:, None, :] - shared
    # The quotient, although a product would be cheaper: rounded otherwise, an IoU at the threshold would be
    # judged otherwise than by TensorFlow's and torchvision's kernels. Two empty boxes do not overlap.
    overlaps = shared / ops.maximum(union, 1e-6) > threshold
    if left_classes is not None and right_classes is not None:
        overlaps = ops.logical_and(overlaps, ops.equal(left_classes[:, :, None], right_classes[:, None, :]))
    return ops.cast(overlaps, "float32")


def _area(boxes: Tensor) -> Tensor:
    sides = ops.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def _fixed_point(possible: Tensor, inner: Tensor) -> Tensor:
    """Boxes that a block keeps, [B, N] of 0 and 1.

    Args:
        possible: [B, N] of 0 and 1, boxes of the block that no earlier block suppresses.
        inner: [B, N, N], pairs in which the first box suppresses the second.
    """

    def applied(kept: Tensor, change: Tensor | None = None) -> tuple[Tensor, Tensor]:
        after = possible * _free(kept, inner)
        # A loop variable of its own: where the condition compares two masks of which one is passed through
        # the body, tf2onnx 1.17 compares the new mask with itself.
        return after, ops.max(ops.abs(after - kept))

    # Each round makes one more link of each chain final: at most N + 1 rounds.
    return ops.while_loop(lambda kept, change: change > 0.5, applied, applied(possible))[0]


def _free(kept: Tensor, suppresses: Tensor) -> Tensor:
    """Mask [B, M]: 1 for boxes that none of the kept ones [B, N] suppresses, by pairs [B, N, M]; else 0."""
    # A maximum and no matrix product, which loops compute in float32: TensorRT-RTX has none for Turing.
    return 1.0 - ops.max(kept[:, :, None] * suppresses, axis=1)
