"""The training loop: epochs of steps, evaluation, checkpoints, early stopping. Reads from top to bottom.

Data, evaluation and files come in as callables, so that the loop knows neither formats nor storage. Every
way in which a training can end badly is named here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import tensorflow as tf

from tlt_api.failures import Reason
from tlt_api.status import Metrics
from tlt_api.training import Evaluation, Training
from tlt_runner import exits
from tlt_runner.errors import InterruptedRunError, RunnerError
from tlt_runner.evaluation.evaluate import require_measured
from tlt_runner.training.callbacks.base import Callback, Step
from tlt_runner.training.checkpoint.state import Position
from tlt_runner.training.mixed_precision import LOWEST_SCALE
from tlt_runner.training.schedule import learning_rate
from tlt_runner.training.trainer import FIGURES, Trainer

log = logging.getLogger(__name__)
Batch = dict[str, Any]
Snapshot = Any
"""Copies of all variables that training changes."""


class Saver(Protocol):
    """Saves checkpoints of the model in training, without holding up the training.

    Each method raises the error with which an earlier checkpoint failed.
    """

    def is_due(self) -> bool:
        """Return whether a checkpoint within the epoch is due; called before each step."""

    def snapshot(self) -> Snapshot:
        """Copy everything that training changes, as it is now."""

    def save_state(self, position: Position, snapshot: Snapshot | None = None) -> None:
        """Begin to save a checkpoint for resuming, without a model: of a snapshot, or as it is now."""

    def save_epoch(
        self, position: Position, metrics: Metrics | None, *, is_best: bool, is_last: bool
    ) -> None:
        """Begin to record a finished epoch, with its model where that is the best or a checkpoint is due."""

    def finish(self) -> None:
        """Wait until the last checkpoint is written."""


@dataclass(frozen=True)
class Work:
    """Inputs of the loop.

    Attributes:
        batches: Returns the training batches of an epoch (from 0), from a step on: always in the same order.
        steps: Batches of an epoch.
        evaluate: Evaluates the model as it is.
        saver: Saves checkpoints.
        stop_requested: Returns whether the run must end soon, the same on every worker; called before each
            step.
    """

    batches: Callable[[int, int], Iterable[Batch]]
    steps: int
    evaluate: Callable[[], Metrics]
    saver: Saver
    stop_requested: Callable[[], bool]


def train(
    trainer: Trainer, work: Work, spec: Training, evaluation: Evaluation, start: Position, callback: Callback
) -> Position:
    """Train until the last epoch, or until early stopping ends it.

    Returns:
        The position at the end; ``best`` is the evaluation of the best model.

    Raises:
        RunnerError: NaNLoss, naming step, learning rate and images; OutOfMemory; NoLabels, where an
            evaluation measures nothing; Interrupted, after a checkpoint.
    """
    with _out_of_memory_explained(spec), _checkpoints_finished(work.saver):
        position = start
        # 1. An epoch that an earlier attempt did not finish, because it ended within the evaluation, or that
        # must be finished again, because its model is gone or the data changed. The weights are that epoch's.
        if not position.epoch_finished:
            position = _finish_epoch(position, work, spec, evaluation, callback)
        # 2. Epochs. The position alone decides how it goes on: a resumed attempt that early stopping had
        # ended takes no further step.
        while position.epoch < spec.epochs and not _is_stale(position, spec):
            position = _train_epoch(trainer, work, spec, position, callback)
            position = _finish_epoch(position, work, spec, evaluation, callback)
    if position.epoch < spec.epochs:
        monitor = spec.early_stopping.monitor if spec.early_stopping else "metric"
        log.info(
            "stopped early after epoch %d: %s not improved %d times", position.epoch, monitor, position.stale
        )
    return position


@dataclass(frozen=True)
class PendingStep:
    """A step that the device may still be computing.

    Attributes:
        number: Steps since the start of training, from 0.
        in_epoch: Steps taken in the epoch, this one included.
        learning_rate: Learning rate of the step.
        batch: Its images, to name them where the loss is not finite.
        figures: FIGURES [8]; reading them waits for the device.
    """

    number: int
    in_epoch: int
    learning_rate: float
    batch: Batch
    figures: tf.Tensor


@dataclass
class _EpochLoss:
    """The mean loss of an epoch's steps, those of earlier attempts included."""

    total: float
    count: int

    def add(self, loss: float) -> None:
        self.total += loss
        self.count += 1

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0


