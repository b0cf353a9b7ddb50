"""The RunReport of a run in progress, shared by both reporters: statuses are alike with and without cluster.

A task calls the methods of :class:`tlt_runner.context.Reporter` from any thread; a subclass decides when
and where the whole report goes, at the times that :class:`Pacing` gives.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime
from threading import RLock

from tlt_api import times
from tlt_api.runreport import RunReport
from tlt_api.status import Artifact, Progress, Section
from tlt_runner.status import lines

Clock = Callable[[], datetime]
LONGEST_INTERVAL_S = 60.0
"""Longest time between two reports of progress, unless a longer one is asked for."""
INTERVALS_OF_A_RUN = 120
"""Progress is reported after each 120th of the time since the start of the run."""
LONGEST_WAIT_S = 60.0
"""Longest wait before a report that failed is sent again."""
log = logging.getLogger("tlt.status")


class AccumulatingReporter(ABC):
    """Merges what a task reports into one RunReport. Thread-safe."""

    def __init__(self, now: Clock = times.utc_now) -> None:
        self._now = now
        # Reentrant: a subclass may write the report while it notes the change.
        self._lock = RLock()
        self._report = RunReport()
        self._lines = lines.ProgressLines(self._say)

    def progress(self, progress: Progress) -> None:
        """Set the progress; ``lastUpdateTime`` is set here."""
        now = self._now()
        # Stamped here, so that all progress has the clock of one process. Here alone: a step that hangs makes
        # no progress, and whatever else is reported meanwhile, by whichever thread, leaves the time as it is.
        due, late = progress.next_within_seconds, self._delay_seconds()
        stamped = progress.model_copy(
            update={
                "last_update_time": times.to_wire(now),
                # The task promises when it goes on; until that is seen, the report may take its time.
                "next_within_seconds": None if due is None else due + math.ceil(late),
            }
        )
        self._update(stamped, urgent=False)
        self._lines.progress(stamped, now)

    def report(self, section: Section) -> None:
        """Set a section of the status, in the field of its type; of exports, the one of this precision."""
        self._update(section)
        self._say(lines.line(section))

    def artifact(self, artifact: Artifact) -> None:
        """List a whole file; an artifact of the same name is replaced, in its position."""
        self._update(artifact)
        self._say(lines.line(artifact))

    def removed(self, name: str) -> None:
        """Remove an artifact from the list."""
        with self._lock:
            self._report = self._report.without_artifact(name)
        self._changed(urgent=True)
        self._say(f"artifact {name}: removed")

    def snapshot(self) -> RunReport:
        """Return the report as it is now."""
        # Without the lock: a second signal asks for it while any thread may hold the lock, and must not wait.
        # The report is immutable, and assigning it is atomic.
        return self._report

    @abstractmethod
    def close(self, timeout: float) -> bool:
        """Write or send what is pending, within ``timeout`` seconds. Returns False if that failed."""

    @abstractmethod
    def _delay_seconds(self) -> float:
        """Return the longest time from a progress to its report, as long as the reader can be reached."""

    @abstractmethod
    def _changed(self, *, urgent: bool) -> None:
        """Note that the report changed. Returns at once: training does not wait for a report."""

    def _update(self, section: Section | Progress | Artifact, *, urgent: bool = True) -> None:
        with self._lock:
            # The report is immutable: a snapshot taken before keeps its values.
            self._report = self._report.with_section(section)
        self._changed(urgent=urgent)

    def _say(self, text: str) -> None:
        log.info("%s", text)


def interval_after(elapsed: float, least: float) -> float:
    """Return the seconds between two reports of progress, ``elapsed`` seconds after the start of the run.

    A 120th of the time since the start, but at most a minute and never less than ``least``: with 5 seconds, a
    run of a minute has 12 reports, one of an hour about 330 (instead of 720), and from the third hour on
    there are 60 an hour.
    """
    return max(least, min(elapsed / INTERVALS_OF_A_RUN, LONGEST_INTERVAL_S))


class Pacing:
    """Progress at most every ``interval`` seconds, results at once, retries with a growing wait.

    Times are seconds of any monotonic clock and come in as parameters.

    Args:
        interval: Shortest time between two reports of progress, in seconds.
        longest_wait: Longest wait before a report that failed is sent again, in seconds.
        began: Start of the run, whose length makes the interval grow (:func:`interval_after`); None keeps it.
    """

    def __init__(
        self, interval: float, longest_wait: float = LONGEST_WAIT_S, began: float | None = None
    ) -> None:
        self._interval = interval
        self._longest = longest_wait
        self._began = began
        self._pending = False
        self._urgent = False
        self._last = float("-inf")
        self._retry_at = float("-inf")
        self._failures = 0

    @property
    def pending(self) -> bool:
        """True if something has changed since the last report was sent."""
        return self._pending

    def changed(self, *, urgent: bool) -> bool:
        """Note a change. Returns True if the next report may now be due earlier."""
        # A further change of a pending report moves nothing, unless it makes it urgent.
        sooner = not self._pending or (urgent and not self._urgent)
        self._pending = True
        self._urgent |= urgent
        return sooner

    def interval(self, now: float) -> float:
        """Return the time between a report of progress that is sent now and the next one, in seconds."""
        # `-inf` before the first report: it waits for nothing.
        if self._began is None or now < self._began:
            return self._interval
        return interval_after(now - self._began, self._interval)

    def hurry(self) -> None:
        """Make what is pending due now, without waiting out a failure: the run ends."""
        self._urgent = True
        self._retry_at = float("-inf")

    def wait(self, now: float) -> float | None:
        """Return the seconds until the next report is due: 0 for now, None until something changes."""
        if not self._pending:
            return None
        # A failed report waits for its retry, urgent or not: the later of both times counts.
        regular = now if self._urgent else self._last + self.interval(self._last)
        return max(regular - now, self._retry_at - now, 0.0)

    def sending(self, now: float) -> None:
        """Note that the report as it is now is being sent; later changes belong to the next one."""
        self._pending = self._urgent = False
        self._last = now

    def arrived(self) -> None:
        """Note that the report arrived: the next failure waits a second again."""
        self._failures = 0
        self._retry_at = float("-inf")

    def failed(self, now: float, at_least: float = 0.0) -> float:
        """Note that the report failed, and make it pending again.

        Returns:
            The wait before the next try, in seconds; it doubles with each failure, from one second.
        """
        self._failures += 1
        # The exponent is bounded: a float overflows at 2.0 ** 1024, which an outage of a day can reach.
        wait = max(at_least, min(self._longest, 2.0 ** min(self._failures - 1, 16)))
        # Urgent: the wait alone decides when it is sent again, not the interval between reports.
        self._pending = self._urgent = True
        self._retry_at = now + wait
        return wait
