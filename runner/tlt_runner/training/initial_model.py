"""The initial model of a training: with random or pretrained weights, or a trained model; and its anchors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras.layers import BatchNormalization

from tlt_api.failures import Reason
from tlt_api.model import Anchors, PretrainedWeights
from tlt_api.runspec import RunSpec
from tlt_api.status import AnchorsStatus
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.context import Context, Reporter
from tlt_runner.data import tfrecords
from tlt_runner.data.records import Records
from tlt_runner.detector import anchor_clustering
from tlt_runner.detector import model as detector
from tlt_runner.detector.anchor_clustering import PlacedObjects
from tlt_runner.detector.config import DetectorConfig
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.errors import RunnerError
from tlt_runner.storage import join
from tlt_runner.training.checkpoint.state import Position
from tlt_runner.training.pretrained import class_outputs, load
from tlt_runner.training.pretrained.class_outputs import ClassChange

log = logging.getLogger(__name__)
MAX_OBJECTS = 200_000
"""Number of boxes that are enough to fit anchors; of more, as many are drawn at random."""
DOWNLOADS_FOLDER = "pretrained"
"""Folder below the output in which weights of https:// addresses are kept."""
_BATCH = 256
_BOXES = {
    **{edge: tf.io.VarLenFeature(tf.float32) for edge in tfrecords.EDGES},
    "target/object_class_id": tf.io.VarLenFeature(tf.int64),
}


def fitted_anchors(records: Records, spec: TrainingJobSpec) -> AnchorsStatus:
    """Fit as many anchors as the spec has to the boxes of the training images, and compare both."""
    initial = spec.model.anchors
    objects = training_objects(records)
    chosen = anchor_clustering.propose(objects.sizes, initial, spec.training.seed)
    return anchor_clustering.compare(objects, initial, chosen, spec.model.proposals.max_overlap)


def with_anchors(spec: TrainingJobSpec, records: Records, reporter: Reporter) -> TrainingJobSpec:
    """Return the spec with the anchors to train with; fit and report them with ``anchors.auto``.

    The same records give the same anchors, so that a resumed attempt has those of the attempt before.
    """
    # The usual case: the anchors of the spec.
    if not spec.model.anchors.auto:
        return spec
    fitted = fitted_anchors(records, spec)
    reporter.report(fitted)
    chosen = Anchors(scales=fitted.scales, ratios=fitted.ratios)
    return spec.model_copy(update={"model": spec.model.model_copy(update={"anchors": chosen})})


def training_objects(records: Records, max_objects: int = MAX_OBJECTS, seed: int = 0) -> PlacedObjects:
    """Read the objects of the training images, to which anchors are fitted.

    No image is decoded. The boxes are those of the images as prepared, without augmentation (zoom, mosaic).

    Args:
        records: Prepared data.
        max_objects: Maximum number of objects; of more, as many are drawn at random.
        seed: Seed of that draw.

    Returns:
        The objects in no meaningful order; the same for the same objects, however they are spread over files.
    """
    # Shards are read in parallel and parsed a batch at a time: the pixels in the records are passed over.
    serialized = tf.data.TFRecordDataset(
        [str(path) for path in records.files("training")], num_parallel_reads=tf.data.AUTOTUNE
    )
    parts = [_objects(batch) for batch in serialized.batch(_BATCH).prefetch(2)]
    # [N, 5]: edges and class id.
    objects = np.concatenate([np.zeros((0, 5), np.float32), *parts])
    # Files are read in parallel, so that objects come in any order: sorted, by size first, the draw is that
    # of the objects.
    sizes = objects[:, 2:4] - objects[:, :2]
    order = np.lexsort((*objects.T, *sizes.T))
    if len(objects) > max_objects:
        log.info(
            "anchors are fitted to %d of the %d training boxes, drawn at random", max_objects, len(order)
        )
        order = order[np.random.default_rng(seed).choice(len(order), max_objects, replace=False)]
    manifest = records.manifest
    return PlacedObjects(
        objects[order, :4],
        objects[order, 4].astype(np.int64),
        manifest.class_names,
        manifest.height,
        manifest.width,
    )


def _objects(serialized: Any) -> npt.NDArray[np.float32]:
    # An image has any number of objects: sparse, of which the values are all objects of the batch in a row.
    parsed = tf.io.parse_example(serialized, _BOXES)
    columns = np.stack([parsed[key].values.numpy().astype(np.float32) for key in _BOXES], axis=-1)
    # Ignored regions, of class ids below 0, are no objects.
    return columns[columns[:, 4] >= 0]


