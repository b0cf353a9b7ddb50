"""Requests that the operator makes to the API server, as a protocol, and the errors that they raise.

:mod:`tlt_operator.cluster.http` speaks to a real server; tests have a cluster in memory.

    ApiError             any answer that is not a success
    ├── NotFoundError    404
    ├── ConflictError    409: exists already, or was changed since it was read
    └── RefusedError     400, 403, 422: the same request will get the same answer
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from tlt_api.resources import Kind

Json = Mapping[str, Any]


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


class NotFoundError(ApiError):
    """The object does not exist (HTTP 404)."""


class ConflictError(ApiError):
    """The object exists or has changed (HTTP 409)."""


class RefusedError(ApiError):
    """The request was refused (HTTP 400, 403, 422)."""


def api_error(code: int, message: str, retry_after: float | None = None) -> ApiError:
    """Return the error for an HTTP status; 0 stands for no answer."""
    # 400 and 422: wrong content. 403: missing rights, a quota, a webhook or Pod Security. Any other code
    # (429, 5xx, no answer) may be different the next time.
    kinds: dict[int, type[ApiError]] = {404: NotFoundError, 409: ConflictError}
    kinds |= dict.fromkeys((400, 403, 422), RefusedError)
    return kinds.get(code, ApiError)(code, message, retry_after)


class Client(Protocol):
    """Protocol of access to the cluster. Every method raises :class:`ApiError`."""

    async def get_resource(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """Get a resource of ours; None if it does not exist."""

    async def get_job(self, namespace: str, name: str) -> Json | None:
        """Get a batch Job; None if it does not exist."""

    async def list_jobs(self, namespace: str, owner_uid: str) -> Sequence[Json]:
        """List the batch Jobs with the label of this owner."""

    async def list_pods(self, namespace: str, owner_kind: str, owner_name: str) -> Sequence[Json]:
        """List the pods with the labels of this owner, or of an earlier one of its name."""

    async def list_warnings(self, namespace: str, uid: str) -> Sequence[Json]:
        """List the Warning events about an object."""

    def list_metadata(self, kind: Kind, namespace: str | None) -> AsyncIterator[Json]:
        """List the metadata of all resources of a kind, in a namespace or everywhere."""

    async def apply_status(
        self, kind: Kind, namespace: str, name: str, uid: str, status: Json, manager: str, version: str
    ) -> str:
        """Apply a status as a field manager, only to this uid and version; return the new version."""

    async def create_job(self, job: Json) -> None:
        """Create a batch Job."""

    async def get_service(self, namespace: str, name: str) -> Json | None:
        """Get a Service; None if it does not exist."""

    async def create_service(self, service: Json) -> None:
        """Create a Service."""

    async def delete_job(self, namespace: str, name: str, uid: str, version: str) -> None:
        """Delete a batch Job after its pods, if it is still this very version."""

    async def suspend_job(self, namespace: str, name: str, uid: str, version: str, suspend: bool) -> None:
        """Suspend or resume a batch Job, if it is still this very version."""

    async def set_job_ttl(self, namespace: str, name: str, seconds: int) -> None:
        """Set a batch Job's ttlSecondsAfterFinished."""

    async def create_event(self, event: Json) -> None:
        """Create an Event."""
