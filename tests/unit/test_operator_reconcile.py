"""Life of a resource under the operator: phases, attempts and references."""

from __future__ import annotations

import asyncio
import json

import pytest

from operator_ring.manifests import SHA, ended, resource
from operator_ring.memory_kube import KilledError, MemoryKube, refusal
from operator_ring.scenario import condition, play
from tlt_operator.apply import apply
from tlt_operator.cluster.client import ConflictError
from tlt_operator.controller import reconcile_once
from tlt_operator.observe import observe
from tlt_operator.reconcile import reconcile
from tlt_operator.snapshot import Key

ARTIFACT = {"name": "best", "uri": "pvc://runs/traffic/best.keras", "sha256": SHA, "sizeBytes": 7}


def true_conditions(cluster: MemoryKube, key: Key) -> set[str]:
    return {c["type"] for c in cluster.status(key)["conditions"] if c["status"] == "True"}


async def trained(cluster: MemoryKube) -> Key:
    """Add a TrainingJob that succeeded with an artifact."""
    key = cluster.add(resource())
    await cluster.settle(key)
    cluster.run_pod("traffic-train-1")
    await cluster.settle(key)
    cluster.report(key, artifacts=[ARTIFACT])
    cluster.finish("traffic-train-1", ended(0, "Completed"))
    await cluster.settle(key)
    return key


@play
async def test_a_training_job_becomes_a_job_and_succeeds(cluster: MemoryKube) -> None:
    key = cluster.add(resource())
    await cluster.settle()
    status = cluster.status(key)
    assert (status["phase"], status["attempt"], status["jobName"]) == ("Queued", 1, "traffic-train-1")
    assert status["jobUid"] == cluster.jobs["traffic-train-1"]["metadata"]["uid"]

    cluster.run_pod("traffic-train-1")
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Running"
    assert true_conditions(cluster, key) == {"Reconciling"}

    cluster.finish("traffic-train-1", ended(0, "Completed"))
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Succeeded"
    assert true_conditions(cluster, key) == {"Ready", "Complete"}
    assert cluster.status(key)["completionTime"] == "2026-01-01T00:00:00Z"


@play
async def test_nothing_is_written_when_nothing_changed(cluster: MemoryKube) -> None:
    key = await trained(cluster)
    running = cluster.add(resource(name="other"))
    await cluster.settle()
    cluster.run_pod("other-train-1")
    await cluster.settle()
    before = cluster.writes
    cluster.wait(1000)
    cluster.report(running, progress={"epoch": 3})
    await cluster.settle(key, running)
    assert cluster.writes == before


@play
async def test_a_resource_takes_five_writes_in_its_life_one_of_them_an_event(cluster: MemoryKube) -> None:
    key = cluster.add(resource())
    await cluster.settle(key)
    cluster.run_pod("traffic-train-1")
    await cluster.settle(key)
    cluster.finish("traffic-train-1", ended(0, "Completed"))
    await cluster.settle(key)
    assert cluster.status(key)["phase"] == "Succeeded"
    # The Job; the statuses that name it, that say Running and that say Succeeded; an Event.
    assert cluster.writes == 5
    assert [event["reason"] for event in cluster.events.values()] == ["Succeeded"]


@play
async def test_a_dependant_applied_first_waits_and_starts_when_its_parent_has_succeeded(
    cluster: MemoryKube,
) -> None:
    prune = cluster.add(resource("PruneJob", "small"))
    await cluster.settle()
    assert cluster.status(prune)["phase"] == "Pending"
    assert "TrainingJob/traffic" in condition(cluster, prune, "Reconciling")["message"]
    assert not cluster.jobs

    parent = await trained(cluster)
    await cluster.settle()
    status = cluster.status(prune)
    assert status["phase"] == "Queued"
    assert status["inputs"]["model"] == {"uri": ARTIFACT["uri"], "sha256": SHA}
    assert status["dependency"]["uid"] == cluster.resources[parent]["metadata"]["uid"]
    run = cluster.jobs["small-prune-1"]["spec"]["template"]["metadata"]["annotations"]["tlt.dev/run-spec"]
    assert json.loads(run)["inputs"]["model"]["sha256"] == SHA