def initial_model(
    run: RunSpec,
    spec: TrainingJobSpec,
    context: Context,
    saved: Position | None = None,
    orientation: Literal["stored", "exif"] = "stored",
) -> FasterRCNN:
    """Build or load the model that the spec asks for, and report what of pretrained weights it has.

    Args:
        run: The RunSpec.
        spec: The TrainingJob's.
        context: Storage and reporter.
        saved: The position that the training will resume from, whose weights need the graph they had.
        orientation: View of photos with an EXIF orientation in the records.

    Raises:
        RunnerError: ModelMismatch when a trained model has another image size or colour mode, or a weights
            file has too little of the backbone; UnreadableModel; the storage's reasons.
    """
    config = DetectorConfig.from_spec(spec.model, spec.dataset).model_copy(
        update={"orientation": orientation}
    )
    # With other anchors the training starts over (:func:`tlt_runner.training.checkpoint.state.resume`), in
    # the variant of today. A trained model keeps its own anchors, whatever the spec says of them.
    if saved is not None and run.inputs.model is None and saved.anchors not in (None, config.anchors):
        saved = None
    # Numbers in freezeBlocks meant other blocks to the version that began an older training.
    if saved is not None:
        config = config.model_copy(update={"block_numbers": saved.block_numbers})
    # A trained model keeps its architecture and all weights that the classes have in common.
    source = run.inputs.model
    if source is not None:
        trained = detector.load(context.storage.fetch(source.uri, source.sha256))
        log.info(
            "starting from %s: %s with %d parameters; its architecture, anchors and pooling are kept",
            source.uri,
            trained.config.backbone,
            trained.count_params(),
        )
        retrained = _retrained(trained, config, spec)
        _report_frozen_layers(retrained, set())
        return retrained
    # Whoever starts a run resolves spec.model.from first.
    if spec.model.from_ is not None:
        raise RunnerError(
            Reason.INTERNAL, "spec.model.from: expected a resolved model in the RunSpec, got none"
        )
    # Weights of the state to resume from fit the graph in which they were trained.
    variant = saved.variant if saved else None
    pretrained = spec.model.pretrained_weights
    # All weights are random: every frozen layer stays so.
    if pretrained is None:
        config = config.model_copy(update={"variant": variant or config.variant})
        model = detector.build(config, spec.training.seed)
        _report_frozen_layers(model, {layer.name for layer in load.layers_of(model)})
        return model
    path = _weights_file(pretrained, spec, context)
    # Layers that the file lacks, such as those of the detector, keep their random weights.
    model, taken = load.build(config, spec.training.seed, path, pretrained.pixels, variant)
    context.reporter.report(taken.status)
    _report_frozen_layers(model, taken.untouched)
    return model


def _weights_file(pretrained: PretrainedWeights, spec: TrainingJobSpec, context: Context) -> Path:
    if pretrained.uri.startswith("https://"):
        # The API requires a digest with such an address.
        return context.storage.download(
            pretrained.uri,
            pretrained.sha256 or "",
            join(spec.output.uri, DOWNLOADS_FOLDER),
            lambda: context.stop.raise_if("while downloading pretrained weights"),
        )
    return context.storage.fetch(pretrained.uri, pretrained.sha256)


def _retrained(trained: FasterRCNN, config: DetectorConfig, spec: TrainingJobSpec) -> FasterRCNN:
    """Adapt a trained model to the classes and the settings of this training."""
    # The anchors' number, and with it the shapes in the graph, depend on the image size.
    if (trained.config.height, trained.config.width) != (config.height, config.width):
        raise RunnerError(
            Reason.MODEL_MISMATCH,
            f"spec.dataset.imageSize: expected the model's {trained.config.width} x {trained.config.height} "
            f"(width x height), got {config.width} x {config.height}",
        )
    # The first kernel has as many inputs.
    if trained.config.color_mode != config.color_mode:
        raise RunnerError(
            Reason.MODEL_MISMATCH,
            f"spec.dataset.colorMode: expected the model's {trained.config.color_mode}, "
            f"got {config.color_mode}",
        )
    # Possible, but objects have other aspect ratios than those that the model learnt.
    if trained.config.mode != config.mode:
        log.warning(
            "spec.dataset.imageSize.mode: the model was trained on images resized by %s; this training "
            "resizes by %s",
            trained.config.mode,
            config.mode,
        )
    if trained.config.class_names != config.class_names:
        change = ClassChange.between(trained.config.class_names, config.class_names)
        # The same classes in another order are put in order without a word.
        if set(change.before) != set(change.now):
            log.warning(
                "spec.dataset.targetClassMapping: the model was trained for other classes; head outputs %s",
                change.text,
            )
        trained = class_outputs.change(trained, config.class_names, spec.training.seed)
    retrained = trained.config.retrained_by(spec.model, spec.dataset)
    # The spec's freezeBlocks are counted as today, whatever the model file's were.
    # The view is that of the data which it learns now.
    retrained = retrained.model_copy(
        update={"block_numbers": config.block_numbers, "orientation": config.orientation}
    )
    return detector.with_config(trained, retrained)


def frozen_at_random(model: FasterRCNN, random_names: set[str]) -> list[str]:
    """Layers of frozen blocks among those with random weights: these would stay random."""
    config = model.config
    names = [layer.name for layer in load.layers_of(model) if layer.name in random_names]
    return [name for name in names if detector.block_of(config, name) in config.freeze_blocks]


def _report_frozen_layers(model: FasterRCNN, random_names: set[str]) -> None:
    """Log what each number in freezeBlocks freezes; warn of frozen layers whose weights are random."""
    config = model.config
    for number in sorted(set(config.freeze_blocks)):
        frozen = [
            layer.name for layer in load.layers_of(model) if detector.block_of(config, layer.name) == number
        ]
        span = f"{frozen[0]} to {frozen[-1]}" if frozen else "none"
        log.info("spec.model.freezeBlocks %d: %d layers are frozen (%s)", number, len(frozen), span)
    # Frozen, they would pass on noise that no training ever improves.
    frozen_random = frozen_at_random(model, random_names)
    if frozen_random:
        log.warning(
            "spec.model.freezeBlocks: %d frozen layers have no pretrained weights and stay random (%s%s)",
            len(frozen_random),
            ", ".join(frozen_random[:3]),
            " ..." if len(frozen_random) > 3 else "",
        )
    # Fresh statistics are mean 0 and variance 1: frozen, they normalise nothing.
    random_layers = [layer for layer in load.layers_of(model) if layer.name in random_names]
    if model.config.freeze_batch_norm and any(
        isinstance(layer, BatchNormalization) for layer in random_layers
    ):
        log.warning(
            "spec.model.freezeBatchNorm: batch normalisations without pretrained weights have no effect"
        )
