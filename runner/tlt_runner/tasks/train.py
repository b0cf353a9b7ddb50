"""``tlt train``: prepare the data, train the detector, keep the best and the last model.

Resumes where an earlier attempt of the same run stopped: see :mod:`tlt_runner.training.checkpoints`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from tlt_api.failures import Reason
from tlt_api.runspec import RunSpec
from tlt_api.status import Metrics
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.context import Context
from tlt_runner.data import pipeline
from tlt_runner.data.prepare import prepare
from tlt_runner.data.records import Records
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.errors import RunnerError
from tlt_runner.evaluation import detectors
from tlt_runner.evaluation.evaluate import evaluate
from tlt_runner.training import devices, leftovers, loop
from tlt_runner.training.checkpoints import Position
from tlt_runner.training.initial import initial_model, with_anchors
from tlt_runner.training.keeper import Keeper
from tlt_runner.training.meter import Meter
from tlt_runner.training.published import Published
from tlt_runner.training.trainer import Trainer
from tlt_runner.training.watching import followers

log = logging.getLogger(__name__)


def run(run: RunSpec, context: Context) -> None:
    """Train as the RunSpec says; publishes ``best``, ``last`` and the best model's metrics.

    Raises:
        RunnerError: InvalidSpec for another kind than TrainingJob; whatever data, model or loop raise.
    """
    spec = run.spec
    if not isinstance(spec, TrainingJobSpec):
        raise RunnerError(
            Reason.INVALID_SPEC, f"train: expected a TrainingJob, got {run.owner.kind}/{run.owner.name}"
        )
    strategy = devices.claim(spec.resources.gpus)
    leftovers.remove(context.storage, spec.output.uri, time.time())
    published = Published(context, spec.output.uri, run.owner)
    saved = published.recall()
    records = prepare(
        spec.dataset, context.storage, spec.output.uri, context.reporter, context.stop, spec.model.anchors
    )
    spec = with_anchors(spec, records, context.reporter)
    with strategy.scope():
        model = initial_model(run, spec, context.storage)
    trainer = Trainer(model, spec.training, strategy)
    keeper = Keeper(context, published, model, trainer.state, spec.training.keep_checkpoints)
    batch_size = spec.training.batch_size_per_gpu * strategy.num_replicas_in_sync
    _report_data(records, model, batch_size)
    steps = records.manifest.training_images // batch_size
    meter = Meter(
        context.reporter.progress,
        spec.training.epochs,
        steps,
        batch_size,
        time.monotonic,
        spec.evaluation.interval_epochs,
    )
    work = loop.Work(
        batches=_training_data(records, spec, trainer, batch_size),
        steps=steps,
        evaluate=_judge(records, spec, model, context),
        save_best=keeper.save_best,
        save_last=keeper.save_last,
        save_position=keeper.save_position,
        stopping=context.stop.is_set,
    )
    fresh = Position(run=run.owner.uid, batch_size=batch_size, anchors=model.config.anchors)
    start = keeper.resume(saved, fresh)
    watchers = followers.files(run, spec, context, records, model, batch_size)
    with followers.followed(meter, watchers) as watch:
        end = loop.train(trainer, work, spec.training, spec.evaluation, start, watch)
        watch.finish(end.epoch)
    _conclude(end)


def _report_data(records: Records, model: FasterRCNN, batch_size: int) -> None:
    """Say what of the data is not used."""
    manifest, room = records.manifest, model.config.max_objects
    beyond = manifest.objects_beyond(room)
    if beyond:
        log.warning("spec.model.maxObjects %d: %d objects beyond it are not trained on", room, beyond)
    left = manifest.training_images % batch_size
    if left:
        log.info("%d images fill no batch of %d; in every epoch they are others", left, batch_size)


def _training_data(records: Records, spec: TrainingJobSpec, trainer: Trainer, batch_size: int) -> Any:
    def batches(epoch: int, first_step: int) -> Iterator[loop.Batch]:
        data = pipeline.training_batches(
            records,
            batch_size,
            spec.training.seed,
            spec.training.augmentation,
            trainer.model.config.max_objects,
            epoch,
            first_step,
        )
        left_out = np.zeros(2, np.int64)
        for batch in trainer.distribute(data):
            left_out += trainer.left_out(batch)
            yield batch
        if left_out.any():
            log.info(
                "epoch %d: augmentation moved %d objects out of sight (training.augmentation.minVisible) or "
                "made them too small; %d were beyond model.maxObjects",
                epoch + 1,
                *left_out,
            )

    return batches


def _judge(records: Records, spec: TrainingJobSpec, model: FasterRCNN, context: Context) -> Any:
    detect = detectors.of_keras(model)
    most = max(records.manifest.objects_per_image, default=1)

    def judge() -> Metrics:
        return evaluate(
            detect,
            _until_stopped(
                pipeline.validation_batches(records, spec.training.batch_size_per_gpu, max(1, most)), context
            ),
            records.manifest.class_names,
            spec.evaluation.iou_threshold,
            spec.evaluation.average_precision,
        )

    return judge


def _until_stopped(batches: Iterable[Any], context: Context) -> Iterator[Any]:
    for batch in batches:
        if context.stop.is_set():
            raise RunnerError(
                Reason.INTERRUPTED, "stopped while evaluating; the checkpoint before it is kept"
            )
        yield batch


def _conclude(end: Position) -> None:
    if end.best is None or not end.best.m_ap:
        log.warning(
            "mAP is 0: the model finds nothing. Usual causes: too few steps, a learning rate far too high or "
            "low, anchors (spec.model.anchors.scales, pixels of the network's input) far from the objects' "
            "sizes, or labels that do not fit the images (see the dataset report)"
        )
        return
    log.info("best mAP %.4f in epoch %s of %d", end.best.m_ap, end.best.epoch, end.epoch)
