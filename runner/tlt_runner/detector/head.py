"""The RoI head: the backbone's last stage on pooled features, or the light one; and the final detections."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tlt_runner.detector import boxes as box_ops
from tlt_runner.detector import nms
from tlt_runner.detector.backbones import FAMILIES
from tlt_runner.detector.backbones.layers import Layers
from tlt_runner.detector.boxes import Tensor
from tlt_runner.detector.config import DetectorConfig

LIGHT_FILTERS, LIGHT_UNITS = 128, 1024
"""Pooled channels and units of the dense layer of the light head, before the width multiplier."""
CANDIDATES_PER_DETECTION = 10
"""Pairs of box and class that enter the final suppression for each detection that may leave it."""
MAX_CANDIDATES = 2000
"""Most pairs of box and class that enter the final suppression; TensorRT's TopK takes at most 3840."""


def features_to_pool(config: DetectorConfig, make: Layers, features: Any) -> Any:
    """Add the layers between the trunk's features and RoI pooling: none, or those of the light head.

    Source of the light head: Li et al., "Light-Head R-CNN" (2017). The backbone's last stage runs once for
    all proposals, and its features get fewer channels before they are pooled.

    Args:
        config: The detector.
        make: Maker of layers.
        features: The trunk's features [B, H, W, C].

    Returns:
        [B, H, W, C], with another number of channels for the light head.
    """
    if config.roi.head != "light":
        return features
    family = FAMILIES[config.backbone]
    # vgg's last stage is dense layers, which cannot run on a feature map: it is left out.
    x = features if family.dense_head else family.head_stage(config.backbone, make, features, 1)
    # Named outside every block of the family: freezeBlocks does not freeze them.
    x = make.norm(make.conv(x, "light_conv", make.filters(LIGHT_FILTERS), 1), "light_bn")
    return layers.ReLU(name="light_relu")(x)


def build(config: DetectorConfig, make: Layers, channels: int) -> keras.Model:
    """Build the graph from pooled features [M, P, P, C] to {classes [M, K + 1] logits, deltas [M, K, 4]}.

    Background is the last class, so that a class id is an index of ``config.class_names``.

    Args:
        config: The detector.
        make: Maker of layers.
        channels: C, the channels that :func:`features_to_pool` gives.
    """
    size, family = config.roi.pool_size, FAMILIES[config.backbone]
    pooled = keras.Input((size, size, channels), name="pooled")
    if config.roi.head == "light":
        x = layers.Flatten(name="light_flatten")(pooled)
        initializer = keras.initializers.HeNormal(seed=make.seed())
        units = make.filters(LIGHT_UNITS)
        x = layers.Dense(units, activation="relu", kernel_initializer=initializer, name="light_dense")(x)
        x = make.drop(x, "light_dropout")
    else:
        x = family.head_stage(config.backbone, make, pooled, config.head_stride)
    # Convolutional heads end in a feature map; vgg's and the light one are dense and end in a vector.
    if len(x.shape) == 4:
        x = make.drop(layers.GlobalAveragePooling2D(name="head_pool")(x), "head_dropout")
    return _with_outputs(config, make, pooled, x)


def with_classes(old: keras.Model, config: DetectorConfig, seed: int) -> keras.Model:
    """Build a head of the layers of ``old`` and fresh output layers for the classes of ``config``."""
    return _with_outputs(config, Layers(seed), old.input, old.get_layer("head_classes").input)


def _with_outputs(config: DetectorConfig, make: Layers, pooled: Any, x: Any) -> keras.Model:
    """Complete a head: from its features [M, D] to logits and offsets for the classes of the config."""
    # Deviations of the fresh weights: Girshick, "Fast R-CNN" (2015), section 2.3.
    classes = layers.Dense(
        config.classes + 1,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01, seed=make.seed()),
        name="head_classes",
    )(x)
    deltas = layers.Dense(
        4 * config.classes,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.001, seed=make.seed()),
        name="head_deltas",
    )(x)
    deltas = layers.Reshape((config.classes, 4), name="head_deltas_by_class")(deltas)
    return keras.Model(pooled, {"classes": classes, "deltas": deltas}, name="head")


