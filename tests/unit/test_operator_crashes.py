"""SIGKILL at every write of a flow, twice in a row too, and lost answers: always one Job per attempt."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from operator_ring.manifests import BEST, ended, resource
from operator_ring.memory_kube import KilledError, MemoryKube
from tlt_operator import controller
from tlt_operator.cluster.client import ApiError
from tlt_operator.snapshot import Key

OUTCOMES = {
    "traffic-train-1": [ended(12, "OOMKilled")],
    "traffic-train-2": [ended(75)],
    "traffic-train-3": [ended(0, "Completed", json.dumps(BEST))],
    "small-prune-1": [ended(70)],
    "small-prune-2": [ended(0, "Completed")],
}


def world_turns(cluster: MemoryKube) -> None:
    """Do what the Job controller, the kubelet and time do between two reconciliations."""
    for name, job in list(cluster.jobs.items()):
        if job["metadata"].get("deletionTimestamp"):
            cluster.remove_job(name)
        elif "status" not in job:
            cluster.run_pod(name)
        elif job["status"]["ready"]:
            cluster.finish(name, OUTCOMES[name][0])
        # The TTL has passed by the next reconciliation: the hardest case, since the outcome must be recorded.
        elif "ttlSecondsAfterFinished" in job["spec"]:
            cluster.remove_job(name)
    cluster.wait(60)


async def operate(cluster: MemoryKube, keys: list[Key]) -> int:
    """Reconcile all keys until nothing changes, starting anew after each kill; return the number of kills."""
    deaths = 0
    idle = 0
    while idle < 3:
        before = cluster.writes
        for key in keys:
            try:
                await controller.reconcile_once(
                    cluster, key, cluster.settings, cluster.index, lambda: cluster.now
                )
            except KilledError:
                deaths += 1
                cluster.kill_at = next(cluster.kills, None)
                break
            except ApiError:
                # The queue would bring the key again.
                continue
        # Three rounds without a write: a delay between attempts may be all that is waited for.
        idle = idle + 1 if cluster.writes == before else 0
        world_turns(cluster)
        assert cluster.writes < 500, "does not come to rest"
    return deaths


def play(kills: tuple[int, ...], ttl: int | None) -> tuple[MemoryKube, dict[str, Any], dict[str, Any], int]:
    cluster = MemoryKube()
    cluster.kills = iter(kills[1:])
    cluster.kill_at = kills[0] if kills else None
    policy = {"ttlSecondsAfterFinished": ttl} if ttl is not None else {}
    small = cluster.add(resource("PruneJob", "small", runPolicy=policy))
    traffic = cluster.add(resource(runPolicy=policy))
    deaths = asyncio.run(operate(cluster, [small, traffic]))
    return cluster, cluster.status(traffic), cluster.status(small), deaths


def unreported(cluster: MemoryKube) -> set[tuple[str, str]]:
    """Return the states that a resource came into without an Event that reports it."""
    reported = {(event["involvedObject"]["name"], event["message"]) for event in cluster.events.values()}
    return cluster.transitions - reported


WRITES = play((), ttl=0)[0].writes


def test_the_first_write_of_an_attempt_is_its_job() -> None:
    cluster = MemoryKube()
    key = cluster.add(resource())
    cluster.kill_at = 2
    with pytest.raises(KilledError):
        asyncio.run(cluster.settle())
    assert list(cluster.jobs) == ["traffic-train-1"]
    assert "attempt" not in cluster.status(key)


@pytest.mark.parametrize("ttl", [None, 0])
def test_a_kill_at_any_write_leaves_one_job_per_attempt_and_the_same_end(ttl: int | None) -> None:
    for kill in range(1, WRITES + 1):
        cluster, traffic, small, deaths = play((kill,), ttl)
        assert deaths == (kill <= cluster.writes), kill
        assert cluster.created_jobs == dict.fromkeys(OUTCOMES, 1), kill
        assert (traffic["phase"], traffic["attempt"], traffic["retries"]) == ("Succeeded", 3, 1), kill
        assert [entry["reason"] for entry in traffic["history"]] == ["OutOfMemory", "Interrupted"], kill
        assert traffic["artifacts"] == BEST["artifacts"], kill
        assert (small["phase"], small["attempt"]) == ("Succeeded", 2), kill
        assert ttl is None or not cluster.jobs, kill
        assert unreported(cluster) == set(), kill


def test_a_kill_soon_after_a_kill_leaves_one_job_per_attempt() -> None:
    for kills in [(first, first + gap) for first in range(1, WRITES) for gap in (1, 2, 3)]:
        cluster, traffic, small, _ = play(kills, ttl=0)
        assert cluster.created_jobs == dict.fromkeys(OUTCOMES, 1), kills
        assert (traffic["phase"], small["phase"]) == ("Succeeded", "Succeeded"), kills
        assert unreported(cluster) == set(), kills


def test_an_answer_lost_at_any_write_leaves_one_job_per_attempt() -> None:
    for lost in range(1, WRITES + 1):
        cluster = MemoryKube()
        cluster.lose_at = lost
        small, traffic = cluster.add(resource("PruneJob", "small")), cluster.add(resource())
        asyncio.run(operate(cluster, [small, traffic]))
        assert cluster.created_jobs == dict.fromkeys(OUTCOMES, 1), lost
        assert cluster.status(traffic)["artifacts"] == BEST["artifacts"], lost
        assert {cluster.status(key)["phase"] for key in (small, traffic)} == {"Succeeded"}, lost


@pytest.mark.parametrize("kill", range(1, 12))
def test_a_kill_at_any_write_of_a_suspension_leaves_one_job_per_attempt(kill: int) -> None:
    async def scenario(cluster: MemoryKube) -> None:
        key = cluster.add(resource())
        await cluster.settle()
        cluster.run_pod("traffic-train-1")
        cluster.kill_at = cluster.writes + kill
        cluster.kills = iter(())
        cluster.edit(key, suspend=True)
        await operate_quietly(cluster, key)
        assert cluster.status(key)["phase"] == "Suspended"
        cluster.edit(key, suspend=False)
        await operate_quietly(cluster, key)
        assert cluster.created_jobs == {"traffic-train-1": 1}
        assert cluster.jobs["traffic-train-1"]["spec"]["suspend"] is False
        assert (cluster.status(key)["phase"], "history" in cluster.status(key)) == ("Queued", False)

    asyncio.run(scenario(MemoryKube()))


async def operate_quietly(cluster: MemoryKube, key: Key) -> None:
    """Reconcile a key through a kill, while the Job controller does nothing but stop pods."""
    for _ in range(12):
        try:
            await controller.reconcile_once(
                cluster, key, cluster.settings, cluster.index, lambda: cluster.now
            )
        except KilledError:
            cluster.kill_at = None
        for name, job in list(cluster.jobs.items()):
            if job["metadata"].get("deletionTimestamp"):
                cluster.remove_job(name)
        for name, pod in list(cluster.pods.items()):
            if pod["metadata"].get("deletionTimestamp"):
                del cluster.pods[name]
