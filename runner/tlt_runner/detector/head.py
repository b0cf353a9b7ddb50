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
"""Of the light head, before the width multiplier: channels that are pooled, units of the dense layer."""
CANDIDATES_PER_DETECTION = 10
MOST_CANDIDATES = 2000
"""Pairs of box and class that enter the final suppression at most; below TensorRT's limit of 3840."""


def features_to_pool(config: DetectorConfig, make: Layers, features: Any) -> Any:
    """What RoI pooling takes: the trunk's features [B, H, W, C], or what the light head makes of them.

    Light-Head R-CNN (Li et al., 2017): the last stage runs once for all proposals, and its features are
    thinned before they are pooled. Dense layers, vgg's last stage, cannot: there they are left out.
    """
    if config.roi.head != "light":
        return features
    family = FAMILIES[config.backbone]
    x = features if family.dense_head else family.head_stage(config.backbone, make, features, 1)
    x = make.norm(make.conv(x, "light_conv", make.filters(LIGHT_FILTERS), 1), "light_bn")
    return layers.ReLU(name="light_relu")(x)


def build(config: DetectorConfig, make: Layers, channels: int) -> keras.Model:
    """Graph from pooled features [M, P, P, C] to {classes [M, K + 1] logits, deltas [M, K, 4]}.

    Background is the last class.
    """
    size, family = config.roi.pool_size, FAMILIES[config.backbone]
    pooled = keras.Input((size, size, channels), name="pooled")
    if config.roi.head == "light":
        x = layers.Flatten(name="light_flatten")(pooled)
        initializer = keras.initializers.HeNormal(seed=make.seed())
        units = make.filters(LIGHT_UNITS)
        x = layers.Dense(units, activation="relu", kernel_initializer=initializer, name="light_dense")(x)
    else:
        x = family.head_stage(config.backbone, make, pooled, config.head_stride)
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    return _with_outputs(config, make, pooled, x)


def with_classes(old: keras.Model, config: DetectorConfig, seed: int) -> keras.Model:
    """A head that shares with ``old`` all layers but the outputs, which are fresh, for config's classes."""
    return _with_outputs(config, Layers(seed), old.input, old.get_layer("head_classes").input)


def _with_outputs(config: DetectorConfig, make: Layers, pooled: Any, x: Any) -> keras.Model:
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
    """The final detections: best pairs of box and class, suppressed within each class.

    Args:
        config: The detector.
        proposals: [B, R, 4] yxyx in pixels.
        valid: [B, R] bool, which of them count.
        logits: [B, R, K + 1], background last.
        deltas: [B, R, K, 4].

    Returns:
        boxes [B, D, 4] (yxyx, pixels), scores [B, D], classes [B, D] int32, by falling score, and count [B]
        int32; D is detections.max_detections. Places after ``count`` hold zeros and class -1.
    """
    rois, classes, wanted = proposals.shape[1], config.classes, config.detections.max_detections
    pairs = rois * classes
    scores = ops.softmax(logits, axis=-1)[..., :classes] * ops.cast(valid, "float32")[..., None]
    candidates = min(pairs, max(wanted, min(CANDIDATES_PER_DETECTION * wanted, MOST_CANDIDATES)))
    scores, pair = ops.top_k(ops.reshape(scores, (-1, pairs)), candidates)
    roi_of = ops.take(np.repeat(np.arange(rois, dtype=np.int32), classes), pair, axis=0)
    class_of = ops.take(np.tile(np.arange(classes, dtype=np.int32), rois), pair, axis=0)
    boxes = box_ops.decode(
        box_ops.gather(ops.reshape(deltas, (-1, pairs, 4)), pair),
        box_ops.gather(proposals, roi_of),
        config.head_scales,
    )
    boxes = box_ops.clip(boxes, config.height, config.width)
    confident = scores >= config.detections.score_threshold
    keep = nms.keep_mask(boxes, confident, config.detections.nms_overlap, class_of)
    best, found = nms.keep_best(scores, keep, wanted)
    return _padded(
        wanted,
        box_ops.gather(boxes, best),
        box_ops.gather(scores, best),
        box_ops.gather(class_of, best),
        found,
    )


def _padded(wanted: int, boxes: Tensor, scores: Tensor, classes: Tensor, found: Tensor) -> dict[str, Tensor]:
    missing = wanted - boxes.shape[1]
    result = {
        "boxes": ops.where(found[..., None], boxes, 0.0),
        "scores": ops.where(found, scores, 0.0),
        "classes": ops.where(found, classes, -1),
    }
    if missing:
        result = {
            "boxes": ops.pad(result["boxes"], ((0, 0), (0, missing), (0, 0))),
            "scores": ops.pad(result["scores"], ((0, 0), (0, missing))),
            "classes": ops.pad(result["classes"], ((0, 0), (0, missing)), constant_values=-1),
        }
    return {**result, "count": ops.sum(ops.cast(found, "int32"), axis=1)}
