"""Detector of a TrainingJob (``spec.model``): backbone, anchors, region proposals and head."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from tlt_api.base import ApiModel, Rule, pair
from tlt_api.common import Fraction, ModelSource, OpenFraction, Sha256, WeightsUri

ChannelMeans = Annotated[list[Annotated[float, Field(ge=-1000, le=1000)]], Field(min_length=3, max_length=3)]
ChannelScales = Annotated[list[Annotated[float, Field(gt=0, le=1000)]], Field(min_length=3, max_length=3)]


class PretrainedPixels(ApiModel):
    """Pixels on which pretrained weights were trained: (pixel - mean) / scale, of pixels from 0 to 255."""

    order: Literal["rgb", "bgr"] | None = None
    """Order of the channels that the weights expect (TLT: image_channel_order). Defaults to that of the
    program that wrote the file."""
    mean: ChannelMeans | None = None
    """Mean of red, green and blue, in this order, subtracted from the pixels (TLT: image_channel_mean).
    Defaults to that of the program that wrote the file."""
    scale: ChannelScales | None = None
    """Divisors of red, green and blue, in this order, after the subtraction (TLT: image_scaling_factor).
    Defaults to those of the program that wrote the file."""


class PretrainedWeights(ApiModel):
    """Pretrained weights, loaded by layer name and shape."""

    uri: WeightsUri
    """Address of a .keras, .weights.h5, .h5, .hdf5 or .safetensors file with the layer names of this product,
    Keras, KerasHub, torchvision or TLT. https:// needs sha256; the download is resumed after an interruption
    and kept at the output."""
    sha256: Sha256 | None = None
    """Expected SHA-256 of the file at uri, in hexadecimal; a different file is refused."""
    pixels: PretrainedPixels = PretrainedPixels()
    """Pixels on which the weights were trained. Each field defaults to that of the program that wrote the
    file."""

    rules = (
        Rule(
            cel="!self.uri.startsWith('https:') || has(self.sha256)",
            check=lambda self: not self.uri.startswith("https:") or self.sha256 is not None,
            message="expected sha256 with an https:// uri: the file of a public address can change",
            given="'https without sha256'",
        ),
    )


class Anchors(ApiModel):
    """Anchor boxes of the region proposal network."""

    auto: bool = False
    """Choose scales and ratios by clustering the boxes of the training images. The given scales and ratios
    then only set how many of each."""
    scales: Annotated[list[Annotated[float, Field(gt=0, le=4096)]], Field(min_length=1, max_length=16)] = [
        64,
        128,
        256,
    ]
    """Anchor sizes: the side of a square of the anchor's area, in pixels of the network input."""
    ratios: Annotated[list[Annotated[float, Field(gt=0, le=100)]], Field(min_length=1, max_length=16)] = [
        1.0,
        0.5,
        2.0,
    ]
    """Anchor aspect ratios, as width / height."""

    def shapes(self) -> list[tuple[float, float]]:
        """Width and height in pixels of the anchors of one cell, scales outermost.

        An anchor of scale s and ratio r has the area s squared and width / height = r.
        """
        # width = s * sqrt(r), height = s / sqrt(r): their product is s squared, their quotient r.
        roots = [(scale, math.sqrt(ratio)) for scale in self.scales for ratio in self.ratios]
        return [(scale * root, scale / root) for scale, root in roots]


class ProposalCounts(ApiModel):
    """Number of proposals before and after non-maximum suppression (NMS)."""

    pre_nms: Annotated[int, Field(ge=1, le=12000)]
    """Number of highest-scoring boxes passed to non-maximum suppression (TLT: rpn_pre_nms_top_N)."""
    post_nms: Annotated[int, Field(ge=1, le=4000)]
    """Maximum number of proposals kept by non-maximum suppression (TLT: rpn_nms_max_boxes)."""
    nms_overlap: OpenFraction | None = None
    """IoU threshold of non-maximum suppression: of two proposals with a higher IoU, the lower-scoring one is
    removed (TLT: rpn_nms_overlap_threshold). Defaults to spec.model.proposals.nmsOverlap."""

    rules = (
        Rule(
            cel="self.postNms < self.preNms",
            check=lambda self: self.post_nms < self.pre_nms,
            message="expected postNms < preNms: NMS keeps fewer boxes than it receives",
            given=pair("postNms", "preNms"),
        ),
    )


