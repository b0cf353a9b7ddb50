"""Bring one sample to size: check its image or encode it anew, and map its boxes. Worker threads run it.

Conversion to records (:mod:`~tlt_runner.data.preparation.prepare`) and export to a folder of another format
(:mod:`~tlt_runner.data.preparation.export_folder`) both use :func:`convert_image`, so that they keep and drop
the same images and boxes.

The decoders, cv2 and zlib release the interpreter's lock, so threads use the cores, and nothing has to be
sent between processes. An image that has the right size already keeps its bytes: it is checked, not decoded.
That costs less than half of a decode and encode, and loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tlt_api.dataset import ImageSize
from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.images import decode, geometry, orientation
from tlt_runner.data.images.geometry import SMALLEST_SIDE
from tlt_runner.data.images.header import BadImageError, Header
from tlt_runner.data.sample import (
    Finding,
    LabelledBox,
    Labels,
    Problem,
    Reader,
    Sample,
    SampleOutcome,
    ignored_id,
)

_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png"}


@dataclass(frozen=True)
class ConvertedImage:
    """Image and its objects at the requested size.

    Attributes:
        data: The image file.
        suffix: ``.jpg`` or ``.png``, by its content.
        original_size: Height and width of the original image.
        placement: Position of the original image in this one.
        boxes: Objects inside the image, of the mapping's target classes.
        regions: Ignored regions inside the image, of target classes or (class "") of every class.
        outcome: Counts and findings, for the report; without a record.
    """

    data: bytes
    suffix: str
    original_size: tuple[int, int]
    placement: geometry.Placement
    boxes: Sequence[LabelledBox]
    regions: Sequence[LabelledBox]
    outcome: SampleOutcome


def convert(
    sample: Sample, data: bytes, reader: Reader, mapping: ClassMapping, size: ImageSize
) -> SampleOutcome:
    """Make the record of one sample. Bad data are in the result, never an exception.

    Args:
        sample: Of the reader's listing.
        data: Bytes of its image.
        reader: Reads its label.
        mapping: Classes to learn.
        size: The network's input.
    """
    # TensorFlow, which takes seconds to import, is needed for records only.
    from tlt_runner.data import tfrecords

    try:
        image = convert_image(
            sample, data, reader, mapping, size, keeps_bytes=lambda header: header.fits_records
        )
    except BadImageError as error:
        return refused(sample, error)
    # Regions come after the objects, as further boxes, so that whatever moves boxes moves them, too.
    ignored = [
        ignored_id(mapping.class_names.index(region.class_name) if region.class_name else None)
        for region in image.regions
    ]
    example = tfrecords.to_example(
        sample.name,
        image.data,
        image.original_size,
        image.placement,
        [*image.boxes, *image.regions],
        [*image.outcome.objects, *ignored],
    )
    return replace(image.outcome, example=example)


def convert_image(
    sample: Sample,
    data: bytes,
    reader: Reader,
    mapping: ClassMapping,
    size: ImageSize | None,
    *,
    keeps_bytes: Callable[[Header], bool] = lambda header: True,
) -> ConvertedImage:
    """Check one image, and bring it and its boxes to ``size``.

    Args:
        sample: Of the reader's listing.
        data: Bytes of its image.
        reader: Reads its label.
        mapping: Source classes and their target classes; boxes of other classes are passed over.
        size: The new size; None keeps the image's own.
        keeps_bytes: Tells whether the file of an image of the right size can be used as it is.

    Raises:
        BadImageError: The image cannot be used.
    """
    # Container first: it is read without decoding, and says what a label's size is compared with.
    header = decode.header(data, sample.image_file)
    # The size of the view that was labelled: of the turned picture, where the label is of that one.
    original_size = orientation.upright_size(header.height, header.width, sample.orientation)
    # The label comes before the pixels: it is cheap, and may leave the image out.
    labels = reader.read(sample, original_size)
    check_label(header, labels, original_size)

    height, width = original_size if size is None else (size.height, size.width)
    mode = "stretch" if size is None else size.mode
    # The same placement moves pixels and boxes, so that they stay together.
    placement = geometry.placement(*original_size, height, width, mode)
    # The file itself is used where nothing changes: that is faster, and JPEG loses a little at each encoding.
    if sample.orientation == 1 and (height, width) == original_size and keeps_bytes(header):
        decode.check(data, header)
        suffix = _SUFFIXES[header.kind]
    else:
        # Through pixels: resized if need be, and encoded as a JPEG that TensorFlow reads.
        # Turned first: labels, placement and the way back to the original are all of the turned picture.
        pixels = orientation.upright(decode.pixels(data, header), sample.orientation)
        data = decode.encode(geometry.place_image(pixels, placement))
        suffix = _SUFFIXES["JPEG"]

    transformed = transform_boxes(labels.boxes, sample, mapping, original_size, placement)
    regions = transform_regions(labels.ignored, mapping, original_size, placement)
    edges = [box.yxyx for box in transformed.boxes]
    # The sizes are for the report's histogram, beside the anchors: in the network's pixels.
    class_ids = [mapping.class_names.index(box.class_name) for box in transformed.boxes]
    outcome = SampleOutcome(
        dropped=[*labels.findings, *transformed.dropped],
        objects=class_ids,
        difficult=[
            class_id for class_id, box in zip(class_ids, transformed.boxes, strict=True) if box.difficult
        ],
        sizes=[(y2 - y1, x2 - x1) for y1, x1, y2, x2 in edges],
        source_classes=[box.class_name for box in labels.boxes],
        clipped=transformed.clipped,
        reaching_out=transformed.reaching_out,
        ignored=len(labels.ignored),
        regions=len(regions),
        oddities=header.oddities if sample.orientation == 1 else orientation.applied(header.oddities),
        outlines=labels.outlines,
    )
    return ConvertedImage(data, suffix, original_size, placement, transformed.boxes, regions, outcome)


def refused(sample: Sample, error: BadImageError) -> SampleOutcome:
    """Make the outcome of a sample whose image cannot be used."""
    return SampleOutcome(skipped=Finding(sample.image_file, error.problem, error.message))


_NO_LABEL_AT_ALL = {Problem.UNREADABLE_LABEL, Problem.NOT_A_BOX}
"""Problems of a line for which its image is left out, with all its objects."""
EXACT = 1e-3
"""Tolerance in pixels: label formats round."""
ROUNDED = 2.0
"""Pixels by which a box can reach out of its image because a tool rounds, or counts from 0 instead of 1."""


def check_label(header: Header, labels: Labels, image_size: tuple[int, int]) -> None:
    """Check that a label could be read and is of an image of this size.

    An image whose label cannot be read is no image without objects: it would teach that they are background.
    The same holds for a label with outlines that are not to become boxes.

    Args:
        header: The image's header.
        labels: Its label.
        image_size: Height and width of the image, after it was turned if it is to be.

    Raises:
        BadImageError: ``UnreadableLabel``, ``NotABox``, ``SizeMismatch``.
    """
    # Lines that cannot be used are dropped one by one; a label that cannot be read has no lines.
    for finding in labels.findings:
        if finding.problem in _NO_LABEL_AT_ALL:
            raise BadImageError(finding.problem, f"{finding.position}: {finding.message}")
    labelled = labels.image_size
    # Labels of another size belong to another image, or to one that was resized since.
    if labelled is None or labelled == image_size:
        return
    message = (
        f"expected {labelled[1]} x {labelled[0]} pixels as its label says, the image has "
        f"{image_size[1]} x {image_size[0]}"
    )
    # Orientations 5 to 8 swap height and width: the label is of the other view than the spec says.
    if header.orientation in orientation.SWAPPED and labelled == image_size[::-1]:
        is_stored = image_size == (header.height, header.width)
        views = ("after", "as they are stored") if is_stored else ("before", "after it is applied")
        message += (
            f": the label speaks of the image {views[0]} its EXIF orientation is applied, but "
            f"spec.dataset.orientation has the pixels taken {views[1]}: leave it at auto"
        )
    raise BadImageError(Problem.SIZE_MISMATCH, message)


@dataclass(frozen=True)
class TransformedBoxes:
    """Boxes of one image after it was resized.

    Attributes:
        boxes: Usable boxes, with the class to learn, in pixels of the resized image.
        dropped: Findings of the boxes that cannot be used.
        clipped: Number of usable boxes that were cut at the image's edge.
        reaching_out: Number of these that were cut by more than a tool's rounding.
    """

    boxes: Sequence[LabelledBox]
    dropped: Sequence[Finding]
    clipped: int
    reaching_out: int


def transform_boxes(
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
    # Cut first, then scaled: the image's edge is known in pixels of the original.
    edges = placement.to_network(inside)
    # Only for the count of cut boxes: a difference by rounding is none.
    cut = np.abs(inside - original).max(axis=1, initial=0.0)
    # What is too small is decided in pixels of the network, where the object is to be found.
    usable: list[LabelledBox] = []
    dropped: list[Finding] = []
    clipped, reaching_out = 0, 0
    for index, (box, name) in enumerate(mapped):
        problem = _problem(box.yxyx, inside[index], edges[index])
        if problem is not None:
            message = _message(problem, box, original_size)
            dropped.append(Finding(sample.label_file, problem, message, box.line, box.yxyx))
            continue
        # Counted for used boxes only: the others are findings already.
        clipped += int(cut[index] > EXACT)
        reaching_out += int(cut[index] > ROUNDED)
        y1, x1, y2, x2 = edges[index].tolist()
        usable.append(replace(box, class_name=name, yxyx=(y1, x1, y2, x2)))
    return TransformedBoxes(usable, dropped, clipped, reaching_out)


def transform_regions(
    regions: Sequence[LabelledBox],
    mapping: ClassMapping,
    original_size: tuple[int, int],
    placement: geometry.Placement,
) -> Sequence[LabelledBox]:
    """Map the ignored regions of one image to the resized image.

    Left out are regions of classes that are not learnt (what lies there is background, as it is elsewhere),
    and those of which nothing, or less than a pixel a side, is inside the image.
    """
    kept: list[LabelledBox] = []
    for region in regions:
        name = mapping.target(region.class_name) if region.class_name else ""
        edges = placement.to_network(geometry.clip(np.array([region.yxyx]), *original_size))[0]
        if name is not None and min(edges[2] - edges[0], edges[3] - edges[1]) >= SMALLEST_SIDE - EXACT:
            y1, x1, y2, x2 = edges.tolist()
            kept.append(replace(region, class_name=name, yxyx=(y1, x1, y2, x2)))
    return kept


def _problem(
    yxyx: tuple[float, float, float, float], inside: geometry.FloatArray, edges: geometry.FloatArray
) -> Problem | None:
    # Before clipping: an inverted box could become a valid one by it.
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