@play
async def test_a_dependant_whose_job_nobody_recorded_names_its_parent(cluster: MemoryKube) -> None:
    parent = await trained(cluster)
    prune = cluster.add(resource("PruneJob", "small"))
    # The operator dies between the Job and the status.
    cluster.kill_at = cluster.writes + 2
    with pytest.raises(KilledError):
        await cluster.settle(prune)
    cluster.kill_at = None
    assert "small-prune-1" in cluster.jobs
    assert "attempt" not in cluster.status(prune)
    await cluster.settle(prune)
    status = cluster.status(prune)
    assert status["inputs"]["model"]["sha256"] == SHA
    assert status["dependency"]["uid"] == cluster.resources[parent]["metadata"]["uid"]


@play
async def test_a_parent_that_was_replaced_meanwhile_is_not_where_the_inputs_come_from(
    cluster: MemoryKube,
) -> None:
    parent = await trained(cluster)
    prune = cluster.add(resource("PruneJob", "small"))
    cluster.kill_at = cluster.writes + 2
    with pytest.raises(KilledError):
        await cluster.settle(prune)
    cluster.kill_at = None
    cluster.resources[parent]["metadata"]["uid"] = "uid-of-another"
    cluster.report(parent, artifacts=[ARTIFACT | {"sha256": "1" * 64}])
    await cluster.settle(prune)
    assert cluster.status(prune)["inputs"]["model"]["sha256"] == SHA
    assert "dependency" not in cluster.status(prune)


@play
async def test_a_dependant_applied_last_starts_at_once(cluster: MemoryKube) -> None:
    await trained(cluster)
    cluster.add(resource("PruneJob", "small"))
    await cluster.settle()
    assert "small-prune-1" in cluster.jobs


@play
async def test_a_dependant_of_a_failed_parent_fails_and_names_the_cause(cluster: MemoryKube) -> None:
    prune = cluster.add(resource("PruneJob", "small"))
    cluster.add(resource())
    await cluster.settle()
    cluster.finish("traffic-train-1", ended(22))
    await cluster.settle()
    failure = cluster.status(prune)["failure"]
    assert failure["reason"] == "DependencyFailed"
    assert "UnknownClass" in failure["message"]
    assert true_conditions(cluster, prune) == {"Failed", "Stalled"}


@play
async def test_a_dependant_outlives_the_replacement_of_its_parent(cluster: MemoryKube) -> None:
    parent = cluster.add(resource())
    prune = cluster.add(resource("PruneJob", "small"))
    await cluster.settle()
    cluster.remove(parent)
    await cluster.settle(prune)
    assert cluster.status(prune)["phase"] == "Pending"
    assert "create it again" in condition(cluster, prune, "Reconciling")["message"]
    parent = await trained(cluster)  # another one of the same name
    await cluster.settle()
    assert cluster.status(prune)["dependency"]["uid"] == cluster.resources[parent]["metadata"]["uid"]
    assert "small-prune-1" in cluster.jobs


@play
async def test_a_started_dependant_no_longer_needs_its_parent(cluster: MemoryKube) -> None:
    parent = await trained(cluster)
    prune = cluster.add(resource("PruneJob", "small"))
    await cluster.settle()
    cluster.remove(parent)
    cluster.finish("small-prune-1", ended(70))
    await cluster.settle()
    cluster.wait(10)
    await cluster.settle()
    assert cluster.status(prune)["attempt"] == 2
    run = cluster.jobs["small-prune-2"]["spec"]["template"]["metadata"]["annotations"]["tlt.dev/run-spec"]
    assert json.loads(run)["inputs"]["model"]["sha256"] == SHA


@play
async def test_resources_that_refer_to_each_other_fail(cluster: MemoryKube) -> None:
    training = cluster.add(resource(model={"from": {"pruneJobRef": {"name": "small"}}}))
    prune = cluster.add(resource("PruneJob", "small"))
    await cluster.settle(training)
    assert cluster.status(training)["failure"]["reason"] == "DependencyCycle"
    await cluster.settle()
    assert cluster.status(prune)["phase"] == "Failed"
    assert not cluster.jobs


@play
async def test_a_dependant_of_a_missing_artifact_fails(cluster: MemoryKube) -> None:
    await trained(cluster)
    reference = {"trainingJobRef": {"name": "traffic", "checkpoint": "last"}}
    prune = cluster.add(resource("PruneJob", "small", model=reference))
    await cluster.settle()
    assert cluster.status(prune)["failure"]["reason"] == "DependencyUnusable"


@play
async def test_a_dependant_of_an_unreadable_parent_fails(cluster: MemoryKube) -> None:
    cluster.add(resource(dataset={}))
    prune = cluster.add(resource("PruneJob", "small"))
    await cluster.settle(prune)
    assert cluster.status(prune)["failure"]["reason"] == "DependencyFailed"


