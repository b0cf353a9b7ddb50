"""TrainingJob: train a detector on a data set, from nothing, from weights, or from a pruned model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tlt_api.base import ApiModel, Rule, exactly_one_of, pair
from tlt_api.common import JobSpec, ModelSource, RelativePath, Sha256, Uri

Multiple16 = Annotated[int, Field(ge=64, le=4096, multiple_of=16)]
Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
LONGEST_CLASS = 128
"""Characters of a class's name."""
MOST_CLASSES = 500
"""Classes of a targetClassMapping."""
NOT_A_CLASS = "background"
"""The detector's own name for what is no object."""
ClassName = Annotated[str, Field(min_length=1, max_length=LONGEST_CLASS)]


LabelFormat = Literal["kitti", "voc", "coco", "yolo"]
DEFAULT_PLACES: dict[LabelFormat, tuple[str, str]] = {
    "kitti": ("training/image_2", "training/label_2"),
    "voc": ("JPEGImages", "Annotations"),
    "coco": ("images", "annotations"),
    "yolo": ("images", "labels"),
}
"""Images and labels of each format where the data set does not say."""


class ImageSize(ApiModel):
    """The size to which every image is brought, with its labels."""

    width: Multiple16
    """Pixels, a multiple of 16 (the detector's stride)."""
    height: Multiple16
    """Pixels, a multiple of 16 (the detector's stride)."""
    mode: Literal["stretch", "letterbox"] = "stretch"
    """stretch changes the aspect ratio; letterbox keeps it and pads."""


class GroupBy(ApiModel):
    """Which images belong together: near-duplicates must not be trained on and judged by."""

    separator: Annotated[str, Field(min_length=1, max_length=16)] | None = None
    """An image's group is what stands before the last such text: "/" groups by sub-folder, "_" groups
    a/street_0001 with a/street_0002. A name without it is a group of its own."""
    file: RelativePath | None = None
    """File that names the groups, relative to the data set's uri: TLT's sequence map (.json, sequence ->
    frames) or a table of two columns (image name, group) with a comma or white space between."""

    rules = (exactly_one_of("separator", "file", hint="group by a part of the name, or by a file"),)


class Validation(ApiModel):
    """The held-out images: a fraction drawn at random, a folder of their own, or a list of names."""

    fraction: OpenFraction | None = None
    """Share of the images that is held out, of every class alike, drawn by a hash of the name and the seed:
    images that come or go do not move the others."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of that draw."""
    group_by: GroupBy | None = None
    """Images that the draw keeps together."""
    images: RelativePath | None = None
    """Folder of validation images, relative to the data set's uri."""
    labels: RelativePath | None = None
    """Their labels: a folder, or for coco a file or a folder of files."""
    image_set: RelativePath | None = None
    """File with the names of the validation images, one a line, relative to the data set's uri: of VOC
    ImageSets/Main/val.txt."""

    rules = (
        exactly_one_of(
            "fraction",
            "images",
            "image_set",
            hint="hold out a fraction, or name a folder or a list of validation images",
        ),
        Rule(
            cel="has(self.images) == has(self.labels)",
            check=lambda self: (self.images is None) == (self.labels is None),
            message="expected images and labels together: give both or neither",
            given="'one of them'",
        ),
        Rule(
            cel="!has(self.groupBy) || has(self.fraction)",
            check=lambda self: self.group_by is None or self.fraction is not None,
            message="expected groupBy with fraction only: a folder or a list says already what is held out",
            given="'groupBy without fraction'",
        ),
    )


class BadSamples(ApiModel):
    """What happens to images and labels that cannot be used."""

    policy: Literal["Skip", "Fail"] = "Skip"
    """Skip leaves them out and counts them; Fail ends the job with the list of them."""
    max_fraction: Fraction = 0.01
    """With Skip: the share of images above which the job fails all the same."""


