"""Cache in front of the API server: what the watches reported, behind the protocol of every client.

Resources come from kopf's watches (:mod:`tlt_operator.handlers`), Jobs and pods from those of
:mod:`tlt_operator.watches`; the answer to a write of ours is stored at once. Whatever is not known for
certain is read from the API server. Objects are kept as trimmed JSON text: a tenth of the memory of their
dictionaries.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tlt_api.resources import Kind
from tlt_operator.cluster.client import ConflictError, Json, NotFoundError, Owned, Source
from tlt_operator.cluster.warning_events import WarningEvents
from tlt_operator.objects import INDEX, OWNER_KIND, OWNER_NAME, OWNER_UID, SUSPENDED_BY_US
from tlt_operator.snapshot import Key

KeyType = TypeVar("KeyType", Key, str)


@dataclass(frozen=True, slots=True)
class _Entry:
    """Object in the cache: its JSON text without the version, and what it is found by."""

    uid: str
    version: str
    text: bytes


class CachedClient:
    """Client whose reads are answered from the cache where that is known to be complete.

    Args:
        source: Access to the API server.
        clock: Clock of monotonic seconds.
    """

    def __init__(self, source: Source, clock: Callable[[], float] = time.monotonic) -> None:
        self.source = source
        self._resources: dict[Key, _Entry] = {}
        self._deleted = _RecentlyDeleted()
        self._owned: dict[Owned, OwnedObjects] = {"jobs": OwnedObjects(_job), "pods": OwnedObjects(_pod)}
        self.warnings = WarningEvents(source, clock)

    # --- what the watches report ----------------------------------------------------------------------------

    def put_resource(self, key: Key, body: Json) -> None:
        """Store a resource of ours, unless the cache has a newer version of it."""
        metadata = body["metadata"]
        entry = self._resources.get(key)
        version = metadata.get("resourceVersion") or ""
        if metadata.get("uid") in self._deleted:
            return
        if entry and entry.uid == metadata.get("uid") and not _is_newer(version, entry.version):
            return
        kept = {name: value for name, value in metadata.items() if name not in _UNUSED_METADATA}
        text = json.dumps({**body, "metadata": kept}, separators=(",", ":")).encode()
        # Level 1: a third of the time of the usual level, and hardly larger.
        self._resources[key] = _Entry(metadata.get("uid") or "", version, zlib.compress(text, 1))

    def resource_deleted(self, key: Key, uid: str) -> None:
        """Forget a resource that was deleted, if it is the one with this uid."""
        self._deleted.add(uid)
        entry = self._resources.get(key)
        if entry and entry.uid == uid:
            del self._resources[key]

    def drop_resource(self, key: Key) -> None:
        """Forget what is known of a resource, so that the next look reads it from the API server."""
        self._resources.pop(key, None)

    def owned(self, what: Owned) -> OwnedObjects:
        """Return the Jobs or the pods."""
        return self._owned[what]

    async def owners_of_news(self) -> set[Key]:
        """List Warning events again; return the owners of the Jobs and pods about which they say more."""
        uids = await self.warnings.refresh()
        return set().union(*(objects.owners_of(uids) for objects in self._owned.values())) if uids else set()

    # --- Client: reads --------------------------------------------------------------------------------------

    async def get_resource(self, kind: Kind, namespace: str, name: str, live: bool = False) -> Json | None:
        """Get a resource of ours; one that the cache does not have is read from the API server."""
        key = Key(kind.name, namespace, name)
        entry = self._resources.get(key)
        if entry and not live:
            body: dict[str, Any] = json.loads(zlib.decompress(entry.text))
            body["metadata"]["resourceVersion"] = entry.version
            return body
        # Absent is not the same as deleted: the list with which the watch begins may not have come that far.
        answer = await self.source.get_resource(kind, namespace, name)
        if answer is None:
            self.drop_resource(key)
        else:
            self.put_resource(key, answer)
        return answer

    async def is_current(self, kind: Kind, namespace: str, name: str, version: str) -> bool:
        """Tell whether the API server still has this version; if not, the next read is a live one."""
        current = await self.source.is_current(kind, namespace, name, version)
        if not current:
            self.drop_resource(Key(kind.name, namespace, name))
        return current

    async def get_job(self, namespace: str, name: str, live: bool = False) -> Json | None:
        """Get a batch Job; None if it does not exist."""
        jobs = self._owned["jobs"]
        job = jobs.get(namespace, name)
        # The Job of somebody else has not our labels, and no watch reports what becomes of it.
        is_watched = jobs.is_complete(namespace) and (job is None or owner_of(job) is not None)
        if not live and is_watched:
            return job
        answer = await self.source.get_job(namespace, name, live=True)
        if answer is None:
            jobs.remove(namespace, name)
        else:
            jobs.put(answer)
        return answer

    async def list_jobs(self, namespace: str, owner_uid: str) -> Sequence[Json]:
        """List the batch Jobs with the label of this owner."""
        jobs = self._owned["jobs"]
        if not jobs.is_complete(namespace):
            return await self.source.list_jobs(namespace, owner_uid)
        return jobs.of_uid(owner_uid)

    async def list_pods(
        self, namespace: str, owner_kind: str, owner_name: str, live: bool = False
    ) -> Sequence[Json]:
        """List the pods with the labels of this owner, or of an earlier one of its name."""
        pods, owner = self._owned["pods"], Key(owner_kind, namespace, owner_name)
        cached = pods.of_owner(owner)
        if not live and pods.is_complete(namespace):
            return cached
        answer = await self.source.list_pods(namespace, owner_kind, owner_name, live=True)
        for pod in answer:
            pods.put(pod)
        # Of those that were here before the question, by their uid: what came meanwhile may be newer.
        listed = {pod["metadata"]["uid"] for pod in answer}
        for pod in cached:
            if pod["metadata"]["uid"] not in listed:
                pods.remove(namespace, pod["metadata"]["name"], pod["metadata"]["uid"])
        return answer

    async def list_warnings(self, namespace: str, uid: str) -> Sequence[Json]:
        """List the Warning events about an object, as of half a minute ago at most."""
        return await self.warnings.about(namespace, uid)

    async def list_workloads(self, namespace: str, job_uid: str) -> Sequence[Json]:
        """List the Workloads that Kueue has made for a Job, from the API server."""
        return await self.source.list_workloads(namespace, job_uid)

    def list_metadata(self, kind: Kind, namespace: str | None) -> AsyncIterator[Json]:
        """List the metadata of all resources of a kind, from the API server."""
        return self.source.list_metadata(kind, namespace)

    async def get_service(self, namespace: str, name: str) -> Json | None:
        """Get a Service, from the API server; None if it does not exist."""
        return await self.source.get_service(namespace, name)

    # --- Client: writes, whose answers are stored -----------------------------------------------------------

    async def patch_status(
        self, kind: Kind, namespace: str, name: str, uid: str, status: Json, version: str
    ) -> Json:
        """Change fields of a status, only of this uid and version; None removes one. Return the resource."""
        write = self.source.patch_status(kind, namespace, name, uid, status, version)
        return await self._written(Key(kind.name, namespace, name), write)

    async def apply_status(
        self, kind: Kind, namespace: str, name: str, uid: str, status: Json, manager: str, version: str
    ) -> Json:
        """Apply a status as a field manager, only to this uid and version; return the resource."""
        write = self.source.apply_status(kind, namespace, name, uid, status, manager, version)
        return await self._written(Key(kind.name, namespace, name), write)

    async def _written(self, key: Key, write: Awaitable[Json]) -> Json:
        """Store what the API server answers to a write of a status; return it."""
        try:
            body = await write
        # The cache is behind: the next look reads the resource itself.
        except (ConflictError, NotFoundError):
            self.drop_resource(key)
            raise
        self.put_resource(key, body)
        return body

    async def create_job(self, job: Json) -> Json:
        """Create a batch Job; return it."""
        metadata = job["metadata"]
        try:
            answer = await self.source.create_job(job)
        # The name is taken, perhaps by the Job of an operator that died before it could say so.
        except ConflictError:
            await self.get_job(metadata["namespace"], metadata["name"], live=True)
            raise
        self._owned["jobs"].put(answer)
        return answer

    async def delete_job(self, namespace: str, name: str, uid: str, version: str) -> None:
        """Delete a batch Job after its pods, if it is still this very version."""
        try:
            await self.source.delete_job(namespace, name, uid, version)
        finally:
            # Whether it is being deleted, is gone or has changed: the next look needs its present state.
            await self.get_job(namespace, name, live=True)

    async def suspend_job(
        self, namespace: str, name: str, uid: str, version: str, suspend: bool, *, note_only: bool = False
    ) -> Json:
        """Suspend or resume a batch Job, if it is still this very version; return the Job."""
        try:
            answer = await self.source.suspend_job(
                namespace, name, uid, version, suspend, note_only=note_only
            )
        except (ConflictError, NotFoundError):
            await self.get_job(namespace, name, live=True)
            raise
        self._owned["jobs"].put(answer)
        return answer

    async def set_job_ttl(self, namespace: str, name: str, uid: str, seconds: int) -> Json:
        """Set ttlSecondsAfterFinished of a batch Job, only of this uid; return the Job."""
        try:
            answer = await self.source.set_job_ttl(namespace, name, uid, seconds)
        except NotFoundError:
            self._owned["jobs"].remove(namespace, name)
            raise
        # Another one of this name, which no watch may ever report.
        except ConflictError:
            await self.get_job(namespace, name, live=True)
            raise
        self._owned["jobs"].put(answer)
        return answer

    async def set_workload_active(
        self, api_version: str, namespace: str, name: str, uid: str, version: str, active: bool
    ) -> None:
        """Let Kueue run a Workload, or stop it, if it is still this very version."""
        await self.source.set_workload_active(api_version, namespace, name, uid, version, active)

    async def create_service(self, service: Json) -> None:
        """Create a Service."""
        await self.source.create_service(service)

    async def create_event(self, event: Json) -> None:
        """Create an Event."""
        await self.source.create_event(event)


class OwnedObjects:
    """Jobs or pods of our resources, trimmed.

    Args:
        trim: Function that reduces an object to what decisions need.
    """

    def __init__(self, trim: Callable[[Json], dict[str, Any]]) -> None:
        self._trim = trim
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._owners: dict[tuple[str, str], tuple[Key | None, str]] = {}
        self._of_owner: dict[Key, set[tuple[str, str]]] = {}
        self._of_uid: dict[str, set[tuple[str, str]]] = {}
        self._deleted = _RecentlyDeleted()
        self._complete: set[str | None] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def set_complete(self, namespace: str | None, complete: bool) -> None:
        """Record whether all objects of a namespace (None: of the cluster) are here."""
        (self._complete.add if complete else self._complete.discard)(namespace)

    def is_complete(self, namespace: str) -> bool:
        """Tell whether all objects of a namespace are here, so that one that is not here does not exist."""
        return namespace in self._complete or None in self._complete

    def get(self, namespace: str, name: str) -> Json | None:
        """Return an object, trimmed; None if it is not here."""
        entry = self._entries.get((namespace, name))
        return _decoded(entry) if entry else None

    def of_owner(self, key: Key) -> list[Json]:
        """Return the objects with the labels of an owner, or of an earlier one of its name."""
        return [_decoded(self._entries[name]) for name in self._of_owner.get(key, ())]

    def of_uid(self, uid: str) -> list[Json]:
        """Return the objects with the label of an owner's uid."""
        return [_decoded(self._entries[name]) for name in self._of_uid.get(uid, ())]

    def of_other_uids(self, uids: Collection[str]) -> list[Json]:
        """Return the objects with the label of an owner's uid that is none of these."""
        others = [names for uid, names in self._of_uid.items() if uid not in uids]
        return [_decoded(self._entries[name]) for names in others for name in names]

    def owners_of(self, uids: set[str]) -> set[Key]:
        """Return the owners of the objects with these uids."""
        owners = {self._owners[name][0] for name, entry in self._entries.items() if entry.uid in uids}
        return {owner for owner in owners if owner}

    def put(self, body: Json) -> Key | None:
        """Store an object unless the cache has a newer version; return its owner if anything changed."""
        metadata = body["metadata"]
        name = (metadata["namespace"], metadata["name"])
        version, uid = metadata.get("resourceVersion") or "", metadata.get("uid") or ""
        if uid in self._deleted:
            return None
        text = json.dumps(self._trim(body), separators=(",", ":")).encode()
        previous = self._entries.get(name)
        if previous and previous.uid == uid:
            if not _is_newer(version, previous.version):
                return None
            self._entries[name] = _Entry(uid, version, text)
            return None if previous.text == text else self._owners[name][0]
        if previous:
            self._unlink(name)
        self._entries[name] = _Entry(uid, version, text)
        owner = owner_of(body)
        owner_uid = (metadata.get("labels") or {}).get(OWNER_UID) or ""
        self._owners[name] = (owner, owner_uid)
        if owner:
            self._of_owner.setdefault(owner, set()).add(name)
        if owner_uid:
            self._of_uid.setdefault(owner_uid, set()).add(name)
        return owner

    def remove(self, namespace: str, name: str, uid: str = "") -> Key | None:
        """Forget an object, if it is the one with this uid (empty: any); return its owner if it was here."""
        entry = self._entries.get((namespace, name))
        if entry is None or uid not in ("", entry.uid):
            return None
        owner = self._owners[namespace, name][0]
        self._unlink((namespace, name))
        del self._entries[namespace, name]
        return owner

    def deleted(self, body: Json) -> Key | None:
        """Forget an object whose deletion the watch has reported; return its owner if it was here."""
        metadata = body["metadata"]
        uid = metadata.get("uid") or ""
        self._deleted.add(uid)
        return self.remove(metadata["namespace"], metadata["name"], uid)

    def retain(self, namespace: str | None, names: set[tuple[str, str]], version: str) -> set[Key]:
        """Forget what a complete list of a namespace (None: the cluster) lacks; return the owners."""
        gone = [
            name
            for name, entry in self._entries.items()
            if namespace in (None, name[0])
            and name not in names
            # It was created after the list was made.
            and not _is_newer(entry.version, version)
        ]
        return {owner for name in gone if (owner := self.remove(*name))}

    def _unlink(self, name: tuple[str, str]) -> None:
        owner, owner_uid = self._owners.pop(name)
        if owner:
            _discard(self._of_owner, owner, name)
        if owner_uid:
            _discard(self._of_uid, owner_uid, name)


