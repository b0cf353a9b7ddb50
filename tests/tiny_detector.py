"""A detector small enough for tests, whose outputs are spread like a trained one's, and images for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tlt_runner.detector import model as detector
from tlt_runner.detector.config import DetectorConfig

SIZE = 96
TRAINING_SIZE = 64
"""Pixels of a side of the images of tiny trainings."""
DETECTIONS = 20
CLASS_NAMES = ["bus", "car"]
MODEL: dict[str, Any] = {
    "backbone": "resnet10",
    "widthMultiplier": 0.125,
    "anchors": {"scales": [24], "ratios": [1.0]},
    "proposals": {
        "miniBatch": 16,
        "training": {"preNms": 30, "postNms": 16},
        "inference": {"preNms": 30, "postNms": 16},
    },
    "roi": {"poolSize": 4, "miniBatch": 8},
    "detections": {"maxDetections": 8},
    "maxObjects": 8,
}
"""``spec.model`` of a training that takes seconds."""


def tiny_config(size: int = SIZE, class_names: list[str] | None = None) -> DetectorConfig:
    """resnet10 of a quarter of the width, a few dozen proposals."""
    return DetectorConfig.model_validate(
        {
            "classNames": class_names or CLASS_NAMES,
            "height": size,
            "width": size,
            "backbone": "resnet10",
            "widthMultiplier": 0.25,
            "anchors": {"scales": [24, 48], "ratios": [1.0, 0.5]},
            "proposals": {"inference": {"preNms": 100, "postNms": 32}},
            "detections": {"maxDetections": DETECTIONS, "scoreThreshold": 0.05},
        }
    )


def training_config(class_names: list[str] | None = None, **changes: Any) -> DetectorConfig:
    """The detector of :data:`MODEL` for images of TRAINING_SIZE."""
    size = {"height": TRAINING_SIZE, "width": TRAINING_SIZE}
    names = class_names or CLASS_NAMES
    return DetectorConfig.model_validate({"classNames": names, **size, **MODEL, **changes})


DETERMINISTIC: dict[str, Any] = {
    "proposals": {"miniBatch": 64, "maxOverlap": 0.5, "minOverlap": 0.49}
    | {"training": {"preNms": 16, "postNms": 15}},
    "roi": {"poolSize": 2, "miniBatch": 64, "positiveFraction": 0.99, "minOverlap": 0.0},
    "maxObjects": 2,
    "freezeBatchNorm": True,
}
"""Changes of :data:`MODEL` with which every anchor and every proposal is drawn: nothing is left to chance."""


def settled(config: DetectorConfig, images: np.ndarray, seed: int = 3) -> detector.FasterRCNN:
    """Fresh weights, with the output layers scaled on ``images``: scores apart, boxes near their anchors."""
    model = detector.build(config, seed)
    outputs = model.trunk(images)
    _spread(model.trunk.get_layer("rpn_objectness"), outputs["objectness"], 2.0)
    _spread(model.trunk.get_layer("rpn_deltas"), outputs["deltas"], 0.3)
    corners = range(0, config.height // 2, 8)
    boxes = np.array([[[y, x, y + 40, x + 32] for y in corners for x in corners]], np.float32)
    logits, deltas = model.classify(outputs["features"], boxes.repeat(len(images), axis=0), training=False)
    _spread(model.head.get_layer("head_classes"), logits, 1.5)
    _spread(model.head.get_layer("head_deltas"), deltas, 0.5)
    return model


def _spread(layer: Any, values: Any, spread: float) -> None:
    layer.kernel.assign(layer.kernel * (spread / float(np.std(values))))
