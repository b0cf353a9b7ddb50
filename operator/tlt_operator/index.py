"""What the watches have told so far: whom to wake when something changes, and what a sweep compares with.

Small on purpose: a few words per resource, never the resource. Decisions read live, not from here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tlt_api.resources import KINDS
from tlt_operator.conditions import TERMINAL
from tlt_operator.observe import Key

_RUNNER_WRITES = (
    "progress",
    "dataset",
    "anchors",
    "metrics",
    "pruning",
    "exports",
    "artifacts",
    "lowestMAP",
    "largestDrop",
    "reportedFor",
)


@dataclass(frozen=True)
class Entry:
    """A resource as last told by its watch.

    Attributes:
        uid: uid.
        version: resourceVersion.
        digest: Digest of all but what the runner writes: progress alone needs no reconciliation.
        parent: The resource that it refers to.
        phase: Its phase, or Unknown.
        settled: Whether it has ended and that status speaks of the current spec.
    """

    uid: str
    version: str
    digest: int
    parent: Key | None
    phase: str
    settled: bool


class Index:
    """All resources that the watches have told of."""

    def __init__(self) -> None:
        self._entries: dict[Key, Entry] = {}
        self._dependants: dict[Key, set[Key]] = {}
        self._expected: dict[Key, str] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def expect(self, key: Key, version: str) -> None:
        """The operator itself made this resourceVersion: hearing of it needs no look at the resource."""
        self._expected[key] = version

    def update(self, body: Mapping[str, Any]) -> set[Key]:
        """Take in a resource; the keys that this concerns: itself and those that refer to it."""
        key = key_of(body)
        before, after = self._entries.get(key), _entry(body)
        self._link(key, before.parent if before else None, after.parent)
        self._entries[key] = after
        if before and before.digest == after.digest:
            return set()
        woken = set() if self._expected.pop(key, None) == after.version else {key}
        if before is None or before.phase != after.phase:
            woken |= self._dependants.get(key, set())
        return woken

    def remove(self, key: Key, uid: str) -> set[Key]:
        """Forget a deleted resource; the keys that refer to it. A namesake made since stays."""
        if key in self._entries and self._entries[key].uid != uid:
            return set()
        before = self._entries.pop(key, None)
        self._expected.pop(key, None)
        self._link(key, before.parent if before else None, None)
        return set(self._dependants.get(key, set()))

    def unsettled(self) -> set[Key]:
        """Resources that have not ended."""
        return {key for key, entry in self._entries.items() if not entry.settled}

    def uids(self) -> dict[Key, str]:
        """All resources, with their uids."""
        return {key: entry.uid for key, entry in self._entries.items()}

    def version(self, key: Key) -> str | None:
        """The resourceVersion last told; None for an unknown resource."""
        entry = self._entries.get(key)
        return entry.version if entry else None

    def counts(self) -> Counter[tuple[str, str]]:
        """Resources by kind and phase."""
        return Counter((key.kind, entry.phase) for key, entry in self._entries.items())

    def _link(self, key: Key, before: Key | None, after: Key | None) -> None:
        if before == after:
            return
        if before:
            self._dependants[before].discard(key)
            if not self._dependants[before]:
                del self._dependants[before]
        if after:
            self._dependants.setdefault(after, set()).add(key)


def key_of(body: Mapping[str, Any]) -> Key:
    """Which resource a body is."""
    metadata = body["metadata"]
    return Key(body["kind"], metadata["namespace"], metadata["name"])


def _entry(body: Mapping[str, Any]) -> Entry:
    metadata, status = body["metadata"], dict(body.get("status") or {})
    for name in _RUNNER_WRITES:
        status.pop(name, None)
    generation = metadata.get("generation")
    phase = status.get("phase")
    told = (metadata.get("uid"), generation, metadata.get("deletionTimestamp"), repr(status))
    return Entry(
        uid=metadata.get("uid") or "",
        version=metadata.get("resourceVersion") or "",
        digest=hash(told),
        parent=_parent(body),
        phase=phase or "Unknown",
        settled=phase in TERMINAL and status.get("observedGeneration") == generation,
    )


def _parent(body: Mapping[str, Any]) -> Key | None:
    """The resource referred to, read from the raw spec, which need not be valid."""
    spec = body.get("spec") or {}
    source = spec.get("model") or {}
    if body["kind"] == "TrainingJob":
        source = source.get("from") or {}
    for field, kind in (("trainingJobRef", "TrainingJob"), ("pruneJobRef", "PruneJob")):
        name = (source.get(field) or {}).get("name")
        if name and kind in KINDS:
            return Key(kind, body["metadata"]["namespace"], name)
    return None
