"""Claims of the benchmark that runs the operator beside others: the same pods, and how it counts."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import operator_peers  # noqa: E402
from peers import controllers  # noqa: E402


def _pod(kind):
    """Return the spec of a kind's third pod, without the name of its container."""
    body = operator_peers.trainingruntime("n") if kind.name == "TrainJob" else kind.body("n", 3)
    spec = body["spec"]
    if kind.name == "TrainJob":
        spec = spec["template"]["spec"]
    if "replicatedJobs" in spec:
        spec = spec["replicatedJobs"][0]["template"]["spec"]
    if "pytorchReplicaSpecs" in spec:
        spec = spec["pytorchReplicaSpecs"]["Worker"]
    pod = spec["template"]["spec"]
    return {**pod, "containers": [{**pod["containers"][0], "name": ""}]}


@pytest.mark.parametrize(
    "kind", [kind for kind in operator_peers.KINDS if not kind.ours], ids=lambda k: k.name
)
def test_other_kinds_run_the_pod_of_a_plain_job(kind):
    assert _pod(kind) == _pod(operator_peers.BATCH_JOB)


def test_simulated_pods_of_jobs_and_of_pytorchjobs_end(tmp_path):
    documents = yaml.safe_load_all(operator_peers.stages(tmp_path).read_text())
    end = next(stage for stage in documents if stage["metadata"]["name"] == "pod-complete")
    values = {item["key"]: item.get("values") for item in end["spec"]["selector"]["matchExpressions"]}
    assert values[".metadata.ownerReferences.[].kind"] == ["Job", "PyTorchJob"]


def test_requests_a_job_are_those_of_all_clients_but_the_benchmark_and_the_nodes():
    counted = Counter(
        {
            "GET jobsets": 25,
            "LIST pods": 7,
            "POST pods": 20,
            "PATCH pods/status": 40,
            "PUT leases": 99,
            "PATCH nodes/status": 50,
            "GET ": 8,
            "WATCH pods": 9,
        }
    )
    # Reads: 25 + 7 - 12 of the benchmark; writes: 20 + 40 - 10.
    sent = Counter({"GET": 12, "POST": 10})
    assert operator_peers.requests_a_job(counted, sent, 10) == {"reads": 2.0, "writes": 5.0}


def test_ratios_are_to_the_mean_of_both_turns_of_plain_jobs():
    seconds = {"first": ("Job", 20.0), "ours": ("TrainingJob", 40.0), "last": ("Job", 30.0)}
    rows = operator_peers.with_ratios([{"kind": kind, "seconds": time} for kind, time in seconds.values()])
    assert [row["ratio"] for row in rows] == [0.8, 1.6, 1.2]


def test_a_published_configuration_is_kept_but_for_what_a_process_outside_of_a_cluster_needs():
    published = {
        "kind": "Configuration",
        "controller": {"groupKindConcurrency": {"TrainJob.trainer.kubeflow.org": 5}},
        "leaderElection": {"leaderElect": True, "retryPeriod": "2s"},
        "certManagement": {"enable": True, "webhookSecretName": "s"},
    }
    assert controllers.configured(published, controllers.TRAINER, health=1, webhooks=2) == {
        "kind": "Configuration",
        "controller": {"groupKindConcurrency": {"TrainJob.trainer.kubeflow.org": 5}},
        "leaderElection": {"leaderElect": False, "retryPeriod": "2s"},
        "certManagement": {"enable": False, "webhookSecretName": "s"},
        "health": {"healthProbeBindAddress": "127.0.0.1:1"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": 2},
        "clientConnection": {"qps": 10_000, "burst": 10_000},
    }
