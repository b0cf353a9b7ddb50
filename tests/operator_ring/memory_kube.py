"""Cluster in memory: all that the operator's :class:`~tlt_operator.cluster.client.Client` needs.

It keeps the API server's promises that the operator's correctness stands on: names are unique, a write with
an old resourceVersion or another uid is refused, server-side apply removes what its manager no longer sends,
owners take their Jobs along. ``kill_at`` raises :class:`KilledError` in place of the n-th write, as SIGKILL
would; ``lose_at`` does the n-th write and loses the answer, as a broken connection would.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from operator_ring.manifests import START, job_condition
from tlt_api import conditions, times
from tlt_api.resources import KINDS, Kind
from tlt_operator import controller
from tlt_operator.cluster.client import ApiError, ConflictError, NotFoundError, Owned, RefusedError
from tlt_operator.index import Index
from tlt_operator.objects import (
    ATTEMPT,
    INDEX,
    OWNER_KIND,
    OWNER_NAME,
    OWNER_UID,
    SUSPENDED_BY_US,
    WORKLOAD_OF_JOB,
)
from tlt_operator.settings import Settings
from tlt_operator.snapshot import Key

Body = dict[str, Any]


class KilledError(BaseException):
    """Death of the operator's process, instead of a write."""


def _write(method: Any) -> Any:
    """Count a write, and make it fail if its number is ``kill_at`` or ``lose_at``."""

    async def counted(self: MemoryKube, *args: Any, **named: Any) -> Any:
        self.writes += 1
        number = self.writes
        if number == self.kill_at:
            raise KilledError
        answer = await method(self, *args, **named)
        if number == self.lose_at:
            raise ApiError(0, "connection reset by peer")
        return answer

    return counted


