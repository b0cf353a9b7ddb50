"""Run by test_training_steps_replicas: the knobs of a step on two replicas, figures as a JSON file."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tiny_detector import DETERMINISTIC, training_config
from tlt_api.training import Training
from tlt_runner.detector import model as detector
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.training.distributed.workers import Workers
from tlt_runner.training.trainer import FIGURES, INPUTS, Trainer

CONFIG = training_config(["car", "dog"], **DETERMINISTIC)
IMAGES = 4
BATCH = {
    "image": np.random.default_rng(0).uniform(0, 255, (IMAGES, 64, 64, 3)).astype(np.float32),
    "boxes": np.tile(np.array([[4, 4, 30, 30], [30, 30, 60, 60]], np.float32), (IMAGES, 1, 1)),
    "classes": np.tile(np.array([0, 1], np.int32), (IMAGES, 1)),
}


def train(
    strategy: tf.distribute.Strategy, rate: float, steps: int, config: DetectorConfig = CONFIG, **fields: Any
) -> tuple[list[Any], list[dict[str, float]], Any]:
    """The averaged weights after some steps on the same four images, the steps' figures and the model."""
    spec = Training.model_validate({"regularizer": {"type": "none"}, "ema": {"momentum": 0.5}, **fields})
    with strategy.scope():
        model = detector.build(config, seed=1)
    trainer = Trainer(model, spec, strategy)
    figures = []
    for number in range(steps):
        batch = Workers(strategy).split({name: tf.constant(BATCH[name]) for name in INPUTS})
        figures.append(trainer.step(batch, number, rate).numpy().tolist())
    with trainer.averaged():
        weights = [np.copy(np.asarray(variable)) for variable in model.trainable_variables]
    return weights, [dict(zip(FIGURES, row, strict=True)) for row in figures], model


def spread(strategy: tf.distribute.Strategy, model: Any) -> dict[str, float]:
    """Largest difference of moving statistics between the replicas, and to the saved ones."""
    pairs = [
        (np.asarray(one), np.asarray(local))
        for one in moving(model)
        for local in strategy.experimental_local_results(one.value)
    ]
    start = moving(detector.build(model.config, seed=1))
    return {
        "copies": len(pairs) / len(start),
        "apart": furthest(*zip(*pairs, strict=True)),
        "least_moved": min(float(np.abs(a - b).max()) for a, b in zip(start, moving(model), strict=True)),
    }


def moving(model: Any) -> list[Any]:
    """The moving statistics of batch normalisation."""
    names = ("moving_mean", "moving_variance")
    return [one for one in model.non_trainable_variables if one.name in names]


def furthest(left: Iterable[Any], right: Iterable[Any]) -> float:
    """The largest difference."""
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))


def main(arguments: Sequence[str]) -> None:
    """Compare."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    one, two = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    optimizer = {"type": "adamw", "clipNorm": 0.5}
    whole, figures, _ = train(one, 1e-3, 2, optimizer=optimizer)
    parts, of_parts, _ = train(two, 1e-3, 2, optimizer=optimizer, gradientAccumulationSteps=2)
    normed = CONFIG.model_copy(update={"freeze_batch_norm": False})
    knobs = {"gradientAccumulationSteps": 2, "mixedPrecision": True, "xla": True, "optimizer": optimizer}
    _, course, knobbed = train(two, 2e-3, 8, normed, **knobs)
    _, _, plain = train(two, 1e-3, 2, normed)
    Path(arguments[0]).write_text(
        json.dumps(
            {
                "difference": furthest(whole, parts),
                "norm": figures[0]["gradient_norm"],
                "norm_of_parts": of_parts[0]["gradient_norm"],
                "statistics": [spread(two, plain), spread(two, knobbed)],
                "all_knobs": [row["total"] for row in course],
            }
        )
    )
