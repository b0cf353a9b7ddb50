"""The status of our resources: every field, and which of two field managers owns it.

The operator applies the fields of :class:`OperatorStatus` (field manager ``tlt-operator``), the runner those
of :class:`RunnerStatus` on its own resource (``tlt-runner``), both by server-side apply. A kind's status is
made of both. The lists of fields (:data:`OPERATOR_FIELDS`, :data:`RUNNER_FIELDS`) follow from these classes,
and so do the runner's admission policy and the run report.

To add a section that the runner reports: write its model, and add one field to the results of the kinds that
have it. ``tlt_runner.report.lines`` needs one function that puts it into words.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, Field

from tlt_api.base import StatusModel

OPERATOR_FIELD_MANAGER = "tlt-operator"
RUNNER_FIELD_MANAGER = "tlt-runner"

HISTORY_LIMIT = 20
"""Entries that status.history keeps."""

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


Score = Annotated[float, AfterValidator(lambda value: round(value, 5))]
"""A figure that people read: five decimals, which is finer than any validation set can tell."""


class Phase(StrEnum):
    """A one-word summary for people, derived from the conditions."""

    PENDING = "Pending"
    QUEUED = "Queued"
    SUSPENDED = "Suspended"
    RUNNING = "Running"
    RETRYING = "Retrying"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Condition(StatusModel):
    """A metav1.Condition."""

    type: Annotated[str, Field(max_length=316)]
    """Ready, Reconciling, Stalled (kstatus); Suspended, Complete, Failed (ours)."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The generation of the spec on which this is based."""
    last_transition_time: Time
    """When status last changed."""
    reason: Annotated[str, Field(max_length=1024)]
    """One word for programs."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """One sentence for people."""


class Failure(StatusModel):
    """The failure of the last attempt, or of the resource before any attempt."""

    reason: str
    """One of the failure taxonomy; docs/failures.md lists them."""
    exit_code: int | None = None
    """Exit code of the runner's container, where there was one."""
    message: str = ""
    """What happened."""
    hint: str = ""
    """What to do about it."""
    retryable: bool = False
    """Whether another attempt can end otherwise."""


class Attempt(StatusModel):
    """An attempt that ended without success."""

    attempt: int
    """Its number, from 1."""
    reason: str
    """Why it ended."""
    remedy: str | None = None
    """What the next attempt changes."""
    time: Time | None = None
    """When the operator saw it."""


class Dependency(StatusModel):
    """The resource that this one waits for or started from."""

    kind: str
    """TrainingJob or PruneJob."""
    name: str
    """Its name."""
    uid: str
    """Its uid: another object of the same name is another object."""


class ResolvedModel(StatusModel):
    """A model file, pinned."""

    uri: str
    """Its address."""
    sha256: str | None = None
    """Its digest; absent only where the user gave a uri without one."""


class ResolvedRecords(StatusModel):
    """TFRecords of the data set with which the model was trained, pinned."""

    uri: str
    """Folder of the records."""
    digest: str
    """Digest of content and options."""


class Inputs(StatusModel):
    """What references resolved to when the first attempt started; later attempts use the same."""

    model: ResolvedModel | None = None
    """The model to start from."""
    records: ResolvedRecords | None = None
    """The data on which the model was trained and validated."""


class Progress(StatusModel):
    """Where the runner is."""

    stage: str | None = None
    """What it does: survey, convert, train, evaluate, prune, export, verify, build."""
    epoch: int | None = None
    """Epochs finished."""
    epochs: int | None = None
    """Epochs in all."""
    step: int | None = None
    """Steps finished in this stage; in training, in this epoch."""
    steps: int | None = None
    """Steps of an epoch."""
    loss: float | None = None
    """Mean training loss of the last steps, 50 at most."""
    learning_rate: float | None = None
    """Learning rate now."""
    images_per_second: float | None = None
    """Throughput of the last interval."""
    eta_seconds: int | None = None
    """Estimated time to the end: of the run in training and evaluation, else of the stage."""
    last_update_time: Time | None = None
    """When this was written."""


class ClassCount(StatusModel):
    """Objects of one class."""

    name: str
    """Class name, after mapping."""
    objects: int
    """How many."""


