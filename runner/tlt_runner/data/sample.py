"""Samples, labelled boxes and findings: the data model between label formats and everything else.

Readers (:mod:`tlt_runner.data.formats`) fill it in; preparation and writers consume it and know no format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

PADDING = -1
"""Class id of a row without a box, where arrays of boxes have a fixed size."""
IGNORED = -2
"""Class id of a region to leave out of account for every class (DontCare); -3 - c is one of class c only (a
crowd of COCO). Class ids of objects are from 0."""


def ignored_id(class_id: int | None) -> int:
    """Return the class id of an ignored region of one class, or of every class (None)."""
    return IGNORED if class_id is None else IGNORED - 1 - class_id


class Problem(StrEnum):
    """Kinds of problems for which a file or a line is left out."""

    # Images that cannot be used.
    EMPTY_FILE = "EmptyFile"
    UNREADABLE_IMAGE = "UnreadableImage"
    TRUNCATED_IMAGE = "TruncatedImage"
    CORRUPT_IMAGE = "CorruptImage"
    HUGE_IMAGE = "HugeImage"
    UNSUPPORTED_IMAGE = "UnsupportedImage"
    SIZE_MISMATCH = "SizeMismatch"
    # Images and labels that do not pair.
    NO_LABEL = "NoLabel"
    DUPLICATE_NAME = "DuplicateName"
    UNSAFE_NAME = "UnsafeName"
    LABEL_WITHOUT_IMAGE = "LabelWithoutImage"
    LISTED_WITHOUT_IMAGE = "ListedWithoutImage"
    # Label files, and lines of them, that cannot be read.
    UNREADABLE_LABEL = "UnreadableLabel"
    WRONG_COLUMNS = "WrongColumns"
    MISSING_FIELD = "MissingField"
    NOT_A_NUMBER = "NotANumber"
    UNKNOWN_CLASS = "UnknownClass"
    NOT_A_BOX = "NotABox"
    # Boxes that were read and cannot be used.
    INVERTED_BOX = "InvertedBox"
    OUTSIDE_IMAGE = "OutsideImage"
    TOO_SMALL = "TooSmall"


class Oddity(StrEnum):
    """Unusual properties of images that are used all the same."""

    WRONG_EXTENSION = "WrongExtension"
    CMYK = "Cmyk"
    SIXTEEN_BIT = "SixteenBit"
    GRAYSCALE = "Grayscale"
    ALPHA = "Alpha"
    TURNED = "Turned"
    TURNED_UPRIGHT = "TurnedUpright"
    ANIMATED = "Animated"


@dataclass(frozen=True)
class Finding:
    """One problem of a file, a line or an entry.

    Attributes:
        file: Path relative to the data set's root.
        problem: Kind of problem.
        message: Field, expected, got.
        line: Line number from 1, if the file has lines.
        box: The box at fault, yxyx, in pixels of the image as stored, for people to look at; not compared.
        entry: The entry at fault, if the file has entries and no lines; not compared.
    """

    file: str
    problem: Problem
    message: str
    line: int | None = None
    box: tuple[float, float, float, float] | None = field(default=None, compare=False)
    entry: str = field(default="", compare=False)

    @property
    def position(self) -> str:
        """``file:line``."""
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def __str__(self) -> str:
        """``file:line: problem: message``."""
        return f"{self.position}: {self.problem}: {self.message}"


def listed(findings: Sequence[Finding], room: int = 600) -> str:
    """Join findings for the message of a failure: the first in any case, others as there is room, none cut.

    Args:
        findings: The findings; at least one.
        room: Characters, of which the message of a failure has 2,000 in a resource's status.
    """
    texts = [str(findings[0])]
    for finding in findings[1:]:
        if len(str(finding)) + sum(map(len, texts)) > room:
            break
        texts.append(str(finding))
    more = len(findings) - len(texts)
    return "; ".join([*texts, *([f"and {more} more"] if more else [])])


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """One object or ignored region, in pixels of the view that was labelled; pixel 0 reaches from 0 to 1.

    Attributes:
        class_name: The label's own class, before mapping; empty for a region that is of every class.
        yxyx: Top, left, bottom, right edge.
        truncation: 0 (whole) to 1 (almost outside the image).
        occlusion: 0 visible, 1 partly, 2 largely occluded, 3 unknown.
        difficult: Ignored in evaluation. In KITTI labels, as in TLT, from occlusion 1 on.
        line: Line of the label file, from 1; None if the file has no lines (coco).
    """

    class_name: str
    yxyx: tuple[float, float, float, float]
    truncation: float = 0.0
    occlusion: int = 0
    difficult: bool = False
    line: int | None = None


@dataclass(frozen=True)
class Labels:
    """Contents of the label of one image.

    Attributes:
        boxes: Its objects, all classes.
        findings: Lines that could not be used.
        ignored: Regions marked as "do not care" (DontCare, iscrowd); they are not objects, and what lies in
            them is not background.
        image_size: Height and width of the image according to the label, if it states them.
        outlines: Number of ``boxes`` that are the bounding box of a polygon or a rotated box.
    """

    boxes: tuple[LabelledBox, ...] = ()
    findings: tuple[Finding, ...] = ()
    ignored: tuple[LabelledBox, ...] = ()
    image_size: tuple[int, int] | None = None
    outlines: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with its label.

    Attributes:
        name: Image folder, sub-folders and stem: ``training/image_2/000001``.
        stem: Sub-folders and stem, relative to the image folder: ``000001``.
        image: File.
        image_file: The image's path relative to the data set's root, for messages.
        label_file: The label's path relative to the data set's root; without a label, where it would be.
        key: Key by which its reader finds the label: a path, or the image's path in a coco file. None for an
            image without a label, which is an image without objects (``dataset.unlabelled: background``).
        orientation: EXIF orientation to apply to the pixels: the label is of the turned view; 1 for none.
    """

    name: str
    stem: str
    image: Path
    image_file: str
    label_file: str
    key: object
    orientation: int = 1


