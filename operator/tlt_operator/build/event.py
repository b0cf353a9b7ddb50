"""Events, for people. Pure: the same transition always has the same name, and so is told once."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

from tlt_api.base import API_VERSION
from tlt_operator import clock
from tlt_operator.observed import Observed
from tlt_operator.reconcile.plan import Plan

_COMPONENT = "tlt-operator"
_MESSAGE_LIMIT = 1024


def build(seen: Observed, plan: Plan, now: datetime) -> dict[str, Any] | None:
    """The Event of a plan, if it has one."""
    if plan.event is None:
        return None
    status = plan.status or seen.status
    identity = [
        seen.uid,
        seen.generation,
        status.attempt,
        status.phase,
        plan.event.reason,
        len(status.history or ()),
    ]
    digest = hashlib.sha256(repr([str(part) for part in identity]).encode()).hexdigest()[:16]
    time = clock.to_wire(now)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{seen.name}.{digest}", "namespace": seen.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": seen.kind.name,
            "name": seen.name,
            "namespace": seen.namespace,
            "uid": seen.uid,
        },
        "type": plan.event.type,
        "reason": plan.event.reason,
        "message": plan.event.message[:_MESSAGE_LIMIT],
        "source": {"component": _COMPONENT},
        "reportingComponent": _COMPONENT,
        "reportingInstance": _COMPONENT,
        "action": "Reconcile",
        "count": 1,
        "firstTimestamp": time,
        "lastTimestamp": time,
    }
