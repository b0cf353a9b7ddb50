"""Removes what killed attempts left half written in the output folder. Called once, when a training begins.

A publish writes under a hidden name and renames (:mod:`tlt_runner.storage`); a process that is killed in
between leaves the hidden file. On S3 it leaves parts of an upload, which are no objects and which the bucket
must remove (docs/checkpoints.md).
"""

from __future__ import annotations

import logging
import re

from tlt_runner.storage import PARTIAL_SUFFIX, Storage

OLD_SECONDS = 6 * 3600.0
"""Nothing that is still being written is that old."""
_OWN = re.compile(
    r"\.(best\.keras|last\.keras|last\.state\.npz|epoch-\d+\.keras)\.[0-9a-f]{8}" + re.escape(PARTIAL_SUFFIX)
)

log = logging.getLogger(__name__)


def remove(storage: Storage, output_uri: str, now: float) -> None:
    """Remove partial files of a training's own names that are old. What cannot be removed is a warning.

    Args:
        storage: Where the output is.
        output_uri: The output folder; it need not exist.
        now: The time, in seconds since 1970.
    """
    folder = storage.local_path(output_uri)
    if folder is None:
        return
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        log.warning("what killed attempts left in %s cannot be listed: %s", output_uri, error)
        return
    for path in paths:
        if not _OWN.fullmatch(path.name):
            continue
        try:
            about = path.stat()
            if now - about.st_mtime <= OLD_SECONDS:
                continue
            path.unlink()
        except OSError as error:  # a publish of another attempt ended just now; else it only takes room
            log.warning("%s, left by an attempt that was killed, cannot be removed: %s", path.name, error)
            continue
        log.info("removed %s (%d bytes), left by an attempt that was killed", path.name, about.st_size)