class InferenceProposalCounts(ProposalCounts):
    """Number of proposals before and after NMS at inference; in an exported model at most 3840 before it."""

    pre_nms: Annotated[int, Field(ge=1, le=12000)] = 2000
    """Number of highest-scoring boxes passed to non-maximum suppression (TLT: rpn_pre_nms_top_N). TensorRT
    sorts at most 3840: an exported model passes no more, and status.exports[].preNms says how many."""
    post_nms: Annotated[int, Field(ge=1, le=1000)] = 300
    """Maximum number of proposals kept by non-maximum suppression (TLT: rpn_nms_max_boxes)."""


class Proposals(ApiModel):
    """Region proposal network (RPN): training targets and proposals."""

    min_overlap: Fraction = 0.3
    """Background threshold of the RPN: an anchor whose IoU with every object is below it is background (TLT:
    rpn_min_overlap)."""
    max_overlap: Fraction = 0.7
    """Foreground threshold of the RPN: an anchor whose IoU with an object reaches it is foreground (TLT:
    rpn_max_overlap)."""
    mini_batch: Annotated[int, Field(ge=2, le=4096)] = 256
    """Number of anchors per image sampled for the RPN loss (TLT: rpn_mini_batch)."""
    nms_overlap: OpenFraction = 0.7
    """IoU threshold of non-maximum suppression in training and inference: of two proposals with a higher IoU,
    the lower-scoring one is removed (TLT: rpn_nms_overlap_threshold). Each of training and inference can have
    its own nmsOverlap."""
    delta_scale: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Scale factor of the RPN's box regression targets (TLT: std_scaling). Ignored if spec.model.from is
    set."""
    training: ProposalCounts = ProposalCounts(pre_nms=2000, post_nms=500)
    """Number of proposals before and after non-maximum suppression, and its threshold, in training."""
    inference: InferenceProposalCounts = InferenceProposalCounts()
    """Number of proposals before and after non-maximum suppression, and its threshold, in inference, in the
    exported model, and in the evaluation unless spec.evaluation.proposals is set."""

    # An anchor between the two thresholds is neither foreground nor background, and has no part in the loss.
    rules = (
        Rule(
            cel="self.minOverlap < self.maxOverlap",
            check=lambda self: self.min_overlap < self.max_overlap,
            message="expected minOverlap < maxOverlap",
            given=pair("minOverlap", "maxOverlap"),
        ),
    )


class DeltaScales(ApiModel):
    """Scale factors of the head's box regression targets, which bring them to about unit variance."""

    x: Annotated[float, Field(gt=0, le=100)] = 10.0
    """Scale factor of the horizontal centre offset, in widths of the proposal."""
    y: Annotated[float, Field(gt=0, le=100)] = 10.0
    """Scale factor of the vertical centre offset, in heights of the proposal."""
    w: Annotated[float, Field(gt=0, le=100)] = 5.0
    """Scale factor of the logarithm of the width ratio."""
    h: Annotated[float, Field(gt=0, le=100)] = 5.0
    """Scale factor of the logarithm of the height ratio."""


Sampling = Literal["fixed", "adaptive"]
"""Samples of a bin in RoI pooling."""


