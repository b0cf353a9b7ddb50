"""Status of our resources: every field, and the one of two field managers that owns it.

The operator patches the fields of :class:`OperatorStatus` (field manager ``tlt-operator``), the runner
applies those of :class:`RunnerStatus` to its own resource (``tlt-runner``, by server-side apply). A kind's
status is made of both. The lists of fields (:data:`OPERATOR_FIELDS`, :data:`RUNNER_FIELDS`) follow from these
classes, and so do the runner's admission policy and the run report.

To add a section that the runner reports: write its model, a :class:`Section`, and add one field of it to the
results of the kinds that have it. ``tlt_runner.status.lines`` needs one function that puts it into words.
"""

from __future__ import annotations

from enum import StrEnum
from math import floor
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, Field

from tlt_api.base import StatusModel

OPERATOR_FIELD_MANAGER = "tlt-operator"
RUNNER_FIELD_MANAGER = "tlt-runner"

# A resource lies in etcd as a whole (1.5 MB at most) and is sent to every watch at each change.
HISTORY_LIMIT = 20
"""Entries that status.history keeps."""

FIRST_WARNINGS = 5
"""Warnings of a dataset report that status.dataset repeats."""
WARNING_LENGTH = 300
"""Characters of each of them."""

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]

Score = Annotated[float, AfterValidator(lambda value: round(value, 5))]
"""Metric for people, rounded to five decimals, which is finer than any validation set can resolve."""


# Rounded down: what has exactly this score must reach it.
Threshold = Annotated[float, AfterValidator(lambda value: floor(value * 1e5) / 1e5)]
"""Score threshold for people, rounded down to five decimals."""


class Phase(StrEnum):
    """Summary of the conditions in one word, for people."""

    PENDING = "Pending"
    QUEUED = "Queued"
    SUSPENDED = "Suspended"
    RUNNING = "Running"
    RETRYING = "Retrying"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Condition(StatusModel):
    """Condition of the resource, as metav1.Condition."""

    type: Annotated[str, Field(max_length=316)]
    """Type of the condition: Ready, Reconciling, Stalled (as in kstatus), Blocked, Suspended, Complete or
    Failed."""
    status: Literal["True", "False", "Unknown"]
    """Status of the condition: True, False or Unknown."""
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec on which the condition is based."""
    last_transition_time: Time
    """Time of the last change of status."""
    reason: Annotated[str, Field(max_length=1024)]
    """Machine-readable reason of the last change, in one CamelCase word."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Human-readable explanation of the last change."""


class Failure(StatusModel):
    """Failure of the last attempt, or of the resource before any attempt."""

    reason: str
    """Reason of the failure, one of those in docs/failures.md."""
    exit_code: int | None = None
    """Exit code of the runner's container. Absent if there was none."""
    message: str = ""
    """Human-readable description of the failure."""
    hint: str = ""
    """Suggested remedy for the failure."""
    retryable: bool = False
    """True if another attempt may succeed."""


class Position(StatusModel):
    """Place that a run had reached."""

    stage: str | None = None
    """Stage of the run, as in status.progress.stage."""
    epoch: int | None = None
    """Number of completed epochs."""
    step: int | None = None
    """Number of completed steps of the stage; in training, of the epoch."""


class Attempt(StatusModel):
    """Attempt that ended without success, or that a queue stopped for a time."""

    attempt: int
    """Number of the attempt, from 1."""
    reason: str
    """Reason for the end of the attempt."""
    remedy: str | None = None
    """Change that the next attempt makes. Absent if it makes none."""
    time: Time | None = None
    """Time at which the operator observed the end of the attempt."""
    progress: Position | None = None
    """Place that the run had reached. Interruptions count anew once a later attempt gets further."""
    node: str | None = None
    """Node that could not start the attempt's pod; later attempts prefer others. Absent in other cases."""
    retry: int | None = None
    """Value of spec.retry that started the attempt after this one. Absent if the operator started it."""
    paused: bool | None = None
    """True if the attempt did not end: its Job was suspended, and makes another pod once it is resumed."""


