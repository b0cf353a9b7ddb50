"""Snapshot of one resource and everything that belongs to it: the input of every decision.

:mod:`tlt_operator.observe` fills a :class:`Snapshot`; :mod:`tlt_operator.reconcile` decides
from it alone. Jobs and pods are trimmed to what decisions need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tlt_api.resources import Kind, Resource
from tlt_api.status import JobStatus


@dataclass(frozen=True)
class Key:
    """Identity of a resource in the queue and in the index; the uid is not part of it."""

    # Without uid: a resource that was created again takes the place of its former one, and the next live read
    # says which of them it is.

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"


@dataclass(frozen=True)
class ConditionState:
    """Condition of a Job or pod that is True or False; unknown ones are left out."""

    true: bool
    reason: str = ""
    message: str = ""
    since: datetime | None = None


@dataclass(frozen=True)
class JobState:
    """State of a batch/v1 Job.

    Attributes:
        name: Name of the Job.
        uid: UID of the Job.
        resource_version: Version that was read, for preconditions.
        owner_uid: UID of the controller; empty if the Job has none.
        created: Time of the Job's creation.
        start_time: Time at which the Job controller started the Job.
        completion_time: Time at which the Job completed.
        conditions: Conditions by type.
        ready: Number of pods that are ready.
        indexed: True if each pod has an index (completionMode Indexed).
        parallelism: Number of pods that run at once.
        deleting: True while the Job is being deleted.
        suspended: True if the Job's own spec.suspend is set.
        suspended_by_us: True if the operator set it, for spec.suspend of the resource.
        queue: Queue of Kueue that admits the Job; empty without one.
        ttl_seconds: ttlSecondsAfterFinished of the Job.
    """

    name: str
    uid: str
    resource_version: str = ""
    owner_uid: str = ""
    created: datetime | None = None
    start_time: datetime | None = None
    completion_time: datetime | None = None
    conditions: Mapping[str, ConditionState] = field(default_factory=dict)
    ready: int = 0
    indexed: bool = False
    parallelism: int = 1
    deleting: bool = False
    suspended: bool = False
    suspended_by_us: bool = False
    queue: str = ""
    ttl_seconds: int | None = None

    def holds(self, condition: str) -> bool:
        """Tell whether a condition is True."""
        state = self.conditions.get(condition)
        return state is not None and state.true

    @property
    def finished(self) -> bool:
        """True if the Job completed or failed."""
        return self.holds("Complete") or self.holds("Failed")

    @property
    def all_ready(self) -> bool:
        """True if as many pods are ready as work together."""
        # A parallelism of 0 would make a Job without pods look as if it ran.
        return self.ready >= max(self.parallelism, 1)


@dataclass(frozen=True)
class WorkloadState:
    """State of the Workload by which Kueue admits a Job.

    Attributes:
        name: Name of the Workload.
        uid: UID of the Workload.
        resource_version: Version that was read, for preconditions.
        api_version: API version in which it was read.
        active: False if Kueue must not let the Job run, and stops it if it does.
    """

    name: str
    uid: str
    resource_version: str
    api_version: str
    active: bool = True


@dataclass(frozen=True)
class ServiceState:
    """State of the headless Service of an Indexed Job.

    Attributes:
        name: Name of the Service.
        owner_uid: UID of the controller; empty if the Service has none.
    """

    name: str
    owner_uid: str = ""


@dataclass(frozen=True)
class ContainerState:
    """State of the runner's container. Exactly one of waiting, running and ended (exit_code) is set."""

    waiting_reason: str = ""
    waiting_message: str = ""
    running: bool = False
    exit_code: int | None = None
    reason: str = ""
    message: str = ""
    """Termination message of the container."""
    finished: datetime | None = None

    @property
    def started(self) -> bool:
        """True if the container runs or has run."""
        return self.running or self.exit_code is not None


@dataclass(frozen=True)
class PodState:
    """State of a pod of an attempt."""

    name: str
    uid: str
    attempt: int
    index: int | None = None
    """Index among the pods that work together; None for the pod of an ordinary Job."""
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    node: str = ""
    created: datetime | None = None
    deleting: bool = False
    deletion_due: datetime | None = None
    """End of the grace period of a pod that is being deleted."""
    forced: bool = False
    """True if somebody deleted the pod by force, and so declared that its processes are gone."""
    conditions: Mapping[str, ConditionState] = field(default_factory=dict)
    container: ContainerState | None = None

    @property
    def ended(self) -> bool:
        """True if no process of the pod can run any more."""
        # Not by deletionTimestamp: a pod that is being deleted runs on, for the grace period or on a node
        # that is cut off.
        return self.forced or self.phase_ended

    @property
    def phase_ended(self) -> bool:
        """True if the kubelet or the node controller has confirmed the pod's end."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def started(self) -> bool:
        """True if the pod's container runs or has run."""
        return self.ended or (self.container is not None and self.container.started)

    @property
    def disrupted(self) -> bool:
        """True if Kubernetes itself took the pod away (preemption, eviction, loss of the node)."""
        # Kubernetes sets this condition before it deletes the pod.
        condition = self.conditions.get("DisruptionTarget")
        return condition is not None and condition.true

    @property
    def unheard_since(self) -> datetime | None:
        """Time since which the pod's node has not answered; None as long as it does."""
        ready = self.conditions.get("Ready")
        # The node controller makes the pods of a silent node unready, and leaves the reason as it was; the
        # kubelet gives one. A container without a probe is ready while it runs.
        runs = self.container is not None and self.container.running
        silent = runs and ready is not None and not ready.true and ready.reason in ("", "NodeNotReady")
        return ready.since if ready and silent else None

    @property
    def exit_code(self) -> int | None:
        """Exit code of the pod's container; None while it has not ended."""
        return self.container.exit_code if self.container else None


