"""Access to a real API server, and the operator as a process, for the integration ring.

:class:`Api` makes requests; :class:`Kubelet` writes the status of pods, since no node has a kubelet;
:class:`OperatorProcess` runs ``tlt-operator`` with the rights of its ServiceAccount, and can be killed.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from operator_ring.access import connection_of
from tlt_api.resources import KINDS

Body = dict[str, Any]
PATIENCE_SECONDS = 90.0
NODE = "nobody"
"""Name of a node without a kubelet: a pod that is bound to it stays after its deletion until removed."""
NODE_MANIFEST = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": NODE},
    "spec": {"unschedulable": True},
}
_MERGE = "application/merge-patch+json"


class ApiAnswerError(Exception):
    """Answer of the API server with an error status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


def until(
    what: str,
    check: Callable[[], Any],
    explain: Callable[[], Any] = lambda: "",
    patience: float = PATIENCE_SECONDS,
) -> Any:
    """Wait for the first true result of ``check`` and return it."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        result = check()
        if result:
            return result
        time.sleep(0.05)
    raise AssertionError(f"waited in vain for {what}; {explain()}")


class Api:
    """Requests to an API server, as the user of a kubeconfig, over one connection.

    Not by the official client: its raw call adds no credentials, and it takes a proxy from the environment.
    """

    def __init__(self, kubeconfig: Path) -> None:
        access = connection_of(kubeconfig)
        self._credentials = access.as_http_headers()
        address = urllib.parse.urlsplit(access.server)
        self._connection = http.client.HTTPSConnection(
            address.hostname or "", address.port, context=access.as_ssl_context(), timeout=30
        )

    def request(
        self, method: str, path: str, body: Body | None = None, kind: str = "application/json"
    ) -> Body:
        headers = {"Content-Type": kind, "Accept": "application/json", **self._credentials}
        for _ in range(2):
            try:
                content = json.dumps(body) if body is not None else None
                self._connection.request(method, path, content, headers)
                answer = self._connection.getresponse()
                text = answer.read().decode()
                break
            # The server closed the idle connection: once more, on a new one.
            except (http.client.HTTPException, OSError):
                self._connection.close()
        if answer.status >= 400:
            raise ApiAnswerError(answer.status, text)
        return json.loads(text)

    def close(self) -> None:
        self._connection.close()

    def find(self, path: str) -> Body | None:
        try:
            return self.request("GET", path)
        except ApiAnswerError as error:
            if error.status == 404:
                return None
            raise

    def items(self, path: str) -> list[Body]:
        return self.request("GET", path)["items"]

    def create(self, manifest: Body) -> Body:
        metadata = manifest["metadata"]
        kind = KINDS[manifest["kind"]]
        return self.request("POST", _resources(kind.plural, metadata["namespace"]), manifest)

    def resource(self, manifest: Body) -> Body | None:
        return self.find(_resource(manifest))

    def status(self, manifest: Body) -> Body:
        body = self.resource(manifest)
        return (body or {}).get("status", {})

    def edit(self, manifest: Body, **spec: Any) -> None:
        self.request("PATCH", _resource(manifest), {"spec": spec}, _MERGE)

    def delete(self, manifest: Body) -> None:
        self.request("DELETE", _resource(manifest))

    def jobs(self, namespace: str) -> dict[str, Body]:
        return {
            job["metadata"]["name"]: job for job in self.items(f"/apis/batch/v1/namespaces/{namespace}/jobs")
        }

    def until_phase(self, manifest: Body, phase: str) -> Body:
        def reached() -> Body | None:
            status = self.status(manifest)
            return status if status.get("phase") == phase else None

        return until(f"{manifest['metadata']['name']} to be {phase}", reached, lambda: self.status(manifest))


def _resources(plural: str, namespace: str) -> str:
    return f"/apis/tlt.dev/v1alpha1/namespaces/{namespace}/{plural}"


def _resource(manifest: Body) -> str:
    metadata = manifest["metadata"]
    return f"{_resources(KINDS[manifest['kind']].plural, metadata['namespace'])}/{metadata['name']}"


class Kubelet:
    """Status of the pods of Jobs, written as a kubelet would."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/pods"

    def pod(self, job: str) -> Body:
        def first_pod() -> Body | None:
            pods = self._api.items(f"{self._path}?labelSelector=job-name%3D{job}")
            return pods[0] if pods else None

        return until(f"a pod of Job {job}", first_pod)

    def run(self, job: str) -> None:
        """Let the container run."""
        ready = [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady", "PodScheduled")]
        self._write_status(job, phase="Running", conditions=ready, state={"running": {}}, ready=True)

    def end(self, job: str, code: int, reason: str = "Error", message: str = "", **status: Any) -> None:
        """End the container with an exit code."""
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
        self._api.request("DELETE", f"{self._path}/{name}?gracePeriodSeconds=0")

    def _write_status(self, job: str, state: Body, ready: bool, **status: Any) -> None:
        pod = self.pod(job)
        name = pod["metadata"]["name"]
        if not pod["spec"].get("nodeName"):
            binding = {"metadata": {"name": name}, "target": {"kind": "Node", "name": NODE}}
            self._api.request("POST", f"{self._path}/{name}/binding", binding)
        container = {"name": "runner", "image": "i", "imageID": "", "restartCount": 0, "ready": ready}
        status["containerStatuses"] = [container | {"state": state}]
        self._api.request("PATCH", f"{self._path}/{name}/status", {"status": status}, _MERGE)


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
        health, metrics = _free_port(), _free_port()
        self.health_address, self.metrics_address = ("127.0.0.1", health), ("127.0.0.1", metrics)
        ports = {"TLT_HEALTH_PORT": str(health), "TLT_METRICS_PORT": str(metrics)}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tlt_operator"],
                env=self._environment | ports,
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
        return self._process.wait(timeout=30)

    def is_running(self) -> bool:
        assert self._process
        return self._process.poll() is None

    def log(self) -> str:
        return self._log.read_text()

    def get(self, address: tuple[str, int], path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(*address, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
