"""``spec.suspend``: the attempt's Job is deleted, and another attempt is made once it is false again.

The Job's own ``spec.suspend`` is left alone: a pod that ends with a code other than 0 after SIGTERM counts as
failed there, which with backoffLimit 0 fails the Job; and that field is how queueing systems (Kueue) admit
Jobs. The deletion is a foreground one: the Job stays until its pod has written its checkpoint and is gone.
"""

from __future__ import annotations

from datetime import datetime

from tlt_api.resources import Resource
from tlt_api.status import Attempt, Phase
from tlt_operator import clock, conditions
from tlt_operator.conditions import State
from tlt_operator.observed import Observed
from tlt_operator.reconcile import attempts, retry
from tlt_operator.reconcile.diagnosis import diagnose
from tlt_operator.reconcile.plan import Plan, to_status, with_state


def reconcile(seen: Observed, resource: Resource, now: datetime) -> Plan:
    """The plan for a resource that is to be suspended and has not ended."""
    job = seen.own_job
    if job and job.holds("Complete"):
        return attempts.succeed(seen, job, now)
    if job and not retry.over(seen.status):
        if job.holds("Failed") and not job.deleting:
            return attempts.ended(seen, resource, diagnose(job, seen.pods_of(seen.status.attempt or 0)), now)
        state = State(Phase.RUNNING, conditions.STOPPING, f"Job {job.name} is stopped: spec.suspend is true")
        status = with_state(seen, state, now, job_uid=job.uid)
        return to_status(seen, status, delete=None if job.deleting else job)
    alive = [pod.name for pod in seen.pods if not pod.ended]
    if alive:
        state = State(Phase.RUNNING, conditions.STOPPING, f"waits for the end of {', '.join(alive)}")
        return to_status(seen, with_state(seen, state, now), requeue_after=attempts.OLD_POD_POLL_SECONDS)
    state = State(Phase.SUSPENDED, "Suspended", "spec.suspend is true")
    return to_status(seen, with_state(seen, state, now, **_stopped(seen, now)))


def _stopped(seen: Observed, now: datetime) -> dict[str, list[Attempt]]:
    """The history with the attempt that was stopped, if one was."""
    status = seen.status
    if status.attempt is None or status.job_uid is None or retry.over(status):
        return {}
    entry = Attempt(attempt=status.attempt, reason=retry.SUSPENDED, time=clock.to_wire(now))
    return {"history": retry.append(status.history, entry)}