class Dependency(StatusModel):
    """Resource that this one waits for or started from."""

    kind: str
    """Kind of the resource: TrainingJob or PruneJob."""
    name: str
    """Name of the resource."""
    uid: str
    """UID of the resource, which tells it from a later one of the same name."""


class ResolvedModel(StatusModel):
    """Model file, pinned by its digest."""

    uri: str
    """Address of the model file."""
    sha256: str | None = None
    """SHA-256 of the model file, in hexadecimal. Absent if the spec gives a uri without sha256."""


class ResolvedRecords(StatusModel):
    """TFRecords of the dataset on which the model was trained, pinned by their digest."""

    uri: str
    """Folder of the TFRecords."""
    digest: str
    """Digest of the dataset's content and options."""


class Inputs(StatusModel):
    """Files that references resolved to when the first attempt started; later attempts use the same ones."""

    model: ResolvedModel | None = None
    """Model to start from."""
    records: ResolvedRecords | None = None
    """Dataset on which the model was trained and validated."""


class Progress(StatusModel):
    """Progress of the current attempt."""

    stage: str | None = None
    """Current stage of the run: survey, convert, train, evaluate, prune, export, verify or build."""
    epoch: int | None = None
    """Number of completed epochs."""
    epochs: int | None = None
    """Total number of epochs."""
    step: int | None = None
    """Number of completed steps in this stage; in training, in this epoch."""
    steps: int | None = None
    """Total number of steps in this stage; in training, in an epoch."""
    loss: float | None = None
    """Mean training loss of the last steps, at most 50."""
    learning_rate: float | None = None
    """Current learning rate."""
    images_per_second: float | None = None
    """Throughput of the last steps or images, in images per second. Absent before it is known."""
    eta_seconds: int | None = None
    """Estimated remaining time in seconds: of the run in training and evaluation, otherwise of the stage."""
    last_update_time: Time | None = None
    """Time of the last progress report. A time before the start of the attempt is that of an earlier one."""
    next_within_seconds: int | None = None
    """Time from lastUpdateTime within which the next progress report is due, if the run is alive. Absent in
    stages of unknown length."""


class Section(StatusModel):
    """Part of the result of a run, reported as soon as it is known."""


class ClassCount(StatusModel):
    """Number of objects of one class."""

    name: str
    """Class name after targetClassMapping."""
    objects: int
    """Number of objects of the class."""


class LabelConvention(StatusModel):
    """Convention by which the labels are read, and what decided it."""

    value: str
    """Convention: a value of the field of spec.dataset with the same name."""
    decided_by: Literal["spec", "evidence", "default"]
    """Source of the decision: the spec, evidence in the labels, or the default for want of evidence."""
    evidence: str
    """Evidence over the whole dataset: counts, and a file as an example."""


class DatasetStatus(Section):
    """Statistics of the prepared dataset."""

    images: int | None = None
    """Number of usable images for training and validation."""
    objects: int | None = None
    """Number of usable objects in the usable images."""
    skipped: int | None = None
    """Number of images left out; the dataset report gives the reasons."""
    dropped_objects: int | None = None
    """Number of label lines left out (unmapped class, outside the image, too small); the dataset report gives
    the reasons."""
    training_images: int | None = None
    """Number of training images."""
    validation_images: int | None = None
    """Number of validation images."""
    unlabelled_images: int | None = None
    """Number of usable images without a label, taken as images without objects (spec.dataset.unlabelled)."""
    unlisted_images: int | None = None
    """Number of images that are no part of the dataset: none of its lists names them (spec.dataset.imageSet),
    or no COCO file."""
    classes: list[ClassCount] | None = None
    """Number of objects of each class."""
    digest: str | None = None
    """Digest of the dataset's content and options."""
    records_uri: str | None = None
    """Folder of the TFRecords."""
    report_uri: str | None = None
    """Address of the dataset report, an HTML page on every image and label line. Also written if the dataset
    is refused."""
    layout: str | None = None
    """Format, places, class names and split that were found with spec.dataset.layout auto."""
    coordinates: LabelConvention | None = None
    """Number of the first pixel in VOC labels, zeroBased or oneBased, and what decided it."""
    orientation: LabelConvention | None = None
    """View of the images with an EXIF orientation on which the labels were drawn, stored or exif, and what
    decided it. Absent if no image has such an orientation."""
    warnings: int | None = None
    """Number of warnings in the dataset report: what is read but counts for nothing, leakage, unused mapping
    keys, unusual images."""
    first_warnings: (
        Annotated[list[Annotated[str, Field(max_length=WARNING_LENGTH)]], Field(max_length=FIRST_WARNINGS)]
        | None
    ) = None
    """First warnings of the dataset report, at most 5, each cut to 300 characters."""