class DatasetStatus(StatusModel):
    """What preparation found."""

    images: int | None = None
    """Usable images, training and validation."""
    objects: int | None = None
    """Usable objects in them."""
    skipped: int | None = None
    """Images left out; the dataset report says why."""
    dropped_objects: int | None = None
    """Label lines left out (unmapped class, outside the image, too small); the dataset report says why."""
    training_images: int | None = None
    """Images to train on."""
    validation_images: int | None = None
    """Images to validate on."""
    classes: list[ClassCount] | None = None
    """Objects by class."""
    digest: str | None = None
    """Digest of content and options."""
    records_uri: str | None = None
    """Folder of the TFRecords."""
    report_uri: str | None = None
    """Page that says what became of every image and label line; also there when the data are refused."""
    warnings: int | None = None
    """Things in the report that a person should look at: leakage, unused mapping keys, unusual images."""


class AnchorsStatus(StatusModel):
    """Anchors that were chosen by clustering the training boxes (spec.model.anchors.auto)."""

    scales: list[float]
    """Sizes in pixels of the network's input."""
    ratios: list[float]
    """Width / height."""
    recall: Score
    """Share of the training boxes that an anchor of these shapes fits with IoU >= 0.5."""
    default_recall: Score
    """The same with the scales and ratios that stand in the spec."""
    foreground_recall: Score
    """Share of the training boxes that an anchor fits with IoU >= spec.model.proposals.maxOverlap."""
    default_foreground_recall: Score
    """The same with the scales and ratios that stand in the spec."""
    mean_overlap: Score
    """Mean IoU of the training boxes with the anchor that fits them best."""
    default_mean_overlap: Score
    """The same with the scales and ratios that stand in the spec."""


class ClassMetric(StatusModel):
    """Average precision of one class."""

    name: str
    """Class name."""
    average_precision: Score | None = None
    """AP; absent where the validation data have no object of the class."""


class Metrics(StatusModel):
    """Evaluation of the best model on the validation data."""

    m_ap: Annotated[Score | None, Field(alias="mAP")] = None
    """Mean of the classes' average precision, and of the IoU thresholds where there are several."""
    iou_threshold: float | None = None
    """IoU from which a detection counts, where there is one."""
    epoch: int | None = None
    """Epoch of the model that was evaluated."""
    per_class: list[ClassMetric] | None = None
    """By class."""


EPOCH_PREFIX = "epoch-"
"""How the name of an epoch's own checkpoint begins: epoch-0007."""


class Artifact(StatusModel):
    """A file that a run made; listed once it is whole."""

    list_key: ClassVar[str] = "name"

    name: str
    """What it is: best, last, epoch-0007, model, plan, onnx-fp32, engine-fp16 ..."""
    uri: str
    """Where it is."""
    sha256: str
    """Its digest."""
    size_bytes: int
    """Its size."""
    epoch: int | None = None
    """Epoch of a checkpoint."""


class PruningStatus(StatusModel):
    """What pruning did."""

    parameters_before: int
    """Parameters of the model before."""
    parameters_after: int
    """Parameters after."""
    flops_before: int
    """Multiply-adds times two for one image, before."""
    flops_after: int
    """The same after."""
    ratio: float
    """Parameters kept, as a fraction."""
    parameters_kept: str
    """Parameters kept, in per cent, for printing."""
    flops_kept: str
    """FLOPs kept, in per cent, for printing."""


class ExportStatus(StatusModel):
    """One exported precision, verified."""

    list_key: ClassVar[str] = "precision"

    precision: str
    """fp32, fp16 or int8."""
    m_ap: Annotated[Score | None, Field(alias="mAP")] = None
    """mAP of the exported model in ONNX Runtime on the validation data."""
    m_ap_drop: Annotated[Score | None, Field(alias="mAPDrop")] = None
    """mAP of the Keras model on the same data, less the exported one's."""
    max_abs_error: float | None = None
    """Largest difference of a matched detection's score to Keras."""
    size_bytes: int | None = None
    """Size of the ONNX file."""
    latency_milliseconds: float | None = None
    """Median time of one image in ONNX Runtime on the runner's CPU."""


