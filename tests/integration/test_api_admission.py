"""A real API server takes our CRDs and samples, and refuses wrong resources with a sentence that helps."""

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.control_plane import ControlPlane
from cluster.errors import ClusterError
from tlt_api.common import CLUSTER_URI_PATTERN

ROOT = Path(__file__).parents[2]
TRAINING: dict[str, Any] = {
    "apiVersion": "tlt.dev/v1alpha1",
    "kind": "TrainingJob",
    "metadata": {"name": "digits", "namespace": "default"},
    "spec": {
        "dataset": {
            "uri": "pvc://tlt-data/digits",
            "targetClassMapping": {"one": "one"},
            "imageSize": {"width": 192, "height": 128},
        },
        "output": {"uri": "pvc://tlt-data/runs/digits"},
    },
}
PRUNE: dict[str, Any] = {
    "apiVersion": "tlt.dev/v1alpha1",
    "kind": "PruneJob",
    "metadata": {"name": "digits", "namespace": "default"},
    "spec": {"model": {"trainingJobRef": {"name": "digits"}}, "output": {"uri": "pvc://tlt-data/out"}},
}
EXPORT: dict[str, Any] = {
    "apiVersion": "tlt.dev/v1alpha1",
    "kind": "ExportJob",
    "metadata": {"name": "digits", "namespace": "default"},
    "spec": {"model": {"trainingJobRef": {"name": "digits"}}, "output": {"uri": "pvc://tlt-data/out"}},
}


@pytest.fixture(scope="module")
def cluster(installed: ControlPlane) -> ControlPlane:
    return installed