class AnchorGap(StatusModel):
    """Training boxes of one class and of about one size, of which some have no anchor that fits."""

    name: str
    """Name of the class."""
    size: int
    """Least size of the boxes: the square root of the area, in pixels of the network input. The group ends at
    twice this size."""
    objects: int
    """Number of training boxes of this class and size."""
    missed: int
    """Number of these boxes that no chosen anchor fits with IoU >= 0.5."""


class AnchorsStatus(Section):
    """Anchors chosen by clustering the training boxes (spec.model.anchors.auto)."""

    scales: list[float]
    """Chosen anchor sizes: the side of a square of the anchor's area, in pixels of the network input."""
    ratios: list[float]
    """Chosen aspect ratios, as width / height."""
    recall: Score
    """Fraction of the training boxes that a chosen anchor fits with IoU >= 0.5. Anchors stand in the centres
    of cells of 16 x 16 pixels, and a box counts where it lies."""
    default_recall: Score
    """Fraction of the training boxes that an anchor of the spec fits with IoU >= 0.5, where they lie."""
    foreground_recall: Score
    """Fraction of the training boxes that a chosen anchor fits with IoU >= spec.model.proposals.maxOverlap,
    where they lie."""
    default_foreground_recall: Score
    """Fraction of the training boxes that an anchor of the spec fits with IoU >=
    spec.model.proposals.maxOverlap, where they lie."""
    mean_overlap: Score
    """Mean IoU of the training boxes with the chosen anchor that overlaps each of them most."""
    default_mean_overlap: Score
    """Mean IoU of the training boxes with the anchor of the spec that overlaps each of them most."""
    gaps: list[AnchorGap] | None = None
    """Classes and sizes with training boxes that no chosen anchor fits with IoU >= 0.5, most boxes first; at
    most 8."""


class PretrainedLayers(StatusModel):
    """Layers of the model with weights, and the parameters that they have."""

    layers: int
    """Number of layers."""
    parameters: Score
    """Fraction of the model's parameters."""


class PretrainedStatus(Section):
    """Layers of the model that pretrained weights were loaded into (spec.model.pretrainedWeights)."""

    origin: str
    """Program whose layer names the file has, which decides the variant of the network and its pixels."""
    matched: PretrainedLayers
    """Layers of the model with weights from the file."""
    missing: PretrainedLayers
    """Layers of the model that the file does not have; they start with random weights."""
    mismatched: PretrainedLayers
    """Layers of the model that have another shape in the file; they start with random weights."""
    unused_layers: int
    """Number of layers of the file that the model does not have."""
    not_loaded: list[str] | None = None
    """Names of layers that start with random weights, mismatched ones first, at most 20."""


class ClassMetric(StatusModel):
    """Average precision of one class."""

    name: str
    """Name of the class."""
    average_precision: Score | None = None
    """Average precision (AP) of the class. Absent if the validation images have no object of it."""
    objects: int | None = None
    """Number of objects of the class in the evaluation, difficult ones not counted."""
    precision: Score | None = None
    """Precision at bestThreshold: fraction of the detections that are correct."""
    recall: Score | None = None
    """Recall at bestThreshold: fraction of the objects that are detected."""
    f1: Score | None = None
    """F1 at bestThreshold: harmonic mean of precision and recall."""
    best_threshold: Threshold | None = None
    """Score threshold at which F1 of the class is best, at the lowest IoU threshold. The model file has it as
    the class's default threshold of inference. Absent if no detection of the class is correct."""


