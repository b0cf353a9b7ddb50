"""One detector's training step, timed on demand: the child process of :mod:`detector_peers`.

Runs in the peer's own environment. Builds the detector with random weights from configuration, traces a step,
counts its arithmetic, warms up and says so; then takes as many steps as each line on standard input says and
answers with their seconds. All have resnet50, 20 classes, SGD with momentum, float32, the same images and
objects. KerasHub and we make targets within the step, the Model Garden beforehand.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import graph_flops
import numpy as np
import tensorflow as tf
from random_batch import CLASSES, OBJECTS, PROPOSALS, examples

WARM_UP = 2
Step = tuple[Callable[..., Any], tuple[Any, ...]]
"""A step to trace, and its arguments."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("detector", choices=DETECTORS)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    arguments = parser.parse_args()
    began = peak_megabytes()
    step, inputs = DETECTORS[arguments.detector](arguments.size, arguments.batch)
    traced = tf.function(step).get_concrete_function(*inputs)
    flops = graph_flops.flops(traced)
    run = tf.function(step)
    for _ in range(WARM_UP):
        finish(run(*inputs))
    answer(flops=flops, megabytes=round(peak_megabytes() - began, 1))
    for line in sys.stdin:
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            finish(run(*inputs))
        answer(wall=time.perf_counter() - start, cpu=time.process_time() - start_cpu)


def ours(size: int, batch: int, mini_batch: int = PROPOSALS) -> Step:
    import train_step

    from tlt_api.training import Training
    from tlt_runner.detector import model as detector
    from tlt_runner.training.trainer import Trainer

    config = train_step.configure("resnet50", (size, size), {"miniBatch": mini_batch})
    trainer = Trainer(detector.build(config, seed=1), Training(), tf.distribute.get_strategy())
    images, boxes, classes = tensors(size, batch, config.max_objects)
    wanted = {"image": images, "boxes": boxes, "classes": classes}
    return lambda batch: trainer.step(batch, 1, 1e-6), (wanted,)


def keras_hub_retinanet(size: int, batch: int) -> Step:
    import keras
    from retinanet import retinanet

    model = retinanet(CLASSES, size, [3, 4, 6, 3], "bottleneck_block")
    model.compile(optimizer=keras.optimizers.SGD(1e-6, momentum=0.9), jit_compile=False)
    images, boxes, labels = tensors(size, batch, OBJECTS)
    targets = {"boxes": boxes, "labels": tf.cast(labels, tf.float32)}
    model.optimizer.build(model.trainable_variables)
    return lambda images, targets: model.train_step((images, targets)), (
        tf.cast(images, tf.float32),
        targets,
    )


def model_garden_retinanet(size: int, batch: int) -> Step:
    from official.vision.configs import retinanet as configs
    from official.vision.dataloaders.retinanet_input import Parser
    from official.vision.tasks.retinanet import RetinaNetTask

    spec = configs.retinanet_resnetfpn_coco().task
    return _model_garden(spec, RetinaNetTask, Parser, size, batch)


def model_garden_faster_rcnn(size: int, batch: int) -> Step:
    from official.vision.configs import maskrcnn as configs
    from official.vision.dataloaders.maskrcnn_input import Parser
    from official.vision.tasks.maskrcnn import MaskRCNNTask

    spec = configs.fasterrcnn_resnetfpn_coco().task
    return _model_garden(spec, MaskRCNNTask, Parser, size, batch)


def _model_garden(spec: Any, task_of: Any, parser_of: Any, size: int, batch: int) -> Step:
    """The library's own configuration, parser and training step; smaller images, other classes."""
    import tf_keras

    anchor = spec.model.anchor
    parser = parser_of(
        output_size=[size, size],
        min_level=spec.model.min_level,
        max_level=spec.model.max_level,
        num_scales=anchor.num_scales,
        aspect_ratios=anchor.aspect_ratios,
        anchor_size=anchor.anchor_size,
        dtype="float32",
    )
    model = {**spec.model.as_dict(), "input_size": [size, size, 3], "num_classes": CLASSES + 1}
    spec.override({"model": model, "init_checkpoint": None})
    task = task_of(spec)
    built = task.build_model()
    optimizer = tf_keras.optimizers.SGD(1e-6, momentum=0.9)
    optimizer.build(built.trainable_variables)
    arrays = examples(size, batch, OBJECTS)
    parse = parser.parse_fn(is_training=True)
    samples = [
        parse(
            {
                "image": tf.constant(image),
                "groundtruth_boxes": tf.constant(boxes / size),
                "groundtruth_classes": tf.constant(labels + 1, tf.int64),
                "groundtruth_is_crowd": tf.zeros(len(labels), tf.bool),
                "groundtruth_area": tf.ones(len(labels)),
            }
        )
        for image, boxes, labels in zip(arrays["image"], arrays["boxes"], arrays["classes"], strict=True)
    ]
    features, labels = tf.nest.map_structure(lambda *parts: tf.stack(parts), *samples)
    return lambda features, labels: task.train_step((features, labels), built, optimizer), (features, labels)


DETECTORS = {
    "ours": ours,
    "ours, 512 proposals": partial(ours, mini_batch=512),
    "keras-hub RetinaNet": keras_hub_retinanet,
    "Model Garden RetinaNet": model_garden_retinanet,
    "Model Garden Faster R-CNN": model_garden_faster_rcnn,
}


def tensors(size: int, batch: int, room: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The batch: images, boxes, classes."""
    arrays = examples(size, batch, room)
    return tuple(tf.constant(arrays[name]) for name in ("image", "boxes", "classes"))


def finish(result: Any) -> None:
    """Wait for a step."""
    for tensor in tf.nest.flatten(result):
        np.asarray(tensor)


def peak_megabytes() -> float:
    """The most that this process had in memory."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024


def answer(**figures: float) -> None:
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
