"""Client of a real API server, by plain aiohttp, which kopf has loaded anyway.

The official client's typed API is not used: it takes three times the CPU time for a request and 110 MB of
memory (docs/adr/0006-operator-without-the-official-client.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol, Self

import aiohttp

from tlt_api.base import API_VERSION, GROUP, VERSION
from tlt_api.resources import Kind
from tlt_api.status import OPERATOR_FIELD_MANAGER
from tlt_api.version import user_agent
from tlt_operator.cluster.client import Json, NotFoundError, Owned, api_error
from tlt_operator.objects import (
    KUEUE_GROUP,
    OWNER_KIND,
    OWNER_NAME,
    OWNER_UID,
    SUSPENDED_BY_US,
    WORKLOAD_OF_JOB,
)

_PAGE = 500
"""Resources in one answer: a list of thousands at once would take memory on both sides."""
_OWNED_PAGE = 100
"""Jobs or pods in one answer: each has its RunSpec in it, and takes a hundred kilobytes as Python objects."""
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_METADATA_OF_ONE = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_JSON = "application/json"
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_UNAUTHORIZED = 401
_WATCH_SECONDS = 300
"""Time after which the API server ends a watch; it is begun again where it ended."""
_SILENCE_SECONDS = 90
"""Longest silence of a watch: the API server sends a bookmark about once a minute."""
_LONGEST_LINE = 4 * 1024 * 1024
"""Limit of one event, in bytes: an object in etcd has 1.5 MB at most."""


class Connection(Protocol):
    """Address of an API server and credentials for it, as :mod:`tlt_operator.login` gives them."""

    @property
    def server(self) -> str:
        """Address of the API server."""

    @property
    def expiration(self) -> datetime | None:
        """Time of the next log-in; None for never."""

    def as_http_headers(self) -> dict[str, str]:
        """Return the Authorization header, if there is one."""

    def as_ssl_context(self) -> ssl.SSLContext:
        """Return the TLS context: trusted authorities and the client's certificate, if there is one."""


