"""The real :class:`~tlt_operator.kube.Kube`: plain aiohttp, which kopf has loaded anyway.

The official client is not used: importing it costs more memory than all the rest of the operator.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp

from tlt_api.base import API_VERSION, GROUP, VERSION
from tlt_api.resources import Kind
from tlt_operator.build.job import OWNER_KIND, OWNER_NAME, OWNER_UID
from tlt_operator.credentials import Credentials
from tlt_operator.kube import Json, NotFoundError, api_error

_PAGE = 500
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_JSON = "application/json"
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"


class HttpKube:
    """A client of one API server. Use it as an asynchronous context manager."""

    def __init__(self, credentials: Credentials, timeout_seconds: float = 30) -> None:
        self._credentials = credentials
        self._timeout = timeout_seconds
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._credentials.ssl_context(), limit=64),
            timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=10),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()

    async def get_resource(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """A resource of ours, or None."""
        return await self._get(_resource(kind, namespace, name))

    async def get_job(self, namespace: str, name: str) -> Json | None:
        """A batch Job, or None."""
        return await self._get(_job(namespace, name))

    async def list_jobs(self, namespace: str, owner_uid: str) -> Sequence[Json]:
        """The batch Jobs with the label of this owner."""
        return await self._list(_job(namespace), labelSelector=f"{OWNER_UID}={owner_uid}")

    async def list_pods(self, namespace: str, owner_kind: str, owner_name: str) -> Sequence[Json]:
        """The pods with the labels of this owner, or of an earlier one of its name."""
        path = f"/api/v1/namespaces/{namespace}/pods"
        return await self._list(path, labelSelector=f"{OWNER_KIND}={owner_kind},{OWNER_NAME}={owner_name}")

    async def list_warnings(self, namespace: str, uid: str) -> Sequence[Json]:
        """The Warning events about an object."""
        path = f"/api/v1/namespaces/{namespace}/events"
        return await self._list(path, fieldSelector=f"involvedObject.uid={uid},type=Warning")

    async def list_metadata(self, kind: Kind, namespace: str | None) -> AsyncIterator[Json]:
        """The metadata of all resources of a kind, page by page."""
        path = _resource(kind, namespace)
        query = {"limit": str(_PAGE)}
        while True:
            page = await self._request("GET", path, query=query, accept=_METADATA_ONLY)
            for item in page["items"] or ():
                yield item["metadata"]
            token = page["metadata"].get("continue")
            if not token:
                return
            query["continue"] = token

    async def apply_status(
        self, kind: Kind, namespace: str, name: str, uid: str, status: Json, manager: str, version: str
    ) -> str:
        """Server-side apply of a status by a field manager, only to this uid and version; the new version."""
        # The version alone guards: a status patch ignores a wrong uid, but no two objects share a version.
        metadata = {"name": name, "namespace": namespace, "uid": uid, "resourceVersion": version}
        body = {"apiVersion": API_VERSION, "kind": kind.name, "metadata": metadata, "status": status}
        path = f"{_resource(kind, namespace, name)}/status"
        query = {"fieldManager": manager, "force": "true"}
        answer = await self._request("PATCH", path, body, query, content_type=_APPLY)
        return str(answer["metadata"]["resourceVersion"])

    async def create_job(self, job: Json) -> None:
        """Create a batch Job."""
        await self._request("POST", _job(job["metadata"]["namespace"]), job)

    async def get_service(self, namespace: str, name: str) -> Json | None:
        """A Service, or None."""
        return await self._get(f"{_services(namespace)}/{name}")

    async def create_service(self, service: Json) -> None:
        """Create a Service."""
        await self._request("POST", _services(service["metadata"]["namespace"]), service)

    async def delete_job(self, namespace: str, name: str, uid: str, version: str) -> None:
        """Delete a batch Job after its pods, if it is still this very version."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Foreground",
            "preconditions": {"uid": uid, "resourceVersion": version},
        }
        await self._request("DELETE", _job(namespace, name), body)

    async def set_job_ttl(self, namespace: str, name: str, seconds: int) -> None:
        """Set a batch Job's ttlSecondsAfterFinished."""
        body = {"spec": {"ttlSecondsAfterFinished": seconds}}
        await self._request("PATCH", _job(namespace, name), body, content_type=_MERGE)

    async def create_event(self, event: Json) -> None:
        """Create an Event."""
        await self._request("POST", f"/api/v1/namespaces/{event['metadata']['namespace']}/events", event)

    async def _get(self, path: str) -> Json | None:
        try:
            return await self._request("GET", path)
        except NotFoundError:
            return None

    async def _list(self, path: str, **query: str) -> Sequence[Json]:
        answer = await self._request("GET", path, query=query)
        return answer["items"] or ()  # an empty list may come as null

    async def _request(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
    ) -> dict[str, Any]:
        if self._session is None:
            raise RuntimeError("HttpKube is used outside of its context")
        headers = {"Accept": accept, "Content-Type": content_type}
        token = self._credentials.current_token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            async with self._session.request(
                method,
                self._credentials.server + path,
                data=None if body is None else json.dumps(body),
                params=query,
                headers=headers,
            ) as response:
                text = await response.text()
        except (TimeoutError, aiohttp.ClientError) as error:
            raise api_error(0, f"{method} {path}: {error or type(error).__name__}") from error
        if response.status >= 400:
            raise api_error(response.status, _message(text), _seconds(response.headers.get("Retry-After")))
        answer: dict[str, Any] = json.loads(text)
        return answer


def _resource(kind: Kind, namespace: str | None, name: str = "") -> str:
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{GROUP}/{VERSION}{within}/{kind.plural}" + (f"/{name}" if name else "")


def _job(namespace: str, name: str = "") -> str:
    return f"/apis/batch/v1/namespaces/{namespace}/jobs" + (f"/{name}" if name else "")


def _services(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/services"


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:500]


def _seconds(header: str | None) -> float | None:
    return float(header) if header and header.isdigit() else None
