"""Training over several nodes: one Indexed Job, its Service, and the pod whose failure is the cause."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from operator_ring.manifests import BEST, START, ended, resource
from operator_ring.memory_kube import KilledError, MemoryKube, refusal
from operator_ring.scenario import condition, play
from tlt_api.failures import CLASSES, Reason
from tlt_api.resources import MAX_NAME_LENGTH, parse
from tlt_api.runspec import RUN_SPEC_ANNOTATION, RunSpec
from tlt_operator import controller
from tlt_operator.cluster.client import ApiError
from tlt_operator.reconcile import waiting
from tlt_operator.reconcile.diagnosis import diagnose
from tlt_operator.snapshot import ConditionState, ContainerState, JobState, Key, PodState

JOB = "traffic-train-1"
SERVICE = f"tlt-{JOB}"


def nodes(count: int = 2, name: str = "traffic", **spec: Any) -> dict[str, Any]:
    return resource(name=name, resources={"gpus": 0, "nodes": count}, **spec)


def run_pods(cluster: MemoryKube) -> None:
    """Let both pods of the first attempt run."""
    for index in range(2):
        cluster.run_pod(JOB, index)


def blocked(cluster: MemoryKube, key: Key) -> tuple[str, str]:
    blocked = condition(cluster, key, "Blocked")
    return blocked["reason"], blocked["message"]


@play
async def test_two_nodes_are_an_indexed_job_whose_pods_know_each_others_addresses(
    cluster: MemoryKube,
) -> None:
    cluster.add(nodes(2))
    await cluster.settle()
    spec = cluster.jobs[JOB]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert spec["backoffLimit"] == 0
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == SERVICE
    assert pod["containers"][0]["ports"] == [{"name": "workers", "containerPort": 2222}]
    run = RunSpec.from_json(spec["template"]["metadata"]["annotations"][RUN_SPEC_ANNOTATION])
    assert run.workers == [f"{JOB}-0.{SERVICE}:2222", f"{JOB}-1.{SERVICE}:2222"]


@play
async def test_one_node_is_an_ordinary_job_without_a_service(cluster: MemoryKube) -> None:
    cluster.add(nodes(1))
    await cluster.settle()
    spec = cluster.jobs[JOB]["spec"]
    assert not {"completionMode", "completions", "parallelism"} & set(spec)
    assert "subdomain" not in spec["template"]["spec"]
    assert not cluster.services


@play
async def test_the_service_is_headless_belongs_to_the_job_and_selects_its_pods_alone(
    cluster: MemoryKube,
) -> None:
    cluster.add(nodes())
    await cluster.settle()
    service = cluster.services[SERVICE]
    uid = cluster.jobs[JOB]["metadata"]["uid"]
    (owner,) = service["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == ("Job", JOB, uid, True)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/controller-uid": uid}


@play
async def test_a_deleted_service_is_created_again_while_the_job_runs(cluster: MemoryKube) -> None:
    key = cluster.add(nodes())
    await cluster.settle()
    run_pods(cluster)
    del cluster.services[SERVICE]
    await cluster.settle()
    assert SERVICE in cluster.services
    assert cluster.status(key)["phase"] == "Running"
    assert cluster.created_jobs == {JOB: 1}


@play
async def test_a_foreign_service_of_that_name_is_reported_and_left_alone(cluster: MemoryKube) -> None:
    foreign = {"metadata": {"name": SERVICE, "namespace": "default"}, "spec": {}}
    cluster.services[SERVICE] = foreign
    key = cluster.add(nodes())
    await cluster.settle()
    assert blocked(cluster, key)[0] == "ServiceNameTaken"
    assert cluster.services[SERVICE] == foreign
    del cluster.services[SERVICE]
    await cluster.settle()
    assert cluster.services[SERVICE] != foreign


@pytest.mark.parametrize("what", ["refuse_services", "refuse_new_services"])
@pytest.mark.parametrize("pods", [0, 2])
def test_a_refused_service_fails_the_resource_after_the_start_timeout(what: str, pods: int) -> None:
    async def scenario(cluster: MemoryKube) -> None:
        setattr(cluster, what, refusal(403, "services is forbidden"))
        key = cluster.add(nodes(runPolicy={"maxRetries": 0, "startTimeoutSeconds": 300}))
        await cluster.settle_refused(key)
        for index in range(pods):  # they run, and look for each other in vain
            cluster.run_pod(JOB, index)
        await cluster.settle_refused(key)
        assert blocked(cluster, key)[0] == "ServiceRefused"
        assert "services is forbidden" in blocked(cluster, key)[1]
        assert cluster.status(key)["jobUid"] == cluster.jobs[JOB]["metadata"]["uid"]
        cluster.wait(301)
        await cluster.settle_refused(key)
        assert cluster.status(key)["failure"]["reason"] == "PodRejected"
        assert "operator-rbac.yaml" in cluster.status(key)["failure"]["hint"]

    asyncio.run(scenario(MemoryKube()))


@play
async def test_suspension_works_while_the_service_is_refused(cluster: MemoryKube) -> None:
    cluster.refuse_services = refusal(403, "services is forbidden")
    key = cluster.add(nodes())
    await cluster.settle()
    run_pods(cluster)
    cluster.edit(key, suspend=True)
    await cluster.settle()
    assert cluster.jobs[JOB]["spec"]["suspend"] is True
    cluster.pods.clear()
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Suspended"


@play
async def test_a_run_starts_once_the_operator_may_create_services(cluster: MemoryKube) -> None:
    cluster.refuse_services = refusal(403, "services is forbidden")
    key = cluster.add(nodes())
    assert await cluster.settle() == waiting.REFUSED_POLL_SECONDS
    run_pods(cluster)
    cluster.refuse_services = None
    await cluster.settle()
    assert SERVICE in cluster.services
    assert cluster.status(key)["phase"] == "Running"
    assert blocked(cluster, key)[0] == "NotBlocked"
    assert cluster.created_jobs == {JOB: 1}


@pytest.mark.parametrize("what", ["refuse_services", "refuse_new_services"])
def test_a_run_whose_service_cannot_be_created_again_goes_on_and_reports_it(what: str) -> None:
    async def scenario(cluster: MemoryKube) -> None:
        key = cluster.add(nodes())
        await cluster.settle()
        run_pods(cluster)
        await cluster.settle()
        del cluster.services[SERVICE]
        setattr(cluster, what, refusal(403, "services is forbidden"))
        for _ in range(3):
            await cluster.settle_refused(key)
            cluster.wait(301)
        assert cluster.status(key)["phase"] == "Running"
        assert "services is forbidden" in condition(cluster, key, "Ready")["message"]
        assert "deletionTimestamp" not in cluster.jobs[JOB]["metadata"]
        setattr(cluster, what, None)
        await cluster.settle()
        assert SERVICE in cluster.services
        assert "forbidden" not in condition(cluster, key, "Ready")["message"]

    asyncio.run(scenario(MemoryKube()))


@play
async def test_a_restarted_pod_without_a_service_gets_a_new_start_timeout(
    cluster: MemoryKube,
) -> None:
    key = cluster.add(nodes(runPolicy={"maxRetries": 0, "startTimeoutSeconds": 300}))
    await cluster.settle()
    run_pods(cluster)
    await cluster.settle()
    del cluster.services[SERVICE]
    cluster.refuse_services = refusal(403, "services is forbidden")
    await cluster.settle()
    cluster.wait(301)
    cluster.run_pod(JOB, 1, phase="Pending", state={})
    await cluster.settle()
    assert (cluster.status(key)["phase"], blocked(cluster, key)[0]) == ("Queued", "ServiceRefused")
    cluster.wait(301)
    await cluster.settle()
    assert cluster.status(key)["failure"]["reason"] == "PodRejected"


@play
async def test_a_job_of_several_pods_is_queued_until_the_last_one_runs_and_reports_why(
    cluster: MemoryKube,
) -> None:
    key = cluster.add(nodes(2))
    await cluster.settle()
    cluster.wait(60)
    cluster.run_pod(JOB, 0)
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}
    cluster.run_pod(JOB, 1, phase="Pending", state={}, conditions=[unscheduled])
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Queued"
    assert blocked(cluster, key) == ("Unschedulable", "no GPU")
    cluster.run_pod(JOB, 1)
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Running"


@play
async def test_the_results_of_the_chief_count_even_if_another_pod_ends_last(cluster: MemoryKube) -> None:
    key = cluster.add(nodes())
    await cluster.settle()
    cluster.run_pod(JOB, 0, state=ended(0, "Completed", json.dumps(BEST)), phase="Succeeded")
    cluster.wait(5)
    cluster.finish(JOB, ended(0, "Completed", json.dumps({"artifacts": []})), index=1)
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Succeeded"
    assert cluster.status(key)["artifacts"] == BEST["artifacts"]


@play
async def test_a_failure_leads_to_the_next_attempt_with_its_own_job_and_service(cluster: MemoryKube) -> None:
    key = cluster.add(nodes())
    await cluster.settle()
    cluster.run_pod(JOB, 0, state=ended(76), phase="Failed")
    cluster.finish(JOB, ended(137, "OOMKilled"), index=1)
    await cluster.settle()
    cluster.wait(3600)
    await cluster.settle()
    assert [entry["reason"] for entry in cluster.status(key)["history"]] == ["OutOfMemory"]
    run = cluster.jobs["traffic-train-2"]["spec"]["template"]["metadata"]["annotations"][RUN_SPEC_ANNOTATION]
    assert RunSpec.from_json(run).workers[0] == "traffic-train-2-0.tlt-traffic-train-2:2222"
    assert "tlt-traffic-train-2" in cluster.services


@play
async def test_the_next_attempt_waits_for_every_pod_of_the_last(cluster: MemoryKube) -> None:
    key = cluster.add(nodes())
    await cluster.settle()
    cluster.finish(JOB, ended(76), index=0)
    cluster.run_pod(JOB, 1)
    cluster.jobs[JOB]["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
    await cluster.settle()
    assert "traffic-train-2" not in cluster.jobs
    assert f"{JOB}-1-abcde" in next(
        c["message"] for c in cluster.status(key)["conditions"] if c["type"] == "Reconciling"
    )


@play
async def test_suspending_keeps_the_job_and_its_service(cluster: MemoryKube) -> None:
    key = cluster.add(nodes())
    await cluster.settle()
    run_pods(cluster)
    await cluster.settle()
    cluster.edit(key, suspend=True)
    await cluster.settle()
    del cluster.pods[f"{JOB}-0-abcde"]
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Running"  # the other one still writes
    cluster.pods.clear()
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Suspended"
    cluster.edit(key, suspend=False)
    await cluster.settle()
    assert set(cluster.services) == {SERVICE}
    run_pods(cluster)
    await cluster.settle()
    assert (cluster.status(key)["phase"], cluster.status(key)["attempt"]) == ("Running", 1)


@pytest.mark.parametrize("way", ["killed", "answer lost"])
def test_a_kill_or_a_lost_answer_at_any_write_leaves_one_job_and_its_service(way: str) -> None:
    async def live(cluster: MemoryKube, key: Key) -> None:
        for _ in range(30):
            try:
                await controller.reconcile_once(
                    cluster, key, cluster.settings, cluster.index, lambda: cluster.now
                )
            except KilledError:
                cluster.kill_at = None
            except ApiError:
                cluster.lose_at = None
            if SERVICE in cluster.services and "status" not in cluster.jobs[JOB]:
                cluster.run_pod(JOB, 0)
                cluster.run_pod(JOB, 1)

    for number in range(1, 8):
        cluster = MemoryKube()
        setattr(cluster, "kill_at" if way == "killed" else "lose_at", number)
        key = cluster.add(nodes())
        asyncio.run(live(cluster, key))
        assert cluster.created_jobs == {JOB: 1}, number
        assert set(cluster.services) == {SERVICE}, number
        assert cluster.status(key)["phase"] == "Running", number


def test_names_fit_a_dns_label_up_to_attempt_a_million() -> None:
    longest = f"{'n' * MAX_NAME_LENGTH}-train-{10**6}"
    assert len(f"{longest}-63") <= 63
    assert len(f"tlt-{longest}") <= 63
    assert len(f"{longest}-63-abcde") <= 63


@play
async def test_the_network_policy_admits_traffic_between_runner_pods_only(cluster: MemoryKube) -> None:
    cluster.add(nodes())
    await cluster.settle()
    labels = cluster.jobs[JOB]["spec"]["template"]["metadata"]["labels"]
    file = Path(__file__).parents[2] / "manifests" / "namespace" / "runner-network.yaml"
    policy = yaml.safe_load(file.read_text())["spec"]
    chosen = policy["podSelector"]["matchLabels"]
    assert chosen.items() <= labels.items()
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{"from": [{"podSelector": {"matchLabels": chosen}}]}]


@pytest.mark.parametrize("count", [0, 65])
def test_a_number_of_nodes_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="spec.resources.nodes"):
        parse(nodes(count))


def test_other_kinds_have_no_nodes() -> None:
    with pytest.raises(ValueError, match="spec.resources.nodes"):
        parse(resource("PruneJob", resources={"gpus": 0, "nodes": 2}))


FAILED = JobState(JOB, "u", indexed=True, parallelism=3, conditions={"Failed": ConditionState(True)})


def worker(index: int, code: int | None, second: int = 0, **more: Any) -> PodState:
    """Return a pod that ended with a code, some seconds after the start; None for one that never ended."""
    finished = START + timedelta(seconds=second)
    reason = more.pop("reason", "Error")
    container = ContainerState(exit_code=code, reason=reason, finished=finished) if code is not None else None
    return PodState(f"{JOB}-{index}-abcde", f"pod-{index}", 1, index, "Failed", container=container, **more)


LOST = CLASSES[Reason.WORKER_LOST].exit_code
STOPPED = CLASSES[Reason.INTERRUPTED].exit_code
TAKEN = {"DisruptionTarget": ConditionState(True, "DeletionByTaintManager", "the node is gone")}


@pytest.mark.parametrize(
    ("pods", "reason", "index"),
    [
        ([worker(0, LOST, 5), worker(1, 137, 3, reason="OOMKilled"), worker(2, LOST, 5)], "OutOfMemory", 1),
        ([worker(0, LOST, 3), worker(1, 13, 4), worker(2, STOPPED, 9, deleting=True)], "NaNLoss", 1),
        ([worker(0, 13, 4), worker(1, 13, 4), worker(2, LOST, 5)], "NaNLoss", 0),
        ([worker(0, LOST, 3), worker(1, 134, 2), worker(2, LOST, 3)], "Internal", 1),
        ([worker(0, 134, 5), worker(1, 12, 6)], "OutOfMemory", 1),
        ([worker(0, LOST, 5), worker(1, STOPPED, 3, deleting=True)], "Interrupted", 1),
        ([worker(0, LOST, 3), worker(1, STOPPED, 9, deleting=True)], "WorkerLost", 0),
        ([worker(0, LOST, 3), worker(1, None, conditions=TAKEN)], "NodeLost", 1),
        ([worker(0, 0, 3), worker(1, LOST, 9)], "WorkerLost", 1),
    ],
    ids=[
        "memory of one ran out",
        "a loss that is not a number",
        "all alike: index 0",
        "a crash",
        "a crash of another's making",
        "somebody deleted one",
        "nobody knows who was lost",
        "a node was lost",
        "one had succeeded",
    ],
)
def test_the_pod_that_failed_by_itself_is_the_cause(pods: list[PodState], reason: str, index: int) -> None:
    for order in (pods, pods[::-1]):
        failure = diagnose(FAILED, order)
        assert failure.reason == reason
        if reason == "NodeLost":
            continue
        if failure.exit_code not in (None, 0):
            assert f"{JOB}-{index}-" in failure.message


def test_a_disrupted_pod_is_the_cause_under_the_pod_failure_policy() -> None:
    job = JobState(JOB, "u", conditions={"Failed": ConditionState(True, "PodFailurePolicy", "told")})
    assert diagnose(job, [worker(0, LOST, 3), worker(1, 143, 4, conditions=TAKEN)]).reason == "NodeLost"


def test_worker_lost_does_not_count_as_a_retry() -> None:
    asyncio.run(_lost_again_and_again())


async def _lost_again_and_again() -> None:
    cluster = MemoryKube()
    key = cluster.add(nodes(runPolicy={"maxRetries": 0}))
    for attempt in (1, 2):
        await cluster.settle()
        job = f"traffic-train-{attempt}"
        cluster.run_pod(job, 0, state=ended(LOST or 0), phase="Failed")
        cluster.finish(job, ended(LOST or 0), index=1)
        await cluster.settle()
        cluster.wait(3600)
    await cluster.settle()
    status = cluster.status(key)
    assert [entry["reason"] for entry in status["history"]] == ["WorkerLost", "WorkerLost"]
    assert (status["attempt"], "retries" in status) == (3, False)
