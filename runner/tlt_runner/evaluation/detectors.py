"""Adapts a Keras detector to the function that :func:`tlt_runner.evaluation.evaluate.evaluate` takes.

A module of its own, because it needs TensorFlow and evaluation does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray

from tlt_runner.evaluation.evaluate import Detect, Images


def of_keras(model: Callable[..., Any]) -> Detect:
    """Compile a model, once for each batch size, into a function from images to a mapping of arrays.

    Args:
        model: Images [B, H, W, 3] to a mapping of tensors, as :class:`tlt_runner.detector.model.FasterRCNN`.
    """
    # Cast in the graph, so that images travel to the device as bytes.
    compiled = tf.function(lambda images: model(tf.cast(images, tf.float32), training=False))

    def detect(images: Images) -> dict[str, NDArray[Any]]:
        return {name: value.numpy() for name, value in compiled(tf.constant(images)).items()}

    return detect
