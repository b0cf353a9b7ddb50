"""Types shared by the three kinds: addresses, storage access, pod options and retry policy."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tlt_api.base import ApiModel, Rule, exactly_one_of

# A name in a path that is neither empty nor "." nor "..". An API server's patterns have no lookahead.
_NAME = r"([^/.\n]|\.[^/.\n]|\.\.[^/\n])[^/\n]*"
_PATH = rf"(/{_NAME})*/?"
# Names of claims and buckets as Kubernetes and S3 allow them; further limits are theirs to report.
_CLAIM = rf"pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?{_PATH}"
_BUCKET = rf"s3://[a-z0-9][-a-z0-9.]*{_PATH}"
URI_PATTERN = rf"^({_CLAIM}|{_BUCKET}|file:///({_NAME}{_PATH})?)$"
CLUSTER_URI_PATTERN = rf"^({_CLAIM}|{_BUCKET})$"
"""Addresses that a pod can use. file:// is excluded: the file system of a pod is lost with the pod."""
# Without "user:password@": a credential in a spec could be read by everyone who may read the resource.
_HTTPS = r"https://[A-Za-z0-9][-A-Za-z0-9.]*(:[0-9]+)?/[^\s#@]+"
WEIGHTS_URI_PATTERN = rf"^({_CLAIM}|{_BUCKET}|{_HTTPS}|file:///({_NAME}{_PATH})?)$"
CLUSTER_WEIGHTS_URI_PATTERN = rf"^({_CLAIM}|{_BUCKET}|{_HTTPS})$"
"""Addresses of pretrained weights, which can be public files besides."""
RELATIVE_PATTERN = rf"^(\.|{_NAME}){_PATH}$"
"""Relative paths. A leading ``.`` is their root, for data sets whose images are in the root itself."""


def is_below_root(path: str) -> bool:
    """Tell whether a path names something below its root: no name in it is empty, ``.`` or ``..``.

    Args:
        path: Path after the root's slash, without a trailing slash.
    """
    # `..` would leave the claim or bucket; `//` and `.` are names of their own on S3 and nothing on a volume.
    return not {"", ".", ".."}.intersection(path.split("/"))


def _address(value: Any) -> Any:
    """Refuse an address that leaves its root with a sentence; a pattern can only show itself."""
    # The path of a public address is its server's affair.
    given = isinstance(value, str) and not value.startswith("https://")
    path = value.partition("://")[2].partition("/")[2] if given else ""
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


