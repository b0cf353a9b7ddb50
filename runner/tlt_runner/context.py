"""The surroundings of a task: storage, the reporter of results, a scratch folder, the request to stop.

A task is a function ``run(spec, run, context) -> None`` in ``tlt_runner.tasks``: the spec of the kind that
its command takes, the whole RunSpec, and a :class:`Context`. It raises
:class:`~tlt_runner.errors.RunnerError` to fail; whatever it reported before stays reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tlt_api.status import (
    AnchorsStatus,
    Artifact,
    DatasetStatus,
    ExportStatus,
    Metrics,
    Progress,
    PruningStatus,
)
from tlt_runner.cancel import Stop
from tlt_runner.storage import Storage, join


class Reporter(Protocol):
    """Takes what a task has learnt and sees to it that it reaches the resource's status."""

    def progress(self, progress: Progress) -> None:
        """Where the run is. Cheap: called every step, sent at most every few seconds."""

    def dataset(self, dataset: DatasetStatus) -> None:
        """What preparation found."""

    def anchors(self, anchors: AnchorsStatus) -> None:
        """The anchors that were chosen from the data."""

    def metrics(self, metrics: Metrics) -> None:
        """Evaluation of the best model so far."""

    def pruning(self, pruning: PruningStatus) -> None:
        """What pruning did."""

    def exports(self, exports: list[ExportStatus]) -> None:
        """What was exported; lowestMAP and largestDrop are derived."""

    def artifact(self, artifact: Artifact) -> None:
        """A whole file; replaces an artifact of the same name."""

    def removed(self, name: str) -> None:
        """An artifact that will not be there any more; one that was not reported does not matter."""


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
        stored = self.storage.publish(file, join(folder, file.name))
        self.reporter.artifact(
            Artifact(name=name, uri=stored.uri, sha256=stored.sha256, size_bytes=stored.size_bytes)
        )
