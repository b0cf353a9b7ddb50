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
from tlt_operator.objects import INDEX, OWNER_NAME, OWNER_UID, QUEUE, SUSPENDED_BY_US
from tlt_operator.snapshot import Key

Trouble = Literal["webhook", "quota", "registry", "storage", "node", "capacity"]
TROUBLES: tuple[Trouble, ...] = ("webhook", "quota", "registry", "storage", "node", "capacity")
"""What a run needs and may be away; all of it comes back."""
WATCHED = ("resources", "jobs", "pods")
NODES = ("n1", "n2", "n3")


@dataclass(frozen=True)
class Change:
    """Change of an object, as a watch reports it."""

    version: int
    type: str
    body: Body


class SimulatedCluster(MemoryKube):
    """Cluster whose parts work when a test says so."""

    def __init__(self, ledger: Ledger, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        super().__init__()
        self.ledger = ledger
        self._away: dict[Trouble, float] = {}
        self.journal: dict[str, list[Change]] = {what: [] for what in WATCHED}
        """Changes by what has changed, in the order of their versions."""
        self.changes = 0
        """Number of changes so far."""
        self.compacted = 0
        """Version up to which the journal is forgotten: watches from there on get 410."""
        self.news = {what: asyncio.Event() for what in WATCHED}
        """Events that wake the watches."""
        self._known: dict[str, dict[Any, Body]] = {what: {} for what in WATCHED}
        self.one_leads = True
        """False once two operators work at a time, or a request was carried out after its sender's end.

        Each operator knows by itself alone who writes to an output: only one that works alone keeps two
        resources from writing to the same one.
        """
        self.nodes = set(NODES)
        self.silent_nodes: set[str] = set()
        """Nodes that are cut off: nothing is heard of them, and what runs there goes on."""
        self.admitted: set[str] = set()
        """The uids of the Jobs whose Workload has its quota."""
        self.deactivated: set[str] = set()
        """The uids of the Jobs whose Workload has ``spec.active: false``."""
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

    def add(self, manifest: Body) -> Key:
        key = super().add(manifest)
        self.resources[key]["metadata"]["creationTimestamp"] = times.to_wire(self.now)
        return key

    # --- watches --------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Put what has changed into the journal."""
        for what, objects in (("resources", self.resources), ("jobs", self.jobs), ("pods", self.pods)):
            known, changes = self._known[what], []
            for name, before in list(known.items()):
                after = objects.get(name)
                if after is None or after["metadata"]["uid"] != before["metadata"]["uid"]:
                    version = self._next()
                    metadata = before["metadata"] | {"resourceVersion": str(version)}
                    changes.append(Change(version, "DELETED", before | {"metadata": metadata}))
                    del known[name]
            for name, body in objects.items():
                version = body["metadata"]["resourceVersion"]
                if name in known and known[name]["metadata"]["resourceVersion"] == version:
                    continue
                # One copy for all that look at this version: nobody changes it.
                copy = json.loads(json.dumps(body))
                changes.append(Change(int(version), "MODIFIED" if name in known else "ADDED", copy))
                known[name] = copy
                if what == "resources":
                    self.ledger.resource_seen(copy)
            if changes:
                self.journal[what] += sorted(changes, key=lambda change: change.version)
                self.changes += len(changes)
                self.wake_watches(what)

    def wake_watches(self, *whats: str) -> None:
        """Let the watches look at their state."""
        for what in whats or WATCHED:
            self.news[what].set()
            self.news[what] = asyncio.Event()

    def forget_versions(self) -> None:
        """Forget all versions so far, as the API server's cache does after a restart: watches get 410."""
        self.publish()
        self.compacted = self._version

    # --- the API server -------------------------------------------------------------------------------------

    async def create_job(self, job: Any) -> Body:
        body = await super().create_job(job)
        self.ledger.job_created(body)
        if is_queued(body):
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
        for name, service in list(self.services.items()):
            if controller_uid(service["metadata"]) not in jobs:
                del self.services[name]

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
        # As the Job controller counts: a pod that is being stopped is no active one.
        status["ready"] = len([p for p in live if is_running(p) and "deletionTimestamp" not in p["metadata"]])
        over = [pod for pod in pods if is_over(pod) and pod["metadata"]["name"] not in self._pardoned]
        self._accounted |= {pod["metadata"]["name"] for pod in pods if is_over(pod)}
        indexes = _indexes(job)
        done = {index_of(pod) for pod in over if pod["status"]["phase"] == "Succeeded"}
        if done >= indexes:
            status["completionTime"] = times.to_wire(self.now)
            self._condition(job, "Complete", "CompletionsReached", "")
        elif any(pod["status"]["phase"] == "Failed" for pod in over):
            # One that failed ends the others, and then the Job.
            for pod in live:
                self.stop(pod)
            if not live:
                reason = "PodFailurePolicy" if any(map(is_disrupted, over)) else "BackoffLimitExceeded"
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
            for index in sorted(indexes - done - {index_of(pod) for pod in live}):
                self._make_pod(job, index)

    def _make_pod(self, job: Body, index: str) -> None:
        uid = job["metadata"]["uid"]
        if self.is_away("quota"):
            message = 'Error creating: pods "p" is forbidden: exceeded quota: compute, requested: pods=1'
            self.warnings[uid] = [{"reason": "FailedCreate", "message": message}]
            return
        self.warnings.pop(uid, None)
        if is_queued(job) and uid not in self.admitted:
            self.ledger.problems.append(f"Job {job['metadata']['name']} runs without its queue's admission")
        self._pods += 1
        name = f"{job['metadata']['name']}-{self._pods}"
        template = job["spec"]["template"]
        owner = {"kind": "Job", "name": job["metadata"]["name"], "uid": uid, "controller": True}
        body: Body = {
            "metadata": {
                "name": name,
                "namespace": "default",
                "uid": f"pod-{self._pods}",
                "labels": template["metadata"]["labels"] | ({INDEX: index} if index else {}),
                "annotations": dict(template["metadata"]["annotations"]),
                "ownerReferences": [owner],
                "creationTimestamp": times.to_wire(self.now),
            },
            "spec": {"affinity": template["spec"].get("affinity")},
            "status": {"phase": "Pending"},
        }
        self.pods[name] = self._touch(body)

    # --- Kueue ----------------------------------------------------------------------------------------------

    def queue_jobs(self) -> None:
        """Suspend each queued Job without a quota, and resume each one with it, whoever suspended it."""
        for name, job in self.jobs.items():
            uid = job["metadata"]["uid"]
            runs = uid in self.admitted and uid not in self.deactivated
            if is_queued(job) and not _finished(job) and bool(job["spec"].get("suspend")) == runs:
                self.set_suspended(name, not runs)

    def evict(self, job: Body, deactivate: bool) -> None:
        """Take a Job's quota back; a deactivated Workload gets none until somebody activates it."""
        self.admitted.discard(job["metadata"]["uid"])
        if deactivate:
            self.deactivated.add(job["metadata"]["uid"])
        self.queue_jobs()

    def activate(self, job: Body) -> None:
        """Let a Job's Workload queue again."""
        self.deactivated.discard(job["metadata"]["uid"])

    # --- scheduler and kubelet ------------------------------------------------------------------------------

    def start_pods(self) -> None:
        """Bring each pod one step further, to a node and to a running container."""
        for pod in self.pods.values():
            waits = not is_over(pod) and not is_running(pod) and not self._on_silent_node(pod)
            if waits and not pod["metadata"].get("deletionTimestamp"):
                self._start(pod)

    def end_stopped_pods(self, code: int) -> None:
        """End the containers of pods that are being stopped, whose SIGTERM has been heeded or ignored."""
        for pod in self.pods.values():
            stopped = pod["metadata"].get("deletionTimestamp") and not self._on_silent_node(pod)
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
        nodes = sorted(self.nodes - self.silent_nodes)
        if not nodes:
            message = "0/3 nodes are available: 3 node(s) had untolerated taint(s)."
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            self._set(pod, conditions=[condition | {"message": message}])
            return
        # As the scheduler does: where possible, not on a node that the pod's affinity names.
        preferred = [node for node in nodes if node not in json.dumps(pod["spec"].get("affinity"))] or nodes
        pod["spec"]["nodeName"] = preferred[int(index_of(pod) or 0) % len(preferred)]
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
            other["metadata"]["name"]
            for other in self.pods.values()
            if is_running(other) and output_of(other) == output and not self._may_be_beside(pod, other)
        ]
        if others:
            names = f"{pod['metadata']['name']} and {', '.join(others)}"
            self.ledger.problems.append(f"pods {names} write to {output} at the same time")

    def _may_be_beside(self, pod: Body, other: Body) -> bool:
        """Tell whether two pods with one output may run at the same time."""
        same_job = controller_uid(pod["metadata"]) == controller_uid(other["metadata"])
        names = {p["metadata"]["labels"][OWNER_NAME] for p in (pod, other)}
        return (same_job and index_of(pod) != index_of(other)) or (len(names) > 1 and not self.one_leads)

    def end(self, pod: Body, code: int, reason: str = "", message: str = "", **status: Any) -> None:
        """End a pod's container with an exit code."""
        uid = pod["metadata"]["labels"][OWNER_UID]
        if self.ledger.deserved is not None:
            ends = self.ledger.deserved.setdefault(uid, set())
            ends |= {by_exit_code(code).reason, *(["OutOfMemory"] if code == 137 else [])}
        message = message or (json.dumps(BEST) if code == 0 else "")
        # A pod that is being stopped is gone before anybody may have read its message: the run has reported
        # its results to the status before.
        if code == 0 and pod["metadata"].get("deletionTimestamp"):
            self.report_of(pod, **BEST)
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

    def report_of(self, pod: Body, **fields: Any) -> None:
        """Apply fields of a status as the runner in a pod."""
        for key, body in self.resources.items():
            if body["metadata"]["uid"] == pod["metadata"]["labels"][OWNER_UID]:
                self.report(key, **fields)

    def report_progress(self, pod: Body, epoch: int, promised: int | None) -> None:
        """Report progress as the runner in a pod, with the seconds within which the next report follows."""
        progress = {"stage": "train", "epoch": epoch, "epochs": 9, "lastUpdateTime": times.to_wire(self.now)}
        if promised is not None:
            progress["nextWithinSeconds"] = promised
        self.report_of(pod, progress=progress)
        self.ledger.run_reported(pod["metadata"]["labels"][OWNER_UID], promised)

    def cut_off(self, node: str) -> None:
        """Cut a node off: Kubernetes gives its pods up, while their processes may go on."""
        self.silent_nodes.add(node)
        for pod in self._pods_on(node):
            self._set(pod, conditions=[*(pod["status"].get("conditions") or ()), _NODE_LOST])
            self.stop(pod)

    def reconnect(self) -> None:
        """Connect the nodes that were cut off, whose kubelets then stop the pods that were given up."""
        self.silent_nodes.clear()

    def remove_node(self, node: str) -> None:
        """Delete a Node whose machine is off: the garbage collector of pods ends its pods."""
        self.nodes.discard(node)
        self.silent_nodes.discard(node)
        for pod in self._pods_on(node):
            conditions = [c for c in pod["status"].get("conditions") or () if c["type"] != "DisruptionTarget"]
            self._set(pod, phase="Failed", conditions=[*conditions, _NODE_GONE])
            self.stop(pod)
            pod["metadata"]["deletionGracePeriodSeconds"] = 0
            self._touch(pod)

    def add_nodes(self) -> None:
        """Bring new machines for the nodes that were removed."""
        self.nodes = set(NODES)

    def _pods_on(self, node: str) -> list[Body]:
        return [p for p in self.pods.values() if p["spec"].get("nodeName") == node and not is_over(p)]

    def stop(self, pod: Body) -> None:
        """Delete a pod; it is gone once its container has ended."""
        if not pod["metadata"].get("deletionTimestamp"):
            pod["metadata"]["deletionTimestamp"] = times.to_wire(self.now)
            self._touch(pod)

    def _on_silent_node(self, pod: Body) -> bool:
        return pod["spec"].get("nodeName") in self.silent_nodes

    def _set(self, pod: Body, **status: Any) -> None:
        before = json.dumps(pod["status"])
        pod["status"] |= status
        if json.dumps(pod["status"]) != before:
            self._touch(pod)

    # --- healing --------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Give everything back that was away, undo what people did to Jobs, and end what runs with 0."""
        self._away.clear()
        for node in list(self.silent_nodes):
            self.remove_node(node)
        self.add_nodes()
        self.deactivated.clear()
        self.admitted |= {job["metadata"]["uid"] for job in self.jobs.values() if is_queued(job)}
        self.queue_jobs()
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
_NODE_GONE = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "DeletionByPodGC",
    "message": "PodGC: node no longer exists",
}


def _container(state: Body) -> Body:
    return {"name": "runner", "state": state}


def _finished(job: Body) -> bool:
    return any(c["type"] in _ENDS for c in (job.get("status") or {}).get("conditions") or ())


def is_queued(job: Body) -> bool:
    return QUEUE in job["metadata"]["labels"]


def _indexes(job: Body) -> set[str]:
    """Return the indexes of a Job's pods; one empty text for a Job that is not Indexed."""
    indexed = job["spec"].get("completionMode") == "Indexed"
    return set(map(str, range(job["spec"]["completions"]))) if indexed else {""}


def index_of(pod: Body) -> str:
    """Return the index of an Indexed Job's pod; an empty text for the pod of another Job."""
    return str(pod["metadata"]["labels"].get(INDEX, ""))


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
