"""Average precision of images that several workers evaluated, against that of a single worker."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from tlt_runner.evaluation.collection import Collector
from tlt_runner.evaluation.protocols import Protocol, measure

IMAGES, CLASS_NAMES = 7, ["bus", "car", "van"]


def images(seed: int) -> list[dict[str, np.ndarray]]:
    """Images with equal scores in different images, one of them without detections."""
    random = np.random.default_rng(seed)
    generated = []
    for number in range(IMAGES):
        true_boxes = random.uniform(0, 50, (3, 4)).astype(np.float32)
        true_boxes[:, 2:] += true_boxes[:, :2] + 10
        count = 0 if number == 3 else 4
        boxes = true_boxes[random.integers(0, 3, count)] + random.uniform(-6, 6, (count, 4))
        generated.append(
            {
                "boxes": boxes.astype(np.float32),
                "scores": random.choice(np.float32([0.1, 0.5, 0.9]), count),
                "classes": random.integers(-1, 2, count),
                "true_boxes": true_boxes,
                "true_classes": random.integers(-1, 2, 3),
                "difficult": random.random(3) < 0.2,
            }
        )
    return generated


def evaluated(chosen: list[dict[str, np.ndarray]]) -> Collector:
    collector = Collector(CLASS_NAMES)
    for image in chosen:
        collector.add_image(**image)
    return collector


def figures(collector: Collector) -> dict[str, Any]:
    # Every bit: the boxes of other workers went through float32.
    return measure(collector.collection(), Protocol("coco", (0.5, 0.75))).metrics.to_wire()


class Exchange:
    """Sums the arrays of two threads."""

    def __init__(self) -> None:
        self._all_in, self._all_out = Barrier(2, timeout=60), Barrier(2, timeout=60)
        self._offers: dict[int, np.ndarray] = {}

    def total(self, values: np.ndarray, worker: int) -> np.ndarray:
        self._offers[worker] = np.float32(values)
        self._all_in.wait()
        summed = self._offers[0] + self._offers[1]
        self._all_out.wait()
        return summed


@pytest.mark.parametrize("seed", range(5))
def test_workers_that_share_a_data_set_get_the_result_of_a_single_worker(seed: int) -> None:
    every, exchange = images(seed), Exchange()
    positions = [[0, 1, 4, 5], [2, 3, 6]]

    def work(worker: int) -> dict[str, Any]:
        part = evaluated([every[position] for position in positions[worker]])
        merged = part.merged(positions[worker], 8, partial(exchange.total, worker=worker))
        return figures(merged)

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(work, range(2)))
    assert results[0] == results[1] == figures(evaluated(every))
