"""For each CEL rule of the CRDs a manifest that breaks it: local and real API servers are asked alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from operator_ring.manifests import resource, with_field


@dataclass(frozen=True)
class Violation:
    """A manifest that breaks one rule.

    Attributes:
        path: Field of the rule.
        message: Beginning of the rule's message, which names it.
        body: The manifest.
        got: The end of the message: the given values.
    """

    path: str
    message: str
    body: dict[str, Any]
    got: str = ""


def _changed(kind: str, **fields: Any) -> dict[str, Any]:
    body = resource(kind, "traffic")
    for path, value in fields.items():
        body = with_field(body, path.replace("__", "."), value)
    return body


def _training(path: str, message: str, got: str = "", **fields: Any) -> Violation:
    return Violation(path, message, _changed("TrainingJob", **fields), got)


_REFERENCE = {"trainingJobRef": {"name": "traffic"}}
_SHA = "a" * 64


def _sources(kind: str, path: str) -> list[Violation]:
    """Violations of the two rules of a ModelSource."""
    field = path.replace(".", "__")
    return [
        Violation(path, "expected exactly one of trainingJobRef", _changed(kind, **{field: {}}), "got none"),
        Violation(
            path,
            "expected sha256 only with uri",
            _changed(kind, **{field: {**_REFERENCE, "sha256": _SHA}}),
            "got sha256 without uri",
        ),
    ]


def _names(kind: str) -> list[Violation]:
    return [
        Violation(
            "", "metadata.name: expected at most 40", _changed(kind, metadata__name="x" * 41), "got 41"
        ),
        Violation("", "metadata.name: expected no dots", _changed(kind, metadata__name="a.b")),
    ]


VIOLATIONS: dict[str, list[Violation]] = {
    "TrainingJob": [
        *_names("TrainingJob"),
        *_sources("TrainingJob", "spec.model.from"),
        _training(
            "spec",
            "expected training.augmentation without hueRotationMax",
            "got hueRotationMax 10 and saturationShiftMax 0.2",
            spec__dataset__colorMode="grayscale",
            spec__training__augmentation={"hueRotationMax": 10, "saturationShiftMax": 0.2},
        ),
        _training(
            "spec.dataset",
            "expected no class background",
            spec__dataset__targetClassMapping={"car": "background"},
        ),
        _training(
            "spec.dataset",
            "expected no class true or false",
            "got false",
            spec__dataset__targetClassMapping={"false": "car"},
        ),
        _training(
            "spec.dataset",
            "expected classNames with format yolo only",
            "got voc",
            spec__dataset__format="voc",
            spec__dataset__classNames=["car"],
        ),
        _training(
            "spec.dataset",
            "expected shapes with format coco or yolo only",
            "got voc",
            spec__dataset__format="voc",
            spec__dataset__shapes="boundingBox",
        ),
        _training(
            "spec.dataset",
            "expected no images, labels or imageSet with layout auto",
            "got one of them",
            spec__dataset__layout="auto",
            spec__dataset__images="train",
        ),
        _training(
            "spec.dataset",
            "expected coordinates with format voc only",
            "got coco",
            spec__dataset__format="coco",
            spec__dataset__coordinates="zeroBased",
        ),
        _training(
            "spec.evaluation",
            "expected protocol without averagePrecision",
            "got protocol coco and averagePrecision area",
            spec__evaluation={"protocol": "coco", "averagePrecision": "area"},
        ),
        _training(
            "spec.evaluation",
            "expected iouThresholds without iouThreshold",
            "got both",
            spec__evaluation={"iouThresholds": [0.5], "iouThreshold": 0.5},
        ),
        _training(
            "spec.evaluation",
            "expected iouThresholds in rising order",
            spec__evaluation={"iouThresholds": [0.75, 0.5]},
        ),
        _training(
            "spec.dataset.validation",
            "expected exactly one of fraction",
            "got several",
            spec__dataset__validation={"fraction": 0.1, "imageSet": "val.txt"},
        ),
        _training(
            "spec.dataset.validation",
            "expected images and labels together",
            spec__dataset__validation={"images": "val"},
        ),
        _training(
            "spec.dataset.validation",
            "expected groupBy with fraction only",
            spec__dataset__validation={"imageSet": "val.txt", "groupBy": {"separator": "_"}},
        ),
        _training(
            "spec.dataset.validation.groupBy",
            "expected exactly one of separator",
            "got none",
            spec__dataset__validation={"fraction": 0.1, "groupBy": {}},
        ),
        _training(
            "spec.model",
            "expected pretrainedWeights or from",
            spec__model={"from": _REFERENCE, "pretrainedWeights": {"uri": "s3://models/w.h5"}},
        ),
        _training(
            "spec.model",
            "expected anchors.auto without from",
            spec__model={"from": _REFERENCE, "anchors": {"auto": True}},
        ),
        _training(
            "spec.model",
            "expected activation for efficientnet only",
            "got relu of resnet18",
            spec__model__activation="relu",
        ),
        _training(
            "spec.model",
            "expected no roi.headStride for vgg",
            "got headStride 1 of vgg16",
            spec__model={"backbone": "vgg16", "roi": {"headStride": 1}},
        ),
        _training(
            "spec.model",
            "expected roi.headStride with roi.head lastStage",
            "got headStride 1",
            spec__model__roi={"head": "light", "headStride": 1},
        ),
        _training(
            "spec.model",
            "expected freezeBlocks to be blocks of the backbone",
            "got [3, 4] of resnet18",
            spec__model__freezeBlocks=[3, 4],
        ),
        _training(
            "spec.model.pretrainedWeights",
            "expected sha256 with an https:// uri",
            spec__model__pretrainedWeights={"uri": "https://example.com/w.h5"},
        ),
        *(
            _training(
                path,
                "expected minOverlap < maxOverlap",
                "got minOverlap 0.7 and maxOverlap 0.5",
                **{path.replace(".", "__"): {"minOverlap": 0.7, "maxOverlap": 0.5}},
            )
            for path in ("spec.model.proposals", "spec.model.roi")
        ),
        *(
            _training(
                path,
                "expected postNms < preNms",
                "got postNms 200 and preNms 100",
                **{path.replace(".", "__"): {"preNms": 100, "postNms": 200}},
            )
            for path in (
                "spec.model.proposals.training",
                "spec.model.proposals.inference",
                "spec.evaluation.proposals",
            )
        ),
        *(
            _training("spec.training.learningRate", message, got, spec__training__learningRate=rate)
            for message, got, rate in [
                ("expected min only with softStart", "", {"schedule": "step", "min": 1e-6}),
                ("expected annealing only with", "got cosine", {"schedule": "cosine", "annealing": 0.5}),
                ("expected gamma only with", "got cosine", {"schedule": "cosine", "gamma": 0.5}),
                ("expected stepSize only with", "got cosine", {"schedule": "cosine", "stepSize": 0.5}),
                ("expected milestones with", "got multiStep", {"schedule": "multiStep"}),
                (
                    "expected milestones in rising order",
                    "got [0.800000, 0.500000]",
                    {"schedule": "multiStep", "milestones": [0.8, 0.5]},
                ),
                (
                    "expected softStart < the first",
                    "got softStart 0.2 and milestones [0.100000, 0.500000]",
                    {"schedule": "multiStep", "milestones": [0.1, 0.5], "softStart": 0.2},
                ),
                ("expected min <= max", "got min 0.5 and max 0.01", {"min": 0.5, "max": 0.01}),
                (
                    "expected softStart <= annealing",
                    "got softStart 0.8 and annealing 0.7",
                    {"softStart": 0.8},
                ),
            ]
        ),
        *(
            _training("spec.training.optimizer", message, f"got {kind}", spec__training__optimizer=optimizer)
            for message, kind, optimizer in [
                ("expected beta2 only with", "sgd", {"type": "sgd", "beta2": 0.9}),
                ("expected rho only with", "adam", {"type": "adam", "rho": 0.9}),
                ("expected epsilon only with", "sgd", {"type": "sgd", "epsilon": 1e-7}),
                ("expected weightDecay only with", "sgd", {"type": "sgd", "weightDecay": 0.1}),
                ("expected nesterov only with", "sgd", {"type": "sgd", "momentum": 0, "nesterov": True}),
            ]
        ),
    ],
    "PruneJob": [
        *_names("PruneJob"),
        *_sources("PruneJob", "spec.model"),
        Violation(
            "spec",
            "expected exactly one of threshold",
            _changed("PruneJob", spec__target={"flops": 0.5}),
            "got several",
        ),
        Violation("spec", "expected threshold < 1 with", _changed("PruneJob", spec__threshold=2), "got 2"),
        Violation(
            "spec.target",
            "expected exactly one of parameters",
            _changed("PruneJob", spec={"model": _REFERENCE, "target": {}, "output": {"uri": "s3://b/p"}}),
            "got none",
        ),
    ],
    "ExportJob": [
        *_names("ExportJob"),
        *_sources("ExportJob", "spec.model"),
        Violation(
            "spec",
            "expected spec.resources.gpus of at least 1",
            _changed("ExportJob", spec__engine={"builder": "tensorrt"}),
            "got 0",
        ),
        Violation(
            "spec",
            "expected each of spec.precisions once",
            _changed("ExportJob", spec__precisions=["fp16", "fp16"]),
            'got ["fp16", "fp16"]',
        ),
        Violation(
            "spec.batch",
            "expected min <= opt <= max",
            _changed("ExportJob", spec__batch={"min": 4, "opt": 2, "max": 8}),
            "got min 4, opt 2, max 8",
        ),
        Violation(
            "spec.engine",
            "expected computeCapabilities only with",
            _changed(
                "ExportJob",
                spec__resources={"gpus": 1},
                spec__engine={"builder": "tensorrt", "computeCapabilities": ["8.6"]},
            ),
            "got tensorrt",
        ),
    ],
}
"""By kind; ``tests/unit/test_runner_admission.py`` checks that there is one for each rule."""

ALL = [(kind, violation) for kind, violations in VIOLATIONS.items() for violation in violations]
