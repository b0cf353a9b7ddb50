"""Averaged weights: each is the exponential moving average of what the weight was after every update.

Of trainable weights only; batch normalisation's statistics are moving averages already. They start as the
weights are, and the momentum grows with the number of updates t as (1 + t) / (10 + t) until it is the spec's:
so the average forgets the start of a training within tens of updates (tf.train.ExponentialMovingAverage).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tlt_api.training import Ema


class Averages:
    """The averages of some weights; made in the strategy's scope.

    Args:
        spec: The momentum.
        weights: Keras variables.
    """

    def __init__(self, spec: Ema, weights: Sequence[Any]) -> None:
        self._momentum = spec.momentum
        self._weights = list(weights)
        self.variables = [tf.Variable(tf.convert_to_tensor(weight), trainable=False) for weight in weights]

    def follow(self, strategy: Any, count: tf.Tensor) -> None:
        """Move the averages after an update, in cross-replica context; ``count`` updates were made."""
        count = tf.cast(count, tf.float32)
        share = 1.0 - tf.minimum(self._momentum, (1.0 + count) / (10.0 + count))
        for average, weight in zip(self.variables, self._weights, strict=True):
            strategy.extended.update(average, _move, args=(weight.value, share), group=True)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the weights and their averages have changed places."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for average, weight in zip(self.variables, self._weights, strict=True):
            own = tf.identity(weight.value)
            weight.assign(tf.identity(average))
            average.assign(own)


def _move(average: Any, weight: Any, share: Any) -> None:
    average.assign_add(share * (weight - average))
