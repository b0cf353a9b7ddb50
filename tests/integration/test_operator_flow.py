"""Operator as a process, with its ServiceAccount's rights, against a real API server and Job controller.

There is no node: the tests say of pods what a kubelet would say.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiException

from cluster.control_plane import ControlPlane
from operator_ring.access import connection_of, kubeconfig_of
from operator_ring.live import Api, Kubelet, OperatorProcess, until
from operator_ring.manifests import BEST, SHA, made
from tlt_api.resources import KINDS
from tlt_operator.cluster.client import ConflictError
from tlt_operator.cluster.http import HttpClient


@pytest.fixture
def kubelet(api: Api, namespace: str) -> Kubelet:
    """The kubelet of the pods in this test's namespace."""
    return Kubelet(api, namespace)


def started(api: Api, kubelet: Kubelet, **spec: Any) -> dict[str, Any]:
    """Return a TrainingJob whose first attempt runs."""
    training = made(kubelet.namespace, **spec)
    api.create(training)
    kubelet.run("traffic-train-1")
    return training


def test_a_flow_applied_child_first_runs_to_its_end(
    api: Api, kubelet: Kubelet, namespace: str, operator: OperatorProcess
) -> None:
    export = made(namespace, "ExportJob", "deploy")
    prune = made(namespace, "PruneJob", "small")
    training = made(namespace)
    for manifest in (export, prune):
        api.create(manifest)
        api.until_phase(manifest, "Pending")
    api.create(training)
    api.until_phase(training, "Queued")
    kubelet.run("traffic-train-1")
    api.until_phase(training, "Running")
    kubelet.end("traffic-train-1", 0, "Completed", json.dumps(BEST))
    status = api.until_phase(training, "Succeeded")
    assert status["artifacts"] == BEST["artifacts"]
    for manifest, job in ((prune, "small-prune-1"), (export, "deploy-export-1")):
        kubelet.run(job)
        kubelet.end(job, 0, "Completed")
        assert api.until_phase(manifest, "Succeeded")["inputs"]["model"]["sha256"] == SHA
    stored = api.resource(training)
    assert stored
    assert "finalizers" not in stored["metadata"]
    assert "annotations" not in stored["metadata"]
    managers = {entry["manager"] for entry in stored["metadata"]["managedFields"]}
    assert {"tlt-operator", "tlt-runner"} <= managers
    events = api.list("Event", namespace)
    reasons = {item["reason"] for item in events if item["involvedObject"]["name"] == "traffic"}
    assert "Succeeded" in reasons


def test_the_attempt_after_out_of_memory_has_half_the_batch_size(
    api: Api, kubelet: Kubelet, operator: OperatorProcess
) -> None:
    training = started(api, kubelet)
    kubelet.end("traffic-train-1", 137, "OOMKilled")
    pod = kubelet.pod("traffic-train-2")
    run = json.loads(pod["metadata"]["annotations"]["tlt.dev/run-spec"])
    assert (run["attempt"], run["spec"]["training"]["batchSizePerGPU"]) == (2, 2)
    kubelet.run("traffic-train-2")
    kubelet.end("traffic-train-2", 0)
    status = api.until_phase(training, "Succeeded")
    assert [entry["reason"] for entry in status["history"]] == ["OutOfMemory"]
    assert "failure" not in status


def test_an_evicted_pod_is_distinguished_from_a_failed_run_and_costs_no_retry(
    api: Api, kubelet: Kubelet, operator: OperatorProcess
) -> None:
    training = started(api, kubelet, runPolicy={"maxRetries": 0})
    target = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "m"}
    kubelet.end("traffic-train-1", 75, conditions=[target])
    kubelet.run("traffic-train-2")
    status = api.until_phase(training, "Running")
    assert status["attempt"] == 2
    assert [entry["reason"] for entry in status["history"]] == ["Evicted"]
    assert "retries" not in status


def test_a_run_longer_than_its_deadline_fails_and_goes_on_with_a_longer_one(
    api: Api, kubelet: Kubelet, operator: OperatorProcess
) -> None:
    training = started(api, kubelet, runPolicy={"activeDeadlineSeconds": 60})
    assert kubelet.pod("traffic-train-1")["spec"]["activeDeadlineSeconds"] == 60
    kubelet.end("traffic-train-1", 75, pod_reason="DeadlineExceeded")
    assert api.until_phase(training, "Failed")["failure"]["reason"] == "DeadlineExceeded"
    api.edit(training, retry=1, runPolicy={"activeDeadlineSeconds": 600})
    kubelet.run("traffic-train-2")
    assert api.until_phase(training, "Running")["observedRetry"] == 1
    assert kubelet.pod("traffic-train-2")["spec"]["activeDeadlineSeconds"] == 600


