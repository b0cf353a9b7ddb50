"""Transitions of a resource's status in a local run: pure functions.

They set the fields that the operator writes in a cluster, as far as a single machine knows them.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import datetime
from typing import Any

from tlt_api import conditions, times
from tlt_api.conditions import State
from tlt_api.failures import Reason
from tlt_api.references import Resolved
from tlt_api.resources import Resource
from tlt_api.runreport import RunReport
from tlt_api.status import HISTORY_LIMIT, Attempt, Failure, Phase

_NO_RERUN = ("suspend", "runPolicy")
"""Fields of a spec whose change does not make a finished resource run again."""


def same_work(one: Resource, other: Resource) -> bool:
    """Return True if two specs ask for the same work: all fields but suspend and runPolicy are equal."""
    # With every default filled in: a spec that spells out a default asks for the same work.
    left, right = one.spec.to_wire(), other.spec.to_wire()
    return all(left.get(key) == right.get(key) for key in {*left, *right} - {*_NO_RERUN})


def new(resource: Resource, now: datetime) -> Resource:
    """Return the resource as a new object, with a uid of its own and no status."""
    return replace(
        resource,
        # As the API server gives each object one: children tell by it whether their parent has run again.
        uid=str(uuid.uuid4()),
        generation=1,
        created=times.to_wire(now),
        status=resource.kind.status(),
    )


def kept(resource: Resource, stored: Resource) -> Resource:
    """Return the manifest's resource with the uid and status of the stored one."""
    # The spec is the manifest's; identity and status are what earlier runs left.
    return replace(
        resource,
        uid=stored.uid,
        generation=stored.generation,
        created=stored.created,
        status=stored.status,
    )


def resumed(resource: Resource, stored: Resource, now: datetime) -> Resource:
    """Return the stored object, resumed: its failure becomes a part of the history."""
    before = stored.status
    history = list(before.history or ())
    # A pending resource was reset already, so its last attempt stands in the history.
    if before.attempt and before.phase != Phase.PENDING:
        # No failure was saved: `tlt run` was killed together with its child, or before the child ended.
        reason = before.failure.reason if before.failure else Reason.INTERRUPTED
        ended = before.completion_time or times.to_wire(now)
        entry = Attempt(attempt=before.attempt, reason=reason, time=ended)
        history = [*history, entry][-HISTORY_LIMIT:]
    fields = {"history": history or None, "failure": None, "completion_time": None}
    return _in_state(_updated(kept(resource, stored), **fields), conditions.not_started(""), now)


def begun(resource: Resource, resolved: Resolved, now: datetime) -> Resource:
    """Begin the next attempt. The reports of the attempt before are dropped."""
    # A new status, not an update: metrics and artifacts of the attempt before would pass for this one's.
    before = resource.status
    attempt = (before.attempt or 0) + 1
    status = resource.kind.status(
        attempt=attempt,
        start_time=before.start_time or times.to_wire(now),
        history=before.history,
        dependency=resolved.dependency,
        inputs=resolved.inputs,
    )
    return _in_state(replace(resource, status=status), conditions.running(attempt), now)


def reported(resource: Resource, report: RunReport) -> Resource:
    """Set the runner's part of the status to its newest report."""
    status_fields = resource.kind.status.model_fields
    # The failure is set with the phase, at the end; a field without a value is one that was not reported yet.
    fields = {
        name: value
        for name, value in report
        if name in status_fields and name != "failure" and value is not None
    }
    return _updated(resource, **fields)


def succeeded(resource: Resource, now: datetime) -> Resource:
    """Record a success."""
    finished = _updated(resource, completion_time=times.to_wire(now), failure=None)
    return _in_state(finished, conditions.succeeded(resource.status.attempt or 0), now)


def failed(resource: Resource, failure: Failure, now: datetime) -> Resource:
    """Record a failure. An interrupted run can be resumed, so it is suspended instead."""
    # No completion time: the run is not over, the same command resumes it.
    if failure.reason == Reason.INTERRUPTED:
        return _in_state(_updated(resource, failure=failure), conditions.interrupted(failure), now)
    finished = _updated(resource, failure=failure, completion_time=times.to_wire(now))
    return _in_state(finished, conditions.failed(failure), now)


def suspended(resource: Resource, now: datetime) -> Resource:
    """Suspend, as spec.suspend asks for."""
    return _in_state(resource, conditions.suspended(), now)


def waiting(resource: Resource, message: str, now: datetime) -> Resource:
    """Wait for the resource that it refers to, which has not succeeded."""
    return _in_state(resource, conditions.waiting_for_dependency(message), now)


def not_started(resource: Resource, message: str, now: datetime) -> Resource:
    """Record why a resource that could start does not."""
    return _in_state(resource, conditions.not_started(message), now)


def _updated(resource: Resource, **fields: Any) -> Resource:
    return replace(resource, status=resource.status.model_copy(update=fields))


def _in_state(resource: Resource, state: State, now: datetime) -> Resource:
    """Set the conditions of a state, and the phase that follows from them."""
    generation = resource.generation
    # The stored conditions go in, because lastTransitionTime stays where a status does not change.
    built = conditions.build(resource.status.conditions, state, generation, times.to_wire(now))
    return _updated(resource, phase=conditions.phase(built), conditions=built, observed_generation=generation)
