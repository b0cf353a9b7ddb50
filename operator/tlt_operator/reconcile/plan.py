"""Plan of the actions for a resource, and the plans of the transitions that several policies share.

``reconcile`` decides on a plan, ``apply`` executes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from tlt_api import conditions, times
from tlt_api.conditions import State
from tlt_api.failures import CLASSES, Cause, Reason, cause_of
from tlt_api.resources import Resource
from tlt_api.status import OPERATOR_FIELDS, Attempt, Failure, JobStatus, Phase
from tlt_operator.objects.event import Event
from tlt_operator.reconcile import diagnosis, hints, report, retry
from tlt_operator.snapshot import JobState, Snapshot, WorkloadState

_TTL_OF_REPEATED_JOBS = 3600
"""Seconds for which the Job of an attempt that the surroundings ended is kept, with its log."""
LONGEST_MESSAGE = 2000
"""Limit of a failure's message, in characters: the message of a webhook, for example, may have any length."""


@dataclass(frozen=True)
class Plan:
    """Actions, in the order in which they are executed.

    Attributes:
        create: The Job to create, whose uid goes into the status.
        report: The runner's fields of the status, completed from the termination message.
        event: The Event to post.
        status: The operator's fields of the status; None where they stay as they are.
        service: The Service to create, of a Job that exists.
        delete: The Job to delete.
        suspend: The Job to suspend.
        resume: The Job to resume.
        workload: The Workload by which its queue suspends or resumes that Job; None for a Job without one.
        ttl: Jobs (name and uid) whose ttlSecondsAfterFinished to set.
        requeue_after: Seconds after which to look again even if no event arrives.
        announced: Snapshot with the next attempt in its status, with which to decide on: nothing is written
            before the attempt's Job exists.
    """

    create: Mapping[str, Any] | None = None
    report: Mapping[str, Any] | None = None
    event: Event | None = None
    status: JobStatus | None = None
    service: Mapping[str, Any] | None = None
    delete: JobState | None = None
    suspend: JobState | None = None
    resume: JobState | None = None
    workload: WorkloadState | None = None
    ttl: tuple[tuple[str, str, int], ...] = ()
    requeue_after: float | None = None
    announced: Snapshot | None = None


def plan_for(snapshot: Snapshot, status: JobStatus, **actions: Any) -> Plan:
    """Return a plan that writes a status, with an Event for a transition; ``actions`` go into the plan."""
    # Nothing changed: no write, and no load on the API server from resources at rest.
    stored = snapshot.stored_status
    if operator_fields(status) == operator_fields(stored):
        return Plan(**actions)
    return Plan(status=status, event=_transition(stored, status), **actions)


def with_state(snapshot: Snapshot, state: State, now: datetime, **changes: Any) -> JobStatus:
    """Return the status in a new state; ``changes`` are fields by their Python names."""
    new_conditions = conditions.build(
        snapshot.status.conditions, state, snapshot.generation, times.to_wire(now)
    )
    # Conditions of others (a newer operator, another controller) stay: the list is written as a whole.
    types = {condition.type for condition in new_conditions}
    new_conditions += [item for item in snapshot.status.conditions if item.type not in types]
    # The phase is derived from the conditions, so that the two never disagree.
    phase, status = conditions.phase(new_conditions), snapshot.status
    update: dict[str, Any] = {
        "conditions": new_conditions,
        "phase": phase,
        "observed_generation": snapshot.generation,
        "waiting_since": (status.waiting_since or times.to_wire(now)) if phase == Phase.QUEUED else None,
    }
    # Raised while nothing has failed: noted, so that it does not start an attempt later on. Failed resources
    # are asked first, by retry.requested.
    if snapshot.resource and phase != Phase.FAILED:
        update["observed_retry"] = observed_retry(snapshot.resource, status)
    return status.model_copy(update={**update, **changes})


_FOUND_AGAIN = {"phase", "conditions", "observed_generation", "waiting_since", "start_time"}
_FOUND_AGAIN |= {"attempt", "job_name", "job_uid", "inputs", "dependency"}
"""Fields of a status that a later look finds again in the resource, its Job and its pods."""
_CANNOT_WAIT = OPERATOR_FIELDS - _FOUND_AGAIN


