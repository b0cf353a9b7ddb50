"""The detector as one Keras model: two functional graphs, and the tensor operations between them.

``trunk`` (backbone and region proposal network) and ``head`` hold all weights; pruning rebuilds these two.
Calling the model detects, with the same ops in evaluation and in the exported file. Training composes the
same parts in :mod:`tlt_runner.detector.losses`. Source: Ren et al., "Faster R-CNN" (2015).
"""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path
from typing import Any, Self

import keras
from keras import layers, ops

from tlt_api.failures import Reason
from tlt_runner.detector import head, roi, rpn
from tlt_runner.detector.backbones import FAMILIES
from tlt_runner.detector.backbones.layers import Layers, fuse
from tlt_runner.detector.boxes import Tensor
from tlt_runner.detector.config import STRIDE, DetectorConfig
from tlt_runner.detector.variant import Pixels
from tlt_runner.errors import RunnerError

OUTPUT_LAYERS = ("rpn_objectness", "rpn_deltas", "head_classes", "head_deltas")
"""Layers with a filter for each anchor, class or coordinate: never pruned."""


@keras.saving.register_keras_serializable(package="tlt")
class FasterRCNN(keras.Model):
    """A C4 Faster R-CNN: proposals and pooling at stride 16, the backbone's last stage in the head.

    Attributes:
        config: The detector's description.
        trunk: Functional graph: images [B, H, W, 3] (RGB, 0 to 255), or [B, H, W, 1] (luma) for colour mode
            grayscale, to {features [B, H/16, W/16, C] to pool, objectness [B, N] logits, deltas [B, N, 4]};
            pixels are normalised inside, and padded at the bottom and the right where H or W is no multiple
            of 16: H/16 and W/16 are rounded up.
        head: Functional graph: pooled features [M, P, P, C] to {classes [M, K + 1] logits with
            background last, deltas [M, K, 4]}.
    """

    def __init__(
        self, config: DetectorConfig, trunk: keras.Model, head: keras.Model, name: str = "detector"
    ) -> None:
        super().__init__(name=name)
        self.config = config
        self.trunk = trunk
        self.head = head
        # Both graphs come with their weights: Keras has nothing left to build.
        self.built = True
        # A file holds neither the fused call, which is not serialised, nor the last word on freezing: the
        # config overwrites the trainable flags that Keras stores.
        for graph in (trunk, head):
            fuse(graph)
        freeze(self)

    def call(self, images: Tensor) -> dict[str, Tensor]:
        """Detect objects: images [B, H, W, C] to boxes [B, D, 4], scores [B, D], classes [B, D], count [B].

        Boxes are yxyx in pixels of the network's input; see :func:`tlt_runner.detector.head.detect`.
        """
        # Always inference, whatever mode Keras asks for: training composes the parts in losses.py.
        out = self.trunk(images, training=False)
        with keras.name_scope("proposals"):
            proposals, valid = rpn.propose(
                self.config, out["objectness"], out["deltas"], self.config.proposals.inference
            )
        logits, deltas = self.classify(out["features"], proposals, training=False)
        with keras.name_scope("detections"):
            return head.detect(self.config, proposals, valid, logits, deltas)

    def classify(self, features: Tensor, boxes: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Run pooling and head: logits [B, R, K + 1] and deltas [B, R, K, 4] for boxes [B, R, 4].

        Args:
            features: The trunk's features [B, H/16, W/16, C].
            boxes: Proposals [B, R, 4], yxyx in pixels.
            training: Whether batch normalisation uses the batch's statistics.
        """
        with keras.name_scope("pooling"):
            pooled = roi.pool(features, boxes, self.config.roi.pool_size, self.config.roi.sampling)
        # The head knows no images: [B * R, ...] in, [B * R, ...] out, split by image again here.
        out = self.head(pooled, training=training)
        count, classes = boxes.shape[1], self.config.classes
        return (
            ops.reshape(out["classes"], (-1, count, classes + 1)),
            ops.reshape(out["deltas"], (-1, count, classes, 4)),
        )

    def build(self, input_shape: Any = None) -> None:
        """Do nothing: both graphs come with their weights."""
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Serialise both graphs and the description."""
        # The graphs themselves, not only the description: a pruned detector's cannot be built from it.
        return {
            "name": self.name,
            "config": self.config.to_wire(),
            "trunk": keras.saving.serialize_keras_object(self.trunk),
            "head": keras.saving.serialize_keras_object(self.head),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """Make a detector with fresh weights from what :meth:`get_config` gave."""
        return cls(
            DetectorConfig.from_file(config["config"]),
            keras.saving.deserialize_keras_object(config["trunk"], custom_objects),
            keras.saving.deserialize_keras_object(config["head"], custom_objects),
            name=config["name"],
        )


def build(config: DetectorConfig, seed: int) -> FasterRCNN:
    """Build a detector with fresh weights; the same seed gives the same weights."""
    family = FAMILIES[config.backbone]
    make = Layers(
        seed, config.width_multiplier, config.variant, config.roi.dropout, activation=config.activation
    )
    images = keras.Input((config.height, config.width, config.channels), name="images")
    pixels = _padded(config, _normalised(config.variant.pixels or family.pixels, images))
    features = family.trunk(config.backbone, make, pixels)
    objectness, deltas = rpn.add_layers(config, make, features)
    to_pool = head.features_to_pool(config, make, features)
    outputs = {"features": to_pool, "objectness": objectness, "deltas": deltas}
    trunk = keras.Model(images, outputs, name="trunk")
    return FasterRCNN(config, trunk, head.build(config, make, to_pool.shape[-1]))


def _normalised(pixels: Pixels, images: Any) -> Any:
    """Pixels [B, H, W, C], 0 to 255, as the backbone takes them: mean subtracted, then scaled."""
    # A layer of the graph, so that a model file and an export take plain pixels. Numbers for each channel
    # only where they differ: Keras' Rescaling takes either.
    if images.shape[-1] == 1:
        mean, factor = pixels.grey
        return layers.Rescaling(scale=factor, offset=-mean * factor, name="pixels")(images)
    scale: Any = [1 / scale for scale in pixels.scale]
    offset = [-mean / scale for mean, scale in zip(pixels.mean, pixels.scale, strict=True)]
    return layers.Rescaling(scale=scale if set(scale) != {1.0} else 1.0, offset=offset, name="pixels")(images)


def _padded(config: DetectorConfig, pixels: Any) -> Any:
    """Pad normalised pixels [B, H, W, C] at the bottom and the right to multiples of STRIDE."""
    bottom = config.feature_height * STRIDE - config.height
    right = config.feature_width * STRIDE - config.width
    if not bottom and not right:
        return pixels
    # A zero is the mean pixel, as in the padding of the convolutions. From here on every stage halves an even
    # size, so that a cell's centre is at (i + 0.5) * STRIDE pixels; halved odd sizes would move it.
    return layers.ZeroPadding2D(((0, bottom), (0, right)), name="pad_to_stride")(pixels)


def freeze(model: FasterRCNN) -> None:
    """Make all layers trainable but those that the model's config freezes.

    A frozen batch normalisation of Keras uses its moving statistics in training, too.

    Raises:
        RunnerError: InvalidSpec, for blocks that the backbone does not have.
    """
    config = model.config
    family = FAMILIES[config.backbone]
    unknown = sorted(set(config.freeze_blocks) - set(family.blocks))
    if unknown:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"spec.model.freezeBlocks: expected {family.blocks[0]} to {family.blocks[-1]} for "
            f"{config.backbone}, the backbone of the model, got {', '.join(map(str, unknown))}",
        )
    # Every layer is set, also to trainable: the model may come from a training that froze others.
    for layer in [*model.trunk.layers, *model.head.layers]:
        frozen = block_of(config, layer.name) in config.freeze_blocks
        if isinstance(layer, layers.BatchNormalization):
            frozen = frozen or config.freeze_batch_norm
        layer.trainable = not frozen


def block_of(config: DetectorConfig, layer: str) -> int | None:
    """Return the number of a layer's freezable block, as ``config.freeze_blocks`` counts them."""
    family = FAMILIES[config.backbone]
    if config.block_numbers == "former" and family.former_block_of is not None:
        return family.former_block_of(layer)
    return family.block_of(layer)


def with_config(model: FasterRCNN, config: DetectorConfig) -> FasterRCNN:
    """Return a detector of the same graphs and weights with another description, such as other thresholds."""
    # A new object, because a model that was called holds compiled functions with the former thresholds in
    # them.
    return FasterRCNN(config, model.trunk, model.head, name=model.name)


def save(model: FasterRCNN, path: Path) -> None:
    """Write the model to a local ``.keras`` file."""
    model.save(path)


def load(path: Path) -> FasterRCNN:
    """Read a model that :func:`save` wrote.

    Raises:
        RunnerError: UnreadableModel, for any other file.
        OSError: The volume cannot be read or is full.
    """
    # Keras would say that the file is not found.
    if not zipfile.is_zipfile(path):
        raise RunnerError(
            Reason.UNREADABLE_MODEL, f"expected a .keras file, got {path.name}, which is no zip"
        )
    try:
        model = keras.saving.load_model(path, compile=False)
    except MemoryError:
        # The pod's fault, not the file's.
        raise
    except Exception as error:
        # The volume's fault, not the file's.
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        # Keras raises many types, for a foreign layer, a missing entry or broken weights.
        raise RunnerError(Reason.UNREADABLE_MODEL, f"{path.name} cannot be read: {error}") from error
    if not isinstance(model, FasterRCNN):
        kind = type(model).__name__
        raise RunnerError(
            Reason.UNREADABLE_MODEL,
            f"expected a detector written by this product, got a Keras {kind} in {path.name}",
        )
    return model
