"""One sample to one record: check or decode, bring to size, let the boxes follow. Worker threads run it.

The decoders, cv2 and zlib release the interpreter's lock, so threads use the cores, and nothing has to be
sent between processes. An image that has the network's size already keeps its bytes: it is checked, not
decoded. That costs less than half of a decode and encode, and loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tlt_api.trainingjob import ImageSize
from tlt_runner.data import geometry, images, tfrecords
from tlt_runner.data.classes import ClassMapping
from tlt_runner.data.sample import Converted, Finding, LabelledBox, Labels, Problem, Reader, Sample

SMALLEST_SIDE = 1.0
"""Pixels of the network's input below which an object is dropped: no proposal can be that small."""


def convert(sample: Sample, data: bytes, reader: Reader, mapping: ClassMapping, size: ImageSize) -> Converted:
    """Make the record of one sample. Bad data are in the result, never an exception.

    Args:
        sample: Of the reader's listing.
        data: Bytes of its image.
        reader: Reads its label.
        mapping: Classes to learn.
        size: The network's input.
    """
    try:
        head = images.header(data, sample.image_file)
        original_size = (head.height, head.width)
        labels = reader.read(sample, original_size)
        _check_size(head, labels)
        where = geometry.placement(*original_size, size.height, size.width, size.mode)
        encoded = _encoded(data, head, where)
    except images.BadImageError as error:
        return refused(sample, error)
    placed = _place_all(labels.boxes, sample, mapping, original_size, where)
    objects = tfrecords.Objects(
        names=[target for _, target, _ in placed.kept],
        class_ids=[mapping.class_names.index(target) for _, target, _ in placed.kept],
        boxes=np.array([edges for _, _, edges in placed.kept]).reshape(-1, 4),
        truncation=[box.truncation for box, _, _ in placed.kept],
        occlusion=[box.occlusion for box, _, _ in placed.kept],
        difficult=[box.difficult for box, _, _ in placed.kept],
    )
    return Converted(
        example=tfrecords.to_example(sample.name, encoded, original_size, where, objects),
        dropped=[*labels.findings, *placed.dropped],
        objects=list(objects.class_ids),
        sizes=[(y2 - y1, x2 - x1) for y1, x1, y2, x2 in objects.boxes.tolist()],
        source_classes=[box.class_name for box in labels.boxes],
        clipped=placed.clipped,
        ignored=labels.ignored,
        oddities=head.oddities,
    )


def refused(sample: Sample, error: images.BadImageError) -> Converted:
    """What becomes of a sample whose image cannot be used."""
    return Converted(skipped=Finding(sample.image_file, error.problem, error.message))


def _check_size(head: images.Header, labels: Labels) -> None:
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
    raise images.BadImageError(Problem.SIZE_MISMATCH, message)


def _encoded(data: bytes, head: images.Header, where: geometry.Placement) -> bytes:
    """The JPEG for the record: the file itself where nothing has to change."""
    if head.fits_records and (head.height, head.width) == (where.height, where.width):
        images.check(data, head)
        return data
    return images.encode(geometry.place_image(images.pixels(data, head), where))


@dataclass(frozen=True)
class _Placed:
    """What became of the boxes of one image.

    Attributes:
        kept: Box, class to learn, edges yxyx in pixels of the network's input.
        dropped: Those that cannot be used.
        clipped: How many of those kept were cut at the image's edge.
    """

    kept: Sequence[tuple[LabelledBox, str, np.ndarray]]
    dropped: Sequence[Finding]
    clipped: int


def _place_all(
    boxes: Sequence[LabelledBox],
    sample: Sample,
    mapping: ClassMapping,
    original_size: tuple[int, int],
    where: geometry.Placement,
) -> _Placed:
    kept: list[tuple[LabelledBox, str, np.ndarray]] = []
    dropped: list[Finding] = []
    clipped = 0
    for box in boxes:
        target = mapping.target(box.class_name)
        if target is None:
            continue
        edges, problem = _place(box, original_size, where)
        if problem is not None:
            dropped.append(Finding(sample.label_file, problem, _why(problem, box, original_size), box.line))
            continue
        clipped += not _inside(box, original_size)
        kept.append((box, target, edges))
    return _Placed(kept, dropped, clipped)


def _place(
    box: LabelledBox, original_size: tuple[int, int], where: geometry.Placement
) -> tuple[np.ndarray, Problem | None]:
    y1, x1, y2, x2 = box.yxyx
    inside = geometry.clip(np.array([box.yxyx]), *original_size)
    if not (y1 < y2 and x1 < x2):
        return inside[0], Problem.INVERTED_BOX
    if not (inside[0, 0] < inside[0, 2] and inside[0, 1] < inside[0, 3]):
        return inside[0], Problem.OUTSIDE_IMAGE
    placed = where.to_network(inside)[0]
    if min(placed[2] - placed[0], placed[3] - placed[1]) < SMALLEST_SIDE:
        return placed, Problem.TOO_SMALL
    return placed, None


def _inside(box: LabelledBox, original_size: tuple[int, int]) -> bool:
    y1, x1, y2, x2 = box.yxyx
    return y1 >= 0 and x1 >= 0 and y2 <= original_size[0] and x2 <= original_size[1]


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
