"""When the next report is due: a pure state machine, without clock and thread, under both reporters."""

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
        """Whether there is something that has not been sent."""
        return self._pending

    def changed(self, *, urgent: bool) -> bool:
        """There is something new; True where that may have moved the time of the next report forward."""
        sooner = not self._pending or (urgent and not self._urgent)
        self._pending = True
        self._urgent |= urgent
        return sooner

    def hurry(self) -> None:
        """The run ends: what is pending is due now, whatever was tried before."""
        self._urgent = True
        self._retry_at = float("-inf")

    def wait(self, now: float) -> float | None:
        """Seconds to wait before sending: 0 is now, None is until something changes."""
        if not self._pending:
            return None
        regular = now if self._urgent else self._last + self._interval
        return max(regular - now, self._retry_at - now, 0.0)

    def sending(self, now: float) -> None:
        """The report as it is now is being sent; what changes from here on is new."""
        self._pending = self._urgent = False
        self._last = now

    def arrived(self) -> None:
        """It arrived."""
        self._failures = 0
        self._retry_at = float("-inf")

    def failed(self, now: float, at_least: float = 0.0) -> float:
        """It did not: it is pending again, after a wait that doubles from one second; returns that wait."""
        self._failures += 1
        wait = max(at_least, min(self._longest, 2.0 ** min(self._failures - 1, 16)))
        self._pending = self._urgent = True
        self._retry_at = now + wait
        return wait