class Metrics(Section):
    """Evaluation of a model on the validation images."""

    # The alias generator would write mAp.
    m_ap: Annotated[Score | None, Field(alias="mAP")] = None
    """Mean average precision (mAP) over the classes, and over the IoU thresholds if there are several."""
    iou_threshold: float | None = None
    """IoU threshold of a correct detection. Absent if there are several."""
    protocol: str | None = None
    """Protocol of the evaluation: area, voc07 or coco."""
    interval: Annotated[list[Score], Field(min_length=2, max_length=2)] | None = None
    """Interval of mAP, lowest and highest value: 95 % confidence by a bootstrap over the validation images. A
    difference between two models can be significant although their intervals overlap."""
    ap50: Score | None = None
    """Mean AP at IoU 0.5 alone. Absent if that is not among the IoU thresholds."""
    ap75: Score | None = None
    """Mean AP at IoU 0.75 alone. Absent if that is not among the IoU thresholds."""
    ap_small: Score | None = None
    """Mean AP of objects with an area below 32 x 32 pixels of the original image. With protocol coco only."""
    ap_medium: Score | None = None
    """Mean AP of objects with an area from 32 x 32 to 96 x 96 pixels of the original image. With protocol
    coco only."""
    ap_large: Score | None = None
    """Mean AP of objects with an area above 96 x 96 pixels of the original image. With protocol coco only."""
    ar1: Score | None = None
    """Average recall (AR) with one detection per class and image. With protocol coco only."""
    ar10: Score | None = None
    """Average recall (AR) with 10 detections per class and image. With protocol coco only."""
    ar100: Score | None = None
    """Average recall (AR) with 100 detections per class and image. With protocol coco only."""
    ar_small: Score | None = None
    """Average recall (AR) of objects with an area below 32 x 32 pixels. With protocol coco only."""
    ar_medium: Score | None = None
    """Average recall (AR) of objects with an area from 32 x 32 to 96 x 96 pixels. With protocol coco only."""
    ar_large: Score | None = None
    """Average recall (AR) of objects with an area above 96 x 96 pixels. With protocol coco only."""
    precision: Score | None = None
    """Precision of all classes together at bestThreshold."""
    recall: Score | None = None
    """Recall of all classes together at bestThreshold."""
    f1: Score | None = None
    """F1 of all classes together at bestThreshold."""
    best_threshold: Threshold | None = None
    """Score threshold at which F1 of all classes together is best, at the lowest IoU threshold."""
    images: int | None = None
    """Number of images of the evaluation."""
    details_uri: str | None = None
    """Address of metrics.json, the details of the best model's evaluation: curves, confusion matrix, types of
    errors, calibration."""
    epoch: int | None = None
    """Epoch of the evaluated model."""
    per_class: list[ClassMetric] | None = None
    """Figures of each class."""

    @property
    def score_thresholds(self) -> list[float] | None:
        """Score threshold of each class at which F1 is best; that of all classes where a class has none.

        None where no detection is correct, and in an evaluation of before there were any.
        """
        if self.best_threshold is None or self.per_class is None:
            return None
        thresholds = (item.best_threshold for item in self.per_class)
        return [self.best_threshold if value is None else value for value in thresholds]


EPOCH_PREFIX = "epoch-"
"""Prefix of the artifact name of an epoch's checkpoint, as in epoch-0007."""


class Artifact(StatusModel):
    """File made by a run, listed once it is complete."""

    # Key of a list's items in RunReport.with_section. For the API server the list is one value: the runner
    # alone writes it.
    list_key: ClassVar[str] = "name"

    name: str
    """Name of the artifact, for example best, last, epoch-0007, model, plan, onnx-fp32 or engine-fp16."""
    uri: str
    """Address of the file."""
    sha256: str
    """SHA-256 of the file, in hexadecimal."""
    size_bytes: int
    """Size of the file in bytes."""
    epoch: int | None = None
    """Epoch of the model, for a checkpoint."""


class PruningStatus(Section):
    """Size of the model before and after pruning."""

    parameters_before: int
    """Number of parameters before pruning."""
    parameters_after: int
    """Number of parameters after pruning."""
    flops_before: int
    """FLOPs for one image before pruning (twice the multiply-adds)."""
    flops_after: int
    """FLOPs for one image after pruning (twice the multiply-adds)."""
    ratio: float
    """Fraction of the parameters kept."""
    # Texts, because a printer column cannot format a number.
    parameters_kept: str
    """Percentage of the parameters kept, as text for printing."""
    flops_kept: str
    """Percentage of the FLOPs kept, as text for printing."""


