"""Snapshot of one resource and all that belongs to it.

Reads are answered from the cache (:mod:`tlt_operator.cluster.cache`). What a decision that cannot be taken
back depends on is read live: the Job that is to be declared lost, and the pods of a Job that has ended before
they are known to have. The version of the resource is checked before a Job is created
(:mod:`tlt_operator.controller`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from tlt_api import references
from tlt_api.conditions import TERMINAL
from tlt_api.references import model_source, parent_key
from tlt_api.resources import KINDS, InvalidResourceError, Kind, Resource, parse
from tlt_api.runspec import RUN_SPEC_ANNOTATION
from tlt_api.status import Dependency, Inputs, JobStatus, Phase
from tlt_api.times import from_wire, to_wire
from tlt_operator.cluster.client import Client, Json, RefusedError
from tlt_operator.objects import ATTEMPT, INDEX, OWNER_UID, QUEUE, SUSPENDED_BY_US
from tlt_operator.objects.job import CONTAINER
from tlt_operator.objects.service import service_name
from tlt_operator.snapshot import (
    ConditionState,
    ContainerState,
    EventState,
    JobState,
    Key,
    PodState,
    Refusal,
    ServiceState,
    Snapshot,
    WorkloadState,
)

_LONGEST_CHAIN = 32
"""Limit of references that are followed up; a guard against endless requests for one resource."""
_EVENTS_AFTER_SECONDS = 10
"""Events are read for a pod that does not start within this time."""


async def observe(client: Client, key: Key, now: datetime) -> Snapshot | None:
    """Read a snapshot of a resource and all that belongs to it; None if there is no such resource."""
    kind = KINDS[key.kind]
    body = await client.get_resource(kind, key.namespace, key.name)
    if body is None:
        return None
    metadata = body["metadata"]
    # Read first: the status names the Job to look at, and its version guards what is written.
    status = _readable_status(kind, body.get("status") or {})
    resource, invalid = _parse(body)
    parents: dict[tuple[str, str], Resource | None] = {}
    invalid_parents: dict[tuple[str, str], str] = {}
    # References are followed before the first attempt only; from then on status.inputs is what counts.
    if status.attempt is None and resource is not None:
        parents, invalid_parents = await _ancestors(client, resource)
    recorded, next_job = None, await _next_job(client, key, status)
    if next_job and next_job.owner_uid == metadata["uid"]:
        recorded, status = status, await _with_attempt_of(client, key, next_job, status, resource)
        if resource is not None and status.attempt == 1:
            status = status.model_copy(update={"dependency": _dependency(resource, parents, status)})
        next_job = None
    # The user takes up what has failed: another attempt follows.
    taken_up = resource is not None and resource.spec.retry > (status.observed_retry or 0)
    job, pods, events = await _attempt(client, key, metadata["uid"], status, now, taken_up)
    service, refusal = await _service(client, key.namespace, job)
    suspend = resource is not None and resource.spec.suspend
    workload, workload_refusal = await _workload(client, key.namespace, job, suspend)
    # One more list for each look: only a TTL needs the Jobs of earlier attempts.
    finished_jobs: tuple[JobState, ...] = ()
    if status.attempt and resource and resource.spec.run_policy.ttl_seconds_after_finished is not None:
        jobs = [job_state(item) for item in await client.list_jobs(key.namespace, metadata["uid"])]
        finished_jobs = tuple(item for item in jobs if item.finished)
    return Snapshot(
        kind=kind,
        namespace=key.namespace,
        name=key.name,
        uid=metadata["uid"],
        generation=metadata.get("generation", 1),
        resource_version=metadata.get("resourceVersion", ""),
        status=status,
        recorded=recorded,
        deleting=bool(metadata.get("deletionTimestamp")),
        labels=metadata.get("labels") or {},
        resource=resource,
        invalid=invalid,
        parents=parents,
        invalid_parents=invalid_parents,
        job=job,
        next_job=next_job,
        workload=workload,
        workload_refusal=workload_refusal,
        service=service,
        finished_jobs=finished_jobs,
        pods=pods,
        events=events,
        refusal=refusal,
    )


def _parse(body: Json) -> tuple[Resource | None, str]:
    try:
        return parse(body), ""
    # A fact for the decision, not an error: a resource that cannot be read is reported in its status.
    except InvalidResourceError as error:
        return None, str(error)


def _readable_status(kind: Kind, body: Json) -> JobStatus:
    """Return the status without the fields that cannot be read, which :func:`parse` reports."""
    try:
        return kind.status.model_validate(body)
    except ValidationError as error:
        # The rest counts: without attempt and jobUid, for example, a second Job would be made for a live run.
        unreadable = {str(item["loc"][0]) for item in error.errors() if item["loc"]}
        readable = {name: value for name, value in body.items() if name not in unreadable}
        return kind.status.model_validate(readable)


async def _next_job(client: Client, key: Key, status: JobStatus) -> JobState | None:
    """Read the Job with the name of the next attempt's, if the next attempt is due."""
    # A failed resource may be taken up again by its user, whether or not the end of an attempt was recorded.
    goes_on = status.attempt is not None and status.recorded_end is None and status.phase != Phase.FAILED
    if status.phase == Phase.SUCCEEDED or goes_on:
        return None
    body = await client.get_job(key.namespace, KINDS[key.kind].job_name(key.name, (status.attempt or 0) + 1))
    return job_state(body) if body else None


