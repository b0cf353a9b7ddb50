"""Histories in which the operator once did wrong, each written down as a script."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from operator_ring.manifests import BEST, resource
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


def test_a_suspension_that_the_watch_has_not_reported_yet_keeps_the_next_attempt_from_starting(
    world: World,
) -> None:
    world.cluster.add(resource())
    works(world)
    (pod,) = world.cluster.running_pods("traffic")
    world.cluster.end(pod, 12)
    works(world)
    # The next attempt is due 10 s after the end of this one, and the watch tells of the suspension later.
    world.operators[0].link.delay("resources", 30, until=world.loop.time() + 60)
    world.cluster.edit(TRAFFIC, suspend=True)
    world.let_pass(20)
    assert list(world.cluster.jobs) == ["traffic-train-1"]
    world.let_pass(60)
    assert world.cluster.status(TRAFFIC)["phase"] == "Suspended"
    assert world.problems() == []


def test_a_preempted_run_that_ends_well_before_anybody_looks_has_its_results(world: World) -> None:
    world.cluster.add(resource())
    works(world)
    (pod,) = world.cluster.running_pods("traffic")
    world.cluster.disrupt(pod, "PreemptionByScheduler")
    world.cluster.end_stopped_pods(0)
    # At once, before the operator looks: the pod is gone, and its termination message with it.
    world.cluster.control_jobs()
    world.cluster.remove_pods()
    assert list(world.cluster.pods) == []
    world.let_pass(5)
    status = world.cluster.status(TRAFFIC)
    assert (status["phase"], status["artifacts"]) == ("Succeeded", BEST["artifacts"])


def test_the_pod_of_a_deleted_resource_keeps_its_output_from_another_one(world: World) -> None:
    world.cluster.add(resource())
    world.cluster.add(resource(name="twin", output={"uri": "pvc://runs/traffic"}))
    works(world)
    world.cluster.remove(TRAFFIC)
    # The garbage collector is slow, and the pod takes its time to write a checkpoint.
    world.let_pass(60)
    assert list(world.cluster.jobs) == ["traffic-train-1"]
    world.cluster.collect_garbage()
    world.let_pass(60)
    assert list(world.cluster.jobs) == []
    assert world.come_to_rest() == []
    assert world.cluster.status(Key("TrainingJob", "default", "twin"))["phase"] == "Succeeded"
    assert world.problems() == []


def test_an_operator_that_starts_after_a_deletion_waits_for_the_pod_that_still_writes(world: World) -> None:
    world.cluster.add(resource())
    works(world)
    world.kill(world.operators[0])
    world.cluster.remove(TRAFFIC)
    world.cluster.collect_garbage()
    world.cluster.add(resource(name="twin", output={"uri": "pvc://runs/traffic"}))
    world.start_operator()
    works(world)
    world.let_pass(60)
    # The pod is being stopped, and its Job is gone.
    assert [len(world.cluster.jobs), len(world.cluster.pods)] == [0, 1]
    world.cluster.end_stopped_pods(75)
    world.cluster.remove_pods()
    world.let_pass(60)
    assert list(world.cluster.jobs) == ["twin-train-1"]
    assert world.problems() == []
