"""Several nodes on a real API server: the Indexed Job and its Service are accepted, and only index 0 reports.

There is no node: the test says of pods what a kubelet would say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import patience
from cluster.control_plane import ControlPlane
from operator_ring.access import apiserver_of
from operator_ring.live import Api, Kubelet, OperatorProcess, until
from operator_ring.manifests import BEST, made
from tlt_api.runspec import Owner
from tlt_runner.status.apiserver import ApiServerError

ROOT = Path(__file__).parents[2]
BASE = ROOT / "manifests" / "base"
NAMESPACE = "nodes"
JOB = "traffic-train-1"


class Pods(Kubelet):
    """Kubelet of one pod of an Indexed Job: jobs are named ``<job>-<index>`` here."""

    def pod(self, job: str) -> dict[str, Any]:
        name, index = job.rsplit("-", 1)
        labels = f"job-name={name},batch.kubernetes.io/job-completion-index={index}"

        def first_pod() -> dict[str, Any] | None:
            pods = self._api.list("Pod", self.namespace, labels)
            return pods[0] if pods else None

        return until(f"pod {index} of Job {name}", first_pod)


@pytest.fixture(scope="module", autouse=True)
def plane(installed: ControlPlane, operator: OperatorProcess) -> ControlPlane:
    """Cluster with a namespace opened to jobs, served by the operator."""
    installed.kubectl("create", "namespace", NAMESPACE, check=False)
    installed.kubectl("apply", "-n", NAMESPACE, "-k", ROOT / "manifests" / "namespace")
    return installed


def training_job(name: str = "traffic", nodes: int = 2) -> dict[str, Any]:
    return made(NAMESPACE, name=name, resources={"gpus": 0, "nodes": nodes})


def started(api: Api, kubelet: Kubelet, name: str) -> dict[str, Any]:
    """Return a TrainingJob whose two pods run."""
    training = training_job(name)
    api.create(training)
    for index in range(2):
        kubelet.run(f"{name}-train-1-{index}")
    return training


def may_of_services(plane: ControlPlane, verb: str) -> bool:
    """Tell whether the operator's account has a right."""
    account = "system:serviceaccount:tlt-system:tlt-operator"
    answer = plane.kubectl("auth", "can-i", verb, "services", "-n", NAMESPACE, "--as", account, check=False)
    return answer.strip() == "yes"


def services(api: Api) -> dict[str, dict[str, Any]]:
    items = api.list("Service", NAMESPACE)
    return {item["metadata"]["name"]: item for item in items}


def test_two_pods_are_made_with_stable_names_and_succeed_together(api: Api) -> None:
    kubelet = Pods(api, NAMESPACE)
    training = training_job()
    api.create(training)
    pods = [kubelet.pod(f"{JOB}-{index}") for index in range(2)]
    assert [pod["spec"]["hostname"] for pod in pods] == [f"{JOB}-0", f"{JOB}-1"]
    assert [pod["spec"]["subdomain"] for pod in pods] == [f"tlt-{JOB}"] * 2
    environment = [{item["name"] for item in pod["spec"]["containers"][0]["env"]} for pod in pods]
    assert all("JOB_COMPLETION_INDEX" in names for names in environment)
    until("the Service", lambda: f"tlt-{JOB}" in services(api))
    kubelet.run(f"{JOB}-0")
    assert api.status(training)["phase"] == "Queued"
    kubelet.run(f"{JOB}-1")
    api.until_phase(training, "Running")

    def hosts() -> set[str]:
        slices = api.list("EndpointSlice", NAMESPACE, f"kubernetes.io/service-name=tlt-{JOB}")
        return {address["hostname"] for item in slices for address in item.get("endpoints") or ()}

    address = {"status": {"podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.9"}]}}
    for pod in pods:
        api.patch("Pod", pod["metadata"]["name"], NAMESPACE, address, "status")
    until("both names to have an address", lambda: hosts() == {f"{JOB}-0", f"{JOB}-1"}, hosts)
    kubelet.end(f"{JOB}-1", 0, "Completed")
    kubelet.end(f"{JOB}-0", 0, "Completed", json.dumps(BEST))
    assert api.until_phase(training, "Succeeded")["artifacts"] == BEST["artifacts"]


def test_the_pod_that_failed_first_is_reported_and_its_peers_and_service_end_with_the_job(api: Api) -> None:
    kubelet = Pods(api, NAMESPACE)
    training = started(api, kubelet, "cause")
    api.until_phase(training, "Running")
    kubelet.end("cause-train-1-1", 137, "OOMKilled")
    kubelet.until_stopped("cause-train-1-0")
    kubelet.end("cause-train-1-0", 76)
    kubelet.run("cause-train-2-0")
    kubelet.run("cause-train-2-1")
    status = api.until_phase(training, "Running")
    assert status["attempt"] == 2
    assert [entry["reason"] for entry in status["history"]] == ["OutOfMemory"]
    assert {"tlt-cause-train-1", "tlt-cause-train-2"} <= set(services(api))
    api.delete("Job", "cause-train-1", NAMESPACE, propagation_policy="Background")
    until("the Service to be collected", lambda: "tlt-cause-train-1" not in services(api))
    assert "tlt-cause-train-2" in services(api)


