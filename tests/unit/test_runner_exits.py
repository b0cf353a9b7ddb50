"""Why a run ended: exceptions and dead processes against the failure taxonomy."""

import errno
import signal

import pytest

from tlt_api.failures import CLASSES, Reason
from tlt_runner import exits
from tlt_runner.errors import RunnerError


class ResourceExhaustedError(Exception):
    """Stands where TensorFlow's class of that name does: it is recognised by name, never imported."""


class UnknownError(Exception):
    """As TensorFlow's."""


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (RunnerError(Reason.NO_LABELS, "no labels"), Reason.NO_LABELS, 21),
        (RunnerError(Reason.INTERRUPTED, "stopped"), Reason.INTERRUPTED, 75),
        (MemoryError(), Reason.OUT_OF_MEMORY, 12),
        (ResourceExhaustedError("OOM when allocating tensor"), Reason.OUT_OF_MEMORY, 12),
        (ResourceExhaustedError("model.keras; No space left on device"), Reason.STORAGE_FULL, 42),
        (UnknownError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"), Reason.OUT_OF_MEMORY, 12),
        (RuntimeError("std::bad_alloc"), Reason.OUT_OF_MEMORY, 12),
        (
            UnknownError("Operation received an exception:Status: 1, message: could not create a primitive"),
            Reason.OUT_OF_MEMORY,
            12,
        ),
        (OSError(errno.ENOSPC, "No space left on device"), Reason.STORAGE_FULL, 42),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Reason.STORAGE_FULL, 42),
        (OSError("Can't write data (No space left on device)"), Reason.STORAGE_FULL, 42),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Reason.OUT_OF_MEMORY, 12),
        (KeyboardInterrupt(), Reason.INTERRUPTED, 75),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), Reason.INTERNAL, 70),
        (SystemExit(3), Reason.INTERNAL, 70),
        (KeyError("x"), Reason.INTERNAL, 70),
    ],
)
def test_each_exception_has_its_reason_and_exit_code(error: BaseException, reason: Reason, code: int) -> None:
    failure = exits.failure_of(error)
    assert (failure.reason, failure.exit_code) == (reason, code)
    assert failure.retryable == CLASSES[reason].retryable
    assert failure.hint


def test_the_cause_of_an_exception_decides_the_reason() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as cause:
            raise RuntimeError("could not save") from cause
    except RuntimeError as error:
        assert exits.reason_of(error) == Reason.STORAGE_FULL


def test_a_better_hint_of_the_task_is_kept() -> None:
    failure = exits.failure_of(RunnerError(Reason.NAN_LOSS, "loss is NaN at step 3", "Try 1e-4."))
    assert (failure.message, failure.hint) == ("loss is NaN at step 3", "Try 1e-4.")


@pytest.mark.parametrize(
    ("returncode", "reason"),
    [
        (-signal.SIGKILL, Reason.OUT_OF_MEMORY),
        (-signal.SIGTERM, Reason.INTERRUPTED),
        (-signal.SIGINT, Reason.INTERRUPTED),
        (-signal.SIGSEGV, Reason.INTERNAL),
        (13, Reason.NAN_LOSS),
        (1, Reason.INTERNAL),
    ],
)
def test_a_process_that_left_no_message_has_a_reason(returncode: int, reason: Reason) -> None:
    assert exits.failure_of_exit(returncode).reason == reason


def test_a_kill_after_a_stop_request_is_an_interruption() -> None:
    assert exits.failure_of_exit(-signal.SIGKILL, stopped=True).reason == Reason.INTERRUPTED


def test_every_exit_code_of_the_taxonomy_comes_back_as_its_reason() -> None:
    for reason, failure_class in CLASSES.items():
        if failure_class.exit_code is not None:
            assert exits.failure_of_exit(failure_class.exit_code).reason == reason


def test_a_reason_without_exit_code_takes_the_default_code() -> None:
    failure = exits.failure(Reason.DEPENDENCY_CYCLE, "a -> a")
    assert exits.exit_code(failure, otherwise=70) == 70


def test_a_mistake_of_the_user_is_explained_without_a_stack_trace(capsys: pytest.CaptureFixture[str]) -> None:
    failure = exits.explain("tlt run", RunnerError(Reason.INVALID_SPEC, "expected a, got b", "Write a."))
    assert capsys.readouterr().err == "tlt run: InvalidSpec: expected a, got b\n  Write a.\n"
    assert failure.exit_code == CLASSES[Reason.INVALID_SPEC].exit_code


def test_a_bug_is_explained_with_its_stack_trace_and_the_hint_of_the_program(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failure = exits.explain("tlt validate", KeyError("x"), "Report it.")
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == ["tlt validate: Internal: KeyError: 'x'", "  Report it."]
    assert "KeyError: 'x'" in lines[:-2]
    assert failure.exit_code == exits.INTERNAL_EXIT
