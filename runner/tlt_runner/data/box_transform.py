"""Which objects of an image are used, and where they come to lie after it was brought to size.

Called for records (:mod:`tlt_runner.data.preparation.convert`) and for folders of another format
(:mod:`tlt_runner.data.preparation.export_folder`), so that both keep and drop the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.images import decode, geometry
from tlt_runner.data.sample import Converted, Finding, LabelledBox, Labels, Problem, Sample

SMALLEST_SIDE = 1.0
"""Pixels below which an object is dropped: no proposal can be that small, and VOC cannot say it."""
EXACT = 1e-3
"""Pixels that do not matter: label formats round."""


def check_label(head: decode.Header, labels: Labels) -> None:
    """See whether a label can be read and speaks of this image.

    An image whose label cannot be read is no image without objects: it would teach that they are background.

    Raises:
        BadImageError: ``UnreadableLabel``, ``SizeMismatch``.
    """
    for finding in labels.findings:
        if finding.problem == Problem.UNREADABLE_LABEL:
            raise decode.BadImageError(finding.problem, f"{finding.place}: {finding.message}")
    said = labels.image_size
    if said is None or said == (head.height, head.width):
        return
    message = (
        f"expected {said[1]} x {said[0]} pixels as its label says, the image has {head.width} x {head.height}"
    )
    if head.orientation >= 5 and said == (head.width, head.height):
        message += (
            ": the label speaks of the image after its EXIF orientation is applied, but the pixels are "
            "taken as they are stored. Turn the pixels in the file (exiftran -ai, or jpegtran) and remove "
            "the tag"
        )
    raise decode.BadImageError(Problem.SIZE_MISMATCH, message)


def refused(sample: Sample, error: decode.BadImageError) -> Converted:
    """What becomes of a sample whose image cannot be used."""
    return Converted(skipped=Finding(sample.image_file, error.problem, error.message))


@dataclass(frozen=True)
class Placed:
    """What became of the boxes of one image.

    Attributes:
        kept: Box, class to learn, edges yxyx in pixels of the network's input.
        dropped: Those that cannot be used.
        clipped: How many of those kept were cut at the image's edge.
    """

    kept: Sequence[tuple[LabelledBox, str, np.ndarray]]
    dropped: Sequence[Finding]
    clipped: int


def place(
    boxes: Sequence[LabelledBox],
    sample: Sample,
    mapping: ClassMapping,
    original_size: tuple[int, int],
    where: geometry.Placement,
) -> Placed:
    """Bring the boxes of one image to its new place.

    Args:
        boxes: Objects, in pixels of the original image.
        sample: Where they are from.
        mapping: Classes to keep; boxes of others are passed over.
        original_size: Height and width of the original image.
        where: Where it goes.
    """
    named = [(box, name) for box in boxes if (name := mapping.target(box.class_name)) is not None]
    given = np.array([box.yxyx for box, _ in named], np.float64).reshape(-1, 4)
    inside = geometry.clip(given, *original_size)
    edges = where.to_network(inside)
    moved = np.abs(inside - given).max(axis=1, initial=0.0) > EXACT
    kept: list[tuple[LabelledBox, str, np.ndarray]] = []
    dropped: list[Finding] = []
    clipped = 0
    for index, (box, name) in enumerate(named):
        problem = _problem(box.yxyx, inside[index], edges[index])
        if problem is not None:
            why = _why(problem, box, original_size)
            dropped.append(Finding(sample.label_file, problem, why, box.line, box.yxyx))
            continue
        clipped += int(moved[index])
        kept.append((box, name, edges[index]))
    return Placed(kept, dropped, clipped)


def _problem(
    yxyx: tuple[float, float, float, float], inside: geometry.FloatArray, edges: geometry.FloatArray
) -> Problem | None:
    if not (yxyx[0] < yxyx[2] and yxyx[1] < yxyx[3]):
        return Problem.INVERTED_BOX
    if not (inside[0] < inside[2] and inside[1] < inside[3]):
        return Problem.OUTSIDE_IMAGE
    if min(edges[2] - edges[0], edges[3] - edges[1]) < SMALLEST_SIDE - EXACT:
        return Problem.TOO_SMALL
    return None


def _why(problem: Problem, box: LabelledBox, original_size: tuple[int, int]) -> str:
    y1, x1, y2, x2 = box.yxyx
    expected = {
        Problem.INVERTED_BOX: "xmin < xmax and ymin < ymax",
        Problem.OUTSIDE_IMAGE: (
            f"a box that overlaps the image of {original_size[1]} x {original_size[0]} pixels"
        ),
        Problem.TOO_SMALL: f"a box of at least {SMALLEST_SIDE:g} pixel a side after resizing",
    }
    return f"expected {expected[problem]}, got xmin {x1:g}, ymin {y1:g}, xmax {x2:g}, ymax {y2:g}"
