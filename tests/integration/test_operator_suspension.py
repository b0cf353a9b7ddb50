"""Suspension on a real API server and Job controller: by the user, and by what Kueue does to a Job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import patience
from cluster.control_plane import ControlPlane
from operator_ring.kueue import CRD, FLAVOUR, QUEUE, Kueue
from operator_ring.live import Api, Kubelet, OperatorProcess, until
from operator_ring.manifests import made

JOB = "traffic-train-1"


@pytest.fixture
def kubelet(api: Api, namespace: str) -> Kubelet:
    """The kubelet of the pods in this test's namespace."""
    return Kubelet(api, namespace)


@pytest.fixture
def kueue(installed: ControlPlane, namespace: str) -> Iterator[Kueue]:
    """Kueue, for the Jobs of this test's namespace."""
    installed.apply(CRD)
    installed.kubectl("wait", "--for=condition=Established", "crd/workloads.kueue.x-k8s.io", patience.KUBECTL)
    with Kueue(lambda: Api(installed.kubeconfig), namespace) as kueue:
        yield kueue


def stop_pod(api: Api, kubelet: Kubelet) -> str:
    """End the pod that is being stopped as the runner does, with a checkpoint; return its uid."""
    kubelet.until_stopped(JOB)
    uid: str = kubelet.pod(JOB)["metadata"]["uid"]
    kubelet.end(JOB, 75)
    kubelet.remove(JOB)
    # The Job controller has removed its finalizer, so that this pod counts as neither failed nor succeeded.
    until("the pod to be gone", lambda: uid not in _uids(api, kubelet.namespace))
    return uid


def _uids(api: Api, namespace: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in api.list("Pod", namespace, f"job-name={JOB}")}


def test_a_suspended_run_resumes_in_the_same_attempt_with_another_pod(
    api: Api, kubelet: Kubelet, namespace: str, operator: OperatorProcess
) -> None:
    training = made(namespace, runPolicy={"maxRetries": 0})
    api.create(training)
    kubelet.run(JOB)
    api.until_phase(training, "Running")
    api.edit(training, suspend=True)
    kubelet.until_stopped(JOB)
    assert api.status(training)["phase"] == "Running"
    first = stop_pod(api, kubelet)
    api.until_phase(training, "Suspended")
    [job] = api.jobs(namespace).values()
    assert (job["spec"]["suspend"], job["status"].get("failed", 0)) == (True, 0)
    api.edit(training, suspend=False)
    kubelet.run(JOB)
    assert kubelet.pod(JOB)["metadata"]["uid"] != first
    status = api.until_phase(training, "Running")
    assert (status["attempt"], "history" in status) == (1, False)
    kubelet.end(JOB, 0)
    api.until_phase(training, "Succeeded")
    assert list(api.jobs(namespace)) == [JOB]


def queued(api: Api, namespace: str, **spec: Any) -> dict[str, Any]:
    """Return a TrainingJob that waits in a queue."""
    training = made(namespace, **spec)
    training["metadata"]["labels"] = {QUEUE: "gpus"}
    api.create(training)

    def waits() -> bool:
        conditions = api.status(training).get("conditions", [])
        return any(c["reason"] == "WaitingForAdmission" for c in conditions)

    until("it to wait in the queue", waits, lambda: api.status(training))
    assert api.status(training)["phase"] == "Queued"
    return training


def test_kueue_admits_evicts_and_readmits_one_attempt(
    api: Api, kubelet: Kubelet, kueue: Kueue, namespace: str, operator: OperatorProcess
) -> None:
    training = queued(api, namespace, runPolicy={"maxRetries": 0})
    before = (api.status(training).get("history") or []).copy()
    kueue.admit(JOB)
    kubelet.run(JOB)
    api.until_phase(training, "Running")
    assert kubelet.pod(JOB)["spec"]["nodeSelector"] == FLAVOUR
    kueue.evict(JOB)
    stop_pod(api, kubelet)
    status = api.until_phase(training, "Queued")
    [eviction] = [entry for entry in status["history"] if entry not in before]
    assert (eviction["attempt"], eviction["reason"], eviction["paused"]) == (1, "Evicted", True)
    kueue.admit(JOB)
    kubelet.run(JOB)
    assert api.until_phase(training, "Running")["attempt"] == 1
    kubelet.end(JOB, 0)
    status = api.until_phase(training, "Succeeded")
    assert "retries" not in status
    assert list(api.jobs(namespace)) == [JOB]
    events = [item for item in api.list("Event", namespace) if item["involvedObject"]["name"] == "traffic"]
    # The claims of its pod do not exist, which may be reported before a kubelet takes it.
    assert {item["reason"] for item in events if item["type"] == "Warning"} <= {"ClaimMissing"}


