"""``tlt train``: prepare the data, train the detector, keep the best and the last model.

Resumes where an earlier attempt of the same run stopped: see :mod:`tlt_runner.training.checkpoint.state`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from tlt_api.runspec import RunSpec
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.context import Context
from tlt_runner.data.input_pipeline import batches
from tlt_runner.data.records import Records
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.evaluation import detectors
from tlt_runner.status.file import LocalReporter
from tlt_runner.training import loop, mixed_precision, preparation
from tlt_runner.training.callbacks import followers
from tlt_runner.training.callbacks.progress import Meter
from tlt_runner.training.checkpoint import leftovers
from tlt_runner.training.checkpoint.keeper import Keeper
from tlt_runner.training.checkpoint.published import Published
from tlt_runner.training.checkpoint.state import Position
from tlt_runner.training.distributed import evaluation, rendezvous
from tlt_runner.training.distributed.stop import Stopping
from tlt_runner.training.distributed.workers import Workers, claim
from tlt_runner.training.initial_model import initial_model
from tlt_runner.training.trainer import INPUTS, Trainer

log = logging.getLogger(__name__)


def run(spec: TrainingJobSpec, run: RunSpec, context: Context) -> None:
    """Train as the RunSpec says; publishes ``best``, ``last`` and the best model's metrics.

    Raises:
        RunnerError: Whatever data, model or loop raise.
    """
    index = rendezvous.index_of(os.environ, run.workers)
    workers = claim(spec.resources.gpus, run.workers, index, context.stop.is_set)
    if not workers.chief:  # it says on its own log what it sees
        context = dataclasses.replace(context, reporter=LocalReporter(None))
    with workers.guarded():
        _train(run, spec, context, workers)


def _train(run: RunSpec, spec: TrainingJobSpec, context: Context, workers: Workers) -> None:
    if workers.chief:
        leftovers.remove(context.storage, spec.output.uri, time.time())
    published = Published(context, spec.output.uri, run.owner)
    saved = published.recall()
    records, spec = preparation.prepared(spec, context, workers)
    batch_size = spec.training.images_per_replica * workers.replicas
    steps = batches.steps_of(records, batch_size)
    with workers.strategy.scope():
        model = initial_model(run, spec, context.storage)
    low_dtype = mixed_precision.low_dtype(workers.any)
    trainer = Trainer(model, spec.training, workers.strategy, low_dtype)
    keeper = Keeper(
        context, published, model, trainer.state, spec.training.keep_checkpoints, trainer.averaged
    )
    _report_data(records, model, batch_size)
    meter = Meter(
        context.reporter.progress,
        spec.training.epochs,
        steps,
        batch_size,
        time.monotonic,
        spec.evaluation.interval_epochs,
    )
    detect = detectors.of_keras(model)  # one function for both, traced once
    judged = detect if workers.replicas == 1 else evaluation.on_replicas(model, workers)
    work = loop.Work(
        batches=_training_data(records, spec, trainer, workers, batch_size),
        steps=steps,
        evaluate=trainer.averaged()(
            evaluation.judge_of(records, spec, judged, workers, Stopping(context.stop, workers))
        ),
        save_best=keeper.save_best if workers.chief else _leave_alone,
        save_last=keeper.save_last if workers.chief else _leave_alone,
        save_position=keeper.save_position if workers.chief else _leave_alone,
        stopping=Stopping(context.stop, workers),
    )
    fresh = Position(
        run=run.owner.uid,
        data=records.digest,
        batch_size=batch_size,
        anchors=model.config.anchors,
        class_names=list(model.config.class_names),
    )
    start = preparation.agreed(keeper.resume(saved, fresh), workers)
    drawn = trainer.averaged()(detect)
    watchers = followers.files(run, spec, context, records, drawn, batch_size) if workers.chief else []
    # A lost worker is known as one before the followers tell of the failure.
    with followers.followed(meter, watchers) as watch, workers.guarded():
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


def _leave_alone(position: Position) -> None:
    """The chief keeps the models."""


def _training_data(
    records: Records, spec: TrainingJobSpec, trainer: Trainer, workers: Workers, batch_size: int
) -> Any:
    def epoch_batches(epoch: int, first_step: int) -> Iterator[loop.Batch]:
        data = batches.training_batches(
            records,
            batch_size,
            spec.training.seed,
            spec.training.augmentation,
            trainer.model.config.max_objects,
            epoch,
            first_step,
            workers.share,
        )
        left_out = np.zeros(2, np.int64)
        for batch in data:
            left_out += batch["left_out"].numpy().sum(axis=0)
            yield {**batch, **workers.split({name: batch[name] for name in INPUTS})}
        left_out = workers.total(left_out).astype(np.int64)
        if left_out.any():
            log.info(
                "epoch %d: augmentation moved %d objects out of sight (training.augmentation.minVisible) or "
                "made them too small; %d were beyond model.maxObjects",
                epoch + 1,
                *left_out,
            )

    return epoch_batches


def _conclude(end: Position) -> None:
    if end.best is None or end.best.m_ap is None:
        log.warning(
            "mAP is unknown: no object of the validation images counts, so the newest model is the best one. "
            "Give validation images with labels of the target classes (spec.dataset.validation; see the "
            "dataset report)"
        )
        return
    if end.best.m_ap == 0:
        log.warning(
            "mAP is 0: the model finds nothing. Usual causes: too few steps, a learning rate far too high or "
            "low, anchors (spec.model.anchors.scales, pixels of the network's input) far from the objects' "
            "sizes, or labels that do not fit the images (see the dataset report)"
        )
        return
    log.info("best mAP %.4f in epoch %s of %d", end.best.m_ap, end.best.epoch, end.epoch)
