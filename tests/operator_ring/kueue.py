"""Stand-in for Kueue: does to a batch Job what Kueue's controller does, on a real API server.

As in kubernetes-sigs/kueue (pkg/controller/jobframework, pkg/controller/jobs/job): a Job with a queue has a
Workload with the label of the Job's uid, and is suspended while that is not admitted; an admitted one gets
the node selector of its flavour and is resumed, whoever suspended it; an eviction suspends it, clears its
start time (which makes the template mutable), takes the node selector back, and gives the quota away once no
pod is active. A Workload whose spec.active becomes false is evicted, and not admitted before it is true
again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from kubernetes.client import ApiException

from cluster.api import Body
from operator_ring.live import Api, until

QUEUE = "kueue.x-k8s.io/queue-name"
FLAVOUR = {"example.com/flavour": "gpu"}
JOB_UID = "kueue.x-k8s.io/job-uid"
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "workloads.kueue.x-k8s.io",
        # The API server keeps groups of Kubernetes' own for approved kinds.
        "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in for tests"},
    },
    "spec": {
        "group": "kueue.x-k8s.io",
        "scope": "Namespaced",
        "names": {"kind": "Workload", "plural": "workloads", "singular": "workload"},
        "versions": [
            {
                "name": name,
                "served": True,
                "storage": name == "v1beta2",
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "queueName": {"type": "string"},
                                    "active": {"type": "boolean", "default": True},
                                },
                            }
                        },
                    }
                },
            }
            # Releases 0.15 and 0.16 serve both, earlier ones the first, later ones the second.
            for name in ("v1beta1", "v1beta2")
        ],
    },
}
"""Kueue's Workload, without what the stand-in does not read."""
_STOPPING = "kueue.x-k8s.io/stopping"


class Kueue:
    """Queue of the Jobs in a namespace that have the label, a context manager that ends it."""

    def __init__(self, make_api: Callable[[], Api], namespace: str) -> None:
        self._api = make_api()
        self.namespace = namespace
        self.admitted: set[str] = set()
        """Names of the Jobs whose Workload has its quota."""
        self.resumed: list[str] = []
        """Names of the Jobs that it resumed, in order."""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Kueue:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._api.close()

    def admit(self, job: str) -> None:
        """Give a Job its quota, and wait until it runs."""
        self.admitted.add(job)
        until(f"Kueue to resume {job}", lambda: not self._job(job)["spec"].get("suspend"))

    def evict(self, job: str) -> None:
        """Take a Job's quota back, and wait until none of its pods is active."""
        self.admitted.discard(job)
        until(f"Kueue to stop {job}", lambda: self._stopped(self._job(job)))

    def workload(self, job: str) -> Body:
        """Return the Workload of a Job."""
        name = f"job-{job}"
        until(f"Kueue to make the Workload of {job}", lambda: self._api.get("Workload", name, self.namespace))
        return self._api.get("Workload", name, self.namespace) or {}

    def _job(self, name: str) -> Body:
        return self._api.get("Job", name, self.namespace) or {"spec": {}, "status": {}}

    @staticmethod
    def _stopped(job: Body) -> bool:
        return bool(job["spec"].get("suspend")) and not job["status"].get("active")

    def _run(self) -> None:
        while not self._end.wait(0.1):
            for job in self._api.list("Job", self.namespace, QUEUE):
                # It changed since it was read, or is gone: the next round looks again.
                try:
                    self._reconcile(job)
                except ApiException as error:
                    if error.status not in (404, 409, 422):
                        raise

    def _reconcile(self, job: Body) -> None:
        name, metadata = job["metadata"]["name"], job["metadata"]
        ended = [c for c in job["status"].get("conditions", ()) if c["type"] in ("Complete", "Failed")]
        if metadata.get("deletionTimestamp") or ended:
            return
        active = self._is_active(job)
        if not active:
            self.admitted.discard(name)
        suspended, admitted = bool(job["spec"].get("suspend")), name in self.admitted
        stopping = _STOPPING in (metadata.get("annotations") or {})
        if admitted and suspended and not stopping:
            self._patch(job, spec={"suspend": False, "template": {"spec": {"nodeSelector": FLAVOUR}}})
            self.resumed.append(name)
        elif not admitted and not suspended:
            self._patch(job, {_STOPPING: "true"}, spec={"suspend": True})
        elif stopping and job["status"].get("startTime"):
            status = {"startTime": None}
            self._api.patch("Job", name, self.namespace, {"status": status}, "status")
        elif stopping:
            self._patch(job, {_STOPPING: None}, spec={"template": {"spec": {"nodeSelector": None}}})

    def _is_active(self, job: Body) -> bool:
        """Tell whether a Job's Workload may be admitted; make the Workload if there is none."""
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        workload = self._api.get("Workload", f"job-{name}", self.namespace)
        if workload is None:
            owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": True}
            metadata = {"name": f"job-{name}", "namespace": self.namespace, "labels": {JOB_UID: uid}}
            spec = {"queueName": job["metadata"]["labels"][QUEUE]}
            metadata |= {"ownerReferences": [owner]}
            workload = self._api.create({"kind": "Workload", "metadata": metadata, "spec": spec})
        return bool(workload["spec"]["active"])

    def _patch(self, job: Body, annotations: dict[str, Any] | None = None, **changes: Any) -> None:
        version = job["metadata"]["resourceVersion"]
        metadata = {"resourceVersion": version, "annotations": annotations or {}}
        self._api.patch("Job", job["metadata"]["name"], self.namespace, {"metadata": metadata, **changes})
