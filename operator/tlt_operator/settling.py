"""Statuses that wait for a moment, since the next change may make them needless.

A status that ends nothing, and comes without an Event, is for people: the decisions of the next look follow
from Job and pods again, as after the death of an operator. A run that is short, or a start that is quick,
thus costs one status instead of three. The more of them wait, the longer each does: of a thousand resources
at once most have ended before their first status is due.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tlt_operator.snapshot import Key

_SHORTEST_SECONDS = 1.0
"""Wait on a quiet cluster: a start is several changes within a moment."""
_STATUSES_PER_SECOND = 20
"""Waiting statuses that are written in a second; more of them wait longer."""
_LONGEST_SECONDS = 15.0
"""Limit of the wait: people look at the status, and a runner may not report before it names the Job."""


class Settling:
    """Resources whose status waits, and since when.

    Args:
        clock: Clock of monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[Key, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    @property
    def seconds(self) -> float:
        """Wait of a status whose resource has just changed."""
        return min(max(_SHORTEST_SECONDS, len(self._since) / _STATUSES_PER_SECOND), _LONGEST_SECONDS)

    def seconds_left(self, key: Key) -> float:
        """Return the seconds for which the status of a resource still waits; 0 once it is due."""
        # From the first change that is not in the status: one that changes all the time is written, too.
        since = self._since.setdefault(key, self._clock())
        return max(0.0, since + self.seconds - self._clock())

    def forget(self, key: Key) -> None:
        """Note that no status of a resource waits any more."""
        self._since.pop(key, None)
