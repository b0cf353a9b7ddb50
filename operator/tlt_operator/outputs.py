"""Who writes to which output: of two live resources with one ``spec.output.uri``, the later one waits.

Two runs would replace each other's files. The watches fill this (:mod:`tlt_operator.index`); a resource that
is about to start claims its output in the moment in which that is decided, so that of two that are decided at
once only one starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tlt_api.conditions import OUTPUT_IN_USE, TERMINAL
from tlt_api.status import Phase
from tlt_operator.snapshot import Key

_Place = tuple[str, str, str]
"""Namespace, endpoint and address without a trailing slash: an output."""
_MOST_FORMER = 1000
"""Former writers that are remembered: those of the last minutes, in which their pods may still write."""


@dataclass(frozen=True)
class _Writer:
    """Resource that writes to an output.

    Attributes:
        place: The output.
        uid: The resource's uid.
        order: Rank among those that have not started, the earliest first.
        live: True until the resource has ended.
        started: True if it has had a Job, and does not wait for another writer.
        ready: True if it would start now, were it alone.
    """

    place: _Place
    uid: str
    order: tuple[str, str, str]
    live: bool
    started: bool
    ready: bool


class Outputs:
    """Writers of all outputs."""

    def __init__(self) -> None:
        self._writers: dict[Key, _Writer] = {}
        self._at: dict[_Place, set[Key]] = {}
        self._places: dict[tuple[str, str], set[_Place]] = {}
        self._claims: set[Key] = set()
        self._known: set[Key] = set()
        self._unlisted: set[str | None] = set()
        self._postponed: set[Key] = set()
        self._former: dict[tuple[Key, str], _Place] = {}
        self._former_at: dict[_Place, set[tuple[Key, str]]] = {}

    def expect_list(self, namespace: str | None) -> None:
        """Record that a namespace (None: the cluster) has resources that are not here yet."""
        self._unlisted.add(namespace)

    def listed(self, namespace: str | None) -> set[Key]:
        """Record that all resources of a namespace are here; return those whose start was postponed."""
        self._unlisted.discard(namespace)
        woken = {key for key in self._postponed if not self._is_unlisted(key)}
        self._postponed -= woken
        return woken

    def postpones(self, key: Key) -> bool:
        """Tell whether a start has to wait until all that may write to the same output are here."""
        if self._is_unlisted(key):
            self._postponed.add(key)
        return self._is_unlisted(key)

    def knows(self, key: Key) -> bool:
        """Tell whether a resource is here; of one that is not, it is unknown whom it has to wait for."""
        return key in self._known

    def update(self, key: Key, body: Mapping[str, Any]) -> None:
        """Store a resource that a watch has reported."""
        self._known.add(key)
        previous, current = self._writers.get(key), _writer(key, body)
        # The status shows the start by now, or the end.
        if current is None or current.started or not current.live:
            self._claims.discard(key)
        # One of the same name that was created anew is another one.
        if previous and (current is None or previous.uid != current.uid or previous.live > current.live):
            self._note_former(key, previous)
        if previous and (current is None or previous.place != current.place):
            self._unlink(key, previous.place)
        if current is None:
            self._writers.pop(key, None)
            return
        self._writers[key] = current
        self._at.setdefault(current.place, set()).add(key)
        self._places.setdefault(_address(current.place), set()).add(current.place)

    def remove(self, key: Key) -> None:
        """Forget a deleted resource, but not that its pods may write for a while."""
        previous = self._writers.pop(key, None)
        self._known.discard(key)
        self._postponed.discard(key)
        self._claims.discard(key)
        if previous:
            self._note_former(key, previous)
            self._unlink(key, previous.place)

    def note_former(self, key: Key, uid: str, spec: Any) -> None:
        """Record that pods may still write that a deleted resource had, whose spec was this."""
        place = _place(key.namespace, spec)
        if place:
            self._remember(key, uid, place)

    def former(self, key: Key) -> list[tuple[Key, str]]:
        """Return those, with their uid, that wrote to a resource's output and may have pods that write."""
        mine = self._writers.get(key)
        # Of its own name, the pods are looked at in any case.
        return [former for former in self._former_at.get(mine.place, ()) if former[0] != key] if mine else []

    def former_ended(self, key: Key, uid: str) -> None:
        """Record that nothing of a former writer writes any more."""
        place = self._former.pop((key, uid), None)
        if place is None:
            return
        self._former_at[place].discard((key, uid))
        if not self._former_at[place]:
            del self._former_at[place]

    def claim(self, key: Key) -> None:
        """Record that a resource starts, before its status says so."""
        self._claims.add(key)

    def may_have_begun(self, key: Key) -> bool:
        """Tell whether a resource may have a Job that its status does not name yet."""
        writer = self._writers.get(key)
        return writer is not None and writer.live and not writer.started

    @property
    def claims(self) -> int:
        """Number of resources that have started, and whose status does not say so yet."""
        return len(self._claims)

    def release(self, key: Key) -> None:
        """Record that a resource does not start after all."""
        self._claims.discard(key)

    def sharing(self, key: Key) -> set[Key]:
        """Return the other resources with the same output."""
        writer = self._writers.get(key)
        return self._at[writer.place] - {key} if writer else set()

    def with_address_of(self, key: Key) -> set[Key]:
        """Return the other resources of the namespace with the same address, whatever their endpoint."""
        writer = self._writers.get(key)
        places = self._places.get(_address(writer.place), set()) if writer else set()
        return {other for place in places for other in self._at[place]} - {key}

    def holder(self, key: Key) -> Key | None:
        """Return the resource that a resource has to wait for before it starts; None if there is none.

        That is certain of a resource that is known, once all others are listed.
        """
        mine = self._writers.get(key)
        if mine is None:
            return None
        holders = []
        for other in self.sharing(key):
            writer = self._writers[other]
            if not writer.live:
                continue
            # One that runs holds its output; of those that could start, the earliest goes first. One that
            # waits for a parent or is suspended lets others pass: it may be waiting for this very resource.
            earlier = not mine.started and writer.ready and writer.order < mine.order
            if writer.started or other in self._claims or earlier:
                holders.append((writer.order, other))
        return min(holders)[1] if holders else None

    def _is_unlisted(self, key: Key) -> bool:
        return bool(self._unlisted & {None, key.namespace})

    def _note_former(self, key: Key, writer: _Writer) -> None:
        if writer.live:
            self._remember(key, writer.uid, writer.place)

    def _remember(self, key: Key, uid: str, place: _Place) -> None:
        self.former_ended(key, uid)
        self._former[key, uid] = place
        self._former_at.setdefault(place, set()).add((key, uid))
        # A dict keeps the order: the oldest goes first.
        if len(self._former) > _MOST_FORMER:
            self.former_ended(*next(iter(self._former)))

    def _unlink(self, key: Key, place: _Place) -> None:
        self._at[place].discard(key)
        if self._at[place]:
            return
        del self._at[place]
        places = self._places[_address(place)]
        places.discard(place)
        if not places:
            del self._places[_address(place)]