class ExportStatus(Section):
    """Export in one precision and its verification."""

    list_key: ClassVar[str] = "precision"

    precision: str
    """Precision of the export: fp32 or fp16."""
    m_ap: Annotated[Score | None, Field(alias="mAP")] = None
    """Mean average precision (mAP) of the exported model in ONNX Runtime on the validation images."""
    m_ap_drop: Annotated[Score | None, Field(alias="mAPDrop")] = None
    """Loss of mAP: mAP of the Keras model on the same images minus mAP of the exported model."""
    m_ap_drop_interval: Annotated[
        Annotated[list[Score], Field(min_length=2, max_length=2)] | None, Field(alias="mAPDropInterval")
    ] = None
    """Interval of mAPDrop, lowest and highest value, by a paired bootstrap over the validation images, with
    the confidence of spec.verification.confidence, or 95 %. Absent with fewer than two images."""
    comparison: Annotated[str, Field(max_length=300)] | None = None
    """Drop of mAP in words: in points (0.01), with its interval, and whether it is significant. Absent with
    fewer than two images."""
    not_compared: Annotated[str, Field(max_length=300)] | None = None
    """Reason why mAP was not compared with that of the Keras model, so that maxMetricDrop decided nothing.
    Absent if it was compared."""
    max_abs_error: float | None = None
    """Maximum absolute difference between the scores of a detection in ONNX Runtime and in Keras."""
    unmatched: int | None = None
    """Number of detections that only one of ONNX Runtime and Keras has, on the images of the verification."""
    pre_nms: int | None = None
    """Number of boxes that enter the suppression of proposals in the exported model: at most 3840, which is
    what TensorRT sorts, where spec.model.proposals.inference.preNms is larger."""
    size_bytes: int | None = None
    """Size of the ONNX file in bytes."""
    latency_milliseconds: float | None = None
    """Median latency for one image in ONNX Runtime on the runner's CPU, in milliseconds."""


class OperatorStatus(StatusModel):
    """Fields of the operator, changed by merge patches that null those that no longer apply."""

    phase: Phase | None = None
    """Summary of the conditions in one word."""
    observed_generation: int | None = None
    """Generation of the spec on which this status is based."""
    conditions: list[Condition] = []
    """Conditions of the resource, one for each type."""
    attempt: int | None = None
    """Number of the current or last attempt, from 1."""
    retries: int | None = None
    """Number of failed attempts that count towards spec.runPolicy.maxRetries, since spec.retry was last
    raised."""
    preemptions: int | None = None
    """Number of times that the run lost its pod and resumed: preempted, evicted, stopped by a queue, its node
    or a peer lost, its Job deleted."""
    restarts: int | None = None
    """Number of attempts that were made again for another reason than those that retries and preemptions
    count: trouble of the surroundings, a stall, or spec.retry."""
    observed_retry: int | None = None
    """Value of spec.retry that has been acted upon."""
    job_name: str | None = None
    """Name of the batch/v1 Job of the current or last attempt."""
    job_uid: str | None = None
    """UID of the batch/v1 Job, once observed: if that Job disappears, it was deleted."""
    waiting_since: Time | None = None
    """Time since which the resource waits for a running pod; spec.runPolicy.startTimeoutSeconds counts from
    it. Absent while it runs, is suspended, waits for another resource or has ended."""
    start_time: Time | None = None
    """Start time of the first attempt."""
    completion_time: Time | None = None
    """Time at which the resource succeeded or failed."""
    failure: Failure | None = None
    """Failure of the last attempt, or of the resource before any attempt."""
    history: list[Attempt] | None = None
    """Attempts that ended without success or were stopped by a queue, newest last, at most 20."""
    dependency: Dependency | None = None
    """Resource that this one waits for or started from."""
    inputs: Inputs | None = None
    """Files that references resolved to when the first attempt started."""


