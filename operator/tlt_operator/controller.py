"""The loop around observe, reconcile and apply: workers that take keys from the queue, and the sweep.

Handlers put keys in; whatever goes wrong here makes a key come again later, never ends a worker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from tlt_api.resources import KINDS
from tlt_operator import metrics
from tlt_operator.apply import apply
from tlt_operator.health import Health
from tlt_operator.index import Index
from tlt_operator.kube import ApiError, ConflictError, Kube, NotFoundError, RefusedError
from tlt_operator.observe import Key, observe
from tlt_operator.observed import Refusal
from tlt_operator.reconcile import reconcile
from tlt_operator.settings import Settings
from tlt_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


async def reconcile_once(
    kube: Kube,
    key: Key,
    settings: Settings,
    clock: Callable[[], datetime] = utc_now,
    wrote: Callable[[str], None] = lambda version: None,
) -> float | None:
    """Look at a resource and do what is to be done; seconds after which to look again, if so.

    Args:
        kube: The cluster.
        key: Which resource.
        settings: The installation's choices.
        clock: The time.
        wrote: Told the resourceVersion that our own write made.

    Raises:
        ConflictError: Something changed meanwhile; look again.
        ApiError: The API server could not be asked.
    """
    now = clock()
    seen = await observe(kube, key, now)
    if seen is None:
        return None
    plan = reconcile(seen, now, settings)
    try:
        version = await apply(kube, seen, plan, now)
    except RefusedError as error:
        if plan.create is None and plan.service is None:
            raise
        # That, too, is something seen, and has to show in the status.
        refused = replace(seen, refusal=Refusal(error.code, error.message))
        plan = reconcile(refused, now, settings)
        version = await apply(kube, refused, plan, now)
    if version != seen.resource_version:
        wrote(version)
    return plan.requeue_after


class Controller:
    """Workers and sweep over one queue."""

    def __init__(self, kube: Kube, settings: Settings, health: Health) -> None:
        self.queue: WorkQueue[Key] = WorkQueue()
        self.index = Index()
        self._kube = kube
        self._settings = settings
        self._health = health

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._settings.workers):
                group.create_task(self._work(), name=f"worker {number}")
            group.create_task(self._sweep_often(), name="sweep")

    async def _work(self) -> None:
        while True:
            key, waited = await self.queue.get()
            metrics.QUEUE_WAIT_SECONDS.observe(waited)
            try:
                with metrics.RECONCILE_SECONDS.time():
                    again = await reconcile_once(
                        self._kube, key, self._settings, wrote=partial(self.index.expect, key)
                    )
                self._succeeded(key, again)
            except (ConflictError, NotFoundError) as error:
                log.debug("%s: changed meanwhile, looks again: %s", key, error)
                self._changed(key)
            except ApiError as error:
                seconds = self._failed(key, "error", error.retry_after or 0)
                log.warning("%s: %s; tries again in %.1f s", key, error, seconds)
            except Exception:
                seconds = self._failed(key, "crash")
                log.exception("%s: unexpected error; tries again in %.1f s", key, seconds)
            finally:
                self.queue.done(key)

    def _succeeded(self, key: Key, again: float | None) -> None:
        metrics.RECONCILES.labels("ok").inc()
        self._health.reconciled()
        self.queue.forget_failures(key)
        if again is not None:
            self.queue.add_after(key, again)

    def _changed(self, key: Key) -> None:
        metrics.RECONCILES.labels("conflict").inc()
        self.queue.retry(key)

    def _failed(self, key: Key, outcome: str, at_least: float = 0.0) -> float:
        metrics.RECONCILES.labels(outcome).inc()
        self._health.failed(str(key))
        return self.queue.retry(key, at_least)

    async def _sweep_often(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_seconds)
            try:
                await self.sweep()
            except ApiError as error:
                log.warning("the sweep failed, the next one follows: %s", error)
                self._health.failed("sweep")
            self._health.swept()

    async def sweep(self) -> None:
        """Wake everything that has not ended, and whatever the watches have not told of."""
        known = self.index.uids()
        there, unlisted = await self._list()
        behind = {key for key, version in there.items() if self.index.version(key) != version}
        gone = {
            key
            for key in known.keys() - there.keys()
            if not unlisted & {(key.kind, key.namespace), (key.kind, None)}
        }
        self._health.behind(behind | gone)
        for key in behind | self.index.unsettled():
            self.queue.add(key)
        for key in gone:
            for dependant in self.index.remove(key, known[key]):
                self.queue.add(dependant)

    async def _list(self) -> tuple[dict[Key, str], set[tuple[str, str | None]]]:
        """The versions of all resources, and the (kind, namespace) that could not be listed.

        Raises:
            ApiError: Nothing could be listed.
        """
        there: dict[Key, str] = {}
        unlisted: set[tuple[str, str | None]] = set()
        places = [(kind, it) for kind in KINDS.values() for it in self._settings.namespaces or (None,)]
        for kind, namespace in places:
            try:
                async for metadata in self._kube.list_metadata(kind, namespace):
                    key = Key(kind.name, metadata["namespace"], metadata["name"])
                    there[key] = metadata["resourceVersion"]
            except ApiError as error:
                metrics.UNLISTED.labels(kind.name, namespace or "").inc()
                log.warning("cannot list %s in %s: %s", kind.plural, namespace or "the cluster", error)
                unlisted.add((kind.name, namespace))
                if len(unlisted) == len(places):
                    raise
        return there, unlisted
