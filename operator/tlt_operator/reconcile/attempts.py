"""Policies of a resource with attempts: go on to the end of one and to the next, or suspend the run."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

from tlt_api import conditions, times
from tlt_api.conditions import State
from tlt_api.failures import Reason, failure
from tlt_api.resources import Resource
from tlt_api.runspec import PROGRESS_SECONDS, for_attempt
from tlt_api.status import Attempt, Failure, Inputs, Phase
from tlt_operator.objects import job as job_object
from tlt_operator.objects import service as service_object
from tlt_operator.reconcile import blockers, retry
from tlt_operator.reconcile.blockers import Blocker
from tlt_operator.reconcile.plan import (
    Plan,
    announce,
    end_attempt,
    fail,
    first_start,
    plan_for,
    succeed,
    with_state,
)
from tlt_operator.reconcile.state import (
    Announced,
    AttemptState,
    Ended,
    Lost,
    NotStarted,
    Running,
    Starting,
    Stopping,
    Succeeded,
)
from tlt_operator.settings import Settings
from tlt_operator.snapshot import JobState, Snapshot

# Services, quotas and Events are not watched: while one of them matters, the resource is looked at again.
OLD_POD_POLL_SECONDS = 5.0
"""Interval while the end of a pod is awaited."""
REFUSED_POLL_SECONDS = 30.0
"""Interval while a name is taken or a request is refused: somebody has to act first."""
_REPORTS_PER_SECOND = 4.0
"""Reports of progress that all runs together make in a second, if they started together. Of a thousand runs
that started one after the other, each with its own pace, it is 4 * (1 + ln(1000 / 20)) = 20 a second."""
_SHORTEST_POLL_SECONDS = 5.0
_LONGEST_POLL_SECONDS = 120.0


def reconcile(
    snapshot: Snapshot, resource: Resource, state: AttemptState, now: datetime, settings: Settings
) -> Plan:
    """Return the plan for a resource that is to run and whose first attempt was announced."""
    match state:
        # A mistake of the caller: there is no attempt to go on with.
        case NotStarted():
            raise ValueError("expected an attempt; before the first one, references are resolved")
        # The attempt has no Job yet: make one.
        case Announced():
            return _create(snapshot, resource, now, settings)
        # The pods of an Indexed Job reach each other by its Service, which needs the Job's uid.
        case Starting(job=job) | Running(job=job) if _lacks_service(snapshot, job):
            return Plan(service=service_object.build(snapshot.namespace, job), requeue_after=0)
        # The Job exists, but not all pods run: say why.
        case Starting():
            return _report_waiting(snapshot, resource, state, now, settings)
        # All pods run: record since when, and what is wrong in spite of that.
        case Running():
            return _report_running(snapshot, state, now)
        # Somebody deleted the Job. Once its pods have written their checkpoint, it is gone: Lost.
        case Stopping(job=job):
            stopping = State(Phase.RUNNING, conditions.STOPPING, f"Job {job.name} is being deleted")
            return plan_for(snapshot, with_state(snapshot, stopping, now, job_uid=job.uid))
        # Somebody deleted the Job: an interruption, which does not count as a failure of the run.
        case Lost():
            message = f"Job {snapshot.status.job_name} was deleted before it ended"
            return end_attempt(snapshot, resource, failure(Reason.JOB_DELETED, message), now)
        # The outcome is recorded; after a failure, the next attempt may follow.
        case Ended():
            return _ended(snapshot, resource, state, now, settings)


def suspend(snapshot: Snapshot, resource: Resource, state: AttemptState, now: datetime) -> Plan:
    """Return the plan for a resource that is to be suspended and has not ended.

    The attempt's Job is deleted; another attempt is made once ``spec.suspend`` is false again. The Job's own
    ``spec.suspend`` is left alone: a pod that ends with a code other than 0 after SIGTERM counts as failed
    there, which with backoffLimit 0 fails the Job; and that field is how queueing systems (Kueue) admit Jobs.
    The deletion is a foreground one: the Job stays until its pod has written its checkpoint and is gone.
    """
    match state:
        # The run was faster than the suspension.
        case Ended(outcome=Succeeded(job=job)):
            return succeed(snapshot, job, now)
        # The run failed before it was stopped: the failure is recorded and counted, as without a suspension.
        case Ended(outcome=Failure() as cause):
            return end_attempt(snapshot, resource, cause, now)
        # A Job exists: delete it. The phase stays Running until its pods have written their checkpoint and
        # are gone.
        case Starting(job=job) | Running(job=job) | Stopping(job=job):
            stopping = State(
                Phase.RUNNING, conditions.STOPPING, f"Job {job.name} is stopped: spec.suspend is true"
            )
            status = with_state(snapshot, stopping, now, job_uid=job.uid)
            return plan_for(snapshot, status, delete=None if job.deleting else job)
    # There is no Job any more. A pod may outlive it, and Suspended promises that nothing writes to the
    # output.
    if snapshot.live_pods:
        names = ", ".join(snapshot.live_pods)
        stopping = State(Phase.RUNNING, conditions.STOPPING, f"waits for the end of {names}")
        status = with_state(snapshot, stopping, now)
        return plan_for(snapshot, status, requeue_after=OLD_POD_POLL_SECONDS)
    changes: dict[str, Any] = {}
    # The suspension ended an attempt: the next one is made on resumption, and this one counts for nothing.
    if isinstance(state, Lost):
        entry = Attempt(attempt=snapshot.attempt, reason=retry.SUSPENDED, time=times.to_wire(now))
        changes["history"] = retry.append(snapshot.status.history, entry)
    return plan_for(snapshot, with_state(snapshot, conditions.suspended(), now, **changes))


def _create(snapshot: Snapshot, resource: Resource, now: datetime, settings: Settings) -> Plan:
    """Create the Job of the announced attempt, as soon as nothing stands in its way."""
    name = snapshot.job_name(snapshot.attempt)
    # A Job of this name that belongs to something else is not adopted: it may be anybody's, or a former
    # resource's that is being collected.
    if snapshot.job:
        owner = snapshot.job.owner_uid or "none"
        message = f"Job {name} belongs to something else (owner uid {owner}): waits until it is gone"
        return _queued(snapshot, "JobNameTaken", message, now, REFUSED_POLL_SECONDS)
    # The pod of an earlier attempt may outlive its Job, for example on a node that is cut off.
    if snapshot.live_pods:
        names = ", ".join(snapshot.live_pods)
        message = f"waits for the end of {names}: two pods must not write to one output"
        return _queued(snapshot, "WaitingForOldPod", message, now, OLD_POD_POLL_SECONDS)
    # The API server refused the Job just now for its content (400, 422), which the next try would not change.
    if snapshot.refusal and snapshot.refusal.code in (400, 422):
        message = f"Job {name} was refused: {snapshot.refusal.message}"
        return fail(snapshot, failure(Reason.INVALID_SPEC, message), now)
    # Refused with 403 (a quota, a webhook, Pod Security): the reason may go away.
    if snapshot.refusal:
        blocker = blockers.refusal_blocker(snapshot.refusal.message)
        return _blocked(snapshot, resource, blocker, None, now, settings, REFUSED_POLL_SECONDS)
    # The way is free. The spec is the user's, changed by the remedies of all failures so far.
    spec = retry.for_attempt(resource.spec, snapshot.status.history)
    # The files that the first attempt was given: a retry uses the same bytes.
    inputs = snapshot.status.inputs or Inputs()
    addresses = service_object.addresses(name, spec)
    pace = progress_seconds(snapshot.unfinished)
    run = for_attempt(resource, spec, inputs, snapshot.attempt, addresses, pace)
    body = job_object.build(run, settings, snapshot.labels)
    message = f"attempt {snapshot.attempt}: Job {name} waits for its pod to run"
    status = with_state(snapshot, State(Phase.QUEUED, conditions.WAITING_FOR_POD, message), now)
    # The Job's first event comes sooner than this.
    return plan_for(snapshot, status, create=body, requeue_after=REFUSED_POLL_SECONDS)


def progress_seconds(unfinished: int) -> int:
    """Return the shortest time between two reports of progress of a run, among this many."""
    # The pace of a run is set when it starts: the first runs of a thousand report more often than the last.
    return max(PROGRESS_SECONDS, math.ceil(unfinished / _REPORTS_PER_SECOND))


def _lacks_service(snapshot: Snapshot, job: JobState) -> bool:
    """Tell whether to create the Job's Service: the name is free, and nobody refused it."""
    return job.indexed and not snapshot.service and not snapshot.refusal


