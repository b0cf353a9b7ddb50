"""Policy of ``spec.suspend``: delete the attempt's Job; make another attempt once it is false again.

The Job's own ``spec.suspend`` is left alone: a pod that ends with a code other than 0 after SIGTERM counts
as failed there, which with backoffLimit 0 fails the Job; and that field is how queueing systems (Kueue)
admit Jobs. The deletion is a foreground one: the Job stays until its pod has written its checkpoint and is
gone.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tlt_api import conditions, times
from tlt_api.conditions import State
from tlt_api.resources import Resource
from tlt_api.status import Attempt, Failure, Phase
from tlt_operator.reconcile import retry, transitions
from tlt_operator.reconcile.attempts import OLD_POD_POLL_SECONDS
from tlt_operator.reconcile.plan import Plan, plan_for, with_state
from tlt_operator.reconcile.state import AttemptState, Ended, Lost, Running, Stopping, Succeeded, Waiting
from tlt_operator.snapshot import Snapshot


def reconcile(snapshot: Snapshot, resource: Resource, state: AttemptState, now: datetime) -> Plan:
    """Return the plan for a resource that is to be suspended and has not ended."""
    match state:
        # The run was faster than the suspension.
        case Ended(outcome=Succeeded(job=job)):
            return transitions.succeed(snapshot, job, now)
        # The run failed before it was stopped: the failure is recorded and counted, as without a suspension.
        case Ended(outcome=Failure() as failure):
            return transitions.end_attempt(snapshot, resource, failure, now)
        # The phase stays Running until the pods have written their checkpoint and are gone.
        case Waiting(job=job) | Running(job=job) | Stopping(job=job):
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
