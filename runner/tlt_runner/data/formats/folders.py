"""List the image files and label files of a folder, and pass over whatever else people put into it.

Every reader begins here. A folder is read with its sub-folders (:mod:`~tlt_runner.data.formats.entries`);
no file is opened.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from posixpath import splitext

from tlt_runner.data.formats.entries import NO_FILE, Kind, scan
from tlt_runner.data.formats.names import is_safe, printable, stem
from tlt_runner.data.sample import Finding, Problem

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
        """True if a file (path relative to the root) is in the folder or below it."""
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
        if problem is not None:
            skipped.append(Finding(folder.file(name), *problem))
        elif kind is Kind.FILE and _suffix(name) in IMAGE_SUFFIXES:
            names.append(name)
        else:
            other_files += 1
    return Images(sorted(names), sorted(skipped, key=file_of), other_files)


def _image_problem(name: str, kind: Kind) -> tuple[Problem, str] | None:
    """Explain why an entry that is an image, or may contain images, cannot be used; None for any other."""
    # Nobody can tell what is inside, so it is reported as if there were images.
    if kind in (Kind.FAR_FOLDER, Kind.CLOSED_FOLDER):
        return Problem.UNREADABLE_IMAGE, NO_FILE[kind]
    suffix = _suffix(name)
    # Hidden entries, and links to folders of this tree, whose files are listed where they are.
    if kind not in (Kind.FILE, Kind.BROKEN, Kind.FAR_FILE):
        return None
    if suffix in OTHER_IMAGE_SUFFIXES:
        return Problem.UNSUPPORTED_IMAGE, f"expected .jpg, .jpeg or .png, got {suffix}: convert it"
    if suffix not in IMAGE_SUFFIXES:
        return None
    if kind is not Kind.FILE:
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
        is_unreadable = kind in (Kind.BROKEN, Kind.FAR_FILE) and _suffix(name) == suffix
        if is_unreadable or kind in (Kind.FAR_FOLDER, Kind.CLOSED_FOLDER):
            findings.append(Finding(folder.file(name), Problem.UNREADABLE_LABEL, NO_FILE[kind]))
        elif kind is Kind.FILE and _suffix(name) == suffix:
            names.append(name)
    labels: dict[str, str] = {}
    # Sorted, so that of 1.txt and 1.TXT the same one is used in every run.
    for name in sorted(names):
        used = labels.setdefault(stem(name), name)
        if used != name:
            message = f"{printable(used)} has the same stem and is used"
            findings.append(Finding(folder.file(name), Problem.DUPLICATE_NAME, message))
    return labels, sorted(findings, key=file_of)


def holdings(folder: Path) -> str:
    """Count a folder's files by kind, for messages: ``3 .xml files, 1 .json file``, by frequency."""
    kinds = Counter(
        "hidden" if kind is Kind.HIDDEN else printable(_suffix(name)) or "suffixless"
        for name, kind in scan(folder)
    )
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    listed = [f"{count} {kind} file{'s' * (count != 1)}" for kind, count in ordered[:_NAMED]]
    rest = sum(count for _, count in ordered[_NAMED:])
    return ", ".join(listed + [f"{rest} more"] * (rest > 0)) or "no file"


def _suffix(name: str) -> str:
    return splitext(name)[1].lower()


def file_of(finding: Finding) -> str:
    """Return the file of a finding; findings are sorted by it."""
    return finding.file
