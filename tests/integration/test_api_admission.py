"""A real API server takes our CRDs and samples, and refuses wrong resources with a sentence that helps."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.control_plane import ControlPlane
from cluster.errors import ClusterError
from operator_ring.live import until
from operator_ring.manifests import DIGITS, with_field
from tlt_api.common import CLUSTER_URI_PATTERN

ROOT = Path(__file__).parents[2]
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


def refusal(cluster: ControlPlane, body: dict[str, Any], *flags: str) -> str:
    with pytest.raises(ClusterError) as error:
        cluster.kubectl("apply", *flags, "-f", "-", stdin=json.dumps(body))
    return str(error.value)


@pytest.mark.parametrize(
    ("body", "path", "value", "expected"),
    [
        (DIGITS, "spec.dataset.imageSize.width", 63, ["spec.dataset.imageSize.width", "63", "64"]),
        (DIGITS, "spec.dataset.uri", "/data", ["spec.dataset.uri", "/data", "pvc://"]),
        (
            DIGITS,
            "spec.model.activation",
            "relu",
            ["expected activation for efficientnet only", "got relu of resnet18"],
        ),
        (
            with_field(DIGITS, "spec.dataset.colorMode", "grayscale"),
            "spec.training.augmentation",
            {"hueRotationMax": 10, "saturationShiftMax": 0.2},
            ["for dataset.colorMode grayscale", "got hueRotationMax 10 and saturationShiftMax 0.2"],
        ),
        (
            DIGITS,
            "spec.dataset.validation",
            {"fraction": 0.1, "images": "a", "labels": "b"},
            ["spec.dataset.validation", "expected exactly one of fraction, images", "got several"],
        ),
        (DIGITS, "spec.dataset.uri", "file:///data", ["spec.dataset.uri", "file:///data", "pvc://"]),
        *(
            (DIGITS, field, f"{root}{path}", [field, f"{root}{path}", "should match"])
            for field in ("spec.dataset.uri", "spec.output.uri", "spec.model.pretrainedWeights.uri")
            for root in ("pvc://tlt-data", "s3://bucket")
            for path in ("//etc/x", "/a//b", "/a//", "/..", "/a/../b", "/.", "/a/./b")
        ),
        *(
            (DIGITS, f"spec.dataset.{field}", path, [f"spec.dataset.{field}", path, "should match"])
            for field in ("images", "labels", "imageSet", "validation.imageSet", "validation.groupBy.file")
            for path in ("/etc", "..", "../x", "a/../b", "a//b", "a/./b", "a/..")
        ),
        (PRUNE, "spec.model.uri", "pvc://a//b.keras", ["spec.model.uri", "pvc://a//b.keras"]),
        (EXPORT, "spec.output.uri", "s3://a/../b", ["spec.output.uri", "s3://a/../b"]),
        (DIGITS, "metadata.name", "a.b", ["metadata.name: expected no dots"]),
        (DIGITS, "spec.dataset.validation", {"seed": 1}, ["spec.dataset.validation", "got none"]),
        (
            DIGITS,
            "spec.dataset.targetClassMapping",
            {"a": "background"},
            ["expected no class background in targetClassMapping"],
        ),
        (DIGITS, "spec.dataset.targetClassMapping", {}, ["spec.dataset.targetClassMapping"]),
        (DIGITS, "spec.model.backbone", "resnet51", ["spec.model.backbone", "resnet51", "resnet18"]),
        (
            DIGITS,
            "spec.model.freezeBlocks",
            [3, 4],
            ["resnet 0 to 3, vgg 1 to 5", "got [3, 4] of resnet18"],
        ),
        (
            DIGITS,
            "spec.model.roi",
            {"head": "light", "headStride": 1},
            ["spec.model", "expected roi.headStride with roi.head lastStage only", "got headStride 1"],
        ),
        (
            DIGITS,
            "spec.model",
            {"backbone": "vgg16", "roi": {"headStride": 1}},
            ["spec.model", "expected no roi.headStride for vgg", "got headStride 1 of vgg16"],
        ),
        (
            DIGITS,
            "spec.model.from",
            {},
            ["spec.model.from", "expected exactly one of trainingJobRef, pruneJobRef, uri"],
        ),
        (
            DIGITS,
            "spec.dataset.shapes",
            "boundingBox",
            ["spec.dataset", "expected shapes with format coco or yolo only", "got kitti"],
        ),
        (DIGITS, "spec.dataset.unlabelled", "skip", ["spec.dataset.unlabelled", "background", "bad"]),
        (DIGITS, "spec.model.proposals.inference.preNms", 12001, ["preNms", "12001", "12000"]),
        (
            DIGITS,
            "spec.training.learningRate",
            {"min": 0.5, "max": 0.01},
            ["spec.training.learningRate", "expected min <= max", "got min 0.5 and max 0.01"],
        ),
        (
            DIGITS,
            "spec.training.learningRate",
            {"softStart": 0.8},
            ["expected softStart <= annealing", "got softStart 0.8 and annealing 0.7"],
        ),
        (
            DIGITS,
            "spec.training.learningRate",
            {"schedule": "multiStep", "milestones": [0.8, 0.5]},
            ["expected milestones in rising order", "got [0.8"],
        ),
        (
            DIGITS,
            "spec.training.learningRate",
            {"schedule": "multiStep", "milestones": [0.1, 0.5], "softStart": 0.2},
            ["expected softStart < the first of milestones", "got softStart 0.2 and milestones [0.1"],
        ),
        (
            DIGITS,
            "spec.training.learningRate",
            {"schedule": "step", "min": 1e-6},
            ["expected min only with softStart", "got min without softStart"],
        ),
        (
            DIGITS,
            "spec.training.learningRate",
            {"schedule": "multiStep"},
            ["expected milestones with schedule multiStep", "got multiStep"],
        ),
        (
            DIGITS,
            "spec.training.learningRate",
            {"schedule": "cosine", "gamma": 0.5},
            ["spec.training.learningRate", "expected gamma only with schedule step", "got cosine"],
        ),
        (
            DIGITS,
            "spec.training.optimizer",
            {"type": "adam", "rho": 0.9},
            ["spec.training.optimizer", "expected rho only with type rmsprop", "got adam"],
        ),
        (
            DIGITS,
            "spec.training.optimizer",
            {"momentum": 0, "nesterov": True},
            ["spec.training.optimizer", "expected nesterov only with type sgd and a momentum", "got sgd"],
        ),
        (DIGITS, "spec.training.epoch", 3, ['unknown field "spec.training.epoch"']),
        (DIGITS, "spec.training.epochs", "many", ["spec.training.epochs", "string", "integer"]),
        (DIGITS, "metadata.name", "x" * 41, ["metadata.name", "expected at most 40 characters", "got 41"]),
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
    body = json.dumps(with_field(DIGITS, path, value))
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
        _until_taken(cluster, with_field(DIGITS, "spec.output.uri", "pvc://tlt-data//etc/x"))
    finally:
        set_pattern(CLUSTER_URI_PATTERN)
    try:
        refused = with_field(DIGITS, "spec.output.uri", "pvc://tlt-data//etc/x")
        _until_refused(cluster, with_field(refused, "metadata.name", "another"))
        changes = {"status": {"phase": "Failed"}}
        stored = cluster.api.patch("TrainingJob", "digits", "default", changes, "status")
        assert stored["status"]["phase"] == "Failed"
        assert stored["spec"]["output"]["uri"] == "pvc://tlt-data//etc/x"
    finally:
        cluster.api.delete("TrainingJob", "digits", "default")


def _until_taken(cluster: ControlPlane, body: dict[str, Any]) -> None:
    """Apply, once the API server serves a changed schema: it takes a moment to notice."""

    def taken() -> bool:
        try:
            cluster.apply(body)
        except ClusterError:
            return False
        return True

    until("the API server to accept it", taken)


def _until_refused(cluster: ControlPlane, body: dict[str, Any]) -> None:
    def refused() -> bool:
        try:
            cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(body))
        except ClusterError:
            return True
        return False

    until("the API server to refuse it", refused)


def test_the_spec_is_immutable_but_for_what_says_whether_how_often_and_how_long_it_runs(
    cluster: ControlPlane,
) -> None:
    cluster.apply(DIGITS)
    try:
        changed = DIGITS
        for path, value in [
            ("spec.suspend", True),
            ("spec.retry", 1),
            ("spec.output.overwrite", True),
            ("spec.runPolicy.ttlSecondsAfterFinished", 60),
            ("spec.runPolicy.activeDeadlineSeconds", 5),
        ]:
            changed = with_field(changed, path, value)
            cluster.apply(changed)
        for path, value in [
            ("spec.dataset.imageSize.width", 256),
            ("spec.model.pretrainedWeights", {"uri": "s3://bucket/weights.h5"}),
            ("spec.training.epochs", 7),
            ("spec.output.uri", "pvc://tlt-data/runs/elsewhere"),
        ]:
            assert "is immutable" in refusal(cluster, with_field(DIGITS, path, value)), path
    finally:
        cluster.api.delete("TrainingJob", "digits", "default")


def test_defaults_are_filled_in_and_the_short_names_work(cluster: ControlPlane) -> None:
    cluster.apply(DIGITS)
    try:
        stored = cluster.api.get("TrainingJob", "digits", "default")
        assert stored
        assert stored["spec"]["training"]["batchSizePerGPU"] == 4
        assert stored["spec"]["model"]["proposals"]["inference"] == {"preNms": 2000, "postNms": 300}
        header = cluster.kubectl("get", "tj").splitlines()[0].split()
        assert header == ["NAME", "PHASE", "EPOCH", "MAP", "ETA", "GPUS", "ATTEMPT", "AGE"]
        assert "digits" in cluster.kubectl("get", "tlt")
    finally:
        cluster.api.delete("TrainingJob", "digits", "default")


def test_the_api_server_accepts_every_sample(cluster: ControlPlane) -> None:
    for file in sorted((ROOT / "manifests" / "samples").rglob("*.yaml")):
        documents = [item for item in yaml.safe_load_all(file.read_text()) if item]
        for item in documents:
            if item["apiVersion"].startswith("tlt.dev/"):
                cluster.kubectl(
                    "apply", "--dry-run=server", "-n", "default", "-f", "-", stdin=json.dumps(item)
                )
