"""Average precision of images that several workers judged: the figures of one."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import numpy as np
import pytest

from tlt_runner.evaluation.average_precision import Accumulator, Result

IMAGES, CLASS_NAMES = 7, ["bus", "car", "van"]


def images(seed: int) -> list[dict[str, np.ndarray]]:
    """Images whose scores fall together across images, some without detections."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(IMAGES):
        true_boxes = random.uniform(0, 50, (3, 4)).astype(np.float32)
        true_boxes[:, 2:] += true_boxes[:, :2] + 10
        count = 0 if number == 3 else 4
        boxes = true_boxes[random.integers(0, 3, count)] + random.uniform(-6, 6, (count, 4))
        made.append(
            {
                "boxes": boxes.astype(np.float32),
                "scores": random.choice(np.float32([0.1, 0.5, 0.9]), count),
                "classes": random.integers(-1, 2, count),
                "true_boxes": true_boxes,
                "true_classes": random.integers(-1, 2, 3),
                "difficult": random.random(3) < 0.2,
            }
        )
    return made


def judged(chosen: list[dict[str, np.ndarray]]) -> Accumulator:
    accumulator = Accumulator(CLASS_NAMES, 0.5)
    for image in chosen:
        accumulator.add_image(**image)
    return accumulator


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
def test_shares_together_have_the_figures_of_one(seed: int) -> None:
    every, exchange = images(seed), Exchange()
    places = [[0, 1, 4, 5], [2, 3, 6]]

    def work(worker: int) -> Result:
        own = judged([every[place] for place in places[worker]])
        merged = own.merged(places[worker], 8, partial(exchange.total, worker=worker))
        return merged.result("area")

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(work, range(2)))
    assert results[0] == results[1] == judged(every).result("area")
