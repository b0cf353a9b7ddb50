"""The surroundings of a task: storage, the reporter of results, a scratch folder, the request to stop.

A task is a function ``run(spec, run, context) -> None`` in ``tlt_runner.tasks``: the spec of the kind that
its command takes, the whole RunSpec, and a :class:`Context`. It raises
:class:`~tlt_runner.errors.RunnerError` to fail; whatever it reported before stays reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tlt_api.status import Artifact, Progress, Section
from tlt_runner.cancel import Stop
from tlt_runner.storage import Storage, join


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

    def begin(self, stage: str, step: int) -> None:
        """Report that a step of a stage begins, or end here if the run was asked to stop.

        Raises:
            InterruptedRunError: The run was asked to stop.
        """
        self.stop.raise_if(f"in stage {stage} before step {step}; the next attempt starts over")
        self.reporter.progress(Progress(stage=stage, step=step))

    def publish(self, file: Path, name: str, folder: str) -> None:
        """Copy a local file into a folder of the output and list it among the artifacts.

        Args:
            file: The file, which keeps its name.
            name: Name of the artifact.
            folder: Address of the folder.

        Raises:
            RunnerError: The storage's reasons.
        """
        # First the file, then the list: status.artifacts never names what is not there yet.
        stored = self.storage.publish(file, join(folder, file.name))
        self.reporter.artifact(
            Artifact(name=name, uri=stored.uri, sha256=stored.sha256, size_bytes=stored.size_bytes)
        )
