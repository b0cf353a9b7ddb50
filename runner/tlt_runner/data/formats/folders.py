"""What is in a folder of images or labels, whatever people put there, and which label belongs to which image.

Every reader begins here. A folder is read with its sub-folders (:mod:`~tlt_runner.data.formats.entries`);
no file is opened.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from posixpath import basename, splitext

from tlt_runner.data.formats.entries import NO_FILE, Kind, scan
from tlt_runner.data.formats.names import is_safe, printable, stem
from tlt_runner.data.sample import Finding, Listing, Problem, Sample

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
OTHER_IMAGE_SUFFIXES = frozenset(
    (".apng", ".avif", ".bmp", ".cr2", ".dib", ".dng", ".exr", ".gif", ".heic", ".heif", ".j2k", ".jfif")
    + (".jp2", ".jpe", ".jxl", ".nef", ".pbm", ".pgm", ".pnm", ".ppm", ".svg", ".tga", ".tif", ".tiff")
    + (".webp",)
)
"""Images that are not read; none is passed over as if it were no image."""
_NAMED = 3
"""Images that a message names."""


@dataclass(frozen=True)
class Place:
    """A folder of the data set.

    Attributes:
        folder: Where it is in the file system.
        place: Its path relative to the data set's root; "" for the root.
        mount: Folder out of which no link may lead: the mounted claim; None where there is none.
    """

    folder: Path
    place: str
    mount: Path | None = None

    def file(self, name: str) -> str:
        """A file below it as it stands in reports and records: relative to the root, always encodable."""
        return printable(f"{self.place}/{name}" if self.place else name)

    def holds(self, file: str) -> bool:
        """Whether a file (relative to the root) is in the folder or below it."""
        return not self.place or file.startswith(f"{self.place}/")


@dataclass(frozen=True)
class Images:
    """The images of a folder.

    Attributes:
        names: Paths of the images relative to the folder, sorted.
        skipped: What looks like an image or holds some, and cannot be used.
        other_files: Entries that are no images; a hidden folder is one.
    """

    names: list[str]
    skipped: list[Finding]
    other_files: int


def find_images(place: Place) -> Images:
    """The images of a folder and its sub-folders.

    Raises:
        OSError: The folder cannot be listed.
    """
    names: list[str] = []
    skipped: list[Finding] = []
    other_files = 0
    for name, kind in scan(place.folder, place.mount):
        problem = _image_problem(name, kind)
        if problem is not None:
            skipped.append(Finding(place.file(name), *problem))
        elif kind is Kind.FILE and _suffix(name) in IMAGE_SUFFIXES:
            names.append(name)
        else:
            other_files += 1
    return Images(sorted(names), sorted(skipped, key=_file), other_files)


def _image_problem(name: str, kind: Kind) -> tuple[Problem, str] | None:
    """Why an entry that is an image, or could hold some, cannot be used."""
    if kind in (Kind.FAR_FOLDER, Kind.CLOSED_FOLDER):
        return Problem.UNREADABLE_IMAGE, NO_FILE[kind]
    suffix = _suffix(name)
    if kind not in (Kind.FILE, Kind.BROKEN, Kind.FAR_FILE):
        return None
    if suffix in OTHER_IMAGE_SUFFIXES:
        return Problem.UNSUPPORTED_IMAGE, f"expected .jpg, .jpeg or .png, got {suffix}: convert it"
    if suffix not in IMAGE_SUFFIXES:
        return None
    if kind is not Kind.FILE:
        return Problem.UNREADABLE_IMAGE, NO_FILE[kind]
    if not is_safe(name):
        message = "expected a name in UTF-8 without control characters: rename it, and its label"
        return Problem.UNSAFE_NAME, message
    return None


def find_labels(place: Place, suffix: str) -> tuple[dict[str, str], list[Finding]]:
    """The labels of a folder and its sub-folders.

    Args:
        place: The folder.
        suffix: How their names end, in lower case; case does not matter.

    Returns:
        Stem (relative, see :func:`stem`) -> relative path, sorted; and what cannot be read.

    Raises:
        OSError: The folder cannot be listed.
    """
    names: list[str] = []
    findings: list[Finding] = []
    for name, kind in scan(place.folder, place.mount):
        is_unreadable = kind in (Kind.BROKEN, Kind.FAR_FILE) and _suffix(name) == suffix
        if is_unreadable or kind in (Kind.FAR_FOLDER, Kind.CLOSED_FOLDER):
            findings.append(Finding(place.file(name), Problem.UNREADABLE_LABEL, NO_FILE[kind]))
        elif kind is Kind.FILE and _suffix(name) == suffix:
            names.append(name)
    labels: dict[str, str] = {}
    for name in sorted(names):
        used = labels.setdefault(stem(name), name)
        if used != name:
            message = f"{printable(used)} has the same stem and is used"
            findings.append(Finding(place.file(name), Problem.DUPLICATE_NAME, message))
    return labels, sorted(findings, key=_file)


_SIDE_FILE = re.compile(r"classes|labels|names|notes|readme.*|train|val|valid|test|trainval", re.IGNORECASE)
"""Names of what tools and people put beside labels, where no image has them."""


def pair(images: Place, labels: Place, suffix: str) -> Listing:
    """Give every image the label of the same name.

    The label of ``a/000001.jpg`` is ``a/000001`` with the suffix below the labels' folder. Where there is
    none, it is ``000001`` in the labels' folder itself, if no other image has that name.

    Args:
        images: The images' folder.
        labels: The labels'.
        suffix: How labels end, in lower case.

    Returns:
        The listing; a sample's ``key`` is the path of its label.

    Raises:
        OSError: A folder cannot be listed.
    """
    found = find_images(images)
    label_names, findings = find_labels(labels, suffix)
    stems = {stem(name): name for name in (*found.names, *_names(images, found.skipped))}
    rivals = _rivals(stems, label_names)
    paths = {name: labels.folder / name for name in label_names.values()}
    samples: dict[str, Sample] = {}
    skipped = list(found.skipped)
    for name in found.names:
        key = stem(name)
        label = label_names.get(key) or label_names.get(_flat(key, rivals))
        if key in samples:
            message = f"{basename(samples[key].image_file)} has the same stem and is used"
            skipped.append(Finding(images.file(name), Problem.DUPLICATE_NAME, message))
        elif label is None:
            message = f"expected {labels.file(splitext(name)[0] + suffix)}, which does not exist"
            skipped.append(Finding(images.file(name), Problem.NO_LABEL, message))
        elif key not in label_names and len(rivals[basename(key)]) > 1:
            message = _ambiguous(labels.file(label), rivals[basename(key)])
            skipped.append(Finding(images.file(name), Problem.DUPLICATE_NAME, message))
        else:
            samples[key] = Sample(
                name=images.file(splitext(name)[0]),
                stem=splitext(name)[0],
                image=images.folder / name,
                image_file=images.file(name),
                label_file=labels.file(label),
                key=paths[label],
            )
    alone = [name for key, name in label_names.items() if key not in stems and key not in rivals]
    beside = {name for name in alone if _SIDE_FILE.fullmatch(basename(stem(name)))}
    label_files = {labels.file(name): path for name, path in paths.items() if name not in beside}
    return Listing(
        samples=list(samples.values()),
        images=len(found.names) + len(found.skipped),
        skipped=sorted(skipped, key=_file),
        orphans=[_orphan(images, labels, name) for name in alone if name not in beside],
        findings=findings,
        # Labels beside the images are no other files.
        other_files=found.other_files - sum(images.holds(labels.file(name)) for name in paths),
        label_files=list(label_files.items()),
        side_files=[labels.file(name) for name in alone if name in beside],
    )


def _rivals(stems: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, list[str]]:
    """Labels in no sub-folder and without an image of their own -> images of that name in sub-folders."""
    rivals: dict[str, list[str]] = defaultdict(list)
    free = {key for key in labels if "/" not in key and key not in stems}
    if free:
        for key, name in stems.items():
            if basename(key) in free:
                rivals[basename(key)].append(name)
    return dict(rivals)


def _flat(key: str, rivals: Mapping[str, Sequence[str]]) -> str:
    return basename(key) if basename(key) in rivals else key


def _ambiguous(label: str, rivals: Sequence[str]) -> str:
    named = [printable(name) for name in sorted(rivals)]
    if len(named) > _NAMED:
        named = [*named[: _NAMED - 1], f"{len(named) - _NAMED + 1} others"]
    images = f"{', '.join(named[:-1])} or {named[-1]}"
    return f"{label} could belong to {images}: put labels into the same sub-folders"


def _orphan(images: Place, labels: Place, name: str) -> Finding:
    expected = f"expected {images.file(splitext(name)[0])} with one of {', '.join(IMAGE_SUFFIXES)}"
    return Finding(labels.file(name), Problem.LABEL_WITHOUT_IMAGE, expected)


def _names(place: Place, findings: Sequence[Finding]) -> list[str]:
    """Paths relative to the folder of what was found wrong in it."""
    return [finding.file[len(place.place) + 1 if place.place else 0 :] for finding in findings]


def holdings(folder: Path) -> str:
    """What a folder holds, for messages: ``3 .xml files, 1 .json file``, the most frequent first."""
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


def _file(finding: Finding) -> str:
    return finding.file
