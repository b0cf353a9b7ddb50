"""Upgrade in place on a real API server: CRDs, statuses and Jobs of release 0.1.0, then those of today.

The cluster is one of its own, since CRDs belong to a whole cluster.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import patience
from cluster.control_plane import ControlPlane, control_plane
from cluster.fixtures import skipping
from operator_ring.live import NODE_MANIFEST, Api, Kubelet, OperatorProcess
from operator_ring.manifests import BEST

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "operator-0.1.0"
SERVER_SIDE = ("--server-side", "--validate=false")
"""Options of kubectl apply: the API server validates by itself, and its schema is long to load."""
LIVE_JOBS = ("running-train-2", "queued-train-1")
"""Jobs that 0.1.0 left; those that ended are gone."""
WITHOUT_JOBS = ("pair", "exported")
"""Resources of the fixture that are left out, with their Jobs."""


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """Cluster with the CRDs of 0.1.0."""
    with skipping(), control_plane() as plane:
        account = {"name": "tlt-runner", "namespace": "default"}
        items = [
            *json.loads((FIXTURE / "crds.json").read_text()),
            NODE_MANIFEST,
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account},
        ]
        document = {"apiVersion": "v1", "kind": "List", "items": items}
        plane.kubectl("apply", *SERVER_SIDE, "-f", "-", stdin=json.dumps(document))
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all", patience.KUBECTL)
        yield plane


def as_new(body: dict[str, Any], uids: dict[str, str]) -> dict[str, Any]:
    """Return an object of the fixture as it is created, with the uids that its owners have here."""
    text = re.sub(r"uid-\d+", lambda match: uids.get(match[0], match[0]), json.dumps(body))
    body = json.loads(text)
    kept = ("name", "namespace", "labels", "annotations", "ownerReferences")
    body["metadata"] = {name: value for name, value in body["metadata"].items() if name in kept}
    return {name: value for name, value in body.items() if name != "status"}


def restore(plane: ControlPlane, api: Api, kubelet: Kubelet) -> dict[str, dict[str, Any]]:
    """Make the objects of 0.1.0, with its field managers; return the manifests of the resources by name."""
    state = json.loads((FIXTURE / "cluster.json").read_text())
    uids: dict[str, str] = {}
    manifests = {}
    left = [body for body in state["resources"] if body["metadata"]["name"] not in WITHOUT_JOBS]
    for body in left:
        manifest = as_new(body, {})
        uids[body["metadata"]["uid"]] = api.create(manifest)["metadata"]["uid"]
        manifests[body["metadata"]["name"]] = manifest
    for job in state["jobs"]:
        if job["metadata"]["name"] in LIVE_JOBS:
            uids[job["metadata"]["uid"]] = api.create(as_new(job, uids))["metadata"]["uid"]
    kubelet.run("running-train-2")
    applied: dict[str, list[dict[str, Any]]] = {}
    for body in left:
        status = as_new({"metadata": {}, "old": body["status"]}, uids)["old"]
        head = {name: body[name] for name in ("apiVersion", "kind")}
        head["metadata"] = {"name": body["metadata"]["name"], "namespace": "default"}
        for manager, fields in state["owned"][f"{body['kind']}/{body['metadata']['name']}"].items():
            part = {field: status[field] for field in fields if field in status}
            applied.setdefault(manager, []).append(head | {"status": part})
    for manager, items in applied.items():
        document = {"apiVersion": "v1", "kind": "List", "items": items}
        options = ("--subresource=status", f"--field-manager={manager}")
        plane.kubectl("apply", *SERVER_SIDE, *options, "-f", "-", stdin=json.dumps(document))
    return manifests


def version(api: Api, manifest: dict[str, Any]) -> str:
    """Return the resourceVersion of a resource."""
    body = api.resource(manifest)
    assert body is not None
    return str(body["metadata"]["resourceVersion"])


def test_what_the_operator_of_0_1_0_left_goes_on_and_ends_well(plane: ControlPlane, tmp_path: Path) -> None:
    api = Api(plane.kubeconfig)
    kubelet = Kubelet(api, "default")
    resources = restore(plane, api, kubelet)
    ended = {name: version(api, resources[name]) for name in ("succeeded", "failed")}
    plane.kubectl("apply", *SERVER_SIDE, "--force-conflicts", "-k", ROOT / "crds")
    with OperatorProcess(plane.kubeconfig, tmp_path / "operator.log", TLT_NAMESPACES="default") as operator:
        # The attempt that was announced gets its Job, and the delay of the failed one is over.
        for job in ("announced-train-1", "retrying-train-2", *LIVE_JOBS):
            kubelet.run(job)
            kubelet.end(job, 0, "Completed", json.dumps(BEST))
        api.edit(resources["suspended"], suspend=False)
        for job in ("suspended-train-2", "child-prune-1"):
            kubelet.run(job)
            kubelet.end(job, 0, "Completed", json.dumps(BEST))
        statuses = {
            name: api.until_phase(resources[name], "Succeeded")
            for name in ("announced", "retrying", "running", "queued", "suspended", "child")
        }
        assert {name: status["attempt"] for name, status in statuses.items()} == {
            "announced": 1, "retrying": 2, "running": 2, "queued": 1, "suspended": 2, "child": 1,
        }  # fmt: skip
        assert "failure" not in statuses["running"]
        # Nothing of what has ended is written, neither then nor later.
        versions = {name: version(api, manifest) for name, manifest in resources.items()}
        assert {name: versions[name] for name in ended} == ended
        time.sleep(5)
        assert {name: version(api, manifest) for name, manifest in resources.items()} == versions
        assert "Traceback" not in operator.log(), operator.log()
    api.close()
