"""Training options of a TrainingJob (``spec.training``), its evaluation and its pictures in TensorBoard.

A field whose default depends on another field (``momentum`` on the type of optimizer) is optional and has a
property ``effective_...`` beside it, so that a stored spec keeps saying what its author gave.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from tlt_api.base import ApiModel, Rule, only_with, pair
from tlt_api.common import Fraction, OpenFraction
from tlt_api.model import Detections, InferenceProposalCounts

LossWeight = Annotated[float, Field(gt=0, le=1000)]
Milestone = Annotated[float, Field(gt=0, le=1)]
COCO_IOU_THRESHOLDS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
"""IoU thresholds over which COCO's average precision is a mean."""
_ANNEALING = "softStartAnnealing"
_DEFAULT_SOFT_START = 0.1
_DEFAULT_ANNEALING = 0.7


class LearningRate(ApiModel):
    """Learning rate as a function of training progress, from 0 (start) to 1 (end).

    softStartAnnealing: exponential warm-up from min to max, plateau, exponential decay to min.
    cosine: linear warm-up from min to max, then cosine decay to min.
    step: max times gamma for every stepSize of progress.
    multiStep: max times gamma for every milestone that is reached (TLT: soft_start).
    exponential: max times gamma, continuously, for every stepSize of progress (TLT: step).
    """

    schedule: Literal["softStartAnnealing", "cosine", "step", "multiStep", "exponential"] = (
        "softStartAnnealing"
    )
    """Learning rate schedule. softStartAnnealing: exponential warm-up, plateau, exponential decay; cosine:
    linear warm-up, cosine decay; step: multiplied by gamma after every stepSize; multiStep: multiplied by
    gamma at every milestone (TLT: soft_start); exponential: falls steadily, by gamma over every stepSize
    (TLT: step)."""
    max: Annotated[float, Field(gt=0, le=10)] = 5.0e-4
    """Peak learning rate: the rate after the warm-up, before any decay (TLT: base_lr)."""
    min: Annotated[float, Field(gt=0, le=10)] | None = None
    """Learning rate at the start of the warm-up (TLT: start_lr); with schedule softStartAnnealing and cosine
    also at the end of training. Defaults to max / 100. With schedule step, multiStep and exponential only
    together with softStart."""
    soft_start: Fraction | None = None
    """End of the warm-up, as a fraction of the training (TLT: soft_start). Defaults to 0.1 with schedule
    softStartAnnealing and cosine, otherwise to 0: no warm-up."""
    annealing: Fraction | None = None
    """Start of the decay, as a fraction of the training. Defaults to 0.7. With schedule softStartAnnealing
    only."""
    milestones: Annotated[list[Milestone], Field(min_length=1, max_length=64)] | None = None
    """Points at which the learning rate is multiplied by gamma, as rising fractions of the training (TLT:
    annealing_points). Required with schedule multiStep, and with it only."""
    gamma: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor applied to the learning rate after every stepSize or at every milestone (TLT: gamma, or 1 /
    annealing_divider). Defaults to 0.1. With schedule step, multiStep and exponential only."""
    step_size: Annotated[float, Field(gt=0, le=1)] | None = None
    """Interval over which the learning rate falls by the factor gamma, as a fraction of the training (TLT:
    step_size, in percent). Defaults to 0.3. With schedule step and exponential only."""
    scaling: Literal["linear", "none"] = "linear"
    """Linear scaling rule. linear: max and min are for one GPU and are multiplied by the number of GPUs (gpus
    times nodes), as the batch size is; none: they are used unchanged."""

    # A value that the chosen schedule would ignore is refused: it would look as if it had an effect.
    rules = (
        Rule(
            # Without a warm-up nothing starts at min; only the first two schedules also end there.
            cel=f"!has(self.min) || self.schedule in ['{_ANNEALING}', 'cosine'] || "
            "(has(self.softStart) && self.softStart > 0.0)",
            check=lambda self: (
                self.min is None or self.schedule in (_ANNEALING, "cosine") or bool(self.soft_start)
            ),
            message="expected min only with softStart for schedule step, multiStep and exponential: it is "
            "the rate at the start of the warm-up",
            given="'min without softStart'",
        ),
        only_with("annealing", "schedule", _ANNEALING),
        only_with("gamma", "schedule", "step", "multiStep", "exponential"),
        only_with("step_size", "schedule", "step", "exponential"),
        Rule(
            cel="has(self.milestones) == (self.schedule == 'multiStep')",
            check=lambda self: (self.milestones is not None) == (self.schedule == "multiStep"),
            message="expected milestones with schedule multiStep, and with it only",
            given="self.schedule",
        ),
        Rule(
            # Equal milestones multiply twice, as in TLT.
            cel="!has(self.milestones) || self.milestones.isSorted()",
            check=lambda self: self.milestones is None or self.milestones == sorted(self.milestones),
            message="expected milestones in rising order",
            given="self.milestones",
        ),
        Rule(
            cel="!has(self.milestones) || !has(self.softStart) || self.softStart < self.milestones[0]",
            check=lambda self: self.milestones is None or self.effective_soft_start < self.milestones[0],
            message="expected softStart < the first of milestones: the decay starts after the warm-up",
            given="'softStart %s and milestones %s'.format([self.softStart, self.milestones])",
        ),
        Rule(
            # The default of min, max / 100, is never above max.
            cel="!has(self.min) || self.min <= self.max",
            check=lambda self: self.min is None or self.min <= self.max,
            message="expected min <= max",
            given=pair("min", "max"),
        ),
        Rule(
            # CEL sees no value in an absent field: the defaults stand in the rule.
            cel=f"self.schedule != '{_ANNEALING}' || "
            f"(has(self.softStart) ? self.softStart : {_DEFAULT_SOFT_START}) <= "
            f"(has(self.annealing) ? self.annealing : {_DEFAULT_ANNEALING})",
            check=lambda self: (
                self.schedule != _ANNEALING or self.effective_soft_start <= self.effective_annealing
            ),
            message="expected softStart <= annealing: the decay starts after the warm-up has ended",
            given="'softStart %s and annealing %s'.format(["
            f"has(self.softStart) ? self.softStart : {_DEFAULT_SOFT_START}, "
            f"has(self.annealing) ? self.annealing : {_DEFAULT_ANNEALING}])",
        ),
    )

    @property
    def effective_min(self) -> float:
        """``min``, or its default of ``max / 100``."""
        return self.max / 100 if self.min is None else self.min

    @property
    def effective_soft_start(self) -> float:
        """``soft_start``, or its default for this schedule."""
        default = _DEFAULT_SOFT_START if self.schedule in (_ANNEALING, "cosine") else 0.0
        return default if self.soft_start is None else self.soft_start

    @property
    def effective_annealing(self) -> float:
        """``annealing``, or its default."""
        return _DEFAULT_ANNEALING if self.annealing is None else self.annealing

    @property
    def effective_gamma(self) -> float:
        """``gamma``, or its default."""
        return 0.1 if self.gamma is None else self.gamma

    @property
    def effective_step_size(self) -> float:
        """``step_size``, or its default."""
        return 0.3 if self.step_size is None else self.step_size


class Optimizer(ApiModel):
    """Optimizer and its hyperparameters."""

    type: Literal["sgd", "adam", "adamw", "rmsprop"] = "sgd"
    """Optimizer: SGD with momentum, Adam, AdamW or RMSprop."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Momentum (beta_1 of Adam and AdamW). Defaults to 0.9; with rmsprop to 0."""
    nesterov: bool = False
    """Use Nesterov momentum. With type sgd only."""
    beta2: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay rate of the second moment (beta_2). Defaults to 0.999. With adam and adamw only."""
    rho: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay rate of the squared gradients' moving average. Defaults to 0.9. With rmsprop only."""
    epsilon: Annotated[float, Field(gt=0, le=1)] | None = None
    """Constant added to the denominator for numerical stability. Defaults to 1e-7. Not with sgd."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    """Decoupled weight decay of kernels. Defaults to 0.01; set training.regularizer.type to none to avoid
    penalising kernels twice. With adamw only."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Maximum global norm of the gradient of the whole batch over all GPUs; a larger gradient is scaled down.
    No clipping if absent."""

    rules = (
        only_with("beta2", "type", "adam", "adamw"),
        only_with("rho", "type", "rmsprop"),
        only_with("epsilon", "type", "adam", "adamw", "rmsprop"),
        only_with("weight_decay", "type", "adamw"),
        Rule(
            # Nesterov's gradient is taken ahead along the momentum: without any, there is no ahead.
            cel="!self.nesterov || (self.type == 'sgd' && !(has(self.momentum) && self.momentum == 0.0))",
            check=lambda self: not self.nesterov or (self.type == "sgd" and self.momentum != 0),
            message="expected nesterov only with type sgd and a momentum other than 0",
            given="self.type",
        ),
    )

    @property
    def slots_per_weight(self) -> int:
        """Number of slot variables (moments) that the optimizer keeps for each weight."""
        # SGD: momentum. Adam and AdamW: first and second moment. RMSprop: mean of squares and momentum.
        return 1 if self.type == "sgd" else 2

    @property
    def effective_momentum(self) -> float:
        """``momentum``, or its default for this type."""
        return (0.0 if self.type == "rmsprop" else 0.9) if self.momentum is None else self.momentum

    @property
    def betas(self) -> tuple[float, float]:
        """Adam's beta_1 and beta_2: ``momentum`` and ``beta2``, or their defaults."""
        return self.effective_momentum, 0.999 if self.beta2 is None else self.beta2

    @property
    def effective_rho(self) -> float:
        """``rho``, or its default."""
        return 0.9 if self.rho is None else self.rho

    @property
    def effective_epsilon(self) -> float:
        """``epsilon``, or its default."""
        return 1e-7 if self.epsilon is None else self.epsilon

    @property
    def effective_weight_decay(self) -> float:
        """``weight_decay``, or its default: 0.01 for AdamW, 0 for all other types."""
        return (0.01 if self.type == "adamw" else 0.0) if self.weight_decay is None else self.weight_decay


