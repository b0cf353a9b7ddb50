"""What a task raises on purpose: a reason of the failure taxonomy, and what to do about it.

RunnerError            a known reason: exit code, hint and retryability come from tlt_api.failures
  NotFoundError        an address that names nothing: whoever knows what was meant gives a better reason
  InterruptedRunError  the run was asked to stop (tlt_runner.cancel)
anything else          our mistake: reason Internal, or what tlt_runner.exits recognises (memory, disk)

:func:`storage_errors` makes the first two of what the operating system says of files.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from tlt_api.failures import CLASSES, FailureClass, Reason

FULL = {errno.ENOSPC, errno.EDQUOT}
"""What the operating system says where there is no room left."""
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


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


class NotFoundError(RunnerError):
    """An address that names nothing; what is there instead stands in the message."""

    def __init__(self, message: str) -> None:
        super().__init__(
            Reason.INVALID_SPEC, message, "Check the uri against what the volume or bucket holds."
        )


class InterruptedRunError(RunnerError):
    """The run was asked to stop, and ended before its work was done."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(Reason.INTERRUPTED, message, hint)


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn the operating system's errors into the failure taxonomy: full, denied, unavailable."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise NotFoundError(f"{uri}: {error.strerror}: {error.filename}") from error
        reason = Reason.STORAGE_UNAVAILABLE
        if error.errno in FULL:
            reason = Reason.STORAGE_FULL
        elif error.errno in _DENIED:
            reason = Reason.STORAGE_DENIED
        raise RunnerError(
            reason, f"{uri}: {error.strerror or error}: {error.filename or ''}".rstrip(": ")
        ) from error
