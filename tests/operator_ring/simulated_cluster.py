"""Simulated cluster: the one in memory, with controllers and a kubelet that do a step when they are told.

Its Jobs and pods live as on Kubernetes 1.35: a Job makes its pod, a pod that is stopped writes its checkpoint
before it is gone, a deleted resource's Jobs are collected some time later. Every change goes into a journal,
from which watches are served. :mod:`.simulation` runs operators against it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from operator_ring.invariants import Ledger, controller_uid
from operator_ring.manifests import BEST, START
from operator_ring.memory_kube import Body, MemoryKube
from tlt_api import times
from tlt_api.failures import by_exit_code
from tlt_api.runspec import RUN_SPEC_ANNOTATION
from tlt_operator.cluster.client import ConflictError, NotFoundError
from tlt_operator.objects import OWNER_NAME, OWNER_UID, QUEUE, SUSPENDED_BY_US
from tlt_operator.snapshot import Key

Trouble = Literal["webhook", "quota", "registry", "storage", "node", "capacity"]
TROUBLES: tuple[Trouble, ...] = ("webhook", "quota", "registry", "storage", "node", "capacity")
"""What a run needs and may be away; all of it comes back."""


@dataclass(frozen=True)
class Change:
    """Change of an object, as a watch reports it."""

    version: int
    what: str
    type: str
    body: Body


class SimulatedCluster(MemoryKube):
    """Cluster whose parts work when a test says so."""

    def __init__(self, ledger: Ledger, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        super().__init__()
        self.ledger = ledger
        self._away: dict[Trouble, float] = {}
        self.journal: list[Change] = []
        self.compacted = 0
        """Version up to which the journal is forgotten: watches from there on get 410."""
        self.news = asyncio.Event()
        self._known: dict[tuple[str, Any], Body] = {}
        self._pods = 0
        self._accounted: set[str] = set()
        self._pardoned: set[str] = set()

    @property
    def now(self) -> datetime:  # type: ignore[override]
        """The time, which the event loop keeps."""
        return START + timedelta(seconds=self._loop.time())

    @now.setter
    def now(self, value: datetime) -> None:
        pass

    def goes_away(self, trouble: Trouble, seconds: float) -> None:
        """Take something away that runs need, for some time."""
        self._away[trouble] = self._loop.time() + seconds
        if trouble == "storage":
            for pod in self.pods.values():
                if is_running(pod):
                    self.end(pod, 40)

    def is_away(self, trouble: Trouble) -> bool:
        return self._loop.time() < self._away.get(trouble, 0.0)

    # --- watches --------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Put what has changed into the journal."""
        current: dict[tuple[str, Any], Body] = {
            (what, name): body
            for what, objects in (("resources", self.resources), ("jobs", self.jobs), ("pods", self.pods))
            for name, body in objects.items()
        }
        for identity, body in self._known.items():
            after = current.get(identity)
            if after is None or after["metadata"]["uid"] != body["metadata"]["uid"]:
                gone = json.loads(json.dumps(body))
                gone["metadata"]["resourceVersion"] = str(self._next())
                self._record(identity[0], "DELETED", gone)
        for identity, body in current.items():
            before = self._known.get(identity)
            same = before is not None and before["metadata"]["uid"] == body["metadata"]["uid"]
            if before is None or not same:
                self._record(identity[0], "ADDED", body)
            elif before["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
                self._record(identity[0], "MODIFIED", body)
        self._known = {identity: json.loads(json.dumps(body)) for identity, body in current.items()}
        self.news.set()
        self.news = asyncio.Event()

    def forget_versions(self) -> None:
        """Forget all versions so far, as the API server's cache does after a restart: watches get 410."""
        self.publish()
        self.compacted = self._version

    def _record(self, what: str, type_: str, body: Body) -> None:
        if what == "resources" and type_ != "DELETED":
            self.ledger.resource_seen(json.loads(json.dumps(body)))
        version = int(body["metadata"]["resourceVersion"])
        self.journal.append(Change(version, what, type_, json.loads(json.dumps(body))))
        # Versions of one step may be out of order between the kinds; a watch goes on from the last one.
        self.journal.sort(key=lambda change: change.version)

    # --- the API server -------------------------------------------------------------------------------------

    async def create_job(self, job: Any) -> Body:
        body = await super().create_job(job)
        self.ledger.job_created(body)
        if QUEUE in body["metadata"]["labels"]:
            # Kueue's webhook: a Job waits for its admission.
            self.set_suspended(body["metadata"]["name"], True)
        return json.loads(json.dumps(self.jobs[body["metadata"]["name"]]))

    async def delete_job(self, namespace: str, name: str, uid: str, version: str) -> None:
        job = self.jobs.get(name)
        if job is None:
            raise NotFoundError(404, f"job {name} not found")
        if (job["metadata"]["uid"], job["metadata"]["resourceVersion"]) != (uid, version):
            raise ConflictError(409, f"job {name} has been modified")
        self.writes += 1
        self._delete(job)

    def set_suspended(self, name: str, suspend: bool) -> None:
        """Set a Job's spec.suspend; the Job controller does the rest in its turn."""
        self.jobs[name]["spec"]["suspend"] = suspend
        self._touch(self.jobs[name])

    # --- users ----------------------------------------------------------------------------------------------

    def remove(self, key: Key) -> None:
        """Delete a resource; its Jobs are collected later."""
        del self.resources[key]

    def delete_job_by_hand(self, name: str, foreground: bool) -> None:
        """Delete a Job, as by kubectl delete job; its pods are stopped."""
        job = self.jobs[name]
        uid = job["metadata"]["uid"]
        recorded = any((r.get("status") or {}).get("jobUid") == uid for r in self.resources.values())
        self.ledger.job_removed_by_hand(job, recorded)
        if foreground:
            self._delete(job)
        else:
            del self.jobs[name]

    # --- garbage collector and Job controller ---------------------------------------------------------------

    def collect_garbage(self) -> None:
        """Delete Jobs whose resource is gone, pods whose Job is gone, and finished Jobs after their TTL."""
        uids = {body["metadata"]["uid"] for body in self.resources.values()}
        for name, job in list(self.jobs.items()):
            if controller_uid(job["metadata"]) not in uids or self._is_expired(job):
                del self.jobs[name]
        jobs = {job["metadata"]["uid"]: job for job in self.jobs.values()}
        for pod in list(self.pods.values()):
            job = jobs.get(controller_uid(pod["metadata"]))
            if job is None or job["metadata"].get("deletionTimestamp"):
                self.stop(pod)
        for name, job in list(self.jobs.items()):
            if job["metadata"].get("deletionTimestamp") and not self.pods_of(job):
                del self.jobs[name]

    def control_jobs(self) -> None:
        """Account for the pods of each Job, and make the pod that it lacks."""
        for job in self.jobs.values():
            before = json.dumps([job["spec"], job.get("status")])
            self._control(job)
            if json.dumps([job["spec"], job.get("status")]) != before:
                self._touch(job)

    def _control(self, job: Body) -> None:
        status = job.setdefault("status", {})
        pods = self.pods_of(job)
        if _finished(job) or job["metadata"].get("deletionTimestamp"):
            status["ready"] = 0
            self._accounted |= {pod["metadata"]["name"] for pod in pods if is_over(pod)}
            return
        live = [pod for pod in pods if not is_over(pod)]
        status["ready"] = len([pod for pod in live if is_running(pod)])
        over = [pod for pod in pods if is_over(pod) and pod["metadata"]["name"] not in self._pardoned]
        self._accounted |= {pod["metadata"]["name"] for pod in pods if is_over(pod)}
        if any(pod["status"]["phase"] == "Succeeded" for pod in over):
            status["completionTime"] = times.to_wire(self.now)
            self._condition(job, "Complete", "CompletionsReached", "")
        elif over and not live:
            disrupted = [pod for pod in over if is_disrupted(pod)]
            reason = "PodFailurePolicy" if disrupted else "BackoffLimitExceeded"
            self._condition(job, "Failed", reason, "told by the Job")
        elif job["spec"].get("suspend"):
            status.pop("startTime", None)
            self._condition(job, "Suspended", "JobSuspended", "Job suspended")
            for pod in live:
                self._pardoned.add(pod["metadata"]["name"])
                self.stop(pod)
        else:
            status.setdefault("startTime", times.to_wire(self.now))
            if status.get("conditions"):
                status["conditions"] = [c for c in status["conditions"] if c["type"] != "Suspended"]
            if not live:
                self._make_pod(job)

    def _make_pod(self, job: Body) -> None:
        uid = job["metadata"]["uid"]
        if self.is_away("quota"):
            message = 'Error creating: pods "p" is forbidden: exceeded quota: compute, requested: pods=1'
            self.warnings[uid] = [{"reason": "FailedCreate", "message": message}]
            return
        self.warnings.pop(uid, None)
        self._pods += 1
        name = f"{job['metadata']['name']}-{self._pods}"
        template = job["spec"]["template"]["metadata"]
        owner = {"kind": "Job", "name": job["metadata"]["name"], "uid": uid, "controller": True}
        body: Body = {
            "metadata": {
                "name": name,
                "namespace": "default",
                "uid": f"pod-{self._pods}",
                "labels": dict(template["labels"]),
                "annotations": dict(template["annotations"]),
                "ownerReferences": [owner],
                "creationTimestamp": times.to_wire(self.now),
            },
            "spec": {},
            "status": {"phase": "Pending"},
        }
        self.pods[name] = self._touch(body)

    # --- scheduler and kubelet ------------------------------------------------------------------------------

    def start_pods(self) -> None:
        """Bring each pod one step further, to a node and to a running container."""
        for pod in self.pods.values():
            if not is_over(pod) and not is_running(pod) and not pod["metadata"].get("deletionTimestamp"):
                self._start(pod)

    def end_stopped_pods(self, code: int) -> None:
        """End the containers of pods that are being stopped, whose SIGTERM has been heeded or ignored."""
        for pod in self.pods.values():
            stopped = pod["metadata"].get("deletionTimestamp") and not self._on_lost_node(pod)
            if stopped and is_running(pod):
                self.end(pod, code)

    def remove_pods(self) -> None:
        """Remove pods that were deleted and whose container has ended, or never started."""
        uids = {job["metadata"]["uid"] for job in self.jobs.values()}
        for name, pod in list(self.pods.items()):
            # A pod keeps its finalizer until the Job controller has accounted for it.
            free = name in self._accounted or controller_uid(pod["metadata"]) not in uids
            if (
                pod["metadata"].get("deletionTimestamp")
                and not is_running(pod)
                and (free or not is_over(pod))
            ):
                del self.pods[name]

    def _start(self, pod: Body) -> None:
        if self.is_away("capacity"):
            message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            self._set(pod, conditions=[condition | {"message": message}])
            return
        pod["spec"]["nodeName"] = "n1"
        scheduled = [{"type": "PodScheduled", "status": "True"}]
        if self.is_away("registry"):
            waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
            self._set(pod, conditions=scheduled, containerStatuses=[_container({"waiting": waiting})])
        elif self.is_away("node"):
            self.end(pod, 128, "StartError", "failed to create containerd task: nvidia-container-cli")
        else:
            started = {"running": {"startedAt": times.to_wire(self.now)}}
            self._check_alone(pod)
            self._set(pod, phase="Running", conditions=scheduled, containerStatuses=[_container(started)])
            if self.is_away("storage"):
                self.end(pod, 40)

    def _check_alone(self, pod: Body) -> None:
        output = output_of(pod)
        others = [
            p["metadata"]["name"] for p in self.pods.values() if is_running(p) and output_of(p) == output
        ]
        if others:
            names = f"{pod['metadata']['name']} and {', '.join(others)}"
            self.ledger.problems.append(f"pods {names} write to {output} at the same time")

    def end(self, pod: Body, code: int, reason: str = "", message: str = "", **status: Any) -> None:
        """End a pod's container with an exit code."""
        uid = pod["metadata"]["labels"][OWNER_UID]
        if self.ledger.deserved is not None:
            ends = self.ledger.deserved.setdefault(uid, set())
            ends |= {by_exit_code(code).reason, *(["OutOfMemory"] if code == 137 else [])}
        message = message or (json.dumps(BEST) if code == 0 else "")
        ended = {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "message": message,
            "finishedAt": times.to_wire(self.now),
        }
        phase = "Failed" if code else "Succeeded"
        self._set(pod, phase=phase, containerStatuses=[_container({"terminated": ended})], **status)

    def disrupt(self, pod: Body, cause: str) -> None:
        """Take a pod away: Kubernetes marks it, then it is stopped."""
        condition = {"type": "DisruptionTarget", "status": "True", "reason": cause, "message": "taken away"}
        conditions = [*(pod["status"].get("conditions") or ()), condition]
        self._set(pod, conditions=conditions)
        self.stop(pod)

    def lose_node(self, pod: Body) -> None:
        """Cut a running pod's node off: nothing of it is heard, and its processes may go on."""
        self._set(pod, conditions=[*(pod["status"].get("conditions") or ()), _NODE_LOST])
        self.stop(pod)

    def forget_lost_pods(self) -> None:
        """End the pods of lost nodes, as the garbage collector of pods does once a node is removed."""
        for pod in self.pods.values():
            if self._on_lost_node(pod) and not is_over(pod):
                self._set(pod, phase="Failed", reason="NodeLost")

    def stop(self, pod: Body) -> None:
        """Delete a pod; it is gone once its container has ended."""
        if not pod["metadata"].get("deletionTimestamp"):
            pod["metadata"]["deletionTimestamp"] = times.to_wire(self.now)
            self._touch(pod)

    def _on_lost_node(self, pod: Body) -> bool:
        return _NODE_LOST in (pod["status"].get("conditions") or ())

    def _set(self, pod: Body, **status: Any) -> None:
        before = json.dumps(pod["status"])
        pod["status"] |= status
        if json.dumps(pod["status"]) != before:
            self._touch(pod)

    # --- healing --------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Give everything back that was away, undo what people did to Jobs, and end what runs with 0."""
        self._away.clear()
        self.forget_lost_pods()
        for name, job in self.jobs.items():
            ours = SUSPENDED_BY_US in (job["metadata"].get("annotations") or {})
            if job["spec"].get("suspend") and not ours and not _finished(job):
                owner = self.owner_of(job)
                if owner is None or not owner["spec"].get("suspend"):
                    self.set_suspended(name, False)
        self.collect_garbage()
        self.end_stopped_pods(75)
        self.control_jobs()
        self.remove_pods()
        self.start_pods()
        self.control_jobs()
        for pod in self.pods.values():
            if is_running(pod) and not pod["metadata"].get("deletionTimestamp"):
                self.end(pod, 0)
        self.control_jobs()

    # --- questions ------------------------------------------------------------------------------------------

    def pods_of(self, job: Body) -> list[Body]:
        return [p for p in self.pods.values() if controller_uid(p["metadata"]) == job["metadata"]["uid"]]

    def owner_of(self, job: Body) -> Body | None:
        uid = controller_uid(job["metadata"])
        return next((body for body in self.resources.values() if body["metadata"]["uid"] == uid), None)

    def running_pods(self, name: str) -> Iterator[Body]:
        """Yield the pods of a resource of this name that run and are not being stopped, newest first."""
        for pod in reversed(self.pods.values()):
            stopped = pod["metadata"].get("deletionTimestamp")
            if pod["metadata"]["labels"][OWNER_NAME] == name and is_running(pod) and not stopped:
                yield pod

    def jobs_of(self, name: str) -> list[Body]:
        """Return the unfinished Jobs of resources of this name, newest first."""
        unfinished = [job for job in self.jobs.values() if not _finished(job)]
        return [job for job in reversed(unfinished) if job["metadata"]["labels"][OWNER_NAME] == name]

    def _delete(self, job: Body) -> None:
        # A foreground deletion: the Job stays until its pods are gone.
        job["metadata"].setdefault("deletionTimestamp", times.to_wire(self.now))
        self._touch(job)

    def _condition(self, job: Body, type_: str, reason: str, message: str) -> None:
        conditions = job["status"].setdefault("conditions", [])
        if all(item["type"] != type_ for item in conditions):
            since = times.to_wire(self.now)
            conditions.append(
                {"type": type_, "status": "True", "reason": reason, "message": message}
                | {"lastTransitionTime": since}
            )

    def _is_expired(self, job: Body) -> bool:
        seconds = job["spec"].get("ttlSecondsAfterFinished")
        if seconds is None or not _finished(job):
            return False
        ends = [c["lastTransitionTime"] for c in job["status"]["conditions"] if c["type"] in _ENDS]
        end = times.from_wire(ends[0])
        return end is not None and self.now >= end + timedelta(seconds=seconds)


_ENDS = ("Complete", "Failed")
_NODE_LOST = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "DeletionByTaintManager",
    "message": "Taint manager: deleting due to NoExecute taint",
}


def _container(state: Body) -> Body:
    return {"name": "runner", "state": state}


def _finished(job: Body) -> bool:
    return any(c["type"] in _ENDS for c in (job.get("status") or {}).get("conditions") or ())


def is_over(pod: Body) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def is_running(pod: Body) -> bool:
    return bool(pod["status"]["phase"] == "Running")


def is_disrupted(pod: Body) -> bool:
    return any(c["type"] == "DisruptionTarget" for c in pod["status"].get("conditions") or ())


def output_of(pod: Body) -> str:
    """Return the address that a pod writes to."""
    run = json.loads(pod["metadata"]["annotations"][RUN_SPEC_ANNOTATION])
    return str(run["spec"]["output"]["uri"])
