"""The reporter without a cluster: the whole report in one JSON file, replaced atomically.

``tlt run`` gives each of its runs such a file and reads it while the run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tlt_api import times
from tlt_runner import files
from tlt_runner.status.reporter import AccumulatingReporter, Clock, Pacing

INTERVAL_S = 1.0


class LocalReporter(AccumulatingReporter):
    """Reports to a file: results at once, progress at most every second.

    Args:
        file: The JSON file, or None for lines on the log only.
        now: The time of day.
        monotonic: The clock of the pacing, in seconds.
    """

    def __init__(
        self, file: Path | None, now: Clock = times.utc_now, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(now)
        self._file = file
        self._monotonic = monotonic
        self._pacing = Pacing(INTERVAL_S)

    def close(self, timeout: float) -> bool:
        """Write the report if it has changed since it was last written."""
        # Writing takes the lock: two threads must not replace the file in the wrong order.
        with self._lock:
            if self._pacing.pending:
                self._write()
        return True

    def _delay_seconds(self) -> float:
        return INTERVAL_S

    def _changed(self, *, urgent: bool) -> None:
        with self._lock:
            self._pacing.changed(urgent=urgent)
            if self._pacing.wait(self._monotonic()) == 0:
                self._write()

    def _write(self) -> None:
        self._pacing.sending(self._monotonic())
        if self._file is not None:
            files.write(self._file, self._report.model_dump_json(by_alias=True, exclude_none=True))
        self._pacing.arrived()
