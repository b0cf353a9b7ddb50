"""Event of a transition, for people. Pure: the same transition has the same name, and is posted once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from tlt_api import times
from tlt_api.base import API_VERSION
from tlt_api.conditions import BLOCKED, STALLED
from tlt_api.status import JobStatus
from tlt_operator.snapshot import Snapshot

_COMPONENT = "tlt-operator"
_COME_AND_GO = (STALLED, BLOCKED)
"""Conditions that may become True and False several times within one attempt."""
_MESSAGE_LIMIT = 1024
"""Longest message that the API server accepts in an Event."""


@dataclass(frozen=True)
class Event:
    """Kubernetes Event to post: written for people, never read back."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def build(snapshot: Snapshot, status: JobStatus, event: Event, now: datetime) -> dict[str, Any]:
    """Return the manifest of an Event that explains how the resource came into a status."""
    # Without the message, whose wording may change between two tries of one transition (times, counts). With
    # what is stored: of two stalls, or evictions by a queue, of one attempt each has its Event, and a crash
    # before the status is written changes nothing of it.
    stored = snapshot.stored_status
    changes = [item.last_transition_time for item in stored.conditions if item.type in _COME_AND_GO]
    identity = [
        snapshot.uid,
        snapshot.generation,
        status.attempt,
        status.phase,
        event.reason,
        len(status.history or ()),
        stored.preemptions,
        *changes,
    ]
    digest = hashlib.sha256(repr([str(part) for part in identity]).encode()).hexdigest()[:16]
    time = times.to_wire(now)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{snapshot.name}.{digest}", "namespace": snapshot.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": snapshot.kind.name,
            "name": snapshot.name,
            "namespace": snapshot.namespace,
            "uid": snapshot.uid,
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:_MESSAGE_LIMIT],
        # Both generations of the Event API: source, count and timestamps for kubectl; the reporting component
        # and action, which events.k8s.io requires.
        "source": {"component": _COMPONENT},
        "reportingComponent": _COMPONENT,
        "reportingInstance": _COMPONENT,
        "action": "Reconcile",
        "count": 1,
        "firstTimestamp": time,
        "lastTimestamp": time,
    }
