"""Policy of a resource with attempts: go on to the end of one and to the next."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from tlt_api import conditions, times
from tlt_api.conditions import State
from tlt_api.failures import Reason, failure, known
from tlt_api.resources import Resource
from tlt_api.runspec import PROGRESS_SECONDS, for_attempt
from tlt_api.status import Attempt, Failure, Inputs, Phase
from tlt_operator.objects import job as job_object
from tlt_operator.objects import service as service_object
from tlt_operator.reconcile import blockers, cleanup, retry, silence, suspension, waiting
from tlt_operator.reconcile.plan import (
    Plan,
    announce,
    end_attempt,
    fail,
    first_start,
    observed_retry,
    plan_for,
    retrying_state,
    succeed,
    with_state,
)
from tlt_operator.reconcile.state import (
    Announced,
    AttemptState,
    Disrupted,
    Ended,
    Lost,
    NotStarted,
    Paused,
    Running,
    Starting,
    Stopping,
    Succeeded,
)
from tlt_operator.settings import Settings
from tlt_operator.snapshot import JobState, Refusal, Snapshot

_REPORTS_PER_SECOND = 1.5
"""Reports of progress that up to 180 runs together make in a second, if they started together. If they
started one after the other, each with its own pace, it is 1.5 * (1 + ln(180 / 7.5)) = 6 a second."""
_LONGEST_PACE_SECONDS = 120
"""Limit of the pace, at which each run beyond 180 adds one report in two minutes: people wait for them."""
_FIRST_WARNINGS_SECONDS = 10.0
"""Age of a Job from which on Warning Events say why it has no running pod (:mod:`tlt_operator.observe`)."""


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
        # The user resumed a run of a queue before the queue had stopped it.
        case Starting(job=job) | Running(job=job) | Disrupted(job=job) if (
            job.suspended_by_us and snapshot.workload
        ):
            return Plan(resume=job, workload=snapshot.workload, requeue_after=0)
        # The pods of an Indexed Job reach each other by its Service, which needs the Job's uid.
        case Starting(job=job) | Running(job=job) if _lacks_service(snapshot, job):
            return Plan(service=service_object.build(snapshot.namespace, job), requeue_after=0)
        # The Job exists, but not all pods run: say why.
        case Starting():
            return _report_waiting(snapshot, resource, state, now)
        # All pods run: record since when, and what is wrong in spite of that.
        case Running():
            return _report_running(snapshot, resource, state, now)
        # A pod is being taken away: the Job fails, and another attempt follows, once it has ended.
        case Disrupted():
            return _disrupted(snapshot, resource, state, now)
        # The Job is suspended: by the operator, by Kueue or by a person.
        case Paused():
            return suspension.paused(snapshot, resource, state, now)
        # Somebody deleted the Job. Once its pods have written their checkpoint, it is gone: Lost.
        case Stopping(job=job):
            stopping = State(Phase.RUNNING, conditions.STOPPING, f"Job {job.name} is being deleted")
            return waiting.await_pods(snapshot, stopping, now, job_uid=job.uid)
        # Somebody deleted the Job: an interruption, which does not count as a failure of the run.
        case Lost():
            message = f"Job {snapshot.status.job_name} was deleted before it ended"
            return end_attempt(snapshot, resource, failure(Reason.JOB_DELETED, message), now)
        # The outcome is recorded; after a failure, the next attempt may follow.
        case Ended():
            return _ended(snapshot, resource, state, now, settings)


def _disrupted(snapshot: Snapshot, resource: Resource, state: Disrupted, now: datetime) -> Plan:
    """Report an attempt one of whose pods is being taken away."""
    pod, cause = state.pod, state.pod.conditions.get("DisruptionTarget")
    # The Job controller waits for its end, which nobody can report any more. Without the Job it goes.
    if pod.forced:
        message = f"pod {pod.name} on node {pod.node or 'unknown'} was deleted by force"
        lost = failure(Reason.NODE_LOST, message)
        return end_attempt(snapshot, resource, lost, now, delete=state.job)
    reason = f" ({cause.reason}: {cause.message})" if cause and cause.true else ""
    message = f"attempt {snapshot.attempt}: pod {pod.name} is being stopped{reason}; the next attempt follows"
    stopping = State(Phase.RUNNING, conditions.STOPPING, message)
    return waiting.await_pods(snapshot, stopping, now, job_uid=state.job.uid)


def _create(snapshot: Snapshot, resource: Resource, now: datetime, settings: Settings) -> Plan:
    """Create the Job of the announced attempt, as soon as nothing stands in its way."""
    name = snapshot.job_name(snapshot.attempt)
    # A Job of this name that belongs to something else is not adopted: it may be anybody's, or a former
    # resource's that is being collected.
    if snapshot.job:
        owner = snapshot.job.owner_uid or "none"
        message = f"Job {name} belongs to something else (owner uid {owner}): waits until it is gone"
        return waiting.queued(snapshot, resource, "JobNameTaken", message, now, waiting.REFUSED_POLL_SECONDS)
    # The pod of an earlier attempt may outlive its Job, for example on a node that is cut off.
    if silence.lost_pod(snapshot.pods, now):
        return waiting.still_writing(snapshot, now)
    if snapshot.live_pods:
        names = ", ".join(snapshot.live_pods)
        message = f"waits for the end of {names}: two pods must not write to one output"
        return waiting.queued(
            snapshot, resource, "WaitingForOldPod", message, now, waiting.OLD_POD_POLL_SECONDS
        )
    # Its Job was refused so far, or it was suspended before: another one may have started meanwhile.
    if snapshot.output_holder is not None:
        blocker = blockers.output_blocker(resource.spec.output.uri, snapshot.output_holder)
        return waiting.blocked(snapshot, resource, blocker, None, now, waiting.REFUSED_POLL_SECONDS)
    # The API server refused the Job just now.
    if snapshot.refusal:
        return _refused(snapshot, resource, snapshot.refusal, now, settings)
    # The way is free. The spec is the user's, changed by the remedies of all failures so far.
    spec = retry.for_attempt(resource.spec, snapshot.status.history)
    # The files that the first attempt was given: a retry uses the same bytes.
    inputs = snapshot.status.inputs or Inputs()
    addresses = service_object.addresses(name, spec)
    run = for_attempt(resource, spec, inputs, snapshot.attempt, addresses)
    avoided = retry.nodes_to_avoid(snapshot.status.history)
    pace = progress_seconds(snapshot.active)
    writers = snapshot.sharing_output
    body = job_object.build(run, settings, snapshot.labels, avoided, pace, writers)
    message = f"attempt {snapshot.attempt}: Job {name} waits for its pod to run"
    status = with_state(snapshot, State(Phase.QUEUED, conditions.WAITING_FOR_POD, message), now)
    # The pods of several nodes need their Service, which needs the Job's uid. Otherwise the Job's first event
    # comes sooner than this.
    poll = 0.0 if run.workers else waiting.REFUSED_POLL_SECONDS
    return plan_for(snapshot, status, create=body, requeue_after=poll)


def progress_seconds(active: int) -> int:
    """Return the shortest time between two reports of progress of a run, among this many."""
    # The pace of a run is set when it starts: the first runs of a thousand report more often than the last.
    return min(max(PROGRESS_SECONDS, math.ceil(active / _REPORTS_PER_SECOND)), _LONGEST_PACE_SECONDS)


def _refused(
    snapshot: Snapshot, resource: Resource, refusal: Refusal, now: datetime, settings: Settings
) -> Plan:
    """Report that the API server refused the attempt's Job."""
    # For its own content: the next try would get the same answer, and the spec cannot be corrected.
    if blockers.is_invalid(refusal):
        message = f"Job {snapshot.job_name(snapshot.attempt)} was refused: {refusal.message}"
        return fail(snapshot, failure(Reason.INVALID_SPEC, message), now)
    # A quota, a webhook, an admission policy: the reason may go away.
    blocker = blockers.refusal_blocker(refusal.message, snapshot.namespace)
    # Every look is another try: ever later.
    waited = times.age(times.from_wire(snapshot.status.waiting_since), now)
    poll = min(max(waited / 4, waiting.REFUSED_POLL_SECONDS), settings.retry_limit_seconds)
    return waiting.blocked(snapshot, resource, blocker, None, now, poll)


