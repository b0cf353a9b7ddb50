"""Mixed precision: a step computes in 16 bits where that is safe, and the model stays a float32 one.

The layers are told to compute in 16 bits while the step is traced, and in float32 again before anything
else sees the model: evaluation, checkpoints and files know nothing of it. Weights, gradients, the input's
normalisation, the outputs' layers, boxes, pooling, losses and the optimizer are float32; batch normalisation
computes its statistics in float32 (Keras).

bfloat16 has float32's range and needs nothing more. float16, on GPUs before Ampere, has not: the loss is
scaled up, so that small gradients do not vanish, and an update whose gradient overflows is left out.
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
"""The first compute capability with bfloat16."""
LOWEST_SCALE = 1.0
"""Of the loss: where a gradient overflows with this one, it is the loss that is at fault."""
FIRST_SCALE = 2.0**15
LARGEST_SCALE = 2.0**24
GROWTH_STEPS = 2000
"""Updates without overflow after which the scale is doubled."""


def low_dtype(any_worker: Callable[[bool], bool]) -> str:
    """What all workers compute in: float16 where one of their visible devices is a GPU before Ampere.

    Args:
        any_worker: Whether a flag is true on any worker; all of them must call.
    """
    return FLOAT16 if any_worker(_own_dtype() == FLOAT16) else BFLOAT16


def _own_dtype() -> str:
    details = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.get_visible_devices("GPU")]
    return dtype_of([item.get("compute_capability") or AMPERE for item in details])


def dtype_of(capabilities: Sequence[tuple[int, int]]) -> str:
    """What GPUs of these compute capabilities compute in, alone."""
    return FLOAT16 if any(tuple(one) < AMPERE for one in capabilities) else BFLOAT16


@contextmanager
def computing(model: FasterRCNN, dtype: str) -> Iterator[None]:
    """Within it, the model's layers compute in ``dtype``: those that may, on float32 weights."""
    policy = "float32" if dtype == "float32" else f"mixed_{dtype}"
    changed = [layer for layer in [*model.trunk.layers, *model.head.layers] if _may_be_low(layer)]
    before = [layer.dtype_policy for layer in changed]
    try:
        for layer in changed:
            layer.dtype_policy = policy
        yield
    finally:
        for layer, own in zip(changed, before, strict=True):
            layer.dtype_policy = own


def _may_be_low(layer: Any) -> bool:
    fixed = isinstance(layer, (keras.layers.InputLayer, keras.layers.Rescaling))
    return not fixed and not layer.name.startswith(OUTPUT_LAYERS)  # what follows an output has its name


class LossScale:
    """The factor on a float16 loss; made in the strategy's scope.

    It halves when a gradient overflows, and doubles after many that did not.
    """

    def __init__(self) -> None:
        self.value = tf.Variable(FIRST_SCALE, trainable=False)
        self._calm = tf.Variable(0, trainable=False)

    @property
    def variables(self) -> list[Any]:
        """All state."""
        return [self.value, self._calm]

    def adapt(self, finite: tf.Tensor) -> None:
        """Take note, in cross-replica context, of whether the gradient was finite."""
        scale, calm = self.value.read_value(), self._calm.read_value() + 1
        grown = tf.where(calm >= GROWTH_STEPS, tf.minimum(scale * 2.0, LARGEST_SCALE), scale)
        self.value.assign(tf.where(finite, grown, tf.maximum(scale / 2.0, LOWEST_SCALE)))
        self._calm.assign(tf.where(finite & (calm < GROWTH_STEPS), calm, 0))
