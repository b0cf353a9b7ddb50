"""Fixtures of the operator's integration tests: an API server with all of manifests/ but the operator's pod.

A plugin of tests/conftest.py. Imports stand where they are needed: the unit ring does not pay for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import patience

if TYPE_CHECKING:
    from cluster.control_plane import ControlPlane
    from operator_ring.live import Api, OperatorProcess

ROOT = Path(__file__).parents[2]
BASE = ROOT / "manifests" / "base"


@pytest.fixture(scope="session")
def installed(control_plane_cluster: ControlPlane) -> ControlPlane:
    """API server with CRDs, rights and policies, and a node without a kubelet."""
    from operator_ring.live import NODE_MANIFEST

    plane = control_plane_cluster
    plane.kubectl("apply", "-k", ROOT / "crds")
    plane.kubectl("wait", "--for=condition=Established", "crd", "--all", patience.KUBECTL)
    plane.kubectl("create", "namespace", "tlt-system", check=False)
    plane.kubectl("apply", "-n", "tlt-system", "-f", BASE / "operator-rbac.yaml")
    for name in ("runner-clusterrole", "runner-policy"):
        plane.kubectl("apply", "-f", BASE / f"{name}.yaml")
    plane.apply(NODE_MANIFEST)
    return plane


@pytest.fixture(scope="session")
def operator_kubeconfig(installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kubeconfig with the rights of the operator's ServiceAccount."""
    from operator_ring.access import kubeconfig_of

    return kubeconfig_of(installed, "tlt-operator", tmp_path_factory.mktemp("access") / "kubeconfig")


@pytest.fixture(scope="session")
def api(installed: ControlPlane) -> Iterator[Api]:
    """Access to the API server as its administrator."""
    from operator_ring.live import Api

    api = Api(installed.kubeconfig)
    yield api
    api.close()


@pytest.fixture
def namespace(api: Api, request: pytest.FixtureRequest) -> str:
    """Namespace for this test alone, with the runner's ServiceAccount."""
    name = "n" + str(abs(hash(request.node.nodeid)) % 10**9)
    api.create({"kind": "Namespace", "metadata": {"name": name}})
    api.create({"kind": "ServiceAccount", "metadata": {"name": "tlt-runner", "namespace": name}})
    return name


@pytest.fixture(scope="module")
def operator(
    operator_kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """Operator for all namespaces; the fixture fails if the operator logs an unexpected error."""
    from operator_ring.live import OperatorProcess

    log = tmp_path_factory.mktemp("log") / "operator.log"
    with OperatorProcess(operator_kubeconfig, log) as process:
        yield process
    assert "Traceback" not in process.log(), process.log()