class MemoryKube:
    """Cluster in memory, with the actions of users, the Job controller and the kubelet as methods."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.now: datetime = START
        self.resources: dict[Key, Body] = {}
        self.jobs: dict[str, Body] = {}
        self.services: dict[str, Body] = {}
        self.pods: dict[str, Body] = {}
        self.warnings: dict[str, list[Body]] = {}
        self.events: dict[str, Body] = {}
        self.transitions: set[tuple[str, str]] = set()
        """States that the operator brought resources into, as (name, message)."""
        self.created_jobs: Counter[str] = Counter()
        self._index = Index(lambda: (self.now - START).total_seconds())
        self.writes = 0
        self.reads: Counter[str] = Counter()
        self.kill_at: int | None = None
        self.kills: Iterator[int] = iter(())
        self.lose_at: int | None = None
        self.workloads: dict[str, Body] = {}
        """Workloads of Kueue, by their name, which is that of their Job."""
        self.refuse_workloads: ApiError | None = None
        self.refuse_jobs: ApiError | None = None
        self.refuse_services: ApiError | None = None
        """Refusal of Services, to read and to create, as without the right to either."""
        self.refuse_new_services: ApiError | None = None
        """Refusal of new Services alone, as by a quota or a webhook."""
        self._version = 0
        self._owned: dict[tuple[Key, str], set[str]] = {}

    @property
    def index(self) -> Index:
        """Index of an operator whose watches have reported everything, on a clock that time alone moves."""
        for key, uid in self._index.uids().items():
            if key not in self.resources:
                self._index.remove(key, uid)
        for body in self.resources.values():
            self._index.update(body)
        return self._index

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> MemoryKube:
        """Return a cluster with the objects that another one had, as JSON data."""
        cluster = cls()
        cluster.now = datetime.fromisoformat(state["now"])
        cluster._version = state["version"]
        for body in state["resources"]:
            key = Key(body["kind"], body["metadata"]["namespace"], body["metadata"]["name"])
            cluster.resources[key] = body
            for manager, fields in state["owned"][f"{key.kind}/{key.name}"].items():
                cluster._owned[key, manager] = set(fields)
        for objects, name in ((cluster.jobs, "jobs"), (cluster.pods, "pods"), (cluster.services, "services")):
            objects |= {body["metadata"]["name"]: body for body in state[name]}
        return cluster

    # --- what a user, the Job controller and the kubelet do -------------------------------------------------

    def add(self, manifest: Body) -> Key:
        """Create a resource, as by kubectl create."""
        body = _over_the_wire(manifest)
        key = Key(body["kind"], body["metadata"]["namespace"], body["metadata"]["name"])
        assert key not in self.resources
        body["metadata"] |= {"uid": f"uid-{self._next()}", "generation": 1}
        self.resources[key] = self._touch(body)
        return key

    def edit(self, key: Key, **spec: Any) -> None:
        """Change the spec, as by kubectl patch."""
        body = self.resources[key]
        body["spec"] |= spec
        body["metadata"]["generation"] += 1
        self._touch(body)

    def remove(self, key: Key) -> None:
        """Delete a resource and, as the garbage collector does, its Jobs."""
        uid = self.resources.pop(key)["metadata"]["uid"]
        for name, job in list(self.jobs.items()):
            if any(owner["uid"] == uid for owner in job["metadata"].get("ownerReferences", ())):
                self.remove_job(name)

    def remove_job(self, name: str) -> None:
        """Delete a Job with its pods and Service."""
        uid = self.jobs.pop(name)["metadata"]["uid"]
        self.workloads.pop(name, None)
        self.services = {
            service: body
            for service, body in self.services.items()
            if all(owner["uid"] != uid for owner in body["metadata"].get("ownerReferences", ()))
        }
        self.pods = {pod: body for pod, body in self.pods.items() if _job_of(body) != name}

    def run_pod(self, name: str, index: int | None = None, **status: Any) -> None:
        """Add the Job's pod (of an index); ``state`` is that of its container, by default running."""
        job = self.jobs[name]
        state = status.pop("state", {"running": {}})
        phase = status.pop("phase", "Running" if "running" in state else "Pending")
        status |= {"phase": phase, "containerStatuses": [{"name": "runner", "state": state}]}
        labels = job["spec"]["template"]["metadata"]["labels"]
        pod = name if index is None else f"{name}-{index}"
        labels = labels | ({} if index is None else {INDEX: str(index)})
        metadata = {"name": f"{pod}-abcde", "namespace": "default", "uid": f"pod-{pod}", "labels": labels}
        metadata |= {"creationTimestamp": times.to_wire(self.now), "resourceVersion": str(self._next())}
        self.pods[f"{pod}-abcde"] = {"metadata": metadata, "status": status}
        ready = [p for p in self.pods.values() if _job_of(p) == name and p["status"]["phase"] == "Running"]
        job["status"] = {"ready": len(ready), "startTime": times.to_wire(self.now)}
        self._touch(job)

    def finish(self, name: str, state: Body, reason: str = "BackoffLimitExceeded", **status: Any) -> None:
        """End the Job's pod, and the Job with it."""
        good = state["terminated"]["exitCode"] == 0
        self.run_pod(name, state=state, phase="Succeeded" if good else "Failed", **status)
        condition = job_condition("Complete") if good else job_condition("Failed", reason, "told by the Job")
        done = {"completionTime": times.to_wire(self.now)} if good else {}
        self.jobs[name]["status"] |= {"ready": 0, "conditions": [condition], **done}
        self._touch(self.jobs[name])

    def set_suspended(self, name: str, suspend: bool) -> None:
        """Set a Job's spec.suspend; as the Job controller does, stop its pods, which write a checkpoint."""
        job = self.jobs[name]
        job["spec"]["suspend"] = suspend
        job["status"] = {"ready": 0}
        if suspend:
            job["status"]["conditions"] = [job_condition("Suspended", "JobSuspended")]
            for pod in self.pods.values():
                if _job_of(pod) == name:
                    pod["metadata"]["deletionTimestamp"] = times.to_wire(self.now)
        self._touch(job)

    def add_workload(self, name: str) -> None:
        """Create the Workload of a Job, as Kueue does."""
        uid = self.jobs[name]["metadata"]["uid"]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": True}
        metadata = {"name": name, "uid": f"uid-{self._next()}", "labels": {WORKLOAD_OF_JOB: uid}}
        body = {"metadata": metadata | {"ownerReferences": [owner]}, "spec": {"active": True}}
        self.workloads[name] = self._touch({"apiVersion": "kueue.x-k8s.io/v1beta2", **body})

    def report(self, key: Key, **fields: Any) -> None:
        """Apply fields of the status as the runner."""
        self._apply(key, fields, "tlt-runner")

    def status(self, key: Key) -> Body:
        """Return the status of a resource."""
        return self.resources[key].get("status", {})

    async def settle(self, *keys: Key) -> float | None:
        """Reconcile until nothing is written any more; return the shortest delay until the next time."""
        for _ in range(50):
            before, delays = self.writes, []
            for key in keys or list(self.resources):
                delays.append(await self._look(key))
            if self.writes == before:
                return min((delay for delay in delays if delay is not None), default=None)
        raise AssertionError("does not come to rest")

    async def settle_refused(self, key: Key) -> float | None:
        """Reconcile a few times while the API server refuses the Job; return the last delay."""
        delay = None
        for _ in range(3):
            delay = await self._look(key)
        return delay

    async def _look(self, key: Key) -> float | None:
        try:
            look = await controller.reconcile_once(self, key, self.settings, self.index, lambda: self.now)
        # As the control loop does.
        except ApiError as error:
            if not isinstance(error, (ConflictError, NotFoundError)):
                self._index.reports.interrupted(key)
            raise
        return look.requeue_after

    async def watch_for(self, seconds: float) -> float | None:
        """Let time pass, with a look at everything each half minute; return the delay after the last one."""
        delay = None
        while seconds > 0:
            self.wait(min(seconds, 30))
            seconds -= 30
            delay = await self.settle()
        return delay

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    # --- Client ---------------------------------------------------------------------------------------------

    async def get_resource(self, kind: Kind, namespace: str, name: str, live: bool = False) -> Body | None:
        self.reads["resource"] += 1
        return _over_the_wire(self.resources.get(Key(kind.name, namespace, name)))

    async def is_current(self, kind: Kind, namespace: str, name: str, version: str) -> bool:
        self.reads["version"] += 1
        body = self.resources.get(Key(kind.name, namespace, name))
        return body is not None and body["metadata"]["resourceVersion"] == version

    async def get_job(self, namespace: str, name: str, live: bool = False) -> Body | None:
        self.reads["job"] += 1
        return _over_the_wire(self.jobs.get(name))

    async def list_jobs(self, namespace: str, owner_uid: str) -> list[Body]:
        return [_over_the_wire(job) for job in self.jobs.values() if _owner_label(job) == owner_uid]

    async def list_pods(
        self, namespace: str, owner_kind: str, owner_name: str, live: bool = False
    ) -> list[Body]:
        self.reads["pods"] += 1
        wanted = {OWNER_KIND: owner_kind, OWNER_NAME: owner_name}
        return [_over_the_wire(pod) for pod in self.pods.values() if wanted.items() <= _labels(pod).items()]

    async def list_warnings(self, namespace: str, uid: str) -> list[Body]:
        return self.warnings.get(uid, [])

    async def list_all_warnings(self, namespace: str) -> AsyncIterator[Body]:
        self.reads["warnings"] += 1
        for uid, items in self.warnings.items():
            for item in items:
                yield _over_the_wire(item) | {"involvedObject": {"uid": uid}}

    async def list_owned(self, what: Owned, namespace: str | None) -> AsyncIterator[tuple[list[Body], str]]:
        objects = self.jobs if what == "jobs" else self.pods
        yield [_over_the_wire(body) for body in objects.values()], str(self._version)

    async def watch_owned(self, what: Owned, namespace: str | None, version: str) -> AsyncIterator[Body]:
        objects = self.jobs if what == "jobs" else self.pods
        reported = {name: _over_the_wire(body) for name, body in objects.items()}
        while True:
            await asyncio.sleep(0.005)
            for name in list(reported):
                if name not in objects:
                    yield {"type": "DELETED", "object": reported.pop(name)}
            for name, body in list(objects.items()):
                if reported.get(name) != body:
                    reported[name] = _over_the_wire(body)
                    yield {"type": "MODIFIED", "object": _over_the_wire(body)}

    async def list_metadata(self, kind: Kind, namespace: str | None) -> AsyncIterator[Body]:
        for key, body in self.resources.items():
            if key.kind == kind.name and namespace in (None, key.namespace):
                yield body["metadata"]

    @_write
    async def patch_status(
        self, kind: Kind, namespace: str, name: str, uid: str, status: Mapping[str, Any], version: str
    ) -> Body:
        key, body = self._guarded(kind, namespace, name, uid, version)
        self._check_schema(kind, _merged({}, status))
        current = body.setdefault("status", {})
        before, text = _state(current), json.dumps(current)
        body["status"] = current = _over_the_wire(_merged(current, status))
        if json.dumps(current) != text:
            self._touch(body)
        self._note_transition(name, before, _state(current))
        return _over_the_wire(body)

    @_write
    async def apply_status(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        uid: str,
        status: Mapping[str, Any],
        manager: str,
        version: str,
    ) -> Body:
        key, body = self._guarded(kind, namespace, name, uid, version)
        self._check_schema(kind, status)
        before = _state(body.get("status", {}))
        self._apply(key, status, manager)
        self._note_transition(name, before, _state(body["status"]))
        return _over_the_wire(body)

    @_write
    async def create_job(self, job: Mapping[str, Any]) -> Body:
        name = job["metadata"]["name"]
        if name in self.jobs:
            raise ConflictError(409, f"job {name} exists")
        if self.refuse_jobs:
            raise self.refuse_jobs
        body = _over_the_wire(dict(job))
        body["metadata"] |= {"uid": f"uid-{self._next()}", "creationTimestamp": times.to_wire(self.now)}
        self.created_jobs[name] += 1
        self.jobs[name] = self._touch(body)
        return _over_the_wire(body)

    async def get_service(self, namespace: str, name: str) -> Body | None:
        if self.refuse_services:
            raise self.refuse_services
        return _over_the_wire(self.services.get(name))

    @_write
    async def create_service(self, service: Mapping[str, Any]) -> None:
        name = service["metadata"]["name"]
        if name in self.services:
            raise ConflictError(409, f"service {name} exists")
        if refused := self.refuse_services or self.refuse_new_services:
            raise refused
        self.services[name] = _over_the_wire(dict(service))

    @_write
    async def delete_job(self, namespace: str, name: str, uid: str, version: str) -> None:
        job = self.jobs.get(name)
        if job is None:
            raise NotFoundError(404, f"job {name} not found")
        if (job["metadata"]["uid"], job["metadata"]["resourceVersion"]) != (uid, version):
            raise ConflictError(409, f"job {name} has been modified")
        job["metadata"]["deletionTimestamp"] = times.to_wire(self.now)
        self._touch(job)
        # A foreground deletion: the Job stays until its pods are gone.
        if not await self.list_pods(namespace, _labels(job)[OWNER_KIND], _labels(job)[OWNER_NAME]):
            del self.jobs[name]

    async def list_workloads(self, namespace: str, job_uid: str) -> list[Body]:
        self.reads["workloads"] += 1
        if self.refuse_workloads:
            raise self.refuse_workloads
        return [
            _over_the_wire(body)
            for body in self.workloads.values()
            if body["metadata"]["labels"][WORKLOAD_OF_JOB] == job_uid
        ]

    @_write
    async def set_workload_active(
        self, api_version: str, namespace: str, name: str, uid: str, version: str, active: bool
    ) -> None:
        metadata = self.workloads[name]["metadata"]
        if (metadata["uid"], metadata["resourceVersion"]) != (uid, version):
            raise ConflictError(409, f"workload {name} has been modified")
        self.workloads[name]["spec"]["active"] = active
        self._touch(self.workloads[name])

    @_write
    async def suspend_job(
        self, namespace: str, name: str, uid: str, version: str, suspend: bool, *, note_only: bool = False
    ) -> Body:
        job = self.jobs.get(name)
        if job is None:
            raise NotFoundError(404, f"job {name} not found")
        if (job["metadata"]["uid"], job["metadata"]["resourceVersion"]) != (uid, version):
            raise ConflictError(409, f"job {name} has been modified")
        annotations = job["metadata"].setdefault("annotations", {})
        annotations.pop(SUSPENDED_BY_US, None)
        if suspend:
            annotations[SUSPENDED_BY_US] = "true"
        if note_only:
            self._touch(job)
        else:
            self.set_suspended(name, suspend)
        return _over_the_wire(job)

    @_write
    async def set_job_ttl(self, namespace: str, name: str, uid: str, seconds: int) -> Body:
        if name not in self.jobs:
            raise NotFoundError(404, f"job {name} not found")
        if self.jobs[name]["metadata"]["uid"] != uid:
            raise ConflictError(409, f"job {name} has another uid")
        self.jobs[name]["spec"]["ttlSecondsAfterFinished"] = seconds
        return _over_the_wire(self._touch(self.jobs[name]))

    @_write
    async def create_event(self, event: Mapping[str, Any]) -> None:
        name = event["metadata"]["name"]
        if name in self.events:
            raise ConflictError(409, f"event {name} exists")
        self.events[name] = dict(event)

    # --- insides --------------------------------------------------------------------------------------------

    def _guarded(self, kind: Kind, namespace: str, name: str, uid: str, version: str) -> tuple[Key, Body]:
        """Return a resource if it is the one, and the version, that a write is meant for."""
        key = Key(kind.name, namespace, name)
        body = self.resources.get(key)
        if body is None:
            raise NotFoundError(404, f"{key} not found")
        if (body["metadata"]["uid"], body["metadata"]["resourceVersion"]) != (uid, version):
            raise ConflictError(409, f"{key} has been modified")
        return key, body

    def _check_schema(self, kind: Kind, status: Mapping[str, Any]) -> None:
        schema = set(KINDS[kind.name].status.model_validate(status).to_wire())
        assert schema >= set(status), f"not in the schema of {kind.name}: {set(status) - schema}"

    def _note_transition(self, name: str, before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
        if after[:3] != before[:3] and after[2] not in ("", conditions.WAITING_FOR_POD, conditions.RUNNING):
            self.transitions.add((name, after[3]))

    def _apply(self, key: Key, status: Mapping[str, Any], manager: str) -> None:
        body = self.resources[key]
        current = body.setdefault("status", {})
        before = _over_the_wire(current)
        # Server-side apply: fields that this manager sent before and no longer sends are removed.
        for field in self._owned.get((key, manager), set()) - set(status):
            current.pop(field, None)
        current |= _over_the_wire(dict(status))
        self._owned[key, manager] = set(status)
        # A write without a change makes no new version.
        if current != before:
            self._touch(body)

    def _touch(self, body: Body) -> Body:
        body["metadata"]["resourceVersion"] = str(self._next())
        return body

    def _next(self) -> int:
        self._version += 1
        return self._version


def refusal(code: int, message: str) -> RefusedError:
    """Return the API server's answer to a Job that it refuses."""
    return RefusedError(code, message)


def _state(status: Body) -> tuple[Any, Any, str, str]:
    """Return phase, attempt, and the reason and message of Ready."""
    ready = next((item for item in status.get("conditions", ()) if item["type"] == "Ready"), {})
    return status.get("phase"), status.get("attempt"), ready.get("reason", ""), ready.get("message", "")


def _merged(stored: Any, patch: Any) -> Any:
    """Return the result of a merge patch, as RFC 7386 defines it: objects are merged at every level."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(stored) if isinstance(stored, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), value)
    return result


def _labels(body: Body) -> dict[str, str]:
    return dict(body["metadata"].get("labels", {}))


def _owner_label(body: Body) -> str:
    return _labels(body).get(OWNER_UID, "")


def _job_of(pod: Body) -> str:
    labels = pod["metadata"]["labels"]
    return KINDS[labels[OWNER_KIND]].job_name(labels[OWNER_NAME], int(labels[ATTEMPT]))


def _over_the_wire(value: Any) -> Any:
    """Return a copy of JSON values, as a client gets from an API server: a fifth of the time of deepcopy."""
    return json.loads(json.dumps(value))
