"""Cancellation: a run is asked to stop, and ends at the next point where nothing is lost.

:mod:`tlt_runner.process` and the command line make one :class:`Stop` a run and set it on SIGTERM; everything
that takes long receives it, asks :meth:`Stop.requested` and ends by :meth:`Stop.raise_if`.
"""

from __future__ import annotations

from threading import Event

from tlt_runner.errors import InterruptedRunError


class Stop(Event):
    """A request to end the run soon. It is made once and never taken back."""

    def request(self) -> None:
        """Ask the run to stop."""
        self.set()

    def requested(self) -> bool:
        """Return True once the run was asked to stop."""
        return self.is_set()

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
