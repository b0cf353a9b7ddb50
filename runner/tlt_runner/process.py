"""Execution of one task in this process, from RunSpec to exit code: in a pod, or as a child of ``tlt run``.

However a run ends, its exit code is one of the failure taxonomy, the termination message says the same with
metrics and digests, and the reporter has had time to deliver its last report.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from pydantic import ValidationError

from tlt_api import resources
from tlt_api.failures import Reason
from tlt_api.runreport import RunReport, to_termination_message
from tlt_api.runspec import (
    PREPARATION_SECONDS,
    PROGRESS_SECONDS,
    PROGRESS_VARIABLE,
    RunSpec,
    unknown_fields,
)
from tlt_api.status import Failure, Progress
from tlt_api.version import version
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
from tlt_runner.tasks import inputs, output
from tlt_runner.training.distributed.rendezvous import INDEX_VARIABLE

POD_TERMINATION_LOG = Path("/dev/termination-log")
FLUSH_S = 30.0
"""Longest wait for the last report to arrive."""
FLUSH_AFTER_STOP_S = 5.0
"""Longest wait for the last report after SIGTERM, when the kubelet is about to kill the pod."""

Task = Callable[[Any, RunSpec, Context], None]
"""(spec, run, context): runs a task. The spec is of the kind that the command takes."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Surroundings:
    """Files and folders around a run.

    Attributes:
        volumes: Folder in which ``pvc://claim`` is the subfolder ``claim``.
        report: File for the report of a local run; None reports to the cluster, if there is one.
        termination: File for the termination message, or None.
    """

    volumes: Path
    report: Path | None = None
    termination: Path | None = None


def termination_log(environment: Mapping[str, str]) -> Path | None:
    """Return the file for the termination message: the named one, or that of a pod; None elsewhere."""
    # A local run names a file; in a cluster the kubelet mounts its own into every container.
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
        around: Volumes, and where reports go.
        load: Returns the task of a command; by default that of ``tlt_runner.tasks``.
    """
    stop = Stop()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # warnings and errors, without a page of information
    # Before anything that starts threads, which have to inherit the blocked signals.
    signals = StopSignals(stop)
    signals.listen()
    # Until the RunSpec is read nobody knows where reports go; a failure before that needs a reporter, too.
    reporter: AccumulatingReporter = LocalReporter(None)
    failure: Failure | None = None
    try:
        # Whatever fails from here on, the RunSpec included, becomes a failure with a reason.
        run = read_run_spec(spec_file, command)
        reporter = _reporter(run, around)
        # Bound late: by the second signal the report has grown.
        signals.at_second = lambda: leave_message(
            reporter.snapshot(), _interrupted("a second signal"), around
        )
        # A report in a file: this is the child of a local run.
        task = (load or partial(task_of, local=around.report is not None))(command)
        _run_task(task, run, around, reporter, stop)
    except BaseException as error:  # KeyboardInterrupt and SystemExit too: every end has a reason
        failure = exits.explain(f"tlt {command}", error)
    # The message first: the last report may take as long as the kubelet waits before it kills the pod.
    leave_message(reporter.snapshot(), failure, around)
    reporter.close(FLUSH_AFTER_STOP_S if stop.requested() else FLUSH_S)
    return 0 if failure is None else exits.exit_code(failure, otherwise=exits.INTERNAL_EXIT)


class StopSignals:
    """SIGTERM and SIGINT: the first asks the task to stop after a checkpoint; the second ends the process.

    A thread waits for them, and all other threads block them: no library can take them over (TensorFlow does,
    if several workers train together), and they are handled while the main thread computes.

    Attributes:
        at_second: Called before the second signal ends the process.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self.at_second: Callable[[], None] = lambda: None

    def listen(self) -> None:
        """Take over both signals. Call it before other threads start, so that they block them too.

        Importing numpy is enough to start some.
        """
        # No Python handlers: they run in the main thread between two bytecodes, and so not while it is inside
        # TensorFlow.
        signal.pthread_sigmask(signal.SIG_BLOCK, self.NUMBERS)
        Thread(target=self._wait, name="stop-signals", daemon=True).start()

    def _wait(self) -> None:
        while True:
            self._handle(signal.Signals(signal.sigwait(self.NUMBERS)))

    def _handle(self, number: signal.Signals) -> None:
        if not self._stop.requested():
            self._stop.request()
            with suppress(OSError, ValueError):  # nobody reads our standard error
                # For whoever reads the log of a pod that takes its time to end.
                print(f"{number.name}: stopping after the next checkpoint", file=sys.stderr, flush=True)
            return
        # os._exit, from this thread: sys.exit would end the thread only, and the main one may never return.
        try:
            self.at_second()
        finally:
            os._exit(_interrupted("a second signal").exit_code or exits.INTERNAL_EXIT)


