"""Policy of retries: the failures that count, the delay, and the changes that the next attempt makes.

Everything follows from the spec and ``status.history``, so that it is the same after a restart of the
operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from tlt_api.common import JobSpec
from tlt_api.failures import Cause, Reason, cause_of
from tlt_api.status import HISTORY_LIMIT, Attempt, JobStatus, Position, Progress
from tlt_api.times import from_wire
from tlt_api.trainingjob import TrainingJobSpec
from tlt_operator.settings import Settings

SUSPENDED = "Suspended"
"""Reason in the history for an attempt that the user suspended, which is no failure."""

_UNCOUNTED_IN_A_ROW = 10
"""Interruptions in a row that do not count against maxRetries."""
_CALM_SECONDS = 3600
"""Interruptions further apart than this are not in a row."""
_STAGES = ("survey", "convert", "train", "evaluate", "prune", "export", "verify", "build")
"""Stages of a run in their order; a training returns from evaluate to train with the next epoch."""
_AVOIDED_NODES = 8
"""Most nodes that an attempt avoids: each is a term of the pod's affinity."""


def may_retry(entry: Attempt, retryable: bool, status: JobStatus, spec: JobSpec) -> bool:
    """Tell whether another attempt follows the end of an attempt that ``entry`` records."""
    # The same input would fail in the same way: the user has to change something.
    if not retryable:
        return False
    return not counts(entry, status.history) or (status.retries or 0) < spec.run_policy.max_retries


def counts(entry: Attempt, history: Sequence[Attempt] | None) -> bool:
    """Tell whether an end counts against maxRetries; the first ten interruptions in a row do not.

    The limit ends a run that brings the interruption upon itself: an eviction for the pod's own use of disk
    comes back every time at about the same place, a preemption does not.
    """
    match _cause(entry):
        case Cause.SURROUNDINGS:
            return False
        case Cause.INTERRUPTION:
            return len(_row([*(history or ()), entry])) > _UNCOUNTED_IN_A_ROW
        case _:
            return True


def delay(history: Sequence[Attempt], retries: int, settings: Settings) -> float:
    """Return the seconds between the end of the last attempt and the start of the next."""
    # The user resumed it, and waits.
    if history[-1].reason == SUSPENDED:
        return 0
    # The first interruption is resumed at once, other ends after the base delay; then delays double.
    match _cause(history[-1]):
        case Cause.INTERRUPTION:
            doublings = len(_row(history)) - 2
        case Cause.SURROUNDINGS:
            doublings = len(_row(history)) - 1
        case _:
            doublings = retries - 1
    if doublings < 0:
        return 0
    # The exponent is bounded, since 2.0 ** 1024 overflows.
    return min(settings.retry_base_seconds * 2.0 ** min(doublings, 32), settings.retry_limit_seconds)


def requested(spec: JobSpec, status: JobStatus) -> bool:
    """Tell whether ``spec.retry`` was raised and has not been acted upon."""
    return spec.retry > (status.observed_retry or 0)


def away_since(status: JobStatus) -> datetime | None:
    """Return since when the surroundings have kept a run from going on, over all attempts of that time.

    None if its last attempt did not end by them. An attempt that starts and fails for the same reason is no
    end of the trouble, hence the time of the first one.
    """
    history = _ended(status.history or ())
    if not history or _cause(history[-1]) != Cause.SURROUNDINGS:
        return None
    return from_wire(_row(history)[0].time)


def position(progress: Progress | None) -> Position | None:
    """Return the place that a run had reached, as the history records it."""
    if progress is None or progress.stage is None:
        return None
    return Position(stage=progress.stage, epoch=progress.epoch, step=progress.step)


def nodes_to_avoid(history: Sequence[Attempt] | None) -> list[str]:
    """Return the nodes that could not start pods of the last attempts, the newest first."""
    entries = _ended(history or ())
    nodes = [entry.node for entry in reversed(_row(entries)) if entry.node] if entries else []
    return list(dict.fromkeys(nodes))[:_AVOIDED_NODES]


def _cause(entry: Attempt) -> Cause | None:
    # A newer operator may have recorded a reason that this one does not know.
    return cause_of(entry.reason)


def _ended(history: Sequence[Attempt]) -> list[Attempt]:
    """Return the entries of attempts that ended; those that a queue paused went on."""
    return [entry for entry in history if not entry.paused]


def _row(history: Sequence[Attempt]) -> list[Attempt]:
    """Return the last entries of the history that have one cause, without progress between them."""
    entries = _ended(history)
    row = [entries[-1]]
    for index in range(len(entries) - 1, 0, -1):
        earlier, later = entries[index - 1], entries[index]
        # Another cause ends the row, and so does the user who started the later attempt.
        if _cause(earlier) != _cause(later) or earlier.retry is not None:
            break
        # So does progress: what stopped the run did not keep it from getting further than ever before.
        if _moved(entries[:index], later) or _calm(earlier, later):
            break
        row.insert(0, earlier)
    return row


