"""What the three kinds share: where things are, what a pod may use, how a run may be retried."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tlt_api.base import ApiModel, Rule, exactly_one_of

# A name in a path that is neither empty nor "." nor "..". An API server's patterns have no lookahead.
_NAME = r"([^/.\n]|\.[^/.\n]|\.\.[^/\n])[^/\n]*"
_PATH = rf"(/{_NAME})*/?"
_CLAIM = rf"pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?{_PATH}"
_BUCKET = rf"s3://[a-z0-9][-a-z0-9.]*{_PATH}"
URI_PATTERN = rf"^({_CLAIM}|{_BUCKET}|file:///({_NAME}{_PATH})?)$"
CLUSTER_URI_PATTERN = rf"^({_CLAIM}|{_BUCKET})$"
"""In a cluster there is no file://: a pod has no folder of its own to keep."""
RELATIVE_PATTERN = rf"^(\.|{_NAME}){_PATH}$"
"""A leading ``.`` is the root that the path is relative to: data sets with images in their root say ``.``."""


def is_below_root(path: str) -> bool:
    """Tell whether a path names something below its root: no name in it is empty, ``.`` or ``..``.

    Args:
        path: Path after the root's slash, without a trailing slash.
    """
    return not {"", ".", ".."}.intersection(path.split("/"))


def _address(value: Any) -> Any:
    """Refuse an address that leaves its root with a sentence; a pattern can only show itself."""
    path = value.partition("://")[2].partition("/")[2] if isinstance(value, str) else ""
    if path and not is_below_root(path.removesuffix("/")):
        raise ValueError(
            "expected an address without empty ('//'), '.' and '..' names in its path: write out the path "
            "below the claim, bucket or root"
        )
    return value