def _train_epoch(
    trainer: Trainer, work: Work, spec: Training, start: Position, callback: Callback
) -> Position:
    """Take the remaining steps of an epoch; its evaluation and checkpoint are still to be made."""
    # The losses of an earlier attempt's steps count, so that early stopping by loss decides as it would have
    # without the interruption.
    epoch_loss = _EpochLoss(start.loss_sum, start.step)
    pending: PendingStep | None = None
    callback.on_epoch_begin(start.epoch, start.step)
    step = start.step
    for batch in work.batches(start.epoch, start.step):
        # Steps since the start of training: schedule and random draws depend on it, and on nothing that an
        # interruption changes.
        number = start.epoch * work.steps + step
        # A requested stop ends the run between two steps, so that the next attempt takes the same steps.
        if work.stop_requested():
            # The pending step has changed the weights already: its loss belongs into the checkpoint.
            _complete_step(trainer, pending, epoch_loss, callback)
            _interrupt(work, start.model_copy(update={"step": step, "loss_sum": epoch_loss.total}))
        # Not before the epoch's first step: the checkpoint of the epoch before is as good.
        is_due = step > start.step and work.saver.is_due()
        snapshot = work.saver.snapshot() if is_due else None
        rate = learning_rate(number / (spec.epochs * work.steps), spec.learning_rate, trainer.replicas)
        figures = trainer.step(batch, number, rate)
        # Figures of the previous step are read while the device computes this one: it never waits for us.
        _complete_step(trainer, pending, epoch_loss, callback)
        # Saved after that check, which every worker makes at the same step. On the chief alone, and earlier,
        # a loss that is not finite would leave the others waiting for it in this step.
        if snapshot is not None:
            reached = start.model_copy(update={"step": step, "loss_sum": epoch_loss.total})
            work.saver.save_state(reached, snapshot)
            # Its memory is the next one's.
            snapshot = None
        step += 1
        pending = PendingStep(number, step, rate, batch, figures)
    # The last step of the epoch has no successor that would complete it.
    _complete_step(trainer, pending, epoch_loss, callback)
    log.info("epoch %d/%d: loss %.4f", start.epoch + 1, spec.epochs, epoch_loss.mean)
    # False until the evaluation and its checkpoint are made: whoever resumes from here makes them first.
    ended = {"epoch": start.epoch + 1, "step": 0, "loss_sum": 0.0, "epoch_finished": False}
    # Negated, because early stopping counts rising scores.
    return _update_early_stopping(start.model_copy(update=ended), "loss", -epoch_loss.mean, spec)


def _complete_step(
    trainer: Trainer, pending: PendingStep | None, epoch_loss: _EpochLoss, callback: Callback
) -> None:
    """Wait for the figures of a step, check them and report the step."""
    # Nothing was taken yet: the first step of an epoch, or a stop before it.
    if pending is None:
        return
    # numpy() is where this thread waits for the device, and where its errors appear.
    values = dict(zip(FIGURES, pending.figures.numpy().tolist(), strict=True))
    scale = values.pop("loss_scale")
    # Without float16 the scale is 1, which is the lowest: then a gradient that overflows always ends the run.
    overflowed = not math.isfinite(values["gradient_norm"])
    # The scale multiplies the gradient only: lowering it does not cure a loss that is not finite.
    if not math.isfinite(values["total"]) or (overflowed and scale <= LOWEST_SCALE):
        parts = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        raise RunnerError(
            Reason.NAN_LOSS,
            f"loss or gradient is not finite at step {pending.number + 1} with learning rate "
            f"{pending.learning_rate:.3g}: {parts}; {trainer.images_named(pending.batch)}",
        )
    # The update was skipped on the device; infinity is no figure, and no JSON.
    if overflowed:
        log.info(
            "step %d skipped: its gradient overflowed float16 at loss scale %g", pending.number + 1, scale
        )
        del values["gradient_norm"]
    epoch_loss.add(values["total"])
    callback.on_step_end(Step(pending.number, pending.in_epoch, pending.learning_rate, values))


def _interrupt(work: Work, position: Position) -> NoReturn:
    """Save a checkpoint within the epoch and end the run as Interrupted.

    Raises:
        RunnerError: Interrupted, in any case.
    """
    # The checkpoint first: the exception ends with an exit code that promises that one can be resumed from.
    work.saver.save_state(position)
    work.saver.finish()
    raise InterruptedRunError(
        f"stopped from outside after epoch {position.epoch} and step {position.step} of the next; "
        "a checkpoint is written",
    )


