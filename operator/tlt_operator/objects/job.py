"""Batch Job of an attempt. Pure: the same attempt always gives the same Job.

No ``ttlSecondsAfterFinished`` is set here: a Job must not be removed before its outcome stands in the
resource's status. :mod:`tlt_operator.reconcile.cleanup` sets it then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tlt_api.base import API_VERSION
from tlt_api.runspec import RUN_SPEC_ANNOTATION, RunSpec
from tlt_operator.objects import ATTEMPT, KUEUE_PREFIX, OWNER_KIND, OWNER_NAME, OWNER_UID, pod, service
from tlt_operator.settings import Settings


def build(run: RunSpec, settings: Settings, owner_labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the Job's manifest. Of the owner's labels, those for Kueue are copied to the Job."""
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
            "spec": pod.build(run, settings),
        },
    }
    if run.workers:
        # The failure of any pod fails the Job: a collective does not go on without one of its members.
        count = len(run.workers)
        spec |= {"completionMode": "Indexed", "completions": count, "parallelism": count}
        # Gives each pod the host name <job>-<index>.<service>, by which the workers reach each other.
        spec["template"]["spec"]["subdomain"] = service.service_name(name)
    deadline = run.spec.run_policy.active_deadline_seconds
    if deadline is not None:
        spec["activeDeadlineSeconds"] = deadline
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