def test_suspending_stops_every_pod_and_resuming_starts_both_again(api: Api) -> None:
    kubelet = Pods(api, NAMESPACE)
    training = started(api, kubelet, "7-paused")
    api.until_phase(training, "Running")
    api.edit(training, suspend=True)
    pods = [f"7-paused-train-1-{index}" for index in range(2)]
    for pod in pods:
        kubelet.until_stopped(pod)
    kubelet.end(pods[1], 75)
    kubelet.remove(pods[1])
    assert api.status(training)["phase"] == "Running"
    kubelet.end(pods[0], 75)
    kubelet.remove(pods[0])
    api.until_phase(training, "Suspended")
    assert "tlt-7-paused-train-1" in services(api)
    api.edit(training, suspend=False)
    for pod in pods:
        kubelet.run(pod)
    assert api.until_phase(training, "Running")["attempt"] == 1


@pytest.fixture
def no_right_to_services(plane: ControlPlane, tmp_path: Path) -> Iterator[None]:
    """Give the operator a ClusterRole from before spec.resources.nodes, without Services."""
    documents = list(yaml.safe_load_all((BASE / "operator-rbac.yaml").read_text()))
    role = next(item for item in documents if item["kind"] == "ClusterRole")
    role["rules"] = [rule for rule in role["rules"] if rule["resources"] != ["services"]]
    (tmp_path / "role.yaml").write_text(yaml.safe_dump(role))
    plane.kubectl("apply", "-f", tmp_path / "role.yaml")
    until("the right to be gone", lambda: not may_of_services(plane, "get"))
    yield
    plane.kubectl("apply", "-n", "tlt-system", "-f", BASE / "operator-rbac.yaml")
    until("the right to be back", lambda: may_of_services(plane, "get"))


@pytest.mark.usefixtures("no_right_to_services")
def test_without_the_right_to_services_it_reports_the_refusal_and_suspends(api: Api) -> None:
    kubelet = Pods(api, NAMESPACE)
    training = started(api, kubelet, "rights")

    def block() -> tuple[str, str]:
        blocked = next((c for c in api.status(training).get("conditions", ()) if c["type"] == "Blocked"), {})
        return blocked.get("reason", ""), blocked.get("message", "")

    until("the refusal to be reported", lambda: block()[0] == "ServiceRefused", block)
    assert 'cannot get resource "services"' in block()[1]
    assert api.status(training)["jobUid"]
    api.edit(training, suspend=True)
    for index in range(2):
        kubelet.until_stopped(f"rights-train-1-{index}")
        kubelet.end(f"rights-train-1-{index}", 75)
        kubelet.remove(f"rights-train-1-{index}")
    api.until_phase(training, "Suspended")


@pytest.mark.parametrize(
    ("verb", "may"), [("create", True), ("get", True), ("list", False), ("delete", False), ("patch", False)]
)
def test_the_operator_may_get_and_create_services_and_no_more(
    plane: ControlPlane, verb: str, may: bool
) -> None:
    assert may_of_services(plane, verb) == may


@pytest.mark.parametrize(
    ("nodes", "pod", "may"),
    [
        (2, "{job}-0-abcde", True),
        (2, "{job}-1-abcde", False),
        (2, "{job}-10-abcde", False),
        (2, "{job}-abcde", False),
        (2, "{job}-0-train-1-0-abcde", False),
        (2, "x{job}-0-abcde", False),
        (1, "{job}-abcde", True),
        (1, "{job}-0-abcde", False),
    ],
)
def test_only_the_pod_with_index_0_may_report(
    plane: ControlPlane, api: Api, tmp_path: Path, nodes: int, pod: str, may: bool
) -> None:
    name = f"p{nodes}" + pod.replace("{job}", "j")
    training = training_job(name, nodes)
    created = api.create(training)
    # A status may name it a moment later, and allows reports from then on.
    until("its Job in the status", lambda: api.status(training).get("jobName") == f"{name}-train-1")
    server = apiserver_of(plane, NAMESPACE, pod.format(job=f"{name}-train-1"), tmp_path)
    owner = Owner(kind="TrainingJob", namespace=NAMESPACE, name=name, uid=created["metadata"]["uid"])
    if may:
        server.apply_status(owner, {"progress": {"stage": "train", "epoch": 3}}, patience.REQUEST)
        assert api.status(training)["progress"]["epoch"] == 3
        return
    with pytest.raises(ApiServerError, match="by the pod of its present attempt"):
        server.apply_status(owner, {"progress": {"stage": "train", "epoch": 3}}, patience.REQUEST)
