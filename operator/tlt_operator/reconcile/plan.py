"""What is to be done for a resource: ``reconcile`` makes it, ``apply`` does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from tlt_api.status import JobStatus
from tlt_operator import clock, conditions
from tlt_operator.observed import JobState, Observed

OPERATOR_FIELDS = frozenset(
    {
        "phase",
        "observed_generation",
        "conditions",
        "attempt",
        "retries",
        "job_name",
        "job_uid",
        "start_time",
        "completion_time",
        "failure",
        "history",
        "dependency",
        "inputs",
    }
)
"""The part of the status that the operator writes, always as a whole: what it left out would be removed."""


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event: told to people, never read back."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """Actions, in the order in which they are done.

    Attributes:
        report: The runner's fields of the status, completed from the termination message.
        status: The operator's fields of the status; None where they stay as they are.
        create: The Job to create.
        service: The Service to create, of a Job that exists.
        delete: The Job to delete.
        ttl: Jobs (by name) whose ttlSecondsAfterFinished to set.
        event: What to tell.
        requeue_after: Seconds after which to look again, although nothing may have happened.
    """

    report: Mapping[str, Any] | None = None
    status: JobStatus | None = None
    create: Mapping[str, Any] | None = None
    service: Mapping[str, Any] | None = None
    delete: JobState | None = None
    ttl: tuple[tuple[str, int], ...] = ()
    event: Event | None = None
    requeue_after: float | None = None


def operator_fields(status: JobStatus) -> dict[str, Any]:
    """The operator's fields of a status as JSON data."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True, include=set(OPERATOR_FIELDS))


def with_state(seen: Observed, state: conditions.State, now: datetime, **changes: Any) -> JobStatus:
    """The status in a new state; ``changes`` are fields by their Python names."""
    built = conditions.build(seen.status.conditions, state, seen.generation, clock.to_wire(now))
    update = {
        "conditions": built,
        "phase": conditions.phase(built),
        "observed_generation": seen.generation,
        **changes,
    }
    return seen.status.model_copy(update=update)


def to_status(seen: Observed, status: JobStatus, **rest: Any) -> Plan:
    """The plan that brings a status about, and tells where the state became another; ``rest`` goes along."""
    if operator_fields(status) == operator_fields(seen.status):
        return Plan(**rest)
    return Plan(status=status, event=_event(seen.status, status), **rest)


def _event(before: JobStatus, after: JobStatus) -> Event | None:
    ready = conditions.find(after.conditions, conditions.READY)
    was_ready = conditions.find(before.conditions, conditions.READY)
    if ready is None:
        return None
    was = (before.phase, before.attempt, was_ready.reason if was_ready else None)
    if was == (after.phase, after.attempt, ready.reason) or ready.reason == conditions.WAITING_FOR_POD:
        return None
    bad = conditions.find(after.conditions, conditions.BLOCKED)
    warns = after.phase in ("Failed", "Retrying") or (bad is not None and bad.status == "True")
    return Event("Warning" if warns else "Normal", ready.reason, ready.message)
