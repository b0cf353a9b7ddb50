"""A folder for the user that is whole or not there, and never takes the place of something.

Called by :mod:`tlt_runner.data.preparation.export_folder`. A killed process leaves a hidden folder beside it,
whose name ends in ``.partial``; nobody reads that.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tlt_api.failures import Reason
from tlt_runner.errors import RunnerError, storage_errors
from tlt_runner.storage import partial_name, sync_folder


def free(out: Path) -> Path:
    """The absolute path of a folder that is new or empty.

    Raises:
        RunnerError: ``InvalidSpec`` when there is something.
    """
    folder = out.resolve()
    with storage_errors(str(out)):
        if folder.is_dir():
            there = next((entry.name for entry in sorted(folder.iterdir())), None)
        else:
            there = "a file" if folder.exists() else None
    if there is not None:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected a new or empty folder for --out, got {out}, which holds {there}",
            "Name another folder: nothing that is there is overwritten.",
        )
    return folder


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A hidden folder beside it that gets its name at the end, or goes away when an error leaves the block.

    Args:
        folder: As :func:`free` gives it.

    Raises:
        RunnerError: ``InvalidSpec`` when somebody filled the folder meanwhile; the storage's reasons.
    """
    building = partial_name(folder)
    with storage_errors(str(folder)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        building.mkdir()
        try:
            yield building
            _rename(building, folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        sync_folder(folder.parent)


def _rename(building: Path, folder: Path) -> None:
    try:
        building.replace(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise RunnerError(
            Reason.INVALID_SPEC, f"{folder} was empty at the beginning and holds something now"
        ) from error
