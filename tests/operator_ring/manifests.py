"""Smallest valid resources, Jobs and pods, as the API server would return them."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

from tlt_api import times

START = datetime(2026, 1, 1, tzinfo=UTC)
SHA = "a" * 64
BEST = {"artifacts": [{"name": "best", "uri": "pvc://runs/best", "sha256": SHA, "sizeBytes": 7}]}
"""Report of a run that made a model."""

_SPECS: dict[str, dict[str, Any]] = {
    "TrainingJob": {
        "dataset": {
            "uri": "pvc://data/traffic",
            "targetClassMapping": {"car": "car"},
            "imageSize": {"width": 64, "height": 64},
        },
        "output": {"uri": "pvc://runs/traffic"},
    },
    "PruneJob": {
        "model": {"trainingJobRef": {"name": "traffic"}},
        "threshold": 0.5,
        "output": {"uri": "pvc://runs/pruned"},
    },
    "ExportJob": {
        "model": {"trainingJobRef": {"name": "traffic"}},
        "output": {"uri": "pvc://runs/exported"},
    },
}


def resource(kind: str = "TrainingJob", name: str = "traffic", **spec: Any) -> dict[str, Any]:
    """Return a manifest with an output of its own; ``spec`` overrides top-level fields of its spec."""
    uri = _SPECS[kind]["output"]["uri"] + ("" if name == "traffic" else f"/{name}")
    spec = {"output": {"uri": uri}, **spec}
    return {
        "apiVersion": "tlt.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {**_SPECS[kind], **spec},
    }


DIGITS = resource(
    name="digits",
    dataset={
        "uri": "pvc://tlt-data/digits",
        "targetClassMapping": {"one": "one"},
        "imageSize": {"width": 192, "height": 128},
    },
    output={"uri": "pvc://tlt-data/runs/digits"},
)
"""The TrainingJob whose fields the tests of the API change one by one."""


def with_field(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy of a manifest with another value at a dotted path."""
    body = copy.deepcopy(body)
    node = body
    *parents, last = path.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return body


def made(namespace: str, kind: str = "TrainingJob", name: str = "traffic", **spec: Any) -> dict[str, Any]:
    """Return a manifest for a namespace, without GPUs unless ``spec`` has some."""
    manifest = resource(kind, name, **{"resources": {"gpus": 0}, **spec})
    manifest["metadata"]["namespace"] = namespace
    return manifest


def job_condition(kind: str, reason: str = "", message: str = "") -> dict[str, Any]:
    """Return a True condition of a Job."""
    return {
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": times.to_wire(START),
    }


def ended(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    """Return the state of a container that ended."""
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    """Return the state of a container that waits."""
    return {"waiting": {"reason": reason, "message": message}}