def _lacks_service(snapshot: Snapshot, job: JobState) -> bool:
    """Tell whether to create the Job's Service: the name is free, and nobody refused it."""
    return job.indexed and not snapshot.service and not snapshot.refusal


def _report_waiting(snapshot: Snapshot, resource: Resource, state: Starting, now: datetime) -> Plan:
    job, poll = state.job, _poll_seconds(snapshot, state.job, now)
    if state.blocker:
        return waiting.blocked(snapshot, resource, state.blocker, job, now, poll)
    message = f"attempt {snapshot.attempt}: Job {job.name} waits for its pod to run"
    return waiting.queued(snapshot, resource, conditions.WAITING_FOR_POD, message, now, poll, job)


def _poll_seconds(snapshot: Snapshot, job: JobState, now: datetime) -> float:
    """Seconds until the next look at a Job whose pods do not run."""
    # Services are not watched: only another look finds that a name is free or a right was granted.
    if job.indexed and snapshot.own_service is None:
        return waiting.REFUSED_POLL_SECONDS
    # Once somebody has asked for Warning Events, those that say something new wake the resource. A pod may
    # wait for a free node for days, and thousands of them must cost nothing meanwhile.
    age = (now - (job.created or now)).total_seconds()
    # By a clock that is behind, it was not created yet: they are asked for at once.
    is_new = 0 <= age < _FIRST_WARNINGS_SECONDS
    return _FIRST_WARNINGS_SECONDS - age if is_new else waiting.WATCHED_POLL_SECONDS


