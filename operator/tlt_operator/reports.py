"""Silence of runs: for how long the progress of each has not changed, on the operator's own clock.

Times of two machines are never compared: the clock of a node or of the operator may jump. Beyond what a run
has promised, silence counts only while the operator looks and the API server answers: after an outage, or a
time in which the operator stood by or was frozen, a run gets the time for its report before it is blamed.
After a restart of the operator the count begins anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from tlt_operator.snapshot import Key

_GAP_SECONDS = 60.0
"""Time between two looks at a late run beyond which what happened between them is not known."""


@dataclass
class _Count:
    report: str
    since: float
    looked: float


class Reports:
    """The last report of each run, and since when it has been the last one.

    Args:
        clock: Clock of monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._counts: dict[Key, _Count] = {}
        # Of runs that have not reported: their status may have the last report of an earlier attempt.
        self._starts: dict[Key, _Count] = {}

    def heard(self, key: Key, report: str | None) -> None:
        """Note the ``lastUpdateTime`` of a resource; None if nothing was reported."""
        if report is None:
            self._counts.pop(key, None)
        else:
            self._count(self._counts, key, report)

    def silence(self, key: Key, report: str, promised: float, *, is_start: bool = False) -> float:
        """Return the seconds for which nothing new was heard from a run that promised its next report.

        Args:
            key: Resource of the run.
            report: Its last report, or its start.
            promised: Time within which the next one was promised, in seconds.
            is_start: True for a run that has not reported since its start.
        """
        now = self.clock()
        count = self._count(self._starts if is_start else self._counts, key, report)
        if now - count.since > promised and now - count.looked > _GAP_SECONDS:
            count.since = now - promised
        count.looked = now
        return now - count.since

    def interrupted(self, key: Key) -> None:
        """Note that the API server did not answer, or refused to: perhaps the run is not heard either."""
        for counts in (self._counts, self._starts):
            if key in counts:
                counts[key].looked = -math.inf

    def forget(self, key: Key) -> None:
        """Forget a resource that was deleted."""
        self._counts.pop(key, None)
        self._starts.pop(key, None)

    def _count(self, counts: dict[Key, _Count], key: Key, report: str) -> _Count:
        """Return the count of a report, which begins now if it is a new one."""
        count = counts.get(key)
        if count is None or count.report != report:
            count = counts[key] = _Count(report, self.clock(), -math.inf)
        return count
