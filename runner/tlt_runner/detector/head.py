"""The RoI head: the backbone's last stage on pooled features, its two outputs, and the final detections."""

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

CANDIDATES_PER_DETECTION = 10
MOST_CANDIDATES = 2000
"""Pairs of box and class that enter the final suppression at most; below TensorRT's limit of 3840."""


def build(config: DetectorConfig, make: Layers, channels: int) -> keras.Model:
    """Graph from pooled features [M, P, P, C] to {classes [M, K + 1] logits, deltas [M, K, 4]}.

    Background is the last class.
    """
    size = config.roi.pool_size
    pooled = keras.Input((size, size, channels), name="pooled")
    x = FAMILIES[config.backbone].head_stage(config.backbone, make, pooled, config.head_stride)
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
        box_ops.HEAD_SCALES,
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
