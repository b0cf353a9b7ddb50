"""Agreement of all workers on when a training stops: every worker has to stop before the same step.

Called by the train task, once for the loop and once for evaluations, whose calls come at another pace.
Asking all workers waits for the device, and TensorFlow keeps 2 KB of each collective. So the workers
synchronise every few seconds, counted in calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tlt_runner.cancel import Stop

if TYPE_CHECKING:
    from tlt_runner.training.distributed.workers import Workers

SYNCHRONISATION_SECONDS = 5.0
"""Time between two synchronisations: far less than a pod's grace period."""
MAX_CALLS = 20
"""Calls between two synchronisations at most. Calls that become 20 times as long still stop within 100 s."""


class StopAgreement(Stop):
    """A stop request of any worker, as seen by all workers at the same call. All must call equally often.

    Args:
        stop: This worker's stop request.
        workers: All workers.
        clock: Monotonic seconds.
    """

    def __init__(self, stop: Stop, workers: Workers, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._stop, self._workers, self._clock = stop, workers, clock
        self._calls, self._interval, self._synchronised = 0, 1, clock()

    def requested(self) -> bool:
        """Return the same value on all workers; False between synchronisations."""
        # Nobody to agree with: no delay either.
        if not self._workers.several:
            return self._stop.requested()
        self._calls += 1
        # The interval is the same on all workers, and so is the call at which all synchronise.
        if self._calls < self._interval:
            return False
        now = self._clock()
        # Sums over all workers, so that all of them choose the same next interval.
        requests, seconds = self._workers.total([self._stop.requested(), now - self._synchronised])
        mean_seconds = max(float(seconds), 1e-6) / self._workers.worker_slice.count
        # The number of calls that take SYNCHRONISATION_SECONDS at the pace of the last interval.
        fitting = int(SYNCHRONISATION_SECONDS * self._interval / mean_seconds)
        # At most doubled: a few fast calls after a pause say little about the next ones.
        self._interval = max(1, min(fitting, 2 * self._interval, MAX_CALLS))
        self._calls, self._synchronised = 0, now
        return bool(requests)