def _interrupted(by: str) -> Failure:
    return exits.failure(Reason.INTERRUPTED, f"ended at once by {by}, without a checkpoint")


def read_run_spec(file: Path, command: str) -> RunSpec:
    """Read a RunSpec and check that its kind is the one that the command takes.

    Raises:
        RunnerError: InvalidSpec; every field at fault is named.
    """
    try:
        text = file.read_bytes()
        run = RunSpec.from_json(text)
    except OSError as error:
        raise RunnerError(Reason.INVALID_SPEC, f"expected a RunSpec in {file}, got: {error}") from None
    except ValidationError as error:
        problems = resources.explain(error, root="runSpec")
        raise RunnerError(Reason.INVALID_SPEC, f"{file}: {problems}") from None
    unknown = unknown_fields(run, text)
    if unknown:
        log.warning(
            "fields of the RunSpec that this runner (%s) does not know, because the operator is newer, are "
            "ignored: %s",
            version(),
            ", ".join(unknown),
        )
    expected = COMMANDS[command].kind
    if run.owner.kind != expected:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"{file}: expected the RunSpec of a {expected} for tlt {command}, got one of a {run.owner.kind}",
            f"Use tlt {run.kind.command}.",
        )
    return run


def progress_seconds(environment: Mapping[str, str]) -> int:
    """Return the shortest time between two reports of progress: what the operator asks for, or the usual."""
    text = environment.get(PROGRESS_VARIABLE, "")
    # The user may set the variable too.
    return max(int(text), 1) if text.isdecimal() else PROGRESS_SECONDS


def _reporter(run: RunSpec, around: Surroundings) -> AccumulatingReporter:
    # A local run inside of a pod (a notebook) must not report to that pod's cluster.
    server = ApiServer.of_this_pod() if around.report is None else None
    if server is None:
        return LocalReporter(around.report)
    return KubernetesReporter(
        lambda status, timeout: server.apply_status(run.owner, status, timeout),
        interval=progress_seconds(os.environ),
    )


def task_of(command: str, *, local: bool = False) -> Task:
    """Return the task of a command. It is imported when it runs, after inputs and output have been checked.

    Args:
        command: The command.
        local: True for a run without a cluster.
    """

    def run_task(spec: Any, run: RunSpec, context: Context) -> None:
        # Before the import, which takes seconds, so that a misspelt address is answered at once.
        inputs.require(command, run, context.storage)
        # Parts of a training write nothing that the training itself would replace.
        claim = (
            output.claimed(
                run,
                context.storage,
                context.scratch,
                local=local,
                chief=_is_chief(run),
                existing=output.existing_writers(os.environ),
                cluster=server.cluster if (server := ApiServer.of_this_pod()) else "",
            )
            if COMMANDS[command].whole
            else nullcontext()
        )
        with claim:
            task: Task = importlib.import_module(f"tlt_runner.tasks.{command}").run
            task(spec, run, context)

    return run_task


def _is_chief(run: RunSpec) -> bool:
    # Of the pods that train together, index 0 alone publishes.
    return not run.workers or os.environ.get(INDEX_VARIABLE, "0") == "0"


def _run_task(
    task: Task, run: RunSpec, around: Surroundings, reporter: AccumulatingReporter, stop: Stop
) -> None:
    log.info("%s/%s, attempt %d", run.owner.kind, run.owner.name, run.attempt)
    # The signal may have come while the process started.
    stop.raise_if("before it began")
    # Before anything that can hang: imports, downloads, a file system that does not answer. The other pods
    # of a run report nothing.
    if _is_chief(run):
        reporter.progress(Progress(next_within_seconds=PREPARATION_SECONDS))
    # ignore_cleanup_errors: a scratch folder that cannot be removed must not fail a finished run.
    with tempfile.TemporaryDirectory(prefix="tlt-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        storage = Storage(volumes_root=around.volumes, scratch=scratch, s3=run.spec.storage.s3)
        context = Context(storage=storage, reporter=reporter, scratch=scratch, stop=stop)
        task(run.spec, run, context)


def leave_message(report: RunReport, failure: Failure | None, around: Surroundings) -> None:
    """Write the termination message, if there is a file for it."""
    if around.termination is None:
        return
    # In place: the kubelet mounts this very file into the container, so a rename over it would fail.
    try:
        around.termination.write_text(_message(report, failure), encoding="utf-8")
    except OSError:
        log.exception("the termination message could not be written to %s", around.termination)


def _message(report: RunReport, failure: Failure | None) -> str:
    try:
        return to_termination_message(report.model_copy(update={"failure": failure}))
    except ValueError:
        # Too long: the texts grow when they are encoded, for example control characters or other scripts.
        cut = failure and failure.model_copy(
            update={"message": failure.message[:200], "hint": failure.hint[:200]}
        )
        return to_termination_message(RunReport(failure=cut))
