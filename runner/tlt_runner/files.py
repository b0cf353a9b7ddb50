"""Files that appear whole or not at all, and locks on files.

A file is written under a hidden name beside its own (suffix ``.partial``), flushed to the disk and renamed:
a reader, and the next run after a kill or a power failure, finds the old content or the new one. Files that
can be made again may skip the flush. Nothing here knows of addresses or of the failure taxonomy: errors are
the operating system's.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PARTIAL_SUFFIX = ".partial"
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""Error numbers of file systems without hard links (object stores mounted as folders, SMB)."""


@contextmanager
def atomically(target: Path, partial: Path | None = None, *, durable: bool = True) -> Iterator[Path]:
    """Yield a path to write to; the file becomes ``target`` at the end. After an exception nothing is left.

    Args:
        target: The file to make or to replace.
        partial: Name to write under, in the same folder; by default a new one of :func:`partial_name`.
        durable: False lets the operating system choose when the file reaches the disk: after a power failure
            it may be empty or missing; after a kill it is whole or absent all the same.
    """
    partial = partial or partial_name(target)
    try:
        yield partial
        if durable:
            settle(partial, target)
        else:
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write(
    target: Path, content: bytes | memoryview | str, partial: Path | None = None, *, durable: bool = True
) -> None:
    """Write a file whole or not at all; text is encoded as UTF-8. Arguments as of :func:`atomically`."""
    with atomically(target, partial, durable=durable) as path:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def create(target: Path, content: bytes) -> bool:
    """Make a file, whole or not at all, unless there is one of this name; return False if there is.

    Of several processes at the same time, on other machines too, one makes it.
    """
    partial = partial_name(target)
    try:
        partial.write_bytes(content)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        # A link, because it fails if the name is taken; a rename would replace the other file.
        try:
            os.link(partial, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # A reader may meet the file before its content is there.
            with target.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(target.parent)
        return True
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)


def partial_name(target: Path) -> Path:
    """Return a new hidden name beside a file, under which to write it."""
    # A random part, because two processes may write the same target.
    return target.parent / f".{target.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}"


def settle(partial: Path, target: Path) -> None:
    """Give a complete file its final name, durably."""
    # Content before name: after a power failure a renamed file may otherwise be empty.
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    # A rename changes the folder, not the file: the folder has to reach the disk, too.
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file for this process and its children; False if another process holds the lock.

    The lock ends when the last descriptor of the open file is closed, which the death of a process does too.
    """
    # flock, not lockf: its lock belongs to the open file, so a child that inherits the descriptor holds it,
    # and closing another descriptor of the same file does not end it.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        # Reads by blocks, so a model of gigabytes takes no memory, and releases the interpreter's lock.
        return hashlib.file_digest(file, "sha256").hexdigest()
