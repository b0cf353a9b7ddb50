"""Anything may die at any moment: training goes on, status catches up, nothing is started twice."""

from __future__ import annotations

from typing import Any

from e2e.product import Product, training


def is_training(status: dict[str, Any]) -> bool:
    return bool(status.get("phase") == "Running" and status.get("progress", {}).get("epoch", 0) >= 1)


def test_training_goes_on_when_the_operators_pod_is_deleted(product: Product, namespace: str) -> None:
    product.cluster.apply(training("steady", namespace, epochs=8))
    product.wait("TrainingJob", "steady", namespace, is_training)
    (before,) = product.list("Pod", namespace, "job-name=steady-train-1")
    product.cluster.kubectl("delete", "pod", "-n", "tlt-system", "-l", "app.kubernetes.io/name=tlt-operator")
    status = product.wait_finished("TrainingJob", "steady", namespace)
    assert (status["phase"], status["attempt"]) == ("Succeeded", 1)
    (after,) = product.list("Pod", namespace, "job-name=steady-train-1")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    jobs = [item["metadata"]["name"] for item in product.list("Job", namespace)]
    assert [name for name in jobs if name.startswith("steady-")] == ["steady-train-1"]


def test_a_training_job_deleted_by_hand_is_attempted_anew(product: Product, namespace: str) -> None:
    product.cluster.apply(training("deleted", namespace, epochs=8))
    product.wait("TrainingJob", "deleted", namespace, is_training)
    product.cluster.kubectl("delete", "job", "deleted-train-1", "-n", namespace)
    status = product.wait_finished("TrainingJob", "deleted", namespace)
    assert (status["phase"], status["attempt"]) == ("Succeeded", 2)
    assert [item["reason"] for item in status["history"]] == ["JobDeleted"]


def test_a_suspended_training_stops_and_resumes(product: Product, namespace: str) -> None:
    body = training("paused", namespace, epochs=8)
    product.cluster.apply(body)
    product.wait("TrainingJob", "paused", namespace, is_training)
    product.cluster.apply({**body, "spec": {**body["spec"], "suspend": True}})
    product.wait("TrainingJob", "paused", namespace, lambda status: status.get("phase") == "Suspended")
    product.cluster.apply({**body, "spec": {**body["spec"], "suspend": False}})
    status = product.wait_finished("TrainingJob", "paused", namespace)
    assert status["phase"] == "Succeeded"
    assert status["progress"]["epoch"] == 8
