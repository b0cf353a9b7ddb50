"""RunSpec: the input of an attempt's pod, as one JSON text in an annotation of the pod.

The operator writes it when it creates the Job; the runner reads it from a file (downward API). It contains no
secrets: credentials come as environment variables from the Secret that the spec names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, ValidationInfo, model_validator

from tlt_api.base import API_VERSION, ApiModel
from tlt_api.common import JobSpec, ObjectName
from tlt_api.resources import KINDS, Kind, Resource
from tlt_api.status import Inputs

RUN_SPEC_ANNOTATION = "tlt.dev/run-spec"
RUN_SPEC_PATH = "/etc/tlt/run.json"
"""File of the pod that shows the annotation."""
PROGRESS_SECONDS = 5
"""Shortest time between two reports of progress, unless the operator asks for a longer one."""
PREPARATION_SECONDS = 3600
"""Time for which a run may be silent while it starts, and between its data and its first step: it imports,
downloads weights, builds its model. The operator allows as much to a container that has not reported yet."""
# Not a field of the RunSpec: runners of 0.1.0 refuse fields that they do not know.
PROGRESS_VARIABLE = "TLT_PROGRESS_SECONDS"
"""Environment variable of the pod by which the operator asks for a longer one."""
WRITERS_VARIABLE = "TLT_OUTPUT_WRITERS"
"""Environment variable of the pod with the uids of the other resources of the namespace that have the same
output, separated by commas. A resource that is not among them no longer exists."""
VOLUMES_ROOT = "/mnt/tlt"
"""Mount point of volumes: ``pvc://claim/path`` is at ``/mnt/tlt/claim/path`` in the pod."""


class Owner(ApiModel):
    """Resource for which the run is made, and to whose status it reports."""

    api_version: Literal["tlt.dev/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    """API version of the resource."""
    kind: str
    """Kind of the resource."""
    # Folders of logs and checkpoints are named after the resource: a name must not lead out of the output.
    namespace: ObjectName
    """Namespace of the resource."""
    name: ObjectName
    """Name of the resource."""
    uid: Annotated[str, Field(pattern=r"^[-A-Za-z0-9_]*$")]
    """UID of the resource."""


class RunSpec(ApiModel):
    """Input of one attempt: the owner's spec with remedies applied, and its resolved references."""

    owner: Owner
    """Resource for which the run is made."""
    attempt: int
    """Number of the attempt, from 1."""
    # By its real type: pydantic would write the fields of JobSpec only.
    spec: SerializeAsAny[JobSpec]
    """Spec of the owner, with the remedies of earlier failures applied."""
    inputs: Inputs = Inputs()
    """Files that the owner's references resolved to."""
    workers: list[str] = []
    """Addresses (host:port) of the pods that train together, by index; empty with a single pod. The index of
    a pod is in JOB_COMPLETION_INDEX; index 0 is the chief, which alone reports and publishes."""

    @model_validator(mode="before")
    @classmethod
    def _spec_by_kind(cls, data: Any, info: ValidationInfo) -> Any:
        # The field's type is the base class of all specs: the owner's kind decides which one is read.
        if not isinstance(data, dict) or not isinstance(data.get("spec"), dict):
            return data
        # An Owner when the operator builds the object, a dict when the runner reads it.
        owner = data.get("owner")
        kind = owner.kind if isinstance(owner, Owner) else (owner or {}).get("kind")
        if kind not in KINDS:
            raise ValueError(f"owner.kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        spec = KINDS[kind].spec.model_validate(data["spec"], extra=info.context, context=info.context)
        return {**data, "spec": spec}

    @property
    def kind(self) -> Kind:
        """Kind of the owner."""
        return KINDS[self.owner.kind]

    def to_json(self) -> str:
        """Return the run spec as one line of JSON, which a runner of the release before can read.

        Runners of 0.1.0 refuse fields that they do not know. Fields that the runner has no use for are left
        out, and so is one that is new since that release where it has its default. All others are written,
        defaults too: a runner whose default is another one does what the resource says.
        """
        spec: dict[str, Any] = {"retry": True, "run_policy": True}
        if not self.spec.output.overwrite:
            spec["output"] = {"overwrite": True}
        return self.model_dump_json(by_alias=True, exclude_none=True, exclude={"spec": spec})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a run spec from the text of :meth:`to_json`, of this version or of one beside it.

        Fields that this version does not know are ignored (:func:`unknown_fields` names them), since a newer
        operator wrote them; fields that an older one did not write have their defaults.

        Raises:
            pydantic.ValidationError: The text is not a RunSpec.
        """
        # The context repeats the choice for the spec, which a validator reads by its kind.
        return cls.model_validate_json(text, extra="ignore", context="ignore")


def unknown_fields(run: RunSpec, text: str | bytes) -> list[str]:
    """Return the paths of the fields of a text that :meth:`RunSpec.from_json` ignored when it read it."""
    # What was set while reading is what was known; a field that is unknown is in the text alone.
    return list(
        _missing(json.loads(text), run.model_dump(mode="json", by_alias=True, exclude_unset=True), "")
    )


def _missing(data: Any, known: Any, path: str) -> Iterator[str]:
    if isinstance(data, dict) and isinstance(known, dict):
        for name, value in data.items():
            if name in known:
                yield from _missing(value, known[name], f"{path}.{name}")
            else:
                yield f"{path}.{name}".lstrip(".")
    elif isinstance(data, list) and isinstance(known, list):
        for index, (value, known_value) in enumerate(zip(data, known, strict=True)):
            yield from _missing(value, known_value, f"{path}[{index}]")


def for_attempt(
    resource: Resource,
    spec: JobSpec,
    inputs: Inputs,
    attempt: int,
    workers: Sequence[str] = (),
) -> RunSpec:
    """Return the run spec of an attempt.

    Args:
        resource: Owner of the run.
        spec: Spec of the resource, with remedies applied.
        inputs: Resolved references.
        attempt: Number of the attempt, from 1.
        workers: Addresses of the pods that train together, by index; empty with a single pod.
    """
    owner = Owner(kind=resource.kind.name, namespace=resource.namespace, name=resource.name, uid=resource.uid)
    return RunSpec(
        owner=owner,
        attempt=attempt,
        spec=spec,
        inputs=inputs,
        workers=list(workers),
    )