class Regularizer(ApiModel):
    """Weight regularisation of kernels; biases and batch normalisation are not regularised."""

    type: Literal["none", "l1", "l2"] = "l2"
    """Norm of the kernels that is added to the loss; none turns regularisation off (TLT: NO_REG)."""
    weight: Fraction = 1.0e-4
    """Factor on the regularisation term of the loss."""


class LossWeights(ApiModel):
    """Weights of the four losses in their sum (TLT: lambda_*)."""

    rpn_objectness: LossWeight = 1.0
    """Weight of the objectness loss of the region proposal network (TLT: lambda_rpn_class)."""
    rpn_deltas: LossWeight = 1.0
    """Weight of the box regression loss of the region proposal network (TLT: lambda_rpn_regr)."""
    head_classes: LossWeight = 1.0
    """Weight of the classification loss of the head (TLT: lambda_cls_class)."""
    head_deltas: LossWeight = 1.0
    """Weight of the box regression loss of the head (TLT: lambda_cls_regr)."""


class Ema(ApiModel):
    """Exponential moving average (EMA) of the trainable weights, which is evaluated and published."""

    momentum: OpenFraction = 0.999
    """EMA decay. Limited to (1 + t) / (10 + t) after t updates, so that early averages follow the weights."""


class Augmentation(ApiModel):
    """Random augmentation of training images and their boxes. All but horizontalFlip are off by default."""

    horizontal_flip: Fraction = 0.5
    """Probability of a horizontal flip. Set 0 if left and right have a meaning (digits, text)."""
    vertical_flip: Fraction = 0.0
    """Probability of a vertical flip."""
    zoom_min: Annotated[float, Field(ge=0.1, le=1)] = 1.0
    """Minimum zoom factor; below 1 the image shrinks and is padded with black."""
    zoom_max: Annotated[float, Field(ge=1, le=10)] = 1.0
    """Maximum zoom factor; above 1 the image is enlarged and cropped."""
    translate_max_x: Annotated[int, Field(ge=0, le=4096)] = 0
    """Maximum horizontal translation in either direction, in pixels of the network input."""
    translate_max_y: Annotated[int, Field(ge=0, le=4096)] = 0
    """Maximum vertical translation in either direction, in pixels of the network input."""
    rotate_rad_max: Annotated[float, Field(ge=0, le=3.15)] = 0.0
    """Maximum rotation about the image centre in either direction, in radians."""
    rotate_probability: Fraction = 1.0
    """Probability of a rotation; the angle is limited by rotateRadMax."""
    color_shift_stddev: Fraction = 0.0
    """Standard deviation of the random shift of each colour channel, as a fraction of the full range."""
    hue_rotation_max: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Maximum hue rotation in either direction, in degrees."""
    saturation_shift_max: Fraction = 0.0
    """Maximum change of the saturation; 0.2 scales it by a factor from 0.8 to 1.2."""
    contrast_scale_max: Fraction = 0.0
    """Maximum change of the contrast; 0.2 scales it by a factor from 0.8 to 1.2."""
    contrast_center: Fraction = 0.5
    """Brightness that a change of contrast keeps, as a fraction of the full range."""
    mosaic: Fraction = 0.0
    """Probability of mosaic augmentation, which combines four training images into one."""
    min_visible: Fraction = 0.25
    """Minimum visible fraction of a box after augmentation; an object with less is dropped from the image."""
    min_width: Annotated[float, Field(ge=1, le=4096)] = 1.0
    """Minimum width of a box in training, in pixels of the network input after augmentation (TLT:
    min_bbox_width); an object that is narrower is dropped from the image."""
    min_height: Annotated[float, Field(ge=1, le=4096)] = 1.0
    """Minimum height of a box in training, in pixels of the network input after augmentation (TLT:
    min_bbox_height); an object that is lower is dropped from the image."""


class EarlyStopping(ApiModel):
    """Early stopping of a training that no longer improves."""

    monitor: Literal["mAP", "loss"] = "mAP"
    """Monitored metric: mAP on the validation images (to rise), or the mean training loss (to fall)."""
    patience: Annotated[int, Field(ge=1)] = 10
    """Number of evaluations (mAP) or epochs (loss) without improvement after which training stops."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Minimum change of the monitored metric that counts as an improvement; a change must exceed it."""


