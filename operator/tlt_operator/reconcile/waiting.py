"""Waits of a resource: for a pod to run, until the start timeout, and for pods to end.

Every policy reports its waits by these, so that none of them is silent or without a limit where the user set
one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tlt_api import times
from tlt_api.conditions import STOPPING, State
from tlt_api.failures import Reason, failure
from tlt_api.resources import Resource
from tlt_api.status import Failure, Phase
from tlt_operator.reconcile import silence
from tlt_operator.reconcile.blockers import Blocker
from tlt_operator.reconcile.plan import Plan, end_attempt, fail, plan_for, with_state
from tlt_operator.snapshot import JobState, Snapshot

# Services and quotas are not watched: while one of them matters, the resource is looked at again.
OLD_POD_POLL_SECONDS = 5.0
"""Interval while the end of a pod is awaited."""
REFUSED_POLL_SECONDS = 30.0
"""Interval while a name is taken or a request is refused: somebody has to act first."""
WATCHED_POLL_SECONDS = 600.0
"""Interval while everything that is waited for is watched, in case that a watch has missed it."""


def blocked(
    snapshot: Snapshot,
    resource: Resource,
    blocker: Blocker,
    job: JobState | None,
    now: datetime,
    poll: float,
) -> Plan:
    """Report a blocker, which is waited for."""
    state = State(Phase.QUEUED, blocker.reason, blocker.block.message, blocker.block)
    cause = failure(blocker.fails_as, blocker.message, blocker.hint or None)
    return wait(snapshot, resource, state, cause, job, now, poll)


def queued(
    snapshot: Snapshot,
    resource: Resource,
    reason: str,
    message: str,
    now: datetime,
    poll: float,
    job: JobState | None = None,
    **changes: Any,
) -> Plan:
    """Report that a pod is waited for, and nothing is known to be wrong."""
    state, cause = State(Phase.QUEUED, reason, message), failure(Reason.START_TIMEOUT, message)
    return wait(snapshot, resource, state, cause, job, now, poll, **changes)


def wait(
    snapshot: Snapshot,
    resource: Resource,
    state: State,
    cause: Failure,
    job: JobState | None,
    now: datetime,
    poll: float,
    **changes: Any,
) -> Plan:
    """Report a state in which a pod is waited for; after startTimeoutSeconds, fail by ``cause``."""
    left = seconds_left(times.from_wire(snapshot.status.waiting_since), resource, now)
    if left is not None and left <= 0:
        # Between two attempts, or before the first one, no attempt ends.
        if snapshot.status.attempt is None or snapshot.status.recorded_end:
            return fail(snapshot, cause, now)
        return end_attempt(snapshot, resource, cause, now, delete=job)
    # No event announces the end of the timeout.
    poll = poll if left is None else min(poll, left)
    status = with_state(snapshot, state, now, **_job_observed(job), **changes)
    return plan_for(snapshot, status, requeue_after=poll)


def seconds_left(since: datetime | None, resource: Resource, now: datetime) -> float | None:
    """Return the seconds until runPolicy.startTimeoutSeconds is over; None without such a limit."""
    limit = resource.spec.run_policy.start_timeout_seconds
    # The status is the clock: it survives a restart of the operator.
    return None if limit is None else limit - times.age(since, now)


def _job_observed(job: JobState | None) -> dict[str, str]:
    """Fields of the status that record that the Job has been observed."""
    return {"job_uid": job.uid} if job else {}


def still_writing(snapshot: Snapshot, now: datetime) -> Plan:
    """Report that pods are being stopped, which may still write to the output."""
    names = ", ".join(snapshot.live_pods)
    stopping = State(Phase.RUNNING, STOPPING, f"waits for the end of {names}")
    return await_pods(snapshot, stopping, now)


def await_pods(snapshot: Snapshot, state: State, now: datetime, **changes: Any) -> Plan:
    """Report a state in which the end of pods is awaited, or that the node of one does not answer."""
    lost = silence.lost_pod(snapshot.pods, now)
    state = silence.node_lost(snapshot.namespace, lost, now) if lost else state
    status = with_state(snapshot, state, now, **changes)
    return plan_for(snapshot, status, requeue_after=OLD_POD_POLL_SECONDS)
