"""The detector of a TrainingJob: backbone, anchors, proposals, head (``spec.model``)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tlt_api.base import ApiModel, Rule, pair
from tlt_api.common import Fraction, ModelSource, OpenFraction, Sha256, Uri


class PretrainedWeights(ApiModel):
    """A weights file to start from, loaded by layer name and shape."""

    uri: Uri
    """A .keras, .weights.h5, .h5 or .hdf5 file; with layer names of this product, of Keras or of TLT."""
    sha256: Sha256 | None = None
    """Expected digest; a different file is refused."""


class Anchors(ApiModel):
    """The reference boxes of the region proposal network."""

    auto: bool = False
    """Whether scales and ratios are chosen by clustering the boxes of the training images; the lists below
    then say only how many of each."""
    scales: Annotated[list[Annotated[float, Field(gt=0, le=4096)]], Field(min_length=1, max_length=16)] = [
        64,
        128,
        256,
    ]
    """Sizes in pixels of the network's input: the side of a square of the anchor's area."""
    ratios: Annotated[list[Annotated[float, Field(gt=0, le=100)]], Field(min_length=1, max_length=16)] = [
        1.0,
        0.5,
        2.0,
    ]
    """Width / height."""


class ProposalCounts(ApiModel):
    """How many proposals go into and come out of non-maximum suppression."""

    pre_nms: Annotated[int, Field(ge=1, le=12000)]
    """Best-scored boxes that enter. Suppression takes memory for every image of a batch, more than in
    proportion: on a CPU about 0.15 GB for 6000 boxes, 0.35 GB for 12000."""
    post_nms: Annotated[int, Field(ge=1, le=4000)]
    """Boxes that are kept at most."""

    rules = (
        Rule(
            cel="self.postNms < self.preNms",
            check=lambda self: self.post_nms < self.pre_nms,
            message="expected postNms < preNms: suppression keeps fewer boxes than it is given",
            given=pair("postNms", "preNms"),
        ),
    )


class InferenceProposalCounts(ProposalCounts):
    """The same for inference, where TensorRT sorts at most 3840 boxes."""

    pre_nms: Annotated[int, Field(ge=1, le=3840)] = 2000
    """Best-scored boxes that enter; TensorRT's TopK takes at most 3840."""
    post_nms: Annotated[int, Field(ge=1, le=1000)] = 300
    """Boxes that are kept at most."""


class Proposals(ApiModel):
    """The region proposal network's targets and output."""

    min_overlap: Fraction = 0.3
    """IoU with every object below which an anchor is background."""
    max_overlap: Fraction = 0.7
    """IoU with an object from which an anchor is foreground."""
    mini_batch: Annotated[int, Field(ge=2, le=4096)] = 256
    """Anchors of an image that the loss is taken over."""
    nms_overlap: OpenFraction = 0.7
    """IoU above which the lower-scored of two proposals is dropped."""
    delta_scale: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Factor on all offsets that the network learns (TLT: std_scaling). Ignored where the model comes from a
    file."""
    training: ProposalCounts = ProposalCounts(pre_nms=2000, post_nms=500)
    """Counts in training."""
    inference: InferenceProposalCounts = InferenceProposalCounts()
    """Counts in evaluation and in the exported model."""

    rules = (
        Rule(
            cel="self.minOverlap < self.maxOverlap",
            check=lambda self: self.min_overlap < self.max_overlap,
            message="expected minOverlap < maxOverlap",
            given=pair("minOverlap", "maxOverlap"),
        ),
    )


class DeltaScales(ApiModel):
    """Factors on the offsets that the head learns: they bring them to about unit variance."""

    x: Annotated[float, Field(gt=0, le=100)] = 10.0
    """Of the centre, to the right, in widths of the proposal."""
    y: Annotated[float, Field(gt=0, le=100)] = 10.0
    """Of the centre, downwards, in heights of the proposal."""
    w: Annotated[float, Field(gt=0, le=100)] = 5.0
    """Of the width's logarithm."""
    h: Annotated[float, Field(gt=0, le=100)] = 5.0
    """Of the height's logarithm."""


class Roi(ApiModel):
    """The head that classifies proposals."""

    head: Literal["lastStage", "light"] = "lastStage"
    """lastStage runs the backbone's last stage on every pooled proposal. light runs it once an image, thins
    its features, and has one dense layer for a proposal: many times cheaper (docs/performance.md). Ignored
    where the model comes from a file."""
    head_stride: Literal[1, 2] | None = None
    """Stride of the last stage on the pooled feature, with head lastStage; 2 where absent. 2 on poolSize 14
    is the original C4, 1 on poolSize 7 TLT's, 2 on poolSize 7 the cheapest. vgg's last stage, dense layers,
    has none. Ignored where the model comes from a file."""
    pool_size: Annotated[int, Field(ge=2, le=28)] = 7
    """Side of the pooled feature of a proposal. Ignored where the model comes from a file."""
    delta_scales: DeltaScales = DeltaScales()
    """Factors on what the head learns of a box (TLT: classifier_regr_std). Ignored where the model comes
    from a file."""
    mini_batch: Annotated[int, Field(ge=1, le=2048)] = 256
    """Proposals of an image that the head is trained on."""
    min_overlap: Fraction = 0.0
    """IoU from which a proposal counts as background in training; below it is ignored."""
    max_overlap: Fraction = 0.5
    """IoU with an object from which a proposal is that object in training."""
    positive_fraction: OpenFraction = 0.25
    """Share of objects in the mini-batch."""
    ground_truth_as_roi: bool = True
    """Whether the objects' own boxes are added to the proposals in training."""

    rules = (
        Rule(
            cel="self.minOverlap < self.maxOverlap",
            check=lambda self: self.min_overlap < self.max_overlap,
            message="expected minOverlap < maxOverlap",
            given=pair("minOverlap", "maxOverlap"),
        ),
    )


