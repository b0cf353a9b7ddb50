"""The state of the current attempt, derived once from a snapshot; every policy starts from it.

    NotStarted -> Announced -> Waiting -> Running -> Stopping -> Lost
                                                  -> Ended

``status.attempt`` is written before the Job is created (Announced), and ``status.jobUid`` once the Job has
been seen. A Job that is absent was therefore not created yet where there is no jobUid, and was deleted
where there is one (Lost). The end of an attempt is recorded in ``status.history``; from then on its Job no
longer matters.
"""

from __future__ import annotations

from dataclasses import dataclass

from tlt_api.status import Attempt, Failure, Phase
from tlt_operator.reconcile import blockers
from tlt_operator.reconcile.blockers import Blocker
from tlt_operator.reconcile.diagnosis import diagnose
from tlt_operator.snapshot import JobState, Snapshot


@dataclass(frozen=True)
class NotStarted:
    """No attempt was announced."""


@dataclass(frozen=True)
class Announced:
    """The status names the attempt; its Job has not been seen, and may not exist."""


@dataclass(frozen=True)
class Waiting:
    """The Job exists, and not all of its pods run.

    Attributes:
        job: The Job.
        blocker: What keeps a pod from starting; None where nothing is known to be wrong.
    """

    job: JobState
    blocker: Blocker | None = None


@dataclass(frozen=True)
class Running:
    """All pods run, or have run.

    Attributes:
        job: The Job.
        problem: Something that is wrong and does not stop the run.
    """

    job: JobState
    problem: Blocker | None = None


@dataclass(frozen=True)
class Stopping:
    """The Job is being deleted; its pods may still run."""

    job: JobState


@dataclass(frozen=True)
class Lost:
    """The Job was seen and is gone, and nobody recorded an end."""


@dataclass(frozen=True)
class Succeeded:
    """The outcome of a Job that completed."""

    job: JobState


@dataclass(frozen=True)
class Ended:
    """The attempt has ended.

    Attributes:
        outcome: Success, or a failure that is not recorded yet, or the entry of ``status.history`` that
        records it.
    """

    outcome: Succeeded | Failure | Attempt


AttemptState = NotStarted | Announced | Waiting | Running | Stopping | Lost | Ended


def attempt_state(snapshot: Snapshot) -> AttemptState:
    """The state of the current attempt."""
    status, job = snapshot.status, snapshot.own_job
    if status.attempt is None:
        return NotStarted()
    # A Job that completed has delivered its results, even while it was being stopped. It wins over a failure in
    # the history too: no policy retries an attempt whose Job may still complete, but if one did, another
    # attempt would only repeat the work.
    if job and job.holds("Complete"):
        return Ended(Succeeded(job))
    if status.history and status.history[-1].attempt == status.attempt:
        return Ended(status.history[-1])
    if job is None:
        return Lost() if status.job_uid else Announced()
    # A deletion is awaited to its end: the pods' last words count, and nothing must start beside them.
    if job.deleting:
        return Stopping(job)
    if job.holds("Failed"):
        return Ended(diagnose(job, snapshot.attempt_pods))
    return _active(snapshot, job)


def _active(snapshot: Snapshot, job: JobState) -> Waiting | Running:
    """The state of an attempt whose Job has neither ended nor is being deleted."""
    runs = _all_pods_run(snapshot, job)
    unreachable = _unreachable(snapshot, job)
    if unreachable:
        # Pods that ran with a Service are connected, and need it no more. Others look for each other in vain.
        if runs and snapshot.status.phase == Phase.RUNNING:
            return Running(job, unreachable)
        return Waiting(job, unreachable)
    if runs:
        return Running(job)
    return Waiting(job, blockers.find(job, snapshot.attempt_pods, snapshot.events))


def _all_pods_run(snapshot: Snapshot, job: JobState) -> bool:
    # A suspended Job has no pods, and those that it had do not count.
    if job.suspended:
        return False
    pods = snapshot.attempt_pods
    started = {pod.index for pod in pods if pod.started}
    # Without pods to look at (not read, or gone before the Job says why), the phase stays what it was.
    still_running = snapshot.status.phase == Phase.RUNNING and not pods
    return job.all_ready or len(started) >= max(job.parallelism, 1) or still_running


def _unreachable(snapshot: Snapshot, job: JobState) -> Blocker | None:
    """The blocker where the pods' Service belongs to something else, or the API server refused it."""
    if not job.indexed or snapshot.own_service or not (snapshot.service or snapshot.refusal):
        return None
    return blockers.no_service(job.name, snapshot.service, snapshot.refusal)