class Dataset(ApiModel):
    """Images and labels."""

    uri: Uri
    """Root of the data set."""
    format: LabelFormat = "kitti"
    """Format of the labels."""
    images: RelativePath | None = None
    """Folder of images, relative to uri, with its sub-folders. By default the format's own:
    training/image_2 (kitti), JPEGImages (voc), images (coco, yolo)."""
    labels: RelativePath | None = None
    """Labels, relative to uri: a folder, or for coco a .json file or a folder of them. By default the
    format's own: training/label_2 (kitti), Annotations (voc), annotations (coco), labels (yolo)."""
    image_set: RelativePath | None = None
    """File with the names of the images to use, one a line, relative to uri: of VOC
    ImageSets/Main/train.txt. By default all images are used."""
    class_names: Annotated[list[ClassName], Field(max_length=1000)] = []
    """Of yolo: the classes by number, from 0. By default those of data.yaml at uri."""
    target_class_mapping: Annotated[dict[str, ClassName], Field(min_length=1, max_length=MOST_CLASSES)]
    """Class in the labels -> class to learn. Labels of other classes are not objects."""
    image_size: ImageSize
    """Size of the network's input."""
    validation: Validation = Validation(fraction=0.2)
    """The held-out images."""
    bad_samples: BadSamples = BadSamples()
    """What happens to images and labels that cannot be used."""

    rules = (
        Rule(
            cel="self.targetClassMapping.all(k, !('background' in [k, self.targetClassMapping[k]]))",
            check=lambda self: (
                NOT_A_CLASS not in {*self.target_class_mapping, *self.target_class_mapping.values()}
            ),
            message="expected no class background in targetClassMapping: the detector adds it itself",
            given="'background'",
        ),
        Rule(
            cel="self.format == 'yolo' || !has(self.classNames) || size(self.classNames) == 0",
            check=lambda self: self.format == "yolo" or not self.class_names,
            message="expected classNames with format yolo only: labels of other formats name their classes",
            given="self.format",
        ),
    )

    @property
    def places(self) -> tuple[str, str]:
        """Where the images and the labels are, relative to uri."""
        images, labels = DEFAULT_PLACES[self.format]
        return self.images or images, self.labels or labels

    @property
    def target_classes(self) -> list[str]:
        """The classes to learn, sorted; a class's id is its place here."""
        return sorted(set(self.target_class_mapping.values()))


class PretrainedWeights(ApiModel):
    """A weights file to start from, loaded by layer name and shape."""

    uri: Uri
    """A .keras, .weights.h5 or .h5 file."""
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

    pre_nms: Annotated[int, Field(ge=1, le=6000)]
    """Best-scored boxes that enter; memory grows with the square of it, for every image of a batch."""
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


class Roi(ApiModel):
    """The head that classifies proposals."""

    pool_size: Annotated[int, Field(ge=2, le=28)] = 7
    """Side of the pooled feature of a proposal."""
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
    """A whole model to start from, for example a pruned one. It keeps its architecture, anchors and head."""
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
            cel=_freezable_cel(),
            check=lambda self: (
                self.from_ is not None or set(self.freeze_blocks) <= set(freezable(self.backbone))
            ),
            message=f"expected freezeBlocks that the backbone has: {_FREEZABLE_TEXT}",
            given="'%s of %s'.format([self.freezeBlocks, self.backbone])",
        ),
    )


class LearningRate(ApiModel):
    """TLT's soft-start annealing: exponential rise, plateau, exponential fall, by progress 0 to 1."""

    schedule: Literal["softStartAnnealing"] = "softStartAnnealing"
    """Name of the schedule."""
    min: Annotated[float, Field(gt=0, le=10)] = 5.0e-6
    """Learning rate at the start and at the end."""
    max: Annotated[float, Field(gt=0, le=10)] = 5.0e-4
    """Learning rate of the plateau."""
    soft_start: Fraction = 0.1
    """Progress at which the rise ends."""
    annealing: Fraction = 0.7
    """Progress at which the fall begins."""

    rules = (
        Rule(
            cel="self.min <= self.max",
            check=lambda self: self.min <= self.max,
            message="expected min <= max",
            given=pair("min", "max"),
        ),
        Rule(
            cel="self.softStart <= self.annealing",
            check=lambda self: self.soft_start <= self.annealing,
            message="expected softStart <= annealing: the fall begins after the rise has ended",
            given=pair("softStart", "annealing"),
        ),
    )


