"""Random numbers that depend on an image's position in a step, however the step is divided."""

import numpy as np
import pytest

from lazy import Lazy

seeds = Lazy("tlt_runner.detector.seeds")


def two_draws(images: int, replica: int, replicas: int, step: int = 3) -> list[np.ndarray]:
    random = seeds.StepSeeds(7, np.int64(step), np.int64(replica), replicas)
    like = np.zeros((images, 5))
    return [np.asarray(seeds.uniform(like, random)) for _ in range(2)]


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_together_draw_the_numbers_of_a_single_device(replicas: int) -> None:
    by_replica = [two_draws(8 // replicas, replica, replicas) for replica in range(replicas)]
    for single, *parts in zip(two_draws(8, 0, 1), *by_replica, strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), single)


def test_the_draws_of_a_step_differ_from_each_other_and_from_those_of_another_step() -> None:
    first, second = two_draws(4, 0, 1)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, two_draws(4, 0, 1, step=4)[0])
