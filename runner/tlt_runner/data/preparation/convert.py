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

from tlt_api.dataset import ImageSize
from tlt_runner.data import box_transform
from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.images import decode, geometry
from tlt_runner.data.images.header import BadImageError, Header
from tlt_runner.data.sample import Finding, LabelledBox, Reader, Sample, SampleOutcome

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
        outcome: Counts and findings, for the report; without a record.
    """

    data: bytes
    suffix: str
    original_size: tuple[int, int]
    placement: geometry.Placement
    boxes: Sequence[LabelledBox]
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
    example = tfrecords.to_example(
        sample.name, image.data, image.original_size, image.placement, image.boxes, image.outcome.objects
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
    header = decode.header(data, sample.image_file)
    original_size = (header.height, header.width)
    # The label comes before the pixels: it is cheap, and may leave the image out.
    labels = reader.read(sample, original_size)
    box_transform.check_label(header, labels)

    height, width = original_size if size is None else (size.height, size.width)
    mode = "stretch" if size is None else size.mode
    placement = geometry.placement(*original_size, height, width, mode)
    # The file itself is used where nothing changes: that is faster, and JPEG loses a little at each encoding.
    if (height, width) == original_size and keeps_bytes(header):
        decode.check(data, header)
        suffix = _SUFFIXES[header.kind]
    else:
        data = decode.encode(geometry.place_image(decode.pixels(data, header), placement))
        suffix = _SUFFIXES["JPEG"]

    transformed = box_transform.transform(labels.boxes, sample, mapping, original_size, placement)
    edges = [box.yxyx for box in transformed.boxes]
    outcome = SampleOutcome(
        dropped=[*labels.findings, *transformed.dropped],
        objects=[mapping.class_names.index(box.class_name) for box in transformed.boxes],
        sizes=[(y2 - y1, x2 - x1) for y1, x1, y2, x2 in edges],
        source_classes=[box.class_name for box in labels.boxes],
        clipped=transformed.clipped,
        ignored=labels.ignored,
        oddities=header.oddities,
    )
    return ConvertedImage(data, suffix, original_size, placement, transformed.boxes, outcome)


def refused(sample: Sample, error: BadImageError) -> SampleOutcome:
    """Make the outcome of a sample whose image cannot be used."""
    return SampleOutcome(skipped=Finding(sample.image_file, error.problem, error.message))
