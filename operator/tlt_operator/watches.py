"""Watches of the Jobs and pods of our resources, which fill the cache and wake their owners.

Warning Events about them are listed regularly, as long as a pod is waited for.

Not kopf's: with its queue and its worker for each object, an event costs 0.5 to 0.9 ms of CPU time, and a Job
with its pod has ten of them in its life (docs/adr/0016-reads-from-watches.md). kopf has our own kinds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection

from tlt_operator.cluster.cache import CachedClient
from tlt_operator.cluster.client import ApiError, Json, Owned
from tlt_operator.cluster.warning_events import REFRESH_SECONDS
from tlt_operator.snapshot import Key
from tlt_operator.traffic import WatchSigns
from tlt_operator.workqueue import Backoff

log = logging.getLogger(__name__)

_GONE = 410
"""HTTP status of a version that the API server no longer has: everything is listed anew."""
_MOST_FAILURES = 5
"""Failures in a row after which the cache is too old to answer for the API server."""
_LIVED_SECONDS = 5.0
"""Time after which a watch that reported nothing may end, and begin again at once."""


class Watch:
    """List and watch of the Jobs or pods of our resources, in one namespace or everywhere.

    Args:
        cache: Cache to fill, with access to the API server.
        what: Objects to watch.
        namespace: Namespace to watch; None means all.
        wake: Function that is called with the owner of what has changed, and whether a Job has ended.
        clock: Clock of monotonic seconds.
        signs: Takes every sign of life (each try, each list, event and bookmark), and every refusal.
    """

    def __init__(
        self,
        cache: CachedClient,
        what: Owned,
        namespace: str | None,
        wake: Callable[[Key, bool], None],
        clock: Callable[[], float] = time.monotonic,
        signs: WatchSigns | None = None,
    ) -> None:
        self._signs = signs or WatchSigns(clock)
        self._cache = cache
        self._what: Owned = what
        self._namespace = namespace
        self._wake = wake
        self._clock = clock
        self._backoff = Backoff(base=0.5, limit=15.0)
        self.synced = asyncio.Event()
        """Set once everything was listed."""

    def __str__(self) -> str:
        return f"{self._what} in {self._namespace or 'all namespaces'}"

    @property
    def _name(self) -> tuple[str, str]:
        return self._what, self._namespace or ""

    async def run(self) -> None:
        """List and watch until cancelled.

        Errors of the API server are logged and tried again. Any other error is a mistake of ours, which ends
        the process on purpose, by the TaskGroup of :class:`Watches`: a cache without its watch is worse.
        """
        version: str | None = None
        failures = 0
        while True:
            # A try is a sign of life too: while the API server is away, a restart would be of no use.
            self._signs.opened(*self._name)
            error: ApiError | None = None
            begin: float | None = None
            heard = False
            try:
                if version is None:
                    version = await self._list()
                begin = self._clock()
                async for event in self._cache.source.watch_owned(self._what, self._namespace, version):
                    version = self._report(event["type"], event["object"])
                    heard = True
                self._signs.watched(*self._name)
            except ApiError as caught:
                error = caught
            # What happened meanwhile is unknown: a watch that goes on from its version misses nothing, one
            # that cannot lists anew. For a short while the cache stays as it is; decisions that matter read
            # live.
            if error is not None and error.code == _GONE:
                version = None
            if heard:
                failures = 0
            # Ended as a matter of course. One that ends before it was of any use would go round in a circle.
            lived = heard or (begin is not None and self._clock() - begin >= _LIVED_SECONDS)
            if lived and (error is None or error.code == _GONE):
                continue
            failures += 1
            refused = error is not None and error.forbids
            if refused:
                self._signs.refused(*self._name, str(error))
            # Nothing reports what changes: until the next list, the API server itself is asked.
            if refused or failures >= _MOST_FAILURES:
                version = None
                self._cache.owned(self._what).set_complete(self._namespace, False)
            retry_after = (error.retry_after if error else None) or 0
            seconds = max(self._backoff.delay(failures), retry_after)
            problem = error or "it ended at once"
            log.warning("the watch of %s failed, tries again in %.1f s: %s", self, seconds, problem)
            await asyncio.sleep(seconds)

    async def _list(self) -> str:
        """Bring the cache to the present state; return its version."""
        objects = self._cache.owned(self._what)
        names: set[tuple[str, str]] = set()
        version = ""
        async for items, listed_version in self._cache.source.list_owned(self._what, self._namespace):
            version = listed_version
            for item in items:
                names.add((item["metadata"]["namespace"], item["metadata"]["name"]))
                self._changed(objects.put(item), self._has_ended(item))
            # A list of thousands must not keep the rest of the operator waiting.
            await asyncio.sleep(0)
        for owner in objects.retain(self._namespace, names, version):
            self._changed(owner)
        objects.set_complete(self._namespace, True)
        self._signs.answered(*self._name)
        self.synced.set()
        return version

    def _report(self, kind: str, body: Json) -> str:
        """Bring one event to the cache; return its version."""
        self._signs.watched(*self._name)
        metadata = body["metadata"]
        objects = self._cache.owned(self._what)
        if kind == "DELETED":
            self._changed(objects.deleted(body))
        elif kind != "BOOKMARK":
            self._changed(objects.put(body), self._has_ended(body))
        return str(metadata["resourceVersion"])

    def _has_ended(self, body: Json) -> bool:
        conditions = (body.get("status") or {}).get("conditions") or () if self._what == "jobs" else ()
        return any(item["type"] in ("Complete", "Failed") and item["status"] == "True" for item in conditions)

    def _changed(self, owner: Key | None, ended: bool = False) -> None:
        if owner:
            self._wake(owner, ended)


class Watches:
    """All watches of Jobs and pods."""

    def __init__(
        self,
        cache: CachedClient,
        namespaces: Collection[str],
        wake: Callable[[Key, bool], None],
        signs: WatchSigns | None = None,
    ) -> None:
        self._cache = cache
        self._wake = wake
        kinds: tuple[Owned, ...] = ("jobs", "pods")
        self._watches = [
            Watch(cache, what, namespace, wake, signs=signs)
            for what in kinds
            for namespace in namespaces or (None,)
        ]

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for watch in self._watches:
                group.create_task(watch.run(), name=f"watch of {watch}")
            group.create_task(self._report_warnings(), name="warnings")

    async def _report_warnings(self) -> None:
        """Wake the owners of Jobs and pods about which a Warning Event says something new."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            for owner in await self._cache.owners_of_news():
                self._wake(owner, False)

    async def synced(self, seconds: float) -> None:
        """Wait until every watch has listed everything, at most this long: a namespace may be refused."""
        waits = [asyncio.create_task(watch.synced.wait()) for watch in self._watches]
        _, pending = await asyncio.wait(waits, timeout=seconds)
        for task in pending:
            task.cancel()
