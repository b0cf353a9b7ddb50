"""Description of a detector: classes, input size, architecture, anchors, and settings of its two stages.

Made from a TrainingJob's spec, saved inside the ``.keras`` file beside the graphs, and read back from there
by pruning, evaluation and export: a model file needs no spec to be understood.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field

from tlt_api.base import StatusModel
from tlt_api.dataset import ColorMode, Dataset
from tlt_api.model import Activation, Anchors, Backbone, Detections, Model, Proposals, Roi
from tlt_api.training import Evaluation
from tlt_runner.data.anchor_grid import STRIDE as STRIDE
from tlt_runner.detector import variant
from tlt_runner.detector.variant import Variant

HEAD_STRIDE = 2
"""Stride of the backbone's last stage on pooled features, where the spec has none."""
FIXED_ROI_FIELDS = ("head", "head_stride", "pool_size", "sampling", "delta_scales", "dropout")
"""Fields of ``roi`` that a retraining cannot change: the head's graph and weights were made for them."""


Scales = tuple[float, float, float, float]
"""Factors on the offsets (dy, dx, dh, dw) that the network learns."""


class DetectorConfig(StatusModel):
    """A detector's description, stored in its model file. Fields that a newer version added are ignored."""

    class_names: list[str] = Field(min_length=1)
    """Classes to detect; a class's id is its index here."""
    height: int
    """Height of the network's input in pixels."""
    width: int
    """Width of the network's input in pixels."""
    # The default is for models made before there was a choice.
    mode: Literal["stretch", "letterbox"] = "stretch"
    """Resizing of images to the network's input, in training as in inference."""
    color_mode: ColorMode = "rgb"
    """Colour of the network's input, in training as in inference."""
    orientation: Literal["stored", "exif"] = "stored"
    """View of photos with an EXIF orientation that the training's labels were of, and inference takes."""
    backbone: Backbone = "resnet18"
    """Feature extractor, before any pruning."""
    width_multiplier: float = 1.0
    """Factor on every layer's filters, before any pruning."""
    variant: Variant = variant.DEFAULT
    """Details of the backbone's graph that its pretrained weights decide."""
    activation: Activation = "swish"
    """Activation function of efficientnet; the other backbones have one of their own."""
    anchors: Anchors = Anchors()
    """Reference boxes of the region proposal network."""
    proposals: Proposals = Proposals()
    """Settings of the region proposal network."""
    roi: Roi = Roi()
    """Settings of the RoI head."""
    detections: Detections = Detections()
    """Settings of the final detections."""
    score_thresholds: list[float] | None = None
    """Score threshold of each class at which F1 was best in the model's evaluation, the default of inference;
    None for a model that was not evaluated, or of before there were any."""
    max_objects: int = 100
    """Most objects of an image that are used in training."""
    freeze_blocks: list[int] = []
    """Blocks of the backbone that are not trained."""
    block_numbers: Literal["tlt", "former"] = "tlt"
    """Meaning of the numbers in ``freeze_blocks``; ``former`` in models of before 2026-12."""
    freeze_batch_norm: bool = False
    """Use the moving statistics of batch normalisation in training, instead of the batch's."""

    @classmethod
    def from_file(cls, stored: dict[str, Any]) -> Self:
        """Read the description in a model file; one of before 2026-12 names neither variant nor numbering."""
        former = {"variant": variant.DEFAULT.to_wire(), "blockNumbers": "former"}
        return cls.model_validate({**former, **stored})

    @classmethod
    def from_spec(cls, model: Model, dataset: Dataset) -> Self:
        """Make the description of the detector that a TrainingJob asks for."""
        return cls(
            class_names=dataset.target_classes,
            height=dataset.image_size.height,
            width=dataset.image_size.width,
            mode=dataset.image_size.mode,
            color_mode=dataset.color_mode,
            backbone=model.backbone,
            width_multiplier=model.width_multiplier,
            activation=model.activation or "swish",
            anchors=model.anchors,
            proposals=model.proposals,
            roi=model.roi,
            detections=model.detections,
            max_objects=model.max_objects,
            freeze_blocks=model.freeze_blocks,
            freeze_batch_norm=model.freeze_batch_norm,
        )

    def retrained_by(self, model: Model, dataset: Dataset) -> Self:
        """Return this description with the settings that a retraining may change.

        Architecture, anchors, head, factors on offsets and classes stay: the weights were made for them.
        """
        # What the weights were made for is taken from the model, whatever the spec says of it.
        roi = {name: getattr(self.roi, name) for name in FIXED_ROI_FIELDS}
        proposals = {"delta_scale": self.proposals.delta_scale}
        return self.model_copy(
            update={
                "mode": dataset.image_size.mode,
                "proposals": model.proposals.model_copy(update=proposals),
                "roi": model.roi.model_copy(update=roi),
                "detections": model.detections,
                # Other weights have other scores.
                "score_thresholds": None,
                "max_objects": model.max_objects,
                "freeze_blocks": model.freeze_blocks,
                "block_numbers": "tlt",
                "freeze_batch_norm": model.freeze_batch_norm,
            }
        )

    def evaluated_by(self, evaluation: Evaluation) -> Self:
        """Return this description with the proposals and detections of a TrainingJob's evaluation."""
        proposals = self.proposals
        if evaluation.proposals is not None:
            proposals = proposals.model_copy(update={"inference": evaluation.proposals})
        detections = evaluation.detections or self.detections
        return self.model_copy(update={"proposals": proposals, "detections": detections})

    @property
    def channels(self) -> int:
        """Number of channels of the network's input: 3 (red, green, blue) or 1 (luma)."""
        return 1 if self.color_mode == "grayscale" else 3

    @property
    def classes(self) -> int:
        """Number of classes, without background."""
        return len(self.class_names)

    @property
    def head_stride(self) -> int:
        """Stride of the last stage on pooled features; the light head and vgg's ignore it."""
        return self.roi.head_stride or HEAD_STRIDE

    @property
    def head_scales(self) -> Scales:
        """Factors on the head's (dy, dx, dh, dw)."""
        scales = self.roi.delta_scales
        return scales.y, scales.x, scales.h, scales.w

    @property
    def rpn_scales(self) -> Scales:
        """Factors on the region proposal network's (dy, dx, dh, dw)."""
        return (self.proposals.delta_scale,) * 4

    @property
    def feature_height(self) -> int:
        """Rows of the feature map; of the last one, a part may lie below the image."""
        return math.ceil(self.height / STRIDE)

    @property
    def feature_width(self) -> int:
        """Columns of the feature map; of the last one, a part may lie right of the image."""
        return math.ceil(self.width / STRIDE)

    @property
    def anchors_per_cell(self) -> int:
        """Number of anchors at one cell of the feature map."""
        return len(self.anchors.scales) * len(self.anchors.ratios)

    @property
    def anchor_count(self) -> int:
        """Number of anchors of an image."""
        return self.feature_height * self.feature_width * self.anchors_per_cell
