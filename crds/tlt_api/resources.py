"""Kinds of resources, with their names, commands and printer columns, and the reading of resources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tlt_api.base import API_VERSION, GROUP
from tlt_api.common import JobSpec
from tlt_api.exportjob import ExportJobSpec
from tlt_api.prunejob import PruneJobSpec
from tlt_api.status import ExportJobStatus, JobStatus, PruneJobStatus, TrainingJobStatus
from tlt_api.trainingjob import TrainingJobSpec

MAX_NAME_LENGTH = 40
"""Limit of a resource's name: names of Jobs, Services and pods are derived from it, and fit 63 characters."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True)
class Column:
    """Printer column of ``kubectl get``; ``wide`` shows it with ``-o wide`` only."""

    name: str
    type: str
    path: str
    wide: bool = False


@dataclass(frozen=True)
class Kind:
    """Kind of resource of this API.

    Attributes:
        name: Name of the kind, as in a manifest.
        plural: Plural name, as in an API path.
        short_name: Short name for kubectl.
        command: Command of the runner, which is part of the names of Jobs.
        spec: Type of the spec.
        status: Type of the status.
        columns: Printer columns of ``kubectl get``.
    """

    name: str
    plural: str
    short_name: str
    command: str
    spec: type[JobSpec]
    status: type[JobStatus]
    columns: tuple[Column, ...]

    def job_name(self, resource: str, attempt: int) -> str:
        """Return the name of the batch Job of an attempt of the named resource."""
        return f"{resource}-{self.command}-{attempt}"


_PHASE = Column("Phase", "string", ".status.phase")
_AGE = Column("Age", "date", ".metadata.creationTimestamp")
_REASON = Column("Reason", "string", ".status.failure.reason", wide=True)

TRAINING_JOB = Kind(
    "TrainingJob", "trainingjobs", "tj", "train", TrainingJobSpec, TrainingJobStatus,
    (
        _PHASE,
        Column("Epoch", "integer", ".status.progress.epoch"),
        Column("mAP", "number", ".status.metrics.mAP"),
        Column("ETA", "integer", ".status.progress.etaSeconds"),
        Column("GPUs", "integer", ".spec.resources.gpus"),
        Column("Attempt", "integer", ".status.attempt"),
        Column("Backbone", "string", ".spec.model.backbone", wide=True),
        Column("Nodes", "integer", ".spec.resources.nodes", wide=True),
        Column("Loss", "number", ".status.progress.loss", wide=True),
        Column("Images", "integer", ".status.dataset.images", wide=True),
        _REASON,
        _AGE,
    ),
)  # fmt: skip
PRUNE_JOB = Kind(
    "PruneJob", "prunejobs", "pj", "prune", PruneJobSpec, PruneJobStatus,
    (
        _PHASE,
        Column("Model", "string", ".spec.model.trainingJobRef.name"),
        Column("Threshold", "number", ".spec.threshold"),
        Column("Params", "string", ".status.pruning.parametersKept"),
        Column("FLOPs", "string", ".status.pruning.flopsKept"),
        _REASON,
        _AGE,
    ),
)  # fmt: skip
EXPORT_JOB = Kind(
    "ExportJob", "exportjobs", "ej", "export", ExportJobSpec, ExportJobStatus,
    (
        _PHASE,
        Column("Model", "string", ".spec.model.trainingJobRef.name"),
        Column("Precisions", "string", ".spec.precisions"),
        Column("mAP", "number", ".status.lowestMAP"),
        Column("Drop", "number", ".status.largestDrop"),
        _REASON,
        _AGE,
    ),
)  # fmt: skip

KINDS: dict[str, Kind] = {kind.name: kind for kind in (TRAINING_JOB, PRUNE_JOB, EXPORT_JOB)}


