"""A runner's reports against a real API server, as the pod's own service account, under the runner's policy.

The API server is reached through a forwarder of this test, so that it can "go away" without harm to others.
"""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import patience
import ports
from cluster.control_plane import ControlPlane
from operator_ring.access import apiserver_of
from operator_ring.manifests import made
from tlt_api.resources import KINDS
from tlt_api.runspec import Owner
from tlt_api.status import Artifact, Metrics, Progress
from tlt_runner.status.apiserver import ApiServer, ApiServerError, OwnerGoneError
from tlt_runner.status.kubernetes import KubernetesReporter

ROOT = Path(__file__).parents[2]
NAMESPACE = "runner-reports"
ARTIFACT = Artifact(name="best", uri="pvc://data/best.keras", sha256="0" * 64, size_bytes=1, epoch=1)
PRUNE_JOB = made(NAMESPACE, "PruneJob")
TRAINING_JOB = made(NAMESPACE)


class Forwarder:
    """A port of this machine that leads to the API server while it is open."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener: socket.socket | None = None
        self._sockets: list[socket.socket] = []
        (self.port,) = ports.free_ports(1)

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for each in self._sockets:
            each.close()
        self._sockets.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._sockets += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture(scope="module")
def cluster(installed: ControlPlane) -> ControlPlane:
    """A namespace opened to jobs."""
    installed.kubectl("create", "namespace", NAMESPACE)
    installed.kubectl("apply", "-n", NAMESPACE, "-k", ROOT / "manifests" / "namespace")
    return installed


@pytest.fixture
def forwarder(cluster: ControlPlane) -> Iterator[Forwarder]:
    address = urlsplit(cluster.server)
    forwarder = Forwarder(str(address.hostname), int(address.port or 443))
    forwarder.open()
    yield forwarder
    forwarder.close()


def create(cluster: ControlPlane, body: dict[str, Any], name: str) -> Owner:
    """Resource whose first attempt the operator has announced."""
    named = {**body, "metadata": {**body["metadata"], "name": name}}
    uid = cluster.api.create(named)["metadata"]["uid"]
    announced = {"phase": "Running", "attempt": 1, "jobName": KINDS[body["kind"]].job_name(name, 1)}
    flags = ("--server-side", "--subresource=status", "--field-manager=tlt-operator")
    cluster.kubectl("apply", *flags, "-f", "-", stdin=json.dumps({**named, "status": announced}))
    return Owner(kind=body["kind"], namespace=NAMESPACE, name=name, uid=uid)


def status(cluster: ControlPlane, owner: Owner) -> dict[str, Any]:
    body = cluster.api.get(owner.kind, owner.name, NAMESPACE)
    return (body or {}).get("status", {})


def reported(cluster: ControlPlane, owner: Owner) -> set[str]:
    """Return the fields of the status that are not the operator's."""
    return set(status(cluster, owner)) - {"phase", "attempt", "jobName"}


def server_of(cluster: ControlPlane, forwarder: Forwarder, pod: str, folder: Path) -> ApiServer:
    """Return access to the API server as a pod of this name, through the forwarder."""
    return apiserver_of(cluster, NAMESPACE, pod, folder, ("127.0.0.1", forwarder.port))


def reporter_of(server: ApiServer, owner: Owner) -> KubernetesReporter:
    return KubernetesReporter(lambda fields, timeout: server.apply_status(owner, fields, timeout))


def test_a_report_reaches_the_status_and_leaves_the_operators_fields(
    cluster: ControlPlane, forwarder: Forwarder, tmp_path: Path
) -> None:
    owner = create(cluster, TRAINING_JOB, "reached")
    reporter = reporter_of(server_of(cluster, forwarder, "reached-train-1-abcde", tmp_path), owner)
    reporter.progress(Progress(stage="train", epoch=1, epochs=2))
    reporter.report(Metrics(m_ap=0.5, epoch=1))
    reporter.artifact(ARTIFACT)
    reporter.progress(Progress(stage="train", epoch=2, epochs=2))
    assert reporter.close(patience.SECONDS)
    got = status(cluster, owner)
    assert (got["phase"], got["attempt"]) == ("Running", 1)
    assert (got["progress"]["epoch"], got["metrics"]["mAP"]) == (2, 0.5)
    assert got["artifacts"][0]["name"] == "best"
    assert reporter.failed == 0


