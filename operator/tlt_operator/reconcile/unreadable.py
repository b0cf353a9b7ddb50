"""A spec that cannot be read: older or newer than this operator, or slipped past the CRD's rules."""

from __future__ import annotations

from datetime import datetime

from tlt_api.failures import Reason
from tlt_operator import clock, conditions
from tlt_operator.observed import Observed
from tlt_operator.reconcile import attempts
from tlt_operator.reconcile.diagnosis import failure
from tlt_operator.reconcile.plan import Event, Plan, to_status


def reconcile(seen: Observed, now: datetime) -> Plan:
    """Fails a resource that was never attempted; a run that is under way goes on, and the status says so."""
    if seen.status.attempt is None:
        return attempts.fail(seen, failure(Reason.INVALID_SPEC, seen.invalid), now)
    told = f"the run goes on, but its outcome cannot be acted upon: {seen.invalid}"
    built = conditions.stalled(
        seen.status.conditions, Reason.INVALID_SPEC, told, seen.generation, clock.to_wire(now)
    )
    update = {"conditions": built, "observed_generation": seen.generation}
    plan = to_status(seen, seen.status.model_copy(update=update))
    return Plan(
        status=plan.status, event=Event("Warning", Reason.INVALID_SPEC, told) if plan.status else None
    )