async def _with_attempt_of(
    client: Client, key: Key, job: JobState, status: JobStatus, resource: Resource | None
) -> JobStatus:
    """Return a status with the attempt whose Job exists and is not recorded.

    A Job is created before the status names it. A status that waits for the next change, and an operator that
    died in between, left a Job of the next attempt's name that belongs to this resource: the run goes on with
    it.
    """
    attempt = (status.attempt or 0) + 1
    changes: dict[str, Any] = {"attempt": attempt, "job_name": job.name, "job_uid": None}
    if attempt == 1:
        source = references.resolve(resource, lambda kind, name: None) if resource is not None else None
        # Without a reference to another resource, the files follow from the spec.
        if isinstance(source, references.Resolved):
            inputs: Inputs | None = source.inputs
        # The files that the Job was given count, not those that a reference would resolve to now. They stand
        # in its pod template, which the cache does not keep.
        else:
            inputs = _inputs(await client.get_job(key.namespace, job.name, live=True))
        changes |= {"inputs": inputs, "failure": None, "completion_time": None}
    return status.model_copy(update=changes)


def _dependency(
    resource: Resource, parents: Mapping[tuple[str, str], Resource | None], status: JobStatus
) -> Dependency | None:
    """Return the resource that the first attempt's inputs come from; what is recorded if it has changed."""
    source = references.resolve(resource, lambda kind, name: parents.get((kind, name)))
    same = isinstance(source, references.Resolved) and source.inputs == (status.inputs or Inputs())
    return source.dependency if same else status.dependency


def _inputs(job: Json | None) -> Inputs | None:
    """Return the inputs in a Job's RunSpec; None if it has none."""
    metadata = ((job or {}).get("spec") or {}).get("template", {}).get("metadata") or {}
    text = (metadata.get("annotations") or {}).get(RUN_SPEC_ANNOTATION)
    inputs = json.loads(text).get("inputs") if text else None
    parsed = Inputs.model_validate(inputs) if inputs else None
    return parsed if parsed and (parsed.model or parsed.records) else None


async def _ancestors(
    client: Client, resource: Resource
) -> tuple[dict[tuple[str, str], Resource | None], dict[tuple[str, str], str]]:
    """Read the resources up the chain of references, by (kind, name), and why some are invalid."""
    ancestors: dict[tuple[str, str], Resource | None] = {}
    invalid: dict[tuple[str, str], str] = {}
    current: Resource | None = resource
    while current is not None and len(ancestors) < _LONGEST_CHAIN:
        key = parent_key(model_source(current))
        # A resource that comes again closes a circle, which `references.resolve` reports.
        if key is None or key in ancestors:
            break
        body = await client.get_resource(KINDS[key[0]], resource.namespace, key[1])
        # What the parent has made is about to be recorded: it is read from the API server itself.
        if not ancestors and body and (body.get("status") or {}).get("phase") in TERMINAL:
            body = await client.get_resource(KINDS[key[0]], resource.namespace, key[1], live=True)
        # A parent that is missing or cannot be read ends the chain, and stands in it.
        current = None
        if body is not None:
            current, problem = _parse(body)
            if current is None:
                invalid[key] = problem
        ancestors[key] = current
    return ancestors, invalid


