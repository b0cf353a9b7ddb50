"""Cost of detection beside its convolutions: a training step and inference, each against the bare network.

The reference runs the same trunk and head on tensors of the same shapes: forward and backward with all
gradients in training, forward only in inference. A training step adds targets, proposals with suppression,
RoI pooling, losses, penalty and optimizer; inference adds proposals, pooling and the final suppression. The
two take turns; a ratio is the median of the rounds' ratios, of CPU time of this process and of wall time.
Peak memory is that of a child process that takes three steps, complete or of the bare network, less its peak
after importing TensorFlow. Pooling is timed alone, forward and backward, for the step's number of proposals
and for half of them: the difference is the cost of a proposal, without what the map costs (its
gradient is as large as the map).

    nice python benchmarks/train_step.py
    nice python benchmarks/train_step.py --backbone resnet18 --size 384 --batch 4 --rounds 9
    nice python benchmarks/train_step.py --size 1920x1088 --batch 1 --rounds 3
    nice python benchmarks/train_step.py --roi '{"head": "light"}'
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import random_batch
import tensorflow as tf

from tlt_api.training import Training
from tlt_runner.detector import model as detector
from tlt_runner.detector import roi
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.training.trainer import Trainer

STEPS_FOR_MEMORY = 3
POOLING_ROUNDS = 31


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--memory", choices=["complete", "bare"], help="print the peak of this process in such steps only"
    )
    arguments = parser.parse_args()
    config = configure(arguments.backbone, arguments.size, arguments.roi)
    if arguments.memory:
        print(peak_of_steps(config, arguments.batch, arguments.memory == "bare"))
        return
    model = detector.build(config, seed=1)
    batch = examples(config, arguments.batch)
    step, bare_step = training(model, batch), bare_training(model, batch["image"])
    detect, bare_forward = inference(model, batch["image"])
    peak, bare_peak = (peak_in_child([*sys.argv[1:], "--memory", which]) for which in ("complete", "bare"))
    figures = {
        "benchmark": "train_step",
        "config": described(config, arguments),
        "training": compare(step, bare_step, arguments.rounds),
        "inference": compare(detect, bare_forward, arguments.rounds),
        "peak_megabytes": peak,
        "peak_bare_megabytes": bare_peak,
        "peak_ratio": round(peak / bare_peak, 3),
    }
    pooled = pooling(model, arguments.batch)
    share = pooled["cpu_ms"] / figures["training"]["cpu_ms"]
    figures["pooling"] = {**pooled, "share_of_step": round(share, 4)}
    print(json.dumps(figures))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The detector and the batch that are measured."""
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=size_of, default=(256, 256), help="pixels: 256, or 1920x1088 (W x H)")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--roi", type=json.loads, default={}, help="fields of spec.model.roi, as JSON")


def size_of(text: str) -> tuple[int, int]:
    """Height and width of "256" or of "1920x1088", which is width x height."""
    width, _, height = text.partition("x")
    return int(height or width), int(width)


def configure(backbone: str, size: tuple[int, int], roi: dict[str, Any]) -> DetectorConfig:
    """The API's defaults, but 64 proposals an image for the head, and what is given."""
    return DetectorConfig.model_validate(
        {
            "classNames": [f"class{number}" for number in range(random_batch.CLASSES)],
            "height": size[0],
            "width": size[1],
            "backbone": backbone,
            "roi": {"miniBatch": random_batch.PROPOSALS, **roi},
        }
    )


