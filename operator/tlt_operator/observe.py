"""Looks at the cluster for one resource, always live: a stale read must not make a second Job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from tlt_api.references import model_source, parent_key
from tlt_api.resources import KINDS, InvalidResourceError, Kind, Resource, parse
from tlt_api.status import JobStatus
from tlt_operator import clock
from tlt_operator.build.job import ATTEMPT, OWNER_UID
from tlt_operator.build.pod import CONTAINER
from tlt_operator.build.workers import INDEX_LABEL, service_name
from tlt_operator.conditions import TERMINAL
from tlt_operator.kube import Json, Kube, RefusedError
from tlt_operator.observed import (
    ConditionState,
    ContainerState,
    EventState,
    JobState,
    Observed,
    PodState,
    Refusal,
    ServiceState,
)

_LONGEST_CHAIN = 32
_PODS_AFTER_SECONDS = 3
_EVENTS_AFTER_SECONDS = 10
"""A pod that does not start within this time is asked why."""


@dataclass(frozen=True)
class Key:
    """Which resource."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"


async def observe(kube: Kube, key: Key, now: datetime) -> Observed | None:
    """What belongs to a resource; None where there is no such resource."""
    kind = KINDS[key.kind]
    body = await kube.get_resource(kind, key.namespace, key.name)
    if body is None:
        return None
    status = _readable_status(kind, body.get("status") or {})
    resource, invalid = _parse(body)
    parents: dict[tuple[str, str], Resource | None] = {}
    invalid_parents: dict[tuple[str, str], str] = {}
    if status.attempt is None and resource is not None:
        parents, invalid_parents = await _ancestors(kube, resource)
    metadata = body["metadata"]
    job, pods, events = await _attempt(kube, key, metadata["uid"], status, now)
    service, refusal = await _service(kube, key.namespace, job)
    finished: tuple[JobState, ...] = ()
    if status.attempt and resource and resource.spec.run_policy.ttl_seconds_after_finished is not None:
        jobs = [job_state(item) for item in await kube.list_jobs(key.namespace, metadata["uid"])]
        finished = tuple(item for item in jobs if item.finished)
    return Observed(
        kind=kind,
        namespace=key.namespace,
        name=key.name,
        uid=metadata["uid"],
        generation=metadata.get("generation", 1),
        resource_version=metadata.get("resourceVersion", ""),
        status=status,
        deleting=bool(metadata.get("deletionTimestamp")),
        labels=metadata.get("labels") or {},
        resource=resource,
        invalid=invalid,
        parents=parents,
        invalid_parents=invalid_parents,
        job=job,
        service=service,
        finished_jobs=finished,
        pods=pods,
        events=events,
        refusal=refusal,
    )


def _parse(body: Json) -> tuple[Resource | None, str]:
    try:
        return parse(body), ""
    except InvalidResourceError as error:
        return None, str(error)


def _readable_status(kind: Kind, body: Json) -> JobStatus:
    """The status without the fields that cannot be read; :func:`parse` tells of those."""
    try:
        return kind.status.model_validate(body)
    except ValidationError as error:
        bad = {str(item["loc"][0]) for item in error.errors() if item["loc"]}
        return kind.status.model_validate({name: value for name, value in body.items() if name not in bad})


async def _ancestors(
    kube: Kube, resource: Resource
) -> tuple[dict[tuple[str, str], Resource | None], dict[tuple[str, str], str]]:
    """The resources up the chain of references, by (kind, name)."""
    found: dict[tuple[str, str], Resource | None] = {}
    invalid: dict[tuple[str, str], str] = {}
    current: Resource | None = resource
    while current is not None and len(found) < _LONGEST_CHAIN:
        key = parent_key(model_source(current))
        if key is None or key in found:
            break
        body = await kube.get_resource(KINDS[key[0]], resource.namespace, key[1])
        current = None
        if body is not None:
            current, why = _parse(body)
            if current is None:
                invalid[key] = why
        found[key] = current
    return found, invalid


async def _attempt(
    kube: Kube, key: Key, uid: str, status: JobStatus, now: datetime
) -> tuple[JobState | None, tuple[PodState, ...], tuple[EventState, ...]]:
    if not status.attempt:
        return None, (), ()
    kind: Kind = KINDS[key.kind]
    name = status.job_name or f"{key.name}-{kind.command}-{status.attempt}"
    body = await kube.get_job(key.namespace, name)
    job = job_state(body) if body else None
    if status.phase in TERMINAL or (job and not job.finished and (job.all_ready or _is_new(job, now))):
        return job, (), ()
    listed = [pod_state(item, uid) for item in await kube.list_pods(key.namespace, key.kind, key.name)]
    pods = tuple(
        sorted(listed, key=lambda pod: (clock.to_wire(pod.created) if pod.created else "", pod.name))
    )
    return job, pods, await _why_not_started(kube, key, status, job, pods, now)


