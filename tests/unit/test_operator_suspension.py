"""Suspension by the batch Job's own spec.suspend: by the user, by a queue of Kueue, and by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from operator_ring.manifests import ended, resource
from operator_ring.memory_kube import Body, KilledError, MemoryKube, refusal
from operator_ring.scenario import condition, play
from tlt_operator import metrics
from tlt_operator.snapshot import Key

JOB = "traffic-train-1"


async def running(cluster: MemoryKube, queue: str = "", **spec: Any) -> Key:
    key = cluster.add(of_queue(queue, **spec) if queue else resource(**spec))
    await cluster.settle()
    if queue:
        kueue_holds(cluster)
        await cluster.settle()
        kueue_admits(cluster)
    cluster.run_pod(JOB)
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Running"
    return key


def of_queue(queue: str, **spec: Any) -> Body:
    body = resource(**spec)
    body["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": queue}
    return body


def kueue_holds(cluster: MemoryKube) -> None:
    """Suspend the Job, as Kueue's webhook and its controller do with one that is not admitted."""
    cluster.set_suspended(JOB, True)


def kueue_admits(cluster: MemoryKube) -> None:
    """Give the Job its place and let it run; an earlier start time was cleared, to change the template."""
    cluster.jobs[JOB]["spec"]["template"]["spec"]["nodeSelector"] = {"flavour": "gpu"}
    cluster.set_suspended(JOB, False)


def warnings(cluster: MemoryKube) -> list[Body]:
    return [event for event in cluster.events.values() if event["type"] == "Warning"]


@play
async def test_a_suspended_run_writes_its_checkpoint_and_resumes_in_the_same_attempt(
    cluster: MemoryKube,
) -> None:
    key = await running(cluster)
    cluster.edit(key, suspend=True)
    assert await cluster.settle() == 5
    assert cluster.jobs[JOB]["spec"]["suspend"] is True
    assert cluster.status(key)["phase"] == "Running"  # its pod has SIGTERM, and writes
    assert condition(cluster, key, "Reconciling")["reason"] == "Stopping"
    cluster.pods.clear()
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Suspended"
    true = {c["type"] for c in cluster.status(key)["conditions"] if c["status"] == "True"}
    assert true == {"Suspended"}
    cluster.wait(10_000)
    await cluster.settle()
    cluster.edit(key, suspend=False)
    await cluster.settle()
    assert cluster.jobs[JOB]["spec"]["suspend"] is False
    assert "tlt.dev/suspended" not in cluster.jobs[JOB]["metadata"]["annotations"]
    assert cluster.status(key)["phase"] == "Queued"
    cluster.run_pod(JOB)
    await cluster.settle()
    status = cluster.status(key)
    assert (status["phase"], status["attempt"]) == ("Running", 1)
    assert not {"history", "retries", "preemptions", "restarts"} & set(status)
    assert cluster.created_jobs == {JOB: 1}
    cluster.finish(JOB, ended(0))
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Succeeded"


@play
async def test_a_run_that_is_resumed_while_its_pod_still_writes_waits_for_its_end(
    cluster: MemoryKube,
) -> None:
    key = await running(cluster)
    cluster.edit(key, suspend=True)
    await cluster.settle()
    cluster.edit(key, suspend=False)
    await cluster.settle()
    assert cluster.jobs[JOB]["spec"]["suspend"] is True  # two pods must not write to one output
    cluster.pods.clear()
    await cluster.settle()
    assert cluster.jobs[JOB]["spec"]["suspend"] is False


@play
async def test_a_resource_that_the_operator_of_before_suspended_resumes(cluster: MemoryKube) -> None:
    key = await running(cluster)
    # That operator deleted the Job, and recorded that its attempt counts for nothing.
    cluster.edit(key, suspend=True)
    cluster.remove_job(JOB)
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Suspended"
    assert [entry["reason"] for entry in cluster.status(key)["history"]] == ["Suspended"]
    cluster.edit(key, suspend=False)
    await cluster.settle()
    assert (cluster.status(key)["phase"], cluster.status(key)["attempt"]) == ("Queued", 2)
    assert not {"retries", "preemptions", "restarts"} & set(cluster.status(key))


