"""Read lists of images, one name a line: those of a folder to use for training or for validation.

VOC's ``ImageSets/Main`` files: a name, or a name and -1 (not in the set), 0 or 1. YOLO's lists: paths with
suffix, from the root, or from wherever the list was written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Set
from dataclasses import dataclass, replace
from pathlib import Path

from tlt_api.failures import Reason
from tlt_runner.data.formats import lines, names
from tlt_runner.data.formats.folders import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES
from tlt_runner.data.sample import Finding, Listing, Problem
from tlt_runner.errors import RunnerError

MAX_BYTES = 256 << 20
_FLAGS = {"-1": False, "0": True, "1": True}
_SHOWN = 200
"""Characters of a line that a message shows."""


@dataclass(frozen=True)
class ImageSet:
    """Images of a folder that a list names.

    Attributes:
        keys: Their keys (:func:`key`).
        findings: Names in the list that are no image of the folder.
    """

    keys: frozenset[str]
    findings: list[Finding]


def load(path: Path, file: str, listing: Listing, folder: str) -> ImageSet:
    """Read a list.

    Args:
        path: The list.
        file: Its path relative to the data set's root, for messages.
        listing: Contents of the folder.
        folder: The folder, relative to the data set's root.

    Raises:
        RunnerError: ``InvalidSpec`` when it is no text; ``DatasetNotFound`` when it names no image at all.
        OSError: It cannot be read.
    """
    try:
        entries = lines.text(path, MAX_BYTES).split("\n")
    except ValueError as error:
        raise RunnerError(Reason.INVALID_SPEC, f"{file}: {error}") from error
    image_keys = keys(listing, folder)
    members: set[str] = set()
    findings = []
    for number, line in enumerate(entries, start=1):
        entry = line.strip()
        if not entry:
            continue
        image_key, is_member = _resolve(entry, image_keys, folder)
        # A name with the flag -1 is not in the set, whether there is such an image or not.
        if image_key is not None and is_member:
            members.add(image_key)
        elif is_member:
            message = f"expected an image of {folder or 'the data set'}, got {entry[:_SHOWN]!r}"
            findings.append(Finding(file, Problem.LISTED_WITHOUT_IMAGE, message, number))
    if not members:
        # Nothing matches: most likely the wrong list, or names in another form, so both are shown.
        example = f"{findings[0].message} in line {findings[0].line}" if findings else "it has no line"
        raise RunnerError(
            Reason.DATASET_NOT_FOUND,
            f"expected names of images in {file}, none of which is there: {example}; images are called "
            f"{', '.join(sorted(image_keys)[:3])}",
        )
    return ImageSet(frozenset(members), findings)


def select(listing: Listing, folder: str, chosen: Set[str]) -> Listing:
    """Select some images of a listing. The others are neither counted nor reported in the result."""
    # By key and not by name: the list may write suffix, folder and accents in its own way.
    samples = [sample for sample in listing.samples if key(sample.image_file, folder) in chosen]
    skipped = [finding for finding in listing.skipped if key(finding.file, folder) in chosen]
    outside = [file for file in listing.outside if key(file, folder) in chosen]
    # A label file that several samples share (coco) stays as long as one of them does.
    unused = {sample.label_file for sample in listing.samples} - {sample.label_file for sample in samples}
    return replace(
        listing,
        samples=samples,
        images=len(samples) + len(skipped),
        skipped=skipped,
        outside=outside,
        label_files=[(name, path) for name, path in listing.label_files if name not in unused],
    )


def keys(listing: Listing, folder: str) -> frozenset[str]:
    """Return the keys of all images of a listing."""
    files = [sample.image_file for sample in listing.samples] + [finding.file for finding in listing.skipped]
    files += listing.outside
    return frozenset(key(file, folder) for file in files)


def key(image_file: str, folder: str) -> str:
    """Key by which an image is matched: its path in the image folder, without suffix, in composed Unicode."""
    # image_file is relative to the root; what is above the folder is cut off.
    return names.stem(image_file[len(folder) + 1 if folder else 0 :])


def _resolve(entry: str, image_keys: Collection[str], folder: str) -> tuple[str | None, bool]:
    """Find the image that a line names, if there is one, and whether the line puts it into the set."""
    # The whole line first: a name may end in a space and a number ("frame 1"), which is then no flag.
    for candidate in _spellings(entry, folder):
        if candidate in image_keys:
            return candidate, True
    # VOC's lists pad the flag with spaces ("000005 -1", "000007  1"); some tools write a tab.
    name, _, flag = entry.rpartition(" ") if " " in entry else entry.rpartition("\t")
    if name.strip() and flag in _FLAGS:
        for candidate in _spellings(name.strip(), folder):
            if candidate in image_keys:
                return candidate, _FLAGS[flag]
        return None, _FLAGS[flag]
    return None, True


def _spellings(name: str, folder: str) -> Iterator[str]:
    """Yield the keys that a name can stand for, the literal one first."""
    path = names.composed(names.printable(name))
    yield path
    # Lists that were written on Windows, or relative to the list.
    path = path.replace("\\", "/").removeprefix("./")
    # YOLO's lists have paths from the root or from another machine's root: what follows the folder counts.
    if folder and f"/{folder}/" in f"/{path}":
        path = f"/{path}".split(f"/{folder}/", 1)[1]
    yield path
    # Only an image's suffix is cut off: the name "frame.0001" has none.
    stem, dot, suffix = path.rpartition(".")
    if f"{dot}{suffix}".lower() in OTHER_IMAGE_SUFFIXES.union(IMAGE_SUFFIXES):
        yield stem
