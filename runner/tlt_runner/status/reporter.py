"""The RunReport of a run in progress, shared by both reporters: statuses are alike with and without cluster.

A task calls the methods of :class:`tlt_runner.context.Reporter` from any thread; a subclass decides when
and where the whole report goes.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime
from threading import RLock

from tlt_api import times
from tlt_api.runreport import RunReport
from tlt_api.status import Artifact, Progress, Section
from tlt_runner.status import lines

Clock = Callable[[], datetime]
log = logging.getLogger("tlt.status")


class AccumulatingReporter(ABC):
    """Merges what a task reports into one RunReport. Thread-safe."""

    def __init__(self, now: Clock = times.utc_now) -> None:
        self._now = now
        self._lock = RLock()
        self._report = RunReport()
        self._lines = lines.ProgressLines(self._say)

    def progress(self, progress: Progress) -> None:
        """Set the progress; ``lastUpdateTime`` is set here."""
        now = self._now()
        stamped = progress.model_copy(update={"last_update_time": times.to_wire(now)})
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
    def _changed(self, *, urgent: bool) -> None:
        """Note that the report changed. Returns at once: training does not wait for a report."""

    def _update(self, section: Section | Progress | Artifact, *, urgent: bool = True) -> None:
        with self._lock:
            self._report = self._report.with_section(section)
        self._changed(urgent=urgent)

    def _say(self, text: str) -> None:
        log.info("%s", text)
