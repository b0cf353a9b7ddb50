"""Dropout of the head without a state variable: its draws depend on seed and step, as all others do.

Keras' own layer keeps a counter in a variable, which would have to be checkpointed, and which replicas cannot
assign. The losses lend their generator to the layers while the head is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
from keras import ops

from tlt_runner.detector import seeds
from tlt_runner.detector.boxes import Tensor

_Draws = tuple[keras.random.SeedGenerator, int]
_draws: ContextVar[_Draws | None] = ContextVar("draws", default=None)


@contextmanager
def drawing(random: keras.random.SeedGenerator, rois: int) -> Iterator[None]:
    """Context in which dropout draws by ``random``, for ``rois`` rows of each image."""
    token = _draws.set((random, rois))
    try:
        yield
    finally:
        _draws.reset(token)


@keras.saving.register_keras_serializable(package="tlt")
class Dropout(keras.layers.Layer):
    """Sets values to zero with a probability in training, and scales the others up; the identity otherwise.

    Source: Srivastava et al., "Dropout" (2014), in the inverted form, in which inference is unchanged.

    Args:
        rate: Probability of a value to be set to zero.
    """

    def __init__(self, rate: float, **options: Any) -> None:
        super().__init__(**options)
        self.rate = rate

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        """Drop values of [B * R, D], the rows of an image next to each other."""
        if not training:
            return inputs
        draws = _draws.get()
        if draws is None:
            raise ValueError(
                f"expected {self.name} to be called in training within dropout.drawing, got no generator: "
                "call the head through the losses"
            )
        random, rois = draws
        # By image, so that an image's draws do not depend on the replica that has it.
        by_image = ops.reshape(inputs, (-1, rois * inputs.shape[-1]))
        kept = ops.reshape(seeds.uniform(by_image, random), ops.shape(inputs)) >= self.rate
        return ops.where(kept, inputs / (1.0 - self.rate), ops.zeros_like(inputs))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Serialise the rate."""
        return {**super().get_config(), "rate": self.rate}
