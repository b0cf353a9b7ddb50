"""COCO AP of a detector on prepared validation images, by pycocotools."""

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

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
                    truth.append({**_annotation(images, class_id, box), "id": len(truth) + 1, "iscrowd": 0})
            for rank in range(int(detections["count"][index])):
                class_id, box = detections["classes"][index][rank], detections["boxes"][index][rank]
                score = float(detections["scores"][index][rank])
                detected.append({**_annotation(images, class_id, box), "score": score})
    stats = _judge(truth, detected, images, len(records.manifest.class_names))
    names = ("coco_AP", "coco_AP50", "coco_AP75")
    return {"validation_images": images, **{name: round(float(stats[i]), 4) for i, name in enumerate(names)}}


def _judge(truth: list[Any], detected: list[Any], images: int, classes: int) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": number + 1} for number in range(images)],
            "annotations": truth,
            "categories": [{"id": number + 1} for number in range(classes)],
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(detected), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats


def _annotation(image: int, class_id: int, box: np.ndarray) -> dict[str, Any]:
    top, left, bottom, right = map(float, box)
    sides = [right - left, bottom - top]
    return {
        "image_id": image,
        "category_id": int(class_id) + 1,
        "bbox": [left, top, *sides],
        "area": sides[0] * sides[1],
    }