def _report_waiting(
    snapshot: Snapshot, resource: Resource, state: Starting, now: datetime, settings: Settings
) -> Plan:
    job, poll = state.job, _poll_seconds(snapshot, state.job, now)
    if state.blocker:
        return _blocked(snapshot, resource, state.blocker, job, now, settings, poll)
    message = f"attempt {snapshot.attempt}: Job {job.name} waits for its pod to run"
    return _queued(snapshot, conditions.WAITING_FOR_POD, message, now, poll, job)


def _poll_seconds(snapshot: Snapshot, job: JobState, now: datetime) -> float:
    """Seconds until the next look at a Job whose pods do not run. Pods are not watched, hence the poll."""
    # Services are not watched: only another look finds that a name is free or a right was granted.
    if job.indexed and snapshot.own_service is None:
        return REFUSED_POLL_SECONDS
    # Often at first, when an image is pulled, and ever less: a pod may wait for a free node for days.
    age = (now - (job.created or now)).total_seconds()
    return min(max(age / 4, _SHORTEST_POLL_SECONDS), _LONGEST_POLL_SECONDS)


def _blocked(
    snapshot: Snapshot,
    resource: Resource,
    blocker: Blocker,
    job: JobState | None,
    now: datetime,
    settings: Settings,
    poll: float,
) -> Plan:
    """Report a blocker; one that is an error ends the attempt once it has lasted for the start timeout."""
    if blocker.fails_as:
        # An error may pass (a registry that is away), hence the time; after it, the user has to act.
        seconds_left = settings.start_timeout_seconds - _blocked_seconds(snapshot, blocker, now)
        if seconds_left <= 0:
            cause = failure(blocker.fails_as, blocker.block.message, blocker.hint)
            return end_attempt(snapshot, resource, cause, now, delete=job)
        # No event announces the end of the timeout.
        poll = min(poll, seconds_left)
    state = State(Phase.QUEUED, blocker.block.reason, blocker.block.message, blocker.block)
    return plan_for(snapshot, with_state(snapshot, state, now, **_job_observed(job)), requeue_after=poll)