class Optimizer(ApiModel):
    """The optimizer."""

    type: Literal["sgd", "adam"] = "sgd"
    """sgd (with momentum) or adam."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd; beta 1 of adam."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Global gradient norm above which gradients are scaled down."""


class Regularizer(ApiModel):
    """Penalty on kernels (never on biases or batch normalisation)."""

    type: Literal["none", "l1", "l2"] = "l2"
    """Kind."""
    weight: Fraction = 1.0e-4
    """Factor."""


class Augmentation(ApiModel):
    """Random changes of training images; boxes follow. All but horizontalFlip are off by default."""

    horizontal_flip: Fraction = 0.5
    """Probability of mirroring left to right. 0 where left and right differ (digits, text)."""
    vertical_flip: Fraction = 0.0
    """Probability of mirroring top to bottom."""
    zoom_min: Annotated[float, Field(ge=0.1, le=1)] = 1.0
    """Smallest factor of magnification: below 1 the image gets smaller, with black around it."""
    zoom_max: Annotated[float, Field(ge=1, le=10)] = 1.0
    """Largest factor of magnification."""
    translate_max_x: Annotated[int, Field(ge=0, le=4096)] = 0
    """Most pixels of the network's input by which the image moves left or right."""
    translate_max_y: Annotated[int, Field(ge=0, le=4096)] = 0
    """Most pixels by which it moves up or down."""
    rotate_rad_max: Annotated[float, Field(ge=0, le=3.15)] = 0.0
    """Largest angle of rotation about the centre, in radians, either way."""
    rotate_probability: Fraction = 1.0
    """Probability of rotating at all."""
    color_shift_stddev: Fraction = 0.0
    """Standard deviation of a shift of each colour channel, as a share of the full range."""
    hue_rotation_max: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation of the hue, in degrees, either way."""
    saturation_shift_max: Fraction = 0.0
    """Largest change of the saturation: 0.2 gives 0.8 to 1.2 times."""
    contrast_scale_max: Fraction = 0.0
    """Largest change of the contrast: 0.2 gives 0.8 to 1.2 times."""
    contrast_center: Fraction = 0.5
    """The brightness that contrast leaves alone, as a share of the full range."""
    mosaic: Fraction = 0.0
    """Probability that an image is composed of four."""
    min_visible: Fraction = 0.25
    """Share of a box that must remain inside the image; below it the object is left out of that sight."""


class EarlyStopping(ApiModel):
    """Ends training when it no longer gets better."""

    monitor: Literal["mAP", "loss"] = "mAP"
    """What is watched."""
    patience: Annotated[int, Field(ge=1)] = 10
    """Evaluations (mAP) or epochs (loss) without improvement after which training ends."""


class Training(ApiModel):
    """The optimisation."""

    epochs: Annotated[int, Field(ge=1, le=100000)] = 100
    """Passes over the training images."""
    batch_size_per_gpu: Annotated[int, Field(alias="batchSizePerGPU", ge=1, le=1024)] = 4
    """Images of one step on one GPU (or on the CPU)."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 42
    """Seed of initialisation, shuffling and augmentation."""
    checkpoint_interval: Annotated[int, Field(ge=1)] = 1
    """Epochs between checkpoints."""
    learning_rate: LearningRate = LearningRate()
    """Schedule."""
    optimizer: Optimizer = Optimizer()
    """Optimizer."""
    regularizer: Regularizer = Regularizer()
    """Penalty on kernels."""
    augmentation: Augmentation = Augmentation()
    """Random changes of images."""
    early_stopping: EarlyStopping | None = None
    """When to end before the last epoch."""


class Evaluation(ApiModel):
    """How the model is judged on the validation images."""

    interval_epochs: Annotated[int, Field(ge=1)] = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    average_precision: Literal["area", "voc07"] = "area"
    """area under the precision-recall envelope, or VOC 2007's 11 points."""
    iou_threshold: OpenFraction = 0.5
    """IoU from which a detection counts as correct."""


class TrainingJobSpec(JobSpec):
    """What to train, on what, and how."""

    dataset: Dataset
    """Images and labels."""
    model: Model = Model()
    """The detector."""
    training: Training = Training()
    """The optimisation."""
    evaluation: Evaluation = Evaluation()
    """How the model is judged."""