class Training(ApiModel):
    """Training options: epochs, batch size, optimizer, schedule, losses and augmentation."""

    epochs: Annotated[int, Field(ge=1, le=100000)] = 100
    """Number of passes over the training images."""
    batch_size_per_gpu: Annotated[int, Field(alias="batchSizePerGPU", ge=1, le=1024)] = 4
    """Number of images that one GPU (or the CPU) processes at a time."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=2**20)] = 1
    """Number of batches of batchSizePerGPU whose gradients are averaged for one update: a larger batch in the
    same memory. Batch normalisation uses the statistics of each batch separately."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 42
    """Random seed of weight initialisation, shuffling and augmentation."""
    checkpoint_interval: Annotated[int, Field(ge=1)] = 1
    """Number of epochs between checkpoints."""
    checkpoint_minutes: Annotated[float, Field(ge=0, le=1440)] = 15.0
    """Minutes between two checkpoints within an epoch, from which an attempt resumes that was killed without
    warning. Written while the training goes on. 0 writes none within an epoch."""
    keep_checkpoints: Annotated[int, Field(ge=0, le=100)] = 0
    """Number of most recent checkpoints kept as separate models (epoch-0007.keras), besides best and last. 0
    keeps none; each takes the disk space of two models, the checkpoint and its copy."""
    learning_rate: LearningRate = LearningRate()
    """Learning rate schedule."""
    optimizer: Optimizer = Optimizer()
    """Optimizer and its hyperparameters."""
    loss_weights: LossWeights = LossWeights()
    """Weights of the four losses in their sum (TLT: lambda_*)."""
    regularizer: Regularizer = Regularizer()
    """Weight regularisation of kernels."""
    augmentation: Augmentation = Augmentation()
    """Random augmentation of training images and their boxes."""
    ema: Ema | None = None
    """Exponential moving average (EMA) of the weights, which is evaluated and published. Off if absent."""
    mixed_precision: bool = False
    """Use mixed precision in training steps and evaluations: bfloat16, or float16 with loss scaling on GPUs
    before Ampere. Losses, boxes, statistics, weights and the published model remain float32."""
    xla: bool = False
    """Compile the training step with XLA. Takes minutes at the start; speeds up steps on GPUs."""
    early_stopping: EarlyStopping | None = None
    """Early stopping of a training that no longer improves. Off if absent."""

    @property
    def images_per_replica(self) -> int:
        """Number of images in one step on one GPU, or on the CPU."""
        return self.batch_size_per_gpu * self.gradient_accumulation_steps

    def in_less_memory(self, halvings: int = 1) -> Self:
        """Return options that make the same updates from smaller batches.

        The batch size becomes at most ``batch_size_per_gpu / 2**halvings``, at least 1; gradient accumulation
        makes up for it.
        """
        # Only a divisor keeps the number of images of a step, and with it the updates, unchanged.
        largest = max(1, self.batch_size_per_gpu >> halvings)
        batch_size = next(size for size in range(largest, 0, -1) if self.batch_size_per_gpu % size == 0)
        # Whole, since batch_size divides the size of one batch.
        accumulation_steps = self.images_per_replica // batch_size
        return self.model_copy(
            update={"batch_size_per_gpu": batch_size, "gradient_accumulation_steps": accumulation_steps}
        )


