"""The four losses of Faster R-CNN for one batch, and the forward pass that they need.

Each is a sum over the sampled anchors or proposals of an image, divided by the *configured* size of its
mini-batch, as TLT does (not by the number that was drawn), then averaged over the images:

=====================  ==========================================  ================================
loss                   formula                                     divided by
=====================  ==========================================  ================================
rpn_objectness         binary cross-entropy, sampled anchors       min(proposals.miniBatch, anchors)
rpn_deltas             smooth L1 (beta 1/9), positive anchors      min(proposals.miniBatch, anchors)
head_classes           cross-entropy, sampled proposals            S, the proposals drawn
head_deltas            smooth L1 (beta 1), positive proposals      S
=====================  ==========================================  ================================

S is min(roi.miniBatch, candidates). A smooth L1 sums its four coordinates; the head's counts the true class
only. Sources: Ren et al., "Faster R-CNN" (2015), section 3.1.2; Girshick, "Fast R-CNN" (2015), section 2.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from tlt_api.training import Regularizer
from tlt_runner.detector import dropout, matching, rpn
from tlt_runner.detector.anchors import anchors
from tlt_runner.detector.boxes import Tensor
from tlt_runner.detector.matching import AnchorTargets, RoiTargets
from tlt_runner.detector.model import FasterRCNN

RPN_BETA = 1.0 / 9.0
"""Difference from which the region proposal network's smooth L1 is linear (py-faster-rcnn: sigma 3)."""
HEAD_BETA = 1.0
"""Difference from which the head's smooth L1 is linear."""
LOSSES = ("rpn_objectness", "rpn_deltas", "head_classes", "head_deltas")
"""The losses, in the order in which they are returned."""


def losses(
    model: FasterRCNN, images: Tensor, boxes: Tensor, classes: Tensor, random: keras.random.SeedGenerator
) -> Tensor:
    """Run the forward pass in training mode and compute the :data:`LOSSES` [4].

    The parts have name scopes, by which a profile tells them apart.

    Args:
        model: The detector.
        images: [B, H, W, 3] RGB, 0 to 255.
        boxes: Objects [B, G, 4] yxyx in pixels.
        classes: [B, G] int32, -1 in padding.
        random: Generator of the seeds with which mini-batches and dropout are drawn.
    """
    config = model.config
    # TensorFlow compares int32 in the host's memory, for which the device would wait.
    classes = ops.cast(classes, "float32")
    # 1. First stage: objectness and offsets of all N anchors, whose targets depend on the labels only.
    out = model.trunk(images, training=True)
    with keras.name_scope("targets"):
        reference = ops.convert_to_tensor(anchors(config))
        of_anchors = matching.anchor_targets(config, reference, boxes, classes, random)
    # 2. Second stage: proposals of the network as it is now, of which a mini-batch is drawn. No gradient
    # flows through their places, as in "approximate joint training" (Ren et al., section 3.2).
    with keras.name_scope("proposals"):
        proposals, valid = rpn.propose(config, out["objectness"], out["deltas"], config.proposals.training)
    with keras.name_scope("targets"):
        of_rois = matching.roi_targets(config, proposals, valid, boxes, classes, random)
    with dropout.drawing(random, of_rois.boxes.shape[1]):
        logits, deltas = model.classify(out["features"], of_rois.boxes, training=True)
    with keras.name_scope("losses"):
        sums = [
            *rpn_sums(out["objectness"], out["deltas"], of_anchors),
            *head_sums(logits, deltas, of_rois),
        ]
        # 3. A small image may have fewer anchors than a mini-batch.
        of_rpn, of_head = min(config.proposals.mini_batch, config.anchor_count), logits.shape[1]
        shares = np.array([1 / of_rpn, 1 / of_rpn, 1 / of_head, 1 / of_head], np.float32)
        return ops.stack(sums) * (shares / ops.cast(ops.shape(boxes)[0], "float32"))


