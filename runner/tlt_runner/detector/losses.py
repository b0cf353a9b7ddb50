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


def losses(
    model: FasterRCNN, images: Tensor, boxes: Tensor, classes: Tensor, random: keras.random.SeedGenerator
) -> dict[str, Tensor]:
    """Run the forward pass in training mode and compute the four losses (scalars).

    The parts have name scopes, by which a profile tells them apart.

    Args:
        model: The detector.
        images: [B, H, W, 3] RGB, 0 to 255.
        boxes: Objects [B, G, 4] yxyx in pixels.
        classes: [B, G] int32, -1 in padding.
        random: Generator of the seeds with which mini-batches and dropout are drawn.
    """
    config = model.config
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
    # 3. A small image may have fewer anchors than a mini-batch.
    size = min(config.proposals.mini_batch, config.anchor_count)
    with keras.name_scope("losses"):
        return {
            **rpn_losses(out["objectness"], out["deltas"], of_anchors, size),
            **head_losses(logits, deltas, of_rois),
        }


def rpn_losses(objectness: Tensor, deltas: Tensor, targets: AnchorTargets, size: int) -> dict[str, Tensor]:
    """Compute the losses of the region proposal network.

    Args:
        objectness: Logits [B, N].
        deltas: [B, N, 4].
        targets: Targets of all anchors.
        size: Divisor, the configured size of the mini-batch.
    """
    # softplus(x) - y * x is binary cross-entropy of a logit that cannot overflow.
    # Both losses are [B, N]; the masks leave those of the mini-batch.
    entropy = ops.softplus(objectness) - targets.positive * objectness
    # Offsets of anchors without an object mean nothing: the factor positive leaves them out.
    distance = smooth_l1(deltas - targets.deltas, RPN_BETA)
    return {
        "rpn_objectness": _mean(targets.sampled * entropy, size),
        "rpn_deltas": _mean(targets.positive[..., None] * distance, size),
    }


def head_losses(logits: Tensor, deltas: Tensor, targets: RoiTargets) -> dict[str, Tensor]:
    """Compute the losses of the head from logits [B, S, K + 1] and deltas [B, S, K, 4]."""
    size, classes = logits.shape[1], deltas.shape[2]
    # [B, S, K + 1]. log_softmax, because the logarithm of a softmax that is rounded to 0 is infinite.
    chosen = ops.one_hot(targets.classes, classes + 1)
    entropy = -targets.sampled[..., None] * chosen * ops.log_softmax(logits, axis=-1)
    # One-hot without the background's column: of background no class's offsets are left.
    of_class = ops.sum(deltas * chosen[..., :classes, None], axis=2)
    distance = smooth_l1(of_class - targets.deltas, HEAD_BETA)
    return {
        "head_classes": _mean(entropy, size),
        "head_deltas": _mean(targets.positive[..., None] * distance, size),
    }


def _mean(terms: Tensor, size: int) -> Tensor:
    """Return the mean over the images of the sum of an image's terms [B, ...], divided by ``size``."""
    # One sum over everything: a sum for each image and their mean would be two, and two more backwards.
    return ops.sum(terms) * (1.0 / ops.cast(ops.shape(terms)[0] * size, "float32"))


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