def detect(
    config: DetectorConfig, proposals: Tensor, valid: Tensor, logits: Tensor, deltas: Tensor
) -> dict[str, Tensor]:
    """Compute the final detections: the best pairs of box and class, suppressed within each class.

    Args:
        config: The detector.
        proposals: [B, R, 4] yxyx in pixels.
        valid: [B, R] bool, whether each is a proposal.
        logits: [B, R, K + 1], background last.
        deltas: [B, R, K, 4].

    Returns:
        boxes [B, D, 4] (yxyx, pixels), scores [B, D], classes [B, D] int32, by falling score, and count [B]
        int32; D is detections.max_detections. Rows after ``count`` hold zeros and class -1.
    """
    rois, classes, max_detections = proposals.shape[1], config.classes, config.detections.max_detections
    pairs = rois * classes
    # 1. Scores of all pairs of box and class, [B, R, K]: a proposal can be detected as several classes.
    # Invalid proposals get the score 0, which no threshold lets through.
    scores = ops.softmax(logits, axis=-1)[..., :classes] * ops.cast(valid, "float32")[..., None]
    # 2. Candidates. Suppression compares all pairs of its boxes: only the best enter.
    candidates = min(
        pairs, max(max_detections, min(CANDIDATES_PER_DETECTION * max_detections, MAX_CANDIDATES))
    )
    # Pair p is class p % K of proposal p // K, in the row-major order of scores and of deltas.
    scores, pair = ops.top_k(ops.reshape(scores, (-1, pairs)), candidates)
    # Lookup tables instead of an integer division by the number of classes and its remainder.
    roi_of = box_ops.gather_shared(np.repeat(np.arange(rois, dtype=np.int32), classes), pair)
    class_of = box_ops.gather_shared(np.tile(np.arange(classes, dtype=np.int32), rois), pair)
    # 3. Boxes [B, C, 4] of the candidates alone: decoding all R * K would be wasted.
    boxes = box_ops.decode(
        box_ops.gather(ops.reshape(deltas, (-1, pairs, 4)), pair),
        box_ops.gather(proposals, roi_of),
        config.head_scales,
    )
    boxes = box_ops.clip(boxes, config.height, config.width)
    # 4. Suppression within each class, then the best of what is left.
    confident = scores >= config.detections.score_threshold
    overlap, count = config.detections.nms_overlap, max_detections
    best, kept = nms.suppress(boxes, confident, overlap, count, class_of, classes)
    return _padded(
        max_detections,
        box_ops.gather(boxes, best),
        box_ops.gather(scores, best),
        box_ops.gather(class_of, best),
        kept,
    )


def _padded(
    max_detections: int, boxes: Tensor, scores: Tensor, classes: Tensor, kept: Tensor
) -> dict[str, Tensor]:
    """Put zeros and class -1 in place of boxes that are not kept, and pad to ``max_detections`` rows."""
    missing = max_detections - boxes.shape[1]
    result = {
        # Rows that are not kept hold suppressed boxes, which no reader of the file may take for detections.
        "boxes": ops.where(kept[..., None], boxes, 0.0),
        "scores": ops.where(kept, scores, 0.0),
        "classes": ops.where(kept, classes, -1),
    }
    # A detector with fewer pairs of box and class than detections still has the promised shape.
    if missing:
        result = {
            "boxes": ops.pad(result["boxes"], ((0, 0), (0, missing), (0, 0))),
            "scores": ops.pad(result["scores"], ((0, 0), (0, missing))),
            "classes": ops.pad(result["classes"], ((0, 0), (0, missing)), constant_values=-1),
        }
    return {**result, "count": ops.sum(ops.cast(kept, "int32"), axis=1)}