def _writer(key: Key, body: Mapping[str, Any]) -> _Writer | None:
    """Return a resource as a writer; None if it names no output."""
    spec, status, metadata = body.get("spec") or {}, body.get("status") or {}, body["metadata"]
    place, phase = _place(key.namespace, spec), status.get("phase")
    if place is None:
        return None
    waits = any(
        item.get("type") == "Reconciling" and item.get("reason") == OUTPUT_IN_USE
        for item in status.get("conditions") or ()
    )
    return _Writer(
        place=place,
        uid=metadata.get("uid") or "",
        order=(metadata.get("creationTimestamp") or "", key.name, key.kind),
        live=phase not in TERMINAL,
        # A first attempt whose Job was refused has written nothing, and may never do.
        started=bool(status.get("jobUid") or (status.get("attempt") or 0) > 1) and not waits,
        ready=phase not in (Phase.PENDING, Phase.SUSPENDED) and not spec.get("suspend"),
    )


def _address(place: _Place) -> tuple[str, str]:
    namespace, _, uri = place
    return namespace, uri


def _place(namespace: str, spec: Any) -> _Place | None:
    """Return the output that a spec names; None if it names none."""
    uri, endpoint = _field(spec, "output", "uri"), _field(spec, "storage", "s3", "endpoint")
    if not isinstance(uri, str):
        return None
    return namespace, str(endpoint or "") if uri.startswith("s3:") else "", uri.rstrip("/")


def _field(value: Any, *path: str) -> Any:
    """Return a field of raw JSON, of which any level may be missing, null or of another type; None then."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
