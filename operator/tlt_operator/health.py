"""Whether the operator does its work, not only whether its process exists.

A watch that has silently died is noticed by the sweep: it lists what there is, and a resource whose watch
has not told of the version that an earlier sweep saw is one that the watch will never tell of.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from tlt_operator import metrics
from tlt_operator.observe import Key

_MISSED_SWEEPS = 3


class Health:
    """Collects signs of life; :meth:`problems` judges them.

    Args:
        sweep_seconds: Time between sweeps.
        patience_seconds: How long nothing may succeed while something fails, and how long a key may wait.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        sweep_seconds: float,
        patience_seconds: float = 600,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sweep_seconds = sweep_seconds
        self._patience = patience_seconds
        self._clock = clock
        self._swept = clock()
        self._failing_since: float | None = None
        self._failing: set[str] = set()
        self.ready = False
        """Set once the kinds are served and the watches start."""
        self._behind: dict[Key, float] = {}
        self.longest_wait: Callable[[], float] = lambda: 0.0

    def reconciled(self) -> None:
        """A reconciliation succeeded."""
        self._failing_since = None
        self._failing.clear()

    def failed(self, what: str) -> None:
        """A reconciliation (or a sweep) failed; ``what`` names it."""
        self._failing.add(what)
        if self._failing_since is None:
            self._failing_since = self._clock()

    def swept(self) -> None:
        """A sweep has ended, well or not."""
        self._swept = self._clock()

    def behind(self, keys: Collection[Key]) -> None:
        """A sweep found these resources in a version of which their watch has not told."""
        metrics.MISSED.inc(len(keys))
        now = self._clock()
        self._behind = {key: self._behind.get(key, now) for key in keys}

    def told(self, key: Key) -> None:
        """The watch told of a resource."""
        self._behind.pop(key, None)

    def waiting(self) -> list[str]:
        """Why the operator does not work yet; empty once it does."""
        return [] if self.ready else ["waits for the CRDs, or for the right to list our kinds"]

    def problems(self) -> list[str]:
        """Why the operator should be restarted; empty while it should not."""
        now = self._clock()
        found = []
        if now - self._swept > _MISSED_SWEEPS * self._sweep_seconds:
            found.append(f"no sweep has ended for {now - self._swept:.0f} s")
        alone = len(self._failing) < 2  # one resource that always fails is not cured by a restart
        if self._failing_since is not None and not alone and now - self._failing_since > self._patience:
            found.append(f"every reconciliation has failed for {now - self._failing_since:.0f} s")
        if self.longest_wait() > self._patience:
            found.append(f"a resource has waited for a worker for {self.longest_wait():.0f} s")
        missed = [key for key, since in self._behind.items() if now - since > self._sweep_seconds * 0.9]
        if missed:
            found.append(f"the watch has not told of {len(missed)} changes, for example of {missed[0]}")
        return found
