"""Batch Job of an attempt, with its pod. Pure: the same attempt always gives the same Job.

The pod carries the user's choices within the ``restricted`` Pod Security Standard.

No ``ttlSecondsAfterFinished`` is set here: a Job must not be removed before its outcome stands in the
resource's status. :mod:`tlt_operator.reconcile.cleanup` sets it then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tlt_api.base import API_VERSION
from tlt_api.common import JobSpec
from tlt_api.runspec import (
    PROGRESS_SECONDS,
    PROGRESS_VARIABLE,
    RUN_SPEC_ANNOTATION,
    RUN_SPEC_PATH,
    VOLUMES_ROOT,
    WRITERS_VARIABLE,
    RunSpec,
)
from tlt_operator.objects import ATTEMPT, KUEUE_PREFIX, OWNER_KIND, OWNER_NAME, OWNER_UID, service
from tlt_operator.settings import Settings

CONTAINER = "runner"
RUNNER_SERVICE_ACCOUNT = "tlt-runner"
"""Not a setting: manifests/base/runner-policy.yaml recognises runners by it."""
USER = 65532
"""User and group of the runner's processes, as in the images (Dockerfile)."""
GRACE_SECONDS = 120
"""Time to write a checkpoint after SIGTERM."""
SHARED_MEMORY = "2Gi"
"""Size limit of /dev/shm, by which NCCL exchanges data between GPUs; container runtimes give 64 MiB."""


def build(
    run: RunSpec,
    settings: Settings,
    owner_labels: Mapping[str, str] | None = None,
    avoided_nodes: Sequence[str] = (),
    progress_seconds: int = PROGRESS_SECONDS,
    sharing_output: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the Job's manifest.

    Args:
        run: Input of the attempt.
        settings: Settings of the installation.
        owner_labels: Labels of the owner, of which those for Kueue are copied to the Job.
        avoided_nodes: Nodes that could not start the run's pods.
        progress_seconds: Shortest time between two reports of progress.
        sharing_output: UIDs of the other resources with the same output.
    """
    owner = run.owner
    name = run.kind.job_name(owner.name, run.attempt)
    pod_labels = _labels(run)
    queue_labels = {key: value for key, value in (owner_labels or {}).items() if key.startswith(KUEUE_PREFIX)}
    spec: dict[str, Any] = {
        # The operator makes the attempts: the Job controller would repeat every failure, unchanged.
        "backoffLimit": 0,
        # A pod that Kubernetes itself took away fails the Job with the reason PodFailurePolicy: even after
        # the pod is gone, it can be told apart from a run that failed.
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                }
            ]
        },
        "template": {
            "metadata": {"labels": pod_labels, "annotations": {RUN_SPEC_ANNOTATION: run.to_json()}},
            "spec": _pod(run, settings, avoided_nodes, _environment(run, progress_seconds, sharing_output)),
        },
    }
    if run.workers:
        # The failure of any pod fails the Job: a collective does not go on without one of its members.
        count = len(run.workers)
        spec |= {"completionMode": "Indexed", "completions": count, "parallelism": count}
        # Gives each pod the host name <job>-<index>.<service>, by which the workers reach each other.
        spec["template"]["spec"]["subdomain"] = service.service_name(name)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": pod_labels | queue_labels,
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": owner.kind,
                    "name": owner.name,
                    "uid": owner.uid,
                    # One controller at most: the operator recognises its own Jobs by it.
                    "controller": True,
                    # True would need permission on the owner's finalizers, and we use nothing that needs it.
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": spec,
    }


def _labels(run: RunSpec) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "tlt-runner",
        "app.kubernetes.io/component": run.kind.command,
        "app.kubernetes.io/managed-by": "tlt-operator",
        OWNER_KIND: run.owner.kind,
        OWNER_NAME: run.owner.name,
        OWNER_UID: run.owner.uid,
        ATTEMPT: str(run.attempt),
    }


def _pod(
    run: RunSpec, settings: Settings, avoided_nodes: Sequence[str], environment: list[dict[str, str]]
) -> dict[str, Any]:
    """Return the pod's spec."""
    template = run.spec.pod_template
    pod: dict[str, Any] = {
        # An attempt is one run: what the next one changes is decided by the operator.
        "restartPolicy": "Never",
        "serviceAccountName": RUNNER_SERVICE_ACCOUNT,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        # Without it, every Service of the namespace adds variables to the runner's environment.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            # The default changes the owner of every file at each mount: minutes on a large data set.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(run, settings, environment)],
        "volumes": _volumes(run),
    }
    options = {
        "imagePullSecrets": [secret.to_wire() for secret in template.image_pull_secrets],
        "nodeSelector": template.node_selector,
        "tolerations": [toleration.to_wire() for toleration in template.tolerations],
        "runtimeClassName": template.runtime_class_name,
        "priorityClassName": template.priority_class_name,
        "affinity": _elsewhere(avoided_nodes),
        # Of the pod, not of the Job: the kubelet counts from the moment it accepts the pod, the Job
        # controller from the Job's creation.
        "activeDeadlineSeconds": run.spec.run_policy.active_deadline_seconds,
    }
    # Empty choices are left out: the cluster's defaults apply.
    return pod | {key: value for key, value in options.items() if value}


def _elsewhere(avoided_nodes: Sequence[str]) -> dict[str, Any]:
    """Return the affinity of a pod that prefers other nodes than these."""
    if not avoided_nodes:
        return {}
    # Preferred only: where no other node has a GPU, the broken one may have been repaired. A field takes one
    # value a term.
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in avoided_nodes]
    preferred = {"weight": 100, "preference": {"matchFields": fields}}
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [preferred]}}


