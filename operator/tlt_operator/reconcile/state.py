"""State of the current attempt, derived once from a snapshot; every policy starts from it.

    NotStarted -> Announced -> Starting -> Running -> Disrupted -> Ended
                                  ^           |    -> Stopping -> Lost
                                  +- Paused <-+    -> Ended

The Job is created first, then ``status.attempt`` and ``status.jobUid`` are written together. A status
without jobUid names an attempt whose Job could not be created yet (Announced), or comes from an operator of
before, which wrote it first. A Job that is absent was therefore not created yet where there is no jobUid, and
was deleted where there is one (Lost). The end of an attempt is recorded in ``status.history``; from then on
its Job no longer matters.
"""

from __future__ import annotations

from dataclasses import dataclass

from tlt_api.status import Attempt, Failure, Phase
from tlt_operator.reconcile import blockers
from tlt_operator.reconcile.blockers import Blocker
from tlt_operator.reconcile.diagnosis import diagnose
from tlt_operator.snapshot import JobState, PodState, Snapshot


@dataclass(frozen=True)
class NotStarted:
    """State before the first attempt is announced."""


@dataclass(frozen=True)
class Announced:
    """State of an attempt without a Job."""


@dataclass(frozen=True)
class Starting:
    """State of an attempt whose Job exists, while not all of its pods run.

    Attributes:
        job: The Job.
        blocker: Obstacle that keeps a pod from starting; None if no obstacle is visible.
    """

    job: JobState
    blocker: Blocker | None = None


@dataclass(frozen=True)
class Running:
    """State of an attempt whose pods all run or have run.

    Attributes:
        job: The Job.
        problem: Problem that does not stop the run; None if there is none.
    """

    job: JobState
    problem: Blocker | None = None


@dataclass(frozen=True)
class Disrupted:
    """State of an attempt one of whose pods is being taken away, or is on a node that does not answer.

    Attributes:
        job: The Job, which fails once the pod has ended.
        pod: The pod.
    """

    job: JobState
    pod: PodState


@dataclass(frozen=True)
class Paused:
    """State of an attempt whose Job is suspended; once that is over, the Job makes another pod.

    Attributes:
        job: The Job.
        pods: Names of the pods that may still write to the output, for example their checkpoint.
    """

    job: JobState
    pods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stopping:
    """State of an attempt whose Job is being deleted; its pods may still run."""

    job: JobState


@dataclass(frozen=True)
class Lost:
    """State of an attempt whose Job was observed and is gone, without a recorded end."""


@dataclass(frozen=True)
class Succeeded:
    """Outcome of a Job that completed."""

    job: JobState


@dataclass(frozen=True)
class Ended:
    """State of an attempt that has ended.

    Attributes:
        outcome: Success, or a failure that is not recorded yet, or the entry of ``status.history`` that
            records it.
    """

    outcome: Succeeded | Failure | Attempt


AttemptState = NotStarted | Announced | Starting | Running | Disrupted | Paused | Stopping | Lost | Ended


def attempt_state(snapshot: Snapshot) -> AttemptState:
    """Return the state of the current attempt."""
    # A Job of the same name that belongs to something else counts as absent.
    status, job = snapshot.status, snapshot.own_job
    if status.attempt is None:
        return NotStarted()
    # A Job that completed has delivered its results, even while it was being stopped. It wins over a failure
    # in the history too: no policy retries an attempt whose Job may still complete, and if one did, another
    # attempt would only repeat the work.
    if job and job.holds("Complete"):
        return Ended(Succeeded(job))
    # A recorded end stays, even if the Job is gone by now (TTL): otherwise it would count as Lost.
    if status.recorded_end:
        return Ended(status.recorded_end)
    # Without a recorded uid the Job is created, perhaps for the second time: its fixed name lets only one
    # exist at a time.
    if job is None:
        return Lost() if status.job_uid else Announced()
    # A deletion is awaited to its end: the pods' termination messages count, and no other pod may start yet.
    if job.deleting:
        return Stopping(job)
    # Only after its deletion was ruled out: a Job that is being deleted may be marked as failed while its pod
    # still writes.
    if job.holds("Failed"):
        return Ended(diagnose(job, snapshot.attempt_pods))
    # The pods that it had are being stopped, and say nothing of the attempt.
    if job.suspended:
        return Paused(job, snapshot.live_pods)
    return _active(snapshot, job)


def _active(snapshot: Snapshot, job: JobState) -> Starting | Running | Disrupted:
    """Return the state of an attempt whose Job has not ended, is not suspended and not being deleted."""
    # However it seems to run: one pod that goes takes the attempt with it.
    for pod in snapshot.attempt_pods:
        if not pod.phase_ended and (pod.deleting or pod.disrupted or pod.unheard_since):
            return Disrupted(job, pod)
    runs = _all_pods_run(snapshot, job)
    # Pods of several nodes find each other by their Service: without it they run and get nowhere.
    unreachable = _unreachable(snapshot, job)
    if unreachable:
        # Pods that ran with a Service are connected, and need it no more. Others look for each other in vain.
        if runs and snapshot.status.phase == Phase.RUNNING:
            return Running(job, unreachable)
        return Starting(job, unreachable)
    if runs:
        return Running(job)
    return Starting(job, blockers.find(job, snapshot.attempt_pods, snapshot.events, snapshot.namespace))


def _all_pods_run(snapshot: Snapshot, job: JobState) -> bool:
    pods = snapshot.attempt_pods
    # By index: a pod and its replacement are one member of the collective.
    started = {pod.index for pod in pods if pod.started}
    # Without pods to look at (not read, or gone before the Job says why), the phase stays what it was.
    still_running = snapshot.status.phase == Phase.RUNNING and not pods
    return job.all_ready or len(started) >= max(job.parallelism, 1) or still_running


def _unreachable(snapshot: Snapshot, job: JobState) -> Blocker | None:
    """Return the blocker of pods whose Service belongs to something else or was refused, or None."""
    # A Service that is merely missing is no blocker: it is created next.
    if not job.indexed or snapshot.own_service or not (snapshot.service or snapshot.refusal):
        return None
    return blockers.service_blocker(job.name, snapshot.service, snapshot.refusal)
