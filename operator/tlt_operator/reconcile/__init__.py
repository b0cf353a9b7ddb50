"""Decision on the actions for a resource, from a snapshot of it. Pure; one module for each policy.

Two facts decide, the intent of the user and the state of the current attempt (:mod:`.state`):

    deleted       nothing: owner references clean up
    finished      Succeeded and Failed are final: cleanup
    unreadable    a run goes on, nothing new is started
    suspend       suspend
    run           first_attempt, then attempts (with retry and blockers)

``tests/unit/test_operator_states.py`` lists every pair and what is done.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from tlt_api import conditions, failures, times
from tlt_api.failures import Reason
from tlt_operator.objects.event import Event
from tlt_operator.reconcile import attempts, cleanup, first_attempt, suspend, transitions
from tlt_operator.reconcile.plan import Plan, plan_for
from tlt_operator.reconcile.state import NotStarted, attempt_state
from tlt_operator.settings import Settings
from tlt_operator.snapshot import Snapshot

__all__ = ["Plan", "reconcile"]


def reconcile(snapshot: Snapshot, now: datetime, settings: Settings) -> Plan:
    """Return the plan for a resource."""
    # The garbage collector deletes Jobs and pods along with their owner.
    if snapshot.deleting:
        return Plan()
    plan = _decide(snapshot, now, settings)
    # Outcomes that this plan records count as recorded: it writes the status before it sets a TTL.
    return replace(plan, ttl=cleanup.ttl(snapshot, plan.status or snapshot.status))


def _decide(snapshot: Snapshot, now: datetime, settings: Settings) -> Plan:
    # Succeeded and Failed are final, whatever the spec says now and whatever happened to the Job.
    if snapshot.status.phase in conditions.TERMINAL:
        return cleanup.finished(snapshot)
    # A spec or status that cannot be read must neither stop a run nor start one.
    resource = snapshot.resource
    if resource is None:
        return _unreadable(snapshot, now)
    state = attempt_state(snapshot)
    # Before the first attempt too: a resource may be created suspended.
    if resource.spec.suspend:
        return suspend.reconcile(snapshot, resource, state, now)
    # References are resolved once, before the first attempt.
    if isinstance(state, NotStarted):
        return first_attempt.reconcile(snapshot, resource, now)
    return attempts.reconcile(snapshot, resource, state, now, settings)


def _unreadable(snapshot: Snapshot, now: datetime) -> Plan:
    """Return the plan for a spec or status of another version, or one that slipped past the CRD's rules."""
    # Nothing was started: the resource fails with the field at fault.
    if snapshot.status.attempt is None:
        return transitions.fail(snapshot, failures.failure(Reason.INVALID_SPEC, snapshot.invalid), now)
    # A run is under way: it goes on, and the status says that nobody looks after it.
    message = f"the run goes on, but its outcome cannot be acted upon: {snapshot.invalid}"
    built = conditions.stalled(
        snapshot.status.conditions, Reason.INVALID_SPEC, message, snapshot.generation, times.to_wire(now)
    )
    update = {"conditions": built, "observed_generation": snapshot.generation}
    plan = plan_for(snapshot, snapshot.status.model_copy(update=update))
    # plan_for posts an Event for a change of phase, attempt or Ready, and none of them changes here.
    return replace(plan, event=Event("Warning", Reason.INVALID_SPEC, message) if plan.status else None)