class Evaluation(ApiModel):
    """Evaluation of the model on the validation images."""

    interval_epochs: Annotated[int, Field(ge=1)] = 1
    """Number of epochs between evaluations; the model of the last epoch is always evaluated."""
    protocol: Literal["area", "voc07", "coco"] | None = None
    """Protocol of the average precision (AP). area: area under the interpolated precision-recall curve;
    voc07: 11-point metric of VOC 2007; coco: matching and 101-point metric of COCO, with AP by object size
    and average recall (AR). Defaults to area."""
    iou_thresholds: Annotated[list[OpenFraction], Field(min_length=1, max_length=20)] | None = None
    """IoUs with a ground truth box from which a detection counts as correct, in rising order; mAP is the mean
    over them. Defaults to [0.5], with protocol coco to 0.5, 0.55 ... 0.95."""
    average_precision: Literal["area", "voc07"] | None = None
    """Former name of protocol, still read. Not together with protocol."""
    iou_threshold: OpenFraction | None = None
    """Former form of iouThresholds, a single IoU, still read. Not together with iouThresholds."""
    proposals: InferenceProposalCounts | None = None
    """Number of proposals before and after non-maximum suppression, and its threshold, in the evaluation of
    this job (TLT: evaluation_config). If absent, spec.model.proposals.inference is used, with which the
    published model detects; if given, its own fields have the defaults below."""
    detections: Detections | None = None
    """Post-processing of detections in the evaluation of this job (TLT: evaluation_config). Defaults to
    spec.model.detections, with which the published model detects."""

    rules = (
        Rule(
            # Two names of one thing: the second would look as if it had an effect.
            cel="!(has(self.protocol) && has(self.averagePrecision))",
            check=lambda self: self.protocol is None or self.average_precision is None,
            message="expected protocol without averagePrecision, its former name: remove the latter",
            given="'protocol %s and averagePrecision %s'.format([self.protocol, self.averagePrecision])",
        ),
        Rule(
            cel="!(has(self.iouThresholds) && has(self.iouThreshold))",
            check=lambda self: self.iou_thresholds is None or self.iou_threshold is None,
            message="expected iouThresholds without iouThreshold, its former form: remove the latter",
            given="'both'",
        ),
        Rule(
            cel="!has(self.iouThresholds) || (self.iouThresholds.isSorted() && "
            "self.iouThresholds.all(t, self.iouThresholds.exists_one(u, t == u)))",
            check=lambda self: (
                self.iou_thresholds is None or self.iou_thresholds == sorted(set(self.iou_thresholds))
            ),
            message="expected iouThresholds in rising order, each once",
            given="self.iouThresholds",
        ),
    )

    @property
    def effective_protocol(self) -> Literal["area", "voc07", "coco"]:
        """``protocol``, or what ``average_precision`` says, or the default."""
        return self.protocol or self.average_precision or "area"

    @property
    def effective_iou_thresholds(self) -> list[float]:
        """``iou_thresholds``, or the one of ``iou_threshold``, or the protocol's default."""
        if self.iou_thresholds is not None:
            return self.iou_thresholds
        if self.iou_threshold is not None:
            return [self.iou_threshold]
        return COCO_IOU_THRESHOLDS if self.effective_protocol == "coco" else [0.5]


class Visualization(ApiModel):
    """Validation images with drawn boxes in the TensorBoard logs below spec.output.uri.

    It has no effect on the training.
    """

    images: Annotated[int, Field(ge=0, le=64)] = 16
    """Number of validation images drawn at every evaluation, always the same ones; 0 draws none."""
    score_threshold: Fraction | None = None
    """Minimum score of drawn detections (TLT: bbox_visualize_threshold). Defaults to the score threshold of
    each class at which F1 is best in the evaluation, or to 0.6 where no detection is correct."""
