"""Liveness and readiness, judged by the work that the operator does, not by the existence of its process.

A watch that has silently died is noticed twice. The sweep lists all resources: a version that one sweep
found and the watch has not reported until the next sweep is one that the watch will never report. And each
watch, those of Jobs and pods too, sends a request every few minutes (:mod:`tlt_operator.traffic`): one that
does not is dead.

An event loop that is stuck needs no check here: the server of the probes runs in it, and does not answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from tlt_operator import metrics
from tlt_operator.snapshot import Key
from tlt_operator.traffic import WatchSigns

SILENT_WATCH_SECONDS = 480.0
"""Time without a request of a watch after which it counts as dead. A living one is opened anew every six
minutes at the latest (``handlers.settings``), and within seconds while the API server does not answer."""
_MISSED_SWEEPS = 3
"""Intervals without the end of a sweep after which the operator counts as stuck."""


class Health:
    """Collection of signs of life, which :meth:`problems` judges.

    Args:
        sweep_seconds: Time between sweeps.
        patience_seconds: Longest time without a success while something fails, and longest wait of a key.
        clock: Clock of monotonic seconds.
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
        # None until sweeps begin: a restart brings neither the CRDs nor the right to list our kinds.
        self._last_sweep: float | None = None
        self._failing_since: float | None = None
        self._failing: set[str] = set()
        self._unreported: dict[Key, float] = {}
        self.watches = WatchSigns(clock)
        """Signs of life of the watches."""
        self.ready = False
        """Set once the kinds are served and the watches start."""
        self.role = "starting"
        """``leader``, ``standby``, or ``starting`` before the kinds are served."""
        self.longest_wait: Callable[[], float] = lambda: 0.0
        self.lease_trouble: Callable[[], str] = lambda: ""

    def reconciled(self) -> None:
        """Record that a reconciliation succeeded."""
        self._failing_since = None
        # One success shows that API server and credentials work: what still fails is the fault of its
        # resource.
        self._failing.clear()

    def failed(self, what: str) -> None:
        """Record that a reconciliation (or a sweep) failed; ``what`` names it."""
        self._failing.add(what)
        if self._failing_since is None:
            self._failing_since = self._clock()

    def sweeps_begin(self) -> None:
        """Record that sweeps begin, which counts as one: the first one ends after an interval."""
        self._last_sweep = self._clock()

    def sweep_ended(self) -> None:
        """Record that a sweep has ended, successfully or not."""
        self._last_sweep = self._clock()

    def sweep_found_unreported(self, keys: Collection[Key]) -> None:
        """Record the resources that a sweep listed in a version that their watch has not reported."""
        metrics.MISSED.inc(len(keys))
        # The time of the first sweep counts; a key that this sweep does not list as unreported is forgotten.
        now = self._clock()
        self._unreported = {key: self._unreported.get(key, now) for key in keys}

    def watch_reported(self, key: Key) -> None:
        """Record that the watch reported a change of a resource."""
        self._unreported.pop(key, None)

    def waiting(self) -> list[str]:
        """Return the reasons for which the operator does not work yet; empty once it does."""
        if not self.ready:
            return ["waits for the CRDs, or for the right to list our kinds"]
        # A standby is ready, so that a rolling update proceeds; one that could never take over is not.
        trouble = self.lease_trouble()
        return [trouble] if trouble else []

    def refused(self) -> list[str]:
        """Return the watches that are not allowed: the operator works, and notices changes late."""
        return [
            f"the watch of {resource} in {namespace or 'the cluster'} is refused: {why}"
            for (resource, namespace), why in self.watches.refusals().items()
        ]

    def problems(self) -> list[str]:
        """Return the reasons for a restart of the operator; empty while it is healthy."""
        now = self._clock()
        problems = []
        since_sweep = 0.0 if self._last_sweep is None else now - self._last_sweep
        if since_sweep > _MISSED_SWEEPS * self._sweep_seconds:
            problems.append(f"no sweep has ended for {since_sweep:.0f} s")
        # One resource that always fails is not cured by a restart; everything that fails may be.
        several_fail = len(self._failing) > 1
        if self._failing_since is not None and several_fail and now - self._failing_since > self._patience:
            problems.append(f"every reconciliation has failed for {now - self._failing_since:.0f} s")
        # Every worker hangs, or there are far too few of them.
        if self.longest_wait() > self._patience:
            problems.append(f"a resource has waited for a worker for {self.longest_wait():.0f} s")
        # Almost one interval: an event that is merely late arrives within seconds.
        overdue = [key for key, since in self._unreported.items() if now - since > self._sweep_seconds * 0.9]
        if overdue:
            problems.append(f"the watch has not reported {len(overdue)} changes, for example of {overdue[0]}")
        # The request is the sign of life, whatever its answer: a restart does not bring the API server back.
        silent = {watch: age for watch, age in self.watches.silences().items() if age > SILENT_WATCH_SECONDS}
        for (resource, namespace), age in silent.items():
            problems.append(
                f"the watch of {resource} in {namespace or 'the cluster'} is dead for {age:.0f} s"
            )
        return problems
