"""Diagnosis of a failed attempt, from conditions of Job and pod and from exit codes, never from log text.

In this order, the surest sign first: the Job ran out of time; Kubernetes took the pod away
(DisruptionTarget); the container was killed for memory; the runner's own report (exit code and termination
message); the pod never ran; the pod is gone.

Of several pods that work together one fails first, and the others follow: they lose their peer
(WorkerLost), or Kubernetes stops them with the Job (Interrupted). The first one's failure is the cause, and
is reported.
"""

from __future__ import annotations

from collections.abc import Sequence

from tlt_api.failures import CLASSES, Reason, by_exit_code, failure, known
from tlt_api.runreport import RunReport
from tlt_api.status import Failure
from tlt_operator.reconcile import report
from tlt_operator.snapshot import ContainerState, JobState, PodState

SIGKILL = 128 + 9
SIGTERM = 128 + 15

_NODE_GONE = {"DeletionByTaintManager", "DeletionByPodGC", "NodeLost", "NodeShutdown", "Shutdown"}
"""Reasons of DisruptionTarget and of pods: the node went away. With any other, the pod had to make room."""
_NODE_FORGOT = ("ContainerStatusUnknown", "Unknown")
"""Reasons of a container whose node was restarted or lost: its exit code (137, 255) is made up."""
_NOT_STARTED = ("StartError", "ContainerCannotRun")
"""Reasons of a container whose command could not be started, with Docker and containerd."""
_NODE_REFUSED = ("UnexpectedAdmissionError",)
"""Reasons of a pod for which its node lacks what the scheduler was told it has, for example a working GPU."""
_COLLATERAL = {Reason.INTERNAL: 1, Reason.INTERRUPTED: 2, Reason.WORKER_LOST: 2}
"""Reasons that the failure of another pod can cause, more likely with a higher number."""


def diagnose(job: JobState, pods: Sequence[PodState]) -> Failure:
    """Return the failure of a failed Job.

    Args:
        job: The Job, whose condition Failed is True.
        pods: Pods of the Job, newest last.
    """
    # The kubelet stops a pod at its deadline (the Job controller those of Jobs of earlier versions): their
    # exit codes would look like an interruption.
    condition = job.conditions["Failed"]
    if "DeadlineExceeded" in {condition.reason, *(pod.reason for pod in pods)}:
        return failure(
            Reason.DEADLINE_EXCEEDED, f"Job {job.name} ran longer than activeDeadlineSeconds allows"
        )
    # The policy matches DisruptionTarget only: Kubernetes took a pod away, which may be gone by now.
    pod = _first_to_fail(pods)
    if condition.reason == "PodFailurePolicy":
        return _disruption(condition.message, pod)
    # Nobody knows how the pod ended; an interruption does not count against the run.
    if pod is None:
        return failure(
            Reason.INTERRUPTED,
            f"the pod of Job {job.name} is gone without an outcome ({condition.reason}: {condition.message})",
        )
    return _pod_failure(pod)


def _first_to_fail(pods: Sequence[PodState]) -> PodState | None:
    """Return the pod, of those that worked together, that failed by itself, or the first of several."""
    indices = {pod.index for pod in pods}
    # An index may have several pods: one that was deleted, and the one that replaced it.
    candidates = [_most_informative([pod for pod in pods if pod.index == index]) for index in indices]
    # A pod that ended with 0 is not the cause, unless there is no other.
    failed = [pod for pod in candidates if pod.exit_code != 0] or candidates

    def rank(pod: PodState) -> tuple[bool, int, float, int]:
        finished = pod.container.finished if pod.container else None
        # A worker that loses its peer may report WorkerLost, or crash (Internal) before it can.
        collateral = _COLLATERAL.get(Reason(_pod_failure(pod).reason), 0)
        when = finished.timestamp() if finished else float("inf")
        # A disruption explains the failures of all others; then failures of a pod's own; of equals, the
        # first.
        return not pod.disrupted, collateral, when, pod.index or 0

    return min(failed, key=rank, default=None)


def _most_informative(pods: Sequence[PodState]) -> PodState:
    """Return, of the pods of one index, the one whose container ended, else the newest."""
    ended = [pod for pod in pods if pod.exit_code is not None]
    return (ended or pods)[-1]


def _pod_failure(pod: PodState) -> Failure:
    # Before the exit code: the container of a pod that is taken away ends by SIGTERM like an interruption.
    if pod.disrupted:
        return _disruption(pod.conditions["DisruptionTarget"].message, pod)
    if pod.container and pod.container.exit_code is not None:
        return _exit_failure(pod, pod.container, pod.container.exit_code)
    return _start_failure(pod)


