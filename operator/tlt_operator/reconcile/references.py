"""Before the first attempt: wait for what the resource refers to, then pin it."""

from __future__ import annotations

from datetime import datetime

from tlt_api import references
from tlt_api.failures import Reason
from tlt_api.resources import Resource
from tlt_api.status import Phase
from tlt_operator import conditions
from tlt_operator.build import pod
from tlt_operator.observed import Observed
from tlt_operator.reconcile import attempts, plan
from tlt_operator.reconcile.diagnosis import failure


def reconcile(seen: Observed, resource: Resource, now: datetime) -> plan.Plan:
    """The plan for a resource that has not been attempted yet."""
    local = pod.local_uris(resource.spec)
    if local:
        message = f"expected pvc:// or s3:// addresses in a cluster, got {', '.join(local)}"
        return attempts.fail(seen, failure(Reason.INVALID_SPEC, message), now)
    parent = references.parent_key(references.model_source(resource))
    if parent is not None and parent in seen.invalid_parents:
        text = f"{parent[0]}/{parent[1]} cannot be read: {seen.invalid_parents[parent]}"
        return attempts.fail(seen, failure(Reason.DEPENDENCY_FAILED, text), now)
    match references.resolve(resource, lambda kind, name: seen.parents.get((kind, name))):
        case references.Resolved(inputs=inputs, dependency=dependency):
            return attempts.start(seen, 1, now, inputs=inputs, dependency=dependency)
        case references.Waiting(message=message, dependency=dependency):
            state = conditions.State(Phase.PENDING, conditions.WAITING_FOR_DEPENDENCY, message)
            known = dependency or seen.status.dependency
            return plan.to_status(seen, plan.with_state(seen, state, now, dependency=known, failure=None))
        case references.Broken(reason=reason, message=message, dependency=dependency):
            known = dependency or seen.status.dependency
            return attempts.fail(seen, failure(reason, message), now, dependency=known)
