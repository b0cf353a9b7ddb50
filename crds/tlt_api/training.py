"""Optimisation of a TrainingJob, and how its result is judged (``spec.training``, ``spec.evaluation``)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from tlt_api.base import ApiModel, Rule, only_with, pair
from tlt_api.common import Fraction, OpenFraction

LossWeight = Annotated[float, Field(gt=0, le=1000)]
_ANNEALING = "softStartAnnealing"


class LearningRate(ApiModel):
    """The learning rate over the progress of training, 0 to 1.

    softStartAnnealing (TLT): exponential rise from min to max, plateau, exponential fall to min.
    cosine: rise in a line from min to max, then half a cosine down to min.
    step: max times gamma for every stepSize of progress.
    """

    schedule: Literal["softStartAnnealing", "cosine", "step"] = "softStartAnnealing"
    """Name of the schedule."""
    max: Annotated[float, Field(gt=0, le=10)] = 5.0e-4
    """Learning rate of the plateau; of the start with step."""
    min: Annotated[float, Field(gt=0, le=10)] | None = None
    """Learning rate at the start and at the end; by default a hundredth of max. Not with step."""
    soft_start: Fraction | None = None
    """Progress at which the rise ends, by default 0.1. Not with step."""
    annealing: Fraction | None = None
    """Progress at which the fall begins, by default 0.7. With softStartAnnealing only."""
    gamma: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor of a step, by default 0.1. With step only."""
    step_size: Annotated[float, Field(gt=0, le=1)] | None = None
    """Progress after which the rate falls, each time anew, by default 0.3. With step only."""
    scaling: Literal["linear", "none"] = "linear"
    """linear: the rate is for one replica (GPU) and is multiplied by their number (gpus times nodes), as the
    batch is; none: it is taken as it stands."""

    rules = (
        only_with("min", "schedule", _ANNEALING, "cosine"),
        only_with("soft_start", "schedule", _ANNEALING, "cosine"),
        only_with("annealing", "schedule", _ANNEALING),
        only_with("gamma", "schedule", "step"),
        only_with("step_size", "schedule", "step"),
        Rule(
            cel="!has(self.min) || self.min <= self.max",
            check=lambda self: self.min is None or self.min <= self.max,
            message="expected min <= max",
            given=pair("min", "max"),
        ),
        Rule(
            cel=f"self.schedule != '{_ANNEALING}' || (has(self.softStart) ? self.softStart : 0.1) <= "
            "(has(self.annealing) ? self.annealing : 0.7)",
            check=lambda self: self.schedule != _ANNEALING or self.rise_end <= self.fall_begin,
            message="expected softStart <= annealing: the fall begins after the rise has ended",
            given="'softStart %s and annealing %s'.format([has(self.softStart) ? self.softStart : 0.1, "
            "has(self.annealing) ? self.annealing : 0.7])",
        ),
    )

    @property
    def lowest(self) -> float:
        """``min`` or its default."""
        return self.max / 100 if self.min is None else self.min

    @property
    def rise_end(self) -> float:
        """``soft_start`` or its default."""
        return 0.1 if self.soft_start is None else self.soft_start

    @property
    def fall_begin(self) -> float:
        """``annealing`` or its default."""
        return 0.7 if self.annealing is None else self.annealing


class Optimizer(ApiModel):
    """The optimizer."""

    type: Literal["sgd", "adam", "adamw", "rmsprop"] = "sgd"
    """Kind."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the last movement that goes on, beta 1 of adam and adamw: by default 0.9, with rmsprop 0."""
    nesterov: bool = False
    """Whether the gradient is taken where momentum leads. With sgd only."""
    beta2: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay of the squared gradients' mean, by default 0.999. With adam and adamw only."""
    rho: Annotated[float, Field(ge=0, lt=1)] | None = None
    """The same of rmsprop, by default 0.9. With rmsprop only."""
    epsilon: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keeps divisions finite, by default 1e-7. Not with sgd."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the kernels, times the learning rate, that an update takes off: by default 0.01. Beside it,
    training.regularizer is best none. With adamw only."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Global norm of the gradient, of the whole batch on all replicas, above which it is scaled down."""

    rules = (
        only_with("beta2", "type", "adam", "adamw"),
        only_with("rho", "type", "rmsprop"),
        only_with("epsilon", "type", "adam", "adamw", "rmsprop"),
        only_with("weight_decay", "type", "adamw"),
        Rule(
            cel="!self.nesterov || (self.type == 'sgd' && !(has(self.momentum) && self.momentum == 0.0))",
            check=lambda self: not self.nesterov or (self.type == "sgd" and self.momentum != 0),
            message="expected nesterov only with type sgd and a momentum, which has a use for it",
            given="self.type",
        ),
    )

    @property
    def slots(self) -> int:
        """Values that it keeps for every weight."""
        return 1 if self.type == "sgd" else 2

    @property
    def inertia(self) -> float:
        """``momentum`` or its default."""
        return (0.0 if self.type == "rmsprop" else 0.9) if self.momentum is None else self.momentum

    @property
    def betas(self) -> tuple[float, float]:
        """``momentum`` and ``beta2`` or their defaults."""
        return self.inertia, 0.999 if self.beta2 is None else self.beta2

    @property
    def smoothing(self) -> float:
        """``rho`` or its default."""
        return 0.9 if self.rho is None else self.rho

    @property
    def small(self) -> float:
        """``epsilon`` or its default."""
        return 1e-7 if self.epsilon is None else self.epsilon

    @property
    def decay(self) -> float:
        """``weight_decay`` or its default, 0 but for adamw."""
        return (0.01 if self.type == "adamw" else 0.0) if self.weight_decay is None else self.weight_decay


