"""Write a manifest's data set as a folder of another format, in this process: ``tlt convert --to``.

The ``dataset`` block that reads the folder goes to the standard output, to be pasted into a manifest; all
else goes to the standard error output.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tlt_api.dataset import LabelFormat
from tlt_api.status import Progress
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.commands import Command
from tlt_runner.data.preparation.export_folder import ExportedFolder, export_folder
from tlt_runner.data.records import REPORT
from tlt_runner.kubectl_yaml import dump
from tlt_runner.local import flow
from tlt_runner.local.child import Interrupts
from tlt_runner.local.state import Folders
from tlt_runner.storage import Storage

PRINTED_EVERY = 1000
"""Images between two lines of progress."""


def run(
    command: Command, file: Path, folders: Folders, target: LabelFormat, out: Path, *, resize: bool
) -> int:
    """Export the data set of the one TrainingJob in a file; return the exit code.

    Raises:
        RunnerError: Nothing was written.
    """
    spec = flow.only(command, file).spec
    # flow.only has checked the kind, which the type checker cannot know.
    if not isinstance(spec, TrainingJobSpec):
        raise TypeError(f"expected the spec of a {command.kind}, got {type(spec).__name__}")
    # From here on Ctrl-C ends the export in an orderly way, and its hidden folder is removed.
    interrupts = Interrupts()
    interrupts.install()
    # For copies of objects if the data set is in a bucket.
    with tempfile.TemporaryDirectory(prefix="tlt-", ignore_cleanup_errors=True) as scratch:
        storage = Storage(scratch=Path(scratch), s3=spec.storage.s3, volumes_root=folders.volumes)
        exported = export_folder(
            spec.dataset,
            storage,
            target,
            out,
            resize=resize,
            reporter_for=_Printer,
            stop=interrupts,
        )
    # Standard output is for the dataset block alone, which may be redirected into a file.
    for line in _summary(exported, out):
        print(line, file=sys.stderr)
    # Only fields that were set: a block of defaults would hide those that matter.
    block = exported.dataset.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    print(dump({"dataset": block}), end="")
    return 0


class _Printer:
    """Prints the progress, now and then.

    Args:
        total: Number of images in all.
    """

    def __init__(self, total: int) -> None:
        self._total = total

    def progress(self, progress: Progress) -> None:
        """Print every thousandth image."""
        if progress.step and progress.step % PRINTED_EVERY == 0:
            rest = f", {progress.images_per_second:g} images/s" if progress.images_per_second else ""
            rest += f", {progress.eta_seconds} s left" if progress.eta_seconds is not None else ""
            print(f"{progress.step} of {self._total} images{rest}", file=sys.stderr, flush=True)


def _summary(exported: ExportedFolder, out: Path) -> list[str]:
    report = exported.report
    lines = [
        f"{report.training_images} training and {report.validation_images} validation images with "
        f"{report.objects} objects of {len(report.classes)} classes are in {out}"
    ]
    skipped = sum(report.skipped_by_problem.values())
    dropped = sum(report.dropped_by_problem.values())
    if skipped or dropped or report.labels_without_image:
        lines.append(
            f"left out: {skipped} images, {dropped} label lines, {report.labels_without_image} labels "
            f"without image; {out / REPORT} lists them"
        )
    return [*lines, *(f"note: {text}" for text in report.warnings)]
