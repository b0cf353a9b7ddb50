"""The batch/v1 Job of an attempt. Pure: the same attempt always gives the same Job.

No ``ttlSecondsAfterFinished`` is set here: a Job must not vanish before its outcome stands in the resource's
status. :mod:`tlt_operator.reconcile.cleanup` sets it then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tlt_api.base import API_VERSION
from tlt_api.runspec import RUN_SPEC_ANNOTATION, RunSpec
from tlt_operator.build import pod, workers
from tlt_operator.settings import Settings

OWNER_KIND = "tlt.dev/owner-kind"
OWNER_NAME = "tlt.dev/owner-name"
OWNER_UID = "tlt.dev/owner-uid"
ATTEMPT = "tlt.dev/attempt"
KUEUE = "kueue.x-k8s.io/"
"""Prefix of the labels by which Kueue admits a Job (queue-name, priority-class)."""


def build(run: RunSpec, settings: Settings, owner_labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The Job's manifest; of the owner's labels those for Kueue are handed on."""
    owner = run.owner
    name = f"{owner.name}-{run.kind.command}-{run.attempt}"
    labels = _labels(run)
    queue = {key: value for key, value in (owner_labels or {}).items() if key.startswith(KUEUE)}
    spec: dict[str, Any] = {
        "backoffLimit": 0,
        # A pod that Kubernetes itself took away ends the Job with a reason of its own (PodFailurePolicy),
        # which can be told from a failed run after the pod is gone.
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                }
            ]
        },
        "template": {
            "metadata": {"labels": labels, "annotations": {RUN_SPEC_ANNOTATION: run.to_json()}},
            "spec": pod.build(run, settings),
        },
    }
    if run.workers:
        # Any pod's failure is the Job's: a collective without one of its members does not go on.
        count = len(run.workers)
        spec |= {"completionMode": "Indexed", "completions": count, "parallelism": count}
        spec["template"]["spec"]["subdomain"] = workers.service_name(name)
    deadline = run.spec.run_policy.active_deadline_seconds
    if deadline is not None:
        spec["activeDeadlineSeconds"] = deadline
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": labels | queue,
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": owner.kind,
                    "name": owner.name,
                    "uid": owner.uid,
                    "controller": True,
                    # True would need permission on the owner's finalizers, for nothing that we use.
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
