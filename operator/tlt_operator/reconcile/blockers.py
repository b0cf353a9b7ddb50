"""Obstacles that keep an attempt's pods from starting: reported at once, fatal only if they last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlt_api.conditions import Block
from tlt_api.failures import CLASSES, Reason
from tlt_operator.objects.service import service_name
from tlt_operator.snapshot import EventState, JobState, PodState, Refusal, ServiceState

# Reasons with which the kubelet keeps a container waiting. They are errors, some of which pass.
_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_IMAGE |= {"RegistryUnavailable", "SignatureValidationFailed"}
_CONTAINER = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError"}


@dataclass(frozen=True)
class Blocker:
    """Obstacle that keeps a pod from starting.

    Attributes:
        block: Reason and message of the condition Blocked.
        fails_as: Failure that the obstacle becomes if it lasts; None if only waiting helps.
        hint: Suggested remedy for the user; None for that of the failure's class.
    """

    block: Block
    fails_as: Reason | None = None
    hint: str | None = None


def find(job: JobState, pods: Sequence[PodState], events: Sequence[EventState]) -> Blocker | None:
    """Return the blocker of a Job's pods, or None if no obstacle is visible."""
    # Kueue suspends a Job until it admits it, which may take days: never an error.
    if job.suspended:
        return Blocker(Block("JobSuspended", f"Job {job.name} is suspended, by a queueing system or by hand"))
    # Without a pod, only the events of the Job say why none is created.
    if not pods:
        return _missing_pod_blocker(events)
    # Of several pods those that do not run yet; the newest obstacle is the one to remove first.
    pending_pods = [pod for pod in pods if pod.phase == "Pending"] or [pods[-1]]
    for pod in reversed(pending_pods):
        if blocker := _pod_blocker(pod):
            return blocker
    # The pod's state says nothing: a volume that cannot be mounted shows in the events alone.
    if events:
        return Blocker(Block("PodNotStarting", f"{events[-1].reason}: {events[-1].message}"))
    return None


def _pod_blocker(pod: PodState) -> Blocker | None:
    container = pod.container
    if container and container.waiting_reason in _IMAGE:
        message = f"{container.waiting_reason}: {container.waiting_message}"
        return Blocker(Block(Reason.IMAGE_PULL_FAILED, message), Reason.IMAGE_PULL_FAILED)
    # A Secret or ConfigMap is missing, or the runtime refuses the container.
    if container and container.waiting_reason in _CONTAINER:
        return Blocker(
            Block("ContainerRefused", f"{container.waiting_reason}: {container.waiting_message}"),
            Reason.POD_REJECTED,
            "Create what the message names as missing (for example a Secret), or correct its name.",
        )
    # No node fits. A cluster autoscaler, or another run's end, may change that at any time: never an error.
    scheduled = pod.conditions.get("PodScheduled")
    if scheduled and not scheduled.true:
        return Blocker(Block(scheduled.reason or "Unschedulable", scheduled.message))
    return None


def refusal_blocker(message: str) -> Blocker:
    """Return the blocker of a Job or pod that the API server refused."""
    # A quota is answered with 403 too, but other runs may free it: only the message tells it from a refusal.
    if "exceeded quota" in message:
        return Blocker(Block("QuotaExceeded", message))
    return Blocker(
        Block(Reason.POD_REJECTED, message), Reason.POD_REJECTED, CLASSES[Reason.POD_REJECTED].hint
    )


def service_blocker(job: str, other: ServiceState | None, refusal: Refusal | None) -> Blocker:
    """Return the blocker of pods without a Service: its name is taken, or the API server refused it."""
    name = service_name(job)
    # Only waited for, as with the name of a Job: a Service of somebody else is not adopted.
    if other:
        owner = other.owner_uid or "none"
        return Blocker(
            Block("ServiceNameTaken", f"Service {name} belongs to something else (owner uid {owner})")
        )
    message = f"Service {name}: {refusal.message if refusal else 'refused'}"
    # As with a Job: other runs may free the quota.
    if "exceeded quota" in message:
        return Blocker(Block("QuotaExceeded", message))
    return Blocker(
        Block("ServiceRefused", message),
        Reason.POD_REJECTED,
        "Give the operator the rights to get and create Services (manifests/base/operator-rbac.yaml), or ask "
        "who refuses them.",
    )


def _missing_pod_blocker(events: Sequence[EventState]) -> Blocker | None:
    # The Job controller is refused in our place: it reports quota, webhook and Pod Security as this event.
    failed = [event for event in events if event.reason == "FailedCreate"]
    return refusal_blocker(failed[-1].message) if failed else None
