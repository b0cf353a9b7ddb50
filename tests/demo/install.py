"""Installs the product on a cluster as a user would: by kustomize, from manifests/. For demo and tests."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

import patience
from cluster import paths, steps
from cluster.control_plane import Cluster
from cluster.existing import ExistingCluster
from cluster.images import Images
from cluster.node import Node

ROOT = Path(__file__).parents[2]
WORK = paths.CACHE / "demo"


def operator(cluster: Cluster, images: Images) -> None:
    """The operator, from manifests/base, with these images."""
    folder = WORK / "operator"
    folder.mkdir(parents=True, exist_ok=True)
    runner = [
        {"op": "replace", "path": "/spec/template/spec/containers/0/env/0/value", "value": images.runner}
    ]
    name, tag = images.operator.rsplit(":", 1)
    kustomization = {
        "resources": [os.path.relpath(ROOT / "manifests" / "base", folder)],
        "images": [{"name": "tlt-operator", "newName": name, "newTag": tag}],
        "patches": [
            {"target": {"kind": "Deployment", "name": "tlt-operator"}, "patch": yaml.safe_dump(runner)}
        ],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    steps.say("installing the operator from manifests/base")
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", folder)
    rollout = ("rollout", "status", "deployment/tlt-operator", "-n", "tlt-system", patience.KUBECTL)
    cluster.kubectl(*rollout)


def namespace(cluster: Node | ExistingCluster, name: str, claim: str) -> Path | None:
    """A namespace with the runner's rights and a volume; the volume's folder where it is here."""
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": restricted}})
    folder = WORK / "namespace"
    folder.mkdir(parents=True, exist_ok=True)
    base = os.path.relpath(ROOT / "manifests" / "namespace", folder)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"namespace": name, "resources": [base]}))
    cluster.kubectl("apply", "--server-side", "-k", folder)
    return cluster.persistent_volume(claim, name)