def test_the_last_report_arrives_after_an_outage_of_the_api_server(
    cluster: ControlPlane, forwarder: Forwarder, tmp_path: Path
) -> None:
    owner = create(cluster, PRUNE_JOB, "away")
    server = server_of(cluster, forwarder, "away-prune-1-abcde", tmp_path)
    forwarder.close()
    failed = threading.Event()

    def send(fields: Any, timeout: float) -> None:
        try:
            server.apply_status(owner, fields, timeout)
        except ApiServerError:
            failed.set()
            raise

    reporter = KubernetesReporter(send)
    reporter.artifact(ARTIFACT)
    assert failed.wait(patience.SECONDS)
    reporter.progress(Progress(stage="prune", step=7))
    assert reported(cluster, owner) == set()
    forwarder.open()
    assert reporter.close(patience.SECONDS)
    got = status(cluster, owner)
    assert got["progress"]["step"] == 7
    assert got["artifacts"][0]["name"] == "best"


def test_a_pod_cannot_report_on_the_resource_of_another(
    cluster: ControlPlane, forwarder: Forwarder, tmp_path: Path
) -> None:
    owner = create(cluster, PRUNE_JOB, "mine")
    server = server_of(cluster, forwarder, "theirs-prune-1-abcde", tmp_path)
    with pytest.raises(ApiServerError) as caught:
        server.apply_status(owner, {"progress": {"step": 1}}, patience.REQUEST)
    assert caught.value.status == 422
    assert reported(cluster, owner) == set()


def test_a_late_report_of_an_earlier_attempt_is_refused(
    cluster: ControlPlane, forwarder: Forwarder, tmp_path: Path
) -> None:
    owner = create(cluster, PRUNE_JOB, "late")
    server = server_of(cluster, forwarder, "late-prune-0-abcde", tmp_path)
    with pytest.raises(ApiServerError) as caught:
        server.apply_status(owner, {"progress": {"step": 1}}, patience.REQUEST)
    assert "by the pod of its present attempt (late-prune-1-xxxxx)" in str(caught.value)
    assert reported(cluster, owner) == set()


def test_a_resource_of_the_same_name_but_another_uid_is_not_written_to(
    cluster: ControlPlane, forwarder: Forwarder, tmp_path: Path
) -> None:
    owner = create(cluster, PRUNE_JOB, "again")
    server = server_of(cluster, forwarder, "again-prune-1-abcde", tmp_path)
    cluster.api.delete("PruneJob", "again", NAMESPACE)
    second = create(cluster, PRUNE_JOB, "again")
    assert second.uid != owner.uid
    with pytest.raises(OwnerGoneError):
        server.apply_status(owner, {"progress": {"step": 1}}, patience.REQUEST)
    assert reported(cluster, second) == set()


def test_a_deleted_resource_ends_the_reports(
    cluster: ControlPlane, forwarder: Forwarder, tmp_path: Path
) -> None:
    owner = create(cluster, PRUNE_JOB, "deleted")
    server = server_of(cluster, forwarder, "deleted-prune-1-abcde", tmp_path)
    cluster.api.delete("PruneJob", "deleted", NAMESPACE)
    with pytest.raises(OwnerGoneError) as caught:
        server.apply_status(owner, {"progress": {"step": 1}}, patience.REQUEST)
    print(caught.value)


def test_a_status_that_the_schema_refuses_is_an_error_that_names_the_field(
    cluster: ControlPlane, forwarder: Forwarder, tmp_path: Path
) -> None:
    owner = create(cluster, PRUNE_JOB, "refused")
    server = server_of(cluster, forwarder, "refused-prune-1-abcde", tmp_path)
    with pytest.raises(ApiServerError) as caught:
        server.apply_status(owner, {"progress": {"step": "seven"}}, patience.REQUEST)
    assert caught.value.status in (400, 422, 500)
    assert "step" in str(caught.value)
