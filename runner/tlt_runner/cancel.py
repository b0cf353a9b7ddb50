"""Cancellation: a run is asked to stop, and ends at the next point where nothing is lost.

:mod:`tlt_runner.process` and the command line make one :class:`Stop` a run and set it on SIGTERM; everything
that takes long receives it, asks :meth:`Stop.requested` and ends by :meth:`Stop.raise_if`.
"""

from __future__ import annotations

from tlt_runner.errors import InterruptedRunError


class Stop:
    """A request to end the run soon, made by any thread or by a signal handler. It is never taken back."""

    def __init__(self) -> None:
        # No threading.Event: its lock would block a signal handler that interrupts another one.
        self._requested = False

    def request(self) -> None:
        """Ask the run to stop."""
        self._requested = True

    def requested(self) -> bool:
        """Return True once the run was asked to stop."""
        return self._requested

    def raise_if(self, when: str, hint: str | None = None, stage: str | None = None) -> None:
        """End the run here if it was asked to stop.

        Args:
            when: Continues the word "stopped" in the message, for example ``"while pruning"``.
            hint: What to do next; by default that of the reason ``Interrupted``.
            stage: Name of the stage, in front of the message.

        Raises:
            InterruptedRunError: The run was asked to stop.
        """
        if self.requested():
            raise InterruptedRunError(f"{stage}: stopped {when}" if stage else f"stopped {when}", hint)
