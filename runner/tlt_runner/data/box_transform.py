"""Filter the boxes of an image and map them to the resized image.

Called by :mod:`tlt_runner.data.preparation.convert`, for records and for folders of another format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.images import decode, geometry
from tlt_runner.data.sample import Finding, LabelledBox, Labels, Problem, Sample

SMALLEST_SIDE = 1.0
"""Side in pixels below which an object is dropped: no proposal is that small, and VOC cannot express it."""
EXACT = 1e-3
"""Tolerance in pixels: label formats round."""


def check_label(header: decode.Header, labels: Labels) -> None:
    """Check that a label could be read and is of an image of this size.

    An image whose label cannot be read is no image without objects: it would teach that they are background.

    Raises:
        BadImageError: ``UnreadableLabel``, ``SizeMismatch``.
    """
    # Lines that cannot be used are dropped one by one; a label that cannot be read has no lines.
    for finding in labels.findings:
        if finding.problem == Problem.UNREADABLE_LABEL:
            raise decode.BadImageError(finding.problem, f"{finding.position}: {finding.message}")
    labelled = labels.image_size
    # Labels of another size belong to another image, or to one that was resized since.
    if labelled is None or labelled == (header.height, header.width):
        return
    message = (
        f"expected {labelled[1]} x {labelled[0]} pixels as its label says, the image has "
        f"{header.width} x {header.height}"
    )
    # Orientations 5 to 8 swap height and width: the label was made with a tool that turns the image.
    if header.orientation >= 5 and labelled == (header.width, header.height):
        message += (
            ": the label speaks of the image after its EXIF orientation is applied, but the pixels are "
            "taken as they are stored. Turn the pixels in the file (exiftran -ai, or jpegtran) and remove "
            "the tag"
        )
    raise decode.BadImageError(Problem.SIZE_MISMATCH, message)


@dataclass(frozen=True)
class TransformedBoxes:
    """Boxes of one image after it was resized.

    Attributes:
        boxes: Usable boxes, with the class to learn, in pixels of the resized image.
        dropped: Findings of the boxes that cannot be used.
        clipped: Number of usable boxes that were cut at the image's edge.
    """

    boxes: Sequence[LabelledBox]
    dropped: Sequence[Finding]
    clipped: int


def transform(
    boxes: Sequence[LabelledBox],
    sample: Sample,
    mapping: ClassMapping,
    original_size: tuple[int, int],
    placement: geometry.Placement,
) -> TransformedBoxes:
    """Filter the boxes of one image, and map them to the resized image.

    Args:
        boxes: Objects, in pixels of the original image.
        sample: The image with its label, for messages.
        mapping: Classes to keep; boxes of others are passed over.
        original_size: Height and width of the original image.
        placement: Position of the original image in the resized one.
    """
    mapped = [(box, name) for box in boxes if (name := mapping.target(box.class_name)) is not None]
    original = np.array([box.yxyx for box, _ in mapped], np.float64).reshape(-1, 4)
    inside = geometry.clip(original, *original_size)
    edges = placement.to_network(inside)
    # Only for the count of cut boxes: a difference by rounding is none.
    moved = np.abs(inside - original).max(axis=1, initial=0.0) > EXACT
    # What is too small is decided in pixels of the network, where the object is to be found.
    usable: list[LabelledBox] = []
    dropped: list[Finding] = []
    clipped = 0
    for index, (box, name) in enumerate(mapped):
        problem = _problem(box.yxyx, inside[index], edges[index])
        if problem is not None:
            message = _message(problem, box, original_size)
            dropped.append(Finding(sample.label_file, problem, message, box.line, box.yxyx))
            continue
        clipped += int(moved[index])
        y1, x1, y2, x2 = edges[index].tolist()
        usable.append(replace(box, class_name=name, yxyx=(y1, x1, y2, x2)))
    return TransformedBoxes(usable, dropped, clipped)


def _problem(
    yxyx: tuple[float, float, float, float], inside: geometry.FloatArray, edges: geometry.FloatArray
) -> Problem | None:
    if not (yxyx[0] < yxyx[2] and yxyx[1] < yxyx[3]):
        return Problem.INVERTED_BOX
    # Nothing of the box is left after cutting.
    if not (inside[0] < inside[2] and inside[1] < inside[3]):
        return Problem.OUTSIDE_IMAGE
    if min(edges[2] - edges[0], edges[3] - edges[1]) < SMALLEST_SIDE - EXACT:
        return Problem.TOO_SMALL
    return None


def _message(problem: Problem, box: LabelledBox, original_size: tuple[int, int]) -> str:
    y1, x1, y2, x2 = box.yxyx
    expected = {
        Problem.INVERTED_BOX: "xmin < xmax and ymin < ymax",
        Problem.OUTSIDE_IMAGE: (
            f"a box that overlaps the image of {original_size[1]} x {original_size[0]} pixels"
        ),
        Problem.TOO_SMALL: f"a box of at least {SMALLEST_SIDE:g} pixel a side after resizing",
    }
    return f"expected {expected[problem]}, got xmin {x1:g}, ymin {y1:g}, xmax {x2:g}, ymax {y2:g}"
