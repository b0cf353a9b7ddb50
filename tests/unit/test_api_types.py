"""The API's own rules, without a cluster."""

from typing import Any

import pytest

from operator_ring.manifests import DIGITS, with_field
from tlt_api import resources, runspec
from tlt_api.failures import CLASSES, Reason, by_exit_code
from tlt_api.status import Inputs, ResolvedModel

TRAINING = with_field(DIGITS, "metadata", {"name": "digits", "namespace": "team", "uid": "u-1"})


def test_a_minimal_training_job_takes_tlts_defaults() -> None:
    spec = resources.parse(TRAINING).spec.to_wire()
    assert spec["model"]["anchors"] == {"auto": False, "scales": [64, 128, 256], "ratios": [1.0, 0.5, 2.0]}
    assert spec["training"]["batchSizePerGPU"] == 4
    assert spec["dataset"]["validation"] == {"fraction": 0.2, "seed": 42}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("spec.dataset.imageSize.width", 63, "imageSize.width: Input should be greater than or equal to 64"),
        (
            "spec",
            {
                **TRAINING["spec"],
                "dataset": {**TRAINING["spec"]["dataset"], "colorMode": "grayscale"},
                "training": {"augmentation": {"hueRotationMax": 10}},
            },
            "without hueRotationMax and saturationShiftMax for dataset.colorMode grayscale",
        ),
        ("spec.model", {"activation": "relu"}, "expected activation for efficientnet only"),
        ("spec.model.roi", {"dropout": 1.0}, "roi.dropout"),
        ("spec.dataset.uri", "/data", "spec.dataset.uri"),
        ("spec.dataset.validation", {"fraction": 0.1, "images": "v"}, "exactly one of fraction, images"),
        ("spec.dataset.validation", {"images": "v"}, "expected images and labels together"),
        (
            "spec.dataset.validation",
            {"imageSet": "val.txt", "groupBy": {"separator": "_"}},
            "expected groupBy with fraction only",
        ),
        ("spec.dataset.classNames", ["car"], "expected classNames with format yolo only"),
        ("spec.dataset.shapes", "boundingBox", "expected shapes with format coco or yolo only"),
        ("spec.dataset.unlabelled", "skip", "spec.dataset.unlabelled: Input should be 'background' or 'bad'"),
        (
            "spec.model",
            {"from": {"uri": "s3://models/m.keras"}, "anchors": {"auto": True}},
            "expected anchors.auto without from",
        ),
        ("spec.dataset.targetClassMapping", {}, "spec.dataset.targetClassMapping"),
        ("spec.dataset.targetClassMapping", {"a": "background"}, "expected no class background"),
        ("spec.model.backbone", "resnet51", "spec.model.backbone"),
        ("spec.model.proposals.inference", {"preNms": 12001, "postNms": 10}, "preNms"),
        ("spec.model.proposals.training", {"preNms": 10, "postNms": 10}, "expected postNms < preNms"),
        ("spec.training.learningRate", {"min": 1.0, "max": 0.1}, "expected min <= max"),
        ("spec.training.epoch", 3, "spec.training.epoch: Extra inputs are not permitted, got 3"),
        ("metadata.name", "x" * 41, "metadata.name: expected 1 to 40 characters, got 41"),
        ("kind", "TrainJob", "got 'tlt.dev/v1alpha1' and 'TrainJob'"),
    ],
)  # fmt: skip
def test_a_wrong_manifest_is_refused_with_the_field_at_fault(path: str, value: Any, expected: str) -> None:
    with pytest.raises(resources.InvalidResourceError) as error:
        resources.parse(with_field(TRAINING, path, value))
    assert expected in str(error.value)


def test_a_run_spec_round_trips_through_an_annotation() -> None:
    resource = resources.parse(TRAINING)
    inputs = Inputs(model=ResolvedModel(uri="pvc://tlt-data/m.keras", sha256="0" * 64))
    sent = runspec.for_attempt(resource, resource.spec, inputs, attempt=2)
    received = runspec.RunSpec.from_json(sent.to_json())
    assert received == sent
    assert received.kind.command == "train"


def test_every_address_of_a_spec_is_found() -> None:
    body = with_field(TRAINING, "spec.model.pretrainedWeights", {"uri": "s3://models/resnet.h5"})
    assert resources.parse(body).spec.referenced_uris() == [
        "pvc://tlt-data/digits",
        "pvc://tlt-data/runs/digits",
        "s3://models/resnet.h5",
    ]


def test_a_public_address_of_weights_needs_no_volume_and_has_a_digest() -> None:
    weights = {"uri": "https://example.org/a/resnet18.safetensors?token=1", "sha256": "0" * 64}
    spec = resources.parse(with_field(DIGITS, "spec.model.pretrainedWeights", weights)).spec
    assert spec.referenced_uris() == ["pvc://tlt-data/digits", "pvc://tlt-data/runs/digits"]
    with pytest.raises(ValueError, match="expected sha256 with an https:// uri"):
        resources.parse(with_field(DIGITS, "spec.model.pretrainedWeights", {"uri": weights["uri"]}))


@pytest.mark.parametrize(
    "uri",
    ["http://example.org/a.h5", "https://example.org", "https://me:secret@example.org/a.h5", "https://a b/c"],
)
def test_other_addresses_than_https_without_credentials_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="uri"):
        resources.parse(with_field(DIGITS, "spec.model.pretrainedWeights", {"uri": uri, "sha256": "0" * 64}))


def test_only_weights_can_come_from_a_public_address() -> None:
    with pytest.raises(ValueError, match=r"spec\.dataset\.uri|uri"):
        resources.parse(with_field(DIGITS, "spec.dataset.uri", "https://example.org/data"))


def test_every_reason_has_one_class_and_exit_codes_are_unique() -> None:
    assert set(CLASSES) == set(Reason)
    codes = [entry.exit_code for entry in CLASSES.values() if entry.exit_code is not None]
    assert len(codes) == len(set(codes))
    assert all(0 < code < 128 for code in codes)
    assert by_exit_code(12).reason == Reason.OUT_OF_MEMORY
    assert by_exit_code(139).reason == Reason.INTERNAL
