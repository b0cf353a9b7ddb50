"""The training loop: epochs of steps, evaluation, checkpoints, early stopping. To be read top to bottom.

Data, evaluation and files come in as callables, so that the loop knows neither formats nor storage. Every
way in which a training can end badly is named here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tlt_api.failures import Reason
from tlt_api.status import Metrics
from tlt_api.training import Evaluation, Training
from tlt_runner import exits
from tlt_runner.errors import RunnerError
from tlt_runner.training.callbacks.base import Step, Watch
from tlt_runner.training.checkpoint.state import Position
from tlt_runner.training.mixed_precision import LOWEST_SCALE
from tlt_runner.training.schedule import learning_rate
from tlt_runner.training.trainer import FIGURES, Trainer

log = logging.getLogger(__name__)
Batch = dict[str, Any]


@dataclass(frozen=True)
class Pending:
    """A step that is not waited for yet."""

    number: int
    in_epoch: int
    learning_rate: float
    batch: Batch
    figures: tf.Tensor


@dataclass(frozen=True)
class Work:
    """What the loop works with.

    Attributes:
        batches: Training batches of an epoch (from 0), from a step on: the same order for the same epoch.
        steps: Batches of an epoch.
        evaluate: Judges the model as it is.
        save_best: Keeps the model as the best one.
        save_last: Keeps model and position, as a checkpoint that people can use.
        save_position: Keeps model and position for resuming only.
        stopping: Whether the run must end soon, the same answer on every worker; asked before every step.
    """

    batches: Callable[[int, int], Iterable[Batch]]
    steps: int
    evaluate: Callable[[], Metrics]
    save_best: Callable[[Position], None]
    save_last: Callable[[Position], None]
    save_position: Callable[[Position], None]
    stopping: Callable[[], bool]


def train(
    trainer: Trainer, work: Work, spec: Training, judged: Evaluation, start: Position, watch: Watch
) -> Position:
    """Train until the last epoch or until it no longer gets better.

    Returns:
        Where it ended; ``best`` is the evaluation of the best model.

    Raises:
        RunnerError: NaNLoss, naming step, learning rate and images; OutOfMemory; Interrupted, after a
            checkpoint.
    """
    with _memory_guarded(spec):
        position = start if start.closed else _closed(start, work, spec, judged, watch)
        while position.epoch < spec.epochs and not _is_stale(position, spec):
            position = _epoch(trainer, work, spec, position, watch)
            position = _closed(position, work, spec, judged, watch)
    if position.epoch < spec.epochs:
        log.info("stopped early: no better %s for %d times", _monitor(spec), position.stale)
    return position


def _epoch(trainer: Trainer, work: Work, spec: Training, start: Position, watch: Watch) -> Position:
    """Take the epoch's remaining steps; where that ends, the epoch's end is still to be done."""
    losses = _Losses(start.loss_sum, start.step)
    pending: Pending | None = None
    watch.epoch(start.epoch, start.step)
    step = start.step
    for batch in work.batches(start.epoch, start.step):
        number = start.epoch * work.steps + step
        if work.stopping():
            _settle(trainer, pending, losses, watch)
            _interrupt(work, start.model_copy(update={"step": step, "loss_sum": losses.total}))
        rate = learning_rate(number / (spec.epochs * work.steps), spec.learning_rate, trainer.replicas)
        figures = trainer.step(batch, number, rate)
        _settle(trainer, pending, losses, watch)  # of the step before: the device never waits for us
        step += 1
        pending = Pending(number, step, rate, batch, figures)
    _settle(trainer, pending, losses, watch)
    log.info("epoch %d/%d: loss %.4f", start.epoch + 1, spec.epochs, losses.mean)
    ended = {"epoch": start.epoch + 1, "step": 0, "loss_sum": 0.0, "closed": False}
    return _counted(start.model_copy(update=ended), "loss", -losses.mean, spec)


def _closed(position: Position, work: Work, spec: Training, judged: Evaluation, watch: Watch) -> Position:
    """Do what an epoch ends with, evaluation and checkpoints, as far as it is due."""
    last = position.epoch == spec.epochs or _is_stale(position, spec)
    if position.epoch % judged.interval_epochs == 0 or last:
        work.save_position(position)  # an evaluation may outlast the pod's grace period
        watch.stage("evaluate")
        position = _evaluated(position, work, spec, watch)
        last = last or _is_stale(position, spec)
        log.info("epoch %d/%d: best mAP %s", position.epoch, spec.epochs, _best(position))
    position = position.model_copy(update={"closed": True})
    if position.epoch % spec.checkpoint_interval == 0 or last:
        work.save_last(position)
    return position


@dataclass
class _Losses:
    """The losses of an epoch's steps, those of earlier attempts included."""

    total: float
    count: int

    def add(self, loss: float) -> None:
        self.total += loss
        self.count += 1

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0


