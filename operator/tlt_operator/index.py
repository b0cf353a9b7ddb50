"""State of every resource as its watch last reported it, from which the keys follow that a change wakes.

Small on purpose: a few words for each resource, never the resource, which :mod:`.cluster.cache` has.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tlt_api.conditions import TERMINAL
from tlt_api.references import raw_parent
from tlt_api.status import Phase, RunnerStatus, wire_names
from tlt_operator.outputs import Outputs
from tlt_operator.reports import Reports
from tlt_operator.rewrites import Rewrites
from tlt_operator.snapshot import Key

_RUNNER_FIELDS = wire_names(RunnerStatus)


@dataclass(frozen=True)
class IndexedResource:
    """State of a resource as its watch last reported it.

    Attributes:
        uid: UID of the resource.
        resource_version: Version that the watch last reported.
        digest: Digest of everything but the runner's fields: progress alone needs no reconciliation.
        parent: Resource that the resource refers to.
        phase: Phase of the resource, or Unknown.
        settled: True if the resource has ended and its status is about the current spec.
        active: True if the resource has a Job that runs or waits for its pods.
    """

    uid: str
    resource_version: str
    digest: int
    parent: Key | None
    phase: str
    settled: bool
    active: bool


class Index:
    """All resources that the watches have reported.

    Args:
        clock: Clock of monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._resources: dict[Key, IndexedResource] = {}
        self._dependants: dict[Key, set[Key]] = {}
        self._own_writes: dict[Key, str] = {}

        self.outputs = Outputs()
        self.reports = Reports(clock)
        self.rewrites = Rewrites()
        self.active = 0
        """Number of the resources with a Job that runs or waits for its pods."""

    def __len__(self) -> int:
        return len(self._resources)

    def note_own_write(self, key: Key, resource_version: str) -> None:
        """Record a version that the operator itself wrote: its event needs no reconciliation."""
        self._own_writes[key] = resource_version

    def update(self, body: Mapping[str, Any]) -> set[Key]:
        """Store a resource; return the keys to wake: the resource itself, and those that refer to it."""
        key = key_of(body)
        previous, current = self._resources.get(key), _indexed(body)
        self._link(key, previous.parent if previous else None, current.parent)
        # Even if nothing of interest changed: the sweep compares versions.
        self._resources[key] = current
        self.outputs.update(key, body)
        self.reports.heard(key, _last_report(body))
        self.active += current.active - bool(previous and previous.active)
        # Nothing changed but what the runner reports.
        if previous and previous.digest == current.digest:
            return set()
        # Dropped in any case: at worst, the event of our own write wakes the resource once more.
        own_write = self._own_writes.pop(key, None) == current.resource_version
        keys_to_wake = set() if own_write else {key}
        # Dependants wait for the phase of their parent, whoever wrote it, and writers for its output.
        if previous is None or previous.phase != current.phase:
            keys_to_wake |= self._dependants.get(key, set()) | self.outputs.sharing(key)
        return keys_to_wake

    def remove(self, key: Key, uid: str) -> set[Key]:
        """Forget a deleted resource, not a new one of its name; return the keys that refer to it."""
        # A watch that was interrupted may report a deletion after the creation of the next resource of this
        # name.
        if key in self._resources and self._resources[key].uid != uid:
            return set()
        previous = self._resources.pop(key, None)
        self.active -= bool(previous and previous.active)
        self._own_writes.pop(key, None)
        sharing = self.outputs.sharing(key)
        self.outputs.remove(key)
        self.reports.forget(key)
        self.rewrites.forget(key)
        self._link(key, previous.parent if previous else None, None)
        # They stay linked: a parent of the same name that is created later wakes them again.
        return self._dependants.get(key, set()) | sharing

    def sharing_output(self, key: Key) -> tuple[str, ...]:
        """Return the uids of the other resources with the output's address, at any endpoint.

        Two names of one endpoint are two texts: what is left out here no longer exists for the runner.
        """
        others = (self._resources.get(other) for other in self.outputs.with_address_of(key))
        return tuple(sorted(other.uid for other in others if other))

    def unsettled(self) -> set[Key]:
        """Return the resources that have not ended."""
        return {key for key, resource in self._resources.items() if not resource.settled}

    def uids(self) -> dict[Key, str]:
        """Return all resources with their uids."""
        return {key: resource.uid for key, resource in self._resources.items()}

    def resource_version(self, key: Key) -> str | None:
        """Return the resourceVersion that the watch last reported; None for an unknown resource."""
        resource = self._resources.get(key)
        return resource.resource_version if resource else None

    def counts(self) -> Counter[tuple[str, str]]:
        """Count the resources by kind and phase."""
        return Counter((key.kind, resource.phase) for key, resource in self._resources.items())

    def _link(self, key: Key, previous: Key | None, current: Key | None) -> None:
        if previous == current:
            return
        # Empty sets are removed, or the index would grow with every name that was ever referred to.
        if previous:
            self._dependants[previous].discard(key)
            if not self._dependants[previous]:
                del self._dependants[previous]
        if current:
            self._dependants.setdefault(current, set()).add(key)


def key_of(body: Mapping[str, Any]) -> Key:
    """Return the key of a resource in its JSON form."""
    metadata = body["metadata"]
    return Key(body["kind"], metadata["namespace"], metadata["name"])


def _last_report(body: Mapping[str, Any]) -> str | None:
    """Return when the runner last reported progress, in its own words; None if it has not."""
    progress = (body.get("status") or {}).get("progress")
    time = progress.get("lastUpdateTime") if isinstance(progress, Mapping) else None
    return str(time) if time else None


def _indexed(body: Mapping[str, Any]) -> IndexedResource:
    metadata, status = body["metadata"], dict(body.get("status") or {})
    # The runner reports progress every few seconds, on which no decision depends.
    for name in _RUNNER_FIELDS:
        status.pop(name, None)
    generation = metadata.get("generation")
    phase = status.get("phase")
    # The generation stands for the spec: it rises with each change. The status counts by its text, since
    # dicts have no hash; a text that differs without need costs one reconciliation.
    relevant = (metadata.get("uid"), generation, metadata.get("deletionTimestamp"), repr(status))
    # From the raw JSON: a spec that this version cannot read may name a parent too.
    parent = raw_parent(body)
    return IndexedResource(
        uid=metadata.get("uid") or "",
        resource_version=metadata.get("resourceVersion") or "",
        digest=hash(relevant),
        parent=Key(parent[0], metadata["namespace"], parent[1]) if parent else None,
        phase=phase or "Unknown",
        settled=phase in TERMINAL and status.get("observedGeneration") == generation,
        active=phase == Phase.RUNNING or bool(phase == Phase.QUEUED and status.get("jobUid")),
    )
