"""The optimizers' arithmetic, on the gradient of all replicas together; the trainer calls it once per update.

Keras' optimizers sum and clip the gradients of the replicas themselves, in the wrong order for clipping by
global norm, and pass several times over every variable. TensorFlow's training ops pass once and compute the
same (tests/integration/test_training_steps_optimizers.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tlt_api.training import Optimizer


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
        self.count.assign_add(1)
        count = tf.cast(self.count.read_value(), tf.float32)
        with tf.name_scope("optimizer"):
            for weight, slots, gradient in zip(self._weights, self._slots, gradients, strict=True):
                decay = self._spec.effective_weight_decay if weight.name == "kernel" else 0.0
                strategy.extended.update(
                    weight.value, self._update, args=(gradient, rate, count, decay, *slots), group=True
                )

    def _update(self, weight: Any, gradient: Any, rate: Any, count: Any, decay: float, *slots: Any) -> None:
        """Update one weight on one device."""
        spec, handles = self._spec, [slot.handle for slot in slots]
        if decay:
            weight.assign_sub(rate * decay * weight)
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
                beta1_power=first**count,
                beta2_power=second**count,
                lr=rate,
                beta1=first,
                beta2=second,
                epsilon=spec.effective_epsilon,
                grad=gradient,
            )


def clipped(gradients: Sequence[Any], norm: Any, most: float | None) -> list[Any]:
    """Clip gradients by global norm: scale all of them down where it is above ``most``."""
    if most is None:
        return list(gradients)
    factor = most / tf.maximum(norm, most)
    return [gradient * factor for gradient in gradients]


def _variable(start: tf.Tensor) -> tf.Variable:
    return tf.Variable(start, trainable=False)