def rpn_sums(objectness: Tensor, deltas: Tensor, targets: AnchorTargets) -> tuple[Tensor, Tensor]:
    """Compute the sums, over the batch, of the losses of the region proposal network.

    Args:
        objectness: Logits [B, N].
        deltas: [B, N, 4].
        targets: Targets of all anchors.

    Returns:
        Sums of rpn_objectness and of rpn_deltas.
    """
    # softplus(x) - y * x is binary cross-entropy of a logit that cannot overflow.
    # Both losses are [B, N]; the masks leave those of the mini-batch.
    entropy = ops.softplus(objectness) - targets.positive * objectness
    # Offsets of anchors without an object mean nothing: the factor positive leaves them out.
    distance = smooth_l1(deltas - targets.deltas, RPN_BETA)
    return ops.sum(targets.sampled * entropy), ops.sum(ops.expand_dims(targets.positive, -1) * distance)


def head_sums(logits: Tensor, deltas: Tensor, targets: RoiTargets) -> tuple[Tensor, Tensor]:
    """Compute the sums, over the batch, of head_classes and head_deltas.

    Args:
        logits: [B, S, K + 1].
        deltas: [B, S, K, 4].
        targets: Targets of the sampled proposals.
    """
    classes = deltas.shape[2]
    # [B, S, K + 1]. log_softmax, because the logarithm of a softmax that is rounded to 0 is infinite.
    chosen = ops.one_hot(targets.classes, classes + 1)
    likelihood = ops.expand_dims(targets.sampled, -1) * chosen * ops.log_softmax(logits, axis=-1)
    # One-hot without the background's column: of background no class's offsets are left.
    of_class = ops.sum(deltas * chosen[..., :classes, None], axis=2)
    distance = smooth_l1(of_class - targets.deltas, HEAD_BETA)
    return -ops.sum(likelihood), ops.sum(ops.expand_dims(targets.positive, -1) * distance)


def smooth_l1(x: Tensor, beta: float) -> Tensor:
    """Compute x^2 / (2 beta) for |x| below beta, |x| - beta / 2 above, element by element (Fast R-CNN)."""
    # One formula for both branches: m (|x| - m / 2) / beta with m = min(|x|, beta). Its derivative with a
    # constant m is m sign(x) / beta, which is the whole derivative: the terms with m's own cancel.
    size = ops.abs(x)
    limited = ops.stop_gradient(ops.minimum(size, beta))
    return limited * (size - 0.5 * limited) * (1.0 / beta)


def penalty(kernels: Sequence[Tensor], regularizer: Regularizer) -> Tensor:
    """Compute the weight penalty: the sum of squares (l2) or magnitudes (l1) of kernels, weighted.

    Args:
        kernels: Trainable variables named ``kernel``, or vectors of several of them; biases and batch
            normalisation are not penalised.
        regularizer: Type and weight.
    """
    if not kernels or not _penalises(regularizer):
        return ops.zeros(())
    # The plain sum of squares, without a factor 1/2, as keras.regularizers.L2.
    measure = ops.square if regularizer.type == "l2" else ops.abs
    with keras.name_scope("penalty"):
        return regularizer.weight * ops.sum(ops.stack([ops.sum(measure(kernel)) for kernel in kernels]))


def penalty_gradients(kernels: Sequence[Tensor], regularizer: Regularizer) -> list[Tensor]:
    """Compute the gradient of :func:`penalty` for each kernel; empty where nothing is penalised.

    A derivative of two ops in place of the four that differentiation makes.
    """
    if not _penalises(regularizer):
        return []
    with keras.name_scope("penalty"):
        if regularizer.type == "l2":
            return [2.0 * regularizer.weight * kernel for kernel in kernels]
        return [regularizer.weight * ops.sign(kernel) for kernel in kernels]


def _penalises(regularizer: Regularizer) -> bool:
    return regularizer.type != "none" and regularizer.weight > 0