@dataclass(frozen=True)
class Listing:
    """Contents of the folders of a data set.

    Attributes:
        samples: Images with a label, by name.
        images: Number of image files.
        skipped: Images that cannot be samples.
        orphans: Labels without an image.
        findings: Problems of a label file as a whole, or of an entry that belongs to no image.
        other_files: Entries of the image folder that are no images.
        label_files: Path relative to the data set's root and path of every file with labels.
        side_files: Files among the labels that hold none: lists, notes, captions; relative to the root.
        unlisted: Images that none of the data set's lists (imageSet) names; they are not in ``images``.
        outside: Images that the labels do not list (coco), relative to the root: no part of the data set, and
            not in ``images``.
        read_files: Of ``other_files``, those that were read: labels or class names beside the images.
        notes: How the reader understood the files, for the report: one sentence each.
        warnings: What a person should look at before training on them, for the report: one sentence each.
    """

    samples: Sequence[Sample]
    images: int
    skipped: Sequence[Finding]
    orphans: Sequence[Finding]
    findings: Sequence[Finding]
    other_files: int
    label_files: Sequence[tuple[str, Path]]
    side_files: Sequence[str] = ()
    unlisted: int = 0
    outside: Sequence[str] = ()
    read_files: int = 0
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()

    @property
    def unlabelled(self) -> list[str]:
        """Samples without a label: paths of the images relative to the root."""
        return [sample.image_file for sample in self.samples if sample.key is None]


@dataclass(frozen=True)
class SampleOutcome:
    """Result of converting one sample: its record, or why it was left out, with counts and findings.

    Attributes:
        example: The record; None if the image was left out, or exported to a folder.
        skipped: The reason why the image was left out.
        dropped: Label lines that were left out.
        objects: Objects in the record, by class id.
        difficult: Those of them that are difficult, by class id: evaluation leaves them out of account.
        sizes: Height and width of each object, in pixels of the network's input.
        source_classes: Class of every label line that could be read; empty when the image was left out.
        clipped: Boxes that were cut at the image's edge.
        reaching_out: Those of them that were cut by more than a tool's rounding.
        ignored: Regions of the label to leave out of account.
        regions: Those of them in the record: inside the image, and of every class or of one to learn.
        oddities: Unusual properties of the image.
        outlines: Label lines of which the bounding box of a polygon or a rotated box was taken.
    """

    example: bytes | None = None
    skipped: Finding | None = None
    dropped: list[Finding] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    difficult: list[int] = field(default_factory=list)
    sizes: list[tuple[float, float]] = field(default_factory=list)
    source_classes: list[str] = field(default_factory=list)
    clipped: int = 0
    reaching_out: int = 0
    ignored: int = 0
    regions: int = 0
    oddities: tuple[Oddity, ...] = ()
    outlines: int = 0


class Reader(Protocol):
    """Reads the labels of one format.

    Bad data are in the results, never an exception. Several threads call it at the same time.
    """

    def listing(self) -> Listing:
        """Find the samples, opening as little as possible.

        Raises:
            RunnerError: ``DatasetNotFound`` or ``InvalidSpec`` where the whole cannot be read at all.
        """

    def classes(self, sample: Sample) -> Counter[str]:
        """Count a sample's objects by class, of the lines that can be read; opens no image."""

    def read(self, sample: Sample, image_size: tuple[int, int]) -> Labels:
        """Read one sample's labels.

        Args:
            sample: Of this reader's listing.
            image_size: Height and width of the image as stored.
        """

    def image_summary(self) -> str:
        """Count the files of the image folder by kind, for messages."""

    def label_summary(self) -> str:
        """Describe the files at the labels' place, for messages."""
