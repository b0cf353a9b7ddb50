"""Processes that begin with their imports done.

Importing TensorFlow takes 14 s of CPU time, and what a command of ``tlt`` needs one. A server process imports
it once and is forked for each test process, before TensorFlow has started anything: each has a TensorFlow
runtime of its own. The ring's conftest says what the server imports.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")


def preload(*modules: str) -> None:
    """Set the modules that the server imports. It starts with the first process."""
    _CONTEXT.set_forkserver_preload(list(modules))


class Forked:
    """A running function, with the methods of ``subprocess.Popen`` that tests use.

    Args:
        target: Module and function, ``module:function``; it is called with the arguments.
        arguments: Strings.
        log: File for stdout, and for stderr where that has no file of its own.
        environment: Variables to set before it begins.
        errors: File for stderr.
        cwd: Folder in which it begins.
    """

    def __init__(
        self,
        target: str,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        errors: Path | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._process = _CONTEXT.Process(
            target=_run,
            args=(
                target,
                list(arguments),
                str(log),
                str(errors or ""),
                str(cwd or ""),
                dict(environment or {}),
            ),
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


def tlt(*arguments: str | Path, cwd: Path, target: str = "forked:main") -> subprocess.CompletedProcess[str]:
    """Run ``tlt`` in a folder, as :func:`subprocess.run` would."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "stdout"), Path(folder, "stderr")
        words = [str(argument) for argument in arguments]
        code = Forked(target, words, output, errors=errors, cwd=cwd).wait(120)
        return subprocess.CompletedProcess(words, code, output.read_text(), errors.read_text())


def main(arguments: Sequence[str]) -> None:
    """Be ``tlt``."""
    from tlt_runner import cli

    cli.main(arguments)


def main_without_tensorflow(arguments: Sequence[str]) -> None:
    """Be a ``tlt`` for which TensorFlow, Keras and ONNX Runtime cannot be imported."""
    refused = {"tensorflow", "keras", "onnxruntime"}
    assert not refused & sys.modules.keys(), "the server has imported what is to be refused"
    sys.meta_path.insert(0, Refuse(refused))
    main(arguments)


class Refuse:
    """An import finder that fails for some packages."""

    def __init__(self, packages: set[str]) -> None:
        self._packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Fail for a refused package, and leave all else to the other finders."""
        if name.partition(".")[0] in self._packages:
            raise AssertionError(f"{name} is imported, which is refused here")


def _run(
    target: str, arguments: list[str], log: str, errors: str, cwd: str, environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    for descriptor, path in ((1, log), (2, errors or log)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
    if cwd:
        os.chdir(cwd)
    sys.argv = [target, *arguments]
    code = 1
    try:
        module, _, function = target.partition(":")
        code = getattr(importlib.import_module(module), function)(arguments) or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
