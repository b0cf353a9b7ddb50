"""One resource and everything that belongs to it, as read at one moment: the input of every decision.

:mod:`tlt_operator.observe` fills a :class:`Snapshot` from live reads; :mod:`tlt_operator.reconcile` decides
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
    """The identity of a resource in the queue and in the index; its uid is not part of it."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"


@dataclass(frozen=True)
class ConditionState:
    """A condition of a Job or pod that is True or False; unknown ones are left out."""

    true: bool
    reason: str = ""
    message: str = ""
    since: datetime | None = None


@dataclass(frozen=True)
class JobState:
    """A batch/v1 Job.

    Attributes:
        name: Its name.
        uid: Its uid.
        resource_version: The version that was read, for preconditions.
        owner_uid: uid of its controller; empty where it has none.
        created: When it was created.
        start_time: When the Job controller started it.
        completion_time: When it completed.
        conditions: By type.
        ready: Pods that are ready.
        indexed: Whether its pods have an index each.
        parallelism: Pods that run at once.
        deleting: Whether it is being deleted.
        suspended: Whether its spec.suspend is set.
        ttl_seconds: Its ttlSecondsAfterFinished.
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
    ttl_seconds: int | None = None

    def holds(self, condition: str) -> bool:
        """True if a condition is True."""
        state = self.conditions.get(condition)
        return state is not None and state.true

    @property
    def finished(self) -> bool:
        """True if it completed or failed."""
        return self.holds("Complete") or self.holds("Failed")

    @property
    def all_ready(self) -> bool:
        """True if as many pods are ready as work together."""
        return self.ready >= max(self.parallelism, 1)


@dataclass(frozen=True)
class ServiceState:
    """The headless Service of an Indexed Job.

    Attributes:
        name: Its name.
        owner_uid: uid of its controller; empty where it has none.
    """

    name: str
    owner_uid: str = ""


@dataclass(frozen=True)
class ContainerState:
    """The runner's container. Exactly one of waiting, running and ended (exit_code) is set."""

    waiting_reason: str = ""
    waiting_message: str = ""
    running: bool = False
    exit_code: int | None = None
    reason: str = ""
    message: str = ""
    """The termination message."""
    finished: datetime | None = None

    @property
    def started(self) -> bool:
        """True if it runs or has run."""
        return self.running or self.exit_code is not None


@dataclass(frozen=True)
class PodState:
    """A pod of an attempt."""

    name: str
    uid: str
    attempt: int
    index: int | None = None
    """Its index among the pods that work together."""
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    node: str = ""
    created: datetime | None = None
    deleting: bool = False
    conditions: Mapping[str, ConditionState] = field(default_factory=dict)
    container: ContainerState | None = None

    @property
    def ended(self) -> bool:
        """True if no process of it can run any more."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def started(self) -> bool:
        """True if its container runs or has run."""
        return self.ended or (self.container is not None and self.container.started)

    @property
    def disrupted(self) -> bool:
        """True if Kubernetes itself took it away (preemption, eviction, loss of the node)."""
        condition = self.conditions.get("DisruptionTarget")
        return condition is not None and condition.true

    @property
    def exit_code(self) -> int | None:
        """The exit code of its container, if that has ended."""
        return self.container.exit_code if self.container else None


@dataclass(frozen=True)
class EventState:
    """A Warning event about the attempt's Job or pod."""

    reason: str
    message: str


@dataclass(frozen=True)
class Refusal:
    """The API server refused the attempt's Job, or its Service.

    Attributes:
        code: HTTP status.
        message: Its message.
    """

    code: int
    message: str


@dataclass(frozen=True)
class Snapshot:
    """A resource and what belongs to it.

    Attributes:
        kind: Its kind.
        namespace: Its namespace.
        name: Its name.
        uid: Its uid.
        generation: Its generation.
        resource_version: The version that was read; status writes are refused when it is no longer current.
        deleting: Whether it is being deleted.
        status: Its status.
        labels: Its labels.
        resource: The whole resource, or None where the spec cannot be read.
        invalid: Why the spec cannot be read.
        parents: Resources that its references lead to, by (kind, name); None where there is none.
        invalid_parents: Why a parent's spec cannot be read, by (kind, name).
        job: The Job of the current attempt's name, which may belong to something else.
        service: The Service of that Job's name; read only while an Indexed Job runs.
        finished_jobs: Finished Jobs of all its attempts; read only where a TTL is set.
        pods: Pods of all its attempts; not read while the attempt's are all ready.
        events: Warnings about the attempt's Job or pod; read only while the pod does not start.
        refusal: Set when the attempt's Job was refused a moment ago, or its Service, to read or to create.
    """

    kind: Kind
    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    status: JobStatus
    deleting: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    resource: Resource | None = None
    invalid: str = ""
    parents: Mapping[tuple[str, str], Resource | None] = field(default_factory=dict)
    invalid_parents: Mapping[tuple[str, str], str] = field(default_factory=dict)
    job: JobState | None = None
    service: ServiceState | None = None
    finished_jobs: tuple[JobState, ...] = ()
    pods: tuple[PodState, ...] = ()
    events: tuple[EventState, ...] = ()
    refusal: Refusal | None = None

    @property
    def attempt(self) -> int:
        """Number of the current attempt; 0 before the first one."""
        return self.status.attempt or 0

    def job_name(self, attempt: int) -> str:
        """Name of an attempt's Job."""
        return self.kind.job_name(self.name, attempt)

    @property
    def own_job(self) -> JobState | None:
        """The current attempt's Job, if it is this resource's and not another's of the same name."""
        return self.job if self.job and self.job.owner_uid == self.uid else None

    @property
    def own_service(self) -> ServiceState | None:
        """The Service, if it is the Job's and not another's of the same name."""
        return self.service if self.service and self.job and self.service.owner_uid == self.job.uid else None

    @property
    def attempt_pods(self) -> tuple[PodState, ...]:
        """Pods of the current attempt, newest last."""
        return tuple(pod for pod in self.pods if pod.attempt == self.attempt)

    @property
    def live_pods(self) -> tuple[str, ...]:
        """Names of the pods, of any attempt, whose processes may still write to the output."""
        return tuple(pod.name for pod in self.pods if not pod.ended)