async def _attempt(
    client: Client, key: Key, uid: str, status: JobStatus, now: datetime, taken_up: bool
) -> tuple[JobState | None, tuple[PodState, ...], tuple[EventState, ...]]:
    """Read the Job of the attempt, the pods of all attempts, and warnings about a pod that does not start."""
    # Pods of a former resource of this name, before the first attempt.
    if not status.attempt:
        return None, tuple(await _pods(client, key, uid)), ()
    name = status.job_name or KINDS[key.kind].job_name(key.name, status.attempt)
    body = await client.get_job(key.namespace, name)
    # The attempt's name is enough: an announced Job may exist although the status does not have its uid yet.
    job = job_state(body) if body else None
    # Before a Job that was observed counts as deleted, the API server itself is asked.
    if job is None and status.job_uid and status.phase not in TERMINAL:
        body = await client.get_job(key.namespace, name, live=True)
        job = job_state(body) if body else None
    # Pods tell nothing new about a resource that has ended for good, and a Job whose pods are all ready.
    # Those of a Job that is being stopped may still write, and the next attempt waits for them.
    stops = job and (job.finished or job.suspended or job.deleting or status.recorded_end is not None)
    final = status.phase in TERMINAL and not taken_up
    if final or (job and job.all_ready and not stops):
        return job, (), ()
    pods = await _pods(client, key, uid)
    # The Job's end may arrive before that of its pods, whose exit codes and reports count.
    is_news = job and job.finished and status.recorded_end is None
    if is_news and not _all_ended(pods, status.attempt):
        pods = await _pods(client, key, uid, live=True)
    return job, pods, await _warnings(client, key, status, job, pods, now)


async def _pods(client: Client, key: Key, uid: str, live: bool = False) -> tuple[PodState, ...]:
    """Read the pods of all attempts, oldest first."""
    # By the owner's name, not its uid: pods of a deleted resource of this name may still write.
    bodies = await client.list_pods(key.namespace, key.kind, key.name, live)
    pods = [pod_state(body, uid) for body in bodies]
    # Names break ties, so that two looks at the same pods decide alike.
    return tuple(sorted(pods, key=lambda pod: (to_wire(pod.created) if pod.created else "", pod.name)))


def _all_ended(pods: Sequence[PodState], attempt: int) -> bool:
    """Tell whether pods of an attempt are known, and all of them have ended."""
    attempt_pods = [pod for pod in pods if pod.attempt == attempt]
    return bool(attempt_pods) and all(pod.ended for pod in attempt_pods)


async def _warnings(
    client: Client,
    key: Key,
    status: JobStatus,
    job: JobState | None,
    pods: tuple[PodState, ...],
    now: datetime,
) -> tuple[EventState, ...]:
    """Read the warnings about an attempt that does not start, if Job and pod themselves do not say why."""
    if job is None or job.finished or job.deleting or job.suspended or job.created is None:
        return ()
    # A clock that is behind does not tell: they are read, for as long as it is.
    if 0 <= (now - job.created).total_seconds() < _EVENTS_AFTER_SECONDS:
        return ()
    attempt_pods = [pod for pod in pods if pod.attempt == status.attempt]
    # No pod was created: the Job's events say why (a quota, a webhook).
    if not attempt_pods:
        return _events(await client.list_warnings(key.namespace, job.uid))
    # Of several pods the newest that waits: a started one keeps no attempt from starting.
    pod = next((pod for pod in reversed(attempt_pods) if pod.phase == "Pending"), attempt_pods[-1])
    scheduled = pod.conditions.get("PodScheduled")
    # An unscheduled pod says why in its condition PodScheduled.
    if pod.phase != "Pending" or not scheduled or not scheduled.true:
        return ()
    # Any other reason than these two names the problem (ErrImagePull, for example).
    if pod.container and pod.container.waiting_reason not in ("", "ContainerCreating", "PodInitializing"):
        return ()
    return _events(await client.list_warnings(key.namespace, pod.uid))


def _events(items: Any) -> tuple[EventState, ...]:
    def when(item: Json) -> str:
        # Events of the newer API (events.k8s.io) have eventTime only.
        return str(item.get("lastTimestamp") or item.get("eventTime") or "")

    return tuple(
        EventState(item.get("reason") or "", item.get("message") or "") for item in sorted(items, key=when)
    )


async def _service(
    client: Client, namespace: str, job: JobState | None
) -> tuple[ServiceState | None, Refusal | None]:
    """Read the Service of an Indexed Job that runs, or the refusal to read it.

    A refusal is part of the snapshot, not an error: suspension, for example, must go on without the right
    to read Services.
    """
    # Before there is a Job, the Service has no owner; once the Job has ended, nobody needs it.
    if job is None or not job.indexed or job.finished or job.deleting:
        return None, None
    try:
        body = await client.get_service(namespace, service_name(job.name))
    except RefusedError as error:
        return None, Refusal(error.code, error.message)
    return ServiceState(body["metadata"]["name"], _controller(body["metadata"])) if body else None, None


