"""The one error that a task raises on purpose: a reason of the failure taxonomy, and what to do about it.

RunnerError          a known reason: exit code, hint and retryability come from tlt_api.failures
anything else        our mistake: reason Internal, or what tlt_runner.exits recognises (memory, disk)
"""

from __future__ import annotations

from tlt_api.failures import CLASSES, FailureClass, Reason


class RunnerError(Exception):
    """A failure with a reason.

    Attributes:
        reason: Entry of the failure taxonomy.
        message: Expected, got; with file, line and field at fault.
        hint: What to do; the taxonomy's own hint unless a better one is known here.
    """

    def __init__(self, reason: Reason, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.hint = hint or CLASSES[reason].hint

    @property
    def failure_class(self) -> FailureClass:
        """What the taxonomy says of the reason."""
        return CLASSES[self.reason]
