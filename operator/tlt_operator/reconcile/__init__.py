"""The decision: what is to be done for a resource, given what was seen of it. Pure; one module per policy.

deleting      nothing: owner references clean up
ended         its phase stays; cleanup
unreadable    unreadable
suspended     suspend
new           references
attempted     attempts (with retry, diagnosis, obstacles, report)
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from tlt_operator.conditions import TERMINAL
from tlt_operator.observed import Observed
from tlt_operator.reconcile import attempts, cleanup, references, suspend, unreadable
from tlt_operator.reconcile.plan import Plan
from tlt_operator.settings import Settings

__all__ = ["Plan", "reconcile"]


def reconcile(seen: Observed, now: datetime, settings: Settings) -> Plan:
    """The plan for a resource."""
    if seen.deleting:
        return Plan()
    plan = _decide(seen, now, settings)
    return replace(plan, ttl=cleanup.ttl(seen, plan.status or seen.status))


def _decide(seen: Observed, now: datetime, settings: Settings) -> Plan:
    if seen.status.phase in TERMINAL:
        return cleanup.settled(seen, now)
    if seen.resource is None:
        return unreadable.reconcile(seen, now)
    if seen.resource.spec.suspend:
        return suspend.reconcile(seen, seen.resource, now)
    if seen.status.attempt is None:
        return references.reconcile(seen, seen.resource, now)
    return attempts.reconcile(seen, seen.resource, now, settings)
