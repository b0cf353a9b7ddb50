"""RunSpec: everything that an attempt's pod is told, as one JSON text in an annotation of the pod.

The operator writes it when it creates the Job; the runner reads it from a file (downward API). It holds no
secret: credentials come as environment variables from the Secret that the spec names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import SerializeAsAny, model_validator

from tlt_api.base import API_VERSION, ApiModel
from tlt_api.common import JobSpec
from tlt_api.resources import KINDS, Kind, Resource
from tlt_api.status import Inputs

RUN_SPEC_ANNOTATION = "tlt.dev/run-spec"
RUN_SPEC_PATH = "/etc/tlt/run.json"
VOLUMES_ROOT = "/mnt/tlt"
"""``pvc://claim/path`` is at ``/mnt/tlt/claim/path`` in the pod."""


class Owner(ApiModel):
    """The resource for which the run is made, and on which it reports."""

    api_version: Literal["tlt.dev/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: str
    namespace: str
    name: str
    uid: str


class RunSpec(ApiModel):
    """What to do: the owner's spec (remedies applied), and what its references resolved to."""

    owner: Owner
    """Whose run this is."""
    attempt: int
    """Number of the attempt, from 1."""
    spec: SerializeAsAny[JobSpec]
    """The owner's spec."""
    inputs: Inputs = Inputs()
    """Resolved references."""
    workers: list[str] = []
    """Addresses (host:port) of the pods that train together, by index; empty where there is one. A pod's own
    index is in JOB_COMPLETION_INDEX; index 0 is the chief, which alone reports and publishes."""

    @model_validator(mode="before")
    @classmethod
    def _spec_by_kind(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("spec"), dict):
            return data
        owner = data.get("owner")
        kind = owner.kind if isinstance(owner, Owner) else (owner or {}).get("kind")
        if kind not in KINDS:
            raise ValueError(f"owner.kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        return {**data, "spec": KINDS[kind].spec.model_validate(data["spec"])}

    @property
    def kind(self) -> Kind:
        """The owner's kind."""
        return KINDS[self.owner.kind]

    def to_json(self) -> str:
        """One line of JSON."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The inverse of :meth:`to_json`.

        Raises:
            pydantic.ValidationError: The text is not a RunSpec.
        """
        return cls.model_validate_json(text)


def for_attempt(
    resource: Resource, spec: JobSpec, inputs: Inputs, attempt: int, workers: Sequence[str] = ()
) -> RunSpec:
    """The RunSpec of an attempt: ``spec`` is the resource's, after remedies; ``workers`` by index."""
    owner = Owner(kind=resource.kind.name, namespace=resource.namespace, name=resource.name, uid=resource.uid)
    return RunSpec(owner=owner, attempt=attempt, spec=spec, inputs=inputs, workers=list(workers))
