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


def test_a_replica_draws_the_numbers_of_its_own_images_only() -> None:
    tf = Lazy("tensorflow")

    @tf.function
    def draw(step: object) -> object:
        random = seeds.StepSeeds(7, step, 3, replicas=64)
        return seeds.uniform(tf.zeros((2, 1000)), random)

    graph = draw.get_concrete_function(tf.TensorSpec((), tf.int64)).graph
    sizes = [
        np.prod(output.shape.as_list() or [1])
        for operation in graph.get_operations()
        for output in operation.outputs
    ]
    # 2 x 1,000 numbers and one for each of the 128 images of the step; 128 x 1,000 before.
    assert max(sizes) == 2000


def test_numbers_are_uniform_and_independent_between_images() -> None:
    draws = np.stack([two_draws(2, 0, 1, step=step)[0] for step in range(400)])  # [400, 2, 5]
    assert draws.min() >= 0 and draws.max() < 1
    # Of 4,000 uniform numbers the mean is 0.5 with a deviation of 0.289 / 63 = 0.0046.
    assert abs(draws.mean() - 0.5) < 0.02
    # Correlation of the same and of other candidates, over images and within one: deviation 1 / 20.
    table = np.corrcoef(draws.reshape(400, 10).T) - np.eye(10)
    assert np.abs(table).max() < 0.2
