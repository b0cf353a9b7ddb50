"""A Keras detector as the function that :func:`tlt_runner.evaluation.evaluate.evaluate` takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray

from tlt_runner.evaluation.evaluate import Detect, Images


def of_keras(model: Callable[..., Any]) -> Detect:
    """The model (images to a mapping of tensors) as a function of arrays, compiled once a batch size."""
    compiled = tf.function(lambda images: model(tf.cast(images, tf.float32), training=False))

    def detect(images: Images) -> dict[str, NDArray[Any]]:
        return {name: value.numpy() for name, value in compiled(tf.constant(images)).items()}

    return detect
