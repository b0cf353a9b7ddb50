"""What a real API server says of pods that it refuses: reported with what mends it, and healed by that."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from operator_ring.live import NODE_MANIFEST, Api, Kubelet, OperatorProcess, until
from operator_ring.manifests import BEST, made

JOB = "traffic-train-1"


def blocked(api: Api, training: dict[str, Any]) -> dict[str, Any]:
    """Wait until the resource is blocked, and return the condition."""

    def condition() -> dict[str, Any] | None:
        conditions = api.status(training).get("conditions", [])
        return next((c for c in conditions if c["type"] == "Blocked" and c["status"] == "True"), None)

    found: dict[str, Any] = until("the blocker to be reported", condition, lambda: api.status(training))
    return found


def account(namespace: str) -> dict[str, Any]:
    return {"kind": "ServiceAccount", "metadata": {"name": "tlt-runner", "namespace": namespace}}


def test_a_namespace_that_nobody_opened_to_runners_is_told_and_healed(
    api: Api, namespace: str, operator: OperatorProcess
) -> None:
    api.delete("ServiceAccount", "tlt-runner", namespace)
    training = made(namespace)
    api.create(training)
    condition = blocked(api, training)
    assert condition["reason"] == "ServiceAccountMissing"
    assert f"kubectl apply -k manifests/namespace -n {namespace}" in condition["message"]
    api.create(account(namespace))
    kubelet = Kubelet(api, namespace)
    kubelet.run(JOB)
    assert api.until_phase(training, "Running")["attempt"] == 1


@pytest.mark.parametrize(
    ("field", "reason", "missing"),
    [
        (
            "runtimeClassName",
            "RuntimeClassMissing",
            {"kind": "RuntimeClass", "metadata": {"name": "late"}, "handler": "runc"},
        ),
        (
            "priorityClassName",
            "PriorityClassMissing",
            {"kind": "PriorityClass", "metadata": {"name": "late"}, "value": 1000},
        ),
    ],
)
def test_a_class_that_comes_late_is_told_and_healed(
    api: Api, namespace: str, operator: OperatorProcess, field: str, reason: str, missing: dict[str, Any]
) -> None:
    training = made(namespace, podTemplate={field: "late"})
    api.create(training)
    condition = blocked(api, training)
    assert (condition["reason"], "late" in condition["message"]) == (reason, True)
    api.create(missing)
    try:
        Kubelet(api, namespace).run(JOB)
        assert api.until_phase(training, "Running")["attempt"] == 1
    finally:
        api.delete(missing["kind"], "late")


def test_a_pod_for_which_its_own_spec_can_never_work_fails_at_once(
    api: Api, namespace: str, operator: OperatorProcess
) -> None:
    training = made(namespace, podTemplate={"nodeSelector": {"a/b/c": "x"}})
    api.create(training)
    failure = api.until_phase(training, "Failed")["failure"]
    assert failure["reason"] == "InvalidSpec"
    assert "nodeSelector" in failure["message"]


def test_a_failed_run_is_taken_up_again_under_its_uid(
    api: Api, namespace: str, operator: OperatorProcess
) -> None:
    training = made(namespace)
    uid = api.create(training)["metadata"]["uid"]
    kubelet = Kubelet(api, namespace)
    kubelet.run(JOB)
    kubelet.end(JOB, 20)
    assert api.until_phase(training, "Failed")["failure"]["reason"] == "DatasetNotFound"
    api.edit(training, retry=1)
    kubelet.run("traffic-train-2")
    kubelet.end("traffic-train-2", 0)
    status = api.until_phase(training, "Succeeded")
    assert (status["restarts"], [entry["retry"] for entry in status["history"]]) == (1, [1])
    stored = api.resource(training)
    assert stored and stored["metadata"]["uid"] == uid


def test_storage_that_is_away_is_waited_for(api: Api, namespace: str, operator: OperatorProcess) -> None:
    training = made(namespace, runPolicy={"maxRetries": 0})
    api.create(training)
    kubelet = Kubelet(api, namespace)
    for attempt in (1, 2, 3):
        kubelet.run(f"traffic-train-{attempt}")
        kubelet.end(f"traffic-train-{attempt}", 40)
    kubelet.run("traffic-train-4")
    status = api.until_phase(training, "Running")
    assert (status["restarts"], "retries" in status) == (3, False)
    jobs = api.jobs(namespace)
    assert jobs[JOB]["spec"]["ttlSecondsAfterFinished"] == 3600


def test_a_pod_on_a_silent_node_is_lost_until_it_is_deleted_by_force(
    api: Api, namespace: str, operator: OperatorProcess
) -> None:
    training = made(namespace)
    api.create(training)
    kubelet = Kubelet(api, namespace)
    kubelet.run(JOB)
    api.until_phase(training, "Running")
    pod = kubelet.pod(JOB)["metadata"]["name"]
    # What the node controller and the taint manager do; nobody is there to end the process.
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    unready = [
        {"type": "Ready", "status": "False", "lastTransitionTime": now},
        {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "m"},
    ]
    api.patch("Pod", pod, namespace, {"status": {"conditions": unready}}, "status")
    api.delete("Pod", pod, namespace)
    status = api.until_phase(training, "Retrying")
    message = next(c["message"] for c in status["conditions"] if c["reason"] == "NodeLost")
    assert f"kubectl delete pod {pod} -n {namespace} --force --grace-period=0" in message
    assert list(api.jobs(namespace)) == [JOB]
    api.delete("Pod", pod, namespace, grace_period_seconds=0)
    kubelet.run("traffic-train-2")
    status = api.until_phase(training, "Running")
    assert (status["attempt"], status["preemptions"], "retries" in status) == (2, 1, False)


def test_the_later_of_two_resources_with_one_output_waits_for_the_first(
    api: Api, namespace: str, operator: OperatorProcess
) -> None:
    output = {"uri": "pvc://runs/shared"}
    first, second = (made(namespace, name=name, output=output) for name in ("one", "two"))
    api.create(first)
    api.create(second)
    condition = blocked(api, second)
    assert (condition["reason"], "TrainingJob/one writes to" in condition["message"]) == ("OutputInUse", True)
    assert list(api.jobs(namespace)) == ["one-train-1"]
    kubelet = Kubelet(api, namespace)
    kubelet.run("one-train-1")
    kubelet.end("one-train-1", 0)
    api.until_phase(first, "Succeeded")
    kubelet.run("two-train-1")
    assert api.until_phase(second, "Running")["attempt"] == 1


def test_a_node_that_is_deleted_ends_its_pod_and_the_next_attempt_follows(
    api: Api, namespace: str, operator: OperatorProcess
) -> None:
    node = {"name": f"node-of-{namespace}"}
    api.create(NODE_MANIFEST | {"metadata": node})
    training = made(namespace)
    api.create(training)
    kubelet = Kubelet(api, namespace)
    target = {"kind": "Node", "name": node["name"]}
    pod = {"name": kubelet.pod(JOB)["metadata"]["name"], "namespace": namespace}
    api.create({"kind": "Binding", "metadata": pod, "target": target}, parent="Pod")
    kubelet.run(JOB)
    api.until_phase(training, "Running")
    # The garbage collector of pods finds within a minute that the node is gone.
    api.delete("Node", node["name"])
    kubelet.run("traffic-train-2")
    kubelet.end("traffic-train-2", 0, "Completed", json.dumps(BEST))
    status = api.until_phase(training, "Succeeded")
    assert (status["attempt"], status["preemptions"], status.get("retries")) == (2, 1, None)
    assert set(api.jobs(namespace)) == {JOB, "traffic-train-2"}
