"""A real Kubernetes for the tests and the demo, started from its own binaries.

No kind, no minikube, no mocked API server. Two levels: `control_plane()` needs no root and serves the
integration ring; `node()` adds a kubelet with containerd and needs root on Linux. Everything started here is
written down with its pid before anything else happens, so that the next command can undo what a killed one
left behind.

    with control_plane() as plane, node(plane) as machine:
        load_images(machine, build_images())
        machine.kubectl("get", "nodes")
"""

from .control_plane import Cluster, ControlPlane, control_plane
from .errors import ClusterError, UnavailableError
from .existing import ExistingCluster, existing_cluster
from .images import Images, build_images, load_images
from .kwok import Kwok, kwok
from .node import Node, node
from .object_store import ObjectStore, object_store

__all__ = [
    "Cluster",
    "ClusterError",
    "ControlPlane",
    "ExistingCluster",
    "Images",
    "Kwok",
    "Node",
    "ObjectStore",
    "UnavailableError",
    "build_images",
    "control_plane",
    "existing_cluster",
    "kwok",
    "load_images",
    "node",
    "object_store",
]
