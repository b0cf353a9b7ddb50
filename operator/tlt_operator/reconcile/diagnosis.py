"""Why an attempt failed: told by the Job's condition, the pod's, and the container's exit, never by log text.

In this order, since the earlier is the surer: the Job ran out of time; Kubernetes took the pod away
(DisruptionTarget); the container was killed for memory; the runner said so itself (exit code and termination
message); the pod never ran; the pod is gone.

Of several pods that worked together one fails first and takes the others along: they lose their peer
(WorkerLost), or Kubernetes stops them with the Job (Interrupted). What is reported is the cause, not that.
"""

from __future__ import annotations

from collections.abc import Sequence

from tlt_api.failures import CLASSES, Reason, by_exit_code
from tlt_api.runreport import RunReport
from tlt_api.status import Failure
from tlt_operator.observed import ContainerState, JobState, PodState
from tlt_operator.reconcile import report

SIGKILL = 128 + 9
SIGTERM = 128 + 15
_MESSAGE_LIMIT = 2000

_LOST = {"DeletionByTaintManager", "DeletionByPodGC", "NodeLost", "NodeShutdown", "Shutdown"}
"""Reasons of DisruptionTarget and of pods that mean: the node went away. Others: the pod had to make room."""


_NODE_FORGOT = ("ContainerStatusUnknown", "Unknown")
"""Why a container ended, where its node was restarted or lost: the exit code (137, 255) is made up."""
_COLLATERAL = {Reason.INTERNAL: 1, Reason.INTERRUPTED: 2, Reason.WORKER_LOST: 2}
"""Reasons that another pod's failure may bring about, the likelier the higher: a lost peer can crash one."""
_NOT_STARTED = ("StartError", "ContainerCannotRun")


def failure(reason: Reason, message: str, exit_code: int | None = None, hint: str | None = None) -> Failure:
    """A failure as the taxonomy has it."""
    known = CLASSES[reason]
    return Failure(
        reason=reason,
        exit_code=exit_code,
        message=message[:_MESSAGE_LIMIT],
        hint=hint or known.hint,
        retryable=known.retryable,
    )


def diagnose(job: JobState, pods: Sequence[PodState]) -> Failure:
    """The failure of a failed Job, whose pods are given newest last."""
    condition = job.conditions["Failed"]
    if condition.reason == "DeadlineExceeded":
        return failure(
            Reason.DEADLINE_EXCEEDED, f"Job {job.name} ran longer than activeDeadlineSeconds allows"
        )
    pod = _cause(pods)
    if condition.reason == "PodFailurePolicy":
        return _disrupted(condition.message, pod)
    if pod is None:
        return failure(
            Reason.INTERRUPTED,
            f"the pod of Job {job.name} is gone without an outcome ({condition.reason}: {condition.message})",
        )
    return _of_pod(pod)


def _of_pod(pod: PodState) -> Failure:
    disruption = pod.conditions.get("DisruptionTarget")
    if disruption and disruption.true:
        return _disrupted(disruption.message, pod)
    if pod.container and pod.container.exit_code is not None:
        return _exited(pod, pod.container, pod.container.exit_code)
    return _never_ran(pod)


def _cause(pods: Sequence[PodState]) -> PodState | None:
    """Of pods that worked together the one that failed of itself: the first to end, where several did."""
    by_index = {index: [pod for pod in pods if pod.index == index] for index in {pod.index for pod in pods}}
    told = [pod for pod in map(_telling, by_index.values()) if pod]
    failed = [pod for pod in told if _exit_code(pod) != 0] or told

    def rank(pod: PodState) -> tuple[bool, int, float, int]:
        ended = pod.container.finished if pod.container else None
        collateral = _COLLATERAL.get(Reason(_of_pod(pod).reason), 0)
        when = ended.timestamp() if ended else float("inf")
        return not _is_disrupted(pod), collateral, when, pod.index or 0

    return min(failed, key=rank, default=None)


def _is_disrupted(pod: PodState) -> bool:
    return "DisruptionTarget" in pod.conditions and pod.conditions["DisruptionTarget"].true


def _telling(pods: Sequence[PodState]) -> PodState | None:
    """The pod whose end says most: one whose container ended, else the newest."""
    ended = [pod for pod in pods if pod.container and pod.container.exit_code is not None]
    candidates = ended or [*pods]
    return candidates[-1] if candidates else None


def _disrupted(message: str, pod: PodState | None) -> Failure:
    condition = pod.conditions.get("DisruptionTarget") if pod else None
    cause = condition.reason if condition else ""
    reason = Reason.NODE_LOST if cause in _LOST or (pod and pod.reason in _LOST) else Reason.EVICTED
    details = (condition.message if condition else "") or message
    return failure(reason, f"{cause or 'disrupted'}: {details}", _exit_code(pod))


def _exit_code(pod: PodState | None) -> int | None:
    return pod.container.exit_code if pod and pod.container else None


def _exited(pod: PodState, container: ContainerState, code: int) -> Failure:
    if container.reason in _NODE_FORGOT:
        text = f"the node of pod {pod.name} lost sight of its container ({container.reason})"
        return failure(Reason.NODE_LOST, text, code)
    if container.reason in _NOT_STARTED:
        text = f"the container of pod {pod.name} could not be started: {container.message}"
        return failure(
            Reason.POD_REJECTED, text, code, "Check that spec.podTemplate.image is a runner image."
        )
    if container.reason == "OOMKilled":
        return failure(Reason.OUT_OF_MEMORY, f"the container of pod {pod.name} was killed for memory", code)
    told = report.parse(container.message)
    if told and (own := _own_words(told, code)):
        return own
    if code == SIGKILL and not pod.deleting:
        return failure(
            Reason.OUT_OF_MEMORY,
            f"a process of pod {pod.name} was killed (exit code {code}) though nobody stopped the pod: "
            "the kernel does that when memory runs out",
            code,
        )
    if code in (SIGKILL, SIGTERM):
        return failure(Reason.INTERRUPTED, f"pod {pod.name} was stopped (exit code {code})", code)
    known = by_exit_code(code)
    text = f"pod {pod.name} ended with exit code {code}"
    if known.exit_code != code:
        signal = f", signal {code - 128}" if 128 < code < 160 else ""
        text += f"{signal} ({container.reason or 'no reason given'}: {container.message or 'no message'})"
    return failure(known.reason, text, code)


def _own_words(told: RunReport, code: int) -> Failure | None:
    """The runner's own failure, where its exit code agrees."""
    if told.failure is None or told.failure.reason not in set(Reason):
        return None
    reason = Reason(told.failure.reason)
    if CLASSES[reason].exit_code != code:
        return None
    return failure(reason, told.failure.message, code, told.failure.hint)


def _never_ran(pod: PodState) -> Failure:
    reason = Reason.NODE_LOST if pod.reason in _LOST else Reason.EVICTED
    if pod.reason:
        return failure(reason, f"pod {pod.name}: {pod.reason}: {pod.message}")
    return failure(Reason.INTERRUPTED, f"pod {pod.name} ended before its container did ({pod.phase})")