def _settle(trainer: Trainer, pending: Pending | None, losses: _Losses, watch: Watch) -> None:
    """Wait for a step's figures and look at them."""
    if pending is None:
        return
    values = dict(zip(FIGURES, pending.figures.numpy().tolist(), strict=True))
    scale = values.pop("loss_scale")
    overflowed = not math.isfinite(values["gradient_norm"])
    # the scale multiplies the gradient only: a loss that is not finite is not cured by a smaller one
    if not math.isfinite(values["total"]) or (overflowed and scale <= LOWEST_SCALE):
        parts = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        raise RunnerError(
            Reason.NAN_LOSS,
            f"loss or gradient is not finite at step {pending.number + 1} with learning rate "
            f"{pending.learning_rate:.3g}: {parts}; {trainer.images_named(pending.batch)}",
        )
    if overflowed:
        log.info(
            "step %d was left out: the gradient overflowed float16 at scale %g", pending.number + 1, scale
        )
        del values["gradient_norm"]  # no figure, and no JSON
    losses.add(values["total"])
    watch.step(Step(pending.number, pending.in_epoch, pending.learning_rate, values))


@contextmanager
def _memory_guarded(spec: Training) -> Iterator[None]:
    """Say, whatever ran out of memory, step or evaluation, what needs less of it."""
    try:
        yield
    except RunnerError:
        raise
    except Exception as error:
        if exits.reason_of(error) != Reason.OUT_OF_MEMORY:
            raise
        what = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise RunnerError(
            Reason.OUT_OF_MEMORY,
            f"training with spec.training.batchSizePerGPU {spec.batch_size_per_gpu} does not fit in memory: "
            f"{what}",
            _smaller(spec),
        ) from error


def _smaller(spec: Training) -> str:
    """How to make the same updates in less memory."""
    if spec.batch_size_per_gpu == 1:
        return "Lower spec.dataset.imageSize or spec.model.roi.miniBatch, or use a GPU with more memory."
    less = spec.in_less_memory()
    return (
        f"The same updates in less memory: spec.training.batchSizePerGPU {less.batch_size_per_gpu} with "
        f"gradientAccumulationSteps {less.gradient_accumulation_steps}."
    )


def _interrupt(work: Work, position: Position) -> None:
    work.save_position(position)
    raise RunnerError(
        Reason.INTERRUPTED,
        f"stopped from outside after epoch {position.epoch} and step {position.step} of the next; "
        "a checkpoint is written",
    )


def _evaluated(position: Position, work: Work, spec: Training, watch: Watch) -> Position:
    best = position.best
    if best is not None and best.epoch == position.epoch:
        metrics = best  # it was published as the best model before the attempt was killed
    else:
        metrics = work.evaluate().model_copy(update={"epoch": position.epoch})
    watch.evaluated(metrics, position.epoch * work.steps)
    if metrics is not best:
        unknown = metrics.m_ap is None  # no object that counts: the newest model is as good as any
        if best is None or unknown or (metrics.m_ap or 0.0) > (best.m_ap or 0.0):
            position = position.model_copy(update={"best": metrics})
            work.save_best(position)
    return _counted(position, "mAP", metrics.m_ap, spec)


def _counted(position: Position, monitor: str, score: float | None, spec: Training) -> Position:
    """Count how long the score has not risen by more than minDelta, for early stopping; None has risen."""
    early, reached = spec.early_stopping, position.reached
    if early is None or early.monitor != monitor:
        return position
    if score is None or reached is None or score > reached + early.min_delta:
        return position.model_copy(update={"stale": 0, "reached": score})
    return position.model_copy(update={"stale": position.stale + 1})


def _is_stale(position: Position, spec: Training) -> bool:
    return spec.early_stopping is not None and position.stale >= spec.early_stopping.patience


def _monitor(spec: Training) -> str:
    return spec.early_stopping.monitor if spec.early_stopping else "metric"


def _best(position: Position) -> str:
    if position.best is None or position.best.m_ap is None:
        return "unknown"
    return f"{position.best.m_ap:.4f} (epoch {position.best.epoch})"
