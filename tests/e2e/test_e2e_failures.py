"""Failures: each has a reason of its own and a hint, and a parent's failure reaches its children."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.node import Node
from e2e.product import Product, resource, training


def dataset(**changes: Any) -> dict[str, Any]:
    return training("any", "any")["spec"]["dataset"] | changes


def weights(**fields: Any) -> dict[str, Any]:
    return {"model": training("any", "any")["spec"]["model"] | {"pretrainedWeights": fields}}


LABEL = "pvc://tlt-data/digits/training/label_2/000000.txt"
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "no-folder": ({"dataset": dataset(uri="pvc://tlt-data/nowhere")}, "DatasetNotFound", "nowhere"),
    "no-labels": ({"dataset": dataset(labels="training/image_2")}, "NoLabels", "training/image_2"),
    "no-class": ({"dataset": dataset(targetClassMapping={"car": "car"})}, "UnknownClass", "car"),
    "wrong-sha": (weights(uri=LABEL, sha256="0" * 64), "ChecksumMismatch", "0000"),
    "no-weights": (weights(uri=LABEL), "UnreadableModel", "000000.txt"),
    # A node that promises GPUs and has none is waited for, as long as the user lets it.
    "no-gpu": (
        {"resources": {"gpus": 1}, "runPolicy": {"startTimeoutSeconds": 240}},
        "NotEnoughGPUs",
        "1",
    ),
    "no-memory": (
        {"resources": {"gpus": 0, "memory": "150Mi"}, "runPolicy": {"maxRetries": 0}},
        "OutOfMemory",
        "",
    ),
}


@pytest.fixture(scope="module")
def applied(product: Product, namespace: str) -> str:
    """All wrong resources at once: they do not wait for each other."""
    if isinstance(product.cluster, Node):
        product.cluster.set_gpus(1)
    for name, (changes, _, _) in CASES.items():
        product.cluster.apply(training(name, namespace, **changes))
    return namespace


@pytest.mark.parametrize("name", CASES)
def test_each_wrong_input_fails_with_its_reason(product: Product, applied: str, name: str) -> None:
    if name == "no-gpu" and not isinstance(product.cluster, Node):
        pytest.skip("an existing cluster's nodes cannot be given GPUs that are not there")
    _, reason, message = CASES[name]
    status = product.wait_finished("TrainingJob", name, applied)
    assert status["phase"] == "Failed"
    assert status["failure"]["reason"] == reason, status["failure"]
    assert message in status["failure"]["message"]
    assert status["failure"]["hint"]
    failed = {item["type"]: item for item in status["conditions"]}["Failed"]
    assert (failed["status"], failed["reason"]) == ("True", reason)


def test_children_of_a_failed_parent_fail_with_a_message(product: Product, applied: str) -> None:
    output = {"uri": "pvc://tlt-data/runs/orphan"}
    spec = {"model": {"trainingJobRef": {"name": "no-class"}}, "threshold": 0.5, "output": output}
    product.cluster.apply(resource("PruneJob", "orphan", applied, spec))
    status = product.wait_finished("PruneJob", "orphan", applied)
    assert status["failure"]["reason"] == "DependencyFailed"
    assert "UnknownClass" in status["failure"]["message"]


def test_an_out_of_memory_kill_is_retried_with_half_the_batch(product: Product, applied: str) -> None:
    changes = {"resources": {"gpus": 0, "memory": "150Mi"}, "runPolicy": {"maxRetries": 1}}
    product.cluster.apply(training("squeezed", applied, **changes))
    status = product.wait_finished("TrainingJob", "squeezed", applied)
    assert (status["phase"], status["attempt"]) == ("Failed", 2)
    assert status["failure"]["reason"] == "OutOfMemory"
    assert status["history"][0]["remedy"] == "batchSizePerGPU 4 -> 2, gradientAccumulationSteps 1 -> 2"
