"""Access to a real API server, and the operator as a process, for the integration ring.

:class:`Api` reads and writes our resources; :class:`Kubelet` writes the status of pods, since no node has
a kubelet; :class:`OperatorProcess` runs ``tlt-operator`` with the rights of its ServiceAccount, and can be
killed.
"""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import patience
import ports
from cluster.api import Body, KubernetesApi

NODE = "nobody"
"""Name of a node without a kubelet: a pod that is bound to it stays after its deletion until removed."""
NODE_MANIFEST = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": NODE},
    "spec": {"unschedulable": True},
}


def until(
    what: str,
    check: Callable[[], Any],
    explain: Callable[[], Any] = lambda: "",
    limit_s: float = patience.SECONDS,
) -> Any:
    """Wait for the first true result of ``check`` and return it."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        result = check()
        if result:
            return result
        time.sleep(0.05)
    raise AssertionError(f"waited in vain for {what}; {explain()}")


class Api(KubernetesApi):
    """Access to our resources by their manifests."""

    def resource(self, manifest: Body) -> Body | None:
        return self.get(*_names(manifest))

    def status(self, manifest: Body) -> Body:
        body = self.resource(manifest)
        return (body or {}).get("status", {})

    def edit(self, manifest: Body, **spec: Any) -> None:
        self.patch(*_names(manifest), {"spec": spec})

    def remove(self, manifest: Body) -> None:
        self.delete(*_names(manifest))

    def jobs(self, namespace: str) -> dict[str, Body]:
        return {job["metadata"]["name"]: job for job in self.list("Job", namespace)}

    def until_phase(self, manifest: Body, phase: str) -> Body:
        def reached() -> Body | None:
            status = self.status(manifest)
            return status if status.get("phase") == phase else None

        return until(f"{manifest['metadata']['name']} to be {phase}", reached, lambda: self.status(manifest))


def _names(manifest: Body) -> tuple[str, str, str]:
    """Return kind, name and namespace of a resource."""
    return manifest["kind"], manifest["metadata"]["name"], manifest["metadata"]["namespace"]


class Kubelet:
    """Status of the pods of Jobs, written as a kubelet would."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self.namespace = namespace

    def pod(self, job: str) -> Body:
        def first_pod() -> Body | None:
            pods = self._api.list("Pod", self.namespace, f"job-name={job}")
            return pods[0] if pods else None

        return until(f"a pod of Job {job}", first_pod)

    def run(self, job: str) -> None:
        """Let the container run."""
        ready = [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady", "PodScheduled")]
        self._write_status(job, phase="Running", conditions=ready, state={"running": {}}, ready=True)

    def end(
        self,
        job: str,
        code: int,
        reason: str = "Error",
        message: str = "",
        pod_reason: str = "",
        **status: Any,
    ) -> None:
        """End the container with an exit code, and the pod with a reason of its own, if there is one."""
        status |= {"reason": pod_reason} if pod_reason else {}
        state = {"terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": _now()}}
        unready = [{"type": kind, "status": "False"} for kind in ("Ready", "ContainersReady")]
        more = status.pop("conditions", [])
        phase = "Failed" if code else "Succeeded"
        self._write_status(job, phase=phase, conditions=[*unready, *more], state=state, ready=False, **status)

    def wait(self, job: str, reason: str, message: str) -> None:
        """Let the container wait for a reason."""
        scheduled = [{"type": "PodScheduled", "status": "True"}]
        state = {"waiting": {"reason": reason, "message": message}}
        self._write_status(job, phase="Pending", conditions=scheduled, state=state, ready=False)

    def until_stopped(self, job: str) -> None:
        """Wait until the pod is being deleted."""
        until(f"the pod of {job} to be stopped", lambda: self.pod(job)["metadata"].get("deletionTimestamp"))

    def remove(self, job: str) -> None:
        """Remove the pod, as a kubelet does once its processes are gone."""
        name = self.pod(job)["metadata"]["name"]
        self._api.delete("Pod", name, self.namespace, grace_period_seconds=0)

    def _write_status(self, job: str, state: Body, ready: bool, **status: Any) -> None:
        pod = self.pod(job)
        name = pod["metadata"]["name"]
        if not pod["spec"].get("nodeName"):
            metadata = {"name": name, "namespace": self.namespace}
            target = {"kind": "Node", "name": NODE}
            self._api.create({"kind": "Binding", "metadata": metadata, "target": target}, parent="Pod")
        container = {"name": "runner", "image": "i", "imageID": "", "restartCount": 0, "ready": ready}
        status["containerStatuses"] = [container | {"state": state}]
        self._api.patch("Pod", name, self.namespace, {"status": status}, "status")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class OperatorProcess:
    """Process of ``tlt-operator`` outside of the cluster, a context manager that ends it."""

    def __init__(self, kubeconfig: Path, log: Path, **settings: str) -> None:
        self._log = log
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "TLT_SWEEP_SECONDS": "20",
            "TLT_RETRY_BASE_SECONDS": "0.2",
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> OperatorProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Start the process, with new ports each time."""
        health, metrics = ports.free_ports(2)
        self.health_address, self.metrics_address = ("127.0.0.1", health), ("127.0.0.1", metrics)
        variables = {"TLT_HEALTH_PORT": str(health), "TLT_METRICS_PORT": str(metrics)}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tlt_operator"],
                env=self._environment | variables,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """Kill the process (SIGKILL)."""
        assert self._process
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """End the process (SIGTERM) and return its exit code."""
        assert self._process
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=patience.SECONDS)

    def is_running(self) -> bool:
        assert self._process
        return self._process.poll() is None

    def log(self) -> str:
        return self._log.read_text()

    def get(self, address: tuple[str, int], path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(*address, timeout=patience.REQUEST)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()
