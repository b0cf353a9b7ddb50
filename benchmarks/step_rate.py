"""Images a second of a training step: the median of some steps after warming up."""

import statistics
import time
from collections.abc import Callable

WARM_UP = 3


def images_a_second(step: Callable[[], object], batch: int, steps: int) -> float:
    """Take steps of so many images, each of which waits for its result."""
    for _ in range(WARM_UP):
        step()
    taken = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return round(batch / statistics.median(taken), 2)
