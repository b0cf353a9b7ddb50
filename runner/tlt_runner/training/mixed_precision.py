"""Mixed precision: steps and evaluations of a training compute in 16 bits where that is safe.

The model stays a float32 model: layers get a 16-bit policy while a step or a detection is traced, and their
float32 policy back before anything else uses the model. Checkpoints and files do not depend on it. Weights,
gradients, input normalisation, output layers, boxes, pooling, losses and the optimizer are float32; batch
normalisation computes its statistics in float32 (Keras).

bfloat16 has the range of float32 and needs nothing more. float16, on GPUs before Ampere, does not: the loss
is scaled up, so that small gradients do not vanish, and an update whose gradient overflows is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from tlt_runner.detector.model import OUTPUT_LAYERS, FasterRCNN

BFLOAT16, FLOAT16 = "bfloat16", "float16"
AMPERE = (8, 0)
"""Lowest compute capability with bfloat16."""
LOWEST_SCALE = 1.0
"""Minimum loss scale; an overflow at this scale means that the loss itself is not finite."""
FIRST_SCALE = 2.0**15
LARGEST_SCALE = 2.0**24
GROWTH_STEPS = 2000
"""Updates without overflow before the scale is doubled."""


def low_dtype(any_worker: Callable[[bool], bool]) -> str:
    """Return the type that all workers compute in: float16 if one of their visible GPUs is older than Ampere.

    Args:
        any_worker: Returns whether a flag is true on any worker; all of them must call it.
    """
    return FLOAT16 if any_worker(_local_dtype() == FLOAT16) else BFLOAT16


def _local_dtype() -> str:
    # A device that does not name its capability is taken for a new one.
    details = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.get_visible_devices("GPU")]
    return dtype_of([item.get("compute_capability") or AMPERE for item in details])


def dtype_of(capabilities: Sequence[tuple[int, int]]) -> str:
    """Return the type for GPUs of these compute capabilities."""
    return FLOAT16 if any(tuple(capability) < AMPERE for capability in capabilities) else BFLOAT16


@contextmanager
def computing(model: FasterRCNN, dtype: str) -> Iterator[None]:
    """Context in which the layers compute in ``dtype`` on float32 weights, except those that need float32."""
    # mixed_*: 16-bit arithmetic on float32 variables.
    policy = "float32" if dtype == "float32" else f"mixed_{dtype}"
    lowered = _layers_that_may_be_low(model)
    policies = [layer.dtype_policy for layer in lowered]
    # Keras reads a layer's policy at each call, so it holds for what is traced in here.
    try:
        for layer in lowered:
            layer.dtype_policy = policy
        yield
    finally:
        for layer, previous in zip(lowered, policies, strict=True):
            layer.dtype_policy = previous


def low_weights(model: FasterRCNN, dtype: str) -> set[int]:
    """Return the ids (``id(variable)``) of the trainable weights that layers use in ``dtype``."""
    if dtype == "float32":
        return set()
    # Batch normalisation is the layer whose own weights stay float32 while it computes in 16 bits.
    casting = [
        layer
        for layer in _layers_that_may_be_low(model)
        if not isinstance(layer, keras.layers.BatchNormalization)
    ]
    return {id(weight) for layer in casting for weight in layer.trainable_variables}


def _layers_that_may_be_low(model: FasterRCNN) -> list[Any]:
    return [layer for layer in [*model.trunk.layers, *model.head.layers] if _may_be_low(layer)]


def _may_be_low(layer: Any) -> bool:
    # Pixels of 0 to 255 minus their mean would be rounded in 16 bits.
    fixed = isinstance(layer, (keras.layers.InputLayer, keras.layers.Rescaling))
    # Layers that follow an output layer have its name as prefix.
    return not fixed and not layer.name.startswith(OUTPUT_LAYERS)


class LossScale:
    """The factor on a float16 loss; created in the strategy's scope.

    It halves when a gradient overflows, and doubles after GROWTH_STEPS that did not.
    """

    def __init__(self) -> None:
        self.value = tf.Variable(FIRST_SCALE, trainable=False)
        self._steps_without_overflow = tf.Variable(0, trainable=False)

    @property
    def variables(self) -> list[Any]:
        """Variables to save in a checkpoint."""
        # Both, so that a resumed training skips the same steps as an uninterrupted one.
        return [self.value, self._steps_without_overflow]

    def adapt(self, finite: tf.Tensor) -> None:
        """Update the scale, in cross-replica context, by whether the gradient was finite."""
        # tf.where in place of branches: this runs inside the compiled step.
        scale, steps = self.value.read_value(), self._steps_without_overflow.read_value() + 1
        # Scales are powers of 2: multiplying by them rounds nothing.
        grown = tf.where(steps >= GROWTH_STEPS, tf.minimum(scale * 2.0, LARGEST_SCALE), scale)
        self.value.assign(tf.where(finite, grown, tf.maximum(scale / 2.0, LOWEST_SCALE)))
        self._steps_without_overflow.assign(tf.where(finite & (steps < GROWTH_STEPS), steps, 0))
