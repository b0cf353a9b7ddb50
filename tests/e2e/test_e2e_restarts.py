"""Anything may die at any moment: training goes on, status catches up, nothing is started twice."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import pytest

import patience
from e2e.product import Product, training

LONGEST_GAP_SECONDS = 15
"""Time within which a standby works after the death of a leader; in an update it is asked to end."""


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


def test_a_rolling_update_leaves_no_gap(
    product: Product, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    created: dict[str, float] = {}
    has_job: dict[str, float] = {}
    ended = threading.Event()

    def create() -> None:
        for number in itertools.count():
            if ended.wait(1):
                return
            # Nowhere to run: what is measured is the time until its Job exists.
            nowhere = {"nodeSelector": {"example.com/nowhere": "true"}}
            name = f"rolling-{number}"
            product.cluster.apply(training(name, namespace, podTemplate=nowhere))
            created[name] = time.monotonic()

    def note_jobs() -> None:
        for job in product.list("Job", namespace):
            name = job["metadata"]["name"].removesuffix("-train-1")
            if name in created:
                has_job.setdefault(name, time.monotonic())

    creator = threading.Thread(target=create)
    creator.start()
    deployment = ("deployment/tlt-operator", "-n", "tlt-system")
    try:
        product.cluster.kubectl("rollout", "restart", *deployment)
        rollout = threading.Thread(
            target=product.cluster.kubectl, args=("rollout", "status", *deployment, patience.KUBECTL)
        )
        rollout.start()
        while rollout.is_alive():
            note_jobs()
            time.sleep(0.1)
    finally:
        ended.set()
        creator.join()
    deadline = time.monotonic() + patience.SECONDS
    while set(has_job) < set(created) and time.monotonic() < deadline:
        note_jobs()
        time.sleep(0.1)
    seconds = {name: has_job[name] - created[name] for name in created}
    with capsys.disabled():
        print(f"\n{len(seconds)} resources created in a rollout: a Job within {max(seconds.values()):.1f} s")
    assert max(seconds.values()) < LONGEST_GAP_SECONDS
    jobs = [item["metadata"]["name"] for item in product.list("Job", namespace)]
    assert sorted(name for name in jobs if name.startswith("rolling-")) == sorted(
        f"{n}-train-1" for n in created
    )
    for name in created:
        product.cluster.kubectl("delete", "trainingjob", name, "-n", namespace, "--wait=false")
