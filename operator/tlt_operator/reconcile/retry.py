"""Policy of retries: the failures that count, the delay, and the changes that the next attempt makes.

Everything follows from the spec and ``status.history``, so that it is the same after a restart of the
operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tlt_api.common import JobSpec
from tlt_api.failures import Reason
from tlt_api.status import HISTORY_LIMIT, Attempt, JobStatus
from tlt_api.times import from_wire
from tlt_api.trainingjob import TrainingJobSpec
from tlt_operator.settings import Settings

SUSPENDED = "Suspended"
"""Reason in the history for an attempt that the user suspended, which is no failure."""

UNCOUNTED = frozenset(
    {Reason.INTERRUPTED, Reason.WORKER_LOST, Reason.EVICTED, Reason.NODE_LOST, Reason.JOB_DELETED}
)
"""Failures that the run did not cause: retried ever later, and the first ten in a row do not count."""

_UNCOUNTED_IN_A_ROW = 10
"""Interruptions in a row that do not count against maxRetries."""
_CALM_SECONDS = 3600
"""Interruptions further apart than this are not in a row."""


def may_retry(reason: Reason, retryable: bool, status: JobStatus, spec: JobSpec) -> bool:
    """Tell whether another attempt follows a failure."""
    # The same input would fail in the same way: the user has to change something.
    if not retryable:
        return False
    return not counts(reason, status.history) or (status.retries or 0) < spec.run_policy.max_retries


def counts(reason: Reason, history: Sequence[Attempt] | None) -> bool:
    """Tell whether a failure counts against maxRetries; the first ten interruptions in a row do not.

    The limit ends a run that brings the interruption upon itself: an eviction for the pod's own use of disk
    comes back every time, a preemption does not.
    """
    return reason not in UNCOUNTED or (bool(history) and _interruptions(history or ()) >= _UNCOUNTED_IN_A_ROW)


def delay(history: Sequence[Attempt], retries: int, settings: Settings) -> float:
    """Return the seconds between the end of the last attempt and the start of the next."""
    last = history[-1].reason
    # The user resumed it, and waits.
    if last == SUSPENDED:
        return 0
    # The first interruption is resumed at once, the first failure after the base delay; then delays double.
    doublings = _interruptions(history) - 2 if last in UNCOUNTED else retries - 1
    if doublings < 0:
        return 0
    # The exponent is bounded, since 2.0 ** 1024 overflows.
    return min(settings.retry_base_seconds * 2.0 ** min(doublings, 32), settings.retry_limit_seconds)


def _interruptions(history: Sequence[Attempt]) -> int:
    """Return the number of interruptions in a row at the end of the history."""
    if not history or history[-1].reason not in UNCOUNTED:
        return 0
    count = 1
    for earlier, later in reversed(list(pairwise(history))):
        ends = (from_wire(earlier.time), from_wire(later.time))
        # A failure of the run itself ends the row.
        if earlier.reason not in UNCOUNTED or ends[0] is None or ends[1] is None:
            break
        # So does a long time between two interruptions: a run that causes them itself meets them sooner.
        if (ends[1] - ends[0]).total_seconds() > _CALM_SECONDS:
            break
        count += 1
    return count


def append(history: Sequence[Attempt] | None, entry: Attempt) -> list[Attempt]:
    """Return the history with one more entry, within its limit.

    The oldest entries without a remedy are dropped first: the next attempt's spec is made from all remedies.
    """
    entries = [*(history or ()), entry]
    while len(entries) > HISTORY_LIMIT:
        # Never the newest: it is the end that is being recorded.
        oldest = next((i for i, item in enumerate(entries[:-1]) if item.remedy is None), 0)
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
