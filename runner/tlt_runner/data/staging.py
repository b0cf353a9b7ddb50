"""A folder of records that appears whole or not at all, whoever is killed and however many write it at once.

Records are made in a hidden folder beside their place (so that a volume needs no second disk) and renamed
when they are whole. Each hidden folder is locked by its maker: one whose lock is free belongs to a run that
was killed, and the next run removes it. Of two runs that make the same records the first to finish wins, and
the other uses the winner's.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tlt_api.failures import Reason
from tlt_runner.data.records import MANIFEST, REPORT, Records, load_records, open_records
from tlt_runner.errors import RunnerError
from tlt_runner.storage import PARTIAL_SUFFIX, Storage, join, storage_errors, sync_folder

log = logging.getLogger(__name__)
LOCK = ".lock"
QUIET_SECONDS = 60.0
"""A hidden folder written to this recently is never removed: locks may not reach across nodes."""


def existing(storage: Storage, uri: str, digest: str) -> Records | None:
    """The records at an address, if they are whole; damaged ones are removed."""
    if not storage.exists(join(uri, MANIFEST)):
        return None
    try:
        records = load_records(storage, uri, digest)
        if (records.folder / REPORT).is_file():
            return records
        log.warning("%s has no %s: the records are made again", uri, REPORT)
    except RunnerError as error:
        if error.reason != Reason.CHECKSUM_MISMATCH:
            raise
        log.warning("damaged records are made again: %s", error.message)
    damaged = storage.local_path(uri)
    if damaged is not None:
        with storage_errors(uri):
            hidden = damaged.parent / _hidden_name(damaged.name)
            damaged.rename(hidden)
            shutil.rmtree(hidden)
    return None


@contextmanager
def staging_folder(storage: Storage, uri: str, quiet_seconds: float = QUIET_SECONDS) -> Iterator[Path]:
    """An empty hidden folder in which the records of an address can be made; gone afterwards.

    Args:
        storage: Knows where the address is.
        uri: Where the records will be.
        quiet_seconds: Age from which another's unlocked folder counts as abandoned.
    """
    target = storage.local_path(uri) or storage.scratch / "records" / uri.rpartition("/")[2]
    with storage_errors(uri):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent, quiet_seconds)
        folder = target.parent / _hidden_name(target.name)
        folder.mkdir()
    try:
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(storage: Storage, folder: Path, uri: str) -> Records:
    """Make a whole staging folder the records of the address.

    Returns:
        The records that are there now: these, or those of a run that finished first.
    """
    with storage_errors(uri):
        (folder / LOCK).unlink()
    target = storage.local_path(uri)
    if target is None:
        storage.publish_folder(folder, uri, last=MANIFEST)
        target = storage.scratch / "records" / uri.rpartition("/")[2]
        shutil.rmtree(target, ignore_errors=True)
    with storage_errors(uri):
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        try:
            folder.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        sync_folder(target.parent)
    return open_records(target, uri)


def remove_abandoned(parent: Path, quiet_seconds: float = QUIET_SECONDS) -> list[Path]:
    """Remove the hidden folders of runs that were killed; returns what was removed."""
    removed = []
    for folder in sorted(parent.glob(f".*{PARTIAL_SUFFIX}")):
        if folder.is_dir() and _is_quiet(folder, quiet_seconds) and not _is_locked(folder):
            log.warning("removing the half-made records of a killed run: %s", folder)
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def _is_quiet(folder: Path, seconds: float) -> bool:
    try:
        newest = max([folder.stat().st_mtime, *(path.stat().st_mtime for path in folder.iterdir())])
    except FileNotFoundError:
        return False
    return time.time() - newest >= seconds


def _is_locked(folder: Path) -> bool:
    try:
        with (folder / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _hidden_name(name: str) -> str:
    return f".{name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}"