@play
async def test_an_invalid_spec_fails_with_the_field_at_fault(cluster: MemoryKube) -> None:
    key = cluster.add(resource(training={"epochs": 0}))
    await cluster.settle()
    status = cluster.status(key)
    assert status["failure"]["reason"] == "InvalidSpec"
    assert "spec.training.epochs" in status["failure"]["message"]
    assert true_conditions(cluster, key) == {"Failed", "Stalled"}
    before = cluster.writes
    cluster.wait(100)
    await cluster.settle()
    assert cluster.writes == before


@pytest.mark.parametrize("path", ["//etc/x", "/../x", "/a/./x"])
def test_a_stored_resource_whose_address_leaves_its_claim_is_reported(path: str) -> None:
    async def scenario(cluster: MemoryKube) -> None:
        key = cluster.add(resource(output={"uri": f"pvc://runs{path}"}))
        await cluster.settle()
        status = cluster.status(key)
        assert (status["phase"], status["failure"]["reason"]) == ("Failed", "InvalidSpec")
        message = "spec.output.uri: expected an address without empty ('//'), '.' and '..' names"
        assert message in status["failure"]["message"]
        assert f"got 'pvc://runs{path}'" in status["failure"]["message"]
        assert not cluster.jobs

    asyncio.run(scenario(MemoryKube()))


@play
async def test_a_run_whose_address_leaves_its_claim_goes_on_if_an_older_operator_began_it(
    cluster: MemoryKube,
) -> None:
    key = cluster.add(resource())
    await cluster.settle()
    cluster.run_pod("traffic-train-1")
    await cluster.settle()
    cluster.edit(key, output={"uri": "pvc://runs//etc/x"})
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Running"
    assert "pvc://runs//etc/x" in condition(cluster, key, "Stalled")["message"]
    assert list(cluster.jobs) == ["traffic-train-1"]


@play
async def test_a_finished_resource_whose_address_leaves_its_claim_keeps_its_phase(
    cluster: MemoryKube,
) -> None:
    key = await trained(cluster)
    cluster.edit(key, output={"uri": "pvc://runs//etc/x"})
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Succeeded"


@play
async def test_an_edit_does_not_restart_a_failed_resource(cluster: MemoryKube) -> None:
    key = cluster.add(resource(training={"epochs": 0}))
    await cluster.settle()
    cluster.edit(key, suspend=True)
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Failed"
    assert cluster.jobs == {}


@play
async def test_a_run_goes_on_although_its_status_has_become_unreadable(cluster: MemoryKube) -> None:
    key = cluster.add(resource())
    await cluster.settle()
    cluster.run_pod("traffic-train-1")
    cluster.report(key, progress={"epoch": "the third"})
    await cluster.settle()
    status = cluster.status(key)
    assert condition(cluster, key, "Stalled")["reason"] == "InvalidSpec"
    assert "status.progress.epoch" in condition(cluster, key, "Stalled")["message"]
    assert status["attempt"] == 1
    assert list(cluster.jobs) == ["traffic-train-1"]


@play
async def test_a_run_goes_on_although_its_spec_has_become_unreadable(cluster: MemoryKube) -> None:
    key = cluster.add(resource())
    await cluster.settle()
    cluster.run_pod("traffic-train-1")
    await cluster.settle()
    cluster.edit(key, training={"ofTomorrow": 1})
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Running"
    assert "Stalled" in true_conditions(cluster, key)
    cluster.edit(key, training={})
    cluster.finish("traffic-train-1", ended(0))
    await cluster.settle()
    assert true_conditions(cluster, key) == {"Ready", "Complete"}


@play
async def test_file_addresses_are_refused_in_a_cluster(cluster: MemoryKube) -> None:
    key = cluster.add(resource(output={"uri": "file:///tmp/out"}))
    await cluster.settle()
    assert cluster.status(key)["failure"]["reason"] == "InvalidSpec"
    assert "file:///tmp/out" in cluster.status(key)["failure"]["message"]


@pytest.mark.parametrize("code", [0, 22])
def test_a_finished_resource_stays_finished_when_its_job_is_gone(code: int) -> None:
    async def scenario(cluster: MemoryKube) -> None:
        key = cluster.add(resource())
        await cluster.settle()
        cluster.finish("traffic-train-1", ended(code))
        await cluster.settle()
        phase = cluster.status(key)["phase"]
        cluster.remove_job("traffic-train-1")
        cluster.wait(10_000)
        await cluster.settle()
        assert cluster.status(key)["phase"] == phase
        assert not cluster.jobs

    asyncio.run(scenario(MemoryKube()))


