"""Cost of a step's arithmetic on all weights, by how weights are grouped: penalty, norm and update.

Three ways to the same numbers, on random gradients of a detector's weights in float32:

- each: every weight by itself, the penalty differentiated, as until 2026-11.
- groups: ``tlt_runner.training.weight_groups`` as in training.
- flat: the same code with one group for all kernels and one for all other weights.

In each of them the optimizer is one fused op a weight. Prints medians of CPU time, in turns, and the kernels
that each launches on a GPU (as benchmarks/step_ops.py counts).

    nice python benchmarks/step_update.py
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import step_ops
import tensorflow as tf
import train_step

from tlt_api.training import Training
from tlt_runner.detector import losses
from tlt_runner.detector import model as detector
from tlt_runner.training.optimizer import Updates
from tlt_runner.training.weight_groups import WeightGroups

RATE = 1e-6
SPEC = Training()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    model = detector.build(train_step.configure(arguments.backbone, 256, {}), seed=1)
    weights = model.trainable_variables
    gradients = [tf.random.normal(weight.shape) for weight in weights]
    everything = {id(weight) for weight in weights}
    ways = {
        "each": each(weights),
        "groups": grouped(weights, WeightGroups(weights, set(), "float32")),
        "flat": grouped(weights, WeightGroups(weights, everything, "float32")),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(arguments.rounds + 2):
        for name, way in ways.items():
            began = time.process_time()
            way(gradients).numpy()
            # The first two rounds trace, and make the memory that the others use again.
            if number > 1:
                taken[name].append(time.process_time() - began)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    figures = {
        "benchmark": "step_update",
        "backbone": arguments.backbone,
        "weights": len(weights),
        "cpu_ms": {name: round(1e3 * median, 1) for name, median in medians.items()},
        "cpu_ratio_to_each": {name: round(median / medians["each"], 2) for name, median in medians.items()},
        "ops": {name: launched(way, gradients) for name, way in ways.items()},
    }
    print(json.dumps(figures))


def each(weights: Sequence[Any]) -> Callable[[Any], Any]:
    """Every weight by itself."""
    updates = Updates(SPEC.optimizer, weights)
    kernels = [weight for weight in weights if weight.name == "kernel"]

    @tf.function
    def run(gradients: list[tf.Tensor]) -> tf.Tensor:
        with tf.GradientTape() as tape:
            squares = [tf.reduce_sum(tf.square(kernel)) for kernel in kernels]
            penalty = SPEC.regularizer.weight * tf.add_n(squares)
        pulls = {
            id(kernel): pull for kernel, pull in zip(kernels, tape.gradient(penalty, kernels), strict=True)
        }
        summed = [
            gradient + pulls[id(weight)] if id(weight) in pulls else gradient
            for weight, gradient in zip(weights, gradients, strict=True)
        ]
        norm = tf.linalg.global_norm(summed)
        updates.apply(tf.distribute.get_strategy(), summed, tf.constant(RATE))
        return penalty + norm

    return run


def grouped(weights: Sequence[Any], groups: WeightGroups) -> Callable[[Any], Any]:
    """Weights in groups, with the trainer's functions."""
    updates = Updates(SPEC.optimizer, weights)

    @tf.function
    def run(gradients: list[tf.Tensor]) -> tf.Tensor:
        kernels = groups.penalised(groups.current())
        pulls = losses.penalty_gradients(kernels, SPEC.regularizer)
        summed = groups.added(groups.gathered(gradients), pulls)
        norm = tf.linalg.global_norm(summed)
        updates.apply(tf.distribute.get_strategy(), groups.split(summed), tf.constant(RATE))
        return losses.penalty(kernels, SPEC.regularizer) + norm

    return run


def launched(way: Any, gradients: list[tf.Tensor]) -> int:
    return len(step_ops.launching_ops(way.get_concrete_function(gradients).graph))


if __name__ == "__main__":
    main()
