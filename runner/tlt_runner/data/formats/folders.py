"""List the image files and label files of a folder, and pass over whatever else people put into it.

Every reader begins here. A folder is read with its sub-folders; no file is opened. Links to folders are not
followed, so that no loop and nothing outside the data set is read; links to files are, as far as they stay
within the data set's claim. An entry costs the same whatever it is: its kind comes with the folder's own
listing, only links are looked up.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from posixpath import splitext

from tlt_runner.data.formats.names import is_safe, printable, stem
from tlt_runner.data.sample import Finding, Problem

_CLOSED = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
"""Errors for which a sub-folder is passed over; any other could be temporary, and ends the run."""


class EntryKind(Enum):
    """Kind of an entry of a folder."""

    FILE = auto()
    HIDDEN = auto()
    KNOWN_FOLDER = auto()
    BROKEN = auto()
    FAR_FILE = auto()
    FAR_FOLDER = auto()
    CLOSED_FOLDER = auto()


NO_FILE = {
    EntryKind.BROKEN: "expected a file, got a link to nothing or a special file",
    EntryKind.FAR_FILE: "expected a file, got a link out of the claim, which is not followed: copy the file",
    EntryKind.FAR_FOLDER: (
        "expected a folder, got a link to a folder elsewhere, which is not followed: copy it"
    ),
    EntryKind.CLOSED_FOLDER: (
        "expected a folder that can be opened: permission denied, or its path is too long"
    ),
}
"""Why an entry of a kind is no file that can be read, for findings."""


def scan(folder: Path, mount: Path | None = None) -> Iterator[tuple[str, EntryKind]]:
    """List every entry below a folder, with its relative path, in no order, but for folders that are entered.

    A link to a folder of the same tree is a ``KNOWN_FOLDER``: its files are found where they are.

    Args:
        folder: The folder.
        mount: A link to a file that is not below this folder is a ``FAR_FILE``; None follows every such link.
    """
    # The claim may be a link itself: only resolved paths can be compared.
    claim = None if mount is None else mount.resolve()
    # A stack of folders instead of a recursion, so that no depth of folders reaches Python's limit.
    unlisted = [""]
    while unlisted:
        prefix = unlisted.pop()
        try:
            entries = os.scandir(folder / prefix)
        except OSError as error:
            # The folder itself must be readable; a closed sub-folder is one finding among others.
            if not prefix or error.errno not in _CLOSED:
                raise
            yield prefix[:-1], EntryKind.CLOSED_FOLDER
            continue
        with entries:
            for entry in entries:
                name = prefix + entry.name
                # Hidden entries are made by tools (.DS_Store, ._1.jpg, .ipynb_checkpoints), not by who
                # labelled the data.
                if entry.name.startswith("."):
                    yield name, EntryKind.HIDDEN
                # Only links need a look-up; the kind of any other entry comes with the listing.
                elif entry.is_symlink():
                    yield name, _kind_of_link(entry, folder, claim)
                elif entry.is_dir(follow_symlinks=False):
                    unlisted.append(f"{name}/")
                else:
                    yield name, EntryKind.FILE if entry.is_file(follow_symlinks=False) else EntryKind.BROKEN


def _kind_of_link(entry: os.DirEntry[str], root: Path, claim: Path | None) -> EntryKind:
    try:
        mode = entry.stat().st_mode
    except OSError:
        # The link leads to nothing, in a circle, or to where nobody may look.
        return EntryKind.BROKEN
    if stat.S_ISDIR(mode):
        return EntryKind.KNOWN_FOLDER if _leads_into(root.resolve(), entry) else EntryKind.FAR_FOLDER
    # A pipe would block its reader for ever, and a device has no end.
    if not stat.S_ISREG(mode):
        return EntryKind.BROKEN
    return EntryKind.FILE if claim is None or _leads_into(claim, entry) else EntryKind.FAR_FILE


def _leads_into(folder: Path, entry: os.DirEntry[str]) -> bool:
    return Path(entry.path).resolve().is_relative_to(folder)


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
OTHER_IMAGE_SUFFIXES = frozenset(
    (".apng", ".avif", ".bmp", ".cr2", ".dib", ".dng", ".exr", ".gif", ".heic", ".heif", ".j2k", ".jfif")
    + (".jp2", ".jpe", ".jxl", ".nef", ".pbm", ".pgm", ".pnm", ".ppm", ".svg", ".tga", ".tif", ".tiff")
    + (".webp",)
)
"""Images that are not read; none is passed over as if it were no image."""
_NAMED = 3
"""Kinds of files that a message names."""


@dataclass(frozen=True)
class SourceFolder:
    """A folder of the data set.

    Attributes:
        path: The folder in the file system.
        relative: Its path relative to the data set's root; "" for the root.
        mount: Folder out of which no link may lead: the mounted claim; None where there is none.
    """

    path: Path
    relative: str
    mount: Path | None = None

    def file(self, name: str) -> str:
        """Name a file below the folder for reports and records: relative to the root, always encodable."""
        return printable(f"{self.relative}/{name}" if self.relative else name)

    def holds(self, file: str) -> bool:
        """Return True if a file (path relative to the root) is in the folder or below it."""
        return not self.relative or file.startswith(f"{self.relative}/")


@dataclass(frozen=True)
class Images:
    """The images of a folder.

    Attributes:
        names: Paths of the images relative to the folder, sorted.
        skipped: Findings about images, and folders that may contain images, that cannot be used.
        other_files: Entries that are no images; a hidden folder is one.
    """

    names: list[str]
    skipped: list[Finding]
    other_files: int


def find_images(folder: SourceFolder) -> Images:
    """List the images of a folder and its sub-folders.

    Raises:
        OSError: The folder cannot be listed.
    """
    names: list[str] = []
    skipped: list[Finding] = []
    other_files = 0
    for name, kind in scan(folder.path, folder.mount):
        problem = _image_problem(name, kind)
        # What cannot be used is reported; what is no image is only counted.
        if problem is not None:
            skipped.append(Finding(folder.file(name), *problem))
        elif kind is EntryKind.FILE and _suffix(name) in IMAGE_SUFFIXES:
            names.append(name)
        else:
            other_files += 1
    # Sorted: file systems list in an order of their own, and records must not depend on it.
    return Images(sorted(names), sorted(skipped, key=file_of), other_files)


def _image_problem(name: str, kind: EntryKind) -> tuple[Problem, str] | None:
    """Explain why an entry that is an image, or may contain images, cannot be used; None for any other."""
    # Nobody can tell what is inside, so it is reported as if there were images.
    if kind in (EntryKind.FAR_FOLDER, EntryKind.CLOSED_FOLDER):
        return Problem.UNREADABLE_IMAGE, NO_FILE[kind]
    suffix = _suffix(name)
    # Hidden entries, and links to folders of this tree, whose files are listed where they are.
    if kind not in (EntryKind.FILE, EntryKind.BROKEN, EntryKind.FAR_FILE):
        return None
    if suffix in OTHER_IMAGE_SUFFIXES:
        return Problem.UNSUPPORTED_IMAGE, f"expected .jpg, .jpeg or .png, got {suffix}: convert it"
    if suffix not in IMAGE_SUFFIXES:
        return None
    if kind is not EntryKind.FILE:
        return Problem.UNREADABLE_IMAGE, NO_FILE[kind]
    # Such a name cannot stand in a list of images or in JSON.
    if not is_safe(name):
        message = "expected a name in UTF-8 without control characters: rename it, and its label"
        return Problem.UNSAFE_NAME, message
    return None


def find_labels(folder: SourceFolder, suffix: str) -> tuple[dict[str, str], list[Finding]]:
    """List the labels of a folder and its sub-folders.

    Args:
        folder: The folder.
        suffix: How their names end, in lower case; case does not matter.

    Returns:
        Stem (relative, see :func:`stem`) -> relative path, sorted; and what cannot be read.

    Raises:
        OSError: The folder cannot be listed.
    """
    names: list[str] = []
    findings: list[Finding] = []
    for name, kind in scan(folder.path, folder.mount):
        is_unreadable = kind in (EntryKind.BROKEN, EntryKind.FAR_FILE) and _suffix(name) == suffix
        if is_unreadable or kind in (EntryKind.FAR_FOLDER, EntryKind.CLOSED_FOLDER):
            findings.append(Finding(folder.file(name), Problem.UNREADABLE_LABEL, NO_FILE[kind]))
        elif kind is EntryKind.FILE and _suffix(name) == suffix:
            names.append(name)
    labels: dict[str, str] = {}
    # Sorted, so that of 1.txt and 1.TXT the same one is used in every run.
    for name in sorted(names):
        used = labels.setdefault(stem(name), name)
        if used != name:
            message = f"{printable(used)} has the same stem and is used"
            findings.append(Finding(folder.file(name), Problem.DUPLICATE_NAME, message))
    return labels, sorted(findings, key=file_of)


def content_summary(folder: Path) -> str:
    """Count a folder's files by kind, for messages: ``3 .xml files, 1 .json file``, by frequency."""
    kinds = Counter(
        "hidden" if kind is EntryKind.HIDDEN else printable(_suffix(name)) or "suffixless"
        for name, kind in scan(folder)
    )
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    listed = [f"{count} {kind} file{'s' * (count != 1)}" for kind, count in ordered[:_NAMED]]
    rest = sum(count for _, count in ordered[_NAMED:])
    return ", ".join(listed + [f"{rest} more"] * (rest > 0)) or "no file"


def _suffix(name: str) -> str:
    # Cameras and Windows write .JPG.
    return splitext(name)[1].lower()


def file_of(finding: Finding) -> str:
    """Return the file of a finding; findings are sorted by it."""
    return finding.file
