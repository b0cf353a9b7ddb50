"""Draws that belong to an image's place in a step, however the step is divided."""

import numpy as np
import pytest

from lazy import Lazy

seeds = Lazy("tlt_runner.detector.seeds")


def drawn(images: int, replica: int, replicas: int, step: int = 3) -> list[np.ndarray]:
    source = seeds.StepDraws(7, np.int64(step), np.int64(replica), replicas)
    like = np.zeros((images, 5))
    return [np.asarray(seeds.uniform(like, source)) for _ in range(2)]


@pytest.mark.parametrize("replicas", [2, 4])
def test_parts_of_a_step_draw_together_what_one_draws(replicas: int) -> None:
    parts = [drawn(8 // replicas, replica, replicas) for replica in range(replicas)]
    for whole, *own in zip(drawn(8, 0, 1), *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate(own), whole)


def test_steps_and_draws_of_a_step_differ() -> None:
    first, second = drawn(4, 0, 1)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, drawn(4, 0, 1, step=4)[0])
