"""Statuses that wait for a moment: what is written, when, and that nothing depends on it."""

from __future__ import annotations

from dataclasses import replace

from operator_ring.manifests import ended, resource
from operator_ring.memory_kube import Body, MemoryKube
from operator_ring.scenario import in_a_loop
from operator_ring.simulation import World
from tlt_operator import controller
from tlt_operator.controller import Controller
from tlt_operator.health import Health
from tlt_operator.settings import Settings
from tlt_operator.settling import Settling
from tlt_operator.snapshot import Key

TRAFFIC = Key("TrainingJob", "default", "traffic")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def key(number: int) -> Key:
    return replace(TRAFFIC, name=f"j{number}")


# --- how long


def test_a_single_status_waits_for_a_second_whatever_changes_meanwhile() -> None:
    clock = Clock()
    settling = Settling(clock)
    assert settling.seconds_left(TRAFFIC) == 1
    clock.now = 0.75
    assert settling.seconds_left(TRAFFIC) == 0.25
    clock.now = 1
    assert settling.seconds_left(TRAFFIC) == 0


def test_twenty_statuses_a_second_are_due_and_none_waits_for_more_than_fifteen_seconds() -> None:
    settling = Settling(Clock())
    waits = [settling.seconds_left(key(number)) for number in range(1000)]
    # 20 a second: the 100th waits for 100 / 20 s.
    assert [waits[number - 1] for number in (1, 20, 100, 200, 300, 1000)] == [1, 1, 5, 10, 15, 15]
    for number in range(960):
        settling.forget(key(number))
    assert settling.seconds == 2


# --- what is written


def status_writes(world: World) -> list[Body]:
    """Return the statuses that the training has had, one after the other."""
    statuses = [change.body.get("status") or {} for change in world.cluster.journal["resources"]]
    return [after for before, after in zip([{}, *statuses], statuses, strict=False) if before != after]


def step(world: World) -> None:
    world.cluster.control_jobs()
    world.cluster.start_pods()
    world.cluster.publish()


def test_a_run_that_ends_within_a_second_costs_one_job_one_status_and_one_event() -> None:
    world = World()
    world.start_operator()
    world.cluster.add(resource())
    world.let_pass(0.5)
    assert list(world.cluster.jobs) == ["traffic-train-1"]
    for _ in range(3):
        step(world)
    (pod,) = world.cluster.running_pods("traffic")
    world.cluster.end(pod, 0, message="no report")
    world.cluster.control_jobs()
    world.let_pass(30)
    statuses = status_writes(world)
    assert [item["phase"] for item in statuses] == ["Succeeded"]
    assert statuses[0]["attempt"] == 1
    assert statuses[0]["jobName"] == "traffic-train-1"
    assert statuses[0]["startTime"]
    assert [event["reason"] for event in world.cluster.events.values()] == ["Succeeded"]
    assert world.cluster.writes == 3
    world.close()


def test_a_start_and_a_run_are_told_within_two_seconds_each_on_a_quiet_cluster() -> None:
    world = World()
    world.start_operator()
    world.cluster.add(resource())
    world.let_pass(2)
    assert world.cluster.status(TRAFFIC)["phase"] == "Queued"
    assert world.cluster.status(TRAFFIC)["jobUid"]
    for _ in range(3):
        step(world)
    world.let_pass(2.2)
    assert world.cluster.status(TRAFFIC)["phase"] == "Running"
    world.close()


def test_the_first_attempt_is_recorded_without_another_read() -> None:
    reads: list[str] = []

    class Counting(MemoryKube):
        async def get_job(self, namespace: str, name: str, live: bool = False) -> Body | None:
            reads.append(name) if live else None
            return await super().get_job(namespace, name, live)

    @in_a_loop
    async def scenario() -> None:
        cluster = Counting()
        traffic = cluster.add(resource())
        clock = Clock()
        settling = Settling(clock)
        for _ in range(2):
            await controller.reconcile_once(
                cluster, traffic, cluster.settings, cluster.index, settling=settling
            )
            clock.now += 5
        assert cluster.status(traffic)["jobName"] == "traffic-train-1"

    scenario()
    assert reads == []


@in_a_loop
async def test_an_operator_that_takes_over_lets_a_run_hold_its_output_before_its_status_names_it() -> None:
    cluster = MemoryKube()
    settling = Settling(Clock())
    later = cluster.add(resource(name="later", output={"uri": "s3://runs/one"}))
    await controller.reconcile_once(cluster, later, cluster.settings, cluster.index, settling=settling)
    assert list(cluster.jobs) == ["later-train-1"]
    assert not cluster.status(later)
    earlier = cluster.add(resource(name="earlier", output={"uri": "s3://runs/one"}))
    for resource_key, year in ((later, 2026), (earlier, 2020)):
        cluster.resources[resource_key]["metadata"]["creationTimestamp"] = f"{year}-01-01T00:00:00Z"
    successor = Controller(cluster, Settings(), Health(300))
    for body in cluster.resources.values():
        successor.resource_changed(body)
    successor.cache.owned("jobs").put(cluster.jobs["later-train-1"])
    assert successor.index.outputs.holder(earlier) is None
    successor.lead()
    assert successor.index.outputs.holder(earlier) == later
    assert successor.index.outputs.claims == 1
    successor.queue.close()


@in_a_loop
async def test_an_end_is_written_at_once() -> None:
    cluster = MemoryKube()
    traffic = cluster.add(resource())
    settling = Settling(Clock())
    await controller.reconcile_once(cluster, traffic, cluster.settings, cluster.index, settling=settling)
    cluster.run_pod("traffic-train-1")
    cluster.finish("traffic-train-1", ended(12, "OOMKilled"))
    await controller.reconcile_once(cluster, traffic, cluster.settings, cluster.index, settling=settling)
    status = cluster.status(traffic)
    assert (status["phase"], status["history"][0]["reason"]) == ("Retrying", "OutOfMemory")
    assert len(settling) == 0


# --- the queue


@in_a_loop
async def test_a_new_resource_goes_before_those_that_have_begun() -> None:
    cluster = MemoryKube()
    loop = Controller(cluster, Settings(), Health(300))
    old = cluster.add(resource(name="old"))
    loop.resource_changed(cluster.resources[old])
    await loop.queue.get()
    loop.queue.done(old)
    loop.queue.add(old)
    new = cluster.add(resource(name="new"))
    loop.resource_changed(cluster.resources[new])
    assert [(await loop.queue.get())[0], (await loop.queue.get())[0]] == [new, old]
