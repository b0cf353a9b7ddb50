"""Session fixtures for the integration and e2e rings: `pytest_plugins = ["cluster.fixtures"]`.

A cluster is private to one test run and ends with it. For work on e2e tests, TLT_REUSE_CLUSTER names one that
`python -m cluster up` keeps. Where KUBECONFIG, TLT_OPERATOR_IMAGE and TLT_RUNNER_IMAGE name a cluster and
images for it, e2e tests run there. A machine that lacks an ability skips, and the reason says which.
"""

import contextlib
import os
from collections.abc import Iterator

import pytest

from . import existing
from .__main__ import attach
from .control_plane import ControlPlane, control_plane
from .errors import ClusterError, UnavailableError
from .images import Images, load_images
from .node import Node, node
from .object_store import ObjectStore, object_store


@contextlib.contextmanager
def skipping() -> Iterator[None]:
    """Turns a missing ability of this machine into a skip that names it. Failures stay failures."""
    try:
        yield
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def control_plane_cluster() -> Iterator[ControlPlane]:
    """A real API server with its controllers and scheduler; no node."""
    with contextlib.ExitStack() as stack:
        with skipping():
            plane = stack.enter_context(control_plane())
        yield plane


@pytest.fixture(scope="session")
def node_cluster() -> Iterator[Node | existing.ExistingCluster]:
    """A cluster whose node can run the project's images (`cluster_images`)."""
    name = os.environ.get("TLT_REUSE_CLUSTER")
    if name:
        _, machine = attach(name)
        if machine is None or not machine.is_healthy():
            raise ClusterError(
                f"TLT_REUSE_CLUSTER={name}, but no such node is running: "
                f"`python -m cluster up --level node --name {name}` starts it"
            )
        yield machine
        return
    if existing.is_named():
        yield existing.existing_cluster()
        return
    with contextlib.ExitStack() as stack:
        with skipping():
            plane = stack.enter_context(control_plane(with_node=True))
            machine = stack.enter_context(node(plane))
        yield machine


@pytest.fixture(scope="session")
def cluster_images(node_cluster: Node | existing.ExistingCluster) -> Images:
    """References of the operator and runner images that the node holds or can pull."""
    if isinstance(node_cluster, existing.ExistingCluster):
        return node_cluster.images
    with skipping():
        return load_images(node_cluster)


@pytest.fixture(scope="session")
def s3(node_cluster: Node | existing.ExistingCluster) -> Iterator[ObjectStore]:
    """An S3 server that this process and pods of `node_cluster` reach."""
    with contextlib.ExitStack() as stack:
        with skipping():
            if isinstance(node_cluster, existing.ExistingCluster):
                raise UnavailableError(
                    "pods of an existing cluster may not reach an S3 server on this machine"
                )
            store = stack.enter_context(object_store(node_cluster))
        yield store
