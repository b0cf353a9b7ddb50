"""Pods and runs that are no longer heard of: NodeLost, Stalled, and no second pod beside a live one."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest

from operator_ring.manifests import START, ended, resource
from operator_ring.memory_kube import Body, KilledError, MemoryKube
from operator_ring.scenario import condition, play
from tlt_api import times
from tlt_api.resources import KINDS
from tlt_operator import controller
from tlt_operator.cluster.client import ApiError, ConflictError
from tlt_operator.index import Index, key_of
from tlt_operator.snapshot import Key

JOB, POD = "traffic-train-1", "traffic-train-1-abcde"


async def running(cluster: MemoryKube, **spec: Any) -> Key:
    key = cluster.add(resource(**spec))
    await cluster.settle()
    cluster.wait(10)
    cluster.run_pod(JOB)
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Running"
    return key


def unready(cluster: MemoryKube, **pod: Any) -> Body:
    """Let the node fall silent: the node controller makes its pods unready, and the Job sees fewer."""
    cluster.jobs[JOB]["status"]["ready"] = 0
    body = cluster.pods[POD]
    body["spec"] = {"nodeName": "gpu-7"}
    since = times.to_wire(cluster.now)
    body["status"]["conditions"] = [{"type": "Ready", "status": "False", "lastTransitionTime": since}]
    return body


def taint(cluster: MemoryKube) -> None:
    """Let the taint manager evict the pod, which its kubelet does not hear."""
    body = cluster.pods[POD]
    body["metadata"]["deletionTimestamp"] = times.to_wire(cluster.now + timedelta(seconds=120))
    body["status"]["conditions"].append(
        {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "m"}
    )


def reasons(cluster: MemoryKube) -> list[str]:
    return [event["reason"] for event in cluster.events.values() if event["type"] == "Warning"]


@play
async def test_a_run_on_a_node_that_does_not_answer_is_lost_and_not_running(cluster: MemoryKube) -> None:
    key = await running(cluster)
    unready(cluster)
    assert await cluster.settle() == 5
    assert cluster.status(key)["phase"] == "Retrying"
    assert condition(cluster, key, "Reconciling")["reason"] == "NodeLost"
    message = condition(cluster, key, "Ready")["message"]
    assert f"kubectl delete pod {POD} -n default --force --grace-period=0" in message
    assert "kubectl taint node gpu-7 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute" in message
    assert condition(cluster, key, "Stalled")["status"] == "False"
    cluster.wait(300)
    taint(cluster)
    await cluster.settle()
    cluster.wait(300)
    await cluster.settle()
    assert condition(cluster, key, "Stalled")["status"] == "False"
    cluster.wait(1)
    await cluster.settle()
    stalled = condition(cluster, key, "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "NodeLost")
    assert reasons(cluster) == ["NodeLost", "Stalled"]
    cluster.wait(24 * 3600)
    await cluster.settle()
    assert list(cluster.jobs) == [JOB]  # the pod may still write
    # A person has looked, and deletes the pod by force. Its finalizer keeps it until its Job is gone.
    cluster.pods[POD]["metadata"]["deletionGracePeriodSeconds"] = 0
    await cluster.settle()
    status = cluster.status(key)
    assert (status["attempt"], status["history"][0]["reason"]) == (2, "NodeLost")
    assert (status["preemptions"], "retries" in status) == (1, False)
    assert condition(cluster, key, "Stalled")["status"] == "False"
    assert cluster.jobs[JOB]["metadata"]["deletionTimestamp"]
    assert "traffic-train-2" in cluster.jobs


@play
async def test_a_node_that_answers_again_has_its_run_running_again(cluster: MemoryKube) -> None:
    key = await running(cluster)
    unready(cluster)
    await cluster.settle()
    cluster.wait(60)
    cluster.run_pod(JOB)
    await cluster.settle()
    assert (cluster.status(key)["phase"], cluster.status(key)["attempt"]) == ("Running", 1)


@pytest.mark.parametrize("reason", ["PreemptionByScheduler", "EvictionByEvictionAPI"])
def test_a_pod_that_is_taken_away_is_stopping_within_its_grace_period(reason: str) -> None:
    async def scenario(cluster: MemoryKube) -> None:
        key = await running(cluster)
        cluster.jobs[JOB]["status"]["ready"] = 0
        body = cluster.pods[POD]
        body["metadata"]["deletionTimestamp"] = times.to_wire(cluster.now + timedelta(seconds=120))
        target = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "m"}
        body["status"]["conditions"] = [target]
        for _ in range(2):
            await cluster.settle()
            assert cluster.status(key)["phase"] == "Running"
            assert condition(cluster, key, "Reconciling")["reason"] == "Stopping"
            assert reason in condition(cluster, key, "Ready")["message"]
            cluster.wait(150)  # 30 s for the kubelet to say so
        cluster.wait(1)
        await cluster.settle()
        assert condition(cluster, key, "Reconciling")["reason"] == "NodeLost"

    asyncio.run(scenario(MemoryKube()))


@play
async def test_a_container_that_its_kubelet_calls_unready_is_not_lost(cluster: MemoryKube) -> None:
    key = await running(cluster)
    unready(cluster)["status"]["conditions"][0]["reason"] = "ContainersNotReady"
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Running"


# --- progress that does not come


def report(cluster: MemoryKube, key: Key, promise: int | None = 60) -> None:
    progress = {"stage": "train", "epoch": 3, "step": 1, "lastUpdateTime": times.to_wire(cluster.now)}
    cluster.report(key, progress=progress | ({"nextWithinSeconds": promise} if promise is not None else {}))


@play
async def test_a_run_without_the_progress_that_it_promised_is_stalled(cluster: MemoryKube) -> None:
    key = await running(cluster)
    report(cluster, key)
    assert await cluster.settle() == 60
    assert await cluster.watch_for(60) == 30
    assert await cluster.watch_for(119) == 5  # 60 s promised, and 120 s for its way
    assert condition(cluster, key, "Stalled")["status"] == "False"
    cluster.wait(1)
    assert await cluster.settle() == 30
    stalled = condition(cluster, key, "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "NoProgress")
    assert cluster.status(key)["phase"] == "Running"
    assert reasons(cluster) == ["Stalled"]
    assert "deletionTimestamp" not in cluster.jobs[JOB]["metadata"]
    report(cluster, key)
    await cluster.settle()
    assert condition(cluster, key, "Stalled")["status"] == "False"
    assert condition(cluster, key, "Ready")["reason"] == "Running"
    # A second stall of the same attempt is told, too.
    await cluster.watch_for(180)
    assert condition(cluster, key, "Stalled")["status"] == "True"
    assert reasons(cluster) == ["Stalled", "Stalled"]


@play
async def test_a_kill_between_the_event_of_a_stall_and_its_status_leaves_one_event(
    cluster: MemoryKube,
) -> None:
    key = await running(cluster)
    report(cluster, key)
    await cluster.settle()
    await cluster.watch_for(179)
    cluster.wait(1)
    cluster.kill_at = cluster.writes + 2  # the first write is the Event, the second its status
    with pytest.raises(KilledError):
        await cluster.settle()
    cluster.wait(7)
    await cluster.settle()
    assert condition(cluster, key, "Stalled")["status"] == "True"
    assert reasons(cluster) == ["Stalled"]


@play
async def test_an_operator_that_starts_anew_does_not_take_back_that_a_run_is_stalled(
    cluster: MemoryKube,
) -> None:
    key = await running(cluster)
    report(cluster, key)
    await cluster.settle()
    await cluster.watch_for(180)
    cluster.index.reports.forget(key)
    before = cluster.writes
    assert await cluster.settle() == 30
    assert cluster.writes == before
    report(cluster, key)
    await cluster.settle()
    assert condition(cluster, key, "Stalled")["status"] == "False"


@pytest.mark.parametrize("stall", ["Report", "Restart"])
def test_a_run_that_could_not_report_is_not_stalled(stall: str) -> None:
    """The API server was away for half an hour, or the operator's machine was frozen: nobody looked."""

    async def scenario(cluster: MemoryKube) -> None:
        key = await running(cluster, runPolicy={"stall": stall})
        report(cluster, key)
        for _ in range(2):
            cluster.wait(1800)
            await cluster.settle()
            await cluster.watch_for(90)  # a runner tries again after a minute at most
            assert condition(cluster, key, "Ready")["reason"] == "Running"
            report(cluster, key)
            await cluster.settle()
        assert (cluster.status(key)["attempt"], len(cluster.events)) == (1, 0)
        # Looks that fail are none.
        cluster.wait(60)
        for _ in range(60):
            cluster.wait(30)
            with (
                mock.patch.object(cluster, "is_current", side_effect=ApiError(0, "no route to host")),
                pytest.raises(ApiError),
            ):
                await cluster.settle()
        await cluster.watch_for(90)
        assert condition(cluster, key, "Ready")["reason"] == "Running"
        await cluster.watch_for(60)
        assert condition(cluster, key, "Ready")["reason"] != "Running"

    asyncio.run(scenario(MemoryKube()))


