"""Control loop: workers that take keys from the queue, and the watches and the sweep that put keys into it.

Handlers and the sweep put keys in; a worker observes, reconciles and applies. Whatever goes wrong makes a key
come again later, and never ends a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from tlt_api.resources import KINDS, Kind
from tlt_api.runspec import RUN_SPEC_ANNOTATION
from tlt_api.status import JobStatus, Phase
from tlt_api.times import utc_now
from tlt_operator import metrics
from tlt_operator.apply import CreationRefusedError, apply
from tlt_operator.clock import SteadyClock
from tlt_operator.cluster.cache import CachedClient, owner_of
from tlt_operator.cluster.client import (
    ApiError,
    Client,
    ConflictError,
    Json,
    NotFoundError,
    Source,
)
from tlt_operator.health import Health
from tlt_operator.index import Index, key_of
from tlt_operator.objects import OWNER_UID
from tlt_operator.observe import job_state, observe, pod_state
from tlt_operator.outputs import Outputs
from tlt_operator.reconcile import reconcile, silence
from tlt_operator.reconcile.plan import Plan, can_wait, operator_fields
from tlt_operator.reports import Reports
from tlt_operator.settings import Settings
from tlt_operator.settling import Settling
from tlt_operator.snapshot import Key, Refusal, Snapshot
from tlt_operator.watches import Watches
from tlt_operator.workqueue import Backoff, WorkQueue

log = logging.getLogger(__name__)


_POLL_SECONDS = 0.1
_STUCK_SECONDS = 30.0
"""Time without progress of the first lists after which what they lack is read from the API server."""
_MOST_READS = 100
"""Resources that are then read: if far more are missing, the watch has not begun yet."""


class Controller:
    """Workers, watches of Jobs and pods, and the sweep, over one queue and one cache."""

    def __init__(
        self,
        client: Source,
        settings: Settings,
        health: Health,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._clock = clock or SteadyClock()
        self.queue: WorkQueue[Key] = WorkQueue()
        self.index = Index()
        self._settling = Settling(asyncio.get_running_loop().time)
        self.cache = CachedClient(client)
        self.watches = Watches(self.cache, settings.namespaces, self._owned_changed, health.watches)
        self._settings = settings
        self._health = health
        self.sweep = Sweep(self.cache, settings, health, self.index, self.queue)
        self._namespaces: tuple[str | None, ...] = tuple(settings.namespaces) or (None,)
        for namespace in self._namespaces:
            self.index.outputs.expect_list(namespace)

    def resource_changed(self, body: Json, deleted: bool = False) -> None:
        """Take note of a resource of ours that its watch has reported."""
        key = key_of(body)
        # With its uid: a DELETED that arrives late must not remove a new resource of the same name.
        uid = body["metadata"].get("uid") or ""
        if deleted:
            self.cache.resource_deleted(key, uid)
        else:
            self.cache.put_resource(key, body)
        # The start of a run comes before the statuses of others.
        is_new = not deleted and self.index.resource_version(key) is None
        for woken in self.index.remove(key, uid) if deleted else self.index.update(body):
            self.queue.add(woken, first=is_new and woken == key)

    def _owned_changed(self, owner: Key, ended: bool) -> None:
        # Its owner is reconciled as a whole; what happened to the Job or pod does not matter here.
        if owner.kind not in KINDS:
            return
        # An end is one change; a start is five within a moment, which are looked at together.
        if ended:
            self.queue.add(owner)
        else:
            self.queue.add_after(owner, self._settling.seconds)

    def stand_by(self) -> None:
        """Let nothing be worked on until :meth:`lead`; the index is filled all the same."""
        self.queue.pause()

    def lead(self) -> None:
        """Begin to work, with a look at every resource."""
        self._claim_begun_outputs()
        # All of them, ended ones too: a former leader may have died between a status and the write after it.
        self.queue.resume(self.index.uids())

    async def run(self) -> None:
        """Work until cancelled; an operator that stands by has nothing in its queue."""
        # An error that leaves a part ends all of them, and with them the process, which Kubernetes restarts.
        async with asyncio.TaskGroup() as group:
            for number in range(self._settings.workers):
                group.create_task(self._work(), name=f"worker {number}")
            group.create_task(self.watches.run(), name="watches of Jobs and pods")
            group.create_task(self.sweep.run(), name="sweep")
            # Each by itself: one that cannot be listed must not keep the others from their starts.
            for namespace in self._namespaces:
                group.create_task(self._await_first_lists(namespace), name=f"first lists of {namespace}")

    async def _await_first_lists(self, namespace: str | None) -> None:
        """Let Jobs be created once the watches have reported all resources that there are.

        One that is not reported yet may be the one that writes to the output of one that is.
        """
        for kind in KINDS.values():
            await self._await_first_list(kind, namespace)
        await self._note_former_writers(namespace)
        self._claim_begun_outputs()
        for key in self.index.outputs.listed(namespace):
            self.queue.add(key)

    async def _note_former_writers(self, namespace: str | None) -> None:
        """Note the outputs of resources that were deleted, or ended, before this operator started.

        Their pods may still write.
        """
        uids = self.index.uids()
        unsettled = {uids[key] for key in self.index.unsettled()}
        jobs, pods = (self.cache.owned(what).of_other_uids(unsettled) for what in ("jobs", "pods"))
        live = [job for job in jobs if not job_state(job).finished]
        live += [pod for pod in pods if not pod_state(pod, "").ended]
        orphans = {
            (owner, body["metadata"]["labels"][OWNER_UID])
            for body in live
            if (owner := owner_of(body)) and owner.kind in KINDS and namespace in (None, owner.namespace)
        }
        backoff, failures = Backoff(limit=15.0), 0
        while orphans:
            key, uid = next(iter(orphans))
            try:
                for spec in await _specs_of_runs(self.cache, key, uid):
                    self.index.outputs.note_former(key, uid, spec)
                orphans.discard((key, uid))
            except ApiError as error:
                log.warning("cannot read the runs of %s, which is over: %s", key, error)
                if error.forbids:
                    orphans.discard((key, uid))
                    continue
                failures += 1
                await asyncio.sleep(max(backoff.delay(failures), error.retry_after or 0))

    def _claim_begun_outputs(self) -> None:
        """Let runs hold their outputs whose Job was created by an operator that did not come to say so."""
        jobs = self.cache.owned("jobs")
        for key, uid in self.index.uids().items():
            if self.index.outputs.may_have_begun(key) and any(
                not job_state(job).finished for job in jobs.of_uid(uid)
            ):
                self.index.outputs.claim(key)

    async def _await_first_list(self, kind: Kind, namespace: str | None) -> None:
        loop = asyncio.get_running_loop()
        missing = await self._first_list(kind, namespace)
        last_progress = loop.time()
        while missing:
            await asyncio.sleep(_POLL_SECONDS)
            left = {key for key in missing if not self.index.outputs.knows(key)}
            if len(left) < len(missing):
                missing, last_progress = left, loop.time()
            elif loop.time() - last_progress > _STUCK_SECONDS:
                # Deleted since, or the watch is late.
                missing = await self._first_list(kind, namespace)
                last_progress = loop.time()
                for key in list(missing)[:_MOST_READS]:
                    with contextlib.suppress(ApiError):
                        await _make_known(self.cache, key, self.index.outputs)

    async def _first_list(self, kind: Kind, namespace: str | None) -> set[Key]:
        """Return the resources that exist, and that the watch has not reported."""
        backoff, failures = Backoff(limit=15.0), 0
        while True:
            try:
                return {
                    key
                    async for metadata in self.cache.list_metadata(kind, namespace)
                    if not self.index.outputs.knows(
                        key := Key(kind.name, metadata["namespace"], metadata["name"])
                    )
                }
            except ApiError as error:
                log.warning("cannot list %s in %s: %s", kind.plural, namespace or "the cluster", error)
                # Not waited for: the resources there are not served.
                if error.forbids:
                    return set()
                failures += 1
                await asyncio.sleep(max(backoff.delay(failures), error.retry_after or 0))

    async def _work(self) -> None:
        """Take one key after the other and reconcile its resource."""
        while True:
            key, waited = await self.queue.get()
            metrics.QUEUE_WAIT_SECONDS.observe(waited)
            try:
                with metrics.RECONCILE_SECONDS.time():
                    look = await reconcile_once(
                        self.cache, key, self._settings, self.index, self._clock, self._settling
                    )
                self._succeeded(key, look)
            # Somebody else was faster: the snapshot is out of date, and a new one is taken. Not a failure for
            # health, since conflicts happen in normal operation, and so do deletions between read and write.
            except (ConflictError, NotFoundError) as error:
                log.debug("%s: changed since it was read, reconciled again: %s", key, error)
                metrics.RECONCILES.labels("conflict").inc()
                self.queue.retry(key)
            except ApiError as error:
                self.index.reports.interrupted(key)
                # The wait that the API server asks for counts if it is longer than ours.
                seconds = self._failed(key, "error", error.retry_after or 0)
                log.warning("%s: %s; tries again in %.1f s", key, error, seconds)
            # One resource that trips over a mistake of ours must not keep the others from being served.
            except Exception:
                seconds = self._failed(key, "crash")
                log.exception("%s: unexpected error; tries again in %.1f s", key, seconds)
            finally:
                # Only now may another worker take the key: no resource is reconciled twice at the same time.
                self.queue.done(key)

    def _succeeded(self, key: Key, look: Look) -> None:
        metrics.RECONCILES.labels("ok").inc()
        self._health.reconciled()
        self.queue.forget_failures(key)
        if look.status is not None:
            self._leave_to_others(key, look.status)
        if look.requeue_after is not None:
            self.queue.add_after(key, look.requeue_after)

    def _leave_to_others(self, key: Key, written: JobStatus) -> None:
        """Hold a resource for a while if somebody else changes its status back again and again."""
        seconds = self.index.rewrites.written(key, operator_fields(written))
        if seconds:
            metrics.REWRITES.labels(key.kind).inc()
            log.warning(
                "%s: somebody else changes its status back again and again; looks again in %.0f s. Expected "
                "one operator with its replicas, see: kubectl get deployments -A -l "
                "app.kubernetes.io/name=tlt-operator",
                key,
                seconds,
            )
            self.queue.hold(key, seconds)

    def _failed(self, key: Key, outcome: str, at_least: float = 0.0) -> float:
        """Count a failure and return the seconds until the next try."""
        metrics.RECONCILES.labels(outcome).inc()
        self._health.failed(str(key))
        return self.queue.retry(key, at_least)


class Sweep:
    """Comparison of the index with the cluster, once in ``sweep_seconds``."""

    def __init__(
        self,
        cache: CachedClient,
        settings: Settings,
        health: Health,
        index: Index,
        queue: WorkQueue[Key],
    ) -> None:
        self._cache = cache
        self._settings = settings
        self._health = health
        self._index = index
        self._queue = queue

    async def run(self) -> None:
        """Sweep regularly until cancelled.

        Errors of the API server are logged, and the next sweep follows. Any other error is a mistake of ours,
        which leaves this coroutine and, by the TaskGroup, ends the process on purpose: a loop that goes on
        after it would hide it.
        """
        self._health.sweeps_begin()
        while True:
            # The wait comes first: at the start, the watches list everything anyway.
            await asyncio.sleep(self._settings.sweep_seconds)
            # Standing by: whoever works compares.
            if self._queue.is_paused:
                self._health.sweep_ended()
                continue
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
        # The cache has what the watch reported: these are read from the API server.
        for key in changed | deleted:
            self._cache.drop_resource(key)
        # Resources that have not ended are looked at although nothing of them changed: what they wait for may
        # be unwatched, as quotas and Services are.
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
            async for metadata in self._cache.list_metadata(kind, namespace)
        }


@dataclass(frozen=True)
class Look:
    """Result of one look at a resource.

    Attributes:
        requeue_after: Seconds after which to look again even if no event arrives; None for never.
        status: Status that was written; None if it stayed as it was.
    """

    requeue_after: float | None = None
    status: JobStatus | None = None


async def reconcile_once(
    client: Client,
    key: Key,
    settings: Settings,
    index: Index,
    clock: Callable[[], datetime] = utc_now,
    settling: Settling | None = None,
) -> Look:
    """Observe a resource once, decide and apply.

    Args:
        client: The cluster.
        key: The resource.
        settings: The installation's choices.
        index: What the watches reported of all resources; takes note of what is written and claimed.
        clock: The time.
        settling: Statuses that wait for a moment; without it, each is written at once.

    Raises:
        ConflictError: Something changed since it was read; look again.
        ApiError: The API server could not be asked.
    """
    # One time for the whole pass: everything that is decided and written has the same one.
    now = clock()
    snapshot = await observe(client, key, now)
    # Deleted: the garbage collector deletes its Jobs and pods by their owner references.
    if snapshot is None:
        if settling is not None:
            settling.forget(key)
        return Look()
    outputs = index.outputs
    snapshot = replace(
        snapshot,
        active=index.active + outputs.claims,
        output_holder=outputs.holder(key),
        sharing_output=index.sharing_output(key),
        progress_silence=await _silence(client, key, snapshot, index.reports),
    )
    plan = reconcile(snapshot, now, settings)
    if plan.create is not None and (former := await _former_writer(client, key, outputs)):
        snapshot = replace(snapshot, output_holder=former)
        plan = reconcile(snapshot, now, settings)
    plan = _settled(settling, key, snapshot, plan)
    if plan.create is not None:
        # Whoever holds the output may not be known yet: the first lists of the watches are awaited.
        if outputs.postpones(key):
            return Look()
        if not outputs.knows(key):
            await _make_known(client, key, outputs)
            raise ConflictError(409, f"{key} has not been reported")
        # Asked anew, without an await before the claim: of two workers, one finds the other's claim, and one
        # that held the output may have been deleted meanwhile.
        if outputs.holder(key) or outputs.former(key):
            raise ConflictError(409, f"{key}: somebody else writes to its output since it was looked at")
        outputs.claim(key)
        try:
            await _require_unchanged(client, snapshot)
            await _require_no_unreported_pod(client, key)
        except BaseException:
            outputs.release(key)
            raise
    # An earlier look may have claimed it for a Job that was not created.
    elif snapshot.own_job is None:
        outputs.release(key)
    try:
        version = await apply(client, snapshot, plan, now)
    # Of a status that was refused (missing rights, another version of the CRD), no decision helps.
    except CreationRefusedError as error:
        # A Job or a Service that is refused is a fact like any other: decide again with it, so that the
        # status shows it.
        # At most one more decision: after a second refusal the key comes again later.
        snapshot = replace(snapshot, refusal=Refusal(error.code, error.message))
        plan = reconcile(snapshot, now, settings)
        if plan.create is None and snapshot.job is None:
            outputs.release(key)
        version = await apply(client, snapshot, plan, now)
    # The event of our own write would wake the resource again for nothing.
    if version != snapshot.resource_version:
        index.note_own_write(key, version)
    return Look(plan.requeue_after, plan.status)


def _settled(settling: Settling | None, key: Key, snapshot: Snapshot, plan: Plan) -> Plan:
    """Return a plan without its status if that may wait, and the next change may make it needless."""
    if settling is None:
        return plan
    if plan.status is None or not can_wait(plan, snapshot.stored_status):
        settling.forget(key)
        return plan
    seconds = settling.seconds_left(key)
    if seconds <= 0:
        settling.forget(key)
        return plan
    due = seconds if plan.requeue_after is None else min(seconds, plan.requeue_after)
    return replace(plan, status=None, requeue_after=due)


async def _silence(client: Client, key: Key, snapshot: Snapshot, reports: Reports) -> float | None:
    """Return the seconds for which a run has been silent; None if it has not promised to report.

    Raises:
        ConflictError: It has reported, which its watch has not told yet.
        ApiError: The API server does not answer, perhaps to the run neither.
    """
    awaited = silence.awaited(snapshot)
    if awaited is None:
        return None
    seconds = reports.silence(key, awaited.after, awaited.within, is_start=awaited.is_first)
    late = seconds >= awaited.within and snapshot.status.phase == Phase.RUNNING
    if late:
        await _require_unchanged(client, snapshot)
    return seconds


async def _former_writer(client: Client, key: Key, outputs: Outputs) -> Key | None:
    """Return a resource that was deleted, or has ended, while a pod of it may still write to an output.

    The garbage collector deletes its Job some time later, and its pods then write a last checkpoint.
    """
    for former, uid in outputs.former(key):
        jobs = [job_state(body) for body in await client.list_jobs(former.namespace, uid)]
        pods = await client.list_pods(former.namespace, former.kind, former.name, live=True)
        labels = [pod["metadata"]["labels"] for pod in pods if not pod_state(pod, "").ended]
        if any(not job.finished for job in jobs) or any(label.get(OWNER_UID) == uid for label in labels):
            return former
        outputs.former_ended(former, uid)
    return None


async def _specs_of_runs(client: Client, key: Key, uid: str) -> list[Any]:
    """Return the specs that the pods of a former writer run by, and those of its Jobs that have none."""
    pods = await client.list_pods(key.namespace, key.kind, key.name, live=True)
    metadata = [pod["metadata"] for pod in pods if pod["metadata"]["labels"].get(OWNER_UID) == uid]
    # A Job that is not collected yet may make another pod.
    for job in await client.list_jobs(key.namespace, uid):
        body = await client.get_job(key.namespace, job["metadata"]["name"], live=True)
        if body is not None and body["metadata"]["uid"] == job["metadata"]["uid"]:
            metadata.append(body["spec"]["template"]["metadata"])
    texts = [(item.get("annotations") or {}).get(RUN_SPEC_ANNOTATION) for item in metadata]
    specs = []
    for text in filter(None, texts):
        # Anybody may label a pod like ours, and annotate it with a text that is no RunSpec.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            specs.append(json.loads(text)["spec"])
    return specs


async def _make_known(client: Client, key: Key, outputs: Outputs) -> None:
    """Read the output of a resource that its watch has not reported."""
    body = await client.get_resource(KINDS[key.kind], key.namespace, key.name, live=True)
    if body is not None and not outputs.knows(key):
        outputs.update(key, body)


async def _require_unchanged(client: Client, snapshot: Snapshot) -> None:
    """Raise ConflictError if a resource has changed since its watch reported it.

    What follows cannot be taken back: a resource that was deleted, suspended or started meanwhile must not
    get a Job, and a run that has reported must not be stopped.
    """
    key = Key(snapshot.kind.name, snapshot.namespace, snapshot.name)
    if not await client.is_current(snapshot.kind, key.namespace, key.name, snapshot.resource_version):
        raise ConflictError(409, f"{key} has changed since it was reported")


async def _require_no_unreported_pod(client: Client, key: Key) -> None:
    """Raise ConflictError if a pod of an earlier attempt may still write to the output.

    The watch of pods may be late: a pod that it has not reported yet is no reason to start a second one. A
    first attempt may have one too, of a resource of its name that was deleted before.
    """
    pods = await client.list_pods(key.namespace, key.kind, key.name, live=True)
    live = [pod["metadata"]["name"] for pod in pods if not pod_state(pod, "").ended]
    if live:
        raise ConflictError(409, f"{key}: {', '.join(live)} has not ended, which was not reported yet")
