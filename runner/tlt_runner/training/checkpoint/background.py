"""One task at a time in a thread of its own: checkpoints are written while the training goes on.

Called by :class:`~tlt_runner.training.checkpoint.writer.CheckpointWriter`, whose tasks touch files and the
status only, never a variable in training.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread


class Background:
    """Runs tasks one after the other; the error of a task is raised by the caller's next call.

    Args:
        name: Name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, task: Callable[[], None]) -> None:
        """Wait for the task before, then start this one.

        Raises:
            BaseException: The error of the task before.
        """
        self.wait()

        def run() -> None:
            # An exception of a thread would be printed and lost: it is raised again in the caller's.
            try:
                task()
            except BaseException as error:
                self._error = error

        # A daemon: a request that hangs must not keep a process alive that is told to end at once.
        self._thread = Thread(target=run, name=self._name, daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """True while a task runs.

        Raises:
            BaseException: The error of the last task.
        """
        if self._thread is not None and self._thread.is_alive():
            return True
        self.wait()
        return False

    def wait(self) -> None:
        """Wait until no task runs.

        Raises:
            BaseException: The error of the last task, once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