class Roi(ApiModel):
    """Detection head, which classifies proposals and refines their boxes."""

    head: Literal["lastStage", "light"] = "lastStage"
    """Type of head. lastStage: the last stage of the backbone runs on every pooled proposal; light: it runs
    once per image, its channels are reduced and each proposal has one dense layer, which is many times
    cheaper (docs/performance.md). Ignored if spec.model.from is set."""
    head_stride: Literal[1, 2] | None = None
    """Stride of the backbone's last stage on pooled features; with head lastStage only, not for vgg. Defaults
    to 2. 2 with poolSize 14 is the original C4, 1 with poolSize 7 is TLT's, 2 with poolSize 7 is the
    cheapest. Ignored if spec.model.from is set."""
    pool_size: Annotated[int, Field(ge=2, le=28)] = 7
    """Side length of the pooled feature map of a proposal. Ignored if spec.model.from is set."""
    sampling: Sampling = "fixed"
    """Samples per bin and direction in the pooling of a proposal: fixed: 2; adaptive: as many as the bin has
    cells of the feature map, at most 4, which costs four times as much and describes large objects better.
    Ignored if spec.model.from is set."""
    delta_scales: DeltaScales = DeltaScales()
    """Scale factors of the head's box regression targets (TLT: classifier_regr_std). Ignored if
    spec.model.from is set."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout rate in the training of the head (TLT: dropout_rate): after each dense layer of vgg and of head
    light, before the output layers of all others. Ignored if spec.model.from is set."""
    mini_batch: Annotated[int, Field(ge=1, le=2048)] = 256
    """Number of proposals per image sampled to train the head (TLT: roi_mini_batch)."""
    min_overlap: Fraction = 0.0
    """Minimum IoU of a background proposal in training; a proposal below it is ignored (TLT:
    classifier_min_overlap)."""
    max_overlap: Fraction = 0.5
    """Foreground threshold in training: a proposal whose IoU with an object reaches it is assigned to that
    object (TLT: classifier_max_overlap)."""
    positive_fraction: OpenFraction = 0.25
    """Maximum fraction of foreground proposals in the mini-batch."""
    ground_truth_as_roi: bool = True
    """Add the ground truth boxes to the proposals in training (TLT: gt_as_roi)."""

    rules = (
        Rule(
            cel="self.minOverlap < self.maxOverlap",
            check=lambda self: self.min_overlap < self.max_overlap,
            message="expected minOverlap < maxOverlap",
            given=pair("minOverlap", "maxOverlap"),
        ),
    )


class Detections(ApiModel):
    """Post-processing of detections: score threshold, non-maximum suppression and maximum number."""

    score_threshold: OpenFraction = 0.01
    """Minimum score of a detection (TLT: object_confidence_thres)."""
    nms_overlap: OpenFraction = 0.3
    """IoU threshold of non-maximum suppression: of two detections of one class with a higher IoU, the
    lower-scoring one is removed (TLT: classifier_nms_overlap_threshold)."""
    max_detections: Annotated[int, Field(ge=1, le=1000)] = 100
    """Maximum number of detections per image (TLT: classifier_nms_max_boxes)."""


# The names that tlt_runner.detector.backbones can build, written out here: the API does not know the runner.
Backbone = Literal[
    "resnet10",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "vgg16",
    "vgg19",
    "mobilenet_v1",
    "mobilenet_v2",
    "darknet19",
    "darknet53",
    "googlenet",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
]
Activation = Literal["swish", "relu"]
FREEZABLE: dict[str, range] = {
    "resnet": range(4),
    "vgg": range(1, 6),
    "mobilenet_v1": range(12),
    "mobilenet_v2": range(14),
    "darknet": range(6),
    "googlenet": range(8),
    "efficientnet": range(9),
}
"""Common prefix of a family's backbone names -> numbers of the blocks that can be frozen, as in TLT."""
_FREEZABLE_TEXT = ", ".join(f"{family} {blocks[0]} to {blocks[-1]}" for family, blocks in FREEZABLE.items())


def freezable(backbone: str) -> range:
    """Return the block numbers that ``freezeBlocks`` may contain for this backbone."""
    # No prefix is the beginning of another: the first that fits is the only one.
    return next(blocks for family, blocks in FREEZABLE.items() if backbone.startswith(family))


def _freezable_cel() -> str:
    # Written out, since CEL has no such table.
    families = (
        f"(self.backbone.startsWith('{family}') && b >= {blocks[0]} && b <= {blocks[-1]})"
        for family, blocks in FREEZABLE.items()
    )
    return f"has(self.from) || self.freezeBlocks.all(b, {' || '.join(families)})"


