"""Creates the callbacks of a training. Called by the train task, on the worker that publishes."""

from __future__ import annotations

import time

from tlt_api.runspec import RunSpec
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.context import Context
from tlt_runner.data.input_pipeline import batches
from tlt_runner.data.records import Records
from tlt_runner.evaluation.evaluate import Detect
from tlt_runner.storage import join
from tlt_runner.training.callbacks.aggregate import Aggregate
from tlt_runner.training.callbacks.base import Callback, CallbackList
from tlt_runner.training.callbacks.images import ValidationImages
from tlt_runner.training.callbacks.log_file import LogFile
from tlt_runner.training.callbacks.progress import ProgressReport
from tlt_runner.training.callbacks.tensorboard import TensorBoard, folder_of
from tlt_runner.training.callbacks.uploader import Uploader


def status_only(spec: TrainingJobSpec, context: Context, steps: int, images_per_step: int) -> CallbackList:
    """Create the callbacks of a worker that does not publish: its own progress.

    Args:
        spec: The training.
        context: Takes the progress.
        steps: Steps of an epoch.
        images_per_step: Images of a step, over all replicas.
    """
    return CallbackList(_status(spec, context, Aggregate(images_per_step, time.monotonic, steps), steps))


def all_callbacks(
    run: RunSpec,
    spec: TrainingJobSpec,
    context: Context,
    records: Records,
    detect: Detect,
    channels: int,
    images_per_step: int,
) -> CallbackList:
    """Create all callbacks: status, log file and TensorBoard.

    Args:
        run: The run.
        spec: The training, with the anchors that it is trained with.
        context: Storage, reporter and scratch folder.
        records: Prepared data; the first validation images are drawn.
        detect: The detector in training, with the weights that are evaluated.
        channels: Channels of its images.
        images_per_step: Images of a step, over all replicas.
    """
    output, steps = spec.output.uri, batches.steps_of(records, images_per_step)
    # A folder of its own: the scratch folder has the checkpoints' files, too.
    scratch = context.scratch / "callbacks"
    scratch.mkdir(parents=True, exist_ok=True)
    aggregate = Aggregate(images_per_step, time.monotonic, steps)
    images = _validation_images(spec, records, detect, channels) if spec.visualization.images else None
    # An uploader each: a failure of one file does not slow the other down.
    log_file = LogFile(
        Uploader(context.storage, output, time.monotonic),
        aggregate,
        scratch=scratch,
        run=run,
        epochs=spec.training.epochs,
        steps=steps,
        images_per_step=images_per_step,
        now=time.time,
    )
    tensorboard = TensorBoard(
        Uploader(context.storage, join(output, folder_of(run)), time.monotonic),
        aggregate,
        scratch=scratch,
        attempt=run.attempt,
        steps=steps,
        images=images,
        now=time.time,
    )
    return CallbackList([*_status(spec, context, aggregate, steps), log_file, tensorboard])


def _status(spec: TrainingJobSpec, context: Context, aggregate: Aggregate, steps: int) -> list[Callback]:
    """Create the callbacks that every worker has: sums of its steps, and its progress."""
    progress = ProgressReport(
        context.reporter.progress,
        aggregate,
        epochs=spec.training.epochs,
        steps=steps,
        clock=time.monotonic,
        evaluation_interval=spec.evaluation.interval_epochs,
    )
    # The aggregate comes first: all others read its sums.
    return [aggregate, progress]


def _validation_images(
    spec: TrainingJobSpec, records: Records, detect: Detect, channels: int
) -> ValidationImages:
    # The shape of evaluations on one replica, for which the detector is traced already.
    batch_size, count = spec.training.batch_size_per_gpu, spec.visualization.images
    return ValidationImages(
        detect,
        lambda: batches.validation_batches(records, batch_size, limit=count, channels=channels),
        records.manifest.class_names,
        spec.visualization.score_threshold,
    )
