"""Exponential moving averages (EMA) of the trainable weights, updated after every update of the weights.

Batch normalisation's statistics are moving averages already and are left out. Averages start with the initial
weights, and the decay grows with the number of updates t as (1 + t) / (10 + t) up to the spec's: the initial
weights are forgotten within tens of updates (tf.train.ExponentialMovingAverage).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tlt_api.training import Ema


class Averages:
    """EMA of weights; created in the strategy's scope.

    Args:
        spec: EMA decay.
        weights: Keras variables.
    """

    def __init__(self, spec: Ema, weights: Sequence[Any]) -> None:
        self._decay = spec.momentum
        self._weights = list(weights)
        self.variables = [tf.Variable(tf.convert_to_tensor(weight), trainable=False) for weight in weights]

    def follow(self, strategy: Any, count: tf.Tensor) -> None:
        """Update the averages after update number ``count``, in cross-replica context."""
        count = tf.cast(count, tf.float32)
        share = 1.0 - tf.minimum(self._decay, (1.0 + count) / (10.0 + count))
        for average, weight in zip(self.variables, self._weights, strict=True):
            strategy.extended.update(average, _move, args=(weight.value, share), group=True)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Context in which weights and averages have changed places."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for average, weight in zip(self.variables, self._weights, strict=True):
            current = tf.identity(weight.value)
            weight.assign(tf.identity(average))
            average.assign(current)


def _move(average: Any, weight: Any, share: Any) -> None:
    average.assign_add(share * (weight - average))
