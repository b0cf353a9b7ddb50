"""Evaluation of a model in training on all replicas of all workers, each image once.

Called by the train task, which gives the function to the loop. Every worker gets the metrics of all images,
so that all make the same decisions: which model is the best, and when to stop early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tlt_api.status import Metrics
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.cancel import Stop
from tlt_runner.data.input_pipeline import batches
from tlt_runner.data.records import Records
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.evaluation.evaluate import Detect, Shared, evaluate
from tlt_runner.training.distributed.workers import Workers


def create_evaluate(
    records: Records,
    spec: TrainingJobSpec,
    detect: Detect,
    workers: Workers,
    stop: Stop,
) -> Callable[[], Metrics]:
    """Create a function that evaluates the model with its current weights.

    Args:
        records: Prepared data.
        spec: Batch size, IoU threshold and method.
        detect: The model in training, on all of this worker's replicas: :func:`on_replicas` where there are
            several of them.
        workers: All workers, which share the images.
        stop: The stop request on which all workers agree; asked before each batch.

    Returns:
        The function. Every worker must call it. It raises RunnerError Interrupted when the run must end.
    """
    # Images that fit in memory at once: accumulation applies to updates only.
    batch_size = spec.training.batch_size_per_gpu * workers.replicas
    shared = Shared(workers.worker_slice, workers.total) if workers.several else None

    def batches_until_stop() -> Iterator[Any]:
        data = batches.validation_batches(
            records, batch_size, records.manifest.most_objects, worker_slice=workers.worker_slice
        )
        for batch in data:
            stop.raise_if("while evaluating; the checkpoint before it is kept")
            yield batch

    def evaluate_model() -> Metrics:
        return evaluate(
            detect,
            batches_until_stop(),
            records.manifest.class_names,
            spec.evaluation.iou_threshold,
            spec.evaluation.average_precision,
            shared,
        )

    return evaluate_model


def on_replicas(model: FasterRCNN, workers: Workers) -> Detect:
    """The model as a function of this worker's images, each replica on an equal part of them."""

    @tf.function
    def compiled(batch: dict[str, Any]) -> Any:
        return workers.strategy.run(
            lambda images: model(tf.cast(images, tf.float32), training=False), args=(batch["image"],)
        )

    # Bytes travel to the devices, and are cast there.
    return lambda images: workers.joined(compiled(workers.split({"image": images})))
