"""Policy of a Job whose own spec.suspend is set: by the user, by a queue of Kueue or by hand.

docs/adr/0017-suspension-by-the-jobs-own-field.md has the reasons.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from tlt_api import conditions, times
from tlt_api.conditions import State
from tlt_api.failures import Reason
from tlt_api.resources import Resource
from tlt_api.status import Attempt, Failure, Phase
from tlt_operator.reconcile import blockers, cleanup, retry, silence, waiting
from tlt_operator.reconcile.plan import Plan, end_attempt, plan_for, succeed, with_state
from tlt_operator.reconcile.state import (
    AttemptState,
    Disrupted,
    Ended,
    Lost,
    Paused,
    Running,
    Starting,
    Stopping,
    Succeeded,
)
from tlt_operator.snapshot import JobState, Refusal, Snapshot


def suspend(snapshot: Snapshot, resource: Resource, state: AttemptState, now: datetime) -> Plan:
    """Return the plan for a resource that is to be suspended and has not ended.

    The attempt's Job is suspended: its pods write their checkpoint and end, and once it is resumed it makes
    another pod. Kueue resumes every suspended Job that it has admitted; it is told by the Job's Workload,
    stops the Job itself, and gives its quota to others.
    """
    match state:
        # The run was faster than the suspension.
        case Ended(outcome=Succeeded(job=job)):
            return succeed(snapshot, job, now)
        # The run failed before it was stopped: the failure is recorded and counted, as without a suspension.
        case Ended(outcome=Failure() as cause):
            return end_attempt(snapshot, resource, cause, now)
        # The end is recorded, and its Job runs on: no attempt is left that could be resumed.
        case Ended(outcome=Attempt()) if leftover := cleanup.leftover(snapshot):
            return _stopping(snapshot, leftover, now, delete=leftover)
        # The phase stays Running until its pods have written their checkpoint and are gone.
        case Stopping(job=job):
            return _stopping(snapshot, job, now)
        case Starting(job=job) | Running(job=job) | Disrupted(job=job) | Paused(job=job) if (
            snapshot.workload_refusal
        ):
            return _refused(snapshot, job, snapshot.workload_refusal, now)
        # One that waits in the queue could be admitted in this moment.
        case Starting(job=job) | Running(job=job) | Disrupted(job=job) | Paused(job=job) if (
            snapshot.workload and snapshot.workload.active
        ):
            return _stopping(snapshot, job, now, suspend=job, workload=snapshot.workload)
        # Kueue knows, and is about to stop it.
        case Starting(job=job) | Running(job=job) | Disrupted(job=job) if snapshot.workload:
            return _stopping(snapshot, job, now)
        case Starting(job=job) | Running(job=job) | Disrupted(job=job):
            return _stopping(snapshot, job, now, suspend=job)
        # The Job controller has not noticed yet: a pod may be on its way.
        case Paused(job=job) if job.suspended_by_us and not job.holds("Suspended"):
            return _stopping(snapshot, job, now)
    # Nothing makes pods any more. One may be left, and Suspended promises that nothing writes to the output.
    if snapshot.live_pods:
        return waiting.still_writing(snapshot, now)
    changes: dict[str, Any] = {}
    # The suspension ended an attempt: the next one is made on resumption, and this one counts for nothing.
    if isinstance(state, Lost):
        entry = Attempt(attempt=snapshot.attempt, reason=retry.SUSPENDED, time=times.to_wire(now))
        changes["history"] = retry.append(snapshot.status.history, entry)
    return plan_for(snapshot, with_state(snapshot, conditions.suspended(), now, **changes))


def _stopping(snapshot: Snapshot, job: JobState, now: datetime, **actions: Any) -> Plan:
    """Report that a Job is being stopped because the user suspended the resource."""
    message = f"Job {job.name} is stopped: spec.suspend is true"
    stopping = State(Phase.RUNNING, conditions.STOPPING, message)
    return replace(waiting.await_pods(snapshot, stopping, now, job_uid=job.uid), **actions)


def _refused(snapshot: Snapshot, job: JobState, refusal: Refusal, now: datetime) -> Plan:
    """Report that the operator may not stop a Job of a queue, which runs on."""
    block = blockers.workload_blocker(refusal).block
    state = State(Phase.RUNNING, conditions.STOPPING, f"Job {job.name} cannot be stopped", block)
    status = with_state(snapshot, state, now, job_uid=job.uid)
    return plan_for(snapshot, status, requeue_after=waiting.REFUSED_POLL_SECONDS)


def paused(snapshot: Snapshot, resource: Resource, state: Paused, now: datetime) -> Plan:
    """Return the plan for a resource that is to run and whose Job is suspended."""
    job = state.job
    # Whoever suspended it: a pod that is being stopped writes its checkpoint, and no second one may start.
    if state.pods:
        # One that has not run writes nothing, and is no run that the queue stopped.
        if not _ran(snapshot) and not silence.lost_pod(snapshot.pods, now):
            message = f"attempt {snapshot.attempt}: waits for the end of {', '.join(state.pods)}"
            poll = waiting.OLD_POD_POLL_SECONDS
            return waiting.queued(snapshot, resource, "WaitingForOldPod", message, now, poll, job)
        return waiting.still_writing(snapshot, now)
    if job.suspended_by_us and snapshot.workload_refusal:
        blocker = blockers.workload_blocker(snapshot.workload_refusal)
        return waiting.blocked(snapshot, resource, blocker, job, now, waiting.REFUSED_POLL_SECONDS)
    # The user resumed the resource: so is its Job, which makes another pod of the same attempt, once it is
    # admitted anew if it is one of a queue.
    if job.suspended_by_us:
        message = f"attempt {snapshot.attempt}: Job {job.name} is resumed"
        reason = conditions.WAITING_FOR_ADMISSION if snapshot.workload else conditions.WAITING_FOR_POD
        return plan_for(
            snapshot,
            with_state(snapshot, State(Phase.QUEUED, reason, message), now),
            resume=job,
            workload=snapshot.workload,
            requeue_after=waiting.OLD_POD_POLL_SECONDS,
        )
    if not job.queue:
        blocker = blockers.suspension_blocker(job, snapshot.namespace)
        return waiting.blocked(snapshot, resource, blocker, job, now, waiting.WATCHED_POLL_SECONDS)
    # Kueue resumes it when it admits it, which may take days and is no error.
    message = f"attempt {snapshot.attempt}: Job {job.name} waits in the queue {job.queue}"
    changes: dict[str, Any] = {}
    # The queue took it back, for a Job of a higher priority for example.
    if _ran(snapshot):
        message += ", which stopped it"
        entry = Attempt(
            attempt=snapshot.attempt,
            reason=Reason.EVICTED,
            time=times.to_wire(now),
            progress=retry.position(snapshot.status.progress),
            paused=True,
        )
        changes["history"] = retry.append(snapshot.status.history, entry)
        changes["preemptions"] = (snapshot.status.preemptions or 0) + 1
    reason = conditions.WAITING_FOR_ADMISSION
    return waiting.queued(
        snapshot, resource, reason, message, now, waiting.WATCHED_POLL_SECONDS, job, **changes
    )


def _ran(snapshot: Snapshot) -> bool:
    """Tell whether the run went on since its Job was last resumed."""
    # A pod may have started since the last look.
    if any(pod.started and not pod.ended for pod in snapshot.pods):
        return True
    # The phase of a Job that is not recorded yet is that of the attempt before.
    return snapshot.recorded is None and snapshot.status.phase in (Phase.RUNNING, Phase.RETRYING)
