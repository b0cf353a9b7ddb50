"""The life of attempts: intent, Job, pod, outcome, next attempt.

``status.attempt`` is written before the Job is created; ``status.jobUid`` once the Job has been seen. So a
Job that is absent has not been created yet where there is no jobUid, and has been deleted where there is
one.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from tlt_api.failures import Reason
from tlt_api.resources import Resource
from tlt_api.runspec import for_attempt
from tlt_api.status import Attempt, Failure, Inputs, Phase
from tlt_operator import clock, conditions
from tlt_operator.build import job as job_builder
from tlt_operator.build import workers
from tlt_operator.conditions import State
from tlt_operator.observed import JobState, Observed
from tlt_operator.reconcile import obstacles, report, retry
from tlt_operator.reconcile.diagnosis import diagnose, failure
from tlt_operator.reconcile.plan import Plan, to_status, with_state
from tlt_operator.settings import Settings

OLD_POD_POLL_SECONDS = 5.0
REFUSED_POLL_SECONDS = 30.0


def reconcile(seen: Observed, resource: Resource, now: datetime, settings: Settings) -> Plan:
    """The plan for a resource that has been attempted and has not ended."""
    if retry.over(seen.status):
        return _next(seen, now, settings)
    job = seen.own_job
    if job is None and seen.status.job_uid:
        text = f"Job {seen.status.job_name} was deleted before it ended"
        return ended(seen, resource, failure(Reason.JOB_DELETED, text), now)
    if job is None:
        return _create(seen, resource, now, settings)
    if job.holds("Complete"):
        return succeed(seen, job, now)
    if job.deleting:
        state = State(Phase.RUNNING, conditions.STOPPING, f"Job {job.name} is being deleted")
        return to_status(seen, with_state(seen, state, now, job_uid=job.uid))
    if job.holds("Failed"):
        return ended(seen, resource, diagnose(job, seen.pods_of(_attempt(seen))), now)
    return _active(seen, resource, job, now, settings)


def start(seen: Observed, attempt: int, now: datetime, **changes: Any) -> Plan:
    """Write down that an attempt is to be made; the next look finds its Job missing and creates it."""
    name = seen.job_name(attempt)
    state = State(Phase.QUEUED, "CreatingJob", f"attempt {attempt}: creates Job {name}")
    new = {"attempt": attempt, "job_name": name, "job_uid": None}
    if attempt == 1:
        new |= {"failure": None, "completion_time": None}
    return to_status(seen, with_state(seen, state, now, **new, **changes), requeue_after=0)


def succeed(seen: Observed, job: JobState, now: datetime) -> Plan:
    """The attempt, and with it the resource, succeeded."""
    attempt = _attempt(seen)
    state = State(Phase.SUCCEEDED, "Succeeded", f"attempt {attempt} succeeded")
    status = with_state(
        seen,
        state,
        now,
        job_uid=job.uid,
        failure=None,
        start_time=_started(seen, job, now),
        completion_time=clock.to_wire(job.completion_time or now),
    )
    return to_status(seen, status, report=_report(seen))


def ended(
    seen: Observed, resource: Resource, why: Failure, now: datetime, delete: JobState | None = None
) -> Plan:
    """The attempt ended without success: another follows, or the resource failed."""
    status, reason = seen.status, Reason(why.reason)
    attempt = _attempt(seen)
    again = retry.may_retry(reason, why.retryable, status, resource.spec)
    remedy = retry.remedy(resource.spec, status.history, reason) if again else None
    entry = Attempt(attempt=attempt, reason=reason, remedy=remedy, time=clock.to_wire(now))
    history = retry.append(status.history, entry)
    if not again:
        return fail(seen, why, now, delete=delete, history=history)
    retries = (status.retries or 0) + retry.counts(reason, status.history)
    text = f"attempt {attempt} ended: {reason}: {why.message}"
    state = State(Phase.RETRYING, conditions.RETRYING, f"{text}; next: {remedy or 'the same again'}")
    new = with_state(seen, state, now, history=history, retries=retries or None, failure=why)
    return to_status(seen, new, report=_report(seen), delete=delete, requeue_after=0)


def fail(seen: Observed, why: Failure, now: datetime, delete: JobState | None = None, **changes: Any) -> Plan:
    """The resource failed for good."""
    status = with_state(
        seen,
        State(Phase.FAILED, why.reason, why.message or why.reason),
        now,
        failure=why,
        completion_time=seen.status.completion_time or clock.to_wire(now),
        **changes,
    )
    return to_status(seen, status, report=_report(seen), delete=delete)


def _next(seen: Observed, now: datetime, settings: Settings) -> Plan:
    history = seen.status.history or []
    since = clock.from_wire(history[-1].time) or now
    due = since + timedelta(seconds=retry.delay(history, seen.status.retries or 0, settings))
    if now >= due:
        return start(seen, _attempt(seen) + 1, now)
    wait = (due - now).total_seconds()
    if seen.status.phase == Phase.RETRYING and seen.status.observed_generation == seen.generation:
        return Plan(requeue_after=wait)
    text = f"attempt {_attempt(seen)} ended: {history[-1].reason}; the next starts at {clock.to_wire(due)}"
    status = with_state(seen, State(Phase.RETRYING, conditions.RETRYING, text), now)
    return to_status(seen, status, requeue_after=wait)


def _create(seen: Observed, resource: Resource, now: datetime, settings: Settings) -> Plan:
    attempt = _attempt(seen)
    name = seen.job_name(attempt)
    if seen.job:
        owner = seen.job.owner_uid or "none"
        text = f"Job {name} belongs to something else (owner uid {owner}): waits until it is gone"
        return _queued(seen, "JobNameTaken", text, now, REFUSED_POLL_SECONDS)
    alive = [pod.name for pod in seen.pods if not pod.ended]
    if alive:
        text = f"waits for the end of {', '.join(alive)}: two pods must not write to one output"
        return _queued(seen, "WaitingForOldPod", text, now, OLD_POD_POLL_SECONDS)
    if seen.refusal:
        if seen.refusal.code in (400, 422):
            return fail(
                seen, failure(Reason.INVALID_SPEC, f"Job {name} was refused: {seen.refusal.message}"), now
            )
        obstacle = obstacles.refused(seen.refusal.message)
        return _blocked(seen, resource, obstacle, None, now, settings, REFUSED_POLL_SECONDS)
    spec = retry.for_attempt(resource.spec, seen.status.history)
    inputs = seen.status.inputs or Inputs()
    run = for_attempt(resource, spec, inputs, attempt, workers.addresses(name, spec))
    job = job_builder.build(run, settings, seen.labels)
    return Plan(create=job, requeue_after=OLD_POD_POLL_SECONDS)  # sooner, when its event comes


def _active(seen: Observed, resource: Resource, job: JobState, now: datetime, settings: Settings) -> Plan:
    if job.indexed and seen.own_service is None:
        if not seen.service and not seen.refusal:
            return Plan(service=workers.service(seen.namespace, job), requeue_after=0)
        unreachable = obstacles.no_service(workers.service_name(job.name), seen.service, seen.refusal)
        if seen.status.phase == Phase.RUNNING and _runs(seen, job):
            # The pods have met, and their connections stand: nothing to stop a run for.
            return _running(seen, job, now, f"; {unreachable.block.message}", REFUSED_POLL_SECONDS)
        return _blocked(seen, resource, unreachable, job, now, settings, REFUSED_POLL_SECONDS)
    if _runs(seen, job):
        return _running(seen, job, now, poll=None if job.all_ready else REFUSED_POLL_SECONDS)
    poll = min(max((now - (job.created or now)).total_seconds() / 4, 5.0), 120.0)
    obstacle = obstacles.find(job, seen.pods_of(_attempt(seen)), seen.events)
    if obstacle:
        return _blocked(seen, resource, obstacle, job, now, settings, poll)
    text = f"attempt {_attempt(seen)}: Job {job.name} waits for its pod to run"
    return _queued(seen, conditions.WAITING_FOR_POD, text, now, poll, job_uid=job.uid)


def _running(seen: Observed, job: JobState, now: datetime, but: str = "", poll: float | None = None) -> Plan:
    text = f"attempt {_attempt(seen)} runs as Job {job.name}{but}"
    state = State(Phase.RUNNING, conditions.RUNNING, text)
    status = with_state(seen, state, now, job_uid=job.uid, start_time=_started(seen, job, now))
    return to_status(seen, status, requeue_after=poll)


def _runs(seen: Observed, job: JobState) -> bool:
    if job.suspended:
        return False
    pods = seen.pods_of(_attempt(seen))
    begun = {pod.index for pod in pods if pod.ended or (pod.container and _begun(pod.container))}
    was = seen.status.phase == Phase.RUNNING and not pods
    return job.all_ready or len(begun) >= max(job.parallelism, 1) or was


def _begun(container: Any) -> bool:
    return container.running or container.exit_code is not None


def _blocked(
    seen: Observed,
    resource: Resource,
    obstacle: obstacles.Obstacle,
    job: JobState | None,
    now: datetime,
    settings: Settings,
    poll: float,
) -> Plan:
    block = obstacle.block
    if obstacle.fails_as:
        before = conditions.find(seen.status.conditions, conditions.BLOCKED)
        same = before is not None and before.status == "True" and before.reason == block.reason
        since = (clock.from_wire(before.last_transition_time) if before and same else None) or now
        left = settings.start_timeout_seconds - (now - since).total_seconds()
        if left <= 0:
            why = failure(obstacle.fails_as, block.message, hint=obstacle.hint)
            return ended(seen, resource, why, now, delete=job)
        poll = min(poll, left)
    state = State(Phase.QUEUED, block.reason, block.message, block)
    uid = {"job_uid": job.uid} if job else {}
    return to_status(seen, with_state(seen, state, now, **uid), requeue_after=poll)


def _queued(seen: Observed, reason: str, message: str, now: datetime, poll: float, **changes: Any) -> Plan:
    state = State(Phase.QUEUED, reason, message)
    return to_status(seen, with_state(seen, state, now, **changes), requeue_after=poll)


def _attempt(seen: Observed) -> int:
    return seen.status.attempt or 0


def _started(seen: Observed, job: JobState, now: datetime) -> str:
    return seen.status.start_time or clock.to_wire(job.start_time or now)


def _report(seen: Observed) -> dict[str, Any] | None:
    return report.completed(seen.status, report.of_pods(seen.pods_of(_attempt(seen))))
