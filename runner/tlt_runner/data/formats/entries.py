"""List the entries of a folder and its sub-folders, each with its kind.

Links to folders are not followed, so that no loop and nothing outside the data set is read; links to files
are, as far as they stay within the data set's claim. An entry costs the same whatever it is: its kind comes
with the folder's own listing, only links are looked up.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import Path

_CLOSED = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
"""Errors for which a sub-folder is passed over; any other could be temporary, and ends the run."""


class Kind(Enum):
    """Kind of an entry of a folder."""

    FILE = auto()
    HIDDEN = auto()
    KNOWN_FOLDER = auto()
    BROKEN = auto()
    FAR_FILE = auto()
    FAR_FOLDER = auto()
    CLOSED_FOLDER = auto()


NO_FILE = {
    Kind.BROKEN: "expected a file, got a link to nothing or a special file",
    Kind.FAR_FILE: "expected a file, got a link out of the claim, which is not followed: copy the file",
    Kind.FAR_FOLDER: "expected a folder, got a link to a folder elsewhere, which is not followed: copy it",
    Kind.CLOSED_FOLDER: "expected a folder that can be opened: permission denied, or its path is too long",
}


def scan(folder: Path, mount: Path | None = None) -> Iterator[tuple[str, Kind]]:
    """List every entry below a folder, with its relative path, in no order, but for folders that are entered.

    A link to a folder of the same tree is a ``KNOWN_FOLDER``: its files are found where they are.

    Args:
        folder: The folder.
        mount: A link to a file that is not below this folder is a ``FAR_FILE``; None follows every such link.
    """
    # The claim may be a link itself: only resolved paths can be compared.
    claim = None if mount is None else mount.resolve()
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        try:
            entries = os.scandir(folder / prefix)
        except OSError as error:
            # The folder itself must be readable; a closed sub-folder is one finding among others.
            if not prefix or error.errno not in _CLOSED:
                raise
            yield prefix[:-1], Kind.CLOSED_FOLDER
            continue
        with entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.name.startswith("."):
                    yield name, Kind.HIDDEN
                # Only links need a look-up; the kind of any other entry comes with the listing.
                elif entry.is_symlink():
                    yield name, _kind_of_link(entry, folder, claim)
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{name}/")
                else:
                    yield name, Kind.FILE if entry.is_file(follow_symlinks=False) else Kind.BROKEN


def _kind_of_link(entry: os.DirEntry[str], root: Path, claim: Path | None) -> Kind:
    try:
        mode = entry.stat().st_mode
    except OSError:
        return Kind.BROKEN
    if stat.S_ISDIR(mode):
        return Kind.KNOWN_FOLDER if _leads_into(root.resolve(), entry) else Kind.FAR_FOLDER
    if not stat.S_ISREG(mode):
        return Kind.BROKEN
    return Kind.FILE if claim is None or _leads_into(claim, entry) else Kind.FAR_FILE


def _leads_into(folder: Path, entry: os.DirEntry[str]) -> bool:
    return Path(entry.path).resolve().is_relative_to(folder)
