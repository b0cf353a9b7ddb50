"""What a label format yields, whatever the format: samples, labelled boxes, and verdicts on what is wrong.

Readers (:mod:`tlt_runner.data.formats`) fill these in; preparation consumes them and knows no format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class Problem(StrEnum):
    """What can be wrong with a file or a line."""

    EMPTY_FILE = "EmptyFile"
    UNREADABLE_IMAGE = "UnreadableImage"
    TRUNCATED_IMAGE = "TruncatedImage"
    NO_LABEL = "NoLabel"
    DUPLICATE_NAME = "DuplicateName"
    LABEL_WITHOUT_IMAGE = "LabelWithoutImage"
    UNREADABLE_LABEL = "UnreadableLabel"
    WRONG_COLUMNS = "WrongColumns"
    NOT_A_NUMBER = "NotANumber"
    INVERTED_BOX = "InvertedBox"
    OUTSIDE_IMAGE = "OutsideImage"
    TOO_SMALL = "TooSmall"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        file: Path relative to the data set's root.
        problem: What kind.
        message: Field, expected, got.
        line: Line number from 1, where the file has lines.
    """

    file: str
    problem: Problem
    message: str
    line: int | None = None

    def __str__(self) -> str:
        """``file:line: problem: message``."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.problem}: {self.message}"


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """One object as its label says, in pixels of the original image; pixel 0 begins at 0.0.

    Attributes:
        class_name: The label's own class, before mapping.
        yxyx: Top, left, bottom, right edge.
        truncation: 0 (whole) to 1 (almost outside the image).
        occlusion: 0 visible, 1 partly, 2 largely occluded, 3 unknown; from 1 on "difficult" in evaluation.
        line: Line of the label file, from 1.
    """

    class_name: str
    yxyx: tuple[float, float, float, float]
    truncation: float
    occlusion: int
    line: int


@dataclass(frozen=True)
class Labels:
    """What the label of one image says.

    Attributes:
        boxes: Its objects, all classes.
        findings: Lines that could not be used.
        ignored: Regions marked as "do not care"; they are not objects.
    """

    boxes: tuple[LabelledBox, ...] = ()
    findings: tuple[Finding, ...] = ()
    ignored: int = 0


@dataclass(frozen=True)
class Sample:
    """An image with its label.

    Attributes:
        name: Image folder and stem: ``training/image_2/000001``.
        image: File.
        label: File.
        image_file: The image's path relative to the data set's root, for messages.
        label_file: The label's.
    """

    name: str
    image: Path
    label: Path
    image_file: str
    label_file: str


@dataclass(frozen=True)
class Listing:
    """What the folders of a data set hold.

    Attributes:
        samples: Images with a label, by name.
        images: Number of image files.
        skipped: Images that cannot be samples.
        orphans: Labels without an image.
        other_files: Entries of the image folder that are no images.
    """

    samples: Sequence[Sample]
    images: int
    skipped: Sequence[Finding]
    orphans: Sequence[Finding]
    other_files: int


@dataclass(frozen=True)
class Converted:
    """What became of one sample.

    Attributes:
        example: The record; None when the image was left out.
        skipped: Why it was left out.
        dropped: Label lines that were left out of it.
        objects: Objects in the record, by class id.
        source_classes: Class of every label line that could be read; empty when the image was left out.
        clipped: Boxes that were cut at the image's edge.
        ignored: Regions to leave out of account.
        upright: Whether the image file asks viewers for no turning or mirroring.
    """

    example: bytes | None = None
    skipped: Finding | None = None
    dropped: list[Finding] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    source_classes: list[str] = field(default_factory=list)
    clipped: int = 0
    ignored: int = 0
    upright: bool = True


class Reader(Protocol):
    """One label format."""

    def listing(self) -> Listing:
        """Find the samples, opening as little as possible."""

    def read(self, sample: Sample) -> Labels:
        """Read one sample's labels. What is wrong with them is in the result, never an exception."""
