"""Judging a model in training on all replicas of all workers, each image once.

Called by the train task, which hands the result to the loop. Every worker gets the figures of all images, so
that all decide alike which model is the best and when to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tlt_api.failures import Reason
from tlt_api.status import Metrics
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.data.input_pipeline import batches
from tlt_runner.data.records import Records
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.errors import RunnerError
from tlt_runner.evaluation.evaluate import Detect, Shared, evaluate
from tlt_runner.training.distributed.workers import Workers


def judge_of(
    records: Records,
    spec: TrainingJobSpec,
    detect: Detect,
    workers: Workers,
    stopping: Callable[[], bool],
) -> Callable[[], Metrics]:
    """A function that evaluates the model as it is.

    Args:
        records: Prepared data.
        spec: Batch size, and how to judge.
        detect: The model in training, on all of this worker's replicas: :func:`on_replicas` where there are
            several of them.
        workers: Share the images.
        stopping: Whether the run must end soon, the same answer on every worker; asked before
            each batch.

    Returns:
        The function. Every worker must call it; it raises RunnerError Interrupted when the run must end.
    """
    batch_size = spec.training.batch_size_per_gpu * workers.replicas
    shared = Shared(workers.share, workers.total) if workers.several else None

    def shared_batches() -> Iterator[Any]:
        data = batches.validation_batches(
            records, batch_size, records.manifest.most_objects, share=workers.share
        )
        for batch in data:
            if stopping():
                raise RunnerError(
                    Reason.INTERRUPTED, "stopped while evaluating; the checkpoint before it is kept"
                )
            yield batch

    def judge() -> Metrics:
        return evaluate(
            detect,
            shared_batches(),
            records.manifest.class_names,
            spec.evaluation.iou_threshold,
            spec.evaluation.average_precision,
            shared,
        )

    return judge


def on_replicas(model: FasterRCNN, workers: Workers) -> Detect:
    """The model as a function of this worker's arrays, each of its replicas on an equal part of them."""

    @tf.function
    def compiled(batch: dict[str, Any]) -> Any:
        return workers.strategy.run(
            lambda images: model(tf.cast(images, tf.float32), training=False), args=(batch["image"],)
        )

    return lambda images: workers.joined(compiled(workers.split({"image": images})))