def _finish_epoch(
    position: Position, work: Work, spec: Training, evaluation: Evaluation, callback: Callback
) -> Position:
    """Evaluate and save a checkpoint, if due."""
    metrics, is_best = None, False
    ends = position.epoch == spec.epochs or _is_stale(position, spec)
    # 1. Evaluate. The last epoch always is: a training must not end without figures of its model.
    if position.epoch % evaluation.interval_epochs == 0 or ends:
        # Saved first, because an evaluation may outlast the pod's grace period.
        work.saver.save_state(position)
        callback.on_evaluation_begin()
        metrics = work.evaluate().model_copy(update={"epoch": position.epoch})
        callback.on_evaluation_end(metrics, position.epoch * work.steps)
        # Preparation refuses such data; records of an earlier release may still be of that kind.
        require_measured(metrics, "there is no best model, and early stopping by mAP has nothing to go by")
        # 2. Compare it with the best evaluation so far, which may be of an earlier attempt.
        is_best = _is_better(metrics, position.best)
        if is_best:
            position = position.model_copy(update={"best": metrics})
        position = _update_early_stopping(position, "mAP", metrics.m_ap, spec)
        # By mAP, early stopping is decided only now; by loss it was before the evaluation.
        ends = ends or _is_stale(position, spec)
        log.info("epoch %d/%d: best mAP %s", position.epoch, spec.epochs, _best_text(position))
    # 3. Save. Set before saving: the manifest that names the model also says that the epoch is finished.
    position = position.model_copy(update={"epoch_finished": True})
    is_last = position.epoch % spec.checkpoint_interval == 0 or ends
    # Otherwise there is nothing to record: a later attempt takes the epoch again from the last checkpoint.
    if metrics is not None or is_last:
        work.saver.save_epoch(position, metrics, is_best=is_best, is_last=is_last)
    return position


def _is_better(metrics: Metrics, best: Metrics | None) -> bool:
    # An attempt of an earlier release may have recorded a best model without mAP.
    if best is None or best.m_ap is None or metrics.m_ap is None:
        return True
    # Strictly: of equally good models the earlier one stays the best.
    return metrics.m_ap > best.m_ap


def _update_early_stopping(position: Position, monitor: str, score: float | None, spec: Training) -> Position:
    """Count how often the score has not risen by more than minDelta."""
    early, reached = spec.early_stopping, position.reached
    # Called for every score; only the monitored one counts.
    if early is None or early.monitor != monitor:
        return position
    if score is None or reached is None or score > reached + early.min_delta:
        return position.model_copy(update={"stale": 0, "reached": score})
    # `reached` stays: many rises that are each below minDelta add up to one that counts.
    return position.model_copy(update={"stale": position.stale + 1})


def _is_stale(position: Position, spec: Training) -> bool:
    return spec.early_stopping is not None and position.stale >= spec.early_stopping.patience


def _best_text(position: Position) -> str:
    if position.best is None or position.best.m_ap is None:
        return "unknown"
    return f"{position.best.m_ap:.4f} (epoch {position.best.epoch})"


@contextmanager
def _checkpoints_finished(saver: Saver) -> Iterator[None]:
    """Context at whose end all checkpoints are written, whichever way it ends."""
    try:
        yield
    except InterruptedRunError:
        # Its exit code promises a checkpoint: if the one before an evaluation fails, that error is raised.
        saver.finish()
        raise
    except BaseException:
        # What ended the training is the error to report, not a checkpoint that failed besides.
        try:
            saver.finish()
        except Exception as error:
            log.warning("the checkpoint that was being written failed as well: %s", error)
        raise
    saver.finish()


@contextmanager
def _out_of_memory_explained(spec: Training) -> Iterator[None]:
    """Turn exhausted memory, in a step or an evaluation, into a failure that says what needs less of it."""
    try:
        yield
    except RunnerError:
        raise
    except Exception as error:
        if exits.reason_of(error) != Reason.OUT_OF_MEMORY:
            raise
        # TensorFlow's messages go on for many lines, with hints for its own API.
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise RunnerError(
            Reason.OUT_OF_MEMORY,
            f"training with spec.training.batchSizePerGPU {spec.batch_size_per_gpu} does not fit in memory: "
            f"{first_line}",
            _less_memory_hint(spec),
        ) from error


def _less_memory_hint(spec: Training) -> str:
    """Advice for making the same updates in less memory."""
    # Nothing to divide any more: only smaller images or fewer proposals help.
    if spec.batch_size_per_gpu == 1:
        return "Lower spec.dataset.imageSize or spec.model.roi.miniBatch, or use a GPU with more memory."
    less = spec.in_less_memory()
    return (
        f"The same updates in less memory: spec.training.batchSizePerGPU {less.batch_size_per_gpu} with "
        f"gradientAccumulationSteps {less.gradient_accumulation_steps}."
    )