@play
async def test_a_run_that_never_reports_is_stalled_an_hour_after_its_start(cluster: MemoryKube) -> None:
    key = await running(cluster)
    assert await cluster.settle() == 3600
    await cluster.watch_for(3600 + 119)
    assert condition(cluster, key, "Stalled")["status"] == "False"
    cluster.wait(1)
    await cluster.settle()
    stalled = condition(cluster, key, "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "NoProgress")
    assert "has not reported since its start" in stalled["message"]
    assert f"kubectl logs job/{JOB} -n default" in stalled["message"]
    assert reasons(cluster) == ["Stalled"]
    before = cluster.writes
    await cluster.watch_for(600)
    assert cluster.writes == before
    report(cluster, key)
    await cluster.settle()
    assert condition(cluster, key, "Stalled")["status"] == "False"


@play
async def test_a_run_that_never_reports_is_restarted_where_the_user_wants_that(cluster: MemoryKube) -> None:
    key = await running(cluster, runPolicy={"stall": "Restart"})
    await cluster.watch_for(3600 + 120)
    status = cluster.status(key)
    assert [entry["reason"] for entry in status["history"]] == ["Stalled"]
    assert (status["phase"], status["attempt"], status["restarts"]) == ("Queued", 2, 1)


@play
async def test_the_report_of_an_earlier_attempt_is_none_of_the_next_one(cluster: MemoryKube) -> None:
    key = await running(cluster)
    report(cluster, key, 60)
    cluster.finish(JOB, ended(75))
    await cluster.settle()
    cluster.wait(10)
    cluster.run_pod("traffic-train-2")
    await cluster.settle()
    await cluster.watch_for(3600 + 119)
    assert condition(cluster, key, "Stalled")["status"] == "False"
    cluster.wait(1)
    await cluster.settle()
    assert condition(cluster, key, "Stalled")["status"] == "True"


@play
async def test_a_jump_of_the_clock_stalls_no_run(cluster: MemoryKube) -> None:
    key = await running(cluster, runPolicy={"stall": "Restart"})
    report(cluster, key, 3600)
    await cluster.settle()
    hours = timedelta(hours=12)
    for _ in range(10):
        cluster.wait(30)
        await controller.reconcile_once(
            cluster, key, cluster.settings, cluster.index, lambda: cluster.now + hours
        )
    assert (cluster.status(key)["attempt"], cluster.status(key)["phase"]) == (1, "Running")


@play
async def test_a_report_that_its_watch_has_not_told_counts(cluster: MemoryKube) -> None:
    key = await running(cluster, runPolicy={"stall": "Restart"})
    report(cluster, key)
    await cluster.settle()
    await cluster.watch_for(179)
    cluster.wait(1)
    stale = MemoryKube.get_resource
    body = await stale(cluster, KINDS[key.kind], key.namespace, key.name)
    index = cluster.index
    report(cluster, key)
    with (
        mock.patch.object(cluster, "get_resource", return_value=body),
        pytest.raises(ConflictError),
    ):
        await controller.reconcile_once(cluster, key, cluster.settings, index, lambda: cluster.now)
    await cluster.settle()
    assert (cluster.status(key)["attempt"], cluster.status(key)["phase"]) == (1, "Running")


def test_the_index_hears_of_reports_and_an_operator_that_stood_by_looks_before_it_blames() -> None:
    now = 0.0
    index = Index()
    index.reports.clock = lambda: now
    body = resource() | {"status": {"progress": {"lastUpdateTime": "2026-01-01T00:00:00Z"}}}
    key = key_of(body)
    index.update(body)
    now = 50.0
    assert index.reports.silence(key, "2026-01-01T00:00:00Z", 60) == 50
    now = 70.0
    assert index.reports.silence(key, "2026-01-01T00:00:00Z", 60) == 70
    now = 5000.0
    assert index.reports.silence(key, "2026-01-01T00:00:00Z", 60) == 60
    now = 5030.0
    assert index.reports.silence(key, "2026-01-01T00:00:00Z", 60) == 90
    body["status"]["progress"]["lastUpdateTime"] = "2026-01-01T00:00:01Z"
    index.update(body)
    assert index.reports.silence(key, "2026-01-01T00:00:01Z", 60) == 0


@play
async def test_a_run_that_keeps_its_promises_is_not_stalled(cluster: MemoryKube) -> None:
    key = await running(cluster)
    for _ in range(5):
        report(cluster, key)
        await cluster.settle()
        cluster.wait(170)
        await cluster.settle()
    before = cluster.writes
    report(cluster, key, 3600)  # an evaluation, which takes longer
    cluster.wait(3600)
    await cluster.settle()
    assert condition(cluster, key, "Stalled")["status"] == "False"
    assert cluster.writes == before


@play
async def test_a_run_that_promises_nothing_is_never_stalled(cluster: MemoryKube) -> None:
    key = await running(cluster)
    report(cluster, key, None)
    cluster.wait(24 * 3600)
    assert await cluster.settle() is None
    assert condition(cluster, key, "Stalled")["status"] == "False"


@play
async def test_the_promise_of_an_earlier_attempt_does_not_bind_the_next(cluster: MemoryKube) -> None:
    key = await running(cluster)
    report(cluster, key)
    cluster.wait(1)
    cluster.finish(JOB, ended(75))
    await cluster.settle()
    cluster.wait(10)
    cluster.run_pod("traffic-train-2")
    cluster.wait(3600)
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Running"
    assert condition(cluster, key, "Stalled")["status"] == "False"


@play
async def test_a_stalled_run_is_restarted_where_its_policy_says_so(cluster: MemoryKube) -> None:
    key = await running(cluster, runPolicy={"stall": "Restart", "maxRetries": 0})
    report(cluster, key)
    await cluster.settle()
    await cluster.watch_for(180)
    assert cluster.jobs[JOB]["metadata"]["deletionTimestamp"]  # SIGTERM, and SIGKILL after the grace period
    assert condition(cluster, key, "Reconciling")["reason"] == "WaitingForOldPod"
    assert list(cluster.jobs) == [JOB]
    cluster.remove_job(JOB)
    await cluster.settle()
    status = cluster.status(key)
    assert (status["attempt"], status["restarts"], status["history"][0]["reason"]) == (2, 1, "Stalled")
    assert not {"retries", "preemptions"} & set(status)
    assert times.from_wire(status["history"][0]["time"]) == START + timedelta(seconds=190)


@pytest.mark.parametrize("dies", [False, True])
def test_the_job_of_a_stalled_run_is_deleted_although_the_first_deletion_fails(dies: bool) -> None:
    async def scenario(cluster: MemoryKube) -> None:
        key = await running(cluster, runPolicy={"stall": "Restart"})
        report(cluster, key)
        await cluster.settle()
        await cluster.watch_for(179)
        cluster.wait(1)
        delete = cluster.delete_job
        answers: list[BaseException] = [KilledError() if dies else ApiError(500, "etcd: timeout")]

        async def failing(*args: Any) -> None:
            if answers:
                raise answers.pop()
            await delete(*args)

        with mock.patch.object(cluster, "delete_job", failing):
            with pytest.raises((ApiError, KilledError)):
                await cluster.settle()
            await cluster.settle()
        assert cluster.jobs[JOB]["metadata"]["deletionTimestamp"]
        cluster.remove_job(JOB)
        await cluster.settle()
        status = cluster.status(key)
        assert (status["attempt"], [entry["reason"] for entry in status["history"]]) == (2, ["Stalled"])
        assert list(cluster.jobs) == ["traffic-train-2"]

    asyncio.run(scenario(MemoryKube()))


@play
async def test_a_job_that_outlived_the_failure_is_deleted_before_the_user_takes_the_run_up(
    cluster: MemoryKube,
) -> None:
    key = cluster.add(resource(runPolicy={"startTimeoutSeconds": 60, "maxRetries": 0}))
    await cluster.settle()
    cluster.run_pod(JOB, state={"waiting": {"reason": "ErrImagePull"}})
    await cluster.settle()
    cluster.wait(61)
    with (
        mock.patch.object(cluster, "delete_job", side_effect=ApiError(500, "etcd: timeout")),
        pytest.raises(ApiError),
    ):
        await cluster.settle()
    assert cluster.status(key)["phase"] == "Failed"
    cluster.edit(key, retry=1)
    await cluster.settle()
    assert cluster.jobs[JOB]["metadata"]["deletionTimestamp"]
    cluster.remove_job(JOB)
    await cluster.settle()
    assert (cluster.status(key)["attempt"], list(cluster.jobs)) == (2, ["traffic-train-2"])
