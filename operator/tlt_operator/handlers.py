"""Watches of our kinds, by kopf; every event goes into the cache and puts keys into the queue.

``on.event`` handlers only: kopf then writes nothing (no finalizers, no annotations), so that objects can be
deleted while the operator is gone. An event that a watch missed is no loss: the next event or sweep looks
at the whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from typing import Any

import kopf

from tlt_api.base import GROUP, VERSION
from tlt_api.resources import KINDS
from tlt_operator.controller import Controller
from tlt_operator.health import Health
from tlt_operator.index import key_of
from tlt_operator.login import session
from tlt_operator.traffic import trace

_SYNC_SECONDS = 60
"""Longest wait for the lists of Jobs and pods, which may be refused in some namespace."""


async def watch(controller: Controller, health: Health, namespaces: Collection[str]) -> None:
    """Watch until SIGTERM or SIGINT, from the moment at which Jobs and pods are known.

    Args:
        controller: Controller whose queue and index are filled.
        health: Health to which events are reported.
        namespaces: Namespaces to watch; empty means all.
    """
    # Or every resource of the first list would read its Job and pods from the API server.
    await controller.watches.synced(_SYNC_SECONDS)
    await kopf.operator(
        registry=registry(controller, health),
        settings=settings(),
        standalone=True,
        # A watch in each namespace needs no more than a RoleBinding there; one of the cluster needs a
        # ClusterRoleBinding.
        clusterwide=not namespaces,
        namespaces=namespaces,
    )


def registry(controller: Controller, health: Health) -> kopf.OperatorRegistry:
    """Return a registry with the handlers of all watches."""
    handlers = kopf.OperatorRegistry()

    async def resource_changed(event: Any, **_: Any) -> None:
        # The list with which a watch begins arrives as events too, so that the cache is filled at the start.
        health.watch_reported(key_of(event["object"]))
        controller.resource_changed(event["object"], deleted=event["type"] == "DELETED")

    async def login(**_: Any) -> kopf.AiohttpSession:
        # A session of ours, so that kopf's requests are counted, named and seen as signs of life, too.
        return await session([trace(health.watches)])

    for kind in KINDS.values():
        kopf.on.event(GROUP, VERSION, kind.plural, registry=handlers, id=kind.plural)(resource_changed)
    kopf.on.login(registry=handlers, id="login")(login)
    return handlers


def settings() -> kopf.OperatorSettings:
    """Return kopf's settings."""
    options = kopf.OperatorSettings()
    # kopf must neither post Events for log lines nor need the rights to list namespaces and CRDs.
    options.posting.enabled = False
    options.scanning.disabled = True
    options.peering.standalone = True
    # The client's timeout is the longer one: it ends a connection that died without the server's end.
    options.watching.server_timeout = 300
    options.watching.client_timeout = 360
    options.watching.connect_timeout = 10
    # Resources in one page of the list with which a watch begins.
    options.watching.chunk_size = 200
    # Half of the time of an event: kopf copies each object several times for a diff that no handler reads.
    options.persistence.diffbase_storage = _NoDiff()
    options.persistence.progress_storage = _NoProgress()
    # kopf has a worker for each object, which stays for a while after its last event: with a limit and the
    # usual 5 s, a cluster's resources would come in at limit / 5 a second.
    options.queueing.worker_limit = 200
    options.queueing.idle_timeout = 0.05
    options.networking.request_timeout = 30
    options.networking.connect_timeout = 10
    # An API server under load says how long to stay away.
    options.networking.enforce_retry_after = True
    options.networking.error_backoffs = _Forever()
    return options


class _NoDiff(kopf.DiffBaseStorage):
    """Storage of no former states: handlers of plain events need none."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        pass


class _NoProgress(kopf.ProgressStorage):
    """Storage of no progress: handlers of plain events have none."""

    def fetch(self, *, key: Any, body: kopf.Body) -> None:
        return None

    def store(self, *, key: Any, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        pass

    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        pass

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        pass

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


class _Forever:
    """Delays between attempts to reach the API server, without an end: a finite list would end the watch."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.5, 1, 2, 4, 8), itertools.repeat(15.0))