@play
async def test_a_job_that_was_suspended_by_hand_is_reported_with_the_way_out(cluster: MemoryKube) -> None:
    key = await running(cluster)
    cluster.set_suspended(JOB, True)
    cluster.pods.clear()
    await cluster.settle()
    blocked = condition(cluster, key, "Blocked")
    assert (blocked["status"], blocked["reason"]) == ("True", "JobSuspended")
    assert f"kubectl patch job {JOB} -n default" in blocked["message"]
    assert cluster.jobs[JOB]["spec"]["suspend"] is True


# --- Kueue


@play
async def test_a_job_in_a_queue_is_queued_without_a_warning(cluster: MemoryKube) -> None:
    body = resource()
    body["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpus"}
    key = cluster.add(body)
    await cluster.settle()
    kueue_holds(cluster)
    for _ in range(3):
        await cluster.settle()
        cluster.wait(24 * 3600)
    assert cluster.status(key)["phase"] == "Queued"
    assert condition(cluster, key, "Reconciling")["reason"] == "WaitingForAdmission"
    assert "waits in the queue gpus" in condition(cluster, key, "Ready")["message"]
    assert condition(cluster, key, "Blocked")["status"] == "False"
    assert warnings(cluster) == []
    assert "history" not in cluster.status(key)
    kueue_admits(cluster)
    cluster.run_pod(JOB)
    await cluster.settle()
    assert (cluster.status(key)["phase"], cluster.status(key)["attempt"]) == ("Running", 1)


@play
async def test_an_eviction_by_a_queue_is_counted_and_readmission_resumes_the_attempt(
    cluster: MemoryKube,
) -> None:
    key = await running(cluster, "gpus", runPolicy={"maxRetries": 0})
    for number in (1, 2):
        cluster.report(key, progress={"stage": "train", "epoch": number, "step": 5})
        kueue_holds(cluster)
        await cluster.settle()
        assert condition(cluster, key, "Reconciling")["reason"] == "Stopping"
        cluster.pods.clear()
        await cluster.settle()
        status = cluster.status(key)
        assert (status["phase"], status["preemptions"]) == ("Queued", number)
        last = status["history"][-1]
        assert (last["attempt"], last["reason"], last["paused"]) == (1, "Evicted", True)
        assert last["progress"]["epoch"] == number
        kueue_admits(cluster)
        cluster.run_pod(JOB)
        await cluster.settle()
        assert (cluster.status(key)["phase"], cluster.status(key)["attempt"]) == ("Running", 1)
    assert "retries" not in cluster.status(key)
    assert cluster.created_jobs == {JOB: 1}
    cluster.finish(JOB, ended(70))
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Failed"
    # The last eviction stands for all: they do not push the ends of attempts out of the history.
    assert [entry["reason"] for entry in cluster.status(key)["history"]] == ["Evicted", "Internal"]


@play
async def test_a_pod_that_a_queue_takes_away_before_it_ran_is_no_preemption(cluster: MemoryKube) -> None:
    key = cluster.add(of_queue("gpus"))
    await cluster.settle()
    for _ in range(2):
        kueue_admits(cluster)
        cluster.run_pod(JOB, state={"waiting": {"reason": "ContainerCreating"}})
        await cluster.settle()
        kueue_holds(cluster)
        assert await cluster.settle() == 5
        assert cluster.status(key)["phase"] == "Queued"
        assert condition(cluster, key, "Reconciling")["reason"] == "WaitingForOldPod"
        cluster.pods.clear()
        await cluster.settle()
        assert condition(cluster, key, "Reconciling")["reason"] == "WaitingForAdmission"
    assert not {"history", "preemptions"} & set(cluster.status(key))
    # Its container started, which no look has seen before.
    kueue_admits(cluster)
    cluster.run_pod(JOB)
    kueue_holds(cluster)
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Running"
    cluster.pods.clear()
    await cluster.settle()
    assert (cluster.status(key)["phase"], cluster.status(key)["preemptions"]) == ("Queued", 1)


