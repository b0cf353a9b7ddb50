"""Ends of attempts and their consequences: diagnosis, retries, remedies, suspension."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from operator_ring.manifests import SHA, START, ended, resource, waiting
from operator_ring.memory_kube import KilledError, MemoryKube
from operator_ring.scenario import condition, play
from tlt_api import times
from tlt_api.common import JobSpec
from tlt_api.failures import CLASSES, Reason
from tlt_api.resources import parse
from tlt_api.status import Attempt
from tlt_operator.reconcile import retry
from tlt_operator.settings import Settings
from tlt_operator.snapshot import Key


def disruption(reason: str) -> dict[str, Any]:
    return {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "m"}]}


def run_spec(cluster: MemoryKube, job: str) -> dict[str, Any]:
    annotations = cluster.jobs[job]["spec"]["template"]["metadata"]["annotations"]
    return json.loads(annotations["tlt.dev/run-spec"])


async def started(cluster: MemoryKube, **spec: Any) -> Key:
    key = cluster.add(resource(**spec))
    await cluster.settle()
    cluster.run_pod("traffic-train-1")
    await cluster.settle()
    return key


async def fail(cluster: MemoryKube, attempt: int, code: int, **how: Any) -> None:
    """Let the attempt fail, and the next one start if there is one."""
    cluster.finish(f"traffic-train-{attempt}", ended(code), **how)
    delay = await cluster.settle()
    cluster.wait(delay or 0)
    await cluster.settle()


MESSAGE = {
    "failure": {"reason": "OutOfMemory", "message": "3.1 GiB at step 4", "hint": "halve", "retryable": True}
}

ENDS = [
    # what happened                     state of the container           Job / pod                      reason
    ("runner says so", ended(12, "Error", json.dumps(MESSAGE)), {}, "OutOfMemory"),
    ("kernel killed it", ended(137, "OOMKilled"), {}, "OutOfMemory"),
    ("kernel killed a child", ended(137, "Error"), {}, "OutOfMemory"),
    ("SIGTERM from outside", ended(143, "Error"), {}, "Interrupted"),
    ("runner checkpointed", ended(75, "Error"), {}, "Interrupted"),
    ("user's mistake", ended(20, "Error"), {}, "DatasetNotFound"),
    ("segmentation fault", ended(139, "Error"), {}, "Internal"),
    ("Python's traceback", ended(1, "Error", "Traceback (most recent call last)"), {}, "Internal"),
    ("message and code disagree", ended(22, "Error", json.dumps(MESSAGE)), {}, "UnknownClass"),
    ("garbage for a message", ended(13, "Error", '{"failure": 7'), {}, "NaNLoss"),
    ("could not start", ended(128, "StartError", "exec: tlt: not found"), {}, "StartFailed"),
    ("node forgot", ended(137, "ContainerStatusUnknown"), {}, "NodeLost"),
    ("node restarted", ended(255, "Unknown"), {}, "NodeLost"),
    ("deadline of a Job", ended(143, "Error"), {"reason": "DeadlineExceeded"}, "DeadlineExceeded"),
    ("preempted", ended(75, "Error"), disruption("PreemptionByScheduler"), "Evicted"),
    ("drained", ended(137, "Error"), disruption("EvictionByEvictionAPI"), "Evicted"),
    ("taint", ended(137, "Error"), disruption("DeletionByTaintManager"), "NodeLost"),
    ("node removed", ended(137, "Error"), disruption("DeletionByPodGC"), "NodeLost"),
    ("policy says disrupted", ended(75, "Error"), {"reason": "PodFailurePolicy"}, "Evicted"),
]


@pytest.mark.parametrize(("state", "how", "reason"), [case[1:] for case in ENDS], ids=[c[0] for c in ENDS])
def test_each_end_of_a_pod_is_diagnosed_with_its_reason(
    state: dict[str, Any], how: dict[str, Any], reason: str
) -> None:
    async def scenario(cluster: MemoryKube) -> None:
        key = await started(cluster)
        cluster.finish("traffic-train-1", state, **how)
        await cluster.settle()
        failure = cluster.status(key)["failure"]
        assert failure["reason"] == reason
        assert failure["hint"]
        assert failure["retryable"] == CLASSES[Reason(reason)].retryable

    asyncio.run(scenario(MemoryKube()))


@play
async def test_the_runners_own_message_and_hint_are_kept(cluster: MemoryKube) -> None:
    key = await started(cluster)
    cluster.finish("traffic-train-1", ended(12, "Error", json.dumps(MESSAGE)))
    await cluster.settle()
    failure = cluster.status(key)["failure"]
    assert (failure["message"], failure["hint"]) == ("3.1 GiB at step 4", "halve")


@play
async def test_a_pod_that_was_killed_while_it_was_being_deleted_was_interrupted(cluster: MemoryKube) -> None:
    key = await started(cluster)
    cluster.finish("traffic-train-1", ended(137, "Error"))
    cluster.pods["traffic-train-1-abcde"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    await cluster.settle()
    assert cluster.status(key)["failure"]["reason"] == "Interrupted"


@play
async def test_a_missing_pod_counts_as_interrupted_or_evicted(cluster: MemoryKube) -> None:
    key = await started(cluster)
    cluster.finish("traffic-train-1", ended(1))
    cluster.pods.clear()
    await cluster.settle()
    assert cluster.status(key)["failure"]["reason"] == "Interrupted"
    cluster.finish("traffic-train-2", ended(1), reason="PodFailurePolicy")
    cluster.pods.clear()
    await cluster.settle()
    assert cluster.status(key)["failure"]["reason"] == "Evicted"


@pytest.mark.parametrize(
    ("pod_reason", "reason"),
    [("Evicted", "Evicted"), ("OutOfnvidia.com/gpu", "Evicted"), ("NodeShutdown", "NodeLost")],
)
def test_a_pod_that_the_kubelet_rejected_leads_to_another_attempt(pod_reason: str, reason: str) -> None:
    async def scenario(cluster: MemoryKube) -> None:
        key = await started(cluster)
        cluster.finish("traffic-train-1", ended(1), reason="BackoffLimitExceeded")
        pod = cluster.pods["traffic-train-1-abcde"]["status"]
        pod |= {"containerStatuses": [], "reason": pod_reason, "message": "m"}
        await cluster.settle()
        assert cluster.status(key)["failure"]["reason"] == reason
        assert cluster.status(key)["attempt"] == 2

    asyncio.run(scenario(MemoryKube()))


@play
async def test_a_retryable_failure_is_retried_until_the_limit(cluster: MemoryKube) -> None:
    key = await started(cluster, runPolicy={"maxRetries": 2})
    await fail(cluster, 1, 70)
    assert (cluster.status(key)["attempt"], cluster.status(key)["retries"]) == (2, 1)
    await fail(cluster, 2, 70)
    assert (cluster.status(key)["attempt"], cluster.status(key)["retries"]) == (3, 2)
    await fail(cluster, 3, 70)
    assert cluster.status(key)["phase"] == "Failed"
    assert cluster.status(key)["attempt"] == 3
    assert [entry["attempt"] for entry in cluster.status(key)["history"]] == [1, 2, 3]
    assert set(cluster.created_jobs.values()) == {1}


@play
async def test_a_failure_by_the_users_input_is_not_retried(cluster: MemoryKube) -> None:
    key = await started(cluster)
    await fail(cluster, 1, 20)
    assert cluster.status(key)["phase"] == "Failed"
    assert condition(cluster, key, "Failed")["reason"] == "DatasetNotFound"
    assert len(cluster.jobs) == 1


@play
async def test_between_attempts_the_phase_is_retrying_and_the_message_names_the_remedy(
    cluster: MemoryKube,
) -> None:
    key = await started(cluster, training={"batchSizePerGPU": 8})
    cluster.finish("traffic-train-1", ended(12))
    assert await cluster.settle() == 10
    assert cluster.status(key)["phase"] == "Retrying"
    assert "batchSizePerGPU 8 -> 4" in condition(cluster, key, "Reconciling")["message"]
    cluster.wait(9)
    assert await cluster.settle() == 1
    assert cluster.status(key)["attempt"] == 1


@play
async def test_the_batch_is_halved_each_time_memory_runs_out_and_the_update_stays_the_same(
    cluster: MemoryKube,
) -> None:
    await started(cluster, training={"batchSizePerGPU": 6}, runPolicy={"maxRetries": 4})
    for attempt in (1, 2, 3):
        await fail(cluster, attempt, 12)
    specs = [run_spec(cluster, f"traffic-train-{n}")["spec"]["training"] for n in range(1, 5)]
    sizes = [(item["batchSizePerGPU"], item["gradientAccumulationSteps"]) for item in specs]
    assert sizes == [(6, 1), (3, 2), (1, 6), (1, 6)]


@play
async def test_the_learning_rate_is_lowered_when_the_loss_was_nan(cluster: MemoryKube) -> None:
    key = await started(cluster, training={"learningRate": {"min": 5e-6}})
    await fail(cluster, 1, 13)
    await fail(cluster, 2, 12)
    rate = run_spec(cluster, "traffic-train-3")["spec"]["training"]["learningRate"]
    assert (rate["min"], rate["max"]) == (pytest.approx(5e-7), pytest.approx(5e-5))
    assert run_spec(cluster, "traffic-train-3")["spec"]["training"]["batchSizePerGPU"] == 2
    assert [entry["remedy"] for entry in cluster.status(key)["history"]] == [
        "learningRate.max 0.0005 -> 5e-05",
        "batchSizePerGPU 4 -> 2, gradientAccumulationSteps 1 -> 2",
    ]


@play
async def test_a_learning_rate_without_a_minimum_is_lowered_by_its_maximum(cluster: MemoryKube) -> None:
    await started(cluster, training={"learningRate": {"schedule": "step", "max": 1e-3}})
    await fail(cluster, 1, 13)
    rate = run_spec(cluster, "traffic-train-2")["spec"]["training"]["learningRate"]
    assert rate == {"schedule": "step", "max": pytest.approx(1e-4), "scaling": "linear"}


@play
async def test_without_remedies_a_retry_has_the_same_spec(cluster: MemoryKube) -> None:
    policy = {"remedies": {"outOfMemory": "None", "nanLoss": "None"}}
    key = await started(cluster, runPolicy=policy)
    await fail(cluster, 1, 12)
    assert run_spec(cluster, "traffic-train-2")["spec"]["training"]["batchSizePerGPU"] == 4
    assert "remedy" not in cluster.status(key)["history"][0]


@play
async def test_interruptions_do_not_count_as_retries(cluster: MemoryKube) -> None:
    key = await started(cluster, runPolicy={"maxRetries": 0})
    for attempt in range(1, 6):
        await fail(cluster, attempt, 75)
    assert cluster.status(key)["attempt"] == 6
    assert "retries" not in cluster.status(key)
    await fail(cluster, 6, 70)
    assert cluster.status(key)["phase"] == "Failed"


@play
async def test_a_first_interruption_is_resumed_at_once_and_further_ones_ever_later(
    cluster: MemoryKube,
) -> None:
    await started(cluster)
    delays = []
    for attempt in range(1, 11):
        cluster.finish(f"traffic-train-{attempt}", ended(75))
        delay = await cluster.settle()
        waits = f"traffic-train-{attempt + 1}" not in cluster.jobs
        delays.append(delay if waits else 0)
        cluster.wait(delays[-1])
        await cluster.settle()
    assert delays == [0, 10, 20, 40, 80, 160, 320, 600, 600, 600]


@play
async def test_a_deleted_job_is_replaced_by_the_next_attempt(cluster: MemoryKube) -> None:
    key = await started(cluster)
    cluster.remove_job("traffic-train-1")
    await cluster.settle()
    status = cluster.status(key)
    assert (status["attempt"], status["jobName"]) == (2, "traffic-train-2")
    assert [entry["reason"] for entry in status["history"]] == ["JobDeleted"]
    assert "retries" not in status


@play
async def test_a_failure_replaces_all_of_the_one_before(cluster: MemoryKube) -> None:
    key = cluster.add(resource())
    await cluster.settle()
    cluster.finish("traffic-train-1", ended(40))
    await cluster.settle()
    before = cluster.status(key)["failure"]
    assert (before["reason"], before["exitCode"]) == ("StorageUnavailable", 40)
    cluster.wait(700)
    await cluster.settle()
    cluster.run_pod("traffic-train-2")
    await cluster.settle()
    cluster.remove_job("traffic-train-2")
    await cluster.settle()
    failure = cluster.status(key)["failure"]
    assert failure["reason"] == "JobDeleted"
    assert "exitCode" not in failure


@play
async def test_the_next_attempt_waits_until_the_last_pod_of_the_one_before_is_gone(
    cluster: MemoryKube,
) -> None:
    key = await started(cluster)
    del cluster.jobs["traffic-train-1"]  # its pod still runs
    assert await cluster.settle() == 5
    assert condition(cluster, key, "Reconciling")["reason"] == "WaitingForOldPod"
    assert "traffic-train-2" not in cluster.jobs
    cluster.pods.clear()
    await cluster.settle()
    assert "traffic-train-2" in cluster.jobs


@play
async def test_a_resource_created_again_waits_for_the_pod_of_its_predecessor(cluster: MemoryKube) -> None:
    key = await started(cluster)
    pods = dict(cluster.pods)
    cluster.remove(key)
    cluster.pods.update(pods)  # still within its grace period
    cluster.add(resource())
    await cluster.settle()
    assert condition(cluster, key, "Reconciling")["reason"] == "WaitingForOldPod"
    assert cluster.jobs == {}
    cluster.pods.clear()
    await cluster.settle()
    assert list(cluster.jobs) == ["traffic-train-1"]


@play
async def test_interruptions_count_as_retries_after_ten_in_a_row(cluster: MemoryKube) -> None:
    key = await started(cluster, runPolicy={"maxRetries": 1})
    for attempt in range(1, 13):
        await fail(cluster, attempt, 75, **disruption("TerminationByKubelet"))
    assert cluster.status(key)["phase"] == "Failed"
    assert cluster.status(key)["failure"]["reason"] == "Evicted"
    assert cluster.status(key)["attempt"] == 12


@play
async def test_a_resource_resumed_within_the_retry_delay_is_retrying(cluster: MemoryKube) -> None:
    key = await started(cluster)
    cluster.finish("traffic-train-1", ended(70, "Error"))
    await cluster.settle()
    cluster.edit(key, suspend=True)
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Suspended"
    cluster.edit(key, suspend=False)
    assert (await cluster.settle() or 0) > 0
    status = cluster.status(key)
    assert (status["phase"], status["observedGeneration"]) == ("Retrying", 3)


@play
async def test_reported_for_is_kept_at_the_end(cluster: MemoryKube) -> None:
    key = await started(cluster)
    cluster.report(key, reportedFor="pod-1")
    cluster.finish("traffic-train-1", ended(0, "Completed", json.dumps({"metrics": {"mAP": 0.5}})))
    await cluster.settle()
    assert cluster.status(key)["metrics"]["mAP"] == 0.5
    assert cluster.status(key)["reportedFor"] == "pod-1"


@play
async def test_reported_for_in_a_termination_message_is_ignored(cluster: MemoryKube) -> None:
    key = await started(cluster)
    cluster.report(key, reportedFor="pod-1")
    message = {"metrics": {"mAP": 0.5}, "reportedFor": "somebody else"}
    cluster.finish("traffic-train-1", ended(0, "Completed", json.dumps(message)))
    await cluster.settle()
    assert cluster.status(key)["metrics"]["mAP"] == 0.5
    assert cluster.status(key)["reportedFor"] == "pod-1"


@play
async def test_the_end_of_a_job_that_is_being_deleted_is_awaited(cluster: MemoryKube) -> None:
    key = await started(cluster)
    cluster.jobs["traffic-train-1"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    await cluster.settle()
    assert cluster.status(key)["attempt"] == 1
    assert condition(cluster, key, "Reconciling")["reason"] == "Stopping"


@play
async def test_a_resource_created_suspended_starts_with_attempt_1_when_resumed(cluster: MemoryKube) -> None:
    key = cluster.add(resource(suspend=True))
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Suspended"
    assert "attempt" not in cluster.status(key)
    cluster.edit(key, suspend=False)
    await cluster.settle()
    assert cluster.status(key)["attempt"] == 1


@play
async def test_a_run_that_completes_while_it_is_suspended_has_succeeded(cluster: MemoryKube) -> None:
    key = await started(cluster)
    cluster.edit(key, suspend=True)
    cluster.finish("traffic-train-1", ended(0))
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Succeeded"
    assert "traffic-train-1" in cluster.jobs


@play
async def test_suspension_between_two_attempts_starts_no_attempt(cluster: MemoryKube) -> None:
    key = await started(cluster)
    cluster.finish("traffic-train-1", ended(70))
    await cluster.settle()
    cluster.edit(key, suspend=True)
    await cluster.settle()
    cluster.wait(100)
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Suspended"
    assert list(cluster.jobs) == ["traffic-train-1"]
    cluster.edit(key, suspend=False)
    await cluster.settle()
    assert cluster.status(key)["attempt"] == 2
    assert [entry["reason"] for entry in cluster.status(key)["history"]] == ["Internal"]


@play
async def test_an_image_that_is_pulled_late_is_no_failure(cluster: MemoryKube) -> None:
    key = cluster.add(resource())
    await cluster.settle()
    cluster.run_pod("traffic-train-1", state=waiting("ErrImagePull"))
    await cluster.settle()
    cluster.wait(200)
    cluster.run_pod("traffic-train-1")
    await cluster.settle()
    cluster.wait(200)
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Running"
    assert condition(cluster, key, "Blocked")["status"] == "False"


@play
async def test_an_unschedulable_pod_is_waited_for_and_its_reason_reported(cluster: MemoryKube) -> None:
    key = cluster.add(resource())
    await cluster.settle()
    unschedulable = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 GPUs",
    }
    cluster.run_pod("traffic-train-1", state={"waiting": {}}, conditions=[unschedulable])
    cluster.pods["traffic-train-1-abcde"]["status"]["containerStatuses"] = []
    for _ in range(3):
        await cluster.settle()
        cluster.wait(1000)
    assert cluster.status(key)["phase"] == "Queued"
    assert condition(cluster, key, "Blocked")["message"] == "0/3 GPUs"


@play
async def test_a_volume_that_cannot_be_mounted_is_reported(cluster: MemoryKube) -> None:
    key = cluster.add(resource())
    await cluster.settle()
    scheduled = {"type": "PodScheduled", "status": "True"}
    cluster.run_pod("traffic-train-1", state=waiting("ContainerCreating"), conditions=[scheduled])
    cluster.warnings["pod-traffic-train-1"] = [{"reason": "FailedMount", "message": "timed out"}]
    cluster.wait(10)
    await cluster.settle()
    message = condition(cluster, key, "Blocked")["message"]
    assert message.startswith("FailedMount: timed out. kubectl describe pod traffic-train-1-abcde")


@play
async def test_results_that_did_not_reach_the_status_come_from_the_termination_message(
    cluster: MemoryKube,
) -> None:
    key = await started(cluster)
    best = {"name": "best", "uri": "pvc://runs/best", "sha256": SHA, "sizeBytes": 7}
    last = {**best, "name": "last"}
    classes = [{"name": "car", "averagePrecision": 0.5}]
    cluster.report(
        key,
        artifacts=[{**best, "sizeBytes": 1}],
        metrics={"mAP": 0.5, "perClass": classes},
        dataset={"images": 9, "classes": [{"name": "car", "objects": 3}]},
    )
    message = {"metrics": {"mAP": 0.5}, "artifacts": [best, last]}
    cluster.finish("traffic-train-1", ended(0, "Completed", json.dumps(message)))
    await cluster.settle()
    status = cluster.status(key)
    assert status["phase"] == "Succeeded"
    assert status["artifacts"] == [best, last]
    assert status["metrics"] == {"mAP": 0.5, "perClass": classes}  # the message had no room for the classes
    assert status["dataset"]["images"] == 9


@play
async def test_results_are_written_before_the_final_phase(cluster: MemoryKube) -> None:
    key = await started(cluster)
    message = {"artifacts": [{"name": "best", "uri": "pvc://runs/best", "sha256": SHA, "sizeBytes": 7}]}
    cluster.finish("traffic-train-1", ended(0, "Completed", json.dumps(message)))
    cluster.kill_at = cluster.writes + 2
    with pytest.raises(KilledError):
        await cluster.settle()
    assert cluster.status(key)["artifacts"][0]["name"] == "best"
    assert cluster.status(key)["phase"] == "Running"


@play
async def test_a_pruning_report_reaches_the_status_of_its_kind_only(cluster: MemoryKube) -> None:
    key = cluster.add(resource("PruneJob", "small", model={"uri": "pvc://runs/m.keras"}))
    await cluster.settle()
    message = {"metrics": {"mAP": 0.5}, "artifacts": []}  # a PruneJob's status has no metrics
    cluster.finish("small-prune-1", ended(0, "Completed", json.dumps(message)))
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Succeeded"
    assert "metrics" not in cluster.status(key)


def spec(**fields: Any) -> JobSpec:
    return parse(resource(**fields)).spec


def entry(attempt: int, reason: str, remedy: str | None = None, hours: float = 0) -> Attempt:
    return Attempt(
        attempt=attempt,
        reason=reason,
        remedy=remedy,
        time=times.to_wire(START + timedelta(hours=hours)),
    )


def test_a_long_history_forgets_interruptions_before_remedies() -> None:
    history: list[Attempt] = [entry(1, "OutOfMemory", "batchSizePerGPU 4 -> 2")]
    for attempt in range(2, 40):
        history = retry.append(history, entry(attempt, "Evicted"))
    assert len(history) == 20
    assert [item.attempt for item in history] == [1, *range(21, 40)]
    assert retry.for_attempt(spec(), history).training.batch_size_per_gpu == 2  # type: ignore[attr-defined]


def test_interruptions_far_apart_are_each_resumed_at_once() -> None:
    settings = Settings()
    soon = [entry(1, "Evicted", hours=0), entry(2, "Evicted", hours=0.5)]
    late = [entry(1, "Evicted", hours=0), entry(2, "Evicted", hours=2)]
    assert retry.delay(soon, 0, settings) == 10
    assert retry.delay(late, 0, settings) == 0


def test_a_remedy_without_effect_is_none() -> None:
    assert retry.remedy(spec(training={"batchSizePerGPU": 1}), None, Reason.OUT_OF_MEMORY) is None
    assert retry.remedy(spec(), None, Reason.INTERNAL) is None
