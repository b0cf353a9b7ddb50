"""Removes what killed attempts left half written in the output folder. Called once, when a training begins.

A publish writes under a hidden name and renames (:mod:`tlt_runner.storage`); a process that is killed in
between leaves the hidden file. On S3 there is none: an upload that breaks off is no object.
"""

from __future__ import annotations

import logging
import re

from tlt_runner.storage import PARTIAL_SUFFIX, Storage, storage_errors

OLD_SECONDS = 6 * 3600.0
"""Nothing that is still being written is that old."""
_OWN = re.compile(
    r"\.(best\.keras|last\.keras|last\.state\.npz|epoch-\d+\.keras)\.[0-9a-f]{8}" + re.escape(PARTIAL_SUFFIX)
)

log = logging.getLogger(__name__)


def remove(storage: Storage, output_uri: str, now: float) -> None:
    """Remove partial files of a training's own names that are old.

    Args:
        storage: Where the output is.
        output_uri: The output folder; it need not exist.
        now: The time, in seconds since 1970.
    """
    folder = storage.local_path(output_uri)
    if folder is None or not folder.is_dir():
        return
    with storage_errors(output_uri):
        for path in sorted(folder.iterdir()):
            if _OWN.fullmatch(path.name) and now - path.stat().st_mtime > OLD_SECONDS:
                size = path.stat().st_size
                path.unlink(missing_ok=True)
                log.info("removed %s (%d bytes), left by an attempt that was killed", path.name, size)