async def _service(
    kube: Kube, namespace: str, job: JobState | None
) -> tuple[ServiceState | None, Refusal | None]:
    """The Job's Service. To be refused it is something seen, and must not keep from the rest (suspension)."""
    if job is None or not job.indexed or job.finished or job.deleting:
        return None, None
    try:
        body = await kube.get_service(namespace, service_name(job.name))
    except RefusedError as error:
        return None, Refusal(error.code, error.message)
    return ServiceState(body["metadata"]["name"], _controller(body["metadata"])) if body else None, None


def _controller(metadata: Json) -> str:
    owners = [ref["uid"] for ref in metadata.get("ownerReferences") or () if ref.get("controller")]
    return owners[0] if owners else ""


def _is_new(job: JobState, now: datetime) -> bool:
    """Whether its pod cannot be there yet, or not have anything to say."""
    return job.created is not None and (now - job.created).total_seconds() < _PODS_AFTER_SECONDS


async def _why_not_started(
    kube: Kube, key: Key, status: JobStatus, job: JobState | None, pods: tuple[PodState, ...], now: datetime
) -> tuple[EventState, ...]:
    if job is None or job.finished or job.deleting or job.suspended or job.created is None:
        return ()
    if (now - job.created).total_seconds() < _EVENTS_AFTER_SECONDS:
        return ()
    mine = [pod for pod in pods if pod.attempt == status.attempt]
    if not mine:
        return _events(await kube.list_warnings(key.namespace, job.uid))
    pod = next((pod for pod in reversed(mine) if pod.phase == "Pending"), mine[-1])
    scheduled = pod.conditions.get("PodScheduled")
    if pod.phase != "Pending" or not scheduled or not scheduled.true:
        return ()
    if pod.container and pod.container.waiting_reason not in ("", "ContainerCreating", "PodInitializing"):
        return ()
    return _events(await kube.list_warnings(key.namespace, pod.uid))


def _events(items: Any) -> tuple[EventState, ...]:
    def when(item: Json) -> str:
        return str(item.get("lastTimestamp") or item.get("eventTime") or "")

    return tuple(
        EventState(item.get("reason") or "", item.get("message") or "") for item in sorted(items, key=when)
    )


def job_state(body: Json) -> JobState:
    """A batch Job, trimmed."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    return JobState(
        name=metadata["name"],
        uid=metadata.get("uid") or "",
        resource_version=metadata.get("resourceVersion") or "",
        owner_uid=_controller(metadata),
        created=clock.from_wire(metadata.get("creationTimestamp")),
        start_time=clock.from_wire(status.get("startTime")),
        completion_time=clock.from_wire(status.get("completionTime")),
        conditions=_conditions(status),
        ready=status.get("ready") or 0,
        indexed=spec.get("completionMode") == "Indexed",
        parallelism=spec.get("parallelism", 1),
        deleting=bool(metadata.get("deletionTimestamp")),
        suspended=bool(spec.get("suspend")),
        ttl_seconds=spec.get("ttlSecondsAfterFinished"),
    )


def pod_state(body: Json, owner_uid: str) -> PodState:
    """A pod, trimmed. One of a former resource of this name is of attempt 0: it is waited for, not read."""
    metadata, status = body["metadata"], body.get("status") or {}
    containers = status.get("containerStatuses") or ()
    runner = next((item for item in containers if item.get("name") == CONTAINER), None)
    labels = metadata.get("labels") or {}
    attempt = (labels.get(ATTEMPT) or "0") if labels.get(OWNER_UID) == owner_uid else "0"
    index = labels.get(INDEX_LABEL) or (metadata.get("annotations") or {}).get(INDEX_LABEL) or ""
    return PodState(
        name=metadata["name"],
        uid=metadata.get("uid") or "",
        attempt=int(attempt) if attempt.isdigit() else 0,
        index=int(index) if index.isdigit() else None,
        phase=status.get("phase") or "Pending",
        reason=status.get("reason") or "",
        message=status.get("message") or "",
        node=(body.get("spec") or {}).get("nodeName") or "",
        created=clock.from_wire(metadata.get("creationTimestamp")),
        deleting=bool(metadata.get("deletionTimestamp")),
        conditions=_conditions(status),
        container=_container(runner) if runner else None,
    )


def _conditions(status: Json) -> Mapping[str, ConditionState]:
    return {
        item["type"]: ConditionState(
            true=item["status"] == "True",
            reason=item.get("reason") or "",
            message=item.get("message") or "",
            since=clock.from_wire(item.get("lastTransitionTime")),
        )
        for item in status.get("conditions") or ()
        if item.get("status") in ("True", "False")
    }


def _container(status: Json) -> ContainerState:
    state = status.get("state") or {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated")
    return ContainerState(
        waiting_reason=waiting.get("reason") or "",
        waiting_message=waiting.get("message") or "",
        running="running" in state,
        exit_code=ended.get("exitCode") if ended else None,
        reason=(ended.get("reason") if ended else "") or "",
        message=(ended.get("message") if ended else "") or "",
        finished=clock.from_wire(ended.get("finishedAt")) if ended else None,
    )
