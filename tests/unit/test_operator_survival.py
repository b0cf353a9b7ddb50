"""Trouble of the surroundings: told at once with what mends it, waited for, and never for good by itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import timedelta
from typing import Any

import pytest

from operator_ring.manifests import START, ended, resource, waiting
from operator_ring.memory_kube import KilledError, MemoryKube, refusal
from operator_ring.scenario import condition, play
from tlt_api import times
from tlt_api.failures import CLASSES, Cause, Origin, Reason, failure, origin_of
from tlt_api.status import Attempt, Position
from tlt_operator.cluster.client import RefusedError
from tlt_operator.controller import reconcile_once
from tlt_operator.reconcile import blockers, retry
from tlt_operator.settings import Settings
from tlt_operator.snapshot import (
    ConditionState,
    ContainerState,
    EventState,
    JobState,
    Key,
    PodState,
    Refusal,
)

JOB = JobState("traffic-train-1", "job", owner_uid="traffic", created=START)

REFUSALS = [
    # the API server's words (of pods and Jobs alike), the reason of Blocked, and a part of what mends it
    (
        'pods "x-" is forbidden: error looking up service account team/tlt-runner: serviceaccount '
        '"tlt-runner" not found',
        "ServiceAccountMissing",
        "kubectl apply -k manifests/namespace -n team",
    ),
    (
        'pods "x-" is forbidden: pod rejected: RuntimeClass "nvidia" not found',
        "RuntimeClassMissing",
        "Create the RuntimeClass nvidia",
    ),
    (
        'pods "x-" is forbidden: no PriorityClass with name high was found',
        "PriorityClassMissing",
        "kubectl create priorityclass high",
    ),
    (
        'pods "x-" is forbidden: exceeded quota: small, requested: pods=1, used: pods=3, limited: pods=3',
        "QuotaExceeded",
        "kubectl describe resourcequota small -n team",
    ),
    (
        'pods "x-" is forbidden: failed quota: small: must specify limits.cpu for: runner',
        "QuotaUnmet",
        "LimitRange",
    ),
    (
        'Internal error occurred: failed calling webhook "inject.mesh.io": failed to call webhook: Post '
        '"https://mesh.svc:443/inject": connection refused',
        "WebhookUnavailable",
        "Restart the server of the webhook inject.mesh.io",
    ),
    (
        'pods "x-" is forbidden: violates PodSecurity "restricted:latest": privileged',
        "PodSecurityViolated",
        "kubectl get namespace team --show-labels",
    ),
    ('admission webhook "p" denied the request: not today', "PodRejected", "raise spec.retry"),
]


@pytest.mark.parametrize(("message", "reason", "hint"), REFUSALS, ids=[row[1] for row in REFUSALS])
def test_a_refusal_names_what_is_missing_and_what_mends_it(message: str, reason: str, hint: str) -> None:
    # The same for a Job that is refused, and for pods that the Job controller may not create.
    events = (EventState("FailedCreate", "Error creating: " + message),)
    for blocker in (blockers.refusal_blocker(message, "team"), blockers.find(JOB, (), events, "team")):
        assert blocker
        assert blocker.block.reason == reason
        assert message in blocker.block.message
        assert hint in blocker.block.message


def pending(state: tuple[str, str] = ("", ""), unscheduled: str = "") -> PodState:
    scheduled = ConditionState(not unscheduled, "Unschedulable" if unscheduled else "", unscheduled)
    container = ContainerState(waiting_reason=state[0], waiting_message=state[1])
    conditions = {"PodScheduled": scheduled}
    return PodState("x-abcde", "pod", 1, node="n7", conditions=conditions, container=container)


PODS = [
    (
        pending(("CreateContainerConfigError", 'secret "s3" not found')),
        "SecretMissing",
        "kubectl create secret generic s3 -n team",
    ),
    (
        pending(("CreateContainerConfigError", "couldn't find key AWS_ACCESS_KEY_ID in Secret team/s3")),
        "SecretMissing",
        "Add the key AWS_ACCESS_KEY_ID",
    ),
    (
        pending(("CreateContainerError", "context deadline exceeded")),
        "ContainerRefused",
        "kubectl cordon n7",
    ),
    (pending(("ImagePullBackOff", "429 Too Many Requests")), "ImagePullFailed", "imagePullSecrets"),
    (pending(("InvalidImageName", "couldn't parse")), "ImagePullFailed", "create another resource"),
    (pending(("ErrImageNeverPull", "not present")), "ImagePullFailed", "Load the image onto the node"),
    (
        pending(unscheduled='0/3 nodes are available: persistentvolumeclaim "runs" not found.'),
        "ClaimMissing",
        "Create the PersistentVolumeClaim runs in the namespace team",
    ),
    (
        pending(unscheduled="0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
        "ClaimUnbound",
        "kubectl describe pvc -n team",
    ),
    (
        pending(unscheduled="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        "Unschedulable",
        "0/3 nodes",
    ),
]


@pytest.mark.parametrize(("pod", "reason", "hint"), PODS, ids=[row[1] for row in PODS])
def test_a_pod_that_waits_names_what_is_missing_and_what_mends_it(
    pod: PodState, reason: str, hint: str
) -> None:
    blocker = blockers.find(JOB, (pod,), (), "team")
    assert blocker
    assert (blocker.block.reason, hint in blocker.block.message) == (reason, True)


@pytest.mark.parametrize(
    ("code", "message", "invalid"),
    [
        (422, 'Job.batch "x" is invalid: spec.template.spec.nodeSelector: Invalid value: "a/b/c"', True),
        (400, 'admission webhook "p" denied the request: not today', False),
        (422, "jobs.batch \"x\" is forbidden: ValidatingAdmissionPolicy 'p' denied request: no", False),
        (422, 'admission webhook "p" denied the request: Job "x" is invalid: no team', False),
        (403, 'jobs.batch "x" is forbidden: exceeded quota: small', False),
    ],
)
def test_only_a_jobs_own_content_is_refused_for_good(code: int, message: str, invalid: bool) -> None:
    assert blockers.is_invalid(Refusal(code, message)) == invalid


# --- blockers end nothing, unless there is a start timeout

DAY = 24 * 3600


def wait_for_pods(cluster: MemoryKube, state: dict[str, Any]) -> None:
    cluster.run_pod("traffic-train-1", state=state)


def refuse_pods(cluster: MemoryKube, message: str) -> None:
    uid = cluster.jobs["traffic-train-1"]["metadata"]["uid"]
    cluster.warnings[uid] = [{"reason": "FailedCreate", "message": message}]


OBSTACLES: dict[str, tuple[Any, str, str]] = {
    # what happens, the reason of Blocked, the reason of the failure after the start timeout
    "a registry that is away": (
        lambda c: wait_for_pods(c, waiting("ImagePullBackOff", "429")), "ImagePullFailed", "ImagePullFailed",
    ),
    "a Secret that comes late": (
        lambda c: wait_for_pods(c, waiting("CreateContainerConfigError", 'secret "s3" not found')),
        "SecretMissing", "PodRejected",
    ),
    "a webhook that is away": (
        lambda c: refuse_pods(c, 'failed calling webhook "w"'), "WebhookUnavailable", "PodRejected",
    ),
    "a quota": (lambda c: refuse_pods(c, "exceeded quota: small"), "QuotaExceeded", "StartTimeout"),
    "a pod that nobody says anything of": (
        lambda c: wait_for_pods(c, waiting("ContainerCreating")), "NotBlocked", "StartTimeout",
    ),
}  # fmt: skip


async def queued(cluster: MemoryKube, **spec: Any) -> Key:
    key = cluster.add(resource(**spec))
    await cluster.settle()
    cluster.wait(10)
    return key


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_an_obstacle_is_told_at_once_waited_for_and_healed(obstacle: str) -> None:
    async def scenario(cluster: MemoryKube) -> None:
        happens, reason, _ = OBSTACLES[obstacle]
        key = await queued(cluster)
        happens(cluster)
        for _ in range(3):
            await cluster.settle()
            assert cluster.status(key)["phase"] == "Queued"
            assert condition(cluster, key, "Blocked")["reason"] == reason
            cluster.wait(DAY)
        cluster.warnings.clear()
        cluster.run_pod("traffic-train-1")
        await cluster.settle()
        assert cluster.status(key)["phase"] == "Running"
        assert cluster.status(key)["attempt"] == 1
        assert condition(cluster, key, "Blocked")["status"] == "False"
        assert "waitingSince" not in cluster.status(key)

    asyncio.run(scenario(MemoryKube()))


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_with_a_start_timeout_an_obstacle_that_lasts_is_a_failure(obstacle: str) -> None:
    async def scenario(cluster: MemoryKube) -> None:
        happens, _, reason = OBSTACLES[obstacle]
        key = await queued(cluster, runPolicy={"startTimeoutSeconds": 3600})
        happens(cluster)
        await cluster.settle()
        # 10 s have passed since the Job was created.
        cluster.wait(3589)
        assert await cluster.settle() == 1
        assert cluster.status(key)["phase"] == "Queued"
        cluster.wait(1)
        await cluster.settle()
        status = cluster.status(key)
        assert (status["phase"], status["failure"]["reason"]) == ("Failed", reason)
        assert [entry["reason"] for entry in status["history"]] == [reason]

    asyncio.run(scenario(MemoryKube()))


@play
async def test_the_start_timeout_goes_on_when_one_obstacle_follows_another(cluster: MemoryKube) -> None:
    key = await queued(cluster, runPolicy={"startTimeoutSeconds": 100})
    refuse_pods(cluster, "exceeded quota: small")
    await cluster.settle()
    cluster.wait(60)
    wait_for_pods(cluster, waiting("ErrImagePull", "no such tag"))
    await cluster.settle()
    assert condition(cluster, key, "Blocked")["reason"] == "ImagePullFailed"
    cluster.wait(30)
    await cluster.settle()
    assert cluster.status(key)["failure"]["reason"] == "ImagePullFailed"


@play
async def test_a_job_that_a_webhook_refuses_is_tried_again_ever_later(cluster: MemoryKube) -> None:
    key = cluster.add(resource())
    cluster.refuse_jobs = refusal(400, 'admission webhook "p" denied the request: not today')
    delays = []
    for _ in range(6):
        delays.append(await cluster.settle_refused(key))
        assert cluster.status(key)["phase"] == "Queued"
        cluster.wait(delays[-1] or 0)
    # A quarter of the time that it has waited: 0, 30, 60, ... 30 s at least.
    assert delays == [30, 30, 30, 30, 30, 37.5]
    cluster.wait(DAY)
    assert await cluster.settle_refused(key) == 600
    cluster.refuse_jobs = None
    await cluster.settle()
    assert list(cluster.jobs) == ["traffic-train-1"]


# --- attempts that the surroundings end


async def fail(cluster: MemoryKube, attempt: int, code: int, *message: str) -> float:
    """End an attempt; return the seconds after which the next one starts, and wait for it."""
    cluster.finish(f"traffic-train-{attempt}", ended(code, *message))
    delay = await cluster.settle() or 0
    if f"traffic-train-{attempt + 1}" in cluster.jobs:
        return 0
    cluster.wait(delay)
    await cluster.settle()
    return delay


async def started(cluster: MemoryKube, **spec: Any) -> Key:
    key = cluster.add(resource(**spec))
    await cluster.settle()
    cluster.run_pod("traffic-train-1")
    await cluster.settle()
    return key


@play
async def test_storage_that_is_away_is_waited_for_and_costs_no_retry(cluster: MemoryKube) -> None:
    key = await started(cluster, runPolicy={"maxRetries": 0})
    delays = [await fail(cluster, attempt, 40) for attempt in range(1, 10)]
    assert delays == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    status = cluster.status(key)
    assert (status["attempt"], status["restarts"]) == (10, 9)
    assert not {"retries", "preemptions"} & set(status)
    # Hundreds of finished Jobs would be left otherwise.
    ttls = [job["spec"].get("ttlSecondsAfterFinished") for job in cluster.jobs.values()]
    assert ttls == [3600] * 9 + [None]


@play
async def test_while_storage_is_away_the_resource_is_blocked_and_says_by_what(cluster: MemoryKube) -> None:
    key = await started(cluster)
    cluster.finish("traffic-train-1", ended(40))
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Retrying"
    blocked = condition(cluster, key, "Blocked")
    assert (blocked["status"], blocked["reason"]) == ("True", "StorageUnavailable")
    assert CLASSES[Reason.STORAGE_UNAVAILABLE].hint in blocked["message"]
    cluster.edit(key, suspend=True)
    await cluster.settle()
    cluster.edit(key, suspend=False)
    await cluster.settle()  # the wait goes on, and so does what is said of it
    assert condition(cluster, key, "Blocked")["reason"] == "StorageUnavailable"


def denied(uri: str) -> str:
    message = f"{uri} (https://s3.example.com): AccessDenied: HTTP 403"
    failed = failure(Reason.STORAGE_DENIED, message, exit_code=41)
    return json.dumps({"failure": failed.to_wire()})


WITH_KEYS = {"s3": {"secretRef": {"name": "team-keys"}}}


@pytest.mark.parametrize(
    ("uri", "storage", "hint"),
    [
        ("s3://data/a.jpg", WITH_KEYS, "kubectl create secret generic team-keys -n default "),
        ("s3://data/a.jpg", {}, "kubectl describe serviceaccount tlt-runner -n default "),
        ("pvc://runs/traffic", {}, "kubectl get persistentvolumeclaim runs -n default "),
    ],
)
def test_denied_storage_is_waited_for_with_the_command_that_mends_it(
    uri: str, storage: dict[str, Any], hint: str
) -> None:
    async def scenario(cluster: MemoryKube) -> None:
        key = await started(cluster, runPolicy={"maxRetries": 0}, storage=storage)
        delays = []
        for attempt in (1, 2, 3):
            cluster.finish(f"traffic-train-{attempt}", ended(41, message=denied(uri)))
            delays.append(await cluster.settle())
            blocked = condition(cluster, key, "Blocked")
            assert (blocked["status"], blocked["reason"]) == ("True", "StorageDenied")
            assert uri in blocked["message"]
            assert hint in blocked["message"]
            cluster.wait(delays[-1] or 0)
            await cluster.settle()
        assert delays == [10, 20, 40]
        # The Secret was renewed: nothing else is needed.
        cluster.finish("traffic-train-4", ended(0))
        await cluster.settle()
        status = cluster.status(key)
        assert (status["phase"], status["restarts"], "retries" in status) == ("Succeeded", 3, False)

    asyncio.run(scenario(MemoryKube()))


@play
async def test_a_node_without_the_gpus_that_it_promised_is_waited_for_and_avoided(
    cluster: MemoryKube,
) -> None:
    key = await started(cluster, runPolicy={"maxRetries": 0})
    cluster.finish("traffic-train-1", ended(27))
    cluster.pods["traffic-train-1-abcde"]["spec"] = {"nodeName": "gpu-7"}
    await cluster.settle()
    assert condition(cluster, key, "Blocked")["reason"] == "NotEnoughGPUs"
    cluster.wait(10)
    await cluster.settle()
    status = cluster.status(key)
    assert (status["attempt"], status["restarts"], status["history"][0]["node"]) == (2, 1, "gpu-7")


def test_nothing_that_comes_from_the_surroundings_fails_for_good() -> None:
    surroundings = {reason for reason in Reason if origin_of(reason) == Origin.SURROUNDINGS}
    assert surroundings == {
        "StorageUnavailable", "StorageDenied", "StorageFull", "NotEnoughGPUs", "StartFailed", "Interrupted",
        "WorkerLost", "Evicted", "NodeLost", "Stalled", "JobDeleted",
    }  # fmt: skip
    assert all(CLASSES[reason].retryable for reason in surroundings)
    # What is retried besides is the run's own doing, up to maxRetries.
    others = {reason for reason in Reason if CLASSES[reason].retryable} - surroundings
    assert others == {"OutOfMemory", "NaNLoss", "Internal"}


@play
async def test_the_start_timeout_counts_storage_that_is_away_from_its_first_failure(
    cluster: MemoryKube,
) -> None:
    key = await started(cluster, runPolicy={"startTimeoutSeconds": 100})
    for attempt in (1, 2, 3):  # after 10, 30 and 70 s
        await fail(cluster, attempt, 40)
    assert cluster.status(key)["attempt"] == 4
    await fail(cluster, 4, 40)  # the next one would start after 150 s
    status = cluster.status(key)
    assert (status["phase"], status["failure"]["reason"]) == ("Failed", "StorageUnavailable")
    assert status["completionTime"] == times.to_wire(START + timedelta(seconds=100))


@play
async def test_a_start_timeout_of_a_day_ends_after_a_day_of_storage_that_is_away(cluster: MemoryKube) -> None:
    key = await started(cluster, runPolicy={"startTimeoutSeconds": 86400})
    attempt = 1
    while cluster.status(key)["phase"] != "Failed":
        await fail(cluster, attempt, 40)
        attempt += 1
        assert attempt < 200, "more attempts than a day has"
    waited = times.from_wire(cluster.status(key)["completionTime"])
    assert waited and timedelta(days=1) <= waited - START < timedelta(days=1, minutes=11)
    assert len(cluster.status(key)["history"]) == 20


@play
async def test_a_clock_that_is_behind_delays_nothing(cluster: MemoryKube) -> None:
    """The operator of before was on a machine whose clock is an hour ahead."""
    key = await started(cluster, runPolicy={"startTimeoutSeconds": 3000})
    cluster.run_pod("traffic-train-1", state={"waiting": {"reason": "ContainerCreating"}})
    pod = cluster.pods["traffic-train-1-abcde"]
    pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}]
    warning = {"reason": "FailedMount", "message": 'secret "data" not found', "lastTimestamp": ""}
    cluster.warnings["pod-traffic-train-1"] = [warning]
    cluster.now -= timedelta(hours=1)
    assert await cluster.settle() == 600
    assert 'secret "data" not found' in condition(cluster, key, "Blocked")["message"]
    cluster.wait(60)
    assert await cluster.settle() == 600
    cluster.now = START
    for _ in range(2):  # the second one is delayed
        cluster.finish(f"traffic-train-{cluster.status(key)['attempt']}", ended(40))
        await cluster.settle()
        cluster.wait(20)
        await cluster.settle()
    assert cluster.status(key)["attempt"] == 3
    cluster.finish("traffic-train-3", ended(40))
    assert await cluster.settle() == 40
    cluster.now -= timedelta(hours=1)
    await cluster.settle()
    assert cluster.status(key)["attempt"] == 4


@play
async def test_a_node_that_cannot_start_a_pod_is_told_and_avoided(cluster: MemoryKube) -> None:
    key = await started(cluster, runPolicy={"maxRetries": 0})
    message = "OCI runtime create failed: nvidia-container-cli: initialization error: driver not loaded"
    cluster.finish("traffic-train-1", ended(128, "StartError", message))
    cluster.pods["traffic-train-1-abcde"]["spec"] = {"nodeName": "gpu-7"}
    await cluster.settle()
    assert "nvidia-container-cli" in condition(cluster, key, "Blocked")["message"]
    assert "kubectl cordon gpu-7" in condition(cluster, key, "Blocked")["message"]
    cluster.wait(10)
    await cluster.settle()
    status = cluster.status(key)
    assert (status["attempt"], status["restarts"], status["history"][0]["node"]) == (2, 1, "gpu-7")
    affinity = cluster.jobs["traffic-train-2"]["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    [preferred] = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["preference"]["matchFields"] == [
        {"key": "metadata.name", "operator": "NotIn", "values": ["gpu-7"]}
    ]
    # A GPU that its node's device plugin has lost is no eviction.
    cluster.finish("traffic-train-2", ended(1))
    pod = cluster.pods["traffic-train-2-abcde"]
    pod["spec"] = {"nodeName": "gpu-8"}
    pod["status"] |= {"containerStatuses": [], "reason": "UnexpectedAdmissionError", "message": "m"}
    await cluster.settle()
    cluster.wait(20)
    await cluster.settle()
    assert cluster.status(key)["history"][1]["reason"] == "StartFailed"
    affinity = cluster.jobs["traffic-train-3"]["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    [preferred] = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert [field["values"] for field in preferred["preference"]["matchFields"]] == [["gpu-8"], ["gpu-7"]]


@play
async def test_an_image_without_the_command_is_told_by_its_name(cluster: MemoryKube) -> None:
    key = await started(cluster)
    message = 'exec: "tlt": executable file not found in $PATH'
    cluster.finish("traffic-train-1", ended(128, "StartError", message))
    await cluster.settle()
    assert "spec.podTemplate.image is a runner image" in condition(cluster, key, "Blocked")["message"]


# --- interruptions count anew whenever progress moved


def entry(attempt: int, reason: str, epoch: int | None = None, minutes: float = 0, **more: Any) -> Attempt:
    reached = None if epoch is None else Position(stage="train", epoch=epoch, step=0)
    time = times.to_wire(START + timedelta(minutes=minutes))
    return Attempt(attempt=attempt, reason=reason, progress=reached, time=time, **more)


@play
async def test_a_run_that_is_preempted_every_50_minutes_and_moves_on_never_fails(
    cluster: MemoryKube,
) -> None:
    key = await started(cluster, runPolicy={"maxRetries": 0})
    for attempt in range(1, 31):
        cluster.wait(3000)
        cluster.report(key, progress={"stage": "train", "epoch": attempt, "step": 7})
        assert await fail(cluster, attempt, 75) == 0  # resumed at once, each time
    status = cluster.status(key)
    assert (status["attempt"], status["preemptions"]) == (31, 30)
    assert "retries" not in status
    assert status["history"][-1]["progress"] == {"stage": "train", "epoch": 30, "step": 7}


PLACES = [
    # epochs at the ends of attempts, and how many of the last ends are in a row
    ([3, 3, 3], 3),
    ([None, None, None], 3),
    ([3, 4, 5], 1),
    ([3, 4, 4], 2),
    ([5, 3, 4], 3),  # 4 is more than 3, but the run had been at 5
    ([None, 0, 0], 2),  # it came as far as training
]


@pytest.mark.parametrize(("epochs", "row"), PLACES)
def test_interruptions_are_in_a_row_while_the_run_gets_no_further(epochs: list[int | None], row: int) -> None:
    history = [entry(number, "Evicted", epoch) for number, epoch in enumerate(epochs, 1)]
    expected = 0 if row == 1 else 10 * 2.0 ** (row - 2)
    assert retry.delay(history, 0, Settings()) == expected


def test_another_cause_and_the_user_end_a_row() -> None:
    evicted, away = entry(1, "Evicted"), entry(2, "StorageUnavailable")
    assert retry.delay([evicted, evicted, away], 0, Settings()) == 10
    assert retry.delay([away, away, away], 0, Settings()) == 40
    by_user = away.model_copy(update={"retry": 1})
    assert retry.delay([away, by_user, away], 0, Settings()) == 10


def test_what_a_queue_paused_is_no_end_of_an_attempt() -> None:
    away, paused = entry(1, "StorageUnavailable"), entry(2, "Evicted", paused=True)
    assert retry.delay([away, paused, away], 0, Settings()) == 20


def test_every_failure_that_others_cause_is_retryable_or_ends_a_start_timeout() -> None:
    for item in CLASSES.values():
        assert item.retryable or item.cause == Cause.RUN


# --- spec.retry


def patch_retry(cluster: MemoryKube, key: Key, number: int) -> None:
    cluster.edit(key, retry=number)


@play
async def test_a_raised_retry_takes_a_failed_resource_to_its_next_attempt(cluster: MemoryKube) -> None:
    key = await started(cluster, runPolicy={"maxRetries": 0})
    uid = cluster.resources[key]["metadata"]["uid"]
    await fail(cluster, 1, 20)
    assert cluster.status(key)["phase"] == "Failed"
    patch_retry(cluster, key, 1)
    await cluster.settle()
    status = cluster.status(key)
    assert (status["phase"], status["attempt"], status["observedRetry"]) == ("Queued", 2, 1)
    assert (status["restarts"], status["history"][0]["retry"]) == (1, 1)
    assert "completionTime" not in status
    assert "traffic-train-2" in cluster.jobs
    assert cluster.resources[key]["metadata"]["uid"] == uid
    # Acted upon once: the next failure is final again.
    await fail(cluster, 2, 20)
    assert cluster.status(key)["phase"] == "Failed"
    before = cluster.writes
    await cluster.settle()
    assert cluster.writes == before
    patch_retry(cluster, key, 2)
    await cluster.settle()
    cluster.finish("traffic-train-3", ended(0))
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Succeeded"
    assert "failure" not in cluster.status(key)


@play
async def test_a_raised_retry_allows_as_many_failures_as_before(cluster: MemoryKube) -> None:
    key = await started(cluster, runPolicy={"maxRetries": 1})
    await fail(cluster, 1, 70)
    await fail(cluster, 2, 70)
    assert (cluster.status(key)["phase"], cluster.status(key)["retries"]) == ("Failed", 1)
    patch_retry(cluster, key, 1)
    await cluster.settle()
    assert "retries" not in cluster.status(key)
    await fail(cluster, 3, 70)
    assert (cluster.status(key)["attempt"], cluster.status(key)["retries"]) == (4, 1)
    await fail(cluster, 4, 70)
    assert cluster.status(key)["phase"] == "Failed"


@play
async def test_a_raised_retry_applies_the_remedy_that_a_retry_would_have(cluster: MemoryKube) -> None:
    key = await started(cluster, runPolicy={"maxRetries": 0})
    await fail(cluster, 1, 12)
    assert cluster.status(key)["phase"] == "Failed"
    patch_retry(cluster, key, 1)
    await cluster.settle()
    assert "batchSizePerGPU 4 -> 2" in cluster.status(key)["history"][0]["remedy"]
    run = cluster.jobs["traffic-train-2"]["spec"]["template"]["metadata"]["annotations"]["tlt.dev/run-spec"]
    assert '"batchSizePerGPU":2' in run


@play
async def test_a_raised_retry_takes_up_a_resource_that_failed_before_its_first_attempt(
    cluster: MemoryKube,
) -> None:
    parent = await started(cluster, runPolicy={"maxRetries": 0})
    prune = cluster.add(resource("PruneJob", "small"))
    await cluster.settle()
    await fail(cluster, 1, 22)
    assert cluster.status(prune)["failure"]["reason"] == "DependencyFailed"
    # The parent has not succeeded yet: the child fails again.
    patch_retry(cluster, prune, 1)
    await cluster.settle()
    assert cluster.status(prune)["failure"]["reason"] == "DependencyFailed"
    assert cluster.status(prune)["observedRetry"] == 1
    patch_retry(cluster, parent, 1)
    await cluster.settle(parent)
    patch_retry(cluster, prune, 2)
    await cluster.settle()
    assert (cluster.status(prune)["phase"], "failure" in cluster.status(prune)) == ("Pending", False)
    best = {"name": "best", "uri": "pvc://runs/best", "sha256": "a" * 64, "sizeBytes": 7}
    cluster.report(parent, artifacts=[best])
    cluster.finish("traffic-train-2", ended(0))
    await cluster.settle()
    assert "small-prune-1" in cluster.jobs


@play
async def test_a_retry_raised_while_nothing_has_failed_is_noted_and_starts_nothing(
    cluster: MemoryKube,
) -> None:
    key = await started(cluster, runPolicy={"maxRetries": 0})
    patch_retry(cluster, key, 1)
    await cluster.settle()
    assert cluster.status(key)["observedRetry"] == 1
    await fail(cluster, 1, 20)
    assert cluster.status(key)["phase"] == "Failed"
    # A manifest of before is applied again, and raised again.
    patch_retry(cluster, key, 0)
    await cluster.settle()
    assert (cluster.status(key)["phase"], cluster.status(key)["observedRetry"]) == ("Failed", 0)
    patch_retry(cluster, key, 1)
    await cluster.settle()
    assert cluster.status(key)["attempt"] == 2


@play
async def test_a_retry_raised_during_the_wait_for_the_next_attempt_ends_the_wait(
    cluster: MemoryKube,
) -> None:
    key = await started(cluster)
    for attempt in range(1, 7):
        await fail(cluster, attempt, 40)
    cluster.finish("traffic-train-7", ended(40))
    assert await cluster.settle() == 600
    patch_retry(cluster, key, 1)
    await cluster.settle()
    assert cluster.status(key)["attempt"] == 8
    assert await fail(cluster, 8, 40) == 10  # the storage is not back, but the user has looked at it


@play
async def test_the_deadline_of_a_pod_is_told_from_an_interruption(cluster: MemoryKube) -> None:
    key = await started(cluster, runPolicy={"activeDeadlineSeconds": 60})
    # As a kubelet does: SIGTERM, upon which the runner writes its checkpoint and ends with 75.
    cluster.finish("traffic-train-1", ended(75))
    cluster.pods["traffic-train-1-abcde"]["status"] |= {"reason": "DeadlineExceeded"}
    await cluster.settle()
    status = cluster.status(key)
    assert (status["phase"], status["failure"]["reason"]) == ("Failed", "DeadlineExceeded")
    cluster.edit(key, runPolicy={"activeDeadlineSeconds": 600}, retry=1)
    await cluster.settle()
    assert cluster.jobs["traffic-train-2"]["spec"]["template"]["spec"]["activeDeadlineSeconds"] == 600


@play
async def test_a_raised_retry_waits_for_the_pods_of_the_attempt_before(cluster: MemoryKube) -> None:
    key = await started(cluster)
    cluster.finish("traffic-train-1", ended(20))
    pod = cluster.pods["traffic-train-1-abcde"]
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Failed"
    # Of another worker, say, which has not ended.
    pod["status"] |= {"phase": "Running", "containerStatuses": [{"name": "runner", "state": {"running": {}}}]}
    patch_retry(cluster, key, 1)
    await cluster.settle()
    assert condition(cluster, key, "Reconciling")["reason"] == "WaitingForOldPod"
    assert list(cluster.jobs) == ["traffic-train-1"]
    cluster.pods.clear()
    await cluster.settle()
    assert list(cluster.jobs) == ["traffic-train-1", "traffic-train-2"]
    assert cluster.status(key)["restarts"] == 1


@play
async def test_a_failed_resource_that_is_suspended_is_taken_up_once_it_is_resumed(
    cluster: MemoryKube,
) -> None:
    key = await started(cluster, runPolicy={"maxRetries": 0})
    await fail(cluster, 1, 20)
    cluster.edit(key, suspend=True, retry=1)
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Failed"
    assert list(cluster.jobs) == ["traffic-train-1"]
    cluster.edit(key, suspend=False)
    await cluster.settle()
    assert (cluster.status(key)["phase"], cluster.status(key)["attempt"]) == ("Queued", 2)


@pytest.mark.parametrize("code", [20, 40])  # failed, and while it waits for its next attempt
def test_a_kill_at_any_write_of_a_retry_makes_one_job_and_one_status(code: int) -> None:
    async def scenario(cluster: MemoryKube, kill: int) -> None:
        key = await started(cluster, runPolicy={"maxRetries": 3})
        cluster.finish("traffic-train-1", ended(code))
        await cluster.settle()
        patch_retry(cluster, key, 1)
        cluster.kill_at = cluster.writes + kill
        for _ in range(3):
            with contextlib.suppress(KilledError):
                await cluster.settle()
            cluster.kill_at = None
        status = cluster.status(key)
        assert (status["phase"], status["attempt"], status["observedRetry"]) == ("Queued", 2, 1)
        assert [entry["retry"] for entry in status["history"]] == [1]
        assert cluster.created_jobs == {"traffic-train-1": 1, "traffic-train-2": 1}

    for kill in range(1, 5):
        asyncio.run(scenario(MemoryKube(), kill))


def test_a_kill_at_any_write_of_a_retry_after_a_refused_job_makes_one_job() -> None:
    async def scenario(cluster: MemoryKube, kill: int) -> None:
        key = cluster.add(resource())
        cluster.refuse_jobs = refusal(422, 'Job.batch "traffic-train-1" is invalid: spec.x: Forbidden')
        await cluster.settle_refused(key)
        # Refused before it began: no end of an attempt is recorded.
        assert (cluster.status(key)["phase"], "history" in cluster.status(key)) == ("Failed", False)
        cluster.refuse_jobs = None
        cluster.edit(key, retry=1)
        cluster.kill_at = cluster.writes + kill
        for _ in range(3):
            with contextlib.suppress(KilledError):
                await cluster.settle()
            cluster.kill_at = None
        status = cluster.status(key)
        assert (status["phase"], status["attempt"], status["observedRetry"]) == ("Queued", 2, 1)
        assert cluster.created_jobs == {"traffic-train-2": 1}

    for kill in range(1, 5):
        asyncio.run(scenario(MemoryKube(), kill))


@play
async def test_a_run_that_the_operator_of_before_began_goes_on(cluster: MemoryKube) -> None:
    key = await started(cluster, runPolicy={"maxRetries": 1, "activeDeadlineSeconds": 60})
    # Its Job has the deadline itself, and its history neither places nor nodes.
    cluster.jobs["traffic-train-1"]["spec"]["activeDeadlineSeconds"] = 60
    status = cluster.resources[key]["status"]
    old = {"attempt": 1, "jobName": "traffic-train-1", "jobUid": status["jobUid"], "phase": "Running"}
    history = [{"attempt": 0, "reason": "NodeLost", "time": times.to_wire(START)}]
    cluster.resources[key]["status"] = old | {"startTime": times.to_wire(START), "history": history}
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Running"
    cluster.finish("traffic-train-1", ended(75))
    assert await cluster.settle() == 10  # the second interruption in a row
    cluster.wait(10)
    await cluster.settle()
    assert (cluster.status(key)["attempt"], cluster.status(key)["preemptions"]) == (2, 1)
    assert [entry["reason"] for entry in cluster.status(key)["history"]] == ["NodeLost", "Interrupted"]
    cluster.finish("traffic-train-2", ended(143), reason="DeadlineExceeded")
    await cluster.settle()
    assert cluster.status(key)["failure"]["reason"] == "DeadlineExceeded"


@play
async def test_a_refused_status_is_not_taken_for_a_refused_job(cluster: MemoryKube) -> None:
    key = cluster.add(resource())
    write = cluster.patch_status

    async def refused(*_: Any, **__: Any) -> Any:
        raise refusal(422, 'TrainingJob.tlt.dev "traffic" is invalid: status.x: Invalid value')

    cluster.patch_status = refused  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(RefusedError, match=r"status\.x"):
            await reconcile_once(cluster, key, cluster.settings, cluster.index, lambda: cluster.now)
    cluster.patch_status = write  # type: ignore[method-assign]
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Queued"
    assert cluster.created_jobs == {"traffic-train-1": 1}
