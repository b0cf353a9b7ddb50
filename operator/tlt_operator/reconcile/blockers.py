"""Obstacles that keep an attempt's pods from starting: what is missing, and what mends it.

They are reported at once, and none ends a resource by itself: registries, webhooks, quotas and nodes come
back, and missing objects are created. ``spec.runPolicy.startTimeoutSeconds`` sets an end to waiting.

Kubernetes says what is missing in words only. The texts below are those of its admission plugins and of the
kubelet; a text that is not recognised is reported as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tlt_api.conditions import OUTPUT_IN_USE, Block
from tlt_api.failures import CLASSES, Reason
from tlt_operator.objects.job import RUNNER_SERVICE_ACCOUNT
from tlt_operator.objects.service import service_name
from tlt_operator.snapshot import ContainerState, EventState, JobState, Key, PodState, Refusal, ServiceState

# Reasons with which the kubelet keeps a container waiting. They are errors, some of which pass.
_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_IMAGE |= {"RegistryUnavailable", "SignatureValidationFailed"}
_CONTAINER = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError"}


@dataclass(frozen=True)
class Blocker:
    """Obstacle that keeps a pod from starting.

    Attributes:
        reason: Reason of the condition Blocked.
        message: Description of the obstacle, in the words of who reported it.
        hint: What mends it, with the command or manifest; empty if only waiting helps.
        fails_as: Reason of the failure if it lasts for longer than startTimeoutSeconds.
    """

    reason: str
    message: str
    hint: str = ""
    fails_as: Reason = Reason.START_TIMEOUT

    @property
    def block(self) -> Block:
        """Reason and message of the condition Blocked."""
        return Block(self.reason, f"{self.message}. {self.hint}" if self.hint else self.message)


def find(
    job: JobState, pods: Sequence[PodState], events: Sequence[EventState], namespace: str
) -> Blocker | None:
    """Return the blocker of a Job's pods, or None if no obstacle is visible."""
    # Without a pod, only the events of the Job say why none is created.
    if not pods:
        return _missing_pod_blocker(events, namespace)
    # Of several pods those that do not run yet; the newest obstacle is the one to remove first.
    pending_pods = [pod for pod in pods if pod.phase == "Pending"] or [pods[-1]]
    for pod in reversed(pending_pods):
        if blocker := _pod_blocker(pod, namespace):
            return blocker
    # The pod's state says nothing: a volume that cannot be mounted shows in the events alone.
    if events:
        message = f"{events[-1].reason}: {events[-1].message}"
        return Blocker(
            "PodNotStarting", message, f"kubectl describe pod {pods[-1].name} -n {namespace} has more."
        )
    return None


def _pod_blocker(pod: PodState, namespace: str) -> Blocker | None:
    container = pod.container
    if container and container.waiting_reason in _IMAGE:
        message = f"{container.waiting_reason}: {container.waiting_message}"
        return Blocker(Reason.IMAGE_PULL_FAILED, message, _image_hint(container), Reason.IMAGE_PULL_FAILED)
    # A Secret or ConfigMap is missing, or the runtime refuses the container.
    if container and container.waiting_reason in _CONTAINER:
        return _container_blocker(container.waiting_reason, container.waiting_message, pod, namespace)
    # No node fits. A cluster autoscaler, or another run's end, may change that at any time.
    scheduled = pod.conditions.get("PodScheduled")
    if scheduled and not scheduled.true:
        return _unscheduled_blocker(scheduled.reason or "Unschedulable", scheduled.message, namespace)
    return None


def _image_hint(container: ContainerState) -> str:
    match container.waiting_reason:
        case "InvalidImageName":
            return "No registry can mend that: create another resource with a valid spec.podTemplate.image."
        case "ErrImageNeverPull":
            return "Load the image onto the node, since spec.podTemplate.imagePullPolicy is Never."
        case _:
            return (
                "Push the image, or make its registry and spec.podTemplate.imagePullSecrets work: the "
                "kubelet tries again by itself."
            )


def _container_blocker(reason: str, message: str, pod: PodState, namespace: str) -> Blocker:
    text = f"{reason}: {message}"
    if match := re.search(r'secret "([^"]+)" not found', message):
        hint = f"kubectl create secret generic {match[1]} -n {namespace} with the keys AWS_ACCESS_KEY_ID and "
        hint += "AWS_SECRET_ACCESS_KEY makes it; the kubelet tries again by itself."
        return Blocker("SecretMissing", text, hint, Reason.POD_REJECTED)
    if match := re.search(r"couldn't find key (\S+) in Secret (\S+)", message):
        hint = f"Add the key {match[1]} to the Secret: kubectl edit secret -n {namespace}."
        return Blocker("SecretMissing", text, hint, Reason.POD_REJECTED)
    hint = f"kubectl describe pod {pod.name} -n {namespace} has more; a node that is broken: kubectl cordon "
    hint += f"{pod.node or 'NODE'}, then delete the pod's Job."
    return Blocker("ContainerRefused", text, hint, Reason.POD_REJECTED)


def _unscheduled_blocker(reason: str, message: str, namespace: str) -> Blocker:
    if match := re.search(r'persistentvolumeclaim "([^"]+)" not found', message):
        hint = f"Create the PersistentVolumeClaim {match[1]} in the namespace {namespace}."
        return Blocker("ClaimMissing", message, hint, Reason.POD_REJECTED)
    if "unbound immediate PersistentVolumeClaims" in message:
        return Blocker("ClaimUnbound", message, f"kubectl describe pvc -n {namespace} says why.")
    return Blocker(reason, message)


