"""Does what a plan says, in its order; each step can be done twice without harm.

The order is what makes a crash between any two writes harmless: results before the phase that says they are
there, the attempt before its Job, the outcome before the Job may vanish. The Event comes before the
status that it tells of: its name follows from the transition, so that after a crash it is not told twice.
"""

from __future__ import annotations

import contextlib
import logging
from datetime import datetime

from tlt_api.status import OPERATOR_FIELD_MANAGER, RUNNER_FIELD_MANAGER
from tlt_operator import metrics
from tlt_operator.build import event as event_builder
from tlt_operator.kube import ApiError, ConflictError, Kube, NotFoundError
from tlt_operator.observed import Observed
from tlt_operator.reconcile.plan import Plan, operator_fields

log = logging.getLogger(__name__)


async def apply(kube: Kube, seen: Observed, plan: Plan, now: datetime) -> str:
    """Do a plan; the resourceVersion of the resource afterwards.

    Raises:
        ConflictError: What was seen is no longer so; look again.
        RefusedError: The Job or the Service was refused.
        ApiError: The API server could not be asked.
    """
    version = await _statuses(kube, seen, plan, now)
    if plan.create is not None:
        with metrics.write("job"):
            await kube.create_job(plan.create)
        metrics.ATTEMPTS.labels(seen.kind.name).inc()
        log.info("%s/%s: created Job %s", seen.namespace, seen.name, plan.create["metadata"]["name"])
    if plan.service is not None:
        with metrics.write("service"):
            await kube.create_service(plan.service)
        log.info("%s/%s: created Service %s", seen.namespace, seen.name, plan.service["metadata"]["name"])
    if plan.delete is not None:
        job = plan.delete
        with metrics.write("delete"), contextlib.suppress(NotFoundError):
            await kube.delete_job(seen.namespace, job.name, job.uid, job.resource_version)
        log.info("%s/%s: deletes Job %s", seen.namespace, seen.name, job.name)
    for name, seconds in plan.ttl:
        with metrics.write("ttl"), contextlib.suppress(NotFoundError):
            await kube.set_job_ttl(seen.namespace, name, seconds)
    return version


async def _statuses(kube: Kube, seen: Observed, plan: Plan, now: datetime) -> str:
    version = seen.resource_version
    where = (seen.kind, seen.namespace, seen.name, seen.uid)
    if plan.report is not None:
        with metrics.write("report"):
            version = await kube.apply_status(*where, plan.report, RUNNER_FIELD_MANAGER, version)
    await _tell(kube, seen, plan, now)
    if plan.status is not None:
        fields = operator_fields(plan.status)
        with metrics.write("status"):
            version = await kube.apply_status(*where, fields, OPERATOR_FIELD_MANAGER, version)
        before, failure = seen.status.history or (), plan.status.failure
        if failure and (
            len(plan.status.history or ()) > len(before) or plan.status.phase != seen.status.phase
        ):
            metrics.FAILURES.labels(seen.kind.name, failure.reason).inc()
        if plan.status.phase != seen.status.phase:
            log.info("%s/%s: %s -> %s", seen.namespace, seen.name, seen.status.phase, plan.status.phase)
    return version


async def _tell(kube: Kube, seen: Observed, plan: Plan, now: datetime) -> None:
    """An Event that cannot be posted is counted and logged, and changes nothing."""
    event = event_builder.build(seen, plan, now)
    if event is None:
        return
    try:
        with metrics.write("event"):
            await kube.create_event(event)
    except ConflictError:
        log.debug("%s/%s: event was told before: %s", seen.namespace, seen.name, event["reason"])
    except ApiError as error:
        log.warning("%s/%s: event %s is lost: %s", seen.namespace, seen.name, event["reason"], error)