def claims(run: RunSpec) -> dict[str, bool]:
    """Return the PersistentVolumeClaims that a run needs, each with True if the run only reads from it."""
    inputs = run.inputs
    uris = run.spec.referenced_uris()
    uris += [inputs.model.uri] if inputs.model else []
    uris += [inputs.records.uri] if inputs.records else []
    # A claim that is both read and written is mounted once, writable.
    output = _claim(run.spec.output.uri)
    names = {claim for claim in map(_claim, uris) if claim}
    return {name: name != output for name in sorted(names)}


def local_uris(spec: JobSpec) -> list[str]:
    """Return the addresses that only a run without a cluster can reach."""
    return [uri for uri in spec.referenced_uris() if uri.startswith("file:")]


def _claim(uri: str) -> str | None:
    return uri.removeprefix("pvc://").split("/", 1)[0] if uri.startswith("pvc://") else None


def _container(run: RunSpec, settings: Settings, environment: list[dict[str, str]]) -> dict[str, Any]:
    template = run.spec.pod_template
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": template.image or settings.runner_image,
        "imagePullPolicy": template.image_pull_policy,
        "args": [run.kind.command, "--spec", RUN_SPEC_PATH],
        "env": environment,
        "resources": _resources(run.spec),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # Not the end of the log: the message is the runner's report, or empty.
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            {"name": "run", "mountPath": RUN_SPEC_PATH.rsplit("/", 1)[0], "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
            *(
                {"name": f"claim-{i}", "mountPath": f"{VOLUMES_ROOT}/{claim}", "readOnly": read_only}
                for i, (claim, read_only) in enumerate(claims(run).items())
            ),
        ],
    }
    if run.workers:
        container["ports"] = [{"name": service.PORT_NAME, "containerPort": service.PORT}]
    secret = run.spec.storage.s3.secret_ref
    if secret:
        # By name only: the operator needs no right to read Secrets.
        container["envFrom"] = [{"secretRef": {"name": secret.name}}]
    return container


_MOST_WRITERS = 1000
"""UIDs in an environment variable: 37 bytes each, of the 128 KiB that one may have."""


def _environment(run: RunSpec, progress_seconds: int, writers: Sequence[str]) -> list[dict[str, str]]:
    # The root file system is read-only; /tmp is an emptyDir.
    env = {"HOME": "/tmp", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    # Linux starts no program with a longer variable; without this one the runner takes no claim over.
    if len(writers) <= _MOST_WRITERS:
        env[WRITERS_VARIABLE] = ",".join(writers)
    # With the nvidia runtime as a node's default, a pod that requests no GPU may still see all of them.
    if run.spec.resources.gpus == 0:
        env["CUDA_VISIBLE_DEVICES"] = ""
    if progress_seconds != PROGRESS_SECONDS:
        env[PROGRESS_VARIABLE] = str(progress_seconds)
    # Last: what the user sets wins.
    env |= {variable.name: variable.value for variable in run.spec.pod_template.env}
    return [{"name": name, "value": value} for name, value in env.items()]


def _resources(spec: JobSpec) -> dict[str, Any]:
    resources = spec.resources
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    if resources.cpu:
        # No limit: it would slow the run down even on a node with nothing else to do.
        requests["cpu"] = resources.cpu
    if resources.memory:
        # Alike: a pod that uses more than its request is the first to be evicted when its node runs short.
        requests["memory"] = limits["memory"] = resources.memory
    # Kubernetes takes the limit of an extended resource as the request too.
    if resources.gpus:
        limits["nvidia.com/gpu"] = str(resources.gpus)
    return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}


def _volumes(run: RunSpec) -> list[dict[str, Any]]:
    # The annotation of the pod becomes a file: a ConfigMap would be one more object to create and to clean
    # up.
    field = {"fieldPath": f"metadata.annotations['{RUN_SPEC_ANNOTATION}']"}
    item = {"path": RUN_SPEC_PATH.rsplit("/", 1)[1], "fieldRef": field}
    return [
        {"name": "run", "downwardAPI": {"items": [item]}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}},
        *(
            {"name": f"claim-{i}", "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}}
            for i, (claim, read_only) in enumerate(claims(run).items())
        ),
    ]
