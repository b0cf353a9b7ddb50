"""Lists of images, one name a line, that say which images of a folder are used, and for what.

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
    """What a list says of a folder.

    Attributes:
        keys: Images that it names, as :func:`key` says.
        findings: Names that are no image of the folder.
    """

    keys: frozenset[str]
    findings: list[Finding]


def load(path: Path, file: str, listing: Listing, place: str) -> ImageSet:
    """Read a list.

    Args:
        path: The list.
        file: Its path relative to the data set's root, for messages.
        listing: What the folder holds.
        place: The folder, relative to the data set's root.

    Raises:
        RunnerError: ``InvalidSpec`` when it is no text; ``DatasetNotFound`` when it names no image at all.
        OSError: It cannot be read.
    """
    try:
        entries = lines.text(path, MAX_BYTES).split("\n")
    except ValueError as error:
        raise RunnerError(Reason.INVALID_SPEC, f"{file}: {error}") from error
    known = keys(listing, place)
    chosen: set[str] = set()
    findings = []
    for number, line in enumerate(entries, start=1):
        entry = line.strip()
        if not entry:
            continue
        found, is_member = _resolve(entry, known, place)
        if found is not None and is_member:
            chosen.add(found)
        elif is_member:
            message = f"expected an image of {place or 'the data set'}, got {entry[:_SHOWN]!r}"
            findings.append(Finding(file, Problem.LISTED_WITHOUT_IMAGE, message, number))
    if not chosen:
        example = f"{findings[0].message} in line {findings[0].line}" if findings else "it has no line"
        raise RunnerError(
            Reason.DATASET_NOT_FOUND,
            f"expected names of images in {file}, none of which is there: {example}; images are called "
            f"{', '.join(sorted(known)[:3])}",
        )
    return ImageSet(frozenset(chosen), findings)


def select(listing: Listing, place: str, chosen: Set[str]) -> Listing:
    """The part of a listing that consists of some images. The rest is neither counted nor reported in it."""
    samples = [sample for sample in listing.samples if key(sample.image_file, place) in chosen]
    skipped = [finding for finding in listing.skipped if key(finding.file, place) in chosen]
    unused = {sample.label_file for sample in listing.samples} - {sample.label_file for sample in samples}
    return replace(
        listing,
        samples=samples,
        images=len(samples) + len(skipped),
        skipped=skipped,
        label_files=[(name, path) for name, path in listing.label_files if name not in unused],
    )


def keys(listing: Listing, place: str) -> frozenset[str]:
    """The keys of all images of a listing."""
    files = [sample.image_file for sample in listing.samples] + [finding.file for finding in listing.skipped]
    return frozenset(key(file, place) for file in files)


def key(image_file: str, place: str) -> str:
    """By what an image is matched: its path in the image folder, without suffix, in composed Unicode."""
    return names.stem(image_file[len(place) + 1 if place else 0 :])


def _resolve(entry: str, known: Collection[str], place: str) -> tuple[str | None, bool]:
    """The image that a line names, where it is known, and whether the line says that it is in the set."""
    for candidate in _spellings(entry, place):
        if candidate in known:
            return candidate, True
    name, _, flag = entry.rpartition(" ") if " " in entry else entry.rpartition("\t")
    if name.strip() and flag in _FLAGS:
        for candidate in _spellings(name.strip(), place):
            if candidate in known:
                return candidate, _FLAGS[flag]
        return None, _FLAGS[flag]
    return None, True


def _spellings(name: str, place: str) -> Iterator[str]:
    """What a name can mean, the literal first."""
    path = names.composed(names.printable(name))
    yield path
    path = path.replace("\\", "/").removeprefix("./")
    if place and f"/{place}/" in f"/{path}":
        path = f"/{path}".split(f"/{place}/", 1)[1]
    yield path
    stem, dot, suffix = path.rpartition(".")
    if f"{dot}{suffix}".lower() in OTHER_IMAGE_SUFFIXES.union(IMAGE_SUFFIXES):
        yield stem