def kueue_deactivates(cluster: MemoryKube) -> None:
    """Stop the Job of an inactive Workload, as Kueue does in its time."""
    assert cluster.workloads[JOB]["spec"]["active"] is False
    cluster.set_suspended(JOB, True)


def untouched(status: Body) -> bool:
    """Tell whether a run has used up neither an attempt nor a retry, and nothing counts as an eviction."""
    return status["attempt"] == 1 and not {"history", "retries", "preemptions", "restarts"} & set(status)


@play
async def test_a_suspended_run_of_a_queue_keeps_its_job_and_its_attempt(cluster: MemoryKube) -> None:
    key = await running(cluster, "gpus")
    cluster.add_workload(JOB)
    assert cluster.reads["workloads"] == 0  # a run that nobody suspends does not ask for it
    cluster.edit(key, suspend=True)
    await cluster.settle()
    # Kueue would resume a Job that somebody else has suspended.
    assert not cluster.jobs[JOB]["spec"].get("suspend")
    assert cluster.status(key)["phase"] == "Running"
    assert condition(cluster, key, "Reconciling")["reason"] == "Stopping"
    kueue_deactivates(cluster)
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Running"  # its pod has SIGTERM, and writes
    cluster.pods.clear()
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Suspended"
    assert untouched(cluster.status(key))
    cluster.edit(key, suspend=False)
    await cluster.settle()
    assert cluster.workloads[JOB]["spec"]["active"] is True
    assert "tlt.dev/suspended" not in cluster.jobs[JOB]["metadata"]["annotations"]
    assert cluster.jobs[JOB]["spec"]["suspend"] is True  # Kueue's to resume, once there is room
    assert condition(cluster, key, "Reconciling")["reason"] == "WaitingForAdmission"
    kueue_admits(cluster)
    cluster.run_pod(JOB)
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Running"
    assert untouched(cluster.status(key))
    assert cluster.created_jobs == {JOB: 1}


@play
async def test_suspending_a_run_that_waits_in_a_queue_takes_it_out(cluster: MemoryKube) -> None:
    key = cluster.add(of_queue("gpus"))
    await cluster.settle()
    cluster.add_workload(JOB)
    kueue_holds(cluster)
    await cluster.settle()
    cluster.edit(key, suspend=True)
    await cluster.settle()
    assert cluster.workloads[JOB]["spec"]["active"] is False
    assert cluster.status(key)["phase"] == "Suspended"
    cluster.edit(key, suspend=False)
    await cluster.settle()
    assert cluster.workloads[JOB]["spec"]["active"] is True
    assert condition(cluster, key, "Reconciling")["reason"] == "WaitingForAdmission"
    assert untouched(cluster.status(key))


@play
async def test_a_run_that_is_resumed_before_its_queue_has_stopped_it_goes_on(cluster: MemoryKube) -> None:
    key = await running(cluster, "gpus")
    cluster.add_workload(JOB)
    cluster.edit(key, suspend=True)
    await cluster.settle()
    cluster.edit(key, suspend=False)
    await cluster.settle()
    assert cluster.workloads[JOB]["spec"]["active"] is True
    assert "tlt.dev/suspended" not in cluster.jobs[JOB]["metadata"]["annotations"]
    assert cluster.status(key)["phase"] == "Running"
    assert untouched(cluster.status(key))


@play
async def test_a_workload_that_somebody_else_has_stopped_is_left_to_them(cluster: MemoryKube) -> None:
    key = await running(cluster, "gpus")
    cluster.add_workload(JOB)
    cluster.workloads[JOB]["spec"]["active"] = False  # kueuectl stop workload
    kueue_deactivates(cluster)
    cluster.pods.clear()
    cluster.edit(key, suspend=True)
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Suspended"
    cluster.edit(key, suspend=False)
    await cluster.settle()
    assert cluster.workloads[JOB]["spec"]["active"] is False
    assert condition(cluster, key, "Reconciling")["reason"] == "WaitingForAdmission"


