"""Table of every state of an attempt with every intent of the user, and the plan of the operator for it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from operator_ring.manifests import START, resource
from tlt_api import times
from tlt_api.resources import KINDS, parse
from tlt_api.status import Attempt, Phase, Progress, TrainingJobStatus
from tlt_operator.reconcile import Plan, cleanup, reconcile
from tlt_operator.reconcile.state import (
    Announced,
    Disrupted,
    Ended,
    Lost,
    NotStarted,
    Paused,
    Running,
    Starting,
    Stopping,
    attempt_state,
)
from tlt_operator.settings import Settings
from tlt_operator.snapshot import (
    ConditionState,
    ContainerState,
    JobState,
    PodState,
    Refusal,
    ServiceState,
    Snapshot,
    WorkloadState,
)

NAME = "traffic-train-1"
JOB = JobState(NAME, "job", owner_uid="traffic", created=START, start_time=START)
INDEXED = replace(JOB, indexed=True, parallelism=2)
COMPLETE = replace(JOB, conditions={"Complete": ConditionState(True)}, completion_time=START)
FAILED = replace(JOB, conditions={"Failed": ConditionState(True, "BackoffLimitExceeded")})
QUEUED = replace(JOB, queue="gpus")
SUSPENDED = replace(
    JOB, suspended=True, suspended_by_us=True, conditions={"Suspended": ConditionState(True, "JobSuspended")}
)
ANNOUNCED = TrainingJobStatus(attempt=1, job_name=NAME)
SEEN = TrainingJobStatus(attempt=1, job_name=NAME, job_uid="job")
SERVICE = ServiceState(f"tlt-{NAME}", "job")


def pod(**fields: object) -> PodState:
    return PodState(**{"name": f"{NAME}-abcde", "uid": "pod", "attempt": 1, **fields})  # type: ignore[arg-type]


def exited(code: int) -> PodState:
    return pod(phase="Failed", container=ContainerState(exit_code=code, reason="Error"))


def recorded(hours_ago: float, remedy: str | None = None) -> TrainingJobStatus:
    """Return a status whose history has the end of attempt 1."""
    time = times.to_wire(START - timedelta(hours=hours_ago))
    return SEEN.model_copy(
        update={"history": [Attempt(attempt=1, reason="Internal", remedy=remedy, time=time)], "retries": 1}
    )


def snapshot_of(status: TrainingJobStatus = SEEN, **fields: object) -> Snapshot:
    return Snapshot(
        kind=KINDS["TrainingJob"],
        namespace="default",
        name="traffic",
        uid="traffic",
        generation=1,
        resource_version="1",
        status=status,
        **fields,  # type: ignore[arg-type]
    )


PULLING = pod(container=ContainerState(waiting_reason="ErrImagePull", waiting_message="no"))
UP = pod(phase="Running", container=ContainerState(running=True))
MINUTE = timedelta(minutes=1)
OVERDUE = replace(UP, deleting=True, deletion_due=START - MINUTE, node="n7")
SILENT = replace(UP, node="n7", conditions={"Ready": ConditionState(False, since=START - MINUTE)})
PAUSED = SEEN.model_copy(update={"history": [Attempt(attempt=1, reason="Evicted", paused=True)]})
RAN = SEEN.model_copy(update={"phase": Phase.RUNNING})
ACTIVE = WorkloadState("job-traffic-train-1", "w", "1", "kueue.x-k8s.io/v1beta2")
INACTIVE = replace(ACTIVE, active=False)
# Three minutes ago it promised a report within 59 s; 120 s more are for its way.
LATE = RAN.model_copy(
    update={"progress": Progress(last_update_time=times.to_wire(START - 3 * MINUTE), next_within_seconds=59)}
)
LONG = replace(JOB, ready=1, start_time=START - timedelta(hours=1))

# The columns say in words what a plan does for a resource that is to run, that is to be suspended, that has
# failed, and whose spec cannot be read. `-` is a plan that does nothing.
TABLE: dict[str, tuple[Snapshot, type, str, str, str, str]] = {
    "no attempt yet": (
        snapshot_of(TrainingJobStatus()), NotStarted,
        "Queued WaitingForPod, create Job", "Suspended", "-", "Failed InvalidSpec",
    ),
    "announced, without a Job": (
        snapshot_of(ANNOUNCED), Announced,
        "Queued WaitingForPod, create Job", "Suspended", "-", "Stalled",
    ),
    "announced, and another's Job has the name": (
        snapshot_of(ANNOUNCED, job=replace(JOB, owner_uid="other")), Announced,
        "Queued JobNameTaken", "Suspended", "-", "Stalled",
    ),
    "announced, while a pod of an earlier attempt still runs": (
        snapshot_of(ANNOUNCED, pods=(replace(UP, attempt=0),)), Announced,
        "Queued WaitingForOldPod", "Running Stopping", "-", "Stalled",
    ),
    "announced, and the Job was refused for its content": (
        snapshot_of(ANNOUNCED, refusal=Refusal(422, 'Job.batch "x" is invalid: no')), Announced,
        "Failed InvalidSpec", "Suspended", "-", "Stalled",
    ),
    "announced, and the Job was refused by a webhook": (
        snapshot_of(ANNOUNCED, refusal=Refusal(400, 'admission webhook "x" denied the request: no')),
        Announced,
        "Queued PodRejected", "Suspended", "-", "Stalled",
    ),
    "announced, and the Job was refused by a quota": (
        snapshot_of(ANNOUNCED, refusal=Refusal(403, "exceeded quota")), Announced,
        "Queued QuotaExceeded", "Suspended", "-", "Stalled",
    ),
    "a Job whose pod does not run yet": (
        snapshot_of(ANNOUNCED, job=JOB), Starting,
        "Queued WaitingForPod", "Running Stopping, suspend Job", "delete Job", "Stalled",
    ),
    "a Job whose image cannot be pulled": (
        snapshot_of(job=JOB, pods=(PULLING,)), Starting,
        "Queued ImagePullFailed", "Running Stopping, suspend Job", "delete Job", "Stalled",
    ),
    "a Job of several pods without its Service": (
        snapshot_of(job=INDEXED), Starting,
        "create Service", "Running Stopping, suspend Job", "delete Job", "Stalled",
    ),
    "a Job of several pods whose Service was refused": (
        snapshot_of(job=INDEXED, refusal=Refusal(403, "no")), Starting,
        "Queued ServiceRefused", "Running Stopping, suspend Job", "delete Job", "Stalled",
    ),
    "a Job of several pods, one of which runs": (
        snapshot_of(job=INDEXED, service=SERVICE, pods=(replace(UP, index=0),)), Starting,
        "Queued WaitingForPod", "Running Stopping, suspend Job", "delete Job", "Stalled",
    ),
    "a Job whose pod is ready": (
        snapshot_of(job=replace(JOB, ready=1)), Running,
        "Running", "Running Stopping, suspend Job", "delete Job", "Stalled",
    ),
    "a Job whose pod has ended, and the Job does not know": (
        snapshot_of(job=JOB, pods=(exited(0),)), Running,
        "Running", "Running Stopping, suspend Job", "delete Job", "Stalled",
    ),
    "a Job that ran and whose pod was not read": (
        snapshot_of(RAN, job=JOB), Running,
        "Running", "Running Stopping, suspend Job", "delete Job", "Stalled",
    ),
    "a Job of several pods that runs and lost its Service for good": (
        snapshot_of(RAN, job=replace(INDEXED, ready=2), refusal=Refusal(403, "no")), Running,
        "Running", "Running Stopping, suspend Job", "delete Job", "Stalled",
    ),
    "a Job of several pods that runs and lost its Service": (
        snapshot_of(RAN, job=replace(INDEXED, ready=2)), Running,
        "create Service", "Running Stopping, suspend Job", "delete Job", "Stalled",
    ),
    "a Job whose pod is being taken away": (
        snapshot_of(RAN, job=JOB, pods=(replace(UP, deleting=True, deletion_due=START),)), Disrupted,
        "Running Stopping", "Running Stopping, suspend Job", "delete Job", "Stalled",
    ),
    "a Job whose pod should have been gone a minute ago": (
        snapshot_of(RAN, job=JOB, pods=(OVERDUE,)), Disrupted,
        "Retrying NodeLost", "Retrying NodeLost, suspend Job", "delete Job", "Stalled",
    ),
    "a Job whose pod was deleted by force": (
        snapshot_of(RAN, job=JOB, pods=(replace(OVERDUE, forced=True),)), Disrupted,
        "Retrying, delete Job", "Running Stopping, suspend Job", "delete Job", "Stalled",
    ),
    "a Job whose node does not answer": (
        snapshot_of(RAN, job=JOB, pods=(SILENT,)), Disrupted,
        "Retrying NodeLost", "Retrying NodeLost, suspend Job", "delete Job", "Stalled",
    ),
    "a Job that the operator suspended, whose node does not answer": (
        snapshot_of(RAN, job=SUSPENDED, pods=(SILENT,)), Paused,
        "Retrying NodeLost", "Retrying NodeLost", "delete Job", "Stalled",
    ),
    "announced, while the node of an earlier attempt's pod does not answer": (
        snapshot_of(ANNOUNCED, pods=(replace(SILENT, attempt=0),)), Announced,
        "Retrying NodeLost", "Retrying NodeLost", "-", "Stalled",
    ),
    "a Job that is being deleted, whose node does not answer": (
        snapshot_of(RAN, job=replace(JOB, deleting=True), pods=(OVERDUE,)), Stopping,
        "Retrying NodeLost", "Retrying NodeLost", "-", "Stalled",
    ),
    "a Job that makes no progress": (
        snapshot_of(LATE, job=LONG, progress_silence=179.0), Running,
        "Running NoProgress", "Running Stopping, suspend Job", "delete Job", "Stalled",
    ),
    "a Job of a queue whose pod is ready": (
        snapshot_of(job=replace(QUEUED, ready=1), workload=ACTIVE), Running,
        "Running", "Running Stopping, suspend Job by its queue", "delete Job", "Stalled",
    ),
    "a Job of a queue for which Kueue has made no Workload": (
        snapshot_of(job=replace(QUEUED, ready=1)), Running,
        "Running", "Running Stopping, suspend Job", "delete Job", "Stalled",
    ),
    "a Job of a queue whose Workload may not be read": (
        snapshot_of(job=replace(QUEUED, ready=1), workload_refusal=Refusal(403, "no")), Running,
        "Running", "Running Stopping", "delete Job", "Stalled",
    ),
    "a Job that its queue is about to stop for the operator": (
        snapshot_of(job=replace(QUEUED, ready=1, suspended_by_us=True), workload=INACTIVE), Running,
        "resume Job by its queue", "Running Stopping", "delete Job", "Stalled",
    ),
    "a Job that its queue has stopped for the operator": (
        snapshot_of(RAN, job=replace(SUSPENDED, queue="gpus"), workload=INACTIVE), Paused,
        "Queued WaitingForAdmission, resume Job by its queue", "Suspended", "delete Job", "Stalled",
    ),
    "a Job that the operator has just suspended": (
        snapshot_of(RAN, job=replace(JOB, suspended=True, suspended_by_us=True)), Paused,
        "Queued WaitingForPod, resume Job", "Running Stopping", "delete Job", "Stalled",
    ),
    "a Job that the operator suspended, whose pod still writes": (
        snapshot_of(RAN, job=SUSPENDED, pods=(replace(UP, deleting=True),)), Paused,
        "Running Stopping", "Running Stopping", "delete Job", "Stalled",
    ),
    "a Job that the operator suspended": (
        snapshot_of(RAN, job=SUSPENDED), Paused,
        "Queued WaitingForPod, resume Job", "Suspended", "delete Job", "Stalled",
    ),
    "a Job that somebody suspended by hand": (
        snapshot_of(job=replace(JOB, suspended=True)), Paused,
        "Queued JobSuspended", "Suspended", "delete Job", "Stalled",
    ),
    "a Job that a queue holds": (
        snapshot_of(job=replace(QUEUED, suspended=True, ready=1), workload=ACTIVE), Paused,
        "Queued WaitingForAdmission", "Running Stopping, suspend Job by its queue", "delete Job", "Stalled",
    ),
    "a Job that a queue stops, whose pod still writes": (
        snapshot_of(
            RAN, job=replace(QUEUED, suspended=True), workload=ACTIVE, pods=(replace(UP, deleting=True),)
        ), Paused,
        "Running Stopping", "Running Stopping, suspend Job by its queue", "delete Job", "Stalled",
    ),
    "a Job that a queue stopped once before": (
        snapshot_of(PAUSED, job=replace(QUEUED, ready=1), workload=ACTIVE), Running,
        "Running", "Running Stopping, suspend Job by its queue", "delete Job", "Stalled",
    ),
    "a Job that is being deleted": (
        snapshot_of(job=replace(JOB, deleting=True)), Stopping,
        "Running Stopping", "Running Stopping", "-", "Stalled",
    ),
    "a failed Job that is being deleted": (
        snapshot_of(job=replace(FAILED, deleting=True), pods=(exited(70),)), Stopping,
        "Running Stopping", "Running Stopping", "-", "Stalled",
    ),
    "a Job that was seen and is gone": (
        snapshot_of(), Lost,
        "Retrying", "Suspended", "-", "Stalled",
    ),
    "a Job that was seen and is gone, while its pod still runs": (
        snapshot_of(pods=(UP,)), Lost,
        "Retrying", "Running Stopping", "-", "Stalled",
    ),
    "a complete Job": (
        snapshot_of(job=COMPLETE), Ended,
        "Succeeded", "Succeeded", "-", "Stalled",
    ),
    "a complete Job that is being deleted": (
        snapshot_of(job=replace(COMPLETE, deleting=True)), Ended,
        "Succeeded", "Succeeded", "-", "Stalled",
    ),
    "a complete Job whose attempt was recorded as a failure": (
        snapshot_of(recorded(0), job=COMPLETE), Ended,
        "Succeeded", "Succeeded", "-", "Stalled",
    ),
    "a failed Job, for a reason that is tried again": (
        snapshot_of(job=FAILED, pods=(exited(70),)), Ended,
        "Retrying", "Retrying", "-", "Stalled",
    ),
    "a failed Job, for a reason that is not tried again": (
        snapshot_of(job=FAILED, pods=(exited(20),)), Ended,
        "Failed DatasetNotFound", "Failed DatasetNotFound", "-", "Stalled",
    ),
    "a failure that is recorded, a moment ago": (
        snapshot_of(recorded(0), job=FAILED), Ended,
        "Retrying", "Suspended", "-", "Stalled",
    ),
    "a failure that is recorded, an hour ago, whose Job still runs": (
        snapshot_of(recorded(1), job=replace(JOB, ready=1)), Ended,
        "delete Job", "Running Stopping, delete Job", "delete Job", "Stalled",
    ),
    "a failure that is recorded, an hour ago, whose Job is being deleted": (
        snapshot_of(recorded(1), job=replace(JOB, deleting=True)), Ended,
        "Queued WaitingForPod, create Job", "Suspended", "-", "Stalled",
    ),
    "a failure that is recorded, an hour ago": (
        snapshot_of(recorded(1), job=FAILED), Ended,
        "Queued WaitingForPod, create Job", "Suspended", "-", "Stalled",
    ),
}  # fmt: skip
INTENTS = ("run", "suspend", "finished", "unreadable")


def with_intent(state: Snapshot, intent: str) -> Snapshot:
    body = resource(suspend=intent == "suspend")
    if intent == "unreadable":
        return replace(state, invalid="spec.training.ofTomorrow: unknown")
    if intent == "finished":
        status = state.status.model_copy(update={"phase": Phase.FAILED, "observed_generation": 1})
        state = replace(state, status=status)
    return replace(state, resource=parse(body))


def in_words(plan: Plan) -> str:
    """Describe a plan: phase and reason of the status that it writes, and actions on Jobs and Services."""
    parts = []
    if plan.status is not None:
        true = {item.type: item for item in plan.status.conditions if item.status == "True"}
        ready = next((item for item in plan.status.conditions if item.type == "Ready"), None)
        phase, reason = str(plan.status.phase), ready.reason if ready else ""
        parts.append(
            "Stalled" if set(true) == {"Stalled"} else phase + (f" {reason}" if reason != phase else "")
        )
    parts += ["create Job"] if plan.create else []
    parts += ["create Service"] if plan.service else []
    parts += ["delete Job"] if plan.delete else []
    by = " by its queue" if plan.workload else ""
    parts += [f"suspend Job{by}"] if plan.suspend else []
    parts += [f"resume Job{by}"] if plan.resume else []
    return ", ".join(parts) or "-"


@pytest.mark.parametrize("state", TABLE)
def test_the_state_of_an_attempt(state: str) -> None:
    snapshot, expected, *_ = TABLE[state]
    assert type(attempt_state(snapshot)) is expected


@pytest.mark.parametrize("intent", INTENTS)
@pytest.mark.parametrize("state", TABLE)
def test_the_plan_for_every_state_and_intent(state: str, intent: str) -> None:
    with_both = with_intent(TABLE[state][0], intent)
    expected = TABLE[state][2 + INTENTS.index(intent)]
    assert in_words(reconcile(with_both, START, Settings())) == expected


@pytest.mark.parametrize("state", TABLE)
def test_nothing_is_done_for_a_resource_that_is_being_deleted(state: str) -> None:
    for intent in INTENTS:
        deleted = replace(with_intent(TABLE[state][0], intent), deleting=True)
        assert reconcile(deleted, START, Settings()) == Plan()


def test_the_table_has_every_state() -> None:
    states = {NotStarted, Announced, Starting, Running, Disrupted, Paused, Stopping, Lost, Ended}
    assert {row[1] for row in TABLE.values()} == states


@pytest.mark.parametrize(
    ("state", "seconds"),
    [
        ("a Job whose pod is ready", None),  # events of the Job report every change
        ("a Job whose pod has ended, and the Job does not know", 30),
        ("a Job of several pods that runs and lost its Service for good", 30),
    ],
)
def test_a_run_is_polled_only_while_its_events_may_not_report_every_change(
    state: str, seconds: float | None
) -> None:
    assert reconcile(with_intent(TABLE[state][0], "run"), START, Settings()).requeue_after == seconds


def test_only_jobs_whose_outcome_is_recorded_get_a_ttl() -> None:
    jobs = tuple(replace(FAILED, name=f"traffic-train-{attempt}") for attempt in (1, 2))
    finished = snapshot_of(recorded(0), resource=parse(resource(runPolicy={"ttlSecondsAfterFinished": 5})))
    assert cleanup.ttl(replace(finished, finished_jobs=jobs), finished.status) == (
        ("traffic-train-1", FAILED.uid, 5),
    )
