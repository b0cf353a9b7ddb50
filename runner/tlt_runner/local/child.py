"""Runs a task in a child process: its memory is freed at its end, and a kill is seen from outside.

The child is the pod's own command with a RunSpec; the report and the termination message come back as files.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from tlt_api.runreport import RunReport
from tlt_api.runspec import RunSpec
from tlt_api.status import Failure
from tlt_runner import exits
from tlt_runner.cancel import Stop
from tlt_runner.commands import TERMINATION_LOG_VARIABLE, VOLUMES_VARIABLE

POLL_S = 0.2


@dataclass(frozen=True)
class Ended:
    """The result of a run in a child.

    Attributes:
        report: Its last report.
        failure: Its failure, or None.
        log: File with its output.
    """

    report: RunReport
    failure: Failure | None
    log: Path


class Interrupts(Stop):
    """Stop request by Ctrl-C, SIGTERM or a closed terminal; each signal is handed on to the child."""

    def __init__(self) -> None:
        super().__init__()
        # Every signal counts: the second and the third mean more than the first.
        self.count = 0

    def install(self) -> None:
        """Take over the signals, except those that are ignored (nohup)."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._count)

    def _count(self, _number: int, _frame: FrameType | None) -> None:
        # A handler may interrupt another one: no lock, no printing, no signal to the child from here.
        self.count += 1
        self.request()


def run(
    command: str,
    spec: RunSpec,
    folder: Path,
    volumes: Path,
    interrupts: Interrupts,
    on_report: Callable[[RunReport], None],
    lock: int,
) -> Ended:
    """Run a task in a child and wait for its end.

    Args:
        command: The runner's command.
        spec: The RunSpec.
        folder: Folder for spec, report, termination message and log; older ones are replaced.
        volumes: ``pvc://claim/path`` is ``volumes/claim/path``.
        interrupts: Handed on to the child.
        on_report: Called with each new report.
        lock: File descriptor that the child holds as long as it lives.
    """
    files = {name: folder / f"{name}.json" for name in ("spec", "report", "termination")}
    # What an earlier run left would be taken for this run's if the child dies before it writes.
    for stale in ("report", "termination"):
        files[stale].unlink(missing_ok=True)
    files["spec"].write_text(spec.to_json(), encoding="utf-8")
    log = folder / "log.txt"
    arguments = [
        command,
        "--spec",
        str(files["spec"]),
        "--report",
        str(files["report"]),
        "--volumes",
        str(volumes),
    ]
    with log.open("w") as output:
        # A process of its own, as a pod is: TensorFlow gives memory back only when its process ends.
        process = subprocess.Popen(
            [sys.executable, "-m", "tlt_runner", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(spec, volumes, files["termination"]),
            process_group=0,  # a terminal's Ctrl-C reaches the parent only, which hands it on once
            pass_fds=(lock,),  # the lock holds as long as the child lives, even if this process is killed
        )
        code = _wait(process, files["report"], interrupts, on_report)
    # The last report may be newer than the one that was read while the child lived.
    report = _read(files["report"]) or RunReport()
    return Ended(report, _failure(code, _read(files["termination"]), stopped=interrupts.requested()), log)


def _environment(spec: RunSpec, volumes: Path, termination: Path) -> Mapping[str, str]:
    template_environment = {item.name: item.value for item in spec.spec.pod_template.env}
    required = {
        VOLUMES_VARIABLE: str(volumes),
        TERMINATION_LOG_VARIABLE: str(termination),
        "PYTHONUNBUFFERED": "1",
    }
    # The pod template may set anything but what this process needs to find the child's message.
    return {**os.environ, **template_environment, **required}


def _wait(
    process: subprocess.Popen[bytes],
    report: Path,
    interrupts: Interrupts,
    on_report: Callable[[RunReport], None],
) -> int:
    # By polling, not by waiting: signals and reports are to be handed on meanwhile.
    handed_on, read_at = 0, 0
    while (code := process.poll()) is None:
        while handed_on < interrupts.count:
            handed_on += 1
            # The child ends at the second SIGTERM without a checkpoint; if even that hangs, it is killed.
            process.send_signal(signal.SIGTERM if handed_on < 3 else signal.SIGKILL)
        # The child replaces the file as a whole, so that every version is complete JSON.
        changed = report.stat().st_mtime_ns if report.exists() else 0
        if changed != read_at:
            read_at = changed
            newest = _read(report)
            if newest is not None:
                on_report(newest)
        time.sleep(POLL_S)
    return code


def _read(file: Path) -> RunReport | None:
    """Read a report; None if there is none yet."""
    try:
        return RunReport.model_validate_json(file.read_bytes())
    # No file yet, or half a termination message: it is written in place, by a child that may be killed.
    except (OSError, ValidationError):
        return None


def _failure(code: int, message: RunReport | None, *, stopped: bool) -> Failure | None:
    """Return the failure of the termination message if it fits the exit code; None for exit code 0."""
    if code == 0:
        return None
    # A message with another exit code was written before the process crashed on its way out.
    reported = message.failure if message else None
    if reported is not None and reported.exit_code == code:
        return reported
    return exits.failure_of_exit(code, stopped=stopped)