class Model(ApiModel):
    """Object detector: C4 Faster R-CNN."""

    backbone: Backbone = "resnet18"
    """Feature extractor (TLT: arch); its last stage is the head. Ignored if spec.model.from is set."""
    width_multiplier: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Factor on the number of filters of every layer; below 1 for small machines. Ignored if spec.model.from
    is set."""
    activation: Activation | None = None
    """Activation function of the backbone (TLT: activation_type). Defaults to swish. With efficientnet only:
    the other backbones have one of their own. Ignored if spec.model.from is set."""
    pretrained_weights: PretrainedWeights | None = None
    """Pretrained weights to start from, loaded by layer name and shape."""
    from_: Annotated[ModelSource | None, Field(alias="from")] = None
    """Complete model to start from, for example a pruned one. It keeps its architecture, anchors and head;
    outputs of classes that it lacks are newly initialised."""
    freeze_blocks: Annotated[list[Annotated[int, Field(ge=0, le=13)]], Field(max_length=14)] = []
    """Backbone blocks that are not trained, numbered as in TLT (docs/adr/0009-backbones.md): 0 is the stem, 1
    the first stage or block; vgg starts at 1. The last stage of a resnet, its head, has no number."""
    freeze_batch_norm: bool = False
    """Use the stored statistics of batch normalisation in training (TLT: freeze_bn)."""
    anchors: Anchors = Anchors()
    """Anchor boxes of the region proposal network."""
    proposals: Proposals = Proposals()
    """Region proposal network (RPN): training targets and proposals."""
    roi: Roi = Roi()
    """Detection head, which classifies proposals and refines their boxes."""
    detections: Detections = Detections()
    """Post-processing of detections in inference, in the exported model, and in the evaluation unless
    spec.evaluation.detections is set."""
    max_objects: Annotated[int, Field(ge=1, le=1000)] = 100
    """Maximum number of objects per image used in training (TLT: max_objects_num_per_image). The largest are
    used; the places of further ones are neither objects nor background, and they are counted and reported."""

    # With `from`, fields of the architecture are ignored, not refused: a default cannot be told from a given
    # value.
    rules = (
        Rule(
            cel="!(has(self.pretrainedWeights) && has(self.from))",
            check=lambda self: self.pretrained_weights is None or self.from_ is None,
            message="expected pretrainedWeights or from: a complete model includes its weights",
            given="'both'",
        ),
        Rule(
            cel="!(has(self.from) && self.anchors.auto)",
            check=lambda self: self.from_ is None or not self.anchors.auto,
            message="expected anchors.auto without from: a complete model includes its anchors",
            given="'both'",
        ),
        Rule(
            # The other networks have no choice: their weights were trained with one function.
            cel="!has(self.activation) || self.backbone.startsWith('efficientnet') || has(self.from)",
            check=lambda self: (
                self.activation is None or self.backbone.startswith("efficientnet") or self.from_ is not None
            ),
            message="expected activation for efficientnet only: the other backbones have one of their own",
            given="'%s of %s'.format([self.activation, self.backbone])",
        ),
        Rule(
            cel="!(self.backbone.startsWith('vgg') && has(self.roi.headStride)) || has(self.from)",
            check=lambda self: (
                not self.backbone.startswith("vgg") or self.roi.head_stride is None or self.from_ is not None
            ),
            message="expected no roi.headStride for vgg: its last stage consists of dense layers",
            given="'headStride %s of %s'.format([self.roi.headStride, self.backbone])",
        ),
        Rule(
            cel="!(self.roi.head == 'light' && has(self.roi.headStride)) || has(self.from)",
            check=lambda self: (
                self.roi.head != "light" or self.roi.head_stride is None or self.from_ is not None
            ),
            message="expected roi.headStride with roi.head lastStage only: the light head does not use it",
            given="'headStride %s'.format([self.roi.headStride])",
        ),
        Rule(
            cel=_freezable_cel(),
            check=lambda self: (
                self.from_ is not None or set(self.freeze_blocks) <= set(freezable(self.backbone))
            ),
            message=f"expected freezeBlocks to be blocks of the backbone: {_FREEZABLE_TEXT}",
            given="'%s of %s'.format([self.freezeBlocks, self.backbone])",
        ),
    )