class Results(StatusModel):
    """Fields that the runner writes on a resource of any kind."""

    progress: Progress | None = None
    """Progress of the current attempt."""
    artifacts: list[Artifact] | None = None
    """Files made by the run, each listed once it is complete."""
    # The API server ignores a uid in the metadata of a status request: the admission policy compares this
    # field.
    reported_for: str | None = None
    """UID of the resource for which the runner reports. Reports for a former resource of this name are
    refused."""

    def artifact(self, name: str) -> Artifact | None:
        """Return the artifact of this name, or None if it does not exist yet."""
        return next((item for item in self.artifacts or () if item.name == name), None)


class TrainingResults(Results):
    """Fields that the runner writes on a TrainingJob."""

    dataset: DatasetStatus | None = None
    """Statistics of the prepared dataset."""
    anchors: AnchorsStatus | None = None
    """Anchors chosen by clustering the training boxes (spec.model.anchors.auto)."""
    pretrained: PretrainedStatus | None = None
    """Layers of the model that pretrained weights were loaded into (spec.model.pretrainedWeights)."""
    metrics: Metrics | None = None
    """Evaluation of the best model on the validation images."""


class PruningResults(Results):
    """Fields that the runner writes on a PruneJob."""

    pruning: PruningStatus | None = None
    """Size of the model before and after pruning."""


class ExportResults(Results):
    """Fields that the runner writes on an ExportJob."""

    metrics: Metrics | None = None
    """Evaluation of the Keras model on the validation images, as the reference of the verification."""
    exports: list[ExportStatus] | None = None
    """Exports and their verification, one for each precision."""
    lowest_m_ap: Annotated[Score | None, Field(alias="lowestMAP")] = None
    """Lowest mAP among the exports, for printing."""
    largest_drop: Score | None = None
    """Largest mAPDrop among the exports, for printing."""


# The order of the bases is the order of the fields in CRDs and manifests, the last base first.
class RunnerStatus(TrainingResults, PruningResults, ExportResults):
    """Fields that the runner writes, of all kinds."""


# Absent fields are normal: a new resource has no status at all.
class JobStatus(Results, OperatorStatus):
    """Status that all kinds share. Every field may be absent."""

    @property
    def recorded_end(self) -> Attempt | None:
        """Entry of ``history`` that records the end of the current attempt; None while there is none."""
        last = self.history[-1] if self.history else None
        # An attempt that a queueing system paused goes on.
        return last if last and last.attempt == self.attempt and not last.paused else None


class TrainingJobStatus(TrainingResults, JobStatus):
    """Status of a TrainingJob."""


class PruneJobStatus(PruningResults, JobStatus):
    """Status of a PruneJob."""


class ExportJobStatus(ExportResults, JobStatus):
    """Status of an ExportJob."""


OPERATOR_FIELDS = frozenset(OperatorStatus.model_fields)
RUNNER_FIELDS = frozenset(RunnerStatus.model_fields)
"""Fields that the runner writes, by their Python names."""


def wire_names(model: type[BaseModel]) -> list[str]:
    """Return the names of a model's fields as they stand in JSON, in the order of their definition."""
    return [field.alias or name for name, field in model.model_fields.items()]


def field_of(section: type[StatusModel]) -> str:
    """Return the field of :class:`RunnerStatus` that holds a section; a list holds one item for each key.

    Raises:
        TypeError: No field holds such a section.
    """
    try:
        return _FIELDS[section]
    except KeyError:
        sections = ", ".join(sorted(item.__name__ for item in _FIELDS))
        raise TypeError(f"expected a section of a status ({sections}), got {section.__name__}") from None


def _section_types(annotation: Any) -> list[type[StatusModel]]:
    """Return the models in a field's type, inside of ``| None`` and ``list[...]``."""
    if get_origin(annotation) is not None:
        return [model for part in get_args(annotation) for model in _section_types(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, StatusModel) else []


# A type stands in one field: `metrics` of a training and of an export is the same field of RunnerStatus.
_FIELDS: dict[type[StatusModel], str] = {
    model: name
    for name, field in RunnerStatus.model_fields.items()
    for model in _section_types(field.annotation)
}
