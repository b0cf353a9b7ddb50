"""Conditions and phase: one derives from the other, and the operator and ``tlt run`` write the same."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from operator_ring.manifests import resource
from tlt_api import conditions
from tlt_api.failures import Reason, failure
from tlt_api.references import Resolved
from tlt_api.resources import Resource, parse
from tlt_api.status import Condition, Inputs, JobStatus, Phase, PruneJobStatus
from tlt_operator.reconcile import reconcile
from tlt_operator.settings import Settings
from tlt_operator.snapshot import ConditionState, JobState, Snapshot
from tlt_runner.local import transitions


def condition(built: list[Condition], type_: str) -> Condition:
    condition = conditions.find(built, type_)
    assert condition
    return condition


def test_the_phase_follows_from_the_conditions() -> None:
    reasons = {
        Phase.PENDING: conditions.WAITING_FOR_DEPENDENCY,
        Phase.RUNNING: conditions.RUNNING,
        Phase.RETRYING: conditions.RETRYING,
    }
    for phase in Phase:
        state = conditions.State(phase, reasons.get(phase, "Whatever"), "m")
        assert conditions.phase(conditions.build([], state, 1, "2026-01-01T00:00:00Z")) == phase
    assert conditions.phase([]) == Phase.PENDING


def test_a_transition_time_is_kept_while_the_status_stays() -> None:
    running = conditions.State(Phase.RUNNING, conditions.RUNNING, "m")
    retrying = conditions.State(Phase.RETRYING, conditions.RETRYING, "other")
    done = conditions.State(Phase.SUCCEEDED, "Succeeded", "m")
    built: list[Condition] = []
    for state, now in zip((running, retrying, done), ("t1", "t2", "t3"), strict=True):
        built = conditions.build(built, state, 1, now)
    assert condition(built, "Ready").last_transition_time == "t3"
    assert condition(built, "Failed").last_transition_time == "t1"
    assert condition(built, "Reconciling").last_transition_time == "t3"


def test_another_blocker_has_a_transition_time_of_its_own() -> None:
    built: list[Condition] = []
    for reason, now in (("Unschedulable", "t1"), ("ImagePullFailed", "t2"), ("ImagePullFailed", "t3")):
        block = conditions.Block(reason, "m")
        built = conditions.build(built, conditions.State(Phase.QUEUED, reason, "m", block), 1, now)
    assert condition(built, "Blocked").last_transition_time == "t2"


def test_ready_reconciling_and_stalled_are_never_true_together() -> None:
    for phase in Phase:
        built = conditions.build([], conditions.State(phase, "R", "m"), 1, "t")
        true = {c.type for c in built if c.status == "True"}
        pairs = itertools.combinations(("Ready", "Reconciling", "Stalled"), 2)
        assert not any(true.issuperset(pair) for pair in pairs)


# --- the operator and `tlt run` write the same

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB = JobState("small-prune-1", "job", owner_uid="uid", ready=1, start_time=NOW)
ATTEMPTED = PruneJobStatus(attempt=1, job_name=JOB.name, job_uid=JOB.uid)
BROKEN = failure(Reason.DEPENDENCY_FAILED, "TrainingJob/traffic failed: NaNLoss: at step 3")


def small(status: PruneJobStatus, **spec: Any) -> Resource:
    parsed = parse(resource("PruneJob", "small", **spec))
    return replace(parsed, uid="uid", status=status)


def of_the_operator(item: Resource, **facts: Any) -> JobStatus:
    snapshot = Snapshot(item.kind, item.namespace, item.name, item.uid, 1, "1", item.status, resource=item)
    plan = reconcile(replace(snapshot, **facts), NOW, Settings())
    assert plan.status
    return plan.status


def parent(**status: Any) -> dict[str, Any]:
    body = resource() | {"status": status}
    body["metadata"]["uid"] = "parent"
    return {"parents": {("TrainingJob", "traffic"): parse(body)}}


PAIRS: dict[str, tuple[JobStatus, Resource]] = {
    "waits for a dependency": (
        of_the_operator(small(PruneJobStatus()), **parent(phase="Running")),
        transitions.waiting(small(PruneJobStatus()), "waits for TrainingJob/traffic, which is Running", NOW),
    ),
    "runs": (
        of_the_operator(small(ATTEMPTED), job=JOB),
        transitions.begun(small(PruneJobStatus()), Resolved(Inputs()), NOW),
    ),
    "suspended": (
        of_the_operator(small(PruneJobStatus(), suspend=True)),
        transitions.suspended(small(PruneJobStatus()), NOW),
    ),
    "succeeded": (
        of_the_operator(small(ATTEMPTED), job=replace(JOB, conditions={"Complete": ConditionState(True)})),
        transitions.succeeded(small(ATTEMPTED), NOW),
    ),
    "failed": (
        of_the_operator(
            small(PruneJobStatus()),
            **parent(phase="Failed", failure={"reason": "NaNLoss", "message": "at step 3"}),
        ),
        transitions.failed(small(PruneJobStatus()), BROKEN, NOW),
    ),
}


@pytest.mark.parametrize("state", PAIRS)
def test_the_operator_and_tlt_run_write_the_same_conditions_and_phase(state: str) -> None:
    cluster, local = PAIRS[state][0], PAIRS[state][1].status
    assert cluster.phase == local.phase
    # Without a cluster there is no Job to name.
    without_job = [
        item.model_copy(update={"message": item.message.removesuffix(f" as Job {JOB.name}")})
        for item in cluster.conditions
    ]
    assert without_job == local.conditions


def test_every_phase_of_tlt_run_is_compared() -> None:
    assert {str(local.status.phase) for _, local in PAIRS.values()} == {
        "Pending", "Running", "Suspended", "Succeeded", "Failed",
    }  # fmt: skip


def test_an_interrupted_local_run_is_suspended_with_the_reason_of_the_interruption() -> None:
    stopped = transitions.failed(small(ATTEMPTED), failure(Reason.INTERRUPTED, "SIGTERM at step 7"), NOW)
    suspended = condition(stopped.status.conditions, "Suspended")
    assert (suspended.status, suspended.reason, suspended.message) == (
        "True", "Interrupted", "SIGTERM at step 7",
    )  # fmt: skip