def with_field(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    body = copy.deepcopy(body)
    node = body
    *parents, last = path.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return body


def refusal(cluster: ControlPlane, body: dict[str, Any], *flags: str) -> str:
    with pytest.raises(ClusterError) as error:
        cluster.kubectl("apply", *flags, "-f", "-", stdin=json.dumps(body))
    return str(error.value)


@pytest.mark.parametrize(
    ("body", "path", "value", "expected"),
    [
        (
            TRAINING,
            "spec.dataset.imageSize.width",
            190,
            ["spec.dataset.imageSize.width", "190", "multiple of 16"],
        ),
        (TRAINING, "spec.dataset.uri", "/data", ["spec.dataset.uri", "/data", "pvc://"]),
        (
            TRAINING,
            "spec.dataset.validation",
            {"fraction": 0.1, "images": "a", "labels": "b"},
            ["spec.dataset.validation", "expected exactly one of fraction, images", "got several"],
        ),
        (TRAINING, "spec.dataset.uri", "file:///data", ["spec.dataset.uri", "file:///data", "pvc://"]),
        *(
            (TRAINING, field, f"{root}{path}", [field, f"{root}{path}", "should match"])
            for field in ("spec.dataset.uri", "spec.output.uri", "spec.model.pretrainedWeights.uri")
            for root in ("pvc://tlt-data", "s3://bucket")
            for path in ("//etc/x", "/a//b", "/a//", "/..", "/a/../b", "/.", "/a/./b")
        ),
        *(
            (TRAINING, f"spec.dataset.{field}", path, [f"spec.dataset.{field}", path, "should match"])
            for field in ("images", "labels", "imageSet", "validation.imageSet", "validation.groupBy.file")
            for path in ("/etc", "..", "../x", "a/../b", "a//b", "a/./b", "a/..")
        ),
        (PRUNE, "spec.model.uri", "pvc://a//b.keras", ["spec.model.uri", "pvc://a//b.keras"]),
        (EXPORT, "spec.output.uri", "s3://a/../b", ["spec.output.uri", "s3://a/../b"]),
        (TRAINING, "metadata.name", "a.b", ["metadata.name: expected no dots"]),
        (TRAINING, "spec.dataset.validation", {"seed": 1}, ["spec.dataset.validation", "got none"]),
        (
            TRAINING,
            "spec.dataset.targetClassMapping",
            {"a": "background"},
            ["expected no class background in targetClassMapping"],
        ),
        (TRAINING, "spec.dataset.targetClassMapping", {}, ["spec.dataset.targetClassMapping"]),
        (TRAINING, "spec.model.backbone", "resnet51", ["spec.model.backbone", "resnet51", "resnet18"]),
        (
            TRAINING,
            "spec.model.freezeBlocks",
            [3, 4],
            ["resnet 0 to 3, vgg 1 to 5", "got [3, 4] of resnet18"],
        ),
        (
            TRAINING,
            "spec.model.roi",
            {"head": "light", "headStride": 1},
            ["spec.model", "expected roi.headStride with roi.head lastStage only", "got headStride 1"],
        ),
        (
            TRAINING,
            "spec.model",
            {"backbone": "vgg16", "roi": {"headStride": 1}},
            ["spec.model", "expected no roi.headStride for vgg", "got headStride 1 of vgg16"],
        ),
        (
            TRAINING,
            "spec.model.from",
            {},
            ["spec.model.from", "expected exactly one of trainingJobRef, pruneJobRef, uri"],
        ),
        (TRAINING, "spec.model.proposals.inference.preNms", 12001, ["preNms", "12001", "12000"]),
        (
            TRAINING,
            "spec.training.learningRate",
            {"min": 0.5, "max": 0.01},
            ["spec.training.learningRate", "expected min <= max", "got min 0.5 and max 0.01"],
        ),
        (
            TRAINING,
            "spec.training.learningRate",
            {"softStart": 0.8},
            ["expected softStart <= annealing", "got softStart 0.8 and annealing 0.7"],
        ),
        (
            TRAINING,
            "spec.training.learningRate",
            {"schedule": "cosine", "gamma": 0.5},
            ["spec.training.learningRate", "expected gamma only with schedule step", "got cosine"],
        ),
        (
            TRAINING,
            "spec.training.optimizer",
            {"type": "adam", "rho": 0.9},
            ["spec.training.optimizer", "expected rho only with type rmsprop", "got adam"],
        ),
        (
            TRAINING,
            "spec.training.optimizer",
            {"momentum": 0, "nesterov": True},
            ["spec.training.optimizer", "expected nesterov only with type sgd and a momentum", "got sgd"],
        ),
        (TRAINING, "spec.training.epoch", 3, ['unknown field "spec.training.epoch"']),
        (TRAINING, "spec.training.epochs", "many", ["spec.training.epochs", "string", "integer"]),
        (TRAINING, "metadata.name", "x" * 41, ["metadata.name", "expected at most 40 characters", "got 41"]),
        (PRUNE, "spec.threshold", 1.5, ["expected threshold < 1 with normalizer max", "got 1.5"]),
        (
            PRUNE,
            "spec.output",
            {"uri": "pvc://tlt-data/out"},
            ["exactly one of threshold, target", "got none"],
        ),
        (
            EXPORT,
            "spec.engine",
            {"builder": "tensorrt"},
            ["spec.resources.gpus of at least 1", "got 0"],
        ),
        (EXPORT, "spec.precisions", ["int4"], ["spec.precisions[0]", "int4", "fp16"]),
        (
            EXPORT,
            "spec.precisions",
            ["fp16", "fp16"],
            ["spec.precisions", "expected each of spec.precisions once"],
        ),
        (
            EXPORT,
            "spec.batch",
            {"min": 4, "opt": 2, "max": 8},
            ["expected min <= opt <= max", "got min 4, opt 2, max 8"],
        ),
        (
            EXPORT,
            "spec.engine",
            {"builder": "tensorrt", "computeCapabilities": ["8.6"]},
            ["spec.engine", "got tensorrt"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_resource_is_refused_by_the_api_server(
    cluster: ControlPlane, body: dict[str, Any], path: str, value: Any, expected: list[str]
) -> None:
    message = refusal(cluster, with_field(body, path, value), "--dry-run=server")
    assert [text for text in expected if text not in message] == [], message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.dataset.uri", "pvc://tlt-data/"),
        ("spec.dataset.uri", "pvc://tlt-data/%2e%2e/..a/a../.../.hidden/"),
        ("spec.output.uri", "s3://bucket"),
        ("spec.dataset.images", "."),
        ("spec.dataset.labels", "./"),
        ("spec.dataset.imageSet", "./lists/a b.txt"),
    ],
)
def test_names_with_dots_and_one_trailing_slash_are_accepted(
    cluster: ControlPlane, path: str, value: str
) -> None:
    body = json.dumps(with_field(TRAINING, path, value))
    cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=body)


def test_a_stored_resource_whose_address_leaves_its_claim_still_accepts_reports(
    cluster: ControlPlane,
) -> None:
    patch = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/output/properties/uri/pattern"

    def set_pattern(value: str) -> None:
        change = json.dumps([{"op": "replace", "path": patch, "value": value}])
        cluster.kubectl("patch", "crd", "trainingjobs.tlt.dev", "--type=json", "-p", change)

    set_pattern("^pvc://.*$")
    try:
        _until_taken(cluster, with_field(TRAINING, "spec.output.uri", "pvc://tlt-data//etc/x"))
    finally:
        set_pattern(CLUSTER_URI_PATTERN)
    try:
        refused = with_field(TRAINING, "spec.output.uri", "pvc://tlt-data//etc/x")
        _until_refused(cluster, with_field(refused, "metadata.name", "another"))
        status = json.dumps({"status": {"phase": "Failed"}})
        cluster.kubectl("patch", "tj", "digits", "--subresource=status", "--type=merge", "-p", status)
        stored = json.loads(cluster.kubectl("get", "tj", "digits", "-o", "json"))
        assert stored["status"]["phase"] == "Failed"
        assert stored["spec"]["output"]["uri"] == "pvc://tlt-data//etc/x"
    finally:
        cluster.kubectl("delete", "tj", "digits")


def _until_taken(cluster: ControlPlane, body: dict[str, Any]) -> None:
    """Apply, once the API server serves a changed schema."""
    for _ in range(100):
        try:
            cluster.apply(body)
            return
        except ClusterError:
            time.sleep(0.1)
    cluster.apply(body)


def _until_refused(cluster: ControlPlane, body: dict[str, Any]) -> None:
    for _ in range(100):
        try:
            cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(body))
        except ClusterError:
            return
        time.sleep(0.1)
    raise AssertionError("the API server still accepts it")


def test_the_spec_is_immutable_but_for_suspend_and_ttl(cluster: ControlPlane) -> None:
    cluster.apply(TRAINING)
    try:
        changed = with_field(TRAINING, "spec.suspend", True)
        cluster.apply(with_field(changed, "spec.runPolicy.ttlSecondsAfterFinished", 60))
        for path, value in [
            ("spec.dataset.imageSize.width", 256),
            ("spec.model.pretrainedWeights", {"uri": "s3://bucket/weights.h5"}),
            ("spec.training.epochs", 7),
            ("spec.runPolicy.activeDeadlineSeconds", 5),
        ]:
            assert "is immutable" in refusal(cluster, with_field(TRAINING, path, value)), path
    finally:
        cluster.kubectl("delete", "tj", "digits")


def test_defaults_are_filled_in_and_the_short_names_work(cluster: ControlPlane) -> None:
    cluster.apply(TRAINING)
    try:
        stored = json.loads(cluster.kubectl("get", "tj", "digits", "-o", "json"))
        assert stored["spec"]["training"]["batchSizePerGPU"] == 4
        assert stored["spec"]["model"]["proposals"]["inference"] == {"preNms": 2000, "postNms": 300}
        header = cluster.kubectl("get", "tj").splitlines()[0].split()
        assert header == ["NAME", "PHASE", "EPOCH", "MAP", "ETA", "GPUS", "ATTEMPT", "AGE"]
        assert "digits" in cluster.kubectl("get", "tlt")
    finally:
        cluster.kubectl("delete", "tj", "digits")


def test_the_api_server_accepts_every_sample(cluster: ControlPlane) -> None:
    for file in sorted((ROOT / "manifests" / "samples").rglob("*.yaml")):
        documents = [item for item in yaml.safe_load_all(file.read_text()) if item]
        for item in documents:
            if item["apiVersion"].startswith("tlt.dev/"):
                cluster.kubectl(
                    "apply", "--dry-run=server", "-n", "default", "-f", "-", stdin=json.dumps(item)
                )
