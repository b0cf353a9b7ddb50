"""Detection of another operator that writes the same statuses: each undoes what the other one has written.

Replicas agree by the Lease (:mod:`tlt_operator.lease`). An operator of a release without one, or one of
another namespace that serves the same resources, does not: both see the other's write at once and write
again, as fast as the API server lets them. An operator writes a status only where it differs from the stored
one; writing the very same one twice in a row means that somebody else has changed it in between. From the
second time on the resource is left alone for a time that grows, so that the quarrel costs next to nothing and
is in the log. The newer version does not win: a rollback must work as an upgrade does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tlt_operator.snapshot import Key
from tlt_operator.workqueue import Backoff

_TOLERATED = 1
"""Rewrites without a delay: somebody's change by hand is taken back at once."""


class Rewrites:
    """The last status that was written of each resource, and how often in a row it was."""

    def __init__(self, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff(base=1.0, limit=120.0)
        self._last: dict[Key, tuple[int, int]] = {}

    def written(self, key: Key, fields: Mapping[str, Any]) -> float:
        """Note a status that was written; return the seconds for which its resource is best left alone."""
        # Without times: a condition that somebody else has changed gets a new one when it is changed back.
        digest = hash(json.dumps(_without_times(fields), sort_keys=True))
        previous, count = self._last.get(key, (0, 0))
        count = count + 1 if digest == previous else 0
        self._last[key] = (digest, count)
        return self._backoff.delay(count - _TOLERATED) if count > _TOLERATED else 0.0

    def forget(self, key: Key) -> None:
        """Forget a deleted resource."""
        self._last.pop(key, None)


def _without_times(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {
            name: _without_times(value)
            for name, value in node.items()
            if name != "time" and not name.endswith("Time")
        }
    return [_without_times(item) for item in node] if isinstance(node, list) else node