class HttpClient:
    """Client of one API server, an asynchronous context manager.

    Args:
        log_in: Function that returns the connection. It is called again, in a thread, when the connection has
            expired or the server no longer accepts it.
        timeout_seconds: Longest time for one request.
        traces: Called by aiohttp for each request.
    """

    def __init__(
        self,
        log_in: Callable[[], Connection],
        timeout_seconds: float = 30,
        traces: Sequence[aiohttp.TraceConfig] = (),
    ) -> None:
        self._log_in = log_in
        self._traces = list(traces)
        self.may_write: Callable[[], bool] = lambda: True
        """Asked before each write but those of a Lease; after a no, nothing is sent."""
        self._timeout = timeout_seconds
        self._session: aiohttp.ClientSession | None = None
        self._connection: Connection | None = None
        self._ssl: ssl.SSLContext | bool = True
        self._logging_in = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # Without a limit: each watch keeps a connection, and a request never waits for another's answer.
            # The workers limit them.
            connector=aiohttp.TCPConnector(limit=0),
            # A server that does not even accept a connection is given up sooner than one that is slow.
            timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=10),
            headers={"User-Agent": user_agent("tlt-operator")},
            trace_configs=self._traces,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()

    async def get_resource(self, kind: Kind, namespace: str, name: str, live: bool = False) -> Json | None:
        """Get a resource of ours; None if it does not exist."""
        return await self._get(_resource(kind, namespace, name))

    async def is_current(self, kind: Kind, namespace: str, name: str, version: str) -> bool:
        """Tell whether the API server still has this version of a resource."""
        # The metadata alone: the server then neither sends nor encodes the rest.
        try:
            answer = await self._request("GET", _resource(kind, namespace, name), accept=_METADATA_OF_ONE)
        except NotFoundError:
            return False
        return bool(answer["metadata"]["resourceVersion"] == version)

    async def get_job(self, namespace: str, name: str, live: bool = False) -> Json | None:
        """Get a batch Job; None if it does not exist."""
        return await self._get(_job(namespace, name))

    async def list_jobs(self, namespace: str, owner_uid: str) -> Sequence[Json]:
        """List the batch Jobs with the label of this owner."""
        return await self._list(_job(namespace), labelSelector=f"{OWNER_UID}={owner_uid}")

    async def list_pods(
        self, namespace: str, owner_kind: str, owner_name: str, live: bool = False
    ) -> Sequence[Json]:
        """List the pods with the labels of this owner, or of an earlier one of its name."""
        path = f"/api/v1/namespaces/{namespace}/pods"
        return await self._list(path, labelSelector=f"{OWNER_KIND}={owner_kind},{OWNER_NAME}={owner_name}")

    async def list_warnings(self, namespace: str, uid: str) -> Sequence[Json]:
        """List the Warning events about an object."""
        path = f"/api/v1/namespaces/{namespace}/events"
        return await self._list(path, fieldSelector=f"involvedObject.uid={uid},type=Warning")

    async def list_workloads(self, namespace: str, job_uid: str) -> Sequence[Json]:
        """List the Workloads that Kueue has made for a Job; none in a cluster without Kueue."""
        # Kueue serves v1beta1, v1beta2 or both, depending on its release; the field that matters is in each.
        group = await self._get(f"/apis/{KUEUE_GROUP}")
        if group is None:
            return ()
        api_version = group["preferredVersion"]["groupVersion"]
        try:
            items = await self._list(
                _workloads(api_version, namespace), labelSelector=f"{WORKLOAD_OF_JOB}={job_uid}"
            )
        # Its other kinds may be there without this one.
        except NotFoundError:
            return ()
        return [{"apiVersion": api_version, **item} for item in items]

    async def list_all_warnings(self, namespace: str) -> AsyncIterator[Json]:
        """List the Warning events of a namespace, page by page."""
        path = f"/api/v1/namespaces/{namespace}/events"
        async for page in self._pages(path, {"fieldSelector": "type=Warning"}):
            for item in page["items"] or ():
                yield item

    async def list_metadata(self, kind: Kind, namespace: str | None) -> AsyncIterator[Json]:
        """List the metadata of all resources of a kind, page by page."""
        async for page in self._pages(_resource(kind, namespace), {}, _METADATA_ONLY):
            for item in page["items"] or ():
                yield item["metadata"]

    async def list_owned(
        self, what: Owned, namespace: str | None
    ) -> AsyncIterator[tuple[Sequence[Json], str]]:
        """List the Jobs or pods of our resources, page by page, each page with the version of the list."""
        query = {"labelSelector": OWNER_KIND}
        async for page in self._pages(_owned(what, namespace), query, limit=_OWNED_PAGE):
            yield page["items"] or (), page["metadata"]["resourceVersion"]

    async def watch_owned(self, what: Owned, namespace: str | None, version: str) -> AsyncIterator[Json]:
        """Watch the Jobs or pods of our resources from a version on; bookmarks are among the events.

        It ends when the API server ends it, and raises :class:`ApiError` (410: the version is too old).
        """
        query = {
            "labelSelector": OWNER_KIND,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        # No limit for the whole: a watch that is silent for too long is dead, whatever the connection says.
        timeout = aiohttp.ClientTimeout(sock_connect=10, sock_read=_SILENCE_SECONDS)
        async with self._answer("GET", _owned(what, namespace), query, timeout) as response:
            if response.status >= 400:
                raise api_error(response.status, _message(await response.text()))
            async for line in response.content:
                event: Json = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise api_error(status.get("code") or 500, status.get("message") or "watch failed")
                yield event

    async def patch_status(
        self, kind: Kind, namespace: str, name: str, uid: str, status: Json, version: str
    ) -> Json:
        """Change fields of a status, only of this uid and version; None removes one. Return the resource."""
        # A merge patch costs the API server less than server-side apply: docs/adr/0016-reads-from-watches.md.
        body = {"metadata": {"uid": uid, "resourceVersion": version}, "status": status}
        path = f"{_resource(kind, namespace, name)}/status"
        query = {"fieldManager": OPERATOR_FIELD_MANAGER}
        return await self._request("PATCH", path, body, query, content_type=_MERGE)

    async def apply_status(
        self, kind: Kind, namespace: str, name: str, uid: str, status: Json, manager: str, version: str
    ) -> Json:
        """Apply a status as a field manager, only to this uid and version; return the resource."""
        # The version alone guards: a status patch ignores a wrong uid, but no two objects share a version.
        metadata = {"name": name, "namespace": namespace, "uid": uid, "resourceVersion": version}
        body = {"apiVersion": API_VERSION, "kind": kind.name, "metadata": metadata, "status": status}
        path = f"{_resource(kind, namespace, name)}/status"
        # Forced: a field that somebody changed by hand is taken back, where a conflict would repeat forever.
        query = {"fieldManager": manager, "force": "true"}
        return await self._request("PATCH", path, body, query, content_type=_APPLY)

    async def create_job(self, job: Json) -> Json:
        """Create a batch Job; return it."""
        return await self._request("POST", _job(job["metadata"]["namespace"]), job)

    async def get_service(self, namespace: str, name: str) -> Json | None:
        """Get a Service; None if it does not exist."""
        return await self._get(f"{_services(namespace)}/{name}")

    async def create_service(self, service: Json) -> None:
        """Create a Service."""
        await self._request("POST", _services(service["metadata"]["namespace"]), service)

    async def delete_job(self, namespace: str, name: str, uid: str, version: str) -> None:
        """Delete a batch Job after its pods, if it is still this very version."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            # Foreground: the Job stays until its pods are gone, so that their end can be awaited.
            "propagationPolicy": "Foreground",
            # A Job that changed since it was read is kept: it may have completed in the meantime.
            "preconditions": {"uid": uid, "resourceVersion": version},
        }
        await self._request("DELETE", _job(namespace, name), body)

    async def suspend_job(
        self, namespace: str, name: str, uid: str, version: str, suspend: bool, *, note_only: bool = False
    ) -> Json:
        """Suspend or resume a batch Job, if it is still this very version; return the Job."""
        # Both metadata are compared by the API server: a Job that changed since it was read is left alone.
        annotations = {SUSPENDED_BY_US: "true" if suspend else None}
        metadata = {"uid": uid, "resourceVersion": version, "annotations": annotations}
        body = {"metadata": metadata, **({} if note_only else {"spec": {"suspend": suspend}})}
        return await self._request("PATCH", _job(namespace, name), body, content_type=_MERGE)

    async def set_workload_active(
        self, api_version: str, namespace: str, name: str, uid: str, version: str, active: bool
    ) -> None:
        """Let Kueue run a Workload, or stop it, if it is still this very version."""
        body = {"metadata": {"uid": uid, "resourceVersion": version}, "spec": {"active": active}}
        path = f"{_workloads(api_version, namespace)}/{name}"
        await self._request("PATCH", path, body, content_type=_MERGE)

    async def set_job_ttl(self, namespace: str, name: str, uid: str, seconds: int) -> Json:
        """Set ttlSecondsAfterFinished of a batch Job, only of this uid; return the Job."""
        # A merge patch leaves all other fields to whoever set them.
        body = {"metadata": {"uid": uid}, "spec": {"ttlSecondsAfterFinished": seconds}}
        return await self._request("PATCH", _job(namespace, name), body, content_type=_MERGE)

    async def create_event(self, event: Json) -> None:
        """Create an Event."""
        await self._request("POST", f"/api/v1/namespaces/{event['metadata']['namespace']}/events", event)

    async def get_lease(self, namespace: str, name: str) -> Json | None:
        """Get a Lease; None if it does not exist."""
        return await self._get(_leases(namespace, name))

    async def create_lease(self, lease: Json) -> Json:
        """Create a Lease and return it."""
        return await self._request("POST", _leases(lease["metadata"]["namespace"]), lease, fenced=False)

    async def replace_lease(self, lease: Json) -> Json:
        """Replace a Lease in the version that it states, and return it."""
        metadata = lease["metadata"]
        path = _leases(metadata["namespace"], metadata["name"])
        return await self._request("PUT", path, lease, fenced=False)

    async def _get(self, path: str) -> Json | None:
        try:
            return await self._request("GET", path)
        except NotFoundError:
            return None

    async def _list(self, path: str, **query: str) -> Sequence[Json]:
        # An empty list may come as null.
        return [item async for page in self._pages(path, query) for item in page["items"] or ()]

    async def _pages(
        self, path: str, query: Mapping[str, str], accept: str = _JSON, limit: int = _PAGE
    ) -> AsyncIterator[dict[str, Any]]:
        """List page by page."""
        # Pages of one list are of one moment. If the server has forgotten that moment (410), the list fails
        # as a whole, and whoever needs it begins anew.
        query = {**query, "limit": str(limit)}
        while True:
            page = await self._request("GET", path, query=query, accept=accept)
            yield page
            token = page["metadata"].get("continue")
            if not token:
                return
            query["continue"] = token

    async def _request(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
        fenced: bool = True,
    ) -> dict[str, Any]:
        headers = {"Accept": accept, "Content-Type": content_type}
        # JSON for every kind of patch: the API server reads it as YAML too, of which it is a subset.
        data = None if body is None else json.dumps(body)
        connection = await self._connected()
        guarded = fenced and method != "GET"
        status, text, retry_after = await self._send(connection, method, path, data, query, headers, guarded)
        # The token was renewed, or revoked, before it expired. One new log-in only: a user who is refused
        # would log in forever.
        if status == _UNAUTHORIZED:
            connection = await self._connected(instead_of=connection)
            status, text, retry_after = await self._send(
                connection, method, path, data, query, headers, guarded
            )
        if status >= 400:
            raise api_error(status, _message(text), _seconds(retry_after))
        answer: dict[str, Any] = json.loads(text)
        return answer

    async def _send(
        self,
        connection: Connection,
        method: str,
        path: str,
        data: str | None,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str],
        guarded: bool,
    ) -> tuple[int, str, str | None]:
        """Send a request, a guarded one only with the Lease; return status, text and Retry-After header."""
        if self._session is None:
            raise RuntimeError("HttpClient is used outside of its context")
        # As late as possible: a process that was frozen may wake up here, and somebody else works meanwhile.
        if guarded and not self.may_write():
            raise api_error(0, f"{method} {path}: not sent, because the Lease is lost")
        # One try only: the queue repeats a reconciliation with a growing delay.
        try:
            async with self._session.request(
                method,
                connection.server.rstrip("/") + path,
                data=data,
                params=query,
                headers={**headers, **connection.as_http_headers()},
                ssl=self._ssl,
            ) as response:
                return response.status, await response.text(), response.headers.get("Retry-After")
        except (TimeoutError, aiohttp.ClientError) as error:
            raise api_error(0, f"{method} {path}: {error or type(error).__name__}") from error

    @contextlib.asynccontextmanager
    async def _answer(
        self, method: str, path: str, query: Mapping[str, str], timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request whose answer is read while it arrives."""
        if self._session is None:
            raise RuntimeError("HttpClient is used outside of its context")
        connection = await self._connected()
        try:
            async with self._session.request(
                method,
                connection.server.rstrip("/") + path,
                params=query,
                headers={"Accept": _JSON, **connection.as_http_headers()},
                ssl=self._ssl,
                timeout=timeout,
                # aiohttp refuses lines that are longer than twice this.
                read_bufsize=_LONGEST_LINE // 2,
            ) as response:
                # The next one logs in again.
                if response.status == _UNAUTHORIZED:
                    await self._connected(instead_of=connection)
                yield response
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise api_error(0, f"{method} {path}: {error or type(error).__name__}") from error

    async def _connected(self, instead_of: Connection | None = None) -> Connection:
        """Return the current connection, or a new one if it has expired or is ``instead_of``."""
        # One log-in serves all requests that wait for it: of several that got 401, the first one renews.
        async with self._logging_in:
            connection = self._connection
            if connection is None or connection is instead_of or _has_expired(connection):
                connection = await self._new_connection()
                self._connection = connection
            return connection

    async def _new_connection(self) -> Connection:
        try:
            connection = await asyncio.to_thread(self._log_in)
            # A new TLS context too: certificates and authorities are renewed as tokens are.
            self._ssl = await asyncio.to_thread(connection.as_ssl_context)
        # A file that is gone, a program that failed: it may work the next time.
        except Exception as error:
            raise api_error(0, f"log-in failed: {error}") from error
        return connection


def _has_expired(connection: Connection) -> bool:
    return connection.expiration is not None and connection.expiration <= datetime.now(UTC)


def _resource(kind: Kind, namespace: str | None, name: str = "") -> str:
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{GROUP}/{VERSION}{within}/{kind.plural}" + (f"/{name}" if name else "")


def _job(namespace: str, name: str = "") -> str:
    return f"/apis/batch/v1/namespaces/{namespace}/jobs" + (f"/{name}" if name else "")


def _leases(namespace: str, name: str = "") -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases" + (f"/{name}" if name else "")


def _workloads(api_version: str, namespace: str) -> str:
    return f"/apis/{api_version}/namespaces/{namespace}/workloads"


def _owned(what: Owned, namespace: str | None) -> str:
    within = f"/namespaces/{namespace}" if namespace else ""
    return ("/apis/batch/v1" if what == "jobs" else "/api/v1") + f"{within}/{what}"


def _services(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/services"


def _message(text: str) -> str:
    try:
        # A proxy in front of the API server answers with a page of its own.
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:500]


def _seconds(header: str | None) -> float | None:
    # The API server gives seconds, never a date.
    return float(header) if header and header.isdigit() else None
