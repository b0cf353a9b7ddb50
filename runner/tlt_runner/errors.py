"""Errors that a task raises: a failure reason and a hint.

RunnerError            a known reason: exit code, hint and retryability come from tlt_api.failures
  NotFoundError        an address that names nothing; a caller who knows what was meant gives a better reason
  InterruptedRunError  the run was asked to stop (tlt_runner.cancel)
anything else          our mistake: reason Internal, or what tlt_runner.exits recognises (memory, disk)

:func:`storage_errors` maps the operating system's errors on files to the first two.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from tlt_api.failures import CLASSES, Reason

FULL = {errno.ENOSPC, errno.EDQUOT}
"""Error numbers of a full file system or an exhausted quota."""
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


class RunnerError(Exception):
    """A failure with a reason of the failure taxonomy.

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


class NotFoundError(RunnerError):
    """An address that names nothing. The message lists what exists instead."""

    def __init__(self, message: str) -> None:
        super().__init__(
            Reason.INVALID_SPEC, message, "Check the uri against what the volume or bucket holds."
        )


class InterruptedRunError(RunnerError):
    """The end of a run that was asked to stop before its work was done."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(Reason.INTERRUPTED, message, hint)


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Map the operating system's errors to the reasons StorageFull, StorageDenied and StorageUnavailable.

    Raises:
        NotFoundError: A file or folder does not exist.
        RunnerError: Any other OSError.
    """
    try:
        yield
    except OSError as error:
        # Apart from the other reasons: a caller turns it into one of its own, for example DatasetNotFound.
        if isinstance(error, FileNotFoundError):
            raise NotFoundError(f"{uri}: {error.strerror}: {error.filename}") from error
        # Whatever is not about room or rights may pass by itself: that reason is retried.
        reason = Reason.STORAGE_UNAVAILABLE
        if error.errno in FULL:
            reason = Reason.STORAGE_FULL
        elif error.errno in _DENIED:
            reason = Reason.STORAGE_DENIED
        raise RunnerError(
            reason, f"{uri}: {error.strerror or error}: {error.filename or ''}".rstrip(": ")
        ) from error