class OperatorStatus(StatusModel):
    """The operator's fields. It applies them as a whole: server-side apply removes what it leaves out."""

    phase: Phase | None = None
    """One-word summary."""
    observed_generation: int | None = None
    """Generation of the spec that this status speaks of."""
    conditions: Annotated[list[Condition], Field(json_schema_extra={"x-list-map-key": "type"})] = []
    """Conditions, by type."""
    attempt: int | None = None
    """The attempt that runs or ran last, from 1."""
    retries: int | None = None
    """Attempts that failed and count against maxRetries."""
    job_name: str | None = None
    """batch/v1 Job of that attempt."""
    job_uid: str | None = None
    """uid of that Job, from when it was first seen: a Job that was seen and is gone was deleted."""
    start_time: Time | None = None
    """When the first attempt started."""
    completion_time: Time | None = None
    """When the resource succeeded or failed."""
    failure: Failure | None = None
    """Why the last attempt, or the resource, failed."""
    history: list[Attempt] | None = None
    """Earlier attempts, newest last, at most 20."""
    dependency: Dependency | None = None
    """The resource it waits for or started from."""
    inputs: Inputs | None = None
    """What references resolved to."""


class Results(StatusModel):
    """The fields that the runner writes on a resource of any kind."""

    progress: Progress | None = None
    """Where the runner is."""
    artifacts: list[Artifact] | None = None
    """Files that the run made."""
    reported_for: str | None = None
    """uid for which the runner reports: a runner of a former resource of this name is refused."""

    def artifact(self, name: str) -> Artifact | None:
        """The artifact of this name, if it is there yet."""
        return next((item for item in self.artifacts or () if item.name == name), None)


class TrainingResults(Results):
    """The fields that the runner writes on a TrainingJob."""

    dataset: DatasetStatus | None = None
    """What preparation found."""
    anchors: AnchorsStatus | None = None
    """Anchors that were chosen from the data."""
    metrics: Metrics | None = None
    """Evaluation of the best model."""


class PruningResults(Results):
    """The fields that the runner writes on a PruneJob."""

    pruning: PruningStatus | None = None
    """What pruning did."""


class ExportResults(Results):
    """The fields that the runner writes on an ExportJob."""

    metrics: Metrics | None = None
    """Evaluation of the Keras model on the validation data, to compare with."""
    exports: list[ExportStatus] | None = None
    """By precision."""
    lowest_m_ap: Annotated[Score | None, Field(alias="lowestMAP")] = None
    """The lowest mAP among the exports, for printing."""
    largest_drop: Score | None = None
    """The largest mAPDrop among the exports, for printing."""


class RunnerStatus(TrainingResults, PruningResults, ExportResults):
    """The fields that the runner writes, of all kinds."""


class JobStatus(Results, OperatorStatus):
    """Status that all kinds share. Every field may be absent."""


class TrainingJobStatus(TrainingResults, JobStatus):
    """Status of a TrainingJob."""


class PruneJobStatus(PruningResults, JobStatus):
    """Status of a PruneJob."""


class ExportJobStatus(ExportResults, JobStatus):
    """Status of an ExportJob."""


Section = DatasetStatus | AnchorsStatus | Metrics | PruningStatus | ExportStatus
"""A part of the result of a run, reported as soon as it is known."""

OPERATOR_FIELDS = frozenset(OperatorStatus.model_fields)
RUNNER_FIELDS = frozenset(RunnerStatus.model_fields)
"""By their Python names."""


def wire_names(model: type[BaseModel]) -> list[str]:
    """The names of a model's fields as they stand in JSON, in the order of their definition."""
    return [field.alias or name for name, field in model.model_fields.items()]


def field_of(section: type[StatusModel]) -> str:
    """The field of :class:`RunnerStatus` that holds a section; a list holds one item for each key.

    Raises:
        TypeError: No field holds such a section.
    """
    try:
        return _FIELDS[section]
    except KeyError:
        known = ", ".join(sorted(item.__name__ for item in _FIELDS))
        raise TypeError(f"expected a section of a status ({known}), got {section.__name__}") from None


def _section_types(annotation: Any) -> list[type[StatusModel]]:
    """The models in a field's type, inside of ``| None`` and ``list[...]``."""
    if get_origin(annotation) is not None:
        return [model for part in get_args(annotation) for model in _section_types(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, StatusModel) else []


_FIELDS: dict[type[StatusModel], str] = {
    model: name
    for name, field in RunnerStatus.model_fields.items()
    for model in _section_types(field.annotation)
}