def test_a_pod_beyond_quota_is_reported_and_waited_for(
    api: Api, namespace: str, operator: OperatorProcess
) -> None:
    metadata = {"name": "none", "namespace": namespace}
    api.create({"kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": {"pods": "0"}}})
    training = made(namespace)
    api.create(training)

    def blocked() -> str:
        conditions = api.status(training).get("conditions", [])
        return next(
            (c["message"] for c in conditions if c["type"] == "Blocked" and c["status"] == "True"), ""
        )

    assert "exceeded quota" in until("the blocker to be reported", blocked, lambda: api.status(training))
    assert api.status(training)["phase"] == "Queued"


def test_pods_pass_the_restricted_pod_security_standard(
    api: Api, namespace: str, operator: OperatorProcess
) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    api.patch("Namespace", namespace, None, {"metadata": {"labels": labels}})
    api.create(made(namespace, resources={"gpus": 2, "cpu": "1", "memory": "1Gi"}))
    pod = Kubelet(api, namespace).pod("traffic-train-1")
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"


def test_a_finished_job_is_removed_after_its_ttl_and_the_resource_stays(
    api: Api, kubelet: Kubelet, namespace: str, operator: OperatorProcess
) -> None:
    training = started(api, kubelet, runPolicy={"ttlSecondsAfterFinished": 0})
    kubelet.end("traffic-train-1", 0)
    api.until_phase(training, "Succeeded")
    until("the Job to be removed", lambda: not api.jobs(namespace))
    assert api.status(training)["phase"] == "Succeeded"
    assert api.status(training)["attempt"] == 1


def test_a_deleted_job_is_made_again_as_the_next_attempt(
    api: Api, kubelet: Kubelet, namespace: str, operator: OperatorProcess
) -> None:
    training = started(api, kubelet)
    api.until_phase(training, "Running")
    api.delete("Job", "traffic-train-1", namespace, propagation_policy="Background")
    kubelet.until_stopped("traffic-train-1")
    assert "traffic-train-2" not in api.jobs(namespace)  # two pods must not write to one output
    kubelet.remove("traffic-train-1")
    kubelet.run("traffic-train-2")
    assert [entry["reason"] for entry in api.until_phase(training, "Running")["history"]] == ["JobDeleted"]


def test_everything_can_be_deleted_while_the_operator_is_gone(
    api: Api, kubelet: Kubelet, namespace: str, operator: OperatorProcess
) -> None:
    training = started(api, kubelet)
    api.until_phase(training, "Running")
    operator.kill()
    api.remove(training)
    kubelet.until_stopped("traffic-train-1")
    kubelet.remove("traffic-train-1")
    until("its Job to be collected", lambda: not api.jobs(namespace))
    assert api.resource(training) is None
    api.delete("Namespace", namespace)
    until("the namespace to be gone", lambda: api.get("Namespace", namespace) is None)
    operator.start()


def bound_in(plane: ControlPlane, folder: Path, *namespaces: str) -> Path:
    """Write a kubeconfig of an operator with RoleBindings in these namespaces, and no right beyond them."""
    account = {"name": "operator-of-some", "namespace": "tlt-system"}
    plane.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    for namespace in namespaces:
        plane.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": "tlt-operator", "namespace": namespace},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": "tlt-operator",
                },
                "subjects": [{"kind": "ServiceAccount", **account}],
            }
        )
    return kubeconfig_of(plane, account["name"], folder / "kubeconfig")


def test_with_rolebindings_alone_the_operator_serves_those_namespaces_and_no_others(
    api: Api,
    namespace: str,
    control_plane_cluster: ControlPlane,
    tmp_path: Path,
    operator: OperatorProcess,
) -> None:
    operator.stop()
    second, other = f"{namespace}-second", f"{namespace}-other"
    for name in (second, other):
        api.create({"kind": "Namespace", "metadata": {"name": name}})
    access = bound_in(control_plane_cluster, tmp_path, namespace, second)
    with OperatorProcess(access, tmp_path / "log", TLT_NAMESPACES=f"{namespace},{second}") as process:
        for name in (other, second, namespace):
            api.create(made(name))
        api.until_phase(made(namespace), "Queued")
        api.until_phase(made(second), "Queued")
        assert api.status(made(other)) == {}
        assert "Traceback" not in process.log()
        assert "Forbidden" not in process.log()
    operator.start()
    api.until_phase(made(other), "Queued")


