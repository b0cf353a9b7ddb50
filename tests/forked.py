"""Processes that begin with TensorFlow and the train task imported.

Importing TensorFlow takes 14 s of CPU time. A server process imports it once and is forked for each test
process, before TensorFlow has started anything: each has a TensorFlow runtime of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tensorflow", "keras", "tlt_runner.cli", "tlt_runner.tasks.train"])


class Forked:
    """A running function, with the methods of ``subprocess.Popen`` that tests use.

    Args:
        target: Module and function, ``module:function``; it is called with the arguments.
        arguments: Strings.
        log: File for stdout and stderr.
        environment: Variables to set before it begins.
    """

    def __init__(
        self, target: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._process = _CONTEXT.Process(
            target=_run, args=(target, list(arguments), str(log), dict(environment or {}))
        )
        self._process.start()

    def poll(self) -> int | None:
        """Its exit code once it has ended; negative for a signal."""
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        """Its exit code, when it has ended."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            raise TimeoutError(f"process {self._process.pid} still runs after {seconds} s")
        return code

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


def _run(target: str, arguments: list[str], log: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [target, *arguments]
    code = 1
    try:
        code = _call(target, arguments) or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _call(target: str, arguments: list[str]) -> Any:
    import importlib

    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)(arguments)
