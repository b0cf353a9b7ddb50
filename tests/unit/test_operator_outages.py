"""What a run needs is away for half an hour (simulated): the status says what, and nothing fails."""

from __future__ import annotations

import pytest

from operator_ring.manifests import resource
from operator_ring.simulated_cluster import TROUBLES, Trouble
from operator_ring.simulation import World
from tlt_operator.snapshot import Key

TRAFFIC = Key("TrainingJob", "default", "traffic")
BLOCKED = {
    "webhook": "WebhookUnavailable",
    "quota": "QuotaExceeded",
    "registry": "ImagePullFailed",
    "storage": "StorageUnavailable",
    "node": "StartFailed",
    "capacity": "Unschedulable",
}
LONGEST_SECONDS = 610
"""Longest delay of the operator between two tries, and a turn of the cluster."""


def works(world: World, seconds: int) -> None:
    """Let every part of the cluster work, every ten seconds."""
    for _ in range(seconds // 10):
        world.let_pass(10)
        world.cluster.collect_garbage()
        world.cluster.control_jobs()
        world.cluster.start_pods()
        world.cluster.control_jobs()
        world.cluster.remove_pods()


@pytest.mark.parametrize("trouble", TROUBLES)
def test_nothing_fails_while_something_is_away_for_half_an_hour(trouble: Trouble) -> None:
    world = World()
    world.start_operator()
    world.cluster.goes_away(trouble, 1800)
    world.cluster.add(resource())
    works(world, 1800)
    status = world.cluster.status(TRAFFIC)
    blocked = {item["type"]: item for item in status["conditions"]}["Blocked"]
    assert (blocked["status"], blocked["reason"]) == ("True", BLOCKED[trouble])
    assert status["phase"] in ("Queued", "Retrying")
    assert "retries" not in status
    works(world, LONGEST_SECONDS)
    assert world.cluster.status(TRAFFIC)["phase"] == "Running"
    assert world.come_to_rest() == []
    assert world.cluster.status(TRAFFIC)["phase"] == "Succeeded"
    assert world.problems() == []
    world.close()
