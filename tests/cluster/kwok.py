"""Simulated nodes (kwok) for a control plane: thousands of pods that are scheduled and "run" without a
container.

Called by tests and benchmarks of the operator at scale. No root needed.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import patience

from . import binaries, paths, steps
from .control_plane import ControlPlane

STAGES = paths.SOURCES / "kwok-stages.yaml"
"""Ready at once, running at once; pods of Jobs succeed at once."""

_ANNOTATION = "kwok.x-k8s.io/node"


class Kwok:
    """A running simulator."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._nodes = 0

    def add_nodes(
        self, count: int, *, cpu: str = "64", memory: str = "256Gi", pods: int = 250, gpus: int = 8
    ) -> list[str]:
        """Adds nodes of one size and returns their names."""
        names = [f"kwok-{number}" for number in range(self._nodes, self._nodes + count)]
        self._nodes += count
        size = {"cpu": cpu, "memory": memory, "pods": str(pods), "nvidia.com/gpu": str(gpus)}
        self._plane.apply(
            *(
                {
                    "apiVersion": "v1",
                    "kind": "Node",
                    "metadata": {
                        "name": name,
                        "annotations": {_ANNOTATION: "fake"},
                        "labels": {"kubernetes.io/hostname": name, "type": "kwok"},
                    },
                    "status": {"allocatable": size, "capacity": size},
                }
                for name in names
            )
        )

        def are_ready() -> bool:
            self._plane.record.check("kwok")
            condition = 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}'
            states = self._plane.kubectl("get", "nodes", "--selector=type=kwok", "-o", condition).split()
            return states == ["True"] * self._nodes

        steps.until(f"{self._nodes} simulated nodes to be ready", are_ready, patience.SECONDS)
        return names


@contextlib.contextmanager
def kwok(plane: ControlPlane, stages: Path = STAGES) -> Iterator[Kwok]:
    """Runs the simulator for the time of a `with` block. It manages only nodes that `add_nodes` made.

    Args:
        plane: the cluster to simulate nodes of.
        stages: a file of kwok Stages that says how nodes and pods behave.
    """
    plane.record.spawn(
        "kwok",
        binaries.binary("kwok"),
        f"--kubeconfig={plane.kubeconfig}",
        f"--config={stages}",
        "--manage-all-nodes=false",
        f"--manage-nodes-with-annotation-selector={_ANNOTATION}=fake",
        "--node-lease-duration-seconds=40",
    )
    try:
        yield Kwok(plane)
    finally:
        plane.record.stop("kwok")
