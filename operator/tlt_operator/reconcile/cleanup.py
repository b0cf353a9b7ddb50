"""What is left to do for Jobs whose outcome stands in the status: their TTL, and those that still run."""

from __future__ import annotations

from datetime import datetime

from tlt_api.status import JobStatus
from tlt_operator.conditions import TERMINAL
from tlt_operator.observed import Observed
from tlt_operator.reconcile.plan import Plan, to_status


def settled(seen: Observed, now: datetime) -> Plan:
    """The plan for a resource that has succeeded or failed: its phase stays, whatever becomes of its Jobs."""
    status = seen.status
    if status.observed_generation != seen.generation:
        conditions = [
            c.model_copy(update={"observed_generation": seen.generation}) for c in status.conditions
        ]
        update = {"observed_generation": seen.generation, "conditions": conditions}
        status = status.model_copy(update=update)
    job = seen.own_job
    running = job if job and not job.finished and not job.deleting else None
    return to_status(seen, status, delete=running)


def ttl(seen: Observed, status: JobStatus) -> tuple[tuple[str, int], ...]:
    """Jobs that may be removed once this status is written, and after how many seconds.

    A Job gets its TTL only here, after its outcome was recorded: one that vanished before, while the operator
    was away, would look as if somebody had deleted it, and the run would be made again.
    """
    if seen.resource is None:
        return ()
    seconds = seen.resource.spec.run_policy.ttl_seconds_after_finished
    if seconds is None:
        return ()
    recorded = {seen.job_name(entry.attempt) for entry in status.history or ()}
    if status.phase in TERMINAL and status.job_name:
        recorded.add(status.job_name)
    return tuple(
        (job.name, seconds)
        for job in seen.finished_jobs
        if job.name in recorded
        and job.owner_uid == seen.uid
        and job.ttl_seconds != seconds
        and not job.deleting
    )
