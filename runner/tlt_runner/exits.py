"""Translation of exceptions and of dead processes to the failure taxonomy: reason, message and exit code.

Called by :mod:`tlt_runner.process` at the end of a run, by :mod:`tlt_runner.local`, which watches such a
process from outside, and by the log file of a training, which says the same. TensorFlow and OpenCV are
recognised by class name, so that neither is imported here.
"""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from collections.abc import Iterator

from tlt_api import failures
from tlt_api.failures import CLASSES, Reason, by_exit_code
from tlt_api.status import Failure
from tlt_runner.errors import FULL, RunnerError

INTERNAL_EXIT = CLASSES[Reason.INTERNAL].exit_code or 70
_MEMORY_CLASSES = {"ResourceExhaustedError", "OutOfMemoryError"}
_MEMORY_TEXTS = (
    "RESOURCE_EXHAUSTED",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUDNN_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
    "Insufficient memory",
    "Status: 1, message: could not create",  # oneDNN: its first status is out of memory
)
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded")


def reason_of(error: BaseException) -> Reason:
    """Return the taxonomy's reason for an exception, or for the one it was raised from."""
    # The nearest exception with a known reason decides: ours are raised from the library's.
    reasons = (_own_reason(link) for link in _chain(error))
    return next((reason for reason in reasons if reason is not None), Reason.INTERNAL)


def _chain(error: BaseException) -> Iterator[BaseException]:
    # Only what was raised with `from`: an exception that was merely being handled need not be the cause.
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _own_reason(error: BaseException) -> Reason | None:
    if isinstance(error, RunnerError):
        return error.reason
    if isinstance(error, KeyboardInterrupt):
        return Reason.INTERRUPTED
    if isinstance(error, MemoryError):
        return Reason.OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno is not None:
        return _of_errno(error.errno)
    return _of_native(error)


def _of_errno(number: int) -> Reason | None:
    if number in FULL:
        return Reason.STORAGE_FULL
    return Reason.OUT_OF_MEMORY if number == errno.ENOMEM else None


def _of_native(error: BaseException) -> Reason | None:
    """Return the reason of a native library's error, if it is about memory or a full disk."""
    text = str(error)
    # Before the class names: TensorFlow raises ResourceExhaustedError for a full disk, too.
    if any(sign in text for sign in _FULL_TEXTS):
        return Reason.STORAGE_FULL
    # By name, because importing TensorFlow to compare classes would take seconds; OpenCV's errors have texts
    # only.
    names = {ancestor.__name__ for ancestor in type(error).__mro__}
    if names & _MEMORY_CLASSES or any(sign in text for sign in _MEMORY_TEXTS):
        return Reason.OUT_OF_MEMORY
    return None


def failure_of(error: BaseException) -> Failure:
    """Return the failure of an exception, as it is written into the termination message."""
    # A RunnerError anywhere in the chain has the message that was written for people.
    raised = next((link for link in _chain(error) if isinstance(link, RunnerError)), None)
    message = raised.message if raised else _sentence(error)
    return failure(reason_of(error), message, raised.hint if raised else None)


def failure(reason: Reason, message: str, hint: str | None = None) -> Failure:
    """Return a failure of this process, with the exit code of its reason."""
    return failures.failure(reason, message, hint, exit_code=CLASSES[reason].exit_code)


def _sentence(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def exit_code(reported: Failure, otherwise: int) -> int:
    """Return the exit code of a failure; ``otherwise`` for reasons that only an operator sees."""
    return reported.exit_code if reported.exit_code is not None else otherwise


def explain(program: str, error: BaseException, bug_hint: str | None = None) -> Failure:
    """Print on standard error why a program failed, and return that failure.

    The user reads one paragraph; the stack trace is there only if the mistake is ours.

    Args:
        program: The command, in front of the paragraph.
        error: Its exception.
        bug_hint: What to do about a mistake of ours; by default the hint of the reason ``Internal``.
    """
    failure = failure_of(error)
    if failure.reason == Reason.INTERNAL:
        traceback.print_exception(error, file=sys.stderr)
        failure = failure.model_copy(update={"hint": bug_hint or failure.hint})
    print(paragraph(program, failure), file=sys.stderr, flush=True)
    return failure


def paragraph(program: str, reported: Failure) -> str:
    """Return a failure as text: reason, message, hint."""
    return f"{program}: {reported.reason}: {reported.message}\n  {reported.hint}"


def failure_of_exit(returncode: int, *, stopped: bool = False) -> Failure:
    """Return the failure of a process that left no termination message.

    Args:
        returncode: As of :class:`subprocess.Popen`: an exit code, or minus the number of a signal.
        stopped: True if it was asked to stop; a signal that ended it is then ours.
    """
    # We asked it to stop, and killed it when it did not: whichever signal ended it was ours.
    if stopped and returncode < 0:
        return failure(Reason.INTERRUPTED, "the run was ended before it could write a checkpoint")
    # Nothing of ours sends SIGKILL to a run that was not asked to stop: that leaves the kernel's OOM killer.
    if returncode == -signal.SIGKILL:
        return failure(
            Reason.OUT_OF_MEMORY,
            "the run was ended by SIGKILL, most likely by the kernel for want of memory",
        )
    if returncode in (-signal.SIGTERM, -signal.SIGINT):
        name = signal.Signals(-returncode).name
        return failure(Reason.INTERRUPTED, f"the run was ended by {name} before it could write a checkpoint")
    # SIGSEGV and the like: a crash of native code.
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return failure(Reason.INTERNAL, f"the run crashed: it was ended by {name}")
    # A code of the taxonomy, from a process that died before it wrote its message; any other is Internal.
    failure_class = by_exit_code(returncode)
    return failure(failure_class.reason, f"the run ended with exit code {returncode} and left no message")
