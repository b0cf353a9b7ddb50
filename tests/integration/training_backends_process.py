"""Run by test_training_backends: trains a tiny detector with Keras' own fit, on the backend of KERAS_BACKEND.

Arguments: a model file to start from, a file for the trained model's detections. Prints the losses as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from tlt_api.training import Regularizer
from tlt_runner.detector import losses
from tlt_runner.detector import model as detector
from tlt_runner.detector.seeds import StepSeeds

STEPS, IMAGES = 12, 2


class Fit(keras.Model):
    """A detector whose output is its loss."""

    def __init__(self, model: detector.FasterRCNN) -> None:
        super().__init__()
        self.detector = model

    def call(self, batch: dict[str, Any]) -> Any:
        """The total loss [1]."""
        draws = StepSeeds(1, batch["number"][0])
        parts = losses.losses(self.detector, batch["image"], batch["boxes"], batch["classes"], draws)
        kernels = [weight for weight in self.detector.trainable_variables if weight.name == "kernel"]
        return ops.reshape(ops.sum(parts) + losses.penalty(kernels, Regularizer()), (1,))

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The sum of the losses that :meth:`call` computed."""
        return ops.sum(y_pred)


def main() -> None:
    """Write the detections of a model, then train it and print its losses."""
    source, target = map(Path, sys.argv[1:])
    model = detector.load(source)
    images = np.random.default_rng(0).uniform(0, 255, (IMAGES, 64, 64, 3)).astype(np.float32)
    before = {name: np.asarray(value) for name, value in model(images).items()}
    np.savez(target, **before)
    fit = Fit(model)
    fit.compile(optimizer=keras.optimizers.Adam(1e-3))
    batch = {
        "image": images,
        "boxes": np.tile(np.array([[4, 4, 30, 30], [30, 30, 60, 60]], np.float32), (IMAGES, 1, 1)),
        "classes": np.tile(np.array([0, 1], np.int32), (IMAGES, 1)),
    }
    course = []
    for number in range(STEPS):
        numbered = {**batch, "number": np.full(IMAGES, number, np.int32)}
        course.append(float(fit.train_on_batch(numbered, np.zeros(IMAGES, np.float32))))
    print(json.dumps({"backend": keras.backend.backend(), "losses": course}))


if __name__ == "__main__":
    main()
