"""Signs of a pod or a run that is no longer heard of: a silent node, and progress that does not come.

Neither is an event: both are found by looking at the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tlt_api import conditions, times
from tlt_api.conditions import State
from tlt_api.runspec import PREPARATION_SECONDS
from tlt_api.status import Phase
from tlt_operator.snapshot import JobState, PodState, Snapshot

_NODE_SECONDS = 30.0
"""Time after the end of a pod's grace period at which its node is taken to be silent."""
_STALLED_SECONDS = 600.0
"""Silence of a node after which a person has to act: Kubernetes has tried to evict its pods by then."""
_REPORT_SECONDS = 120.0
"""Time that a promised report may take: a runner tries again within a minute once the API server is back."""
_LATE_POLL_SECONDS = 30.0
"""Interval of looks at a run that is late."""
_SOONEST_SECONDS = 5.0
"""Shortest interval of looks."""


def lost_pod(pods: Sequence[PodState], now: datetime) -> PodState | None:
    """Return the first pod whose node does not answer, so that nobody knows whether it runs; None if none."""
    return next((pod for pod in pods if _silent_since(pod, now)), None)


def node_lost(namespace: str, pod: PodState, now: datetime) -> State:
    """Return the state of a resource a pod of which is on a node that does not answer."""
    node, since = pod.node or "NODE", _silent_since(pod, now) or now
    message = (
        f"node {node} has not answered since {times.to_wire(since)}: pod {pod.name} may still run and write, "
        f"so that no other one starts. Once the node is known to be off, kubectl delete pod {pod.name} -n "
        f"{namespace} --force --grace-period=0 lets the next attempt start; for all pods of the node, "
        f"kubectl taint node {node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
    )
    stalled = (now - since).total_seconds() > _STALLED_SECONDS
    return State(Phase.RETRYING, conditions.NODE_LOST, message, stalled=stalled)


def _silent_since(pod: PodState, now: datetime) -> datetime | None:
    """Return since when the node of a pod that has not ended does not answer; None if it does."""
    if pod.ended:
        return None
    if pod.unheard_since:
        return pod.unheard_since
    # A kubelet ends a pod within its grace period, and says so a moment later.
    due = pod.deletion_due
    return due if due and (now - due).total_seconds() > _NODE_SECONDS else None


@dataclass(frozen=True)
class Awaited:
    """Report that a run owes.

    Attributes:
        after: Last report that was heard, or the start of the run if none was.
        within: Time after it within which the next one is due, in seconds.
        is_first: True if the run has not reported since its start.
    """

    after: str
    within: float
    is_first: bool = False


def awaited(snapshot: Snapshot) -> Awaited | None:
    """Return the report that a run owes; None if nothing runs, or it has promised none."""
    job, progress = snapshot.own_job, snapshot.status.progress
    if job is None or job.start_time is None or job.finished:
        return None
    last = times.from_wire(progress.last_update_time) if progress else None
    # Of an earlier attempt, or of before a suspension: this pod has not reported yet.
    if progress is None or progress.last_update_time is None or last is None or last < job.start_time:
        runs = job.all_ready or snapshot.status.phase == Phase.RUNNING
        # With its last report: one from a node whose clock is behind is a sign of life all the same.
        heard = progress.last_update_time if progress else None
        start = f"start of {job.uid} at {times.to_wire(job.start_time)}, last heard of {heard}"
        return Awaited(start, PREPARATION_SECONDS, is_first=True) if runs else None
    # A runner of before promises nothing, and neither does a stage of unknown length.
    if progress.next_within_seconds is None:
        return None
    return Awaited(progress.last_update_time, progress.next_within_seconds)


def seconds_left(snapshot: Snapshot) -> float | None:
    """Return the seconds until a silent run is stalled; None if it owes no report."""
    report = awaited(snapshot)
    if report is None or snapshot.progress_silence is None:
        return None
    return report.within + _REPORT_SECONDS - snapshot.progress_silence


def next_look(left: float) -> float:
    """Return the seconds until the next look at a run that is stalled in ``left`` seconds if it is silent."""
    # From the promised time on, seconds count only while somebody looks (:mod:`tlt_operator.reports`).
    promised = left - _REPORT_SECONDS
    return max(promised if promised > 0 else min(left, _LATE_POLL_SECONDS), _SOONEST_SECONDS)


def is_known(snapshot: Snapshot, state: State) -> bool:
    """Tell whether the status says already that the run is stalled, since the very same report."""
    stalled = conditions.find(snapshot.status.conditions, conditions.STALLED)
    return stalled is not None and stalled.status == "True" and stalled.message == state.message


def no_progress(snapshot: Snapshot, job: JobState) -> str:
    """Return the message of a run whose progress was due."""
    runs = f"attempt {snapshot.attempt} runs as Job {job.name}"
    report, progress = awaited(snapshot), snapshot.status.progress
    if report and report.is_first:
        return f"{runs} and has not reported since its start, which it was to do within {report.within:g} s"
    last = times.from_wire(progress.last_update_time) if progress else None
    promised = progress.next_within_seconds if progress else None
    # By the runner's clock, for people: no decision depends on it.
    due = times.to_wire(last + timedelta(seconds=promised or 0)) if last else "now"
    return f"{runs} without progress: its next report was due by {due}"


def stalled(snapshot: Snapshot, job: JobState) -> State:
    """Return the state of a run that makes no progress, and that nobody is to restart but its user."""
    where = f"{job.name} -n {snapshot.namespace}"
    message = (
        f"{no_progress(snapshot, job)}. kubectl logs job/{where} shows what it does; kubectl delete job "
        f"{where} has it resume from its last checkpoint, as spec.runPolicy.stall: Restart would"
    )
    return State(Phase.RUNNING, conditions.NO_PROGRESS, message, stalled=True)
