"""Execution of a plan, in its order; every step can be repeated without harm.

The order makes a crash between any two writes harmless: the Job before the attempt that names it, since its
name follows from the attempt; results before the phase that promises them; the outcome before the Job may
vanish. The Event comes before the status that it explains: its name follows from the transition, so that it
is not posted twice after a crash.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from tlt_api.status import RUNNER_FIELD_MANAGER, JobStatus, Phase
from tlt_operator import metrics
from tlt_operator.cluster.client import ApiError, Client, ConflictError, NotFoundError, RefusedError
from tlt_operator.objects import event as event_object
from tlt_operator.objects.event import Event
from tlt_operator.reconcile.plan import Plan, operator_fields
from tlt_operator.snapshot import JobState, Snapshot, WorkloadState

log = logging.getLogger(__name__)


class CreationRefusedError(RefusedError):
    """The Job or the Service was refused: a fact to decide with, which a refused status is not."""


async def apply(client: Client, snapshot: Snapshot, plan: Plan, now: datetime) -> str:
    """Execute a plan and return the resourceVersion of the resource afterwards.

    Raises:
        ConflictError: The snapshot is out of date; look again.
        CreationRefusedError: The Job or the Service was refused.
        RefusedError: Something else was refused.
        ApiError: The API server could not be asked.
    """
    identity = (snapshot.kind, snapshot.namespace, snapshot.name, snapshot.uid)
    kind, name = snapshot.kind.name, f"{snapshot.namespace}/{snapshot.name}"
    version = snapshot.resource_version
    status = plan.status
    # The name of the Job follows from the attempt: a repeated creation is a conflict, not a second Job.
    if plan.create is not None:
        with _as_a_fact(), metrics.write(kind, "job"):
            job = await client.create_job(plan.create)
        metrics.ATTEMPTS.labels(kind).inc()
        log.info("%s: created Job %s", name, plan.create["metadata"]["name"])
        # A status that waits finds the Job by its name.
        status = status and status.model_copy(update={"job_uid": job["metadata"]["uid"]})
    # Each status write is guarded by the version of the one before: of two operators at once, one goes on.
    # By the runner's field manager, which owns these fields: applied by the operator's, they would vanish
    # with its next status, which has none of them.
    if plan.report is not None:
        with metrics.write(kind, "report"):
            body = await client.apply_status(*identity, plan.report, RUNNER_FIELD_MANAGER, version)
        version = body["metadata"]["resourceVersion"]
    if plan.event is not None:
        await _post(client, snapshot, status or snapshot.status, plan.event, now)
    if status is not None:
        stored = operator_fields(snapshot.stored_status)
        with metrics.write(kind, "status"):
            patch = _merge_patch(stored, operator_fields(status))
            body = await client.patch_status(*identity, patch, version)
        version = body["metadata"]["resourceVersion"]
        _note_transition(snapshot, status)
    # A Service of that name is a conflict too: the next pass reads whose it is.
    if plan.service is not None:
        with _as_a_fact(), metrics.write(kind, "service"):
            await client.create_service(plan.service)
        log.info("%s: created Service %s", name, plan.service["metadata"]["name"])
    if plan.delete is not None:
        # A Job that is gone already is what was wanted. One that changed since (it may have completed) is a
        # conflict, and is looked at again.
        leftover = plan.delete
        with metrics.write(kind, "delete"), contextlib.suppress(NotFoundError):
            await client.delete_job(
                snapshot.namespace, leftover.name, leftover.uid, leftover.resource_version
            )
        log.info("%s: deleted Job %s, which ends after its pods", name, leftover.name)
    # Guarded by its version as well: Kueue or a person may have set the field in the meantime.
    for paused, suspend in ((plan.suspend, True), (plan.resume, False)):
        if paused is not None:
            with metrics.write(kind, "suspend" if suspend else "resume"):
                await _set_suspended(client, snapshot.namespace, paused, plan.workload, suspend)
            log.info("%s: %s Job %s", name, "suspended" if suspend else "resumed", paused.name)
    # Last: from here on the Job may vanish, and its outcome stands in the status. One that is gone already
    # needs no TTL, and another one of its name gets none.
    for job_name, uid, seconds in plan.ttl:
        with metrics.write(kind, "ttl"), contextlib.suppress(NotFoundError, ConflictError):
            await client.set_job_ttl(snapshot.namespace, job_name, uid, seconds)
    return version


async def _set_suspended(
    client: Client, namespace: str, job: JobState, workload: WorkloadState | None, suspend: bool
) -> None:
    """Suspend or resume a Job, by its Workload if a queue of Kueue starts and stops it."""
    # Noted before, and forgotten after: whatever ends the operator in between, the next look finds that the
    # Workload is the operator's to change.
    queued = workload is not None
    if suspend and not (queued and job.suspended_by_us):
        await client.suspend_job(namespace, job.name, job.uid, job.resource_version, True, note_only=queued)
    if workload is not None and workload.active == suspend:
        await client.set_workload_active(
            workload.api_version,
            namespace,
            workload.name,
            workload.uid,
            workload.resource_version,
            active=not suspend,
        )
    if not suspend:
        await client.suspend_job(namespace, job.name, job.uid, job.resource_version, False, note_only=queued)


@contextlib.contextmanager
def _as_a_fact() -> Iterator[None]:
    try:
        yield
    except RefusedError as error:
        raise CreationRefusedError(error.code, error.message, error.retry_after) from error


def _merge_patch(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the merge patch (RFC 7386) after which the fields of ``stored`` are those of ``wanted``.

    Such a patch leaves what it does not name as it is, in objects within objects too; lists it replaces.
    """
    patch: dict[str, Any] = dict.fromkeys(stored.keys() - wanted.keys())
    for name, value in wanted.items():
        before = stored.get(name)
        nested = isinstance(value, dict) and isinstance(before, dict)
        patch[name] = _merge_patch(before or {}, value) if nested else value
    return patch


async def _post(client: Client, snapshot: Snapshot, status: JobStatus, event: Event, now: datetime) -> None:
    """Post an Event; a failure is counted and logged only, because Events are for people."""
    body = event_object.build(snapshot, status, event, now)
    try:
        with metrics.write(snapshot.kind.name, "event"):
            await client.create_event(body)
    # The Event of this transition exists: an operator that died after it made it.
    except ConflictError:
        log.debug("%s/%s: Event %s was posted before", snapshot.namespace, snapshot.name, event.reason)
    except ApiError as error:
        log.warning("%s/%s: Event %s is lost: %s", snapshot.namespace, snapshot.name, event.reason, error)


def _note_transition(snapshot: Snapshot, status: JobStatus) -> None:
    """Count and log the changes in the status that was just written."""
    # Not repeated after a crash: metrics may miss a transition, a status may not.
    before = snapshot.stored_status
    moved = status.phase != before.phase
    # The failure of a retried attempt stays in the status until the next one ends: it is counted once.
    if status.failure and (_end(status) != _end(before) or (moved and status.phase == Phase.FAILED)):
        metrics.FAILURES.labels(snapshot.kind.name, status.failure.reason).inc()
    if moved:
        log.info("%s/%s: %s -> %s", snapshot.namespace, snapshot.name, before.phase, status.phase)


def _end(status: JobStatus) -> tuple[int, str | None] | None:
    """Return the attempt whose failure a status records, and when it ended; None if there is none."""
    reason = status.failure.reason if status.failure else None
    ends = [entry for entry in status.history or () if entry.reason == reason and not entry.paused]
    return (ends[-1].attempt, ends[-1].time) if ends else None
