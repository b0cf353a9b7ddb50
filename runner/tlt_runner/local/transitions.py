"""The life of a resource in a local run: pure steps from one status to the next.

The fields are those that the operator writes in a cluster, as far as a single machine knows them.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal

from tlt_api.failures import Reason
from tlt_api.references import Resolved
from tlt_api.resources import Resource
from tlt_api.runreport import RunReport
from tlt_api.status import Attempt, Condition, Failure, Phase
from tlt_runner.status.reporter import timestamp

_NO_RERUN = ("suspend", "runPolicy")
_HISTORY = 20


def same_work(one: Resource, other: Resource) -> bool:
    """Whether two specs ask for the same work: all but suspend and runPolicy are equal."""
    left, right = one.spec.to_wire(), other.spec.to_wire()
    return all(left.get(key) == right.get(key) for key in {*left, *right} - {*_NO_RERUN})


def new(resource: Resource, now: datetime) -> Resource:
    """The resource as another object: a uid of its own and no status."""
    return replace(
        resource,
        uid=str(uuid.uuid4()),
        generation=1,
        created=timestamp(now),
        status=resource.kind.status(),
    )


def kept(resource: Resource, stored: Resource) -> Resource:
    """The manifest's resource as the stored object: its uid and status."""
    return replace(
        resource,
        uid=stored.uid,
        generation=stored.generation,
        created=stored.created,
        status=stored.status,
    )


def resumed(resource: Resource, stored: Resource, now: datetime) -> Resource:
    """The manifest's resource as the stored object, which is taken up again: its failure is history."""
    before = stored.status
    history = list(before.history or ())
    if before.attempt and before.phase != Phase.PENDING:
        reason = before.failure.reason if before.failure else Reason.INTERRUPTED
        entry = Attempt(attempt=before.attempt, reason=reason, time=before.completion_time or timestamp(now))
        history = [*history, entry][-_HISTORY:]
    fields = {"history": history or None, "failure": None, "completion_time": None}
    return _in_phase(_updated(kept(resource, stored), **fields), Phase.PENDING, "", now)


def begun(resource: Resource, resolved: Resolved, now: datetime) -> Resource:
    """The next attempt runs. What the last one reported is gone."""
    before = resource.status
    status = resource.kind.status(
        attempt=(before.attempt or 0) + 1,
        start_time=before.start_time or timestamp(now),
        history=before.history,
        dependency=resolved.dependency,
        inputs=resolved.inputs,
    )
    return _in_phase(replace(resource, status=status), Phase.RUNNING, "", now)


def reported(resource: Resource, report: RunReport) -> Resource:
    """The runner's part of the status is what it reports now."""
    known = resource.kind.status.model_fields
    fields = {
        name: value for name, value in report if name in known and name != "failure" and value is not None
    }
    return _updated(resource, **fields)


def succeeded(resource: Resource, now: datetime) -> Resource:
    """The run ended well."""
    finished = _updated(resource, completion_time=timestamp(now), failure=None)
    return _in_phase(finished, Phase.SUCCEEDED, "", now)


def failed(resource: Resource, failure: Failure, now: datetime) -> Resource:
    """The run, or the resource before any, failed. An interrupted one may go on: it is suspended."""
    if failure.reason == Reason.INTERRUPTED:
        return _in_phase(_updated(resource, failure=failure), Phase.SUSPENDED, failure.message, now)
    finished = _updated(resource, failure=failure, completion_time=timestamp(now))
    return _in_phase(finished, Phase.FAILED, failure.message, now)


def suspended(resource: Resource, now: datetime) -> Resource:
    """The spec says so."""
    return _in_phase(resource, Phase.SUSPENDED, "spec.suspend is true", now)


def waiting(resource: Resource, message: str, now: datetime) -> Resource:
    """It cannot start: what it refers to has not succeeded."""
    return _in_phase(resource, Phase.PENDING, message, now)


def _updated(resource: Resource, **fields: Any) -> Resource:
    return replace(resource, status=resource.status.model_copy(update=fields))


def _in_phase(resource: Resource, phase: Phase, message: str, now: datetime) -> Resource:
    """Set the phase and the conditions that go with it."""
    failure = resource.status.failure
    reason = failure.reason if failure and phase in (Phase.FAILED, Phase.SUSPENDED) else phase.value
    true = {
        "Ready": phase == Phase.SUCCEEDED,
        "Reconciling": phase == Phase.RUNNING,
        "Stalled": phase == Phase.FAILED,
        "Suspended": phase == Phase.SUSPENDED,
        "Complete": phase == Phase.SUCCEEDED,
        "Failed": phase == Phase.FAILED,
    }
    before = {item.type: item for item in resource.status.conditions}
    conditions = [
        _condition(kind, holds, before.get(kind), resource.generation, reason, message, now)
        for kind, holds in true.items()
    ]
    return _updated(resource, phase=phase, conditions=conditions, observed_generation=resource.generation)


def _condition(
    kind: str,
    holds: bool,
    before: Condition | None,
    generation: int,
    reason: str,
    message: str,
    now: datetime,
) -> Condition:
    status: Literal["True", "False"] = "True" if holds else "False"
    same = before is not None and before.status == status
    return Condition(
        type=kind,
        status=status,
        observed_generation=generation,
        last_transition_time=before.last_transition_time if same and before else timestamp(now),
        reason=reason,
        message=message,
    )