async def _workload(
    client: Client, namespace: str, job: JobState | None, suspend: bool
) -> tuple[WorkloadState | None, Refusal | None]:
    """Read the Workload of a Job that waits in a queue of Kueue, or the refusal to read it.

    Args:
        client: The cluster.
        namespace: Namespace of the Job.
        job: Job of the attempt.
        suspend: True if the user suspends the resource.
    """
    if job is None or not job.queue or job.finished or job.deleting:
        return None, None
    # Not watched, and of no interest to a run that goes on: many clusters have no Kueue to be asked.
    if not suspend and not job.suspended_by_us:
        return None, None
    try:
        bodies = await client.list_workloads(namespace, job.uid)
    except RefusedError as error:
        return None, Refusal(error.code, error.message)
    # The label can be copied; the owner reference decides.
    body = next((item for item in bodies if _controller(item["metadata"]) == job.uid), None)
    if body is None:
        return None, None
    metadata = body["metadata"]
    state = WorkloadState(
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        api_version=body["apiVersion"],
        # Kueue's own default.
        active=(body.get("spec") or {}).get("active", True),
    )
    return state, None


def job_state(body: Json) -> JobState:
    """Trim a batch Job to its state."""
    # `or` rather than a default: the API server may send null for an empty field.
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    return JobState(
        name=metadata["name"],
        uid=metadata.get("uid") or "",
        resource_version=metadata.get("resourceVersion") or "",
        owner_uid=_controller(metadata),
        created=from_wire(metadata.get("creationTimestamp")),
        start_time=from_wire(status.get("startTime")),
        completion_time=from_wire(status.get("completionTime")),
        conditions=_conditions(status),
        ready=status.get("ready") or 0,
        indexed=spec.get("completionMode") == "Indexed",
        # Kubernetes' own default.
        parallelism=spec.get("parallelism", 1),
        deleting=bool(metadata.get("deletionTimestamp")),
        suspended=bool(spec.get("suspend")),
        suspended_by_us=SUSPENDED_BY_US in (metadata.get("annotations") or {}),
        queue=(metadata.get("labels") or {}).get(QUEUE) or "",
        ttl_seconds=spec.get("ttlSecondsAfterFinished"),
    )


def _controller(metadata: Json) -> str:
    """Return the uid of the controller, or an empty text if there is none."""
    owners = [ref["uid"] for ref in metadata.get("ownerReferences") or () if ref.get("controller")]
    return owners[0] if owners else ""


def pod_state(body: Json, owner_uid: str) -> PodState:
    """Trim a pod to its state. The pod of a former resource of the same name counts as one of attempt 0."""
    metadata, status = body["metadata"], body.get("status") or {}
    containers = status.get("containerStatuses") or ()
    # A webhook may have added containers (a service mesh, for example): only ours counts.
    runner = next((item for item in containers if item.get("name") == CONTAINER), None)
    pod_labels = metadata.get("labels") or {}
    attempt = (pod_labels.get(ATTEMPT) or "0") if pod_labels.get(OWNER_UID) == owner_uid else "0"
    # Before Kubernetes 1.28 the index is an annotation only.
    index = pod_labels.get(INDEX) or (metadata.get("annotations") or {}).get(INDEX) or ""
    return PodState(
        name=metadata["name"],
        uid=metadata.get("uid") or "",
        attempt=int(attempt) if attempt.isdigit() else 0,
        index=int(index) if index.isdigit() else None,
        phase=status.get("phase") or "Pending",
        reason=status.get("reason") or "",
        message=status.get("message") or "",
        node=(body.get("spec") or {}).get("nodeName") or "",
        created=from_wire(metadata.get("creationTimestamp")),
        deleting=bool(metadata.get("deletionTimestamp")),
        deletion_due=from_wire(metadata.get("deletionTimestamp")),
        # A kubelet deletes without a grace period too, once the pod's phase says that it has ended.
        forced=bool(metadata.get("deletionTimestamp")) and metadata.get("deletionGracePeriodSeconds") == 0,
        conditions=_conditions(status),
        container=_container(runner) if runner else None,
    )


def _conditions(status: Json) -> Mapping[str, ConditionState]:
    return {
        item["type"]: ConditionState(
            true=item["status"] == "True",
            reason=item.get("reason") or "",
            message=item.get("message") or "",
            since=from_wire(item.get("lastTransitionTime")),
        )
        # Unknown says nothing that a decision could be based on.
        for item in status.get("conditions") or ()
        if item.get("status") in ("True", "False")
    }


def _container(status: Json) -> ContainerState:
    # Not lastState: with restartPolicy Never, a container starts once.
    state = status.get("state") or {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated")
    return ContainerState(
        waiting_reason=waiting.get("reason") or "",
        waiting_message=waiting.get("message") or "",
        running="running" in state,
        exit_code=ended.get("exitCode") if ended else None,
        reason=(ended.get("reason") if ended else "") or "",
        message=(ended.get("message") if ended else "") or "",
        finished=from_wire(ended.get("finishedAt")) if ended else None,
    )
