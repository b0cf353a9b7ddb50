"""Decision on the actions for a resource, from a snapshot of it. Pure; one module for each policy.

Two facts decide, the intent of the user and the state of the current attempt (:mod:`.state`):

    deleted       nothing: owner references clean up
    finished      Succeeded and Failed are final: cleanup; spec.retry takes up what has failed
    unreadable    a run goes on, nothing new is started
    suspend       suspension.suspend
    run           the first attempt, then attempts (with retry and blockers)

``tests/unit/test_operator_states.py`` lists every pair and what is done.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from tlt_api import conditions, references, times
from tlt_api.failures import Reason, failure
from tlt_api.resources import Resource, is_of_newer_version
from tlt_api.status import JobStatus
from tlt_operator.objects import job
from tlt_operator.objects.event import Event
from tlt_operator.reconcile import attempts, cleanup, suspension
from tlt_operator.reconcile.plan import LONGEST_MESSAGE, Plan, fail, plan_for, with_state
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
    # The next attempt: its Job is created in this same pass, if nothing stands in its way.
    if plan.announced is not None and snapshot.resource is not None:
        state = attempt_state(plan.announced)
        plan = attempts.reconcile(plan.announced, snapshot.resource, state, now, settings)
    # Outcomes that this plan records count as recorded: it writes the status before it sets a TTL.
    return replace(plan, ttl=cleanup.ttl(snapshot, plan.status or snapshot.status) or plan.ttl)


def _decide(snapshot: Snapshot, now: datetime, settings: Settings) -> Plan:
    resource, status = snapshot.resource, snapshot.status
    # Succeeded and Failed are final, whatever the spec says now and whatever happened to the Job; only a user
    # who raises spec.retry takes up what has failed.
    if resource and attempts.taken_up(snapshot, resource):
        return attempts.next_attempt(snapshot, resource, now)
    if status.phase in conditions.TERMINAL:
        # An operator that was older than the CRDs failed what it could not read, before it started anything.
        if resource and status.attempt is None and _was_too_new(status):
            update = {"phase": None, "failure": None, "completion_time": None}
            recorded = snapshot.recorded or status
            snapshot = replace(snapshot, status=status.model_copy(update=update), recorded=recorded)
            return _decide(snapshot, now, settings)
        return cleanup.finished(snapshot)
    # A spec or status that cannot be read must neither stop a run nor start one.
    if resource is None:
        return _unreadable(snapshot, now)
    # Both policies below ask how far the attempt is, and each answers for every state.
    state = attempt_state(snapshot)
    # Before the first attempt too: a resource may be created suspended.
    if resource.spec.suspend:
        return suspension.suspend(snapshot, resource, state, now)
    # References are resolved once, before the first attempt.
    if isinstance(state, NotStarted):
        return _first_attempt(snapshot, resource, now)
    return attempts.reconcile(snapshot, resource, state, now, settings)


def _unreadable(snapshot: Snapshot, now: datetime) -> Plan:
    """Return the plan for a spec or status of another version, or one that slipped past the CRD's rules."""
    # Nothing was started, and a newer operator will: this one is being replaced, or should be.
    if snapshot.status.attempt is None and is_of_newer_version(snapshot.invalid):
        return _too_new(snapshot, snapshot.invalid, now)
    # Nothing was started: the resource fails with the field at fault.
    if snapshot.status.attempt is None:
        return fail(snapshot, failure(Reason.INVALID_SPEC, snapshot.invalid), now)
    # A run is under way: it goes on, and the status says that nobody looks after it.
    message = f"the run goes on, but its outcome cannot be acted upon: {snapshot.invalid}"
    new_conditions = conditions.stalled(
        snapshot.status.conditions, Reason.INVALID_SPEC, message, snapshot.generation, times.to_wire(now)
    )
    # The phase stays: nothing that is known of the run has changed.
    update = {"conditions": new_conditions, "observed_generation": snapshot.generation}
    plan = plan_for(snapshot, snapshot.status.model_copy(update=update))
    # plan_for posts an Event for a change of phase, attempt or Ready, and none of them changes here.
    return replace(plan, event=Event("Warning", Reason.INVALID_SPEC, message) if plan.status else None)


def _too_new(snapshot: Snapshot, problem: str, now: datetime) -> Plan:
    """Return the plan for a resource whose CRD is newer than this operator: it waits for another operator."""
    message = f"the CRDs are newer than this operator, which does not know: {problem}"
    hint = "Install the operator of the same version: kubectl apply -k manifests/base"
    state = replace(
        conditions.not_started(message), block=conditions.Block("OperatorTooOld", f"{message}. {hint}")
    )
    return plan_for(snapshot, with_state(snapshot, state, now))


def _was_too_new(status: JobStatus) -> bool:
    if status.failure is None or status.failure.reason != Reason.INVALID_SPEC:
        return False
    message = status.failure.message
    # One that was cut ends within a clause.
    whole = message.rpartition("; ")[0] if len(message) >= LONGEST_MESSAGE else message
    return is_of_newer_version(whole)


def _first_attempt(snapshot: Snapshot, resource: Resource, now: datetime) -> Plan:
    """Return the plan for a resource that has not been attempted yet."""
    # A pod cannot reach file:// addresses.
    local_uris = job.local_uris(resource.spec)
    if local_uris:
        message = f"expected pvc:// or s3:// addresses in a cluster, got {', '.join(local_uris)}"
        return fail(snapshot, failure(Reason.INVALID_SPEC, message), now)
    # A parent whose spec cannot be read is there, but will never deliver anything to this operator.
    parent = references.parent_key(references.model_source(resource))
    if parent is not None and parent in snapshot.invalid_parents:
        if is_of_newer_version(snapshot.invalid_parents[parent]):
            return _too_new(snapshot, snapshot.invalid_parents[parent], now)
        message = f"{parent[0]}/{parent[1]} cannot be read: {snapshot.invalid_parents[parent]}"
        return fail(snapshot, failure(Reason.DEPENDENCY_FAILED, message), now)
    # Exactly one of three answers: go on, look again when the parent changes, or give up.
    match references.resolve(resource, lambda kind, name: snapshot.parents.get((kind, name))):
        # The files are recorded in the status with their digests: all attempts start from the same ones.
        case references.Resolved(inputs=inputs, dependency=dependency):
            return attempts.begin(snapshot, resource, 1, now, inputs=inputs, dependency=dependency)
        # The parent is recorded by its uid: a resource of its name that is created later is another one.
        case references.Waiting(message=message, dependency=dependency):
            state = conditions.waiting_for_dependency(message)
            recorded = dependency or snapshot.status.dependency
            return plan_for(snapshot, with_state(snapshot, state, now, dependency=recorded, failure=None))
        case references.Broken(reason=reason, message=message, dependency=dependency):
            recorded = dependency or snapshot.status.dependency
            return fail(snapshot, failure(reason, message), now, dependency=recorded)
