"""Random numbers that depend on seed and step only: nothing to store, a resumed training draws the same."""

from __future__ import annotations

import keras
from keras import ops

from tlt_runner.detector.boxes import Tensor


class StepSeeds(keras.random.SeedGenerator):
    """A generator of seeds for ``keras.random`` without a state variable.

    Keras' own generator keeps a counter in a variable, which would have to be checkpointed and, with several
    replicas, be kept apart on each.

    Args:
        seed: The training's seed.
        step: Scalar tensor, different for every step.
        replica: Scalar tensor, the index of the part of the step's images for which numbers are drawn.
        replicas: Number of parts of the step's images, all of one size.
    """

    def __init__(self, seed: int, step: Tensor, replica: Tensor = 0, replicas: int = 1) -> None:
        # No call of super().__init__, which would make the counter variable.
        self._seed_of_training = seed
        self._step = ops.cast(step, "uint32")
        self._replica, self._replicas = replica, replicas
        self._draws = 0

    def next(self, ordered: bool = True) -> Tensor:
        """Return the next seed, uint32 [2]."""
        self._draws += 1
        # The count of draws is fixed when the step is traced: every call in the graph has its own seed.
        # 7919 is a prime, which keeps the seeds of neighbouring trainings apart for as many draws.
        seed = (self._seed_of_training * 7919 + self._draws) % 2**31
        return ops.stack([ops.cast(seed, "uint32"), self._step])

    def uniform(self, images: Tensor, count: int) -> Tensor:
        """Draw numbers [images, count] in [0, 1).

        An image's numbers depend on its position in the step, not on the replica: a step draws the same on
        one device and on several. Memory is that of the images given here, plus one number for every image
        of the step.

        All images share one row of random numbers, which each of them shifts, modulo 1, by a random number of
        its own: within an image the numbers are independent, and so are the numbers of any candidate in any
        two images. A row of its own for each image would need a seed, and several operations, for each.
        """
        # One draw: the row, then the shifts of all images, of which every replica takes its own.
        drawn = keras.random.uniform((count + images * self._replicas,), seed=self)
        first = count + ops.cast(self._replica, "int32") * ops.cast(images, "int32")
        row, shifts = drawn[:count], ops.slice(drawn, (first,), (images,))
        # Both are multiples of 2^-23 below 1, so that the sum, and what is left of it, are exact.
        shifted = ops.expand_dims(shifts, 1) + row
        return shifted - ops.floor(shifted)


def uniform(like: Tensor, random: keras.random.SeedGenerator) -> Tensor:
    """Draw numbers from 0 to 1 of the shape of ``like`` [B, N]."""
    # Any other generator: its draws are not tied to an image's position in the step.
    if isinstance(random, StepSeeds):
        return random.uniform(ops.shape(like)[0], like.shape[1])
    return keras.random.uniform(ops.shape(like), seed=random)
