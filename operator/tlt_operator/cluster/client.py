"""Requests that the operator makes to the API server, as a protocol, and the errors that they raise.

:mod:`tlt_operator.cluster.http` speaks to a real server; tests have a cluster in memory.

    ApiError             any answer that is not a success
    ├── NotFoundError    404
    ├── ConflictError    409: exists already, or was changed since it was read
    └── RefusedError     400, 403, 422, or a webhook away: the same request will get the same answer
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from tlt_api.resources import Kind

Json = Mapping[str, Any]
Owned = Literal["jobs", "pods"]
"""Objects that belong to our resources and are watched."""


class ApiError(Exception):
    """Error of a request to the API server.

    Attributes:
        code: HTTP status; 0 if there was no answer.
        message: Message of the API server.
        retry_after: Seconds that the API server asks to wait, if it does.
    """

    def __init__(self, code: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code or 'no answer'}: {message}")
        self.code = code
        self.message = message
        self.retry_after = retry_after

    @property
    def forbids(self) -> bool:
        """True for a list or watch that is not allowed: only other rights or other CRDs bring it back."""
        return self.code in (401, 403, 404)


class NotFoundError(ApiError):
    """The object does not exist (HTTP 404)."""


class ConflictError(ApiError):
    """The object exists or has changed (HTTP 409)."""


class RefusedError(ApiError):
    """The request was refused (HTTP 400, 403, 422, or 500 for an admission webhook that is away)."""


def api_error(code: int, message: str, retry_after: float | None = None) -> ApiError:
    """Return the error for an HTTP status; 0 stands for no answer."""
    # 400 and 422: wrong content. 403: missing rights, a quota, a webhook or Pod Security. Any other code
    # (429, 5xx, no answer) may be different the next time.
    kinds: dict[int, type[ApiError]] = {404: NotFoundError, 409: ConflictError}
    kinds |= dict.fromkeys((400, 403, 422), RefusedError)
    # 500, and yet an answer to this very request: a webhook that is away refuses it until it is back.
    if code == 500 and "failed calling webhook" in message:
        return RefusedError(code, message, retry_after)
    return kinds.get(code, ApiError)(code, message, retry_after)


class Client(Protocol):
    """Protocol of access to the cluster. Every method raises :class:`ApiError`.

    Reads may be answered by a cache (:mod:`.cache`); ``live=True`` asks the API server itself.
    """

    async def get_resource(self, kind: Kind, namespace: str, name: str, live: bool = False) -> Json | None:
        """Get a resource of ours; None if it does not exist."""

    async def is_current(self, kind: Kind, namespace: str, name: str, version: str) -> bool:
        """Tell whether the API server itself still has this version of a resource."""

    async def get_job(self, namespace: str, name: str, live: bool = False) -> Json | None:
        """Get a batch Job; None if it does not exist. A live one comes with its pod template."""

    async def list_jobs(self, namespace: str, owner_uid: str) -> Sequence[Json]:
        """List the batch Jobs with the label of this owner."""

    async def list_pods(
        self, namespace: str, owner_kind: str, owner_name: str, live: bool = False
    ) -> Sequence[Json]:
        """List the pods with the labels of this owner, or of an earlier one of its name."""

    async def list_warnings(self, namespace: str, uid: str) -> Sequence[Json]:
        """List the Warning events about an object."""

    async def list_workloads(self, namespace: str, job_uid: str) -> Sequence[Json]:
        """List the Workloads that Kueue has made for a Job; none in a cluster without Kueue."""

    def list_metadata(self, kind: Kind, namespace: str | None) -> AsyncIterator[Json]:
        """List the metadata of all resources of a kind, in a namespace or everywhere."""

    async def patch_status(
        self, kind: Kind, namespace: str, name: str, uid: str, status: Json, version: str
    ) -> Json:
        """Change fields of a status, only of this uid and version; None removes one. Return the resource."""

    async def apply_status(
        self, kind: Kind, namespace: str, name: str, uid: str, status: Json, manager: str, version: str
    ) -> Json:
        """Apply a status as a field manager, only to this uid and version; return the resource."""

    async def create_job(self, job: Json) -> Json:
        """Create a batch Job; return it."""

    async def get_service(self, namespace: str, name: str) -> Json | None:
        """Get a Service; None if it does not exist."""

    async def create_service(self, service: Json) -> None:
        """Create a Service."""

    async def delete_job(self, namespace: str, name: str, uid: str, version: str) -> None:
        """Delete a batch Job after its pods, if it is still this very version."""

    async def suspend_job(
        self, namespace: str, name: str, uid: str, version: str, suspend: bool, *, note_only: bool = False
    ) -> Json:
        """Suspend or resume a batch Job, if it is still this very version; return the Job.

        With ``note_only`` the Job just says that the operator did: its queue stops and starts it.
        """

    async def set_workload_active(
        self, api_version: str, namespace: str, name: str, uid: str, version: str, active: bool
    ) -> None:
        """Let Kueue run a Workload, or stop it, if it is still this very version."""

    async def set_job_ttl(self, namespace: str, name: str, uid: str, seconds: int) -> Json:
        """Set ttlSecondsAfterFinished of a batch Job, only of this uid; return the Job."""

    async def create_event(self, event: Json) -> None:
        """Create an Event."""


class Source(Client, Protocol):
    """Protocol of access to the API server itself, from which a cache is filled."""

    def list_all_warnings(self, namespace: str) -> AsyncIterator[Json]:
        """List the Warning events of a namespace, page by page."""

    def list_owned(self, what: Owned, namespace: str | None) -> AsyncIterator[tuple[Sequence[Json], str]]:
        """List the Jobs or pods of our resources, page by page, each page with the version of the list."""

    def watch_owned(self, what: Owned, namespace: str | None, version: str) -> AsyncIterator[Json]:
        """Watch the Jobs or pods of our resources from a version on; bookmarks are among the events."""