def _relative_path(value: Any) -> Any:
    if isinstance(value, str) and not re.search(RELATIVE_PATTERN, value):
        raise ValueError(
            "expected a path relative to the data set's uri, without empty ('//'), '.' and '..' names: write "
            "out the path below that uri"
        )
    return value


Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Uri = Annotated[str, Field(pattern=URI_PATTERN, max_length=1024), BeforeValidator(_address)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
RelativePath = Annotated[
    str, Field(pattern=RELATIVE_PATTERN, max_length=512), BeforeValidator(_relative_path)
]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$", max_length=32)]


class TrainingJobReference(ApiModel):
    """A TrainingJob of the same namespace, and which of its models."""

    name: ObjectName
    """Name of the TrainingJob."""
    checkpoint: Literal["best", "last"] = "best"
    """The model with the best mAP, or the one of the last epoch."""


class PruneJobReference(ApiModel):
    """A PruneJob of the same namespace."""

    name: ObjectName
    """Name of the PruneJob."""


class ModelSource(ApiModel):
    """Where a model comes from: another resource of this namespace, which is waited for, or a file."""

    training_job_ref: TrainingJobReference | None = None
    """The model that a TrainingJob makes."""
    prune_job_ref: PruneJobReference | None = None
    """The model that a PruneJob makes."""
    uri: Uri | None = None
    """A .keras model file written by this product."""
    sha256: Sha256 | None = None
    """Expected digest of the file at uri; a different file is refused."""

    rules = (
        exactly_one_of("training_job_ref", "prune_job_ref", "uri", hint="name one source of the model"),
        Rule(
            cel="!has(self.sha256) || has(self.uri)",
            check=lambda self: self.sha256 is None or self.uri is not None,
            message="expected sha256 only beside uri: for a reference the digest is that resource's own",
            given="'sha256 without uri'",
        ),
    )


class Output(ApiModel):
    """Where results are written."""

    uri: Uri
    """Folder for the results: pvc://claim/path, s3://bucket/prefix, or file:///path in local runs. Names in
    the path that are empty, . or .. are refused."""


class SecretReference(ApiModel):
    """A Secret of the same namespace."""

    name: ObjectName
    """Name of the Secret."""


class S3Storage(ApiModel):
    """How s3:// addresses are reached."""

    endpoint: Annotated[str, Field(pattern=r"^https?://.+$", max_length=512)] | None = None
    """Endpoint of an S3-compatible server; absent means AWS."""
    region: Annotated[str, Field(max_length=63)] = "us-east-1"
    """Region."""
    secret_ref: SecretReference | None = None
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; absent means the pod's own identity."""


class Storage(ApiModel):
    """Access to object stores."""

    s3: S3Storage = S3Storage()
    """The S3 server for s3:// addresses."""


class Resources(ApiModel):
    """What the pod gets."""

    gpus: Annotated[int, Field(ge=0, le=16)] = 1
    """Number of nvidia.com/gpu; 0 runs on the CPU."""
    cpu: Quantity | None = None
    """CPU request, for example "8"."""
    memory: Quantity | None = None
    """Memory request and limit, for example 32Gi."""


class CpuResources(Resources):
    """What the pod of a job gets that works on the CPU unless it is told otherwise."""

    gpus: Annotated[int, Field(ge=0, le=16)] = 0
    """Number of nvidia.com/gpu; an engine of builder tensorrt needs one."""


class TrainingResources(Resources):
    """What the pods of a TrainingJob get: each the same."""

    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Pods that train together, each with resources.gpus; the output must be writable from all of them."""


class Remedies(ApiModel):
    """What a retry changes, so that it does not fail the same way."""

    out_of_memory: Literal["HalveBatch", "None"] = "HalveBatch"
    """HalveBatch halves batchSizePerGPU (down to 1) and accumulates the gradient of as many parts more: the
    updates stay the same."""
    nan_loss: Literal["LowerLearningRate", "None"] = "LowerLearningRate"
    """LowerLearningRate divides the maximum and minimum learning rate by 10."""


class RunPolicy(ApiModel):
    """How often and how long a job may run, and when it is cleaned up."""

    max_retries: Annotated[int, Field(ge=0, le=20)] = 2
    """Further attempts after a retryable failure. An interrupted attempt does not count."""
    active_deadline_seconds: Annotated[int, Field(ge=1)] | None = None
    """Longest time that one attempt may run."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)] | None = None
    """The batch Jobs and pods of finished attempts are removed after this time; the resource itself stays."""
    remedies: Remedies = Remedies()
    """What a retry changes."""


class EnvVar(ApiModel):
    """An environment variable of the runner's container."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
    """Name."""
    value: Annotated[str, Field(max_length=1024)]
    """Value. For secrets use spec.storage, never a plain value."""


class Toleration(ApiModel):
    """A taint that the pod tolerates, as in a pod's spec."""

    key: Annotated[str, Field(max_length=317)] | None = None
    """Taint key; absent with operator Exists means all."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """How value is compared."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Taint value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; absent means all."""
    toleration_seconds: int | None = None
    """How long NoExecute is tolerated."""


class PodTemplate(ApiModel):
    """What of the pod the user may choose; the rest is ours, so that it stays restricted."""

    image: Annotated[str, Field(max_length=512)] | None = None
    """Runner image; absent means the operator's default."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When the image is pulled."""
    image_pull_secrets: Annotated[list[SecretReference], Field(max_length=8)] = []
    """Secrets for the image's registry."""
    node_selector: Annotated[dict[str, str], Field(max_length=32)] = {}
    """Labels that the node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = []
    """Taints that the pod tolerates."""
    env: Annotated[list[EnvVar], Field(max_length=64)] = []
    """Further environment variables."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass, for example nvidia."""
    priority_class_name: Annotated[str, Field(max_length=253)] | None = None
    """PriorityClass."""


class JobSpec(ApiModel):
    """What the specs of all kinds share."""

    output: Output
    """Where results are written."""
    storage: Storage = Storage()
    """Access to object stores."""
    resources: Resources = Resources()
    """What the pod gets."""
    suspend: bool = False
    """True stops the run, after a checkpoint where there is one; false lets it go on."""
    run_policy: RunPolicy = RunPolicy()
    """Retries, deadline, clean-up."""
    pod_template: PodTemplate = PodTemplate()
    """Image and placement of the pod."""

    def referenced_uris(self) -> list[str]:
        """Every address that the run reads or writes: the pod's volumes are derived from it."""
        return sorted(set(_uris(self.to_wire())))


def _uris(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["uri"]] if isinstance(node.get("uri"), str) else []
        return own + [uri for value in node.values() for uri in _uris(value)]
    if isinstance(node, list):
        return [uri for value in node for uri in _uris(value)]
    return []
