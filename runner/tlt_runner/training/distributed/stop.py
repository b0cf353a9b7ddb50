"""When a training must end soon: every worker has to answer alike at the same step.

Called by the train task, one for the loop and one for evaluations, whose calls come at another pace. Asking
each other waits for the device, and TensorFlow keeps 2 KB of each exchange: so the workers ask every few
seconds, counted in calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event

from tlt_runner.training.distributed.workers import Workers

SECONDS_A_QUESTION = 5.0
"""Far less than a pod's grace period."""
MOST_CALLS = 20
"""Between two questions, for a pace that changes: calls that become 20 times as long are heard in 100 s."""


class Stopping:
    """Whether the run must end soon; every worker calls equally often."""

    def __init__(self, stop: Event, workers: Workers, clock: Callable[[], float] = time.monotonic) -> None:
        """Take what is asked.

        Args:
            stop: This worker's signal.
            workers: Those that must agree.
            clock: Seconds.
        """
        self._stop, self._workers, self._clock = stop, workers, clock
        self._calls, self._interval, self._asked = 0, 1, clock()

    def __call__(self) -> bool:
        """The same answer on every worker: no, at the calls at which they do not ask each other."""
        if not self._workers.several:
            return self._stop.is_set()
        self._calls += 1
        if self._calls < self._interval:
            return False
        now = self._clock()
        stops, seconds = self._workers.total([self._stop.is_set(), now - self._asked])
        fitting = SECONDS_A_QUESTION * self._interval * self._workers.share.count / max(float(seconds), 1e-6)
        self._interval = max(1, min(int(fitting), 2 * self._interval, MOST_CALLS))
        self._calls, self._asked = 0, now
        return bool(stops)
