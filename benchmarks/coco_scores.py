"""COCO AP of a detector on prepared validation images, by pycocotools."""

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from coco_form import annotation, evaluated

from tlt_runner.data.input_pipeline import batches
from tlt_runner.data.records import Records

BATCH = 4
Detect = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""uint8 images [B, H, W, 3] -> boxes [B, D, 4] yxyx in pixels, scores [B, D], classes [B, D], count [B]."""


def coco_scores(detect: Detect, records: Records) -> dict[str, Any]:
    """AP, AP50 and AP75 on all validation images."""
    truth: list[dict[str, Any]] = []
    detected: list[dict[str, Any]] = []
    images = 0
    for batch in batches.validation_batches(records, BATCH):
        given = {name: batch[name].numpy() for name in ("image", "boxes", "classes", "valid")}
        detections = detect(given["image"])
        for index in np.flatnonzero(given["valid"]):
            images += 1
            for box, class_id in zip(given["boxes"][index], given["classes"][index], strict=True):
                if class_id >= 0:
                    truth.append(annotation(images, class_id, box))
            for rank in range(int(detections["count"][index])):
                class_id, box = detections["classes"][index][rank], detections["boxes"][index][rank]
                score = float(detections["scores"][index][rank])
                detected.append({**annotation(images, class_id, box), "score": score})
    result = evaluated(truth, detected, images, len(records.manifest.class_names))
    with contextlib.redirect_stdout(io.StringIO()):
        result.summarize()
    stats = result.stats
    names = ("coco_AP", "coco_AP50", "coco_AP75")
    return {"validation_images": images, **{name: round(float(stats[i]), 4) for i, name in enumerate(names)}}
