"""Times of the reports: a pure state machine, without clock and thread, that both reporters use."""

from __future__ import annotations


class Pacing:
    """Progress at most every ``interval`` seconds, results at once, retries with a growing wait.

    Times are seconds of any monotonic clock and come in as parameters.
    """

    def __init__(self, interval: float, longest_wait: float = 60.0) -> None:
        self._interval = interval
        self._longest = longest_wait
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
        sooner = not self._pending or (urgent and not self._urgent)
        self._pending = True
        self._urgent |= urgent
        return sooner

    def hurry(self) -> None:
        """Make what is pending due now, without waiting out a failure: the run ends."""
        self._urgent = True
        self._retry_at = float("-inf")

    def wait(self, now: float) -> float | None:
        """Return the seconds until the next report is due: 0 for now, None until something changes."""
        if not self._pending:
            return None
        regular = now if self._urgent else self._last + self._interval
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