def _blocked_seconds(snapshot: Snapshot, blocker: Blocker, now: datetime) -> float:
    """Return for how many seconds this same blocker has been reported."""
    condition = conditions.find(snapshot.status.conditions, conditions.BLOCKED)
    if condition is None or condition.status != "True" or condition.reason != blocker.block.reason:
        return 0.0
    # The status is the clock: it survives a restart of the operator.
    since = times.from_wire(condition.last_transition_time) or now
    return (now - since).total_seconds()


def _queued(
    snapshot: Snapshot, reason: str, message: str, now: datetime, poll: float, job: JobState | None = None
) -> Plan:
    state = State(Phase.QUEUED, reason, message)
    return plan_for(snapshot, with_state(snapshot, state, now, **_job_observed(job)), requeue_after=poll)


def _job_observed(job: JobState | None) -> dict[str, str]:
    """Fields of the status that record that the Job has been observed."""
    return {"job_uid": job.uid} if job else {}


def _report_running(snapshot: Snapshot, state: Running, now: datetime) -> Plan:
    job, problem = state.job, state.problem
    runs = conditions.running(snapshot.attempt, job.name, problem.block.message if problem else "")
    # Of the first attempt, whatever number this one has: startTime and completionTime span the whole run.
    start_time = first_start(snapshot, job, now)
    status = with_state(snapshot, runs, now, job_uid=job.uid, start_time=start_time)
    # While all pods are ready, events of the Job report every change. Otherwise some changes cause none.
    poll = None if job.all_ready and not problem else REFUSED_POLL_SECONDS
    return plan_for(snapshot, status, requeue_after=poll)


def _ended(snapshot: Snapshot, resource: Resource, state: Ended, now: datetime, settings: Settings) -> Plan:
    match state.outcome:
        # The Job completed: so has the resource.
        case Succeeded(job=job):
            return succeed(snapshot, job, now)
        # A failure that is not recorded yet: record it, and say whether another attempt follows.
        case Failure() as cause:
            return end_attempt(snapshot, resource, cause, now)
        # Recorded, and another attempt follows: a failure for good would have made the phase final.
        case Attempt() as entry:
            return _announce_next(snapshot, entry, now, settings)


def _announce_next(snapshot: Snapshot, last: Attempt, now: datetime, settings: Settings) -> Plan:
    """Announce the attempt after the last one, once its delay is over."""
    history = snapshot.status.history or []
    delay = retry.delay(history, snapshot.status.retries or 0, settings)
    # From the recorded end, not from now: the delay does not begin anew when the operator restarts.
    due = (times.from_wire(last.time) or now) + timedelta(seconds=delay)
    if now >= due:
        return announce(snapshot, snapshot.attempt + 1, now)
    wait = (due - now).total_seconds()
    # The status of the failure says more than the one below and stays, unless the spec was edited since.
    if snapshot.status.phase == Phase.RETRYING and snapshot.status.observed_generation == snapshot.generation:
        return Plan(requeue_after=wait)
    message = f"attempt {snapshot.attempt} ended: {last.reason}; the next starts at {times.to_wire(due)}"
    status = with_state(snapshot, State(Phase.RETRYING, conditions.RETRYING, message), now)
    return plan_for(snapshot, status, requeue_after=wait)
