"""COCO's form of labels and detections, and pycocotools' evaluation of it."""

import contextlib
import io
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def annotation(image: int, class_id: int, box: np.ndarray) -> dict[str, Any]:
    """A box [4], yxyx in pixels, of an image and a class; pycocotools counts both from 1."""
    top, left, bottom, right = map(float, box)
    sides = [right - left, bottom - top]
    return {
        "image_id": image,
        "category_id": int(class_id) + 1,
        "bbox": [left, top, *sides],
        "area": sides[0] * sides[1],
    }


def evaluated(
    truth: list[Any], detected: list[Any], images: int, classes: int, thresholds: np.ndarray | None = None
) -> COCOeval:
    """Evaluate with all defaults, or at these IoU thresholds for objects of all sizes; accumulated."""
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": number + 1} for number in range(images)],
        "annotations": [{**item, "id": number, "iscrowd": 0} for number, item in enumerate(truth, start=1)],
        "categories": [{"id": number + 1} for number in range(classes)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        result = COCOeval(coco, coco.loadRes(detected), "bbox")
        if thresholds is not None:
            result.params.iouThrs, result.params.maxDets = thresholds, [100]
            result.params.areaRng, result.params.areaRngLbl = [[0, 1e10]], ["all"]
        result.evaluate()
        result.accumulate()
    return result