@dataclass(frozen=True)
class Resource:
    """Resource with its identity, spec and status as typed objects.

    Attributes:
        kind: Kind of the resource.
        namespace: Namespace of the resource.
        name: Name of the resource.
        uid: UID of the resource; empty in local runs until one is assigned.
        generation: Generation of the spec.
        spec: Validated spec.
        status: Status, without fields that this version does not know.
        deleting: True while the resource is being deleted.
        created: ``metadata.creationTimestamp``, or empty.
    """

    kind: Kind
    namespace: str
    name: str
    uid: str
    generation: int
    spec: JobSpec
    status: JobStatus
    deleting: bool = False
    created: str = ""

    @property
    def key(self) -> str:
        """``Kind/name``, for messages. References never cross namespaces, so it needs no namespace."""
        return f"{self.kind.name}/{self.name}"


class InvalidResourceError(ValueError):
    """Error of a resource that violates the schema; its message has field, expected and given value."""


def parse(body: Mapping[str, Any]) -> Resource:
    """Read a resource from its JSON form.

    Raises:
        InvalidResourceError: API version, kind or a field is invalid; the message lists every such field.
    """
    # Nothing is guessed of another version: its fields may mean something else.
    if body.get("apiVersion") != API_VERSION or body.get("kind") not in KINDS:
        raise InvalidResourceError(
            f"expected apiVersion {API_VERSION} and kind {' or '.join(KINDS)}, "
            f"got {body.get('apiVersion')!r} and {body.get('kind')!r}"
        )
    kind = KINDS[body["kind"]]
    metadata = body.get("metadata") or {}
    name = metadata.get("name") or ""
    # As an API server's, for manifests that none has seen: names of files are derived from it.
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise InvalidResourceError(
            f"metadata.name: expected 1 to {MAX_NAME_LENGTH} characters, got {len(name)} ({name!r})"
        )
    if not _NAME.fullmatch(name):
        raise InvalidResourceError(
            "metadata.name: expected lower case letters, digits and '-', first and last a letter or digit, "
            f"got {name!r}"
        )
    try:
        spec = kind.spec.model_validate(body.get("spec") or {})
    except ValidationError as error:
        raise InvalidResourceError(f"{kind.name}/{name}: {explain(error)}") from None
    try:
        status = kind.status.model_validate(body.get("status") or {})
    except ValidationError as error:
        raise InvalidResourceError(f"{kind.name}/{name}: {explain(error, 'status')}") from None
    return Resource(
        kind=kind,
        # The namespace that kubectl takes, too, when nothing names one.
        namespace=metadata.get("namespace") or "default",
        name=name,
        uid=metadata.get("uid") or "",
        generation=metadata.get("generation") or 1,
        spec=spec,
        status=status,
        deleting=bool(metadata.get("deletionTimestamp")),
        created=metadata.get("creationTimestamp") or "",
    )


def explain(error: ValidationError, root: str = "spec") -> str:
    """Return a validation error as one clause per field: path, expected and given value."""
    return "; ".join(f"{path}: {text}" for path, text in clauses(error, root))


def clauses(error: ValidationError, root: str = "spec") -> list[tuple[str, str]]:
    """Return each invalid field: its path, as in ``spec.precisions[0]``, and the expected and given value."""
    result = []
    for item in error.errors():
        path = root + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"])
        # Short: the value at fault may be a whole object.
        got = "" if item["type"] == "missing" else f", got {item['input']!r:.120}"
        # pydantic puts its own words before the message of a rule.
        result.append((path, f"{item['msg'].removeprefix('Value error, ')}{got}"))
    return result


_UNKNOWN_FIELD = "Extra inputs are not permitted"
"""pydantic's words for a field that a model does not have."""


def is_of_newer_version(problem: str) -> bool:
    """Tell whether all that an :class:`InvalidResourceError` complains about are unknown fields.

    The API server stores no field that the CRD does not have: the CRD is then newer than this program.
    """
    return all(_UNKNOWN_FIELD in clause for clause in problem.split("; "))


def crd_name(kind: Kind) -> str:
    """Return the name of the kind's CustomResourceDefinition."""
    return f"{kind.plural}.{GROUP}"
