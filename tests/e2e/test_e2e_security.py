"""Permissions of a runner, tried out with a runner's own credentials against the real API server."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

import patience
from cluster import binaries
from e2e.product import Product, training

REQUEST = """
import json, ssl, sys, urllib.error, urllib.request
method, path, body = json.load(sys.stdin)
folder = "/var/run/secrets/kubernetes.io/serviceaccount/"
request = urllib.request.Request("https://kubernetes.default.svc" + path, method=method)
request.add_header("Authorization", "Bearer " + open(folder + "token").read())
if body is not None:
    request.add_header("Content-Type", "application/apply-patch+yaml")
    request.data = json.dumps(body).encode()
try:
    context = ssl.create_default_context(cafile=folder + "ca.crt")
    print(urllib.request.urlopen(request, context=context).status)
except urllib.error.HTTPError as error:
    print(error.code, json.load(error).get("message", ""))
"""


COMPLETE = {
    "type": "Complete",
    "status": "True",
    "reason": "Succeeded",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}


@pytest.fixture(scope="module")
def pod(product: Product, namespace: str) -> str:
    """A pod named and privileged as the runner of TrainingJob mine; mine and other exist, suspended."""
    for name in ("mine", "other", "mine-train-1"):
        product.cluster.apply(training(name, namespace, suspend=True))
        product.wait("TrainingJob", name, namespace, lambda status: status.get("phase") == "Suspended")
        announced = {"status": {"jobName": f"{name}-train-1"}}
        product.cluster.api.patch("TrainingJob", name, namespace, announced, "status")
    container = {
        "name": "runner",
        "image": product.images.operator,
        "command": ["python", "-c", "import time; time.sleep(3600)"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    template = {
        "serviceAccountName": "tlt-runner",
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    metadata = {"name": "mine-train-1", "namespace": namespace}
    spec = {"backoffLimit": 0, "template": {"spec": template}}
    product.cluster.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})
    selector = ("-n", namespace, "-l", "job-name=mine-train-1")
    product.cluster.kubectl("wait", "--for=create", "pod", *selector, patience.KUBECTL)
    product.cluster.kubectl("wait", "--for=condition=Ready", "pod", *selector, patience.KUBECTL)
    (item,) = product.list("Pod", namespace, "job-name=mine-train-1")
    name: str = item["metadata"]["name"]
    return name


def ask(product: Product, namespace: str, pod: str, method: str, path: str, body: Any = None) -> str:
    command = ["exec", "-i", "-n", namespace, pod, "--", "python", "-c", REQUEST]
    program = [str(binaries.binary("kubectl")), "--kubeconfig", str(product.cluster.kubeconfig), *command]
    sent = json.dumps([method, path, body])
    return subprocess.run(program, input=sent, capture_output=True, text=True, check=True).stdout.strip()


def report(product: Product, namespace: str, pod: str, name: str, status: Any, part: str = "/status") -> str:
    path = f"/apis/tlt.dev/v1alpha1/namespaces/{namespace}/trainingjobs/{name}{part}"
    query = "?fieldManager=tlt-runner&force=true"
    key = "status" if part else "spec"
    body = {
        "apiVersion": "tlt.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        key: status,
    }
    return ask(product, namespace, pod, "PATCH", path + query, body)


def test_a_runner_reports_on_its_own_resource(product: Product, namespace: str, pod: str) -> None:
    assert report(product, namespace, pod, "mine", {"progress": {"epoch": 3}}) == "200"
    assert product.get("TrainingJob", "mine", namespace)["status"]["progress"]["epoch"] == 3


@pytest.mark.parametrize("name", ["other", "mine-train-1"])
def test_a_runner_cannot_report_on_another_resource(
    product: Product, namespace: str, pod: str, name: str
) -> None:
    answer = report(product, namespace, pod, name, {"progress": {"epoch": 3}})
    assert answer.startswith("422")
    assert f"expected a report on {name} by the pod of its present attempt" in answer


@pytest.mark.parametrize(
    "status",
    [
        {"phase": "Succeeded"},
        {"attempt": 9},
        {"retries": 0},
        {"jobName": "other-train-1"},
        {"jobUid": "x"},
        {"observedGeneration": 9},
        {"startTime": "2026-01-01T00:00:00Z"},
        {"completionTime": "2026-01-01T00:00:00Z"},
        {"failure": {"reason": "Internal"}},
        {"history": [{"attempt": 1, "reason": "Internal"}]},
        {"dependency": {"kind": "PruneJob", "name": "p", "uid": "u"}},
        {"inputs": {"model": {"uri": "pvc://tlt-data/other.keras"}}},
        {"conditions": [COMPLETE]},
    ],
    ids=lambda status: next(iter(status)),
)
def test_a_runner_cannot_write_the_operators_status_fields(
    product: Product, namespace: str, pod: str, status: dict[str, Any]
) -> None:
    assert report(product, namespace, pod, "mine", status).startswith("422")


def test_a_runner_cannot_change_a_spec(product: Product, namespace: str, pod: str) -> None:
    assert report(product, namespace, pod, "mine", {"suspend": False}, part="").startswith("403")


@pytest.mark.parametrize("path", ["secrets", "pods", "configmaps"])
def test_a_runner_cannot_read_other_objects(product: Product, namespace: str, pod: str, path: str) -> None:
    assert ask(product, namespace, pod, "GET", f"/api/v1/namespaces/{namespace}/{path}").startswith("403")


@pytest.mark.parametrize(
    ("verb", "what"),
    [
        ("get", "secrets"),
        ("create", "pods"),
        ("delete", "pods"),
        ("update", "trainingjobs.tlt.dev"),
        ("patch", "trainingjobs.tlt.dev"),
        ("create", "clusterroles"),
        ("get", "nodes"),
        ("*", "*"),
    ],
)
def test_the_operator_has_no_permission_beyond_its_needs(product: Product, verb: str, what: str) -> None:
    account = "system:serviceaccount:tlt-system:tlt-operator"
    answer = product.cluster.kubectl("auth", "can-i", verb, what, "-A", "--as", account, check=False).strip()
    assert answer == "no"
