"""Every way in which a job can fail: its exit code, whether to try again, and what the user can do.

The runner exits with a code of this table and repeats it in the termination message; the operator reads exits
and conditions of pods and Jobs, never log text. ``docs/failures.md`` is generated from here.

    Failure
    ├── by the user's input   InvalidSpec, DatasetNotFound, NoLabels, UnknownClass, BadSamples,
    │                         ChecksumMismatch, UnreadableModel, ModelMismatch, NotEnoughGPUs,
    │                         NothingToPrune, StorageDenied
    ├── by the work           OutOfMemory, NaNLoss, ExportFailed, EngineBuildFailed, MetricDrop
    ├── by the surroundings   StorageUnavailable, StorageFull, Interrupted, WorkerLost, ImagePullFailed,
    │                         Evicted, NodeLost, JobDeleted, PodRejected, DeadlineExceeded
    ├── by another resource   DependencyFailed, DependencyDeleted, DependencyCycle, DependencyUnusable
    └── by us                 Internal
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlt_api.status import Failure


class Reason(StrEnum):
    """The reason of a failure, as it stands in ``status.failure.reason`` and in the Failed condition."""

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
    JOB_DELETED = "JobDeleted"
    POD_REJECTED = "PodRejected"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    DEPENDENCY_FAILED = "DependencyFailed"
    DEPENDENCY_DELETED = "DependencyDeleted"
    DEPENDENCY_CYCLE = "DependencyCycle"
    DEPENDENCY_UNUSABLE = "DependencyUnusable"
    INTERNAL = "Internal"


@dataclass(frozen=True)
class FailureClass:
    """A class of failures.

    Attributes:
        reason: Its name.
        exit_code: The runner's exit code, or None where only the operator can see it.
        retryable: Whether another attempt can end otherwise.
        hint: What the user can do, one sentence.
    """

    reason: Reason
    exit_code: int | None
    retryable: bool
    hint: str


_TABLE = (
    FailureClass(
        Reason.INVALID_SPEC,
        2,
        False,
        "Correct the named field (see kubectl explain) and create it again.",
    ),
    FailureClass(
        Reason.OUT_OF_MEMORY, 12, True, "Lower batchSizePerGPU or imageSize, or raise spec.resources.memory."
    ),
    FailureClass(Reason.NAN_LOSS, 13, True, "Lower spec.training.learningRate.max or lengthen softStart."),
    FailureClass(
        Reason.DATASET_NOT_FOUND,
        20,
        False,
        "Check spec.dataset.uri, images and labels against what the volume or bucket holds.",
    ),
    FailureClass(
        Reason.NO_LABELS,
        21,
        False,
        "Check that spec.dataset.labels names the folder of labels, named like the images.",
    ),
    FailureClass(
        Reason.UNKNOWN_CLASS,
        22,
        False,
        "Make the keys of spec.dataset.targetClassMapping the classes that the labels use.",
    ),
    FailureClass(
        Reason.BAD_SAMPLES,
        23,
        False,
        "Repair the files named in the dataset report, or allow more in spec.dataset.badSamples.",
    ),
    FailureClass(
        Reason.CHECKSUM_MISMATCH,
        24,
        False,
        "The file is not the one that was meant: correct the sha256 or restore the file.",
    ),
    FailureClass(
        Reason.UNREADABLE_MODEL,
        25,
        False,
        "Give a .keras model written by this product, or weights as .weights.h5 or .h5.",
    ),
    FailureClass(
        Reason.MODEL_MISMATCH,
        26,
        False,
        "Use the classes, image size and backbone with which the model was made.",
    ),
    FailureClass(
        Reason.NOT_ENOUGH_GPUS, 27, False, "Lower spec.resources.gpus, or choose nodes that have as many."
    ),
    FailureClass(
        Reason.NOTHING_TO_PRUNE, 28, False, "Raise spec.threshold, or take layers out of spec.excludedLayers."
    ),
    FailureClass(
        Reason.EXPORT_FAILED,
        30,
        False,
        "See the message; the model could not be written as plugin-free ONNX.",
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
        "Leave out the precision that lost too much, or allow more in spec.verification.maxMetricDrop.",
    ),
    FailureClass(
        Reason.STORAGE_UNAVAILABLE,
        40,
        True,
        "Check that the volume or the S3 endpoint can be reached from the pod.",
    ),
    FailureClass(
        Reason.STORAGE_DENIED,
        41,
        False,
        "Check the Secret of spec.storage.s3.secretRef, and who owns the folder on the volume (uid 65532).",
    ),
    FailureClass(
        Reason.STORAGE_FULL, 42, False, "Make room on the output volume or choose another in spec.output.uri."
    ),
    FailureClass(Reason.INTERNAL, 70, True, "This is our mistake: please report it with the pod's log."),
    FailureClass(
        Reason.INTERRUPTED,
        75,
        True,
        "The pod was stopped from outside; the next attempt resumes from the last checkpoint.",
    ),
    FailureClass(
        Reason.WORKER_LOST,
        76,
        True,
        "Another pod of spec.resources.nodes ended or could not be reached: see its log, and whether the "
        "network lets the run's pods reach each other. The next attempt resumes from the last checkpoint.",
    ),
    FailureClass(Reason.IMAGE_PULL_FAILED, None, False, "Check spec.podTemplate.image and imagePullSecrets."),
    FailureClass(Reason.EVICTED, None, True, "The node ran short of a resource, or the pod was preempted."),
    FailureClass(Reason.NODE_LOST, None, True, "The node went away while the pod ran there."),
    FailureClass(
        Reason.JOB_DELETED,
        None,
        True,
        "The attempt's Job was deleted by somebody; to stop a run set spec.suspend.",
    ),
    FailureClass(
        Reason.POD_REJECTED,
        None,
        False,
        "The API server refused the pod: see the message (quota, Pod Security, a webhook).",
    ),
    FailureClass(Reason.DEADLINE_EXCEEDED, None, False, "Raise spec.runPolicy.activeDeadlineSeconds."),
    FailureClass(
        Reason.DEPENDENCY_FAILED, None, False, "Repair the resource it refers to, then create both again."
    ),
    FailureClass(
        Reason.DEPENDENCY_DELETED, None, False, "Create the resource it refers to again, then this one."
    ),
    FailureClass(
        Reason.DEPENDENCY_CYCLE,
        None,
        False,
        "Break the circle: one of the resources must start from a uri or from nothing.",
    ),
    FailureClass(
        Reason.DEPENDENCY_UNUSABLE,
        None,
        False,
        "Refer to a resource that has the artifact, or name another checkpoint.",
    ),
)

CLASSES: dict[Reason, FailureClass] = {entry.reason: entry for entry in _TABLE}
_BY_EXIT_CODE: dict[int, FailureClass] = {e.exit_code: e for e in _TABLE if e.exit_code is not None}


def by_exit_code(exit_code: int) -> FailureClass:
    """The class of a runner's exit code; an unknown one (a crash, a signal) is ``Internal``."""
    return _BY_EXIT_CODE.get(exit_code, CLASSES[Reason.INTERNAL])


def failure(
    reason: Reason, message: str, hint: str | None = None, *, exit_code: int | None = None
) -> Failure:
    """A failure as it stands in a status.

    Args:
        reason: Its class in the taxonomy.
        message: What happened.
        hint: What to do about it, where something better is known than the taxonomy's hint.
        exit_code: Exit code of the runner's process, where there was one.
    """
    # Imported here: `tlt --help` needs the reasons, and must not load pydantic for them.
    from tlt_api.status import Failure

    known = CLASSES[reason]
    return Failure(
        reason=reason.value,
        exit_code=exit_code,
        message=message,
        hint=hint or known.hint,
        retryable=known.retryable,
    )
