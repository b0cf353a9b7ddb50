"""Faults of the API server, etcd, the network, leaders and pods: every run ends well, one Job an attempt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.control_plane import ControlPlane
from operator_ring.faults import FAULTS, Scene, play, scene
from operator_ring.live import Api

SHORT = [name for name in FAULTS if name != "watches frozen (open, without a byte)"]


@pytest.fixture(scope="module")
def two_operators(
    installed: ControlPlane, api: Api, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    name = "faults"
    api.create({"kind": "Namespace", "metadata": {"name": name}})
    api.create({"kind": "ServiceAccount", "metadata": {"name": "tlt-runner", "namespace": name}})
    with scene(installed, api, name, installed.kubeconfig, tmp_path_factory.mktemp("faults")) as it:
        yield it


@pytest.mark.parametrize("fault", SHORT)
def test_every_run_ends_well_in_spite_of(two_operators: Scene, fault: str) -> None:
    assert play(two_operators, FAULTS[fault]).problems == []
