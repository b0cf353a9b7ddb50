"""One run of one task in this process, from RunSpec to exit code: what a pod does, or a child of ``tlt run``.

Whatever happens, three things hold at the end: the exit code is one of the failure taxonomy, the termination
message says the same with metrics and digests, and the reporter has had its last chance to be heard.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from pydantic import ValidationError

from tlt_api import resources
from tlt_api.failures import Reason
from tlt_api.runreport import RunReport, to_termination_message
from tlt_api.runspec import RunSpec
from tlt_api.status import Failure
from tlt_runner import exits
from tlt_runner.cancel import Stop
from tlt_runner.commands import COMMANDS, TERMINATION_LOG_VARIABLE
from tlt_runner.context import Context
from tlt_runner.errors import RunnerError
from tlt_runner.status.apiserver import ApiServer
from tlt_runner.status.file import LocalReporter
from tlt_runner.status.kubernetes import KubernetesReporter
from tlt_runner.status.reporter import AccumulatingReporter
from tlt_runner.storage import Storage

POD_TERMINATION_LOG = Path("/dev/termination-log")
FLUSH_S = 30.0
"""Longest wait for the last report to arrive."""
FLUSH_AFTER_STOP_S = 5.0
"""The same after SIGTERM, when the kubelet is about to kill."""

Task = Callable[[RunSpec, Context], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Surroundings:
    """What is around the process.

    Attributes:
        volumes: Folder in which ``pvc://claim`` is the subfolder ``claim``.
        report: File for the report, of a local run; None reports to the cluster, where there is one.
        termination: File for the termination message, or None.
    """

    volumes: Path
    report: Path | None = None
    termination: Path | None = None


def termination_log(environment: Mapping[str, str]) -> Path | None:
    """The file for the termination message: the named one, or a pod's; None elsewhere."""
    named = environment.get(TERMINATION_LOG_VARIABLE)
    if named:
        return Path(named)
    return POD_TERMINATION_LOG if POD_TERMINATION_LOG.exists() else None


def execute(
    command: str, spec_file: Path, around: Surroundings, load: Callable[[str], Task] | None = None
) -> int:
    """Run the task of ``command`` and return the exit code. Raises nothing.

    Args:
        command: A command of :data:`tlt_runner.commands.COMMANDS`.
        spec_file: The RunSpec.
        around: Where volumes are, and where reports go.
        load: Gives the task of a command; ``tlt_runner.tasks`` unless told otherwise.
    """
    stop = Stop()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # warnings and errors, without a page of information
    signals = StopSignals(stop)
    signals.listen()
    reporter: AccumulatingReporter = LocalReporter(None)
    failure: Failure | None = None
    try:
        run = read_run_spec(spec_file, command)
        reporter = _reporter(run, around)
        signals.at_second = lambda: leave_message(
            reporter.snapshot(), _interrupted("a second signal"), around
        )
        _run_task((load or load_task)(command), run, around, reporter, stop)
    except BaseException as error:  # KeyboardInterrupt and SystemExit too: every end has a reason
        failure = exits.failure_of(error)
        _explain(command, failure, error)
    leave_message(reporter.snapshot(), failure, around)
    reporter.close(FLUSH_AFTER_STOP_S if stop.requested() else FLUSH_S)
    return 0 if failure is None else exits.exit_code(failure, otherwise=exits.INTERNAL_EXIT)


def read_run_spec(file: Path, command: str) -> RunSpec:
    """Read a RunSpec and check that it is for this command.

    Raises:
        RunnerError: InvalidSpec; every field at fault is named.
    """
    try:
        run = RunSpec.from_json(file.read_bytes())
    except OSError as error:
        raise RunnerError(Reason.INVALID_SPEC, f"expected a RunSpec in {file}, got: {error}") from None
    except ValidationError as error:
        text = resources.explain(error, root="runSpec")
        raise RunnerError(Reason.INVALID_SPEC, f"{file}: {text}") from None
    expected = COMMANDS[command].kind
    if run.owner.kind != expected:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"{file}: expected the RunSpec of a {expected} for tlt {command}, got one of a {run.owner.kind}",
            f"Use tlt {run.kind.command}.",
        )
    return run


class StopSignals:
    """SIGTERM and SIGINT: the first asks the task to end, after a checkpoint; the second ends at once.

    A thread waits for them, and all others have them blocked: no library can take them over (TensorFlow does,
    where several workers meet), and they are heard while the main thread computes.

    Attributes:
        at_second: Called before the process ends at once.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self.at_second: Callable[[], None] = lambda: None

    def listen(self) -> None:
        """Take over both signals, before there are other threads: those inherit that they are blocked.

        To import numpy is enough to start some.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, self.NUMBERS)
        Thread(target=self._wait, name="stop-signals", daemon=True).start()

    def _wait(self) -> None:
        while True:
            self._heard(signal.Signals(signal.sigwait(self.NUMBERS)))

    def _heard(self, number: signal.Signals) -> None:
        if not self._stop.requested():
            self._stop.request()
            with suppress(OSError, ValueError):  # nobody reads
                print(f"{number.name}: stopping after the next checkpoint", file=sys.stderr, flush=True)
            return
        try:
            self.at_second()
        finally:
            os._exit(_interrupted("a second signal").exit_code or exits.INTERNAL_EXIT)


def _reporter(run: RunSpec, around: Surroundings) -> AccumulatingReporter:
    server = ApiServer.of_this_pod() if around.report is None else None
    if server is None:
        return LocalReporter(around.report)
    return KubernetesReporter(lambda status, timeout: server.apply_status(run.owner, status, timeout))


def load_task(command: str) -> Task:
    """Import the task: this is where TensorFlow comes in."""
    task: Task = importlib.import_module(f"tlt_runner.tasks.{command}").run
    return task


def _run_task(
    task: Task, run: RunSpec, around: Surroundings, reporter: AccumulatingReporter, stop: Stop
) -> None:
    log.info("%s/%s, attempt %d", run.owner.kind, run.owner.name, run.attempt)
    stop.raise_if("before it began")
    with tempfile.TemporaryDirectory(prefix="tlt-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        storage = Storage(volumes_root=around.volumes, scratch=scratch, s3=run.spec.storage.s3)
        task(run, Context(storage=storage, reporter=reporter, scratch=scratch, stop=stop))


def _interrupted(by: str) -> Failure:
    return exits.failure(Reason.INTERRUPTED, f"ended at once by {by}, without a checkpoint")


def _explain(command: str, failure: Failure, error: BaseException) -> None:
    """One paragraph for people; the traceback only where the mistake is ours."""
    if failure.reason == Reason.INTERNAL:
        traceback.print_exception(error, file=sys.stderr)
    print(exits.paragraph(f"tlt {command}", failure), file=sys.stderr, flush=True)


def leave_message(report: RunReport, failure: Failure | None, around: Surroundings) -> None:
    """Write the termination message. The kubelet mounts a file to be written in place, not replaced."""
    if around.termination is None:
        return
    try:
        around.termination.write_text(_message(report, failure), encoding="utf-8")
    except OSError:
        log.exception("the termination message could not be written to %s", around.termination)


def _message(report: RunReport, failure: Failure | None) -> str:
    try:
        return to_termination_message(report.model_copy(update={"failure": failure}))
    except ValueError:  # texts that grow when they are encoded: control characters, other scripts
        cut = failure and failure.model_copy(
            update={"message": failure.message[:200], "hint": failure.hint[:200]}
        )
        return to_termination_message(RunReport(failure=cut))
