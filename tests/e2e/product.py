"""The product on a cluster, as the e2e tests see it: reading, waiting, and resources that take seconds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import patience
from cluster import paths
from cluster.existing import ExistingCluster
from cluster.images import Images
from cluster.node import Node
from demo import install, loader
from tlt_runner.data.sample_digits import Scenes

TINY = Scenes(images=24, width=96, height=96, seed=3)
CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FINISHED = ("Succeeded", "Failed")


@dataclass(frozen=True)
class Product:
    """A cluster with the operator running on it."""

    cluster: Node | ExistingCluster
    images: Images

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        """The object as JSON data."""
        body = self.cluster.api.get(kind, name, namespace)
        assert body is not None, f"expected {kind} {name} in {namespace}, but it does not exist"
        return body

    def list(self, kind: str, namespace: str, labels: str | None = None) -> list[dict[str, Any]]:
        """Objects of a kind as JSON data, those that a label selector chooses."""
        return self.cluster.api.list(kind, namespace, labels)

    def wait(
        self,
        kind: str,
        name: str,
        namespace: str,
        until: Callable[[dict[str, Any]], bool],
        limit_s: float = patience.MINUTES,
    ) -> dict[str, Any]:
        """The status, once the condition holds for it.

        Raises:
            AssertionError: It does not within the limit, or the resource has finished without it; the message
                shows the last status.
        """
        deadline = time.monotonic() + limit_s
        while True:
            status: dict[str, Any] = self.get(kind, name, namespace).get("status", {})
            if until(status):
                return status
            # A finished resource stays as it is: nothing to wait for.
            in_time = time.monotonic() < deadline and status.get("phase") not in FINISHED
            assert in_time, f"{kind}/{name}: {json.dumps(status, indent=1)}"
            time.sleep(1)

    def wait_finished(
        self, kind: str, name: str, namespace: str, limit_s: float = patience.MINUTES
    ) -> dict[str, Any]:
        """The status of a finished resource."""
        return self.wait(kind, name, namespace, lambda status: status.get("phase") in FINISHED, limit_s)


def make_namespace(product: Product, name: str, scenes: Scenes = TINY) -> str:
    """A namespace opened to jobs, with digits scenes at pvc://tlt-data/digits."""
    install.namespace(product.cluster, name, "tlt-data")
    folder: Path = paths.CACHE / "e2e" / f"digits-{scenes.images}-{scenes.width}-{scenes.seed}"
    loader.load(product.cluster, product.images.runner, name, "tlt-data", folder, scenes)
    return name


def training(name: str, namespace: str, epochs: int = 1, **changes: Any) -> dict[str, Any]:
    """A TrainingJob that takes seconds of work. ``changes`` replace parts of the spec."""
    spec: dict[str, Any] = {
        "dataset": {
            "uri": "pvc://tlt-data/digits",
            "targetClassMapping": {name: name for name in CLASSES},
            "imageSize": {"width": 96, "height": 96},
        },
        "model": {
            "backbone": "resnet10",
            "widthMultiplier": 0.125,
            "anchors": {"scales": [24, 40], "ratios": [1.0]},
            "proposals": {
                "training": {"preNms": 60, "postNms": 20},
                "inference": {"preNms": 60, "postNms": 20},
            },
            "roi": {"miniBatch": 16},
            "maxObjects": 16,
        },
        "training": {"epochs": epochs, "batchSizePerGPU": 4},
        "output": {"uri": f"pvc://tlt-data/runs/{name}"},
        "resources": {"gpus": 0},
    }
    return resource("TrainingJob", name, namespace, spec | changes)


def resource(kind: str, name: str, namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Return a resource of ours as JSON data."""
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "tlt.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