class Detections(ApiModel):
    """The final detections, in evaluation and in the exported model."""

    score_threshold: OpenFraction = 0.01
    """Lowest score that is kept."""
    nms_overlap: OpenFraction = 0.3
    """IoU above which the lower-scored of two detections of one class is dropped."""
    max_detections: Annotated[int, Field(ge=1, le=1000)] = 100
    """Detections of an image at most."""


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
FREEZABLE: dict[str, range] = {
    "resnet": range(4),
    "vgg": range(1, 6),
    "mobilenet_v1": range(12),
    "mobilenet_v2": range(14),
    "darknet": range(6),
    "googlenet": range(8),
    "efficientnet": range(8),
}
"""How the names of a family's backbones begin -> their blocks that can be frozen; those of TLT."""
_FREEZABLE_TEXT = ", ".join(f"{family} {blocks[0]} to {blocks[-1]}" for family, blocks in FREEZABLE.items())


def freezable(backbone: str) -> range:
    """The blocks that ``freezeBlocks`` may hold."""
    return next(blocks for family, blocks in FREEZABLE.items() if backbone.startswith(family))


def _freezable_cel() -> str:
    families = (
        f"(self.backbone.startsWith('{family}') && b >= {blocks[0]} && b <= {blocks[-1]})"
        for family, blocks in FREEZABLE.items()
    )
    return f"has(self.from) || self.freezeBlocks.all(b, {' || '.join(families)})"


class Model(ApiModel):
    """The detector: a C4 Faster R-CNN."""

    backbone: Backbone = "resnet18"
    """Feature extractor; its last stage is the head. Ignored where the model comes from a file (from)."""
    width_multiplier: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Scales every layer's filters, for small machines. Ignored where the model comes from a file."""
    pretrained_weights: PretrainedWeights | None = None
    """Weights to start from, loaded by name and shape."""
    from_: Annotated[ModelSource | None, Field(alias="from")] = None
    """A whole model to start from, for example a pruned one. It keeps its architecture, anchors and head; the
    outputs of classes that it does not have are initialised anew."""
    freeze_blocks: Annotated[list[Annotated[int, Field(ge=0, le=13)]], Field(max_length=14)] = []
    """Blocks of the backbone that are not trained, numbered as in TLT (docs/adr/0009-backbones.md): 0 is the
    stem, of resnet with the first stage; vgg begins at 1."""
    freeze_batch_norm: bool = False
    """Whether batch normalisation uses its stored statistics in training."""
    anchors: Anchors = Anchors()
    """Reference boxes."""
    proposals: Proposals = Proposals()
    """Region proposal network."""
    roi: Roi = Roi()
    """Head."""
    detections: Detections = Detections()
    """Final detections."""
    max_objects: Annotated[int, Field(ge=1, le=1000)] = 100
    """Objects of an image that are used in training; further ones are counted and reported."""

    rules = (
        Rule(
            cel="!(has(self.pretrainedWeights) && has(self.from))",
            check=lambda self: self.pretrained_weights is None or self.from_ is None,
            message="expected pretrainedWeights or from: a whole model brings its weights along",
            given="'both'",
        ),
        Rule(
            cel="!(has(self.from) && self.anchors.auto)",
            check=lambda self: self.from_ is None or not self.anchors.auto,
            message="expected anchors.auto without from: a whole model brings its anchors along",
            given="'both'",
        ),
        Rule(
            cel="!(self.backbone.startsWith('vgg') && has(self.roi.headStride)) || has(self.from)",
            check=lambda self: (
                not self.backbone.startswith("vgg") or self.roi.head_stride is None or self.from_ is not None
            ),
            message="expected no roi.headStride for vgg: its last stage is dense layers",
            given="'headStride %s of %s'.format([self.roi.headStride, self.backbone])",
        ),
        Rule(
            cel="!(self.roi.head == 'light' && has(self.roi.headStride)) || has(self.from)",
            check=lambda self: (
                self.roi.head != "light" or self.roi.head_stride is None or self.from_ is not None
            ),
            message="expected roi.headStride with roi.head lastStage only: the light head has no stage",
            given="'headStride %s'.format([self.roi.headStride])",
        ),
        Rule(
            cel=_freezable_cel(),
            check=lambda self: (
                self.from_ is not None or set(self.freeze_blocks) <= set(freezable(self.backbone))
            ),
            message=f"expected freezeBlocks that the backbone has: {_FREEZABLE_TEXT}",
            given="'%s of %s'.format([self.freezeBlocks, self.backbone])",
        ),
    )
