"""CPU time and memory of evaluation, building the data included, beside pycocotools on the same detections.

    python benchmarks/evaluation_speed.py [--images 5000] [--classes 10]

Images of 100 detections and up to 14 objects: COCO's protocol (ten IoUs, four sizes), one IoU (area) beside
pycocotools with one IoU and one size, and a paired bootstrap of 1,000 resamples for two models. Each job
runs in a process of its own. Prints one JSON line; ratios are pycocotools' CPU time by ours.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tlt_runner.evaluation.bootstrap import difference_interval
from tlt_runner.evaluation.collection import Collector
from tlt_runner.evaluation.protocols import Measurement, Protocol, measure

DETECTIONS, MOST_OBJECTS = 100, 14
THRESHOLDS = np.linspace(0.5, 0.95, 10)
Image = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Boxes yxyx, scores, classes, labelled boxes yxyx, their classes."""


def scenes(images: int, classes: int, seed: int, noise: float) -> list[Image]:
    """Objects of all sizes, the same for each seed; detections near them, the farther the noisier."""
    draws, made = np.random.default_rng(0), np.random.default_rng(seed)
    result = []
    for _ in range(images):
        count = draws.integers(1, MOST_OBJECTS + 1)
        corner, sides = draws.uniform(0, 400, (count, 2)), np.exp(draws.uniform(2, 5.5, (count, 2)))
        truth, ids = np.concatenate([corner, corner + sides], axis=1), draws.integers(0, classes, count)
        source = made.integers(0, count, DETECTIONS)
        shift = made.normal(0, noise, (DETECTIONS, 4)) * np.tile(sides[source], 2)
        boxes = truth[source] + shift
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        right = made.random(DETECTIONS) < 0.8
        found = np.where(right, ids[source], made.integers(0, classes, DETECTIONS))
        # Better scores for better boxes, with some noise.
        scores = np.clip(1 - np.abs(shift).mean(axis=1) / 100 - made.uniform(0, 0.5, DETECTIONS), 0.01, 1)
        result.append((boxes, scores, found, truth, ids))
    return result


def ours(data: list[Image], classes: int, protocol: Protocol) -> Measurement:
    collector = Collector([str(number) for number in range(classes)])
    for boxes, scores, found, truth, ids in data:
        collector.add_image(boxes, scores, found, truth, ids, np.zeros(len(ids), bool))
    return measure(collector.collection(), protocol)


def peer(data: list[Image], classes: int, thresholds: np.ndarray | None) -> float:
    """Return mAP by pycocotools; at these thresholds for objects of all sizes, or with all its defaults."""
    from coco_form import annotation, evaluated

    truth, detected = [], []
    for number, (boxes, scores, found, labelled, ids) in enumerate(data, start=1):
        truth += [annotation(number, class_id, box) for box, class_id in zip(labelled, ids, strict=True)]
        for box, score, class_id in zip(boxes, scores, found, strict=True):
            detected.append({**annotation(number, class_id, box), "score": float(score)})
    result = evaluated(truth, detected, len(data), classes, thresholds)
    precision = result.eval["precision"][:, :, :, 0, -1]
    return float(precision[precision > -1].mean())


def timed(job: Callable[[], Any]) -> dict[str, Any]:
    """Run a job in a process of its own; return its result, CPU seconds, and MiB beyond the start."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.process_time()
        result = job()
        used = time.process_time() - started
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sender.send({"result": result, "seconds": used, "mib": (after - before) / 1024})

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    # Without this end the parent would wait for a child that died.
    sender.close()
    answer: dict[str, Any] = receiver.recv()
    process.join()
    return answer


def bootstrap(left: Measurement, right: Measurement) -> str:
    assert left.scored is not None and right.scored is not None
    return difference_interval(left.scored, right.scored).difference_text()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=10)
    arguments = parser.parse_args()
    classes = arguments.classes
    data = scenes(arguments.images, classes, seed=1, noise=0.12)
    other = scenes(arguments.images, classes, seed=2, noise=0.13)
    coco, one = Protocol("coco", tuple(THRESHOLDS)), Protocol("area", (0.5,))
    runs = {
        "coco": timed(lambda: ours(data, classes, coco).mean),
        "coco_peer": timed(lambda: peer(data, classes, None)),
        "one_iou": timed(lambda: ours(data, classes, one).mean),
        "one_iou_peer": timed(lambda: peer(data, classes, np.array([0.5]))),
    }
    measurements = [ours(item, classes, coco) for item in (data, other)]
    resampled = timed(lambda: bootstrap(*measurements))
    print(
        json.dumps(
            {
                "benchmark": "evaluation_speed",
                "images": arguments.images,
                "classes": classes,
                "coco_ratio": round(runs["coco_peer"]["seconds"] / runs["coco"]["seconds"], 2),
                "one_iou_ratio": round(runs["one_iou_peer"]["seconds"] / runs["one_iou"]["seconds"], 2),
                "bootstrap_seconds": round(resampled["seconds"], 2),
                "difference": resampled["result"],
                "seconds": {name: round(item["seconds"], 2) for name, item in runs.items()},
                "mib": {name: round(item["mib"]) for name, item in runs.items()},
                "ap": {name: round(item["result"], 6) for name, item in runs.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