def can_wait(plan: Plan, stored: JobStatus) -> bool:
    """Tell whether the status of a plan may be written later, or never if another one takes its place.

    Nothing depends on such a status: it ends nothing, counts nothing, and no Event and no other write of the
    plan follows it.
    """
    status = plan.status
    if status is None or status.phase in conditions.TERMINAL or stored.phase in conditions.TERMINAL:
        return False
    if plan != Plan(create=plan.create, status=status, requeue_after=plan.requeue_after):
        return False
    # What a reference resolved to would be read from the Job in each look until it is written.
    if plan.create is not None and status.dependency is not None:
        return False
    return all(getattr(stored, name) == getattr(status, name) for name in _CANNOT_WAIT)


def observed_retry(resource: Resource, status: JobStatus) -> int | None:
    """Return ``status.observedRetry`` once spec.retry has been acted upon; None if it was never set."""
    # A lower number (a manifest applied again) is noted too: raising it counts from there.
    return resource.spec.retry if resource.spec.retry or status.observed_retry else None


def operator_fields(status: JobStatus) -> dict[str, Any]:
    """Return the operator's fields of a status as JSON data."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True, include=set(OPERATOR_FIELDS))


def _transition(before: JobStatus, after: JobStatus) -> Event | None:
    """Return the Event for people if phase, attempt or reason have changed."""
    # Ready carries the reason of every state, and no other condition does.
    ready = conditions.find(after.conditions, conditions.READY)
    was_ready = conditions.find(before.conditions, conditions.READY)
    # What every run goes through is not worth an Event: thousands of them would be most of what there is to
    # read, and of the operator's writes. Its end is.
    if ready is None or ready.reason in (conditions.WAITING_FOR_POD, conditions.RUNNING):
        return None
    # Of its own: the state may have been reported before it turned out that a person has to act.
    if _stalls(after) and not _stalls(before) and after.phase != Phase.FAILED:
        return Event("Warning", conditions.STALLED, ready.message)
    previous = (before.phase, before.attempt, was_ready.reason if was_ready else None)
    if previous == (after.phase, after.attempt, ready.reason):
        return None
    blocked = conditions.find(after.conditions, conditions.BLOCKED)
    warns = after.phase in ("Failed", "Retrying") or (blocked is not None and blocked.status == "True")
    return Event("Warning" if warns else "Normal", ready.reason, ready.message)


def _stalls(status: JobStatus) -> bool:
    stalled = conditions.find(status.conditions, conditions.STALLED)
    return stalled is not None and stalled.status == "True"


def announce(snapshot: Snapshot, attempt: int, now: datetime, **changes: Any) -> Plan:
    """Go on with the next attempt; ``changes`` are fields of the status by their Python names.

    The status is not written before the attempt's Job exists: an operator that dies in between finds that Job
    by its name. The runner may not report before, since the admission policy admits the pods of the Job that
    the status names.
    """
    fields: dict[str, Any] = {
        "attempt": attempt,
        "job_name": snapshot.job_name(attempt),
        "job_uid": None,
        **changes,
    }
    # Later attempts show the failure of the one before until they succeed or fail themselves.
    if attempt == 1:
        fields |= {"failure": None, "completion_time": None}
    announced = replace(
        snapshot,
        status=snapshot.status.model_copy(update=fields),
        recorded=snapshot.stored_status,
        # The name of the Job may be taken.
        job=snapshot.next_job,
        next_job=None,
        service=None,
    )
    return Plan(announced=announced)


def succeed(snapshot: Snapshot, job: JobState, now: datetime) -> Plan:
    """Return the plan for an attempt that succeeded, and with it the resource."""
    status = with_state(
        snapshot,
        conditions.succeeded(snapshot.attempt),
        now,
        job_uid=job.uid,
        failure=None,
        start_time=first_start(snapshot, job, now),
        completion_time=times.to_wire(job.completion_time or now),
    )
    return plan_for(snapshot, status, report=_final_report(snapshot))


def end_attempt(
    snapshot: Snapshot,
    resource: Resource,
    failure: Failure,
    now: datetime,
    delete: JobState | None = None,
) -> Plan:
    """Return the plan for an attempt without success: another one follows, or the resource fails.

    Args:
        snapshot: The resource and all that belongs to it.
        resource: The resource.
        failure: How the attempt ended.
        now: The time.
        delete: Job that still runs.
    """
    # The reason decides: whether it can be retried at all, whether it counts, and what the next attempt
    # changes.
    failure = hints.with_names(_shortened(failure), resource, snapshot.namespace)
    status, reason = snapshot.status, Reason(failure.reason)
    entry = Attempt(
        attempt=snapshot.attempt,
        reason=reason,
        time=times.to_wire(now),
        progress=retry.position(status.progress),
        node=diagnosis.failed_node(failure, snapshot.attempt_pods),
    )
    retries_left = retry.may_retry(entry, failure.retryable, status, resource.spec)
    remedy = retry.remedy(resource.spec, status.history, reason) if retries_left else None
    # The remedy is recorded with the failure: the next attempt's spec follows from the history alone.
    history = retry.append(status.history, entry.model_copy(update={"remedy": remedy}))
    # Of an attempt that was over before a status said that it runs, too.
    job = snapshot.own_job
    started = {"start_time": first_start(snapshot, job, now)} if job and job.start_time else {}
    if not retries_left:
        return fail(snapshot, failure, now, delete=delete, history=history, **started)
    changes = {"history": history, "failure": failure, **_counted(status, entry), **started}
    message = f"attempt {snapshot.attempt} ended: {reason}: {failure.message}; next: "
    message += remedy or "the same again"
    retrying = with_state(snapshot, retrying_state(failure, message), now, **changes)
    # The Job of an attempt that is made again until the trouble is over: there may be hundreds of them.
    repeated = job if CLASSES[reason].cause == Cause.SURROUNDINGS else None
    ttl = ((repeated.name, repeated.uid, _TTL_OF_REPEATED_JOBS),) if repeated else ()
    return plan_for(
        snapshot, retrying, report=_final_report(snapshot), delete=delete, ttl=ttl, requeue_after=0
    )


def retrying_state(failure: Failure, message: str) -> State:
    """Return the state between a failure and the next attempt."""
    # What the run needs is away: the wait is a blocked one, and says what to mend.
    if cause_of(failure.reason) == Cause.SURROUNDINGS:
        block = conditions.Block(failure.reason, f"{failure.message}. {failure.hint}")
        return State(Phase.RETRYING, conditions.RETRYING, message, block)
    return State(Phase.RETRYING, conditions.RETRYING, message)


def _counted(status: JobStatus, entry: Attempt) -> dict[str, int]:
    """Return the counters of a status after the end of an attempt that another one follows."""
    # Counted against the history without this entry: the first ten interruptions in a row are free.
    counters = {"retries": (status.retries or 0) + 1} if retry.counts(entry, status.history) else {}
    cause = CLASSES[Reason(entry.reason)].cause
    # A restart after a stall took nothing away from the run.
    if cause == Cause.SURROUNDINGS or entry.reason == Reason.STALLED:
        counters["restarts"] = (status.restarts or 0) + 1
    elif cause == Cause.INTERRUPTION:
        counters["preemptions"] = (status.preemptions or 0) + 1
    return counters


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


def first_start(snapshot: Snapshot, job: JobState, now: datetime) -> str:
    """Return ``status.startTime``: the start of the first attempt's Job."""
    # The Job's own start, which is earlier than the moment at which it was observed.
    return snapshot.status.start_time or times.to_wire(job.start_time or now)


def _final_report(snapshot: Snapshot) -> dict[str, Any] | None:
    """Return the runner's fields, completed from the termination message; None if it adds nothing."""
    return report.completed(snapshot.status, report.from_pods(snapshot.attempt_pods))


def _shortened(failure: Failure) -> Failure:
    """Return the failure with a message short enough for an object in etcd."""
    return failure.model_copy(update={"message": failure.message[:LONGEST_MESSAGE]})
