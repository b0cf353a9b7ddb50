"""Run by test_training_replicas: three steps on one and on two replicas, figures as one line of JSON."""

import json

import numpy as np
import tensorflow as tf

from tlt_api.training import Optimizer, Training
from tlt_runner.detector import model as detector
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.training.trainer import FIGURES, Trainer

CONFIG = DetectorConfig.model_validate(
    {
        "classNames": ["car", "dog"],
        "height": 64,
        "width": 64,
        "backbone": "resnet10",
        "widthMultiplier": 0.125,
        "anchors": {"scales": [24], "ratios": [1.0]},
        "proposals": {"miniBatch": 16, "training": {"preNms": 15, "postNms": 8}},
        "roi": {"poolSize": 4, "miniBatch": 8},
        "maxObjects": 2,
    }
)


def train(strategy: tf.distribute.Strategy) -> tuple[Trainer, list[str], float]:
    """Three steps on the same four images."""
    with strategy.scope():
        model = detector.build(CONFIG, seed=1)
    trainer = Trainer(model, Training(optimizer=Optimizer(type="sgd")), strategy)
    images = {
        "image": np.random.default_rng(0).uniform(0, 255, (4, 64, 64, 3)).astype(np.float32),
        "boxes": np.tile(np.array([[4, 4, 30, 30], [30, 30, 60, 60]], np.float32), (4, 1, 1)),
        "classes": np.tile(np.array([0, 1], np.int32), (4, 1)),
        "id": np.array(["a", "b", "c", "d"]),
    }
    data = tf.data.Dataset.from_tensor_slices(images).batch(4, drop_remainder=True).repeat(3)
    for number, batch in enumerate(trainer.distribute(data)):
        figures = trainer.step(batch, number, 1e-3)
        ids = trainer.image_ids(batch)
    return trainer, ids, float(figures[FIGURES.index("penalty")])


def main() -> None:
    """Compare."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    _, _, penalty_of_one = train(tf.distribute.get_strategy())
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    trainer, ids, penalty = train(strategy)
    pairs = [strategy.experimental_local_results(v.value) for v in trainer.model.trainable_variables]
    fresh = detector.build(CONFIG, seed=1).trainable_variables
    print(
        json.dumps(
            {
                "replicas": strategy.num_replicas_in_sync,
                "ids": ids,
                "penalty": penalty,
                "penalty_of_one": penalty_of_one,
                "largest_difference_between_replicas": max(
                    float(np.abs(pair[0].numpy() - pair[-1].numpy()).max()) for pair in pairs
                ),
                "moved": max(
                    float(np.abs(pair[0].numpy() - np.asarray(start)).max())
                    for pair, start in zip(pairs, fresh, strict=True)
                ),
            }
        )
    )


if __name__ == "__main__":
    main()