def _report_running(snapshot: Snapshot, resource: Resource, state: Running, now: datetime) -> Plan:
    job, problem = state.job, state.problem
    runs = conditions.running(snapshot.attempt, job.name, problem.block.message if problem else "")
    # While all pods are ready, events of the Job report every change. Otherwise some changes cause none.
    poll = None if job.all_ready and not problem else waiting.REFUSED_POLL_SECONDS
    left = silence.seconds_left(snapshot)
    if left is not None:
        stalled = silence.stalled(snapshot, job)
        if left <= 0 and resource.spec.run_policy.stall == "Restart":
            cause = failure(Reason.STALLED, silence.no_progress(snapshot, job))
            return end_attempt(snapshot, resource, cause, now, delete=job)
        look = silence.next_look(left)
        # An operator that has just started counts anew, and does not take back what was found.
        if left <= 0 or silence.is_known(snapshot, stalled):
            runs, look = stalled, waiting.REFUSED_POLL_SECONDS
        poll = min(poll, look) if poll else look
    # Of the first attempt, whatever number this one has: startTime and completionTime span the whole run.
    start_time = first_start(snapshot, job, now)
    status = with_state(snapshot, runs, now, job_uid=job.uid, start_time=start_time)
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
            # Its pod would keep the next attempt waiting for ever.
            if leftover := cleanup.leftover(snapshot):
                return Plan(delete=leftover, requeue_after=waiting.OLD_POD_POLL_SECONDS)
            return _announce_next(snapshot, resource, entry, now, settings)


