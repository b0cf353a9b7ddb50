"""Run by test_training_replicas: one training on one device and on two, figures as a JSON file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import tiny
import training_workers
from tlt_api.runspec import RunSpec
from tlt_runner.detector import model as detector
from tlt_runner.tasks import train
from tlt_runner.training.distributed import workers
from tlt_runner.training.distributed.workers import Workers


def run(scenes: Path, output: Path, batch_size: int, strategy: Any) -> tuple[list[np.ndarray], Any]:
    """Train to the end on a strategy's devices; the last model's weights, and the best one's metrics."""
    workers.claim = lambda *_: Workers(strategy)  # the only way to have two devices without GPUs
    spec = RunSpec.model_validate(training_workers.run_spec(scenes, output, batch_size))
    reporter = tiny.execute(train, spec, output / "scratch")
    return detector.load(output / "last.keras").get_weights(), reporter.snapshot().metrics


def main(arguments: Sequence[str]) -> None:
    """Compare."""
    scenes, folder = map(Path, arguments)
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    one, judged_one = run(scenes, folder / "one", 4, tf.distribute.get_strategy())
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    two, judged_two = run(scenes, folder / "two", 2, mirrored)
    figures = {
        "replicas": mirrored.num_replicas_in_sync,
        "largest_relative_difference": max(
            float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6)) for a, b in zip(one, two, strict=True)
        ),
        "maps": [judged_one.m_ap, judged_two.m_ap],
    }
    (folder / "figures.json").write_text(json.dumps(figures))
