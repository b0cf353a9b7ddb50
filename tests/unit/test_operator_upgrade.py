"""Upgrade in place: resources, Jobs and pods of release 0.1.0 go on under today's operator, and end well.

The objects are those that the operator of 0.1.0 made (tests/fixtures/README.md).
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from operator_ring.manifests import BEST, ended
from operator_ring.memory_kube import MemoryKube
from tlt_operator.snapshot import Key

FIXTURE = Path(__file__).parents[1] / "fixtures" / "operator-0.1.0" / "cluster.json"
PHASES = {
    "succeeded": "Succeeded",
    "failed": "Failed",
    "suspended": "Suspended",
    "running": "Running",
    "pair": "Running",
    "child": "Pending",
    "orphan": "Pending",
    "exported": "Queued",
    "queued": "Queued",
    "retrying": "Retrying",
    "announced": "Queued",
}
"""Phases that 0.1.0 left its resources in; ``announced`` is an attempt whose operator died before its Job."""
SUCCESS = ended(0, "Completed", json.dumps(BEST))


def cluster_of_before() -> MemoryKube:
    """Return the cluster at the moment in which the operator of 0.1.0 ends."""
    return MemoryKube.restored(json.loads(FIXTURE.read_text()))


def phases(cluster: MemoryKube) -> dict[str, str]:
    return {key.name: cluster.status(key)["phase"] for key in cluster.resources}


def test_an_upgrade_keeps_every_phase_and_writes_nothing_for_what_has_ended() -> None:
    cluster = cluster_of_before()
    assert phases(cluster) == PHASES
    versions = {key.name: body["metadata"]["resourceVersion"] for key, body in cluster.resources.items()}
    asyncio.run(cluster.settle())
    assert phases(cluster) == PHASES
    # Of all attempts only the one without a Job gets one.
    assert cluster.created_jobs == {"announced-train-1": 1}
    after = {key.name: body["metadata"]["resourceVersion"] for key, body in cluster.resources.items()}
    same = {name for name, version in versions.items() if after[name] == version}
    assert {"succeeded", "failed"} <= same
    # The Job, and at most a status and an Event of each of the others.
    assert cluster.writes <= 1 + 2 * (len(PHASES) - len(same))


def test_every_run_of_before_goes_on_and_ends_well() -> None:
    cluster = cluster_of_before()

    async def scenario() -> None:
        await cluster.settle()
        cluster.edit(Key("TrainingJob", "default", "suspended"), suspend=False)
        # The delay before the next attempt.
        cluster.wait(60)
        await cluster.settle()
        for job in (
            "running-train-2",
            "pair-train-1",
            "exported-export-1",
            "queued-train-1",
            "retrying-train-2",
            "announced-train-1",
            "suspended-train-2",
        ):
            cluster.finish(job, SUCCESS)
        await cluster.settle()
        # Its parent has succeeded.
        cluster.finish("child-prune-1", SUCCESS)
        await cluster.settle()

    asyncio.run(scenario())
    assert phases(cluster) == dict.fromkeys(PHASES, "Succeeded") | {"failed": "Failed", "orphan": "Pending"}
    assert cluster.created_jobs == dict.fromkeys(
        ("announced-train-1", "retrying-train-2", "suspended-train-2", "child-prune-1"), 1
    )
    statuses = {key.name: cluster.status(key) for key in cluster.resources}
    assert {name: status.get("attempt") for name, status in statuses.items()} == {
        **dict.fromkeys(PHASES, 1), "running": 2, "retrying": 2, "suspended": 2, "orphan": None,
    }  # fmt: skip
    history = {name: [e["reason"] for e in status.get("history", ())] for name, status in statuses.items()}
    assert (history["running"], history["suspended"]) == (["OutOfMemory"], ["Suspended"])
    # The failure that the next attempt made good is gone, and the results are those of the run.
    assert "failure" not in statuses["running"]
    assert statuses["running"]["artifacts"] == BEST["artifacts"]
    assert statuses["running"]["retries"] == 1
