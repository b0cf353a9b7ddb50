"""What a task gets besides its RunSpec: where to read and write, whom to tell, when to stop.

A task is a function ``run(run_spec, context) -> None`` in ``tlt_runner.tasks``. It raises
:class:`~tlt_runner.errors.RunnerError` to fail; whatever it reported before stays reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tlt_api.status import Artifact, Progress, Section
from tlt_runner.cancel import Stop
from tlt_runner.storage import Storage


class Reporter(Protocol):
    """Receives results from a task and writes them to the resource's status."""

    def progress(self, progress: Progress) -> None:
        """Set the progress. Cheap: called every step, sent at most every few seconds."""

    def report(self, section: Section) -> None:
        """Set a section of the status, in the field of its type; of exports, the one of this precision."""

    def artifact(self, artifact: Artifact) -> None:
        """List a whole file; it replaces an artifact of the same name."""

    def removed(self, name: str) -> None:
        """Remove an artifact from the list; one that was never reported is no error."""


@dataclass(frozen=True)
class Context:
    """Surroundings of a task.

    Attributes:
        storage: Reads and writes addresses.
        reporter: Takes progress and results.
        scratch: An empty folder for temporary files, removed when the run ends.
        stop: Requested when the run must end soon (SIGTERM): save a checkpoint, then call ``raise_if``.
    """

    storage: Storage
    reporter: Reporter
    scratch: Path
    stop: Stop
