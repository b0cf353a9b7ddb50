"""``tlt convert --to``: a manifest's data set as a folder of another format, in this process.

The ``dataset`` block that reads the folder goes to the standard output, to be pasted into a manifest; all
else goes to the standard error output.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import yaml

from tlt_api.dataset import LabelFormat
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.commands import Command
from tlt_runner.data.preparation import export_folder
from tlt_runner.data.records import REPORT
from tlt_runner.local import flow
from tlt_runner.local.child import Interrupts
from tlt_runner.local.state import Folders
from tlt_runner.storage import Storage

TOLD_EVERY = 1000
"""Images."""


def run(
    command: Command, file: Path, folders: Folders, target: LabelFormat, out: Path, *, resize: bool
) -> int:
    """Translate the data set of the one TrainingJob in a file; return the exit code.

    Raises:
        RunnerError: Nothing was written.
    """
    spec = flow.only(command, file).spec
    if not isinstance(spec, TrainingJobSpec):
        raise TypeError(f"expected the spec of a {command.kind}, got {type(spec).__name__}")
    interrupts = Interrupts()
    interrupts.install()
    with tempfile.TemporaryDirectory(prefix="tlt-", ignore_cleanup_errors=True) as scratch:
        storage = Storage(scratch=Path(scratch), s3=spec.storage.s3, volumes_root=folders.volumes)
        done = export_folder.translate(
            spec.dataset,
            storage,
            target,
            out,
            resize=resize,
            stopped=lambda: interrupts.count > 0,
            tell=_tell,
        )
    for line in _summary(done, out):
        print(line, file=sys.stderr)
    block = done.dataset.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    print(yaml.safe_dump({"dataset": block}, sort_keys=False, allow_unicode=True), end="")
    return 0


def _tell(done: int, total: int) -> None:
    if done % TOLD_EVERY == 0:
        print(f"{done} of {total} images", file=sys.stderr, flush=True)


def _summary(done: export_folder.Translation, out: Path) -> list[str]:
    found = done.report
    lines = [
        f"{found.training_images} training and {found.validation_images} validation images with "
        f"{found.objects} objects of {len(found.classes)} classes are in {out}"
    ]
    skipped = sum(found.skipped_by_problem.values())
    dropped = sum(found.dropped_by_problem.values())
    if skipped or dropped or found.labels_without_image:
        lines.append(
            f"left out: {skipped} images, {dropped} label lines, {found.labels_without_image} labels without "
            f"image; {out / REPORT} lists them"
        )
    return [*lines, *(f"note: {text}" for text in found.warnings)]
