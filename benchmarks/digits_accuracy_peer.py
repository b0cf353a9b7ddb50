"""KerasHub's RetinaNet on the scenes of :mod:`digits_accuracy`: the same records, batches and images seen.

    python benchmarks/digits_accuracy_peer.py --records FOLDER --epochs N --peers .cache/peers/keras-hub

Its backbone is KerasHub's ResNet-18; optimizer, schedule, augmentation and seed are ours. Four things are
changed in its favour. Its learning rate is lower: with ours it falls back to finding nothing in the
second epoch. Its heads begin as in RetinaNet's paper (T. Lin et al., 2017): kernels of deviation 0.01
(KerasHub 0.32's 0.05 are meant for pretrained weights; with them it learns nothing), and the prior for
the class head (KerasHub gives it to the box head). And detections are kept from a score of 0.01 on, as
ours are, not 0.5. One JSON line.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from coco_scores import coco_scores
from digits_accuracy import SIZE, TRAINING
from retinanet import retinanet

from tlt_api.model import Detections
from tlt_api.training import Training
from tlt_runner.data.input_pipeline import batches
from tlt_runner.data.records import Records, load_records
from tlt_runner.storage import Storage
from tlt_runner.training.schedule import learning_rate

MOST_OBJECTS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, required=True, help="folder that holds dataset.json")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, default=4e-4, help="the highest; ours has 1e-3")
    parser.add_argument("--peers", type=Path, required=True, help="virtual environment with keras-hub")
    options = parser.parse_args()
    sys.path.extend(str(path) for path in options.peers.resolve().glob("lib/python*/site-packages"))
    keras.utils.set_random_seed(42)
    storage = Storage(volumes_root=options.records, scratch=options.records, s3=None)
    records = load_records(storage, f"file://{options.records.resolve()}")
    model = resnet18_retinanet(len(records.manifest.class_names))
    started = time.monotonic()
    images = fit(model, records, options)
    figures = {
        "benchmark": "digits_accuracy_peer",
        "detector": "KerasHub RetinaNet, ResNet-18",
        "parameters": model.count_params(),
        "images_seen": images,
        "learning_rate": options.learning_rate,
        **coco_scores(lambda pixels: detect(model, pixels), records),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    print(json.dumps(figures))


def resnet18_retinanet(classes: int) -> keras.Model:
    import keras_hub

    decoder = keras_hub.layers.NonMaxSuppression(
        "yxyx", from_logits=True, confidence_threshold=Detections().score_threshold
    )
    model = retinanet(classes, SIZE, [2, 2, 2, 2], "basic_block", prediction_decoder=decoder)
    for head, bias in ((model.classification_head, -math.log(99)), (model.box_head, 0.0)):
        for layer in (*head.conv_layers, head.prediction_layer):
            layer.kernel.assign(tf.random.normal(layer.kernel.shape, stddev=0.01))
        head.prediction_layer.bias.assign(tf.fill(head.prediction_layer.bias.shape, bias))
    return model


def fit(model: keras.Model, records: Records, options: argparse.Namespace) -> int:
    """Train by our schedule, and return the number of images taken."""
    ours = Training.model_validate(TRAINING)
    rates = ours.learning_rate.model_copy(
        update={"max": options.learning_rate, "min": options.learning_rate / 100}
    )
    batch_size = ours.batch_size_per_gpu
    model.compile(optimizer=keras.optimizers.Adam(1.0), jit_compile=False)
    step = tf.function(lambda images, targets: model.train_step((images, targets)))
    steps = records.manifest.training_images // batch_size
    for epoch in range(options.epochs):
        model.reset_metrics()
        epoch_batches = batches.training_batches(
            records, batch_size, ours.seed, ours.augmentation, MOST_OBJECTS, epoch, 0
        )
        for number, batch in enumerate(epoch_batches):
            progress = (epoch * steps + number) / (options.epochs * steps)
            model.optimizer.learning_rate = learning_rate(progress, rates)
            targets = {"boxes": batch["boxes"], "labels": tf.cast(batch["classes"], tf.float32)}
            metrics = step(normalised(batch["image"]), targets)
        print(f"epoch {epoch + 1}: loss {float(metrics['loss']):.4f}", file=sys.stderr, flush=True)
    return options.epochs * steps * batch_size


def normalised(pixels: tf.Tensor) -> tf.Tensor:
    """RGB 0 to 255 as -1 to 1."""
    return tf.cast(pixels, tf.float32) / 127.5 - 1.0


def detect(model: keras.Model, pixels: np.ndarray) -> dict[str, np.ndarray]:
    images = normalised(pixels)
    detections = model.decode_predictions(model(images, training=False), images)  # predict wants labels
    return {
        "boxes": np.asarray(detections["boxes"]),
        "scores": np.asarray(detections["confidence"]),
        "classes": np.asarray(detections["labels"]),
        "count": np.asarray(detections["num_detections"]),
    }


if __name__ == "__main__":
    main()
