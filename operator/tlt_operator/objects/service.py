"""Headless Service by which the pods of one attempt reach each other. Pure.

Kubernetes gives pod ``<index>`` of an Indexed Job the host name ``<job>-<index>``; a headless Service,
which is the pods' subdomain, makes it an address. Addresses follow from the attempt, before anything
exists.

The Service belongs to the Job and is created once the Job has been observed. It is deleted together with the
Job, by suspension and TTL too, and the operator needs no right to delete Services. A foreground deletion
removes it at its start, before the pods have ended: pods that are connected keep their connections.
"""

from __future__ import annotations

from typing import Any

from tlt_api.common import JobSpec, TrainingResources
from tlt_operator.snapshot import JobState

PORT = 2222
"""Port of the workers' own gRPC server."""
PORT_NAME = "workers"
_JOB_UID_LABEL = "batch.kubernetes.io/controller-uid"


def service_name(job: str) -> str:
    """Return the name of a Job's Service. A Service's name begins with a letter, a Job's name need not."""
    return f"tlt-{job}"


def addresses(job: str, spec: JobSpec) -> list[str]:
    """Return ``host:port`` of the pods that train together, by index; an empty list for a single pod."""
    nodes = spec.resources.nodes if isinstance(spec.resources, TrainingResources) else 1
    # A single pod has nobody to reach, and needs no Service.
    if nodes == 1:
        return []
    return [f"{job}-{index}.{service_name(job)}:{PORT}" for index in range(nodes)]


def build(namespace: str, job: JobState) -> dict[str, Any]:
    """Return the manifest of the headless Service of a Job that has been observed."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": service_name(job.name),
            "namespace": namespace,
            "labels": {
                "app.kubernetes.io/name": "tlt-runner",
                "app.kubernetes.io/managed-by": "tlt-operator",
            },
            "ownerReferences": [
                {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "name": job.name,
                    "uid": job.uid,
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": {
            # Headless: the names resolve to the pods' own addresses, and any port of a pod can be reached.
            "clusterIP": "None",
            # Workers connect to each other before any of them is ready.
            "publishNotReadyAddresses": True,
            # By the Job's uid: pods of an earlier Job of this name are not among the addresses.
            "selector": {_JOB_UID_LABEL: job.uid},
            "ports": [{"name": PORT_NAME, "port": PORT, "targetPort": PORT, "protocol": "TCP"}],
        },
    }
