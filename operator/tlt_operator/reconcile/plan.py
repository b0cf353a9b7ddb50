"""Plan of the actions for a resource: ``reconcile`` decides on them, ``apply`` executes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tlt_api import conditions, times
from tlt_api.status import OPERATOR_FIELDS, JobStatus
from tlt_operator.objects.event import Event
from tlt_operator.snapshot import JobState, Snapshot


@dataclass(frozen=True)
class Plan:
    """Actions, in the order in which they are executed.

    Attributes:
        report: The runner's fields of the status, completed from the termination message.
        event: The Event to post.
        status: The operator's fields of the status; None where they stay as they are.
        create: The Job to create.
        service: The Service to create, of a Job that exists.
        delete: The Job to delete.
        ttl: Jobs (by name) whose ttlSecondsAfterFinished to set.
        requeue_after: Seconds after which to look again even if no event arrives.
    """

    report: Mapping[str, Any] | None = None
    event: Event | None = None
    status: JobStatus | None = None
    create: Mapping[str, Any] | None = None
    service: Mapping[str, Any] | None = None
    delete: JobState | None = None
    ttl: tuple[tuple[str, int], ...] = ()
    requeue_after: float | None = None


def plan_for(snapshot: Snapshot, status: JobStatus, **actions: Any) -> Plan:
    """Return a plan that writes a status, with an Event for a transition; ``actions`` go into the plan."""
    # Nothing changed: no write, and no load on the API server from resources at rest.
    if operator_fields(status) == operator_fields(snapshot.status):
        return Plan(**actions)
    return Plan(status=status, event=_transition(snapshot.status, status), **actions)


def with_state(snapshot: Snapshot, state: conditions.State, now: datetime, **changes: Any) -> JobStatus:
    """Return the status in a new state; ``changes`` are fields by their Python names."""
    built = conditions.build(snapshot.status.conditions, state, snapshot.generation, times.to_wire(now))
    # The phase is derived from the conditions, so that the two never disagree.
    update = {
        "conditions": built,
        "phase": conditions.phase(built),
        "observed_generation": snapshot.generation,
        **changes,
    }
    return snapshot.status.model_copy(update=update)


def operator_fields(status: JobStatus) -> dict[str, Any]:
    """Return the operator's fields of a status as JSON data."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True, include=set(OPERATOR_FIELDS))


def _transition(before: JobStatus, after: JobStatus) -> Event | None:
    """Return the Event for people if phase, attempt or reason have changed."""
    ready = conditions.find(after.conditions, conditions.READY)
    was_ready = conditions.find(before.conditions, conditions.READY)
    # Waiting for a pod follows the creation of its Job by a moment, and is not worth an Event of its own.
    if ready is None or ready.reason == conditions.WAITING_FOR_POD:
        return None
    was = (before.phase, before.attempt, was_ready.reason if was_ready else None)
    if was == (after.phase, after.attempt, ready.reason):
        return None
    blocked = conditions.find(after.conditions, conditions.BLOCKED)
    warns = after.phase in ("Failed", "Retrying") or (blocked is not None and blocked.status == "True")
    return Event("Warning" if warns else "Normal", ready.reason, ready.message)
