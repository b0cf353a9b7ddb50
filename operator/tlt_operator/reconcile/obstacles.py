"""What keeps an attempt's pod from starting: told at once, and fatal only after it has lasted a while."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlt_api.failures import CLASSES, Reason
from tlt_operator.conditions import Block
from tlt_operator.observed import EventState, JobState, PodState, Refusal, ServiceState

_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_IMAGE |= {"RegistryUnavailable", "SignatureValidationFailed"}
_CONTAINER = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError"}


@dataclass(frozen=True)
class Obstacle:
    """An obstacle.

    Attributes:
        block: What it is.
        fails_as: The failure that it becomes when it lasts; None where waiting is all there is to do.
        hint: What the user can do.
    """

    block: Block
    fails_as: Reason | None = None
    hint: str | None = None


def find(job: JobState, pods: Sequence[PodState], events: Sequence[EventState]) -> Obstacle | None:
    """What keeps the Job's pods from starting, as far as it can be told."""
    if job.suspended:
        return Obstacle(
            Block("JobSuspended", f"Job {job.name} is suspended, by a queueing system or by hand")
        )
    if not pods:
        return _no_pod(events)
    waiting = [pod for pod in pods if pod.phase == "Pending"] or [pods[-1]]
    for pod in reversed(waiting):
        if obstacle := _of_pod(pod):
            return obstacle
    if events:
        return Obstacle(Block("PodNotStarting", f"{events[-1].reason}: {events[-1].message}"))
    return None


def _of_pod(pod: PodState) -> Obstacle | None:
    container = pod.container
    if container and container.waiting_reason in _IMAGE:
        text = f"{container.waiting_reason}: {container.waiting_message}"
        return Obstacle(Block(Reason.IMAGE_PULL_FAILED, text), Reason.IMAGE_PULL_FAILED)
    if container and container.waiting_reason in _CONTAINER:
        return Obstacle(
            Block("ContainerRefused", f"{container.waiting_reason}: {container.waiting_message}"),
            Reason.POD_REJECTED,
            "Create what the message names as missing (for example a Secret), or correct its name.",
        )
    scheduled = pod.conditions.get("PodScheduled")
    if scheduled and not scheduled.true:
        return Obstacle(Block(scheduled.reason or "Unschedulable", scheduled.message))
    return None


def refused(message: str) -> Obstacle:
    """The API server refused a Job or a pod."""
    if "exceeded quota" in message:
        return Obstacle(Block("QuotaExceeded", message))
    return Obstacle(
        Block(Reason.POD_REJECTED, message), Reason.POD_REJECTED, CLASSES[Reason.POD_REJECTED].hint
    )


def no_service(name: str, other: ServiceState | None, refusal: Refusal | None) -> Obstacle:
    """The pods cannot find each other: their Service's name is taken, or the API server refused it."""
    if other:
        owner = other.owner_uid or "none"
        return Obstacle(
            Block("ServiceNameTaken", f"Service {name} belongs to something else (owner uid {owner})")
        )
    text = f"Service {name}: {refusal.message if refusal else 'refused'}"
    if "exceeded quota" in text:
        return Obstacle(Block("QuotaExceeded", text))
    return Obstacle(
        Block("ServiceRefused", text),
        Reason.POD_REJECTED,
        "Give the operator the rights to get and create Services (manifests/base/operator-rbac.yaml), or ask "
        "who refuses them.",
    )


def _no_pod(events: Sequence[EventState]) -> Obstacle | None:
    failed = [event for event in events if event.reason == "FailedCreate"]
    return refused(failed[-1].message) if failed else None
