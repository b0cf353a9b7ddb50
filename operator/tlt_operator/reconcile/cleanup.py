"""Policy for Jobs whose outcome is recorded: set their TTL, and delete those that still run."""

from __future__ import annotations

from tlt_api.conditions import TERMINAL
from tlt_api.status import JobStatus
from tlt_operator.reconcile.plan import Plan, observed_retry, plan_for
from tlt_operator.snapshot import JobState, Snapshot


def finished(snapshot: Snapshot) -> Plan:
    """Return the plan for a resource that has succeeded or failed; its phase stays, whatever its Jobs do."""
    status = snapshot.status
    # An edit of the spec changes nothing any more; observedGeneration tells that it was noticed.
    if status.observed_generation != snapshot.generation:
        generation = {"observed_generation": snapshot.generation}
        conditions = [condition.model_copy(update=generation) for condition in status.conditions]
        update = {**generation, "conditions": conditions}
        # A lower spec.retry (a manifest applied again) is noted: raising it counts from there.
        if snapshot.resource and snapshot.resource.spec.retry < (status.observed_retry or 0):
            update["observed_retry"] = observed_retry(snapshot.resource, status)
        status = status.model_copy(update=update)
    return plan_for(snapshot, status, delete=leftover(snapshot))


def leftover(snapshot: Snapshot) -> JobState | None:
    """Return the Job of an attempt whose end is recorded, if it still runs and nobody deletes it."""
    # The end is written before the Job is deleted: the operator died in between, or the deletion failed.
    job = snapshot.own_job
    return job if job and not job.finished and not job.deleting else None


def ttl(snapshot: Snapshot, status: JobStatus) -> tuple[tuple[str, str, int], ...]:
    """Return the Jobs that may be removed once this status is written, and after how many seconds.

    A Job gets its TTL only here, after its outcome was recorded: one that vanished before, while the
    operator was away, would look as if somebody had deleted it, and the run would be made again.
    """
    # An unreadable spec names no TTL: the Jobs stay.
    if snapshot.resource is None:
        return ()
    seconds = snapshot.resource.spec.run_policy.ttl_seconds_after_finished
    if seconds is None:
        return ()
    # The history has the attempts without success; the last attempt of a success is in no history.
    recorded = {snapshot.job_name(entry.attempt) for entry in status.history or () if not entry.paused}
    if status.phase in TERMINAL and status.job_name:
        recorded.add(status.job_name)
    return tuple(
        (job.name, job.uid, seconds)
        for job in snapshot.finished_jobs
        if job.name in recorded
        # The label that Jobs are listed by can be copied; the owner reference decides.
        and job.owner_uid == snapshot.uid
        and job.ttl_seconds != seconds
        and not job.deleting
    )
