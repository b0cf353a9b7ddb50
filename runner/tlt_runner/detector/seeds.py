"""Random draws that depend on seed and step only: nothing to store, a resumed training draws the same."""

from __future__ import annotations

import keras
from keras import ops

from tlt_runner.detector.boxes import Tensor


class StepDraws(keras.random.SeedGenerator):
    """A source of seeds for ``keras.random`` without a state variable.

    Keras' own generator keeps a counter in a variable, which would have to be checkpointed and, with several
    replicas, be kept apart on each.

    Args:
        seed: The training's seed.
        step: Scalar tensor: a number of its own for every step.
        replica: Scalar tensor: which part of the step's images the draws are for.
        replicas: Parts that the step's images are in, all of one size.
    """

    def __init__(self, seed: int, step: Tensor, replica: Tensor = 0, replicas: int = 1) -> None:
        self._of_training = seed
        self._step = ops.cast(step, "uint32")
        self._replica, self._replicas = replica, replicas
        self._draws = 0

    def next(self, ordered: bool = True) -> Tensor:
        """The next seed, uint32 [2]."""
        self._draws += 1
        return ops.stack([ops.cast((self._of_training * 7919 + self._draws) % 2**31, "uint32"), self._step])

    def uniform(self, images: Tensor, count: int) -> Tensor:
        """Draws [images, count] from 0 to 1: an image's depend on its place in the step, not on the replica.

        All replicas draw for all images and take their own: a few thousand numbers.
        """
        drawn = keras.random.uniform((images * self._replicas, count), seed=self)
        first = ops.cast(self._replica, "int32") * ops.cast(images, "int32")
        return ops.slice(drawn, (first, 0), (images, count)) if self._replicas > 1 else drawn


def uniform(like: Tensor, random: keras.random.SeedGenerator) -> Tensor:
    """Draws of the shape of ``like`` [B, N], from 0 to 1."""
    if isinstance(random, StepDraws):
        return random.uniform(ops.shape(like)[0], like.shape[1])
    return keras.random.uniform(ops.shape(like), seed=random)
