"""The model that a training starts from: fresh, with pretrained weights, or a whole one."""

from __future__ import annotations

import logging

from tlt_api.failures import Reason
from tlt_api.runspec import RunSpec
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.detector import model as detector
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage
from tlt_runner.training import weights

log = logging.getLogger(__name__)


def initial_model(run: RunSpec, spec: TrainingJobSpec, storage: Storage) -> FasterRCNN:
    """Build or load the model that the spec asks for.

    Raises:
        RunnerError: ModelMismatch when a whole model has other classes or another image size;
            UnreadableModel; the storage's reasons.
    """
    config = DetectorConfig.from_spec(spec.model, spec.dataset)
    source = run.inputs.model
    if source is not None:
        given = detector.load(storage.fetch(source.uri, source.sha256))
        _check(given.config, config)
        log.info(
            "starting from %s: %s with %d parameters; its architecture, anchors and pooling are kept",
            source.uri,
            given.config.backbone,
            given.count_params(),
        )
        return detector.with_config(given, given.config.retrained_by(spec.model))
    if spec.model.from_ is not None:
        raise RunnerError(
            Reason.INTERNAL, "spec.model.from: expected a resolved model in the RunSpec, got none"
        )
    model = detector.build(config, spec.training.seed)
    pretrained = spec.model.pretrained_weights
    if pretrained is not None:
        weights.load_by_name(model, storage.fetch(pretrained.uri, pretrained.sha256))
    if spec.model.freeze_batch_norm and pretrained is None:
        log.warning("spec.model.freezeBatchNorm without pretrained weights: no layer's output is normalised")
    return model


def _check(given: DetectorConfig, wanted: DetectorConfig) -> None:
    if given.class_names != wanted.class_names:
        raise RunnerError(
            Reason.MODEL_MISMATCH,
            f"spec.dataset.targetClassMapping: expected the model's classes {', '.join(given.class_names)}, "
            f"got {', '.join(wanted.class_names)}",
        )
    if (given.height, given.width) != (wanted.height, wanted.width):
        raise RunnerError(
            Reason.MODEL_MISMATCH,
            f"spec.dataset.imageSize: expected the model's {given.width} x {given.height} (width x height), "
            f"got {wanted.width} x {wanted.height}",
        )