class _RecentlyDeleted:
    """The uids of the objects that were deleted last.

    The answer to a read or a write may arrive after the event of the object's deletion. Stored, it would stay
    for ever: no other event follows.
    """

    _LIMIT = 10_000

    def __init__(self) -> None:
        self._uids: dict[str, None] = {}

    def __contains__(self, uid: object) -> bool:
        return uid in self._uids

    def add(self, uid: str) -> None:
        self._uids[uid] = None
        # A dict keeps the order: the oldest goes first.
        if len(self._uids) > self._LIMIT:
            del self._uids[next(iter(self._uids))]


def _discard(names_by: dict[KeyType, set[tuple[str, str]]], key: KeyType, name: tuple[str, str]) -> None:
    # Empty sets are removed, or the index would grow with every owner that ever was.
    names_by[key].discard(name)
    if not names_by[key]:
        del names_by[key]


def owner_of(body: Json) -> Key | None:
    """Return the resource that the labels of a Job or pod name."""
    metadata = body["metadata"]
    labels = metadata.get("labels") or {}
    kind, name = labels.get(OWNER_KIND), labels.get(OWNER_NAME)
    return Key(kind, metadata["namespace"], name) if kind and name else None


_EMPTY: tuple[Any, ...] = (None, "", {}, [])
_UNUSED_METADATA = {"managedFields", "resourceVersion"}
_METADATA = {
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "ownerReferences",
}
# Of a pod's, the run spec is by far the largest, and read by the runner alone.
_ANNOTATIONS = {INDEX, SUSPENDED_BY_US}
_JOB_SPEC = {"completionMode", "parallelism", "suspend", "ttlSecondsAfterFinished", "activeDeadlineSeconds"}
# Counters that change with each pod and say nothing that pods and conditions do not.
_UNUSED_JOB_STATUS = {"active", "terminating", "uncountedTerminatedPods"}
_UNUSED_POD_STATUS = {"hostIP", "hostIPs", "podIP", "podIPs", "qosClass", "observedGeneration"}
_CONTAINER = {"name", "state", "ready"}