def test_without_the_right_to_list_the_operator_is_alive_and_becomes_ready_with_the_right(
    api: Api,
    namespace: str,
    control_plane_cluster: ControlPlane,
    tmp_path: Path,
    operator: OperatorProcess,
) -> None:
    operator.stop()
    shut = f"{namespace}-shut"
    api.create({"kind": "Namespace", "metadata": {"name": shut}})
    access = bound_in(control_plane_cluster, tmp_path)
    for name in (shut, namespace):
        api.create(made(name))
    with OperatorProcess(access, tmp_path / "log", TLT_NAMESPACES=f"{namespace},{shut}") as process:

        def ready() -> int:
            return process.get(process.health_address, "/readyz")[0]

        until("the operator to wait", lambda: ready() == 503, process.log)
        assert process.get(process.health_address, "/healthz")[0] == 200
        assert process.stop() == 0
        bound_in(control_plane_cluster, tmp_path, namespace)
        process.start()
        until("the operator to be ready", lambda: ready() == 200, process.log)
        api.until_phase(made(namespace), "Queued")
        kubelet = Kubelet(api, namespace)
        kubelet.run("traffic-train-1")
        kubelet.end("traffic-train-1", 0)
        api.until_phase(made(namespace), "Succeeded")
        assert api.status(made(shut)) == {}
        lists = process.get(process.metrics_address, "/metrics")[1]
        assert f'tlt_operator_failed_lists_total{{kind="TrainingJob",namespace="{shut}"}}' in lists
        assert "Traceback" not in process.log()
    operator.start()


def test_health_and_metrics_are_served(api: Api, namespace: str, operator: OperatorProcess) -> None:
    api.create(made(namespace))
    api.until_phase(made(namespace), "Queued")
    status, text = operator.get(operator.health_address, "/healthz")
    assert (status, json.loads(text)) == (200, {"ok": True, "role": "leader", "problems": []})

    def exposition() -> str:
        return operator.get(operator.metrics_address, "/metrics")[1]

    sample = 'writes_total{kind="TrainingJob",outcome="ok",what="job"}'
    until("the Job to be counted", lambda: sample in exposition(), exposition)
    assert 'tlt_resources{kind="TrainingJob",phase="Queued"}' in exposition()
    assert operator.stop() == 0
    operator.start()


def test_a_status_written_from_an_old_snapshot_is_refused_by_the_server(
    api: Api, namespace: str, operator_kubeconfig: Path, operator: OperatorProcess
) -> None:
    training = made(namespace)
    old = api.create(training)["metadata"]
    api.until_phase(training, "Queued")

    async def write(version: str, uid: str) -> None:
        async with HttpClient(lambda: connection_of(operator_kubeconfig)) as client:
            where = (KINDS["TrainingJob"], namespace, "traffic", uid)
            await client.patch_status(*where, {"phase": "Failed"}, version)

    with pytest.raises(ConflictError):
        asyncio.run(write(old["resourceVersion"], old["uid"]))
    api.remove(training)
    api.create(training)  # another of the same name
    with pytest.raises(ConflictError):
        asyncio.run(write(old["resourceVersion"], old["uid"]))
    assert api.status(training).get("phase") != "Failed"


def test_the_operator_may_not_read_secrets_or_change_specs(
    api: Api, namespace: str, operator_kubeconfig: Path, request: pytest.FixtureRequest
) -> None:
    mine = Api(operator_kubeconfig)
    request.addfinalizer(mine.close)
    training = made(namespace)
    api.create(training)
    pod = {"kind": "Pod", "metadata": {"name": "p", "namespace": namespace}}
    for attempt in (
        lambda: mine.list("Secret", namespace),
        lambda: mine.edit(training, suspend=True),
        lambda: mine.remove(training),
        lambda: mine.create(pod),
    ):
        with pytest.raises(ApiException) as refused:
            attempt()
        assert refused.value.status == 403
        # Without credentials the answer would be 403, too.
        assert "system:serviceaccount:tlt-system:tlt-operator" in refused.value.body
