"""``tlt train``: prepare the data, train the detector, publish the best and the last model.

Another attempt of the same run resumes from the newest checkpoint
(:mod:`tlt_runner.training.checkpoint.artifacts`). With several workers, every worker runs this task; the
chief alone prepares the data, reports and publishes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tlt_api.failures import Reason
from tlt_api.model import Anchors
from tlt_api.runspec import RunSpec
from tlt_api.status import Metrics
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.cancel import Stop
from tlt_runner.context import Context
from tlt_runner.data.input_pipeline import batches
from tlt_runner.data.records import Records, load_records
from tlt_runner.detector import model as detector
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.errors import RunnerError
from tlt_runner.evaluation import report
from tlt_runner.evaluation.evaluate import Detect, Shared, evaluate, keras_detector
from tlt_runner.evaluation.protocols import Measurement, Protocol
from tlt_runner.status.file import LocalReporter
from tlt_runner.storage import join
from tlt_runner.tasks.convert import prepare
from tlt_runner.training import initial_model, loop, mixed_precision
from tlt_runner.training.callbacks import create
from tlt_runner.training.callbacks.base import Callback
from tlt_runner.training.checkpoint import artifacts
from tlt_runner.training.checkpoint.state import Position
from tlt_runner.training.checkpoint.writer import CheckpointWriter
from tlt_runner.training.distributed import rendezvous, workers
from tlt_runner.training.distributed.stop import StopAgreement
from tlt_runner.training.distributed.workers import Workers
from tlt_runner.training.trainer import INPUTS, Trainer

log = logging.getLogger(__name__)


def run(spec: TrainingJobSpec, run: RunSpec, context: Context) -> None:
    """Train as the RunSpec says; publishes ``best``, ``last`` and the best model's metrics.

    Raises:
        RunnerError: Whatever data, model or loop raise.
    """
    # Before anything else touches TensorFlow: it must know its GPUs and the other workers when it starts.
    index = rendezvous.index_of(os.environ, run.workers)
    all_workers = workers.claim(spec.resources.gpus, run.workers, index, context.stop)
    # The other workers report to their own log only.
    if not all_workers.chief:
        context = dataclasses.replace(context, reporter=LocalReporter(None))
    with all_workers.guarded():
        _train(run, spec, context, all_workers)


def _train(run: RunSpec, spec: TrainingJobSpec, context: Context, workers: Workers) -> None:
    """Train on this worker: data, model, resume, loop."""
    # 1. The checkpoint of an earlier attempt, on every worker. Before data are read, so that the models of
    # earlier attempts do not leave the status meanwhile.
    checkpoints = artifacts.Checkpoints(context, spec.output.uri, run.owner)
    saved = checkpoints.recall()

    # 2. Data. The spec that comes back has the anchors to train with; steps and batches are over all
    # replicas.
    records, spec = _prepare_data(spec, context, workers)
    batch_size = spec.training.images_per_replica * workers.replicas
    steps = batches.steps_of(records, batch_size)

    # 3. Model and optimizer, in the scope of the strategy, which makes a copy of each weight for each
    # replica.
    with workers.strategy.scope():
        model = initial_model.initial_model(
            run, spec, context, saved.position if saved else None, records.manifest.orientation
        )
    trainer = Trainer(
        model=model,
        spec=spec.training,
        strategy=workers.strategy,
        low_dtype=mixed_precision.low_dtype(workers.any),
    )
    _log_unused_data(records, model, batch_size)

    # 4. Resume. Every worker restores the state itself; only the chief writes, and only after all are known
    # to stand at the same position.
    evaluations = _Evaluations()
    writer = CheckpointWriter(
        context,
        checkpoints,
        model=model,
        variables=trainer.state,
        keep=spec.training.keep_checkpoints,
        published_weights=trainer.averaged,
        publishes=workers.chief,
        minutes=spec.training.checkpoint_minutes,
        details=evaluations.write_details,
    )
    start = writer.resume(
        saved,
        Position(
            run=run.owner.uid,
            data=records.digest,
            batch_size=batch_size,
            anchors=model.config.anchors,
            class_names=list(model.config.class_names),
            variant=model.config.variant,
            block_numbers=model.config.block_numbers,
        ),
    )
    _check_same_position(start, workers)
    if workers.chief:
        artifacts.remove_partial_files(context.storage, spec.output.uri, time.time())
        checkpoints.repair()

    # 5. What the loop calls: callbacks, evaluation, batches, checkpoints.
    # The same weights with the evaluation's settings. One function for evaluations and for images, so that it
    # is traced once.
    evaluated = trainer.in_step_types(detector.with_config(model, model.config.evaluated_by(spec.evaluation)))
    detect = keras_detector(evaluated)
    if workers.chief:
        # As a decorator, averaged() enters its context at each call.
        callbacks = create.all_callbacks(
            run,
            spec,
            context,
            records,
            detect=trainer.averaged()(detect),
            channels=model.config.channels,
            images_per_step=batch_size,
        )
    else:
        callbacks = create.status_only(spec, context, steps=steps, images_per_step=batch_size)
    evaluate_model = _evaluation(
        records,
        spec,
        detect=detect if workers.replicas == 1 else workers.detector(evaluated),
        channels=model.config.channels,
        workers=workers,
        stop=StopAgreement(context.stop, workers),
        callback=callbacks,
        evaluations=evaluations,
    )
    work = loop.Work(
        batches=_training_batches(records, spec, model, workers, batch_size),
        steps=steps,
        evaluate=trainer.averaged()(evaluate_model),
        saver=writer,
        # Not the agreement of the evaluations: each adapts to the pace of its own calls.
        stop_requested=StopAgreement(context.stop, workers).requested,
    )

    # 6. Train.
    # The inner guard comes first, so that callbacks are closed with WorkerLost, not with TensorFlow's error.
    with callbacks, workers.guarded():
        end = loop.train(trainer, work, spec.training, spec.evaluation, start, callbacks)
        callbacks.on_train_end(end.epoch)
    _log_result(end)


@dataclasses.dataclass
class _Evaluations:
    """The last evaluation of the model in training, whose details are published if it is the best."""

    last: Measurement | None = None

    def write_details(self, metrics: Metrics, path: Path) -> None:
        """Write the details of the last evaluation."""
        if self.last is None:
            raise RuntimeError("expected an evaluation before its details are written, got none")
        report.write(self.last, metrics, path)


def _prepare_data(
    spec: TrainingJobSpec, context: Context, workers: Workers
) -> tuple[Records, TrainingJobSpec]:
    """Prepare the records on the chief and open them on the others.

    The others wait without a limit, because preparation may take hours, but end when the chief does.

    Returns:
        The records, and the spec with the anchors to train with.

    Raises:
        RunnerError: Whatever preparation raises; on the others also errors of opening the records.
    """
    if workers.chief:
        records = prepare(spec, context)
        spec = initial_model.with_anchors(spec, records, context.reporter)
        # The anchors go along: only the chief has fitted them.
        anchors = spec.model.anchors.model_dump(mode="json", by_alias=True)
        workers.broadcast_text(json.dumps({"uri": records.uri, "digest": records.digest, "anchors": anchors}))
        return records, spec
    # A worker must not prepare by itself: two would write the same files, and fit the anchors twice.
    prepared = json.loads(workers.wait_for_broadcast(context.stop))
    records = load_records(context.storage, prepared["uri"], prepared["digest"])
    model = spec.model.model_copy(update={"anchors": Anchors.model_validate(prepared["anchors"])})
    return records, spec.model_copy(update={"model": model})


def _log_unused_data(records: Records, model: FasterRCNN, batch_size: int) -> None:
    """Log what of the data is not trained on: objects beyond maxObjects, and the last partial batch."""
    manifest, max_objects = records.manifest, model.config.max_objects
    beyond = manifest.objects_beyond(max_objects)
    # Every batch has one shape, with room for the largest maxObjects objects; others become ignored regions.
    if beyond:
        log.warning(
            "%d objects beyond spec.model.maxObjects %d, the smallest of their images, are not trained on, "
            "neither as objects nor as background",
            beyond,
            max_objects,
        )
    partial = manifest.training_images % batch_size
    if partial:
        log.info(
            "last partial batch dropped: %d of %d images per epoch, different ones each time",
            partial,
            manifest.training_images,
        )


def _check_same_position(start: Position, workers: Workers) -> None:
    """Check that all workers continue from the same checkpoint.

    Raises:
        RunnerError: StorageUnavailable on a worker that read another checkpoint than the chief.
    """
    # A volume that is another one on each node, or a cached read, would have workers train different weights
    # from here on without any error.
    position = start.model_dump_json()
    if workers.broadcast_text(position) == position:
        return
    raise RunnerError(
        Reason.STORAGE_UNAVAILABLE,
        f"worker {workers.index} goes on after epoch {start.epoch} and step {start.step}, the others do not: "
        "expected all workers to read the same checkpoint",
        "Let spec.output.uri be a volume that all nodes mount (ReadWriteMany), or S3.",
    )


def _training_batches(
    records: Records, spec: TrainingJobSpec, model: FasterRCNN, workers: Workers, batch_size: int
) -> Callable[[int, int], Iterator[loop.Batch]]:
    """Return a function of the epoch (from 0) and its first step: the batches, split among the replicas."""

    def epoch_batches(epoch: int, first_step: int) -> Iterator[loop.Batch]:
        data = batches.training_batches(
            records,
            batch_size,
            spec.training.seed,
            spec.training.augmentation,
            model.config.max_objects,
            epoch,
            first_step,
            workers.worker_slice,
            model.config.channels,
        )
        left_out = np.zeros(2, np.int64)
        for batch in data:
            # [B, 2]: objects left out of each image by augmentation, and by maxObjects.
            left_out += batch["left_out"].numpy().sum(axis=0)
            # The rest of the batch stays on the host: ids for messages, counts for this log.
            yield {**batch, **workers.split({name: batch[name] for name in INPUTS})}
        # A collective: every worker comes here after the same number of batches.
        left_out = workers.total(left_out).astype(np.int64)
        if left_out.any():
            log.info(
                "epoch %d: %d objects left out because augmentation cropped or shrank them "
                "(training.augmentation.minVisible, minWidth, minHeight), %d because an image had more than "
                "model.maxObjects (these are not background either)",
                epoch + 1,
                *left_out,
            )

    return epoch_batches


def _evaluation(
    records: Records,
    spec: TrainingJobSpec,
    detect: Detect,
    channels: int,
    workers: Workers,
    stop: Stop,
    callback: Callback,
    evaluations: _Evaluations,
) -> Callable[[], Metrics]:
    """Return a function that evaluates the model with its current weights, each image once over all replicas.

    Every worker must call it, and gets the metrics of all images: so all make the same decisions, which model
    is the best and when to stop early.

    Args:
        records: Prepared data.
        spec: Batch size and protocol.
        detect: The model in training, on all of this worker's replicas.
        channels: Channels of its images.
        workers: All workers, which share the images.
        stop: The stop request on which all workers agree; asked before each batch, it raises Interrupted.
        callback: Told of each batch.
        evaluations: Keeps the last one.
    """
    # Images that fit in memory at once: accumulation applies to updates only.
    batch_size = spec.training.batch_size_per_gpu * workers.replicas
    shared = Shared(workers.worker_slice, workers.total) if workers.several else None

    def batches_until_stop() -> Iterator[Any]:
        data = batches.validation_batches(
            records, batch_size, worker_slice=workers.worker_slice, channels=channels
        )
        for batch in data:
            stop.raise_if("while evaluating; the checkpoint before it is kept")
            yield batch
            callback.on_evaluation_batch_end()

    def evaluate_model() -> Metrics:
        evaluations.last = evaluate(
            detect,
            batches_until_stop(),
            records.manifest.class_names,
            Protocol.of(spec.evaluation),
            shared,
        )
        details = join(spec.output.uri, report.FILE_NAME)
        return evaluations.last.metrics.model_copy(update={"details_uri": details})

    return evaluate_model


def _log_result(end: Position) -> None:
    """Log the best mAP, or what to look at where it is 0."""
    # Without mAP the training has failed, but for attempts of an earlier release that had come to their end.
    if end.best is None or end.best.m_ap is None:
        log.warning("mAP is empty: no best model was chosen, the newest one is published as best")
    # A training that ends without a usable model succeeds all the same: the user learns here what to look at.
    elif end.best.m_ap == 0:
        log.warning(
            "mAP is 0: the model detects nothing. Usual causes: too few steps, a learning rate far too high "
            "or low, anchors (spec.model.anchors.scales, in pixels of the network input) far from object "
            "sizes, or labels that do not fit the images (see the dataset report)"
        )
    else:
        log.info("best mAP %.4f in epoch %s of %d", end.best.m_ap, end.best.epoch, end.epoch)
