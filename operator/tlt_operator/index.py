"""State of every resource as its watch last reported it, from which the keys follow that a change wakes.

Small on purpose: a few words for each resource, never the resource. Decisions are made from live reads, not
from here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tlt_api.conditions import TERMINAL
from tlt_api.references import raw_parent
from tlt_api.status import RunnerStatus, wire_names
from tlt_operator.snapshot import Key

_RUNNER_FIELDS = wire_names(RunnerStatus)


@dataclass(frozen=True)
class Entry:
    """State of a resource as its watch last reported it.

    Attributes:
        uid: UID of the resource.
        resource_version: Version that the watch last reported.
        digest: Digest of everything but the runner's fields: progress alone needs no reconciliation.
        parent: Resource that the resource refers to.
        phase: Phase of the resource, or Unknown.
        settled: True if the resource has ended and its status is about the current spec.
    """

    uid: str
    resource_version: str
    digest: int
    parent: Key | None
    phase: str
    settled: bool


class Index:
    """All resources that the watches have reported."""

    def __init__(self) -> None:
        self._entries: dict[Key, Entry] = {}
        self._dependants: dict[Key, set[Key]] = {}
        self._own_writes: dict[Key, str] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def note_own_write(self, key: Key, resource_version: str) -> None:
        """Record a version that the operator itself wrote: its event needs no reconciliation."""
        self._own_writes[key] = resource_version

    def update(self, body: Mapping[str, Any]) -> set[Key]:
        """Store a resource; return the keys to wake: the resource itself, and those that refer to it."""
        key = key_of(body)
        before, after = self._entries.get(key), _entry(body)
        self._link(key, before.parent if before else None, after.parent)
        self._entries[key] = after
        # Nothing changed but what the runner reports.
        if before and before.digest == after.digest:
            return set()
        # Dropped in any case: at worst, the event of our own write wakes the resource once more.
        own_write = self._own_writes.pop(key, None) == after.resource_version
        woken = set() if own_write else {key}
        # Dependants wait for the phase of their parent, whoever wrote it.
        if before is None or before.phase != after.phase:
            woken |= self._dependants.get(key, set())
        return woken

    def remove(self, key: Key, uid: str) -> set[Key]:
        """Forget a deleted resource, not a new one of its name; return the keys that refer to it."""
        if key in self._entries and self._entries[key].uid != uid:
            return set()
        before = self._entries.pop(key, None)
        self._own_writes.pop(key, None)
        self._link(key, before.parent if before else None, None)
        return set(self._dependants.get(key, set()))

    def unsettled(self) -> set[Key]:
        """Return the resources that have not ended."""
        return {key for key, entry in self._entries.items() if not entry.settled}

    def uids(self) -> dict[Key, str]:
        """Return all resources with their uids."""
        return {key: entry.uid for key, entry in self._entries.items()}

    def resource_version(self, key: Key) -> str | None:
        """Return the resourceVersion that the watch last reported; None for an unknown resource."""
        entry = self._entries.get(key)
        return entry.resource_version if entry else None

    def counts(self) -> Counter[tuple[str, str]]:
        """Count the resources by kind and phase."""
        return Counter((key.kind, entry.phase) for key, entry in self._entries.items())

    def _link(self, key: Key, before: Key | None, after: Key | None) -> None:
        if before == after:
            return
        # Empty sets are removed, or the index would grow with every name that was ever referred to.
        if before:
            self._dependants[before].discard(key)
            if not self._dependants[before]:
                del self._dependants[before]
        if after:
            self._dependants.setdefault(after, set()).add(key)


def key_of(body: Mapping[str, Any]) -> Key:
    """Return the key of a resource in its JSON form."""
    metadata = body["metadata"]
    return Key(body["kind"], metadata["namespace"], metadata["name"])


def _entry(body: Mapping[str, Any]) -> Entry:
    metadata, status = body["metadata"], dict(body.get("status") or {})
    # The runner reports progress every few seconds, on which no decision depends.
    for name in _RUNNER_FIELDS:
        status.pop(name, None)
    generation = metadata.get("generation")
    phase = status.get("phase")
    # The generation stands for the spec: it rises with each change.
    relevant = (metadata.get("uid"), generation, metadata.get("deletionTimestamp"), repr(status))
    parent = raw_parent(body)
    return Entry(
        uid=metadata.get("uid") or "",
        resource_version=metadata.get("resourceVersion") or "",
        digest=hash(relevant),
        parent=Key(parent[0], metadata["namespace"], parent[1]) if parent else None,
        phase=phase or "Unknown",
        settled=phase in TERMINAL and status.get("observedGeneration") == generation,
    )
