"""The optimizers' arithmetic and the averages of the weights; the trainer calls both once per update.

The gradient is that of all replicas together. Keras' optimizers sum and clip the gradients of the replicas
themselves, in the wrong order for clipping by global norm, and pass several times over every variable.
TensorFlow's training ops pass once and compute the same
(tests/integration/test_training_steps_optimizers.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tlt_api.training import Ema, Optimizer


class Updates:
    """Applies gradients to weights; created in the strategy's scope.

    Args:
        spec: Type and parameters of the optimizer.
        weights: Trainable Keras variables.
    """

    def __init__(self, spec: Optimizer, weights: Sequence[Any]) -> None:
        self._spec = spec
        self._weights = list(weights)
        self.count = _variable(tf.zeros((), tf.int64))
        # Moments, one or two of the weight's shape, as the type of the optimizer needs.
        self._slots = [
            [_variable(tf.zeros(weight.shape)) for _ in range(spec.slots_per_weight)] for weight in weights
        ]

    @property
    def variables(self) -> list[Any]:
        """Variables to save in a checkpoint: the number of updates, and the moments."""
        return [self.count, *(slot for slots in self._slots for slot in slots)]

    def apply(self, strategy: Any, gradients: Sequence[Any], rate: tf.Tensor) -> None:
        """Apply one update, in cross-replica context.

        Args:
            strategy: The strategy of the weights.
            gradients: One for each weight, the same on all replicas.
            rate: Learning rate, scalar.
        """
        # Updates, not steps: one that is skipped because its gradient overflowed is not counted.
        self.count.assign_add(1)
        count = tf.cast(self.count.read_value(), tf.float32)
        with tf.name_scope("optimizer"):
            # The moments' bias is corrected by these powers of beta; the first update has the power 1.
            powers = [beta**count for beta in self._spec.betas] if self._spec.type.startswith("adam") else []
            decayed = rate * self._spec.effective_weight_decay
            for weight, slots, gradient in zip(self._weights, self._slots, gradients, strict=True):
                # Biases and batch normalisation do not decay, as with the regularizer.
                decay = decayed if self._spec.effective_weight_decay and weight.name == "kernel" else None
                # On every replica with the same gradient: the copies stay equal without being exchanged.
                strategy.extended.update(
                    weight.value, self._update, args=(gradient, rate, powers, decay, *slots), group=True
                )

    def _update(self, weight: Any, gradient: Any, rate: Any, powers: Any, decay: Any, *slots: Any) -> None:
        """Update one weight on one device: one op, and another one where the weight decays."""
        spec, handles = self._spec, [slot.handle for slot in slots]
        # Decoupled weight decay (AdamW): the weight itself shrinks, and the moments do not see it.
        if decay is not None:
            tf.raw_ops.ResourceApplyGradientDescent(var=weight.handle, alpha=decay, delta=weight.read_value())
        if spec.type == "rmsprop":
            tf.raw_ops.ResourceApplyRMSProp(
                var=weight.handle,
                ms=handles[0],
                mom=handles[1],
                lr=rate,
                rho=spec.effective_rho,
                momentum=spec.effective_momentum,
                epsilon=spec.effective_epsilon,
                grad=gradient,
            )
        elif spec.type == "sgd":
            # Keras' momentum: the rate is inside the accumulator, so that a change of it acts gradually.
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=weight.handle,
                accum=handles[0],
                lr=rate,
                grad=gradient,
                momentum=spec.effective_momentum,
                use_nesterov=spec.nesterov,
            )
        else:
            first, second = spec.betas
            tf.raw_ops.ResourceApplyAdam(
                var=weight.handle,
                m=handles[0],
                v=handles[1],
                beta1_power=powers[0],
                beta2_power=powers[1],
                lr=rate,
                beta1=first,
                beta2=second,
                epsilon=spec.effective_epsilon,
                grad=gradient,
            )


class Averages:
    """Exponential moving averages (EMA) of the weights; created in the strategy's scope.

    Batch normalisation's statistics are moving averages already and are left out. Averages start with the
    initial weights, and the decay grows with the number of updates t as (1 + t) / (10 + t) up to the spec's:
    the initial weights are forgotten within tens of updates (tf.train.ExponentialMovingAverage).

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
        # average = decay * average + (1 - decay) * weight, as average += share * (weight - average).
        with tf.name_scope("averages"):
            share = 1.0 - tf.minimum(self._decay, (1.0 + count) / (10.0 + count))
            for average, weight in zip(self.variables, self._weights, strict=True):
                strategy.extended.update(average, _move, args=(weight.value, share), group=True)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Context in which weights and averages have changed places."""
        # Swapped in place and not into a second model: no further copy of the weights in memory.
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for average, weight in zip(self.variables, self._weights, strict=True):
            # A copy, because the next line overwrites the variable.
            current = tf.identity(weight.value)
            weight.assign(tf.identity(average))
            average.assign(current)


def clipped(gradients: Sequence[Any], norm: Any, limit: float | None) -> list[Any]:
    """Clip gradients by global norm: scale all of them down where it is above ``limit``."""
    # Not asked for.
    if limit is None:
        return list(gradients)
    # No branch: at a norm of at most the limit the factor is 1.
    factor = limit / tf.maximum(norm, limit)
    return [gradient * factor for gradient in gradients]


def _variable(start: tf.Tensor) -> tf.Variable:
    return tf.Variable(start, trainable=False)


def _move(average: Any, weight: Any, share: Any) -> None:
    # average -= share * (average - weight), in two passes over the memory.
    difference = average.read_value() - weight
    tf.raw_ops.ResourceApplyGradientDescent(var=average.handle, alpha=share, delta=difference)