def _moved(before: Sequence[Attempt], entry: Attempt) -> bool:
    """Tell whether an attempt got further than all before it."""
    # The furthest of all, not the last: a run that starts again and again from the same checkpoint ends now a
    # step later, now a step earlier.
    return _order(entry.progress) > max(_order(item.progress) for item in before)


def _order(reached: Position | None) -> tuple[int, int, int]:
    if reached is None:
        return (-1, 0, 0)
    stage = _STAGES.index(reached.stage) if reached.stage in _STAGES else 0
    return (reached.epoch or 0, stage, reached.step or 0)


def _calm(earlier: Attempt, later: Attempt) -> bool:
    """Tell whether two interruptions are far apart: a run that causes them itself meets them sooner."""
    ends = (from_wire(earlier.time), from_wire(later.time))
    # Of the surroundings, trouble that lasts is the same trouble, however seldom it is met.
    if _cause(later) != Cause.INTERRUPTION:
        return False
    return ends[0] is None or ends[1] is None or (ends[1] - ends[0]).total_seconds() > _CALM_SECONDS


def append(history: Sequence[Attempt] | None, entry: Attempt) -> list[Attempt]:
    """Return the history with one more entry, within its limit.

    The oldest entries without a remedy are dropped first: the next attempt's spec is made from all remedies.
    Of an attempt that a queue stops again and again, the last stop stands for all; ``status.preemptions``
    counts them.
    """
    entries = list(history or ())
    if entry.paused and entries and entries[-1].paused and entries[-1].attempt == entry.attempt:
        entries.pop()
    entries.append(entry)
    ends = _ended(entries)
    # Never the newest: it is the end that is being recorded. Nor the first of those by which the surroundings
    # keep the run from going on: it tells since when (:func:`away_since`).
    away = bool(ends) and _cause(ends[-1]) == Cause.SURROUNDINGS
    kept = [entry, _row(ends)[0]] if away else [entry]
    while len(entries) > HISTORY_LIMIT:
        droppable = (i for i, item in enumerate(entries) if not any(item is other for other in kept))
        oldest = next((i for i in droppable if entries[i].remedy is None), 0)
        del entries[oldest]
    return entries


def remedy(spec: JobSpec, history: Sequence[Attempt] | None, reason: Reason) -> str | None:
    """Return the change that the attempt after this failure makes, in words; None if nothing is changed."""
    if not isinstance(spec, TrainingJobSpec):
        return None
    # A failure counts for the spec of the next attempt if it has a remedy, even an empty one.
    entry = Attempt(attempt=0, reason=reason, remedy="")
    # Computed as the next attempt will compute it, so that the text cannot promise another change.
    before = _remedied(spec, history).training
    after = _remedied(spec, [*(history or ()), entry]).training
    if before.batch_size_per_gpu != after.batch_size_per_gpu:
        return (
            f"batchSizePerGPU {before.batch_size_per_gpu} -> {after.batch_size_per_gpu}, "
            f"gradientAccumulationSteps {before.gradient_accumulation_steps} -> "
            f"{after.gradient_accumulation_steps}"
        )
    if before.learning_rate != after.learning_rate:
        return f"learningRate.max {before.learning_rate.max:g} -> {after.learning_rate.max:g}"
    return None


def for_attempt(spec: JobSpec, history: Sequence[Attempt] | None) -> JobSpec:
    """Return the spec with the remedies of all failures so far."""
    if not isinstance(spec, TrainingJobSpec):
        return spec
    return _remedied(spec, history)


def _remedied(spec: TrainingJobSpec, history: Sequence[Attempt] | None) -> TrainingJobSpec:
    # From the user's spec and the whole history each time: an operator that restarts computes the same spec.
    remedied = [entry.reason for entry in history or () if entry.remedy is not None]
    remedies = spec.run_policy.remedies
    training = spec.training
    if remedies.out_of_memory == "HalveBatch":
        # Counted over the whole run: each failure for memory halves the batch once more.
        halvings = remedied.count(Reason.OUT_OF_MEMORY)
        # More steps of accumulation make up for it: a step has as many images as the user asked for.
        training = training.in_less_memory(halvings)
    if remedies.nan_loss == "LowerLearningRate":
        factor = 10.0 ** remedied.count(Reason.NAN_LOSS)
        rate = training.learning_rate
        # Without a minimum, it follows the maximum by its default.
        lowest = None if rate.min is None else rate.min / factor
        rate = rate.model_copy(update={"min": lowest, "max": rate.max / factor})
        training = training.model_copy(update={"learning_rate": rate})
    return spec.model_copy(update={"training": training})
