"""Signs of a pod or a run that is no longer heard of: a silent node, and progress that does not come.

Neither is an event: both are found by looking at the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from tlt_api import conditions, times
from tlt_api.conditions import State
from tlt_api.status import Phase
from tlt_operator.snapshot import JobState, PodState, Snapshot

_NODE_SECONDS = 30.0
"""Time after the end of a pod's grace period at which its node is taken to be silent."""
_STALLED_SECONDS = 600.0
"""Silence of a node after which a person has to act: Kubernetes has tried to evict its pods by then."""
_REPORT_SECONDS = 120.0
"""Time that a promised report may take: the API server may be away, and clocks of nodes differ."""


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


def progress_due(snapshot: Snapshot, job: JobState) -> datetime | None:
    """Return when a run that makes no progress is stalled; None if it has not promised its next report."""
    progress = snapshot.status.progress
    last = times.from_wire(progress.last_update_time) if progress else None
    # A runner of before promises nothing, and neither does a stage of unknown length.
    if progress is None or progress.next_within_seconds is None or last is None:
        return None
    # An earlier attempt's, or of before a suspension: this pod has not reported yet.
    if job.start_time is None or last < job.start_time:
        return None
    return last + timedelta(seconds=progress.next_within_seconds + _REPORT_SECONDS)


def no_progress(attempt: int, job: JobState, due: datetime) -> str:
    """Return the message of a run whose progress was due."""
    return (
        f"attempt {attempt} runs as Job {job.name} without progress: its next report was due by "
        f"{times.to_wire(due)}"
    )


def stalled(namespace: str, attempt: int, job: JobState, due: datetime) -> State:
    """Return the state of a run that makes no progress, and that nobody is to restart but its user."""
    where = f"{job.name} -n {namespace}"
    message = (
        f"{no_progress(attempt, job, due)}. kubectl logs job/{where} shows what it does; kubectl delete job "
        f"{where} has it resume from its last checkpoint, as spec.runPolicy.stall: Restart would"
    )
    return State(Phase.RUNNING, conditions.NO_PROGRESS, message, stalled=True)
