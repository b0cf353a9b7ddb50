"""Time of day that does not jump: waits are counted in it, and written to statuses for the next operator.

The wall clock of a machine is set by people and by its time service, forwards or backwards by any time. A
wait of minutes (``spec.runPolicy.startTimeoutSeconds``, the delay between two attempts) must not end by that.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from tlt_api.times import utc_now
from tlt_operator import lease

_SLEW = 0.1
"""Part of the time that passes by which the wall clock is approached: waits are wrong by a tenth at most."""


class SteadyClock:
    """Clock that begins with the wall clock and follows it slowly when that is set.

    Args:
        wall: The wall clock.
        monotonic: Clock of seconds that nobody sets.
    """

    def __init__(
        self, wall: Callable[[], datetime] = utc_now, monotonic: Callable[[], float] = lease.clock
    ) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._time, self._read = wall(), monotonic()

    def __call__(self) -> datetime:
        """Return the time."""
        read = self._monotonic()
        passed = timedelta(seconds=read - self._read)
        time, most = self._time + passed, passed * _SLEW
        # Two clocks never run alike: what differs a little is followed at once.
        self._time, self._read = time + min(max(self._wall() - time, -most), most), read
        return self._time