def described(config: DetectorConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the measured configuration, for the printed line."""
    return {
        "backbone": config.backbone,
        "size": "{1}x{0}".format(*arguments.size),
        "batch": arguments.batch,
        "roi": config.roi.to_wire(),
        "proposals": config.proposals.to_wire(),
        "cores": os.cpu_count(),
    }


def examples(config: DetectorConfig, batch: int) -> dict[str, Any]:
    """A batch as the pipeline gives it: images as bytes, padded objects."""
    arrays = random_batch.examples((config.height, config.width), batch, config.max_objects)
    return {name: tf.constant(array) for name, array in arrays.items()}


def training(model: detector.FasterRCNN, batch: dict[str, Any]) -> Callable[[], object]:
    """A whole step as ``tlt train`` takes it, with the default optimizer and penalty."""
    trainer = Trainer(model, Training(), tf.distribute.get_strategy())
    return lambda: trainer.step(batch, 1, 1e-6).numpy()


def bare_training(model: detector.FasterRCNN, images: tf.Tensor) -> Callable[[], object]:
    """Trunk and head, forward and backward: the gradients of all weights and of the pooled features."""
    config = model.config
    boxes = images.shape[0] * config.roi.mini_batch
    pooled = tf.random.normal((boxes, *model.head.input_shape[1:]))
    images = tf.cast(images, tf.float32)

    @tf.function
    def run(images: tf.Tensor, pooled: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            tape.watch(pooled)
            outputs = [*model.trunk(images, training=True).values()]
            outputs += model.head(pooled, training=True).values()
            total = tf.add_n([tf.reduce_mean(tf.square(output)) for output in outputs])
        return total, tape.gradient(total, [*model.trainable_variables, pooled])

    return lambda: run(images, pooled)[0].numpy()


def inference(
    model: detector.FasterRCNN, images: tf.Tensor
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Detection, and the forward pass of trunk and head for as many proposals."""
    images = tf.cast(images, tf.float32)
    boxes = images.shape[0] * model.config.proposals.inference.post_nms
    pooled = tf.random.normal((boxes, *model.head.input_shape[1:]))

    @tf.function
    def bare(images: tf.Tensor, pooled: tf.Tensor) -> list[tf.Tensor]:
        return [*model.trunk(images, training=False).values(), *model.head(pooled, training=False).values()]

    detect = tf.function(lambda images: model(images))
    return lambda: detect(images)["count"].numpy(), lambda: bare(images, pooled)[0].numpy()


def pooling(model: detector.FasterRCNN, batch: int) -> dict[str, float]:
    """CPU milliseconds of pooling in a step, forward and backward, and microseconds for one proposal more."""
    count = model.config.roi.mini_batch
    runs = [pooling_of(model, batch, count), pooling_of(model, batch, count // 2)]
    taken: list[list[float]] = [[], []]
    for _ in range(POOLING_ROUNDS):
        for run, times in zip(runs, taken, strict=True):
            began = time.process_time()
            run()
            times.append(time.process_time() - began)
    differences = [whole - half for whole, half in zip(*taken, strict=True)]
    return {
        "cpu_ms": round(1e3 * statistics.median(taken[0]), 2),
        "cpu_us_per_proposal": round(1e6 * statistics.median(differences) / (count - count // 2) / batch, 1),
    }


def pooling_of(model: detector.FasterRCNN, batch: int, count: int) -> Callable[[], object]:
    """Pooling alone, forward and backward, for ``count`` proposals of each image."""
    config, random = model.config, np.random.default_rng(0)
    channels = model.head.input_shape[-1]
    features = tf.random.normal((batch, config.feature_height, config.feature_width, channels))
    # The same boxes at any image size, within 256 pixels: boxes far apart share no cells in a core's cache.
    sides = random.uniform(32, 224, (batch, count, 2))
    first = random.uniform(0, 1, sides.shape) * (256 - sides)
    boxes = tf.constant(np.concatenate([first, first + sides], axis=-1), tf.float32)
    upstream = tf.random.normal((batch * count, *model.head.input_shape[1:]))

    @tf.function
    def run(features: tf.Tensor, boxes: tf.Tensor, upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = roi.pool(features, boxes, config.roi.pool_size, config.roi.sampling)
        # Both are results: the gradient alone would not need the pooled values.
        return pooled, tape.gradient(pooled, features, upstream)

    run(features, boxes, upstream)
    return lambda: run(features, boxes, upstream)


def compare(whole: Callable[[], object], bare: Callable[[], object], rounds: int) -> dict[str, float]:
    """Medians of both in milliseconds, and of the rounds' ratios."""
    for run in (whole, bare, whole, bare):
        run()
    cpu: dict[str, list[float]] = {"whole": [], "bare": []}
    wall: dict[str, list[float]] = {"whole": [], "bare": []}
    for number in range(rounds):
        for name, run in sorted({"whole": whole, "bare": bare}.items(), reverse=bool(number % 2)):
            began, began_cpu = time.perf_counter(), time.process_time()
            run()
            cpu[name].append(time.process_time() - began_cpu)
            wall[name].append(time.perf_counter() - began)
    figures = {}
    for kind, taken in (("cpu", cpu), ("wall", wall)):
        ratios = [one / other for one, other in zip(taken["whole"], taken["bare"], strict=True)]
        figures[f"{kind}_ratio"] = round(statistics.median(ratios), 3)
        figures[f"{kind}_ms"] = round(1e3 * statistics.median(taken["whole"]), 1)
        figures[f"{kind}_bare_ms"] = round(1e3 * statistics.median(taken["bare"]), 1)
    return figures


def peak_in_child(arguments: list[str]) -> float:
    done = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def peak_of_steps(config: DetectorConfig, batch: int, bare: bool) -> float:
    """Megabytes that this process takes at most for building the model and training it, beyond its start."""
    before = peak_megabytes()
    model, data = detector.build(config, seed=1), examples(config, batch)
    step = bare_training(model, data["image"]) if bare else training(model, data)
    for _ in range(STEPS_FOR_MEMORY):
        step()
    return round(peak_megabytes() - before, 1)


def peak_megabytes() -> float:
    """Return the peak memory of this process in MiB."""
    # Not ru_maxrss: a child begins with its parent's.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024


if __name__ == "__main__":
    main()
