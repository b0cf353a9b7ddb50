"""Faults of the API server, etcd, the network, leaders and pods: every run ends well, one Job an attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import kopf
import pytest

from cluster.api import Body
from cluster.control_plane import ControlPlane
from operator_ring.access import connection_of
from operator_ring.fault_proxy import FaultProxy
from operator_ring.faults import FAULTS, Scene, play, scene
from operator_ring.live import Api
from tlt_operator.cluster import http
from tlt_operator.cluster.client import ApiError
from tlt_operator.objects import OWNER_KIND

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


def test_a_watch_that_is_open_and_silent_is_given_up(
    installed: ControlPlane, api: Api, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_SILENCE_SECONDS", 2)

    async def scenario(proxy: FaultProxy, connection: kopf.ConnectionInfo) -> None:
        async with http.HttpClient(lambda: connection) as client:
            pages = [version async for _, version in client.list_owned("jobs", namespace)]
            watching = asyncio.create_task(anext(client.watch_owned("jobs", namespace, pages[-1])))
            while not proxy.freeze_streams():
                await asyncio.sleep(0.1)
            labels = {OWNER_KIND: "TrainingJob"}
            api.create(job("unseen", namespace, labels))
            with pytest.raises(ApiError, match="Timeout"):
                await watching

    with FaultProxy(installed.kubeconfig) as proxy:
        path = proxy.kubeconfig(installed.kubeconfig, tmp_path / "kubeconfig")
        asyncio.run(scenario(proxy, connection_of(path)))


def job(name: str, namespace: str, labels: dict[str, str]) -> Body:
    container = {"name": "c", "image": "i"}
    pod = {"restartPolicy": "Never", "containers": [container]}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"kind": "Job", "metadata": metadata, "spec": {"suspend": True, "template": {"spec": pod}}}