def output_blocker(uri: str, holder: Key) -> Blocker:
    """Return the blocker of a resource whose output another live one writes to."""
    return Blocker(
        OUTPUT_IN_USE,
        f"{holder.kind}/{holder.name} writes to {uri}: two runs would replace each other's files",
        "It starts once that one has ended or is deleted, and its pods have ended; another spec.output.uri "
        "would not have to wait.",
    )


def suspension_blocker(job: JobState, namespace: str) -> Blocker:
    """Return the blocker of a Job that neither the operator nor a queue of Kueue has suspended."""
    message = f"Job {job.name} is suspended by hand or by a queueing system"
    hint = f"By hand: kubectl patch job {job.name} -n {namespace} --type merge -p "
    hint += '\'{"spec":{"suspend":false}}\'. Kueue needs the label kueue.x-k8s.io/queue-name on the resource.'
    return Blocker("JobSuspended", message, hint)


def workload_blocker(refusal: Refusal) -> Blocker:
    """Return the blocker of a Job of Kueue's whose Workload the operator may not read."""
    return Blocker(
        "WorkloadRefused",
        f"Kueue's Workload of the Job cannot be read: {refusal.message}",
        "The operator needs the rights to list and patch workloads.kueue.x-k8s.io: kubectl apply -k "
        "manifests/base gives them.",
    )


def refusal_blocker(message: str, namespace: str) -> Blocker:
    """Return the blocker of a Job or pod that the API server refused."""
    # A quota is answered with 403 too, but other runs may free it: only the message tells it from a refusal.
    if match := re.search(r"exceeded quota(?:: ([^,\s]+))?", message):
        hint = "It starts once other pods have ended or the quota is raised: "
        hint += f"kubectl describe resourcequota {match[1] or ''} -n {namespace}".replace("  ", " ")
        return Blocker("QuotaExceeded", message, hint)
    if match := re.search(r"failed quota: ([^:\s]+): must specify", message):
        hint = "Set spec.resources.cpu and memory in a new resource, or give the namespace a LimitRange with "
        hint += f"defaults (kubectl describe resourcequota {match[1]} -n {namespace})."
        return Blocker("QuotaUnmet", message, hint, Reason.POD_REJECTED)
    # The commonest first error: a namespace that nobody opened to runners.
    if match := re.search(r'service ?account "?(?:[^/\s"]+/)?([^:\s"]+)"?:? .*not found', message):
        hint = f"kubectl apply -k manifests/namespace -n {namespace} opens the namespace to runners."
        if match[1] != RUNNER_SERVICE_ACCOUNT:
            hint = f"kubectl create serviceaccount {match[1]} -n {namespace}"
        return Blocker("ServiceAccountMissing", message, hint, Reason.POD_REJECTED)
    if match := re.search(r'RuntimeClass(?:\.node\.k8s\.io)? "([^"]+)" not found', message):
        hint = f"Create the RuntimeClass {match[1]} (GPU operators bring it along); kubectl get runtimeclass "
        hint += "lists those that exist."
        return Blocker("RuntimeClassMissing", message, hint, Reason.POD_REJECTED)
    if match := re.search(r"no PriorityClass with name (\S+) was found", message):
        hint = (
            f"kubectl create priorityclass {match[1]} --value=1000 makes it; kubectl get priorityclass lists "
        )
        hint += "those that exist."
        return Blocker("PriorityClassMissing", message, hint, Reason.POD_REJECTED)
    if match := re.search(r'failed calling webhook "([^"]+)"', message):
        hint = f"Restart the server of the webhook {match[1]}: kubectl get validatingwebhookconfigurations,"
        hint += "mutatingwebhookconfigurations names its Service."
        return Blocker("WebhookUnavailable", message, hint, Reason.POD_REJECTED)
    if "violates PodSecurity" in message:
        hint = f"kubectl get namespace {namespace} --show-labels has the level; pods of this operator meet "
        hint += "restricted unless a webhook changes them."
        return Blocker("PodSecurityViolated", message, hint, Reason.POD_REJECTED)
    return Blocker(Reason.POD_REJECTED, message, CLASSES[Reason.POD_REJECTED].hint, Reason.POD_REJECTED)


def is_invalid(refusal: Refusal) -> bool:
    """Tell whether the API server refused the object for its own content, which no other time changes.

    Webhooks and admission policies answer with 400 or 422 too, and are somebody's who may change his mind.
    """
    ours = refusal.code == 422 and " is invalid: " in refusal.message
    return ours and "denied" not in refusal.message and "webhook" not in refusal.message


def service_blocker(job: str, other: ServiceState | None, refusal: Refusal | None) -> Blocker:
    """Return the blocker of pods without a Service: its name is taken, or the API server refused it."""
    name = service_name(job)
    # Only waited for, as with the name of a Job: a Service of somebody else is not adopted.
    if other:
        owner = other.owner_uid or "none"
        return Blocker("ServiceNameTaken", f"Service {name} belongs to something else (owner uid {owner})")
    message = f"Service {name}: {refusal.message if refusal else 'refused'}"
    # As with a Job: other runs may free the quota.
    if "exceeded quota" in message:
        return Blocker("QuotaExceeded", message)
    return Blocker(
        "ServiceRefused",
        message,
        "Give the operator the rights to get and create Services (manifests/base/operator-rbac.yaml), or ask "
        "who refuses them.",
        Reason.POD_REJECTED,
    )


def _missing_pod_blocker(events: Sequence[EventState], namespace: str) -> Blocker | None:
    # The Job controller is refused in our place: it reports quota, webhook and Pod Security as this event.
    failed = [event for event in events if event.reason == "FailedCreate"]
    return refusal_blocker(failed[-1].message, namespace) if failed else None
