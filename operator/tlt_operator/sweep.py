"""The sweep: a regular list of all resources, which finds what the watches have missed.

The controller runs it beside its workers. It only puts keys into the queue, and decides nothing.
"""

from __future__ import annotations

import asyncio
import logging

from tlt_api.resources import KINDS, Kind
from tlt_operator import metrics
from tlt_operator.cluster.client import ApiError, Client
from tlt_operator.health import Health
from tlt_operator.index import Index
from tlt_operator.settings import Settings
from tlt_operator.snapshot import Key
from tlt_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)


class Sweep:
    """Comparison of the index with the cluster, once in ``sweep_seconds``."""

    def __init__(
        self, client: Client, settings: Settings, health: Health, index: Index, queue: WorkQueue[Key]
    ) -> None:
        self._client = client
        self._settings = settings
        self._health = health
        self._index = index
        self._queue = queue

    async def run(self) -> None:
        """Sweep regularly until cancelled."""
        while True:
            await asyncio.sleep(self._settings.sweep_seconds)
            try:
                await self.once()
            except ApiError as error:
                log.warning("the sweep failed, the next one follows: %s", error)
                self._health.failed("sweep")
            # A sweep that failed counts too: the operator is alive, and a restart would not bring the API
            # server back.
            self._health.sweep_ended()

    async def once(self) -> None:
        """Wake every resource that has not ended, and every change that the watches have not reported.

        Raises:
            ApiError: Nothing could be listed.
        """
        # Read before the list: a resource that is created during the list is not taken for deleted.
        indexed_uids = self._index.uids()
        versions, unlisted = await self._list()
        changed = {key for key, version in versions.items() if self._index.resource_version(key) != version}
        # A resource is deleted if it is in no list, and there is a list that it would be in.
        deleted = {
            key
            for key in indexed_uids.keys() - versions.keys()
            if not unlisted & {(key.kind, key.namespace), (key.kind, None)}
        }
        self._health.sweep_found_unreported(changed | deleted)
        for key in changed | self._index.unsettled():
            self._queue.add(key)
        # With its uid: a new resource of the same name, which a watch reported meanwhile, stays in the index.
        for key in deleted:
            for dependant in self._index.remove(key, indexed_uids[key]):
                self._queue.add(dependant)

    async def _list(self) -> tuple[dict[Key, str], set[tuple[str, str | None]]]:
        """List all resources: their versions, and the (kind, namespace) that could not be listed.

        Raises:
            ApiError: Nothing could be listed.
        """
        versions: dict[Key, str] = {}
        unlisted: set[tuple[str, str | None]] = set()
        namespaces = self._settings.namespaces or (None,)
        scopes = [(kind, namespace) for kind in KINDS.values() for namespace in namespaces]
        for kind, namespace in scopes:
            # A namespace without a RoleBinding must not keep the others from being swept.
            try:
                versions |= await self._list_scope(kind, namespace)
            except ApiError as error:
                metrics.UNLISTED.labels(kind.name, namespace or "").inc()
                log.warning("cannot list %s in %s: %s", kind.plural, namespace or "the cluster", error)
                unlisted.add((kind.name, namespace))
                if len(unlisted) == len(scopes):
                    raise
        return versions, unlisted

    async def _list_scope(self, kind: Kind, namespace: str | None) -> dict[Key, str]:
        return {
            Key(kind.name, metadata["namespace"], metadata["name"]): metadata["resourceVersion"]
            async for metadata in self._client.list_metadata(kind, namespace)
        }
