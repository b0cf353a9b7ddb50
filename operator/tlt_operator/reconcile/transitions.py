"""Plans for the transitions that several policies share: an attempt begins, ends, or was the last one."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tlt_api import conditions, times
from tlt_api.conditions import State
from tlt_api.failures import Reason
from tlt_api.resources import Resource
from tlt_api.status import Attempt, Failure, Phase
from tlt_operator.reconcile import report, retry
from tlt_operator.reconcile.plan import Plan, plan_for, with_state
from tlt_operator.snapshot import JobState, Snapshot

_LONGEST_MESSAGE = 2000


def announce(snapshot: Snapshot, attempt: int, now: datetime, **changes: Any) -> Plan:
    """Record that an attempt is to be made; the next reconciliation finds its Job missing and creates it."""
    # The name goes into the status before the Job exists: the admission policy admits this Job's pods alone.
    name = snapshot.job_name(attempt)
    state = State(Phase.QUEUED, "CreatingJob", f"attempt {attempt}: creates Job {name}")
    fields: dict[str, Any] = {"attempt": attempt, "job_name": name, "job_uid": None, **changes}
    if attempt == 1:
        fields |= {"failure": None, "completion_time": None}
    return plan_for(snapshot, with_state(snapshot, state, now, **fields), requeue_after=0)


def succeed(snapshot: Snapshot, job: JobState, now: datetime) -> Plan:
    """Return the plan for an attempt that succeeded, and with it the resource."""
    status = with_state(
        snapshot,
        conditions.succeeded(snapshot.attempt),
        now,
        job_uid=job.uid,
        failure=None,
        start_time=started(snapshot, job, now),
        completion_time=times.to_wire(job.completion_time or now),
    )
    return plan_for(snapshot, status, report=_final_report(snapshot))


def end_attempt(
    snapshot: Snapshot, resource: Resource, failure: Failure, now: datetime, delete: JobState | None = None
) -> Plan:
    """Return the plan for an attempt without success: another one follows, or the resource fails."""
    status, failure, reason = snapshot.status, _shortened(failure), Reason(failure.reason)
    retries_left = retry.may_retry(reason, failure.retryable, status, resource.spec)
    remedy = retry.remedy(resource.spec, status.history, reason) if retries_left else None
    # The remedy is recorded with the failure: the next attempt's spec follows from the history alone.
    entry = Attempt(attempt=snapshot.attempt, reason=reason, remedy=remedy, time=times.to_wire(now))
    history = retry.append(status.history, entry)
    if not retries_left:
        return fail(snapshot, failure, now, delete=delete, history=history)
    retries = (status.retries or 0) + retry.counts(reason, status.history)
    text = (
        f"attempt {snapshot.attempt} ended: {reason}: {failure.message}; next: {remedy or 'the same again'}"
    )
    state = State(Phase.RETRYING, conditions.RETRYING, text)
    new = with_state(snapshot, state, now, history=history, retries=retries or None, failure=failure)
    return plan_for(snapshot, new, report=_final_report(snapshot), delete=delete, requeue_after=0)


def fail(
    snapshot: Snapshot, failure: Failure, now: datetime, delete: JobState | None = None, **changes: Any
) -> Plan:
    """Return the plan for a resource that failed for good."""
    failure = _shortened(failure)
    status = with_state(
        snapshot,
        conditions.failed(failure),
        now,
        failure=failure,
        completion_time=snapshot.status.completion_time or times.to_wire(now),
        **changes,
    )
    return plan_for(snapshot, status, report=_final_report(snapshot), delete=delete)


def started(snapshot: Snapshot, job: JobState, now: datetime) -> str:
    """Return ``status.startTime``: the start of the first attempt's Job."""
    return snapshot.status.start_time or times.to_wire(job.start_time or now)


def _final_report(snapshot: Snapshot) -> dict[str, Any] | None:
    """Return the runner's fields, completed from the termination message; None if it adds nothing."""
    return report.completed(snapshot.status, report.of_pods(snapshot.attempt_pods))


def _shortened(failure: Failure) -> Failure:
    """Return the failure with a message short enough for an object in etcd."""
    return failure.model_copy(update={"message": failure.message[:_LONGEST_MESSAGE]})