def _announce_next(
    snapshot: Snapshot, resource: Resource, last: Attempt, now: datetime, settings: Settings
) -> Plan:
    """Announce the attempt after the last one, once its delay is over."""
    status = snapshot.status
    # The user knows that what was missing is there.
    if retry.requested(resource.spec, status):
        return next_attempt(snapshot, resource, now)
    # What the surroundings lack is waited for over all attempts that met it.
    since = retry.away_since(status)
    seconds_left = waiting.seconds_left(since, resource, now) if since else None
    if status.failure and seconds_left is not None and seconds_left <= 0:
        return fail(snapshot, status.failure, now)
    history = status.history or []
    delay = retry.delay(history, status.retries or 0, settings)
    # From the recorded end, not from now: the delay does not begin anew when the operator restarts.
    ended = times.from_wire(last.time) or now
    due = ended + timedelta(seconds=delay)
    # An end that is to come was recorded by another clock: how long ago it was is not known.
    if now >= due or now < ended:
        return begin(snapshot, resource, snapshot.attempt + 1, now)
    wait = (due - now).total_seconds()
    wait = wait if seconds_left is None else min(wait, seconds_left)
    # The status of the failure says more than the one below and stays, unless the spec was edited since.
    if status.phase == Phase.RETRYING and status.observed_generation == snapshot.generation:
        return Plan(requeue_after=wait)
    message = f"attempt {snapshot.attempt} ended: {last.reason}; the next starts at {times.to_wire(due)}"
    state = State(Phase.RETRYING, conditions.RETRYING, message)
    if status.failure and status.failure.reason == last.reason:
        state = retrying_state(status.failure, message)
    return plan_for(snapshot, with_state(snapshot, state, now), requeue_after=wait)


def taken_up(snapshot: Snapshot, resource: Resource) -> bool:
    """Tell whether the user takes up a resource that has failed, by raising spec.retry."""
    # Suspended, it waits for both.
    if resource.spec.suspend or not retry.requested(resource.spec, snapshot.status):
        return False
    # An operator that died may have created the Job of the next attempt, and not recorded why.
    begun = snapshot.recorded is not None and snapshot.recorded.attempt is not None
    return snapshot.status.phase == Phase.FAILED or begun


def next_attempt(snapshot: Snapshot, resource: Resource, now: datetime) -> Plan:
    """Return the plan that takes up a resource again because spec.retry was raised."""
    # Unless the next attempt has begun: the Job is its own then.
    if snapshot.recorded is None and (leftover := cleanup.leftover(snapshot)):
        return Plan(delete=leftover, requeue_after=waiting.OLD_POD_POLL_SECONDS)
    status = snapshot.stored_status
    changes: dict[str, Any] = {
        "observed_retry": observed_retry(resource, status),
        "completion_time": None,
        # The user has looked at it: what is allowed to fail is allowed again.
        "retries": None,
    }
    # Before the first attempt there is nothing to resume: references are resolved anew.
    if status.attempt is None:
        state = conditions.not_started(f"spec.retry was raised to {resource.spec.retry}")
        changes |= {"failure": None, "dependency": None}
        return plan_for(snapshot, with_state(snapshot, state, now, **changes), requeue_after=0)
    if status.history and status.recorded_end:
        *earlier, last = status.history
        # As a retry by the operator would: without its remedy, the attempt would fail in the same way.
        reason = known(last.reason)
        remedy = last.remedy or (retry.remedy(resource.spec, earlier, reason) if reason else None)
        update = {"retry": resource.spec.retry, "remedy": remedy}
        changes["history"] = [*earlier, last.model_copy(update=update)]
    changes["restarts"] = (status.restarts or 0) + 1
    # The Job that a former operator created is the next attempt's.
    found = replace(snapshot, next_job=snapshot.job) if snapshot.recorded else snapshot
    return begin(found, resource, status.attempt + 1, now, **changes)


def begin(snapshot: Snapshot, resource: Resource, attempt: int, now: datetime, **changes: Any) -> Plan:
    """Go on with the next attempt, unless another resource writes to the output."""
    holder = snapshot.output_holder
    # The Job of an attempt that has begun is not taken back.
    if holder is None or snapshot.recorded is not None:
        return announce(snapshot, attempt, now, **changes)
    blocker = blockers.output_blocker(resource.spec.output.uri, holder)
    state = State(Phase.QUEUED, blocker.reason, blocker.block.message, blocker.block)
    cause = failure(blocker.fails_as, blocker.message, blocker.hint)
    # What an attempt starts from is resolved when it starts.
    changes = {name: value for name, value in changes.items() if name != "inputs"}
    return waiting.wait(snapshot, resource, state, cause, None, now, waiting.REFUSED_POLL_SECONDS, **changes)