@dataclass(frozen=True)
class EventState:
    """Warning event about the attempt's Job or pod."""

    reason: str
    message: str


@dataclass(frozen=True)
class Refusal:
    """Refusal of the attempt's Job, or of its Service, by the API server.

    Attributes:
        code: HTTP status.
        message: Message of the API server.
    """

    code: int
    message: str


@dataclass(frozen=True)
class Snapshot:
    """Resource and everything that belongs to it, as read at one moment.

    Attributes:
        kind: Kind of the resource.
        namespace: Namespace of the resource.
        name: Name of the resource.
        uid: UID of the resource.
        generation: Generation of the spec.
        resource_version: Version that was read; status writes are refused when it is no longer current.
        deleting: True while the resource is being deleted.
        status: Status of the resource. An attempt whose Job exists and was not recorded yet stands in it.
        recorded: Status as the API server has it; None where it is the same.
        labels: Labels of the resource.
        resource: Whole resource; None if the spec cannot be read.
        invalid: Problem of a spec that cannot be read.
        parents: Resources up the chain of references, by (kind, name); None for one that does not exist.
        invalid_parents: Problems of parents whose spec cannot be read, by (kind, name).
        job: Job with the name of the current attempt's, which may belong to something else.
        next_job: Job of something else with the name of the next attempt's; read before that attempt only.
        workload: Workload of that Job; read only for a Job of a queue that is, or is to be, suspended by us.
        workload_refusal: Set when that Workload was refused to be read.
        service: Service with the name of that Job's; read only while an Indexed Job runs.
        finished_jobs: Finished Jobs of all attempts; read only if a TTL is set.
        pods: Pods of all attempts; not read while the attempt's are all ready.
        events: Warnings about the attempt's Job or pod; read only while the pod does not start.
        active: Number of resources in the cluster whose Job runs or waits for its pods.
        output_holder: Resource that writes to the same output and goes first; None if there is none.
        sharing_output: UIDs of all other resources of the namespace with the same output.
        progress_silence: Seconds for which nothing new was heard from a run that promised its next report.
        refusal: Set when the attempt's Job was refused a moment ago, or its Service, to read or to create.
    """

    kind: Kind
    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    status: JobStatus
    recorded: JobStatus | None = None
    deleting: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    resource: Resource | None = None
    invalid: str = ""
    parents: Mapping[tuple[str, str], Resource | None] = field(default_factory=dict)
    invalid_parents: Mapping[tuple[str, str], str] = field(default_factory=dict)
    job: JobState | None = None
    next_job: JobState | None = None
    workload: WorkloadState | None = None
    workload_refusal: Refusal | None = None
    service: ServiceState | None = None
    finished_jobs: tuple[JobState, ...] = ()
    pods: tuple[PodState, ...] = ()
    events: tuple[EventState, ...] = ()
    active: int = 0
    output_holder: Key | None = None
    sharing_output: tuple[str, ...] = ()
    progress_silence: float | None = None
    refusal: Refusal | None = None

    @property
    def stored_status(self) -> JobStatus:
        """Status as the API server has it, which lacks an attempt that was not recorded yet."""
        return self.recorded or self.status

    @property
    def attempt(self) -> int:
        """Number of the current attempt; 0 before the first one."""
        return self.status.attempt or 0

    def job_name(self, attempt: int) -> str:
        """Return the name of an attempt's Job."""
        return self.kind.job_name(self.name, attempt)

    @property
    def own_job(self) -> JobState | None:
        """Job of the current attempt; None if it belongs to something else of the same name."""
        # By the owner's uid: a Job of this name may belong to a former resource, and is being collected then.
        return self.job if self.job and self.job.owner_uid == self.uid else None

    @property
    def own_service(self) -> ServiceState | None:
        """Service of the attempt's Job; None if it belongs to something else of the same name."""
        return self.service if self.service and self.job and self.service.owner_uid == self.job.uid else None

    @property
    def attempt_pods(self) -> tuple[PodState, ...]:
        """Pods of the current attempt, newest last."""
        # Attempt 0 stands for pods of a former resource of this name; a current attempt has at least 1.
        return tuple(pod for pod in self.pods if pod.attempt == self.attempt)

    @property
    def live_pods(self) -> tuple[str, ...]:
        """Names of the pods, of any attempt, whose processes may still write to the output."""
        # Those of earlier attempts and of a former resource of this name too: only one pod may write to an
        # output.
        return tuple(pod.name for pod in self.pods if not pod.ended)
