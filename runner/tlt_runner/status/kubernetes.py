"""The reporter of a pod: a thread that applies the whole report to the resource's status, the last one wins.

Training never waits for it. While the API server is away, reports gather in the accumulator and the thread
tries again; what never arrives still stands in the container's termination message.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from threading import Condition, Thread
from typing import Any

from tlt_api import times
from tlt_api.runspec import PROGRESS_SECONDS
from tlt_runner.status.apiserver import ApiServerError, OwnerGoneError
from tlt_runner.status.reporter import LONGEST_WAIT_S, AccumulatingReporter, Clock, Pacing

REQUEST_TIMEOUT_S = 10.0
_REFUSED_WAIT_S = 30.0
_EARLY_TRIES = 4
"""Refusals of the first report after each of which the wait is that of an outage: 1, 2, 4 and 8 seconds."""

Send = Callable[[Mapping[str, Any], float], None]
"""(status, timeout in seconds): applies it, or raises ApiServerError."""

log = logging.getLogger(__name__)


class KubernetesReporter(AccumulatingReporter):
    """Reports to the API server.

    Args:
        send: Applies a status, for example ``ApiServer.apply_status`` with the owner bound.
        interval: Shortest time between two reports of progress, in seconds; it grows with the run's length.
        now: The time of day.
        monotonic: The clock of the pacing, in seconds.
    """

    def __init__(
        self,
        send: Send,
        interval: float = PROGRESS_SECONDS,
        now: Clock = times.utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(now)
        self._send = send
        self._monotonic = monotonic
        self._pacing = Pacing(interval, began=monotonic())
        # On the accumulator's own lock: taking a report and noting that it is being sent are one step.
        self._wake = Condition(self._lock)
        self._deadline: float | None = None
        self._gone = False
        # HTTP statuses (None: no answer) of the errors that were logged since a report last arrived.
        self._complained: set[int | None] = set()
        self.sent = 0
        self.failed = 0
        # A daemon: a request that hangs must not keep the process alive after the task has ended.
        self._thread = Thread(target=self._run, name="status-reports", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> bool:
        """Send what is pending, within ``timeout`` seconds, and end the thread.

        Returns:
            Whether the last state arrived.
        """
        with self._wake:
            # From here on the thread does not wait for a retry that would come after the deadline.
            self._deadline = self._monotonic() + timeout
            self._pacing.hurry()
            self._wake.notify()
        # A second more: a request in flight ends by its own timeout, at the deadline or half a second later.
        self._thread.join(timeout + 1)
        with self._lock:
            arrived = not self._gone and not self._pacing.pending and not self._thread.is_alive()
        if self.failed or not arrived:
            last = (
                "the last state arrived" if arrived else "the last state is in the termination message only"
            )
            log.warning("status reports: %d arrived, %d failed; %s", self.sent, self.failed, last)
        return arrived

    def _delay_seconds(self) -> float:
        # After an outage the next try may be a minute away, and take as long as a request may.
        return self._pacing.interval(self._monotonic()) + LONGEST_WAIT_S + REQUEST_TIMEOUT_S

    def _changed(self, *, urgent: bool) -> None:
        with self._wake:
            # Most reports of progress change nothing about when the next request is due: the thread sleeps
            # on.
            if self._pacing.changed(urgent=urgent):
                self._wake.notify()

    def _run(self) -> None:
        while (status := self._next()) is not None:
            try:
                self._send(status, self._request_timeout())
            except ApiServerError as error:
                self._did_not_arrive(error)
            except Exception:  # a reporter that dies silently would hide every later result
                log.exception("a status report failed in a way that is our mistake")
                self._did_not_arrive(ApiServerError("our mistake, see above"))
            else:
                self._arrived()

    def _next(self) -> dict[str, Any] | None:
        """Wait until a report is due and take it; None when the thread is to end."""
        with self._wake:
            while not self._gone:
                now = self._monotonic()
                wait = self._pacing.wait(now)
                if wait == 0:
                    # Noted before the request, so that what changes during it is pending again.
                    self._pacing.sending(now)
                    return self._report.to_status()
                # The run ends, and nothing is pending or the next try would come too late.
                if self._deadline is not None and (wait is None or now + wait >= self._deadline):
                    return None
                self._wake.wait(wait)
            return None

    def _request_timeout(self) -> float:
        with self._lock:
            left = REQUEST_TIMEOUT_S if self._deadline is None else self._deadline - self._monotonic()
            # A last request gets half a second even at the deadline: it is the one with the final state.
            return min(REQUEST_TIMEOUT_S, max(left, 0.5))

    def _arrived(self) -> None:
        with self._lock:
            self.sent += 1
            self._pacing.arrived()
            if self._complained:
                log.info("status reports arrive again")
                self._complained.clear()

    def _did_not_arrive(self, error: ApiServerError) -> None:
        with self._lock:
            self.failed += 1
            self._gone = isinstance(error, OwnerGoneError)
            wait = self._pacing.failed(self._monotonic(), self._shortest_wait(error))
            # One line a kind of error: an outage of hours would otherwise fill the log.
            if error.status in self._complained:
                return
            self._complained.add(error.status)
        consequence = "no further reports" if self._gone else f"trying again in {wait:.0f} s"
        log.warning(
            "status report not taken: %s; training goes on, %s%s", error, consequence, _advice(error.status)
        )

    def _shortest_wait(self, error: ApiServerError) -> float:
        """Return the shortest wait, in seconds, after an error.

        A refused report is likely to be refused again: it is sent rarely, in case somebody repairs the cause.
        The first one may come before the status names the Job, which is a matter of seconds.
        """
        is_early = error.status == 422 and not self.sent and self.failed <= _EARLY_TRIES
        refused = error.status in (400, 403, 404, 422) and not is_early
        return max(error.retry_after, _REFUSED_WAIT_S if refused else 0.0)


def _advice(status: int | None) -> str:
    if status == 403:
        return " (the namespace needs the ServiceAccount tlt-runner and its RoleBinding: manifests/namespace)"
    if status == 422:
        return " (the runner's policy or the CRD's schema refuses it: are CRDs and runner of one version?)"
    return ""
