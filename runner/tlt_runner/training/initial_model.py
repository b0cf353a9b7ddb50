"""The model that a training starts from: fresh, with pretrained weights, or a whole one; and its anchors."""

from __future__ import annotations

import logging

from keras.layers import BatchNormalization

from tlt_api.failures import Reason
from tlt_api.model import Anchors
from tlt_api.runspec import RunSpec
from tlt_api.status import AnchorsStatus
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.context import Reporter
from tlt_runner.data import box_sizes
from tlt_runner.data.records import Records
from tlt_runner.detector import anchor_clustering
from tlt_runner.detector import model as detector
from tlt_runner.detector.backbones import FAMILIES
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage
from tlt_runner.training.pretrained import class_outputs, load
from tlt_runner.training.pretrained.class_outputs import ClassChange

log = logging.getLogger(__name__)


def fitted_anchors(records: Records, spec: TrainingJobSpec) -> AnchorsStatus:
    """Anchors for the boxes of the training images, as many as the spec has, beside the spec's own."""
    given = spec.model.anchors
    sizes = box_sizes.training_sizes(records)
    chosen = anchor_clustering.propose(sizes, given, spec.training.seed)
    return anchor_clustering.compare(sizes, given, chosen, spec.model.proposals.max_overlap)


def with_anchors(spec: TrainingJobSpec, records: Records, reporter: Reporter) -> TrainingJobSpec:
    """The spec with the anchors to train with; those fitted to the data (``anchors.auto``) are reported.

    The same records give the same anchors, so an attempt that resumes goes on with them.
    """
    if not spec.model.anchors.auto:
        return spec
    fitted = fitted_anchors(records, spec)
    reporter.report(fitted)
    chosen = Anchors(scales=fitted.scales, ratios=fitted.ratios)
    return spec.model_copy(update={"model": spec.model.model_copy(update={"anchors": chosen})})


def initial_model(run: RunSpec, spec: TrainingJobSpec, storage: Storage) -> FasterRCNN:
    """Build or load the model that the spec asks for.

    Raises:
        RunnerError: ModelMismatch when a whole model has another image size, or no layer of a file of
            weights fits; UnreadableModel; the storage's reasons.
    """
    config = DetectorConfig.from_spec(spec.model, spec.dataset)
    source = run.inputs.model
    if source is not None:
        given = detector.load(storage.fetch(source.uri, source.sha256))
        log.info(
            "starting from %s: %s with %d parameters; its architecture, anchors and pooling are kept",
            source.uri,
            given.config.backbone,
            given.count_params(),
        )
        return _retrained(given, config, spec)
    if spec.model.from_ is not None:
        raise RunnerError(
            Reason.INTERNAL, "spec.model.from: expected a resolved model in the RunSpec, got none"
        )
    model = detector.build(config, spec.training.seed)
    pretrained = spec.model.pretrained_weights
    if pretrained is None:
        _warn_of_frozen(model, {layer.name for layer in load.layers_of(model)})
        return model
    taken = load.load_by_name(model, storage.fetch(pretrained.uri, pretrained.sha256))
    _warn_of_frozen(model, taken.untouched)
    return model


def _retrained(given: FasterRCNN, wanted: DetectorConfig, spec: TrainingJobSpec) -> FasterRCNN:
    """The given model for the data and the knobs of this training."""
    if (given.config.height, given.config.width) != (wanted.height, wanted.width):
        raise RunnerError(
            Reason.MODEL_MISMATCH,
            f"spec.dataset.imageSize: expected the model's {given.config.width} x {given.config.height} "
            f"(width x height), got {wanted.width} x {wanted.height}",
        )
    if given.config.mode != wanted.mode:
        log.warning(
            "spec.dataset.imageSize.mode: the model learnt from images brought to size by %s; from now "
            "on it is %s",
            given.config.mode,
            wanted.mode,
        )
    if given.config.class_names != wanted.class_names:
        change = ClassChange.between(given.config.class_names, wanted.class_names)
        if set(change.before) != set(change.now):
            log.warning(
                "spec.dataset.targetClassMapping: the model's classes are others; of the head's outputs %s",
                change.text,
            )
        given = class_outputs.change(given, wanted.class_names, spec.training.seed)
    return detector.with_config(given, given.config.retrained_by(spec.model, spec.dataset))


def frozen_at_random(model: FasterRCNN, fresh: set[str]) -> list[str]:
    """Layers of frozen blocks among those whose weights are fresh: nothing will ever make them useful."""
    block_of = FAMILIES[model.config.backbone].block_of
    names = [layer.name for layer in load.layers_of(model)]
    return [name for name in names if name in fresh and block_of(name) in model.config.freeze_blocks]


def _warn_of_frozen(model: FasterRCNN, fresh: set[str]) -> None:
    stuck = frozen_at_random(model, fresh)
    if stuck:
        log.warning(
            "spec.model.freezeBlocks: %d layers have no pretrained weights and are not trained: they stay "
            "random (%s%s)",
            len(stuck),
            ", ".join(stuck[:3]),
            " ..." if len(stuck) > 3 else "",
        )
    alone = [layer for layer in load.layers_of(model) if layer.name in fresh]
    if model.config.freeze_batch_norm and any(isinstance(layer, BatchNormalization) for layer in alone):
        log.warning(
            "spec.model.freezeBatchNorm: batch normalisations without pretrained weights do not normalise"
        )
