"""A whole training step against bare forward and backward of its convolutions: what detection costs.

The reference runs the same trunk and head, on as many images and pooled proposals, and takes the same
gradients; the step adds targets, proposals with suppression, RoI pooling, losses, penalty and optimizer. CPU
time of this process, interleaved, medians.

    python benchmarks/train_step.py        # the model of manifests/samples/digits, batch 4
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from tlt_api.training import Optimizer, Training
from tlt_runner.detector import model as detector
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.training.trainer import Trainer

BATCH, SIZE, OBJECTS, ROUNDS = 4, 192, 4, 15
CONFIG = DetectorConfig.model_validate(
    {
        "classNames": [str(digit) for digit in range(10)],
        "height": SIZE,
        "width": SIZE,
        "backbone": "resnet10",
        "widthMultiplier": 0.25,
        "anchors": {"scales": [24, 40, 64], "ratios": [1.0, 0.7]},
        "proposals": {"miniBatch": 128, "training": {"preNms": 200, "postNms": 50}},
        "roi": {"poolSize": 7, "miniBatch": 16, "positiveFraction": 0.5},
        "maxObjects": 16,
    }
)


def main() -> None:
    model = detector.build(CONFIG, seed=1)
    trainer = Trainer(model, Training(optimizer=Optimizer(type="adam")), tf.distribute.get_strategy())
    batch = _batch()
    channels = model.head.input_shape[-1]
    pooled = tf.random.normal((BATCH * CONFIG.roi.mini_batch, 7, 7, channels))
    bare = _bare(model, batch["image"], pooled)
    step, reference = _medians(lambda: trainer.step(batch, 1, 1e-4).numpy(), lambda: bare().numpy())
    figures = {
        "benchmark": "train_step",
        "step_ms": round(step * 1e3, 1),
        "convolutions_ms": round(reference * 1e3, 1),
        "ratio": round(step / reference, 3),
    }
    print(json.dumps(figures))


def _batch() -> dict[str, Any]:
    random = np.random.default_rng(0)
    corner = random.uniform(0, SIZE - 64, (BATCH, OBJECTS, 2))
    boxes = np.zeros((BATCH, CONFIG.max_objects, 4), np.float32)
    boxes[:, :OBJECTS] = np.concatenate([corner, corner + random.uniform(24, 64, corner.shape)], axis=-1)
    classes = np.full((BATCH, CONFIG.max_objects), -1, np.int32)
    classes[:, :OBJECTS] = random.integers(0, 10, (BATCH, OBJECTS))
    image = random.uniform(0, 255, (BATCH, SIZE, SIZE, 3)).astype(np.float32)
    return {"image": tf.constant(image), "boxes": tf.constant(boxes), "classes": tf.constant(classes)}


def _bare(model: detector.FasterRCNN, images: tf.Tensor, pooled: tf.Tensor) -> Callable[[], tf.Tensor]:
    @tf.function
    def run() -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(pooled)
            of_trunk, of_head = model.trunk(images, training=True), model.head(pooled, training=True)
            outputs = [*of_trunk.values(), *of_head.values()]
            total = tf.add_n([tf.reduce_sum(output) for output in outputs])
        gradients = tape.gradient(total, [*model.trainable_variables, pooled])
        return tf.add_n([tf.reduce_sum(gradient) for gradient in gradients])

    return run


def _medians(*runs: Callable[[], object]) -> list[float]:
    for run in runs:
        run()
        run()
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, times in zip(runs, taken, strict=True):
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
    return [statistics.median(times) for times in taken]


if __name__ == "__main__":
    main()