def _job(body: Json) -> dict[str, Any]:
    """Trim a batch Job to what decisions need."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    return {
        "metadata": _metadata(body),
        "spec": {name: value for name, value in spec.items() if name in _JOB_SPEC},
        "status": {name: value for name, value in status.items() if name not in _UNUSED_JOB_STATUS},
    }


def _pod(body: Json) -> dict[str, Any]:
    """Trim a pod to what decisions need."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    trimmed = {name: value for name, value in status.items() if name not in _UNUSED_POD_STATUS}
    for containers in ("containerStatuses", "initContainerStatuses"):
        if containers in trimmed:
            trimmed[containers] = [
                {name: value for name, value in container.items() if name in _CONTAINER}
                for container in trimmed[containers] or ()
            ]
    node = {"nodeName": spec["nodeName"]} if spec.get("nodeName") else {}
    return {"metadata": _metadata(body), "spec": node, "status": trimmed}


def _metadata(body: Json) -> dict[str, Any]:
    """Return metadata without the version, which is kept apart, and without what may be large."""
    # Without empty values; a grace period of 0 is none.
    metadata = body["metadata"]
    kept = {name: value for name, value in metadata.items() if name in _METADATA and value not in _EMPTY}
    annotations = metadata.get("annotations") or {}
    read = {name: value for name, value in annotations.items() if name in _ANNOTATIONS}
    return kept | ({"annotations": read} if read else {})


def _decoded(entry: _Entry) -> Json:
    body: dict[str, Any] = json.loads(entry.text)
    body["metadata"]["resourceVersion"] = entry.version
    return body


def _is_newer(version: str, other: str) -> bool:
    """Tell whether a version is newer than another one of the same object."""
    # Versions are numbers that grow (Kubernetes promises so since 1.35). Where they are not, the order in
    # which they arrive has to do; a version that is too old is refused at the next write.
    if version.isdigit() and other.isdigit():
        return int(version) > int(other)
    return version != other
