"""Another operator that writes the same statuses: no quarrel at the speed of the API server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from operator_ring.manifests import resource
from operator_ring.memory_kube import MemoryKube
from operator_ring.simulated_time import SimulatedTime
from tlt_operator import settings
from tlt_operator.controller import Controller
from tlt_operator.health import Health
from tlt_operator.rewrites import Rewrites
from tlt_operator.snapshot import Key
from tlt_operator.workqueue import WorkQueue

A = Key("TrainingJob", "default", "a")


def status(message: str, when: str = "12:00") -> dict[str, Any]:
    return {"phase": "Running", "conditions": [{"message": message, "lastTransitionTime": when}]}


def test_the_same_status_again_and_again_is_left_alone_for_longer_and_longer() -> None:
    rewrites = Rewrites()
    waits = [rewrites.written(A, status("ours", f"12:0{number}")) for number in range(10)]
    # The first rewrite takes back what somebody did by hand.
    assert waits == [0, 0, 1, 2, 4, 8, 16, 32, 64, 120]


def test_statuses_that_change_are_no_quarrel() -> None:
    rewrites = Rewrites()
    assert [rewrites.written(A, status(message)) for message in "abababab"] == [0] * 8


def test_another_status_ends_the_quarrel() -> None:
    rewrites = Rewrites()
    for _ in range(5):
        rewrites.written(A, status("ours"))
    assert rewrites.written(A, status("other")) == 0
    assert rewrites.written(A, status("ours")) == 0


def test_a_key_that_is_held_comes_when_its_time_is_over_whoever_adds_it() -> None:
    async def held() -> float:
        queue: WorkQueue[Key] = WorkQueue()
        loop = asyncio.get_running_loop()
        began = loop.time()
        queue.hold(A, 30)
        queue.add(A)
        queue.add_after(A, 5)
        queue.add(A)
        await queue.get()
        return loop.time() - began

    loop = SimulatedTime()
    assert loop.run_until_complete(held()) == pytest.approx(30)
    loop.close()


def test_an_operator_of_another_release_beside_it_is_answered_more_and_more_rarely() -> None:
    """The other one writes its own words for the same state as soon as it sees ours."""

    async def quarrel() -> tuple[int, int]:
        cluster = MemoryKube()
        key = cluster.add(resource())
        controller = Controller(cluster, settings.Settings(workers=1, sweep_seconds=60), Health(60))
        work = asyncio.create_task(controller.run())
        controller.resource_changed(cluster.resources[key])
        await asyncio.sleep(2)
        jobs, ours = list(cluster.jobs), 0
        for _ in range(1000):
            body = cluster.resources[key]
            ready = next(item for item in body["status"]["conditions"] if item["type"] == "Ready")
            if ready["message"] != "in the words of the other release":
                controller.resource_changed(body)
                ours += 1
                ready["message"] = "in the words of the other release"
                cluster._touch(body)
                controller.resource_changed(body)
            await asyncio.sleep(0.1)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        controller.queue.close()
        assert list(cluster.jobs) == jobs
        return ours, len(jobs)

    loop = SimulatedTime()
    ours, jobs = loop.run_until_complete(quarrel())
    loop.close()
    assert jobs == 1
    # In 100 s: a few at once, then after 1, 2, 4, 8, 16 and 32 s; without a limit one in each of 1,000 looks.
    assert 6 <= ours <= 12