# Every text and list has a maximum, also those without one of their own (crdgen): the API server estimates
# the cost of CEL rules by it, and refuses a CRD whose rules could cost too much.
Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Uri = Annotated[str, Field(pattern=URI_PATTERN, max_length=1024), BeforeValidator(_address)]
WeightsUri = Annotated[str, Field(pattern=WEIGHTS_URI_PATTERN, max_length=1024), BeforeValidator(_address)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
RelativePath = Annotated[
    str, Field(pattern=RELATIVE_PATTERN, max_length=512), BeforeValidator(_relative_path)
]
# A part of Kubernetes' quantities: exponents and the units beyond Ti are left out.
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$", max_length=32)]


class TrainingJobReference(ApiModel):
    """Reference to a model of a TrainingJob in the same namespace."""

    name: ObjectName
    """Name of the TrainingJob."""
    checkpoint: Literal["best", "last"] = "best"
    """Checkpoint to use: best (highest mAP on the validation images) or last (end of the training)."""


class PruneJobReference(ApiModel):
    """Reference to the model of a PruneJob in the same namespace."""

    name: ObjectName
    """Name of the PruneJob."""


class ModelSource(ApiModel):
    """Source of a model: another resource in the same namespace, which is waited for, or a file."""

    training_job_ref: TrainingJobReference | None = None
    """TrainingJob in the same namespace whose model is used; the job waits until it has succeeded."""
    prune_job_ref: PruneJobReference | None = None
    """PruneJob in the same namespace whose model is used; the job waits until it has succeeded."""
    uri: Uri | None = None
    """Address of a .keras model file written by this product."""
    sha256: Sha256 | None = None
    """Expected SHA-256 of the file at uri, in hexadecimal; a different file is refused."""

    rules = (
        exactly_one_of("training_job_ref", "prune_job_ref", "uri", hint="name one source of the model"),
        Rule(
            # A parent's artifact has a digest in its status, which is compared in any case.
            cel="!has(self.sha256) || has(self.uri)",
            check=lambda self: self.sha256 is None or self.uri is not None,
            message="expected sha256 only with uri: a referenced resource records its own digest",
            given="'sha256 without uri'",
        ),
    )


class Output(ApiModel):
    """Output location of the job."""

    uri: Uri
    """Output folder: pvc://claim/path, s3://bucket/prefix, or file:///path in local runs. Empty, . and ..
    names in the path are refused."""
    overwrite: bool = False
    """Replace the files of another run at output.uri. Without it, an output that holds the files of another
    run is refused with OutputTaken."""


class SecretReference(ApiModel):
    """Reference to a Secret in the same namespace."""

    name: ObjectName
    """Name of the Secret."""


class S3Storage(ApiModel):
    """Connection to an S3-compatible object store."""

    endpoint: Annotated[str, Field(pattern=r"^https?://.+$", max_length=512)] | None = None
    """URL of an S3-compatible server. Defaults to AWS."""
    region: Annotated[str, Field(max_length=63)] = "us-east-1"
    """Region of the S3 buckets."""
    secret_ref: SecretReference | None = None
    """Secret with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Defaults to the pod's own
    identity."""


class Storage(ApiModel):
    """Access to object stores."""

    s3: S3Storage = S3Storage()
    """Connection to the object store behind s3:// addresses."""


class Resources(ApiModel):
    """Compute resources of the pod."""

    gpus: Annotated[int, Field(ge=0, le=16)] = 1
    """Number of GPUs (nvidia.com/gpu) of the pod; 0 runs on the CPU."""
    cpu: Quantity | None = None
    """CPU request of the pod, as a Kubernetes quantity, for example "8" or 500m."""
    memory: Quantity | None = None
    """Memory request and limit of the pod, as a Kubernetes quantity, for example 32Gi."""


class CpuResources(Resources):
    """Compute resources of a pod that runs on the CPU by default."""

    gpus: Annotated[int, Field(ge=0, le=16)] = 0
    """Number of GPUs (nvidia.com/gpu) of the pod; 0 runs on the CPU. The engine builder tensorrt needs at
    least 1."""


class TrainingResources(Resources):
    """Compute resources of each pod of a TrainingJob."""

    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of pods that train together, each with resources.gpus GPUs. All of them must be able to write to
    the output."""


class Remedies(ApiModel):
    """Changes that a retry makes, so that it does not fail in the same way."""

    out_of_memory: Literal["HalveBatch", "None"] = "HalveBatch"
    """Remedy after OutOfMemory. HalveBatch halves batchSizePerGPU (down to 1) and accumulates gradients over
    more batches, so that the updates stay the same."""
    nan_loss: Literal["LowerLearningRate", "None"] = "LowerLearningRate"
    """Remedy after NaNLoss. LowerLearningRate divides the maximum and minimum learning rate by 10."""


class RunPolicy(ApiModel):
    """Retries, time limits and clean-up of a job. A change applies to the next attempt."""

    max_retries: Annotated[int, Field(ge=0, le=20)] = 2
    """Maximum number of retries after failures of the run itself. Trouble of the surroundings (storage that
    is away, a node that cannot start the pod) does not count, nor does an interruption (a preempted pod, a
    lost node) unless it is the eleventh in a row without progress."""
    start_timeout_seconds: Annotated[int, Field(ge=1)] | None = None
    """Maximum time without a running pod, in seconds: in a queue, for a node, for an image, a Secret or
    storage. After it the resource fails with what it waited for. Unlimited if absent."""
    active_deadline_seconds: Annotated[int, Field(ge=1)] | None = None
    """Maximum time that a pod of an attempt runs, in seconds, counted from the moment a node accepts it.
    Waiting for a node or in a queue does not count. Unlimited if absent."""
    stall: Literal["Report", "Restart"] = "Report"
    """Reaction to a run without progress for longer than it had announced. Report sets the condition Stalled;
    Restart also ends the attempt, and the next one resumes from the last checkpoint."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)] | None = None
    """Time in seconds after which the batch Jobs and pods of finished attempts are deleted; the resource
    itself stays. They are kept if absent."""
    remedies: Remedies = Remedies()
    """Changes that a retry makes, so that it does not fail in the same way."""


class EnvVar(ApiModel):
    """Environment variable of the runner's container."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
    """Name of the environment variable."""
    value: Annotated[str, Field(max_length=1024)]
    """Value of the environment variable. Credentials belong in spec.storage, never here."""


class Toleration(ApiModel):
    """Toleration of node taints, as in the spec of a pod."""

    # A label key: prefix (253 characters), slash and name (63).
    key: Annotated[str, Field(max_length=317)] | None = None
    """Taint key to match. Absent with operator Exists, it matches all keys."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Comparison with the taint: Equal compares key and value, Exists only the key."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Taint value to match, with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect to match. Defaults to all effects."""
    toleration_seconds: int | None = None
    """Time in seconds for which a NoExecute taint is tolerated. Unlimited if absent."""


class PodTemplate(ApiModel):
    """Configurable parts of the runner's pod.

    The operator sets all others, so that the pod meets the restricted Pod Security Standard.
    """

    image: Annotated[str, Field(max_length=512)] | None = None
    """Runner image. Defaults to the image that the operator is configured with."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Pull policy of the runner image."""
    image_pull_secrets: Annotated[list[SecretReference], Field(max_length=8)] = []
    """Secrets with credentials for the registry of the runner image."""
    node_selector: Annotated[dict[str, str], Field(max_length=32)] = {}
    """Labels that a node must have to run the pod."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = []
    """Tolerations of node taints, as in the spec of a pod."""
    env: Annotated[list[EnvVar], Field(max_length=64)] = []
    """Additional environment variables of the runner's container."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pod, for example nvidia."""
    priority_class_name: Annotated[str, Field(max_length=253)] | None = None
    """PriorityClass of the pod."""


class JobSpec(ApiModel):
    """Fields shared by the specs of all kinds."""

    output: Output
    """Output location of the job."""
    storage: Storage = Storage()
    """Access to object stores."""
    resources: Resources = Resources()
    """Compute resources of the pod."""
    suspend: bool = False
    """Suspend the run, after a training has written a checkpoint. Set to false to resume it."""
    retry: Annotated[int, Field(ge=0)] = 0
    """Number to raise for another attempt: a resource that has failed starts its next attempt, which resumes
    from the last checkpoint, and one that waits for its next attempt starts it at once."""
    run_policy: RunPolicy = RunPolicy()
    """Retries, time limits and clean-up of the job."""
    pod_template: PodTemplate = PodTemplate()
    """Image, environment and scheduling of the pod."""

    def referenced_uris(self) -> list[str]:
        """Return every storage address that the run reads or writes; the pod's volumes follow from them."""
        # By walking the JSON: a new field of the name `uri` gets its volume without being listed here.
        return sorted(uri for uri in set(_uris(self.to_wire())) if not uri.startswith("https://"))


def _uris(node: Any) -> list[str]:
    if isinstance(node, dict):
        uris = [node["uri"]] if isinstance(node.get("uri"), str) else []
        return uris + [uri for value in node.values() for uri in _uris(value)]
    if isinstance(node, list):
        return [uri for value in node for uri in _uris(value)]
    return []
