"""Optimisation of a TrainingJob, and how its result is judged (``spec.training``, ``spec.evaluation``)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tlt_api.base import ApiModel, Rule, pair
from tlt_api.common import Fraction, OpenFraction


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
    keep_checkpoints: Annotated[int, Field(ge=0, le=100)] = 0
    """Newest checkpoints that are kept as models of their own (epoch-0007.keras), besides best and last. Each
    takes the room of a model, so by default there are none."""
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