@play
async def test_an_edit_of_a_finished_resource_only_updates_its_observed_generation(
    cluster: MemoryKube,
) -> None:
    key = await trained(cluster)
    cluster.edit(key, suspend=True)
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Succeeded"
    assert cluster.status(key)["observedGeneration"] == 2
    assert condition(cluster, key, "Ready")["observedGeneration"] == 2
    assert condition(cluster, key, "Ready")["lastTransitionTime"] == "2026-01-01T00:00:00Z"


@play
async def test_a_job_gets_its_ttl_only_after_its_outcome_was_recorded(cluster: MemoryKube) -> None:
    key = cluster.add(resource(runPolicy={"ttlSecondsAfterFinished": 0}))
    await cluster.settle()
    assert "ttlSecondsAfterFinished" not in cluster.jobs["traffic-train-1"]["spec"]
    cluster.finish("traffic-train-1", ended(0))
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Succeeded"
    assert cluster.jobs["traffic-train-1"]["spec"]["ttlSecondsAfterFinished"] == 0
    cluster.edit(key, runPolicy={"ttlSecondsAfterFinished": 60})
    await cluster.settle()
    assert cluster.jobs["traffic-train-1"]["spec"]["ttlSecondsAfterFinished"] == 60


@play
async def test_outcome_and_ttl_are_written_in_one_reconciliation(cluster: MemoryKube) -> None:
    key = cluster.add(resource(runPolicy={"ttlSecondsAfterFinished": 7}))
    await cluster.settle()
    cluster.finish("traffic-train-1", ended(0))
    await reconcile_once(cluster, key, cluster.settings, cluster.index, lambda: cluster.now)
    assert cluster.status(key)["phase"] == "Succeeded"
    assert cluster.jobs["traffic-train-1"]["spec"]["ttlSecondsAfterFinished"] == 7


@play
async def test_earlier_attempts_get_their_ttl_while_the_next_one_runs(cluster: MemoryKube) -> None:
    cluster.add(resource(runPolicy={"ttlSecondsAfterFinished": 5}))
    await cluster.settle()
    cluster.finish("traffic-train-1", ended(12))
    await cluster.settle()
    cluster.wait(10)
    await cluster.settle()
    assert cluster.jobs["traffic-train-1"]["spec"]["ttlSecondsAfterFinished"] == 5
    assert "ttlSecondsAfterFinished" not in cluster.jobs["traffic-train-2"]["spec"]


@play
async def test_a_job_of_the_same_name_that_is_not_ours_is_never_adopted(cluster: MemoryKube) -> None:
    foreign = {"metadata": {"name": "traffic-train-1", "namespace": "default"}, "spec": {}}
    await cluster.create_job(foreign)
    key = cluster.add(resource())
    assert await cluster.settle() == 30
    assert condition(cluster, key, "Reconciling")["reason"] == "JobNameTaken"
    assert "jobUid" not in cluster.status(key)
    cluster.wait(30)
    del cluster.jobs["traffic-train-1"]
    await cluster.settle()
    assert cluster.status(key)["jobUid"] == cluster.jobs["traffic-train-1"]["metadata"]["uid"]


@play
async def test_the_job_of_a_deleted_resource_of_the_same_name_is_waited_for(cluster: MemoryKube) -> None:
    key = cluster.add(resource())
    await cluster.settle()
    del cluster.resources[key]  # the garbage collector has not come by yet
    cluster.add(resource())
    await cluster.settle()
    assert condition(cluster, key, "Reconciling")["reason"] == "JobNameTaken"
    cluster.remove_job("traffic-train-1")
    await cluster.settle()
    assert cluster.status(key)["phase"] == "Queued"
    assert cluster.created_jobs["traffic-train-1"] == 2


@play
async def test_a_resource_that_is_being_deleted_gets_no_job(cluster: MemoryKube) -> None:
    key = cluster.add(resource())
    cluster.resources[key]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    await cluster.settle()
    assert not cluster.jobs
    assert cluster.status(key) == {}