@play
async def test_a_job_of_a_queue_without_a_workload_is_suspended_like_any_other(cluster: MemoryKube) -> None:
    key = await running(cluster, "gpus")
    cluster.edit(key, suspend=True)
    await cluster.settle()
    assert cluster.jobs[JOB]["spec"]["suspend"] is True
    cluster.pods.clear()
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Suspended"
    cluster.edit(key, suspend=False)
    await cluster.settle()
    assert cluster.jobs[JOB]["spec"]["suspend"] is False
    assert untouched(cluster.status(key))


@play
async def test_without_the_right_to_workloads_the_status_says_so(cluster: MemoryKube) -> None:
    key = await running(cluster, "gpus")
    cluster.add_workload(JOB)
    cluster.refuse_workloads = refusal(403, "workloads.kueue.x-k8s.io is forbidden")
    cluster.edit(key, suspend=True)
    assert await cluster.settle() == 30
    blocked = condition(cluster, key, "Blocked")
    assert (blocked["status"], blocked["reason"]) == ("True", "WorkloadRefused")
    assert "kubectl apply -k manifests/base" in blocked["message"]
    cluster.refuse_workloads = None
    await cluster.settle()
    assert cluster.workloads[JOB]["spec"]["active"] is False
    assert condition(cluster, key, "Blocked")["status"] == "False"


@pytest.mark.parametrize("suspend", [True, False])
def test_a_kill_at_any_write_of_a_suspension_by_the_queue_is_made_good(suspend: bool) -> None:
    async def scenario(cluster: MemoryKube, number: int) -> bool:
        key = await running(cluster, "gpus")
        cluster.add_workload(JOB)
        if not suspend:
            cluster.edit(key, suspend=True)
            await cluster.settle()
            kueue_deactivates(cluster)
            cluster.pods.clear()
            await cluster.settle()
        cluster.edit(key, suspend=suspend)
        cluster.kill_at = cluster.writes + number
        killed = False
        try:
            await cluster.settle()
        except KilledError:
            killed = True
        await cluster.settle()
        assert cluster.workloads[JOB]["spec"]["active"] is not suspend
        assert ("tlt.dev/suspended" in cluster.jobs[JOB]["metadata"]["annotations"]) is suspend
        assert cluster.created_jobs == {JOB: 1}
        assert untouched(cluster.status(key))
        return killed

    kills = [asyncio.run(scenario(MemoryKube(), number)) for number in range(1, 7)]
    # An Event, a status, a note on the Job and its Workload; a resumed one then says in which queue it waits.
    assert kills == ([True] * 4 + [False] * 2 if suspend else [True] * 5 + [False])


def counted(reason: str) -> float:
    return metrics.FAILURES.labels("TrainingJob", reason)._value.get()


@play
async def test_a_failure_is_counted_once_however_the_run_goes_on(cluster: MemoryKube) -> None:
    before = counted("OutOfMemory"), counted("DatasetNotFound")
    key = await running(cluster, "gpus")
    cluster.finish(JOB, ended(12))
    await cluster.settle()
    cluster.wait(10)
    await cluster.settle()
    second = "traffic-train-2"
    cluster.run_pod(second)
    await cluster.settle()
    cluster.set_suspended(second, True)  # an eviction ends nothing
    cluster.pods.clear()
    await cluster.settle()
    cluster.set_suspended(second, False)
    cluster.run_pod(second)
    await cluster.settle()
    assert (cluster.status(key)["phase"], cluster.status(key)["failure"]["reason"]) == (
        "Running", "OutOfMemory",
    )  # fmt: skip
    assert counted("OutOfMemory") - before[0] == 1
    cluster.finish(second, ended(20))
    await cluster.settle()
    assert counted("DatasetNotFound") - before[1] == 1
