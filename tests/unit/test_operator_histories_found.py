"""Histories in which the operator once did wrong, each written down as a script."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from operator_ring.manifests import resource
from operator_ring.simulation import World
from tlt_operator.snapshot import Key

TRAFFIC = Key("TrainingJob", "default", "traffic")


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    world.start_operator()
    yield world
    world.close()


def works(world: World) -> None:
    """Let every part of the cluster do its work, and time pass."""
    for _ in range(3):
        world.let_pass(0.5)
        world.cluster.collect_garbage()
        world.cluster.control_jobs()
        world.cluster.start_pods()
    world.let_pass(0.5)


def test_a_webhook_that_is_away_shows_in_the_status(world: World) -> None:
    world.cluster.goes_away("webhook", 2000)
    world.cluster.add(resource())
    world.let_pass(5)
    blocked = {c["type"]: c["reason"] for c in world.cluster.status(TRAFFIC)["conditions"]}["Blocked"]
    assert blocked == "WebhookUnavailable"
    assert world.come_to_rest() == []
    assert world.cluster.status(TRAFFIC)["phase"] == "Succeeded"


def test_a_pod_that_the_watch_has_not_reported_yet_keeps_the_next_attempt_from_starting(world: World) -> None:
    world.cluster.add(resource())
    world.operators[0].link.delay("pods", 20, until=100)
    works(world)
    world.cluster.delete_job_by_hand("traffic-train-1", foreground=False)
    works(world)
    assert list(world.cluster.jobs) == []
    assert world.problems() == []
    assert world.come_to_rest() == []
    assert world.cluster.status(TRAFFIC)["attempt"] == 2