@play
async def test_a_job_that_the_server_refuses_for_its_content_fails_the_resource(cluster: MemoryKube) -> None:
    key = cluster.add(resource(podTemplate={"nodeSelector": {"a/b/c": "x"}}))
    message = (
        'Job.batch "traffic-train-1" is invalid: spec.template.spec.nodeSelector: Invalid value: "a/b/c"'
    )
    cluster.refuse_jobs = refusal(422, message)
    await cluster.settle()
    assert cluster.status(key)["failure"]["reason"] == "InvalidSpec"
    assert "nodeSelector" in cluster.status(key)["failure"]["message"]


@play
async def test_a_job_beyond_quota_is_waited_for(cluster: MemoryKube) -> None:
    key = cluster.add(resource())
    cluster.refuse_jobs = refusal(403, "jobs.batch is forbidden: exceeded quota: small")
    for _ in range(5):
        await cluster.settle_refused(key)
        cluster.wait(1000)
    assert cluster.status(key)["phase"] == "Queued"
    assert condition(cluster, key, "Blocked")["reason"] == "QuotaExceeded"
    cluster.refuse_jobs = None
    await cluster.settle()
    assert "traffic-train-1" in cluster.jobs
    assert condition(cluster, key, "Blocked")["status"] == "False"


@play
async def test_a_plan_from_an_old_snapshot_cannot_be_applied(cluster: MemoryKube) -> None:
    key = cluster.add(resource())
    await cluster.settle()
    cluster.finish("traffic-train-1", ended(12))
    snapshot = await observe(cluster, key, cluster.now)
    assert snapshot
    late = reconcile(snapshot, cluster.now, cluster.settings)
    await cluster.settle()  # another operator acts first
    with pytest.raises(ConflictError):
        await apply(cluster, snapshot, late, cluster.now)
    assert len(cluster.status(key)["history"]) == 1


@play
async def test_a_resource_with_fields_of_tomorrow_waits_for_a_newer_operator(cluster: MemoryKube) -> None:
    key = cluster.add(resource(ofTomorrow=1))
    await cluster.settle()
    status = cluster.status(key)
    assert status["phase"] == "Pending"
    assert "failure" not in status
    blocked = condition(cluster, key, "Blocked")
    assert (blocked["status"], blocked["reason"]) == ("True", "OperatorTooOld")
    assert "spec.ofTomorrow" in blocked["message"]
    # The newer operator knows the field.
    del cluster.resources[key]["spec"]["ofTomorrow"]
    await cluster.settle(key)
    assert cluster.status(key)["attempt"] == 1
    assert list(cluster.jobs) == ["traffic-train-1"]


@play
async def test_a_dependant_of_a_resource_with_fields_of_tomorrow_waits_too(cluster: MemoryKube) -> None:
    cluster.add(resource(ofTomorrow=1))
    prune = cluster.add(resource("PruneJob", "small"))
    await cluster.settle(prune)
    assert cluster.status(prune)["phase"] == "Pending"
    assert condition(cluster, prune, "Blocked")["reason"] == "OperatorTooOld"


_UNKNOWN = "spec.output.overwrite: Extra inputs are not permitted, got False; "


@play
async def test_what_an_older_operator_failed_because_it_was_too_old_is_taken_up(cluster: MemoryKube) -> None:
    await _is_taken_up(
        cluster, f"TrainingJob/traffic: {_UNKNOWN}spec.retry: Extra inputs are not permitted, got 0"
    )


@play
async def test_so_is_one_whose_message_was_cut_to_its_longest(cluster: MemoryKube) -> None:
    clauses = _UNKNOWN * 5 + "spec.retry: Extra inputs are not permitted, got 0; " * 40
    message = f"TrainingJob/traffic: {clauses}"[:2000]
    assert message.endswith("; spec.retry: Extra")
    await _is_taken_up(cluster, message)


async def _is_taken_up(cluster: MemoryKube, message: str) -> None:
    key = cluster.add(resource())
    # As the operator of 0.1.0 leaves it when the CRDs are upgraded first.
    time = "2026-01-01T00:00:00Z"
    cluster.resources[key]["status"] = {
        "phase": "Failed",
        "observedGeneration": 1,
        "completionTime": time,
        "failure": {"reason": "InvalidSpec", "message": message},
        "conditions": [
            {"type": name, "status": "True", "reason": "InvalidSpec", "lastTransitionTime": time}
            for name in ("Failed", "Stalled")
        ],
    }
    await cluster.settle(key)
    status = cluster.status(key)
    assert (status["phase"], status["attempt"]) == ("Queued", 1)
    assert not {"failure", "completionTime"} & status.keys()
    assert list(cluster.jobs) == ["traffic-train-1"]
