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
        step: Scalar tensor: a number of its own for every step, and for every replica.
    """

    def __init__(self, seed: int, step: Tensor) -> None:
        self._of_training = seed
        self._step = ops.cast(step, "uint32")
        self._draws = 0

    def next(self, ordered: bool = True) -> Tensor:
        """The next seed, uint32 [2]."""
        self._draws += 1
        return ops.stack([ops.cast((self._of_training * 7919 + self._draws) % 2**31, "uint32"), self._step])
