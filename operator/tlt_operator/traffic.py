"""Trace of all requests to the API server, ours and kopf's: metrics, and signs of life of the watches.

aiohttp calls the trace for each request of a session. kopf hands bookmarks to nobody, so that a watch of a
quiet cluster looks as one that has died; but each living watch is opened anew at least every few minutes,
whatever the API server answers, and that request is its sign of life.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import aiohttp

from tlt_operator import metrics


class Request(NamedTuple):
    """Request as the API server classifies it.

    Attributes:
        verb: get, list, watch, create, update, patch or delete.
        resource: Plural name, with the subresource: ``trainingjobs/status``; ``other`` outside of resources.
        namespace: Namespace; empty for all of them, and for resources without one.
    """

    verb: str
    resource: str
    namespace: str


_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def classify(method: str, path: str, query: Mapping[str, str]) -> Request:
    """Return what a request asks for."""
    parts = path.strip("/").split("/")
    # /api/v1/... or /apis/<group>/<version>/...; a proxy's own path before it counts as something else.
    rest = parts[2:] if parts[0] == "api" else parts[3:] if parts[0] == "apis" else []
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces":
        namespace, rest = rest[1], rest[2:]
    if not rest:
        return Request(_VERBS.get(method, "get"), "other", "")
    resource = "/".join([rest[0], *rest[2:]])
    read = "get" if len(rest) > 1 else "watch" if query.get("watch") == "true" else "list"
    return Request(_VERBS.get(method, read), resource, namespace)


class WatchSigns:
    """Signs of life of the watches, by resource and namespace.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tried: dict[tuple[str, str], float] = {}
        self._answered: dict[tuple[str, str], float] = {}
        self._refusals: dict[tuple[str, str], str] = {}

    def opened(self, resource: str, namespace: str) -> None:
        """Note that a watch, or the list before it, is being opened, whatever the answer will be."""
        self._tried[resource, namespace] = self._clock()
        self._answered.setdefault((resource, namespace), self._clock())

    def answered(self, resource: str, namespace: str) -> None:
        """Note that a watch was opened or has reported something, or that the list before it came."""
        self._tried[resource, namespace] = self._answered[resource, namespace] = self._clock()

    def watched(self, resource: str, namespace: str) -> None:
        """Note that a watch has reported something, or ended in peace: it is allowed."""
        self.answered(resource, namespace)
        self._refusals.pop((resource, namespace), None)

    def refused(self, resource: str, namespace: str, why: str) -> None:
        """Note that a watch, or the list before it, is not allowed."""
        self._refusals[resource, namespace] = why

    def silences(self) -> dict[tuple[str, str], float]:
        """Return the seconds since the last try or report of each watch."""
        return self._ages(self._tried)

    def ages(self) -> dict[tuple[str, str], float]:
        """Return the seconds since the last good answer or report of each watch."""
        return self._ages(self._answered)

    def refusals(self) -> dict[tuple[str, str], str]:
        """Return why watches are refused, by resource and namespace."""
        return dict(self._refusals)

    def _ages(self, times: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
        now = self._clock()
        return {watch: now - last for watch, last in times.items()}


def trace(watches: WatchSigns | None = None) -> aiohttp.TraceConfig:
    """Return the trace of a session: every request is counted, and the watches' ones are noted.

    Args:
        watches: Takes the signs of life of the watches; None for a session without watches.
    """
    config = aiohttp.TraceConfig()

    async def started(_: aiohttp.ClientSession, context: SimpleNamespace, start: Any) -> None:
        context.began = time.monotonic()
        context.request = classify(start.method, start.url.path, start.url.query)
        if watches is not None and context.request.verb in ("watch", "list"):
            watches.opened(context.request.resource, context.request.namespace)

    async def ended(_: aiohttp.ClientSession, context: SimpleNamespace, end: Any) -> None:
        _count(context, str(end.response.status))
        if watches is not None and context.request.verb in ("watch", "list") and end.response.status < 400:
            watches.answered(context.request.resource, context.request.namespace)

    async def failed(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
        # No answer: a timeout, a connection that broke or could not be made.
        _count(context, "0")

    config.on_request_start.append(started)
    config.on_request_end.append(ended)
    config.on_request_exception.append(failed)
    return config


def _count(context: SimpleNamespace, code: str) -> None:
    verb, resource, _ = context.request
    metrics.API_REQUESTS.labels(verb, resource, code).inc()
    # The time to the answer's headers; the answer of a watch goes on for minutes.
    metrics.API_SECONDS.labels(verb, resource).observe(time.monotonic() - context.began)
