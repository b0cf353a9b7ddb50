"""References between resources: TrainingJob <- PruneJob <- TrainingJob <- ExportJob, created in any order.

The functions are pure: a lookup function provides the resources. The operator and ``tlt run`` share them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.alias_generators import to_camel

from tlt_api.common import ModelSource
from tlt_api.exportjob import ExportJobSpec
from tlt_api.failures import Reason
from tlt_api.prunejob import PruneJobSpec
from tlt_api.resources import PRUNE_JOB, TRAINING_JOB, Resource
from tlt_api.status import (
    Dependency,
    Inputs,
    Phase,
    ResolvedModel,
    ResolvedRecords,
    TrainingJobStatus,
)
from tlt_api.trainingjob import TrainingJobSpec

_REFERENCES = {"training_job_ref": TRAINING_JOB.name, "prune_job_ref": PRUNE_JOB.name}
"""Fields of a ModelSource that name another resource, and the kind of that resource."""

Lookup = Callable[[str, str], Resource | None]
"""(kind, name) -> the resource of this namespace, or None."""


@dataclass(frozen=True)
class Resolved:
    """Result of a resource whose references are all resolved."""

    inputs: Inputs
    dependency: Dependency | None = None


@dataclass(frozen=True)
class Waiting:
    """Result of a resource with a reference that cannot be resolved yet.

    Attributes:
        message: Description of the missing resource or state.
        dependency: Resource that is waited for, if it exists.
    """

    message: str
    dependency: Dependency | None = None


@dataclass(frozen=True)
class Broken:
    """Result of a resource with a reference that can never be resolved: it fails with this reason."""

    reason: Reason
    message: str
    dependency: Dependency | None = None


def model_source(resource: Resource) -> ModelSource | None:
    """Return the source of the resource's model, or None for a training from scratch."""
    spec = resource.spec
    if isinstance(spec, TrainingJobSpec):
        return spec.model.from_
    if isinstance(spec, PruneJobSpec | ExportJobSpec):
        return spec.model
    return None


def parent_key(source: ModelSource | None) -> tuple[str, str] | None:
    """Return (kind, name) of the resource that a source refers to; None for a file."""
    for field, kind in _REFERENCES.items():
        reference = getattr(source, field, None)
        if reference:
            return kind, reference.name
    return None


def raw_parent(body: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return (kind, name) of the resource that a resource refers to, from JSON whose spec may be invalid."""
    # Any level may be missing or null.
    source = (body.get("spec") or {}).get("model") or {}
    if body["kind"] == TRAINING_JOB.name:
        source = source.get("from") or {}
    for field, kind in _REFERENCES.items():
        name = (source.get(to_camel(field)) or {}).get("name")
        if name:
            return kind, name
    return None


def resolve(resource: Resource, lookup: Lookup) -> Resolved | Waiting | Broken:
    """Resolve the resource's reference, given the other resources of its namespace.

    A parent that does not exist is waited for: it may not have been created yet, or is being replaced
    (``kubectl replace --force``). What counts is the parent of this name at the first attempt.
    """
    source = model_source(resource)
    key = parent_key(source)
    # A training from scratch, or from pretrained weights, waits for nothing.
    if source is None:
        return Resolved(Inputs())
    # A file by its address: it is read when the run starts.
    if key is None:
        return Resolved(Inputs(model=ResolvedModel(uri=source.uri or "", sha256=source.sha256)))
    # Before the parent's state: the members of a cycle would wait for each other forever.
    cycle = _cycle(resource, lookup)
    if cycle:
        return Broken(Reason.DEPENDENCY_CYCLE, f"the references form a circle: {' -> '.join(cycle)}")
    parent = lookup(*key)
    # Resources may be created in any order.
    if parent is None:
        # Recorded when the parent was found: by it, a deletion is told from a parent that is yet to come.
        recorded = resource.status.dependency
        state = f"was deleted (uid {recorded.uid}): create it again" if recorded else "does not exist yet"
        return Waiting(f"waits for {key[0]}/{key[1]}, which {state}", recorded)
    return _from_parent(source, parent, lookup)


def _from_parent(source: ModelSource, parent: Resource, lookup: Lookup) -> Resolved | Waiting | Broken:
    dependency = Dependency(kind=parent.kind.name, name=parent.name, uid=parent.uid)
    # Failed is final: the parent will never deliver. Any other phase may still become Succeeded.
    if parent.status.phase == Phase.FAILED:
        failure = parent.status.failure
        cause = f": {failure.reason}: {failure.message}" if failure else ""
        return Broken(Reason.DEPENDENCY_FAILED, f"{parent.key} failed{cause}", dependency)
    if parent.status.phase != Phase.SUCCEEDED:
        phase = parent.status.phase or Phase.PENDING
        return Waiting(f"waits for {parent.key}, which is {phase}", dependency)
    # A training lists its checkpoints as best and last; a pruning has one model.
    name = source.training_job_ref.checkpoint if source.training_job_ref else "model"
    artifact = parent.status.artifact(name)
    # Succeeded is final too: what it has not delivered by now, it never will.
    if artifact is None:
        names = ", ".join(item.name for item in parent.status.artifacts or ()) or "none"
        return Broken(
            Reason.DEPENDENCY_UNUSABLE,
            f"{parent.key} succeeded without an artifact {name!r}; it has: {names}",
            dependency,
        )
    # Address and digest as the parent reported them: what is read later must be this very file.
    model = ResolvedModel(uri=artifact.uri, sha256=artifact.sha256)
    return Resolved(Inputs(model=model, records=_records(parent, lookup)), dependency)


def _records(resource: Resource | None, lookup: Lookup) -> ResolvedRecords | None:
    """Return the records on which a model was trained: those of the nearest TrainingJob up the chain."""
    while resource is not None:
        status = resource.status
        if isinstance(status, TrainingJobStatus):
            data = status.dataset
            if data and data.records_uri and data.digest:
                return ResolvedRecords(uri=data.records_uri, digest=data.digest)
            return None
        # Recorded at its own first attempt: it counts even if the resources further up are deleted by now.
        if status.inputs and status.inputs.records:
            return status.inputs.records
        key = parent_key(model_source(resource))
        resource = lookup(*key) if key else None
    return None


def _cycle(resource: Resource, lookup: Lookup) -> list[str]:
    # Each resource refers to one parent at most: a chain to follow, not a graph to search.
    path = [resource.key]
    current: Resource | None = resource
    while current is not None:
        key = parent_key(model_source(current))
        if key is None:
            return []
        path.append(f"{key[0]}/{key[1]}")
        # A circle further up that does not contain this resource is for its members to report: this one waits
        # for them to fail.
        if path[-1] in path[:-1]:
            return path if path[-1] == path[0] else []
        current = lookup(*key)
    return []