def _disruption(message: str, pod: PodState | None) -> Failure:
    condition = pod.conditions.get("DisruptionTarget") if pod else None
    # With the reason of the condition (PreemptionByScheduler, for example), which names who took the pod
    # away.
    cause = condition.reason if condition else ""
    node_gone = cause in _NODE_GONE or (pod is not None and pod.reason in _NODE_GONE)
    # The pod may be gone with its condition: the message of the Job's condition remains.
    details = (condition.message if condition else "") or message
    return failure(
        Reason.NODE_LOST if node_gone else Reason.EVICTED,
        f"{cause or 'disrupted'}: {details}",
        exit_code=pod.exit_code if pod else None,
    )


def _exit_failure(pod: PodState, container: ContainerState, code: int) -> Failure:
    if container.reason in _NODE_FORGOT:
        message = f"the node of pod {pod.name} lost sight of its container ({container.reason})"
        return failure(Reason.NODE_LOST, message, exit_code=code)
    if container.reason in _NOT_STARTED:
        return _start_error(pod, container.message, code)
    # The kernel killed the container's first process. A child that is killed shows as its exit code below.
    if container.reason == "OOMKilled":
        message = f"the container of pod {pod.name} was killed for memory"
        return failure(Reason.OUT_OF_MEMORY, message, exit_code=code)
    run_report = report.parse(container.message)
    reported = _reported_failure(run_report, code) if run_report else None
    if reported:
        return reported
    # Nobody stopped the pod: this SIGKILL is the kernel's, to a process that was not the container's first.
    if code == SIGKILL and not pod.deleting:
        message = (
            f"a process of pod {pod.name} was killed (exit code {code}) though nobody stopped the pod: "
            "the kernel does that when memory runs out"
        )
        return failure(Reason.OUT_OF_MEMORY, message, exit_code=code)
    # The runner had no chance to report: it was stopped before it listened for signals, or after the grace
    # period.
    if code in (SIGKILL, SIGTERM):
        message = f"pod {pod.name} was stopped (exit code {code})"
        return failure(Reason.INTERRUPTED, message, exit_code=code)
    return _by_exit_code(pod, container, code)


def _start_error(pod: PodState, message: str, code: int | None = None) -> Failure:
    """Return the failure of a pod that its node could not start."""
    text = f"node {pod.node or 'unknown'} could not start pod {pod.name}: {message}"
    # The image exists but does not contain the command: no other node would help.
    if "executable file not found" in message or "no such file or directory" in message:
        hint = "Check that spec.podTemplate.image is a runner image, and push one under its name."
        return failure(Reason.START_FAILED, text, hint, exit_code=code)
    hint = f"Repair the node, or keep pods away from it: kubectl cordon {pod.node or 'NODE'}."
    hint += " The next attempt prefers another one."
    return failure(Reason.START_FAILED, text, hint, exit_code=code)


def failed_node(cause: Failure, pods: Sequence[PodState]) -> str | None:
    """Return the node that could not start a pod or lacks its GPUs, if the attempt failed by that."""
    if cause.reason == Reason.NOT_ENOUGH_GPUS:
        code = CLASSES[Reason.NOT_ENOUGH_GPUS].exit_code
        return next((pod.node for pod in reversed(pods) if pod.node and pod.exit_code == code), None)
    if cause.reason != Reason.START_FAILED:
        return None
    return next((pod.node for pod in reversed(pods) if pod.node and _could_not_start(pod)), None)


def _could_not_start(pod: PodState) -> bool:
    return pod.reason in _NODE_REFUSED or (pod.container is not None and pod.container.reason in _NOT_STARTED)


def _reported_failure(run_report: RunReport, code: int) -> Failure | None:
    """Return the failure that the runner reported, if its exit code agrees."""
    reported = run_report.failure
    # A newer runner may know reasons that this operator does not: its exit code decides then.
    reason = known(reported.reason) if reported else None
    # A process that ended with another code did not end by what it reported.
    if reported is None or reason is None or CLASSES[reason].exit_code != code:
        return None
    return failure(reason, reported.message, reported.hint, exit_code=code)


def _by_exit_code(pod: PodState, container: ContainerState, code: int) -> Failure:
    failure_class = by_exit_code(code)
    message = f"pod {pod.name} ended with exit code {code}"
    # An unknown code (a crash, a signal): only the container's reason and message say more.
    if failure_class.exit_code != code:
        # 128 + n is the code of a process that signal n ended.
        signal = f", signal {code - 128}" if 128 < code < 160 else ""
        message += f"{signal} ({container.reason or 'no reason given'}: {container.message or 'no message'})"
    return failure(failure_class.reason, message, exit_code=code)


def _start_failure(pod: PodState) -> Failure:
    if pod.reason in _NODE_REFUSED:
        return _start_error(pod, f"{pod.reason}: {pod.message}")
    # The kubelet rejected or evicted the pod before its container started.
    if pod.reason:
        reason = Reason.NODE_LOST if pod.reason in _NODE_GONE else Reason.EVICTED
        return failure(reason, f"pod {pod.name}: {pod.reason}: {pod.message}")
    return failure(Reason.INTERRUPTED, f"pod {pod.name} ended before its container did ({pod.phase})")
