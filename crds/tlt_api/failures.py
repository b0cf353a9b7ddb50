"""Failure taxonomy: the reason, the exit code, whether a retry can help, and a hint for the user.

The runner exits with a code of this table and repeats it in the termination message; the operator reads exits
and conditions of pods and Jobs, never log text. ``docs/failures.md`` is generated from here.

    Failure
    ├── by the user's input   InvalidSpec, DatasetNotFound, NoLabels, UnknownClass, BadSamples,
    │                         ChecksumMismatch, UnreadableModel, ModelMismatch, NothingToPrune, OutputTaken
    ├── by the work           OutOfMemory, NaNLoss, ExportFailed, EngineBuildFailed, MetricDrop
    ├── by the surroundings   StorageUnavailable, StorageDenied, StorageFull, NotEnoughGPUs, StartFailed,
    │                         Interrupted, WorkerLost, Evicted, NodeLost, Stalled, JobDeleted
    ├── by the user's limit   ImagePullFailed, PodRejected, StartTimeout, DeadlineExceeded
    ├── by another resource   DependencyFailed, DependencyCycle, DependencyUnusable
    └── by us                 Internal
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlt_api.status import Failure


class Reason(StrEnum):
    """Reason of a failure, as in ``status.failure.reason`` and in the Failed condition."""

    INVALID_SPEC = "InvalidSpec"
    DATASET_NOT_FOUND = "DatasetNotFound"
    NO_LABELS = "NoLabels"
    UNKNOWN_CLASS = "UnknownClass"
    BAD_SAMPLES = "BadSamples"
    CHECKSUM_MISMATCH = "ChecksumMismatch"
    UNREADABLE_MODEL = "UnreadableModel"
    MODEL_MISMATCH = "ModelMismatch"
    NOT_ENOUGH_GPUS = "NotEnoughGPUs"
    NOTHING_TO_PRUNE = "NothingToPrune"
    STORAGE_DENIED = "StorageDenied"
    OUTPUT_TAKEN = "OutputTaken"
    OUT_OF_MEMORY = "OutOfMemory"
    NAN_LOSS = "NaNLoss"
    EXPORT_FAILED = "ExportFailed"
    ENGINE_BUILD_FAILED = "EngineBuildFailed"
    METRIC_DROP = "MetricDrop"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    STORAGE_FULL = "StorageFull"
    INTERRUPTED = "Interrupted"
    WORKER_LOST = "WorkerLost"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    EVICTED = "Evicted"
    NODE_LOST = "NodeLost"
    STALLED = "Stalled"
    JOB_DELETED = "JobDeleted"
    POD_REJECTED = "PodRejected"
    START_FAILED = "StartFailed"
    START_TIMEOUT = "StartTimeout"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    DEPENDENCY_FAILED = "DependencyFailed"
    DEPENDENCY_CYCLE = "DependencyCycle"
    DEPENDENCY_UNUSABLE = "DependencyUnusable"
    INTERNAL = "Internal"


class Cause(StrEnum):
    """Cause of a class of failures, which decides how often an attempt with such an end is made again."""

    RUN = "run"
    """The run itself: retried up to spec.runPolicy.maxRetries times, if at all."""
    INTERRUPTION = "interruption"
    """Somebody took the pod away: resumed, and counted only after ten in a row without progress."""
    SURROUNDINGS = "surroundings"
    """Something that the run needs is away: tried again until it is back, ever later."""


class Origin(StrEnum):
    """Origin of a failure: who or what has to change before another attempt can succeed."""

    INPUT = "your input"
    WORK = "the run itself"
    SURROUNDINGS = "surroundings"
    """Never for good by itself: what is away comes back, or is mended without a new resource."""
    LIMIT = "your limit"
    """A wait or a run that was ended by a limit of spec.runPolicy, whatever it met until then."""
    RESOURCE = "another resource"
    PRODUCT = "this product"


@dataclass(frozen=True)
class FailureClass:
    """Class of failures with the same reason, exit code and remedy.

    Attributes:
        reason: Reason in the status and the Failed condition.
        exit_code: Exit code of the runner, or None if only the operator can detect the failure.
        retryable: True if another attempt may succeed.
        hint: Suggested remedy for the user, one sentence.
        cause: Cause of the failure; it decides how often a retryable one is retried.
    """

    reason: Reason
    exit_code: int | None
    retryable: bool
    hint: str
    cause: Cause = Cause.RUN


# Exit codes: 2 as for wrong usage of a command, 70 (software error) and 75 (temporary failure) as in
# sysexits.h. 1 stays with Python's uncaught exceptions, 126 and more with the shell and with signals.
_TABLE = (
    FailureClass(
        Reason.INVALID_SPEC,
        2,
        False,
        "Correct the named field (see kubectl explain) and create the resource again.",
    ),
    FailureClass(
        Reason.OUT_OF_MEMORY, 12, True, "Lower batchSizePerGPU or imageSize, or raise spec.resources.memory."
    ),
    FailureClass(Reason.NAN_LOSS, 13, True, "Lower spec.training.learningRate.max or lengthen softStart."),
    FailureClass(
        Reason.DATASET_NOT_FOUND,
        20,
        False,
        "Compare spec.dataset.uri, images and labels with the content of the volume or bucket.",
    ),
    FailureClass(
        Reason.NO_LABELS,
        21,
        False,
        "Check that spec.dataset.labels is the folder of the label files, which are named like the images.",
    ),
    FailureClass(
        Reason.UNKNOWN_CLASS,
        22,
        False,
        "Use the class names of the labels as keys of spec.dataset.targetClassMapping.",
    ),
    FailureClass(
        Reason.BAD_SAMPLES,
        23,
        False,
        "Repair the files named in the dataset report; badSamples.maxFraction is for images to do without.",
    ),
    FailureClass(
        Reason.CHECKSUM_MISMATCH,
        24,
        False,
        "The file differs from the expected one: correct the sha256 or restore the file.",
    ),
    FailureClass(
        Reason.UNREADABLE_MODEL,
        25,
        False,
        "Use a .keras model written by this product, or weights as .weights.h5 or .h5.",
    ),
    FailureClass(
        Reason.MODEL_MISMATCH,
        26,
        False,
        "Use the classes, image size and backbone with which the model was trained.",
    ),
    # The node has promised the GPUs to the scheduler: its driver or device plugin does not keep the promise.
    FailureClass(
        Reason.NOT_ENOUGH_GPUS,
        27,
        True,
        "Repair or cordon the node (driver, device plugin, runtime class), or choose an image with GPU "
        "support; the next attempt prefers another node. Fewer GPUs need a new resource.",
        Cause.SURROUNDINGS,
    ),
    FailureClass(
        Reason.NOTHING_TO_PRUNE, 28, False, "Raise spec.threshold, or remove layers from spec.excludedLayers."
    ),
    # Without randomness: the same model fails to be exported again.
    FailureClass(
        Reason.EXPORT_FAILED,
        30,
        False,
        "The model could not be written as plugin-free ONNX: see the message.",
    ),
    FailureClass(
        Reason.ENGINE_BUILD_FAILED,
        31,
        False,
        "See the builder's message; check spec.engine.computeCapabilities and spec.batch.",
    ),
    FailureClass(
        Reason.METRIC_DROP,
        32,
        False,
        "Remove the precision that lost too much mAP, or raise spec.verification.maxMetricDrop.",
    ),
    FailureClass(
        Reason.STORAGE_UNAVAILABLE,
        40,
        True,
        "Check that the pod can reach the volume or the S3 endpoint; the next attempt resumes by itself.",
        Cause.SURROUNDINGS,
    ),
    FailureClass(
        Reason.STORAGE_DENIED,
        41,
        True,
        "Renew the Secret of spec.storage.s3.secretRef, or give the volume's folder to uid 65532; the next "
        "attempt resumes by itself.",
        Cause.SURROUNDINGS,
    ),
    FailureClass(
        Reason.STORAGE_FULL,
        42,
        True,
        "Free space on the output volume, or enlarge it; the next attempt resumes by itself.",
        Cause.SURROUNDINGS,
    ),
    FailureClass(
        Reason.OUTPUT_TAKEN,
        43,
        False,
        "Choose another spec.output.uri; or, if the other run's files may be replaced, set "
        "spec.output.overwrite to true and raise spec.retry.",
    ),
    # Retried, because a crash may be chance; maxRetries ends what is not.
    FailureClass(Reason.INTERNAL, 70, True, "This is a bug: please report it with the log of the pod."),
    FailureClass(
        Reason.INTERRUPTED,
        75,
        True,
        "The pod was stopped from outside; the next attempt resumes from the last checkpoint.",
        Cause.INTERRUPTION,
    ),
    FailureClass(
        Reason.WORKER_LOST,
        76,
        True,
        "Another pod of spec.resources.nodes ended or could not be reached: check its log and the network "
        "between the pods of the run. The next attempt resumes from the last checkpoint.",
        Cause.INTERRUPTION,
    ),
    # From here on, what the operator alone sees. The first three are obstacles that keep a pod from starting:
    # reported as Blocked, and failures only after spec.runPolicy.startTimeoutSeconds.
    FailureClass(
        Reason.IMAGE_PULL_FAILED,
        None,
        False,
        "Push the image, or make the registry and imagePullSecrets work; then raise spec.retry.",
    ),
    FailureClass(
        Reason.POD_REJECTED,
        None,
        False,
        "Remove what the message names (a quota, Pod Security, a webhook, a missing object); then raise "
        "spec.retry.",
    ),
    FailureClass(
        Reason.START_TIMEOUT,
        None,
        False,
        "Provide what the message names, or raise spec.runPolicy.startTimeoutSeconds; then raise spec.retry.",
    ),
    FailureClass(
        Reason.START_FAILED,
        None,
        True,
        "Repair or cordon the node that the message names; the next attempt prefers another one.",
        Cause.SURROUNDINGS,
    ),
    FailureClass(
        Reason.EVICTED,
        None,
        True,
        "The node ran out of a resource, or the pod was preempted.",
        Cause.INTERRUPTION,
    ),
    FailureClass(
        Reason.NODE_LOST, None, True, "The node was lost while the pod was running.", Cause.INTERRUPTION
    ),
    FailureClass(
        Reason.STALLED,
        None,
        True,
        "The run made no progress for longer than it had announced, and spec.runPolicy.stall is Restart.",
        Cause.INTERRUPTION,
    ),
    FailureClass(
        Reason.JOB_DELETED,
        None,
        True,
        "The Job of the attempt was deleted. To stop a run, set spec.suspend.",
        Cause.INTERRUPTION,
    ),
    # The user's own limit on an attempt: another one would go around it.
    FailureClass(
        Reason.DEADLINE_EXCEEDED,
        None,
        False,
        "Raise spec.runPolicy.activeDeadlineSeconds, then spec.retry: the next attempt resumes.",
    ),
    FailureClass(
        Reason.DEPENDENCY_FAILED,
        None,
        False,
        "Let the referenced resource succeed (raise its spec.retry, or create it again), then raise "
        "spec.retry here.",
    ),
    FailureClass(
        Reason.DEPENDENCY_CYCLE,
        None,
        False,
        "Break the cycle: one of the resources must start from a uri or from scratch.",
    ),
    FailureClass(
        Reason.DEPENDENCY_UNUSABLE,
        None,
        False,
        "Refer to a resource that has the artifact, or choose another checkpoint.",
    ),
)

_OF_THE_INPUT = {
    Reason.INVALID_SPEC,
    Reason.DATASET_NOT_FOUND,
    Reason.NO_LABELS,
    Reason.UNKNOWN_CLASS,
    Reason.BAD_SAMPLES,
    Reason.CHECKSUM_MISMATCH,
    Reason.UNREADABLE_MODEL,
    Reason.MODEL_MISMATCH,
    Reason.NOTHING_TO_PRUNE,
    Reason.OUTPUT_TAKEN,
}
_OF_A_LIMIT = {
    Reason.IMAGE_PULL_FAILED,
    Reason.POD_REJECTED,
    Reason.START_TIMEOUT,
    Reason.DEADLINE_EXCEEDED,
}
_OF_ANOTHER_RESOURCE = {Reason.DEPENDENCY_FAILED, Reason.DEPENDENCY_CYCLE, Reason.DEPENDENCY_UNUSABLE}

CLASSES: dict[Reason, FailureClass] = {entry.reason: entry for entry in _TABLE}
# The other way round, for the operator; reasons that no process exits with have no code.
_BY_EXIT_CODE: dict[int, FailureClass] = {e.exit_code: e for e in _TABLE if e.exit_code is not None}


def by_exit_code(exit_code: int) -> FailureClass:
    """Return the class of a runner's exit code; an unknown one (a crash, a signal) is ``Internal``."""
    return _BY_EXIT_CODE.get(exit_code, CLASSES[Reason.INTERNAL])


