"""Policy before the first attempt: wait for the referenced resource, then pin the files that it delivers."""

from __future__ import annotations

from datetime import datetime

from tlt_api import conditions, references
from tlt_api.failures import Reason, failure
from tlt_api.resources import Resource
from tlt_operator.objects import pod
from tlt_operator.reconcile import transitions
from tlt_operator.reconcile.plan import Plan, plan_for, with_state
from tlt_operator.snapshot import Snapshot


def reconcile(snapshot: Snapshot, resource: Resource, now: datetime) -> Plan:
    """Return the plan for a resource that has not been attempted yet."""
    # A pod cannot reach file:// addresses.
    local_uris = pod.local_uris(resource.spec)
    if local_uris:
        message = f"expected pvc:// or s3:// addresses in a cluster, got {', '.join(local_uris)}"
        return transitions.fail(snapshot, failure(Reason.INVALID_SPEC, message), now)
    # A parent whose spec cannot be read is there, but will never deliver anything to this operator.
    parent = references.parent_key(references.model_source(resource))
    if parent is not None and parent in snapshot.invalid_parents:
        message = f"{parent[0]}/{parent[1]} cannot be read: {snapshot.invalid_parents[parent]}"
        return transitions.fail(snapshot, failure(Reason.DEPENDENCY_FAILED, message), now)
    match references.resolve(resource, lambda kind, name: snapshot.parents.get((kind, name))):
        # The files are recorded in the status with their digests: all attempts start from the same ones.
        case references.Resolved(inputs=inputs, dependency=dependency):
            return transitions.announce(snapshot, 1, now, inputs=inputs, dependency=dependency)
        # The parent is recorded by its uid: a resource of its name that is created later is another one.
        case references.Waiting(message=message, dependency=dependency):
            state = conditions.waiting_for_dependency(message)
            latest = dependency or snapshot.status.dependency
            return plan_for(snapshot, with_state(snapshot, state, now, dependency=latest, failure=None))
        case references.Broken(reason=reason, message=message, dependency=dependency):
            latest = dependency or snapshot.status.dependency
            return transitions.fail(snapshot, failure(reason, message), now, dependency=latest)