def test_a_user_who_suspends_a_run_of_kueue_keeps_its_job_and_its_attempt(
    api: Api, kubelet: Kubelet, kueue: Kueue, namespace: str, operator: OperatorProcess
) -> None:
    training = queued(api, namespace, runPolicy={"maxRetries": 0})
    kueue.admit(JOB)
    kubelet.run(JOB)
    api.until_phase(training, "Running")
    before = {name: api.status(training).get(name) for name in ("history", "preemptions")}
    resumed, uid = len(kueue.resumed), api.jobs(namespace)[JOB]["metadata"]["uid"]
    api.edit(training, suspend=True)
    first = stop_pod(api, kubelet)
    api.until_phase(training, "Suspended")
    assert kueue.workload(JOB)["spec"]["active"] is False
    assert JOB not in kueue.admitted  # its quota is somebody else's
    assert len(kueue.resumed) == resumed  # nothing that Kueue would have to undo
    api.edit(training, suspend=False)
    until("its Workload to be active", lambda: kueue.workload(JOB)["spec"]["active"])
    status = api.until_phase(training, "Queued")
    assert {c["reason"] for c in status["conditions"]} & {"WaitingForAdmission"}
    kueue.admit(JOB)
    kubelet.run(JOB)
    assert kubelet.pod(JOB)["metadata"]["uid"] != first
    status = api.until_phase(training, "Running")
    assert (status["attempt"], "retries" in status) == (1, False)
    assert {name: status.get(name) for name in before} == before
    assert {name: job["metadata"]["uid"] for name, job in api.jobs(namespace).items()} == {JOB: uid}
    kubelet.end(JOB, 0)
    api.until_phase(training, "Succeeded")


def test_a_run_that_is_suspended_while_it_waits_for_kueue_is_taken_out_of_the_queue(
    api: Api, kueue: Kueue, namespace: str, operator: OperatorProcess
) -> None:
    training = queued(api, namespace)
    api.edit(training, suspend=True)
    api.until_phase(training, "Suspended")
    assert kueue.workload(JOB)["spec"]["active"] is False
    api.edit(training, suspend=False)
    until("its Workload to be active", lambda: kueue.workload(JOB)["spec"]["active"])
    assert list(api.jobs(namespace)) == [JOB]


def test_a_run_that_kueue_readmits_while_its_pod_writes_gets_no_second_pod_beside_it(
    api: Api, kubelet: Kubelet, kueue: Kueue, namespace: str, operator: OperatorProcess
) -> None:
    training = queued(api, namespace)
    kueue.admit(JOB)
    kubelet.run(JOB)
    api.until_phase(training, "Running")
    kueue.evict(JOB)
    kubelet.until_stopped(JOB)
    kueue.admit(JOB)
    # The Job controller has seen the resumption, and waits for the end of the pod that it stopped.
    until("the Job to be resumed", lambda: _is_resumed(api.jobs(namespace)[JOB]), lambda: api.jobs(namespace))
    assert len(api.list("Pod", namespace, f"job-name={JOB}")) == 1
    first = stop_pod(api, kubelet)
    kubelet.run(JOB)
    assert kubelet.pod(JOB)["metadata"]["uid"] != first
    assert api.until_phase(training, "Running")["attempt"] == 1


def _is_resumed(job: dict[str, Any]) -> bool:
    conditions = {c["type"]: c["status"] for c in job["status"].get("conditions", ())}
    return conditions.get("Suspended") == "False" and bool(job["status"].get("startTime"))