def known(reason: str) -> Reason | None:
    """Return a reason by its text; None for one that only another version of this product knows."""
    return Reason(reason) if reason in set(Reason) else None


def origin_of(reason: Reason) -> Origin:
    """Return the origin of a failure."""
    if CLASSES[reason].cause != Cause.RUN:
        return Origin.SURROUNDINGS
    if reason in _OF_THE_INPUT:
        return Origin.INPUT
    if reason in _OF_A_LIMIT:
        return Origin.LIMIT
    if reason in _OF_ANOTHER_RESOURCE:
        return Origin.RESOURCE
    return Origin.PRODUCT if reason == Reason.INTERNAL else Origin.WORK


def cause_of(reason: str) -> Cause | None:
    """Return the cause of a failure by the text of its reason; None for an unknown one."""
    known_reason = known(reason)
    return CLASSES[known_reason].cause if known_reason else None


def failure(
    reason: Reason, message: str, hint: str | None = None, *, exit_code: int | None = None
) -> Failure:
    """Return a failure as it stands in a status.

    Args:
        reason: Reason of the failure, which decides its class in the taxonomy.
        message: Description of the failure.
        hint: Suggested remedy; defaults to the hint of the class.
        exit_code: Exit code of the runner's process; None if there was none.
    """
    # Imported here: `tlt --help` needs the reasons, and must not load pydantic for them.
    from tlt_api.status import Failure

    failure_class = CLASSES[reason]
    return Failure(
        reason=reason.value,
        exit_code=exit_code,
        message=message,
        hint=hint or failure_class.hint,
        retryable=failure_class.retryable,
    )