class Regularizer(ApiModel):
    """Penalty on kernels (never on biases or batch normalisation)."""

    type: Literal["none", "l1", "l2"] = "l2"
    """Kind."""
    weight: Fraction = 1.0e-4
    """Factor."""


class LossWeights(ApiModel):
    """Factors on the four losses, which are then added up (TLT's lambdas)."""

    rpn_objectness: LossWeight = 1.0
    """Whether an anchor is an object."""
    rpn_deltas: LossWeight = 1.0
    """Where the region proposal network puts an object's box."""
    head_classes: LossWeight = 1.0
    """Which class a proposal is of."""
    head_deltas: LossWeight = 1.0
    """Where the head puts an object's box."""


class Ema(ApiModel):
    """Averaged weights: what is evaluated and published is the moving average of the trainable weights."""

    momentum: OpenFraction = 0.999
    """Share of the average that stays at an update; at most (1 + t) / (10 + t) after t updates."""


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
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """By how much more than this mAP must rise, or the loss fall, to count as better."""


class Training(ApiModel):
    """The optimisation."""

    epochs: Annotated[int, Field(ge=1, le=100000)] = 100
    """Passes over the training images."""
    batch_size_per_gpu: Annotated[int, Field(alias="batchSizePerGPU", ge=1, le=1024)] = 4
    """Images that one GPU (or the CPU) holds at a time."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=2**20)] = 1
    """Batches of batchSizePerGPU whose mean gradient makes one step: a larger batch in the same memory. Batch
    normalisation sees each of them alone, as it does each GPU's."""
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
    loss_weights: LossWeights = LossWeights()
    """Factors on the losses."""
    regularizer: Regularizer = Regularizer()
    """Penalty on kernels."""
    augmentation: Augmentation = Augmentation()
    """Random changes of images."""
    ema: Ema | None = None
    """Averaged weights; without it the weights as they are."""
    mixed_precision: bool = False
    """Whether a step computes in 16 bits: bfloat16, or on GPUs before Ampere float16 with a scaled loss.
    Losses, boxes, statistics, weights and the model that is published remain float32."""
    xla: bool = False
    """Whether XLA compiles the step: minutes at the start, faster steps on GPUs."""
    early_stopping: EarlyStopping | None = None
    """When to end before the last epoch."""

    @property
    def images_per_replica(self) -> int:
        """Images of one step on one GPU, or on the CPU."""
        return self.batch_size_per_gpu * self.gradient_accumulation_steps

    def in_less_memory(self, halvings: int = 1) -> Self:
        """The same updates from batches that are at most half as large, so many times; 1 is the smallest."""
        most = max(1, self.batch_size_per_gpu >> halvings)
        size = next(size for size in range(most, 0, -1) if self.batch_size_per_gpu % size == 0)
        parts = self.images_per_replica // size
        return self.model_copy(update={"batch_size_per_gpu": size, "gradient_accumulation_steps": parts})


class Evaluation(ApiModel):
    """How the model is judged on the validation images."""

    interval_epochs: Annotated[int, Field(ge=1)] = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    average_precision: Literal["area", "voc07"] = "area"
    """area under the precision-recall envelope, or VOC 2007's 11 points."""
    iou_threshold: OpenFraction = 0.5
    """IoU from which a detection counts as correct."""
